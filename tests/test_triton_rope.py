"""RoPE with the store, and the inverse transform, into dense and packed caches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimemo.kernels import reference, torch_ops
from minimemo.kernels import triton_rope as kernels
from minimemo.kernels.triton_pack import empty_packed, store_packed, unpack_kv
from tests.helpers import assert_close
from tests.triton_device import DEVICE, DTYPES, SUMS, random


def _tables(*shape: int) -> tuple[Tensor, Tensor]:
    """cos, sin (..., D)."""
    angles = random(*shape[:-1], shape[-1] // 2, seed=9) * 9
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "dim"), [(0, 64), (1, 80), (17, 64), (33, 22)])
def test_rope_store(n: int, dim: int, dtype: torch.dtype) -> None:
    """Rotated as by torch_ops, to the last bit but for fused multiply-adds; tokens around the new ones stay."""
    keys, values = random(n, 3, dim, dtype=dtype).transpose(0, 1), random(3, n, dim, dtype=dtype, seed=1)
    cos, sin = _tables(n, dim)
    cache_keys, cache_values = torch.full((2, 3, 50, dim), 7.0, device=DEVICE, dtype=dtype).unbind(0)
    kernels.rope_store(keys, values, cos, sin, cache_keys, cache_values, 11)
    expected = reference.apply_rope(keys.double(), cos.double(), sin.double())
    assert_close(cache_keys[:, 11 : 11 + n], expected, "keys")
    assert_close(kernels.apply_rope(keys, cos, sin), expected, "apply_rope")
    if DEVICE == "cpu":
        assert torch.equal(cache_keys[:, 11 : 11 + n], torch_ops.apply_rope(keys, cos, sin))
    assert torch.equal(cache_values[:, 11 : 11 + n], values)
    for cache in (cache_keys, cache_values):
        assert bool((cache[:, :11] == 7).all()) and bool((cache[:, 11 + n :] == 7).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_rope_store_packed(bits: int) -> None:
    keys, values = random(2, 64, 64), random(2, 64, 64, seed=1)
    cos, sin = _tables(64, 64)
    packed = empty_packed(2, 192, 64, bits, DEVICE)
    store_packed(keys, values, packed, 64, (cos, sin))
    found = unpack_kv(packed)
    rotated = torch_ops.apply_rope(keys, cos, sin)
    for x, y in zip(found, reference.unpack_kv(reference.pack_kv(rotated.cpu(), values.cpu(), bits)), strict=True):
        # Fused multiply-adds on a GPU may turn a key by a bit, and its code by one.
        step = 0 if DEVICE == "cpu" else float(rotated.max() - rotated.min()) / (2**bits - 1)
        assert (x[:, 64:128].cpu() - y).abs().max() <= step + 1e-6


def _transform(n: int, kept: int, dim: int, codes: torch.dtype, basis: torch.dtype) -> dict:
    layers, heads = 3, 2
    width = layers * heads * dim
    top = 127 if codes == torch.int8 else 3000
    return dict(
        codes=(random(n, kept) * top / 3).clamp(-top, top).to(codes),
        step=0.01,
        basis=random(kept, width, seed=1).div(kept**0.5).to(basis),
        mean=random(width, seed=2),
        layer_scale=torch.tensor([0.5, 2.0, 7.0], device=DEVICE),
    )


def _expected(arguments: dict, cos: Tensor, sin: Tensor, kinds: Tensor) -> Tensor:
    wide = arguments | dict(basis=arguments["basis"].double())
    return reference.inverse_transform(**wide, kv_heads=2, rotations=(cos[kinds.long()], sin[kinds.long()]))


@pytest.mark.parametrize("basis", DTYPES)
@pytest.mark.parametrize("codes", [torch.int8, torch.int16])
@pytest.mark.parametrize(("n", "kept", "dim"), [(1, 33, 22), (17, 97, 64), (65, 5, 80)])
def test_inverse_transform(n: int, kept: int, dim: int, codes: torch.dtype, basis: torch.dtype) -> None:
    """int16 codes beyond what float16 or bfloat16 hold exactly are multiplied without loss."""
    arguments = _transform(n, kept, dim, codes, basis)
    cos, sin = _tables(2, n, dim)
    kinds = torch.tensor([1, 0, 1], dtype=torch.int32, device=DEVICE)
    keys, values = torch.full((2, 3, 2, 80, dim), 7.0, device=DEVICE).unbind(0)
    kernels.inverse_transform(**arguments, cache=keys, start=9, rotations=kernels.Rotations(cos, sin, kinds))
    kernels.inverse_transform(**arguments, cache=values, start=9)
    assert_close(keys[:, :, 9 : 9 + n], _expected(arguments, cos, sin, kinds), "keys", SUMS)
    plain = reference.inverse_transform(**arguments | dict(basis=arguments["basis"].double()), kv_heads=2)
    assert_close(values[:, :, 9 : 9 + n], plain, "values", SUMS)
    assert bool((keys[:, :, :9] == 7).all()) and bool((keys[:, :, 9 + n :] == 7).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_inverse_transform_into_a_packed_cache(bits: int) -> None:
    arguments = _transform(64, 33, 64, torch.int16, torch.float32)
    cos, sin = _tables(2, 64, 64)
    kinds = torch.tensor([1, 0, 1], dtype=torch.int32, device=DEVICE)
    packed = empty_packed(6, 128, 64, bits, DEVICE)
    rotations = kernels.Rotations(cos, sin, kinds)
    kernels.inverse_transform_packed(**arguments, packed=packed, start=64, rotations=rotations)
    kernels.inverse_transform_packed(**arguments, packed=packed, start=64, values=True)
    keys = _expected(arguments, cos, sin, kinds).flatten(0, 1)
    values = reference.inverse_transform(**arguments | dict(basis=arguments["basis"].double()), kv_heads=2).flatten(
        0, 1
    )
    found_keys, found_values = (x[:, 64:] for x in unpack_kv(packed))
    # Half a step of a channel's, or a token's, own range, and what float16 leaves of scale and low.
    for found, x, dim in ((found_keys, keys, 1), (found_values, values, 2)):
        spread = x.amax(dim, keepdim=True) - x.amin(dim, keepdim=True)
        bound = spread / (2**bits - 1) * 0.5 + (spread + x.abs().amax(dim, keepdim=True)) * 2**-10
        assert bool(((found.double() - x).abs() <= bound).all())
    arguments["mean"][3] = float("nan")
    with pytest.raises(ValueError, match="codes: 64 numbers come out not finite"):
        kernels.inverse_transform_packed(**arguments, packed=packed, start=0, values=True)


def test_launch_checks_name_the_offender() -> None:
    x, table, cache = torch.zeros(2, 3, 8), torch.zeros(3, 8), torch.zeros(2, 10, 8)
    for change, message in (
        ({0: torch.zeros(2, 3, 7)}, "keys: head dim 7, expected an even number"),
        ({1: torch.zeros(2, 4, 8)}, r"values: shape \(2, 4, 8\), expected \(2, 3, 8\)"),
        ({2: table.half()}, "cos: torch.float16, expected torch.float32"),
        ({3: torch.zeros(4, 8)}, r"sin: shape \(4, 8\)"),
        ({4: torch.zeros(2, 10, 6)}, r"cache_keys: shape \(2, 10, 6\)"),
        ({6: 8}, "start: 8 with 3 tokens, expected 0 to 7"),
    ):
        arguments = dict(enumerate((x, x, table, table, cache, cache, 0))) | change
        with pytest.raises(ValueError, match=message):
            kernels.rope_store(*arguments.values())
    good = _transform(5, 4, 8, torch.int8, torch.float32) | dict(cache=torch.zeros(3, 2, 10, 8, device=DEVICE), start=0)
    for change, message in (
        (dict(codes=torch.zeros(5, 4)), "codes: torch.float32, expected torch.int8 or torch.int16"),
        (dict(basis=torch.zeros(4, 47)), r"basis: shape \(4, 47\), expected \(4, 48\)"),
        (dict(mean=torch.zeros(4)), r"mean: shape \(4,\), expected \(48\)"),
        (dict(layer_scale=torch.zeros(2)), r"cache: shape \(3, 2, 10, 8\), expected \(2, any, any, any\)"),
        (dict(start=6), "start: 6 with 5 tokens, expected 0 to 5"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.inverse_transform(**good | change)
