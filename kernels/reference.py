"""What each operation means, written for reading and not for speed. Works in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from .packed import PACK_GROUP, PackedKV


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) scaled to unit root mean square, times weight (C,). arXiv 1910.07467."""
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight


def gated_mlp_activation(gate_up: Tensor, activation: str) -> Tensor:
    """gate_up (..., 2I) -> act(gate) * up (..., I); activation "silu" or "gelu_tanh". arXiv 2002.05202."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return gate / (1 + (-gate).exp()) * up
    if activation == "gelu_tanh":
        return 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up
    raise ValueError(f"activation must be silu or gelu_tanh, got {activation!r}")


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (..., N, D) by cos, sin (N, D); dimension i pairs with i + D/2. arXiv 2104.09864."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def inverse_transform(
    codes: Tensor,
    step: float,
    basis: Tensor,
    mean: Tensor,
    layer_scale: Tensor,
    kv_heads: int,
    rotations: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(codes * step @ basis + mean) * layer_scale, rotated -> (L, G, n, D), in basis's dtype.

    codes (n, A), basis (A, L * G * D), mean (L * G * D,), layer_scale (L,); rotations: cos, sin (L, n, D), for keys.
    """
    layers, tokens = layer_scale.shape[0], codes.shape[0]
    x = codes.to(basis.dtype) * step @ basis + mean.to(basis.dtype)
    x = x.view(tokens, layers, kv_heads, -1).permute(1, 2, 0, 3) * layer_scale.to(basis.dtype)[:, None, None, None]
    if rotations is None:
        return x
    return apply_rope(x, *(table.to(basis.dtype)[:, None] for table in rotations))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    query_positions: Tensor | None = None,
    key_start: int = 0,
    window: int | None = None,
    sinks: int = 0,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention with the log-sum-exp of each row.

    q (H, N, D); k, v (G, T, D), key j at position key_start + j. `query_positions` (N,) None: every query sees every
    key; otherwise a query at position p sees keys at positions p - window < j <= p, and those of the first `sinks`
    positions that precede it (arXiv 2309.17453). soft_cap: scores become cap * tanh(score / cap) (arXiv 2408.00118).
    Returns out (H, N, D) and lse (H, N); a query that sees nothing gives zeros and -inf.
    """
    group = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    scores = q @ k.transpose(-1, -2) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if query_positions is not None:
        keys = torch.arange(k.shape[1], device=q.device) + key_start
        seen = keys[None, :] <= query_positions[:, None]
        if window is not None:
            seen &= (keys[None, :] > query_positions[:, None] - window) | (keys[None, :] < sinks)
        scores = scores.masked_fill(~seen, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    return weights @ v, lse


def shared_prefix_attention(
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    row_starts: Tensor,
    tail_lengths: Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks: int = 0,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Each row of a batch over the prefix and its own tail, one row after the other.

    q (H, N, D), row b's queries from row_starts[b] to row_starts[b + 1]; prefix_k, prefix_v (G, T, D) at positions
    0 .. T - 1; tail_k, tail_v (B, G, S, D) at positions T on, of which the first tail_lengths[b] are meaningful and end
    with the keys of row b's queries. Result as in `attention`.
    """
    starts, outs, lses = row_starts.tolist(), [], []
    for row, length in enumerate(tail_lengths.tolist()):
        first, last = starts[row], starts[row + 1]
        end = prefix_k.shape[1] + length
        out, lse = attention(
            q[:, first:last],
            torch.cat((prefix_k, tail_k[row, :, :length]), dim=1),
            torch.cat((prefix_v, tail_v[row, :, :length]), dim=1),
            scale=scale,
            query_positions=torch.arange(end - (last - first), end, device=q.device),
            window=window,
            sinks=sinks,
            soft_cap=soft_cap,
        )
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, dim=1), torch.cat(lses, dim=1)


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets from the two parts. out (H, N, D), lse (H, N).

    The online-softmax identity (arXiv 1805.02867; used for shared prefixes in arXiv 2402.05099).
    """
    lse = torch.logaddexp(lse_a, lse_b)
    safe = lse.nan_to_num(neginf=0.0)
    return out_a * (lse_a - safe).exp()[..., None] + out_b * (lse_b - safe).exp()[..., None], lse


def pack_kv(keys: Tensor, values: Tensor, bits: int) -> PackedKV:
    """keys, values (G, T, D), T a multiple of 64 -> codes of 8 or 4 bits (PackedKV has the format).

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
    """Keys and values (G, T, D) float32: code * scale + low."""
    key_scale, key_low = (x.float().repeat_interleave(PACK_GROUP, 1) for x in (packed.key_scale, packed.key_low))
    keys = _unpack_bits(packed.key_codes, packed.bits) * key_scale + key_low
    values = _unpack_bits(packed.value_codes, packed.bits) * packed.value_scale.float()[..., None]
    return keys, values + packed.value_low.float()[..., None]


def _codes(x: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x float32 -> codes uint8, scale and low float16 of all along `dim`."""
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
