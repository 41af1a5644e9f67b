"""This file runs all layers of a decoder in one native call (src/stack.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from ctypes import POINTER, Structure, c_int64, c_void_p
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..formats import CPU, PackedKV, check
from .attention import Segment, fill_packed, too_wide
from .library import fields, library
from .linear import PackedMatrix

_GATES = ("silu", "gelu_tanh")


class _Matrix(Structure):
    _fields_ = (("parts", POINTER(c_void_p)), ("bias", c_void_p), ("count", c_int64))


NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm", "post_attention_norm", "post_mlp_norm")
MATRICES = ("qkv", "out", "gate_up", "down")


class _Layer(Structure):
    _fields_ = (
        *((name, c_void_p) for name in NORMS),
        *((name, _Matrix) for name in MATRICES),
        *fields("int64 window rotation"),
    )


class _Model(Structure):
    _fields_ = (
        ("layers", POINTER(_Layer)),
        *fields("int32 count heads kv_heads dim hidden intermediate gate; float norm_eps scale; int32 reserved"),
    )


class _Cache(Structure):
    _fields_ = (
        *fields("pointer keys values; int64 layer_stride head_stride length count bfloat16"),
        ("packed", POINTER(Segment)),
    )


class _Call(Structure):
    _fields_ = (
        *fields("pointer x; int64 tokens"),
        *((name, c_void_p * 2) for name in ("cosines", "sines")),
        *((name, POINTER(_Cache)) for name in ("rows", "prefix")),
        *fields("int64 row_count; pointer raw_keys; int32 fine threads"),
    )


class Cache(Protocol):
    """Holds keys, values (L, G, capacity, D), in whose slot 0 lies token `start`; the first `start` tokens are packed,
    the heads of all layers in a row (L G of them)."""

    keys: Tensor
    values: Tensor
    length: int
    start: int
    packed: PackedKV | None


@dataclass(frozen=True, slots=True)
class StackLayer:
    """Holds a layer's NORMS, (C,) or (D,) float32 or None, and its MATRICES, packed, with biases (out,) or None."""

    norms: Mapping[str, Tensor | None]
    matrices: Mapping[str, tuple[PackedMatrix, Tensor | None]]
    window: int | None
    rotation: int


