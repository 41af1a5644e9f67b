"""Clients of `minimemo serve` that lie, drip, flood, name other hosts and leave in the middle.

One server of one tiny memo in a child; after each case it still lives, answers, and has said no traceback.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from ground import Case, Ground, finish, start

_PATIENCE = 2.0  # seconds, in place of the server's 60
_TYPES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e300, float("nan"), "x", "\ud800", "\0\x1b[2J", "a" * 50_000, [], [None], [[]], {},
    {"a": {}}, ["doc", "doc"], ["../../etc/passwd"],
)  # fmt: skip


class _Served:
    """A server in a child. url parts: 127.0.0.1 and `port`."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.case = ground.fresh()
        self.outside = ground.folder / "outside"
        self.outside.mkdir(exist_ok=True)
        (self.case / "doc").mkdir()
        document = self.case / "doc" / "doc.txt"
        document.write_text("The lamp of the lighthouse was lit in 1874. " * 9)
        read, write = os.pipe()
        self._said = (ground.folder / "served.err").open("w+b")

        def body() -> None:
            import minimemo.server.deadline as deadline
            from minimemo.server.run import serve

            os.close(read)
            deadline.PATIENCE = _PATIENCE
            ground.build(document, document.with_suffix(".memo"))
            models = {"model": ground.decoder, "embedder": ground.embedder}
            serve([document.parent], port=0, started=lambda url, _: os.write(write, f"{url}\n".encode()), **models)

        with open(os.devnull, "rb") as null:
            self.pid = start(body, (null.fileno(), self._said.fileno(), self._said.fileno()))
        os.close(write)
        with open(read) as told:
            self.port = int(told.readline().rpartition(":")[2] or 0)

    def said(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def close(self) -> str:
        """Ends it as `kill` does; says how it did not."""
        os.kill(self.pid, signal.SIGTERM)
        code = finish(self.pid, 30)
        return "" if code == 0 else f"ends with {code}: {self.said()[-200:]}"

    def connect(self, seconds: float = 20) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)

    def send(self, content: bytes, seconds: float = 20, most: int = 1 << 20) -> bytes:
        """What is answered to these bytes until the server closes, or has nothing to say for so long."""
        answer = b""
        with self.connect(seconds) as connection, suppress(OSError):
            with suppress(OSError):  # it may close before it has read all
                connection.sendall(content)
            while len(answer) < most and (part := connection.recv(65536)):
                answer += part
        return answer

    def ask(self, verb: str, path: str, body: bytes = b"", *fields: str, host: str | None = None) -> tuple[int, bytes]:
        """One request: its status, 0 where none came, and the whole answer."""
        named = () if host == "-" else (f"Host: {f'127.0.0.1:{self.port}' if host is None else host}",)
        lines = (
            f"{verb} {path} HTTP/1.1",
            *named,
            "Connection: close",
            f"Content-Length: {len(body)}",
            *fields,
            "",
            "",
        )
        answer = self.send("\r\n".join(lines).encode("latin-1") + body)
        words = answer.split(b" ", 2)
        return (int(words[1]) if len(words) > 2 and words[1].isdigit() else 0), answer

    def stands(self) -> str:
        """Whether it lives and answers, keeps nobody in its line, and complained of nothing."""
        begin = time.monotonic()
        while True:
            status, answer = self.ask("GET", "/health")
            if status != 200:
                return f"health: {status}"
            if b'"waiting":0' in answer:
                break
            if time.monotonic() - begin > 20:
                return "somebody waits still"
            time.sleep(0.02)
        if time.monotonic() - begin > 25:
            return "is slow"
        if "Traceback" in (said := self.said()):
            self._said.truncate(0)
            return f"traceback: {said.strip().splitlines()[-1][:200]}"
        return ""


def clients(ground: Ground) -> Iterator[Case]:
    """The cases; the server ends with them, and that is the last one."""
    server = _Served(ground)
    ended = False

    def guarded(run: Callable[[], str]) -> str:
        wrong, stands = run(), server.stands()
        return wrong or stands

    def close() -> str:
        nonlocal ended
        ended = True
        return server.close()

    try:
        for kind in (_strangers, _paths, _shapes, _slow, _bodies, _leavers, _uploads):
            for case in kind(server):
                yield Case(case.name, guarded, case.run)
        yield Case("it ends when it is told", close)
    finally:
        if not ended:
            server.close()


