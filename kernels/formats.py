"""These types hold what kernels read and write, and `check` compares a tensor with what a kernel expects.

Letters: H query heads, G kv heads, N query tokens, T key tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import hugepages

CPU = torch.device("cpu")
PACK_GROUP = 64  # tokens that share a key scale
MAX_DIM = 256  # numbers of a head that kernels take
UNIT = 256  # columns of a K-quant's block
QUANTIZED_GROUPS = (16, 32, 64, 128)  # columns of a quantized matrix that share a scale


@dataclass(frozen=True, slots=True)
class PackedKV:
    """Holds keys and values of whole groups of 64 tokens; T is a multiple of 64, W = D with 8 bits and D / 2 with 4.

    key[t, d] = code * key_scale + key_low, per channel over a group; value[t, d] = code * value_scale + value_low, per
    token. Codes are unsigned. With 4 bits byte i holds dim i in its low half and dim i + D / 2 in its high half.
    """

    bits: int  # 8 or 4
    key_codes: Tensor  # (G, T, W) uint8
    key_scale: Tensor  # (G, T / 64, D) float16
    key_low: Tensor  # (G, T / 64, D) float16
    value_codes: Tensor  # (G, T, W) uint8
    value_scale: Tensor  # (G, T) float16
    value_low: Tensor  # (G, T) float16

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, T, D)."""
        heads, tokens, width = self.key_codes.shape
        return heads, tokens, width * 8 // self.bits

    def part(self, heads: slice, tokens: int) -> PackedKV:
        """Views some heads' first `tokens` tokens, whole groups."""
        groups = tokens // PACK_GROUP
        return PackedKV(
            self.bits,
            self.key_codes[heads, :tokens],
            self.key_scale[heads, :groups],
            self.key_low[heads, :groups],
            self.value_codes[heads, :tokens],
            self.value_scale[heads, :tokens],
            self.value_low[heads, :tokens],
        )


