"""The packed hot cache: integer codes of keys and values, ready for kernels that read them as they are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

PACK_GROUP = 64  # tokens that share a key scale


@dataclass(frozen=True, slots=True)
class PackedKV:
    """Keys and values of whole groups of 64 tokens; T is a multiple of 64, W = D with 8 bits and D / 2 with 4.

    key[t, d] = code * key_scale + key_low, per channel over a group; value[t, d] = code * value_scale + value_low, per
    token. Codes are unsigned. With 4 bits byte i holds dim i in its low half and dim i + D / 2 in its high half.
    """

    bits: int  # 8 or 4
    key_codes: Tensor  # (G, T, W) uint8
    key_scale: Tensor  # (G, T / 64, D) float16
    key_low: Tensor  # (G, T / 64, D) float16
    value_codes: Tensor  # (G, T, W) uint8
    value_scale: Tensor  # (G, T) float16
    value_low: Tensor  # (G, T) float16
