"""This file packs keys and values on the CPU (src/attention_pack.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..formats import PACK_GROUP, PackedKV
from .attention import Segment, fill_dense, fill_packed
from .library import library


def pack_into(packed: PackedKV, first: int, keys: Tensor, values: Tensor) -> None:
    """Packs keys and values (G, n, D), float32 or bfloat16, into tokens first .. first + n - 1 of `packed`, whole
    groups of 64: the same bits as `reference.pack_kv`.

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
