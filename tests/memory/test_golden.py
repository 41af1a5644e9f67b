"""Files that were written once and have to open for good: literal numbers, not what today's code would write.

If one of these fails, files that people have no longer say what they said: that takes another format version.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import minimemo
from minimemo.kernels import native
from minimemo.memo.manifest import checksum
from minimemo.memory import symbols as packing
from minimemo.memory.codec import Codec
from minimemo.memory.profile import load_profile
from minimemo.memory.reader import MemoryReader
from minimemo.memory.tiers import make_codec
from tests.memories import all_ids

GOLDEN = Path(__file__).parents[1] / "golden"
# (layer, token) -> key and value. Tokens 0 and 2: sinks or the opening; 196 to 259: the finer end; 256 begins a block.
PLACES = [(0, 0), (1, 2), (0, 16), (1, 100), (0, 195), (1, 255), (0, 259)]
EXACT = [
    [-3.75, -3.125, -1.25, 1.875, -2.875, -2.25, -0.375, 2.75],
    [-1.125, -0.5, 1.375, -3.125, 0.25, 0.875, 2.75, 0.0],
    [2.25, 2.875, -2.875, 0.25, 1.25, 1.875, -2.125, 1.0],
    [-0.875, -0.25, 1.625, -2.875, -2.125, -1.5, 0.375, -2.375],
    [0.75, 1.375, 3.25, -1.25, 1.5, 2.125, -1.875, 1.25],
    [-3.125, -2.5, -0.625, 2.5, -1.625, -1.0, 0.875, -1.875],
    [1.875, 2.5, -3.25, -0.125, 0.375, 1.0, 2.875, 0.125],
]
INT4 = [
    [-3.75, -3.125, -1.25, 1.875, -2.875, -2.25, -0.375, 2.75],
    [-1.125, -0.5, 1.375, -3.125, 0.25, 0.875, 2.75, 0.0],
    [2.30078, 2.65918, -2.7666, 0.30859, 1.34399, 1.87769, -2.125, 1.07715],
    [-0.77441, -0.36621, 1.56738, -2.7998, -2.19165, -1.45825, 0.37524, -2.375],
    [0.60059, 1.33398, 3.26758, -1.25, 1.59399, 2.12769, -1.875, 1.32715],
    [-3.2666, -2.2998, -0.42432, 2.42627, -1.69165, -0.95825, 0.87524, -1.875],
    [1.87518, 2.50018, -3.1416, -0.12482, 0.30835, 1.04175, 2.87524, 0.125],
]
KLT = [
    [2.4375, 4.28125, 6.75, 5.21875, 2.51562, 2.34375, 5.21875, 2.89062],
    [-1.83594, -0.73828, -2.17188, -2.0625, -2.04688, -1.73438, -3.0625, -3.14062],
    [3.71191, 9.51465, 2.2373, 6.62598, 3.70176, 7.66621, 0.74238, 4.70684],
    [2.26514, -0.23975, 5.38623, 2.52783, 1.98984, -1.22207, 4.47461, 1.2627],
    [-0.35352, 3.32812, 5.24219, 4.68164, -0.50508, 1.47969, 3.46445, 2.47969],
    [6.88293, 7.86902, 5.58508, 6.48279, 4.86658, 5.11912, 7.66067, 8.40813],
    [-3.62354, -8.33789, -1.47461, -8.84033, -3.53647, -10.33657, -2.90767, -11.19253],
]
# What klt.bin holds, coded anew in groups of 16 tokens, for zstd and in ranges.
KLT_TIME = [
    *KLT[:2],
    [3.58077, 9.54618, 2.11898, 6.76589, 3.47712, 7.59067, 0.7169, 4.85746],
    [2.25246, -0.20952, 5.3348, 2.53355, 2.14622, -1.24434, 4.72571, 1.22315],
    *KLT[4:],
]


def opened(path: Path) -> tuple[MemoryReader, Codec]:
    reader = MemoryReader(path)
    codec = make_codec(reader.header["codec"], reader.header["params"], lambda hash_: load_profile(hash_, GOLDEN))
    return reader, codec


def numbers(path: Path) -> list[list[float]]:
    reader, codec = opened(path)
    with reader:
        blocks = [codec.decode(reader.payload(index), reader.block(index).tokens) for index in range(len(reader))]
    keys, values = (torch.cat(parts, dim=2).float() for parts in zip(*blocks, strict=True))

    def at(x: Tensor, layer: int, token: int) -> list[float]:
        found: list[float] = x[layer, 0, token].tolist()
        return found

    return [at(keys, *place) + at(values, *place) for place in PLACES]


@pytest.mark.parametrize(
    ("name", "expected", "within"),
    [
        ("exact", EXACT, 0),
        ("int4", INT4, 6e-6),
        ("klt", KLT, 1e-3),
        ("klt-time", KLT_TIME, 1e-3),
        ("klt-ranges", KLT_TIME, 1e-3),
    ],
)
def test_a_memory_of_every_codec(name: str, expected: list[list[float]], within: float) -> None:
    reader, codec = opened(GOLDEN / f"{name}.bin")
    with reader:
        reader.verify()
        assert (codec.name, len(reader), reader.tokens) == (name.split("-")[0], 2, 260)
        assert all_ids(reader).tolist() == [(7919 * t) % 150_000 for t in range(260)]
        assert reader.extent.opening == 3
        assert codec.params() == reader.header["params"]
    for found, wanted in zip(numbers(GOLDEN / f"{name}.bin"), expected, strict=True):
        assert found == pytest.approx(wanted, abs=within)


def test_without_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unavailable", lambda: "not here")
    assert packing.native.unavailable() == "not here"
    for name, expected in (("klt", KLT), ("klt-time", KLT_TIME), ("klt-ranges", KLT_TIME)):
        for found, wanted in zip(numbers(GOLDEN / f"{name}.bin"), expected, strict=True):
            assert found == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("missing", [(), ("reading",)], ids=["before quality cards", "before windows"])
def test_a_memo_of_earlier_times(missing: tuple[str, ...], tmp_path: Path) -> None:
    """Written before memos had a quality card; and one as it was when longer documents were refused."""
    folder = shutil.copytree(GOLDEN / "note.memo", tmp_path / "note.memo")
    body = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del body["checksum"]
    for name in missing:
        del body["recipe"][name]
    if missing:
        content = json.dumps({**body, "checksum": checksum(body)})
        (folder / "manifest.json").write_text(content, encoding="utf-8")
    assert "quality" not in body
    memo = minimemo.open(folder)
    memo.verify()
    told = memo.inspect()
    assert (told["memory"]["tokens"], told["memory"]["opening_tokens"], told["quality"]) == (155, 100, None)
    (chunk,) = memo.chunks()
    assert chunk.text == "The lamp was lit on 9 October.\n\nThe keeper said: be brief. 你好。"
    reader, codec = memo.memory_file()
    keys, _ = codec.decode(reader.payload(0), 155)
    reader.close()
    assert keys[1, 1, 120, :4].tolist() == pytest.approx([-4.50390625, -0.5869140625, 3.94091796875, 0.24072265625])
