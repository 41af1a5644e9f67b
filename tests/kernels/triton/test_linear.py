"""Products with quantized matrices against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minimemo.kernels import linear, triton
from minimemo.kernels.formats import QuantizedMatrix, bits_for, joined, quantized_matrix, with_units
from minimemo.kernels.triton.linear import quantized_linear, widen, widen_and_norm
from tests.helpers import assert_close
from tests.kernels.triton.device import DEVICE, DTYPES, Draw, assert_sums, fuzz, random


def _matrix(outputs: int, columns: int, group: int, bits: int, offsets: bool) -> tuple[QuantizedMatrix, Tensor]:
    """The matrix, and its values in float64."""
    generator = torch.Generator().manual_seed(outputs + columns)
    low, high = (-127, 128) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1)) if bits > 4 else (0, 16)
    codes = torch.randint(low, high, (outputs, columns), generator=generator, dtype=torch.int8).to(DEVICE)
    scales = random(outputs, columns // group, dtype=torch.float16, seed=3)
    offset = random(outputs, columns // group, dtype=torch.float16, seed=4) if offsets else None
    wide = codes.double() * scales.double().repeat_interleave(group, 1)
    if offset is not None:
        wide += offset.double().repeat_interleave(group, 1)
    return quantized_matrix(codes, scales, offset, bits=bits), wide


# Rows, outputs, columns, columns of a group, whether groups have an offset, bits, dtype.
PRODUCTS = [
    *((1, 17, 96, group, group == 32, bits) for bits in (8, 6, 5, 4) for group in (16, 32)),
    *((3, 9, 64, 16, bits == 6, bits) for bits in (8, 6, 5)),
    (1, 4, 1152, 64, True, 4), (3, 33, 192, 64, False, 4), (3, 17, 96, 32, True, 4), (16, 5, 256, 128, True, 8),
    (2, 5, 128, 128, False, 6), (9, 5, 64, 16, False, 8), (0, 4, 32, 32, False, 8),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "outputs", "columns", "group", "offsets", "bits"), PRODUCTS)
def test_quantized_linear(
    rows: int, outputs: int, columns: int, group: int, offsets: bool, bits: int, dtype: torch.dtype
) -> None:
    matrix, wide = _matrix(outputs, columns, group, bits, offsets)
    x, bias = random(rows, columns, dtype=dtype, seed=1), random(outputs, dtype=dtype, seed=2)
    assert matrix.shape == (outputs, columns)
    assert_sums(quantized_linear(x, matrix, bias), x.double() @ wide.T + bias.double())
    assert_sums(quantized_linear(x, matrix), x.double() @ wide.T)


@fuzz
def test_products_at_random(draw: Draw) -> None:
    group, bits, dtype = draw.one_of(16, 32, 64, 128), draw.one_of(8, 6, 5, 4), draw.one_of(*DTYPES)
    rows, outputs, columns = draw.whole(0, 16), draw.whole(1, 70), max(group, 32) * draw.whole(1, 4)
    half = 2 ** (bits - 1)
    low, high = draw.one_of((0, 2 * half), (-half, half)) if bits < 8 else (-half, half)
    codes = torch.randint(low, high, (outputs, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    scales = draw.tensor(outputs, columns // group, dtype=torch.float16)
    offsets = draw.tensor(outputs, columns // group, dtype=torch.float16) if draw.one_of(True, False) else None
    matrix = quantized_matrix(codes.to(DEVICE), scales, offsets, bits=bits)
    x = draw.tensor(rows, columns, dtype=dtype)
    bias = draw.tensor(outputs, dtype=dtype) if draw.one_of(True, False) else None
    expected = x.double() @ matrix.widened(torch.float64).T + (0 if bias is None else bias.double())
    assert_sums(quantized_linear(x, matrix, bias), expected)


def test_signed_codes_of_4_bits() -> None:
    codes = (torch.arange(64, dtype=torch.int8, device=DEVICE) % 16 - 8).expand(3, 64)
    scales = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float16, device=DEVICE)
    x = random(2, 64)
    found = quantized_linear(x, quantized_matrix(codes, scales, bits=4))
    # what is added to all codes of a word, and taken off again, is many times as large as they are
    assert_close(found, x.double() @ (codes.double() * scales.double()).T, "products", 2e-5)


def test_launch_checks_name_the_offender() -> None:
    codes, scales = torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 2).half()
    matrix = quantized_matrix(codes, scales, bits=8)
    for call, message in (
        (lambda: quantized_matrix(codes, scales[:, :1].repeat(1, 3), bits=8), "scales: 3 groups of 64 columns"),
        (lambda: quantized_matrix(codes + 16, scales, bits=4), "codes: from 16 to 16"),
        (lambda: quantized_matrix(codes - 9, scales, bits=4), "codes: from -9 to -9"),
        (lambda: quantized_matrix(codes, scales, scales[:3], bits=8), "offsets: shape"),
        (lambda: quantized_matrix(codes, scales, bits=7), "bits: 7"),
        (lambda: quantized_matrix(codes[:, :48], scales[:, :1].repeat(1, 3), bits=5), "codes: 48 columns"),
        (lambda: quantized_linear(torch.zeros(17, 64), matrix), "x: 17 rows, expected at most 16"),
        (lambda: quantized_linear(torch.zeros(2, 63), matrix), r"x: shape \(2, 63\), expected \(any, 64\)"),
        (lambda: quantized_linear(torch.zeros(2, 64), matrix, torch.zeros(4).half()), "bias: torch.float16"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group", "rows"), [(6, 16, 1), (4, 32, 1), (5, 32, 3)])
def test_what_stands_around_a_product_goes_with_it(bits: int, group: int, rows: int, dtype: torch.dtype) -> None:
    """RMSNorm before, the residual or the gated activation after, as apart."""
    matrix, _ = _matrix(34, 96, group, bits, offsets=bits == 4)
    matrix.scales.mul_(0.02)
    wide = matrix.widened(torch.float64)
    x, weight = random(rows, 96, dtype=dtype, seed=1), random(96, dtype=dtype, seed=2)
    normed = F.rms_norm(x.double(), (96,), weight.double(), 1e-6).to(dtype).double()
    residual = random(rows, 34, dtype=dtype, seed=3)
    found = quantized_linear(x, matrix, norm=(weight, 1e-6), residual=residual)
    near = 2e-5 if dtype == torch.float32 else None
    assert_close(found, normed @ wide.T + residual.double(), "normed and added", near)
    functions = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
    for gate, act in functions.items():
        first, second = (normed @ wide.T).chunk(2, dim=1)
        found = quantized_linear(x, matrix, norm=(weight, 1e-6), gate=gate)
        assert_close(found, act(first) * second, gate, near)


@pytest.mark.parametrize("rows", [2, 20])
def test_parts_side_by_side(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of several kinds fill their columns of one result, for few rows and, widened, for many."""
    monkeypatch.setattr(triton, "DEVICE", DEVICE)
    (first, a), (second, b) = _matrix(17, 64, 32, 4, offsets=True), _matrix(9, 64, 16, 8, offsets=False)
    x, bias, wide = random(rows, 64, seed=1), random(26, seed=2), torch.cat((a, b))
    assert_sums(linear.quantized_linear(x, [first, second], bias), x.double() @ wide.T + bias.double())
    residual = random(rows, 26, seed=3)
    expected = x.double() @ wide.T + residual.double()
    assert_sums(linear.quantized_linear(x, [first, second], residual=residual.clone()), expected)


