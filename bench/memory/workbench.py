"""One sample through codecs: coded into a real memory.bin, loaded as `ask` loads it, compared with the exact cache.

Everything costly is done once and kept: a sample's keys and values by its token ids, results by the bytes of the cache
that they were found on. So a codec that changed is measured anew without anyone saying so. (The kernels are not part of
the hash: `--fresh` after changing them.)
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common.kept import Kept
from bench.memory.samples import FOLLOW, Sample
from bench.memory.stats import Cost, Divergence, Outcome, divergence
from minimemo.ask import PROMPTS
from minimemo.ask.writer import Writer
from minimemo.engine.cache import KVCache
from minimemo.memory.blocks import BlockAssembler
from minimemo.memory.codec import Codec, ExactCodec, KVLayout
from minimemo.memory.load import StoredMemory
from minimemo.memory.reader import MemoryReader
from minimemo.memory.view import whole
from minimemo.memory.writer import writing
from minimemo.runtime import LanguageModel

BATCH = 16  # questions over one memory at a time
ROOM = FOLLOW + 256  # tokens behind the memory


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What the model left of a sequence. keys (before RoPE), values: (L, G, T, D)."""

    ids: tuple[int, ...]
    keys: Tensor
    values: Tensor
    seconds: float  # wall clock of the prefill


class Workbench:
    """One model and what is kept of its results. products: the dtype it was loaded with; max_tokens: of a reply."""

    def __init__(self, model: LanguageModel, kept: Kept, products: torch.dtype, *, max_tokens: int = 24) -> None:
        self.model = model
        self.engine = model.engine
        self.max_tokens = max_tokens
        self.layout = KVLayout(
            self.engine.config.num_layers, self.engine.config.num_kv_heads, self.engine.config.head_dim,
            str(self.engine.kv_dtype).removeprefix("torch."),
        )  # fmt: skip
        self._kept = kept
        self._writer = Writer(self.engine, model.tokenizer)
        self._key = [model.located.fingerprint, str(products), self.layout.dtype]

    def prefilled(self, ids: Sequence[int]) -> Prefilled:
        """The keys and values of a sequence."""

        def make() -> tuple[dict[str, Tensor], float]:
            keys, values = (torch.empty(self.layout.shape(len(ids)), dtype=self.layout.torch_dtype) for _ in range(2))
            cache = self.engine.new_cache(len(ids))
            begin = time.perf_counter()
            for piece in self.engine.read(cache, list(ids)):
                span = slice(piece.start, piece.start + len(piece.ids))
                keys[:, :, span], values[:, :, span] = piece.keys, piece.values
            return {"keys": keys, "values": values}, time.perf_counter() - begin

        tensors, seconds = self._kept.tensors([*self._key, "prefill", list(ids)], make)
        return Prefilled(tuple(ids), tensors["keys"], tensors["values"], seconds)

    def measure(
        self, sample: Sample, codecs: Mapping[str, Codec], on_outcome: Callable[[str], None] = print
    ) -> dict[str, Outcome]:
        """The outcome of each codec by its name, the exact cache's first."""
        prefilled = self.prefilled(sample.ids)
        exact, _ = first = self.through(prefilled, ExactCodec(self.layout))
        reference = cache(lambda ids: self.logits(exact, ids))  # 155 MB of a Qwen: made when first needed
        exact_digest, outcomes = digest(exact), {}
        for name in ("exact", *(name for name in codecs if name != "exact")):
            loaded, cost = first if name == "exact" else self.through(prefilled, codecs[name])
            own = digest(loaded)

            def diverged(ids: tuple[int, ...], loaded: KVCache = loaded) -> dict[str, Any]:
                found = reference(ids) if loaded is exact else self.logits(loaded, ids)
                return asdict(divergence(reference(ids), found))

            follow, again = (
                Divergence(**self.kept("follow", [own, exact_digest, list(ids)], lambda ids=ids: diverged(ids)))
                if ids
                else None
                for ids in (sample.follow, sample.again)
            )
            replies = {}
            if sample.asked:
                key = [own, sample.language, [[a.id, a.text] for a in sample.asked], self.max_tokens]
                replies = self.kept("replies", key, lambda loaded=loaded: self.replies(sample, loaded))
            outcomes[name] = Outcome(sample.name, cost, follow, sample.asked, replies, again)
            on_outcome(name)
        return outcomes

    def through(self, prefilled: Prefilled, codec: Codec) -> tuple[KVCache, Cost]:
        """Writes a memory.bin, reads it back into a cache."""
        assembler = BlockAssembler()
        blocks = assembler.push(prefilled.ids, prefilled.keys, prefilled.values)
        blocks += [last] if (last := assembler.finish()) else []
        header = {
            "model": self.model.located.fingerprint, "document": hashlib.sha256(blocks[-1].hash).hexdigest(),
            "opening": "0" * 16, "opening_tokens": 0, "codec": codec.name, "params": codec.params(),
        }  # fmt: skip  # as long as the builder's
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory.bin"
            begin = time.perf_counter()
            with writing(path, header, level=codec.level) as writer:
                for block in blocks:
                    following = len(prefilled.ids) - block.start - block.tokens
                    writer.add(block.hash, block.ids, codec.encode(block, following))
            encoded = time.perf_counter()
            with MemoryReader(path) as reader:
                cache = StoredMemory([(reader, codec)], self.engine).load(whole([reader.extent]), ROOM)
                loaded = time.perf_counter()
                sizes = reader.sizes()
        elements = prefilled.keys.numel() + prefilled.values.numel()
        return cache, Cost(
            len(prefilled.ids), elements, sum(sizes.values()), sizes["payload"],
            prefilled.seconds, encoded - begin, loaded - encoded,
        )  # fmt: skip

    def logits(self, cache: KVCache, ids: Sequence[int]) -> Tensor:
        """(n, V) after each of ids (n,), teacher-forced behind the cache, which stays as it was."""
        length = cache.length
        try:
            return self.engine.logits(cache, ids).cpu()
        finally:
            cache.truncate(length)

    def replies(self, sample: Sample, cache: KVCache) -> dict[str, str]:
        """The model's answer from the cache alone to each question, by its id."""
        tokenizer, prompts, replies = self.model.tokenizer, PROMPTS[sample.language], {}
        for at in range(0, len(sample.asked), BATCH):
            batch = sample.asked[at : at + BATCH]
            texts = [prompts.memory_answer.format(question=asked.text) for asked in batch]
            rows = [self._writer.turn(prompts.system, text, begun=True) for text in texts]
            written = self.engine.generate_batch(cache, rows, max_tokens=self.max_tokens, stop=tokenizer.stop_ids)
            for asked, reply in zip(batch, written, strict=True):
                said = tokenizer.decode(reply).strip()
                # a base model does not know how to stop
                replies[asked.id] = said if tokenizer.has_chat_template else said.split("\n", 1)[0]
        return replies

    def kept(self, what: str, parts: Sequence[Any], make: Callable[[], Any]) -> Any:
        """A result of an earlier run, or made now and kept."""
        return self._kept.result([*self._key, what, *parts], make)


def digest(cache: KVCache) -> str:
    """Of everything that attention sees."""
    state = hashlib.blake2b(str((cache.keys.dtype, cache.length)).encode(), digest_size=16)
    for x in (cache.keys, cache.values):
        for layer in x[:, :, : cache.length]:
            state.update(layer.cpu().contiguous().view(torch.uint8).numpy())
    return state.hexdigest()
