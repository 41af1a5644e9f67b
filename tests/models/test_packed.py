"""Packed matrices are kept in a file: what is read is what was packed, and what is no such file is packed again."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from minimemo.kernels import native
from minimemo.kernels.native.shortlist import Shortlist, shortlist
from minimemo.models.packed import PackedFile

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

CODES = torch.arange(-8, 8, dtype=torch.int8).repeat(40, 4)
SCALES = torch.linspace(0.1, 1.0, 80).reshape(40, 2)


def packed(file: PackedFile) -> tuple[native.PackedMatrix, Shortlist, list[str]]:
    """The matrices, and which of them were packed now."""
    made = []

    def pack() -> native.PackedMatrix:
        made.append("matrix")
        return native.pack_weights(CODES, SCALES, arena=file.arena)

    def coarsen() -> Shortlist:
        made.append("shortlist")
        return shortlist(matrix, CODES, SCALES, arena=file.arena)

    matrix = file.matrix("head", pack)
    return matrix, file.shortlist("head.coarse", matrix, coarsen), made


def test_what_was_packed_is_read_and_computes_the_same(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "model.safetensors"
    file = PackedFile(path)
    first, coarse, made = packed(file)
    assert made == ["matrix", "shortlist"] and file.keep() == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = PackedFile(path)
    matrix, list_, made = packed(again)
    assert made == [] and list_.noise == coarse.noise > 0
    assert torch.equal(matrix.buffers[0], first.buffers[0])
    assert torch.equal(list_.coarse.buffers[0], coarse.coarse.buffers[0])
    written = path.stat().st_mtime_ns
    assert again.keep() == "" and path.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["cut", "other layout", "no header", "a list", "empty"])
def test_what_is_no_such_file_is_packed_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    file = PackedFile(path)
    packed(file)
    file.keep()
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    wrong = {
        "cut": content[: 8 + header + 99],
        "other layout": content[: 8 + header] + b"\0" * (len(content) - 8 - header),
        "no header": b"\xff" * 99,
        "a list": (2).to_bytes(8, "little") + b"[]",
        "empty": b"",
    }
    path.write_bytes(wrong[damage])
    again = PackedFile(path)
    matrix, _, made = packed(again)
    assert made == ["matrix", "shortlist"] and again.keep() == "" and path.read_bytes() == content
    assert torch.equal(matrix.buffers[0], native.pack_weights(CODES, SCALES).buffers[0])


def test_a_folder_that_cannot_be_written_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = PackedFile(tmp_path / "file" / "model.safetensors")
    assert packed(file)[2] and file.keep()
    assert PackedFile(None).keep() == ""
