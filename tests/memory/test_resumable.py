"""What a kill leaves of a memory.bin and of the exact end of a reading: taken up where it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minimemo.errors import MemoError
from minimemo.memory.blocks import KVBlock, chain
from minimemo.memory.codec import KVLayout
from minimemo.memory.int4 import Int4Codec
from minimemo.memory.reader import MemoryReader
from minimemo.memory.tail import ExactTail
from minimemo.memory.writer import MemoryWriter, writing
from tests.kv import blocks_of

CODEC = Int4Codec(KVLayout(2, 2, 16, "float32"))
BLOCKS = blocks_of(5 * 256 + 100)
HEADER = {"x": 1}


def _add(writer: MemoryWriter, blocks: list[KVBlock]) -> None:
    for block in blocks:
        writer.add(block.hash, block.ids, CODEC.encode(block))


def _left(path: Path, blocks: int) -> None:
    with pytest.raises(ZeroDivisionError), writing(path, HEADER) as writer:
        _add(writer, BLOCKS[:blocks])
        raise ZeroDivisionError


@pytest.fixture
def expected(tmp_path: Path) -> bytes:
    with writing(tmp_path / "whole", HEADER) as writer:
        _add(writer, BLOCKS)
    return (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("blocks", range(7))
def test_going_on_gives_the_same_bytes(tmp_path: Path, expected: bytes, blocks: int) -> None:
    """After any number of blocks, and once more after those; a last, partial one is not taken up."""
    _left(tmp_path / "memory", blocks)
    assert sorted(p.name for p in tmp_path.glob("memory*")) == ["memory.journal", "memory.part"]
    with writing(tmp_path / "memory", HEADER) as writer:
        assert writer.hashes == [block.hash for block in BLOCKS[: min(blocks, 5)]]
        writer.cut(blocks // 2)
        _add(writer, BLOCKS[blocks // 2 :])
    assert (tmp_path / "memory").read_bytes() == expected and not list(tmp_path.glob("memory.*"))


@pytest.mark.parametrize("name", ["memory.part", "memory.journal"])
def test_any_damage_only_costs_blocks(tmp_path: Path, expected: bytes, name: str) -> None:
    _left(tmp_path / "memory", 4)
    whole = {p.name: p.read_bytes() for p in tmp_path.glob("memory.*")}
    for at in range(0, len(whole[name]), max(1, len(whole[name]) // 40)):
        flipped = bytearray(whole[name])
        flipped[at] ^= 0x10
        for damaged in (bytes(flipped), whole[name][:at]):
            for other, content in whole.items():
                (tmp_path / other).write_bytes(damaged if other == name else content)
            with writing(tmp_path / "memory", HEADER) as writer:
                known = writer.hashes
                assert known == [block.hash for block in BLOCKS[: len(known)]]
                _add(writer, BLOCKS[len(known) :])
            assert (tmp_path / "memory").read_bytes() == expected


def test_another_header_begins_anew(tmp_path: Path) -> None:
    _left(tmp_path / "memory", 3)
    with writing(tmp_path / "memory", {"x": 2}) as writer:
        assert writer.hashes == []
        _add(writer, BLOCKS)
    with MemoryReader(tmp_path / "memory") as reader:
        reader.verify()
        assert reader.header == {"x": 2}


def test_blocks_of_another_memory(tmp_path: Path, expected: bytes) -> None:
    with MemoryReader(tmp_path / "whole") as reader, writing(tmp_path / "memory", HEADER) as writer:
        writer.take(reader, 4)
        with pytest.raises(ValueError, match="only an empty memory"):
            writer.take(reader, 1)
        _add(writer, BLOCKS[4:])
    assert (tmp_path / "memory").read_bytes() == expected
    damaged = bytearray(expected)
    damaged[len(damaged) // 3] ^= 1
    (tmp_path / "whole").write_bytes(damaged)
    with (
        pytest.raises(MemoError, match="damaged"),
        MemoryReader(tmp_path / "whole") as reader,
        writing(tmp_path / "again", HEADER) as writer,
    ):
        writer.take(reader, 4)


def test_chain_is_that_of_the_blocks() -> None:
    ids = torch.cat([torch.from_numpy(block.ids.copy()) for block in BLOCKS]).numpy()
    assert chain(ids, 9) == [block.hash for block in BLOCKS[:5]]
    assert chain(ids, 2) == [block.hash for block in BLOCKS[:2]] and chain(ids[:255], 1) == []


def test_a_tail_keeps_the_first_and_the_last(tmp_path: Path) -> None:
    with ExactTail(tmp_path / "tail", CODEC.layout, pinned=1, ring=2) as tail:
        for block in BLOCKS[:5]:
            tail.put(block)
    size = (tmp_path / "tail").stat().st_size
    with ExactTail(tmp_path / "tail", CODEC.layout, pinned=1, ring=2) as tail:
        held = [index for index, block in enumerate(BLOCKS[:5]) if tail.has(index, block.hash)]
        assert held == [0, 3, 4] and size == 3 * (32 + 2 * 2 * 2 * 256 * 16 * 4)
        for index in held:
            found = tail.get(index, BLOCKS[index].hash)
            assert found and torch.equal(found[0], BLOCKS[index].keys) and torch.equal(found[1], BLOCKS[index].values)
        assert tail.get(0, BLOCKS[1].hash) is None and tail.get(8, BLOCKS[3].hash) is None
        with pytest.raises(ValueError, match="exact tail: a block of"):
            tail.put(BLOCKS[5])
    content = bytearray((tmp_path / "tail").read_bytes())
    content[500] ^= 1
    (tmp_path / "tail").write_bytes(content)
    with ExactTail(tmp_path / "tail", CODEC.layout, pinned=1, ring=2) as tail:
        assert tail.has(0, BLOCKS[0].hash) and tail.get(0, BLOCKS[0].hash) is None
