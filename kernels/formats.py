"""These types hold what kernels read and write, and `check` compares a tensor with what a kernel expects.

Letters: H query heads, G kv heads, N query tokens, T key tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import hugepages

CPU = torch.device("cpu")
PACK_GROUP = 64  # tokens that share a key scale
MAX_DIM = 256  # numbers of a head that kernels take
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
    """Holds weight[o, i] = code * scale + offset, both of column i's group; 8-bit codes are signed, 4-bit ones 0 .. 15.

    At 4 bits byte i of a group of columns holds column i in its low half and column i + group/2 in its high half.
    """

    bits: int  # 8 or 4
    codes: Tensor  # (out, in) int8, or (out, in / 2) uint8
    scales: Tensor  # (out, in / group) float16
    offsets: Tensor | None  # like scales

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1] * 8 // self.bits

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.codes, self.scales, self.offsets) if x is not None)

    def rows(self, ids: Tensor) -> QuantizedMatrix:
        """Picks the rows `ids` (N,)."""
        return QuantizedMatrix(
            self.bits, self.codes[ids], self.scales[ids], None if self.offsets is None else self.offsets[ids]
        )

    def widened(self, dtype: torch.dtype) -> Tensor:
        """Returns (out, in) in `dtype`, computed in float32."""
        grouped = self.codes.unflatten(1, (self.scales.shape[1], -1))
        if self.bits == 4:
            grouped = torch.cat((grouped & 15, grouped >> 4), dim=2)
        wide = grouped.float().mul_(self.scales.float().unsqueeze(2))
        if self.offsets is not None:
            wide.add_(self.offsets.float().unsqueeze(2))
        return wide.flatten(1).to(dtype)


def joined(matrices: Sequence[QuantizedMatrix]) -> list[QuantizedMatrix]:
    """Lays neighbours of one width, bits and group into one matrix, one below the other."""
    whole: list[QuantizedMatrix] = []
    kinds: list[tuple[int, int, bool]] = []
    for matrix in matrices:
        kind = (matrix.bits, matrix.scales.shape[1], matrix.offsets is None)
        if kinds and kinds[-1] == kind:
            last = whole.pop()
            offsets = [x for x in (last.offsets, matrix.offsets) if x is not None]
            codes, scales = torch.cat((last.codes, matrix.codes)), torch.cat((last.scales, matrix.scales))
            matrix = QuantizedMatrix(matrix.bits, codes, scales, torch.cat(offsets) if offsets else None)
        whole.append(matrix)
        kinds.append(kind)
    return whole


def quantized_matrix(codes: Tensor, scales: Tensor, offsets: Tensor | None = None, *, bits: int) -> QuantizedMatrix:
    """Lays out codes (out, in) int8, scales and offsets (out, in / group) float16, group 16 (with 8 bits), 32, 64 or
    128, for the kernel.

    Values stay exactly as given. 4-bit codes lie in 0 .. 15, or in -8 .. 7: then the offsets take up the difference,
    rounded to float16. Raises ValueError naming what does not fit.
    """
    codes, scales, offsets = checked_groups(codes, scales, offsets, torch.float16, QUANTIZED_GROUPS)
    group = codes.shape[1] // scales.shape[1]
    if bits == 8:
        return QuantizedMatrix(8, codes, scales, offsets)
    if bits != 4:
        raise ValueError(f"bits: {bits}, expected 8 or 4")
    if group == 16:
        raise ValueError("scales: groups of 16 columns are for 8 bits")
    least, most = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    if least < -8 or most > (7 if least < 0 else 15):
        raise ValueError(f"codes: from {least} to {most}, expected -8 to 7 or 0 to 15")
    if least < 0:
        codes = codes + 8
        shift = -8 * scales.float()
        offsets = (shift if offsets is None else offsets.float() + shift).half()
    low, high = codes.view(len(codes), -1, 2, group // 2).to(torch.uint8).unbind(2)
    return QuantizedMatrix(4, (low | high << 4).reshape(len(codes), -1), scales, offsets)


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
