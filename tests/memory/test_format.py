"""memory.bin: whole or absent, every byte under a checksum, and nothing a stranger's file can do but be refused."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimemo.errors import MemoError
from minimemo.events import Event
from minimemo.memory import writer
from minimemo.memory.blocks import FIRST_PREVIOUS, block_hash, token_array
from minimemo.memory.reader import MemoryReader
from minimemo.memory.writer import writing
from tests.memories import all_ids

HEADER = {"model": "m", "codec": "int4", "params": {"b": [1, 2.5, None], "a": "内存"}}
Block = tuple[Sequence[int], Sequence[bytes]]


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, the same on every machine."""
    state, found = seed + 1, bytearray()
    for _ in range(size):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        found.append(state >> 56)
    return bytes(found)


BLOCKS: list[Block] = [
    (range(1000, 1256), (noise(300), b"\0" * 5000, b"")),
    ([(7919 * i) % 150_000 for i in range(256)], (b"text " * 40, noise(90, 1), noise(64, 2))),
    ([5, 6, 149_999], (b"", b"x", noise(10, 3))),
]


def write(path: Path, blocks: Sequence[Block] = BLOCKS, header: dict[str, object] | None = None) -> bytes:
    previous = FIRST_PREVIOUS
    with writing(path, HEADER if header is None else header) as writer:
        held = len(writer.hashes)  # of a writer before that failed
        for number, (ids, streams) in enumerate(blocks):
            previous = block_hash(previous, token_array(ids))
            if number >= held:
                writer.add(previous, ids, streams)
    return path.read_bytes()


def read_all(path: Path) -> None:
    """Everything a reader can do. Raises MemoError for any damage."""
    with MemoryReader(path) as reader:
        reader.verify()
        reader.sizes()
        all_ids(reader)
        [reader.block(index) for index in range(len(reader))]


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory.bin"
    write(path)
    return path


def test_what_is_written_is_read(memory: Path) -> None:
    events: list[Event] = []
    with MemoryReader(memory) as reader:
        assert reader.header == HEADER
        assert (len(reader), reader.tokens) == (3, 515)
        for index, (ids, streams) in enumerate(BLOCKS):
            assert reader.ids(index).tolist() == list(ids)
            assert reader.payload(index) == tuple(streams)
            assert reader.block(index).tokens == len(ids)
        assert all_ids(reader).tolist() == [token for ids, _ in BLOCKS for token in ids]
        assert all_ids(reader).dtype == np.int32
        assert sum(reader.sizes().values()) == memory.stat().st_size
        reader.verify(events.append)
        with pytest.raises(IndexError):
            reader.payload(3)
        with pytest.raises(IndexError):
            reader.ids(-1)
    assert [(event.done, event.total) for event in events] == [(1, 3), (2, 3), (3, 3)]


def test_no_blocks_and_no_streams(tmp_path: Path) -> None:
    write(tmp_path / "empty", [], {})
    write(tmp_path / "ids", [([1, 2], ())])
    with MemoryReader(tmp_path / "empty") as reader:
        assert (len(reader), reader.tokens, all_ids(reader).tolist(), reader.header) == (0, 0, [], {})
        reader.verify()
    with MemoryReader(tmp_path / "ids") as reader:
        assert (reader.payload(0), reader.ids(0).tolist()) == ((), [1, 2])


def test_same_blocks_same_bytes(tmp_path: Path) -> None:
    shuffled = dict(reversed(HEADER.items()))
    assert write(tmp_path / "a") == write(tmp_path / "b", header=shuffled)


def test_golden_file(tmp_path: Path) -> None:
    """Format v1, byte for byte. If this fails, the format has changed and needs another version number."""
    golden = bytes.fromhex(
        "4d494e494d454d4f010000001d0000007b22636f646563223a226578616374222c226d6f64656c223a226d227db8a3f7"
        "9c28b52ffd200c61000001027000001100000100000028b52ffd20084100006c82a562cb808d10310000000000000003"
        "000000eb9c41ceec79f61db7db3fcd29459b45150000000c00000078e8073a11000000080000000635e2670000000000"
        "00000000000000570000000000000003000000000000000100000003000000964d0ee28543f27b4f4d454d494e494d"
    )
    found = write(tmp_path / "new", [([1, 2, 70_000], (noise(8), b""))], {"model": "m", "codec": "exact"})
    assert found.hex() == golden.hex()
    (tmp_path / "old").write_bytes(golden)
    with MemoryReader(tmp_path / "old") as reader:
        reader.verify()
        assert reader.header == {"model": "m", "codec": "exact"}
        assert reader.payload(0) == (noise(8), b"")
        assert all_ids(reader).tolist() == [1, 2, 70_000]


