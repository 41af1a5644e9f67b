"""This kernel multiplies up to 16 rows with a quantized matrix: codes of 8 or 4 bits, scales a group of columns.

With few rows the matrix's bytes decide, so codes are widened in registers and multiplied on tensor cores: sums are
taken over one group, in float32, then scaled, so that the codes enter the product exactly. A group may have an offset.

A launch costs a processor more than a small matrix costs a GPU, so what stands around a product goes with it: RMSNorm
of the rows, which every program does for itself, the residual, and the gated activation of a matrix that holds gate and
up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import QuantizedMatrix, check
from . import FLOATS, MAX_ROWS, MAX_WIDTH
from .elementwise import norm_row
from .launch import Launch

_GATES = {None: 0, "silu": 1, "gelu_tanh": 2}
_WIDE = 1024  # columns of a program that widens


def quantized_linear(
    x: Tensor,
    matrix: QuantizedMatrix,
    bias: Tensor | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    gate: str | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `linear.quantized_linear`, of at most MAX_ROWS rows; into `out`, rows without gaps, where that is given."""
    if out is None:
        shape = x.shape[0], matrix.shape[0] // (2 if gate else 1)
        out = torch.empty(shape, dtype=dtype or x.dtype, device=x.device)
    linear_launch(x, matrix, bias, out, norm=norm, gate=gate, residual=residual).run()
    return out


def linear_launch(
    x: Tensor,
    matrix: QuantizedMatrix,
    bias: Tensor | None,
    out: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    gate: str | None = None,
    residual: Tensor | None = None,
) -> Launch:
    outputs, columns = matrix.shape
    check("x", x, (None, columns), FLOATS, matrix.codes.device)
    rows = x.shape[0]
    if rows > MAX_ROWS:
        raise ValueError(f"x: {rows} rows, expected at most {MAX_ROWS}")
    if bias is not None:
        check("bias", bias, (outputs,), (x.dtype,), x.device)
    if gate and (outputs % 2 or bias is not None):
        raise ValueError(f"gate: {outputs} outputs, expected an even number, and no bias")
    outputs //= 2 if gate else 1
    check("out", out, (rows, outputs), (x.dtype, torch.float32), x.device)
    if residual is not None:
        check("residual", residual, (rows, outputs), (x.dtype,), x.device)
    if norm is not None:
        check("norm", norm[0], (columns,), (x.dtype,), x.device)
    block = 64 if outputs >= 8192 else 32 if outputs >= 4096 else 16  # enough programs for a GPU's processors
    block = min(block, 32) if gate else block
    group = columns // max(matrix.scales.shape[1], 1)
    return Launch(
        _linear,
        (triton.cdiv(outputs, block),),
        {
            "x": x, "codes": matrix.codes, "scales": matrix.scales, "offsets": matrix.offsets, "bias": bias,
            "norm": None if norm is None else norm[0], "residual": residual, "out": out, "rows": rows,
            "outputs": outputs, "groups": matrix.scales.shape[1], "stride_x": x.stride(0),
            "stride_r": 0 if residual is None else residual.stride(0), "stride_o": out.stride(0),
            "eps": 0.0 if norm is None else float(norm[1]),
        },
        {
            "GROUP": group, "BITS": matrix.bits, "BLOCK_M": MAX_ROWS, "BLOCK_N": block, "GATE": _GATES[gate],
        },
        num_warps=4 if block >= 32 else 2,
        num_stages=4,
        stage=group * matrix.bits // 8 * block + MAX_ROWS * group * x.dtype.itemsize,
    )  # fmt: skip


def widen(matrix: QuantizedMatrix, dtype: torch.dtype, ids: Tensor | None = None) -> Tensor:
    """As `QuantizedMatrix.widened`, in one pass: a byte or half of one is read for each number that is written. ids:
    (N,), which rows alone are widened, in their order."""
    rows = matrix.shape[0] if ids is None else len(ids)
    out = torch.empty((rows, matrix.shape[1]), dtype=dtype, device=matrix.codes.device)
    widen_launch(matrix, out, ids).run()
    return out


