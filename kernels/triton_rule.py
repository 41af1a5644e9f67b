"""What dense and packed attention ask alike on the host: which keys a query sees, block sizes, shares of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from .triton_launch import FLOATS, check

_MAX_DIM = 256
_WANTED_PROGRAMS = 256  # two for each processor of an A100 or H100
_LEAST_SHARE = 256  # keys; less is not worth a partial result


@dataclass(frozen=True, slots=True)
class Rule:
    """Which keys a query sees, and how a score is made of q . k (arguments of `reference.attention`)."""

    scale: float
    query_positions: Tensor | int | None  # an integer: of the first query, the others follow
    key_start: int
    window: int | None
    sinks: int
    soft_cap: float | None

    def check(self, q: Tensor) -> None:
        if isinstance(self.query_positions, Tensor):
            check("query_positions", self.query_positions, (q.shape[1],), (torch.int64, torch.int32), q)
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: {self.window}, expected 1 or more, or None")
        if self.window is not None and self.query_positions is None:
            raise ValueError("query_positions: needed where a window is given")
        if self.sinks < 0:
            raise ValueError(f"sinks: {self.sinks}, expected 0 or more")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"soft_cap: {self.soft_cap}, expected a positive number or None")

    def arguments(self) -> dict[str, Tensor | int | float | None]:
        positions = self.query_positions
        return {
            "positions": positions if isinstance(positions, Tensor) else None,
            "first_position": positions if isinstance(positions, int) else 0,
            "key_start": self.key_start,
            "window": min(self.window or 0, 1 << 29),  # far enough, and differences of positions fit 32 bits
            "sinks": self.sinks,
            "scale": self.scale,
            "soft_cap": self.soft_cap or 0.0,
        }

    def constants(self) -> dict[str, bool]:
        return {
            "CAUSAL": self.query_positions is not None,
            "WINDOWED": self.window is not None,
            "CAPPED": self.soft_cap is not None,
        }


def check_heads(q: Tensor, kv_heads: int, dim: int) -> None:
    check("q", q, (None, None, dim), FLOATS)
    if not 1 <= dim <= _MAX_DIM:
        raise ValueError(f"q: head dim {dim}, expected 1 to {_MAX_DIM}")
    if q.shape[0] * q.stride(0) + q.shape[1] * q.stride(1) >= 1 << 31:
        raise ValueError(f"q: strides {q.stride()} reach beyond what 32 bits count")
    if kv_heads == 0 or q.shape[0] % kv_heads:
        raise ValueError(f"q: {q.shape[0]} heads do not divide into the keys' {kv_heads}")


def shares_for(q: Tensor, k: Tensor) -> int:
    """As many shares of keys k (G, T, ...) as it takes to occupy the GPU, each of at least _LEAST_SHARE keys."""
    check("q", q, (None, None, None), FLOATS)
    if k.dim() != 3 or k.shape[0] == 0:
        return 1  # refused by name at the launch
    kv_heads, tokens = k.shape[:2]
    rows = q.shape[1] * (q.shape[0] // kv_heads)
    blocks = triton.cdiv(rows, block_rows(rows, q.shape[-1], q.dtype))
    return max(1, min(_WANTED_PROGRAMS // max(blocks * kv_heads, 1), tokens // _LEAST_SHARE))


def block_rows(rows: int, dim: int, dtype: torch.dtype) -> int:
    """Query rows of a program: what a tensor core takes at once for few rows, as many as registers hold for many."""
    most = (128 if dim <= 128 else 64) if dtype != torch.float32 else (32 if dim <= 128 else 16)
    return min(most, max(16, triton.next_power_of_2(rows)))


def tiling(rows: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Block sizes, warps and stages of a `Launch`: the largest blocks that leave no register spilled (aot.py)."""
    block_m, block_d = block_rows(rows, dim, dtype), max(16, triton.next_power_of_2(dim))
    if dtype == torch.float32:  # products without tensor cores
        block_n, warps = 16, 8 if block_m > 16 else 4
    elif block_m == 16:  # bound by memory traffic: small tiles, many in flight
        block_n, warps = 64 if dim <= 64 else 32, 4
    else:
        block_n, warps = 64 if dim <= 128 else 32, 8 if block_m == 128 or (block_m == 64 and dim > 64) else 4
    ampere = {"BLOCK_N": 32} if block_m >= 64 and block_d == 128 and dtype != torch.float32 else {}
    return {
        "blocks": {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d},
        "num_warps": warps, "num_stages": 4 if block_m == 16 else 2, "ampere": ampere,
    }  # fmt: skip
