"""The numeric operations under the engine. Import as `minimemo.kernels`; this folder imports nothing of minimemo.

Every operation has a plain definition in `reference.py` (any dtype, float64 included), which is the truth for the
tests of the others. Letters: H query heads, G kv heads, N query tokens, T key tokens, D head dim.
"""

from __future__ import annotations

from .attention import attend
from .source import Source
from .torch_ops import apply_rope, gated_mlp_activation, rms_norm

__all__ = ["Source", "apply_rope", "attend", "gated_mlp_activation", "rms_norm"]