class Stack:
    """Runs layers, which are checked once; their tensors are held as long as this is."""

    def __init__(
        self,
        layers: Sequence[StackLayer],
        *,
        heads: int,
        kv_heads: int,
        dim: int,
        activation: str,
        norm_eps: float,
        scale: float,
    ) -> None:
        """Raises ValueError, naming layer and tensor, for shapes or dtypes that do not fit together."""
        if activation not in _GATES:
            raise ValueError(f"stack: activation must be {' or '.join(_GATES)}, got {activation!r}")
        if heads % kv_heads or dim % 2:
            raise ValueError(
                f"stack: {heads} heads of {dim} dims do not share {kv_heads} kv heads, or cannot be rotated"
            )
        if reason := too_wide(heads // kv_heads, dim):
            raise ValueError(f"stack: {reason}")
        hidden, intermediate = (layers[0].matrices[name][0].in_features for name in ("qkv", "down"))
        shapes = {
            "attention_norm": (hidden,), "mlp_norm": (hidden,), "post_attention_norm": (hidden,),
            "post_mlp_norm": (hidden,), "q_norm": (dim,), "k_norm": (dim,),
            "qkv": ((heads + 2 * kv_heads) * dim, hidden), "out": (hidden, heads * dim),
            "gate_up": (2 * intermediate, hidden), "down": (hidden, intermediate),
        }  # fmt: skip
        self._layers = tuple(layers)  # keeps what is pointed at
        table = (_Layer * len(layers))()
        for index, layer in enumerate(layers):
            _fill(table[index], layer, index, shapes)
        self._shape = (len(layers), kv_heads, dim)
        self._hidden = hidden
        self._model = _Model(
            *(table, len(layers), heads, kv_heads, dim, hidden, intermediate, _GATES.index(activation)),
            *(norm_eps, scale, 0),
        )

    def run(
        self,
        x: Tensor,
        rotations: Sequence[tuple[Tensor, Tensor]],
        rows: Sequence[tuple[Cache, int]],
        prefix: Cache | None = None,
        raw_keys: Tensor | None = None,
        *,
        exact: bool = True,
    ) -> None:
        """Puts x (N, C) float32 through all layers in place and writes the tokens' keys and values into their caches,
        whose lengths stay.

        rotations: (cos, sin), each (N, D) float32, of every kind. rows: caches and how many of the N tokens continue
        each. prefix: a memory that all of them share. raw_keys: (L, G, N, D) of the caches' dtype, filled with the keys
        before RoPE. exact: products round activations to 14 bits, else to 8.
        """
        tokens = sum(count for _, count in rows)
        layers, kv_heads, dim = self._shape
        _check("x", x, (tokens, self._hidden))
        if tokens < 1:
            raise ValueError(f"stack: {tokens} tokens")
        if raw_keys is not None:
            _check("raw_keys", raw_keys, (layers, kv_heads, tokens, dim), {cache.keys.dtype for cache, _ in rows})
        for cos, sin in rotations:
            _check("cos", cos, (tokens, dim))
            _check("sin", sin, (tokens, dim))
        if not max(layer.rotation for layer in self._layers) < len(rotations) <= 2:
            raise ValueError(f"stack: {len(rotations)} kinds of rotation")
        cosines, sines = (
            (c_void_p * 2)(*(table.data_ptr() for table in tables)) for tables in zip(*rotations, strict=True)
        )
        call = _Call(
            *(x.data_ptr(), tokens, cosines, sines),
            (_Cache * len(rows))(*(self._cache(cache, count) for cache, count in rows)),
            ctypes.pointer(self._cache(prefix, 0)) if prefix is not None and prefix.length else None,
            *(len(rows), None if raw_keys is None else raw_keys.data_ptr(), exact, torch.get_num_threads()),
        )
        opened = library()
        if opened.minimemo_stack(
            opened.variant, opened.attention_variant, ctypes.byref(self._model), ctypes.byref(call)
        ):
            raise MemoryError("no memory for the activations")

    def _cache(self, cache: Cache, count: int) -> _Cache:
        keys, values, packed = cache.keys, cache.values, None
        layers, kv_heads, dim = self._shape
        capacity, length = keys.shape[2], cache.length - cache.start
        _check("keys", keys, (layers, kv_heads, capacity, dim), (torch.float32, torch.bfloat16))
        _check("values", values, keys.shape, (keys.dtype,))
        if count < 0 or not 0 <= length <= capacity - count:
            raise ValueError(f"stack: {count} tokens after {length} in a cache of {capacity}")
        if cache.packed is not None:
            if cache.packed.shape[1] != cache.start:
                raise ValueError(f"stack: {cache.packed.shape[1]} packed tokens before token {cache.start}")
            packed = Segment()
            fill_packed(packed, cache.packed, layers * kv_heads, dim)
        return _Cache(
            *(keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1), length, count),
            *(keys.dtype == torch.bfloat16, None if packed is None else ctypes.pointer(packed)),
        )


def _fill(to: _Layer, layer: StackLayer, index: int, shapes: dict[str, tuple[int, ...]]) -> None:
    if (layer.norms["q_norm"] is None) != (layer.norms["k_norm"] is None):
        raise ValueError(f"stack: layer {index} has a norm of queries or keys alone")
    for name, norm in layer.norms.items():
        if norm is not None:
            _check(f"layer {index} {name}", norm, shapes[name])
            setattr(to, name, norm.data_ptr())
    for name, (matrix, bias) in layer.matrices.items():
        if matrix.shape != shapes[name]:
            raise ValueError(f"stack: layer {index} {name} is {matrix.shape}, expected {shapes[name]}")
        if bias is not None:
            _check(f"layer {index} {name} bias", bias, matrix.shape[:1])
        parts = ctypes.cast(matrix.pointers, POINTER(c_void_p))
        setattr(to, name, _Matrix(parts, None if bias is None else bias.data_ptr(), len(matrix.buffers)))
    to.window, to.rotation = layer.window or 0, layer.rotation


def _check(name: str, tensor: Tensor, shape: Sequence[int], dtypes: Collection[torch.dtype] = (torch.float32,)) -> None:
    check(f"stack: {name}", tensor, shape, dtypes, CPU)
    if not tensor.is_contiguous():
        raise ValueError(f"stack: {name}: strides {tensor.stride()}, expected a tensor without gaps")
