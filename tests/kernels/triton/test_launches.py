"""What a GPU is asked to do in a step of decoding and a chunk of prefill: launches, copies and waits, as numbers.

The pass runs on torch's meta device, whose tensors have shapes and no numbers, with the shapes of Qwen2.5-0.5B in
q4_k_m. A wait for the device would raise here: there is no number to wait for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimemo.engine.engine import Engine
from minimemo.kernels import triton
from minimemo.kernels.formats import QuantizedMatrix
from minimemo.kernels.triton.launch import Launch
from minimemo.models.config import ModelConfig
from minimemo.models.decoder import Decoder, Row
from minimemo.models.layers import DecoderWeights, LayerWeights, QuantizedLinear
from tests.tiny import tiny_config

LAYERS = 24
CONFIG: ModelConfig = replace(
    tiny_config(), num_layers=LAYERS, num_heads=14, num_kv_heads=2, head_dim=64, hidden_size=896,
    intermediate_size=4864, vocab_size=151936, windows=(None,) * LAYERS,
)  # fmt: skip
_ALLOCATES = ("empty", "arange", "lift_fresh")


class _Trace(TorchDispatchMode):
    """Counts torch's operations on the device, and copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if isinstance(out, Tensor) and out.device.type == "meta":
            given = [x for x in args if isinstance(x, Tensor)]
            view = not name.endswith("_") and any(
                out.untyped_storage()._cdata == x.untyped_storage()._cdata for x in given
            )
            if any(x.device.type == "cpu" and x.dim() for x in given):
                self.copies += 1
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
        patch.setattr(Launch, "run", lambda launch: trace.counts.update([launch.kernel.__name__]))
        yield trace


def _matrix(outputs: int, columns: int, group: int, bits: int = 8, *, offsets: bool = False) -> QuantizedMatrix:
    scales = torch.empty(outputs, columns // group, dtype=torch.float16, device="meta")
    codes = torch.empty(outputs, columns * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8, device="meta")
    return QuantizedMatrix(bits, codes, scales, scales if offsets else None)


def _engine() -> Engine:
    """Q5_0 and Q8_0 in groups of 32; every other `down` Q6_K in groups of 16, the others Q4_K."""
    c = CONFIG
    norm = torch.empty(c.hidden_size, dtype=torch.bfloat16, device="meta")
    width = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    bias = torch.empty(width, dtype=torch.bfloat16, device="meta")
    layers = []
    for index in range(LAYERS):
        q6, wide = _matrix(896, 4864, 16), _matrix(896, 4864, 32, 4, offsets=True)
        layers.append(
            LayerWeights(
                norm,
                QuantizedLinear([_matrix(width, 896, 32)], bias),
                QuantizedLinear([_matrix(896, 896, 32)], None),
                norm,
                QuantizedLinear([_matrix(2 * 4864, 896, 32)], None),
                QuantizedLinear([q6 if index % 2 else wide], None),
            )
        )
    words = QuantizedLinear([_matrix(c.vocab_size, 896, 32)], None)
    return Engine(Decoder(c, DecoderWeights(words, tuple(layers), norm, words)), kv_dtype=torch.bfloat16)


def test_a_step_of_one_row() -> None:
    engine = _engine()
    cache = engine.new_cache(8192)
    cache.length = 5000
    engine.decoder.rope.of_spans([(5000, 1)], engine.decoder.device)
    with _traced() as trace:
        logits = engine._forward([5], [Row(cache, 1)], logits="likeliest", step=True)
        logits.argmax(dim=-1)
    assert trace.counts["_linear"] == 4 * LAYERS + 1
    assert trace.counts["_rope_qkv"] == trace.counts["_attend"] == trace.counts["_merge_parts"] == LAYERS
    assert trace.counts.total() == 178, trace.counts
    assert trace.copies == 1  # the token's id


def test_a_step_of_three_rows_over_a_memory() -> None:
    engine = _engine()
    memory, tails = engine.new_cache(8192), [engine.new_cache(64) for _ in range(3)]
    memory.length = 5000
    for tail in tails:
        tail.length = 7
    engine.decoder.rope.of_spans([(5007, 1)] * 3, engine.decoder.device)
    with _traced() as trace:
        engine._forward([5, 6, 7], [Row(tail, 1) for tail in tails], prefix=memory, logits="likeliest", step=True)
    assert trace.counts.total() == 300, trace.counts
    assert trace.copies == 2  # ids and positions


def test_a_chunk_of_prefill() -> None:
    engine = _engine()
    cache = engine.new_cache(8192)
    cache.length = 4096
    raw = torch.empty(LAYERS, 2, 512, 64, dtype=torch.bfloat16, device="meta")
    engine.decoder.rope.of_spans([(4096, 512)], engine.decoder.device)
    with _traced() as trace:
        engine._forward(list(range(512)), [Row(cache, 512)], raw_keys=raw, logits="none")
    assert trace.counts["_widen"] == 4 * LAYERS
    assert trace.counts.total() == 342, trace.counts
    assert trace.counts["to"] <= 3 and not trace.counts["cat"], trace.counts  # casts are in the kernels
    assert trace.copies == 1
