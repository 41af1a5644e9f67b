"""The figures of `bench.memory`: from logits, replies and seconds to one row a tier."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bench.common.intervals import interval
from bench.common.scores import f1, holds
from bench.memory.samples import Asked


@dataclass(frozen=True, slots=True)
class Cost:
    """Of coding one sample. *_seconds: wall clock; elements: numbers of keys and values together."""

    tokens: int
    elements: int
    file_bytes: int
    payload_bytes: int  # the codec's frames: no token ids, no index, no header
    prefill_seconds: float
    encode_seconds: float  # codec, compression and writing
    load_seconds: float  # reading, decoding, RoPE, into the cache


@dataclass(frozen=True, slots=True)
class Divergence:
    """A memory's next-token distributions against the exact cache's, token by token."""

    kl: list[float]
    same: list[bool]  # whether the likeliest token is


@dataclass(frozen=True, slots=True)
class Outcome:
    """One tier on one sample. follow, again, asked, replies: None and empty where nothing was asked."""

    sample: str
    cost: Cost
    follow: Divergence | None = None
    asked: tuple[Asked, ...] = ()
    replies: Mapping[str, str] = field(default_factory=dict)  # by id of the question
    again: Divergence | None = None


def divergence(exact: Tensor, found: Tensor) -> Divergence:
    """KL(exact || found) in nats of each row of logits (n, V)."""
    kl: list[float] = []
    for p, q in zip(exact.split(64), found.split(64), strict=True):  # a vocabulary is long: float64 of a few rows only
        log_p, log_q = (x.double().log_softmax(-1) for x in (p, q))
        kl += (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0).tolist()
    return Divergence(kl, (exact.argmax(-1) == found.argmax(-1)).tolist())


def tier_row(name: str, outcomes: Sequence[Outcome], exact: Sequence[Outcome]) -> dict[str, Any]:
    """A tier's figures: sizes over all samples together, times as the median sample has them, since a busy machine has
    outliers. exact: the outcomes of the exact cache on the same samples. share_low, share_high: the 95 % interval of
    answers_f1_share over questions, by their differences. None where nothing was asked."""
    follows = {o.sample: o.follow for o in outcomes if o.follow}
    tokens = sorted(kl for d in follows.values() for kl in d.kl)
    replies = {key: reply for o in outcomes for key, reply in o.replies.items()}
    right = {key: reply for o in exact for key, reply in o.replies.items()}
    answers = [a for o in outcomes for a in o.asked if a.kind == "answer"]
    needles = [a for o in outcomes for a in o.asked if a.kind == "needle"]
    findable = [a for a in needles if holds(right[a.id], a.answers)]
    own, others = ([f1(said[a.id], a.answers) for a in answers] for said in (replies, right))
    score, best = _mean(own), _mean(others)
    lost = interval([one - other for one, other in zip(own, others, strict=True)]) if best else None
    costs = [o.cost for o in outcomes]
    size, elements = sum(c.file_bytes for c in costs), sum(c.elements for c in costs)
    return {
        "name": name,
        "bits": 8 * sum(c.payload_bytes for c in costs) / elements,
        "bytes_per_token": size / sum(c.tokens for c in costs),
        "ratio": 2 * elements / size,
        "load_x_prefill": statistics.median(c.prefill_seconds / c.load_seconds for c in costs),
        "encode_share": statistics.median(c.encode_seconds / c.prefill_seconds for c in costs),
        "prefill_tps": statistics.median(c.tokens / c.prefill_seconds for c in costs),
        "load_tps": statistics.median(c.tokens / c.load_seconds for c in costs),
        "kl": _mean(statistics.fmean(d.kl) for d in follows.values()),
        "kl_p99": tokens[int(0.99 * len(tokens))] if tokens else None,
        "kl_again": _mean(statistics.fmean(o.again.kl) for o in outcomes if o.again),
        "top1": _mean(same for d in follows.values() for same in d.same),
        "needle": _mean(holds(replies[a.id], a.answers) for a in findable),
        "needles_found": sum(holds(replies[a.id], a.answers) for a in needles),
        "needles": len(needles),
        "answers_f1": score,
        "answers_f1_share": score / best if score is not None and best else None,
        **{f"share_{end}": 1 + lost[end] / best if lost and best else None for end in ("low", "high")},
        "answers": len(answers),
        "kl_of": {sample: statistics.fmean(d.kl) for sample, d in follows.items()},
    }


def _mean(values: Any) -> float | None:
    every = list(values)
    return statistics.fmean(every) if every else None
