"""One sample through one codec: coded into a real memory.bin, loaded as `ask` loads it, compared with the exact cache.

Everything costly is done once and kept under minimemo's folder by the hash of what went in: a sample's keys and values
by its token ids, results by the bytes of the cache that they were found on. So an interrupted run goes on, and a codec
that changed is measured anew without anyone saying so. (The kernels are not part of the hash: `fresh` after changing
them.)
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.memory_samples import FOLLOW, Sample
from bench.memory_stats import Cost, Divergence, Outcome, divergence
from minimemo.ask import PROMPTS
from minimemo.ask.writer import Writer
from minimemo.engine.cache import KVCache
from minimemo.memory.blocks import BlockAssembler
from minimemo.memory.codec import Codec, ExactCodec, KVLayout
from minimemo.memory.load import StoredMemory
from minimemo.memory.reader import MemoryReader
from minimemo.memory.view import whole
from minimemo.memory.writer import MemoryWriter
from minimemo.runtime import LanguageModel

VERSION = 1  # of what is kept
BATCH = 16  # questions over one memory at a time
REPEATED, CUE = 128, 12  # tokens of the passage that is to be repeated, and of its beginning that the prompt names
ROOM = FOLLOW + 256  # tokens behind the memory
REPEAT = {
    "en": "\n\n---\nRepeat the document above word for word from these words on: {cue}\nText:",
    "zh": "\n\n---\n从下面这些字开始，一字不差地重复上面的文档：{cue}\n原文：",
}


@dataclass(frozen=True, slots=True)
class Tier:
    """A codec as it is measured."""

    name: str
    codec: Codec


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What the model left of a sequence. keys (before RoPE), values: (L, G, T, D)."""

    ids: tuple[int, ...]
    keys: Tensor
    values: Tensor
    seconds: float  # wall clock of the prefill


class Store:
    """Small results and large tensors by the hash of what they came from."""

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self._folder, self._fresh = folder, fresh
        self._made: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def result(self, key: Sequence[Any], make: Callable[[], Any]) -> Any:
        """make()'s JSON-able result, from the last time where there was one."""
        path = self._path(key, "json")
        if not self._has(path):
            self._write(path, lambda at: at.write_text(json.dumps(make(), ensure_ascii=False), encoding="utf-8"))
        return json.loads(path.read_text(encoding="utf-8"))

    def tensors(
        self, key: Sequence[Any], make: Callable[[], tuple[dict[str, Tensor], float]]
    ) -> tuple[dict[str, Tensor], float]:
        """make()'s tensors and seconds, likewise."""
        path = self._path(key, "safetensors")
        if not self._has(path):
            tensors, seconds = make()
            self._write(path, lambda at: save_file(tensors, at, {"seconds": repr(seconds)}))
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, float(file.metadata()["seconds"])

    def _path(self, key: Sequence[Any], ending: str) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps([VERSION, *key]).encode()).hexdigest()[:32]}.{ending}"

    def _has(self, path: Path) -> bool:
        return path.exists() and (not self._fresh or path in self._made)

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            write(Path(scratch) / path.name)
            (Path(scratch) / path.name).replace(path)
        self._made.add(path)


