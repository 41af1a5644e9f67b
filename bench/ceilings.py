"""What this machine can do at best, measured now: the memory's GB/s and the processor's GFLOP/s, by all of torch's
threads. The best of many tries counts, so other processes must take the machine away all the time to lower it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from bench.kernels import _last_level_cache
from minimemo.kernels import hugepages


def memory_gb_s(seconds: float = 1.0) -> float:
    """Sequential reading of a buffer on huge pages that no cache holds: torch's sum or maximum, the quicker one."""
    size = max(256 << 20, 5 * _last_level_cache())
    numbers = hugepages.empty((size // 4,), torch.float32).fill_(1.0)
    return numbers.nbytes / 1e9 / _least((numbers.sum, numbers.max), seconds)


def products_gflop_s(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """torch's product of 512 rows with a large matrix, both in `dtype`: int8 (summed in int32) or floating point."""
    rows, columns, depth = 512, 2048, 2048
    x, weight = torch.ones(rows, depth).to(dtype), torch.ones(columns, depth).to(dtype).T
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm
    return 2e-9 * rows * columns * depth / _least((lambda: multiply(x, weight),), seconds)


def _least(candidates: Sequence[Callable[[], object]], seconds: float) -> float:
    """Least seconds of any candidate; they take turns, twice each."""
    least, end = float("inf"), time.perf_counter() + seconds
    while least == float("inf") or time.perf_counter() < end:
        for candidate in candidates:
            for _ in range(2):
                start = time.perf_counter()
                candidate()
                least = min(least, time.perf_counter() - start)
    return least
