"""This kernel multiplies up to 16 rows with a quantized matrix: codes of 8 or 4 bits, scales a group of columns.

With few rows the matrix's bytes decide, so codes are widened in registers and multiplied on tensor cores: sums are
taken over one group, in float32, then scaled, so that the codes enter the product exactly. A group may have an offset.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import QuantizedMatrix, check
from . import FLOATS, MAX_ROWS
from .launch import Launch, widened


def quantized_linear(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None = None) -> Tensor:
    """As `linear.quantized_linear`, of at most MAX_ROWS rows."""
    out = torch.empty((x.shape[0], matrix.shape[0]), dtype=x.dtype, device=x.device)
    linear_launch(x, matrix, bias, out).run()
    return out


def linear_launch(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None, out: Tensor) -> Launch:
    outputs, columns = matrix.shape
    check("x", x, (None, columns), FLOATS, matrix.codes.device)
    rows = x.shape[0]
    if rows > MAX_ROWS:
        raise ValueError(f"x: {rows} rows, expected at most {MAX_ROWS}")
    if bias is not None:
        check("bias", bias, (outputs,), (x.dtype,), x.device)
    block = 64 if outputs >= 8192 else 32 if outputs >= 4096 else 16  # enough programs for a GPU's processors
    return Launch(
        _linear,
        (triton.cdiv(outputs, block),),
        {
            "x": x, "codes": matrix.codes, "scales": matrix.scales, "offsets": matrix.offsets, "bias": bias, "out": out,
            "rows": rows, "outputs": outputs, "groups": matrix.scales.shape[1], "stride_x": x.stride(0),
        },
        {
            "GROUP": columns // max(matrix.scales.shape[1], 1), "BITS": matrix.bits, "BLOCK_M": MAX_ROWS,
            "BLOCK_N": block, "WIDEN": widened(_linear, x.dtype),
        },
        num_warps=4 if block >= 32 else 2,
        num_stages=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "outputs"])
def _linear(
    x, codes, scales, offsets, bias, out, rows, outputs, groups, stride_x,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Computes BLOCK_N outputs of all rows."""
    HALF: tl.constexpr = GROUP // 2
    BYTES: tl.constexpr = GROUP * BITS // 8
    row, output = tl.arange(0, BLOCK_M), tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, HALF)
    here, there = row < rows, output < outputs
    wide = output.to(tl.int64)
    x_at = x + row[:, None].to(tl.int64) * stride_x + column[None, :]
    code_at = codes + wide[:, None] * (groups * BYTES) + column[None, :]
    grid_at = wide * groups
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for group in range(0, groups):
        first = tl.load(x_at + group * GROUP, mask=here[:, None], other=0.0)
        second = tl.load(x_at + group * GROUP + HALF, mask=here[:, None], other=0.0)
        if WIDEN:
            first, second = first.to(tl.float32), second.to(tl.float32)
        low = tl.load(code_at + group * BYTES, mask=there[:, None], other=0)
        if BITS == 4:
            high = low >> 4
            low = low & 15
        else:
            high = tl.load(code_at + group * BYTES + HALF, mask=there[:, None], other=0)
        part = tl.dot(first, tl.trans(low.to(first.dtype)), input_precision="ieee")
        part = tl.dot(second, tl.trans(high.to(first.dtype)), part, input_precision="ieee")
        sums += part * tl.load(scales + grid_at + group, mask=there, other=0.0).to(tl.float32)[None, :]
        if offsets is not None:
            total = tl.sum(first.to(tl.float32), axis=1) + tl.sum(second.to(tl.float32), axis=1)
            offset = tl.load(offsets + grid_at + group, mask=there, other=0.0).to(tl.float32)
            sums += total[:, None] * offset[None, :]
    if bias is not None:
        sums += tl.load(bias + output, mask=there, other=0.0).to(tl.float32)[None, :]
    at = row[:, None].to(tl.int64) * outputs + output[None, :]
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=here[:, None] & there[None, :])
