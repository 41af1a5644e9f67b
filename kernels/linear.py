"""This file picks the kernel that multiplies with a quantized matrix on a GPU; a CPU has `native.PackedMatrix`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import triton
from .elementwise import gated_mlp_activation, rms_norm
from .formats import QuantizedMatrix


def quantized_linear(
    x: Tensor,
    matrices: Sequence[QuantizedMatrix],
    bias: Tensor | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    gate: str | None = None,
    residual: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """Multiplies x (N, in) with the transposes of matrices (out, in) side by side, adds bias (out,) -> (N, out), in x's
    dtype. norm: weight (in,) and eps of an RMSNorm of x before. gate: the activation after, of gate and up in halves of
    the outputs. residual: (N, out), to which the product is added; it may be overwritten. wide: the result is
    float32."""
    given = [one for one in (x, bias, residual, norm[0] if norm else None) if one is not None]
    if x.shape[0] > triton.MAX_ROWS or not triton.serves(*given):
        weight, x = _widened_with(matrices, x, norm)
        out = finish_product(x, weight, bias, gate, residual)
        return out.float() if wide else out
    from .triton import linear

    if len(matrices) == 1 and (bias is None or not gate):
        return linear.quantized_linear(
            x, matrices[0], bias, norm=norm, gate=gate, residual=residual, dtype=torch.float32 if wide else None
        )
    x = rms_norm(x, *norm) if norm else x
    sizes = [matrix.shape[0] for matrix in matrices]
    out = torch.empty((x.shape[0], sum(sizes)), dtype=torch.float32 if wide else x.dtype, device=x.device)
    biases = [None] * len(sizes) if bias is None else list(bias.split(sizes))
    for matrix, part, place in zip(matrices, biases, out.split(sizes, dim=1), strict=True):
        linear.quantized_linear(x, matrix, part, out=place)
    out = gated_mlp_activation(out, gate) if gate else out
    return out if residual is None else residual.add_(out)


def finish_product(x: Tensor, weight: Tensor, bias: Tensor | None, gate: str | None, residual: Tensor | None) -> Tensor:
    """The product with a dense weight (out, in) of x's dtype, and what follows it in `quantized_linear`."""
    if residual is not None and gate is None and bias is None and triton.serves(x, weight, residual):
        return residual.addmm_(x, weight.t())  # in one kernel
    out = F.linear(x, weight, bias)
    out = gated_mlp_activation(out, gate) if gate else out
    return out if residual is None else residual + out


def widened_rows(matrix: QuantizedMatrix, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `ids` (N,) of a matrix, (N, in) in `dtype`."""
    if matrix.scales.device.type != triton.DEVICE or not triton.installed():
        return matrix.rows(ids).widened(dtype)
    from .triton import linear

    return linear.widen(matrix, dtype, ids)


def _widened_with(
    matrices: Sequence[QuantizedMatrix], x: Tensor, norm: tuple[Tensor, float] | None
) -> tuple[Tensor, Tensor]:
    """The matrices side by side in x's dtype, and x, normed where there is a norm."""
    if norm and len(matrices) == 1 and x.shape[1] <= triton.MAX_WIDTH and triton.serves(x, norm[0]):
        from .triton import linear

        return linear.widen_and_norm(matrices[0], x, *norm)
    x = rms_norm(x, *norm) if norm else x
    wide = [_widened(matrix, x) for matrix in matrices]
    return (torch.cat(wide) if len(wide) > 1 else wide[0]), x


def _widened(matrix: QuantizedMatrix, x: Tensor) -> Tensor:
    if not triton.serves(x):
        return matrix.widened(x.dtype)
    from .triton import linear

    return linear.widen(matrix, x.dtype)
