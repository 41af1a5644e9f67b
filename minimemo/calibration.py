"""Calibration: what the transform codec has to know of a model, from text that the model reads.

Every text is read as a document is, behind the opening of a turn. Two passes: means and covariances of keys and values
over the text; and, layer by layer, how much an error costs. The second is measured, not derived: noise goes into the
keys or values of one layer, and the next tokens' distributions are held against those without it. Scaling each layer by
the root of that cost makes one step right for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minimemo.calibration_text import shipped_texts
from minimemo.errors import InputError
from minimemo.events import Event, Listener, silent
from minimemo.loop import PROMPTS, detect_language, memory_opening
from minimemo.models.cachedir import profiles_dir

if TYPE_CHECKING:
    from torch import Tensor

    from minimemo.engine.cache import KVCache
    from minimemo.engine.engine import Engine
    from minimemo.language_model import LanguageModel
    from minimemo.memory.profile import Opening, Profile, Statistics

TOKENS = 16_384  # read for the statistics; 10,000 of ten documents were enough for 3,072 dimensions
_SEQUENCE = 2048  # tokens a piece
_CONTEXT, _JUDGED, _PLACES = 640, 96, 3  # tokens before the judged ones; judged ones; pieces judged
_NOISE = 0.25  # of a layer's standard deviation


def calibrate(
    model: LanguageModel, texts: Sequence[str] = (), *, tokens: int = TOKENS, on_event: Listener = silent
) -> Profile:
    """Measures and stores the model's profile; the newest one is used by later builds.

    texts: as unlike each other as the documents to come, each read from its beginning; none: those that come with the
    package. Raises InputError when they have too few tokens in all.
    """
    import torch

    from minimemo.memory.profile import groups, save_profile

    engine, config = model.engine, model.engine.config
    width = config.num_kv_heads * config.head_dim
    cut = groups(config.num_layers, width)
    begins = {language: memory_opening(language).ids(model.tokenizer) for language in PROMPTS}
    texts = texts or shipped_texts()
    pieces = [
        _Piece(begins[detect_language(texts[at])], ids)
        for at, ids in _pieces([model.tokenizer.encode(text) for text in texts], tokens)
    ]
    total, needed = sum(len(piece.ids) for piece in pieces), max(map(len, cut)) * width
    if total < 2 * needed:
        raise InputError(
            f"calibration: {total} tokens of text, but this model needs at least {2 * needed}; add files with --text"
        )
    with torch.inference_mode():
        keys, values = _statistics(engine, pieces, cut, on_event)
        costs = _costs(engine, pieces, keys, values, on_event)
        on_event(Event("transform", 0, 2 * len(cut)))
        halves = []
        for found, cost in zip((keys, values), costs, strict=True):
            for group, statistics in zip(cut, found, strict=True):
                halves.append(statistics.transform(cost[group.start : group.stop].sqrt()))
                on_event(Event("transform", len(halves), 2 * len(cut)))
        openings = [_opening(engine, ids) for ids in begins.values()]
        return save_profile(model.located.fingerprint, halves[: len(cut)], halves[len(cut) :], profiles_dir(), openings)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of text and the opening that stands before it, as ids."""

    opening: list[int]
    ids: list[int]


def _opening(engine: Engine, ids: list[int]) -> Opening:
    import torch

    from minimemo.memory.profile import Opening

    (read,) = engine.read(engine.new_cache(len(ids)), ids)
    return Opening(torch.tensor(ids, dtype=torch.int32), torch.stack((read.keys, read.values)).cpu())


