"""Tiny seeded models that tests make for themselves: no download, the same weights on every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file

from minimemo.engine.engine import Engine
from minimemo.hub.gguf_tokenizer import from_gguf
from minimemo.models.config import ModelConfig, RopeConfig
from minimemo.models.decoder import Decoder
from minimemo.models.layers import DecoderWeights, LayerWeights, Linear, Projection
from tests import tiny_tokenizers


def tiny_config(vocab_size: int = 64, num_layers: int = 2, max_context: int = 4096) -> ModelConfig:
    """A Qwen2-like blueprint: 4 query heads on 2 kv heads of 16."""
    return ModelConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_layers=num_layers,
        num_heads=4, num_kv_heads=2, head_dim=16, max_context=max_context, norm_eps=1e-6, rope=RopeConfig(10_000.0),
        qkv_bias=True, tied_head=False,
    )  # fmt: skip


def tiny_decoder(config: ModelConfig | None = None, seed: int = 0) -> Decoder:
    """Random float32 weights, spread so that attention and logits are far from uniform."""
    c = config or tiny_config()
    random = torch.Generator().manual_seed(seed)

    def tensor(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=random) * scale

    qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    layers = tuple(
        LayerWeights(
            attention_norm=1 + tensor(c.hidden_size, scale=0.1),
            qkv=Linear(tensor(qkv, c.hidden_size, scale=0.3), tensor(qkv, scale=0.3)),
            out=Linear(tensor(c.hidden_size, c.num_heads * c.head_dim, scale=0.2)),
            mlp_norm=1 + tensor(c.hidden_size, scale=0.1),
            gate_up=Linear(tensor(2 * c.intermediate_size, c.hidden_size, scale=0.2)),
            down=Linear(tensor(c.hidden_size, c.intermediate_size, scale=0.2)),
        )
        for _ in range(c.num_layers)
    )
    embedding, head = tensor(c.vocab_size, c.hidden_size), tensor(c.vocab_size, c.hidden_size)
    return Decoder(c, DecoderWeights(Linear(embedding), layers, 1 + tensor(c.hidden_size, scale=0.1), Linear(head)))


def dense(projection: Projection) -> Linear:
    assert isinstance(projection, Linear)
    return projection


def tiny_engine(seed: int = 0, chunk: int = 512, max_context: int = 4096) -> Engine:
    return Engine(tiny_decoder(tiny_config(max_context=max_context), seed), chunk=chunk)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(directory: Path, *, max_context: int = 6144, seed: int = 0) -> Path:
    """A tiny Qwen2-like model in Hugging Face layout, with a byte-level tokenizer and a chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    metadata = tiny_tokenizers.byte_level(tokenizer__chat_template=CHATML)
    from_gguf(metadata).save(directory)
    config = tiny_config(vocab_size=len(cast(list[str], metadata["tokenizer.ggml.tokens"])), max_context=max_context)
    weights = tiny_decoder(config, seed).weights
    tensors = {
        "model.embed_tokens.weight": dense(weights.embedding).weight,
        "model.norm.weight": weights.norm,
        "lm_head.weight": dense(weights.head).weight,
    }
    sizes = [config.num_heads * config.head_dim] + [config.num_kv_heads * config.head_dim] * 2
    for index, layer in enumerate(weights.layers):
        at = f"model.layers.{index}."
        qkv = dense(layer.qkv)
        assert qkv.bias is not None
        parts = zip("qkv", qkv.weight.split(sizes), qkv.bias.split(sizes), strict=True)
        for name, weight, bias in parts:
            tensors[f"{at}self_attn.{name}_proj.weight"] = weight
            tensors[f"{at}self_attn.{name}_proj.bias"] = bias
        gate, up = dense(layer.gate_up).weight.chunk(2)
        tensors |= {
            f"{at}self_attn.o_proj.weight": dense(layer.out).weight,
            f"{at}mlp.gate_proj.weight": gate,
            f"{at}mlp.up_proj.weight": up,
            f"{at}mlp.down_proj.weight": dense(layer.down).weight,
            f"{at}input_layernorm.weight": layer.attention_norm,
            f"{at}post_attention_layernorm.weight": layer.mlp_norm,
        }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    fields = {
        "model_type": "qwen2", "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "max_position_embeddings": max_context, "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": False, "rope_theta": 10000.0,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def write_embedder(directory: Path, *, seed: int = 0) -> Path:
    """A tiny BERT in sentence-transformers layout: 64 tokens at most, mean pooling, prompts like e5's."""
    directory.mkdir(parents=True, exist_ok=True)
    metadata = tiny_tokenizers.byte_level(tokenizer__chat_template=CHATML)
    from_gguf(metadata).save(directory)
    width, middle, vocab = 24, 40, len(cast(list[str], metadata["tokenizer.ggml.tokens"]))
    random = torch.Generator().manual_seed(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (vocab, width), "embeddings.position_embeddings.weight": (64, width),
        "embeddings.token_type_embeddings.weight": (2, width), "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }  # fmt: skip
    at = "encoder.layer.0."
    for name, (rows, columns) in {
        "attention.self.query": (width, width), "attention.self.key": (width, width),
        "attention.self.value": (width, width), "attention.output.dense": (width, width),
        "intermediate.dense": (middle, width), "output.dense": (width, middle),
    }.items():  # fmt: skip
        shapes |= {f"{at}{name}.weight": (rows, columns), f"{at}{name}.bias": (rows,)}
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes |= {f"{at}{name}.weight": (width,), f"{at}{name}.bias": (width,)}
    save_file({n: torch.randn(s, generator=random) * 0.5 for n, s in shapes.items()}, directory / "model.safetensors")
    files = {
        "config.json": {
            "model_type": "bert", "vocab_size": vocab, "hidden_size": width, "intermediate_size": middle,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12, "pad_token_id": 0, "hidden_act": "gelu",
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_N", "Normalize")))
        ],
        "config_sentence_transformers.json": {"prompts": {"query": "user: ", "document": "model: "}},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
    }  # fmt: skip
    (directory / "1_Pooling").mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that each token is multiplied with, the output head included."""
    qkv = config.hidden_size * (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    out = config.num_heads * config.head_dim * config.hidden_size
    mlp = 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * (qkv + out + mlp) + config.vocab_size * config.hidden_size


def kv_bytes_per_token(config: ModelConfig, element_bytes: int = 2) -> int:
    """Bytes of keys and values that a token takes over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * element_bytes
