"""A memory goes back into a cache: bit-equal from the exact tier, within the codec's bound from int4, anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minimemo.engine.cache import KVCache
from minimemo.engine.engine import Engine
from minimemo.errors import MemoError
from minimemo.events import Event
from minimemo.kernels import apply_rope
from minimemo.memory.blocks import BlockAssembler, KVBlock
from minimemo.memory.codec import Codec, KVLayout
from minimemo.memory.load import DecodedBlocks, StoredBlocks, load
from minimemo.memory.reader import MemoryReader
from minimemo.memory.registry import make_codec
from minimemo.memory.view import MemoryView, Part
from minimemo.memory.writer import MemoryWriter
from minimemo.models.config import RopeConfig
from minimemo.models.decoder import Decoder, DecoderWeights, LayerWeights
from minimemo.models.layers import Linear, Projection
from minimemo.models.rope import RopeTable
from tests.kv import blocks_of
from tests.memories import load_whole
from tests.tiny import tiny_config, tiny_decoder

DTYPES = [torch.float32, torch.bfloat16]


def codec_for(name: str, cache: KVCache) -> Codec:
    layers, heads, _, dim = cache.keys.shape
    layout = KVLayout(layers, heads, dim, str(cache.dtype).removeprefix("torch."))
    return make_codec(name, {key: getattr(layout, key) for key in KVLayout.__dataclass_fields__})


def store(path: Path, codec: Codec, blocks: Sequence[KVBlock]) -> MemoryReader:
    with MemoryWriter(path, {"codec": codec.name, "params": codec.params()}) as writer:
        for block in blocks:
            writer.add(block.hash, block.ids, codec.encode(block))
    return MemoryReader(path)


def read_into_blocks(engine: Engine, cache: KVCache, ids: Sequence[int]) -> list[KVBlock]:
    assembler, blocks = BlockAssembler(), []
    for piece in engine.read(cache, ids):
        blocks += assembler.push(piece.ids, piece.keys, piece.values)
    last = assembler.finish()
    return blocks + ([last] if last else [])


def in_dtype(decoder: Decoder, dtype: torch.dtype) -> Decoder:
    """The same weights, rounded."""

    def linear(x: Projection) -> Linear:
        assert isinstance(x, Linear)
        return Linear(x.weight.to(dtype), None if x.bias is None else x.bias.to(dtype))

    def layer(x: LayerWeights) -> LayerWeights:
        norms = {"attention_norm": x.attention_norm.to(dtype), "mlp_norm": x.mlp_norm.to(dtype)}
        return replace(x, qkv=linear(x.qkv), out=linear(x.out), gate_up=linear(x.gate_up), down=linear(x.down), **norms)

    w = decoder.weights
    layers = tuple(layer(x) for x in w.layers)
    return Decoder(decoder.config, DecoderWeights(linear(w.embedding), layers, w.norm.to(dtype), linear(w.head)))


def two_rope_decoder() -> Decoder:
    """Gemma's way: windowed layers rotate with another base."""
    config = replace(tiny_config(num_layers=3), local_rope=RopeConfig(100.0), windows=(64, None, 64))
    return tiny_decoder(config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [97, 256, 600])
def test_exact_memory_equals_the_cache_it_came_from(tmp_path: Path, dtype: torch.dtype, chunk: int) -> None:
    """Read, saved, opened, loaded: keys, values and the next logits, bit for bit."""
    ids = [(37 * i) % 64 for i in range(600)]
    engine = Engine(in_dtype(tiny_decoder(), dtype), chunk=chunk)
    original = engine.new_cache(700)
    blocks = read_into_blocks(engine, original, ids)
    restored = engine.new_cache(650)
    with store(tmp_path / "memory.bin", codec_for("exact", original), blocks) as reader:
        load_whole(reader, codec_for("exact", original), engine.decoder.rope, restored)
        assert reader.all_ids().tolist() == ids
    assert restored.length == original.length == 600
    assert torch.equal(restored.keys[:, :, :600], original.keys[:, :, :600])
    assert torch.equal(restored.values[:, :, :600], original.values[:, :, :600])
    assert torch.equal(engine.prefill(restored, [1, 2, 3]), engine.prefill(original, [1, 2, 3]))


