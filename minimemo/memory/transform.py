"""The transform codec: all layers of a token as one vector, in a basis calibrated for the model, rounded with one step.

Rounding every component with the same step and coding it by entropy is reverse water-filling: components quieter than
the step vanish by themselves, no bit allocation is needed. The step is the quality. Sinks stay exact.

Letters: L layers, G kv heads, n tokens, D head dim, S sinks; a group of layers has C = layers * G * D numbers a token.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimemo.errors import MemoError
from minimemo.kernels import Basis
from minimemo.kernels.ranges import Packed, Run
from minimemo.kernels.transform import loud_from, round_symbols
from minimemo.memory import ranges, symbols
from minimemo.memory.blocks import BLOCK_TOKENS, KVBlock
from minimemo.memory.codec import (
    CPU,
    KVLayout,
    Streams,
    brought,
    byte_planes,
    checked_kv,
    sinks_from,
    sinks_of,
    whole_number,
)
from minimemo.memory.frequencies import MAX_GROUP, loudness, order, to_frequencies
from minimemo.memory.profile import Profile, Transform, joint

SINKS = 16  # where a sequence begins with no known opening: a chat template's special tokens are among the first 16
TAIL, FINER = 64, 4.0  # tokens, and by how much their step is finer
QUIET = 0.08  # steps: of a Laplacian component this quiet, 1 symbol in 7,000 is not zero; it is left out
FINE = 8  # steps: the root mean square of numbers from which on products of 8 bits would add 6 % to the squared error
# From which fraction of a step on a value is rounded up. Attention averages values over many tokens: independent errors
# average out, the bias of so many small numbers toward zero does not. Keys are the reverse.
KEYS_UP, VALUES_UP = 0.5, 0.45
_LENGTH = struct.Struct("<I")


class _Plan(NamedTuple):
    """How the symbols of a block of some tokens are laid out. places: of `order`, int32; across: where these lie in (n,
    r), on the CPU and wherever blocks came from; None: all as they are. One of bands and runs: what codes them."""

    bands: tuple[symbols.Band, ...]
    runs: tuple[Run, ...]
    places: np.ndarray | None = None
    across: dict[torch.device, Tensor] | None = None


class _Part:
    """One Transform at one step: what is coded of a group's keys or values. time: tokens of a group that are coded as
    frequencies, 1 for none; ranged: whether symbols are coded by ranges."""

    def __init__(self, half: Transform, step: float, values: bool, time: int, ranged: bool) -> None:
        self.half, self.step, self.time, self.ranged = half, step, time, ranged
        self._values = values
        self._spread = half.deviation.numpy() / step
        loudest = float(loudness(time)[0]) if time > 1 else 1.0
        kept = int((self._spread >= QUIET / loudest).sum())
        loud = min(kept, int((self._spread >= loud_from()).sum()))
        fine = bool((self._spread**2).sum() > FINE**2 * half.mean.numel())
        self.basis = Basis(half.basis[:kept], loud, exact=fine)  # (r, C), only components that are coded
        self._spread = self._spread[:kept]
        self._loudest = loudest * float(self._spread.max(initial=0.0))
        self._plans: dict[int, _Plan] = {}  # by the tokens of a block
        self._there: tuple[Tensor, Tensor, Tensor] | None = None  # of `_on`

    def plan(self, tokens: int) -> _Plan:
        """The plan of n tokens, made once."""
        if tokens not in self._plans:
            if self.time == 1:
                plan = _Plan(symbols.bands(self._spread), ())
            else:
                places, spread = order(self._spread, tokens, self.time, QUIET)
                across = {CPU: torch.from_numpy((places % tokens * len(self._spread) + places // tokens).astype("i4"))}
                bands = () if self.ranged else symbols.bands(spread, self._loudest)
                runs = ranges.runs_of(spread, self._values) if self.ranged else ()
                plan = _Plan(bands, runs, places.astype(np.int32), across)
            self._plans[tokens] = plan
        return self._plans[tokens]

    def scale(self) -> Tensor:
        """(C,)"""
        return self.half.weight.repeat_interleave(self.half.mean.numel() // self.half.weight.numel())

    def rounded(self, x: Tensor) -> Tensor:
        """x (n, C) float32 -> symbols, where x is, (r, n) int16 or, where some have no place, (N,): on a GPU in float32
        whatever the numbers are."""
        components = self.components_on(x)
        if self.time > 1:
            to_frequencies(components[None], self.time)
        across = self.plan(len(x)).across
        if across is not None and x.device not in across:
            across[x.device] = across[CPU].to(x.device)
        up = VALUES_UP if self._values else KEYS_UP
        return round_symbols(components, self.step, up, across and across[x.device])

    def components_on(self, x: Tensor) -> Tensor:
        """(n, r) float32, of x (n, C)."""
        if x.is_cpu:
            return self.basis.components(torch.sub(x, self.half.mean).mul_(self.scale()))
        rows, inverse, mean = self._on(x.device)
        scale = (1 / inverse).repeat_interleave(len(mean) // len(inverse))
        return ((x - mean) * scale) @ rows.float().T

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the basis (r, C), 1 / weight (layers,) and mean (C,) on a GPU, brought there once."""
        if self._there is None or self._there[0].device != device:
            rows, inverse, mean = (x.to(device) for x in (self.basis.rows, 1 / self.half.weight, self.half.mean))
            self._there = rows, inverse, mean
        return self._there

    @property
    def streams(self) -> int:
        """How many streams every block has."""
        return ranges.STREAMS if self.ranged else len(self.plan(BLOCK_TOKENS).bands) + 2

    def decode(self, coded: Tensor, out: Tensor) -> None:
        """Symbols (r, n) int16, of each component token after token, or frequency after frequency, into out (layers, G,
        n, D) float32, a part of a larger one."""
        mean, heads = self.half.mean, out.flatten(0, 1)
        inverse = (1 / self.half.weight).repeat_interleave(out.shape[1])
        if self.time == 1:
            self.basis.inverse(coded, self.step, mean * self.scale(), inverse, heads)
            return
        self.basis.inverse(coded, self.step, torch.zeros_like(mean), inverse, heads)
        to_frequencies(heads, self.time, inverse=True)
        heads += mean.view(len(heads), 1, -1)

    def restore(self, coded: Tensor, out: Tensor) -> None:
        """As `decode`, on a GPU, in float32 whatever the numbers are."""
        heads = out.flatten(0, 1)
        rows, inverse, mean = self._on(out.device)
        inverse = inverse.repeat_interleave(out.shape[1])[:, None, None]
        x = (coded.T.float() * self.step) @ rows.float()
        x = x.unflatten(1, (len(heads), -1)).transpose(0, 1) * inverse
        if self.time > 1:
            x = x.contiguous()
            to_frequencies(x, self.time, inverse=True)
        heads.copy_(x + mean.view(len(heads), 1, -1))


