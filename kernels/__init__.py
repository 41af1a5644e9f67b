"""The numeric operations under the engine. Import as `minimemo.kernels`; this folder imports nothing of minimemo.

Every operation has a plain definition in tests/kernels/reference.py, which its kernels are tested against.
Names are loaded when first used: the native library can be looked at without torch.
Letters: H query heads, G kv heads, N query tokens, T key tokens, D head dim.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_NAMES = {
    "attention": "attend",
    "elementwise": "apply_rope gated_mlp_activation rms_norm rope_qkv rope_rows rope_store",
    "formats": "PACK_GROUP PackedKV PackedSource QuantizedMatrix Rows Source empty_packed",
    "linear": "finish_product quantized_linear widened_rows",
    "pack": "pack_into",
    "transform": "Basis",
}


if not TYPE_CHECKING:  # to a type checker the names above are all there are

    def __getattr__(name: str) -> object:
        home = next((home for home, names in _NAMES.items() if name in names.split()), None)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f".{home}", __name__), name)
        return value
