"""The numeric operations under the engine. Import as `minimemo.kernels`; this folder imports nothing of minimemo.

Every operation has a plain definition in tests/kernels/reference.py, which its kernels are tested against.
Letters: H query heads, G kv heads, N query tokens, T key tokens, D head dim.
"""

from __future__ import annotations

from .attention import attend
from .elementwise import apply_rope, gated_mlp_activation, rms_norm, rope_qkv, rope_rows, rope_store
from .formats import PACK_GROUP, PackedKV, PackedSource, QuantizedMatrix, Rows, Source, empty_packed
from .linear import finish_product, quantized_linear, widened_rows
from .pack import pack_into
from .transform import Basis

__all__ = [
    "PACK_GROUP", "Basis", "PackedKV", "PackedSource", "QuantizedMatrix", "Rows", "Source", "apply_rope",
    "attend", "empty_packed", "finish_product", "gated_mlp_activation", "pack_into", "quantized_linear", "rms_norm",
    "rope_qkv", "rope_rows", "rope_store", "widened_rows",
]  # fmt: skip
