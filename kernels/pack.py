"""This file picks the kernel that packs keys and values into a cache."""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from . import native, torch_ops, triton
from .formats import PACK_GROUP, PackedKV
from .native import attention as on_cpu


def pack_into(packed: PackedKV, first: int, keys: Tensor, values: Tensor) -> None:
    """Packs keys and values (G, n, D) into tokens first .. first + n - 1 of `packed`, whole groups of 64.

    Raises ValueError for what does not fit, and for numbers that are not finite or beyond float16; what those tokens
    hold is undefined then.
    """
    if triton.serves(keys, values):
        from .triton import pack as on_gpu

        on_gpu.pack_into(packed, first, keys, values)
    elif keys.device.type == "cpu" and native.unavailable() is None:
        on_cpu.pack_into(packed, first, keys, values)
    else:
        _store(torch_ops.pack_kv(keys, values, packed.bits), packed, first)


def _store(made: PackedKV, packed: PackedKV, first: int) -> None:
    for field in fields(made):
        if field.name != "bits":
            step = PACK_GROUP if field.name in ("key_scale", "key_low") else 1
            part: Tensor = getattr(made, field.name)
            getattr(packed, field.name).narrow(1, first // step, part.shape[1]).copy_(part)
