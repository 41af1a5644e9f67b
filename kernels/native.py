"""Products with quantized matrices on the CPU: Python's side of the library that kernels/native compiles to.

A `PackedMatrix` holds integer codes of 4, 5, 6 or 8 bits with a scale (and maybe an offset) a group of 16 or 32
columns, exactly as given, in the layout of native/format.h. A product rounds each activation to an integer, relative to
the largest of its 32 neighbours, sums code * integer in integers inside a group, and adds the groups up in float32 in
column order. A row gives the same bits whatever the other rows, the number of threads, and the instruction set.

The library is optional: it is built with the package where a C++ compiler is at hand. `unavailable()` says why it
cannot be used. MINIMEMO_NATIVE=off turns it off, MINIMEMO_NATIVE=portable (avx2, avx512) picks a variant.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .hugepages import Arena

_ABI = 12
_VARIANTS = ("portable", "avx2", "avx512")  # by number, best last
_MAX_PARTS = 16
_HEADER_BYTES = 64


class NativeUnavailable(RuntimeError):
    """The native library cannot be used here; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """Quantized rows, (out_features, in_features), from one or several matrices laid one below the other.

    buffers: one uint8 tensor a matrix, each complete in itself (format.h), so they may be stored and mapped again.
    """

    buffers: tuple[Tensor, ...]
    out_features: int
    in_features: int
    _pointers: ctypes.Array[c_void_p]

    @property
    def nbytes(self) -> int:
        return sum(buffer.numel() for buffer in self.buffers)

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @staticmethod
    def from_buffers(buffers: Sequence[Tensor]) -> PackedMatrix:
        """Buffers of `pack_weights` -> the matrix of all their rows. Raises ValueError for anything else."""
        library = _library()
        if not 1 <= len(buffers) <= _MAX_PARTS:
            raise ValueError(f"a packed matrix has 1 to {_MAX_PARTS} parts, got {len(buffers)}")
        rows, widths = 0, set()
        for index, buffer in enumerate(buffers):
            _check(buffer, f"buffer {index}", torch.uint8, 1)
            if not buffer.is_contiguous() or not library.minimemo_check(buffer.data_ptr(), buffer.numel()):
                raise ValueError(f"buffer {index}: not a packed matrix of this version; pack the weights again")
            header = buffer[:_HEADER_BYTES].clone().view(torch.int32).tolist()
            rows += header[1]
            widths.add(header[2])
        if len(widths) > 1:
            raise ValueError(f"parts of one matrix have different widths: {sorted(widths)}")
        pointers = (c_void_p * len(buffers))(*(buffer.data_ptr() for buffer in buffers))
        return PackedMatrix(tuple(buffers), rows, widths.pop(), pointers)


def unavailable() -> str | None:
    """Why the native library cannot be used, or None when it can."""
    found = _opened()
    return found if isinstance(found, str) else None


def variants() -> tuple[str, ...]:
    """The instruction sets that this processor runs, best last."""
    library = _library()
    return tuple(name for number, name in enumerate(_VARIANTS) if library.minimemo_variant(number))


def pack_weights(
    codes: Tensor,
    scales: Tensor,
    offsets: Tensor | None = None,
    *,
    arena: Arena | None = None,
    threads: int | None = None,
) -> PackedMatrix:
    """codes (out, in) int8, scales and offsets (out, in / group) float32, group 16 or 32 -> the same values, packed.

    arena: where the buffer is to lie; the matrices of a model share one. Raises ValueError for shapes or dtypes that do
    not fit together.
    """
    codes, scales, offsets = checked_groups(codes, scales, offsets)
    library = _library()
    rows, columns = codes.shape
    group = columns // scales.shape[1]
    header = ctypes.create_string_buffer(_HEADER_BYTES)
    arrays = (codes.data_ptr(), scales.data_ptr(), offsets.data_ptr() if offsets is not None else None)
    threads = threads or torch.get_num_threads()
    size = library.minimemo_plan(*arrays, rows, columns, group, header, threads)
    buffer = (arena or Arena(size)).take(size)
    library.minimemo_pack(header, *arrays, buffer.data_ptr(), threads)
    return PackedMatrix.from_buffers([buffer])


