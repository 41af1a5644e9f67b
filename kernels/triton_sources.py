"""Attention of a pass over several sources of keys on a GPU: a shared memory, the rows' own tails, in one merge.

Each source is read once for all query tokens that attend to it, into parts that one kernel merges by log-sum-exp
(arXiv 2402.05099). Nothing here waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .source import PackedSource, Source
from .triton_attention import dense_launch
from .triton_launch import FLOATS, Launch, check
from .triton_merge import Plan, new_parts, new_result, run_plan
from .triton_packed import packed_launch
from .triton_rule import Rule, shares_for


def attend(q: Tensor, sources: Sequence[Source | PackedSource], scale: float) -> Tensor:
    """Grouped-query attention of each query token over the union of its sources: q (H, N, D) -> (H, N, D), q's dtype.

    Tokens without a source give zeros. Raises ValueError naming what does not fit.
    """
    plan = sources_plan(q, sources, scale)
    return run_plan(plan, q)[0]


def sources_plan(q: Tensor, sources: Sequence[Source | PackedSource], scale: float) -> Plan:
    """Launches and the parts that they fill. Sources of one share whose tokens do not overlap fill the same part."""
    check("q", q, (None, None, None), FLOATS)
    wanted = []
    for source in sources:
        if not 0 <= source.first <= source.first + source.count <= q.shape[1]:
            last = source.first + source.count - 1
            raise ValueError(f"source: query tokens {source.first} .. {last} of {q.shape[1]}")
        span = slice(source.first, source.first + source.count)
        keys = source.packed.key_codes if isinstance(source, PackedSource) else source.keys
        wanted.append((source, span, shares_for(q[:, span], keys)))
    if len(wanted) == 1 and wanted[0][0].count == q.shape[1] and wanted[0][2] == 1:
        out, lse = new_result(q)
        return Plan((_launch(q, wanted[0][0], scale, 1, out, lse),), out, lse)
    places: list[int] = []
    taken: list[list[slice]] = []  # for each part the spans that fill it
    for _, span, shares in wanted:
        at = next((i for i, spans in enumerate(taken) if shares == 1 and _apart(span, spans)), len(taken))
        if at == len(taken):
            taken.extend([] for _ in range(shares))
        for part in taken[at : at + shares]:
            part.append(span)
        places.append(at)
    out, lse = new_parts(q, max(len(taken), 1))
    if any(sum(span.stop - span.start for span in spans) < q.shape[1] for spans in taken or [[]]):
        lse.fill_(float("-inf"))  # tokens that a part says nothing about
    launches = tuple(
        _launch(q[:, span], source, scale, shares, out[at:, :, span], lse[at:, :, span])
        for (source, span, shares), at in zip(wanted, places, strict=True)
    )
    return Plan(launches, out, lse)


def _launch(q: Tensor, source: Source | PackedSource, scale: float, shares: int, out: Tensor, lse: Tensor) -> Launch:
    rule = Rule(scale, source.last_seen, 0, source.window, 0, None)
    if isinstance(source, PackedSource):
        return packed_launch(q, source.packed, rule, shares, out, lse)
    return dense_launch(q, source.keys, source.values, rule, shares, out, lse)


def _apart(span: slice, others: Sequence[slice]) -> bool:
    return all(span.stop <= other.start or other.stop <= span.start for other in others)
