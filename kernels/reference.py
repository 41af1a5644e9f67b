"""This file says what each operation means, written for reading and not for speed. It works in any floating dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .formats import PACK_GROUP, PackedKV, PackedSource, Source


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`elementwise.rms_norm`: arXiv 1910.07467."""
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight


def gated_mlp_activation(gate_up: Tensor, activation: str) -> Tensor:
    """`elementwise.gated_mlp_activation`: arXiv 2002.05202."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return gate / (1 + (-gate).exp()) * up
    if activation == "gelu_tanh":
        return 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up
    raise ValueError(f"activation must be silu or gelu_tanh, got {activation!r}")


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`elementwise.apply_rope`: arXiv 2104.09864."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attention(q: Tensor, sources: Sequence[Source | PackedSource], scale: float) -> tuple[Tensor, Tensor]:
    """`attention.attend` by one softmax over all keys.

    Returns out (H, N, D) and the log-sum-exp of the scores (H, N); a token that sees nothing gives zeros and -inf.
    """
    scores, values = [], []
    token = torch.arange(q.shape[1], device=q.device)[:, None]
    for source in sources:
        pair = unpack_kv(source.packed) if isinstance(source, PackedSource) else (source.keys, source.values)
        k, v = (x.to(q.dtype).repeat_interleave(q.shape[0] // x.shape[0], dim=0) for x in pair)
        key, behind = torch.arange(k.shape[1], device=q.device), token - source.first
        seen = (behind >= 0) & (behind < source.count) & (key >= 0)
        if source.last_seen is not None:
            last = source.last_seen + behind
            seen &= key <= last
            if source.window is not None:
                seen &= key > last - source.window
        scores.append((q @ k.transpose(1, 2) * scale).masked_fill(~seen, float("-inf")))
        values.append(v)
    joined = torch.cat(scores, dim=2)
    lse = torch.logsumexp(joined, dim=2)
    return (joined - lse.nan_to_num(neginf=0.0)[..., None]).exp() @ torch.cat(values, dim=1), lse


def pack_kv(keys: Tensor, values: Tensor, bits: int) -> PackedKV:
    """Packs keys, values (G, T, D), T a multiple of 64, into codes of 8 or 4 bits (PackedKV has the format).

    Scales and lows are rounded to float16 first, codes are computed in float32 against those. Raises ValueError for
    shapes that do not fit, and for values that are not finite or beyond float16.
    """
    if bits not in (8, 4):
        raise ValueError(f"bits must be 8 or 4, got {bits}")
    if keys.dim() != 3 or keys.shape != values.shape or keys.shape[1] % PACK_GROUP or bits * keys.shape[2] % 8:
        raise ValueError(f"pack_kv: keys {tuple(keys.shape)} and values {tuple(values.shape)} are no whole groups")
    for name, x in (("keys", keys), ("values", values)):
        if not bool((x.abs() <= torch.finfo(torch.float16).max).all()):
            raise ValueError(f"pack_kv: {name} hold numbers that are not finite or too large for float16")
    grouped = keys.float().unflatten(1, (-1, PACK_GROUP))
    key_codes, key_scale, key_low = _codes(grouped, 2, bits)
    value_codes, value_scale, value_low = _codes(values.float(), 2, bits)
    return PackedKV(
        bits,
        _pack_bits(key_codes.flatten(1, 2), bits),
        key_scale.squeeze(2),
        key_low.squeeze(2),
        _pack_bits(value_codes, bits),
        value_scale.squeeze(2),
        value_low.squeeze(2),
    )


def unpack_kv(packed: PackedKV) -> tuple[Tensor, Tensor]:
    """Returns keys and values (G, T, D) float32: code * scale + low."""
    key_scale, key_low = (x.float().repeat_interleave(PACK_GROUP, 1) for x in (packed.key_scale, packed.key_low))
    keys = _unpack_bits(packed.key_codes, packed.bits) * key_scale + key_low
    values = _unpack_bits(packed.value_codes, packed.bits) * packed.value_scale.float()[..., None]
    return keys, values + packed.value_low.float()[..., None]


def _codes(x: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns codes uint8, scale and low float16 of what lies along `dim` of x float32."""
    top = 2**bits - 1
    least, most = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    scale, low = ((most - least) / top).half(), least.half()
    codes = ((x - low.float()) / scale.float()).nan_to_num(0.0, 0.0, 0.0).round().clamp(0, top)
    return codes.to(torch.uint8), scale, low


def _pack_bits(codes: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes
    low, high = codes.chunk(2, dim=-1)
    return low | high << 4


def _unpack_bits(codes: Tensor, bits: int) -> Tensor:
    """-> float32 (..., D)."""
    return (codes if bits == 8 else torch.cat((codes & 15, codes >> 4), dim=-1)).float()