def checked_groups(codes: Tensor, scales: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of `pack_weights`, contiguous. Raises ValueError as that does."""
    _check(codes, "codes", torch.int8, 2)
    _check(scales, "scales", torch.float32, 2)
    rows, columns = codes.shape
    groups = scales.shape[1]
    group = columns // groups if groups else 32
    if scales.shape[0] != rows or columns == 0 or group not in (16, 32) or groups * group != columns:
        raise ValueError(f"scales {tuple(scales.shape)} do not fit codes {tuple(codes.shape)} in groups of 16 or 32")
    if offsets is not None:
        _check(offsets, "offsets", torch.float32, 2)
        if offsets.shape != scales.shape:
            raise ValueError(f"offsets {tuple(offsets.shape)} are not shaped like scales {tuple(scales.shape)}")
    return codes.contiguous(), scales.contiguous(), offsets.contiguous() if offsets is not None else None


def concatenate(matrices: Sequence[PackedMatrix]) -> PackedMatrix:
    """The rows of several matrices of one width, each in its own form; one product rounds x once for all of them."""
    return PackedMatrix.from_buffers([buffer for matrix in matrices for buffer in matrix.buffers])


def packed_linear(
    x: Tensor, matrix: PackedMatrix, bias: Tensor | None = None, *, exact: bool = True, threads: int | None = None
) -> Tensor:
    """x (..., in) float32 times the matrix's transpose, plus bias (out,) -> (..., out) float32.

    exact: activations are rounded to 14 bits, else to 8. Raises ValueError for shapes or dtypes that do not fit.
    """
    width = matrix.in_features
    if x.dtype != torch.float32 or x.shape[-1] != width or x.device.type != "cpu":
        raise ValueError(f"x is {x.dtype} {tuple(x.shape)} on {x.device.type}, the matrix takes float32 (..., {width})")
    if bias is not None:
        _check(bias, "bias", torch.float32, 1)
        if bias.shape[0] != matrix.out_features:
            raise ValueError(f"bias has {bias.shape[0]} elements, the matrix {matrix.out_features} rows")
        bias = bias.contiguous()
    library = _library()
    rows = x.contiguous()
    count = rows.numel() // width
    out = torch.empty(*x.shape[:-1], matrix.out_features)
    failed = library.minimemo_linear(
        library.variant,
        matrix._pointers,
        len(matrix.buffers),
        rows.data_ptr(),
        count,
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        exact,
        threads or torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory for the quantized activations")
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) to unit root mean square, times weight (C,), on the caller's thread. Raises ValueError for others than
    float32 on the CPU. arXiv 1910.07467."""
    _check(weight, "weight", torch.float32, 1)
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"x is {x.dtype} {tuple(x.shape)} on {x.device.type}, expected float32 (..., {weight.shape[0]})"
        )
    rows, weight = x.contiguous(), weight.contiguous()
    out, columns = torch.empty_like(rows), weight.shape[0]
    library = _library()
    library.minimemo_rms_norm(
        library.variant, rows.data_ptr(), weight.data_ptr(), eps, rows.numel() // columns, columns, out.data_ptr()
    )
    return out


def expand_rows(matrix: PackedMatrix, ids: Tensor, *, threads: int | None = None) -> Tensor:
    """Rows ids (...) int64 of a matrix of one part -> (..., in) float32, code * scale + offset. Raises IndexError."""
    _one_part(matrix)
    if ids.dtype != torch.int64:
        raise ValueError(f"ids are {ids.dtype}, expected int64")
    ids = ids.contiguous()
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < matrix.out_features:
        raise IndexError(f"row ids must lie in 0 .. {matrix.out_features - 1}")
    out = torch.empty(*ids.shape, matrix.in_features)
    _expand(matrix, ids.data_ptr(), 0, ids.numel(), out, threads)
    return out


def expand_into(matrix: PackedMatrix, out: Tensor, first: int = 0, *, threads: int | None = None) -> None:
    """Writes rows first .. first + len(out) - 1 of a matrix of one part into out (rows, in), float32 or bfloat16.

    Raises ValueError when out has another width, dtype or device, IndexError for rows that the matrix has not.
    """
    _one_part(matrix)
    _check(out, "out", torch.bfloat16 if out.dtype == torch.bfloat16 else torch.float32, 2)
    if out.shape[1] != matrix.in_features or not out.is_contiguous():
        raise ValueError(f"out {tuple(out.shape)} must be contiguous and {matrix.in_features} wide")
    if not 0 <= first <= first + out.shape[0] <= matrix.out_features:
        raise IndexError(f"rows {first} .. {first + out.shape[0] - 1} of a matrix of {matrix.out_features}")
    _expand(matrix, None, first, out.shape[0], out, threads)


