"""The server's own API, as raw HTTP: documents, questions, builds, and what it refuses."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

import minimemo
from minimemo.ask import Answer
from minimemo.errors import MemoError
from minimemo.memo.manifest import NAME, checksum
from minimemo.server.app import _links
from minimemo.server.shelf import Shelf
from tests.conftest import TinyModels
from tests.helpers import until
from tests.server.conftest import NOTES, TEXT, Served, running

QUESTION = "What did user 3 say?"


def renamed(memo: Path, name: str) -> None:
    """Gives a memo's document another name."""
    body = json.loads((memo / NAME).read_text(encoding="utf-8"))
    body["document"]["name"] = name
    del body["checksum"]
    (memo / NAME).write_text(json.dumps({**body, "checksum": checksum(body)}), encoding="utf-8")


def test_documents_are_listed_with_what_they_are(served: Served) -> None:
    status, _, content = served.request("GET", "/api/documents")
    rows = {row["id"]: row for row in json.loads(content)}
    assert status == 200 and set(rows) == {"doc", "notes"}
    assert rows["doc"]["name"] == "doc.txt" and rows["doc"]["characters"] == len(TEXT)
    assert rows["doc"]["ratio"] > 2 and 0 <= rows["doc"]["quality"] <= 1 and rows["doc"]["bytes"] > 0


def test_an_answer_comes_in_events_and_is_what_the_library_gives(served: Served, tiny_models: TinyModels) -> None:
    events = served.events({"documents": ["doc"], "question": QUESTION, "max_tokens": 8})
    names = [name for name, _ in events]
    assert names[-1] == "answer" and names.index("clues") < names.index("passages") < names.index("answer")
    told = events[-1][1]
    with minimemo.open(served.folder / "doc.memo") as memo:
        answer = memo.ask(QUESTION, max_tokens=8)
    assert Answer.from_dict(told) == answer
    assert "".join(content["text"] for name, content in events if name == "piece") == answer.text
    assert told["ids"]["doc.txt"] == "doc"
    for passage in told["passages"]:
        _, _, content = served.request("GET", f"/api/documents/doc/text?start={passage['start']}&end={passage['end']}")
        assert json.loads(content)["text"] == passage["text"]