def empty_packed(kv_heads: int, tokens: int, dim: int, bits: int, device: torch.device | str) -> PackedKV:
    """Makes room for `tokens` packed tokens, a multiple of 64, with undefined content."""
    if bits not in (8, 4):
        raise ValueError(f"bits: {bits}, expected 8 or 4")
    if dim % 2 or not 2 <= dim <= MAX_DIM:
        raise ValueError(f"head dim: {dim}, expected an even number up to {MAX_DIM}")
    if tokens % PACK_GROUP:
        raise ValueError(f"tokens: {tokens}, expected a multiple of {PACK_GROUP}")

    def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return hugepages.empty((kv_heads, *shape), dtype, device)

    groups, width = tokens // PACK_GROUP, dim * bits // 8
    codes = [empty(tokens, width, dtype=torch.uint8) for _ in range(2)]
    return PackedKV(
        bits, codes[0], empty(groups, dim), empty(groups, dim), codes[1], empty(tokens), empty(tokens)
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rows:
    """Says, in numbers on a GPU, what N query tokens see of a source, each of them a row of its own: a launch that
    reads them there is the same whatever they are, so that it can be captured once and replayed.

    counts: (N,) int32, how many of the source's keys there are for each row; (1,) where all rows see all of them.
    places: (N,) int32, the index of the key that each row sits at, the last that it sees; None where all see all.
    spacing: numbers from the keys, or values, of a row to those of the next one; 0 where all share them.
    """

    counts: Tensor
    places: Tensor | None = None
    spacing: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """Query tokens first .. first + count - 1 attend to these keys and values (G, T, D).

    last_seen: index of the last key that the first of them sees; each next one sees one more. None: all see all.
    window: of the keys seen, only the last so many.
    """

    keys: Tensor
    values: Tensor
    first: int
    count: int
    last_seen: int | None = None
    window: int | None = None
    rows: Rows | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, T, D)."""
        heads, tokens, dim = self.keys.shape
        return heads, tokens, dim


@dataclass(frozen=True, slots=True)
class PackedSource:
    """Query tokens attend to packed keys and values; else as Source."""

    packed: PackedKV
    first: int
    count: int
    last_seen: int | None = None
    window: int | None = None
    rows: Rows | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, T, D)."""
        return self.packed.shape


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Holds weight[o, i] = (code - zero) * scale + offset, scale and offset of column i's group, in as many bits a code
    as it needs. 8-bit codes are signed and lie column by column, with zero 0; others are 0 .. 2**bits - 1 with zero 0
    or half of that.

    Byte b of 16 that hold 32 columns has the low 4 bits of column b in its low half, of column b + 16 in its high half.
    The bits above them are in words: of 5-bit codes bit 4 w + s + 16 u of a word for 32 columns belongs to column
    4 w + s // 2 + 2 u + 16 (s % 2), w and s from 0 to 3, u 0 or 1. Of 6-bit codes bits 4 w + 2 (s % 2) + 16 u and the
    next one, of the word s // 2 of two. So a pair of columns comes out of its words by two shifts and two masks.
    """

    bits: int  # 8, 6, 5 or 4
    codes: Tensor  # (out, in) int8, or (out, in / 2) uint8
    scales: Tensor  # (out, in / group) float16, or int8: times the unit of its 256 columns
    offsets: Tensor | None = None  # like scales
    high: Tensor | None = None  # (out, in / 32) or (out, in / 16) int32: what 5- and 6-bit codes have above 4 bits
    zero: int = 0
    scale_units: Tensor | None = None  # (out, in / 256) float16, with int8 scales
    offset_units: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1] * (1 if self.bits == 8 else 2)

    @property
    def nbytes(self) -> int:
        parts = (getattr(self, f.name) for f in fields(self))
        return sum(x.nbytes for x in parts if isinstance(x, Tensor))

    def rows(self, ids: Tensor) -> QuantizedMatrix:
        """Picks the rows `ids` (N,)."""
        return self._changed(lambda x: x[ids])

    def widened(self, dtype: torch.dtype) -> Tensor:
        """Returns (out, in) in `dtype`, computed in float32."""
        rows, columns = self.shape
        codes = self.codes
        if self.bits < 8:
            units = codes.unflatten(1, (-1, 16)).int()
            codes = torch.cat((units & 15, units >> 4), dim=2)
            if self.high is not None:
                word, bit = high_places(self.bits, codes.device)
                above = self.high.unflatten(1, (columns // 32, -1))[:, :, word] >> bit
                codes |= (above & (2 ** (self.bits - 4) - 1)) << 4
            codes = codes.flatten(1) - self.zero
        scales = _whole(self.scales, self.scale_units)
        wide = codes.unflatten(1, (scales.shape[1], -1)).float().mul_(scales.unsqueeze(2))
        if self.offsets is not None:
            wide.add_(_whole(self.offsets, self.offset_units).unsqueeze(2))
        return wide.view(rows, columns).to(dtype)

    def joins(self, other: QuantizedMatrix) -> bool:
        """Whether another matrix may stand below this one in the same tensors."""
        kinds = [
            (m.bits, m.zero, m.codes.shape[1], m.scales.shape[1], m.scales.dtype, m.offsets is None)
            for m in (self, other)
        ]
        return kinds[0] == kinds[1]

    def above(self, other: QuantizedMatrix) -> QuantizedMatrix:
        """This matrix with another one below it."""
        parts = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        joined: dict[str, Any] = {k: torch.cat(x) for k, x in parts.items() if isinstance(x[0], Tensor)}
        return replace(self, **joined)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> QuantizedMatrix:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: change(part) for k, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **changed)


def _whole(numbers: Tensor, units: Tensor | None) -> Tensor:
    """Scales or offsets (out, groups) in float32."""
    wide = numbers.float()
    if units is None:
        return wide
    return (wide.unflatten(1, (units.shape[1], -1)) * units.float().unsqueeze(2)).flatten(1)


def in_units(numbers: Tensor, columns: int) -> tuple[Tensor, Tensor] | None:
    """Takes scales or offsets (out, groups) float32, as K-quants make them, apart again: whole numbers, int8, and for
    each 256 columns a float16 of which they are multiples, (out, columns / 256). None where they are none."""
    if columns % UNIT or not numbers.numel():
        return None
    blocks = numbers.unflatten(1, (columns // UNIT, -1))
    largest = blocks.abs().amax(2)
    units, found = torch.zeros_like(largest), largest == 0
    for multiple in range(1, 128):
        unit = largest / multiple
        whole = (blocks / unit.unsqueeze(2)).round()
        fits = (whole * unit.unsqueeze(2) == blocks).all(2) & (unit == unit.half().float()) & ~found
        units, found = torch.where(fits, unit, units), found | fits
        if found.all():
            return (blocks / units.unsqueeze(2)).nan_to_num(0.0).round().to(torch.int8).flatten(1), units.half()
    return None


def high_places(bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(word, bit), each (32,): where a column's bits above the fourth begin, of the words for 32 columns."""
    column = torch.arange(32, device=device)
    w, s, u = column % 16 // 4, 2 * (column % 2) + column // 16, column % 4 // 2
    if bits == 5:
        return torch.zeros_like(w), 4 * w + s + 16 * u
    return s // 2, 4 * w + 2 * (s % 2) + 16 * u


