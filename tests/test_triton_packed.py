"""Packed keys and values: the same bytes as the definition packs, attention as over the unpacked numbers."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from minimemo.kernels import reference
from minimemo.kernels import triton_pack as kernels
from minimemo.kernels.packed import PackedKV
from minimemo.kernels.triton_packed import packed_attention, packed_shared_prefix_attention
from tests.helpers import assert_close
from tests.triton_device import DEVICE, DTYPES, assert_attention, random

BITS = [8, 4]


def _keys_values(heads: int, tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Channels of different spread and centre; one channel and one token of equal numbers, a zero scale."""
    keys = random(heads, tokens, dim, dtype=dtype) * random(dim, dtype=dtype, seed=5) * 3 + random(dim, dtype=dtype)
    values = random(heads, tokens, dim, dtype=dtype, seed=1)
    keys[:, :64, 1] = 2.5
    values[:, 5] = -0.75
    return keys, values


def _on_cpu(packed: PackedKV) -> PackedKV:
    parts = (getattr(packed, field.name) for field in fields(packed))
    return PackedKV(*(part.cpu() if isinstance(part, Tensor) else part for part in parts))


def _assert_same_bytes(found: PackedKV, expected: PackedKV) -> None:
    for field in fields(PackedKV):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(a, Tensor):
            assert a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()), field.name
        else:
            assert a == b


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("shape", "dtype"), [((2, 128, 64), torch.float32), ((1, 64, 80), torch.float16)])
def test_pack_gives_the_bytes_of_the_definition(shape: tuple[int, int, int], dtype: torch.dtype, bits: int) -> None:
    keys, values = _keys_values(*shape, dtype=dtype)
    packed = kernels.pack_kv(keys, values, bits)
    _assert_same_bytes(packed, reference.pack_kv(keys.cpu(), values.cpu(), bits))
    for found, expected, x in zip(
        kernels.unpack_kv(packed), reference.unpack_kv(_on_cpu(packed)), (keys, values), strict=True
    ):
        assert_close(found.cpu(), expected.double())
        assert (found - x).abs().max() <= 1.1 * (x.max() - x.min()) / (2**bits - 1)
    assert kernels.unpack_kv(packed, torch.float16)[0].dtype == torch.float16


def test_ties_round_to_even() -> None:
    """Halfway between two codes, exactly: what torch.round does, and adding a half would not."""
    keys = torch.zeros(1, 64, 2, device=DEVICE)
    keys[0, :16] = torch.arange(16.0, device=DEVICE)[:, None]
    keys[0, 16:31] = torch.arange(15.0, device=DEVICE)[:, None] + 0.5
    _assert_same_bytes(kernels.pack_kv(keys, keys, 4), reference.pack_kv(keys.cpu(), keys.cpu(), 4))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "rows", "dim"), [(2, 17, 64), (7, 1, 80), (4, 3, 96)])
def test_attention(heads: int, rows: int, dim: int, dtype: torch.dtype, bits: int) -> None:
    """Against attention over the unpacked numbers, rounded to the queries' dtype as the kernel rounds them."""
    packed = kernels.pack_kv(*_keys_values(1, 128, dim), bits)
    q = random(heads, rows, dim, dtype=dtype, seed=3)
    k, v = (x.to(dtype).double().to(DEVICE) for x in reference.unpack_kv(_on_cpu(packed)))
    ends = torch.arange(rows, device=DEVICE) + 50
    # Positions as a tensor, and as the first of consecutive ones.
    rules = (dict(), dict(query_positions=ends), dict(query_positions=ends + 40, window=30, sinks=3, soft_cap=9.0))
    for number, rule in enumerate(rules):
        given = rule | dict(query_positions=50) if number == 1 else rule
        for shares in (1, 3):
            found = packed_attention(q, packed, scale=0.1, shares=shares, **given)
            expected = reference.attention(q.double(), k, v, scale=0.1, **rule)
            assert_attention(found, expected, f"{rule} {shares}")


@pytest.mark.parametrize("bits", BITS)
def test_shared_prefix(bits: int) -> None:
    packed = kernels.pack_kv(*_keys_values(2, 64, 64), bits)
    q, tail = random(4, 4, 64), random(3, 2, 9, 64, seed=1)
    starts = torch.tensor([0, 1, 3, 4], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor([9, 2, 1], dtype=torch.int32, device=DEVICE)
    found = packed_shared_prefix_attention(q, packed, tail, tail, starts, lengths, longest=2, scale=0.1)
    prefix = (x.double().to(DEVICE) for x in reference.unpack_kv(_on_cpu(packed)))
    wide = tail.double()
    expected = reference.shared_prefix_attention(q.double(), *prefix, wide, wide, starts, lengths, scale=0.1)
    assert_attention(found, expected)


def test_an_empty_packed_cache() -> None:
    packed = kernels.pack_kv(random(2, 0, 64), random(2, 0, 64), 8)
    out, lse = packed_attention(random(4, 3, 64), packed, scale=1.0)
    assert not out.any() and bool((lse == float("-inf")).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 65505.0])
def test_numbers_that_float16_cannot_hold_are_refused(bad: float) -> None:
    keys, values = _keys_values(1, 64, 16)
    values[0, 63, 15] = bad
    with pytest.raises(ValueError, match="values: 1 numbers are not finite or too large for float16"):
        kernels.pack_kv(keys, values, 8)
    with pytest.raises(ValueError, match="keys: 1 numbers"):
        kernels.pack_kv(values, keys, 4)


def test_launch_checks_name_the_offender() -> None:
    x = torch.zeros(1, 64, 16)
    for arguments, message in (
        ((x, x, 5), "bits: 5, expected 8 or 4"),
        ((x[:, :63], x[:, :63], 8), "keys: 63 tokens, expected a multiple of 64"),
        ((x[:, :, :15], x[:, :, :15], 8), "head dim: 15"),
        ((x, x[:, :, :8], 8), r"values: shape \(1, 64, 8\), expected \(1, 64, 16\)"),
        ((x, x.half(), 8), "values: torch.float16, expected torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.pack_kv(*arguments)
    packed = kernels.empty_packed(1, 128, 16, 8, "cpu")
    with pytest.raises(ValueError, match="start: 32, expected a multiple of 64 from 0 to 64"):
        kernels.store_packed(x, x, packed, 32)
    with pytest.raises(ValueError, match="start: 128, expected a multiple of 64 from 0 to 64"):
        kernels.store_packed(x, x, packed, 128)
    with pytest.raises(ValueError, match=r"q: shape \(2, 3, 8\), expected \(any, any, 16\)"):
        packed_attention(torch.zeros(2, 3, 8), packed, scale=1.0)
    broken = PackedKV(4, *(getattr(packed, field.name) for field in fields(packed)[1:]))
    with pytest.raises(ValueError, match=r"key_scale: shape \(1, 2, 16\), expected \(1, 2, 32\)"):
        packed_attention(torch.zeros(2, 3, 32), broken, scale=1.0)
