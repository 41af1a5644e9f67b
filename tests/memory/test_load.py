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
from minimemo.memory import load
from minimemo.memory.blocks import BlockAssembler, KVBlock
from minimemo.memory.codec import Codec, KVLayout
from minimemo.memory.load import StoredMemory
from minimemo.memory.reader import MemoryReader
from minimemo.memory.tiers import make_codec
from minimemo.memory.view import MemoryView, Part, whole
from minimemo.memory.writer import writing
from minimemo.models.config import RopeConfig
from minimemo.models.decoder import Decoder
from minimemo.models.layers import DecoderWeights, LayerWeights, Linear, Projection
from minimemo.models.rope import RopeTable
from tests.helpers import assert_close
from tests.kv import blocks_of
from tests.memories import all_ids
from tests.tiny import tiny_config, tiny_decoder, tiny_engine

DTYPES = [torch.float32, torch.bfloat16]


def codec_for(name: str, engine: Engine) -> Codec:
    c = engine.config
    layout = KVLayout(c.num_layers, c.num_kv_heads, c.head_dim, str(engine.kv_dtype).removeprefix("torch."))
    return make_codec(name, {key: getattr(layout, key) for key in KVLayout.__dataclass_fields__})


def store(path: Path, codec: Codec, blocks: Sequence[KVBlock]) -> MemoryReader:
    with writing(path, {"codec": codec.name, "params": codec.params()}) as writer:
        for block in blocks:
            writer.add(block.hash, block.ids, codec.encode(block))
    return MemoryReader(path)


def load_whole(reader: MemoryReader, codec: Codec, engine: Engine, room: int = 0) -> KVCache:
    return StoredMemory([(reader, codec)], engine).load(whole([reader.extent]), room)


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
    codec = codec_for("exact", engine)
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        restored = load_whole(reader, codec, engine, 50)
        assert all_ids(reader).tolist() == ids
    assert restored.length == original.length == 600
    assert torch.equal(restored.keys[:, :, :600], original.keys[:, :, :600])
    assert torch.equal(restored.values[:, :, :600], original.values[:, :, :600])
    assert torch.equal(engine.prefill(restored, [1, 2, 3]), engine.prefill(original, [1, 2, 3]))


def test_layers_with_different_rotations(tmp_path: Path) -> None:
    engine = Engine(two_rope_decoder())
    original, codec = engine.new_cache(300), codec_for("exact", engine)
    blocks = read_into_blocks(engine, original, [(37 * i) % 64 for i in range(300)])
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        restored = load_whole(reader, codec, engine)
    assert torch.equal(restored.keys, original.keys)


