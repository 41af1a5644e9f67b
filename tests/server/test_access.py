"""Tokens: each sees its own documents by every way there is, and no other's by any."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from minimemo.ask import Found, Passage, Piece
from minimemo.cli.arguments import main
from minimemo.errors import InputError
from minimemo.events import Event
from minimemo.files import data_dir
from minimemo.memo.registry import remember
from minimemo.server.access import AUDIT, DOCUMENTS, Access, OverQuota, Quota, read_access
from minimemo.server.app import Service
from minimemo.server.desk import Desk
from minimemo.server.run import application
from tests.conftest import TinyModels
from tests.server.conftest import NOTES, TEXT, Served, running

TOKENS = {name: f"token-of-{name}" for name in ("alice", "bob", "carol")}
SECRET = "Room 77 is where user 77 said hello"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS.get(name, name)}"}


@pytest.fixture(scope="module")
def access(shelf_folder: Path, tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """alice sees doc.memo, bob notes.memo and may write, carol the collection `team` and may ask twice an hour."""
    folder = tmp_path_factory.mktemp("access")
    for name in ("doc.memo", "notes.memo"):
        shutil.copytree(shelf_folder / name, folder / name)
    shutil.copy(shelf_folder / "notes.md", folder)
    team = folder / "team"
    team.mkdir()
    (team / "rooms.txt").write_text(f"{SECRET}. " * 5)
    assert main(["sync", str(team), "--memory", "exact", *tiny_models.options]) == 0
    for name in ("doc.memo", "notes.memo"):
        remember(folder / name)
    rights = {
        "alice": 'memos = ["doc.memo"]',
        "bob": 'memos = ["notes.memo"]\nwrite = true',
        "carol": 'collections = ["team"]\nquestions_per_hour = 2',
    }
    file = folder / "tokens.toml"
    rows = [f'[{n}]\nsha256 = "{hashlib.sha256(TOKENS[n].encode()).hexdigest()}"\n{r}\n' for n, r in rights.items()]
    file.write_text("\n".join(rows))
    return file


@pytest.fixture(scope="module")
def shared(access: Path, tiny_models: TinyModels) -> Iterator[Served]:
    with running(access.parent, models=tiny_models, access=access) as server:
        yield server


def ids(shared: Served, name: str) -> set[str]:
    status, _, content = shared.request("GET", "/api/documents", headers=bearer(name))
    assert status == 200, content
    return {row["id"] for row in json.loads(content)}


OWN = {"alice": "doc", "bob": "notes", "carol": "rooms.txt"}
TRACES = {"alice": b"user number 3", "bob": b"in room 7", "carol": b"Room 77"}  # what only its document says


def test_each_sees_its_own_documents(shared: Served) -> None:
    assert {name: ids(shared, name) for name in OWN} == {name: {id} for name, id in OWN.items()}
    for name, id in OWN.items():
        status, _, content = shared.request("GET", "/v1/models", headers=bearer(name))
        assert status == 200 and {row["id"] for row in json.loads(content)["data"]} == {"all", id}


def test_who_has_no_token_gets_no_further_than_the_page(shared: Served) -> None:
    for headers in ({}, bearer("nobody"), bearer(""), {"Authorization": "Bearer"}):
        for path in ("/api/documents", "/api/jobs", "/v1/models", "/metrics", "/documents/doc/file", "/mcp"):
            status, _, content = shared.request("GET", path, headers=headers)
            assert status == 401 and b"doc.txt" not in content, path
        assert shared.request("POST", "/api/ask", {"question": "What?"}, headers)[0] == 401
        assert shared.request("GET", "/health", headers=headers)[0] == 200


def _requests(id: str) -> list[tuple[str, str, Any]]:
    """One of each route that takes a document's id."""
    question = "What did the user say in the room?"
    said = [{"role": "user", "content": question}]
    return [
        ("GET", f"/api/documents/{id}/text", None),
        ("GET", f"/documents/{id}/file", None),
        ("DELETE", f"/api/documents/{id}", None),
        ("GET", f"/v1/models/{id}", None),
        ("POST", "/api/search", {"query": question, "documents": [id]}),
        ("POST", "/api/ask", {"question": question, "documents": [id], "max_tokens": 2}),
        ("POST", "/api/ask", {"mode": "summarize", "documents": [id], "max_tokens": 2}),
        ("POST", "/v1/chat/completions", {"model": id, "messages": said}),
        ("POST", "/v1/chat/completions", {"model": id, "messages": said, "stream": True}),
    ]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), [("alice", "bob"), ("bob", "alice"), ("alice", "carol")])
