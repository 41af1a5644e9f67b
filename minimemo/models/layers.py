"""What a decoder is made of: matrices, dense on any device, packed codes with native products on a CPU, quantized ones
with Triton's on a GPU; and the weights of its layers.

A packed matrix is read as it is by products of few rows, where memory traffic decides. Many rows, where arithmetic
decides, are rounded to 8-bit integers and multiplied with it, or it is widened into a scratch buffer that all layers
share, and torch multiplies. A product gives what it was given: float32 in, float32 out, whatever it is computed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minimemo.kernels import (
    QuantizedMatrix,
    finish_product,
    gated_mlp_activation,
    quantized_linear,
    rms_norm,
    widened_rows,
)
from minimemo.kernels.native import PackedMatrix, concatenate, expand_into, expand_rows, packed_linear
from minimemo.kernels.native.shortlist import Shortlist

FEW_ROWS = 16  # rows up to which the packed product is quicker than widening the matrix and multiplying
# Rows of a vocabulary that are widened at once: all 151,936 of the 0.5B in float32 would keep 545 MB of a process.
MOST_WIDENED = 1 << 14


class Projection(Protocol):
    """A matrix of shape (out, in): x (N, in) -> (N, out)."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Reads the rows `ids` (N,) of the matrix, (N, in) in `dtype`: an embedding."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A dense matrix: weight (out, in), bias (out,) or None, of the inputs' dtype."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, self.weight).to(dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, in) times weight (out, in) in the weight's dtype, plus bias (out,) -> (N, out) in x's dtype."""
    if weight.dtype == x.dtype:
        return F.linear(x, weight, bias)
    out = F.linear(x.to(weight.dtype), weight).to(x.dtype)
    return out if bias is None else out.add_(bias)


class Scratch:
    """One buffer of `dtype`, as large as the largest matrix that was ever widened into it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._buffer = torch.empty(0, dtype=dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self._buffer.dtype

    def take(self, rows: int, columns: int) -> Tensor:
        """Lends (rows, columns), overwritten by the next call."""
        if self._buffer.numel() < rows * columns:
            self._buffer = self._buffer.new_empty(rows * columns)
        return self._buffer[: rows * columns].view(rows, columns)


class PackedLinear:
    """Packed matrices of one width, one below the other, and a bias (out,) or None. The weights are never rounded.

    Activations of few rows are rounded to 14 bits of the largest of 32 neighbours; those of many to 8, or, given a
    scratch buffer, to its dtype.
    """

    def __init__(self, parts: Sequence[PackedMatrix], bias: Tensor | None, scratch: Scratch | None) -> None:
        self._parts = tuple(parts)
        self.packed = concatenate(parts)
        self.bias = bias
        self.scratch = scratch

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] <= FEW_ROWS or self.scratch is None:
            return packed_linear(x, self.packed, self.bias, exact=x.shape[0] <= FEW_ROWS)
        rows, columns = self.shape
        if rows > MOST_WIDENED and len(self._parts) == 1:
            out = x.new_empty(len(x), rows)
            for first in range(0, rows, MOST_WIDENED):
                weight = self.scratch.take(min(MOST_WIDENED, rows - first), columns)
                expand_into(self._parts[0], weight, first)
                bias = None if self.bias is None else self.bias[first : first + MOST_WIDENED]
                out[:, first : first + MOST_WIDENED] = product(x, weight, bias)
            return out
        weight = self.scratch.take(rows, columns)
        first = 0
        for part in self._parts:
            expand_into(part, weight[first : first + part.out_features])
            first += part.out_features
        return product(x, weight, self.bias)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return expand_rows(self._parts[0], ids).to(dtype)


class QuantizedLinear:
    """Quantized matrices of one width on a GPU, one below the other, and a bias (out,) or None: read as they are by
    products of few rows, widened by those of many."""

    def __init__(self, parts: Sequence[QuantizedMatrix], bias: Tensor | None) -> None:
        self.parts = tuple(parts)
        self.bias = bias

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def __call__(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.parts, self.bias)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        (matrix,) = self.parts
        return widened_rows(matrix, ids, dtype)


def project(
    matrix: Projection,
    x: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    gate: str | None = None,
    residual: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """Takes x (N, in) through RMSNorm (weight and eps), the matrix and a gated activation, and adds the residual
    (N, out), each where it is given; in one kernel where there is one. The residual may be overwritten. wide: the
    result is float32."""
    if isinstance(matrix, QuantizedLinear):
        return quantized_linear(x, matrix.parts, matrix.bias, norm=norm, gate=gate, residual=residual, wide=wide)
    x = rms_norm(x, *norm) if norm else x
    if isinstance(matrix, Linear) and matrix.weight.dtype == x.dtype:
        out = finish_product(x, matrix.weight, matrix.bias, gate, residual)
    else:
        out = matrix(x)
        out = gated_mlp_activation(out, gate) if gate else out
        out = out if residual is None else residual + out
    return out.float() if wide else out


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer, fused where one input feeds several products."""

    attention_norm: Tensor  # (C,)
    qkv: Projection  # ((H + 2G) D, C)
    out: Projection  # (C, H D)
    mlp_norm: Tensor  # (C,)
    gate_up: Projection  # (2I, C)
    down: Projection  # (C, I)
    q_norm: Tensor | None = None  # (D,)
    k_norm: Tensor | None = None  # (D,)
    post_attention_norm: Tensor | None = None  # (C,), Gemma
    post_mlp_norm: Tensor | None = None  # (C,), Gemma


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights of a decoder."""

    embedding: Projection  # (V, C)
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # (C,)
    head: Projection  # (V, C); the embedding itself when tied
    shortlist: Shortlist | None = None  # of the head


def product_dtype(matrix: Projection) -> torch.dtype:
    """The number type in which many rows are multiplied with a matrix."""
    if isinstance(matrix, Linear):
        return matrix.weight.dtype
    if isinstance(matrix, PackedLinear):
        return matrix.scratch.dtype if matrix.scratch else torch.int8
    return torch.float32
