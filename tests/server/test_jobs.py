"""The line of builds, with a builder that begins and does not end: what stops leave behind, and who goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minimemo.server.desk import Busy
from minimemo.server.jobs import Job, Jobs
from tests.helpers import until

BUILDER = """#!/bin/sh
begun="$(dirname "$3")/.$(basename "${3%.*}").memo.building"
mkdir -p "$begun/memo" && cp "$3" "$begun/memo/chunks.json" && : > "$begun/lock"
echo '{"stage": "read", "done": 1, "total": 9, "unit": "tok"}'
exec sleep 60
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Jobs]]:
    """Makes lines of builds over one folder of uploads, as servers one after the other have."""
    script = tmp_path / "builder"
    script.write_text(BUILDER)
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    made: list[Jobs] = []

    def begin() -> Jobs:
        made.append(Jobs(tmp_path / "documents"))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def upload(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "documents" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a secret")
    return path


def files(folder: Path) -> list[str]:
    """Those that are there; folders may go meanwhile."""
    return sorted(str((Path(at) / name).relative_to(folder)) for at, _, names in os.walk(folder) for name in names)


def stage(job: Job) -> object:
    return job.facts()["stage"]


def test_a_build_that_is_cancelled_leaves_nothing_of_an_upload(jobs: Callable[[], Jobs], tmp_path: Path) -> None:
    line = jobs()
    job = line.submit(upload(tmp_path, "a.txt"), {})
    until(lambda: stage(job))
    assert "documents/.a.memo.building/memo/chunks.json" in files(tmp_path)
    line.cancel(job.id)
    until(lambda: not any(n.startswith(("documents", "builds/")) and "lock" not in n for n in files(tmp_path)))
    until(lambda: job.facts()["state"] == "cancelled")


def test_uploads_in_the_line_of_a_server_that_stops_are_the_next_ones(jobs: Callable[[], Jobs], tmp_path: Path) -> None:
    """Those that wait and the one that is being read, with what they were to become and whose they are."""
    first = jobs()
    job = first.submit(upload(tmp_path, "a.txt"), {"memory": "tiny"})
    first.of("alice").submit(upload(tmp_path, "alice/b.txt"), {"memory": "int4", "password": "pass word"})
    until(lambda: stage(job))
    beside = jobs()  # while the first one runs
    assert not beside.all() and len(first.all()) == 2
    first.close()
    assert {"documents/a.txt", "documents/alice/b.txt"} <= {*files(tmp_path)}
    notes = [path.read_text() for path in (tmp_path / "builds").iterdir()]
    assert len([note for note in notes if note]) == 2 and "pass word" not in "".join(notes)
    second = jobs()
    a, b = second.all()
    assert (a.source.name, a.options, a.owner) == ("a.txt", {"memory": "tiny"}, "")
    assert (b.source.name, b.options, b.owner) == ("b.txt", {"memory": "int4"}, "alice")
    assert second.of("alice").all() == [b]
    until(lambda: stage(a))  # it goes on
    assert not jobs().all()


def test_no_password_stands_on_a_command_line(jobs: Callable[[], Jobs], tmp_path: Path) -> None:
    """Everybody on the machine can read those."""
    job = jobs().submit(upload(tmp_path, "a.txt"), {"password": "pass word"})
    until(lambda: stage(job))
    assert job.child is not None
    process = Path(f"/proc/{job.child.pid}")
    if not process.exists():
        pytest.skip("no /proc here")
    assert isinstance(job.child.args, list) and "pass word" not in " ".join(job.child.args)
    assert b"=pass word\0" in (process / "environ").read_bytes()


def test_the_queue_of_builds_is_finite(
    jobs: Callable[[], Jobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minimemo.server.jobs.WAITING", 2)
    line = jobs()
    running = line.submit(upload(tmp_path, "0.txt"), {})
    until(lambda: stage(running))
    for number in range(2):
        line.of("alice").submit(upload(tmp_path, f"alice/{number}.txt"), {})
    with pytest.raises(Busy, match="2 builds wait"):
        line.of("alice").check()
    line.of("bob").check()  # one does not fill the line of another
