"""This file picks the kernel that attends. Candidates stand in a list, best first; each says why it cannot serve a
call, and the first that can does. The last, torch, always can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from . import native, torch_ops, triton
from .formats import MAX_DIM, PackedSource, Source
from .native import attention as on_cpu

Sources: TypeAlias = Sequence[Source | PackedSource]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel that may attend. refuses: why it cannot serve (q, sources), or None. run: as `attend`."""

    name: str
    refuses: Callable[[Tensor, Sources], str | None]
    run: Callable[[Tensor, Sources, float], Tensor]


def attend(q: Tensor, sources: Sources, scale: float) -> Tensor:
    """Attends, grouped-query, from each query token to the union of its sources: q (H, N, D) -> (H, N, D), q's dtype.

    Raises ValueError for arguments that do not fit together.
    """
    chosen = next(candidate for candidate in CANDIDATES if candidate.refuses(q, sources) is None)
    return chosen.run(q, sources, scale)


def _triton_refuses(q: Tensor, sources: Sources) -> str | None:
    if q.device.type != triton.DEVICE:
        return "runs on a GPU only"
    if not triton.serves(q, *(source.keys for source in sources if isinstance(source, Source))):
        if not triton.installed():
            return "triton is not installed; pip install 'minimemo[gpu]'"
        return "takes queries and keys of one dtype: float16, bfloat16 or float32"
    return None if q.shape[2] <= MAX_DIM else f"takes heads of at most {MAX_DIM} dims"


def _run_triton(q: Tensor, sources: Sources, scale: float) -> Tensor:
    from .triton.attention import attention

    return attention(q, sources, scale)


def _native_refuses(q: Tensor, sources: Sources) -> str | None:
    if q.device.type != "cpu":
        return "runs on the CPU only"
    if q.dtype != torch.float32:
        return "takes float32 queries only"
    if not 1 <= len(sources) <= on_cpu.MAX_SOURCES:
        return f"takes 1 to {on_cpu.MAX_SOURCES} sources"
    window, kv_heads = sources[0].window, sources[0].shape[0]
    for source in sources:
        if isinstance(source, Source) and source.keys.dtype not in (torch.float32, torch.bfloat16):
            return "takes float32 and bfloat16 keys only"
        if source.window != window or (window is not None and source.last_seen is None):
            return "takes one window for all sources, and positions with it"
    return on_cpu.too_wide(q.shape[0] // max(kv_heads, 1), q.shape[2]) or native.unavailable()


def _run_native(q: Tensor, sources: Sources, scale: float) -> Tensor:
    return on_cpu.attention(q, sources, scale)[0]


CANDIDATES = (
    Candidate("triton", _triton_refuses, _run_triton),
    Candidate("native", _native_refuses, _run_native),
    Candidate("torch", lambda q, sources: None, torch_ops.attention),
)
