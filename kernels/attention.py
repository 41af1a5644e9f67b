"""This file picks the kernel that attends: the first candidate that serves a call. The last, torch, always does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import native, torch_ops, triton
from .formats import MAX_DIM, PackedSource, Source
from .native import attention as on_cpu

Sources: TypeAlias = Sequence[Source | PackedSource]


def attend(q: Tensor, sources: Sources, scale: float) -> Tensor:
    """Attends, grouped-query, from each query token to the union of its sources: q (H, N, D) -> (H, N, D), q's dtype.

    Raises ValueError for arguments that do not fit together.
    """
    chosen = next(candidate for candidate in CANDIDATES if candidate.serves(q, sources))
    return chosen.run(q, sources, scale)


def _triton_serves(q: Tensor, sources: Sources) -> bool:
    dense = (source.keys for source in sources if isinstance(source, Source))
    return q.shape[2] <= MAX_DIM and triton.serves(q, *dense)


def _run_triton(q: Tensor, sources: Sources, scale: float) -> Tensor:
    from .triton.attention import attention

    return attention(q, sources, scale)


def _native_serves(q: Tensor, sources: Sources) -> bool:
    """Whether queries are float32 and keys that, bfloat16 or packed; all sources need one window, positions with it."""
    if not (q.is_cpu and q.dtype == torch.float32 and 1 <= len(sources) <= on_cpu.MAX_SOURCES):
        return False
    window, kv_heads = sources[0].window, sources[0].shape[0]
    for source in sources:
        if isinstance(source, Source) and source.keys.dtype not in (torch.float32, torch.bfloat16):
            return False
        if source.window != window or (window is not None and source.last_seen is None):
            return False
    return on_cpu.too_wide(q.shape[0] // max(kv_heads, 1), q.shape[2]) is None and native.unavailable() is None


class Candidate(NamedTuple):
    """A kernel that may attend, as `attend`, where it serves (q, sources)."""

    name: str
    serves: Callable[[Tensor, Sources], bool]
    run: Callable[[Tensor, Sources, float], Tensor]


CANDIDATES = (
    Candidate("triton", _triton_serves, _run_triton),
    Candidate("native", _native_serves, lambda q, sources, scale: on_cpu.attention(q, sources, scale)[0]),
    Candidate("torch", lambda q, sources: True, torch_ops.attention),
)
