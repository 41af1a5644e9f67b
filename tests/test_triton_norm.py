"""RMSNorm, gated activations and quantized products against their float64 definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimemo.kernels import reference
from minimemo.kernels import triton_matmul as matmul
from minimemo.kernels import triton_norm as kernels
from tests.helpers import assert_close
from tests.triton_device import DEVICE, DTYPES, SUMS, random


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (17, 33), (0, 16), (3, 5, 97), (2, 1025)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = random(*shape, dtype=dtype) * 3, random(shape[-1], dtype=dtype, seed=1)
    assert_close(kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x.double(), weight.double(), 1e-6))
    residual = random(*shape, dtype=dtype, seed=2)
    found, total = kernels.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    assert_close(found, reference.rms_norm(total.double(), weight.double(), 1e-6))


def test_rms_norm_of_a_view() -> None:
    """Heads cut out of a fused product: rows that do not follow each other."""
    x, weight = random(9, 4, 24)[:, 1:3, :16], random(16, seed=1)
    assert_close(kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x.double(), weight.double(), 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_mlp_activation(activation: str, dtype: torch.dtype) -> None:
    for shape in ((17, 66), (0, 8), (1, 2, 2050)):
        x = random(*shape, dtype=dtype) * 4
        found = kernels.gated_mlp_activation(x, activation)
        assert_close(
            found,
            reference.gated_mlp_activation(x.double(), activation),
            within=SUMS if x.dtype == torch.float32 else None,
        )
    x = torch.tensor([[-60000.0, -90.0, 0.0, 90.0, 60000.0, 1, 1, 1, 1, 1]], device=DEVICE)
    assert kernels.gated_mlp_activation(x, activation).tolist() == [[0.0, 0.0, 0.0, 90.0, 60000.0]]


def _matrix(outputs: int, columns: int, group: int, bits: int, offsets: bool) -> tuple[matmul.QuantizedMatrix, Tensor]:
    """The matrix, and its values in float64."""
    generator = torch.Generator().manual_seed(outputs + columns)
    low, high = (-127, 128) if bits == 8 else (0, 16)
    codes = torch.randint(low, high, (outputs, columns), generator=generator, dtype=torch.int8).to(DEVICE)
    scales = random(outputs, columns // group, dtype=torch.float16, seed=3)
    offset = random(outputs, columns // group, dtype=torch.float16, seed=4) if offsets else None
    wide = codes.double() * scales.double().repeat_interleave(group, 1)
    if offset is not None:
        wide += offset.double().repeat_interleave(group, 1)
    return matmul.quantized_matrix(codes, scales, offset, bits=bits), wide


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "outputs", "columns", "group", "offsets"),
    [(1, 17, 64, 32, True), (3, 33, 192, 64, False), (16, 5, 256, 128, True), (0, 4, 32, 32, False)],
)
def test_quantized_matmul(
    rows: int, outputs: int, columns: int, group: int, offsets: bool, dtype: torch.dtype, bits: int
) -> None:
    matrix, wide = _matrix(outputs, columns, group, bits, offsets)
    x, bias = random(rows, columns, dtype=dtype, seed=1), random(outputs, dtype=dtype, seed=2)
    within = SUMS if dtype == torch.float32 else None
    assert matrix.shape == (outputs, columns)
    assert_close(matmul.quantized_matmul(x, matrix, bias), x.double() @ wide.T + bias.double(), within=within)
    assert_close(matmul.quantized_matmul(x, matrix), x.double() @ wide.T, within=within)


def test_signed_codes_of_4_bits() -> None:
    codes = (torch.arange(64, dtype=torch.int8, device=DEVICE) % 16 - 8).expand(3, 64)
    scales = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float16, device=DEVICE)
    x = random(2, 64)
    found = matmul.quantized_matmul(x, matmul.quantized_matrix(codes, scales, bits=4))
    assert_close(found, x.double() @ (codes.double() * scales.double()).T, within=SUMS)


def test_launch_checks_name_the_offender() -> None:
    x = torch.zeros(2, 8)
    for call, message in (
        (lambda: kernels.rms_norm(x, torch.ones(7), 1e-6), r"weight: shape \(7,\), expected \(8\)"),
        (lambda: kernels.rms_norm(x, torch.ones(8).half(), 1e-6), "weight: torch.float16, expected torch.float32"),
        (lambda: kernels.rms_norm(x.T, torch.ones(2), 1e-6), "x: shape .* expected rows without gaps"),
        (lambda: kernels.rms_norm(torch.zeros(1, 20000), torch.ones(20000), 1e-6), "x: 20000 columns"),
        (lambda: kernels.add_rms_norm(x, x[:1], torch.ones(8), 1e-6), "residual: shape"),
        (lambda: kernels.gated_mlp_activation(x, "relu"), "activation must be silu or gelu_tanh, got 'relu'"),
        (lambda: kernels.gated_mlp_activation(x[:, :7], "silu"), "gate_up: shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    codes, scales = torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 2).half()
    matrix = matmul.quantized_matrix(codes, scales, bits=8)
    for call, message in (
        (lambda: matmul.quantized_matrix(codes, scales[:, :1].repeat(1, 3), bits=8), "scales: 3 groups of 64 columns"),
        (lambda: matmul.quantized_matrix(codes + 16, scales, bits=4), "codes: from 16 to 16"),
        (lambda: matmul.quantized_matrix(codes, scales, scales[:3], bits=8), "offsets: shape"),
        (lambda: matmul.quantized_matrix(codes, scales, bits=5), "bits: 5"),
        (lambda: matmul.quantized_matmul(torch.zeros(17, 64), matrix), "x: 17 rows, expected at most 16"),
        (lambda: matmul.quantized_matmul(torch.zeros(2, 63), matrix), r"x: shape \(2, 63\), expected \(any, 64\)"),
        (lambda: matmul.quantized_matmul(torch.zeros(2, 64), matrix, torch.zeros(4).half()), "bias: torch.float16"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
