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
    vocab_size=151936, hidden_size=896, intermediate_size=4864, num_layers=LAYERS, num_heads=14,
    num_kv_heads=2, head_dim=64, max_context=32768, norm_eps=1e-6, rope=RopeConfig(1_000_000.0), qkv_bias=True,
    tied_head=False,
)  # fmt: skip


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor of this shape, without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


# Of a GGUF's formats: columns that share a scale, bits a code in the kernels' form, whether groups have an offset, and
# bits a weight in the file.
FORMATS = {
    "Q4_0": (32, 4, False, 4.5), "Q4_K": (32, 4, True, 4.5), "Q5_0": (32, 5, False, 5.5),
    "Q6_K": (16, 6, False, 6.5625), "Q8_0": (32, 8, False, 8.5),
}  # fmt: skip


def matrix(outputs: int, columns: int, name: str, bits: int = 0) -> QuantizedLinear:
    """A matrix that a file has in the format `name`, as weights.py makes it; bits: of a code, where it takes more than
    it needs."""
    group, least, offsets, _ = FORMATS[name]
    part = quantized(outputs, columns, bits or least, group, in_units=name.endswith("K"), offsets=offsets)
    return QuantizedLinear([part], None)


def quantized(
    outputs: int, columns: int, bits: int, group: int, *, in_units: bool, offsets: bool, zero: int = 0
) -> QuantizedMatrix:
    """A matrix as kernels take it, its groups with offsets or without; in_units: scales and offsets as K-quants have
    them, in bytes."""
    unit = meta(outputs, columns // 256, dtype=torch.float16) if in_units else None
    grid = meta(outputs, columns // group, dtype=torch.int8 if in_units else torch.float16)
    codes = meta(outputs, columns if bits == 8 else columns // 2, dtype=torch.int8 if bits == 8 else torch.uint8)
    high = meta(outputs, columns // 32 * (bits - 4), dtype=torch.int32) if bits in (5, 6) else None
    more = (grid, unit) if offsets else (None, None)
    return QuantizedMatrix(bits, codes, grid, more[0], high, zero, unit, more[1])


def engine() -> Engine:
    """The formats of Qwen2.5-0.5B's q4_k_m: mostly Q5_0, since its width does not divide by 256."""
    c, norm = CONFIG, meta(CONFIG.hidden_size)
    width = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    layers = []
    for index in range(LAYERS):  # every other value matrix has 8 bits, and so all that is fused with it
        qkv = QuantizedLinear(matrix(width, c.hidden_size, "Q5_0", 8 if index % 2 else 5).parts, meta(width))
        out = matrix(c.hidden_size, c.num_heads * c.head_dim, "Q5_0")
        gate_up = matrix(2 * c.intermediate_size, c.hidden_size, "Q5_0")
        down = matrix(c.hidden_size, c.intermediate_size, "Q6_K" if index % 2 else "Q4_K")
        layers.append(LayerWeights(norm, qkv, out, norm, gate_up, down))
    embedding, head = (matrix(c.vocab_size, c.hidden_size, name) for name in ("Q5_0", "Q8_0"))
    return Engine(Decoder(c, DecoderWeights(embedding, tuple(layers), norm, head)), kv_dtype=torch.bfloat16)


def bytes_held(name: str) -> tuple[int, int]:
    """Bytes of all matrices of a model in q4_k_m on the device, and in the file: "0.5B" of `engine`, or "7B"."""
    found = _half_billion() if name == "0.5B" else _seven_billion()
    in_file = sum(outputs * columns * FORMATS[form][3] / 8 for outputs, columns, form, _ in found)
    return sum(matrix(*one).nbytes for one in found), round(in_file)


Matrix = tuple[int, int, str, int]  # outputs, columns, format, bits of a code on the device, or 0


def _half_billion() -> list[Matrix]:
    c, found = CONFIG, list[Matrix]()
    hidden, inner, keys = c.hidden_size, c.intermediate_size, c.num_kv_heads * c.head_dim
    for index in range(LAYERS):
        values, bits = ("Q8_0", 8) if index % 2 else ("Q5_0", 0)
        found += [(hidden + keys, hidden, "Q5_0", bits), (keys, hidden, values, 0), (hidden, hidden, "Q5_0", 0)]
        found += [(2 * inner, hidden, "Q5_0", 0), (hidden, inner, "Q6_K" if index % 2 else "Q4_K", 0)]
    return [*found, (c.vocab_size, hidden, "Q5_0", 0), (c.vocab_size, hidden, "Q8_0", 0)]


def _seven_billion() -> list[Matrix]:
    """Qwen2.5-7B's shapes."""
    hidden, inner, keys, words, found = 3584, 18944, 512, 152064, list[Matrix]()
    for index in range(28):
        form = "Q6_K" if index % 2 else "Q4_K"  # of values and `down`
        found += [(2 * hidden + keys + 2 * inner, hidden, "Q4_K", 0), (keys, hidden, form, 0), (hidden, inner, form, 0)]
    return [*found, (words, hidden, "Q4_K", 0), (words, hidden, "Q6_K", 0)]
