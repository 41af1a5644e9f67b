"""Answers written elsewhere: a real small server on this machine, as it should be, and in every way that one fails."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import minimemo
from minimemo.ask import Answer, Piece
from minimemo.ask.endpoint import Endpoint, EndpointGenerator
from minimemo.cli.arguments import main
from minimemo.errors import GeneratorError, InputError
from minimemo.events import silent
from tests.conftest import TinyModels
from tests.tiny import write_model

TEXT = "\n\n".join(f"The user number {i} said Hello world, be brief." for i in range(12))
PARTS = ("\n The", " user", " said", " Hello", ".\n")


def event(text: str | None, finish: str | None = None, **more: object) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


STREAM = b": hold the line\n\n" + b"".join(map(event, PARTS)) + event(None, "stop")
DONE = b"data: [DONE]\n\n"
Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Notes what it is sent, and replies as the test says."""

    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        self.server.reply(self)

    def send(self, body: bytes, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.reply: Reply = lambda handler: handler.send(STREAM + DONE)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("MINIMEMO_API_KEY", "OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def memo(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "doc.txt").write_text(TEXT, encoding="utf-8")
    return minimemo.build(
        folder / "doc.txt", model=tiny_models.decoder, embedder=tiny_models.embedder, memory="int4"
    ).folder


def write(endpoint: Endpoint) -> list[str]:
    """The pieces of an answer."""
    steps = EndpointGenerator(endpoint, len).write("Be brief.", "Who spoke?", 20, silent)
    return [piece.text for piece in steps]


def test_an_answer_is_streamed_without_white_space_around_it(server: Server, memo: Path) -> None:
    opened = minimemo.open(memo, generator=server.url)
    _, *pieces, answer = opened.stream("What did user 3 say?", "rag", 20)
    assert isinstance(answer, Answer) and all(isinstance(piece, Piece) for piece in pieces)
    assert [piece.text for piece in pieces] == ["The", " user", " said", " Hello", "."]  # type: ignore[union-attr]
    assert answer.text == "The user said Hello." and answer.supported and answer.passages
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert (body["stream"], body["max_tokens"], body["temperature"]) == (True, 20, 0) and "model" not in body
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert all(passage.text in user["content"] for passage in answer.passages)
    assert "What did user 3 say?" in user["content"]
    assert answer.generated_tokens and answer.prompt_tokens and opened.model().engine.prefilled == 0


def test_the_memory_makes_clues_and_the_endpoint_answers(server: Server, memo: Path) -> None:
    opened = minimemo.open(memo, generator=Endpoint(server.url))
    assert opened.ask("What did user 3 say?", max_tokens=8).text == "The user said Hello."
    assert opened.model().engine.prefilled > 0 and len(server.asked) == 1
    assert opened.summarize(8).text == "The user said Hello." and len(server.asked) == 2
    assert "summary" in server.asked[1][2]["messages"][1]["content"]
    assert opened.ask("What did user 3 say?", "memory", 4).text != "The user said Hello."
    assert len(server.asked) == 2, "only the memory's own model answers from memory alone"


def test_keys_and_models_are_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "second")  # of another server's
    write(Endpoint(server.url, "large"))
    monkeypatch.setenv("MINIMEMO_API_KEY", " first\n")
    write(Endpoint(server.url))
    write(Endpoint(server.url, key="third"))
    assert [headers.get("Authorization") for _, headers, _ in server.asked] == [None, "Bearer first", "Bearer third"]
    assert server.asked[0][2]["model"] == "large" and "third" not in repr(Endpoint(server.url, key="third"))


def test_passages_leave_this_machine_encrypted_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://192.168.1.5:8080", "http://example.com/v1"):
        with pytest.raises(InputError, match=r"use https, or allow it with `Endpoint\.plain_http`"):
            Endpoint(url)
        assert Endpoint(url, plain_http=True).url == url
    with pytest.raises(InputError, match="no name or password") as refused:
        Endpoint("https://me:s3cret@h/v1")
    assert "s3cret" not in str(refused.value)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    write(Endpoint(server.url))  # by no proxy


def test_what_a_server_does_not_take_is_left_out(server: Server) -> None:
    """Models that think take another limit, and no temperature; they are told so once."""

    def reply(handler: Handler) -> None:
        body = handler.server.asked[-1][2]
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")(handler)
        if "temperature" in body:
            return error(400, "'temperature' does not support 0 with this model")(handler)
        handler.send(STREAM + DONE)

    server.reply = reply
    endpoint = Endpoint(server.url)
    for requests in (3, 4):
        assert "".join(write(endpoint)) == "The user said Hello."
        assert len(server.asked) == requests
    assert server.asked[-1][2]["max_completion_tokens"] == 20


def test_a_busy_server_is_asked_again_when_it_says_so(server: Server) -> None:
    def reply(handler: Handler) -> None:
        busy = len(server.asked) < 3
        handler.send(b"{}" if busy else STREAM + DONE, 429 if busy else 200, **({"Retry-After": "0"} if busy else {}))

    server.reply = reply
    assert "".join(write(Endpoint(server.url))) == "The user said Hello." and len(server.asked) == 3
    server.reply = lambda handler: handler.send(b"{}", 503, **{"Retry-After": "86400"})
    with pytest.raises(GeneratorError, match="HTTP 503"):
        write(Endpoint(server.url))


@pytest.mark.parametrize("part", [b": ping\n\n", event(""), b"x"])
def test_an_answer_has_an_end(server: Server, part: bytes) -> None:
    """Bytes that drip for ever, none of them late."""

    def drip(handler: Handler) -> None:
        handler.send(b"")
        while True:
            handler.wfile.write(part)
            time.sleep(0.05)

    server.reply = drip
    begin = time.monotonic()
    with pytest.raises(GeneratorError, match=r"no answer within 0\.6 s"):
        write(Endpoint(server.url, timeout=0.5, total=0.6))
    assert time.monotonic() - begin < 5


def test_an_answer_is_no_longer_than_asked_for(server: Server) -> None:
    words = b"".join(event(f"word{number} ") for number in range(10_000))
    server.reply = lambda handler: handler.send(words + DONE)
    assert len("".join(write(Endpoint(server.url)))) < 1000


def test_an_address_may_end_in_a_query(server: Server) -> None:
    assert Endpoint("https://h/v2?api-version=1").address == "https://h/v2/chat/completions?api-version=1"


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_addresses(server: Server, path: str) -> None:
    write(Endpoint(server.url.removesuffix("/v1") + path))
    assert server.asked[0][0] == "/v1/chat/completions"


def test_a_server_that_does_not_stream_and_one_that_counts(server: Server) -> None:
    told = {"choices": [{"message": {"content": " Hello. "}}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    server.reply = lambda handler: handler.send(json.dumps(told).encode(), kind="application/json")
    steps = EndpointGenerator(Endpoint(server.url), len).write("", "Who?", 20, silent)
    assert next(steps) == Piece("Hello.")
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == ("Hello.", 7, 3)
    assert [message["role"] for message in server.asked[0][2]["messages"]] == ["user"]


def test_a_reason_to_finish_is_an_end(server: Server) -> None:
    server.reply = lambda handler: handler.send(STREAM)
    assert "".join(write(Endpoint(server.url))) == "The user said Hello."


def test_an_answer_that_loops_is_ended(server: Server) -> None:
    server.reply = lambda handler: handler.send(event("and so on and on, ") * 2000 + DONE)
    assert len(write(Endpoint(server.url))) < 40


def chunked(handler: Handler) -> None:
    """Breaks off inside a chunk."""
    handler.send(b"%x\r\n%s" % (len(STREAM), STREAM[:-40]), **{"Transfer-Encoding": "chunked"})


def silence(handler: Handler) -> None:
    handler.send(event("The"))
    handler.wfile.flush()
    time.sleep(1.5)


def error(status: int, message: str = "no such model", **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": "x"}}).encode()
    return lambda handler: handler.send(body, status, "application/json", **headers)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, "bad key"), r"HTTP 401 \(bad key\); set MINIMEMO_API_KEY"),
        (error(404), r"HTTP 404 \(no such model\); look at the address"),
        (error(400), r"HTTP 400 .*name one of its models with `Endpoint.model`"),
        (error(429, "slow down"), r"HTTP 429 \(slow down\); .*later"),
        (error(500, "out of\nmemory \x1b[31m"), r"HTTP 500 \(out of memory \[31m\); the server failed"),
        (error(307, Location="http://else.where/v1"), "HTTP 307 .*moved to: http://else.where/v1"),
        (lambda h: h.send(b"<html>Busy</html>", 503, "text/html"), "HTTP 503 .*<html>Busy"),
        (lambda h: h.send(b"<html>Welcome</html>", kind="text/html"), "not a chat completion: '<html>Welcome"),
        (lambda h: h.send(b"{", kind="application/json"), "not a chat completion: '{'"),
        (lambda h: h.send(b"[1]", kind="application/json"), "not a chat completion"),
        (lambda h: h.send(b'{"models": []}', kind="application/json"), "not a chat completion"),
        (lambda h: h.send(event("The") + b"data: {oops\n\n"), "not a chat completion: '{oops'"),
        (lambda h: h.send(event("The") + b'data: {"error": {"message": "lost"}}\n\n'), "the server failed: lost"),
        (lambda h: h.send(b'data: {"choices": [null]}\n\n'), "not a chat completion: '{\"choices\": \\[null\\]}'"),
        (lambda h: h.send(b'data: {"choices": [{"delta": "text"}]}\n\n'), "not a chat completion"),
        (lambda h: h.send(b'data: {"choices": {"delta": "text"}}\n\n'), "not a chat completion"),
        (lambda h: h.send(b'{"choices": [{"message": "text"}]}', kind="application/json"), "not a chat completion"),
        (lambda h: h.send(event("") + event("", "length") + DONE), "an empty answer; .* than 20 tokens: raise"),
        (lambda h: h.send(event("The")), "broke off"),
        (lambda h: h.send(b""), "broke off"),
        (chunked, "broke off"),
        (lambda h: h.connection.shutdown(socket.SHUT_RDWR), "broke off"),
        (silence, "no answer within 0.5 s"),
    ],
)  # fmt: skip
def test_what_fails_is_told_in_one_line_with_its_mend(server: Server, reply: Reply, message: str) -> None:
    server.reply = reply
    with pytest.raises(GeneratorError, match=message) as caught:
        write(Endpoint(server.url, timeout=0.5))
    told = str(caught.value)
    assert told.startswith(server.url) and told.isprintable() and len(told) < 400


