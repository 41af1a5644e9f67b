"""Builds on a Ray cluster of two nodes of this machine, one of which is killed half way: in `make test-real`, where ray
is installed, or pytest -m cluster tests/scale/test_cluster.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minimemo.files import content_hash
from minimemo.memo.build import build
from minimemo.runtime import RunOptions
from minimemo.scale.cluster import Builder, _arrive, _handed_out, build_on_cluster
from tests.conftest import TinyModels


def documents(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{number}.txt" for number in range(count)]
    for number, path in enumerate(made):
        path.write_text(f"Room {number} is where user {number} said hello. " * (6 + number % 5))
    return made


def settings(tiny_models: TinyModels) -> dict[str, str]:
    return {"model": str(tiny_models.decoder), "embedder": str(tiny_models.embedder), "memory": "int4"}


def content(memo: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in memo.iterdir()}


def test_a_worker_gives_the_bytes_of_a_build_and_keeps_none(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cluster: what travels, and what stays on the worker's machine."""
    (document,) = documents(tmp_path / "in", 1)
    own = build(document, tmp_path / "own.memo", **settings(tiny_models)).folder
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "elsewhere"))
    worker = Builder({"threads": 1}, settings(tiny_models))
    made = worker.build(document.name, document.read_bytes())
    assert not isinstance(made, str)
    kept = [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()]
    assert not any(b"said hello" in path.read_bytes() or "tails" in path.parts for path in kept)
    assert str(worker.build("bad.txt", b"\x00\xff\xfe \x80" * 9)).count("\n") == 0
    _arrive(made, document, tmp_path / "came.memo", None)
    assert content(tmp_path / "came.memo") == content(own)
    _arrive(made, document, tmp_path / "came.memo", None)  # in place of an earlier one
    assert content(tmp_path / "came.memo") == content(own)


@pytest.mark.cluster
def test_a_node_that_is_killed_costs_no_document(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is the extra `ray`")
    from ray.cluster_utils import Cluster

    paths = documents(tmp_path / "in", 60)
    bad = tmp_path / "in" / "bad.txt"
    bad.write_bytes(b"\x00\xff\xfe \x80" * 9)
    tasks = [
        (path, tmp_path / "out" / f"{path.stem}.memo", content_hash(path)) for path in (*paths[:30], bad, *paths[30:])
    ]
    for name in ("out", "own"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    try:
        told: list[tuple[Path, str]] = []
        begun = time.monotonic()
        for done in build_on_cluster(tasks, cluster.address, RunOptions(threads=1), settings(tiny_models)):
            told.append(done)
            if len(told) == 20:
                cluster.remove_node(second, allow_graceful=False)
        print(f"60 documents in {time.monotonic() - begun:.1f} s")
    finally:
        cluster.shutdown()
    assert sorted(path for path, _ in told) == sorted(path for path, _, _ in tasks)  # each once
    assert [path for path, why in told if why] == [bad]
    for path, memo, _ in tasks:
        if path != bad:
            own = build(path, tmp_path / "own" / memo.name, **settings(tiny_models)).folder
            assert content(memo) == content(own)


@pytest.mark.cluster
def test_who_hands_out_the_work_may_be_killed_and_started_again(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second sync builds what the first has not, on the same cores, and all is as if one process had built it."""
    pytest.importorskip("ray", reason="ray is the extra `ray`")
    from ray.cluster_utils import Cluster

    names = {path.name for path in documents(tmp_path / "in", 30)}
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    given = [part for name, value in settings(tiny_models).items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "minimemo", "sync", str(tmp_path / "in"), *given, "--threads", "1"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.wait_for_nodes()
    told = []
    try:
        on_cluster = [*command, "--ray", cluster.address]
        monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "killed"))
        with subprocess.Popen(on_cluster, stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout is not None
            while len(told) < 10:
                line = first.stdout.readline()
                assert line
                told += [line.split()[1]] * line.startswith("built ")
            first.kill()
        again = subprocess.run(on_cluster, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
    finally:
        cluster.shutdown()
    more = [line.split()[1] for line in again.stdout.splitlines() if line.startswith("built ")]
    assert {*told, *more} == names and len({*more} & {*told}) == 0 and len(more) <= 20
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "alone"))
    subprocess.run(command, check=True, capture_output=True)
    ends = [
        {path.relative_to(home): path.read_bytes() for path in home.glob("collections/in/**/*") if path.is_file()}
        for home in (tmp_path / "alone", tmp_path / "killed")
    ]
    assert ends[0] == ends[1] and len(ends[0]) >= 3 * len(names)


class FakeRay:
    """One machine whose actor builds at once, and then does what `after` says."""

    exceptions = SimpleNamespace(RayError=KeyError, ActorDiedError=KeyError)

    def __init__(self, made: dict[str, bytes], after: Callable[[str], None]) -> None:
        self._made, self._after = made, after

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": {"CPU": 1}, "Alive": True}]

    def remote(self, num_cpus: int) -> Callable[[type], Any]:
        def build(name: str, content: bytes) -> tuple[str, bytes]:
            self._after(name)
            return name, content

        actor = SimpleNamespace(
            ready=SimpleNamespace(remote=lambda: ("ready",)), build=SimpleNamespace(remote=build), profile=None
        )
        return lambda kind: SimpleNamespace(remote=lambda run, settings: actor)

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: Any) -> Any:
        return self._made


def test_a_document_that_goes_while_it_is_built_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    tasks = [(path, tmp_path / f"{path.stem}.memo", content_hash(path)) for path in documents(tmp_path / "in", 3)]
    ray = FakeRay({"manifest.json": b"{}"}, lambda name: (tmp_path / "in" / name).unlink() if name == "1.txt" else None)
    told = {path.name: why for path, why in _handed_out(ray, tasks, RunOptions(threads=1), {})}
    assert told.keys() == {"0.txt", "1.txt", "2.txt"} and not told["0.txt"] and not told["2.txt"]
    assert told["1.txt"] == "cannot be read (No such file or directory)"
    assert [memo.exists() for _, memo, _ in tasks] == [True, False, True]