def with_units(matrix: QuantizedMatrix, scales: Tensor, offsets: Tensor | None) -> QuantizedMatrix:
    """A matrix with its scales and offsets, given in float32, in bytes, where they are such; else as it is."""
    columns = matrix.shape[1]
    found = in_units(scales, columns)
    others = (None, None) if offsets is None else in_units(offsets, columns)
    if found is None or others is None:
        return matrix
    return replace(matrix, scales=found[0], scale_units=found[1], offsets=others[0], offset_units=others[1])


def joined(matrices: Sequence[QuantizedMatrix]) -> list[QuantizedMatrix]:
    """Lays neighbours of one width, bits and group into one matrix, one below the other."""
    whole: list[QuantizedMatrix] = []
    for matrix in matrices:
        whole.append(whole.pop().above(matrix) if whole and whole[-1].joins(matrix) else matrix)
    return whole


def bits_for(codes: Tensor) -> int:
    """How many bits hold codes (out, in) int8, as `quantized_matrix` lays them out: 4, 5, 6 or 8."""
    least, most = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    for bits in (4, 5, 6):
        half = 2 ** (bits - 1)
        if codes.shape[1] % 32 == 0 and ((least >= 0 and most < 2 * half) or (-half <= least and most < half)):
            return bits
    return 8


