"""The numeric operations under the engine. Import as `minimemo.kernels`; this folder imports nothing of minimemo.

Every operation has a plain definition in `reference.py` (any dtype, float64 included), which is the truth for the
tests of the others. Letters: H query heads, G kv heads, N query tokens, T key tokens, D head dim.
"""

from __future__ import annotations

from .attention import attend
from .packed import PACK_GROUP, PackedKV, empty_packed
from .packing import pack_into
from .source import PackedSource, Source
from .torch_ops import apply_rope, gated_mlp_activation, rms_norm

__all__ = [
    "PACK_GROUP", "PackedKV", "PackedSource", "Source", "apply_rope", "attend", "empty_packed", "gated_mlp_activation",
    "pack_into", "rms_norm",
]  # fmt: skip