def test_layers_with_different_rotations(tmp_path: Path) -> None:
    engine = Engine(two_rope_decoder())
    original, restored = engine.new_cache(300), engine.new_cache(300)
    blocks = read_into_blocks(engine, original, [(37 * i) % 64 for i in range(300)])
    with store(tmp_path / "memory.bin", codec_for("exact", original), blocks) as reader:
        load_whole(reader, codec_for("exact", original), engine.decoder.rope, restored)
    assert torch.equal(restored.keys, original.keys)


@pytest.mark.parametrize("dtype", DTYPES)
def test_int4_memory_is_within_the_codec_s_bound(tmp_path: Path, dtype: torch.dtype) -> None:
    """RoPE turns pairs, so a key moves by at most the square root of two times what its two numbers may move."""
    engine = Engine(in_dtype(tiny_decoder(), dtype))
    original, restored = engine.new_cache(300), engine.new_cache(300)
    blocks = read_into_blocks(engine, original, [(37 * i) % 64 for i in range(300)])
    codec = codec_for("int4", original)
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        load_whole(reader, codec, engine.decoder.rope, restored)
    assert restored.dtype == dtype
    coded = torch.cat([block.keys for block in blocks], dim=2).float()
    half_step = (coded.amax(2) - coded.amin(2)).amax() / 30 * 1.01
    rounding = 2**-8 * coded.abs().max() if dtype == torch.bfloat16 else 1e-5
    error = (restored.keys.float() - original.keys.float()).abs()
    assert 0 < error.max() <= 2**0.5 * half_step + 2 * rounding
    assert torch.equal(restored.keys[:, :, :4], original.keys[:, :, :4])
    assert torch.equal(restored.values[:, :, :4], original.values[:, :, :4])


def test_int4_memory_opens_in_another_dtype(tmp_path: Path) -> None:
    """A memory built in bfloat16 on one machine serves a float32 model on another."""
    blocks = blocks_of(300, dtype=torch.bfloat16)
    rope = RopeTable(tiny_config())
    wide, narrow = KVCache(2, 2, 16, 300, torch.float32), KVCache(2, 2, 16, 300, torch.bfloat16)
    codec = codec_for("int4", narrow)
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        for cache in (wide, narrow):
            load_whole(reader, codec, rope, cache)
    assert torch.equal(wide.keys.bfloat16(), narrow.keys)


def test_chosen_blocks_at_other_positions(tmp_path: Path) -> None:
    """Blocks 3 and a part of 1 of a memory, closed up behind 5 tokens that were there before."""
    blocks = blocks_of(900)
    rope = RopeTable(tiny_config())
    cache = KVCache(2, 2, 16, 400, torch.float32)
    cache.keys.fill_(7)
    cache.length = 5
    codec = codec_for("exact", cache)
    events: list[Event] = []
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        decoded = DecodedBlocks([StoredBlocks(reader, codec)])
        load(decoded, MemoryView((Part(0, 3, 0, 132), Part(0, 1, 56, 256))), rope, cache, events.append)
    cos, sin = rope.tables(torch.arange(5, 337))[rope.kind[0]]
    expected = apply_rope(torch.cat((blocks[3].keys, blocks[1].keys[:, :, 56:]), dim=2), cos, sin)
    assert cache.length == 5 + 132 + 200
    assert torch.equal(cache.keys[:, :, 5:337], expected)
    assert torch.equal(cache.values[:, :, 5:337], torch.cat((blocks[3].values, blocks[1].values[:, :, 56:]), dim=2))
    assert (cache.keys[:, :, :5] == 7).all()
    assert (cache.keys[:, :, 337:] == 7).all()
    assert [(event.done, event.total) for event in events] == [(1, 2), (2, 2)]


def test_empty_view(tmp_path: Path) -> None:
    cache = KVCache(2, 2, 16, 10, torch.float32)
    with store(tmp_path / "memory.bin", codec_for("exact", cache), []) as reader:
        load_whole(reader, codec_for("exact", cache), RopeTable(tiny_config()), cache)
    assert cache.length == 0


