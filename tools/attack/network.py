"""Servers that lie, drip, flood and break off: endpoints that write answers, hubs that models come from.

Raw sockets, so that every byte is ours. The patience of minimemo is shortened in the child that asks.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ground import Case, Ground, bounded, child

KEY = "sk-SECRET-0123456789"
Script = Callable[[socket.socket, str], None]
_DEEP = b"[" * 100_000
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
_PATIENCE = 2.0  # seconds without a byte; twice as many for all of an answer


class Server:
    """Answers each connection on a port of this machine by a script, which is given the head of the request."""

    def __init__(self, script: Script) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(16)
        self.port: int = self._socket.getsockname()[1]
        self.seen: list[str] = []
        self._script = script
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._socket.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(20)
            request = b""
            while b"\r\n\r\n" not in request:
                if not (part := connection.recv(65536)):
                    return
                request += part
            head, _, body = request.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            while len(body) < int(fields.get(b"content-length", b"0")):
                body += connection.recv(65536)
            self.seen.append(head.decode("latin1"))
            self._script(connection, self.seen[-1])


def _just(content: bytes) -> Script:
    return lambda connection, _: connection.sendall(content)


def _endless(prefix: bytes, part: bytes, pause: float = 0.0) -> Script:
    def script(connection: socket.socket, _: str) -> None:
        connection.sendall(prefix)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            connection.sendall(part)
            time.sleep(pause or 0.01)

    return script


def _event(text: str, finish: str | None = None) -> bytes:
    return (
        b"data: " + json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}]}).encode() + b"\n\n"
    )


def _status(line: str, body: bytes = b"", *fields: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {line}", "Connection: close", *fields, "", "")).encode() + body


def _scripts(other: int) -> dict[str, Script]:
    """Everything that an endpoint may answer; `other`: the port of a server that must never be asked."""
    chunked, done = "Transfer-Encoding: chunked", b"data: [DONE]\n\n"
    words = [_event(" ".join(hashlib.md5(b"%d" % number).hexdigest())) for number in range(500)]
    return {
        "as it should be": _just(_HEAD + _event("fine", "stop") + done),
        "headers, a byte every 0.5 s": _endless(b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.5),
        "comments every 0.5 s": _endless(_HEAD, b": ping\n\n", 0.5),
        "empty deltas every 0.5 s": _endless(_HEAD, _event(""), 0.5),
        "a line, a byte every 0.5 s": _endless(_HEAD, b"x", 0.5),
        "nothing": lambda connection, _: time.sleep(8),
        "words without end": _endless(_HEAD, b"".join(words)),
        "empty lines without end": _endless(_HEAD, b"\n" * 65536),
        "comments without end": _endless(_HEAD, b": x\n" * 16384),
        "a line without end": _endless(_HEAD + b"data: ", b"x" * 65536),
        "other fields without end": _endless(_HEAD, b"event: ping\nid: 5\n" * 4000),
        "a JSON body without end": _endless(_JSON + b"\r\n", b" " * 65536),
        "a header without end": _endless(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 65536),
        "headers without end": _endless(b"HTTP/1.1 200 OK\r\n", b"X: a\r\n" * 1000),
        "100 Continue without end": _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        "an error without end": _endless(_status("500 Oops"), b"x" * 65536),
        "a line of 10 MB": _just(
            _HEAD + b'data: {"choices":[{"delta":{"content":"' + b"a" * 10**7 + b'"}}]}\n\n' + done
        ),
        "a gzip bomb": _just(_JSON + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(10**8), 1)),
        **{
            f"a redirect, {code}": _just(_status(f"{code} T", b"", f"Location: http://127.0.0.1:{other}/steal"))
            for code in (302, 307)
        },
        "a redirect to a file": _just(_status("308 P", b"", "Location: file:///etc/passwd")),
        "a redirect to nowhere": _just(_status("302 Found")),
        "busy": _just(_status("429 Too Many", b"{}")),
        "busy for ever": _just(_status("429 Too Many", b"{}", "Retry-After: 1")),
        "busy for a year": _just(_status("503 Busy", b"{}", "Retry-After: 31536000")),
        "an odd Retry-After": _just(_status("503 Busy", b"{}", "Retry-After: NaN")),
        "an error broken off": _just(_status("500 Oops", b"5\r\nab", chunked)),
        "an error of odd chunks": _just(_status("500 Oops", b"zzz\r\nab", chunked)),
        "an error of deep JSON": _just(_status("500 Oops", _DEEP)),
        "an error of 10,000 digits": _just(_status("500 Oops", b"1" * 10000)),
        "a stream broken off": _just(_status("200 OK", b"5\r\nab", chunked)),
        "a stream of odd chunks": _just(_status("200 OK", b"zz\r\nab", chunked)),
        "not HTTP": _just(b"SSH-2.0-OpenSSH_9.0\r\n"),
        "closed at once": lambda connection, _: None,
        "closed in the headers": _just(b"HTTP/1.1 200 OK\r\nContent-Ty"),
        "closed in the answer": _just(_HEAD + _event("half")),
        "a huge status": _just(b"HTTP/1.1 99999 OK\r\n\r\n"),
        "Content-Length: abc": _just(_status("200 OK", b"{}", "Content-Type: application/json", "Content-Length: abc")),
        "Content-Length: -1": _just(_status("200 OK", b"{}", "Content-Type: application/json", "Content-Length: -1")),
        "deep JSON in an event": _just(_HEAD + b"data: " + _DEEP + b"\n\n"),
        "deep JSON": _just(_JSON + b"\r\n" + _DEEP),
        "10,000 digits": _just(_HEAD + b"data: " + b"1" * 10000 + b"\n\n"),
        "no UTF-8": _just(_HEAD + b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n'),
        "lone surrogates": _just(_HEAD + b'data: {"choices":[{"delta":{"content":"\\ud800 x"}}]}\n\n' + done),
        "usage of NaN": _just(_HEAD + _event("hi")[:-3] + b',"usage":{"prompt_tokens":NaN}}\n\n' + done),
        "usage of strings": _just(_HEAD + _event("hi")[:-3] + b',"usage":{"prompt_tokens":"many"}}\n\n' + done),
        "usage a list": _just(_HEAD + _event("hi")[:-3] + b',"usage":[1]}\n\n' + done),
        "choices an object": _just(_HEAD + b'data: {"choices":{"a":1}}\n\n'),
        "choices of null": _just(_HEAD + b'data: {"choices":[null]}\n\n'),
        "a delta of text": _just(_HEAD + b'data: {"choices":[{"delta":"x"}]}\n\n'),
        "escapes in an error": _just(_HEAD + b'data: {"error":{"message":"\\u001b[2J ' + KEY.encode() + b'"}}\n\n'),
        "a type of control characters": _just(_status("200 OK", b"{}", "Content-Type: \x00\x1b")),
        "the key in an error": lambda connection, head: connection.sendall(_status("401 No", head.encode())),
    }


def endpoints(ground: Ground) -> list[Case]:
    """Each is a GeneratorError of one line, or an answer, in bounded time and memory, and nothing goes elsewhere."""
    elsewhere = Server(lambda *_: None)

    def case(script: Script) -> str:
        with Server(script) as server:

            def ask() -> None:
                from minimemo.ask.endpoint import Endpoint, EndpointGenerator
                from minimemo.events import silent

                os.environ["MINIMEMO_API_KEY"] = KEY
                url = f"http://127.0.0.1:{server.port}/v1"
                writer = EndpointGenerator(Endpoint(url, timeout=_PATIENCE, total=2 * _PATIENCE), len)
                with bounded(300_000):
                    text = "".join(piece.text for piece in writer.write("be brief", "Who?", 64, silent))
                    print("answer", len(text))
                    assert len(text) < 10_000, len(text)
                    text.encode()

            ended = child(ask, seconds=3 * _PATIENCE + 20)
        if KEY in ended.out:
            return "the key is in a message"
        if "\x1b" in ended.out or ended.out.count("\n") != 1:
            return f"said {ended.out[:200]!r}"
        return ended.fell(0) or ("asked another server" if elsewhere.seen else "")

    return [Case(name, case, script) for name, script in _scripts(elsewhere.port).items()]


def keys(ground: Ground) -> list[Case]:
    """Where a key and a document's passages may go."""

    def case(variables: dict[str, str], expected: str | None, **options: Any) -> str:
        with Server(_just(_HEAD + _event("fine", "stop"))) as server:

            def ask() -> None:
                from minimemo.ask.endpoint import Endpoint

                os.environ.update({k: v.replace("PORT", str(server.port)) for k, v in variables.items()})
                list(Endpoint(f"http://127.0.0.1:{server.port}/v1", **options).stream([], 9))

            ended = child(ask)
            sent = [line for line in server.seen[0].splitlines() if KEY in line] if server.seen else None
        if wrong := ended.fell(0):
            return wrong
        if sent is None or bool(sent) != (expected is not None):
            return f"sent {sent}"
        return "by a proxy" if " http://" in server.seen[0].splitlines()[0] else ""

    def refused(url: str) -> str:
        def ask() -> None:
            from minimemo.ask.endpoint import Endpoint
            from minimemo.errors import MinimemoError

            try:
                list(Endpoint(url, timeout=1, total=2).stream([], 9))
            except MinimemoError as error:
                assert "s3cret" not in str(error) and "\n" not in str(error), error
                return
            raise AssertionError("answered")

        return child(ask).fell(0)

    urls = ("http://user:s3cret@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=s3cret", "http://[::1", "http://a\tb/")
    urls += ("http://127.0.0.1:99999/v1", "http://\u202e/", "https://127.0.0.1:1/\r\nX: y", "http://example.com/v1")
    return [
        Case("$OPENAI_API_KEY and another's address", case, {"OPENAI_API_KEY": KEY}, None),
        Case("$MINIMEMO_API_KEY", case, {"MINIMEMO_API_KEY": KEY}, "sent"),
        Case("a key of its own", case, {}, "sent", key=KEY),
        Case("a proxy and this machine", case, {"http_proxy": "http://127.0.0.1:PORT/"}, None),
        *(Case(url, refused, url) for url in urls),
    ]