def _strangers(server: _Served) -> Iterator[Case]:
    """Pages of other sites, by the Host that they name and by their Origin."""

    def refused(host: str | None, *fields: str) -> str:
        for verb, path in (("GET", "/api/documents"), ("POST", "/api/ask"), ("GET", "/"), ("POST", "/mcp")):
            status, answer = server.ask(verb, path, b"", *fields, host=host)
            if not 400 <= status < 500 or b"doc" in answer.partition(b"\r\n\r\n")[2]:
                return f"{verb} {path}: {status}"
        return ""

    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "localhost.evil", "", "-", "[::1",
                 "[", "]", "[::1]evil.example", "0x7f.1.evil", "\xff", "a" * 9000, "evil\\@localhost",
                 "2130706433.evil", "\u00ef\u00bc\u0085"):  # fmt: skip
        yield Case(f"host {host[:30]!r}", refused, host)
    here = f"127.0.0.1:{server.port}"
    for origin in ("http://evil.example", "null", "", "file://", f"http://{here}.evil.example", f"http://x@{here}@evil",
                   "http://127.0.0.1:1", "http://[", "http://[::1", f"http://evil.example/{here}", f"evil://{here}/",
                   f"http://evil.example#{here}", "\xff://\xff", f"{here}://", "a" * 9000):  # fmt: skip
        yield Case(f"origin {origin[:40]!r}", refused, None, f"Origin: {origin}")


def _paths(server: _Served) -> Iterator[Case]:
    """Paths that lead out, and verbs that no route has."""
    (server.outside / "thesis.txt").write_text("a year's work")
    up = "../" * 12 + str(server.outside / "thesis.txt").lstrip("/")

    def kept(verb: str, path: str) -> str:
        status, answer = server.ask(verb, path)
        if b"year's work" in answer or b"root:" in answer:
            return "gave out a file of others"
        return "" if 400 <= status < 500 else f"status {status}"

    coded = quote(up, safe="")
    paths = [f"/{up}", f"/{coded}", f"/{quote(coded)}", f"/documents/{coded}/file", f"/api/documents/{coded}/text",
             f"//{up}", f"/documents/doc/../{up}/file", f"/vendor/{up}", f"/vendor/{coded}",
             f"/..%5c..%5c{coded}", f"/{up.replace('/', '%5c')}", "/documents/doc%00/file", "/%00", "/%ff", "/%",
             "/api/documents/doc.memo%2fmanifest.json/text", "/documents/doc/file/..", "/a" * 20_000,
             "/api/documents/%ed%a0%80/text", "/api/documents/doc/text?start=-1",
             f"/api/documents/doc/text?end={'9' * 999}", "/api/jobs/..", "/v1/models/..%2f",
             "/api/documents/all/text"]  # fmt: skip
    for path in paths:
        yield Case(f"GET {path[:60]}", kept, "GET", path)
    for verb in ("TRACE", "CONNECT", "PUT", "PATCH", "FOO", "get", "PROPFIND"):
        yield Case(f"{verb} /api/documents", kept, verb, "/api/documents")
    for path in ("..", coded, "%00", "doc%2f..%2f..%2foutside"):
        yield Case(f"DELETE {path[:60]}", kept, "DELETE", f"/api/documents/{path}")


