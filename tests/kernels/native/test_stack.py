"""All layers in one native call against the same layers one by one, family by family, over packed random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minimemo.engine.engine import Engine
from minimemo.kernels import Source, attend, native
from minimemo.kernels.native.stack import Stack
from minimemo.models.decoder import Decoder, Row
from minimemo.models.layers import FEW_ROWS, MOST_WIDENED, Linear, PackedLinear, Scratch
from minimemo.models.native import native_stack
from minimemo.models.weights import load_decoder
from tests.models.test_decoder import FAMILIES, _reference

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
# Products round activations to 14 bits of their block of 32, which a logit of these small random models shows as 1e-4.
NEAR = 1e-3


def _packed(dense: Linear, scratch: Scratch, bits: int) -> PackedLinear:
    """The matrix rounded to symmetric codes of `bits` bits, padded columns aside."""
    rows, columns = dense.weight.shape
    blocks = dense.weight.reshape(rows, columns // 16, 16)
    scales = blocks.abs().amax(-1).clamp_min(1e-6) / (2 ** (bits - 1) - 1)
    codes = (blocks / scales[..., None]).round().to(torch.int8).reshape(rows, columns)
    return PackedLinear([native.pack_weights(codes, scales)], dense.bias, scratch)


def test_a_vocabulary_is_widened_piece_by_piece() -> None:
    rows = 2 * MOST_WIDENED + 40
    scratch, dense = Scratch(torch.float32), Linear(torch.randn(rows, 32), torch.randn(rows))
    packed, x = _packed(dense, scratch, 8), torch.randn(FEW_ROWS + 1, 32)
    whole = torch.empty(rows, 32)
    native.expand_into(packed.packed, whole)
    assert torch.equal(packed(x), torch.nn.functional.linear(x, whole, dense.bias))
    assert scratch.take(1, 1).untyped_storage().nbytes() == MOST_WIDENED * 32 * 4


def _pack(decoder: Decoder) -> Decoder:
    """The same decoder over packed matrices."""
    scratch = Scratch(torch.float32)
    layers = tuple(
        dataclasses.replace(
            layer,
            **{
                name: _packed(getattr(layer, name), scratch, bits)
                for name, bits in (("qkv", 8), ("out", 6), ("gate_up", 8), ("down", 6))
            },
        )
        for layer in decoder.weights.layers
    )
    return Decoder(decoder.config, dataclasses.replace(decoder.weights, layers=layers))


def _steps(decoder: Decoder, kv_dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Logits of a chunk, of single tokens, and of batches over a shared memory; and the caches that they left."""
    engine = Engine(decoder, kv_dtype=kv_dtype)
    random = torch.Generator().manual_seed(7)
    memory, found = engine.new_cache(60), []
    decoder.forward(torch.randint(3, 97, (23,), generator=random), [Row(memory, 23)], logits="none")
    for count in (1, 3, FEW_ROWS):
        ids = torch.randint(3, 97, (count,), generator=random)
        found.append(decoder.forward(ids, [Row(memory, count)], logits="all"))
    tails = [engine.new_cache(12) for _ in range(3)]
    for counts in ((4, 1, 5), (1, 1, 1)):
        ids = torch.randint(3, 97, (sum(counts),), generator=random)
        rows = [Row(tail, count) for tail, count in zip(tails, counts, strict=True)]
        found.append(decoder.forward(ids, rows, prefix=memory, logits="all"))
    caches = [c[:, :, : cache.length].float() for cache in (memory, *tails) for c in (cache.keys, cache.values)]
    return torch.cat(found), caches


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_equals_layers_one_by_one(name: str, tmp_path: Path) -> None:
    _reference(name, tmp_path)
    decoder = _pack(load_decoder(tmp_path, dtype=torch.float32))
    assert decoder._stack is not None
    found, caches = _steps(decoder, torch.float32)
    halved, half_caches = _steps(decoder, torch.bfloat16)
    decoder._stack = None
    expected, own_caches = _steps(decoder, torch.float32)
    largest = expected.abs().max()
    assert float((found - expected).abs().max() / largest) <= NEAR
    for ours, theirs in zip(caches, own_caches, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) <= NEAR
    assert float((halved - expected).abs().max() / largest) <= 0.03  # bfloat16 keeps 8 bits of each key and value
    for ours, theirs in zip(half_caches, own_caches, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 0.03


def test_heads_wider_than_the_buffers_of_the_kernels_are_refused(tmp_path: Path) -> None:
    """A stranger's file may say what it likes: such a model runs layer by layer, its attention on torch."""
    _reference("qwen2", tmp_path)
    decoder = _pack(load_decoder(tmp_path, dtype=torch.float32))
    assert decoder._stack is not None
    for change in ({"head_dim": 512}, {"num_heads": 128, "num_kv_heads": 1, "head_dim": 256}):
        config = dataclasses.replace(decoder.config, **change)
        assert native_stack(config, decoder.weights, [0] * config.num_layers) is None
    layers = decoder._stack._layers
    for heads, dim in ((1, 512), (128, 256)):
        with pytest.raises(ValueError, match=f"stack: head dim {dim} in groups of {heads} heads"):
            Stack(layers, heads=heads, kv_heads=1, dim=dim, activation="silu", norm_eps=1e-6, scale=1.0)
        q, keys = torch.randn(heads, 2, dim), torch.randn(1, 5, dim)
        found = attend(q, [Source(keys, keys, 0, 2)], 0.1)
        weights = torch.softmax(0.1 * q.double() @ keys.double().transpose(1, 2), -1)
        torch.testing.assert_close(found.double(), weights @ keys.double(), atol=1e-4, rtol=1e-4)


def test_errors_name_the_argument(tmp_path: Path) -> None:
    _reference("qwen2", tmp_path)
    decoder = _pack(load_decoder(tmp_path, dtype=torch.float32))
    stack, cache = decoder._stack, Engine(decoder).new_cache(3)
    assert stack is not None
    x, rotations = torch.zeros(1, 48), decoder.rope.of_spans([(0, 1)], torch.device("cpu"))
    stack.run(x, rotations, [(cache, 1)])
    with pytest.raises(ValueError, match=r"x: shape \(1, 47\), expected \(1, 48\)"):
        stack.run(torch.zeros(1, 47), rotations, [(cache, 1)])
    with pytest.raises(ValueError, match=r"x: torch.float64, expected torch.float32"):
        stack.run(x.double(), rotations, [(cache, 1)])
    with pytest.raises(ValueError, match=r"cos: shape \(1, 12\), expected \(2, 12\)"):
        stack.run(torch.zeros(2, 48), rotations, [(cache, 2)])
    with pytest.raises(ValueError, match="0 kinds of rotation"):
        stack.run(x, [], [(cache, 1)])
    with pytest.raises(ValueError, match=r"raw_keys: shape \(3, 2, 2, 12\), expected \(3, 2, 1, 12\)"):
        stack.run(x, rotations, [(cache, 1)], raw_keys=torch.zeros(3, 2, 2, 12))
    with pytest.raises(ValueError, match=r"raw_keys: torch.bfloat16, expected torch.float32"):
        stack.run(x, rotations, [(cache, 1)], raw_keys=torch.zeros(3, 2, 1, 12, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="4 tokens after 0 in a cache of 3"):
        stack.run(torch.zeros(4, 48), decoder.rope.of_spans([(0, 4)], torch.device("cpu")), [(cache, 4)])
    cache.values = cache.values[:, :, :2]
    with pytest.raises(ValueError, match=r"values: shape \(3, 2, 2, 12\), expected \(3, 2, 3, 12\)"):
        stack.run(x, rotations, [(cache, 1)])
