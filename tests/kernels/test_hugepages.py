"""Large buffers: private to the process and on huge pages; many small ones in few regions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minimemo.kernels import hugepages

SMAPS, MODE = Path("/proc/self/smaps"), Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _region(address: int) -> tuple[str, dict[str, int]]:
    """The mapping that holds an address: its permissions, and its sizes in KiB by name."""
    permissions, sizes, inside = "", dict[str, int](), False
    for line in SMAPS.read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # the first line of a mapping
            first, last = (int(end, 16) for end in words[0].split("-"))
            inside = first <= address < last
            permissions = words[1] if inside else permissions
        elif inside and len(words) == 3:
            sizes[words[0][:-1]] = int(words[1])
    return permissions, sizes


@pytest.mark.skipif(not SMAPS.exists() or not MODE.exists(), reason="the system does not tell")
def test_a_large_buffer_is_private_and_on_huge_pages() -> None:
    """Shared anonymous memory stays on 4 KiB pages whatever is advised: a decode step took 11.5 to 14 ms there, by how
    the pages happened to lie, and 11.2 on huge ones."""
    buffer = hugepages.empty((8 * hugepages.HUGE,), torch.uint8).fill_(1)
    permissions, sizes = _region(buffer.data_ptr())
    assert permissions == "rw-p"
    if "[never]" in MODE.read_text():
        pytest.skip("huge pages are turned off here")
    assert sizes["AnonHugePages"] >= 4 * hugepages.HUGE >> 10  # memory in pieces may leave some out


@pytest.mark.parametrize("shape", [(0,), (3, 5), (1 << 20, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_buffer_is_a_tensor_of_its_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    buffer = hugepages.empty(shape, dtype)
    assert buffer.shape == shape and buffer.dtype == dtype and buffer.is_contiguous()
    assert torch.equal(buffer.fill_(2.0), torch.full(shape, 2.0, dtype=dtype))


def test_a_kernel_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages.mmap, "MADV_HUGEPAGE", 9999, raising=False)  # EINVAL, as from such a kernel
    assert int(hugepages.empty((2 * hugepages.HUGE,), torch.uint8).fill_(1).sum()) == 2 * hugepages.HUGE


def test_an_arena_hands_out_zeroed_pieces_that_do_not_overlap() -> None:
    arena = hugepages.Arena(region=1 << 12)
    pieces = [arena.take(size) for size in (1, 64, 100, 5000, 7)]
    assert all(not piece.any() and piece.data_ptr() % 64 == 0 for piece in pieces)
    for value, piece in enumerate(pieces):
        piece.fill_(value)
    assert [piece.unique().tolist() for piece in pieces] == [[value] for value in range(5)]
