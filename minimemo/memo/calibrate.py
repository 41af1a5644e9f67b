"""Calibration: what the transform codec has to know of a model, from text that the model reads.

Every text is read as a document is, behind the opening of a turn. First means and covariances of keys and values over
the text. Then, layer by layer, how much an error costs: measured, not derived, with the errors that the codec itself
makes at a middling rate. One layer's keys or values are replaced by what would come back from a memory, and the next
tokens' distributions are held against those without it. Scaling each layer by the root of its cost makes one step right
for all of them; that changes the errors, so it is done twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minimemo.ask import PROMPTS, detect_language, memory_opening
from minimemo.engine.cache import KVCache
from minimemo.engine.engine import Engine
from minimemo.errors import InputError
from minimemo.events import Event, Listener, silent
from minimemo.files import profiles_dir
from minimemo.memo.calibration_text import shipped_texts
from minimemo.memory.profile import (
    Opening,
    Profile,
    Statistics,
    Transform,
    check_writable,
    groups,
    joint,
    save_profile,
)  # fmt: skip
from minimemo.memory.size import step_for
from minimemo.models.decoder import Row
from minimemo.runtime import LanguageModel

TOKENS = 60_000  # read for the statistics, all of the texts that come with the package
_SEQUENCE = 2048  # tokens a piece
_CONTEXT, _JUDGED = 1024, 64  # tokens before the judged ones; judged ones
_PLACES = 1, 3  # pieces judged in each round: the first one only shapes the errors of the second
_LEAST = 256  # tokens of a piece that can be judged, where all texts are short
_BITS = 0.5  # a number, of the errors that are judged: a memory 30 times smaller


def calibrate(
    model: LanguageModel, texts: Sequence[str] = (), *, tokens: int = TOKENS, on_event: Listener = silent
) -> Profile:
    """Measures and stores the model's profile; the newest one is used by later builds.

    texts: as unlike each other as the documents to come, each read from its beginning; none: those that come with the
    package. Raises InputError when they have too few tokens in all, or minimemo's folder cannot be written.
    """
    check_writable(profiles_dir())  # before minutes of measuring
    engine, config = model.engine, model.engine.config
    width = config.num_kv_heads * config.head_dim
    cut = groups(config.num_layers, width)
    begins = {language: memory_opening(language).ids(model.tokenizer) for language in PROMPTS}
    texts = texts or shipped_texts()
    length = min(_SEQUENCE, config.max_context - max(map(len, begins.values())))
    pieces = [
        _Piece(begins[detect_language(texts[at])], ids)
        for at, ids in _pieces([model.tokenizer.encode(text) for text in texts], tokens, length)
    ]
    total, needed = sum(len(piece.ids) for piece in pieces), max(map(len, cut)) * width
    if total < 2 * needed:
        raise InputError(
            f"calibration: {total} tokens of text, but this model needs at least {2 * needed}; add files with `texts`"
        )
    with torch.inference_mode():
        statistics = _statistics(engine, pieces, cut, on_event)
        deviations = [
            [group.deviation(len(layers)) for group, layers in zip(kind, cut, strict=True)] for kind in statistics
        ]
        weights = [1 / torch.cat(kind).clamp_min(1e-12) for kind in deviations]
        for number in range(len(_PLACES)):
            transforms = _transforms(statistics, weights, cut, rough=True)
            weights = [cost.sqrt() for cost in _costs(engine, pieces, transforms, cut, number, on_event)]
        keys, values = _transforms(statistics, weights, cut)
        openings = [_opening(engine, ids) for ids in begins.values()]
        return save_profile(model.located.fingerprint, keys, values, profiles_dir(), openings)


class _Piece(NamedTuple):
    """A stretch of text and the opening that stands before it, as ids."""

    opening: list[int]
    ids: list[int]


def _opening(engine: Engine, ids: list[int]) -> Opening:
    (read,) = engine.read(engine.new_cache(len(ids)), ids)
    return Opening(torch.tensor(ids, dtype=torch.int32), torch.stack((read.keys, read.values)).cpu())


def _pieces(texts: Sequence[list[int]], tokens: int, length: int = _SEQUENCE) -> list[tuple[int, list[int]]]:
    """Equal shares of `tokens` from the texts, short ones whole, in pieces of at most `length`, each with the number
    of its text."""
    left, shares = tokens, [0] * len(texts)
    for at, number in enumerate(sorted(range(len(texts)), key=lambda number: len(texts[number]))):
        shares[number] = min(len(texts[number]), left // (len(texts) - at))
        left -= shares[number]
    return [
        (number, ids[start : min(start + length, share)])
        for number, (ids, share) in enumerate(zip(texts, shares, strict=True))
        for start in range(0, share, length)
    ]


def _statistics(
    engine: Engine, pieces: Sequence[_Piece], cut: Sequence[range], on_event: Listener
) -> tuple[list[Statistics], list[Statistics]]:
    width = engine.config.num_kv_heads * engine.config.head_dim
    keys, values = ([Statistics(len(group) * width) for group in cut] for _ in range(2))
    total, done = sum(len(piece.ids) for piece in pieces), 0
    on_event(Event("calibrate", 0, total, "tok"))
    for piece in pieces:
        before = len(piece.opening)
        cache = engine.new_cache(before + len(piece.ids))
        for chunk in engine.read(cache, [*piece.opening, *piece.ids]):
            first = max(0, before - chunk.start)  # what the codec keeps exactly is like nothing else
            for kind, x in ((keys, chunk.keys), (values, chunk.values)):
                for layers, statistics in zip(cut, kind, strict=True):
                    statistics.add(joint(x[layers.start : layers.stop, :, first:]).cpu())
            done += len(chunk.ids[first:])
            on_event(Event("calibrate", done, total, "tok"))
    return keys, values


def _transforms(
    statistics: Sequence[Sequence[Statistics]], weights: Sequence[Tensor], cut: Sequence[range], *, rough: bool = False
) -> list[list[Transform]]:
    """Of keys and of values, one for each group of layers. weights: (L,) of each kind. rough: see Statistics."""
    return [
        [
            group.transform(weight[layers.start : layers.stop], rough=rough)
            for group, layers in zip(kind, cut, strict=True)
        ]
        for kind, weight in zip(statistics, weights, strict=True)
    ]


def _costs(
    engine: Engine,
    pieces: Sequence[_Piece],
    transforms: Sequence[Sequence[Transform]],
    cut: Sequence[range],
    number: int,
    on_event: Listener,
) -> Tensor:
    """(2, L) of keys and values: KL divergence of the next tokens per unit of squared error in a layer."""
    layers = engine.config.num_layers
    judged = _spread_out(pieces, _PLACES[number])
    if not judged:
        raise InputError(f"calibration: no text has {_LEAST} tokens; add longer files with `texts`")
    costs = torch.zeros(2, layers, dtype=torch.float64)
    done, total = (2 * layers * sum(len(_spread_out(pieces, most)) for most in _PLACES[:end]) for end in (number, None))
    for piece in judged:
        before, end = len(piece.opening), len(piece.opening) + len(piece.ids) - _JUDGED
        cache, kv = _read(engine, [*piece.opening, *piece.ids[:-_JUDGED]])
        inputs: list[Tensor] = []
        ids = torch.tensor(piece.ids[-_JUDGED:], device=engine.decoder.device)
        exact = engine.decoder.forward(ids, [Row(cache, _JUDGED)], inputs=inputs, logits="all").log_softmax(-1)
        likelihood = exact.exp()
        cache.truncate(end)
        for kind, stored in enumerate((cache.keys, cache.values)):
            coded = _rounded(kv[kind][:, :, before:], transforms[kind], cut)
            errors = (coded - kv[kind][:, :, before:].float()).pow(2).mean((1, 2, 3)).double().cpu()
            if kind == 0:
                coded = engine.decoder.rope.rotate(coded, before)
            for layer in range(layers):
                place = stored[layer, :, before:end]
                kept = place.clone()
                place.copy_(coded[layer])
                changed = engine.decoder.resume(inputs[layer], layer, cache).log_softmax(-1)
                place.copy_(kept)
                divergence = float(changed.sub_(exact).mul_(likelihood).sum()) / -_JUDGED
                costs[kind, layer] += max(divergence, 1e-6) / max(float(errors[layer]), 1e-12) / len(judged)
                done += 1
                on_event(Event("weigh layers", done, total))
    return costs


def _read(engine: Engine, ids: list[int]) -> tuple[KVCache, list[Tensor]]:
    """A cache with room to judge, and keys before RoPE and values (L, G, n, D)."""
    cache = engine.new_cache(len(ids) + _JUDGED)
    read = [(chunk.keys.clone(), chunk.values.clone()) for chunk in engine.read(cache, ids)]
    return cache, [torch.cat(parts, 2) for parts in zip(*read, strict=True)]


def _rounded(x: Tensor, halves: Sequence[Transform], cut: Sequence[range]) -> Tensor:
    """x (L, G, n, D) as it would come back from a memory, float32, on its device."""
    rounded = torch.empty(x.shape)
    for half, layers in zip(halves, cut, strict=True):
        step = step_for(half, _BITS * len(half.mean))
        scale = half.weight.repeat_interleave(len(half.mean) // len(half.weight))
        basis = half.basis.float()
        components = ((joint(x[layers.start : layers.stop]).cpu() - half.mean) * scale) @ basis.T
        back = ((components / step).round_() * step) @ basis / scale + half.mean
        shape = (x.shape[2], len(layers), x.shape[1], x.shape[3])
        rounded[layers.start : layers.stop] = back.view(shape).permute(1, 2, 0, 3)
    return rounded.to(x.device)


def _spread_out(pieces: Sequence[_Piece], places: int) -> list[_Piece]:
    """Beginnings of at most so many long pieces from all over the list; the last _JUDGED tokens of each are judged."""
    long = max((len(piece.ids) for piece in pieces), default=0)
    enough = [piece for piece in pieces if len(piece.ids) >= max(_LEAST, min(long, _CONTEXT + _JUDGED))]
    count = min(places, len(enough))
    chosen = [enough[(2 * at + 1) * len(enough) // (2 * count)] for at in range(count)]
    return [_Piece(piece.opening, piece.ids[: _CONTEXT + _JUDGED]) for piece in chosen]
