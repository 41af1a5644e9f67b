"""This file puts large buffers on huge pages, where the system gives them.

Reading hundreds of megabytes a token, a CPU spends a third of its time on page-table walks with 4 KiB pages: two cores
read 30 GB/s of those and 35 of 2 MiB pages, one core 21 and 31 (Zen 4, sequential, `bench.kernels` prints today's).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

HUGE = 2 << 20  # bytes; smaller buffers gain nothing


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Makes an uninitialized tensor; a CPU's memory is taken when written, and on huge pages from 2 MiB on."""
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or not _worth_huge_pages(size):
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return _mapped(size).view(dtype).view(tuple(shape))


def _worth_huge_pages(size: int) -> bool:
    return size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE")


def _mapped(size: int) -> Tensor:
    """Makes (size,) uint8, zeros that take no memory before they are written."""
    # Private: shared memory, which mmap.mmap asks for unless told, gets huge pages only where shmem_enabled says so. It
    # lives as long as the tensor, which holds a reference.
    region = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without them
        region.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(region, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE
    return whole[start : start + size]


class Arena:
    """Lays many buffers into few regions, so that small ones lie on huge pages too. A region lives as long as a buffer
    in it."""

    def __init__(self, region: int = 64 << 20) -> None:
        self._region = region
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """Hands out (size,) uint8, zeros, beginning on a cache line."""
        room = (size + 63) // 64 * 64
        if self._rest.numel() < room:
            size_of_region = max(room, self._region)
            zeros = _mapped if _worth_huge_pages(size_of_region) else partial(torch.zeros, dtype=torch.uint8)
            self._rest = zeros(size_of_region)
        taken, self._rest = self._rest[:size], self._rest[room:]
        return taken
