"""An OpenAI-compatible endpoint that writes answers: chat completions over HTTP, streamed as server-sent events.

The memory stays here; a prompt with the passages that it holds goes out: by https, or to this machine, unless plain
http is allowed. The key is `$MINIMEMO_API_KEY`, for OpenAI's own address else `$OPENAI_API_KEY`; it is sent to the
endpoint's address and never along a redirect. What comes back is bounded in time and bytes.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol
from urllib.parse import urlsplit

from minimemo.ask.writer import Piece, Written, pieces
from minimemo.errors import GeneratorError, InputError
from minimemo.events import Listener

if TYPE_CHECKING:
    import socket
    from urllib.error import HTTPError

KEY, OPENAI_KEY, OPENAI = "MINIMEMO_API_KEY", "OPENAI_API_KEY", "api.openai.com"
_PATH = "/chat/completions"
_NO_LIMIT = 1 << 20  # Tokens; an endpoint does not say how many it takes, and refuses what is too long.
_LINE = 1 << 20  # Bytes of one event at most; a real one has some hundred.
_BODY = 1 << 24  # Bytes of an answer that is not streamed, at most.
_BYTES = 1 << 26  # Of a whole response, at most: a model that thinks first may send some megabytes.
_TOKEN = 32  # Characters that a token of an answer has, at most: a server may not obey the limit that it is given.
_PATIENCE = 60.0  # Seconds that a server may ask to wait before the next try.
_TRIES = 5  # Requests for one answer, at most.
_QUOTED = 200  # Characters of a server's words that an error repeats.


def is_address(text: object) -> bool:
    """Tells whether a generator is named by an address, not as a model."""
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


class Delta(NamedTuple):
    """The next part of an answer; the tokens of prompt and answer where the server says how many."""

    text: str
    prompt_tokens: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Names an endpoint. url: with or without /chat/completions; a bare host gets /v1 before it. model: "" for a server
    that has one. timeout: seconds without a byte; total: seconds for an answer. key: "" for the environment's.
    plain_http: whether prompts and key may leave this machine unencrypted. Raises InputError for what is no address."""

    url: str
    model: str = ""
    timeout: float = 300.0
    total: float = 1800.0
    key: str = field(default="", repr=False)
    plain_http: bool = False
    _refused: set[str] = field(default_factory=set, init=False, repr=False, compare=False)  # fields of a request

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            whole = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            whole = False
        if not whole or any(char.isspace() for char in self.url):
            raise InputError(f"generator {self.url!r} is no address; give one like http://localhost:8080/v1")
        if parts.username is not None:
            raise InputError(f"generator {parts.hostname}: no name or password in an address; set {KEY} to the key")
        if parts.scheme == "http" and not self.plain_http and not is_loopback(parts.hostname or ""):
            raise InputError(
                f"generator {parts.hostname}: over http anyone on the way reads passages and key; use https, or allow "
                "it with `Endpoint.plain_http`"
            )

    @property
    def address(self) -> str:
        """Where requests go."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        whole = path if path.endswith(_PATH) else f"{path or '/v1'}{_PATH}"
        return parts._replace(path=whole).geturl()

    @property
    def shown(self) -> str:
        """The address for messages, without what a query may hold."""
        return urlsplit(self.address)._replace(query="").geturl()

    def _key(self) -> str:
        parts = urlsplit(self.url)
        names = (KEY, OPENAI_KEY) if (parts.scheme, parts.hostname) == ("https", OPENAI) else (KEY,)
        return next(filter(None, (self.key, *(os.environ.get(name, "").strip() for name in names))), "")

    def stream(self, messages: Sequence[dict[str, str]], max_tokens: int) -> Iterator[Delta]:
        """Yields the answer to a chat in parts, greedy. Waits once more where the server asks for it, and leaves out
        what it does not take. Raises GeneratorError."""
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError

        deadline = time.monotonic() + self.total
        try:
            for _ in range(_TRIES):
                try:
                    with closing(self._open(messages, max_tokens, deadline)) as response:
                        if response.headers.get_content_type() == "application/json":
                            yield self._delta(response.read(_BODY), "message")[0]
                        else:
                            yield from self._events(response)
                    return
                except HTTPError as error:
                    with closing(error):
                        self._mend(error, deadline)
            raise GeneratorError(f"{self.shown}: still busy after {_TRIES} tries; try again later")
        except TimeoutError:
            self._silent(deadline)
        except URLError as error:
            if isinstance(error.reason, TimeoutError):
                self._silent(deadline)
            raise GeneratorError(
                f"{self.shown}: no server answers ({self._plain(_reason(error.reason))}); "
                "start it, or give another address with `generator`"
            ) from None
        except (HTTPException, OSError) as error:
            self._cut(error)

    def _open(self, messages: Sequence[dict[str, str]], max_tokens: int, deadline: float) -> Any:
        from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
        from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

        timeout = self.timeout

        class Bounded(HTTPResponse):
            def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
                watched: Any = _Watched(sock, timeout, deadline)
                super().__init__(watched, *arguments, **options)

        class Plain(HTTPConnection):
            response_class = Bounded

        class Secure(HTTPSConnection):
            response_class = Bounded

        class ByHttp(HTTPHandler):
            def http_open(self, request: Request) -> HTTPResponse:
                return self.do_open(Plain, request)

        class ByHttps(HTTPSHandler):
            def https_open(self, request: Request) -> HTTPResponse:
                return self.do_open(Secure, request)

        class Stay(HTTPRedirectHandler):
            def redirect_request(self, *_: object, **__: object) -> None:
                return None  # what is left is an HTTPError with the other address

        limit = "max_completion_tokens" if "max_tokens" in self._refused else "max_tokens"
        body: dict[str, Any] = {"messages": list(messages), limit: max_tokens, "temperature": 0, "stream": True}
        if self.model:
            body["model"] = self.model
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "User-Agent": "minimemo"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        body = {name: value for name, value in body.items() if name not in self._refused}
        direct = [ProxyHandler({})] if is_loopback(urlsplit(self.url).hostname or "") else []
        try:
            request = Request(self.address, json.dumps(body).encode(), headers)
            opener = build_opener(Stay, ByHttp, ByHttps, *direct)
            return opener.open(request, timeout=max(0.01, min(timeout, deadline - time.monotonic())))
        except (UnicodeError, ValueError):
            raise GeneratorError(f"{self.shown}: cannot be sent to; look at the address and {KEY}") from None

    def _mend(self, error: HTTPError, deadline: float) -> None:
        """Prepares for another try after a refusal, where one may help. Raises GeneratorError where none does."""
        from http.client import HTTPException

        try:
            content = error.read(_BODY)
        except (OSError, HTTPException):
            content = b""
        try:
            said = self._message(json.loads(content))
        except (ValueError, RecursionError):
            said = self._plain(content[: 8 * _QUOTED].decode(errors="replace"))
        if error.code in (400, 422):
            for name, sign in (("max_tokens", "max_completion_tokens"), ("temperature", "temperature")):
                if sign.encode() in content and name not in self._refused:
                    self._refused.add(name)
                    return
        asked = error.headers.get("Retry-After", "")
        wait = float(asked) if asked.isdecimal() else _PATIENCE
        if error.code in (429, 503) and wait < min(_PATIENCE, deadline - time.monotonic()):
            time.sleep(wait)
            return
        self._refuse(error, said)

    def _events(self, response: Any) -> Iterator[Delta]:
        """Server-sent events (WHATWG HTML, 9.2): lines `data: ...`, the last of them `[DONE]`."""
        ended = False
        first = b""
        while line := response.readline(_LINE):
            first = first or line
            if not line.startswith(b"data:"):
                continue  # comments, which keep a connection awake, and names of events
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if not data:
                continue
            delta, last = self._delta(data, "delta")
            ended = ended or last
            yield delta
        if first and not first.startswith((b"data:", b"event:", b"id:", b"retry:", b":", b"\n", b"\r")):
            self._foreign(first)
        if not ended:
            self._cut("the stream has no end")

    def _delta(self, data: bytes, key: str) -> tuple[Delta, bool]:
        """Reads a chunk of a stream (key "delta") or a whole answer ("message"); also returns whether it is the end."""
        try:
            content = json.loads(data)
            if content.get("error"):
                said = self._message(content)
                raise GeneratorError(f"{self.shown}: the server failed: {said}; its log says more")
            choice = (content.get("choices") or [{}])[0] if key == "delta" else content["choices"][0]
            text, usage = (choice.get(key) or {}).get("content"), _as_dict(content.get("usage"))
            text = text.encode(errors="replace").decode() if isinstance(text, str) else ""
            delta = Delta(text, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
            return delta, choice.get("finish_reason") is not None
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError):  # not of the protocol's shapes
            self._foreign(data)

    def _refuse(self, error: HTTPError, said: str) -> NoReturn:
        what = f"{self.shown}: HTTP {error.code}" + (f" ({said})" if said else "")
        if error.code in (401, 403):
            mend = f"set {KEY} to a key that it takes"
        elif error.code in (404, 405):
            mend = "look at the address, which mostly ends in /v1, and at `Endpoint.model`"
        elif error.code == 429:
            mend = "too many requests, or nothing left to spend: try again later"
        elif 300 <= error.code < 400:
            mend = f"give the address that it moved to: {self._plain(error.headers.get('Location', '?'))}"
        elif error.code < 500:
            mend = "look at `Endpoint.model`" if self.model else "name one of its models with `Endpoint.model`"
        else:
            mend = "the server failed: look at its log, or try again"
        raise GeneratorError(f"{what}; {mend}") from None

    def _silent(self, deadline: float) -> NoReturn:
        seconds = self.total if time.monotonic() >= deadline else self.timeout
        raise GeneratorError(f"{self.shown}: no answer within {seconds:g} s; is it busy? try again") from None

    def _cut(self, why: object) -> NoReturn:
        raise GeneratorError(f"{self.shown}: the answer broke off ({self._plain(str(why))}); try again") from None

    def _foreign(self, data: bytes) -> NoReturn:
        said = self._plain(data[: 4 * _QUOTED].decode(errors="replace"))
        raise GeneratorError(
            f"{self.shown}: not a chat completion: {said!r}; is it an OpenAI-compatible endpoint?"
        ) from None

    def _message(self, content: Any) -> str:
        """What an error says, in the shapes that servers give it."""
        error = content.get("error", content) if isinstance(content, dict) else content
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail") or json.dumps(error, ensure_ascii=False)
        return self._plain(str(error))

    def _plain(self, text: str) -> str:
        """On one line, nothing that a terminal would obey, nor the key, at most _QUOTED characters."""
        key = self._key()
        line = "".join(char if char.isprintable() else " " for char in (text.replace(key, "…") if key else text))
        return " ".join(line.split())[:_QUOTED]


class _Watched:
    """A socket for HTTPResponse, of which no more than _BYTES are read, none after the deadline."""

    def __init__(self, sock: socket.socket, timeout: float, deadline: float) -> None:
        self._sock, self._timeout, self._deadline = sock, timeout, deadline

    def makefile(self, mode: str) -> io.BufferedReader:  # reached by: http.client
        """What the response reads from; it closes the socket."""
        whole, timeout, deadline, sock = self._sock.makefile("rb", 0), self._timeout, self._deadline, self._sock
        left = _BYTES

        class Watching(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int | None:
                nonlocal left
                seconds = min(timeout, deadline - time.monotonic())
                if seconds <= 0:
                    raise TimeoutError
                sock.settimeout(seconds)
                count = whole.readinto(buffer)
                left -= count or 0
                if left < 0:
                    raise OSError(f"more than {_BYTES >> 20} MB")
                return count

            def close(self) -> None:
                super().close()
                whole.close()

        return io.BufferedReader(Watching())


class _Elsewhere:
    """What writes with other means. count: counts a text's tokens by the memory's tokenizer: theirs is not known, so
    budgets are kept about."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self.count = count

    @property
    def max_context(self) -> int:
        return _NO_LIMIT

    def prompt_tokens(self, system: str, text: str) -> int:
        return self.count(system) + self.count(text)


