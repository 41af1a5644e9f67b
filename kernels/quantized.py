"""Products with quantized matrices on a GPU: the format that its kernel reads, and which kernel serves a call.

On a CPU they are `native.PackedMatrix`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .placement import triton_serves

MAX_ROWS = 16  # that the kernel multiplies; for more, widening the matrix is worth its cost
GROUPS = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """weight[o, i] = code * scale + offset, both of column i's group; 8-bit codes are signed, 4-bit codes 0 .. 15.

    At 4 bits byte i of a group of columns holds column i in its low half and column i + group/2 in its high half.
    """

    bits: int  # 8 or 4
    codes: Tensor  # (out, in) int8, or (out, in / 2) uint8
    scales: Tensor  # (out, in / group) float16
    offsets: Tensor | None  # like scales

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1] * 8 // self.bits

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.codes, self.scales, self.offsets) if x is not None)

    def rows(self, ids: Tensor) -> QuantizedMatrix:
        """The rows `ids` (N,)."""
        return QuantizedMatrix(
            self.bits, self.codes[ids], self.scales[ids], None if self.offsets is None else self.offsets[ids]
        )

    def widened(self, dtype: torch.dtype) -> Tensor:
        """(out, in) in `dtype`, computed in float32."""
        grouped = self.codes.unflatten(1, (self.scales.shape[1], -1))
        if self.bits == 4:
            grouped = torch.cat((grouped & 15, grouped >> 4), dim=2)
        wide = grouped.float().mul_(self.scales.float().unsqueeze(2))
        if self.offsets is not None:
            wide.add_(self.offsets.float().unsqueeze(2))
        return wide.flatten(1).to(dtype)


def quantized_linear(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None = None) -> Tensor:
    """x (N, in) times the matrix's transpose, plus bias (out,) -> (N, out), in x's dtype."""
    if x.shape[0] <= MAX_ROWS and triton_serves(*((x,) if bias is None else (x, bias))):
        from . import triton_matmul

        return triton_matmul.quantized_matmul(x, matrix, bias)
    return F.linear(x, matrix.widened(x.dtype), bias)
