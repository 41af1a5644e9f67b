"""What this machine does at best, measured now; how much memory a process took."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from minimemo.kernels import hugepages

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss


def least(candidates: Sequence[Callable[[int], object]], seconds: float, clock: Callable[[], float]) -> list[float]:
    """The least seconds of each candidate, over runs of five calls in turn (the call after another's runs slower). A
    candidate is given the number of the call. The best of many tries counts, so that other processes must take the
    machine away all the time to raise it."""
    best, turn, end = [float("inf")] * len(candidates), 0, time.perf_counter() + seconds
    while turn < 5 or time.perf_counter() < end:
        for which, candidate in enumerate(candidates):
            for call in range(5):
                start = clock()
                candidate(turn + call)
                best[which] = min(best[which], clock() - start)
        turn += 5
    return best


def clock(threads: int) -> Callable[[], float]:
    """The thread's own time for one thread; the wall's for more, where a busy machine shows."""
    return time.perf_counter if threads > 1 else time.thread_time


def memory_gb_s(seconds: float = 1.0) -> float:
    """Sequential reading of a buffer on huge pages that no cache holds: torch's sum or maximum, the quicker one."""
    size = max(256 << 20, 5 * last_level_cache())
    buffer = hugepages.empty((size // 4,), torch.float32).fill_(1.0)
    ways = (lambda i: buffer.sum(), lambda i: buffer.max())
    return buffer.nbytes / 1e9 / min(least(ways, seconds, clock(torch.get_num_threads())))


def products_gflop_s(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """torch's product of two square matrices in a floating-point dtype."""
    matrix = torch.ones(2048, 2048).to(dtype)
    return 2e-9 * 2048**3 / least([lambda i: matrix @ matrix], seconds, clock(torch.get_num_threads()))[0]


def last_level_cache() -> int:
    """Bytes, as Linux tells them, else 32 MiB."""
    try:
        return int(Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 32 << 20


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def rss_bytes(pid: int) -> int:
    """What another process holds now, as Linux tells it; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


def peak_rss_bytes() -> int:
    """The most memory that this process held, mapped weights in it. Where /proc tells them, the bytes are those of this
    program alone: getrusage counts what started it as well."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