def test_every_flipped_byte_is_found(memory: Path) -> None:
    data = bytearray(memory.read_bytes())
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        memory.write_bytes(data)
        with pytest.raises(MemoError, match=r"memory\.bin: .*minimemo build DOCUMENT"):
            read_all(memory)
        data[at] ^= 1 << at % 8


def test_truncations_are_found_on_opening(memory: Path) -> None:
    data = memory.read_bytes()
    for size in sorted({*range(150), *range(0, len(data), 7), *range(len(data) - 150, len(data))}):
        memory.write_bytes(data[:size])
        with pytest.raises(MemoError, match="minimemo build DOCUMENT"):
            MemoryReader(memory)
    memory.write_bytes(data + b"\0")
    with pytest.raises(MemoError, match="minimemo build DOCUMENT"):
        MemoryReader(memory)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(MemoError, match="absent: cannot be read: No such file"):
        MemoryReader(tmp_path / "absent")
    with pytest.raises(MemoError, match="cannot be read: Is a directory"):
        MemoryReader(tmp_path)
    (tmp_path / "foreign").write_bytes(b"GGUF" + bytes(500))
    with pytest.raises(MemoError, match="not a memory of minimemo"):
        MemoryReader(tmp_path / "foreign")


def test_other_versions_are_refused_by_number(memory: Path) -> None:
    data = bytearray(memory.read_bytes())
    data[8] = 2
    memory.write_bytes(data)
    with pytest.raises(MemoError, match="memory format 2, but this minimemo reads format 1; build it again"):
        MemoryReader(memory)