@pytest.mark.parametrize(
    ("bits", "group", "offsets"), [(8, 16, False), (4, 32, True), (4, 64, False), (5, 32, False), (6, 16, True)]
)
def test_widen(bits: int, group: int, offsets: bool) -> None:
    matrix, wide = _matrix(5, 1088, group, bits, offsets) if group < 64 else _matrix(5, 1152, group, bits, offsets)
    assert_close(widen(matrix, torch.float32), wide, "widened", 1e-6)


def test_widened_rows_and_a_norm_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "DEVICE", DEVICE)
    matrix, wide = _matrix(5, 1088, 32, 4, offsets=True)
    ids = torch.tensor([4, 0, 4], dtype=torch.int32, device=DEVICE)
    assert_close(linear.widened_rows(matrix, ids, torch.float32), wide[ids.long()], "rows", 1e-6)
    x, weight = random(18, 1088, seed=1), random(1088, seed=2)
    found, normed = widen_and_norm(matrix, x, weight, 1e-6)
    assert_close(found, wide, "widened", 1e-6)
    assert_close(normed, F.rms_norm(x.double(), (1088,), weight.double(), 1e-6), "normed")


def test_halves_may_give_whole_numbers() -> None:
    """Of logits nothing is lost by rounding them to the dtype of what flows."""
    matrix, wide = _matrix(9, 64, 32, 8, offsets=False)
    x = random(2, 64, dtype=torch.float16, seed=1)
    assert_sums(quantized_linear(x, matrix, dtype=torch.float32), x.double() @ wide.T)


