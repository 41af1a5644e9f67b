"""Attention over one or several sources of keys: which kernel does it, and what every kernel is given.

Candidates stand in a list, best first; each says why it cannot serve a call, and the first that can does. The last,
torch, always can. Letters: H query heads, G kv heads, N query tokens, T key tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from . import native, native_attention, placement, reference, torch_ops
from .source import PackedSource, Source

AnySource: TypeAlias = Source | PackedSource


@dataclass(frozen=True, slots=True)
class Candidate:
    """refuses: why a kernel cannot serve (q, sources), or None. run: as `attend`."""

    name: str
    refuses: Callable[[Tensor, Sequence[AnySource]], str | None]
    run: Callable[[Tensor, Sequence[AnySource], float], Tensor]


def attend(q: Tensor, sources: Sequence[AnySource], scale: float) -> Tensor:
    """Grouped-query attention of each query token over the union of its sources: q (H, N, D) -> (H, N, D), q's dtype.

    Raises ValueError for arguments that do not fit together.
    """
    chosen = next(candidate for candidate in CANDIDATES if candidate.refuses(q, sources) is None)
    return chosen.run(q, sources, scale)


def _dense(sources: Sequence[AnySource]) -> Iterator[Source]:
    return (source for source in sources if isinstance(source, Source))


def _native_refuses(q: Tensor, sources: Sequence[AnySource]) -> str | None:
    if q.device.type != "cpu":
        return "runs on the CPU only"
    if q.dtype != torch.float32:
        return "takes float32 queries only"
    if any(source.keys.dtype not in (torch.float32, torch.bfloat16) for source in _dense(sources)):
        return "takes float32 and bfloat16 keys only"
    windows = {source.window for source in sources}
    if len(windows) > 1 or (windows != {None} and any(source.last_seen is None for source in sources)):
        return "takes one window for all sources, and positions with it"
    if len(sources) > native_attention.MAX_SEGMENTS:
        return f"takes {native_attention.MAX_SEGMENTS} sources"
    heads = {(x.packed.key_codes if isinstance(x, PackedSource) else x.keys).shape[0] for x in sources}
    wide = (native_attention.too_wide(q.shape[0] // n, q.shape[2]) for n in heads if n)
    return next(filter(None, wide), None) or native.unavailable()


def _run_native(q: Tensor, sources: Sequence[AnySource], scale: float) -> Tensor:
    """As segments whose first keys lie where each token's position, N on, says that it sees just so many of them."""
    far = 1 << 40
    segments: list[native_attention.DenseSegment | native_attention.PackedSegment] = []
    for source in sources:
        seen = far if source.last_seen is None else source.last_seen
        start = far + source.first - seen if source.last_seen is not None else 0
        rows = (source.first, source.first + source.count)
        if isinstance(source, PackedSource):
            segments.append(native_attention.PackedSegment(source.packed, start, rows))
        else:
            segments.append(native_attention.DenseSegment(source.keys, source.values, start, rows))
    positions = torch.arange(far, far + q.shape[1])
    window = sources[0].window if sources else None
    return native_attention.segment_attention(q, segments, scale=scale, query_positions=positions, window=window)[0]


def _triton_refuses(q: Tensor, sources: Sequence[AnySource]) -> str | None:
    if not placement.on_triton_device(q):
        return "runs on a GPU only"
    if q.dtype not in placement.TRITON_DTYPES or any(source.keys.dtype != q.dtype for source in _dense(sources)):
        return "takes queries and keys of one dtype: float16, bfloat16 or float32"
    if q.shape[2] > placement.TRITON_DIMS:
        return f"takes heads of at most {placement.TRITON_DIMS} dims"
    return None if placement.has_triton() else "triton is not installed; pip install 'minimemo[gpu]'"


def _run_triton(q: Tensor, sources: Sequence[AnySource], scale: float) -> Tensor:
    from .triton_sources import attend as on_gpu

    return on_gpu(q, sources, scale)


def _run_torch(q: Tensor, sources: Sequence[AnySource], scale: float) -> Tensor:
    """Source by source, merged by log-sum-exp where several reach a token."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = q.new_zeros(q.shape), q.new_full(q.shape[:2], float("-inf"), dtype=wide)
    for source in sources:
        span = slice(source.first, source.first + source.count)
        positions = None
        if source.last_seen is not None:
            positions = torch.arange(source.last_seen, source.last_seen + source.count, device=q.device)
        if isinstance(source, PackedSource):
            keys, values = (x.to(q.dtype) for x in reference.unpack_kv(source.packed))
        else:
            keys, values = source.keys, source.values
        part = torch_ops.attention(
            q[:, span], keys, values, scale=scale, query_positions=positions, window=source.window
        )
        if len(sources) == 1 and source.count == q.shape[1]:
            return part[0]
        out[:, span], lse[:, span] = torch_ops.merge_attention(out[:, span], lse[:, span], *part)
    return out


CANDIDATES = (
    Candidate("triton", _triton_refuses, _run_triton),
    Candidate("native", _native_refuses, _run_native),
    Candidate("torch", lambda q, sources: None, _run_torch),
)
