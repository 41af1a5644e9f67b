"""The container of a GGUF file: one walk over its header gives the metadata and where each tensor lies.

    "GGUF" | u32 version | u64 tensors | u64 keys | keys: string, u32 type, value | infos: string, u32 dimensions,
    u64 each, u32 format, u64 offset | padding to `general.alignment` | the tensors' data

Little-endian; a string is a u64 length and UTF-8, an array a u32 type, a u64 count and its items (ggml's docs/gguf.md).
Files come from strangers: every length and count is held against what is left of the file before anything is
allocated. The `gguf` library's reader makes several arrays for each token of the vocabulary, seconds in all; it is
asked only for the formats' block sizes.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from minimemo.errors import ModelError

_VERSIONS = (2, 3)
_MAX_HEADER = 64 << 20  # bytes; a vocabulary of 260,000 tokens with its merges takes 15 MB
_MAX_NESTING = 4  # arrays in arrays
_MAX_DIMENSIONS = 4  # ggml's
_ALIGNMENT = 32  # where the file does not say

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {
    code: np.dtype(kind)
    for code, kind in {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "u1",
                       10: "<u8", 11: "<i8", 12: "<f8"}.items()
}  # fmt: skip
_PROLOGUE = struct.Struct("<4sIQQ")
_LENGTH = struct.Struct("<Q")
_SMALLEST = {_STRING: _LENGTH.size, _ARRAY: 12} | {code: kind.itemsize for code, kind in _NUMBERS.items()}  # bytes


class Tensor(NamedTuple):
    """shape: ggml's, columns first. kind: the format, by ggml's name. data: (rows, bytes a row) uint8, mapped."""

    name: str
    shape: tuple[int, ...]
    kind: str
    data: NDArray[np.uint8]


class GgufFile(NamedTuple):
    """metadata: key -> bool, int, float, str or a list of them."""

    metadata: dict[str, Any]
    tensors: list[Tensor]


def read(path: Path) -> GgufFile:
    """Raises ModelError when `path` is not a whole, well-formed GGUF file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _PROLOGUE.size:
                raise _Malformed("it is too short")
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        return _read(mapped)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except _Malformed as error:
        raise ModelError(f"{path}: not a readable GGUF file ({error}); download it again") from None


class _Malformed(Exception):
    """What is wrong with a file, for the message that names it."""


def _read(mapped: mmap.mmap) -> GgufFile:
    magic, version, tensors, keys = _PROLOGUE.unpack_from(mapped)
    if magic != b"GGUF":
        raise _Malformed("it does not begin with GGUF")
    if version not in _VERSIONS:
        raise _Malformed(f"version {version}; 2 and 3 are known, little-endian")
    walk = _Walk(mapped, min(len(mapped), _MAX_HEADER))
    metadata: dict[str, Any] = {}
    for _ in range(keys):  # a false count soon meets the end of the file
        key = walk.string()
        if key in metadata:
            raise _Malformed(f"key {key!r:.80} twice")
        metadata[key] = walk.values(walk.number(4), 1)[0]
    infos: dict[str, _Info] = {}
    for _ in range(tensors):
        info = walk.tensor()
        if info.name in infos:
            raise _Malformed(f"tensor {info.name!r:.80} twice")
        infos[info.name] = info
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Malformed(f"alignment {alignment!r:.80}")
    base = -(-walk.at // alignment) * alignment
    return GgufFile(metadata, [_map(info, base, mapped) for info in infos.values()])


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    code: int
    offset: int


def _map(info: _Info, base: int, mapped: mmap.mmap) -> Tensor:
    try:
        kind = GGMLQuantizationType(info.code)
    except ValueError:
        raise _Malformed(f"tensor {info.name!r:.80} has format {info.code}, which is not known") from None
    columns, block_bytes = GGML_QUANT_SIZES[kind]
    if not 1 <= len(info.shape) <= _MAX_DIMENSIONS or 0 in info.shape or info.shape[0] % columns:
        raise _Malformed(f"tensor {info.name!r:.80} has shape {info.shape}")
    rows, width = math.prod(info.shape[1:]), info.shape[0] // columns * block_bytes
    start = base + info.offset
    if start + rows * width > len(mapped):
        raise _Malformed(f"tensor {info.name!r:.80} ends beyond the file, which is cut off or damaged")
    data = np.frombuffer(mapped, np.uint8, rows * width, start).reshape(rows, width)
    return Tensor(info.name, info.shape, kind.name, data)


class _Walk:
    """A cursor over the header, `end` bytes at most; never past it."""

    def __init__(self, mapped: mmap.mmap, end: int) -> None:
        self._mapped, self._end = mapped, end
        self.at = _PROLOGUE.size

    def number(self, code: int) -> Any:
        return self.values(code, 1)[0]

    def string(self) -> str:
        return self._strings(1)[0]

    def tensor(self) -> _Info:
        name, dimensions = self.string(), self.number(4)
        return _Info(name, tuple(self.values(10, dimensions)), self.number(4), self.number(10))

    def values(self, code: int, count: int, depth: int = 0) -> list[Any]:
        """`count` values of one type."""
        if code not in _SMALLEST:
            raise _Malformed(f"a value of type {code}, which is not known, before byte {self.at}")
        if count > (self._end - self.at) // _SMALLEST[code]:
            raise self._cut()
        if code == _STRING:
            return self._strings(count)
        if code == _ARRAY:
            if depth == _MAX_NESTING:
                raise _Malformed(f"arrays nested deeper than {_MAX_NESTING} at byte {self.at}")
            return [self.values(self.number(4), self.number(10), depth + 1) for _ in range(count)]
        start, kind = self.at, _NUMBERS[code]
        self.at += count * kind.itemsize
        found = np.frombuffer(self._mapped, kind, count, start)
        return (found.astype(bool) if code == _BOOL else found).tolist()

    def _strings(self, count: int) -> list[str]:
        """The hot loop: hundreds of thousands of short strings."""
        mapped, at, end, unpack = self._mapped, self.at, self._end, _LENGTH.unpack_from
        found = []
        for _ in range(count):
            if end - at < _LENGTH.size:
                raise self._cut()
            (length,) = unpack(mapped, at)
            at += _LENGTH.size
            if length > end - at:
                raise self._cut()
            try:
                found.append(str(mapped[at : at + length], "utf-8"))
            except UnicodeDecodeError:
                raise _Malformed(f"text at byte {at} is not UTF-8") from None
            at += length
        self.at = at
        return found

    def _cut(self) -> _Malformed:
        if self._end < len(self._mapped):
            return _Malformed(f"its header exceeds {_MAX_HEADER >> 20} MB")
        return _Malformed(f"a length at or after byte {self.at} points beyond its end")
