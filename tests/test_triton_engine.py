"""The engine on a GPU says what it says on the CPU: logits, greedy tokens, a batch over one memory."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimemo.engine.engine import Engine
from minimemo.models.decoder import Decoder

from .helpers import assert_close
from .tiny import tiny_decoder
from .triton_device import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: python tools/gpu_check")
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 43, 38, 32, 7, 9, 50, 28, 8]


def _moved(value: Any) -> Any:
    """The weights with every tensor on the GPU."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    if isinstance(value, tuple):
        return tuple(_moved(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _moved(getattr(value, field.name)) for field in fields(value)})
    return value


@pytest.fixture
def engines() -> tuple[Engine, Engine]:
    """The same model on the CPU and on the GPU, in chunks that do not divide the prompt."""
    on_cpu = tiny_decoder(seed=3)
    return Engine(on_cpu, chunk=7), Engine(Decoder(on_cpu.config, _moved(on_cpu.weights)), chunk=7)


def test_logits(engines: tuple[Engine, Engine]) -> None:
    on_cpu, on_gpu = (engine.prefill(engine.new_cache(64), PROMPT) for engine in engines)
    assert_close(on_gpu.cpu(), on_cpu.double(), "logits", 2e-5)


def test_greedy_tokens(engines: tuple[Engine, Engine]) -> None:
    expected, found = (list(e.generate(e.new_cache(64), PROMPT, max_tokens=16)) for e in engines)
    assert found == expected


def test_a_batch_over_one_memory(engines: tuple[Engine, Engine]) -> None:
    answers = []
    for engine in engines:
        memory = engine.new_cache(64)
        engine.prefill(memory, PROMPT)
        answers.append(engine.generate_batch(memory, [[1, 2], [40, 41, 42], [5]], max_tokens=8))
    assert answers[1] == answers[0]


def test_half_precision_stays_near(engines: tuple[Engine, Engine]) -> None:
    """bfloat16 on the GPU against float32 on the CPU, over one chunk."""
    on_cpu, on_gpu = engines
    weights = on_gpu.decoder.weights
    half = Engine(Decoder(on_gpu.config, _halved(weights)))
    expected = on_cpu.prefill(on_cpu.new_cache(64), PROMPT)
    found = half.prefill(half.new_cache(64), PROMPT)
    assert_close(found.cpu(), expected.double(), "logits", 0.1)
    assert torch.cosine_similarity(found.cpu(), expected).item() > 0.999


def _halved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(torch.bfloat16)
    if isinstance(value, tuple):
        return tuple(_halved(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _halved(getattr(value, field.name)) for field in fields(value)})
    return value