Called = Callable[[str], "str | Iterable[str]"]


class HasGenerate(Protocol):
    """Has a function of a prompt, which returns a text or yields its pieces."""

    def generate(self, prompt: str, /) -> str | Iterable[str]: ...


class CalledGenerator(_Elsewhere):
    """Writes answers with a function, which is given the system prompt and the question's as one text."""

    def __init__(self, called: Called, count: Callable[[str], int]) -> None:
        super().__init__(count)
        self._called = called

    def write(
        self, system: str, text: str, max_tokens: int, on_event: Listener, min_tokens: int = 0
    ) -> Generator[Piece, None, Written]:
        """`min_tokens` is not asked for, and how long the text gets is the function's to decide."""
        prompt = f"{system}\n\n{text}" if system else text
        said = self._called(prompt)
        parts = [said] if isinstance(said, str) else said
        reply, _ = yield from pieces(((part, 1) for part in parts), max_tokens, on_event)
        return Written(reply, self.prompt_tokens(system, text), self.count(reply))


class EndpointGenerator(_Elsewhere):
    """Writes answers with an endpoint; an answer has the endpoint's numbers of tokens where it gives them."""

    def __init__(self, endpoint: Endpoint, count: Callable[[str], int]) -> None:
        super().__init__(count)
        self._endpoint = endpoint

    def write(
        self, system: str, text: str, max_tokens: int, on_event: Listener, min_tokens: int = 0
    ) -> Generator[Piece, None, Written]:
        """`min_tokens` is not asked for: the protocol has no such limit."""
        said = [("system", system)] * bool(system) + [("user", text)]
        messages = [{"role": role, "content": content} for role, content in said]
        prompt_tokens = tokens = None

        def texts(deltas: Iterator[Delta]) -> Iterator[tuple[str, int]]:
            nonlocal prompt_tokens, tokens
            for delta in deltas:
                prompt_tokens, tokens = delta.prompt_tokens or prompt_tokens, delta.tokens or tokens
                yield delta.text, 1

        def short(deltas: Iterator[Delta]) -> Iterator[Delta]:
            left = _TOKEN * max_tokens
            for delta in deltas:
                yield delta
                left -= len(delta.text)
                if left < 0:
                    return

        with closing(self._endpoint.stream(messages, max_tokens)) as deltas:  # type: ignore[type-var]
            reply, _ = yield from pieces(texts(short(deltas)), max_tokens, on_event)
        if not reply:  # a model that thinks first may spend all of them on that
            raise GeneratorError(
                f"{self._endpoint.shown}: an empty answer; a model that thinks first may need more than {max_tokens} "
                "tokens: raise `max_tokens`, or name another with `Endpoint.model`"
            )
        return Written(reply, prompt_tokens or self.prompt_tokens(system, text), tokens or self.count(reply))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _reason(reason: object) -> str:
    return str(getattr(reason, "strerror", None) or reason)


def _as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
