"""Downloading from a hub, through huggingface_hub, against a real HTTP server on this machine: resuming, refusing,
and never trusting."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session, constants

from minimemo.errors import FetchError, InputError
from minimemo.events import Event
from minimemo.hub.catalog import Entry, pull, pull_entry, resolve
from minimemo.hub.download import DiskFull, File, Mismatch, Source, fetch_all
from minimemo.hub.sources import HubSource, _headers
from tests.helpers import until

DATA = random.Random(1).randbytes(300_007)
CHUNK = 10_000  # bytes that huggingface_hub reads at once here, so that a small file has many


@dataclass
class Hub:
    """What the server serves and how badly; `asked` lists (path, Range header, Authorization header) of each GET."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)  # bytes after which the next answers break off
    status: dict[str, int] = field(default_factory=dict)  # error codes
    ranges: bool = True
    delay: float = 0.0  # seconds before the headers
    hold_at: int = 1 << 62  # a body's byte at which the server waits for `go`
    go: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    base: str = ""


def set_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """HF_ENDPOINT, which this process read when it imported huggingface_hub."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub and, in this process and in those that it starts, the variables by which huggingface_hub asks it."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            path = self.path.split("?")[0].lstrip("/")
            time.sleep(hub.delay)
            code = hub.status.get(path, 200 if path in hub.files else 404)
            self.send_response(code)
            self.send_header("Content-Length", str(len(hub.files[path]) if code == 200 else 0))
            self.end_headers()

        def do_GET(self) -> None:
            path, asked_range = self.path.split("?")[0].lstrip("/"), self.headers.get("Range")
            hub.asked.append((path, asked_range, self.headers.get("Authorization")))
            time.sleep(hub.delay)
            if path not in hub.files:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, start = hub.files[path], 0
            if asked_range and hub.ranges:
                start = int(asked_range.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Connection", "close")  # said, or a client may ask again over what is being closed
            self.end_headers()
            cut = hub.cut[path].pop(0) if hub.cut.get(path) else len(data)
            body = data[start : start + cut]
            self.wfile.write(body[: hub.hold_at])
            if len(body) > hub.hold_at:
                self.wfile.flush()
                hub.go.wait(60)
                self.wfile.write(body[hub.hold_at :])
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.base = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    set_endpoint(monkeypatch, hub.base)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    yield hub
    server.shutdown()
    server.server_close()


def file_of(data: bytes, path: str = "model.bin") -> File:
    return File(path, len(data), hashlib.sha256(data).hexdigest())


def entry_of(data: bytes, *sources: Source) -> Entry:
    file = file_of(data)
    return Entry("tiny", "decoder", file.path, file.size, file.digest, "Apache-2.0", "for tests", sources)


def serve(hub: Hub, data: bytes, path: str = "model.bin", repo: str = "o/r", revision: str = "main") -> str:
    key = f"{repo}/resolve/{revision}/{path}"
    hub.files[key] = data
    return key


SOURCE = HubSource("o/r")


def fetch(folder: Path, *files: File) -> None:
    SOURCE.fetch(files, folder, lambda coming: None)


# --- one file -------------------------------------------------------------------------------------------------------


def test_whole_file_arrives_and_no_partial_stays(hub: Hub, tmp_path: Path) -> None:
    key = serve(hub, DATA, "1_Pooling/a b.bin".replace(" ", "%20"))
    file = file_of(DATA, "1_Pooling/a b.bin")
    fetch(tmp_path, file)
    assert (tmp_path / "1_Pooling/a b.bin").read_bytes() == DATA
    assert [path.name for path in tmp_path.rglob("*.partial")] == []
    assert hub.asked == [(key, None, None)]


@pytest.mark.parametrize("held", [1, 150_000, len(DATA) - 1, len(DATA)])
def test_resumes_where_a_pull_stopped(hub: Hub, tmp_path: Path, held: int) -> None:
    key = serve(hub, DATA)
    file = file_of(DATA)
    file.partial(tmp_path).write_bytes(DATA[:held])
    fetch(tmp_path, file)
    assert file.at(tmp_path).read_bytes() == DATA
    assert hub.asked == ([(key, f"bytes={held}-", None)] if held < len(DATA) else [])


def test_server_without_ranges_starts_over(hub: Hub, tmp_path: Path) -> None:
    serve(hub, DATA)
    hub.ranges = False
    file = file_of(DATA)
    file.partial(tmp_path).write_bytes(DATA[:1000])
    fetch(tmp_path, file)
    assert file.at(tmp_path).read_bytes() == DATA
    assert len(hub.asked) == 1


def test_broken_connections_are_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    key = serve(hub, DATA)
    hub.cut[key] = [100_000, 0, CHUNK, 50_000, 0, 0]
    fetch(tmp_path, file_of(DATA))
    assert (tmp_path / "model.bin").read_bytes() == DATA
    starts = [asked_range for _, asked_range, _ in hub.asked]
    at = [100_000, 100_000, 110_000, 160_000, 160_000, 160_000]
    assert starts == [None, *(f"bytes={start}-" for start in at)]


def test_a_connection_that_never_advances_is_given_up_and_kept(hub: Hub, tmp_path: Path) -> None:
    key = serve(hub, DATA)
    hub.cut[key] = [CHUNK] + [0] * 50
    with pytest.raises(FetchError, match=r"/o/r/resolve/main/model\.bin: ") as caught:
        fetch(tmp_path, file_of(DATA))
    assert "\n" not in str(caught.value)
    assert len(hub.asked) < 20
    assert (tmp_path / "model.bin.partial").read_bytes() == DATA[:CHUNK]
    assert not (tmp_path / "model.bin").exists()


@pytest.mark.parametrize(
    ("code", "reason"), [(404, "HTTP 404"), (403, "HF_TOKEN"), (401, "HF_TOKEN"), (500, "HTTP 500")]
)
def test_refusals_are_final_and_named(hub: Hub, tmp_path: Path, code: int, reason: str) -> None:
    key = serve(hub, DATA)
    hub.status[key] = code
    with pytest.raises(FetchError, match=reason) as caught:
        fetch(tmp_path, file_of(DATA))
    assert key in str(caught.value) and "\n" not in str(caught.value)
    assert hub.asked == []


def test_wrong_content_is_thrown_away_and_named(hub: Hub, tmp_path: Path) -> None:
    wrong = bytes(len(DATA))
    serve(hub, wrong)
    file = file_of(DATA)
    with pytest.raises(Mismatch) as caught:
        fetch(tmp_path, file)
    for part in (file.path, file.digest, hashlib.sha256(wrong).hexdigest()):
        assert part in str(caught.value)
    assert list(tmp_path.rglob("model.bin*")) == []
    assert len(hub.asked) == 1


def test_another_size_is_refused_before_a_byte_is_written(hub: Hub, tmp_path: Path) -> None:
    serve(hub, DATA + b"x")
    file = file_of(DATA)
    file.partial(tmp_path).write_bytes(DATA[:10])
    with pytest.raises(FetchError, match="300,008 bytes there, 300,007 expected"):
        fetch(tmp_path, file)
    assert file.partial(tmp_path).read_bytes() == DATA[:10]


@pytest.mark.parametrize("held", [b"not the file's first bytes", b"?" * (len(DATA) + 5)])
def test_a_spoilt_partial_costs_one_more_download_not_a_failure(hub: Hub, tmp_path: Path, held: bytes) -> None:
    serve(hub, DATA)
    file = file_of(DATA)
    file.partial(tmp_path).write_bytes(held)
    fetch(tmp_path, file)
    assert file.at(tmp_path).read_bytes() == DATA
    assert hub.asked[-1][1] is None


def test_git_hash_and_empty_file(hub: Hub, tmp_path: Path) -> None:
    """`git hash-object` of an empty file and of `hello\\n`, as git prints them."""
    serve(hub, b"", "empty")
    serve(hub, b"hello\n", "hello")
    files = [
        File("empty", 0, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        File("hello", 6, "ce013625030ba8dba906f756967f9e9ca394464a"),
    ]
    fetch(tmp_path, *files)
    assert [file.at(tmp_path).read_bytes() for file in files] == [b"", b"hello\n"]
    serve(hub, b"hello\n", "other")
    with pytest.raises(Mismatch, match="found ce013625030ba8dba906f756967f9e9ca394464a"):
        fetch(tmp_path, File("other", 6, "0" * 40))


# --- huggingface_hub's cache ----------------------------------------------------------------------------------------


def cache(hub: Hub, data: bytes, tmp_path: Path) -> Path:
    """Puts a file into the cache as `huggingface_hub` does; returns where its bytes lie."""
    repository = tmp_path / "hf/hub/models--o--r"
    blob = repository / "blobs" / "b10b"
    for path in (blob, repository / "snapshots/c0ffee/model.bin", repository / "refs/main"):
        path.parent.mkdir(parents=True)
    blob.write_bytes(data)
    (repository / "snapshots/c0ffee/model.bin").symlink_to("../../blobs/b10b")
    (repository / "refs/main").write_text("c0ffee")
    return blob


def test_a_file_in_the_cache_is_taken_from_there_and_not_doubled(hub: Hub, tmp_path: Path) -> None:
    blob = cache(hub, DATA, tmp_path)
    path = pull_entry(entry_of(DATA, SOURCE))
    assert path.samefile(blob) and hub.asked == []
    blob.unlink()  # `hf cache rm`
    assert path.read_bytes() == DATA and resolve(path.parent) == path.parent


def test_a_cache_on_another_disk_is_linked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = cache(hub, DATA, tmp_path)

    def another_disk(source: str, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("minimemo.hub.sources.os.link", another_disk)
    path = pull_entry(entry_of(DATA, SOURCE))
    assert path.is_symlink() and path.samefile(blob) and hub.asked == []
    blob.unlink()
    serve(hub, DATA)
    assert pull_entry(entry_of(DATA, SOURCE)).read_bytes() == DATA


def test_a_wrong_file_in_the_cache_is_neither_used_nor_touched(hub: Hub, tmp_path: Path) -> None:
    serve(hub, DATA)
    blob = cache(hub, bytes(len(DATA)), tmp_path)
    path = pull_entry(entry_of(DATA, SOURCE))
    assert path.read_bytes() == DATA and blob.read_bytes() == bytes(len(DATA))


# --- nobody there ---------------------------------------------------------------------------------------------------


def test_slow_or_absent_hubs_are_given_up_quickly(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(hub, DATA)
    hub.delay = 3.0
    monkeypatch.setattr("minimemo.hub.sources._ANSWER_SECONDS", 0.3)
    for endpoint in (hub.base, "http://127.0.0.1:9", "http://host.invalid"):
        set_endpoint(monkeypatch, endpoint)
        began = time.monotonic()
        with pytest.raises(FetchError, match=f"^{endpoint}/o/r/resolve/main/model.bin: .") as caught:
            fetch(tmp_path, file_of(DATA))
        assert "\n" not in str(caught.value)
        assert time.monotonic() - began < 2
    assert hub.asked == []


def test_a_token_is_never_sent_in_the_clear(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(hub, DATA)
    serve_repository(hub, TINY_REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(tmp_path, file_of(DATA))
    pull("owner/tiny")
    assert {authorization for _, _, authorization in hub.asked} == {None}
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1")
    assert _headers()["authorization"] == "Bearer hf_secret"


def test_offline_only_the_cache_serves(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(hub, DATA)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    for name in ("o/r", "o/r/model.gguf"):
        with pytest.raises(FetchError, match=r"^switched off by HF_HUB_OFFLINE$"):
            pull(name)
    with pytest.raises(FetchError, match="model hub: switched off by HF_HUB_OFFLINE"):
        pull_entry(entry_of(DATA, SOURCE))
    cache(hub, DATA, tmp_path)
    assert pull_entry(entry_of(DATA, SOURCE)).read_bytes() == DATA
    assert hub.asked == []


# --- several sources ------------------------------------------------------------------------------------------------


def test_the_next_source_goes_on_where_the_first_broke_off(hub: Hub, tmp_path: Path) -> None:
    first = serve(hub, DATA, repo="o/first")
    second = serve(hub, DATA, repo="o/second")
    hub.cut[first] = [120_000] + [0] * 50
    events: list[Event] = []
    sources = [HubSource("o/first"), HubSource("o/second")]
    fetch_all("tiny", [file_of(DATA)], sources, tmp_path, events.append)
    assert (tmp_path / "model.bin").read_bytes() == DATA
    assert hub.asked[-1] == (second, "bytes=120000-", None)
    bars = [event for event in events if event.unit == "B"]
    assert [event.done for event in bars] == sorted(event.done for event in bars)
    assert (bars[-1].done, bars[-1].total, bars[-1].stage) == (len(DATA), len(DATA), "pull tiny")
    notes = [event.stage for event in events if event.unit == "note"]
    assert len(notes) == 1 and "model hub: " in notes[0] and first in notes[0]


def test_all_sources_failed_says_why_one_line_each(hub: Hub, tmp_path: Path) -> None:
    serve(hub, bytes(len(DATA)), repo="o/second")
    sources = [HubSource("o/first"), HubSource("o/second")]
    with pytest.raises(FetchError) as caught:
        fetch_all("tiny", [file_of(DATA)], sources, tmp_path, lambda event: None)
    head, *reasons = str(caught.value).splitlines()
    assert "tiny could not be pulled" in head and "minimemo pull tiny" in head
    assert ["HTTP 404" in reasons[0], "thrown away" in reasons[1], len(reasons)] == [True, True, 2]


def test_no_room_is_said_before_anything_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 12_000_000

    huge = Entry("tiny", "decoder", "model.bin", 50_000_000, "0" * 64, "", "", (SOURCE, SOURCE))
    monkeypatch.setattr("minimemo.hub.download.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(DiskFull, match=r"50 MB are needed and 12 MB are free"):
        pull_entry(huge)
    assert hub.asked == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up_stops_the_pull(hub: Hub, tmp_path: Path) -> None:
    serve(hub, DATA)
    folder = tmp_path / "home/models/tiny"
    folder.mkdir(parents=True)
    (folder / "model.bin.partial").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="disk is full"):
        pull_entry(entry_of(DATA, SOURCE, SOURCE))
    assert len(hub.asked) == 1
    assert not (folder / "minimemo.json").exists()


# --- processes ------------------------------------------------------------------------------------------------------

PULLER = """
import hashlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from minimemo.hub.catalog import Entry, pull_entry
from minimemo.hub.sources import HubSource
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 10_000
entry = Entry("tiny", "decoder", "model.bin", int(sys.argv[1]), sys.argv[2], "", "", (HubSource("o/r"),))
print(pull_entry(entry, lambda event: print("waiting", flush=True) if "waiting" in event.stage else None))
"""


def puller() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PULLER, str(len(DATA)), hashlib.sha256(DATA).hexdigest()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_partial(folder: Path, size: int) -> None:
    partial = folder / "model.bin.partial"
    until(lambda: partial.exists() and partial.stat().st_size >= size)


def test_two_processes_at_once_fetch_it_once(hub: Hub, tmp_path: Path) -> None:
    serve(hub, DATA)
    hub.hold_at = 100_000
    folder = tmp_path / "home/models/tiny"
    first = puller()
    wait_for_partial(folder, 1)
    second = puller()
    assert second.stdout is not None and second.stdout.readline() == "waiting\n"
    hub.go.set()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert [out.split()[-1] for out, _ in outputs] == [str(folder / "model.bin")] * 2
    assert len(hub.asked) == 1
    assert (folder / "model.bin").read_bytes() == DATA


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pull_leaves_only_what_the_next_one_resumes(hub: Hub, tmp_path: Path, how: signal.Signals) -> None:
    key = serve(hub, DATA)
    hub.hold_at = 40_000
    folder = tmp_path / "home/models/tiny"
    process = puller()
    wait_for_partial(folder, 40_000)
    process.send_signal(how)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "model.bin.partial"]
    assert (folder / "model.bin.partial").read_bytes() == DATA[:40_000]
    hub.go.set()
    assert pull_entry(entry_of(DATA, SOURCE)).read_bytes() == DATA
    assert hub.asked[-1] == (key, "bytes=40000-", None)


# --- repositories of the hub ----------------------------------------------------------------------------------------

TINY_REPO = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": DATA[:5000],
    "model-00002-of-00002.safetensors": DATA[5000:9000],
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "1_Pooling/config.json": b"{}",
    "consolidated.safetensors": DATA,
    "pytorch_model.bin": DATA,
    "README.md": b"#",
    "../../escape/config.json": b"{}",
    "tiny-q4.gguf": DATA[:777],
}


def serve_repository(hub: Hub, files: dict[str, bytes], repo: str = "owner/tiny") -> None:
    siblings = []
    for path, data in files.items():
        serve(hub, data, path, repo, "c0ffee")
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        one: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": git}
        if len(data) > 500:
            one |= {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
        siblings.append(one)
    listing = {"id": repo, "sha": "c0ffee", "siblings": siblings}
    hub.files[f"api/models/{repo}"] = json.dumps(listing).encode()


def test_a_repository_is_pulled_file_by_file_at_one_commit(hub: Hub, tmp_path: Path) -> None:
    serve_repository(hub, TINY_REPO)
    with pytest.raises(InputError, match="minimemo pull owner/tiny"):
        resolve("owner/tiny")
    folder = resolve("owner/tiny", pull_missing=True)
    others = {"consolidated.safetensors", "pytorch_model.bin", "README.md", "../../escape/config.json"}
    expected = set(TINY_REPO) - others - {"tiny-q4.gguf"}
    assert folder == tmp_path / "home/models/owner--tiny"
    for path in expected:
        assert (folder / path).read_bytes() == TINY_REPO[path]
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert held == expected | {".lock", "minimemo.json"}
    assert not (tmp_path / "home/escape").exists()
    hub.asked.clear()
    assert resolve("owner/tiny") == pull("owner/tiny") == folder
    assert hub.asked == []


def test_one_gguf_of_a_repository(hub: Hub) -> None:
    serve_repository(hub, TINY_REPO)
    path = pull("owner/tiny/tiny-q4.gguf")
    assert path.name == "tiny-q4.gguf" and path.read_bytes() == TINY_REPO["tiny-q4.gguf"]
    assert resolve("owner/tiny/tiny-q4.gguf") == path
    with pytest.raises(FetchError, match=r"has no other\.gguf; its GGUF files: tiny-q4\.gguf"):
        pull("owner/tiny/other.gguf")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a-q4.gguf": b"x"}, "owner/tiny/a-q4.gguf"),
        ({"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"x"}, "has no safetensors weights"),
        ({"config.json": b"{}", "model.safetensors": b"x"}, "has no tokenizer.json"),
    ],
)
def test_a_repository_that_cannot_be_used_says_what_it_lacks(hub: Hub, files: dict[str, bytes], said: str) -> None:
    serve_repository(hub, files)
    with pytest.raises(FetchError, match=said):
        pull("owner/tiny")


def test_a_repository_whose_file_differs_from_its_listing(hub: Hub) -> None:
    serve_repository(hub, TINY_REPO)
    serve(hub, b'{"model_type": "other"'[:22] + b"}", "config.json", "owner/tiny", "c0ffee")
    with pytest.raises(FetchError, match=r"config\.json: expected [0-9a-f]{40}, found [0-9a-f]{40}"):
        pull("owner/tiny")
    with pytest.raises(InputError, match="not pulled"):
        resolve("owner/tiny")


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"sha": "1"}', b'{"id": "1", "siblings": [{"size": null}]}'])
def test_a_listing_that_is_none(hub: Hub, answer: bytes) -> None:
    hub.files["api/models/owner/tiny"] = answer
    with pytest.raises(FetchError, match="owner/tiny"):
        pull("owner/tiny")


def test_no_such_repository(hub: Hub) -> None:
    with pytest.raises(FetchError, match="HTTP 404"):
        pull("owner/absent")
