"""The engine on Triton's kernels says what it says on the CPU: logits, greedy tokens, a batch over one memory.

In the interpreter the same tensors are served by Triton's kernels once `triton.DEVICE` says that they lie there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minimemo.engine.engine import Engine
from minimemo.engine.steps import DeviceSteps
from minimemo.kernels import triton
from minimemo.kernels.formats import quantized_matrix
from minimemo.kernels.linear import widened_rows
from minimemo.kernels.triton.launch import Launch, Recording
from minimemo.models import weights
from minimemo.models.config import RopeConfig
from minimemo.models.decoder import Decoder, Row
from minimemo.models.layers import Linear, QuantizedLinear
from tests.helpers import assert_close
from tests.kernels.triton.device import DEVICE, mapped, random
from tests.tiny import tiny_config, tiny_decoder

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 43, 38, 32, 7, 9, 50, 28, 8]
STEPS = 16 if DEVICE == "cuda" else 3
CONFIG = replace(tiny_config(num_layers=2 if DEVICE == "cuda" else 1), intermediate_size=64)
WINDOWED = replace(CONFIG, num_layers=2, local_rope=RopeConfig(100.0), windows=(9, None))


@contextmanager
def _on_triton() -> Iterator[set[str]]:
    """Calls go to Triton's kernels; gives the names of those that ran."""
    ran: set[str] = set()
    run: Callable[[Launch], None] = Launch.run

    def spy(launch: Launch) -> None:
        ran.add(launch.kernel.__name__)
        run(launch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "DEVICE", DEVICE)
        patch.setattr(Launch, "run", spy)
        yield ran


def _moved(decoder: Decoder) -> Decoder:
    return Decoder(decoder.config, mapped(decoder.weights, lambda x: x.to(DEVICE) if isinstance(x, Tensor) else None))


@pytest.fixture(params=[CONFIG, WINDOWED], ids=["full", "windowed"])
def engines(request: pytest.FixtureRequest) -> tuple[Engine, Engine]:
    """The same model on the CPU and where Triton runs, in chunks that do not divide the prompt."""
    on_cpu = tiny_decoder(request.param, seed=3)
    return Engine(on_cpu, chunk=17), Engine(_moved(on_cpu), chunk=17, memory_bits=8)


def test_logits_and_greedy_tokens(engines: tuple[Engine, Engine]) -> None:
    on_cpu, on_gpu = engines
    expected = on_cpu.prefill(on_cpu.new_cache(64), PROMPT)
    tokens = list(on_cpu.generate(on_cpu.new_cache(64), PROMPT, max_tokens=STEPS))
    with _on_triton() as ran:
        cache = on_gpu.new_cache(64)
        logits = on_gpu.prefill(cache, PROMPT).cpu()
        assert_close(logits, expected.double(), "logits", 2e-5)
        assert int(logits.argmax()) == tokens[0]
        assert list(on_gpu.generate(cache, tokens[:1], max_tokens=STEPS - 1)) == tokens[1:]
    assert ran >= {"_rms_norm", "_gate", "_rope_qkv", "_attend", "_advance"}


def test_a_reply_ends_on_a_gpu_as_on_a_cpu() -> None:
    """At a token that stops it, at the cache's end, and with nothing chosen twice; the cache is as long."""
    on_cpu = Engine(tiny_decoder(CONFIG, seed=3), chunk=17)
    on_gpu = Engine(_moved(on_cpu.decoder), chunk=17)
    tokens = list(on_cpu.generate(on_cpu.new_cache(64), PROMPT, max_tokens=4))
    with _on_triton():
        cache = on_gpu.new_cache(64)
        assert list(on_gpu.generate(cache, PROMPT, max_tokens=9, stop={tokens[2]})) == tokens[:2]
        assert cache.length == len(PROMPT) + 2
        cache = on_gpu.new_cache(len(PROMPT) + 2)
        reply = on_gpu.generate(cache, PROMPT, max_tokens=9)
        assert [next(reply) for _ in range(3)] == tokens[:3] and cache.length == len(PROMPT) + 2
        with pytest.raises(ValueError, match="do not fit"):
            next(reply)


