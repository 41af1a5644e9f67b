"""What a GPU is asked to do in a step of decoding and a chunk of prefill: launches, copies and waits, as numbers.

The pass runs on torch's meta device, whose tensors have shapes and no numbers, with the shapes of Qwen2.5-0.5B in
q4_k_m. A wait for the device would raise here: there is no number to wait for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.common import shapes
from bench.common.shapes import LAYERS
from bench.nogpu import graphed
from minimemo.engine.engine import GPU_CHUNK, Engine
from minimemo.engine.steps import DeviceSteps
from minimemo.kernels import triton
from minimemo.kernels.triton.launch import Launch, Recording
from minimemo.memory.blocks import BlockAssembler
from minimemo.memory.codec import KVLayout
from minimemo.memory.int4 import Int4Codec
from minimemo.memory.load import StoredMemory
from minimemo.memory.reader import MemoryReader
from minimemo.memory.view import whole
from minimemo.memory.writer import writing
from minimemo.models.decoder import Decoder, Row
from tests.kernels.triton.device import mapped
from tests.tiny import tiny_decoder, tiny_engine

_ALLOCATES = ("empty", "arange", "lift_fresh", "detach_")


class _Trace(TorchDispatchMode):
    """Counts torch's operations on the device, and copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.copies = 0
        self.launches: list[Launch] = []
        self.made: set[int] = set()  # storages allocated meanwhile
        self._kept: list[Tensor] = []

    def launched(self, launch: Launch) -> None:
        self.counts[launch.kernel.__name__] += 1
        self.launches.append(launch)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if isinstance(out, Tensor) and out.device.type == "meta":
            given = [x for x in args if isinstance(x, Tensor)]
            view = not name.endswith("_") and any(
                out.untyped_storage()._cdata == x.untyped_storage()._cdata for x in given
            )
            if any(x.device.type == "cpu" and x.dim() for x in given):
                self.copies += 1
            elif not view and "empty" in name:
                self.made.add(out.untyped_storage()._cdata)
                self._kept.append(out)
            elif not view and not any(word in name for word in _ALLOCATES):
                self.counts[name] += 1
        return out


@contextmanager
def _traced() -> Iterator[_Trace]:
    with pytest.MonkeyPatch.context() as patch, _Trace() as trace:
        patch.setattr(triton, "DEVICE", "meta")
        patch.setattr(triton, "installed", lambda: True)
        make = torch.tensor

        def tensor(*args: Any, **kwargs: Any) -> Tensor:
            trace.copies += str(kwargs.get("device", "cpu")) != "cpu"
            return make(*args, **kwargs)

        patch.setattr(torch, "tensor", tensor)
        patch.setattr(Launch, "run", lambda launch: trace.launched(launch))
        yield trace


def test_a_step_of_one_row() -> None:
    engine = shapes.engine()
    cache = engine.new_cache(8192)
    cache.length = 5000
    engine.decoder.rope.whole(9000, engine.decoder.device)
    with _traced() as trace:
        logits = engine._forward([5], [Row(cache, 1)], logits="likeliest", step=True)
        logits.argmax(dim=-1)
    assert trace.counts["_row_linear"] == 4 * LAYERS + 1
    assert trace.counts["_rope_qkv"] == trace.counts["_attend"] == trace.counts["_merge_parts"] == LAYERS
    assert trace.counts.total() == 172, trace.counts
    assert trace.copies == 2  # the token's id, and where it stands


def test_a_step_of_three_rows_over_a_memory() -> None:
    engine = shapes.engine()
    memory, tails = engine.new_cache(8192), engine.new_caches(3, 64)
    memory.length = 5000
    for tail in tails:
        tail.length = 7
    engine.decoder.rope.whole(9000, engine.decoder.device)
    with _traced() as trace:
        engine._forward([5, 6, 7], [Row(tail, 1) for tail in tails], prefix=memory, logits="likeliest", step=True)
    assert trace.counts["_rope_qkv"] == LAYERS and trace.counts["_attend"] == 2 * LAYERS  # the memory's, all tails'
    assert trace.counts.total() == 195, trace.counts
    assert trace.copies == 2  # ids, and where they stand


def test_a_chunk_of_prefill() -> None:
    """On a GPU a chunk is long: what the processor does for it does not grow with it."""
    engine = shapes.engine()
    assert engine.chunk == GPU_CHUNK >= 4 * Engine(tiny_decoder()).chunk
    cache = engine.new_cache(8192)
    cache.length = 4096
    raw = torch.empty(LAYERS, 2, GPU_CHUNK, 64, dtype=torch.bfloat16, device="meta")
    engine.decoder.rope.of_spans([(4096, GPU_CHUNK)], engine.decoder.device)
    with _traced() as trace:
        engine.read_into(cache, torch.tensor(range(GPU_CHUNK), device="meta"), raw)
    assert trace.counts["_widen"] == 4 * LAYERS + 1  # norms and the embedding with them
    assert trace.counts.total() == 265, trace.counts
    assert trace.counts["to"] <= 3 and not trace.counts["cat"], trace.counts  # casts are in the kernels
    assert trace.copies == 1