def test_no_route_gives_anything_of_anothers_document(shared: Served, one: str, other: str) -> None:
    """By its id, by its folder, and by asking all documents; what is refused is what an unknown id is told."""
    for method, path, body in _requests(OWN[other]):
        status, _, content = shared.request(method, path, body, bearer(one))
        assert TRACES[other] not in content and status in (200, 400, 403, 404), (method, path)
        if status == 200:  # a stream tells it in its events
            assert b'"error"' in content and b"no document" in content
    _, _, told = shared.request("GET", f"/api/documents/{OWN[other]}/text", headers=bearer(one))
    _, _, unknown = shared.request("GET", "/api/documents/nosuch/text", headers=bearer(one))
    assert told == unknown.replace(b"'nosuch'", f"'{OWN[other]}'".encode())
    assert OWN[other] in ids(shared, other)  # still there
    folder = str(shared.folder / f"{OWN[other]}.memo")
    question = NOTES if other == "bob" else TEXT[:300] if other == "alice" else SECRET
    for body in ({"query": question}, {"query": question, "documents": ["all"], "memos": [folder]}):
        status, _, content = shared.request("POST", "/api/search", body, bearer(one))
        assert status == 200 and TRACES[other] not in content and json.loads(content)["passages"]
    body = {"question": question[:80], "memos": [folder], "max_tokens": 2}
    status, _, content = shared.request("POST", "/api/ask", body, bearer(one))
    events = [row for row in content.split(b"\n") if row.startswith(b"data:") and b'"passages"' in row]
    assert status == 200 and events and all(TRACES[other] not in event.split(b'"question"')[0] for event in events)


def test_every_route_is_of_the_token(shared: Served) -> None:
    """A route that is new has to be looked at here."""
    gate = application(shared.service, shared.url, tokens=[Access("x", "0" * 64, (), False, Quota())])
    ((_, part),) = gate._tokens.values()
    paths = {route.path for route in part.routes}
    assert paths == {
        "/health", "/metrics", "/api/documents", "/api/documents/{id}", "/api/documents/{id}/text",
        "/documents/{id}/file", "/api/jobs", "/api/jobs/{id}", "/api/search", "/api/ask", "/v1/chat/completions",
        "/v1/models", "/v1/models/{id}", "/v1/embeddings", "/mcp", "",
    }  # fmt: skip


def test_tools_of_an_assistant_have_the_same_borders(shared: Served) -> None:
    pytest.importorskip("mcp")
    import httpx2
    from mcp.client.client import Client
    from mcp.client.streamable_http import streamable_http_client

    async def talk(name: str, foreign: str) -> None:
        web = httpx2.AsyncClient(headers=bearer(name))
        async with Client(streamable_http_client(f"{shared.url}/mcp", http_client=web)) as client:
            listed = await client.call_tool("list_documents", {})
            assert [row["id"] for row in listed.structured_content["documents"]] == [OWN[name]]
            for tool, given in {
                "fetch": {"id": OWN[foreign]}, "search": {"query": SECRET, "documents": [OWN[foreign]]},
                "ask": {"question": "What?", "documents": [OWN[foreign]]}, "summarize": {"document": OWN[foreign]},
                "quote": {"about": "rooms", "documents": [OWN[foreign]]},
            }.items():  # fmt: skip
                result = await client.call_tool(tool, given)
                assert result.is_error and "no document" in result.content[0].text, tool
            found = await client.call_tool("search", {"query": SECRET})
            assert {row["document"] for row in found.structured_content["results"]} == {OWN[name]}

    asyncio.run(asyncio.wait_for(talk("alice", "carol"), 30))
    asyncio.run(asyncio.wait_for(talk("bob", "alice"), 30))


def test_a_token_reads_unless_it_may_write_and_what_it_adds_is_its_own(shared: Served) -> None:
    for name in ("alice", "carol"):
        assert shared.request("POST", "/api/documents?name=x.txt", b"some text", bearer(name))[0] == 403
        assert shared.request("DELETE", f"/api/documents/{OWN[name]}", headers=bearer(name))[0] == 403
    assert shared.request("DELETE", "/api/documents/notes", headers=bearer("bob"))[0] == 403  # shown to it, not its own
    status, _, content = shared.request("POST", "/api/documents?name=mine.txt", TEXT.encode(), bearer("bob"))
    job = json.loads(content)["job"]["id"]
    assert status == 202 and (data_dir() / "documents" / "bob" / "mine.txt").exists()
    for name in ("alice", "carol"):
        assert json.loads(shared.request("GET", "/api/jobs", headers=bearer(name))[2]) == []
        assert shared.request("GET", f"/api/jobs/{job}", headers=bearer(name))[0] == 404
        assert shared.request("DELETE", f"/api/jobs/{job}", headers=bearer(name))[0] == 404
    assert shared.request("DELETE", f"/api/jobs/{job}", headers=bearer("bob"))[0] == 200
    memo = data_dir() / "documents" / "bob" / "own.memo"  # as a build leaves it
    shutil.copytree(shared.folder / "doc.memo", memo)
    remember(memo)
    assert ids(shared, "bob") == {"notes", "own"} and ids(shared, "alice") == {"doc"}
    assert shared.request("DELETE", "/api/documents/own", headers=bearer("bob"))[0] == 200
    assert ids(shared, "bob") == {"notes"} and not memo.exists() and "doc" in ids(shared, "alice")