@pytest.mark.parametrize("dtype", DTYPES)
def test_int4_memory_is_within_the_codec_s_bound(tmp_path: Path, dtype: torch.dtype) -> None:
    """RoPE turns pairs, so a key moves by at most the square root of two times what its two numbers may move."""
    engine = Engine(in_dtype(tiny_decoder(), dtype))
    original, codec = engine.new_cache(300), codec_for("int4", engine)
    blocks = read_into_blocks(engine, original, [(37 * i) % 64 for i in range(300)])
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        restored = load_whole(reader, codec, engine)
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
    engines = [Engine(tiny_decoder(), kv_dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    codec = codec_for("int4", engines[1])
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        wide, narrow = (load_whole(reader, codec, engine) for engine in engines)
    assert torch.equal(wide.keys.bfloat16(), narrow.keys)


def test_chosen_blocks_at_other_positions(tmp_path: Path) -> None:
    """Block 3 and a part of block 1 of a memory, closed up, with room for 68 tokens more."""
    blocks, engine = blocks_of(900), tiny_engine()
    codec = codec_for("exact", engine)
    events: list[Event] = []
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        memory = StoredMemory([(reader, codec)], engine, events.append)
        cache = memory.load(MemoryView((Part(0, 3, 0, 132), Part(0, 1, 56, 256))), 68)
    rope = RopeTable(tiny_config())
    cos, sin = rope.of_spans([(0, 332)], torch.device("cpu"))[rope.kind[0]]
    expected = apply_rope(torch.cat((blocks[3].keys, blocks[1].keys[:, :, 56:]), dim=2), cos, sin)
    assert (cache.length, cache.capacity) == (132 + 200, 400)
    assert torch.equal(cache.keys[:, :, :332], expected)
    assert torch.equal(cache.values[:, :, :332], torch.cat((blocks[3].values, blocks[1].values[:, :, 56:]), dim=2))
    assert [(event.done, event.total) for event in events] == [(1, 2), (2, 2)]


def test_empty_view(tmp_path: Path) -> None:
    engine = tiny_engine()
    codec = codec_for("exact", engine)
    with store(tmp_path / "memory.bin", codec, []) as reader:
        cache = load_whole(reader, codec, engine, 10)
    assert (cache.length, cache.capacity) == (0, 10)


def test_what_does_not_fit_is_refused_by_how_much(tmp_path: Path) -> None:
    engine = tiny_engine()
    codec = codec_for("exact", engine)

    def other(**shape: int) -> Engine:
        return Engine(tiny_decoder(replace(tiny_config(), windows=(), **shape)))  # type: ignore[arg-type]

    with store(tmp_path / "memory.bin", codec, blocks_of(300)) as reader:
        assert load_whole(reader, codec, tiny_engine(max_context=310), 50).capacity == 310
        with pytest.raises(MemoError, match="300 tokens exceed the cache of 290 by 10: choose fewer blocks"):
            load_whole(reader, codec, tiny_engine(max_context=290))
        with pytest.raises(MemoError, match=r"exact in float32, the model runs with keys and values in bfloat16"):
            load_whole(reader, codec, Engine(tiny_decoder(), kv_dtype=torch.bfloat16))
        for shape in ({"num_layers": 3}, {"num_kv_heads": 1}, {"head_dim": 32}):
            with pytest.raises(MemoError, match="with the model that it was built with"):
                load_whole(reader, codec, other(**shape))
        with pytest.raises(IndexError):
            StoredMemory([(reader, codec)], engine).load(MemoryView((Part(0, 2, 0, 9),)), 0)


def test_damage_names_its_block(tmp_path: Path) -> None:
    """Where the block's ids are damaged as well, nothing can be computed again."""
    engine, path = tiny_engine(), tmp_path / "memory.bin"
    codec = codec_for("int4", engine)
    with store(path, codec, blocks_of(900)) as reader:
        last = reader.block(3)
    data = bytearray(path.read_bytes())
    for at in (last.offset, last.offset + last.length - 1):
        data[at] ^= 1
    path.write_bytes(data)
    with MemoryReader(path) as reader, pytest.raises(MemoError, match="checksum of block 3"):
        load_whole(reader, codec, engine)


def test_a_damaged_block_is_computed_from_its_ids_unless_the_cache_packs(tmp_path: Path) -> None:
    """The others are loaded; the note names the damage."""
    ids = [(37 * i) % 64 for i in range(600)]
    engine, packing = tiny_engine(), Engine(tiny_decoder(), memory_bits=8)
    original, codec = engine.new_cache(600), codec_for("exact", engine)
    path, events = tmp_path / "memory.bin", list[Event]()
    with store(path, codec, read_into_blocks(engine, original, ids)) as reader:
        second = reader.block(1)
    data = bytearray(path.read_bytes())
    data[second.offset + second.length - 1] ^= 1
    path.write_bytes(data)
    int4 = codec_for("int4", engine)
    with MemoryReader(path) as reader:
        cache = StoredMemory([(reader, codec)], engine, events.append).load(whole([reader.extent]), 0)
        with pytest.raises(MemoError, match=r"memory\.bin: block 0: 8 streams where 14 belong; build it again"):
            load_whole(reader, int4, packing)
    assert cache.length == 600
    assert_close(cache.keys, original.keys.double(), "keys")
    (note,) = [event.stage for event in events if event.unit == "note"]
    assert "checksum of block 1" in note and note.endswith("computed from its text for now")


def test_the_blocks_used_last_are_kept_within_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm question decodes nothing; a bound of two blocks keeps two."""
    blocks, engine = blocks_of(900), tiny_engine()
    codec = codec_for("int4", engine)
    monkeypatch.setattr(load, "KEPT_BYTES", 2 * 2 * blocks[0].keys.numel() * 4)
    with store(tmp_path / "memory.bin", codec, blocks) as reader:
        memory = StoredMemory([(reader, codec)], engine)
        first = memory.block(0, 0)
        for index in (0, 1, 0, 2, 0):
            assert torch.equal(memory.block(0, index)[0], codec.decode(reader.payload(index), 256)[0])
        assert memory.decoded == 3 and memory.block(0, 0) is first
        memory.block(0, 1)  # 2 and 0 were used after it
        assert memory.decoded == 4
        memory.load(whole(memory.extents), 0)
        memory.block(0, 0)  # nothing is kept beside a cache that holds everything
        assert memory.decoded == 4 + 2 + 1


def test_a_view_takes_from_several_memories(tmp_path: Path) -> None:
    blocks, engine = blocks_of(300), tiny_engine()
    codec = codec_for("exact", engine)
    with store(tmp_path / "a.bin", codec, blocks) as one, store(tmp_path / "b.bin", codec, blocks[:1]) as two:
        memory = StoredMemory([(one, codec), (two, codec)], engine)
        cache = memory.load(MemoryView((Part(0, 1, 0, 44), Part(1, 0, 30, 256))), 0)
    assert [extent.tokens for extent in memory.extents] == [300, 256]
    assert torch.equal(cache.values[:, :, :44], blocks[1].values)
    assert torch.equal(cache.values[:, :, 44:270], blocks[0].values[:, :, 30:])


def test_a_header_that_puts_the_document_nowhere_is_refused(tmp_path: Path) -> None:
    engine = tiny_engine()
    codec = codec_for("int4", engine)
    for opening in (-1, 301, "30", True):
        with writing(tmp_path / "memory.bin", {"opening_tokens": opening}) as writer:
            for block in blocks_of(300):
                writer.add(block.hash, block.ids, codec.encode(block))
        with MemoryReader(tmp_path / "memory.bin") as reader, pytest.raises(MemoError, match="build it again"):
            StoredMemory([(reader, codec)], engine)
