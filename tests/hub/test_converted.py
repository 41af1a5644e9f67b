"""A GGUF file end to end: written with the gguf library as llama.cpp does, converted once, loaded, compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors import SafetensorError

from minimemo.engine.engine import Engine
from minimemo.errors import InputError, ModelError
from minimemo.events import Event
from minimemo.hub.folder import as_directory
from minimemo.kernels import native
from minimemo.models.config import ModelConfig
from minimemo.models.decoder import Decoder, Row
from minimemo.models.fingerprint import decoder_files, fingerprint
from minimemo.models.tokenizer import Tokenizer
from minimemo.models.weights import load_decoder
from tests import tiny_tokenizers
from tests.tiny import CHATML, dense, write_model


def _write_gguf(path: Path, config: ModelConfig, tensors: dict[str, np.ndarray], arch: str, **fields: object) -> None:
    writer = GGUFWriter(str(path), arch)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope.base)
    if fields.get("window"):
        writer.add_sliding_window(int(str(fields["window"])))
    metadata = tiny_tokenizers.byte_level(tokenizer__chat_template=CHATML)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])  # type: ignore[arg-type]
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])  # type: ignore[arg-type]
    writer.add_eos_token_id(int(str(metadata["tokenizer.ggml.eos_token_id"])))
    writer.add_chat_template(CHATML)
    for name, tensor in tensors.items():
        quantized = fields.get("kind") if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 else None
        if isinstance(quantized, GGMLQuantizationType):
            writer.add_tensor(name, quants.quantize(tensor, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to q and k of llama models: the halves of a head's rotary pairs interleaved."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
    )


def _tensors(decoder: Decoder, llama: bool) -> dict[str, np.ndarray]:
    config, weights = decoder.config, decoder.weights
    found = {"token_embd.weight": dense(weights.embedding).weight, "output_norm.weight": weights.norm}
    found["output.weight"] = dense(weights.head).weight
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    sizes = [count * config.head_dim for count in heads.values()]
    for index, layer in enumerate(weights.layers):
        at = f"blk.{index}."
        qkv = dense(layer.qkv)
        assert qkv.bias is not None
        for name, weight, bias in zip("qkv", qkv.weight.split(sizes), qkv.bias.split(sizes), strict=True):
            turned = llama and name != "v"
            found[f"{at}attn_{name}.weight"] = _permuted(weight, heads[name]) if turned else weight
            found[f"{at}attn_{name}.bias"] = _permuted(bias, heads[name]) if turned else bias
        gate, up = dense(layer.gate_up).weight.chunk(2)
        found |= {
            f"{at}attn_output.weight": dense(layer.out).weight, f"{at}ffn_gate.weight": gate, f"{at}ffn_up.weight": up,
            f"{at}ffn_down.weight": dense(layer.down).weight, f"{at}attn_norm.weight": layer.attention_norm,
            f"{at}ffn_norm.weight": layer.mlp_norm,
        }  # fmt: skip
    if llama:  # its config.json has one switch for all biases; ours needs the output's too
        for index in range(config.num_layers):
            found[f"blk.{index}.attn_output.bias"] = torch.zeros(config.hidden_size)
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in found.items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_decoder(write_model(tmp_path_factory.mktemp("original")), dtype=torch.float32)


def _logits(decoder: Decoder) -> torch.Tensor:
    ids = torch.arange(3, 40)
    return decoder.forward(ids, [Row(Engine(decoder).new_cache(37), 37)], logits="all")


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
def test_float32_gguf_gives_the_same_logits(original: Decoder, tmp_path: Path, arch: str) -> None:
    path = tmp_path / "tiny.gguf"
    _write_gguf(path, original.config, _tensors(original, arch == "llama"), arch)
    events: list[Event] = []
    directory = as_directory(path, events.append)
    assert torch.equal(_logits(load_decoder(directory, dtype=torch.float32)), _logits(original))
    assert Tokenizer(directory).has_chat_template
    assert {event.stage for event in events} == {"convert"} and events[-1].done == events[-1].total
    assert as_directory(path, lambda event: pytest.fail("converted twice")) == directory


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_gguf_equals_its_dequantized_values(original: Decoder, tmp_path: Path, kind: str) -> None:
    quantization = GGMLQuantizationType[kind]
    tensors = _tensors(original, llama=False)
    _write_gguf(tmp_path / "coded.gguf", original.config, tensors, "qwen2", kind=quantization)

    def rounding(x: np.ndarray) -> np.ndarray:
        coded = x.ndim == 2 and x.shape[1] % 32 == 0
        return quants.dequantize(quants.quantize(x, quantization), quantization) if coded else x

    rounded = {name: rounding(x) for name, x in tensors.items()}
    _write_gguf(tmp_path / "plain.gguf", original.config, rounded, "qwen2")
    coded, plain = (as_directory(tmp_path / f"{name}.gguf") for name in ("coded", "plain"))
    assert (coded / "model.safetensors").stat().st_size < 0.75 * (plain / "model.safetensors").stat().st_size
    assert torch.equal(
        _logits(load_decoder(coded, dtype=torch.float32, packed=False)),
        _logits(load_decoder(plain, dtype=torch.float32, packed=False)),
    )


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_packed_products_give_nearly_the_dense_logits(original: Decoder, tmp_path: Path, kind: str) -> None:
    """Few rows take the native product, many the widened matrix; activations are rounded to 14 bits in the former."""
    path = tmp_path / "coded.gguf"
    _write_gguf(path, original.config, _tensors(original, llama=False), "qwen2", kind=GGMLQuantizationType[kind])
    pair = [load_decoder(as_directory(path), dtype=torch.float32, packed=packed) for packed in (True, False)]
    caches = [Engine(decoder).new_cache(48) for decoder in pair]
    ids = torch.arange(3, 40)
    for part in (ids, ids[:1], ids[5:14]):
        found, expected = (
            decoder.forward(part, [Row(cache, len(part))], logits="all")
            for decoder, cache in zip(pair, caches, strict=True)
        )
        assert 0 <= float((found - expected).abs().max() / expected.abs().max()) < 1e-3


def test_what_a_killed_conversion_left_is_swept_and_a_full_disk_is_one_line(
    tmp_path: Path, original: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    _write_gguf(path, original.config, _tensors(original, llama=False), "qwen2")
    done = as_directory(path)
    shutil.rmtree(done)
    left, others = (done.parent / f".converting-{name}-x" for name in (done.name, "other"))
    left.mkdir()
    others.mkdir()

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched, pytest.raises(ModelError, match=r"cannot be written .*No space.* make room"):
        patched.setattr("minimemo.hub.gguf.save_file", full)
        as_directory(path)
    assert not left.exists() and others.exists() and not done.exists()
    others.rmdir()
    assert as_directory(path) == done


def test_what_is_no_gguf_is_one_line(tmp_path: Path, original: Decoder) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match=r"bad\.gguf: not a readable GGUF file"):
        as_directory(path)
    with pytest.raises(InputError, match=r"missing\.gguf"):
        as_directory(tmp_path / "missing.gguf")
    _write_gguf(path, original.config, {"strange.weight": np.zeros((2, 2), np.float32)}, "qwen2")
    with pytest.raises(ModelError, match=r"tensor strange\.weight is not known"):
        as_directory(path)
    _write_gguf(path, original.config, {"token_embd.weight": np.zeros((2, 2), np.float32)}, "mamba")
    with pytest.raises(ModelError, match=r"architecture 'mamba' is not supported; known: llama"):
        as_directory(path)


def test_fingerprints_cover_weights_tokenizer_and_configuration(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "a")
    first = fingerprint(decoder_files(directory))
    assert fingerprint(decoder_files(write_model(tmp_path / "b"))) == first
    assert fingerprint(decoder_files(directory), "settings") != first
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content + b" ")
        assert fingerprint(decoder_files(directory)) != first, name
        (directory / name).write_bytes(content)
    assert fingerprint(decoder_files(directory)) == first