def _pieces(texts: Sequence[list[int]], tokens: int) -> list[tuple[int, list[int]]]:
    """Equal shares of `tokens` from the texts, short ones whole, in pieces of at most _SEQUENCE, each with the number
    of its text."""
    left, shares = tokens, [0] * len(texts)
    for at, number in enumerate(sorted(range(len(texts)), key=lambda number: len(texts[number]))):
        shares[number] = min(len(texts[number]), left // (len(texts) - at))
        left -= shares[number]
    return [
        (number, ids[start : min(start + _SEQUENCE, share)])
        for number, (ids, share) in enumerate(zip(texts, shares, strict=True))
        for start in range(0, share, _SEQUENCE)
    ]


def _statistics(
    engine: Engine, pieces: Sequence[_Piece], cut: Sequence[range], on_event: Listener
) -> tuple[list[Statistics], list[Statistics]]:
    from minimemo.memory.profile import Statistics, joint

    width = engine.config.num_kv_heads * engine.config.head_dim
    keys, values = ([Statistics(len(group) * width) for group in cut] for _ in range(2))
    total, done = sum(len(piece.ids) for piece in pieces), 0
    on_event(Event("calibrate", 0, total, "tok"))
    for piece in pieces:
        before = len(piece.opening)
        cache = engine.new_cache(before + len(piece.ids))
        for chunk in engine.read(cache, [*piece.opening, *piece.ids]):
            first = max(0, before - chunk.start)  # what the codec keeps exactly is like nothing else
            for found, x in ((keys, chunk.keys), (values, chunk.values)):
                for group, statistics in zip(cut, found, strict=True):
                    statistics.add(joint(x[group.start : group.stop, :, first:]))
            done += len(chunk.ids[first:])
            on_event(Event("calibrate", done, total, "tok"))
    return keys, values


def _costs(
    engine: Engine,
    pieces: Sequence[_Piece],
    keys: Sequence[Statistics],
    values: Sequence[Statistics],
    on_event: Listener,
) -> tuple[Tensor, Tensor]:
    """For keys and values: (L,) KL divergence of the next tokens, per unit variance of errors in a layer."""
    import torch

    layers = engine.config.num_layers
    judged = _spread_out([piece for piece in pieces if len(piece.ids) >= _CONTEXT + _JUDGED])
    if not judged:
        raise InputError(f"calibration: no text has {_CONTEXT + _JUDGED} tokens; add longer files with --text")
    parts = [len(found.mean()) // (engine.config.num_kv_heads * engine.config.head_dim) for found in keys]
    deviations = [
        torch.cat([found.deviation(count) for found, count in zip(kind, parts, strict=True)]) for kind in (keys, values)
    ]
    costs = torch.zeros(2, layers, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    total, done = 2 * layers * len(judged), 0
    for piece in judged:
        before = len(piece.opening)
        cache = engine.new_cache(before + _CONTEXT + _JUDGED)
        engine.prefill(cache, [*piece.opening, *piece.ids[:_CONTEXT]])
        following = piece.ids[_CONTEXT : _CONTEXT + _JUDGED]

        exact = _distributions(engine, cache, following)
        for kind, stored in enumerate((cache.keys, cache.values)):
            for layer in range(layers):
                place = stored[layer, :, before : before + _CONTEXT]
                kept, noise = place.clone(), _NOISE * float(deviations[kind][layer])
                place += noise * torch.randn(place.shape, generator=generator).to(place)
                changed = _distributions(engine, cache, following)
                place.copy_(kept)
                divergence = (exact.exp() * (exact - changed)).sum(-1).mean().double().cpu()
                costs[kind, layer] += divergence.clamp_min(1e-9) / max(noise, 1e-9) ** 2 / len(judged)
                done += 1
                on_event(Event("weigh layers", done, total))
    return costs[0], costs[1]


def _distributions(engine: Engine, cache: KVCache, ids: list[int]) -> Tensor:
    """Log probabilities (n, V) after each of ids; the cache stays as it was."""
    length = cache.length
    found = engine.logits(cache, ids).log_softmax(-1)
    cache.truncate(length)
    return found


def _spread_out(pieces: list[_Piece]) -> list[_Piece]:
    """At most _PLACES of them, from all over the list."""
    count = min(_PLACES, len(pieces))
    return [pieces[(2 * at + 1) * len(pieces) // (2 * count)] for at in range(count)]
