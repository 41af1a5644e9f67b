"""This file picks the kernel that multiplies with a quantized matrix on a GPU; a CPU has `native.PackedMatrix`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import triton
from .formats import QuantizedMatrix


def quantized_linear(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None = None) -> Tensor:
    """Multiplies x (N, in) with the matrix's transpose and adds bias (out,) -> (N, out), in x's dtype."""
    if x.shape[0] <= triton.MAX_ROWS and triton.serves(*((x,) if bias is None else (x, bias))):
        from .triton import linear

        return linear.quantized_linear(x, matrix, bias)
    return F.linear(x, matrix.widened(x.dtype), bias)
