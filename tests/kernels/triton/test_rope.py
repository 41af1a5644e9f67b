"""RoPE with the store into a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimemo.kernels import rope_qkv, rope_rows, torch_ops, triton
from minimemo.kernels.triton import rope as kernels
from tests.helpers import assert_close
from tests.kernels import reference
from tests.kernels.triton.device import DEVICE, DTYPES, Draw, fuzz, random, tables


def _check(keys: Tensor, values: Tensor, into: torch.dtype, start: int, rest: int) -> None:
    """Tokens around the new ones stay."""
    heads, n, dim = keys.shape
    cos, sin = tables(n, dim)
    caches = [torch.full((heads, start + n + rest, dim), 7.0, device=DEVICE, dtype=into) for _ in range(2)]
    kernels.store_launch(keys, values, cos, sin, *caches, start).run()
    new = slice(start, start + n)
    expected = reference.apply_rope(keys.double(), cos.double(), sin.double())
    as_near = torch.finfo(into).eps >= torch.finfo(keys.dtype).eps
    assert_close(caches[0][:, new], expected, "keys", None if as_near else 2e-3)
    assert_close(kernels.apply_rope(keys, cos, sin), expected, "apply_rope")
    if DEVICE == "cpu" and into == keys.dtype:
        assert torch.equal(caches[0][:, new], torch_ops.apply_rope(keys, cos, sin))
    assert torch.equal(caches[1][:, new], values.to(into))
    for cache in caches:
        assert bool((cache[:, :start] == 7).all()) and bool((cache[:, start + n :] == 7).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "dim"), [(0, 64), (1, 80), (17, 64), (33, 22)])
def test_rope_store(n: int, dim: int, dtype: torch.dtype) -> None:
    """Rotated as by torch_ops, to the last bit but for fused multiply-adds."""
    keys, values = random(n, 3, dim, dtype=dtype).transpose(0, 1), random(3, n, dim, dtype=dtype, seed=1)
    _check(keys, values, dtype, 11, 39 - n)


@fuzz
def test_rope_store_at_random(draw: Draw) -> None:
    shape, dtype = (draw.whole(1, 3), draw.whole(0, 40), 2 * draw.whole(1, 45)), draw.one_of(*DTYPES)
    keys, values = draw.tensor(*shape, dtype=dtype), draw.tensor(*shape, dtype=dtype)
    _check(keys, values, draw.one_of(*DTYPES), draw.whole(0, 9), draw.whole(0, 5))


def test_launch_checks_name_the_offender() -> None:
    x, table, cache = torch.zeros(2, 3, 8), torch.zeros(3, 8), torch.zeros(2, 10, 8)
    for change, message in (
        ({0: torch.zeros(2, 3, 7)}, "keys: head dim 7, expected an even number"),
        ({1: torch.zeros(2, 4, 8)}, r"values: shape \(2, 4, 8\), expected \(2, 3, 8\)"),
        ({2: table.half()}, "cos: torch.float16, expected torch.float32"),
        ({3: torch.zeros(4, 8)}, r"sin: shape \(4, 8\)"),
        ({4: torch.zeros(2, 10, 6)}, r"cache_keys: shape \(2, 10, 6\)"),
        ({6: 8}, "start: 8 with 3 tokens in a cache of 10"),
    ):
        arguments = dict(enumerate((x, x, table, table, cache, cache, 0))) | change
        with pytest.raises(ValueError, match=message):
            kernels.store_launch(*arguments.values())


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_keys_and_values_in_one_pass(dtype: torch.dtype, normed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As norm, RoPE and store apart, to the bit but for the norm; raw keys are those before RoPE."""
    monkeypatch.setattr(triton, "DEVICE", DEVICE)
    tokens, heads, kv_heads, dim = 19, 4, 2, 20
    qkv, (cos, sin) = random(tokens, heads + 2 * kv_heads, dim, dtype=dtype), tables(tokens, dim)
    norms = (random(dim, dtype=dtype, seed=1), random(dim, dtype=dtype, seed=2)) if normed else None
    out = torch.empty(heads, tokens, dim, dtype=dtype, device=DEVICE)
    keys, values = (torch.zeros(kv_heads, 30, dim, dtype=dtype, device=DEVICE) for _ in range(2))
    raw = torch.empty(kv_heads, tokens, dim, dtype=dtype, device=DEVICE)
    assert rope_qkv(qkv, norms, 1e-6, cos, sin, out, keys, values, 7, raw)
    q, k, v = qkv.transpose(0, 1).split((heads, kv_heads, kv_heads))
    if norms:
        q, k = (torch.nn.functional.rms_norm(x, (dim,), weight, 1e-6) for x, weight in zip((q, k), norms, strict=True))
    near = 1e-5 if dtype == torch.float32 else 2e-3
    for name, found, expected in (
        ("q", out, torch_ops.apply_rope(q, cos, sin)), ("raw", raw, k),
        ("k", keys[:, 7:26], torch_ops.apply_rope(k, cos, sin)),
    ):  # fmt: skip
        assert_close(found, expected.double(), name, near)
    assert torch.equal(values[:, 7:26], v) and not values[:, :7].any() and not keys[:, 26:].any()


def test_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token goes into a cache of its own, to the slot and turned to the position that the device tells."""
    monkeypatch.setattr(triton, "DEVICE", DEVICE)
    qkv, (cos, sin), norms = random(3, 8, 16), tables(50, 16), (random(16, seed=1), random(16, seed=2))
    positions, slots = ([40, 3, 17], [11, 3, 0])
    caches, alone = random(2, 3, 2, 12, 16, seed=3), random(2, 3, 2, 12, 16, seed=3)
    out, expected = (qkv.new_empty(4, 3, 16) for _ in range(2))
    numbers = torch.tensor([positions, slots], dtype=torch.int32, device=DEVICE)
    rope_rows(qkv, norms, 1e-6, (cos, sin), *numbers, out, caches[0, 0], caches[1, 0], 2 * 12 * 16)
    for row, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        one, at = slice(row, row + 1), slice(position, position + 1)
        args = qkv[one], norms, 1e-6, cos[at], sin[at], expected[:, one], alone[0, row], alone[1, row], slot
        assert rope_qkv(*args)
    assert torch.equal(out, expected) and torch.equal(caches, alone)
