"""What rounding costs on real weights (`make test-real`): weights, activations, caches, against float32 torch products.

The reference multiplies the dequantized weights of the GGUF file in float32, layer by layer on torch alone, keys and
values in float32. w8: those weights rounded again to 8 bits, symmetric, a scale for 32 columns, all matrices. w4: the
file's own Q4_K_M grid (4 bits a weight with a scale and an offset for 32 columns, the more sensitive matrices at 5 to
8), which is kept as it is, so that what is measured there is what activations and caches lose.
"""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from torch import Tensor

import minimemo
from minimemo import RunOptions
from minimemo.engine.engine import Engine
from minimemo.kernels import attention, native
from minimemo.models.decoder import Decoder, Row
from minimemo.models.layers import Linear, PackedLinear, Projection
from minimemo.models.weights import load_decoder
from minimemo.runtime import LanguageModel
from tests.real.test_real import DATA, PROMPTS

pytestmark = [pytest.mark.real, pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))]
NAME = "qwen2.5-coder-0.5b"
DOCUMENTS = ("xquad_en", "cmrc_60k", "contract_04", "novel_emma")
BEFORE, DECODED = 256, 96  # tokens of each document that are prefilled, and decoded one by one
MEMORY = 2048  # tokens of a memory that is packed


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return minimemo.load_model(NAME)


@pytest.fixture(scope="module")
def plain(model: LanguageModel) -> Decoder:
    return load_decoder(model.located.directory, dtype=torch.float32, packed=False)


@pytest.fixture(scope="module")
def texts(model: LanguageModel) -> list[list[int]]:
    paths = [DATA / "docs" / f"{name}.txt" for name in DOCUMENTS]
    if not all(path.exists() for path in paths):
        pytest.skip("../shared/data is not here")
    return [model.tokenizer.encode(path.read_text(encoding="utf-8")[: 8 * MEMORY]) for path in paths]


def _reference(plain: Decoder, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Logits (N, V) of all tokens, on torch alone."""
    with monkeypatch.context() as patch:
        patch.setattr(attention, "CANDIDATES", attention.CANDIDATES[-1:])
        rows = [Row(Engine(plain).new_cache(len(ids)), len(ids))]
        return plain.forward(torch.tensor(ids), rows, logits="all")


def _decode(engine: Engine, ids: list[int], count: int) -> Tensor:
    """Logits (count, V) of the last `count` tokens, put through one by one; those before them prefilled."""
    cache = engine.new_cache(len(ids))
    engine.prefill(cache, ids[:-count])
    return torch.cat([engine.decoder.forward(torch.tensor([token]), [Row(cache, 1)]) for token in ids[-count:]])


def _divergence(found: Tensor, expected: Tensor) -> float:
    """Mean KL of a token, in nats."""
    found, expected = (x.double().log_softmax(-1) for x in (found, expected))
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def _rounded(matrix: Projection) -> PackedLinear:
    """To 8 bits."""
    assert isinstance(matrix, Linear)
    codes, scales = [], []
    for rows in matrix.weight.float().split(8192):
        blocks = rows.unflatten(1, (-1, 32))
        step = blocks.abs().amax(-1).clamp_min(1e-12) / 127
        codes.append((blocks / step[..., None]).round().to(torch.int8).flatten(1))
        scales.append(step)
    return PackedLinear([native.pack_weights(torch.cat(codes), torch.cat(scales))], matrix.bias, None)


def _in_8_bits(plain: Decoder) -> Decoder:
    weights = plain.weights
    head = _rounded(weights.head)
    embedding = head if weights.head is weights.embedding else _rounded(weights.embedding)
    layers = tuple(
        dataclasses.replace(
            layer, **{name: _rounded(getattr(layer, name)) for name in ("qkv", "out", "gate_up", "down")}
        )
        for layer in weights.layers
    )
    return Decoder(plain.config, dataclasses.replace(weights, layers=layers, embedding=embedding, head=head))


@pytest.mark.parametrize("options", [RunOptions(), RunOptions(kv_dtype="float32"), RunOptions(dtype="float32")])
def test_greedy_text_is_that_of_float32(
    options: RunOptions, model: LanguageModel, plain: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 tokens of 8 of ten prompts, five in Chinese, from packed weights: default options (a bfloat16 cache where the
    hardware multiplies it), a float32 cache, and prompts put through float32 products too. What differs are choices
    between two tokens whose logits lie within a few hundredths of each other.
    """
    engine, tokenizer, same = minimemo.load_model(model.located, options).engine, model.tokenizer, []
    opening, closing = tokenizer.turn(None)
    for prompt in PROMPTS:
        ids = opening + tokenizer.encode(prompt) + closing
        cache = engine.new_cache(len(ids) + 128)
        ours = list(engine.generate(cache, ids, max_tokens=128, stop=tokenizer.stop_ids))
        # By induction: given the same tokens so far, the reference chooses the same next one, or stops.
        choices = _reference(plain, ids + ours, monkeypatch)[len(ids) - 1 :].argmax(-1).tolist()
        common = next((i for i, (a, b) in enumerate(zip(choices, ours, strict=False)) if a != b), len(ours))
        same.append(common == len(ours) and (len(ours) == 128 or choices[len(ours)] in tokenizer.stop_ids))
        print(f"{prompt!r}: {common} of {len(ours)} tokens")
    assert sum(same) >= 8, same


@pytest.mark.parametrize(("weights", "bar"), [("w8", 0.005), ("w4", 0.02)])
def test_divergence_of_decoding(
    weights: str,
    bar: float,
    model: LanguageModel,
    plain: Decoder,
    texts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """KL per token of one-row steps, in the mean of each document."""
    engine = model.engine
    if weights == "w8":
        engine = Engine(_in_8_bits(plain), kv_dtype=model.engine.kv_dtype)
    for name, text in zip(DOCUMENTS, texts, strict=True):
        ids = text[: BEFORE + DECODED]
        found = _divergence(_decode(engine, ids, DECODED), _reference(plain, ids, monkeypatch)[-DECODED:])
        print(f"{weights} {name}: KL {found:.2e}")
        assert found <= bar, name
    gc.collect()


@pytest.mark.parametrize(("bits", "bar"), [(8, 0.001), (4, 0.03)])
def test_divergence_over_a_packed_memory(bits: int, bar: float, model: LanguageModel, texts: list[list[int]]) -> None:
    """KL per token of 96 tokens decoded over a packed memory of 2,048, against the dense one that it came from."""
    packing = Engine(model.engine.decoder, kv_dtype=model.engine.kv_dtype, memory_bits=bits)
    for name, text in zip(DOCUMENTS, texts, strict=True):
        dense, logits = model.engine.new_cache(MEMORY + DECODED), []
        model.engine.prefill(dense, text[:MEMORY])
        packed = packing.new_memory(MEMORY, MEMORY + DECODED)
        packed.append(dense.keys[:, :, :MEMORY], dense.values[:, :, :MEMORY])
        for cache in (packed, dense):
            steps = text[MEMORY : MEMORY + DECODED]
            decoder = packing.decoder
            logits.append(torch.cat([decoder.forward(torch.tensor([token]), [Row(cache, 1)]) for token in steps]))
        found = _divergence(*logits)
        print(f"{bits} bits {name}: KL {found:.2e}")
        assert found <= bar, name
