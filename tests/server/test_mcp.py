"""The tools of an assistant, as the protocol's own client calls them: over HTTP and over stdin and stdout."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minimemo.ask import Piece
from tests.server.conftest import NOTES, TEXT, Served

pytest.importorskip("mcp")
READING = {"search", "fetch", "ask", "quote", "summarize", "list_documents"}


def _over_http(served: Served, talk: Callable[[Any], Awaitable[None]], mode: str = "auto") -> None:
    from mcp.client.client import Client

    async def main() -> None:
        async with Client(f"{served.url}/mcp", mode=mode) as client:
            await talk(client)

    asyncio.run(asyncio.wait_for(main(), 30))


def _content(result: Any) -> Any:
    """What a tool gave: the same as text and as structured content."""
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_all_tools_read_and_say_so(served: Served, mode: str) -> None:
    async def talk(client: Any) -> None:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == READING
        assert all(tool.annotations.read_only_hint and tool.description for tool in tools)
        rows = _content(await client.call_tool("list_documents", {}))["documents"]
        assert [row["id"] for row in rows] == ["doc", "notes"] and rows[0]["characters"] == len(TEXT)

    _over_http(served, talk, mode)


def test_what_search_finds_can_be_fetched(served: Served) -> None:
    """The shapes of ChatGPT's connectors: results of {id, title, url, text}, a document of {id, title, text, url,
    metadata}."""

    async def talk(client: Any) -> None:
        results = _content(await client.call_tool("search", {"query": "What did user 3 say?"}))["results"]
        assert results and all({"id", "title", "url", "text"} <= set(row) for row in results)
        for row in results[:3]:
            whole = _content(await client.call_tool("fetch", {"id": row["id"]}))
            assert whole["text"] == row["text"] and {"id", "title", "text", "url", "metadata"} <= set(whole)
        whole = _content(await client.call_tool("fetch", {"id": "notes"}))
        assert whole["text"].split() == NOTES.split() and whole["url"] == f"{served.url}/documents/notes/file"
        assert "next" not in whole["metadata"]
        (text,) = (await client.read_resource("memo://notes")).contents
        assert text.text == whole["text"]

    _over_http(served, talk)


def test_an_answer_comes_with_sources_and_progress(served: Served) -> None:
    told: list[str] = []

    async def talk(client: Any) -> None:
        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append(str(message))

        asked = {"question": "What did user 3 say?", "documents": ["doc"]}
        answer = _content(await client.call_tool("ask", asked, progress_callback=progress))
        assert set(answer) == {"answer", "supported", "confidence", "sources"}
        for source in answer["sources"]:
            assert TEXT[source["start"] : source["end"]] == source["text"] and source["document"] == "doc"
        quoted = _content(await client.call_tool("quote", {"about": "user 3", "documents": ["doc"]}))
        assert any(line.strip(' "“”') and line.strip(' "“”') in TEXT for line in quoted["answer"].splitlines())
        summary = _content(await client.call_tool("summarize", {"document": "notes", "max_tokens": 8}))
        assert set(summary) == {"summary", "sources"}

    _over_http(served, talk)
    assert "retrieve" in told


@pytest.mark.parametrize(
    ("tool", "arguments", "word"),
    [
        ("fetch", {"id": "../../etc/passwd"}, "no document"),
        ("fetch", {"id": "doc:9-x"}, "no document"),
        ("ask", {"question": "???"}, "question"),
        ("ask", {"question": "What?", "documents": ["nosuch"]}, "nosuch"),
        ("search", {"query": "hello", "k": 1000}, "k:"),
        ("summarize", {"document": "doc", "max_tokens": 0}, "max_tokens"),
        ("delete_document", {"id": "doc"}, "delete_document"),
    ],
)
def test_a_mistake_is_told_to_the_model(served: Served, tool: str, arguments: dict[str, Any], word: str) -> None:
    from mcp.shared.exceptions import MCPError

    async def talk(client: Any) -> None:
        try:
            result = await client.call_tool(tool, arguments)
            assert result.is_error and word in result.content[0].text
        except MCPError as error:
            assert word in str(error)

    _over_http(served, talk)
    assert (served.folder / "doc.memo").is_dir()


def test_over_stdin_and_stdout_it_writes_where_that_is_allowed(shelf_folder: Path, tmp_path: Path) -> None:
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    shutil.copytree(shelf_folder / "doc.memo", tmp_path / "doc.memo")
    (tmp_path / "new.txt").write_text("The user said hello. " * 20, encoding="utf-8")
    command = ["-m", "minimemo", "mcp", "--allow-writes", str(tmp_path)]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))

    async def main() -> None:
        async with Client(stdio_client(parameters)) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert names == READING | {"build_document", "list_builds", "delete_document"}
            assert (await client.call_tool("build_document", {"path": "new.txt"})).is_error
            _content(await client.call_tool("build_document", {"path": str(tmp_path / "new.txt")}))
            (job,) = _content(await client.call_tool("list_builds", {}))["builds"]
            assert job["name"] == "new.txt" and job["state"] in ("waiting", "running")
            (row,) = _content(await client.call_tool("list_documents", {}))["documents"]
            assert _content(await client.call_tool("delete_document", {"id": row["id"]}))["freed"] > 0
            assert _content(await client.call_tool("list_documents", {}))["documents"] == []

    asyncio.run(asyncio.wait_for(main(), 180))  # where many share the cores, its imports alone take half a minute
    assert not (tmp_path / "doc.memo").exists() and (tmp_path / "new.txt").is_file()


def test_a_call_whose_client_leaves_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What computes its answer stops at the next step, and its place at the desk is free."""
    ended, begun = threading.Event(), threading.Event()

    def stream(question: str, typed: str) -> Iterator[Piece]:
        try:
            for _ in range(1000):
                begun.set()
                yield Piece("word")
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(served.service.shelf, "memo", lambda ids, question: SimpleNamespace(stream=stream))
    asked = {"name": "ask", "arguments": {"question": "?"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked}).encode()
    head = "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += f"Accept: application/json, text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + body)
        assert begun.wait(10)
    assert ended.wait(5)
