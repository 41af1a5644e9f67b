"""The decoder against transformers, family by family, on tiny random weights; and against itself, cut differently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minimemo.engine.cache import KVCache
from minimemo.engine.engine import Engine
from minimemo.errors import ModelError
from minimemo.kernels import native
from minimemo.models.config import ModelConfig, parse_config
from minimemo.models.decoder import Decoder, Row
from minimemo.models.weights import dense_dtype, load_decoder, preferred_dtype

_SIZE: dict[str, Any] = dict(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64, "rope_theta": 10000.0}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
_GEMMA_ROPE = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
               "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
_GEMMA_KINDS = ["sliding_attention", "sliding_attention", "full_attention"]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biased": ("Llama", {"attention_bias": True}),
    "llama-llama3": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": _LINEAR}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": _YARN, "num_key_value_heads": 1}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 6, "layer_types": _GEMMA_KINDS, "query_pre_attn_scalar": 24,
         "rope_parameters": _GEMMA_ROPE, "num_key_value_heads": 1},
    ),
}  # fmt: skip


def _reference(name: str, directory: Path, **more: Any) -> Any:
    """A seeded transformers model of the family, saved into `directory`, with `more` of its configuration. Biases and
    norms are made to matter."""
    import transformers

    kind, extra = FAMILIES[name]
    config = getattr(transformers, f"{kind}Config")(**(_SIZE | extra | more))
    torch.manual_seed(11)
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.3))
    model.save_pretrained(directory)
    return model


def _cache(decoder: Decoder, capacity: int) -> KVCache:
    return Engine(decoder).new_cache(capacity)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Decoder]:
    directory = tmp_path_factory.mktemp(request.param)
    reference = _reference(request.param, directory)
    return reference, load_decoder(directory, dtype=torch.float32)


@pytest.mark.parametrize("family", sorted(FAMILIES), indirect=True)
def test_logits_equal_transformers(family: tuple[Any, Decoder]) -> None:
    reference, decoder = family
    ids = torch.randint(3, 97, (41,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = reference(ids[None]).logits[0]
    whole = decoder.forward(ids, [Row(_cache(decoder, 41), 41)], logits="all")
    assert (whole - expected).abs().max() <= 2e-5 * expected.abs().max()

    cache, pieces, at = _cache(decoder, 41), [], 0
    for size in (1, 17, 5, 2, 1, 1, 14):  # odd chunks, single tokens among them
        pieces.append(decoder.forward(ids[at : at + size], [Row(cache, size)], logits="all"))
        at += size
    assert (torch.cat(pieces) - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("family", sorted(FAMILIES), indirect=True)
def test_rows_over_a_shared_prefix_equal_rows_alone(family: tuple[Any, Decoder]) -> None:
    """Batched rows of different lengths over one memory: the same logits as each sequence on its own."""
    _, decoder = family
    random = torch.Generator().manual_seed(5)
    prefix_ids, tails = torch.randint(3, 97, (23,), generator=random), [
        torch.randint(3, 97, (n,), generator=random) for n in (4, 1, 9)
    ]  # fmt: skip
    memory = _cache(decoder, 30)
    decoder.forward(prefix_ids, [Row(memory, 23)], logits="none")
    before = memory.keys[:, :, :23].clone()
    rows = [Row(_cache(decoder, 12), len(tail)) for tail in tails]
    batch = [decoder.forward(torch.cat(tails), rows, prefix=memory)]
    step = torch.tensor([7, 8, 9])
    batch.append(decoder.forward(step, [Row(row.cache, 1) for row in rows], prefix=memory))
    for index, tail in enumerate(tails):
        cache = _cache(decoder, 40)
        alone = decoder.forward(torch.cat((prefix_ids, tail)), [Row(cache, 23 + len(tail))])
        assert (batch[0][index] - alone[0]).abs().max() <= 2e-5 * alone.abs().max()
        alone = decoder.forward(step[index : index + 1], [Row(cache, 1)])
        assert (batch[1][index] - alone[0]).abs().max() <= 2e-5 * alone.abs().max()
    assert memory.length == 23 and torch.equal(memory.keys[:, :, :23], before)


@pytest.mark.parametrize("family", ["qwen2", "gemma3"], indirect=True)
def test_layers_go_on_from_what_one_of_them_took(family: tuple[Any, Decoder]) -> None:
    """From any layer on, to the same logits; and only the layers from there on see what became of the cache."""
    _, decoder = family
    ids, inputs = torch.arange(3, 40), list[torch.Tensor]()
    cache = _cache(decoder, 40)
    decoder.forward(ids[:30], [Row(cache, 30)], logits="none")
    exact = decoder.forward(ids[30:], [Row(cache, 7)], inputs=inputs, logits="all")
    cache.truncate(30)
    for layer in reversed(range(decoder.config.num_layers)):
        assert torch.allclose(decoder.resume(inputs[layer], layer, cache), exact, atol=1e-5)
        assert cache.length == 30
    cache.values[1, :, :30] += 0.5
    assert torch.allclose(decoder.resume(inputs[2], 2, cache), exact, atol=1e-5)
    changed = decoder.forward(ids[30:], [Row(cache, 7)], logits="all")
    cache.truncate(30)
    for layer in (0, 1):
        assert torch.allclose(decoder.resume(inputs[layer], layer, cache), changed, atol=1e-5)
    assert not torch.allclose(changed, exact, atol=1e-2)


def test_sharded_weights_load_the_same(tmp_path: Path) -> None:
    reference = _reference("qwen2", tmp_path)
    whole = load_decoder(tmp_path, dtype=torch.float32)
    (tmp_path / "model.safetensors").unlink()
    reference.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    shards = load_decoder(tmp_path, dtype=torch.float32)
    assert torch.equal(whole.weights.layers[2].gate_up.weight, shards.weights.layers[2].gate_up.weight)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match="no such file; download the model again"):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; known: llama"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "longrope"}}, "rope scaling 'longrope'"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer, found 0"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers 1099511627776 exceeds 10000"),
        ({"num_key_value_heads": 3}, "4 query heads do not divide into 3 kv heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer type 'chunked_attention'"),
    ],
)
def test_unknown_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_config({"model_type": "llama", **_SIZE, **change})


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        '{"rms_norm_eps": null}',
        '{"head_dim": [8]}',
        '{"head_dim": Infinity}',
        '{"rope_scaling": "linear"}',
        "[" * 100_000,
    ],
)
def test_what_is_no_configuration_is_one_line(tmp_path: Path, content: str) -> None:
    raw = json.dumps({"model_type": "llama", **_SIZE, **json.loads(content)}) if content[0] == "{" else content
    (tmp_path / "config.json").write_text(raw)
    told = r"config\.json: (not a model's configuration|not valid JSON|cannot be read|holds no JSON object)"
    with pytest.raises(ModelError, match=told):
        ModelConfig.from_directory(tmp_path)


def test_a_torch_without_onednn_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: the operator that says whether bfloat16 is quick is not there."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert dense_dtype() == torch.float32


@pytest.mark.parametrize("best, expected", [("portable", None), ("avx2", torch.int8), ("avx512", torch.int8)])
def test_many_rows_are_multiplied_as_bytes_where_there_are_instructions_for_it(
    best: str, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "unavailable", lambda: None)
    monkeypatch.setattr(native, "variants", lambda: ("portable", best))
    assert preferred_dtype() == (expected or dense_dtype())
    monkeypatch.setattr(native, "unavailable", lambda: "no compiler")
    assert preferred_dtype() == dense_dtype()


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    _reference("llama", tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 80', '"intermediate_size": 96'))
    with pytest.raises(ModelError, match=r"layer 0 gate_up has shape \(160, 48\)"):
        load_decoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ModelError, match=r"model\.safetensors: not a whole safetensors file"):
        load_decoder(tmp_path)