@pytest.mark.parametrize(("rows", "packed"), [(1, False), (1, True), (3, False), (3, True)])
def test_a_step_that_a_gpu_takes_by_itself(rows: int, packed: bool) -> None:
    """From one step to the next nothing changes of what is asked for: a graph captured once is right for all of them.
    Nothing is copied to the device, and nothing is waited for."""
    engine = shapes.engine()
    engine.memory_bits = 8 if packed else None
    memory = engine.new_memory(4096, 8192)
    memory.length = 5000
    if packed:
        memory._pack_up_to(4096)
    caches, prefix = ([memory], None) if rows == 1 else (engine.new_caches(rows, 64), memory)
    with _traced() as trace:
        steps = DeviceSteps(engine.decoder, caches, prefix)
    asked = []
    for _ in range(2):
        with _traced() as trace:
            steps._compute()
        asked.append([_outside(launch, trace.made) for launch in trace.launches])
        assert trace.copies == 0 and trace.counts.total() == len(trace.launches)  # nothing but these kernels
        for cache in caches:
            cache.length += 1
    assert asked[0] == asked[1] and len(asked[0]) == 173 + LAYERS * ((rows > 1) + packed)
    with Recording() as recording, pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "DEVICE", "meta")
        patch.setattr(Launch, "run", lambda launch: None)
        steps._compute()
    assert recording.whole  # and so later steps are what was recorded of the first


def test_besides_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes one operation of torch besides its graph, the copy of what it chose: 4 bytes a row. Of a reply comes
    in addition what tells where it begins."""
    engine = shapes.engine()
    cache = engine.new_cache(8192)
    cache.length = 5000
    engine.decoder.rope.whole(9000, engine.decoder.device)
    monkeypatch.setattr("minimemo.engine.steps.DeviceSteps", lambda *given: graphed(DeviceSteps(*given)))
    with _Operations() as operations:
        following = engine._follow(cache, 5, 12, {7, 8})
        next(following)
        before = list(operations.names)
        tokens = list(following)
    assert tokens == [5] * 11 and cache.length == 5012
    assert (
        operations.names[len(before) :] == ["copy_"] * 10
    )  # the last step is asked for before the last but one is read
    assert len(before) <= 8, before


class _Operations(TorchDispatchMode):
    """Names torch's operations in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _outside(launch: Launch, made: set[int]) -> tuple[Any, ...]:
    """All that a launch is given, of tensors those made before the step as themselves."""

    def seen(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        whole = value.untyped_storage()._cdata
        return (value.shape, value.stride(), value.storage_offset(), None if whole in made else whole)

    given = {name: seen(value) for name, value in launch.arguments.items()}
    return (launch.kernel.__name__, launch.grid, given, launch.constants, launch.num_warps)


@pytest.mark.parametrize("name", ["0.5B", "7B"])
def test_weights_are_as_small_as_the_file(name: str) -> None:
    held, file = shapes.bytes_held(name)
    assert file < held <= 1.04 * file, held / file
    if name == "0.5B":
        weights = shapes.engine().decoder.weights
        parts = [part for layer in weights.layers for part in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        assert held == sum(matrix.nbytes for matrix in [*parts, weights.embedding, weights.head])


def test_loading_a_memory(tmp_path: Path) -> None:
    """A block goes to the device in one copy, coded, and into the cache of all layers in one launch; nothing else of it
    is computed by the processor, and nothing comes back."""
    on_cpu = tiny_engine()
    reader = BlockAssembler()
    blocks = [
        block
        for piece in on_cpu.read(on_cpu.new_cache(512), [token % 60 for token in range(512)])
        for block in reader.push(piece.ids, piece.keys, piece.values)
    ]
    c = on_cpu.config
    codec = Int4Codec(KVLayout(c.num_layers, c.num_kv_heads, c.head_dim, "float32"))
    with writing(tmp_path / "memory.bin", {"codec": codec.name, "params": codec.params()}) as writer:
        for block in blocks:
            writer.add(block.hash, block.ids, codec.encode(block))
    stored = MemoryReader(tmp_path / "memory.bin")
    away = mapped(on_cpu.decoder.weights, lambda x: x.to("meta") if isinstance(x, Tensor) else None)
    with _traced() as trace:
        engine = Engine(Decoder(c, away))
        engine.decoder.rope.whole(600, engine.decoder.device)
        trace.copies = 0
        trace.counts.clear()
        cache = StoredMemory([(stored, codec)], engine).load(whole([stored.extent]), 16)
    assert len(blocks) == 2 and cache.length == 512 and cache.keys.device.type == "meta"
    assert trace.copies == 2 and trace.counts["_rope_store"] == 2, (trace.copies, trace.counts)