def test_a_batch_over_one_memory(engines: tuple[Engine, Engine]) -> None:
    on_cpu, on_gpu = engines
    prompts = [[1, 2], [5]]
    memory = on_cpu.new_cache(64)
    on_cpu.prefill(memory, PROMPT)
    expected = on_cpu.generate_batch(memory, prompts, max_tokens=2)
    with _on_triton() as ran:
        memory = on_gpu.new_cache(64)
        on_gpu.prefill(memory, PROMPT)
        assert on_gpu.generate_batch(memory, prompts, max_tokens=2) == expected
    assert "_advance" in ran


def test_a_packed_memory(engines: tuple[Engine, Engine]) -> None:
    """Packed where Triton runs, and read there: as the CPU reads what it packed."""
    on_cpu, on_gpu = engines
    c = on_cpu.config
    keys, values = (random(c.num_layers, c.num_kv_heads, 70, c.head_dim, seed=seed).cpu() for seed in (1, 2))
    ids = [5, 6, 7]
    on_cpu.memory_bits = 8
    memory = on_cpu.new_memory(70, 90)
    memory.append(keys, values)
    expected = on_cpu.decoder.forward(torch.tensor(ids), [Row(on_cpu.new_cache(3), 3)], prefix=memory, logits="all")
    with _on_triton() as ran:
        memory = on_gpu.new_memory(70, 90)
        memory.append(keys.to(DEVICE), values.to(DEVICE))
        rows = [Row(on_gpu.new_cache(3), 3)]
        found = on_gpu.decoder.forward(torch.tensor(ids, device=DEVICE), rows, prefix=memory, logits="all")
    assert_close(found.cpu(), expected.double(), "logits", 3e-3)  # native kernels round queries to 14 bits
    assert ran >= {"_pack", "attend_packed", "_attend"}


def _quantized(x: Tensor | Linear, bits: int) -> Tensor | QuantizedLinear:
    """A tensor moved, a matrix rounded to `bits` bits, in two parts where it has a bias."""
    if isinstance(x, Tensor):
        return x.to(DEVICE)
    top = 2 ** (bits - 1)
    blocks = x.weight.unflatten(1, (-1, 32))
    steps = (blocks.abs().amax(-1) / (top - 1)).half()
    codes = (blocks / steps.float()[..., None]).round().clamp(-top, top - 1).to(torch.int8).flatten(1)
    cut = 50 if x.bias is not None else len(codes)
    parts = zip(codes.to(DEVICE).split(cut), steps.to(DEVICE).split(cut), strict=True)
    bias = None if x.bias is None else x.bias.to(DEVICE)
    return QuantizedLinear([quantized_matrix(*part, bits=bits) for part in parts], bias)


def _dense(x: Any) -> Linear:
    weight = torch.cat([part.widened(torch.float32) for part in x.parts])
    return Linear(weight.cpu(), None if x.bias is None else x.bias.cpu())


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights(bits: int) -> None:
    """Products of few and of many rows with quantized matrices, against the same values dense on the CPU."""
    plain = tiny_decoder(CONFIG, seed=3).weights
    made = mapped(plain, lambda x: _quantized(x, bits))
    layers = tuple(
        replace(layer, **{name: _dense(getattr(other, name)) for name in ("qkv", "out", "gate_up", "down")})
        for layer, other in zip(plain.layers, made.layers, strict=True)
    )
    same = replace(plain, layers=layers, embedding=_dense(made.embedding), head=_dense(made.head))
    on_cpu, on_gpu = (Engine(Decoder(CONFIG, weights), chunk=17) for weights in (same, made))
    expected = on_cpu.prefill(on_cpu.new_cache(64), PROMPT)
    with _on_triton() as ran:
        assert_close(on_gpu.prefill(on_gpu.new_cache(64), PROMPT).cpu(), expected.double(), "logits", 3e-5)
    assert "_linear" in ran


