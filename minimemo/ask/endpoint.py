"""An OpenAI-compatible endpoint that writes answers: chat completions over HTTP, streamed as server-sent events.

The memory stays here; a prompt with the passages that it holds goes out. The key is `$MINIMEMO_API_KEY`, else
`$OPENAI_API_KEY`; it is sent to the endpoint's own address and never along a redirect.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from minimemo.ask.writer import Piece, Written, pieces
from minimemo.errors import GeneratorError, InputError
from minimemo.events import Listener

if TYPE_CHECKING:
    from urllib.error import HTTPError

KEYS = ("MINIMEMO_API_KEY", "OPENAI_API_KEY")
_PATH = "/chat/completions"
_NO_LIMIT = 1 << 20  # Tokens; an endpoint does not say how many it takes, and refuses what is too long.
_LINE = 1 << 20  # Bytes of one event at most; a real one has some hundred.
_BODY = 1 << 24  # Bytes of an answer that is not streamed, at most.
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
    that has one. timeout: seconds without a byte. Raises InputError for what is no address."""

    url: str
    model: str = ""
    timeout: float = 300.0

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

    @property
    def address(self) -> str:
        """Where requests go."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        whole = path if path.endswith(_PATH) else f"{path or '/v1'}{_PATH}"
        return parts._replace(path=whole).geturl()

    def stream(self, messages: Sequence[dict[str, str]], max_tokens: int) -> Iterator[Delta]:
        """Yields the answer to a chat in parts, greedy. Raises GeneratorError."""
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError

        try:
            with closing(self._open(messages, max_tokens)) as response:
                if response.headers.get_content_type() == "application/json":
                    yield self._delta(response.read(_BODY), "message")[0]
                else:
                    yield from self._events(response)
        except HTTPError as error:
            with closing(error):
                self._refused(error)
        except TimeoutError:
            self._silent()
        except URLError as error:
            if isinstance(error.reason, TimeoutError):
                self._silent()
            raise GeneratorError(
                f"{self.address}: no server answers ({getattr(error.reason, 'strerror', None) or error.reason}); "
                "start it, or give another address with --generator"
            ) from None
        except (HTTPException, OSError) as error:
            self._cut(error)

    def _open(self, messages: Sequence[dict[str, str]], max_tokens: int) -> Any:
        from urllib.request import HTTPRedirectHandler, Request, build_opener

        class Stay(HTTPRedirectHandler):
            def redirect_request(self, *_: object, **__: object) -> None:
                return None  # what is left is an HTTPError with the other address

        body: dict[str, Any] = {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0, "stream": True}
        if self.model:
            body["model"] = self.model
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "User-Agent": "minimemo"}
        if key := next(filter(None, (os.environ.get(name, "").strip() for name in KEYS)), ""):
            headers["Authorization"] = f"Bearer {key}"
        try:
            request = Request(self.address, json.dumps(body).encode(), headers)
            return build_opener(Stay).open(request, timeout=self.timeout)
        except (UnicodeError, ValueError):
            raise GeneratorError(f"{self.address}: cannot be sent to; look at the address and {KEYS[0]}") from None

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
                raise GeneratorError(f"{self.address}: the server failed: {_message(content)}; its log says more")
            choice = (content.get("choices") or [{}])[0] if key == "delta" else content["choices"][0]
            text, usage = (choice.get(key) or {}).get("content"), content.get("usage") or {}
            text = text if isinstance(text, str) else ""
            delta = Delta(text, usage.get("prompt_tokens"), usage.get("completion_tokens"))
            return delta, choice.get("finish_reason") is not None
        except (ValueError, AttributeError, TypeError, LookupError):  # of other shapes than the protocol's
            self._foreign(data)

    def _refused(self, error: HTTPError) -> NoReturn:
        try:
            body = error.read(_BODY)
        except OSError:
            body = b""
        try:
            said = _message(json.loads(body))
        except ValueError:
            said = _plain(body.decode(errors="replace"))
        what = f"{self.address}: HTTP {error.code}" + (f" ({said})" if said else "")
        if error.code in (401, 403):
            mend = f"set {KEYS[0]} to a key that it takes"
        elif error.code in (404, 405):
            mend = "look at the address, which mostly ends in /v1, and at --generator-model"
        elif error.code == 429:
            mend = "too many requests, or nothing left to spend: try again later"
        elif 300 <= error.code < 400:
            mend = f"give the address that it moved to: {_plain(error.headers.get('Location', '?'))}"
        elif error.code < 500:
            mend = "look at --generator-model" if self.model else "name one of its models with --generator-model"
        else:
            mend = "the server failed: look at its log, or try again"
        raise GeneratorError(f"{what}; {mend}") from None

    def _silent(self) -> NoReturn:
        raise GeneratorError(f"{self.address}: no answer within {self.timeout:g} s; is it busy? try again") from None

    def _cut(self, why: object) -> NoReturn:
        raise GeneratorError(f"{self.address}: the answer broke off ({_plain(str(why))}); try again") from None

    def _foreign(self, data: bytes) -> NoReturn:
        said = _plain(data[: 4 * _QUOTED].decode(errors="replace"))
        raise GeneratorError(
            f"{self.address}: not a chat completion: {said!r}; is it an OpenAI-compatible endpoint?"
        ) from None


class EndpointGenerator:
    """Writes answers with an endpoint. count: counts a text's tokens by the memory's tokenizer: the endpoint's is not
    known, so budgets are kept about; an answer has the endpoint's numbers where it gives them."""

    def __init__(self, endpoint: Endpoint, count: Callable[[str], int]) -> None:
        self._endpoint = endpoint
        self.count = count

    @property
    def max_context(self) -> int:
        return _NO_LIMIT

    def prompt_tokens(self, system: str, text: str) -> int:
        return self.count(system) + self.count(text)

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

        with closing(self._endpoint.stream(messages, max_tokens)) as deltas:  # type: ignore[type-var]
            reply, _ = yield from pieces(texts(deltas), max_tokens, on_event)
        if not reply:  # a model that thinks first may spend all of them on that
            raise GeneratorError(
                f"{self._endpoint.address}: an empty answer; a model that thinks first may need more than {max_tokens} "
                "tokens: raise --max-tokens, or name another with --generator-model"
            )
        return Written(reply, prompt_tokens or self.prompt_tokens(system, text), tokens or self.count(reply))


def _message(content: Any) -> str:
    """What an error says, in the shapes that servers give it."""
    error = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or json.dumps(error, ensure_ascii=False)
    return _plain(str(error))


def _plain(text: str) -> str:
    """On one line, nothing that a terminal would obey, at most _QUOTED characters."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(line.split())[:_QUOTED]
