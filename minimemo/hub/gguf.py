"""GGUF -> a directory in Hugging Face layout, once; from then on that directory is memory-mapped.

Quantized matrices keep their integer codes: value = code * scale + offset with one scale (and offset) a group of 16 or
32 columns. This is exact for the formats below and a quarter of float32's size. Stored as `NAME.codes` int8 (out, in),
`NAME.scales` and, where the format has one, `NAME.offsets` float32 (out, in / group).
Block layouts: ggml's ggml-common.h. Formats not listed are dequantized by the `gguf` library and kept as float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file

from minimemo.errors import ModelError
from minimemo.events import Event, Listener, silent
from minimemo.hub.gguf_file import Tensor, read
from minimemo.hub.gguf_tokenizer import from_gguf
from minimemo.models.config import parse_config

Bytes = NDArray[np.uint8]
_FAMILIES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class Codes(NamedTuple):
    """codes (rows, columns) int8; scales and offsets (rows, columns / group) float32."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32] | None


def convert(path: Path, directory: Path, on_event: Listener = silent) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into `directory`. Raises ModelError."""
    on_event(Event("convert", 0, 0, "tensors"))
    metadata, tensors = read(path)
    config = _config(metadata, {tensor.name: tensor.shape for tensor in tensors}, path)
    arch = metadata["general.architecture"]
    arrays: dict[str, NDArray[Any]] = {}
    for done, tensor in enumerate(tensors):
        on_event(Event("convert", done, len(tensors), "tensors"))
        if tensor.name == "rope_freqs.weight":
            config["rope_scaling"] = {"rope_type": "factors", "factors": _dense(tensor, path).ravel().tolist()}
            continue
        name = _name(tensor.name, arch, path)
        paired = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        heads = paired.get(name.split(".")[-2], 0) if arch in ("llama", "mistral") else 0
        if heads and tensor.shape[-1] % (2 * heads):
            raise ModelError(f"{path}: tensor {tensor.name} of shape {tensor.shape} does not divide into {heads} heads")
        for suffix, array in _arrays(tensor, path).items():
            arrays[name + suffix] = np.ascontiguousarray(_unpermute(array, heads) if heads else array)
    last = f"model.layers.{config['num_hidden_layers'] - 1}.input_layernorm.weight"
    if last not in arrays:
        raise ModelError(f"{path}: {config['num_hidden_layers']} layers by its metadata, but {last} is missing")
    parse_config(config, str(path))
    save_file(arrays, str(directory / "model.safetensors"))
    from_gguf(metadata, str(path)).save(directory)
    (directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    on_event(Event("convert", len(tensors), len(tensors), "tensors"))


def _config(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """GGUF metadata -> the fields of a Hugging Face config.json. `shapes` are ggml's: columns first."""
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in _FAMILIES:
        raise ModelError(f"{path}: architecture {arch!r} is not supported; known: {', '.join(_FAMILIES)}")

    def get(key: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
        value = metadata.get(f"{arch}.{key}", default)
        malformed = isinstance(value, bool) or not isinstance(value, kinds)
        if malformed or value <= 0:
            raise ModelError(f"{path}: metadata {arch}.{key} is missing or malformed; get another copy of the file")
        return value

    number = (int, float)
    heads, hidden = get("attention.head_count", int), get("embedding_length", int)
    layers = get("block_count", int)
    config: dict[str, Any] = {
        "model_type": _FAMILIES[arch],
        "vocab_size": shapes["token_embd.weight"][-1] if "token_embd.weight" in shapes else 0,
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length", int),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", int, heads),
        "head_dim": get("attention.key_length", int, max(1, hidden // heads)),
        "max_position_embeddings": get("context_length", int),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", number),
        "rope_theta": get("rope.freq_base", number, 10_000.0),
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    scaling = metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        config["rope_scaling"] = {"rope_type": scaling, "factor": get("rope.scaling.factor", number)}
        if f"{arch}.rope.scaling.original_context_length" in metadata:
            original = get("rope.scaling.original_context_length", int)
            config["rope_scaling"]["original_max_position_embeddings"] = original
    if arch == "gemma3":
        # Norm weights are stored with the +1 already in; 27B scales queries by C/H instead of D (llama.cpp's rule).
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": get("attention.sliding_window", int),
            "query_pre_attn_scalar": hidden // heads if layers == 62 else config["head_dim"],
            "minimemo_norm_offset": 0.0,
        }
    elif metadata.get(f"{arch}.attention.sliding_window"):
        config["sliding_window"] = get("attention.sliding_window", int)
        config["use_sliding_window"] = True
        if arch == "llama":
            config["model_type"] = "mistral"
    if arch in ("llama", "mistral"):
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    return config


def _name(name: str, arch: str, path: Path) -> str:
    """ggml's tensor name -> Hugging Face's."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _LAYER_NAMES:
        stem = _LAYER_NAMES[parts[2]]
        if arch == "gemma3" and parts[2] == "ffn_norm":
            stem = "pre_feedforward_layernorm"
        return f"model.layers.{parts[1]}.{stem}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _TOP_NAMES:
        return f"{_TOP_NAMES[parts[0]]}.{parts[1]}"
    raise ModelError(f"{path}: tensor {name} is not known to the {arch} family")


def _unpermute(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """llama's GGUF interleaves the two halves of each head's rotary pairs; this puts the halves back apart."""
    shape = rows.shape
    return rows.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _arrays(tensor: Tensor, path: Path) -> dict[str, NDArray[Any]]:
    """A GGUF tensor -> the arrays stored for it, by name suffix."""
    if tensor.kind not in _UNPACK:
        return {"": _dense(tensor, path)}
    block_bytes, unpack = _UNPACK[tensor.kind]
    parts = unpack(tensor.data.reshape(-1, block_bytes))
    arrays: list[tuple[str, NDArray[Any] | None]]
    arrays = [(".codes", parts.codes), (".scales", parts.scales), (".offsets", parts.offsets)]
    return {suffix: part.reshape(len(tensor.data), -1) for suffix, part in arrays if part is not None}


def _dense(tensor: Tensor, path: Path) -> NDArray[np.float32]:
    """float32, in the order of shape that torch has: rows first."""
    try:
        values = dequantize(tensor.data, GGMLQuantizationType[tensor.kind])
    except NotImplementedError:
        raise ModelError(f"{path}: tensor {tensor.name} is stored as {tensor.kind}, which is not supported") from None
    return values.astype(np.float32).reshape(tensor.shape[::-1])


# Blocks (n, bytes) -> codes. A "half" is float16 in two bytes.


def _half(blocks: Bytes, at: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)  # (n, 1)


def _nibbles(packed: Bytes) -> Bytes:
    """(..., b) -> (..., 2b): all low nibbles, then all high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """32 bits at `at` -> (n, 32), each 0 or 16."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") * np.uint8(16)


def _q4_0(b: Bytes) -> Codes:
    return Codes(_nibbles(b[:, 2:]).view(np.int8) - 8, _half(b, 0), None)


def _q4_1(b: Bytes) -> Codes:
    return Codes(_nibbles(b[:, 4:]).view(np.int8), _half(b, 0), _half(b, 2))


def _q5_0(b: Bytes) -> Codes:
    return Codes((_nibbles(b[:, 6:]) | _fifth_bits(b, 2)).view(np.int8) - 16, _half(b, 0), None)


def _q5_1(b: Bytes) -> Codes:
    return Codes((_nibbles(b[:, 8:]) | _fifth_bits(b, 4)).view(np.int8), _half(b, 0), _half(b, 2))


def _q8_0(b: Bytes) -> Codes:
    return Codes(b[:, 2:].view(np.int8), _half(b, 0), None)


def _k_scales(b: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The 6-bit scales and minima of a 256-column block, 12 bytes from byte 4: two (n, 8)."""
    low, mid, high = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = np.concatenate((low & 63, (high & 15) | (low >> 6 << 4)), axis=1)
    minima = np.concatenate((mid & 63, (high >> 4) | (mid >> 6 << 4)), axis=1)
    return _half(b, 0) * scales, -(_half(b, 2) * minima)


def _q4_k(b: Bytes) -> Codes:
    scales, offsets = _k_scales(b)
    return Codes(_nibbles(b[:, 16:].reshape(-1, 4, 32)).view(np.int8), scales, offsets)


def _q5_k(b: Bytes) -> Codes:
    scales, offsets = _k_scales(b)
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = (b[:, None, 16:48] >> shifts & 1) << 4  # (n, 8, 32)
    return Codes((_nibbles(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | fifth).view(np.int8), scales, offsets)


def _q6_k(b: Bytes) -> Codes:
    low = _nibbles(b[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    high = (b[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3) << 4  # (n, 2, 4, 32)
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return Codes((low | high).view(np.int8) - 32, _half(b, 208) * scales, None)


_UNPACK: dict[str, tuple[int, Callable[[Bytes], Codes]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