class Workbench:
    """One model and what is kept of its results. products: the dtype it was loaded with; max_tokens: of a reply."""

    def __init__(self, model: LanguageModel, store: Store, products: torch.dtype, *, max_tokens: int = 24) -> None:
        self.model = model
        self.engine = model.engine
        self.max_tokens = max_tokens
        self.layout = KVLayout(
            self.engine.config.num_layers, self.engine.config.num_kv_heads, self.engine.config.head_dim,
            str(self.engine.kv_dtype).removeprefix("torch."),
        )  # fmt: skip
        self.exact = Tier("exact", ExactCodec(self.layout))
        self._store = store
        self._writer = Writer(self.engine, model.tokenizer)
        self._key = [model.located.fingerprint, str(products), self.layout.dtype]

    def prefilled(self, ids: Sequence[int]) -> Prefilled:
        """The keys and values of a sequence, from the store where they are known."""

        def make() -> tuple[dict[str, Tensor], float]:
            keys, values = (torch.empty(self.layout.shape(len(ids)), dtype=self.layout.torch_dtype) for _ in range(2))
            cache = self.engine.new_cache(len(ids))
            begin = time.perf_counter()
            for piece in self.engine.read(cache, list(ids)):
                span = slice(piece.start, piece.start + len(piece.ids))
                keys[:, :, span], values[:, :, span] = piece.keys, piece.values
            return {"keys": keys, "values": values}, time.perf_counter() - begin

        tensors, seconds = self._store.tensors([*self._key, "prefill", list(ids)], make)
        return Prefilled(tuple(ids), tensors["keys"], tensors["values"], seconds)

    def measure(
        self, sample: Sample, tiers: Iterable[Tier], *, repeat: bool = True, on_outcome: Callable[[str], None] = print
    ) -> dict[str, Outcome]:
        """The outcome of each tier, the exact cache's first."""
        known = self.prefilled(sample.ids)
        exact, cost = self.through(known, self.exact)
        reference = _Probe(self, sample, exact)
        found = {"exact": self._outcome(sample, reference, reference, cost, repeat)}
        on_outcome("exact")
        for tier in tiers:
            if tier.name not in found:
                cache, cost = self.through(known, tier)
                found[tier.name] = self._outcome(sample, _Probe(self, sample, cache), reference, cost, repeat)
                on_outcome(tier.name)
        return found

    def through(self, known: Prefilled, tier: Tier) -> tuple[KVCache, Cost]:
        """Writes a memory.bin, reads it back into a cache."""
        assembler = BlockAssembler()
        blocks = assembler.push(known.ids, known.keys, known.values)
        blocks += [last] if (last := assembler.finish()) else []
        header = {
            "model": self.model.located.fingerprint, "document": hashlib.sha256(blocks[-1].hash).hexdigest(),
            "opening": "0" * 16, "opening_tokens": 0, "codec": tier.codec.name, "params": tier.codec.params(),
        }  # fmt: skip  # as long as the builder's
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory.bin"
            begin = time.perf_counter()
            with MemoryWriter(path, header, level=tier.codec.level) as writer:
                for block in blocks:
                    following = len(known.ids) - block.start - block.tokens
                    writer.add(block.hash, block.ids, tier.codec.encode(block, following))
            encoded = time.perf_counter()
            ready = time.perf_counter()
            with MemoryReader(path) as reader:
                cache = StoredMemory([(reader, tier.codec)], self.engine).load(whole([reader.extent]), ROOM)
                loaded = time.perf_counter()
                sizes = reader.sizes()
        elements = known.keys.numel() + known.values.numel()
        return cache, Cost(
            len(known.ids), elements, 2 * elements, sum(sizes.values()), sizes["payload"],
            known.seconds, encoded - begin, loaded - ready,
        )  # fmt: skip

    def logits(self, cache: KVCache, ids: Sequence[int]) -> Tensor:
        """(n, V) after each of ids (n,), teacher-forced behind the cache, which stays as it was."""
        length = cache.length
        try:
            return self.engine.logits(cache, ids).cpu()
        finally:
            cache.truncate(length)

    def repetition(self, sample: Sample) -> tuple[list[int], list[int]]:
        """The prompt that asks to repeat a passage from the middle of the document, and the passage."""
        first = sample.opening + max(0, (len(sample.ids) - sample.opening - REPEATED) // 2)
        passage = list(sample.ids[first : first + REPEATED])
        cue = self.model.tokenizer.decode(passage[:CUE])
        return self._ending(sample, REPEAT[sample.language].format(cue=cue)), passage

    def replies(self, sample: Sample, cache: KVCache) -> dict[str, str]:
        """The model's answer from the cache alone to each question, by its id."""
        template = PROMPTS[sample.language].memory_answer
        found = {}
        for at in range(0, len(sample.asked), BATCH):
            batch = sample.asked[at : at + BATCH]
            rows = [self._ending(sample, template.format(question=asked.text)) for asked in batch]
            for asked, reply in zip(batch, self._writer.reply_batch(cache, rows, self.max_tokens), strict=True):
                said = reply.strip()
                # a base model does not know how to stop
                found[asked.id] = said if self.model.tokenizer.has_chat_template else said.split("\n", 1)[0]
        return found

    def kept(self, what: str, parts: Sequence[Any], make: Callable[[], Any]) -> Any:
        """A result from the store, or made now and kept."""
        return self._store.result([*self._key, what, *parts], make)

    def _outcome(self, sample: Sample, probe: _Probe, reference: _Probe, cost: Cost, repeat: bool) -> Outcome:
        return Outcome(
            sample.name,
            cost,
            probe.against(reference, "follow") if sample.follow else None,
            probe.against(reference, "repeat") if sample.follow and repeat else None,
            sample.asked,
            probe.replies() if sample.asked else {},
        )

    def _ending(self, sample: Sample, text: str) -> list[int]:
        return self._writer.end_of_turn(PROMPTS[sample.language].system, text)


class _Probe:
    """One cache under question. Logits are made when they are first asked for: 155 MB for 256 tokens of a Qwen."""

    def __init__(self, bench: Workbench, sample: Sample, cache: KVCache) -> None:
        self._bench, self._sample, self._cache = bench, sample, cache
        self._logits: dict[str, Tensor] = {}
        self.digest = digest(cache)

    def against(self, reference: _Probe, what: str) -> Divergence:
        """what: "follow", the text goes on, or "repeat", a passage is repeated as asked."""
        forced = list(self._sample.follow) if what == "follow" else [*chain(*self._bench.repetition(self._sample))]
        key = [self.digest, reference.digest, forced]
        return Divergence(**self._bench.kept(what, key, lambda: asdict(self._compare(reference, what))))

    def replies(self) -> dict[str, str]:
        asked = [[a.id, a.text] for a in self._sample.asked]
        key = [self.digest, self._sample.language, asked, self._bench.max_tokens]
        replies: dict[str, str] = self._bench.kept(
            "replies", key, lambda: self._bench.replies(self._sample, self._cache)
        )
        return replies

    def _compare(self, reference: _Probe, what: str) -> Divergence:
        exact = reference.logits(what)
        return divergence(exact, exact if self is reference else self._compute(what))

    def logits(self, what: str) -> Tensor:
        if what not in self._logits:
            self._logits[what] = self._compute(what)
        return self._logits[what]

    def _compute(self, what: str) -> Tensor:
        if what == "follow":
            return self._bench.logits(self._cache, self._sample.follow)
        prompt, passage = self._bench.repetition(self._sample)
        return self._bench.logits(self._cache, [*prompt, *passage[:-1]])[len(prompt) - 1 :]


def digest(cache: KVCache) -> str:
    """Of everything that attention sees."""
    found = hashlib.blake2b(str((cache.keys.dtype, cache.length)).encode(), digest_size=16)
    for x in (cache.keys, cache.values):
        for layer in x[:, :, : cache.length]:
            found.update(layer.cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
