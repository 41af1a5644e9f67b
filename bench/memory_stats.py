"""The figures of `bench.memory`: from logits, replies and seconds to one row a tier."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bench.memory_samples import Asked
from bench.scores import f1, units


@dataclass(frozen=True, slots=True)
class Cost:
    """Of coding one sample. *_seconds: wall clock; elements: numbers of keys and values together."""

    tokens: int
    elements: int
    fp16_bytes: int
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
    """Everything found out about one tier on one sample; None and empty: not asked for."""

    sample: str
    cost: Cost
    follow: Divergence | None = None
    repeat: Divergence | None = None
    asked: tuple[Asked, ...] = ()
    replies: Mapping[str, str] = field(default_factory=dict)  # by id of the question


def divergence(exact: Tensor, found: Tensor) -> Divergence:
    """KL(exact || found) in nats of each row of logits (n, V)."""
    kl: list[float] = []
    for p, q in zip(exact.split(64), found.split(64), strict=True):  # a vocabulary is long: float64 of a few rows only
        log_p, log_q = (x.double().log_softmax(-1) for x in (p, q))
        kl += (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0).tolist()
    return Divergence(kl, (exact.argmax(-1) == found.argmax(-1)).tolist())


def holds(reply: str, answers: Sequence[str]) -> bool:
    """Whether a reply has the words of an answer, all of them in a row."""
    said = units(reply)
    for answer in answers:
        wanted = units(answer)
        if wanted and any(said[at : at + len(wanted)] == wanted for at in range(len(said) - len(wanted) + 1)):
            return True
    return False


def agreement(reply: str, exact: str) -> float:
    """F1 of a reply against the exact cache's; 1 when both say nothing."""
    return 1.0 if units(reply) == units(exact) else f1(reply, [exact])


def percentile(numbers: Sequence[float], share: float) -> float:
    """The smallest number that at least `share` of all do not exceed."""
    return sorted(numbers)[max(0, math.ceil(share * len(numbers)) - 1)]


def row(name: str, outcomes: Sequence[Outcome], exact: Sequence[Outcome]) -> dict[str, Any]:
    """A tier's line. exact: the outcomes of the exact cache on the same samples. None where nothing was asked."""
    follows = {o.sample: o.follow for o in outcomes if o.follow}
    repeats = [o.repeat for o in outcomes if o.repeat]
    pooled = [kl for d in follows.values() for kl in d.kl]
    replies = {key: reply for o in outcomes for key, reply in o.replies.items()}
    right = {key: reply for o in exact for key, reply in o.replies.items()}
    answers = [a for o in outcomes for a in o.asked if a.kind == "answer"]
    needles = [a for o in outcomes for a in o.asked if a.kind == "needle"]
    findable = [a for a in needles if holds(right[a.id], a.answers)]
    score, best = (
        statistics.fmean(f1(said[a.id], a.answers) for a in answers) if answers else None for said in (replies, right)
    )
    return {
        "name": name,
        **_rates([o.cost for o in outcomes]),
        "kl": statistics.fmean(statistics.fmean(d.kl) for d in follows.values()) if follows else None,
        "kl_p99": percentile(pooled, 0.99) if pooled else None,
        "top1": statistics.fmean(same for d in follows.values() for same in d.same) if follows else None,
        "repeat_kl": statistics.fmean(statistics.fmean(d.kl) for d in repeats) if repeats else None,
        "needle": ratio(sum(holds(replies[a.id], a.answers) for a in findable), len(findable)),
        "needles_found": sum(holds(replies[a.id], a.answers) for a in needles),
        "needles": len(needles),
        "answers_f1": score,
        "answers_f1_share": ratio(score, best),
        "answers_agree": statistics.fmean(agreement(replies[a.id], right[a.id]) for a in answers) if answers else None,
        "answers": len(answers),
        "kl_of": {sample: statistics.fmean(d.kl) for sample, d in follows.items()},
    }


def _rates(costs: Sequence[Cost]) -> dict[str, float]:
    """Sizes over all samples together; times as the median sample has them, since a busy machine has outliers."""
    tokens = sum(c.tokens for c in costs)
    size = sum(c.file_bytes for c in costs)
    return {
        "bits": 8 * sum(c.payload_bytes for c in costs) / sum(c.elements for c in costs),
        "bytes_per_token": size / tokens,
        "ratio": sum(c.fp16_bytes for c in costs) / size,
        "load_x_prefill": statistics.median(c.prefill_seconds / c.load_seconds for c in costs),
        "encode_share": statistics.median(c.encode_seconds / c.prefill_seconds for c in costs),
        "prefill_tps": statistics.median(c.tokens / c.prefill_seconds for c in costs),
        "encode_tps": statistics.median(c.tokens / c.encode_seconds for c in costs),
        "load_tps": statistics.median(c.tokens / c.load_seconds for c in costs),
    }


def ratio(found: float | None, of: float | None) -> float | None:
    """None where there is nothing to compare with."""
    return None if found is None or not of else found / of