def _shapes(server: _Served) -> Iterator[Case]:
    """What is no HTTP, or too much of it: an answer of 4xx or none, soon."""

    def sent(content: bytes) -> str:
        begin = time.monotonic()
        answer = server.send(content)
        if answer and answer.split(b" ", 2)[1][:1] != b"4":
            return f"answered {answer[:40]!r}"
        return "is slow" if time.monotonic() - begin > 4 * _PATIENCE + 5 else ""

    head = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    post = b"POST /api/ask HTTP/1.1\r\n" + head
    yield Case("a line of 1 MB", sent, b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n" + head + b"\r\n")
    yield Case("a header of 1 MB", sent, b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20) + b"\r\n" + head + b"\r\n")
    yield Case("100,000 headers", sent, b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100_000 + head + b"\r\n")
    yield Case("50 MB of headers", sent, b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 8_000_000)
    yield Case("50 MB without an end", sent, b"a" * 50_000_000)
    yield Case("a TLS hello", sent, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))
    yield Case("HTTP/2", sent, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(99))
    yield Case("HTTP/0.9", sent, b"GET /\r\n\r\n")
    yield Case("no UTF-8", sent, b"GET /\xff\xfe HTTP/1.1\r\n" + head + b"\r\n")
    yield Case("two hosts", sent, b"GET /health HTTP/1.1\r\n" + head + b"Host: evil.example\r\n\r\n")
    for length in (b"-1", b"abc", b"1e3", b"9" * 5000, b"0x10", b"5, 6", b"\xb2"):
        yield Case(f"Content-Length: {length[:9]!r}", sent, post + b"Content-Length: " + length + b"\r\n\r\n{}")
    two = b"Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}"
    yield Case("two lengths", sent, post + two)
    chunked = post + b"Transfer-Encoding: chunked\r\n"
    for name, chunks in {
        "an odd chunk": b"zz\r\n", "a chunk of -1": b"-1\r\n{}", "a chunk of 2**70": b"%x\r\n{}" % 2**70,
        "a chunk that goes on": b"2\r\n{}XX0\r\n\r\n", "an endless chunk size": b"1" * 1_000_000,
        "an endless extension": b"2;" + b"a" * 1_000_000, "an odd trailer": b"0\r\n" + b"X: a\r\n" * 100_000,
    }.items():  # fmt: skip
        yield Case(name, sent, chunked + b"\r\n" + chunks)
    yield Case("gzip, chunked", sent, post + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
    yield Case("a body of 10**12 bytes", sent, post + b"Content-Length: 1000000000000\r\n\r\n" + b" " * 5_000_000)
    yield Case("5 MB of chunks", sent, chunked + b"\r\n10000\r\n" + (b" " * 65536 + b"\r\n10000\r\n") * 80)

    def many() -> str:
        answer = server.send((b"GET /health HTTP/1.1\r\n" + head + b"\r\n") * 300 + b"GET /health HTTP/1.1\r\n" + head
                             + b"Connection: close\r\n\r\n", most=1 << 24)  # fmt: skip
        return "" if answer.count(b'"status":"ok"') == 301 else f"{answer.count(b'HTTP/1.1 200')} of 301 answers"

    yield Case("301 requests at once", many)

    def ranges() -> str:
        begin = time.monotonic()
        for given in ("bytes=" + ",".join(f"{n}-{n}" for n in range(9_000)), "bytes=-1-", "bytes=5-1", "bytes=x",
                      f"bytes={'9' * 5000}-", "bytes=" + "0-," * 9_000):  # fmt: skip
            status, _ = server.ask("GET", "/documents/doc/file", b"", f"Range: {given}")
            if status not in (200, 206, 400, 416):
                return f"{given[:20]}: {status}"
        return "is slow" if time.monotonic() - begin > 20 else ""

    yield Case("9,000 ranges of a file", ranges)


def _slow(server: _Served) -> Iterator[Case]:
    """Connections on which no request comes to its end: the server closes them."""

    def closed(first: bytes, part: bytes) -> str:
        connections = [server.connect() for _ in range(20)]
        try:
            for connection in connections:
                connection.sendall(first)
            begin = time.monotonic()
            left = set(connections)
            while left:
                if time.monotonic() - begin > 2 * _PATIENCE + 10:
                    return f"{len(left)} of 20 connections stand open"
                if server.ask("GET", "/health")[0] != 200:
                    return "others wait"
                for connection in tuple(left):
                    connection.settimeout(0.001)
                    try:
                        if part:
                            connection.sendall(part)
                        while connection.recv(65536):
                            pass
                        left.discard(connection)
                    except TimeoutError:
                        pass
                    except OSError:
                        left.discard(connection)
                time.sleep(0.2)
            return ""
        finally:
            for connection in connections:
                connection.close()

    head = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    post = b"POST /api/ask HTTP/1.1\r\n" + head
    upload = b"POST /api/documents?name=drip.txt HTTP/1.1\r\n" + head
    yield Case("silent connections", closed, b"", b"")
    yield Case("half a request line", closed, b"GET /hea", b"")
    yield Case("headers, a byte at a time", closed, b"GET / HTTP/1.1\r\nX: ", b"a")
    yield Case("half a body", closed, post + b'Content-Length: 50\r\n\r\n{"que', b"")
    yield Case("a body, a byte at a time", closed, post + b"Content-Length: 5000\r\n\r\n", b" ")
    yield Case("chunks, a byte at a time", closed, post + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")
    yield Case("an upload, a byte at a time", closed, upload + b"Content-Length: 400000000\r\n\r\n", b"a")
    again = b"GET /health HTTP/1.1\r\n" + head + b"\r\nGET /heal"
    yield Case("a second request that stays half", closed, again, b"t")


def _bodies(server: _Served) -> Iterator[Case]:
    """JSON of other shapes and types on every route that takes it: 4xx or an answer, never the server's failure."""

    def posted(path: str, body: bytes) -> str:
        status, answer = server.ask("POST", path, body)
        if b"the server failed" in answer:
            return f"failed: {answer[-200:]!r}"
        return "" if status == 200 or 400 <= status < 500 else f"status {status}: {answer[-200:]!r}"

    asked = [{"role": "user", "content": "When?"}]
    routes: dict[str, dict[str, Any]] = {
        "/api/ask": {"question": "When?", "documents": ["doc"], "mode": "rag", "max_tokens": 2, "turns": [],
                     "memos": [], "typed": ""},
        "/api/search": {"query": "When?", "k": 2, "documents": ["doc"]},
        "/v1/chat/completions": {"messages": asked, "model": "doc", "max_tokens": 2, "stream": False, "n": 1,
                                 "stream_options": None, "max_completion_tokens": 2, "tools": None},
        "/v1/embeddings": {"input": "When?", "model": "m", "encoding_format": "float", "input_type": "query"},
    }  # fmt: skip
    raws = (b"", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"null", b"[]", b"\xff\xfe", b"{", b'"x"', b"NaN")
    for path, good in routes.items():
        for raw in raws:
            yield Case(f"{path}: {raw[:9]!r}", posted, path, raw)
        for key in good:
            for value in _TYPES:
                body = json.dumps({**good, key: value}).encode()
                yield Case(f"{path}: {key} = {str(value)[:20]!r}", posted, path, body)
    for value in _TYPES:
        message = json.dumps({"model": "doc", "max_tokens": 2, "messages": [{"role": "user", "content": value}]})
        yield Case(f"content = {str(value)[:20]!r}", posted, "/v1/chat/completions", message.encode())
        message = json.dumps({"model": "doc", "max_tokens": 2, "messages": [{"role": value, "content": "x"}, *asked]})
        yield Case(f"role = {str(value)[:20]!r}", posted, "/v1/chat/completions", message.encode())
        turn = json.dumps({**routes["/api/ask"], "turns": [{"question": value, "answer": value}]})
        yield Case(f"turns of {str(value)[:20]!r}", posted, "/api/ask", turn.encode())


def _leavers(server: _Served) -> Iterator[Case]:
    """Clients that are gone before their answer, in the middle of it, or of what they send."""

    def left(path: str, body: bytes, sent: float, read: int, reset: bool) -> str:
        fields = f"Host: 127.0.0.1:{server.port}\r\nContent-Length: {len(body)}\r\n\r\n"
        whole = f"POST {path} HTTP/1.1\r\n{fields}".encode() + body
        for _ in range(12):
            with server.connect() as connection, suppress(OSError):
                connection.sendall(whole[: int(sent * len(whole))])
                if read:
                    connection.recv(read)
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return ""

    question = json.dumps({"question": "When was the lamp lit?", "documents": ["doc"], "max_tokens": 64}).encode()
    chat = {"messages": [{"role": "user", "content": "When?"}], "model": "doc", "max_tokens": 64}
    routes = {
        "/api/ask": question, "/v1/chat/completions": json.dumps(chat).encode(),
        "/v1/chat/completions?": json.dumps({**chat, "stream": True}).encode(),
        "/api/documents?name=left.txt": b"The lamp was lit. " * 20_000,
    }  # fmt: skip
    for path, body in routes.items():
        for reset in (False, True):
            yield Case(f"{path}, half sent, reset: {reset}", left, path, body, 0.5, 0, reset)
            if "documents" not in path:
                yield Case(f"{path}, sent, reset: {reset}", left, path, body, 1, 0, reset)
                yield Case(f"{path}, a byte read, reset: {reset}", left, path, body, 1, 1, reset)


def _uploads(server: _Served) -> Iterator[Case]:
    """Names of uploads that lead out, or are none."""
    documents = server.ground.home / "documents"

    def named(name: str) -> str:
        status, answer = server.ask("POST", f"/api/documents?name={quote(name, errors='surrogatepass')}", b"\0\0")
        if status not in (202, 400):
            return f"status {status}: {answer[-200:]!r}"
        outside = [path for path in server.ground.folder.rglob("*upload*") if documents not in path.parents]
        beside = [path.name for path in server.outside.iterdir()]
        return f"wrote {outside}, {beside}" if outside or beside != ["thesis.txt"] else ""

    def gone() -> str:
        for job in json.loads(server.ask("GET", "/api/jobs")[1].partition(b"\r\n\r\n")[2]):
            server.ask("DELETE", f"/api/jobs/{job['id']}")
        end = time.monotonic() + 60
        while left := [path.name for path in documents.iterdir()] if documents.is_dir() else []:
            if time.monotonic() > end:
                return f"left {left[:5]}"
            time.sleep(0.1)
        return ""

    names = ("../upload.txt", "/etc/upload.txt", "a/../../upload.txt", "..", ".", "\0upload", "upload\n",
             "\u706f" * 200, "a" * 500 + ".txt", "upload.memo", ".upload", "-rf upload", "C:\\upload.txt", "CON",
             "\ud800upload", "upload.txt\0.memo", "\U0001f30a" * 99, ".memo", "%2e%2e%2fupload",
             "upload" + "." * 99, "\x1b[31mupload")  # fmt: skip
    for name in names:
        yield Case(f"an upload {name[:20]!r}", named, name)
    # None of them is a document: their builds fail, and a failed build's file is taken away with it.
    yield Case("uploads that fail leave nothing", gone)
