"""Attention over one or several sources of keys: which kernel does it, and what every kernel is given.

Candidates stand in a list, best first; each says why it cannot serve a call, and the first that can does. Letters: H
query heads, G kv heads, N query tokens, T key tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import native, native_attention, torch_ops
from .source import Source


@dataclass(frozen=True, slots=True)
class Candidate:
    """refuses: why a kernel cannot serve (q, sources), or None. run: as `attend`."""

    name: str
    refuses: Callable[[Tensor, Sequence[Source]], str | None]
    run: Callable[[Tensor, Sequence[Source], float], Tensor]


def attend(q: Tensor, sources: Sequence[Source], scale: float) -> Tensor:
    """Grouped-query attention of each query token over the union of its sources: q (H, N, D) -> (H, N, D), q's dtype.

    Raises ValueError for arguments that do not fit together, NotImplementedError when no kernel serves them, with every
    candidate and its reason.
    """
    reasons = []
    for candidate in CANDIDATES:
        if (reason := candidate.refuses(q, sources)) is None:
            return candidate.run(q, sources, scale)
        reasons.append(f"{candidate.name}: {reason}")
    raise NotImplementedError(f"attention: no kernel for {q.dtype} on {q.device}; " + "; ".join(reasons))


def _native_refuses(q: Tensor, sources: Sequence[Source]) -> str | None:
    if q.device.type != "cpu":
        return "runs on the CPU only"
    if q.dtype != torch.float32:
        return "takes float32 queries only"
    if any(source.keys.dtype not in native_attention.DTYPES for source in sources):
        return "takes float32 and bfloat16 keys only"
    return native.unavailable()


def _run_torch(q: Tensor, sources: Sequence[Source], scale: float) -> Tensor:
    """Source by source, merged by log-sum-exp where several reach a token."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = q.new_zeros(q.shape), q.new_full(q.shape[:2], float("-inf"), dtype=wide)
    for source in sources:
        span = slice(source.first, source.first + source.count)
        positions = None
        if source.last_seen is not None:
            positions = torch.arange(source.last_seen, source.last_seen + source.count, device=q.device)
        part = torch_ops.attention(
            q[:, span], source.keys, source.values, scale=scale, query_positions=positions, window=source.window
        )
        if len(sources) == 1 and source.count == q.shape[1]:
            return part[0]
        out[:, span], lse[:, span] = torch_ops.merge_attention(out[:, span], lse[:, span], *part)
    return out


CANDIDATES = (
    Candidate(
        "native", _native_refuses, lambda q, sources, scale: native_attention.attention(q, sources, scale=scale)[0]
    ),
    Candidate("torch", lambda q, sources: None, _run_torch),
)
