"""Steps of decoding that a GPU takes by itself: the token that it chooses is its own next input, and what tells where
rows stand moves on there. The processor replays one CUDA graph a step, and reads tokens while the next step runs.
`captured` makes such a graph.

Rule of this file: greedy, one token a row; it knows no ends of replies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch

from minimemo.kernels.triton.choose import choose_launches
from minimemo.kernels.triton.launch import Recording
from minimemo.models.decoder import Decoder
from minimemo.models.places import GROWING, Cache, Places, Row

_AHEAD = 2  # steps whose tokens wait to be read: one that runs, one that is read


class DeviceSteps:
    """Continues rows of one token each, over a shared prefix or none, by their likeliest tokens.

    The first step is computed, which checks everything and compiles what is not compiled yet, and recorded: later ones
    are the same launches on the same tensors, without what leads to them. Where the device is a CUDA one, the second is
    captured as a graph, which all later ones replay. The caches are written to; their lengths are the caller's to keep.
    """

    def __init__(self, decoder: Decoder, caches: Sequence[Cache], prefix: Cache | None) -> None:
        device = decoder.device
        self._decoder = decoder
        self._rows = [Row(cache, 1) for cache in caches]
        self._prefix = prefix
        self._places = Places.of(self._rows, prefix, decoder.rope, device)
        self._ids = torch.empty(len(caches), dtype=torch.int32, device=device)
        cuda = device.type == "cuda"
        self._read = torch.empty(_AHEAD, len(caches), dtype=torch.int32, device="cpu", pin_memory=cuda).unbind()
        self._events = [torch.cuda.Event() for _ in range(_AHEAD)] if cuda else []
        self._recording: Recording | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._taken = 0

    def follow(
        self, tokens: Sequence[int], most: int, alone: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[list[int]]:
        """Puts `tokens`, one a row, behind the caches' ends and yields what follows them, step by step, `most` times at
        most: a step is asked for before the tokens of the one before are read. alone: keeps other passes away from the
        model for as long as a step is asked for."""
        room = min(row.cache.keys.shape[2] - (row.cache.length - row.cache.start) for row in self._rows)
        with alone():
            self._ids.copy_(torch.tensor(tokens, dtype=torch.int32))
        try:
            for count in range(min(most, room)):
                if not count:
                    self._take(alone)
                if count + 1 < min(most, room):
                    self._take(alone)
                yield self._tokens(count)
        finally:
            if self._taken and self._events:  # a graph must not go while it runs
                self._events[(self._taken - 1) % _AHEAD].synchronize()

    def _take(self, alone: Callable[[], AbstractContextManager[None]]) -> None:
        """Asks for a step, and for its tokens: 4 bytes a row."""
        at = self._taken % _AHEAD
        with alone():
            if self._events and self._taken and self._graph is None:
                self._graph = captured(self._step, self._decoder.device)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._step()
            self._read[at].copy_(self._ids, non_blocking=True)
            if self._events:
                self._events[at].record()
        self._taken += 1

    def _tokens(self, step: int) -> list[int]:
        if self._events:
            self._events[step % _AHEAD].synchronize()
        return self._read[step % _AHEAD].tolist()

    def _step(self) -> None:
        if self._recording is None:
            with Recording() as recording:
                self._compute()
            self._recording = recording
        elif self._recording.whole:
            self._recording.again()
        else:
            self._compute()

    @torch.inference_mode()
    def _compute(self) -> None:
        logits = self._decoder.step(self._ids, self._rows, self._prefix, self._places)
        for launch in choose_launches(logits, self._ids, self._places.table[:GROWING]):
            launch.run()


def captured(work: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """What `work` asks of a GPU, as a graph, not run yet: it must have been run before, and wait for nothing."""
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(side)
    return graph
