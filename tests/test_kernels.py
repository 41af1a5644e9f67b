"""Every operation of minimemo.kernels against its float64 definition, on odd shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from minimemo import kernels
from minimemo.kernels import native, reference, torch_ops
from tests.helpers import BFLOAT16_SUMS, assert_close

DTYPES = [torch.float32, torch.bfloat16]
_LSE = {torch.float32: None, torch.bfloat16: BFLOAT16_SUMS}


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
    monkeypatch.setattr(native, "rms_norm", lambda x, weight, eps: served.append(tuple(x.shape)) or x)
    weight = torch.ones(8)
    for shape, dtype in (((3, 8), torch.float32), ((16, 8), torch.float32), ((17, 8), torch.float32)):
        kernels.rms_norm(torch.ones(shape, dtype=dtype), weight.to(dtype), 1e-6)
    kernels.rms_norm(torch.ones(3, 8, dtype=torch.bfloat16), weight.bfloat16(), 1e-6)
    assert served == [(3, 8), (16, 8)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    x, residual, weight = (_random(*shape, dtype=dtype) for shape in ((5, 33), (5, 33), (33,)))
    found, total = kernels.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    assert_close(found, reference.rms_norm(total.double(), weight.double(), 1e-6))


def test_rope_store() -> None:
    keys, values, angles = (_random(*shape, dtype=torch.float32) for shape in ((2, 5, 8), (2, 5, 8), (5, 8)))
    caches = torch.full((2, 2, 9, 8), 7.0).unbind(0)
    kernels.rope_store(keys, values, angles.cos(), angles.sin(), *caches, 3)
    assert torch.equal(caches[0][:, 3:8], kernels.apply_rope(keys, angles.cos(), angles.sin()))
    assert torch.equal(caches[1][:, 3:8], values)
    assert all(bool((cache[:, [0, 1, 2, 8]] == 7).all()) for cache in caches)
    with pytest.raises(ValueError, match="start: 5 with 5 tokens in a cache of 9"):
        kernels.rope_store(keys, values, angles.cos(), angles.sin(), *caches, 5)


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (7, 1), (8, 1)])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 97), (17, 17), (33, 97), (5, 600)])
def test_causal_attention(heads: int, kv_heads: int, rows: int, tokens: int, dtype: torch.dtype) -> None:
    q = _random(heads, rows, 32, dtype=dtype)
    k, v = _random(kv_heads, tokens, 32, dtype=dtype, seed=1), _random(kv_heads, tokens, 32, dtype=dtype, seed=2)
    positions = torch.arange(40 + tokens - rows, 40 + tokens)
    for window in (None, 1, 16, 1000):
        arguments = dict(scale=0.2, query_positions=positions, key_start=40, window=window)
        out, lse = torch_ops.attention(q, k, v, **arguments)
        expected = reference.attention(q.double(), k.double(), v.double(), **arguments)
        assert_close(out, expected[0], f"out, window {window}")
        assert_close(lse, expected[1], f"lse, window {window}", _LSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 97])
def test_unmasked_attention_and_merge(tokens: int, dtype: torch.dtype) -> None:
    """Two disjoint key sets, one of them possibly empty, merge into attention over their union."""
    q = _random(6, 5, 64, dtype=dtype)
    k, v = _random(2, 130, 64, dtype=dtype, seed=1), _random(2, 130, 64, dtype=dtype, seed=2)
    first = torch_ops.attention(q, k[:, :tokens], v[:, :tokens], scale=0.1)
    second = torch_ops.attention(q, k[:, tokens:], v[:, tokens:], scale=0.1)
    expected = reference.attention(q.double(), k.double(), v.double(), scale=0.1)
    for order in ((first, second), (second, first)):
        out, lse = torch_ops.merge_attention(*order[0], *order[1])
        assert_close(out, expected[0])
        assert_close(lse, expected[1], "lse", _LSE[dtype])


def test_a_window_that_sees_no_prefix_key_gives_nothing() -> None:
    """Rows past the window contribute zeros and -inf, so that merging leaves the tail's attention alone."""
    q, k = _random(2, 3, 16, dtype=torch.float32), _random(1, 10, 16, dtype=torch.float32)
    out, lse = torch_ops.attention(q, k, k, scale=1.0, query_positions=torch.tensor([11, 12, 30]), window=4)
    assert torch.equal(out[:, 2], torch.zeros(2, 16)) and bool((lse[:, 2] == float("-inf")).all())
    expected = reference.attention(
        q.double(), k.double(), k.double(), scale=1.0, query_positions=torch.tensor([11, 12, 30]), window=4
    )
    assert_close(out, expected[0])
    assert_close(lse, expected[1])
    merged, _ = torch_ops.merge_attention(out, lse, torch.ones_like(out), torch.zeros_like(lse))
    assert torch.equal(merged[:, 2], torch.ones(2, 16))


def test_launch_checks_name_the_offender() -> None:
    q, k = torch.zeros(4, 2, 8), torch.zeros(3, 5, 8)
    with pytest.raises(ValueError, match="do not fit"):
        torch_ops.attention(q, k, k, scale=1.0)
    k = torch.zeros(2, 5, 8)
    with pytest.raises(ValueError, match="dtypes differ"):
        torch_ops.attention(q, k, k.double(), scale=1.0)
    with pytest.raises(ValueError, match="2 queries but query_positions"):
        torch_ops.attention(q, k, k, scale=1.0, query_positions=torch.arange(3))
    with pytest.raises(ValueError, match="last key positions"):
        torch_ops.attention(q, k, k, scale=1.0, query_positions=torch.tensor([0, 1]))


def test_kernels_import_nothing_of_minimemo() -> None:
    for path in Path(reference.__file__).parent.glob("*.py"):
        assert "minimemo." not in path.read_text(encoding="utf-8").split('"""', 2)[2], path
