"""Packing on the CPU: the same bytes as the definition packs."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from minimemo.kernels import PackedKV, empty_packed, native, torch_ops
from minimemo.kernels.native.attention import pack_into

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))


def _assert_same_bytes(found: PackedKV, expected: PackedKV) -> None:
    for field in fields(PackedKV)[1:]:
        assert torch.equal(getattr(found, field.name), getattr(expected, field.name)), field.name


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "dim"), [(64, 2), (192, 64), (128, 98), (0, 16)])
def test_the_bytes_of_the_definition(tokens: int, dim: int, dtype: torch.dtype, bits: int) -> None:
    random = torch.Generator().manual_seed(tokens + dim)
    wide = torch.randn(2, 3, tokens + 5, dim, generator=random).mul(torch.logspace(-9, 4, dim))
    k, v = wide.to(dtype)[:, :, :tokens]
    if tokens:
        k[0, :, 0] = 0.25  # one value: scale 0
        k[1, :64, -1] = torch.linspace(-65000, 65000, 64)
    packed = empty_packed(3, tokens, dim, bits, "cpu")
    pack_into(packed, 0, k, v)
    _assert_same_bytes(packed, torch_ops.pack_kv(k, v, bits))


def test_group_by_group() -> None:
    k, v = torch.randn(2, 2, 192, 16, generator=torch.Generator().manual_seed(0))
    cache = empty_packed(2, 192, 16, 4, "cpu")
    pack_into(cache, 64, k[:, 64:], v[:, 64:])
    pack_into(cache, 0, k[:, :64], v[:, :64])
    _assert_same_bytes(cache, torch_ops.pack_kv(k, v, 4))
    for first in (-64, 32, 128):
        with pytest.raises(ValueError, match="whole groups"):
            pack_into(cache, first, k[:, :128], v[:, :128])


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), 65600.0])
def test_refuses_to_pack_what_float16_does_not_hold(bad: float) -> None:
    for name, position in (("keys", 0), ("values", 1)):
        kv = [torch.zeros(2, 64, 16), torch.zeros(2, 64, 16)]
        kv[position][1, 63, 15] = bad
        with pytest.raises(ValueError, match=f"^{name}: numbers"):
            pack_into(empty_packed(2, 64, 16, 8, "cpu"), 0, *kv)
        with pytest.raises(ValueError, match="pack_kv"):
            torch_ops.pack_kv(*kv, 8)