def quantized_matrix(codes: Tensor, scales: Tensor, offsets: Tensor | None = None, *, bits: int) -> QuantizedMatrix:
    """Lays out codes (out, in) int8, scales and offsets (out, in / group) float16, group 16, 32, 64 or 128, for the
    kernels.

    Values stay exactly as given. Columns are whole blocks of 32; codes of fewer than 8 bits lie in 0 .. 2**bits - 1, or
    half of that below and above 0. Raises ValueError naming what does not fit.
    """
    codes, scales, offsets = checked_groups(codes, scales, offsets, torch.float16, QUANTIZED_GROUPS)
    rows, columns = codes.shape
    if columns % 32:
        raise ValueError(f"codes: {columns} columns, expected a multiple of 32")
    if bits == 8:
        return QuantizedMatrix(8, codes, scales, offsets)
    if bits not in (4, 5, 6):
        raise ValueError(f"bits: {bits}, expected 8, 6, 5 or 4")
    half = 2 ** (bits - 1)
    least, most = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    zero = half if least < 0 else 0
    if least + zero < 0 or most + zero >= 2 * half:
        raise ValueError(f"codes: from {least} to {most}, expected {-half} to {half - 1} or 0 to {2 * half - 1}")
    units = (codes + zero).view(rows, columns // 32, 32)
    low = units & 15
    packed = (low[:, :, :16].to(torch.uint8) | low[:, :, 16:].to(torch.uint8) << 4).reshape(rows, -1)
    if bits == 4:
        return QuantizedMatrix(4, packed, scales, offsets, None, zero)
    word, bit = high_places(bits, codes.device)
    above = (units >> 4).long() << bit
    words = torch.stack([above[:, :, word == at].sum(2) for at in range(bits - 4)], dim=2)
    return QuantizedMatrix(bits, packed, scales, offsets, words.view(rows, -1).to(torch.int32), zero)


def checked_groups(
    codes: Tensor, scales: Tensor, offsets: Tensor | None, dtype: torch.dtype, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns codes (out, in) int8, scales and offsets (out, in / group) `dtype`, group one of `sizes`, on one device,
    without gaps. Raises ValueError naming what does not fit."""
    codes, scales, offsets = codes.contiguous(), scales.contiguous(), None if offsets is None else offsets.contiguous()
    check("codes", codes, (None, None), (torch.int8,))
    rows, columns = codes.shape
    check("scales", scales, (rows, None), (dtype,), codes.device)
    groups = scales.shape[1]
    if groups == 0 or columns % groups or columns // groups not in sizes:
        expected = " or ".join(map(str, sizes))
        raise ValueError(f"scales: {groups} groups of {columns} columns, expected groups of {expected}")
    if offsets is not None:
        check("offsets", offsets, scales.shape, (dtype,), codes.device)
    return codes, scales, offsets


def check(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    dtypes: Collection[torch.dtype],
    device: torch.device | None = None,
) -> None:
    """Raises ValueError naming `name` unless the tensor has this shape (None: any), one of these dtypes, rows without
    gaps (the last stride is 1), and lies on that device (None: on any)."""
    size = tensor.shape
    if size != shape and (len(size) != len(shape) or any(a not in (b, None) for a, b in zip(shape, size, strict=True))):
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name}: shape {tuple(size)}, expected ({expected})")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if size and size[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name}: elements of a row must lie side by side, the last stride is {tensor.stride(-1)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: on {tensor.device}, expected {device}")


def check_packed(packed: PackedKV, device: torch.device) -> None:
    """Raises ValueError naming the part of a packed cache that is not as PackedKV says, lies with gaps inside a kv head
    or apart from what it goes with, or on another device."""
    if packed.bits not in (8, 4):
        raise ValueError(f"bits: {packed.bits}, expected 8 or 4")
    check("key_codes", packed.key_codes, (None, None, None), (torch.uint8,), device)
    heads, tokens, dim = packed.shape
    if tokens % PACK_GROUP or dim % 2 or not 2 <= dim <= MAX_DIM:
        raise ValueError(f"key_codes: {tokens} tokens of {dim} dimensions, expected whole groups of {PACK_GROUP}")
    grid, line, half = (heads, tokens // PACK_GROUP, dim), (heads, tokens), (torch.float16,)
    check("value_codes", packed.value_codes, packed.key_codes.shape, (torch.uint8,), device)
    check("key_scale", packed.key_scale, grid, half, device)
    check("key_low", packed.key_low, grid, half, device)
    check("value_scale", packed.value_scale, line, half, device)
    check("value_low", packed.value_low, line, half, device)
    check_gapless("key_codes", packed.key_codes)
    check_gapless("key_scale", packed.key_scale)
    for name, part, other in (
        ("value_codes", packed.value_codes, packed.key_codes),
        ("key_low", packed.key_low, packed.key_scale),
        ("value_low", packed.value_low, packed.value_scale),
    ):
        if part.numel() and part.stride() != other.stride():
            raise ValueError(f"{name}: strides {part.stride()}, expected {other.stride()}")


def check_gapless(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless the tokens of a head follow each other without gaps; heads may lie apart."""
    if tensor.numel() and tensor.shape[1] > 1 and tensor.stride(1) != tensor.shape[2]:
        raise ValueError(f"{name}: strides {tensor.stride()}; tokens of a head must follow each other without gaps")
