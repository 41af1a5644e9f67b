"""A folder and its collection: exactly what changed is done; a sync that is killed again and again ends the same."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from minimemo.files import content_hash
from minimemo.memo.registry import memos_of
from minimemo.scale.sync import load
from tests.tiny import write_embedder, write_model

CHANGED, BROKEN, GONE = 20, 5, 3
_TEXT = "the user said hello in a room where seven and nine are on a wall of the tower"
_LINE = re.compile(r"^(built|changed|failed|gone|moved|same) +([^\s:]+)", re.M)


def run(files: int, kills: int) -> dict[str, Any]:
    """Syncs folders of tiny documents with a tiny model; raises AssertionError where something else was done than what
    changed, or the end state differs."""
    with TemporaryDirectory(prefix="minimemo-scale-") as name:
        place = Path(name)
        models = [str(write_model(place / "decoder")), str(write_embedder(place / "embedder"))]
        result = {**_steps(place, models, files), **_kills(place, models, max(10, files // 10), kills)}
    for key, value in result.items():
        print(f"{key:<24} {value}", flush=True)
    return result


def _steps(place: Path, models: list[str], files: int) -> dict[str, Any]:
    folder = write_documents(place / "many", files)
    home = place / "home"
    first, _ = _sync(home, folder, models)
    nothing, done = _sync(home, folder, models)
    assert not done
    paths = sorted(folder.rglob("*.txt"))
    random.Random(1).shuffle(paths)
    expected = set()
    for path in paths[:CHANGED]:
        path.write_text(path.read_text() + " It was changed.")
        expected.add(("changed", str(path.relative_to(folder))))
    for path in paths[CHANGED : CHANGED + BROKEN]:
        path.write_bytes(b"\x00\xff\xfe broken \x80" * 9 + path.name.encode())
        expected.add(("failed", str(path.relative_to(folder))))
    for path in paths[CHANGED + BROKEN : CHANGED + BROKEN + GONE]:
        path.unlink()
        expected.add(("gone", str(path.relative_to(folder))))
    second, done = _sync(home, folder, models, code=2)
    assert done == expected, (done - expected, expected - done)
    seconds = {"first_sync_s": first, "nothing_changed_s": nothing, "second_sync_s": second}
    return {"files": files, "done_exactly": len(expected), **seconds}


def _kills(place: Path, models: list[str], files: int, kills: int) -> dict[str, Any]:
    folder = write_documents(place / "few", files)
    _sync(place / "left_alone", folder, models)
    chance, before, killed = random.Random(2), 0, 0
    for number in range(kills):
        process = subprocess.Popen(
            _command(folder, models, 1 + number % 2), env=_environment(place / "killed"), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        for _ in range(chance.randint(0, 2)):
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.wait()
        now = sum(1 for _ in (place / "killed").rglob("manifest.json"))
        killed += now < files
        assert now >= before, "a kill took a memo away"
        before = now
    time.sleep(1)  # processes of its own end with it
    _sync(place / "killed", folder, models)
    ends = [_state(place / home) for home in ("left_alone", "killed")]
    assert ends[0] == ends[1], "the end states differ"
    return {"killed": kills, "killed_before_the_end": killed, "same_end_state": len(ends[0])}


def write_documents(folder: Path, files: int, words: int = 60) -> Path:
    """Documents of so many words that tiny models know, in some folders."""
    chance = random.Random(3)
    for number in range(files):
        path = folder / f"part{number % 7}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Room {number}. " + " ".join(chance.choices(_TEXT.split(), k=words)) + ".")
    return folder


def _command(folder: Path, models: list[str], jobs: int) -> list[str]:
    given = ["--model", models[0], "--embedder", models[1], "--memory", "exact", "--jobs", str(jobs)]
    return [sys.executable, "-m", "minimemo", "sync", str(folder), *given]


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "MINIMEMO_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _sync(home: Path, folder: Path, models: list[str], code: int = 0) -> tuple[float, set[tuple[str, str]]]:
    """Seconds, and what it says that it did with which documents."""
    begun = time.perf_counter()
    done = subprocess.run(_command(folder, models, 1), env=_environment(home), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return time.perf_counter() - begun, set(_LINE.findall(done.stdout))


def _state(home: Path) -> dict[str, str]:
    """What a collection is in the end: its documents, and every byte of their memos."""
    with patch.dict(os.environ, {"MINIMEMO_HOME": str(home)}):
        (name,) = (path.stem for path in (home / "collections").glob("*.table") if path.stem in ("few", "many"))
        known = {path: one.sha256 + one.error for path, one in load(name).documents.items()}
        root = memos_of(name)
        files = {str(path.relative_to(root)): content_hash(path) for path in root.rglob("*") if path.is_file()}
        return known | files
