"""Processes that build side by side: the same bytes, whatever happens to them. Tiny models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import minimemo
from minimemo.errors import InputError
from minimemo.runtime import RunOptions
from minimemo.scale import workers
from minimemo.scale.workers import build_in_processes, check_jobs
from tests.conftest import TinyModels


@pytest.fixture
def pairs(tmp_path: Path) -> list[tuple[Path, Path]]:
    made = []
    for number in range(5):
        document = tmp_path / f"{number}.txt"
        document.write_text(f"Room {number} is where user {number} said hello. " * 9)
        made.append((document, tmp_path / f"{number}.memo"))
    return made


def settings(models: TinyModels) -> dict[str, str]:
    return {"model": str(models.decoder), "embedder": str(models.embedder), "memory": "exact"}


def test_the_bytes_are_those_of_one_process_and_a_bad_document_stops_no_other(
    pairs: list[tuple[Path, Path]], tiny_models: TinyModels, tmp_path: Path
) -> None:
    pairs[2][0].write_bytes(b"\x00\xff\xfe broken \x80" * 9)
    told = dict(build_in_processes(pairs, 2, RunOptions(threads=2), settings(tiny_models)))
    assert told.keys() == {document for document, _ in pairs}
    assert told.pop(pairs[2][0]) and not any(told.values())
    for document, memo in pairs:
        if document in told:
            one = minimemo.build(document, tmp_path / "one.memo", **settings(tiny_models))
            assert {file.name: file.read_bytes() for file in memo.iterdir()} == {
                file.name: file.read_bytes() for file in one.folder.iterdir()
            }
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".building")]


FAKE = """
import json, os, sys
sys.stdin.readline()
for line in sys.stdin:
    if "1.txt" in line:
        os.kill(os.getpid(), 9)
    print(json.dumps({"error": ""}), flush=True)
"""


def test_a_process_that_is_killed_fails_its_document_and_no_other(
    pairs: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_WORKER", [sys.executable, "-c", FAKE])
    told = dict(build_in_processes(pairs, 2, RunOptions(threads=1), {}))
    assert "ended by signal 9" in told.pop(pairs[1][0]) and len(told) == 4 and not any(told.values())


def test_processes_end_with_who_started_them(pairs: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed early, as Ctrl-C does, and killed."""
    monkeypatch.setattr(workers, "_WORKER", [sys.executable, "-c", FAKE])
    started, real = [], workers._started

    def noted(settings: str, threads: int) -> subprocess.Popen[str]:
        started.append(real(settings, threads))
        return started[-1]

    monkeypatch.setattr(workers, "_started", noted)
    with closing(build_in_processes(pairs, 2, RunOptions(threads=1), {})) as builds:
        next(builds)
    assert started and all(process.poll() is not None for process in started)
    code = "import sys, subprocess, time\nfrom minimemo.scale.workers import _started\n"
    code += "print(_started('{}', 1).pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 20
    while _alive(worker):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_senseless_number_is_refused() -> None:
    assert check_jobs(1) == 1
    for jobs in (0, 100_000):
        with pytest.raises(InputError, match="--jobs"):
            check_jobs(jobs)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
