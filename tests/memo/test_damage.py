"""Memories of every codec on disk: damage is named, bytes are the same every time, bombs are refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minimemo.errors import MemoError
from minimemo.kernels import native
from minimemo.memory.blocks import KVBlock
from minimemo.memory.codec import Codec, ExactCodec, KVLayout
from minimemo.memory.int4 import Int4Codec
from minimemo.memory.profile import Opening, Profile, Statistics, joint, save_profile
from minimemo.memory.reader import MemoryReader
from minimemo.memory.transform import TransformCodec
from minimemo.memory.writer import writing
from tests.kv import blocks_of

LAYOUT = KVLayout(2, 2, 16, "bfloat16")
BLOCKS = blocks_of(2 * 256 + 100, dtype=torch.bfloat16)
CODECS = ("exact", "int4", "klt", "klt coarse")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    halves = []
    for kind in ("keys", "values"):
        statistics = Statistics(64)
        for block in BLOCKS:
            statistics.add(joint(getattr(block, kind)))
        halves.append([statistics.transform(1 / statistics.deviation(2).float())])
    first = BLOCKS[0]
    opening = Opening(
        torch.from_numpy(first.ids[:9].copy()), torch.stack((first.keys, first.values))[:, :, :, :9].contiguous()
    )
    return save_profile("f" * 64, halves[0], halves[1], tmp_path_factory.mktemp("profiles"), [opening])


def codec_of(name: str, profile: Profile) -> Codec:
    if name == "exact":
        return ExactCodec(LAYOUT)
    if name == "int4":
        return Int4Codec(LAYOUT)
    return TransformCodec(LAYOUT, profile, *((2.0, 3.0) if "coarse" in name else (0.1, 0.1)))


def write(path: Path, codec: Codec, blocks: list[KVBlock] = BLOCKS) -> bytes:
    with writing(path, {"codec": codec.name, "params": codec.params()}, level=codec.level) as writer:
        for block in blocks:
            following = sum(b.tokens for b in blocks) - block.start - block.tokens
            writer.add(block.hash, block.ids, codec.encode(block, following))
    return path.read_bytes()


@pytest.mark.parametrize("name", CODECS)
def test_every_damaged_frame_names_its_block(name: str, profile: Profile, tmp_path: Path) -> None:
    """And the other blocks are read as if nothing had happened."""
    codec, path = codec_of(name, profile), tmp_path / "memory.bin"
    content = bytearray(write(path, codec))
    with MemoryReader(path) as reader:
        whole = [reader.payload(index) for index in range(3)]
        frames = [(i, [int(x) for x in reader._index[i]["frames"]["length"]], reader.block(i).offset) for i in range(3)]
    for block, lengths, at in frames:
        for number, length in enumerate(lengths):
            if not length:
                continue
            content[at + length // 2] ^= 0x20
            path.write_bytes(content)
            with MemoryReader(path) as reader:
                with pytest.raises(MemoError, match=rf"damaged \(checksum of block {block}\)"):
                    (reader.payload if number else reader.ids)(block)
                with pytest.raises(MemoError, match=f"checksum of block {block}"):
                    reader.verify()
                assert all(reader.payload(other) == whole[other] for other in range(3) if other != block)
            content[at + length // 2] ^= 0x20
            at += length


@pytest.mark.parametrize("name", CODECS)
def test_the_same_file_every_time(name: str, profile: Profile, tmp_path: Path) -> None:
    """Twice, and on one thread and two; and what is decoded is the same too."""
    codec, before = codec_of(name, profile), torch.get_num_threads()
    files, numbers = [], []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            files.append(write(tmp_path / "memory.bin", codec))
            with MemoryReader(tmp_path / "memory.bin") as reader:
                found = [torch.stack(codec.decode(reader.payload(i), reader.block(i).tokens)) for i in range(3)]
            numbers.append(torch.cat(found, dim=3))
    finally:
        torch.set_num_threads(before)
    assert files[0] == files[1] == files[2]
    assert torch.equal(numbers[0], numbers[1]) and torch.equal(numbers[1], numbers[2])


@pytest.mark.parametrize("way", ["native", "numpy"])
@pytest.mark.parametrize("name", CODECS)
def test_a_stream_that_inflates_is_refused_before_it_is_widened(
    name: str, way: str, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container lets a block inflate up to its limit; a codec must not make a multiple of that of it."""
    if way == "numpy":
        monkeypatch.setattr(native, "unavailable", lambda: "not here")
    codec, size = codec_of(name, profile), 32 << 20
    streams = codec.encode(BLOCKS[2], 0)
    for fill in (b"\0", b"\xff", b"\1"):
        bomb = fill * size
        for number in range(len(streams)):
            tracemalloc.start()
            with pytest.raises(MemoError):
                codec.decode((*streams[:number], bomb, *streams[number + 1 :]), 100)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 1.5 * size, (number, peak)


def fuzzed(streams: tuple[bytes, ...], data: st.DataObject) -> tuple[bytes, ...]:
    found = [bytearray(stream) for stream in streams]
    for _ in range(data.draw(st.integers(1, 4))):
        stream = found[data.draw(st.integers(0, len(found) - 1))]
        at = data.draw(st.integers(0, len(stream)))
        match data.draw(st.sampled_from(["set", "insert", "cut"])):
            case "set":
                stream[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case "insert":
                stream[at:at] = data.draw(st.binary(max_size=8))
            case "cut":
                del stream[at : at + data.draw(st.integers(0, 60))]
    return tuple(map(bytes, found))


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=70, deadline=None)
@given(data=st.data())
def test_fuzzed_streams_raise_only_memo_errors(name: str, profile: Profile, data: st.DataObject) -> None:
    codec = codec_of(name, profile)
    block = data.draw(st.sampled_from([0, 2]))
    streams = fuzzed(codec.encode(BLOCKS[block], 0), data)
    tokens = data.draw(st.sampled_from([BLOCKS[block].tokens, 1, 256]))
    try:
        keys, values = codec.decode(streams, tokens)
    except MemoError:
        return
    assert keys.shape == values.shape == LAYOUT.shape(tokens)