_Piece = tuple[Sequence[tuple[_Part, _Part]], Streams, slice]  # groups of layers, their streams, tokens of the block


class TransformCodec:
    """`profile` in `make_codec`'s parameters is the hash of a Profile; key_step, value_step: in its weighted units.

    Error bound: in the basis, each coded component is off by at most half a step (unless beyond 32,767 steps), plus,
    where the step is not `FINE`, what products of 8 bits add: 0.05 of the token's weighted distance from the mean at
    worst, in practice a few thousandths, spread over all components. What lies outside the coded components is lost.
    The first tokens of the sequence are exact: an opening that the profile knows (as the profile has it), else the
    first `sinks`. The last TAIL tokens have a step FINER times as small: what follows looks most at what is near.

    time: where it is not 1, the tokens between those are coded in groups of so many, as frequencies; see `frequencies`.
    ranges: where it is 1, the symbols of those are coded by `ranges`, else by `symbols`, as are those of the tail.

    Streams: a head, either nothing or two bytes, the number of the opening (from 1, 0 for none) and how many tokens of
    the tail are in this block; sinks (byte planes of (keys, values)); for each group of layers those of the coder for
    keys and for values; all those of the tail in one, each after its length (u32).
    """

    name = "klt"
    lossless = False
    level = 13  # zstd; 3 takes 4-10 % more bytes on these streams, 19 as many at 2.5-5 times the time

    def __init__(
        self,
        layout: KVLayout,
        profile: Profile,
        key_step: float,
        value_step: float,
        sinks: int = SINKS,
        time: int = 1,
        ranges: int = 0,
    ) -> None:
        """Raises MemoError for steps out of range and a profile of a model of another shape."""
        whole_number("sinks", sinks, 0, BLOCK_TOKENS)
        whole_number("time", time, 1, MAX_GROUP)
        whole_number("ranges", ranges, 0, 1 if time > 1 else 0)
        for name, step in (("key_step", key_step), ("value_step", value_step)):
            if not isinstance(step, (int, float)) or not 1e-6 <= step <= 1e6:
                raise MemoError(f"codec: {name} must be a number from 1e-6 to 1e6, got {step!r}")
        width = layout.num_kv_heads * layout.head_dim
        if (
            profile.layers != layout.num_layers
            or any(len(half.mean) != len(half.weight) * width for half in (*profile.keys, *profile.values))
            or any(x.kv.shape != (2, *layout.shape(len(x.ids))) for x in profile.openings)
        ):
            raise MemoError(f"codec: profile {profile.hash} is of a model of another shape than {layout}")
        if [len(half.weight) for half in profile.keys] != [len(half.weight) for half in profile.values]:
            raise MemoError(f"codec: profile {profile.hash} groups the layers of keys and of values in different ways")
        self.layout = layout
        self.profile = profile
        self.steps = float(key_step), float(value_step)
        self.sinks, self.time, self.ranges = sinks, time, ranges
        self._parts, self._fine = (
            [
                (_Part(key, key_step / finer, False, *coded), _Part(value, value_step / finer, True, *coded))
                for key, value in zip(profile.keys, profile.values, strict=True)
            ]
            for finer, coded in ((1, (time, bool(ranges))), (FINER, (1, False)))
        )  # keys and values of each group of layers; the same for the tail

    def params(self) -> dict[str, Any]:
        steps = {"key_step": self.steps[0], "value_step": self.steps[1]}
        later = {"time": self.time} if self.time > 1 else {}  # memories of earlier times do not have these
        later |= {"ranges": self.ranges} if self.ranges else {}
        return {**asdict(self.layout), "profile": self.profile.hash, **steps, "sinks": self.sinks, **later}

    def encode(self, block: KVBlock, following: int = BLOCK_TOKENS) -> Streams:
        keys, values = checked_kv(block, self.layout)
        opening = self._opening(block)
        exact = sinks_of(block, keys, values, 0 if opening else self.sinks)
        kept = len(self.profile.openings[opening - 1].ids) if opening else exact.shape[3]
        fine = max(0, min(TAIL - following, block.tokens - kept))
        last = block.tokens - fine
        head = bytes([opening, fine]) if opening or fine else b""
        middle = self._encode(self._parts, keys[:, :, kept:last], values[:, :, kept:last])
        tail = self._encode(self._fine, keys[:, :, last:], values[:, :, last:]) if fine else ()
        joined = b"".join(_LENGTH.pack(len(stream)) + stream for stream in tail)
        return head, *byte_planes(exact), *middle, joined

    def _encode(self, groups: Sequence[tuple[_Part, _Part]], keys: Tensor, values: Tensor) -> Iterator[bytes]:
        """Yields the streams of keys and values (L, G, n, D), group by group: from a GPU symbols come in one copy."""
        parts, symbols = list[_Part](), list[Tensor]()
        for layers, pair in self._by_layers(groups):
            for part, x in zip(pair, (keys, values), strict=True):
                parts.append(part)
                symbols.append(part.rounded(joint(x[layers])))
        if symbols and not symbols[0].is_cpu:
            flat = torch.cat([x.flatten() for x in symbols]).cpu().split([x.numel() for x in symbols])
            symbols = [part.view(x.shape) for part, x in zip(flat, symbols, strict=True)]
        yield from _packed([(part, x.numpy()) for part, x in zip(parts, symbols, strict=True)], keys.shape[2])

    def _by_layers(self, groups: Sequence[tuple[_Part, _Part]]) -> Iterator[tuple[slice, tuple[_Part, _Part]]]:
        layer = 0
        for parts in groups:
            end = layer + len(parts[0].half.weight)
            yield slice(layer, end), parts
            layer = end

    def _opening(self, block: KVBlock) -> int:
        """The number of the opening with which a block begins, from 1; 0 when it begins with none."""
        if block.start == 0:
            for number, opening in enumerate(self.profile.openings, 1):
                if np.array_equal(opening.ids.numpy(), block.ids[: len(opening.ids)]):
                    return number
        return 0

    def _exact(self, opening: int, planes: Streams, tokens: int) -> Tensor:
        """(2, L, G, S, D) float32: the first tokens of a block of `tokens`."""
        if not opening:
            return sinks_from(planes, self.layout, tokens)
        if opening > len(self.profile.openings) or any(planes):
            raise MemoError("a block begins with an opening that its profile does not know")
        found = self.profile.openings[opening - 1].kv
        if found.shape[3] > tokens:
            raise MemoError(f"an opening of {found.shape[3]} tokens in a block of {tokens}")
        return found.to(self.layout.torch_dtype).float()

    def decode(self, streams: Streams, tokens: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
        """As the protocol says, in float32."""
        layers, heads, _, dim = self.layout.shape(tokens)
        width = 1 + self.layout.torch_dtype.itemsize
        expected = width + _count(self._parts) + 1
        if len(streams) != expected or len(streams[0]) not in (0, 2):
            raise MemoError(f"{len(streams)} streams where {expected} belong, or a head of {len(streams[0])} bytes")
        opening, fine = streams[0] or (0, 0)
        exact = self._exact(opening, streams[1:width], tokens)
        kept, last = exact.shape[3], tokens - fine
        if kept > last:
            raise MemoError(f"{kept} exact tokens and a tail of {fine} in a block of {tokens}")
        pieces = [(self._parts, streams[width:-1], slice(kept, last))]
        if fine or streams[-1]:
            pieces.append((self._fine, _split(streams[-1], _count(self._fine)), slice(last, tokens)))
        found = torch.empty(2, layers, heads, tokens, dim, device=device)
        if device != CPU:
            self._restore(exact, pieces, found)
            return found[0], found[1]
        found[:, :, :, :kept] = exact
        for piece in pieces:
            for part, coded, x in self._unpacked(piece, found, torch.get_num_threads()):
                part.decode(coded, x)
        return found[0], found[1]

    def _restore(self, exact: Tensor, pieces: Sequence[_Piece], out: Tensor) -> None:
        """Into out (2, L, G, n, D) on a GPU, to which exact tokens and all symbols go in one copy."""
        places = [place for piece in pieces for place in self._unpacked(piece, out, 1)]
        first, *rest = brought([exact.contiguous().numpy(), *(coded.numpy() for _, coded, _ in places)], out.device)
        out[:, :, :, : exact.shape[3]] = first.view(torch.float32).view(exact.shape)
        for (part, coded, x), there in zip(places, rest, strict=True):
            part.restore(there.view(torch.int16).view(coded.shape), x)

    def _unpacked(self, piece: _Piece, out: Tensor, threads: int) -> list[tuple[_Part, Tensor, Tensor]]:
        """Each part of a piece, its symbols (r, n) int16, and where of out (2, L, G, n, D) these are to go."""
        groups, streams, span = piece
        left, found, ranged = iter(streams), list[tuple[_Part, Tensor, Tensor]](), list[Packed]()
        for layers, pair in self._by_layers(groups):
            for part, x in zip(pair, out[:, :, :, span], strict=True):
                own, plan = [next(left) for _ in range(part.streams)], part.plan(x.shape[2])
                if plan.places is None:
                    coded = torch.from_numpy(symbols.unpack(own, plan.bands, x.shape[2]))
                else:
                    coded = torch.zeros(len(part.basis.rows), x.shape[2], dtype=torch.int16)
                    flat = coded.view(-1).numpy()
                    if part.ranged:
                        ranged.append(Packed((own[0], own[1], own[2]), plan.runs, flat, plan.places))
                    else:
                        flat[plan.places] = symbols.unpack(own, plan.bands, 1, rows=False)[:, 0]
                found.append((part, coded, x[layers]))
        ranges.unpack(ranged, threads)
        return found


def _packed(coded: Sequence[tuple[_Part, np.ndarray]], tokens: int) -> Iterator[bytes]:
    """The streams of parts, each with what `rounded` gave of n tokens."""
    if all(part.ranged for part, _ in coded):
        for streams in ranges.pack([(x, part.plan(tokens).runs) for part, x in coded], torch.get_num_threads()):
            yield from streams
        return
    for part, x in coded:
        plan = part.plan(tokens)
        yield from symbols.pack(x if plan.places is None else x[:, None], plan.bands, rows=plan.places is None)


def _count(groups: Sequence[tuple[_Part, _Part]]) -> int:
    return sum(part.streams for parts in groups for part in parts)


def _split(joined: bytes, count: int) -> Streams:
    """Undoes the joining of the tail's streams. Raises MemoError unless it is exactly `count` of them."""
    found, at = [], 0
    for _ in range(count):
        if len(joined) - at < _LENGTH.size:
            raise MemoError("a block's tail is cut off")
        (length,) = _LENGTH.unpack_from(joined, at)
        at += _LENGTH.size
        found.append(joined[at : at + length])
        at += length
    if at != len(joined):
        raise MemoError("a block's tail is of another length than its streams")
    return tuple(found)
