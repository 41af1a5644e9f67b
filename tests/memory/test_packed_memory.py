"""Memories packed to 8 and 4 bits: what a cache does with them, and what the engine says from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import minimemo
from minimemo import MemoError, RunOptions
from minimemo.cli.arguments import main
from minimemo.engine.cache import KVCache
from minimemo.engine.engine import Engine
from minimemo.kernels import PackedKV, attention, native, torch_ops
from minimemo.models.config import RopeConfig
from minimemo.models.decoder import Decoder, Row
from minimemo.models.weights import load_decoder
from tests.conftest import TinyModels
from tests.helpers import assert_close
from tests.kernels.native.test_stack import _pack
from tests.memories import whole_memory
from tests.models.test_decoder import FAMILIES, _reference
from tests.tiny import tiny_config, tiny_decoder

TEXT = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}.\n\n" for i in range(14))
IDS = [(37 * i) % 61 + 3 for i in range(201)]  # three groups of 64, and 9


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _same(found: PackedKV | None, expected: PackedKV) -> bool:
    names = ("key_codes", "key_scale", "key_low", "value_codes", "value_scale", "value_low")
    return all(torch.equal(getattr(found, name), getattr(expected, name)) for name in names)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("pieces", [(201,), (128, 73), (1, 62, 1, 100, 37), (5, 196)])
def test_whole_groups_are_packed_and_the_rest_stays_dense(pieces: tuple[int, ...], bits: int) -> None:
    keys, values = _random(3, 2, 201, 16), _random(3, 2, 201, 16, seed=1)
    cache = KVCache(3, 2, 16, 300, torch.float32, packed_tokens=201, bits=bits)
    assert (cache.capacity, cache.bits) == (300, bits)
    for piece_keys, piece_values in zip(keys.split(pieces, dim=2), values.split(pieces, dim=2), strict=True):
        cache.append(piece_keys, piece_values)
    assert (cache.length, cache.start) == (201, 192)
    grouped = (x[:, :, :192].flatten(0, 1) for x in (keys, values))
    assert _same(cache.packed, torch_ops.pack_kv(*grouped, bits))
    assert torch.equal(cache.keys[:, :, :9], keys[:, :, 192:])
    assert torch.equal(cache.values[:, :, :9], values[:, :, 192:])


def test_packed_tokens_are_forgotten_in_whole_groups() -> None:
    cache = KVCache(1, 1, 16, 300, torch.float32, packed_tokens=201, bits=8)
    cache.append(_random(1, 1, 201, 16), _random(1, 1, 201, 16))
    cache.truncate(195)
    with pytest.raises(ValueError, match="cannot truncate 195 tokens to 191"):
        cache.truncate(191)
    cache.truncate(128)
    assert (cache.length, cache.start) == (128, 128)
    assert cache.packed is not None and cache.packed.key_codes.shape == (1, 128, 16)
    cache.truncate(0)
    assert (cache.length, cache.start, cache.packed) == (0, 0, None)


def test_what_does_not_fit_is_refused() -> None:
    cache = KVCache(1, 1, 16, 300, torch.float32, packed_tokens=201, bits=8)
    with pytest.raises(ValueError, match="0 \\+ 301 tokens do not fit into 300"):
        cache.append(*(torch.zeros(1, 1, 301, 16),) * 2)
    with pytest.raises(ValueError, match="not finite or too large for float16"):
        cache.append(*(torch.full((1, 1, 64, 16), 1e6),) * 2)
    assert cache.length == 0
    cache.append(*(torch.zeros(1, 1, 201, 16),) * 2)
    with pytest.raises(ValueError, match="201 \\+ 100 tokens do not fit into 300"):
        cache.require(100)
    with pytest.raises(ValueError, match="bits: 5"):
        KVCache(1, 1, 16, 300, torch.float32, packed_tokens=201, bits=5)


def _memories(decoder: Decoder, bits: int) -> tuple[Engine, list[KVCache]]:
    """A packed memory, a dense one of the very numbers that it holds, and the dense one that both come from."""
    engine, plain = Engine(decoder, memory_bits=bits), Engine(decoder)
    original, same = plain.new_cache(300), plain.new_memory(201, 300)
    plain.prefill(original, IDS)
    packed = engine.new_memory(201, 300)
    packed.append(original.keys[:, :, :201], original.values[:, :, :201])
    assert packed.packed is not None and same.packed is None
    c = decoder.config
    keys, values = (x.unflatten(0, (c.num_layers, c.num_kv_heads)) for x in torch_ops.unpack_kv(packed.packed))
    same.append(keys, values)
    same.append(packed.keys[:, :, :9], packed.values[:, :, :9])
    return engine, [packed, same, original]


def _continued(engine: Engine, memory: KVCache) -> Tensor:
    """Logits of single tokens and chunks after a memory, and of a batch over it."""
    found, random = [], torch.Generator().manual_seed(3)
    for count in (1, 3, 16, 33):
        ids = torch.randint(3, 60, (count,), generator=random)
        found.append(engine.decoder.forward(ids, [Row(memory, count)], logits="all"))
    memory.truncate(201)
    tails = [engine.new_cache(50) for _ in range(3)]
    for counts in ((4, 1, 5), (1, 1, 1), (30, 2, 9)):
        rows = [Row(tail, count) for tail, count in zip(tails, counts, strict=True)]
        ids = torch.randint(3, 60, (sum(counts),), generator=random)
        found.append(engine.decoder.forward(ids, rows, prefix=memory, logits="all"))
    return torch.cat(found)


def _check(decoder: Decoder, bits: int, near: float) -> None:
    engine, memories = _memories(decoder, bits)
    packed, same, original = (_continued(engine, memory) for memory in memories)
    assert_close(packed, same.double(), "logits", near)
    moved = float((same - original).abs().max() / original.abs().max())
    assert 0 < moved < (0.05 if bits == 8 else 0.6)


# Native kernels round queries to integers of 14 bits where keys are packed; torch unpacks.
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("candidate", ["native", "torch"])
def test_layers_one_by_one_are_the_unpacked_memory(candidate: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if candidate == "native" and (reason := native.unavailable()):
        pytest.skip(reason)
    monkeypatch.setattr(attention, "CANDIDATES", tuple(c for c in attention.CANDIDATES if c.name == candidate))
    windowed = replace(tiny_config(num_layers=3), local_rope=RopeConfig(100.0), windows=(70, None, 5))
    for config in (tiny_config(), windowed):
        _check(tiny_decoder(config), bits, 3e-3 if candidate == "native" else 2e-5)


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["gemma3", "qwen2"])
def test_all_layers_in_one_call_equal_the_unpacked_memory(name: str, bits: int, tmp_path: Path) -> None:
    assert name in FAMILIES
    _reference(name, tmp_path)
    decoder = _pack(load_decoder(tmp_path, dtype=torch.float32))
    assert decoder._stack is not None
    _check(decoder, bits, 2e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_step_writes_nothing_into_the_memory(bits: int) -> None:
    engine, (memory, *_) = _memories(tiny_decoder(), bits)
    assert memory.packed is not None
    before = {name: getattr(memory.packed, name).clone() for name in ("key_codes", "key_scale", "value_codes")}
    list(engine.generate(memory, [5, 6, 7], max_tokens=9))
    engine.generate_batch(memory, [[5, 6], [7]], max_tokens=9)
    assert all(torch.equal(getattr(memory.packed, name), held) for name, held in before.items())


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_memory_holds_what_it_was_given_to_half_a_step(bits: int) -> None:
    """Codes round to half a step; that the grid is in float16 moves them by 2^-11 of its numbers more."""
    _, (packed, same, original) = _memories(tiny_decoder(), bits)
    grid = packed.packed
    assert grid is not None
    key_step = grid.key_scale.repeat_interleave(64, 1).unflatten(0, (2, 2)).float()
    value_step = grid.value_scale.unflatten(0, (2, 2)).float()[..., None]
    for found, expected, step in ((same.keys, original.keys, key_step), (same.values, original.values, value_step)):
        wide = expected[:, :, :192].abs().amax() * 2**-10
        assert ((found[:, :, :192] - expected[:, :, :192]).abs() <= step / 2 + wide).all()
        assert torch.equal(found[:, :, 192:201], expected[:, :, 192:201])


@pytest.mark.parametrize("bits", [8, 4])
def test_greedy_tokens_are_those_of_the_same_numbers_unpacked(bits: int) -> None:
    engine, (packed, same, _) = _memories(tiny_decoder(), bits)
    prompts = [[5, 6], [7], [8, 9, 10, 11, 12]]
    expected = engine.generate_batch(same, prompts, max_tokens=16)
    assert engine.generate_batch(packed, prompts, max_tokens=16) == expected
    assert list(engine.generate(packed, prompts[0], max_tokens=16)) == expected[0]


@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
def test_a_memo_is_asked_from_a_packed_memory(kv_dtype: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    document, models = minimemo.Document.of(TEXT, "doc"), {"embedder": tiny_models.embedder}
    options = RunOptions(dtype="float32", kv_dtype=kv_dtype)
    memo = minimemo.build(document, tmp_path / "a.memo", model=tiny_models.decoder, options=options, **models)
    assert memo.manifest.recipe.params["dtype"] == "float32"  # it is built from dense keys and values
    memory = whole_memory(memo)
    assert memory.bits == options.memory_bits() and memory.start == memory.length // 64 * 64 > 0
    plain = minimemo.open(memo.folder, options=RunOptions(dtype="float32"), **models)
    tokens = plain.model().tokenizer.encode("Hello world")
    dense, packed = whole_memory(plain), memory
    expected, found = plain.model().engine.prefill(dense, tokens), memo.model().engine.prefill(packed, tokens)
    assert 0 < (found - expected).abs().max() / expected.abs().max() < (0.05 if kv_dtype == "int8" else 0.3)
    for mode in ("memorag", "memory"):
        answer = memo.ask("What did user number 3 say?", mode, max_tokens=4)  # type: ignore[arg-type]
        assert answer.generated_tokens > 0
    again = memo.ask("What did user number 3 say?", "memory", max_tokens=4)
    assert (again.text, again.prefilled_tokens) == (answer.text, answer.prefilled_tokens)


def test_an_exact_memory_is_not_rounded(tiny_models: TinyModels, tmp_path: Path) -> None:
    document = minimemo.Document.of(TEXT, "doc")
    options = RunOptions(dtype="float32", kv_dtype="int8")
    memo = minimemo.build(document, tmp_path / "a.memo", **tiny_models.both, memory="exact", options=options)
    with pytest.raises(MemoError, match=r"exact in float32, .* in int8: open it with kv-dtype float32"):
        whole_memory(memo)


def test_command_line(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("doc.txt").write_text(TEXT)
    assert main(["build", "doc.txt", *tiny_models.options]) == 0
    ask = ["ask", "doc.memo", "What did user 3 say?", "--mode", "memorag", "--max-tokens", "2", *tiny_models.options]
    assert main([*ask, "--kv-dtype", "int4"]) == 0
