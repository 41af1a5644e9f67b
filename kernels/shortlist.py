"""The most likely rows of a vocabulary without reading all of it: Python's side of native/shortlist.cpp.

A coarse copy of the head, 4.5 bits a weight, tells which tokens can be the likeliest; those alone are multiplied with
the head itself. Decoding reads half of a head of 8 bits that way, and finds the token that the whole head would.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .hugepages import Arena
from .native import PackedMatrix, _library, pack_weights

_GROUP = 32
_ROWS = 4096  # that are rounded at a time


@dataclass(frozen=True, slots=True)
class Shortlist:
    """exact, coarse: a matrix (out, in) of one part and its rounded copy. noise: root mean square of what was lost."""

    exact: PackedMatrix
    coarse: PackedMatrix
    noise: float


def shortlist(
    exact: PackedMatrix, codes: Tensor, scales: Tensor, offsets: Tensor | None = None, *, arena: Arena | None = None
) -> Shortlist:
    """`exact`, which was packed from those codes, scales and offsets (as `pack_weights` takes them), and its copy."""
    rows, columns = codes.shape
    if exact.shape != (rows, columns) or len(exact.buffers) != 1 or columns % _GROUP:
        raise ValueError(f"shortlist: codes {tuple(codes.shape)} are not of a matrix {exact.shape} of one part")
    rounded = torch.empty(rows, columns, dtype=torch.int8)
    steps = torch.empty(rows, columns // _GROUP)
    lost = 0.0
    for at in range(0, rows, _ROWS):
        some = slice(at, at + _ROWS)
        wide = codes[some].unflatten(1, (scales.shape[1], -1)).float() * scales[some, :, None]
        if offsets is not None:
            wide += offsets[some, :, None]
        wide = wide.flatten(1).unflatten(1, (-1, _GROUP))
        step = (wide.abs().amax(2, keepdim=True) / 7.5).half().float()  # 16 steps from the least to the largest
        found = (wide / step).nan_to_num_(0.0).round_().clamp_(-8, 7)
        lost += float((wide - found * step).square().sum())
        rounded[some], steps[some] = found.flatten(1).to(torch.int8), step[..., 0]
    return Shortlist(exact, pack_weights(rounded, steps, arena=arena), (lost / max(1, rounded.numel())) ** 0.5)


def largest_linear(x: Tensor, matrix: Shortlist, *, threads: int | None = None) -> Tensor:
    """x (n, in) float32 -> (n, out) float32: as `packed_linear` of the exact matrix where an output may be largest
    of its row, roughly right elsewhere. For few rows: each picks its own tiles. Raises ValueError."""
    if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != matrix.exact.in_features or x.device.type != "cpu":
        raise ValueError(
            f"x is {x.dtype} {tuple(x.shape)} on {x.device.type}, expected float32 (n, {matrix.exact.in_features})"
        )
    library, x = _library(), x.contiguous()
    out = torch.empty(x.shape[0], matrix.exact.out_features)
    pointers = (matrix.coarse.buffers[0].data_ptr(), matrix.exact.buffers[0].data_ptr())
    if out.numel() and library.minimemo_shortlist(
        library.variant,
        *pointers,
        matrix.noise,
        x.data_ptr(),
        len(x),
        out.data_ptr(),
        threads or torch.get_num_threads(),
    ):
        raise MemoryError("no memory for the quantized activations")
    return out