@pytest.mark.parametrize("torch_too", [False, True])
def test_steps_are_recorded(torch_too: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps after the first are the recorded launches where these are all that is computed; the tokens are the same.
    The model is a chain here: a row of a matrix for each token, whose largest number tells the next one."""
    after = [3, 0, 1, 5, 2, 4, 7, 6]
    codes = torch.zeros(8, 32, dtype=torch.int8)
    codes[range(8), after] = 9
    chain = quantized_matrix(codes.to(DEVICE), torch.ones(8, 1, dtype=torch.half, device=DEVICE), bits=8)
    engine = Engine(_moved(tiny_decoder(CONFIG, seed=3)))
    computed, recorded = list[int](), list[int]()
    again = Recording.again

    def step(ids: Tensor, *_: object) -> Tensor:
        computed.append(1)
        logits = widened_rows(chain, ids, torch.float32)
        return logits * 2.0 if torch_too else logits

    def spy(recording: Recording) -> None:
        recorded.append(len(recording))
        again(recording)

    monkeypatch.setattr(engine.decoder, "step", step)
    monkeypatch.setattr(Recording, "again", spy)
    cache = engine.new_cache(32)
    cache.length = 4
    with _on_triton():
        steps = DeviceSteps(engine.decoder, [cache], None)
        assert [token for (token,) in steps.follow([0], 3, engine.alone)] == [3, 5, 4]
    assert steps._places.table[:, 0].tolist() == [7, 7, 8, 7, 0, 0]
    if DEVICE == "cpu":  # a GPU captures a graph of the second
        assert (len(computed), recorded) == ((3, []) if torch_too else (1, [3] * 2))


def test_coded_matrices_of_a_file(tmp_path: Path) -> None:
    """Codes of 4 bits with offsets, of 8 without, and groups that the kernel does not take: those stay dense."""
    codes = torch.arange(4 * 64, dtype=torch.int8).view(4, 64) % 16
    tensors = {
        "a.codes": codes, "a.scales": random(4, 2).cpu(), "a.offsets": random(4, 2, seed=1).cpu(),
        "b.codes": codes * 5 - 30, "b.scales": random(4, 2, seed=2).cpu(),
        "c.codes": codes, "c.scales": random(4, 8, seed=3).cpu(), "d": random(4, 64).cpu(),
        "e.codes": codes, "e.scales": random(4, 4, seed=5).cpu(),
        "f.codes": codes * 2 - 16, "f.scales": random(4, 2, seed=6).cpu(),
    }  # fmt: skip
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    with weights.TensorFiles(tmp_path) as files:
        found = weights._quantized(files, ["a", "b"], DEVICE)
        assert [matrix.bits for matrix in found] == [4, 8]
        for name, matrix in zip("ab", found, strict=True):
            expected = files.matrix(name, torch.float64)
            assert_close(matrix.widened(torch.float32).cpu(), expected, name, 1e-3)  # scales in float16
            wide = matrix.widened(torch.float32)
            assert torch.equal(matrix.rows(torch.tensor([2, 0], device=DEVICE)).widened(torch.float32), wide[[2, 0]])
        assert [(one.bits, one.shape) for one in weights._quantized(files, ["b", "b", "e"], DEVICE)] == [
            (8, (8, 64)), (4, (4, 64)),  # neighbours of one kind are one matrix; groups of 16 keep their bytes
        ]  # fmt: skip
        (one,) = weights._quantized(files, ["b", "f"], DEVICE)  # 8 bits and 5, in groups alike: one launch
        assert one.bits == 8 and one.shape == (8, 64)
        assert_close(one.widened(torch.float32)[4:].cpu(), files.matrix("f", torch.float64), "f", 1e-3)
        assert weights._quantized(files, ["f"], DEVICE)[0].bits == 5
        assert not weights._quantized(files, ["a", "c"], DEVICE) and not weights._quantized(files, ["d"], DEVICE)


def test_half_precision_stays_near(engines: tuple[Engine, Engine]) -> None:
    """bfloat16 as on a GPU against float32 on the CPU, over one chunk."""
    on_cpu, on_gpu = engines
    halved = mapped(on_gpu.decoder.weights, _halved)
    half = Engine(Decoder(on_gpu.config, halved))
    expected = on_cpu.prefill(on_cpu.new_cache(64), PROMPT)
    with _on_triton() as ran:
        found = half.prefill(half.new_cache(64), PROMPT)
    assert ran >= {"_rope_qkv", "_attend"}
    assert_close(found.cpu(), expected.double(), "logits", 0.1)
    assert torch.cosine_similarity(found.cpu(), expected).item() > 0.999


def _halved(x: Any) -> Tensor | Linear:
    if isinstance(x, Tensor):
        return x.to(torch.bfloat16)
    return Linear(x.weight.bfloat16(), None if x.bias is None else x.bias.bfloat16())
