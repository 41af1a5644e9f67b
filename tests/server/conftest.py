"""A server of two tiny memos, on a port and a Unix socket of its own, in a thread of the test."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TinyModels

TEXT = "\n\n".join(f"The user number {i} said Hello world, be brief. 你好{i}。" for i in range(12))
NOTES = "# Rooms\n\nThe user said hello in room 7.\n\n# Orders\n\n<script>alert(1)</script> Hello world, be brief.\n"


@dataclass(frozen=True)
class Served:
    """A running server: its address, its port, its parts."""

    url: str
    port: int
    service: Any
    folder: Path

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers, content. body: bytes as they are, else as JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, content, headers or {})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def events(self, body: Any) -> list[tuple[str, Any]]:
        """The events of /api/ask."""
        status, _, content = self.request("POST", "/api/ask", body)
        assert status == 200, content
        rows = [block.split("\n", 1) for block in content.decode().strip().split("\n\n")]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in rows]


@pytest.fixture(scope="session")
def shelf_folder(tiny_models: TinyModels, tiny_profiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with doc.txt and notes.md, and their memos."""
    from minimemo.memo.build import build

    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIMEMO_HOME", str(tiny_profiles.parent))
        for name, text in (("doc.txt", TEXT), ("notes.md", NOTES)):
            (folder / name).write_text(text, encoding="utf-8")
            build(folder / name, **tiny_models.both)
    return folder


@pytest.fixture(scope="module")
def served(tiny_models: TinyModels, shelf_folder: Path) -> Iterator[Served]:
    with running(shelf_folder, models=tiny_models) as server:
        yield server


class running:
    """Runs a server for the length of a `with`; key: that requests must carry; access: a file of tokens."""

    def __init__(
        self, folder: Path, key: str = "", models: TinyModels | None = None, access: Path | None = None
    ) -> None:
        self._folder, self._key, self._models, self._access = folder, key, models, access

    def __enter__(self) -> Served:
        import uvicorn

        from minimemo.server.access import read_access
        from minimemo.server.app import Service
        from minimemo.server.deadline import DeadlineProtocol
        from minimemo.server.desk import Desk
        from minimemo.server.jobs import Jobs
        from minimemo.server.run import HANDS, _listen, _listen_locally, application, socket_path
        from minimemo.server.shelf import Shelf

        self._desk = Desk(HANDS)
        shelf = Shelf([self._folder] if self._access is None else [], on_event=self._desk.hear)
        models = {"model": self._models.decoder, "embedder": self._models.embedder} if self._models else {}
        self._jobs = Jobs(shelf.uploads, models)
        service = Service(shelf, self._desk, self._jobs)
        tcp = _listen("127.0.0.1", 0)
        self._sockets = [tcp, *filter(None, [_listen_locally(socket_path())])]
        url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
        made = application(service, url, self._key, read_access(self._access) if self._access else None)
        config = uvicorn.Config(
            made,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=2,
            http=DeadlineProtocol,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": self._sockets}, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        return Served(url, tcp.getsockname()[1], service, self._folder)

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._jobs.close()
        self._desk.close(2)
        for each in self._sockets:
            each.close()
