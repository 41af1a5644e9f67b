"""Token ids in, token ids out. Rule of this file: it knows no text and no files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice, takewhile
from threading import Lock, local

import torch
from torch import Tensor

from minimemo.engine.cache import KVCache
from minimemo.engine.lookup import Lookup
from minimemo.engine.scheduler import MOST_ROWS, Scheduler, Step
from minimemo.events import Event, Listener, silent
from minimemo.models.config import ModelConfig
from minimemo.models.decoder import Decoder, Row
from minimemo.models.device import full
from minimemo.models.layers import FEW_ROWS

PREFILL_CHUNK = 512  # tokens; 256 to 1024 run within 5 % of each other on two cores, activations stay small
GPU_CHUNK = 4096  # the launches of a chunk, some 20 ms of the processor, are as many however long it is


@dataclass(frozen=True, slots=True)
class PrefilledChunk:
    """What a chunk of n tokens left in the cache, keys still before RoPE. keys, values: (L, G, n, D).

    `values` is a view of the cache, valid until the cache is truncated.
    """

    start: int
    ids: Sequence[int]
    keys: Tensor
    values: Tensor


class Engine:
    """Runs one decoder for any number of caches. Threads may share it: passes come in turn, and steps of replies that
    are written at the same time are one pass where that leaves every number as it is alone (engine/scheduler.py).

    A cache belongs to one thread of work between its passes as well. In a process that was forked from one that had
    used an engine every pass raises MinimemoError.

    kv_dtype: of the caches it makes; None: the decoder's own. memory_bits: 8 or 4 bits a number of memories, which are
    packed and only read; None: they are dense as well. prefilled, decoded: running counts of tokens put through the
    model, for anyone who wants to know what a call cost. chunk: tokens of a pass of prefill; None: as many as suit the
    device.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        kv_dtype: torch.dtype | None = None,
        memory_bits: int | None = None,
        chunk: int | None = None,
    ) -> None:
        self.decoder = decoder
        self.chunk = chunk or (PREFILL_CHUNK if decoder.device.type == "cpu" else GPU_CHUNK)
        self.kv_dtype = kv_dtype or decoder.dtype
        self.memory_bits = memory_bits
        self.prefilled = 0
        self.decoded = 0
        self.scheduler = Scheduler(self._steps, decoder.rows_are_alone, decoder.rows_are_cheap)
        self._here = local()
        self._batch = Lock()  # a batch lengthens its memory for a while

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def prefilled_here(self) -> int:
        """What this thread has prefilled so far."""
        return getattr(self._here, "prefilled", 0)

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other threads out of the engine; the same thread may enter again. Raises MinimemoError after a fork."""
        return self.scheduler.alone()

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for `capacity` tokens on the decoder's device."""
        return self.new_memory(0, capacity)

    def new_caches(self, count: int, capacity: int) -> list[KVCache]:
        """Empty caches for `capacity` tokens each, side by side, so that one kernel serves them all."""
        return self.new_memory(0, capacity, count).split(count)

    def new_memory(self, tokens: int, capacity: int, count: int = 1) -> KVCache:
        """An empty cache for `capacity` tokens, to which a memory of `tokens` will be appended, of `count` times the
        model's layers. Raises InputError, with what would fit, where a GPU has no room for it."""
        c, device = self.config, self.decoder.device
        shape = count * c.num_layers, c.num_kv_heads, c.head_dim, capacity
        try:
            return KVCache(*shape, self.kv_dtype, device, packed_tokens=tokens, bits=self.memory_bits)
        except torch.OutOfMemoryError:
            numbers = 2 * count * c.num_layers * c.num_kv_heads * c.head_dim  # a token
            packed = numbers * self.memory_bits // 8 * tokens if self.memory_bits else 0
            dense = numbers * self.kv_dtype.itemsize * (capacity - (tokens if self.memory_bits else 0))
            raise full(f"a cache of {capacity:,} tokens", packed + dense, device, capacity) from None

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Tensor:
        """Appends ids (at least one) to the cache, chunk by chunk; logits (1, V) after the last one."""
        if not ids:
            raise ValueError("engine: nothing to prefill")
        last = (len(ids) - 1) // self.chunk * self.chunk
        self.extend(cache, ids[:last])
        return self._forward(ids[last:], [Row(cache, len(ids) - last)])

    def extend(self, cache: KVCache, ids: Sequence[int]) -> None:
        """Appends ids, if any, to the cache, chunk by chunk. No logits are computed."""
        for at in range(0, len(ids), self.chunk):
            piece = ids[at : at + self.chunk]
            self._forward(piece, [Row(cache, len(piece))], logits="none")

    def read(self, cache: KVCache, ids: Sequence[int]) -> Iterator[PrefilledChunk]:
        """Appends ids to the cache and hands over what a memory is made of, chunk by chunk. No logits are computed."""
        for at in range(0, len(ids), self.chunk):
            piece, start = ids[at : at + self.chunk], cache.length
            keys = self.room_for(len(piece))
            self.read_into(cache, torch.tensor(piece, dtype=torch.long, device=self.decoder.device), keys)
            values = cache.values[:, :, start - cache.start : cache.length - cache.start]
            yield PrefilledChunk(start, piece, keys, values)

    def room_for(self, tokens: int) -> Tensor:
        """(L, G, n, D) for the keys or values of n tokens, undefined."""
        c = self.config
        shape = c.num_layers, c.num_kv_heads, tokens, c.head_dim
        return torch.empty(shape, dtype=self.kv_dtype, device=self.decoder.device)

    def read_into(self, cache: KVCache, ids: Tensor, keys: Tensor) -> None:
        """Appends one chunk, ids (n,) int64 on the device, to the cache; keys (L, G, n, D) takes those before RoPE."""
        with self.alone():
            self._count(len(ids))
            self.decoder.forward(ids, [Row(cache, len(ids))], raw_keys=keys, logits="none")

    def append(self, cache: KVCache, keys: Tensor, values: Tensor) -> None:
        """Adds finished tokens, keys before RoPE and values (L, G, n, D), which are turned to the positions after the
        cache's end: all layers in one go, where they turn alike and nothing is packed. Raises ValueError as the cache
        does."""
        rope = self.decoder.rope
        if cache.bits or any(rope.kind):
            cache.append(rope.rotate(keys, cache.length), values)
        else:
            cache.append_raw(keys, values, *rope.of_spans([(cache.length, keys.shape[2])], keys.device)[0])

    def repeated(self, work: Callable[[], object], tokens: int) -> Callable[[], None]:
        """What a GPU does once more for `work`, asked for in one go. work: passes of so many tokens of prefill, which
        have been computed before, and would be in the same places of the same memory each time."""
        from minimemo.engine.steps import captured

        with self.alone():
            graph = captured(work, self.decoder.device)
        self._count(-tokens)

        def again() -> None:
            with self.alone():
                self._count(tokens)
                graph.replay()

        return again

    def _count(self, tokens: int) -> None:
        self.prefilled += tokens
        self._here.prefilled = self.prefilled_here + tokens

    @torch.inference_mode()
    def warm(self, on_event: Listener = silent) -> None:
        """Makes one pass of each kind, so that a GPU's kernels are compiled before they are needed. Counts nothing."""
        counted = self.prefilled, self.decoded, self.prefilled_here
        cache, tokens = self.new_cache(2048), [0] * 1024
        memory, numbers = self.new_memory(256, 512), self.room_for(256).zero_()
        works: list[Callable[[], object]] = [
            lambda: list(self.read(cache, tokens)),
            lambda: self.prefill(cache, tokens[:100]),
            lambda: self.prefill(self.new_cache(64), tokens[:5]),
            lambda: list(self.generate(cache, tokens[:5], max_tokens=3)),
            lambda: self.generate_batch(cache, [tokens[:3]] * 2, max_tokens=3),
            lambda: self.generate_batch(cache, [tokens[:3]] * 3, max_tokens=3),
            lambda: self.append(memory, numbers, numbers),
            lambda: self.extend(memory, tokens[:32]),
        ]
        for done, work in enumerate(works):
            on_event(Event("compile kernels", done, len(works), "passes"))
            work()
        on_event(Event("compile kernels", len(works), len(works), "passes"))
        self.prefilled, self.decoded, self._here.prefilled = counted

    def logits(self, cache: KVCache, ids: Sequence[int]) -> Tensor:
        """Appends ids (at least one) to the cache; logits (n, V) float32 after each of them."""
        return self._forward(ids, [Row(cache, len(ids))], logits="all")

    def generate(
        self,
        cache: KVCache,
        ids: Sequence[int],
        *,
        max_tokens: int,
        min_tokens: int = 0,
        stop: Collection[int] = (),
        breaks: Collection[int] = (),
        source: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Prefills ids, then yields tokens until one of `stop` (not yielded, nor chosen before min_tokens) or
        max_tokens. Where one of `stop` was the likeliest before min_tokens, none of `breaks` takes its place.

        source: ids that the reply may copy, beside its prompt's; None: it copies nothing. What it may copy is drafted
        and checked several tokens a step where the same tokens come out of that (`Scheduler`).

        The cache stays extended by the prompt and all yielded tokens, but for the last one at max_tokens; the caller
        truncates it.
        """
        drafts = self.scheduler.drafts if source is not None else 1
        lookup = Lookup([*(source or ()), *ids], max_tokens) if drafts > 1 else None
        checked: list[tuple[int, Tensor]] = []  # drafts in the cache behind its end, the next one last, with logits
        logits = self.prefill(cache, ids)
        try:
            for count in range(1, max_tokens + 1):
                if count <= min_tokens:
                    ended = int(logits[0].argmax()) in stop
                    barred = torch.tensor([*stop, *(breaks if ended else ())], dtype=torch.long, device=logits.device)
                    logits = logits.index_fill(-1, barred, float("-inf"))
                token = _likeliest(logits)[0]
                if token in stop:
                    return
                yield token
                if count == max_tokens:
                    return
                if count >= min_tokens and self._steps_on_gpu([cache], None):
                    yield from self._follow(cache, token, max_tokens - count, stop)
                    return
                draft: list[int] = []
                if lookup is not None:
                    lookup.push(token)
                    if checked and checked[-1][0] == token:
                        logits = checked.pop()[1]
                        cache.advance(1)
                        continue
                    if count >= min_tokens:
                        draft = lookup.draft(min(drafts, max_tokens - count, cache.capacity - cache.length) - 1)
                kind = "last" if count < min_tokens else "likeliest"
                rows = self.scheduler.step([token, *draft], cache, kind).split(1)
                logits, checked = rows[0], list(zip(draft, rows[1:], strict=False))[::-1]
        finally:
            self.scheduler.leave()

    def _follow(self, cache: KVCache, token: int, most: int, stop: Collection[int]) -> Iterator[int]:
        """The rest of `generate` on a GPU: at most so many tokens that follow `token`."""
        from minimemo.engine.steps import DeviceSteps

        cache.require(1)
        for (found,) in DeviceSteps(self.decoder, [cache], None).follow([token], most, self.alone):
            cache.advance(1)
            self.decoded += 1
            if found in stop:
                return
            yield found
            most -= 1
        if most:
            cache.require(1)

    def _steps_on_gpu(self, caches: Sequence[KVCache], prefix: KVCache | None) -> bool:
        """Whether steps of these rows are a GPU's own."""
        return self.decoder.steps_on_gpu([Row(cache, 1) for cache in caches], prefix)

    def generate_batch(
        self,
        memory: KVCache,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        stop: Collection[int] = (),
        source: Sequence[int] = (),
    ) -> list[list[int]]:
        """Continues one shared memory with several prompts at once, each by its likeliest tokens, which are returned.

        What the prompts begin with in common is computed once, behind the memory, which has its length back afterwards
        and needs room for it; so is attention over both. source: ids that replies may copy beside their prompts'; they
        are drafted where rows are cheap (`Scheduler`).
        """
        if not prompts or not all(prompts):
            raise ValueError("engine: a batch needs at least one prompt and a token in each")
        shared = _shared(prompts)
        with self._batch:
            length = memory.length
            try:
                self.extend(memory, prompts[0][:shared])
                copied = [*source, *prompts[0][:shared]]
                return self._continue(memory, [prompt[shared:] for prompt in prompts], max_tokens, stop, copied)
            finally:
                memory.truncate(length)

    def _continue(
        self,
        memory: KVCache,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        stop: Collection[int],
        source: Sequence[int],
    ) -> list[list[int]]:
        """`generate_batch` without a common beginning; `memory` is only read."""
        tails = self.new_caches(len(prompts), max(map(len, prompts)) + max_tokens)
        replies: list[list[int]] = [[] for _ in prompts]
        rows = [Row(tail, len(prompt)) for tail, prompt in zip(tails, prompts, strict=True)]
        logits = self._forward([token for prompt in prompts for token in prompt], rows, prefix=memory)
        if self._steps_on_gpu(tails, memory):
            return self._follow_batch(tails, memory, _likeliest(logits), max_tokens, stop)
        lookups = [Lookup([*source, *prompt], max_tokens) for prompt in prompts]
        drafts = max(1, min(self.scheduler.drafts, MOST_ROWS // len(prompts))) if self.scheduler.cheap else 1
        steps: dict[int, list[int]] = {row: [*prompt[-1:]] for row, prompt in enumerate(prompts)}
        while steps:
            found, read, steps = iter(_likeliest(logits)), steps, {}
            for row, (_, *draft) in read.items():
                likeliest = [*islice(found, 1 + len(draft))]  # before the drafts, and after each of them
                right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(draft, likeliest, strict=False)))
                tails[row].advance(right)
                tokens = [*takewhile(lambda token: token not in stop, likeliest[: 1 + right])]
                for token in tokens:
                    lookups[row].push(token)
                replies[row] += tokens
                left = max_tokens - len(replies[row])
                if left and len(tokens) > right:
                    steps[row] = [tokens[-1], *lookups[row].draft(min(drafts, left) - 1)]
            if steps:
                rows = [_ahead(tails[row], n) for row, tokens in steps.items() for n in range(len(tokens))]
                ids = [token for tokens in steps.values() for token in tokens]
                logits = self._forward(ids, rows, prefix=memory, logits="likeliest", step=True)
        return replies

    def _follow_batch(
        self, tails: Sequence[KVCache], memory: KVCache, first: list[int], most: int, stop: Collection[int]
    ) -> list[list[int]]:
        """The rest of `generate_batch` on a GPU, from the first tokens on: a row at its end is computed on with the
        others and not listened to, so that all steps are one shape."""
        from minimemo.engine.steps import DeviceSteps

        replies: list[list[int]] = [[] for _ in tails]
        open_rows, tokens = set(range(len(tails))), first
        following = DeviceSteps(self.decoder, tails, memory).follow(first, most - 1, self.alone)
        while True:
            open_rows = {row for row in open_rows if tokens[row] not in stop}
            for row in open_rows:
                replies[row].append(tokens[row])
            tokens = next(following, []) if open_rows else []
            if not tokens:
                return replies
            self.decoded += len(tails)

    def likelihoods(
        self, cache: KVCache, ids: Sequence[int], replies: Sequence[Sequence[int]], stop: Collection[int]
    ) -> list[float]:
        """Log-probability of each reply to `ids`: of its tokens, and of its end with one of `stop`, if any are given.

        The cache, with room for ids, has its length back afterwards. Short replies are read in one pass behind it, and
        none for those of one token whose end does not count.
        """
        read = [(ids[-1], *(reply if stop else reply[:-1])) for reply in replies]
        length = cache.length
        try:
            if max(map(len, read)) == 1:
                after = [self.prefill(cache, ids)] * len(replies)
            else:
                self.extend(cache, ids[:-1])
                passes = [read] if sum(map(len, read)) <= FEW_ROWS else [[tokens] for tokens in read]
                after = [logits for texts in passes for logits in self._behind(cache, texts)]
        finally:
            cache.truncate(length)
        ends = torch.tensor(list(stop), dtype=torch.long, device=self.decoder.device)
        likely = list[float]()
        for reply, logits in zip(replies, after, strict=True):
            logs = logits.log_softmax(-1)
            tokens = torch.tensor(reply, dtype=torch.long, device=logs.device)
            told = logs[: len(reply)].gather(1, tokens[:, None]).sum()
            likely.append(float(told + logs[-1, ends].logsumexp(0) if stop else told))
        return likely

    def _behind(self, memory: KVCache, texts: Sequence[Sequence[int]]) -> Sequence[Tensor]:
        """Logits after each token of several texts, each of which stands behind a memory that is only read."""
        tails = self.new_caches(len(texts), max(map(len, texts)))
        rows = [Row(tail, len(text)) for tail, text in zip(tails, texts, strict=True)]
        logits = self._forward([token for text in texts for token in text], rows, prefix=memory, logits="all")
        return logits.split([row.count for row in rows])

    def _steps(self, steps: Sequence[Step]) -> Tensor:
        """One pass of replies' next tokens and drafts, each a row of its own, all of one kind of logits: a row of
        several tokens adds in another order, and near ties would fall otherwise."""
        rows = [_ahead(step.cache, n) for step in steps for n in range(len(step.tokens))]
        ids = [token for step in steps for token in step.tokens]
        return self._forward(ids, rows, logits=steps[0].kind, step=True)

    def _forward(
        self,
        ids: Sequence[int],
        rows: Sequence[Row],
        *,
        prefix: KVCache | None = None,
        logits: str = "last",
        step: bool = False,
    ) -> Tensor:
        """One pass of the decoder, counted as prefilled tokens, or as decoded ones where it is a `step`."""
        with self.alone():
            if step:
                self.decoded += len(ids)
            else:
                self._count(len(ids))
            tensor = torch.tensor(ids, dtype=torch.long, device=self.decoder.device)
            return self.decoder.forward(tensor, rows, prefix=prefix, logits=logits)


def _ahead(cache: KVCache, tokens: int) -> Row:
    """A row of a step: its next token, and of drafts the one so many tokens later."""
    return Row(cache.ahead(tokens) if tokens else cache, 1)


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that several prompts begin with in common, the last one of each not counted; of one prompt none."""
    if len(prompts) == 1:
        return 0
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _likeliest(logits: Tensor) -> list[int]:
    """logits (rows, V) -> the likeliest token of each row, of equal ones that of the lowest id."""
    if not logits.is_cpu:
        return logits.argmax(dim=-1).tolist()  # a few bytes come back, not the logits
    # numpy: torch's own would wake a team of threads that then spins on the cores of the next step's products
    return logits.cpu().numpy().argmax(axis=-1).tolist()
