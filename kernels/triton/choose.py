"""These kernels end a step of decoding: each row's likeliest token becomes the input of the next step, and what tells
where rows stand moves on by one, all without the processor.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import check
from .launch import Launch, cdiv, power_of_2

_BLOCK = 4096  # logits of a program
_FAR = tl.constexpr(1 << 30)


def choose_launches(logits: Tensor, ids: Tensor, places: Tensor) -> list[Launch]:
    """Puts the likeliest token of each row of logits (N, V) float32, of equal ones that of the lowest id, into ids (N,)
    int32, and adds 1 to all of places (P, N) int32. Raises ValueError."""
    check("logits", logits, (None, None), (torch.float32,))
    rows, width = logits.shape
    check("ids", ids, (rows,), (torch.int32,), logits.device)
    check("places", places, (None, rows), (torch.int32,), logits.device)
    if not places.is_contiguous():
        raise ValueError("places: expected no gaps")
    parts = cdiv(width, _BLOCK)
    best = torch.empty((rows, parts), dtype=torch.float32, device=logits.device)
    place = torch.empty((rows, parts), dtype=torch.int32, device=logits.device)
    return [
        Launch(
            _largest,
            (parts, rows),
            {"logits": logits, "best": best, "place": place, "width": width, "stride": logits.stride(0)},
            {"BLOCK": _BLOCK},
            num_warps=8,
            num_stages=1,
        ),
        Launch(
            _advance,
            (rows,),
            {"best": best, "place": place, "ids": ids, "places": places, "parts": parts, "count": len(places)},
            {"BLOCK": max(16, power_of_2(max(parts, len(places))))},
            num_warps=1,
            num_stages=1,
        ),
    ]


@triton.jit(do_not_specialize=["width"])
def _largest(logits, best, place, width, stride, BLOCK: tl.constexpr):
    """Finds the largest of BLOCK logits (axis 0) of a row (axis 1), and where it stands."""
    row, column = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(logits + row * stride + column, mask=column < width, other=float("-inf"))
    largest = tl.max(values, axis=0)
    at = row * tl.num_programs(0) + tl.program_id(0)
    tl.store(best + at, largest)
    tl.store(place + at, tl.min(tl.where(values == largest, column, _FAR), axis=0))


@triton.jit(do_not_specialize=["parts", "count"], do_not_specialize_on_alignment=["ids", "places"])
def _advance(best, place, ids, places, parts, count, BLOCK: tl.constexpr):
    """Takes one row (axis 0)."""
    row, index = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(best + row * parts + index, mask=index < parts, other=float("-inf"))
    columns = tl.load(place + row * parts + index, mask=index < parts, other=_FAR)
    chosen = tl.min(tl.where(values == tl.max(values, axis=0), columns, _FAR), axis=0)
    tl.store(ids + row, tl.where(chosen < _FAR, chosen, 0))  # no logit is a number: as good as any
    at = places + index * tl.num_programs(0) + row
    tl.store(at, tl.load(at, mask=index < count, other=0) + 1, mask=index < count)