def test_a_conversation_is_understood_from_its_turns(served: Served) -> None:
    turns = [{"question": "What did user 3 say?", "answer": "Hello world"}]
    events = served.events({"documents": ["doc"], "question": "And why?", "turns": turns, "max_tokens": 4})
    assert events[-1][1]["question"] == "And why?"
    assert events[-1][1]["asked"] == "What did user 3 say? Hello world. And why?"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"documents": ["doc"], "question": "???"}, "empty"),
        ({"documents": ["doc"], "question": QUESTION, "mode": "magic"}, "mode"),
        ({"documents": "doc", "question": QUESTION}, "documents"),
        ({"documents": ["nosuch"], "question": QUESTION}, "nosuch"),
        ({"documents": ["../doc"], "question": QUESTION}, "no document"),
        ({"documents": ["doc"], "question": QUESTION, "max_tokens": 10**9}, "max_tokens"),
        ({"documents": ["doc"], "question": QUESTION, "memos": ["/etc"], "mode": "magic"}, "mode"),
        ([], "object"),
        (b"{" * 2000, "JSON"),
        (b'{"documents": ["doc"], "question": "\\ud800"}', "JSON"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_a_wrong_question_is_told_in_words(served: Served, body: object, word: str) -> None:
    status, _, content = served.request("POST", "/api/ask", body)
    assert status in (200, 400, 404) and b'"error"' in content and word in content.decode()
    assert b"Traceback" not in content


def test_search_gives_passages_and_no_answer(served: Served) -> None:
    status, _, content = served.request("POST", "/api/search", {"query": "room", "documents": ["notes"], "k": 2})
    rows = json.loads(content)["passages"]
    assert status == 200 and rows and all(NOTES[row["start"] : row["end"]] == row["text"] for row in rows)


def test_of_two_documents_of_one_name_the_right_one_is_told(
    shelf_folder: Path, tmp_path: Path, tiny_models: TinyModels
) -> None:
    """And one that is named twice is asked once."""
    for name in ("one", "two"):
        shutil.copytree(shelf_folder / "doc.memo", tmp_path / f"{name}.memo")
    with running(tmp_path, models=tiny_models) as server:
        for id in ("one", "two"):
            _, _, content = server.request("POST", "/api/search", {"query": "user 3", "documents": [id, id]})
            rows = json.loads(content)["passages"]
            assert {row["id"] for row in rows} == {id} and len({row["start"] for row in rows}) == len(rows)
            events = server.events({"documents": [id], "question": QUESTION, "mode": "rag", "max_tokens": 2})
            assert events[-1][1]["ids"] == {"doc.txt": id}
    assert _links({"doc.txt": "one", "elsewhere": ""}) == {"doc.txt": "/documents/one/file"}


def test_a_file_that_was_uploaded_goes_with_its_memo_whatever_it_is_called(
    shelf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of another ending than documents have, and one that somebody added with a token."""
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path))
    (tmp_path / "memos").mkdir()
    shelf = Shelf([tmp_path / "memos"])
    for folder, name in ((shelf.uploads, "server.log"), (shelf.uploads, "doc"), (shelf.uploads / "alice", "more.txt")):
        folder.mkdir(parents=True, exist_ok=True)
        memo = folder / f"{Path(name).stem}.memo"
        shutil.copytree(shelf_folder / "doc.memo", memo)
        renamed(memo, name)
        (folder / name).write_text(TEXT, encoding="utf-8")
        shelf._places.append(memo)
    for id in [*shelf.documents()]:
        shelf.remove(id)
    assert not [path for path in shelf.uploads.rglob("*") if path.is_file()]


def test_memos_that_cannot_be_searched_are_told(shelf_folder: Path, tmp_path: Path, tiny_models: TinyModels) -> None:
    for name in ("doc.memo", "notes.memo"):
        shutil.copytree(shelf_folder / name, tmp_path / name)
        (tmp_path / name / "index.bin").write_bytes(b"damaged")
    shelf = Shelf([tmp_path], **tiny_models.both)
    with pytest.raises(MemoError, match="minimemo verify"):
        shelf.memo([], QUESTION)


def test_memos_elsewhere_are_opened_for_the_own_socket_alone(served: Served, tmp_path: Path) -> None:
    """`memos` names folders of this machine: over a port it is passed over."""
    events = served.events({"memos": [str(tmp_path)], "documents": ["doc"], "question": QUESTION, "max_tokens": 2})
    assert events[-1][0] == "answer" and set(events[-1][1]["ids"].values()) == {"doc"}


def test_an_original_is_text_and_never_a_page(served: Served) -> None:
    status, headers, content = served.request("GET", "/documents/notes/file")
    assert status == 200 and content.decode() == NOTES
    assert headers["content-type"].startswith("text/plain") and headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert "sandbox" in policy and "default-src 'none'" in policy


@pytest.mark.parametrize(
    "path",
    [
        "/documents/..%2fdoc/file", "/documents/../../etc/passwd", "/documents/%2e%2e/file", "/..%2f..%2fetc/passwd",
        "/api/documents/..%2f..%2fetc/text", "/documents/doc/../../doc.memo/manifest.json", "/%2e%2e/pyproject.toml",
        "/documents/doc%00/file", "/documents//etc/file",
    ],
)  # fmt: skip
def test_no_path_leads_out(served: Served, path: str) -> None:
    assert served.request("GET", path)[0] in (400, 404)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": "[::1]evil.example"}, 421),
        ({"Host": "evil.example\\@localhost"}, 421),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
    ],
)
def test_pages_of_other_sites_are_refused(served: Served, headers: dict[str, str], status: int) -> None:
    """By Origin what a page elsewhere makes a browser send, by Host a name that was bent to this machine."""
    for method, path in (("GET", "/api/documents"), ("GET", "/health")):
        assert served.request(method, path, headers=headers)[0] == status


def test_a_key_is_asked_for_and_is_enough(shelf_folder: Path) -> None:
    with running(shelf_folder, key="sk-one") as server:
        assert server.request("GET", "/health")[0] == 200
        for given in ({}, *({"Authorization": key} for key in ("Bearer sk-two", "sk-öne", "Bearer "))):
            for path in ("/api/documents", "/v1/models", "/metrics", "/documents/doc/file", "/mcp"):
                assert server.request("GET", path, headers=given)[0] == 401
        right = {"Authorization": "Bearer sk-one", "Host": "reading.example"}
        assert server.request("GET", "/api/documents", headers=right)[0] == 200


def test_an_upload_that_is_cancelled_leaves_nothing(served: Served) -> None:
    text = "The user said hello in the new room. " * 8
    status, _, content = served.request("POST", "/api/documents?name=..%2Fnew%20one.txt", text.encode())
    assert status == 202, content
    job = json.loads(content)["job"]
    assert job["name"] == "new-one.txt" and job["state"] in ("waiting", "running")
    uploads: Path = served.service.shelf.uploads
    assert [path.name for path in uploads.iterdir()] == ["new-one.txt"]
    served.request("DELETE", f"/api/jobs/{job['id']}")
    of_job = f"/api/jobs/{job['id']}"
    until(lambda: json.loads(served.request("GET", of_job)[2])["state"] in ("cancelled", "failed"), 10)
    until(lambda: not list(uploads.glob("*.txt")), 10)


@pytest.mark.parametrize(("path", "body"), [
    ("/api/documents?name=", b"x"), ("/api/documents?name=a.txt", b""), ("/api/documents?name=a.txt&memory=huge", b"x"),
])  # fmt: skip
def test_a_wrong_upload_is_refused_and_nothing_stays(served: Served, path: str, body: bytes) -> None:
    status, _, content = served.request("POST", path, body)
    assert status == 400 and b'"error"' in content
    uploads: Path = served.service.shelf.uploads
    assert not uploads.exists() or not list(uploads.iterdir())


def test_shapes_of_a_search_are_checked_and_half_a_character_is_no_text(served: Served) -> None:
    """Half a character could not be told back in an answer."""
    for path, body in (
        ("/api/search", {"query": "hello", "documents": None}),
        ("/api/search", {"query": "hello", "documents": 5}),
        ("/v1/embeddings", {"input": "hello", "model": "\ud800"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who?"}], "stream_options": [1]}),
        ("/api/search", {"query": "hello", "documents": [str(number) for number in range(65)]}),
    ):
        status, _, content = served.request("POST", path, body)
        assert status == 400 and b'"error"' in content


@pytest.mark.parametrize("name", ["灯" * 200, "🌊" * 99, "a" * 500 + ".txt"])
def test_a_long_name_is_cut_to_what_a_file_system_takes(served: Served, name: str) -> None:
    path = served.service.shelf.place_for(name)
    path.touch()
    path.unlink()


def test_requests_that_do_not_come_are_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, half a head, and a body of a byte now and then; a slow one that gets on is served."""
    monkeypatch.setattr("minimemo.server.deadline.PATIENCE", 0.3)
    monkeypatch.setattr("minimemo.server.deadline.SLOWEST", 100)
    head = b"POST /api/ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"
    for first, part in ((b"", b""), (head[:20], b""), (head[:20], b"a"), (head, b" ")):
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
            connection.sendall(first)
            begin = time.monotonic()
            connection.settimeout(0.05)
            while True:
                assert time.monotonic() - begin < 5
                try:
                    connection.sendall(part)
                    assert not connection.recv(99)
                    break
                except TimeoutError:
                    continue
                except OSError:
                    break
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
        connection.sendall(head)
        for _ in range(9):
            connection.sendall(b" " * 100)
            time.sleep(0.08)
        assert connection.recv(99).startswith(b"HTTP/1.1 400")


def test_who_leaves_amid_a_body_is_nobodys_failure(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
        head = b"POST /api/documents?name=left.txt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        connection.sendall(head + b"x")
        time.sleep(0.1)
    uploads: Path = served.service.shelf.uploads
    until(lambda: not list(uploads.glob("left*")), 5)
    assert served.request("GET", "/health")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_bodies_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served.request("POST", "/api/ask", b"x" * 4_200_000)[0] == 413
    monkeypatch.setattr("minimemo.server.app.UPLOAD", 1000)
    assert served.request("POST", "/api/documents?name=a.txt", b"x" * 100_000)[0] == 413
    assert not list(served.service.shelf.uploads.glob("*"))


def test_one_that_leaves_gives_its_place_away(served: Served) -> None:
    """Eight clients leave right after they have asked; the next one is answered."""
    body = json.dumps({"documents": ["doc"], "question": "Describe what the users said.", "max_tokens": 200})
    head = f"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(f"{head}{body}".encode())
            connection.recv(10)
    assert served.events({"documents": ["doc"], "question": QUESTION, "max_tokens": 4})[-1][0] == "answer"
    until(lambda: not served.service.desk.waiting, 5)


def test_slow_readers_and_half_requests_stop_nobody(served: Served) -> None:
    body = json.dumps({"documents": ["doc"], "question": QUESTION})
    slow = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(12)]
    try:
        for number, connection in enumerate(slow):
            request = f"POST /api/ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            connection.sendall(request.encode()[: None if number % 2 else 40])
        assert served.request("GET", "/health")[0] == 200
        assert served.events({"documents": ["doc"], "question": QUESTION, "max_tokens": 4})[-1][0] == "answer"
    finally:
        for connection in slow:
            connection.close()


def test_readers_at_once_get_what_each_gets_alone(served: Served) -> None:
    questions = [f"What did user {i} say?" for i in range(4)]

    def ask(question: str) -> Answer:
        return Answer.from_dict(served.events({"documents": ["doc"], "question": question, "max_tokens": 6})[-1][1])

    alone = {question: ask(question) for question in questions}
    together: dict[str, Answer] = {}
    threads = [threading.Thread(target=lambda q=q: together.update({q: ask(q)})) for q in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert together == alone


def test_what_is_counted(served: Served) -> None:
    served.events({"documents": ["doc"], "question": QUESTION, "max_tokens": 4})
    _, headers, content = served.request("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain") and b"minimemo_questions_total{" in content
    assert b"minimemo_waiting 0.0" in content


def test_every_response_binds_the_browser(served: Served) -> None:
    for path in ("/api/documents", "/health", "/nosuch"):
        _, headers, _ = served.request("GET", path)
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cache-control"] == "no-store"


def test_a_connection_is_used_again(served: Served) -> None:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=10)
    for _ in range(3):
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read())["status"] == "ok"
    connection.close()


def test_a_full_line_is_told_before_anything_else(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimemo.server.desk.WAITING", 0)
    for path, body in (
        ("/api/ask", {"documents": ["doc"], "question": QUESTION}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": QUESTION}], "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": QUESTION}]}),
    ):
        status, headers, content = served.request("POST", path, body)
        assert status == 429 and headers["retry-after"] and json.loads(content)["error"]["type"] == "rate_limit_error"


def test_uploads_of_one_name_keep_their_own_memos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """a.pdf and a.docx would both become a.memo; a.memo is no name of a document."""
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path))
    shelf = Shelf([tmp_path])
    names = ["a.pdf", "a.docx", "a.pdf", "x.memo", "../../b.txt", "...", "", "c:\\d\\e.txt"]
    paths = []
    for name in names:
        paths.append(shelf.place_for(name))
        paths[-1].touch()
    assert [path.name for path in paths[:5]] == ["a.pdf", "a-2.docx", "a-3.pdf", "x-2.txt", "b.txt"]
    assert len({path.stem for path in paths}) == len(names) and {path.parent for path in paths} == {shelf.uploads}


def test_a_memo_of_a_strangers_gives_out_no_other_file(shelf_folder: Path, tmp_path: Path) -> None:
    """A manifest may name any file that lies beside the memo: the key of a user, say."""
    for number, name in enumerate(["id_rsa", ".netrc", "../secret.txt", "other.txt", "doc.txt"]):
        folder = tmp_path / str(number)
        shutil.copytree(shelf_folder / "doc.memo", folder / "doc.memo")
        manifest = folder / "doc.memo" / "manifest.json"
        manifest.write_text(manifest.read_text(encoding="utf-8").replace('"doc.txt"', json.dumps(name)), "utf-8")
        (folder / Path(name).name).write_text("secret", encoding="utf-8")
        originals = [document.original() for document in Shelf([folder]).documents().values()]
        assert any(originals) == (name == "doc.txt")
