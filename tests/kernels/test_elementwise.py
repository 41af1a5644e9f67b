"""What lies between the products of a decoder, against its float64 definition, on odd shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimemo import kernels
from minimemo.kernels import elementwise, native
from tests.helpers import assert_close
from tests.kernels import reference

DTYPES = [torch.float32, torch.bfloat16]


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (17, 33), (0, 16), (3, 5, 97)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = _random(*shape, dtype=dtype) * 3, _random(shape[-1], dtype=dtype, seed=1)
    assert_close(kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x.double(), weight.double(), 1e-6))


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_norms_of_a_few_rows_are_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch operation would wake a team of threads in the middle of a decoding step."""
    served = []
    monkeypatch.setattr(elementwise, "_native_rms_norm", lambda x, weight, eps: served.append(tuple(x.shape)) or x)
    weight = torch.ones(8)
    for shape, dtype in (((3, 8), torch.float32), ((16, 8), torch.float32), ((17, 8), torch.float32)):
        kernels.rms_norm(torch.ones(shape, dtype=dtype), weight.to(dtype), 1e-6)
    kernels.rms_norm(torch.ones(3, 8, dtype=torch.bfloat16), weight.bfloat16(), 1e-6)
    assert served == [(3, 8), (16, 8)]


def test_rope_store() -> None:
    keys, values, angles = (_random(*shape, dtype=torch.float32) for shape in ((2, 5, 8), (2, 5, 8), (5, 8)))
    caches = torch.full((2, 2, 9, 8), 7.0).unbind(0)
    kernels.rope_store(keys, values, angles.cos(), angles.sin(), *caches, 3)
    assert torch.equal(caches[0][:, 3:8], kernels.apply_rope(keys, angles.cos(), angles.sin()))
    assert torch.equal(caches[1][:, 3:8], values)
    assert all(bool((cache[:, [0, 1, 2, 8]] == 7).all()) for cache in caches)
    with pytest.raises(ValueError, match="start: 5 with 5 tokens in a cache of 9"):
        kernels.rope_store(keys, values, angles.cos(), angles.sin(), *caches, 5)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_store_gives_torchs_bits(dtype: torch.dtype, stored: torch.dtype) -> None:
    """What is decoded comes as a part of a block, what is exact in the cache's dtype."""
    keys, values = (_random(3, 9, 32, dtype=dtype, seed=seed)[:, 2:] for seed in (1, 2))
    angles = _random(7, 32, dtype=torch.float32)
    caches = torch.zeros(2, 3, 11, 32, dtype=stored).unbind(0)
    kernels.rope_store(keys, values, angles.cos(), angles.sin(), *caches, 4)
    wide = kernels.apply_rope(keys.float(), angles.cos(), angles.sin())
    assert torch.equal(caches[0][:, 4:], wide.to(stored)) and torch.equal(caches[1][:, 4:], values.to(stored))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_mlp_activation(activation: str, dtype: torch.dtype) -> None:
    x = _random(17, 66, dtype=dtype) * 4
    assert_close(kernels.gated_mlp_activation(x, activation), reference.gated_mlp_activation(x.double(), activation))
    with pytest.raises(ValueError, match="activation must be silu or gelu_tanh, got 'relu'"):
        kernels.gated_mlp_activation(x, "relu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 17])
def test_apply_rope(n: int, dtype: torch.dtype) -> None:
    x, angles = _random(3, n, 64, dtype=dtype), _random(n, 32, dtype=torch.float32) * 9
    angles = torch.cat((angles, angles), dim=-1)
    found = kernels.apply_rope(x, angles.cos(), angles.sin())
    assert_close(found, reference.apply_rope(x.double(), angles.cos().double(), angles.sin().double()))
    if n > 1:  # bits of a row do not depend on its company: exact memories rely on it
        alone = kernels.apply_rope(x[:, 1:2], angles[1:2].cos(), angles[1:2].sin())
        assert torch.equal(alone[:, 0], found[:, 1])