def hubs(ground: Ground) -> list[Case]:
    """Each pull gives the right bytes or a FetchError of one line, in bounded time, and writes nothing elsewhere."""

    @cache
    def model() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in ground.decoder.iterdir()}

    def ok(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
        return _status(status, body, f"Content-Length: {len(body)}", *fields)

    def entry(name: str, content: bytes, **change: Any) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        lfs = {"lfs": {"sha256": hashlib.sha256(content).hexdigest()}} if name.endswith("safetensors") else {}
        return {"rfilename": name, "size": len(content), "blobId": blob, **lfs, **change}

    def listing(*more: Any, sha: Any = "c0ffee", **change: Any) -> bytes:
        files = [entry(n, c, **(change if n == "model.safetensors" else {})) for n, c in model().items()]
        return json.dumps({"sha": sha, "siblings": [*files, *more]}).encode()

    def honest(connection: socket.socket, head: str, said: bytes = b"") -> None:
        verb, path = head.split()[:2]
        name = path.rsplit("/", 1)[-1]
        body = (said or listing()) if path.startswith("/api/") else model().get(name)
        fields = ("ETag: x", "X-Repo-Commit: c0ffee")
        answer = ok(body, "200 OK", *fields) if body is not None else ok(b"", "404 Not Found")
        connection.sendall(answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if verb == "HEAD" else answer)

    def said(make: Callable[[], bytes]) -> Script:
        return lambda connection, head: honest(connection, head, make())

    def on(where: str, script: Script) -> Script:
        """`script` answers what is asked with these words, an honest hub the rest."""
        return lambda connection, head: (script if where in head.split("\r\n")[0] else honest)(connection, head)

    def byte_by_byte(connection: socket.socket, head: str) -> None:
        weights = model()["model.safetensors"]
        begin = int(head.lower().split("bytes=")[1].split("-")[0]) if "bytes=" in head.lower() else 0
        content = f"Content-Range: bytes {begin}-{len(weights) - 1}/{len(weights)}"
        status = "206 Partial" if begin else "200 OK"
        connection.sendall(
            _status(status, weights[begin : begin + 1], content, f"Content-Length: {len(weights) - begin}")
        )

    weights, big = "GET /evil/model/resolve/c0ffee/model.safetensors", b"x" * (1 << 20)
    scripts: dict[str, Script] = {
        "as it should be": honest,
        "an endless file": on(weights, _endless(_status("200 OK"), big)),
        "a file that drips": on(weights, _endless(_status("200 OK", b"", "Content-Length: 90000"), b"x", 0.2)),
        "a byte a connection": on(weights, byte_by_byte),
        "other bytes": on(weights, lambda c, h: c.sendall(ok(bytes(len(model()["model.safetensors"]))))),
        "an endless listing": on("/api/", _endless(_status("200 OK"), b" " * 65536)),
        "a listing that drips": on("/api/", _endless(_status("200 OK"), b" ", 0.2)),
        "headers that drip": on("/api/", _endless(b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.2)),
        "an endless header": on("/api/", _endless(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 65536)),
        "an endless error": on("/api/", _endless(_status("403 No"), b"x" * 65536)),
        "an odd Content-Length": on("HEAD", _just(_status("200 OK", b"", "Content-Length: abc", "ETag: x"))),
        "a listing of deep JSON": said(lambda: _DEEP),
        "a listing of 10,000 digits": said(lambda: b'{"sha":' + b"1" * 10000 + b"}"),
        "a listing of null": said(lambda: b"null"),
        "a listing without files": said(lambda: b'{"sha":"x","siblings":null}'),
        "a listing of numbers": said(lambda: b'{"sha":"x","siblings":[1]}'),
        **{f"a size of {n}": said(lambda n=n: listing(size=n)) for n in (float("inf"), -1, 10**30, [], 0)},
        **{f"a digest of {d!r}": said(lambda d=d: listing(lfs={"sha256": d})) for d in ("", None, 5)},
        "lfs of text": said(lambda: listing(lfs="x")),
        "a commit with a line break": said(lambda: listing(sha="../../x\r\nHost: evil")),
        **{
            f"a file {name!r}": said(lambda name=name: listing(entry(name, b"evil")))
            for name in ("../../evil.txt", "/evil.txt", "1_P/../../x/config.json", "config.json\n", "minimemo.json",
                         "\ud800.gguf")
        },
        "300,000 files": said(
            lambda: listing(*({"rfilename": f"x{n}", "size": 1, "blobId": ""} for n in range(300_000)))
        ),
    }  # fmt: skip

    def case(script: Script, right: bool) -> str:
        ground.fresh()
        (ground.case / "stays").touch()
        with Server(script) as server:

            def pull() -> None:
                from huggingface_hub import constants

                import minimemo.hub.sources as sources

                constants.ENDPOINT = f"http://127.0.0.1:{server.port}"
                path = "/{repo_id}/resolve/{revision}/{filename}"
                constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + path
                sources._SAYING_SECONDS, sources._WINDOW = 3.0, 2.0
                import minimemo
                from minimemo.errors import MinimemoError

                try:
                    folder = minimemo.pull("evil/model")
                except MinimemoError as error:
                    assert not right and "\n  " in f"{error}\n  ", error
                    return
                for name in ("config.json", "tokenizer.json", "model.safetensors"):
                    assert (folder / name).read_bytes() == model()[name], f"pulled other bytes: {name}"

            ended = child(pull, seconds=60)
        places = {
            path for path in ground.folder.rglob("*evil*") if "models" not in path.relative_to(ground.folder).parts
        }
        return ended.fell(0) or (f"wrote {places}" if places else "")

    def noted(change: Callable[[dict[str, Any]], Any]) -> str:
        """A minimemo.json of the cache that has other types."""
        ground.fresh()
        folder = ground.home / "models" / "a--b"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        status = (folder / "config.json").stat()
        file = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "digest": "0" * 40}
        good = {"name": "a/b", "result": ".", "conversion": None, "files": {"config.json": file}}
        changed = change(good)
        (folder / "minimemo.json").write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())

        def use() -> None:
            from minimemo.errors import MinimemoError
            from minimemo.hub.catalog import pulled, resolve

            pulled()
            with suppress(MinimemoError):
                assert Path(resolve("a/b")).is_relative_to(folder)

        return child(use).fell(0)

    values: tuple[Any, ...] = (None, 5, "x", [], {}, "../..", -1, float("inf"), "/", "\0")
    cases = [Case(name, case, script, name == "as it should be") for name, script in scripts.items()]
    cases += [
        Case(f"a noted {key} of {value!r}", noted, lambda good, key=key, value=value: {**good, key: value})
        for key in ("name", "result", "conversion", "files")
        for value in values
    ]
    cases += [
        Case(f"a noted file of {value!r}", noted, lambda good, value=value: {**good, "files": {"config.json": value}})
        for value in values
    ]
    return cases + [
        Case(f"a note {raw[:9]!r}", noted, lambda _, raw=raw: raw) for raw in (_DEEP, b"\xff", b"", b"null")
    ]
