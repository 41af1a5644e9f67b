"""Who may see which documents: tokens of a file, each with documents, quotas and an application of its own.

    [alice]
    sha256 = "9f86d0..."            # of the token; the token itself is nowhere
    collections = ["contracts"]     # as `minimemo status` names them
    memos = ["book.memo"]           # folders, from this file's own on
    write = true                    # may add documents, which it alone sees, and delete those; without it: reads
    questions_per_hour = 60         # questions and searches
    tokens_per_hour = 20000         # that answers are written with

Every token's requests go to an application that has a shelf of its documents and no other (app.py): a border is not
looked at by routes, and so not forgotten by one. Who comes without a token gets the page, and no document.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
import time
import tomllib
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minimemo.errors import InputError, MinimemoError
from minimemo.files import data_dir, private_folder, whole_path
from minimemo.memo.manifest import NAME
from minimemo.memo.registry import checked_name, memos_of
from minimemo.server.guard import is_local

HOUR = 3600.0
AUDIT = "audit.jsonl"  # in the data folder
DOCUMENTS = "minimemo.documents"  # of a request's scope: the ids of documents that its answer has something of
_NAME = re.compile(r"[\w-]{1,40}")
_HASH = re.compile(r"[0-9a-f]{64}")


class OverQuota(MinimemoError):
    """A token has asked as much as it may for now. seconds: until it may again."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


@dataclass(slots=True)
class Quota:
    """What a token may ask within an hour; None: any number. It is counted in memory: a new server begins anew."""

    questions: int | None = None
    tokens: int | None = None
    _spent: deque[tuple[float, int, int]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self) -> None:
        """Counts a question. Raises OverQuota where it is one too many."""
        with self._lock:
            now = time.monotonic()
            while self._spent and self._spent[0][0] <= now - HOUR:
                self._spent.popleft()
            for what, at, most in (("questions", 1, self.questions), ("tokens", 2, self.tokens)):
                if most is not None and sum(one[at] for one in self._spent) >= most:
                    wait = next((one[0] for one in self._spent if one[at]), now) + HOUR - now
                    raise OverQuota(
                        f"{most} {what} an hour are what this token may have: ask again in {wait / 60:.0f} minutes",
                        wait,
                    )
            self._spent.append((now, 1, 0))

    def wrote(self, tokens: int) -> None:
        """Counts the tokens of an answer."""
        with self._lock:
            self._spent.append((time.monotonic(), 0, tokens))


@dataclass(frozen=True, slots=True)
class Access:
    """A token's rights. folders: memos, and folders that memos lie below."""

    name: str
    sha256: str
    folders: tuple[Path, ...]
    write: bool
    quota: Quota

    @property
    def uploads(self) -> Path:
        """Where its own documents lie."""
        return data_dir() / "documents" / self.name

    def sees(self, memo: Path) -> bool:
        """Whether a memo is one of its documents."""
        return any(folder == memo or folder in memo.parents for folder in (*self.folders, self.uploads))


def read_access(file: Path) -> list[Access]:
    """The tokens of a file. Raises InputError for one that cannot be read or says what is not understood."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{file}: is no TOML ({error})") from None
    made = [_access(file, name, entry) for name, entry in content.items()]
    if not made:
        raise InputError(f"{file}: has no token; see docs/server.md")
    if len({one.sha256 for one in made}) < len(made):
        raise InputError(f"{file}: two names have the same token")
    return made


def _access(file: Path, name: str, entry: Any) -> Access:
    def of(key: str, kind: type, default: Any = None) -> Any:
        value = entry.get(key, default)
        if value is not default and (type(value) is not kind or (isinstance(value, int) and value < 0)):
            raise InputError(f"{file}: {name}: {key} = {value!r} is not understood; see docs/server.md")
        return value

    if not _NAME.fullmatch(name) or not isinstance(entry, dict):
        raise InputError(f"{file}: [{name}]: a token is a table with a plain name")
    known = {"sha256", "collections", "memos", "write", "questions_per_hour", "tokens_per_hour"}
    if unknown := entry.keys() - known:
        raise InputError(
            f"{file}: {name}: {', '.join(sorted(unknown))} is unknown; there are {', '.join(sorted(known))}"
        )
    digest = of("sha256", str, "").lower()
    if not _HASH.fullmatch(digest):
        raise InputError(f"{file}: {name}: sha256 is the SHA-256 of the token, 64 hex digits")
    folders = [memos_of(checked_name(str(collection))) for collection in of("collections", list, [])]
    if absent := [folder.name for folder in folders if not folder.is_dir()]:
        raise InputError(
            f"{file}: {name}: no collection {absent[0]!r}; make one: minimemo sync FOLDER --name {absent[0]}"
        )
    for memo in of("memos", list, []):
        folder = whole_path(file.parent / str(memo))
        if not (folder / NAME).is_file():
            raise InputError(f"{file}: {name}: {folder} is no memo")
        folders += [folder, folder.resolve()]  # it may be noted by either
    quota = Quota(of("questions_per_hour", int), of("tokens_per_hour", int))
    return Access(name, digest, tuple(folders), of("write", bool, False), quota)


class Gate:
    """Sends each request to the application of its token, and notes it in the audit log.

    tokens: by SHA-256, the name and the application of each; owner: what the user's own socket gets; stranger: what
    those get who have no token.
    """

    def __init__(self, tokens: Mapping[str, tuple[str, ASGIApp]], owner: ASGIApp, stranger: ASGIApp, log: Path) -> None:
        self._tokens, self._owner, self._stranger, self._log = tokens, owner, stranger, log
        private_folder(log.parent)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        if is_local(scope):
            await self._owner(scope, receive, send)
            return
        name, application = self._of(scope)
        begun, status, size = time.time(), 0, 0
        scope[DOCUMENTS] = documents = set[str]()

        async def sent(message: Message) -> None:
            nonlocal status, size
            status = message.get("status", status)
            size += len(message.get("body", b""))
            await send(message)

        try:
            await application(scope, receive, sent)
        finally:
            if name or status in (401, 403):
                self._note(begun, name, scope, status, size, sorted(documents))

    def _of(self, scope: Scope) -> tuple[str, ASGIApp]:
        """The name and the application of a request's token. All tokens are compared, whatever is given."""
        given = next((value for key, value in scope["headers"] if key.lower() == b"authorization"), b"")
        digest = hashlib.sha256(given.removeprefix(b"Bearer ")).hexdigest()
        found: tuple[str, ASGIApp] = ("", self._stranger)
        for sha256, entry in self._tokens.items():
            if hmac.compare_digest(sha256, digest):
                found = entry
        return found

    def _note(self, begun: float, name: str, scope: Scope, status: int, size: int, documents: list[str]) -> None:
        """A line of the log: who, when, which route and documents, how much; nothing that was asked or answered."""
        line = {
            "time": round(begun, 3), "token": name, "from": (scope.get("client") or ("",))[0],
            "request": f"{scope['method']} {scope['path'][:120]}", "status": status, "bytes": size,
            "seconds": round(time.time() - begun, 3), "documents": documents,
        }  # fmt: skip
        with suppress(OSError):
            fresh = not self._log.exists()
            with self._log.open("a", encoding="utf-8") as file:
                if fresh:
                    self._log.chmod(0o600)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The beginning and the end of every application."""
        async with AsyncExitStack() as stack:
            await receive()
            for application in (self._owner, self._stranger, *(one for _, one in self._tokens.values())):
                starlette = getattr(application, "router", None)
                if starlette is not None:
                    await stack.enter_async_context(starlette.lifespan_context(application))
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