def test_no_server(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(GeneratorError, match=r"no server answers .*`generator`"):
        write(Endpoint(url))


@pytest.mark.parametrize("url", ["http://", "http:///v1", "https://a b/v1", "http://host:port/v1", "http://host:0"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InputError, match="is no address"):
        Endpoint(url)


def test_another_model_answers(memo: Path, tiny_models: TinyModels, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=5)
    plain, mixed = minimemo.open(memo), minimemo.open(memo, generator=other)
    question = "Which number has the user?"
    one, two = (opened.ask(question, max_tokens=4) for opened in (plain, mixed))
    assert one.clues == two.clues and one.draft == two.draft and one.text != two.text
    alone, elsewhere = (opened.ask(question, "rag", 4) for opened in (plain, mixed))
    assert 0 < elsewhere.prompt_tokens <= elsewhere.prefilled_tokens, "it prefills the prompt"
    assert alone.guess or alone.text != elsewhere.text
    assert mixed.ask(question, "memory", 4).text == plain.ask(question, "memory", 4).text
    same = minimemo.open(memo, generator=tiny_models.decoder)
    for asked in (question, f"Explain in detail: {question}"):  # from passages, and over the memory
        told, expected = (opened.ask(asked, max_tokens=4) for opened in (same, plain))
        assert (told.text, told.prefilled_tokens) == (expected.text, expected.prefilled_tokens)
    assert same.runtime.generator is same.model(), "the same model is loaded once"


def test_the_command_line(server: Server, memo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["ask", str(memo), "What did user 3 say?", "--mode", "rag", "--generator", server.url]
    assert main([*asked, "--generator-model", "large"]) == 0
    assert capsys.readouterr().out.startswith("The user said Hello.\n")
    assert server.asked[0][2]["model"] == "large"
    server.reply = error(401)
    assert main(asked) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*asked[:5], "--generator-model", "large"]) == 2
    assert "give its address with --generator" in capsys.readouterr().err
    assert main([*asked[:5], "--generator", "localhost:8080", "--generator-model", "large"]) == 2
    assert "begin an address with http://" in capsys.readouterr().err
    assert main([*asked[:4], "memory", "--generator", server.url]) == 2
    assert "--mode memory answers from the memory's own model" in capsys.readouterr().err
    server.reply = lambda handler: handler.send(event("The"))
    assert main(asked) == 1
    assert capsys.readouterr().out == "The\n", "what was told ends its line before the error is told"
    assert main([*asked[:5], "--generator", "http://"]) == 2
    assert "is no address" in capsys.readouterr().err
