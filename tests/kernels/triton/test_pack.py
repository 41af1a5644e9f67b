"""Packed keys and values: the same bytes as the definition packs."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from minimemo.kernels import PackedKV, empty_packed, torch_ops
from minimemo.kernels.triton.pack import pack_into
from tests.kernels.triton.device import DEVICE, DTYPES, Draw, fuzz, random


def _keys_values(heads: int, tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Channels of different spread and centre; one channel and one token of equal numbers, a zero scale."""
    keys = random(heads, tokens, dim, dtype=dtype) * random(dim, dtype=dtype, seed=5) * 3 + random(dim, dtype=dtype)
    values = random(heads, tokens, dim, dtype=dtype, seed=1)
    keys[:, :64, 1] = 2.5
    values[:, 5] = -0.75
    return keys, values


def _assert_same_bytes(keys: Tensor, values: Tensor, bits: int, before: int = 0) -> None:
    """Packed from token `before` on."""
    heads, tokens, dim = keys.shape
    packed, expected = (
        empty_packed(heads, before + tokens, dim, bits, DEVICE),
        torch_ops.pack_kv(keys.cpu(), values.cpu(), bits),
    )
    pack_into(packed, before, keys, values)
    for field in fields(PackedKV)[1:]:
        found, bytes_ = getattr(packed, field.name), getattr(expected, field.name)
        assert torch.equal(found[:, found.shape[1] - bytes_.shape[1] :].cpu(), bytes_), field.name


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("shape", "dtype"), [((2, 128, 64), torch.float32), ((1, 64, 80), torch.float16)])
def test_the_bytes_of_the_definition(shape: tuple[int, int, int], dtype: torch.dtype, bits: int) -> None:
    _assert_same_bytes(*_keys_values(*shape, dtype=dtype), bits)


@fuzz
def test_packing_at_random(draw: Draw) -> None:
    dtype = draw.one_of(*DTYPES)
    shape = draw.whole(1, 3), 64 * draw.whole(0, 2), 2 * draw.whole(1, 45)
    keys, values = (draw.tensor(*shape, dtype=dtype) for _ in range(2))
    _assert_same_bytes(keys, values, draw.one_of(8, 4), 64 * draw.whole(0, 1))


def test_ties_round_to_even() -> None:
    """Halfway between two codes, exactly: what torch.round does, and adding a half would not."""
    keys = torch.zeros(1, 64, 2, device=DEVICE)
    keys[0, :16] = torch.arange(16.0, device=DEVICE)[:, None]
    keys[0, 16:31] = torch.arange(15.0, device=DEVICE)[:, None] + 0.5
    _assert_same_bytes(keys, keys, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 65505.0])
def test_numbers_that_float16_cannot_hold_are_refused(bad: float) -> None:
    keys, values = _keys_values(1, 64, 16)
    values[0, 63, 15] = bad
    for bits, pair, name in ((8, (keys, values), "values"), (4, (values, keys), "keys")):
        with pytest.raises(ValueError, match=f"{name}: 1 numbers are not finite or too large for float16"):
            pack_into(empty_packed(1, 64, 16, bits, DEVICE), 0, *pair)


def test_launch_checks_name_the_offender() -> None:
    x, packed = torch.zeros(1, 64, 16), empty_packed(1, 128, 16, 8, "cpu")
    broken = PackedKV(4, *(getattr(packed, field.name) for field in fields(packed)[1:]))
    for arguments, message in (
        ((packed, 0, x[:, :63], x[:, :63]), "keys: 63 tokens, expected a multiple of 64"),
        ((packed, 0, x[:, :, :8], x[:, :, :8]), r"keys: shape \(1, 64, 8\), expected \(1, any, 16\)"),
        ((packed, 0, x, x[:, :, :8]), r"values: shape \(1, 64, 8\), expected \(1, 64, 16\)"),
        ((packed, 0, x, x.half()), "values: torch.float16, expected torch.float32"),
        ((packed, 32, x, x), "first: 32, expected a multiple of 64 from 0 to 64"),
        ((packed, 128, x, x), "first: 128, expected a multiple of 64 from 0 to 64"),
        ((broken, 0, x, x), r"key_scale: shape \(1, 2, 16\), expected \(1, 2, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            pack_into(*arguments)
    for shape, bits, message in (((1, 64, 16), 5, "bits: 5, expected 8 or 4"), ((1, 64, 15), 8, "head dim: 15")):
        with pytest.raises(ValueError, match=message):
            empty_packed(*shape, bits, "cpu")
