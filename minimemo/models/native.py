"""A decoder's layers as one native call, where all of them are packed matrices in CPU memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from minimemo.kernels.native.attention import too_wide
from minimemo.kernels.native.stack import MATRICES, NORMS, Stack, StackLayer
from minimemo.models.config import ModelConfig
from minimemo.models.layers import FEW_ROWS, DecoderWeights, PackedLinear


def most_tokens(weights: DecoderWeights) -> int:
    """Says up to how many tokens of a pass the native call serves: few, where many are to be multiplied by torch."""
    matrices = (layer.gate_up for layer in weights.layers)
    widened = any(isinstance(matrix, PackedLinear) and matrix.scratch is not None for matrix in matrices)
    return FEW_ROWS if widened else sys.maxsize


def native_stack(config: ModelConfig, weights: DecoderWeights, rotations: Sequence[int]) -> Stack | None:
    """Builds the native call. rotations: which kind of rotation each layer has. None where a layer has dense matrices,
    or wider heads than the call takes."""
    if too_wide(config.num_heads // config.num_kv_heads, config.head_dim):
        return None
    layers = []
    for layer, window, rotation in zip(weights.layers, config.windows, rotations, strict=True):
        matrices = {name: getattr(layer, name) for name in MATRICES}
        packed = {name: (x.packed, x.bias) for name, x in matrices.items() if isinstance(x, PackedLinear)}
        if len(packed) < len(matrices):
            return None
        layers.append(StackLayer({name: getattr(layer, name) for name in NORMS}, packed, window, rotation))
    return Stack(
        layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        dim=config.head_dim,
        activation=config.activation,
        norm_eps=config.norm_eps,
        scale=config.query_scale,
    )
