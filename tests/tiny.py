"""Tiny seeded models that tests make for themselves: no download, the same weights on every run."""

from __future__ import annotations

import torch

from minimemo.engine.engine import Engine
from minimemo.models.config import ModelConfig, RopeConfig
from minimemo.models.decoder import Decoder, DecoderWeights, LayerWeights, Linear


def tiny_config(vocab_size: int = 64, num_layers: int = 2, max_context: int = 4096) -> ModelConfig:
    """A Qwen2-like blueprint: 4 query heads on 2 kv heads of 16."""
    return ModelConfig(
        family="qwen2", vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_layers=num_layers,
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
    return Decoder(c, DecoderWeights(embedding, layers, 1 + tensor(c.hidden_size, scale=0.1), head))


def tiny_engine(seed: int = 0, chunk: int = 512, max_context: int = 4096) -> Engine:
    return Engine(tiny_decoder(tiny_config(max_context=max_context), seed), chunk=chunk)
