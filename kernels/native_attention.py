"""Attention on the CPU over dense and packed keys: Python's side of native/attention.h.

Keys lie in segments: a long shared memory, packed or dense, and what follows it; a row attends to every segment that
names it, as if they were one. All results are float32. On AVX-512, products with bfloat16 keys take queries rounded to
bfloat16 (as sums of two such numbers where a job has segments of other stores too, which would else weigh too much or
too little against these: join segments in one job, not by their log-sum-exp) and those with packed keys integers of 14
bits; all else is float32. The same bits come out of any number of threads.

Letters: H query heads, G kv heads, N query rows, T keys, D head dim (at most 256).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from .native import _library
from .packed import PACK_GROUP, PackedKV

_STORES = {torch.float32: 0, torch.bfloat16: 1}
_PACKED_STORES = {8: 2, 4: 3}
_MAX_DIM, _MAX_CELLS, MAX_SEGMENTS = 256, 16384, 64
_NO_WINDOW = 2**63 - 1


@dataclass(frozen=True, slots=True)
class DenseSegment:
    """Keys and values (G, T, D) float32 or bfloat16, views of a larger cache (G, capacity, D) or whole.

    start: position of key 0, counted where queries have positions. rows: first and last + 1 of the query rows that
    attend to it; None: all.
    """

    keys: Tensor
    values: Tensor
    start: int = 0
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class PackedSegment:
    """Packed keys and values, else as DenseSegment."""

    packed: PackedKV
    start: int = 0
    rows: tuple[int, int] | None = None


class _Segment(Structure):
    """Segment of native/attention.h."""

    _fields_ = (
        ("store", c_int32),
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_int64) for name in ("key_stride", "value_stride")),
        *((name, c_void_p) for name in ("key_scale", "key_low", "value_scale", "value_low")),
        *((name, c_int64) for name in ("key_param_stride", "value_param_stride")),
        *((name, c_int64) for name in ("tokens", "start", "first_row", "last_row")),
        ("plan", c_int64 * 8),
    )


class _Attention(Structure):
    """Attention of native/attention.h."""

    _fields_ = (
        ("q", c_void_p),
        *((name, c_int64) for name in ("q_head", "q_row")),
        ("out", c_void_p),
        *((name, c_int64) for name in ("out_head", "out_row")),
        ("lse", c_void_p),
        *((name, c_int32) for name in ("kv_heads", "group", "dim")),
        ("rows", c_int64),
        ("scale", c_float),
        ("positions", c_void_p),
        ("window", c_int64),
        ("segments", POINTER(_Segment)),
        ("count", c_int32),
        ("workspace", c_void_p),
        ("parts", c_int64),
    )


def attention_variants() -> tuple[str, ...]:
    """The instruction sets that attention is compiled for and this processor runs, best last."""
    library = _library()
    names = (library.minimemo_attention_variant(number) for number in range(4))
    return tuple(name.decode() for name in names if name)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    query_positions: Tensor | None = None,
    key_start: int = 0,
    window: int | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention with the log-sum-exp of each row (arguments and result as in `reference.attention`).

    q (H, N, D) float32; k, v (G, T, D) float32 or bfloat16 -> out (H, N, D), lse (H, N) float32. Positions may be any.
    Raises ValueError, naming the argument, for what does not fit.
    """
    segment = DenseSegment(k, v, key_start)
    return segment_attention(q, [segment], scale=scale, query_positions=query_positions, window=window, threads=threads)


