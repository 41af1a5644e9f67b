"""This file finds the most likely rows of a vocabulary without reading all of it (src/shortlist.cpp).

A coarse copy of the head, 4.5 bits a weight, tells which tokens can be the likeliest; those alone are multiplied with
the head itself. Decoding reads half of a head of 8 bits that way, and finds the token that the whole head would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import CPU, check, checked_groups
from ..hugepages import Arena
from .library import library
from .linear import PACKED_GROUPS, PackedMatrix, pack_weights

_GROUP = 32  # columns of one step of the copy


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Holds a matrix (out, in) of one part and its rounded copy. noise: root mean square of what was lost."""

    exact: PackedMatrix
    coarse: PackedMatrix
    noise: float


def shortlist(
    exact: PackedMatrix, codes: Tensor, scales: Tensor, offsets: Tensor | None = None, *, arena: Arena | None = None
) -> Shortlist:
    """Copies `exact`, which `pack_weights` packed from those codes, scales and offsets, coarsely."""
    rows, columns = codes.shape
    if exact.shape != (rows, columns) or len(exact.buffers) != 1 or columns % _GROUP:
        raise ValueError(f"shortlist: codes {tuple(codes.shape)} are not of a matrix {exact.shape} of one part")
    codes, scales, offsets = checked_groups(codes, scales, offsets, torch.float32, PACKED_GROUPS)
    rounded, steps = torch.empty_like(codes), torch.empty(rows, columns // _GROUP, dtype=torch.float32)
    lost = library().minimemo_coarsen(
        codes.data_ptr(),
        scales.data_ptr(),
        offsets.data_ptr() if offsets is not None else None,
        rows,
        columns,
        columns // scales.shape[1],
        rounded.data_ptr(),
        steps.data_ptr(),
        torch.get_num_threads(),
    )
    # weights that are not finite leave nothing to choose by: every tile is computed
    noise = (lost / max(1, rounded.numel())) ** 0.5 if math.isfinite(lost) else math.inf
    return Shortlist(exact, pack_weights(rounded, steps, arena=arena), noise)


def largest_linear(x: Tensor, matrix: Shortlist) -> Tensor:
    """Multiplies x (n, in) float32 -> (n, out) float32: as `packed_linear` of the exact matrix where an output may be
    the largest of its row, roughly right elsewhere. For few rows: each picks its own tiles. Raises ValueError."""
    x = x.contiguous()
    check("x", x, (None, matrix.exact.in_features), (torch.float32,), CPU)
    opened, out = library(), torch.empty(x.shape[0], matrix.exact.out_features)
    if out.numel() and opened.minimemo_shortlist(
        opened.variant,
        matrix.coarse.pointers[0],
        matrix.exact.pointers[0],
        matrix.noise,
        x.data_ptr(),
        len(x),
        out.data_ptr(),
        torch.get_num_threads(),
    ):
        raise MemoryError("no memory for the quantized activations")
    return out
