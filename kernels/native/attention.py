"""This file attends on the CPU to dense and packed keys (src/attention.h), and packs them (src/attention_pack.cpp).

All results are float32. On AVX-512, products with bfloat16 keys take queries rounded to bfloat16 (as sums of two such
numbers where a call has sources of other kinds too, which would else weigh too much or too little against these: join
sources in one call, not by their log-sum-exp) and those with packed keys integers of 14 bits; all else is float32. The
same bits come out of any number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_int64

import torch
from torch import Tensor

from ..formats import CPU, MAX_DIM, PACK_GROUP, PackedKV, PackedSource, Source, check, check_gapless, check_packed
from .library import fields, library

MAX_SOURCES = 64
_STORES = {torch.float32: 0, torch.bfloat16: 1}
_PACKED_STORES = {8: 2, 4: 3}
_MAX_CELLS = 16384
_NO_WINDOW = 2**63 - 1
_FAR = 1 << 40  # position of the first query token: keys of any source can be placed before it


class Segment(Structure):
    """Segment of src/attention.h."""

    _fields_ = (
        *fields("int32 store; pointer keys values; int64 key_stride value_stride"),
        *fields("pointer key_scale key_low value_scale value_low; int64 key_param_stride value_param_stride"),
        *fields("int64 tokens start first_row last_row"),
        ("plan", c_int64 * 8),
    )


class _Attention(Structure):
    """Attention of src/attention.h."""

    _fields_ = (
        *fields("pointer q; int64 q_head q_row; pointer out; int64 out_head out_row; pointer lse"),
        *fields("int32 kv_heads group dim; int64 rows; float scale; pointer positions; int64 window"),
        ("segments", POINTER(Segment)),
        *fields("int32 count; pointer workspace; int64 parts"),
    )


def attention_variants() -> tuple[str, ...]:  # reached by: tests, which hold each against the definition
    """Names the instruction sets that attention is compiled for and this processor runs, best last."""
    names = (library().minimemo_attention_variant(number) for number in range(5))
    return tuple(name.decode() for name in names if name)


def too_wide(group: int, dim: int) -> str | None:
    """Says why `group` query heads of `dim` numbers on one kv head are more than the kernels' buffers hold, or None."""
    if 1 <= dim <= MAX_DIM and group * (-dim // 16 * -16) <= _MAX_CELLS:
        return None
    return f"head dim {dim} in groups of {group} heads, at most {MAX_DIM} and {_MAX_CELLS} in all"


def attention(q: Tensor, sources: Sequence[Source | PackedSource], scale: float) -> tuple[Tensor, Tensor]:
    """Attends from q (H, N, D) float32 to 1 to 64 sources of one window -> out (H, N, D), log-sum-exp (H, N) float32.

    Dense keys are float32 or bfloat16. A token that sees no key gives zeros and -inf. Raises ValueError, naming the
    argument, for what does not fit, NativeUnavailable without the library.
    """
    q = q if q.stride(-1) == 1 else q.contiguous()
    check("q", q, (None, None, None), (torch.float32,), CPU)
    heads, rows, dim = q.shape
    if not 1 <= len(sources) <= MAX_SOURCES:
        raise ValueError(f"sources: {len(sources)}, expected 1 to {MAX_SOURCES}")
    if not scale > 0:
        raise ValueError(f"scale: {scale}, expected a number above zero")
    kv_heads, window = sources[0].shape[0], sources[0].window
    if heads == 0 or kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"q: {heads} heads do not share {kv_heads} kv heads evenly")
    if reason := too_wide(heads // kv_heads, dim):
        raise ValueError(f"q: {reason}")
    segments = (Segment * len(sources))()
    for index, (segment, source) in enumerate(zip(segments, sources, strict=True)):
        try:
            _place(segment, source, rows, window)
            if isinstance(source, PackedSource):
                fill_packed(segment, source.packed, kv_heads, dim)
            else:
                fill_dense(segment, source.keys, source.values, kv_heads, dim)
        except ValueError as error:
            raise ValueError(f"source {index}: {error}") from None
    positions = torch.arange(_FAR, _FAR + rows)
    out, lse = torch.empty(rows, heads, dim).transpose(0, 1), torch.empty(heads, rows)
    job = _Attention(
        q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr(), out.stride(0), out.stride(1), lse.data_ptr(),
        kv_heads, heads // kv_heads, dim, rows, scale, positions.data_ptr(), window or _NO_WINDOW, segments,
        len(sources), None, 0,
    )  # fmt: skip
    size = ctypes.sizeof(_Attention) + ctypes.sizeof(Segment)
    opened = library()
    failed = opened.minimemo_attention(opened.attention_variant, ctypes.byref(job), size, torch.get_num_threads())
    if failed:
        raise MemoryError("no memory for partial results") if failed == 1 else RuntimeError("library of another build")
    return out, lse


def pack_into(packed: PackedKV, first: int, keys: Tensor, values: Tensor) -> None:
    """Packs keys and values (G, n, D), float32 or bfloat16, into tokens first .. first + n - 1 of `packed`, whole
    groups of 64: the same bits as `torch_ops.pack_kv`.

    Raises ValueError for what does not fit, and for numbers that are not finite or beyond float16; the groups that
    hold those are then not written.
    """
    heads, capacity, dim = packed.shape
    source, target = Segment(), Segment()
    fill_dense(source, keys, values, heads, dim)
    fill_packed(target, packed, heads, dim)
    tokens = keys.shape[1]
    if tokens % PACK_GROUP or first % PACK_GROUP or not 0 <= first <= first + tokens <= capacity:
        raise ValueError(f"keys: tokens {first} .. {first + tokens} are no whole groups of 64 within {capacity}")
    wrong = library().minimemo_pack_kv(
        ctypes.byref(source), ctypes.byref(target), heads, first // PACK_GROUP, dim, torch.get_num_threads()
    )
    if wrong:
        raise ValueError(f"{'keys' if wrong == 1 else 'values'}: numbers that are not finite or too large for float16")


def _place(segment: Segment, source: Source | PackedSource, rows: int, window: int | None) -> None:
    """Says which rows see a source, and where its first key lies so that their positions see as many keys as asked."""
    last = source.first + source.count
    if not 0 <= source.first <= last <= rows:
        raise ValueError(f"query tokens {source.first} .. {last - 1} of {rows}")
    if source.window != window:
        raise ValueError(f"window: {source.window}, the others have {window}")
    if window is not None and (window < 1 or source.last_seen is None):
        raise ValueError(f"window: {window}, expected 1 or more, and last_seen with it")
    segment.first_row, segment.last_row = source.first, last
    segment.start = 0 if source.last_seen is None else _FAR + source.first - source.last_seen


def fill_dense(segment: Segment, keys: Tensor, values: Tensor, kv_heads: int, dim: int) -> None:
    """Points a segment at keys and values (G, T, D), views of a larger cache or whole. Raises ValueError."""
    check("keys", keys, (kv_heads, None, dim), (torch.float32, torch.bfloat16), CPU)
    check("values", values, keys.shape, (keys.dtype,), CPU)
    check_gapless("keys", keys)
    check_gapless("values", values)
    segment.store, segment.tokens = _STORES[keys.dtype], _tokens(keys)
    segment.keys, segment.values = keys.data_ptr(), values.data_ptr()
    segment.key_stride, segment.value_stride = keys.stride(0), values.stride(0)


def fill_packed(segment: Segment, packed: PackedKV, kv_heads: int, dim: int) -> None:
    """Points a segment at packed tensors, which are the caller's to hold. Raises ValueError."""
    check_packed(packed, CPU)
    if packed.shape[::2] != (kv_heads, dim):
        raise ValueError(f"key_codes: {packed.shape[0]} heads of {packed.shape[2]} dims, expected {kv_heads} of {dim}")
    segment.store, segment.tokens = _PACKED_STORES[packed.bits], _tokens(packed.key_codes)
    segment.keys, segment.values = packed.key_codes.data_ptr(), packed.value_codes.data_ptr()
    segment.key_stride = segment.value_stride = packed.key_codes.stride(0)
    segment.key_scale, segment.key_low = packed.key_scale.data_ptr(), packed.key_low.data_ptr()
    segment.value_scale, segment.value_low = packed.value_scale.data_ptr(), packed.value_low.data_ptr()
    segment.key_param_stride, segment.value_param_stride = packed.key_scale.stride(0), packed.value_scale.stride(0)


def _tokens(keys: Tensor) -> int:
    if keys.shape[1] >= 2**31 - 64:
        raise ValueError(f"keys: {keys.shape[1]} tokens are too many")
    return keys.shape[1]