@pytest.mark.parametrize(("least", "most", "bits"), [(0, 15, 4), (-8, 7, 4), (-16, 15, 5), (0, 31, 5), (-32, 31, 6)])
def test_a_code_takes_as_many_bits_as_it_needs(least: int, most: int, bits: int) -> None:
    codes = torch.arange(128, dtype=torch.int8).view(2, 64) % (most - least + 1) + least
    assert bits_for(codes) == bits and bits_for(codes * 2) != bits and bits_for(codes[:, :40]) == 8
    scales = torch.ones(2, 2, dtype=torch.float16)
    matrix = quantized_matrix(codes, scales, bits=bits)
    assert torch.equal(matrix.widened(torch.float32), codes.float()) and matrix.nbytes == 16 * bits + 8
    lower = joined([matrix, quantized_matrix(codes, scales, bits=bits)])
    assert len(lower) == 1 and torch.equal(lower[0].widened(torch.float32), codes.float().repeat(2, 1))


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (6, 16)])
def test_scales_of_a_byte(bits: int, group: int) -> None:
    """As K-quants have them: whole numbers times a unit of 256 columns, found again in their products."""
    generator, shape = torch.Generator().manual_seed(2), (9, 512 // group)
    whole = torch.randint(1, 64, shape, generator=generator).float()
    units = random(9, 2, dtype=torch.float16, seed=7).cpu().float().abs().repeat_interleave(256 // group, 1)
    scales, offsets = units * whole, -units * whole.flip(1) if bits == 4 else None
    scales[0, : 256 // group] = 0
    codes = torch.randint(0, 2**bits, (9, 512), generator=generator, dtype=torch.int8)
    halves = None if offsets is None else offsets.half()
    matrix = quantized_matrix(codes, scales.half(), halves, bits=bits)
    packed = with_units(matrix, scales, offsets)
    assert packed.scales.dtype == torch.int8 and packed.nbytes < matrix.nbytes
    wide = codes.double() * scales.double().repeat_interleave(group, 1)
    if offsets is not None:
        wide += offsets.double().repeat_interleave(group, 1)
    assert_close(packed.widened(torch.float64), wide, "widened", 1e-6)
    moved = packed._changed(lambda x: x.to(DEVICE))
    assert_close(widen(moved, torch.float32).cpu(), wide, "widened on the device", 1e-6)
    for rows in (1, 2):
        x = random(rows, 512, seed=1)
        assert_sums(quantized_linear(x, moved).cpu(), x.cpu().double() @ wide.T)
    assert with_units(matrix, scales + 1e-3, offsets) is matrix  # multiples of nothing
