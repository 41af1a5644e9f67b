"""The packed hot cache: integer codes of keys and values, ready for kernels that read them as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import hugepages

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

    def part(self, heads: slice, tokens: int) -> PackedKV:
        """A view of some heads' first `tokens` tokens, whole groups."""
        groups = tokens // PACK_GROUP
        return PackedKV(
            self.bits,
            self.key_codes[heads, :tokens],
            self.key_scale[heads, :groups],
            self.key_low[heads, :groups],
            self.value_codes[heads, :tokens],
            self.value_scale[heads, :tokens],
            self.value_low[heads, :tokens],
        )


def empty_packed(kv_heads: int, tokens: int, dim: int, bits: int, device: torch.device | str) -> PackedKV:
    """Room for `tokens` packed tokens, a multiple of 64, with undefined content."""
    if bits not in (8, 4):
        raise ValueError(f"bits: {bits}, expected 8 or 4")
    if dim % 2 or not 2 <= dim <= 256:
        raise ValueError(f"head dim: {dim}, expected an even number up to 256")
    if tokens % PACK_GROUP:
        raise ValueError(f"tokens: {tokens}, expected a multiple of {PACK_GROUP}")
    on_cpu = torch.device(device).type == "cpu"

    def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        whole = (kv_heads, *shape)
        return hugepages.empty(whole, dtype) if on_cpu else torch.empty(whole, dtype=dtype, device=device)

    groups, width = tokens // PACK_GROUP, dim * bits // 8
    codes = [empty(tokens, width, dtype=torch.uint8) for _ in range(2)]
    return PackedKV(
        bits, codes[0], empty(groups, dim), empty(groups, dim), codes[1], empty(tokens), empty(tokens)
    )  # fmt: skip
