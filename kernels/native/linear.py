"""This file multiplies with quantized matrices on the CPU (src/api.cpp).

A `PackedMatrix` holds integer codes of 4, 5, 6 or 8 bits with a scale (and maybe an offset) a group of 16 or 32
columns, exactly as given, in the layout of src/format.h. A product rounds each activation to an integer, relative to
the largest of its 32 neighbours, sums code * integer in integers inside a group, and adds the groups up in float32 in
column order. A row gives the same bits whatever the other rows, the number of threads, and the instruction set. Only a
product of more than 16 rows that need not be exact is another one on AMX: of both factors in bfloat16, added up in
float32; there too a row depends on nothing but itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import CPU, check, checked_groups
from ..hugepages import Arena
from .library import library

PACKED_GROUPS = (16, 32)  # columns of a packed matrix that share a scale
_MAX_PARTS = 16
_HEADER_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """Holds quantized rows, (out_features, in_features), from one or several matrices laid one below the other.

    buffers: one uint8 tensor a matrix, each complete in itself (format.h), so they may be stored and mapped again.
    pointers: to the buffers, as C takes them.
    """

    buffers: tuple[Tensor, ...]
    out_features: int
    in_features: int
    pointers: ctypes.Array[c_void_p]

    @property
    def nbytes(self) -> int:
        return sum(buffer.numel() for buffer in self.buffers)

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @staticmethod
    def from_buffers(buffers: Sequence[Tensor]) -> PackedMatrix:
        """Joins buffers of `pack_weights` into the matrix of all their rows. Raises ValueError for anything else."""
        if not 1 <= len(buffers) <= _MAX_PARTS:
            raise ValueError(f"a packed matrix has 1 to {_MAX_PARTS} parts, got {len(buffers)}")
        rows, widths = 0, set()
        for index, buffer in enumerate(buffers):
            check(f"buffer {index}", buffer, (None,), (torch.uint8,), CPU)
            if not library().minimemo_check(buffer.data_ptr(), buffer.numel()):
                raise ValueError(f"buffer {index}: not a packed matrix of this version; pack the weights again")
            header = buffer[:_HEADER_BYTES].clone().view(torch.int32).tolist()
            rows += header[1]
            widths.add(header[2])
        if len(widths) > 1:
            raise ValueError(f"parts of one matrix have different widths: {sorted(widths)}")
        pointers = (c_void_p * len(buffers))(*(buffer.data_ptr() for buffer in buffers))
        return PackedMatrix(tuple(buffers), rows, widths.pop(), pointers)


def pack_weights(
    codes: Tensor, scales: Tensor, offsets: Tensor | None = None, *, arena: Arena | None = None
) -> PackedMatrix:
    """Packs codes (out, in) int8, scales and offsets (out, in / group) float32, group 16 or 32, without loss.

    arena: where the buffer is to lie; the matrices of a model share one. Raises ValueError for shapes or dtypes that do
    not fit together.
    """
    codes, scales, offsets = checked_groups(codes, scales, offsets, torch.float32, PACKED_GROUPS)
    check("codes", codes, codes.shape, (torch.int8,), CPU)
    rows, columns = codes.shape
    header = ctypes.create_string_buffer(_HEADER_BYTES)
    arrays = (codes.data_ptr(), scales.data_ptr(), offsets.data_ptr() if offsets is not None else None)
    threads, group = torch.get_num_threads(), columns // scales.shape[1]
    size = library().minimemo_plan(*arrays, rows, columns, group, header, threads)
    buffer = (arena or Arena(size)).take(size)
    library().minimemo_pack(header, *arrays, buffer.data_ptr(), threads)
    return PackedMatrix.from_buffers([buffer])


def concatenate(matrices: Sequence[PackedMatrix]) -> PackedMatrix:
    """Joins the rows of several matrices of one width, each in its own form; a product rounds x once for all."""
    return PackedMatrix.from_buffers([buffer for matrix in matrices for buffer in matrix.buffers])


def packed_linear(x: Tensor, matrix: PackedMatrix, bias: Tensor | None = None, *, exact: bool = True) -> Tensor:
    """Multiplies x (..., in) float32 with the matrix's transpose and adds bias (out,) -> (..., out) float32.

    exact: activations are rounded to 14 bits, else to 8 (many rows on AMX: to bfloat16). Raises ValueError for shapes
    or dtypes that do not fit.
    """
    width = matrix.in_features
    if x.dtype != torch.float32 or x.shape[-1] != width or x.device.type != "cpu":
        raise ValueError(f"x is {x.dtype} {tuple(x.shape)} on {x.device.type}, the matrix takes float32 (..., {width})")
    if bias is not None:
        bias = bias.contiguous()
        check("bias", bias, (matrix.out_features,), (torch.float32,), CPU)
    rows, opened = x.contiguous(), library()
    out = torch.empty(*x.shape[:-1], matrix.out_features)
    failed = opened.minimemo_linear(
        opened.variant,
        matrix.pointers,
        len(matrix.buffers),
        rows.data_ptr(),
        rows.numel() // width,
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        exact,
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory for the quantized activations")
    return out


def expand_rows(matrix: PackedMatrix, ids: Tensor) -> Tensor:
    """Widens rows ids (...) int64 of a matrix of one part -> (..., in) float32. Raises IndexError."""
    if ids.dtype != torch.int64:
        raise ValueError(f"ids are {ids.dtype}, expected int64")
    ids = ids.contiguous()
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < matrix.out_features:
        raise IndexError(f"row ids must lie in 0 .. {matrix.out_features - 1}")
    out = torch.empty(*ids.shape, matrix.in_features)
    _expand(matrix, ids.data_ptr(), ids.numel(), out)
    return out


def expand_into(matrix: PackedMatrix, out: Tensor, first: int = 0) -> None:
    """Writes the rows from `first` on of a matrix of one part into out (n, in_features), float32 or bfloat16 without
    gaps. Raises ValueError."""
    check("out", out, (None, matrix.in_features), (torch.float32, torch.bfloat16), CPU)
    if not 0 <= first <= first + len(out) <= matrix.out_features:
        raise ValueError(f"out: {len(out)} rows from {first} on, of a matrix of {matrix.out_features}")
    if not out.is_contiguous():
        raise ValueError(f"out: strides {out.stride()}, expected rows one after the other")
    _expand(matrix, None, len(out), out, first)


def _expand(matrix: PackedMatrix, ids: int | None, count: int, out: Tensor, first: int = 0) -> None:
    if len(matrix.buffers) != 1:
        raise ValueError(f"rows are expanded from a matrix of one part, this one has {len(matrix.buffers)}")
    opened, half = library(), out.dtype == torch.bfloat16
    opened.minimemo_expand(
        opened.variant, matrix.pointers[0], ids, first, count, out.data_ptr(), half, matrix.in_features,
        torch.get_num_threads(),
    )  # fmt: skip