def _expand(matrix: PackedMatrix, ids: int | None, first: int, count: int, out: Tensor, threads: int | None) -> None:
    library = _library()
    buffer = matrix.buffers[0].data_ptr()
    threads = threads or torch.get_num_threads()
    half = out.dtype == torch.bfloat16
    library.minimemo_expand(
        library.variant, buffer, ids, first, count, out.data_ptr(), half, matrix.in_features, threads
    )


def _check(tensor: Tensor, name: str, dtype: torch.dtype, dim: int) -> None:
    if tensor.dtype != dtype or tensor.dim() != dim or tensor.device.type != "cpu":
        found = f"{tensor.dim()} dimensions of {tensor.dtype} on {tensor.device.type}"
        raise ValueError(f"{name}: expected {dim} dimensions of {dtype} in CPU memory, got {found}")


def _one_part(matrix: PackedMatrix) -> None:
    if len(matrix.buffers) != 1:
        raise ValueError(f"rows are expanded from a matrix of one part, this one has {len(matrix.buffers)}")


class _Library(ctypes.CDLL):
    """The functions of native/api.cpp. ctypes lets go of the interpreter's lock while one runs."""

    variant: int

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        pointer, integer = c_void_p, c_int64
        signatures = {
            "abi": (c_int, []),
            "start": (None, [pointer]),
            "variant": (c_char_p, [c_int]),
            "plan": (integer, [pointer, pointer, pointer, integer, integer, c_int, c_char_p, c_int]),
            "pack": (None, [c_char_p, pointer, pointer, pointer, pointer, c_int]),
            "check": (c_int, [pointer, integer]),
            "linear": (
                c_int,
                [c_int, POINTER(pointer), c_int, pointer, integer, pointer, pointer, c_int, c_int],
            ),
            "attention_variant": (c_char_p, [c_int]),
            "attention": (c_int, [c_int, pointer, integer, c_int]),
            "pack_kv": (c_int, [pointer, pointer, c_int, integer, c_int, c_int]),
            "rms_norm": (None, [c_int, pointer, pointer, c_float, integer, integer, pointer]),
            "stack": (c_int, [c_int, c_int, pointer, pointer]),
            "inverts": (c_int, [c_int]),
            "unpack_symbols": (c_int, [pointer, pointer, pointer, pointer, integer, integer, pointer]),
            "inverse_transform": (c_int, [c_int, pointer, integer, c_int]),
            "coarsen": (
                c_double,
                [pointer, pointer, pointer, integer, integer, c_int, pointer, pointer, c_int],
            ),
            "shortlist": (c_int, [c_int, pointer, pointer, c_float, pointer, integer, pointer, c_int]),
            "expand": (None, [c_int, pointer, pointer, integer, integer, pointer, c_int, integer, c_int]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self, f"minimemo_{name}")
            function.restype, function.argtypes = result, arguments


def _library() -> _Library:
    if isinstance(found := _opened(), str):
        raise NativeUnavailable(found)
    return found


@lru_cache(maxsize=1)
def _opened() -> _Library | str:
    """The library, or why there is none: looked for once, whatever is found."""
    try:
        return _open()
    except NativeUnavailable as reason:
        return str(reason)


def _open() -> _Library:
    choice = os.environ.get("MINIMEMO_NATIVE", "")
    if choice not in ("", "off", *_VARIANTS):
        raise NativeUnavailable(f"MINIMEMO_NATIVE={choice}: expected off or one of {', '.join(_VARIANTS)}")
    if choice == "off":
        raise NativeUnavailable("turned off by MINIMEMO_NATIVE=off")
    files = sorted(Path(__file__).parent.glob("_native*.so"))
    if not files:
        raise NativeUnavailable("not built: installing minimemo found no C++17 compiler; get one and install it again")
    try:
        library = _Library(files[0])
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"{files[0].name} does not load ({error}); install minimemo again") from None
    if library.minimemo_abi() != _ABI:
        raise NativeUnavailable(f"{files[0].name} is of another version; install minimemo again")
    runnable = [number for number in range(len(_VARIANTS)) if library.minimemo_variant(number)]
    library.variant = _VARIANTS.index(choice) if choice else runnable[-1]
    if library.variant not in runnable:
        raise NativeUnavailable(f"MINIMEMO_NATIVE={choice}: this processor does not run it")
    library.minimemo_start(_openmp_entry())
    return library


def _openmp_entry() -> int | None:
    """GOMP_parallel of the OpenMP library that torch computes on (native/threads.h says what for): looked up through
    torch's own library, which finds that one among several that may be loaded. None where torch uses another."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
