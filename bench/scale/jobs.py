"""Many documents built side by side: seconds, and the memory that the processes have for themselves and share."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

from bench.common.report import show
from bench.scale.answers import articles
from bench.scale.folder import write_documents
from minimemo.files import content_hash
from minimemo.memo.library import remove_all
from minimemo.runtime import RunOptions
from minimemo.scale.cluster import build_on_cluster
from minimemo.scale.workers import build_in_processes
from tests.tiny import write_embedder, write_model

COLUMNS = (
    ("way", "<8"), ("documents", "9"), ("seconds", "8.1f"), ("first_s", "8.1f"), ("each_ms", "8.0f"),
    ("each_cpu_ms", "11.0f"), ("rss_mb", "7.0f"), ("pss_mb", "7.0f"), ("private_mb", "10.0f"),
)  # fmt: skip
_MARK = "MINIMEMO_BENCH_JOBS"
_FIELDS = ("Rss", "Pss", "Private_Clean", "Private_Dirty")


def run(data: Path, jobs: list[int], count: int, ray: bool, tiny: bool) -> dict[str, Any]:
    """Builds `count` documents in each number of processes, and, `ray`, on a cluster of this machine that has as many
    cores as the largest of them. tiny: models with random weights and documents of their words, else articles of the
    data and the default models."""
    os.environ[_MARK] = str(os.getpid())
    with TemporaryDirectory(prefix="minimemo-scale-") as name:
        place = Path(name)
        settings: dict[str, str] = {}
        if tiny:
            settings = {"model": str(write_model(place / "d")), "embedder": str(write_embedder(place / "e"))}
            settings["memory"] = "int4"
            paths = sorted(write_documents(place / "in", count, 4000).rglob("*.txt"))
        else:
            (place / "in").mkdir()
            paths = []
            for title, text in articles(data, count, 1)[0].items():
                paths.append(place / "in" / f"{title}.txt")
                paths[-1].write_text(text, encoding="utf-8")
        ways = [(f"--jobs {number}", number) for number in jobs] + [("--ray", max(jobs))] * ray
        return {"rows": show(COLUMNS, (_row(way, number, paths, place / way, settings) for way, number in ways))}


def _row(way: str, number: int, paths: Sequence[Path], out: Path, settings: dict[str, str]) -> dict[str, Any]:
    out.mkdir()
    tasks = [(path, out / f"{path.stem}.memo", content_hash(path)) for path in paths]
    options = RunOptions(threads=1 if way == "--ray" else number)
    with _cluster(number) if way == "--ray" else nullcontext("") as address, _watched() as memory:
        begun, done, used = time.perf_counter(), list[float](), list[float]()
        if way == "--ray":
            builds = build_on_cluster(tasks, address, options, settings)
        else:
            builds = build_in_processes(tasks, number, options, settings)
        for path, why in builds:
            assert not why, f"{path}: {why}"
            done.append(time.perf_counter() - begun)
            if len(done) in (len(tasks) // 3, len(tasks)):  # all workers have begun
                used.append(_cpu())
    remove_all([memo for _, memo, _ in tasks])
    each = 1e3 * (done[-1] - done[0]) / max(1, len(done) - 1)
    each_cpu = 1e3 * (used[-1] - used[0]) / max(1, len(tasks) - len(tasks) // 3)
    row = {"way": way, "documents": len(done), "seconds": done[-1], "first_s": done[0]}
    return {**row, "each_ms": each, "each_cpu_ms": each_cpu, **memory}


@contextmanager
def _cluster(cores: int) -> Iterator[str]:
    """A Ray cluster of this machine alone, of so many cores; its address."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (as the processes that it is compared with)
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores})
    cluster.wait_for_nodes()
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


@contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """Looks at the workers until the block ends, and gives then what they took at most: rss_mb of one of them, pss_mb
    (shared pages in equal parts) and private_mb of all together."""
    most: dict[str, float] = Counter()
    ended = Event()

    def look() -> None:
        while not ended.wait(0.5):
            sizes = [_memory(pid) for pid in _workers()]
            private = sum(one["Private_Clean"] + one["Private_Dirty"] for one in sizes)
            now = {"rss_mb": max((one["Rss"] for one in sizes), default=0), "private_mb": private}
            for key, value in {**now, "pss_mb": sum(one["Pss"] for one in sizes)}.items():
                most[key] = max(most[key], value)

    watching = Thread(target=look, daemon=True)
    watching.start()
    try:
        yield most
    finally:
        ended.set()
        watching.join()


def _workers() -> list[int]:
    """Processes that build, begun by this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            builds = b"minimemo.scale.workers" in command or b"ray::Builder" in command
            if builds and f"{_MARK}={os.getpid()}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def _cpu() -> float:
    """Seconds of the processor that this process and the workers that are there took."""
    ticks = 0
    for pid in _workers():
        with suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> dict[str, float]:
    """Megabytes by the names of the kernel's roll-up; none of a process that has ended."""
    made = dict.fromkeys(_FIELDS, 0.0)
    with suppress(OSError):
        for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = row.partition(":")
            if name in made:
                made[name] = int(rest.split()[0]) * 1024 / 1e6
    return made