# -- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_an_error_leaves_only_what_the_next_writer_goes_on_from(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), writing(tmp_path / "memory.bin", HEADER) as writer:
        writer.add(block_hash(FIRST_PREVIOUS, token_array([1])), [1], [b"x"])
        raise error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.bin.journal", "memory.bin.part"]
    write(tmp_path / "memory.bin")
    read_all(tmp_path / "memory.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["memory.bin"]


def test_the_old_file_stays_until_the_new_one_is_whole(memory: Path) -> None:
    old = memory.read_bytes()
    with pytest.raises(ZeroDivisionError), writing(memory, {}) as writer:
        assert memory.read_bytes() == old
        writer.add(block_hash(FIRST_PREVIOUS, token_array([1])), [1], [])
        raise ZeroDivisionError
    assert memory.read_bytes() == old
    assert write(memory, [], {}) != old
    assert [path.name for path in memory.parent.iterdir()] == ["memory.bin"]


@pytest.mark.parametrize("fails", ["open", "header", "block", "fsync", "rename"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Wherever the disk fills up: the system's own error, and no file under the memory's name; then it goes on."""
    path = tmp_path / "memory.bin"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: object) -> None:
        raise full

    def limited(path: Path, mode: str, buffering: int) -> object:
        """A file that takes nothing, or nothing after the header."""
        if fails == "open":
            raise full
        file = open(path, mode, buffering=0)  # noqa: SIM115
        room = [0 if fails == "header" else 300]

        class Limited:
            close, flush, read, seek, truncate = file.close, file.flush, file.read, file.seek, file.truncate

            def write(self, data: bytes) -> None:
                room[0] -= len(data)
                if room[0] < 0:
                    raise full
                file.write(data)

        return Limited()

    if fails == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif fails == "rename":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(writer, "open", limited, raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        write(path)
    monkeypatch.undo()
    assert not path.exists()
    write(path)
    read_all(path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_unusable_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "absent" / "memory.bin")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="director"):
        write(tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_blocks_that_do_not_continue_the_file_are_refused(tmp_path: Path) -> None:
    with writing(tmp_path / "memory.bin", HEADER) as writer:
        first = block_hash(FIRST_PREVIOUS, token_array(range(256)))
        with pytest.raises(ValueError, match="0 tokens"):
            writer.add(block_hash(FIRST_PREVIOUS, token_array([])), [], [])
        with pytest.raises(ValueError, match="257 tokens"):
            writer.add(block_hash(FIRST_PREVIOUS, token_array(range(257))), range(257), [])
        with pytest.raises(ValueError, match="does not chain"):
            writer.add(bytes(16), range(256), [])
        writer.add(first, range(256), [b"a", b"b"])
        with pytest.raises(ValueError, match="does not chain"):
            writer.add(first, range(256), [b"a", b"b"])
        second = block_hash(first, token_array([1]))
        with pytest.raises(ValueError, match="1 streams after blocks of 2"):
            writer.add(second, [1], [b"a"])
        writer.add(second, [1], [b"a", b"b"])
        with pytest.raises(ValueError, match="1 tokens cannot follow 257"):
            writer.add(block_hash(second, token_array([1])), [1], [b"a", b"b"])
    with MemoryReader(tmp_path / "memory.bin") as reader:
        reader.verify()
        assert reader.tokens == 257


def test_misuse_of_the_writer(tmp_path: Path) -> None:
    for wrong, message in (({"x": float("nan")}, "JSON"), ({"x": "y" * (1 << 20)}, "exceeds")):
        with pytest.raises(ValueError, match=message), writing(tmp_path / "a", wrong):
            pass
    assert list(tmp_path.iterdir()) == []


# -- files of strangers: every checksum right, the content wrong ----------------------------------------------------


def sealed(header: bytes, frames: Sequence[bytes], entries: Sequence[bytes], tokens: int, per_block: int) -> bytes:
    """A file with valid checksums around any content."""
    prologue = struct.pack("<8sHHI", b"MINIMEMO", 1, 0, len(header)) + header
    prologue += struct.pack("<I", crc32c(prologue))
    body, index = b"".join(frames), b"".join(entries)
    footer = struct.pack("<QQIII", len(prologue) + len(body), tokens, len(entries), per_block, crc32c(index))
    return prologue + body + index + footer + struct.pack("<I", crc32c(footer)) + b"OMEMINIM"


def one_block(
    tokens: int = 2,
    ids: bytes | None = None,
    raw_ids: int | None = None,
    payload: bytes | None = None,
    raw_payload: int = 4,
    hash_: bytes | None = None,
    offset: int = 0,
    header: bytes = b"{}",
    total: int | None = None,
) -> bytes:
    """A file of one block of two tokens and one stream, with one thing wrong."""
    array = token_array([1, 2])
    compress = zstandard.ZstdCompressor().compress
    ids = compress(array.astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes()) if ids is None else ids
    payload = compress(b"abcd") if payload is None else payload
    entry = struct.pack("<QI", 20 + len(header) + offset, tokens)
    entry += block_hash(FIRST_PREVIOUS, array) if hash_ is None else hash_
    entry += struct.pack("<III", len(ids), 8 if raw_ids is None else raw_ids, crc32c(ids))
    entry += struct.pack("<III", len(payload), raw_payload, crc32c(payload))
    return sealed(header, [ids, payload], [entry], tokens if total is None else total, 2)


BOMB = zstandard.ZstdCompressor(level=1).compress(bytes(200 << 20))
STREAMED = zstandard.ZstdCompressor(write_content_size=False).compress(b"abcd")
CRAFTED = {
    "no tokens": one_block(tokens=0),
    "257 tokens": one_block(tokens=257),
    "more tokens than ids": one_block(tokens=3),
    "total": one_block(total=3),
    "ids that claim more": one_block(raw_ids=12),
    "ids that are none": one_block(ids=b"not zstd"),
    "gap": one_block(offset=1),
    "offset past the end": one_block(offset=2**62),
    "hash of other ids": one_block(hash_=bytes(16)),
    "bomb within the limit, claimed small": one_block(payload=BOMB, raw_payload=4),
    "claims 4 GB": one_block(raw_payload=2**32 - 1),
    "claims less than it holds": one_block(raw_payload=3),
    "no content size": one_block(payload=STREAMED),
    "garbage after the frame": one_block(payload=zstandard.ZstdCompressor().compress(b"abcd") + b"\0"),
    "empty stream of four bytes": one_block(payload=b""),
    "bytes in an empty stream": one_block(raw_payload=0),
    "header with spaces": one_block(header=b'{"a": 1}'),
    "header not sorted": one_block(header=b'{"b":1,"a":1}'),
    "header with a key twice": one_block(header=b'{"a":1,"a":1}'),
    "header of NaN": one_block(header=b'{"a":NaN}'),
    "header no object": one_block(header=b"[]"),
    "header no JSON": one_block(header=b"{"),
    "header in UTF-16": one_block(header="{}".encode("utf-16")),
    "header nested deep": one_block(header=b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "header of a huge number": one_block(header=b'{"a":' + b"9" * 10_000 + b"}"),
    "header too long": one_block(header=b'{"a":"' + b"x" * (1 << 20) + b'"}'),
    "no frames": sealed(b"{}", [], [], 0, 0),
    "a billion frames a block": sealed(b"{}", [], [], 0, 10**9),
    "tokens without blocks": sealed(b"{}", [], [], 7, 1),
    "bytes without blocks": sealed(b"{}", [b"x"], [], 0, 1),
}


def test_the_crafted_file_is_right_when_nothing_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "memory.bin").write_bytes(one_block())
    read_all(tmp_path / "memory.bin")


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_files_are_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "memory.bin").write_bytes(CRAFTED[what])
    with pytest.raises(MemoError, match="damaged"):
        read_all(tmp_path / "memory.bin")


def test_a_partial_block_in_the_middle_is_refused(tmp_path: Path) -> None:
    """Positions follow from block numbers, so only the last block may be short."""
    frame = zstandard.ZstdCompressor().compress(bytes(8))
    entries = [
        struct.pack("<QI", 22 + number * len(frame), 2) + bytes(16) + struct.pack("<III", len(frame), 8, crc32c(frame))
        for number in range(2)
    ]
    (tmp_path / "memory.bin").write_bytes(sealed(b"{}", [frame, frame], entries, 4, 1))
    with pytest.raises(MemoError, match="tokens of a block"):
        MemoryReader(tmp_path / "memory.bin")


fuzzing = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzing
@given(st.data())
def test_mutations_raise_only_memo_errors(tmp_path: Path, data: st.DataObject) -> None:
    original = one_block()
    found = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(found) - 1))
        match data.draw(st.sampled_from(["set", "insert", "delete"])):
            case "set":
                found[at] = data.draw(st.integers(0, 255))
            case "insert":
                found[at:at] = data.draw(st.binary(max_size=20))
            case "delete":
                del found[at : at + data.draw(st.integers(0, 40))]
        found = found or bytearray(b"x")
    reseal(found)
    path = tmp_path / "memory.bin"
    path.write_bytes(found)
    try:
        read_all(path)
    except MemoError:
        return


def reseal(found: bytearray) -> None:
    """Puts right the checksums that can be found, so that mutations get past them."""
    if len(found) < 60:
        return
    (length,) = struct.unpack_from("<I", found, 12)
    if 16 + length + 4 <= len(found):
        struct.pack_into("<I", found, 16 + length, crc32c(bytes(found[: 16 + length])))
    end = len(found) - 40
    offset, _, blocks, frames = struct.unpack_from("<QQII", found, end)
    if offset <= end:
        if offset + blocks * (28 + 12 * frames) == end:
            for number in range(blocks):
                entry = offset + number * (28 + 12 * frames)
                (at,) = struct.unpack_from("<Q", found, entry)
                for frame in range(entry + 28, entry + 28 + 12 * frames, 12):
                    (size,) = struct.unpack_from("<I", found, frame)
                    struct.pack_into("<I", found, frame + 8, crc32c(bytes(found[at : at + size])))
                    at += size
        struct.pack_into("<I", found, end + 24, crc32c(bytes(found[offset:end])))
    struct.pack_into("<I", found, end + 28, crc32c(bytes(found[end : end + 28])))


@fuzzing
@given(st.binary(max_size=400))
def test_random_bytes_raise_only_memo_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "memory.bin"
    for content in (data, b"MINIMEMO\1\0\0\0" + data, b"MINIMEMO\1\0\0\0" + data + b"OMEMINIM"):
        path.write_bytes(content)
        with pytest.raises(MemoError):
            read_all(path)