def widen_and_norm(matrix: QuantizedMatrix, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The matrix widened to x's dtype, and RMSNorm of x (N, in): one launch for what a product of many rows needs."""
    out = torch.empty(matrix.shape, dtype=x.dtype, device=x.device)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    widen_launch(matrix, out, norm=(x, weight, eps, normed)).run()
    return out, normed


def widen_launch(
    matrix: QuantizedMatrix,
    out: Tensor,
    ids: Tensor | None = None,
    norm: tuple[Tensor, Tensor, float, Tensor] | None = None,
) -> Launch:
    """norm: rows (N, in), RMSNorm's weight (in,) and eps, and where the normed rows go, without gaps."""
    columns = matrix.shape[1]
    rows = matrix.shape[0] if ids is None else len(ids)
    check("out", out, (rows, columns), FLOATS, matrix.codes.device)
    if ids is not None:
        check("ids", ids, (rows,), (torch.int64, torch.int32), out.device)
    x, weight, eps, normed = norm or (None, None, 0.0, None)
    if x is not None and weight is not None and normed is not None:
        check("x", x, (None, columns), FLOATS, out.device)
        check("weight", weight, (columns,), (x.dtype,), out.device)
        check("normed", normed, x.shape, (x.dtype,), out.device)
        if columns > MAX_WIDTH:
            raise ValueError(f"x: {columns} columns, expected 1 to {MAX_WIDTH}")
    many, width = (0, 16) if x is None else (len(x), triton.next_power_of_2(columns))
    return Launch(
        _widen,
        (many + rows, triton.cdiv(columns, _WIDE)),
        {
            "codes": matrix.codes, "scales": matrix.scales, "offsets": matrix.offsets, "out": out, "ids": ids, "x": x,
            "weight": weight, "normed": normed, "columns": columns, "groups": matrix.scales.shape[1], "many": many,
            "stride_x": 0 if x is None else x.stride(0), "eps": float(eps),
        },
        {"GROUP": columns // matrix.scales.shape[1], "BITS": matrix.bits, "BLOCK": _WIDE, "WIDTH": width},
        num_warps=max(4, width // 1024),
        num_stages=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "outputs"])
def _linear(
    x, codes, scales, offsets, bias, norm, residual, out, rows, outputs, groups, stride_x, stride_r, stride_o, eps,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Computes BLOCK_N outputs of all rows; with GATE, of the first half times those of the second."""
    row, output = tl.arange(0, BLOCK_M), tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    here, there = row < rows, output < outputs
    x_row = x + row[:, None].to(tl.int64) * stride_x
    factor = tl.full((BLOCK_M,), 1.0, tl.float32)
    if norm is not None:
        column = tl.arange(0, GROUP)
        squares = tl.zeros((BLOCK_M,), tl.float32)
        for group in range(0, groups):
            values = tl.load(x_row + group * GROUP + column[None, :], mask=here[:, None], other=0.0).to(tl.float32)
            squares += tl.sum(values * values, axis=1)
        factor = 1.0 / tl.sqrt(squares / (groups * GROUP) + eps)
    sums = _product(
        x_row, here, norm, factor, codes, scales, offsets, output.to(tl.int64), there, groups, GROUP, BITS, BLOCK_M,
        BLOCK_N,
    )  # fmt: skip
    if GATE > 0:
        z = sums
        if GATE == 2:  # gelu_tanh and silu are both x times a logistic function (elementwise.py)
            z = 1.5957691216057308 * (sums + 0.044715 * sums * sums * sums)
        gated = sums * tl.sigmoid(z)
        sums = gated * _product(
            x_row, here, norm, factor, codes, scales, offsets, (output + outputs).to(tl.int64), there, groups, GROUP,
            BITS, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    if bias is not None:
        sums += tl.load(bias + output, mask=there, other=0.0).to(tl.float32)[None, :]
    inside = here[:, None] & there[None, :]
    wide = row[:, None].to(tl.int64)
    if residual is not None:
        sums += tl.load(residual + wide * stride_r + output[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + wide * stride_o + output[None, :], sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _product(
    x_row, here, norm, factor, codes, scales, offsets, output, there, groups,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Multiplies all rows with BLOCK_N rows of the matrix, (BLOCK_M, BLOCK_N) float32."""
    SPAN: tl.constexpr = GROUP * BITS // 8  # bytes of a group; at 4 bits each holds two columns, SPAN apart
    column = tl.arange(0, SPAN)
    code_at = codes + output[:, None] * (groups * SPAN) + column[None, :]
    grid_at = output * groups
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for group in range(0, groups):
        first = _inputs(x_row, here, norm, factor, group * GROUP + column)
        code = tl.load(code_at + group * SPAN, mask=there[:, None], other=0)
        if BITS == 4:
            second = _inputs(x_row, here, norm, factor, group * GROUP + SPAN + column)
            high = (code >> 4).to(tl.int8)  # int8: a conversion from uint8 has a quarter of the throughput
            code = (code & 15).to(tl.int8)
            part = tl.dot(first, tl.trans(code.to(first.dtype)), input_precision="ieee")
            part = tl.dot(second, tl.trans(high.to(first.dtype)), part, input_precision="ieee")
        else:
            part = tl.dot(first, tl.trans(code.to(first.dtype)), input_precision="ieee")
        sums += part * tl.load(scales + grid_at + group, mask=there, other=0.0).to(tl.float32)[None, :]
        if offsets is not None:
            total = tl.sum(first.to(tl.float32), axis=1)
            if BITS == 4:
                total += tl.sum(second.to(tl.float32), axis=1)
            offset = tl.load(offsets + grid_at + group, mask=there, other=0.0).to(tl.float32)
            sums += total[:, None] * offset[None, :]
    return sums


@triton.jit
def _inputs(x_row, here, norm, factor, column):
    """Reads columns of all rows, normed where there is a norm, rounded as a norm of its own would."""
    values = tl.load(x_row + column[None, :], mask=here[:, None], other=0.0)
    if norm is not None:
        weight = tl.load(norm + column).to(tl.float32)
        values = (values.to(tl.float32) * factor[:, None] * weight[None, :]).to(values.dtype)
    return values


@triton.jit(do_not_specialize=["columns", "many"])
def _widen(
    codes, scales, offsets, out, ids, x, weight, normed, columns, groups, many, stride_x, eps,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Widens BLOCK columns (axis 1) of a row (axis 0); the first `many` programs of axis 0 norm a row of x each."""
    row = tl.program_id(0).to(tl.int64)
    if x is None:
        _wide_row(codes, scales, offsets, out, ids, columns, groups, row, GROUP, BITS, BLOCK)
    elif row >= many:
        _wide_row(codes, scales, offsets, out, ids, columns, groups, row - many, GROUP, BITS, BLOCK)
    elif tl.program_id(1) == 0:
        norm_row(x + row * stride_x, weight, normed + row * columns, columns, eps, WIDTH)


@triton.jit
def _wide_row(
    codes, scales, offsets, out, ids, columns, groups, row,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    to = out + row * columns
    if ids is not None:
        row = tl.load(ids + row).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    group = column // GROUP
    if BITS == 4:
        place = column % GROUP
        code = tl.load(codes + row * (columns // 2) + group * (GROUP // 2) + place % (GROUP // 2), mask=inside, other=0)
        code = ((code >> (place // (GROUP // 2) * 4).to(tl.uint8)) & 15).to(tl.int8)
    else:
        code = tl.load(codes + row * columns + column, mask=inside, other=0)
    wide = code.to(tl.float32) * tl.load(scales + row * groups + group, mask=inside, other=0.0).to(tl.float32)
    if offsets is not None:
        wide += tl.load(offsets + row * groups + group, mask=inside, other=0.0).to(tl.float32)
    tl.store(to + column, wide.to(out.dtype.element_ty), mask=inside)