def test_a_share_that_is_used_up_is_told_with_the_time_to_wait(shared: Served) -> None:
    body = {"query": "room"}
    codes = [shared.request("POST", "/api/search", body, bearer("carol")) for _ in range(4)]
    assert [code for code, _, _ in codes][-1] == 429 and 0 < int(codes[-1][1]["retry-after"]) <= 3600
    assert shared.request("POST", "/api/ask", {"question": "Which room?"}, bearer("carol"))[0] == 429
    assert shared.request("POST", "/api/search", body, bearer("alice"))[0] == 200
    assert shared.request("GET", "/metrics", headers=bearer("alice"))[0] == 403


def test_the_log_tells_who_had_what_and_no_text(shared: Served) -> None:
    shared.request("POST", "/api/search", {"query": "a question of mine"}, bearer("alice"))
    time.sleep(0.1)
    path = data_dir() / AUDIT
    content = path.read_text()
    rows = [json.loads(line) for line in content.splitlines()]
    assert rows[-1]["token"] == "alice" and rows[-1]["documents"] == ["doc"] and rows[-1]["status"] == 200
    assert path.stat().st_mode & 0o077 == 0
    for text in ("a question of mine", "user number", "Hello world", SECRET, *TOKENS.values()):
        assert text not in content


def test_who_leaves_before_the_end_has_had_what_came_until_then(shared: Served) -> None:
    """The tokens are of his share, the documents in the log."""
    desk = Desk()
    quota = Quota(tokens=100)
    service = Service(shared.service.shelf, desk, shared.service.jobs, Access("x", "0" * 64, (), False, quota))
    request = Request({"type": "http", "headers": [], DOCUMENTS: set()})

    def work() -> Iterator[Any]:
        yield {"doc.txt": "doc"}
        yield Found(passages=(Passage(0, 4, "text", score=0.0, document="doc.txt"),))
        for count in range(1, 60):
            desk.hear(Event("answer", count, 256, "tok"))
            yield Piece("word")

    async def read() -> None:
        steps = service.steps(work, request)
        pieces = 0
        async for step in steps:
            pieces += isinstance(step, Piece)
            if pieces == 40:
                break
        await steps.aclose()  # type: ignore[attr-defined]

    for _ in range(3):
        quota.ask()
        asyncio.run(read())
    assert request.scope[DOCUMENTS] == {"doc"}
    with pytest.raises(OverQuota, match="100 tokens"):
        quota.ask()
    desk.close(1)


def test_shares_are_counted_by_the_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    quota = Quota(questions=2, tokens=100)
    quota.ask()
    quota.wrote(120)
    with pytest.raises(OverQuota, match="100 tokens"):
        quota.ask()
    now = 3599.0
    with pytest.raises(OverQuota) as told:
        quota.ask()
    assert told.value.seconds == pytest.approx(1)
    now = 3601.0
    quota.ask()
    quota.ask()
    with pytest.raises(OverQuota, match="2 questions"):
        quota.ask()


def test_a_memo_is_seen_by_whatever_path_it_is_noted(shelf_folder: Path, tmp_path: Path) -> None:
    """Where a link leads to its folder, or the file of tokens names it with `..`."""
    shutil.copytree(shelf_folder / "doc.memo", tmp_path / "real" / "doc.memo")
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    file = tmp_path / "link" / "tokens.toml"
    for memo in ("doc.memo", "../link/doc.memo", "../real/doc.memo"):
        file.write_text(f"[a]\nsha256 = '{'0' * 64}'\nmemos = ['{memo}']\n")
        (access,) = read_access(file)
        assert access.sees(tmp_path / "real" / "doc.memo") and not access.sees(tmp_path / "real" / "x.memo")
        assert access.sees(tmp_path / "link" / "doc.memo") or ".." in memo


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "has no token"),
        ("x = 1", "plain name"),
        ("[a]\nsha256 = 'short'", "64 hex"),
        ("[a]\nsha256 = '{h}'\nread = true", "unknown"),
        ("[a]\nsha256 = '{h}'\nwrite = 'yes'", "write"),
        ("[a]\nsha256 = '{h}'\nquestions_per_hour = -1", "questions_per_hour"),
        ("[a]\nsha256 = '{h}'\ncollections = ['nosuch']", "nosuch"),
        ("[a]\nsha256 = '{h}'\nmemos = ['nosuch.memo']", "is no memo"),
        ("[a]\nsha256 = '{h}'\n[b]\nsha256 = '{h}'", "same token"),
        ("['../a']\nsha256 = '{h}'", "plain name"),
        ("[a", "no TOML"),
    ],
)
def test_what_is_not_understood_in_a_file_of_tokens_is_named(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(text.replace("{h}", "0" * 64))
    with pytest.raises(InputError, match=word):
        read_access(file)
