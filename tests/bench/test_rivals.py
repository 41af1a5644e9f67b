"""The rivals of `bench.memory`: their formats, sizes and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from bench.memory.rivals import RIVALS, MinMax, Rotated, Scaled, lloyd_max, pack, rotation, unpack
from minimemo.errors import InputError
from minimemo.memory.codec import KVLayout
from minimemo.models.rope import RopeTable
from tests.kv import blocks_of
from tests.tiny import tiny_config

LAYOUT = KVLayout(2, 2, 16, "float32")


def _normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 7, 33])
def test_packed_codes_come_back(bits: int, count: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, count, dtype=np.uint8)
    data = pack(codes, bits)
    assert len(data) == -(-count * bits // 8)
    assert np.array_equal(unpack(data, bits, count), codes)


def test_packed_codes_lie_low_bits_first() -> None:
    assert pack(np.array([1, 2, 7], np.uint8), 3) == bytes([0b11010001, 0b1])


@pytest.mark.parametrize(
    ("bits", "positive"), [(1, [0.7980]), (2, [0.4528, 1.510]), (3, [0.2451, 0.7560, 1.344, 2.152])]
)
def test_lloyd_max_levels_are_those_of_the_paper(bits: int, positive: list[float]) -> None:
    """Max 1960, table I."""
    levels = lloyd_max(bits)
    assert levels[len(levels) // 2 :].tolist() == pytest.approx(positive, abs=6e-4)
    assert levels.tolist() == pytest.approx((-levels.flip(0)).tolist(), abs=1e-6)


@pytest.mark.parametrize("dim", [1, 16, 24, 96, 128])
def test_rotation_is_orthonormal_and_spreads(dim: int) -> None:
    found = rotation(dim)
    assert torch.allclose(found @ found.T, torch.eye(dim), atol=1e-6)
    assert found.abs().max() == pytest.approx(1 / math.sqrt(dim & -dim))


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0])
def test_scaled_groups_are_llama_cpps(kind: GGMLQuantizationType) -> None:
    x = _normal(2, 5, 64) * 3
    x[0, 0, :32] = 0
    x[1, 2, 40] = -50.0
    quantizer = Scaled(kind)
    streams = quantizer.quantize(x)
    assert sum(map(len, streams)) == quants.quantize(x.numpy(), kind).nbytes
    expected = quants.dequantize(quants.quantize(x.numpy(), kind), kind)
    assert np.array_equal(quantizer.rebuild(streams, (2, 5, 64)).numpy(), expected)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("tokens", [1, 32, 33, 97])
@pytest.mark.parametrize("bits", [2, 4])
def test_groups_between_their_ends(bits: int, tokens: int, dim: int) -> None:
    x = _normal(2, tokens, 64) * 10
    quantizer = MinMax(bits, dim)
    found = quantizer.rebuild(quantizer.quantize(x), (2, tokens, 64))
    assert found.shape == x.shape
    for begin in range(0, x.shape[dim], 32):
        group = x.narrow(dim, begin, min(32, x.shape[dim] - begin))
        width = (group.amax(dim, keepdim=True) - group.amin(dim, keepdim=True)) / (2**bits - 1)
        error = (found.narrow(dim, begin, group.shape[dim]) - group).abs()
        assert (error <= 0.5 * width + 0.02).all()  # 0.02: of zero and 15 steps in fp16, at this range


@pytest.mark.parametrize("dim", [1, 2])
def test_a_constant_group_is_exact(dim: int) -> None:
    x = torch.full((1, 40, 32), 1.5)
    quantizer = MinMax(2, dim)
    assert torch.equal(quantizer.rebuild(quantizer.quantize(x), (1, 40, 32)), x)


@pytest.mark.parametrize(("bits", "distortion"), [(2, 0.1175), (3, 0.03454)])
def test_rotated_vectors_lose_what_theory_says(bits: int, distortion: float) -> None:
    """Squared error over squared norm is that of Lloyd-Max levels (Max 1960); of vectors with a spike, not far off."""
    x = _normal(1, 400, 128) * 0.01
    x[..., 0] = x[..., 64] = 30.0
    quantizer = Rotated(bits, 64)
    found = quantizer.rebuild(quantizer.quantize(x), (1, 400, 128))
    normal = _normal(1, 400, 128)
    close = quantizer.rebuild(quantizer.quantize(normal), (1, 400, 128))
    assert float((close - normal).square().sum() / normal.square().sum()) == pytest.approx(distortion, rel=0.05)
    assert float((found - x).square().sum() / x.square().sum()) < 4 * distortion


@pytest.mark.parametrize(
    ("name", "bits", "error"),
    [
        ("fp16", 16, 1e-3), ("q8_0", 8.5, 0.01), ("q4_0", 4.5, 0.2), ("kivi4", 5, 0.1), ("kivi3", 4, 0.2),
        ("kivi2", 3, 0.5), ("turbo3", 4, 0.2), ("turbo2", 3, 0.4),
    ],
)  # fmt: skip
def test_a_rivals_size_and_error(name: str, bits: float, error: float) -> None:
    """Raw bits a number as its paper counts them (16-wide heads: a norm costs one bit), and blocks come back."""
    codec = RIVALS[name](LAYOUT, RopeTable(tiny_config()))
    for block in blocks_of(512):
        streams = codec.encode(block)
        position = 4 if codec.after_rope else 0
        assert 8 * (sum(map(len, streams)) - position) == bits * 2 * block.keys.numel()
        for found, expected in zip(codec.decode(streams, block.tokens), (block.keys, block.values), strict=True):
            assert found.shape == expected.shape
            assert (found - expected).norm() <= error * expected.norm()
        assert codec.encode(block) == streams


def test_every_rival_takes_a_short_block() -> None:
    for make in RIVALS.values():
        codec = make(LAYOUT, RopeTable(tiny_config()))
        keys, values = codec.decode(codec.encode(blocks_of(1)[0]), 1)
        assert keys.shape == values.shape == (2, 2, 1, 16) and keys.isfinite().all()


def test_rows_that_have_no_groups_are_refused() -> None:
    codec = RIVALS["q4_0"](KVLayout(2, 1, 16, "float32"), RopeTable(tiny_config()))
    with pytest.raises(InputError, match="rows of 16 numbers"):
        codec.encode(blocks_of(3, heads=1)[0])
