"""These kernels multiply up to 16 rows with a quantized matrix: codes of 8 to 4 bits, scales a group of columns.

With few rows the matrix's bytes decide, and how soon all of them are asked for. So codes become numbers in registers,
once for four rows, and no program waits for another. A group may have an offset. One row has a kernel of its own.

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
from .launch import Launch, cdiv, power_of_2

_GATES = {None: 0, "silu": 1, "gelu_tanh": 2}
_TOGETHER = 4  # rows of a program
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
    group, units = columns // max(matrix.scales.shape[1], 1), columns // 32
    given = {
        "x": x, "codes": matrix.codes.view(torch.int32), "high": matrix.high, "scales": matrix.scales,
        "offsets": matrix.offsets, **_units(matrix), "bias": bias, "norm": None if norm is None else norm[0],
        "residual": residual, "out": out, "outputs": outputs, "units": units,
        "eps": 0.0 if norm is None else float(norm[1]),
    }  # fmt: skip
    compiled_in = {
        "GROUP": group, "BITS": matrix.bits, "ZERO": matrix.zero, "UNITS": min(32, power_of_2(units)),
        "GATE": _GATES[gate],
    }  # fmt: skip
    # Blocks and warps are as quick as any on an H200. Larger blocks would not fit into registers.
    if rows == 1:
        block, warps = (4, 8) if outputs < 4096 else (8 if gate and matrix.bits == 8 else 16, 4)
        grid: tuple[int, ...] = (cdiv(outputs, block),)
        return Launch(_row_linear, grid, given, {**compiled_in, "BLOCK_N": block}, warps, num_stages=1)
    halvings = bool(gate) + (matrix.bits == 8 and group == 16)
    block, grid = 8 >> halvings, (cdiv(outputs, 8 >> halvings), cdiv(rows, _TOGETHER))
    given |= {
        "rows": rows, "one": 1, "stride_x": x.stride(0), "stride_r": 0 if residual is None else residual.stride(0),
        "stride_o": out.stride(0),
    }  # fmt: skip
    compiled_in |= {"BLOCK_M": _TOGETHER, "BLOCK_N": block}
    return Launch(_linear, grid, given, compiled_in, num_warps=4, num_stages=1)


def _units(matrix: QuantizedMatrix) -> dict[str, Tensor | None]:
    return {"scale_units": matrix.scale_units, "offset_units": matrix.offset_units}


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
    many, width = (0, 16) if x is None else (len(x), power_of_2(columns))
    block = min(_WIDE, max(32, power_of_2(columns)))
    block_rows = 4 * _WIDE // block
    return Launch(
        _widen,
        (many + cdiv(rows, block_rows), cdiv(columns, block)),
        {
            "codes": matrix.codes, "high": matrix.high, "scales": matrix.scales, "offsets": matrix.offsets,
            **_units(matrix), "out": out, "ids": ids, "x": x, "weight": weight, "normed": normed, "rows": rows,
            "columns": columns, "groups": matrix.scales.shape[1], "many": many,
            "stride_x": 0 if x is None else x.stride(0), "eps": float(eps),
        },
        {
            "GROUP": columns // matrix.scales.shape[1], "BITS": matrix.bits, "ZERO": matrix.zero,
            "BLOCK_M": block_rows, "BLOCK": block, "WIDTH": width,
        },
        num_warps=max(8, width // 1024),
        num_stages=1,
    )  # fmt: skip


@triton.jit
def _gated(sums, GATE: tl.constexpr):
    z = sums
    if GATE == 2:  # gelu_tanh and silu are both x times a logistic function (elementwise.py)
        z = 1.5957691216057308 * (sums + 0.044715 * sums * sums * sums)
    return sums * tl.sigmoid(z)


@triton.jit(do_not_specialize=["rows", "outputs", "one"])
def _linear(
    x, codes, high, scales, offsets, scale_units, offset_units, bias, norm, residual, out, rows, outputs, units, one,
    stride_x, stride_r, stride_o, eps, GROUP: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNITS: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Computes BLOCK_N outputs (axis 0) of BLOCK_M rows (axis 1); with GATE, of the first half times those of the
    second."""
    HALVES: tl.constexpr = 2 if GATE > 0 else 1
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    here, wide = row < rows, row.to(tl.int64)
    matrix_row = tl.program_id(0) * BLOCK_N + tl.arange(0, HALVES * BLOCK_N) // HALVES
    of_matrix = matrix_row < outputs
    matrix_row += tl.arange(0, HALVES * BLOCK_N) % HALVES * outputs  # of both halves in turn
    sums, squares = _product(
        x + wide * stride_x, here, codes, high, scales, offsets, scale_units, offset_units, norm,
        matrix_row.to(tl.int64), of_matrix, units, one, GROUP, BITS, ZERO, BLOCK_M, HALVES * BLOCK_N, UNITS,
    )  # fmt: skip
    if norm is not None:
        sums *= (1.0 / tl.sqrt(squares / (units * 32) + eps))[:, None]
    if GATE > 0:
        gate, up = tl.split(tl.reshape(sums, (BLOCK_M, BLOCK_N, 2)))
        sums = _gated(gate, GATE) * up
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = output < outputs
    if bias is not None:
        sums += tl.load(bias + output, mask=there, other=0.0).to(tl.float32)[None, :]
    inside = here[:, None] & there[None, :]
    if residual is not None:
        at = residual + (wide * stride_r)[:, None] + output[None, :]
        sums += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + (wide * stride_o)[:, None] + output[None, :], sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _product(
    x_row, here, codes, high, scales, offsets, scale_units, offset_units, norm, output, there, units, one,
    GROUP: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    UNITS: tl.constexpr,
):  # fmt: skip
    """Multiplies the rows, times the norm's weight where there is one, with BLOCK_N rows of the matrix:
    (BLOCK_M, BLOCK_N) float32, and the sums of the rows' squares (BLOCK_M,).

    A thread takes one word of codes, and the inputs at its columns, four in a load: neighbours take neighbouring words
    and inputs. All that a turn of the loop needs is asked for before any of it is waited for. A code becomes a number
    without a conversion: as the low bits of a bfloat16 between 128 and 256, two at a time, which with zeros behind are
    float32; 8-bit ones as the bits below 1 of a float32. What that adds to all codes of a word goes with the group's
    offset, times the sum of the inputs. one: 1, which the compiler does not know, and so gives a thread no more than a
    word.
    """
    WORDS: tl.constexpr = 8 if BITS == 8 else 4
    BASE: tl.constexpr = 384 if BITS == 8 else 128 + ZERO
    SCALE: tl.constexpr = 256.0 if BITS == 8 else 1.0
    lane = tl.arange(0, WORDS)
    sums = tl.zeros((BLOCK_M, BLOCK_N, UNITS, WORDS), tl.float32)
    squares = tl.zeros((BLOCK_M, UNITS, WORDS), tl.float32)
    for start in range(0, units, UNITS):
        unit = start + tl.arange(0, UNITS)
        inside = unit < units
        both = there[:, None] & inside[None, :]
        place = output[:, None] * units + unit[None, :]
        word = tl.load(codes + place[:, :, None] * WORDS + (lane * one)[None, None, :], mask=both[:, :, None], other=0)
        if GROUP == 16:
            grid = place * 2
        else:
            grid = output[:, None] * (units // (GROUP // 32)) + (unit // (GROUP // 32))[None, :]
        number = tl.load(scales + grid, mask=both, other=0)
        odd_number, offset, odd_offset, factor, offset_factor = number, number, number, number, number
        if GROUP == 16:
            odd_number = tl.load(scales + grid + 1, mask=both, other=0)
        if offsets is not None:
            offset = tl.load(offsets + grid, mask=both, other=0)
            if GROUP == 16:
                odd_offset = tl.load(offsets + grid + 1, mask=both, other=0)
        if scale_units is not None:
            factor = tl.load(scale_units + grid // (256 // GROUP), mask=both, other=0.0)
        if offset_units is not None:
            offset_factor = tl.load(offset_units + grid // (256 // GROUP), mask=both, other=0.0)
        plane, next_plane = grid, grid  # what codes of more than 4 bits have above those
        if BITS == 5:
            plane = tl.load(high + place, mask=both, other=0)
        if BITS == 6:
            plane = tl.load(high + place * 2, mask=both, other=0)
            next_plane = tl.load(high + place * 2 + 1, mask=both, other=0)
        column = (unit[:, None] * 32 + lane[None, :] * 4)[:, :, None] + tl.arange(0, 4)[None, None, :]
        given = (here[:, None] & inside[None, :])[:, :, None, None]
        values = tl.load(x_row[:, None, None, None] + column[None], mask=given, other=0.0)
        odd_values, weight, odd_weight = values, values, values
        if BITS < 8:
            odd_values = tl.load(x_row[:, None, None, None] + column[None] + 16, mask=given, other=0.0)
        if norm is not None:
            weight = tl.load(norm + column, mask=inside[:, None, None], other=0.0)[None]
            if BITS < 8:
                odd_weight = tl.load(norm + column + 16, mask=inside[:, None, None], other=0.0)[None]

        scale, shift = _grid(number, factor, offset, offset_factor, scale_units, offsets, offset_units, BASE)
        odd_scale, odd_shift = scale, shift
        if GROUP == 16:
            odd_scale, odd_shift = _grid(
                odd_number, factor, odd_offset, offset_factor, scale_units, offsets, offset_units, BASE
            )
        a, b, c, d, squares = _apart(values, weight, norm, squares, BLOCK_M, UNITS, WORDS)
        total = a + b + c + d
        if BITS == 8:
            if GROUP == 16:  # words 0 to 3 are of one group, 4 to 7 of the next
                upper = (lane >= 4)[None, None, :]
                scale = tl.where(upper, odd_scale, scale)
                shift = tl.where(upper, odd_shift, shift)
            word ^= -0x7F7F7F80  # 0x80 in each byte: from -128 .. 127 to 0 .. 255
            part = _byte(word, 0)[None] * a[:, None] + _byte(word, 8)[None] * b[:, None]
            part += _byte(word, 16)[None] * c[:, None] + _byte(word, 24)[None] * d[:, None]
            sums += part * (scale * SCALE)[None] + total[:, None] * shift[None]
        else:
            plane = plane[:, :, None] >> (4 * lane)[None, None, :]
            next_plane = next_plane[:, :, None] >> (4 * lane)[None, None, :] if BITS == 6 else plane
            e, f, g, h, squares = _apart(odd_values, odd_weight, norm, squares, BLOCK_M, UNITS, WORDS)
            odd_total = e + f + g + h
            pair = _pair(word, plane, 0, BITS)
            part = _lower(pair)[None] * a[:, None] + _upper(pair)[None] * c[:, None]
            pair = _pair(word, next_plane, 2, BITS)
            part += _lower(pair)[None] * b[:, None] + _upper(pair)[None] * d[:, None]
            pair = _pair(word, plane, 1, BITS)
            odd = _lower(pair)[None] * e[:, None] + _upper(pair)[None] * g[:, None]
            pair = _pair(word, next_plane, 3, BITS)
            odd += _lower(pair)[None] * f[:, None] + _upper(pair)[None] * h[:, None]
            if GROUP == 16:
                sums += part * scale[None] + total[:, None] * shift[None]
                sums += odd * odd_scale[None] + odd_total[:, None] * odd_shift[None]
            else:
                sums += (part + odd) * scale[None] + (total + odd_total)[:, None] * shift[None]
    return tl.sum(tl.sum(sums, axis=3), axis=2), tl.sum(tl.sum(squares, axis=2), axis=1)


@triton.jit
def _apart(
    values, weight, norm, squares, BLOCK_M: tl.constexpr, UNITS: tl.constexpr, WORDS: tl.constexpr
):  # fmt: skip
    """Takes values (M, U, words, 4) apart, times the norm's weight; adds their squares."""
    wide = values.to(tl.float32)
    if norm is not None:
        squares += tl.sum(wide * wide, axis=3)
        wide *= weight.to(tl.float32)
    even, odd = tl.split(tl.reshape(wide, (BLOCK_M, UNITS, WORDS, 2, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d, squares


@triton.jit
def _grid(number, factor, offset, offset_factor, scale_units, offsets, offset_units, BASE: tl.constexpr):
    """Scales of groups, and what is added to their numbers, as they were read: a byte comes with a factor."""
    scale = number.to(tl.float32)
    if scale_units is not None:
        scale *= factor.to(tl.float32)
    shift = -BASE * scale
    if offsets is not None:
        more = offset.to(tl.float32)
        if offset_units is not None:
            more *= offset_factor.to(tl.float32)
        shift += more
    return scale[:, :, None], shift[:, :, None]


@triton.jit
def _byte(word, AT: tl.constexpr):
    """1 and 256ths: a byte of a word as the highest bits below 1 of a float32."""
    return ((_moved(word, AT, 15) & 0x7F8000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _pair(word, plane, STEP: tl.constexpr, BITS: tl.constexpr):
    """Two codes as bfloat16 of 128 and more."""
    pair = ((word >> (4 * STEP)) & 0x000F000F) | 0x43004300
    if BITS == 5:
        pair |= _moved(plane, STEP, 4) & 0x00100010
    if BITS == 6:
        pair |= _moved(plane, 2 * (STEP % 2), 4) & 0x00300030
    return pair


@triton.jit
def _lower(pair):
    return (pair << 16).to(tl.float32, bitcast=True)


@triton.jit
def _upper(pair):
    return (pair & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def _number(numbers, units, at, mask, GROUP: tl.constexpr):
    """Reads scales or offsets of groups, times their units where they are bytes."""
    number = tl.load(numbers + at, mask=mask, other=0).to(tl.float32)
    if units is not None:
        number *= tl.load(units + at // (256 // GROUP), mask=mask, other=0.0).to(tl.float32)
    return number


@triton.jit
def _high_bit(byte, BITS: tl.constexpr):
    """Where the bits above 4 of column `byte` of 16 begin in their word; those of column `byte` + 16 follow."""
    place = 4 * (byte // 4) + 16 * (byte % 4 // 2)
    if BITS == 5:
        place += 2 * (byte % 2)
    return place


@triton.jit(do_not_specialize=["outputs"])
def _row_linear(
    x, codes, high, scales, offsets, scale_units, offset_units, bias, norm, residual, out, outputs, units, eps,
    GROUP: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, BLOCK_N: tl.constexpr, UNITS: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """Computes BLOCK_N outputs of one row; with GATE, of the first half times those of the second."""
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = output < outputs
    sums, squares = _row_product(
        x, codes, high, scales, offsets, scale_units, offset_units, norm, output.to(tl.int64), there, units, GROUP,
        BITS, ZERO, BLOCK_N, UNITS
    )  # fmt: skip
    factor = 1.0
    if norm is not None:
        factor = 1.0 / tl.sqrt(squares / (units * 32) + eps)
        sums *= factor
    if GATE > 0:
        up, squares = _row_product(
            x, codes, high, scales, offsets, scale_units, offset_units, norm, (output + outputs).to(tl.int64), there,
            units, GROUP, BITS, ZERO,
            BLOCK_N, UNITS,
        )  # fmt: skip
        sums = _gated(sums, GATE) * (up * factor)
    if bias is not None:
        sums += tl.load(bias + output, mask=there, other=0.0).to(tl.float32)
    if residual is not None:
        sums += tl.load(residual + output, mask=there, other=0.0).to(tl.float32)
    tl.store(out + output, sums.to(out.dtype.element_ty), mask=there)


@triton.jit
def _row_product(
    x, codes, high, scales, offsets, scale_units, offset_units, norm, output, there, units,
    GROUP: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, BLOCK_N: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Multiplies the row, times the norm's weight where there is one, with BLOCK_N rows of the matrix: (BLOCK_N,)
    float32, and the sum of the row's squares.

    A thread takes all words of 32 columns of a matrix row, in one load of 16 bytes. A code becomes a number without a
    conversion: as the low bits of a bfloat16 between 128 and 256, two at a time, which with zeros behind are float32;
    8-bit ones as the bits below 1 of a float32. What is too much goes into the offset.
    """
    WORDS: tl.constexpr = 8 if BITS == 8 else 4
    BASE: tl.constexpr = 384 if BITS == 8 else 128 + ZERO
    lane = tl.arange(0, WORDS)
    sums = tl.zeros((BLOCK_N, UNITS, WORDS), tl.float32)
    squares = tl.zeros((UNITS, WORDS), tl.float32)
    for start in range(0, units, UNITS):
        unit = start + tl.arange(0, UNITS)
        inside = unit < units
        both = there[:, None] & inside[None, :]
        place = output[:, None] * units + unit[None, :]
        word = tl.load(codes + place[:, :, None] * WORDS + lane[None, None, :], mask=both[:, :, None], other=0)
        if GROUP == 16:
            scale, shift = _read_grid(scales, offsets, scale_units, offset_units, place * 2, both, GROUP, BASE)
            odd_scale, odd_shift = _read_grid(
                scales, offsets, scale_units, offset_units, place * 2 + 1, both, GROUP, BASE
            )
        else:
            grid = output[:, None] * (units // (GROUP // 32)) + (unit // (GROUP // 32))[None, :]
            scale, shift = _read_grid(scales, offsets, scale_units, offset_units, grid, both, GROUP, BASE)
            odd_scale, odd_shift = scale, shift
        first = unit[:, None] * 32 + lane[None, :] * 4
        if BITS == 8:
            if GROUP == 16:  # words 0 to 3 are of one group, 4 to 7 of the next
                upper = (lane >= 4)[None, None, :]
                scale = tl.where(upper, odd_scale, scale)
                shift = tl.where(upper, odd_shift, shift)
            word ^= -0x7F7F7F80  # 0x80 in each byte: from -128 .. 127 to 0 .. 255
            for byte in tl.static_range(4):
                values, squares = _row_inputs(x, norm, first + byte, inside, squares)
                sums += (_byte(word, 8 * byte) * (scale * 256.0) + shift) * values[None]
        else:
            plane = word  # what codes of more than 4 bits have above those
            if BITS == 5:
                plane = tl.load(high + place, mask=both, other=0)[:, :, None] >> (4 * lane)[None, None, :]
            for step in tl.static_range(4):
                if BITS == 6 and step % 2 == 0:
                    plane = tl.load(high + place * 2 + step // 2, mask=both, other=0)[:, :, None]
                    plane = plane >> (4 * lane)[None, None, :]
                pair = _pair(word, plane, step, BITS)
                one_scale, one_shift = scale, shift
                if step % 2 == 1:
                    one_scale, one_shift = odd_scale, odd_shift
                at = first + (step // 2 + 16 * (step % 2))
                values, squares = _row_inputs(x, norm, at, inside, squares)
                weight = _lower(pair) * one_scale + one_shift
                sums += weight * values[None]
                values, squares = _row_inputs(x, norm, at + 2, inside, squares)
                weight = _upper(pair) * one_scale + one_shift
                sums += weight * values[None]
    return tl.sum(tl.sum(sums, axis=2), axis=1), tl.sum(tl.sum(squares, axis=1), axis=0)


@triton.jit
def _read_grid(
    scales, offsets, scale_units, offset_units, at, mask, GROUP: tl.constexpr, BASE: tl.constexpr
):  # fmt: skip
    scale = _number(scales, scale_units, at, mask, GROUP)
    shift = -BASE * scale
    if offsets is not None:
        shift += _number(offsets, offset_units, at, mask, GROUP)
    return scale[:, :, None], shift[:, :, None]


@triton.jit
def _row_inputs(x, norm, at, inside, squares):
    values = tl.load(x + at, mask=inside[:, None], other=0.0).to(tl.float32)
    if norm is not None:
        squares += values * values
        values *= tl.load(norm + at, mask=inside[:, None], other=0.0).to(tl.float32)
    return values, squares


@triton.jit
def _moved(word, FROM: tl.constexpr, TO: tl.constexpr):
    """Shifts bit FROM to bit TO."""
    return word >> (FROM - TO) if FROM > TO else word << (TO - FROM)


@triton.jit(do_not_specialize=["rows", "many"])
def _widen(
    codes, high, scales, offsets, scale_units, offset_units, out, ids, x, weight, normed, rows, columns, groups, many,
    stride_x, eps, GROUP: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Widens BLOCK columns (axis 1) of BLOCK_M rows (axis 0); the first `many` programs of axis 0 norm a row of x
    each."""
    program = tl.program_id(0)
    if program >= many:
        row = ((program - many) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        to = out + row[:, None] * columns + column[None, :]
        if ids is not None:
            row = tl.load(ids + row, mask=row < rows, other=0).to(tl.int64)
        row = row[:, None]
        if BITS == 8:
            code = tl.load(codes + row * columns + column[None, :], mask=inside, other=0).to(tl.int32)
        else:
            unit, byte, half = column // 32, column % 16, column % 32 // 16
            at = codes + row * (columns // 2) + (unit * 16 + byte)[None, :]
            code = (tl.load(at, mask=inside, other=0).to(tl.int32) >> (4 * half)[None, :]) & 15
            if BITS > 4:
                word = unit
                if BITS == 6:
                    word = unit * 2 + byte % 2
                bits = tl.load(high + row * (columns // 32 * (BITS - 4)) + word[None, :], mask=inside, other=0)
                bits = bits >> (_high_bit(byte, BITS) + half * (BITS - 4))[None, :]
                code |= (bits & (BITS * 2 - 9)) << 4
            code -= ZERO
        at = row * groups + (column // GROUP)[None, :]
        wide = code.to(tl.float32) * _number(scales, scale_units, at, inside, GROUP)
        if offsets is not None:
            wide += _number(offsets, offset_units, at, inside, GROUP)
        tl.store(to, wide.to(out.dtype.element_ty), mask=inside)
    elif tl.program_id(1) == 0:  # noqa: SIM102 (whether there is an x is known when it is compiled)
        if x is not None:
            row = program.to(tl.int64)
            norm_row(x + row * stride_x, weight, normed + row * columns, columns, eps, WIDTH)