def test_what_does_not_fit_is_refused_by_how_much(tmp_path: Path) -> None:
    rope = RopeTable(tiny_config())
    cache = KVCache(2, 2, 16, 290, torch.float32)
    cache.length = 30
    codec = codec_for("exact", cache)
    with store(tmp_path / "memory.bin", codec, blocks_of(300)) as reader:
        with pytest.raises(MemoError, match="300 tokens after 30 others exceed the cache of 290 by 40"):
            load_whole(reader, codec, rope, cache)
        with pytest.raises(MemoError, match=r"exact in float32, the model runs with keys and values in bfloat16"):
            load_whole(reader, codec, rope, KVCache(2, 2, 16, 300, torch.bfloat16))
        for layers, heads, dim in ((3, 2, 16), (2, 1, 16), (2, 2, 32)):
            with pytest.raises(MemoError, match="with the model that it was built with"):
                load_whole(reader, codec, rope, KVCache(layers, heads, dim, 300, torch.float32))
        with pytest.raises(IndexError):
            load(DecodedBlocks([StoredBlocks(reader, codec)]), MemoryView((Part(0, 2, 0, 9),)), rope, cache)
    assert cache.length == 30


def test_a_damaged_block_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    rope, cache = RopeTable(tiny_config()), KVCache(2, 2, 16, 900, torch.float32)
    codec = codec_for("int4", cache)
    path = tmp_path / "memory.bin"
    with store(path, codec, blocks_of(900)) as reader:
        last = reader.block(3)
    data = bytearray(path.read_bytes())
    data[last.offset + last.length - 1] ^= 1
    path.write_bytes(data)
    with MemoryReader(path) as reader, pytest.raises(MemoError, match="checksum of block 3"):
        load_whole(reader, codec, rope, cache)
    assert cache.length == 0


def test_streams_of_another_codec_are_refused(tmp_path: Path) -> None:
    rope, cache = RopeTable(tiny_config()), KVCache(2, 2, 16, 300, torch.float32)
    with (
        store(tmp_path / "memory.bin", codec_for("exact", cache), blocks_of(300)) as reader,
        pytest.raises(MemoError, match=r"memory\.bin: block 0: 8 streams where 14 belong; build it again"),
    ):
        load_whole(reader, codec_for("int4", cache), rope, cache)


def test_the_blocks_used_last_are_kept_within_bytes(tmp_path: Path) -> None:
    """A warm question decodes nothing; a bound of two blocks keeps two."""
    blocks = blocks_of(900)
    cache = KVCache(2, 2, 16, 10, torch.float32)
    codec = codec_for("int4", cache)
    size = 2 * blocks[0].keys.numel() * 4
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        decoded = DecodedBlocks([StoredBlocks(reader, codec)], kept_bytes=2 * size)
        first = decoded.block(0, 0)
        for index in (0, 1, 0, 2, 0):
            assert torch.equal(decoded.block(0, index)[0], codec.decode(reader.payload(index), 256)[0])
        assert decoded.decoded == 3 and decoded.block(0, 0) is first
        decoded.block(0, 1)  # 2 and 0 were used after it
        assert decoded.decoded == 4
        decoded.forget()
        decoded.block(0, 0)
        assert decoded.decoded == 5


def test_a_view_takes_from_several_memories(tmp_path: Path) -> None:
    blocks = blocks_of(300)
    cache = KVCache(2, 2, 16, 500, torch.float32)
    codec = codec_for("exact", cache)
    with store(tmp_path / "a.bin", codec, blocks) as one, store(tmp_path / "b.bin", codec, blocks[:1]) as two:
        decoded = DecodedBlocks([StoredBlocks(one, codec), StoredBlocks(two, codec)])
        load(decoded, MemoryView((Part(0, 1, 0, 44), Part(1, 0, 30, 256))), RopeTable(tiny_config()), cache)
    assert torch.equal(cache.values[:, :, :44], blocks[1].values)
    assert torch.equal(cache.values[:, :, 44:270], blocks[0].values[:, :, 30:])


def test_a_header_that_puts_the_document_nowhere_is_refused(tmp_path: Path) -> None:
    cache = KVCache(2, 2, 16, 10, torch.float32)
    codec = codec_for("int4", cache)
    for opening in (-1, 301, "30", True):
        with MemoryWriter(tmp_path / "memory.bin", {"opening_tokens": opening}) as writer:
            for block in blocks_of(300):
                writer.add(block.hash, block.ids, codec.encode(block))
        with MemoryReader(tmp_path / "memory.bin") as reader, pytest.raises(MemoError, match="build it again"):
            StoredBlocks(reader, codec).extent  # noqa: B018
