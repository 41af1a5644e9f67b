"""Qwen2.5-0.5B in q4_k_m as an engine on torch's meta device: its shapes and kinds of matrices, without its numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from minimemo.engine.engine import Engine
from minimemo.kernels.formats import QuantizedMatrix
from minimemo.models.config import ModelConfig, RopeConfig
from minimemo.models.decoder import Decoder
from minimemo.models.layers import DecoderWeights, LayerWeights, QuantizedLinear

LAYERS = 24
CONFIG = ModelConfig(
    family="qwen2", vocab_size=151936, hidden_size=896, intermediate_size=4864, num_layers=LAYERS, num_heads=14,
    num_kv_heads=2, head_dim=64, max_context=32768, norm_eps=1e-6, rope=RopeConfig(1_000_000.0), qkv_bias=True,
    tied_head=True,
)  # fmt: skip


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor of this shape, without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def matrix(outputs: int, columns: int, group: int, bits: int = 8, *, offsets: bool = False) -> QuantizedLinear:
    """A quantized matrix, as weights.py makes it."""
    scales = meta(outputs, columns // group, dtype=torch.float16)
    codes = meta(outputs, columns * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8)
    return QuantizedLinear([QuantizedMatrix(bits, codes, scales, scales if offsets else None)], None)


def engine() -> Engine:
    """Q5_0 and Q8_0 in groups of 32; every other `down` Q6_K in groups of 16, the others Q4_K."""
    c, norm = CONFIG, meta(CONFIG.hidden_size)
    width = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    layers = []
    for index in range(LAYERS):
        qkv = QuantizedLinear(matrix(width, c.hidden_size, 32).parts, meta(width))
        out = matrix(c.hidden_size, c.num_heads * c.head_dim, 32)
        gate_up = matrix(2 * c.intermediate_size, c.hidden_size, 32)
        down = (
            matrix(c.hidden_size, c.intermediate_size, 16)
            if index % 2
            else matrix(c.hidden_size, c.intermediate_size, 32, 4, offsets=True)
        )
        layers.append(LayerWeights(norm, qkv, out, norm, gate_up, down))
    words = matrix(c.vocab_size, c.hidden_size, 32)
    return Engine(Decoder(c, DecoderWeights(words, tuple(layers), norm, words)), kv_dtype=torch.bfloat16)
