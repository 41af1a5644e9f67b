"""RMSNorm and gated activations against their float64 definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimemo.kernels.triton import elementwise as kernels
from minimemo.kernels.triton import rope
from tests.helpers import assert_close
from tests.kernels import reference
from tests.kernels.triton.device import DEVICE, DTYPES, Draw, assert_sums, fuzz, random


def _check_norm(x: Tensor, weight: Tensor) -> None:
    assert_close(kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x.double(), weight.double(), 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (17, 33), (0, 16), (3, 5, 97), (2, 1025)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _check_norm(random(*shape, dtype=dtype) * 3, random(shape[-1], dtype=dtype, seed=1))


@fuzz
def test_norms_at_random(draw: Draw) -> None:
    shape, dtype = (draw.whole(0, 5), draw.whole(1, 4), draw.whole(1, 300)), draw.one_of(*DTYPES)
    _check_norm(*(draw.tensor(*size, dtype=dtype) for size in (shape, shape[-1:])))


def test_rms_norm_of_a_view() -> None:
    """Heads cut out of a fused product: rows that do not follow each other."""
    _check_norm(random(9, 4, 24)[:, 1:3, :16], random(16, seed=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_mlp_activation(activation: str, dtype: torch.dtype) -> None:
    for shape in ((17, 66), (0, 8), (1, 2, 2050)):
        x = random(*shape, dtype=dtype) * 4
        expected = reference.gated_mlp_activation(x.double(), activation)
        assert_sums(kernels.gated_mlp_activation(x, activation), expected)
    x = torch.tensor([[-60000.0, -90.0, 0.0, 90.0, 60000.0, 1, 1, 1, 1, 1]], device=DEVICE)
    assert kernels.gated_mlp_activation(x, activation).tolist() == [[0.0, 0.0, 0.0, 90.0, 60000.0]]


@fuzz
def test_gates_at_random(draw: Draw) -> None:
    activation = draw.one_of("silu", "gelu_tanh")
    x = draw.tensor(draw.whole(0, 9), 2 * draw.whole(1, 1100), dtype=draw.one_of(*DTYPES))
    expected = reference.gated_mlp_activation(x.double(), activation)
    assert_sums(kernels.gated_mlp_activation(x, activation), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: kernels.rms_norm(x, torch.ones(8), 1e-6),
        lambda x: kernels.gated_mlp_activation(x, "silu"),
        lambda x: rope.apply_rope(x[None], torch.ones(3, 8), torch.ones(3, 8)),
    ],
)
def test_other_dtypes_are_refused(call: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=str(dtype)):
        call(torch.ones(3, 8, dtype=dtype))


def test_launch_checks_name_the_offender() -> None:
    x = torch.zeros(2, 8)
    for call, message in (
        (lambda: kernels.rms_norm(x, torch.ones(7), 1e-6), r"weight: shape \(7,\), expected \(8\)"),
        (lambda: kernels.rms_norm(x, torch.ones(8).half(), 1e-6), "weight: torch.float16, expected torch.float32"),
        (lambda: kernels.rms_norm(x.T, torch.ones(2), 1e-6), "x: shape .* expected rows without gaps"),
        (lambda: kernels.rms_norm(torch.zeros(1, 20000), torch.ones(20000), 1e-6), "x: 20000 columns"),
        (lambda: kernels.gated_mlp_activation(x, "relu"), "activation must be silu or gelu_tanh, got 'relu'"),
        (lambda: kernels.gated_mlp_activation(x[:, :7], "silu"), "gate_up: shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
