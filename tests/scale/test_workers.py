"""Processes that build side by side: the same bytes, whatever happens to them. Tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import minimemo
from minimemo.errors import InputError
from minimemo.files import content_hash
from minimemo.runtime import RunOptions
from minimemo.scale import workers
from minimemo.scale.workers import build_in_processes, check_jobs
from tests.conftest import TinyModels
from tests.helpers import until

Task = tuple[Path, Path, str]


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    made = []
    for number in range(5):
        document = tmp_path / f"{number}.txt"
        document.write_text(f"Room {number} is where user {number} said hello. " * 9)
        made.append((document, tmp_path / f"{number}.memo", content_hash(document)))
    return made


def settings(models: TinyModels) -> dict[str, str]:
    return {"model": str(models.decoder), "embedder": str(models.embedder), "memory": "exact"}


def test_the_bytes_are_those_of_one_process_and_a_bad_document_stops_no_other(
    tasks: list[Task], tiny_models: TinyModels, tmp_path: Path
) -> None:
    """Each on two threads, which were not there when the models were loaded."""
    bad, changed = tasks[2][0], tasks[3][0]
    bad.write_bytes(b"\x00\xff\xfe broken \x80" * 9)
    tasks[2] = (*tasks[2][:2], content_hash(bad))
    changed.write_text("Another text is here now, of room 9. " * 5)
    told = dict(build_in_processes(tasks, 2, RunOptions(threads=4), settings(tiny_models)))
    assert told.keys() == {document for document, _, _ in tasks}
    assert told.pop(bad) and "has changed" in told.pop(changed) and not any(told.values())
    for document, memo, _ in tasks:
        if document in told:
            one = minimemo.build(document, tmp_path / "one.memo", **settings(tiny_models))
            assert {file.name: file.read_bytes() for file in memo.iterdir()} == {
                file.name: file.read_bytes() for file in one.folder.iterdir()
            }
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".building")]


FAKE = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
from minimemo.scale import workers

SIZE = 64 << 20


def build(document, memo, sha256, model, embedder, **run):
    if "1.txt" in document:
        os.kill(os.getpid(), 9)
    if "killer" in document:
        os.kill(os.getppid(), 9)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private"))
    Path(memo + ".building").write_text(json.dumps([sum(model[:: 1 << 12]) / SIZE, private / SIZE, os.getpid()]))
    os.replace(memo + ".building", memo)  # whole or not at all, as a build's: it may be killed here
    return SimpleNamespace(runtime=SimpleNamespace(model=model, embedder=embedder))


class Models:
    def __init__(self, *given):
        pass

    def decoder(self):
        return b"1" * SIZE

    def opened_embedder(self):
        return None


sys.modules["minimemo.memo.build"] = SimpleNamespace(build=build)
sys.modules["minimemo.ask"] = SimpleNamespace(PROMPTS=None, load_prompts=None)
sys.modules["torch"] = SimpleNamespace(set_num_threads=lambda count: None)
workers._on_cpu, workers.Runtime = lambda options: True, Models
workers.work(int(sys.argv[1]))
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WORKER", [sys.executable, "-c", FAKE])


@pytest.mark.usefixtures("fake")
def test_a_process_that_is_killed_fails_its_document_and_no_other(tasks: list[Task]) -> None:
    """Those that build, and the one that they are split off from, which takes with it what is being built."""
    told = dict(build_in_processes(tasks, 2, RunOptions(threads=1), {}))
    assert "ended by signal 9" in told.pop(tasks[1][0]) and len(told) == 4 and not any(told.values())
    killer = (tasks[0][0].with_name("killer.txt"), tasks[0][1].with_name("killer.memo"), "")
    told = dict(build_in_processes([killer, tasks[0], *tasks[2:]], 1, RunOptions(threads=1), {}))
    assert "ended by signal 9" in told.pop(killer[0]) and len(told) == 4 and not any(told.values())


@pytest.mark.usefixtures("fake")
def test_models_lie_in_memory_once(tasks: list[Task]) -> None:
    tasks = [task for task in tasks if "1.txt" not in task[0].name]
    assert not any(dict(build_in_processes(tasks, 2, RunOptions(threads=1), {})).values())
    told = [json.loads(memo.read_text()) for _, memo, _ in tasks]
    assert len({pid for _, _, pid in told}) == 2
    for model, private, _ in told:
        assert model == 49 / 4096 and private < 0.5


@pytest.mark.usefixtures("fake")
def test_processes_end_with_who_started_them(tasks: list[Task], tmp_path: Path) -> None:
    """Closed early, as Ctrl-C does, and killed."""
    tasks = [task for task in tasks if "1.txt" not in task[0].name]  # whose process ends by itself
    with closing(build_in_processes(tasks, 2, RunOptions(threads=1), {})) as builds:
        next(builds)
    pids = [json.loads(memo.read_text())[2] for _, memo, _ in tasks if memo.exists()]
    assert pids
    code = f"import sys, time\nfrom minimemo.scale import workers\nworkers._WORKER = [sys.executable, '-c', {FAKE!r}]\n"
    code += "from minimemo.runtime import RunOptions\nrun = {'dtype': None, 'threads': 1}\n"
    code += f"process, connection = workers._started({{'options': run}}, 1)\nmemo = {str(tmp_path / 'last')!r}\n"
    code += "workers._tell(connection, ['0.txt', memo, ''])\nconnection.recv_bytes()\n"
    code += "print(process.pid, flush=True)\ntime.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids += [int(parent.stdout.readline()), json.loads((tmp_path / "last").read_text())[2]]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not any(map(_alive, pids)))


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