def too_wide(group: int, dim: int) -> str | None:
    """Why `group` query heads of `dim` numbers on one kv head are more than the kernels' buffers hold; None: they do
    not."""
    if 1 <= dim <= _MAX_DIM and group * (-dim // 16 * -16) <= _MAX_CELLS:
        return None
    return f"head dim {dim} in groups of {group} heads, at most {_MAX_DIM} and {_MAX_CELLS} in all"


def segment_attention(
    q: Tensor,
    segments: Sequence[DenseSegment | PackedSegment],
    *,
    scale: float,
    query_positions: Tensor | None = None,
    window: int | None = None,
    threads: int | None = None,
    variant: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of each row over all the segments that name it, whole or up to its position.

    q (H, N, D) float32, query_positions (N,) int64 -> out (H, N, D), lse (H, N) float32; a row that sees no key gives
    zeros and -inf. variant: one of `attention_variants`, else the choice of MINIMEMO_NATIVE or the best.
    Raises ValueError, naming the argument, for what does not fit, NativeUnavailable without the library.
    """
    _require(q, "q", (torch.float32,), 3)
    if not segments or len(segments) > MAX_SEGMENTS:
        raise ValueError(f"segments: 1 to {MAX_SEGMENTS}, got {len(segments)}")
    heads, rows, dim = q.shape
    if not scale > 0:
        raise ValueError(f"scale must be above zero, got {scale}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if window is not None and query_positions is None:
        raise ValueError("query_positions: a window needs them")
    if query_positions is not None:
        _require(query_positions, "query_positions", (torch.int64,), 1)
        if query_positions.shape[0] != rows:
            raise ValueError(f"query_positions: {query_positions.shape[0]} for {rows} rows of q")
        query_positions = query_positions.contiguous()
    first = segments[0]
    kv_heads = (first.keys if isinstance(first, DenseSegment) else first.packed.key_codes).shape[0]
    if heads == 0 or kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"q: {heads} heads do not share {kv_heads} kv heads evenly")
    group = heads // kv_heads
    if reason := too_wide(group, dim):
        raise ValueError(f"q: {reason}")
    structs = (_Segment * len(segments))()
    for index, (segment, struct) in enumerate(zip(segments, structs, strict=True)):
        name = f"segment {index}" if len(segments) > 1 else ""
        if isinstance(segment, DenseSegment):
            _fill_dense(struct, segment, name, kv_heads, dim)
        else:
            _fill_packed(struct, segment.packed, name, kv_heads, dim)
        first_row, last_row = segment.rows or (0, rows)
        if not 0 <= first_row <= last_row <= rows:
            raise ValueError(f"{_of('rows', name)}: {first_row} .. {last_row} of {rows}")
        struct.start, struct.first_row, struct.last_row = segment.start, first_row, last_row
    library = _library()
    q = q if q.stride(2) == 1 or dim == 1 else q.contiguous()
    out, lse = torch.empty(rows, heads, dim).transpose(0, 1), torch.empty(heads, rows)
    job = _Attention(
        q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr(), out.stride(0), out.stride(1), lse.data_ptr(),
        kv_heads, group, dim, rows, scale, None if query_positions is None else query_positions.data_ptr(),
        window or _NO_WINDOW, structs, len(segments), None, 0,
    )  # fmt: skip
    size = ctypes.sizeof(_Attention) + ctypes.sizeof(_Segment)
    failed = library.minimemo_attention(
        _variant(library.variant, variant), ctypes.byref(job), size, threads or torch.get_num_threads()
    )
    if failed:
        raise MemoryError("no memory for partial results") if failed == 1 else RuntimeError("library of another build")
    return out, lse


def pack_kv(keys: Tensor, values: Tensor, bits: int, *, threads: int | None = None) -> PackedKV:
    """keys, values (G, T, D) float32 or bfloat16, T a multiple of 64 -> the same bits as `reference.pack_kv`."""
    if bits not in _PACKED_STORES:
        raise ValueError(f"bits must be 8 or 4, got {bits}")
    _require(keys, "k", tuple(_STORES), 3)
    heads, tokens, dim = keys.shape
    codes = (torch.empty(heads, tokens, dim * bits // 8, dtype=torch.uint8) for _ in range(2))
    key_scale, key_low = torch.empty(2, heads, tokens // PACK_GROUP, dim, dtype=torch.float16)
    value_scale, value_low = torch.empty(2, heads, tokens, dtype=torch.float16)
    packed = PackedKV(bits, next(codes), key_scale, key_low, next(codes), value_scale, value_low)
    pack_kv_into(packed, 0, keys, values, threads=threads)
    return packed


def pack_kv_into(packed: PackedKV, first: int, keys: Tensor, values: Tensor, *, threads: int | None = None) -> None:
    """Packs keys and values (G, T, D) into tokens first .. first + T - 1 of `packed`, whole groups of 64.

    Raises ValueError for what does not fit, and for numbers that are not finite or beyond float16; the groups that
    hold those are then not written.
    """
    _require(keys, "k", tuple(_STORES), 3)
    heads, tokens, dim = keys.shape
    if not 1 <= dim <= _MAX_DIM:
        raise ValueError(f"k: head dim {dim}, at most {_MAX_DIM}")
    source, target = _Segment(), packed_struct(packed, heads, dim)
    _fill_dense(source, DenseSegment(keys, values), "", heads, dim)
    if tokens % PACK_GROUP or first % PACK_GROUP or not 0 <= first <= first + tokens <= target.tokens:
        raise ValueError(f"k: tokens {first} .. {first + tokens} are no whole groups of 64 within {target.tokens}")
    wrong = _library().minimemo_pack_kv(
        ctypes.byref(source), ctypes.byref(target), heads, first // PACK_GROUP, dim, threads or torch.get_num_threads()
    )
    if wrong:
        raise ValueError(f"{'k' if wrong == 1 else 'v'}: numbers that are not finite or too large for float16")


def packed_struct(packed: PackedKV, kv_heads: int, dim: int) -> _Segment:
    """What native code is given for packed keys and values, whose tensors are the caller's to hold. Raises ValueError,
    naming the part, for what does not fit."""
    struct = _Segment()
    _fill_packed(struct, packed, "", kv_heads, dim)
    return struct


def attention_variant(chosen: int) -> int:
    """The variant of attention that goes with one of the products: 0 .. 2, and bfloat16 comes on top of the last."""
    return 3 if chosen == 2 else chosen


def _variant(chosen: int, name: str | None) -> int:
    names = attention_variants()
    if name is None:
        return attention_variant(chosen)
    if name not in names:
        raise ValueError(f"variant {name!r}: this processor runs {', '.join(names)}")
    return ("portable", "avx2", "avx512", "avx512bf16").index(name)


def _fill_dense(struct: _Segment, segment: DenseSegment, name: str, kv_heads: int, dim: int) -> None:
    tensors = {"k": segment.keys, "v": segment.values}
    for letter, tensor in tensors.items():
        _require(tensor, _of(letter, name), tuple(_STORES), 3)
        _require_shape(tensor, _of(letter, name), (kv_heads, segment.keys.shape[1], dim))
        _require_rows(tensor, _of(letter, name))
    keys, values = tensors.values()
    if keys.dtype != values.dtype:
        raise ValueError(f"{_of('v', name)}: {values.dtype}, but the keys are {keys.dtype}")
    struct.store, struct.tokens = _STORES[keys.dtype], _tokens(keys, name)
    struct.keys, struct.values = keys.data_ptr(), values.data_ptr()
    struct.key_stride, struct.value_stride = keys.stride(0), values.stride(0)


def _fill_packed(struct: _Segment, packed: PackedKV, name: str, kv_heads: int, dim: int) -> None:
    if packed.bits not in _PACKED_STORES:
        raise ValueError(f"{_of('packed', name)}: {packed.bits} bits, expected 8 or 4")
    if packed.bits == 4 and dim % 2:
        raise ValueError(f"{_of('packed', name)}: 4 bits need an even head dim, got {dim}")
    width = dim * packed.bits // 8
    _require(packed.key_codes, _of("key_codes", name), (torch.uint8,), 3)
    tokens = _tokens(packed.key_codes, name)
    if tokens % PACK_GROUP:
        raise ValueError(f"{_of('key_codes', name)}: {tokens} tokens are no whole groups of {PACK_GROUP}")
    shapes: dict[str, tuple[int, ...]] = {
        "key_codes": (kv_heads, tokens, width),
        "value_codes": (kv_heads, tokens, width),
        "key_scale": (kv_heads, tokens // PACK_GROUP, dim),
        "key_low": (kv_heads, tokens // PACK_GROUP, dim),
        "value_scale": (kv_heads, tokens),
        "value_low": (kv_heads, tokens),
    }
    for field, shape in shapes.items():
        tensor: Tensor = getattr(packed, field)
        dtype = torch.uint8 if field.endswith("codes") else torch.float16
        _require(tensor, _of(field, name), (dtype,), len(shape))
        _require_shape(tensor, _of(field, name), shape)
        _require_rows(tensor, _of(field, name))
        setattr(struct, field.replace("_codes", "s"), tensor.data_ptr())
    for kind in ("key", "value"):
        scale, low = getattr(packed, f"{kind}_scale"), getattr(packed, f"{kind}_low")
        if kv_heads > 1 and tokens and scale.stride(0) != low.stride(0):
            raise ValueError(f"{_of(f'{kind}_low', name)}: strides differ from those of {kind}_scale")
        setattr(struct, f"{kind}_stride", getattr(packed, f"{kind}_codes").stride(0))
        setattr(struct, f"{kind}_param_stride", scale.stride(0))
    struct.store, struct.tokens = _PACKED_STORES[packed.bits], tokens


def _of(what: str, name: str) -> str:
    return f"{what} of {name}" if name else what


def _tokens(tensor: Tensor, name: str) -> int:
    if tensor.shape[1] >= 2**31 - PACK_GROUP:
        raise ValueError(f"{_of('k', name)}: {tensor.shape[1]} tokens are too many")
    return tensor.shape[1]


def _require(tensor: Tensor, name: str, dtypes: tuple[torch.dtype, ...], dim: int) -> None:
    if tensor.dtype not in dtypes or tensor.dim() != dim or tensor.device.type != "cpu":
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        found = f"{tensor.dim()} dimensions of {tensor.dtype} on {tensor.device.type}"
        raise ValueError(f"{name}: expected {dim} dimensions of {wanted} in CPU memory, got {found}")


def _require_shape(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected {shape}")


def _require_rows(tensor: Tensor, name: str) -> None:
    """What a kv head holds must lie without gaps; heads may lie apart."""
    if tensor.numel() and not tensor[0].is_contiguous():
        raise ValueError(f"{name}: strides {tensor.stride()}; tokens of a head must follow each other without gaps")
