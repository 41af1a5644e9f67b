"""Asks a server of the same user that runs already, through its Unix socket, so that no models are loaded."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from minimemo import __version__, errors
from minimemo.ask import Answer, Conversation, Found, Mode, Piece, checked_question
from minimemo.errors import InputError, MinimemoError
from minimemo.events import Event, Listener, silent
from minimemo.files import parse_json
from minimemo.memo.manifest import Manifest
from minimemo.server.run import socket_path

PATIENCE = 60.0  # seconds without a byte of an answer; a server says that it works every 10
_AT_ONCE = 2.0  # seconds in which a server says that it is there
_LINE = 64_000_000  # bytes of one event


class ServedMemos:
    """Memos that a running server is asked about, together, as a `Memo` is: the same steps, the same answers.

    address: the server's Unix socket. Raises MemoError for what is no memo, before the server hears of it.
    """

    def __init__(self, address: Path, folders: Sequence[str | Path], on_event: Listener = silent) -> None:
        self.address = address
        self._on_event = on_event
        self._folders = {os.path.abspath(folder): str(folder) for folder in folders}
        for folder in self._folders.values():
            Manifest.load(Path(folder))

    def prepare(self) -> None:
        """The server's models are loaded already."""

    def chat(self) -> Conversation:
        """Begins a conversation, as `Memo.chat` does."""
        return Conversation(self)

    def session(self) -> ServedMemos:
        return self

    def stream(
        self, question: str, mode: Mode = "memorag", max_tokens: int = 256, *, typed: str = ""
    ) -> Generator[Found | Piece | Answer, None, None]:
        """Answers as `Memo.stream` does. `close` drops the rest, and the server's work on it."""
        return self._steps(mode, max_tokens, question=checked_question(question), typed=typed)

    def stream_summary(self, max_tokens: int = 512) -> Generator[Found | Piece | Answer, None, None]:
        """Summarizes everything, as a `Session` does."""
        return self._steps("summarize", max_tokens)

    def _steps(self, mode: str, max_tokens: int, **asked: str) -> Generator[Found | Piece | Answer, None, None]:
        body = {"memos": list(self._folders), "mode": mode, "max_tokens": max_tokens, **asked}
        clues: dict[str, Any] = {}
        for kind, told in self._events(body):
            if kind == "error":
                known = getattr(errors, str(told.get("kind")), MinimemoError)
                raise known(self._as_named(str(told["error"])))
            if kind in ("stage", "note"):
                self._on_event(Event(told["stage"], told["done"], told["total"], told["unit"]))
            elif kind == "clues":
                clues = told
            elif kind == "piece":
                yield Piece(told["text"])
            elif kind in ("passages", "answer"):
                for passage in told["passages"]:
                    passage["document"] = self._folders.get(passage["document"], passage["document"])
                for place in told.get("view", ()):
                    place[0] = self._folders.get(place[0], place[0])
                yield Answer.from_dict(told) if kind == "answer" else Found.from_dict({**clues, **told})
                if kind == "answer":
                    return
        raise self._broken("it ended without an answer")

    def _events(self, body: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of a request to /api/ask: name and content."""
        with closing(_Connection(self.address, PATIENCE)) as connection:
            try:
                content = json.dumps(body)
                connection.request("POST", "/api/ask", content, {"Content-Type": "application/json"})
                response = connection.getresponse()
                if response.status != 200:
                    raise InputError(self._as_named(_message(response.read(_LINE))))
                name = ""
                while line := response.readline(_LINE):
                    field, _, value = line.rstrip(b"\r\n").decode().partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        yield name, parse_json(value)
            except (OSError, HTTPException, ValueError) as error:
                raise self._broken(f"{error or type(error).__name__}") from error

    def _broken(self, why: str) -> MinimemoError:
        return MinimemoError(f"{self.address}: the server broke off ({why}); ask again")

    def _as_named(self, text: str) -> str:
        """A message with folders as the user names them; the server has their whole paths."""
        for whole, named in self._folders.items():
            text = text.replace(whole, named)
        return text


def running() -> Path | None:
    """The Unix socket of this user's server; None where none of this version answers there."""
    address = socket_path()
    try:
        status = address.lstat()
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.getuid():
            return None
        with closing(_Connection(address, _AT_ONCE)) as connection:
            connection.request("GET", "/health")
            told = parse_json(connection.getresponse().read(_LINE))
    except (OSError, HTTPException, ValueError, AttributeError):
        return None
    return address if isinstance(told, dict) and told.get("version") == __version__ else None


class _Connection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, address: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = str(address)

    def connect(self) -> None:  # reached by: http.client
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address)


def _message(content: bytes) -> str:
    """What an error's body says."""
    try:
        return str(parse_json(content)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return "the server did not take the question; look into its output"
