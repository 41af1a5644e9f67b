"""Attention on the CPU: Python's side of native/attention.h.

Keys and values in bfloat16 or float32, softmax and sums in float32. Where the processor multiplies bfloat16 in pairs
(AVX-512 BF16), queries and probabilities over bfloat16 keys and values are rounded to it; elsewhere nothing is rounded.
The same arguments give the same bits whatever the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from .native import _library
from .source import Source

DTYPES = (torch.float32, torch.bfloat16)
_UNMASKED = 1 << 40  # far behind any key


class _Source(Structure):
    """AttentionSource of native/attention.h."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("head_stride", c_int64),
        ("keys_count", c_int64),
        ("first_token", c_int64),
        ("tokens", c_int64),
        ("last_seen", c_int64),
        ("window", c_int64),
        ("bfloat16", c_int32),
        ("reserved", c_int32),
    )


class _Attention(Structure):
    """Attention of native/attention.h."""

    _fields_ = (
        ("q", c_void_p),
        ("q_token", c_int64),
        ("q_head", c_int64),
        ("out", c_void_p),
        ("out_token", c_int64),
        ("out_head", c_int64),
        ("lse", c_void_p),
        ("source", POINTER(_Source)),
        ("tokens", c_int64),
        ("sources", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("dim", c_int32),
        ("scale", c_float),
    )


def attention(
    q: Tensor, sources: Sequence[Source], *, scale: float, out: Tensor | None = None, threads: int | None = None
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention of each query token over the union of its sources.

    q (H, N, D) float32 -> out (H, N, D) float32 (a view of (N, H, D) unless given) and the log-sum-exps (H, N). A token
    that sees nothing gives zeros and -inf. Raises ValueError for shapes, strides or dtypes that do not fit together.
    """
    heads, tokens, dim = _check_queries(q, "q")
    if out is None:
        out = torch.empty(tokens, heads, dim).transpose(0, 1)
    elif _check_queries(out, "out") != (heads, tokens, dim):
        raise ValueError(f"attention: out {tuple(out.shape)} is not shaped like q {tuple(q.shape)}")
    if not sources:
        raise ValueError("attention: no keys to attend to; give at least one source")
    kv_heads = sources[0].keys.shape[0]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"attention: {heads} query heads do not share {kv_heads} kv heads evenly")
    packed = (_Source * len(sources))(*(_source(source, kv_heads, dim, tokens) for source in sources))
    lse = torch.empty(heads, tokens)
    call = _Attention(
        *(q.data_ptr(), q.stride(1), q.stride(0), out.data_ptr(), out.stride(1), out.stride(0), lse.data_ptr()),
        *(packed, tokens, len(sources), heads, kv_heads, dim, scale),
    )
    library = _library()
    library.minimemo_attention(library.variant, ctypes.byref(call), threads or torch.get_num_threads())
    return out, lse


def _check_queries(tensor: Tensor, name: str) -> tuple[int, int, int]:
    if tensor.dtype != torch.float32 or tensor.dim() != 3 or tensor.device.type != "cpu" or tensor.stride(2) != 1:
        raise ValueError(
            f"attention: {name} must be (H, N, D) float32 on the CPU with neighbouring dims, got "
            f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}, strides {tensor.stride()}"
        )
    heads, tokens, dim = tensor.shape
    return heads, tokens, dim


def _source(source: Source, kv_heads: int, dim: int, tokens: int) -> _Source:
    keys, values = source.keys, source.values
    for tensor, name in ((keys, "keys"), (values, "values")):
        if tensor.dtype not in DTYPES or tensor.device.type != "cpu" or tensor.dim() != 3:
            raise ValueError(
                f"attention: {name} must be (G, T, D) float32 or bfloat16 on the CPU, got {tensor.dtype} "
                f"{tuple(tensor.shape)} on {tensor.device.type}"
            )
        if tensor.shape[0] != kv_heads or tensor.shape[2] != dim:
            raise ValueError(f"attention: {name} {tuple(tensor.shape)}, expected ({kv_heads}, T, {dim})")
        if tensor.shape[1] > 1 and tensor.stride()[1:] != (dim, 1):
            raise ValueError(
                f"attention: {name} has strides {tensor.stride()}; the tokens of a head must be neighbours"
            )
    if keys.shape != values.shape or keys.dtype != values.dtype or keys.stride(0) != values.stride(0):
        raise ValueError(
            f"attention: keys {keys.dtype} {tuple(keys.shape)} strides {keys.stride()} and values {values.dtype} "
            f"{tuple(values.shape)} strides {values.stride()} differ"
        )
    if not 0 <= source.first <= source.first + source.count <= tokens:
        raise ValueError(f"attention: a source for tokens {source.first} + {source.count} of {tokens}")
    last = _UNMASKED if source.last_seen is None else source.last_seen
    if last < -1 or (source.window is not None and source.window < 1):
        raise ValueError(f"attention: last_seen {source.last_seen}, window {source.window}: at least -1 and 1")
    return _Source(
        *(keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.shape[1], source.first, source.count),
        *(last, source.window or 0, keys.dtype == torch.bfloat16, 0),
    )
