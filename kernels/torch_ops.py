"""These operations run on plain torch: right on every device, and the quick path on a CPU without native kernels.

Attention runs on torch's CPU flash kernel, which returns the log-sum-exp that merging needs. Query heads that share
a kv head are folded into rows, so that keys are read once a group: 24x quicker at decode than expanding them.
A causal chunk is the unmasked past merged with the causal square of the chunk itself, so no (N, T) mask is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import PACK_GROUP, PackedKV, PackedSource, Source

_NEVER = float("-inf")


def gated_mlp_activation(gate_up: Tensor, activation: str) -> Tensor:
    """As `elementwise.gated_mlp_activation`."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate).mul_(up)
    if activation == "gelu_tanh":
        return F.gelu(gate, approximate="tanh").mul_(up)
    raise ValueError(f"activation must be silu or gelu_tanh, got {activation!r}")


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `elementwise.apply_rope`."""
    half = x.shape[-1] // 2
    wide = x.to(torch.float32)
    rotated = wide * cos
    rotated[..., :half] -= wide[..., half:] * sin[..., :half]
    rotated[..., half:] += wide[..., :half] * sin[..., half:]
    return rotated.to(x.dtype)


def attention(q: Tensor, sources: Sequence[Source | PackedSource], scale: float) -> Tensor:
    """Attends source by source, merged by log-sum-exp (arXiv 2402.05099) where several reach a token.

    Each is computed in the dtype of its keys, packed ones in q's. Without a window, the last token of a source with
    last_seen must sit at its last key (a causal chunk). Raises ValueError for what does not fit together.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = q.new_zeros(q.shape), q.new_full(q.shape[:2], _NEVER, dtype=wide)
    for source in sources:
        span = slice(source.first, source.first + source.count)
        if isinstance(source, PackedSource):
            k, v = (x.to(q.dtype) for x in unpack_kv(source.packed))
        else:
            k, v = source.keys, source.values
        part, part_lse = _attention(q[:, span].to(k.dtype), k, v, scale, source.last_seen, source.window)
        part = part.to(q.dtype)
        if len(sources) == 1 and source.count == q.shape[1]:
            return part
        out[:, span], lse[:, span] = _merge(out[:, span], lse[:, span], part, part_lse)
    return out


def _attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, last_seen: int | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Attends to one source: out (H, N, D), log-sum-exp of the scores (H, N)."""
    heads, rows, dim = q.shape
    kv_heads, tokens, _ = k.shape
    if k.shape != v.shape or k.shape[2] != dim or heads % kv_heads:
        raise ValueError(f"attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit")
    if k.dtype != v.dtype:
        raise ValueError(f"attention: dtypes differ: k {k.dtype}, v {v.dtype}")
    if last_seen is None:
        return _unmasked(q, k, v, scale)
    if window is not None:
        return _windowed(q, k, v, scale, last_seen, window)
    past = tokens - rows
    if past < 0 or last_seen != past:
        raise ValueError(f"attention: {rows} queries from key {last_seen} on do not end at the last of {tokens} keys")
    if rows == 1:
        return _unmasked(q, k, v, scale)
    chunk = _square(q, k[:, past:], v[:, past:], scale)
    return chunk if past == 0 else _merge(*_unmasked(q, k[:, :past], v[:, :past], scale), *chunk)


def _merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Joins attention over two disjoint key sets: the online-softmax identity (arXiv 1805.02867)."""
    lse = torch.logaddexp(lse_a, lse_b)
    safe = lse.masked_fill(lse == _NEVER, 0.0)
    weight_a, weight_b = (lse_a - safe).exp_().unsqueeze(-1), (lse_b - safe).exp_().unsqueeze(-1)
    return (out_a * weight_a).add_(out_b * weight_b).to(out_a.dtype), lse


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attends from q (B, N, D) to k, v (B, T, D) -> out (B, N, D), lse (B, N) float32; B heads of one kind."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None], k[None], v[None], 0.0, causal, scale=scale
        )
        return out[0], lse[0]
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(hidden, _NEVER)
    lse = torch.logsumexp(scores, dim=-1)
    return (scores - lse[..., None]).exp().to(v.dtype) @ v, lse


def _unmasked(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    heads, rows, dim = q.shape
    if k.shape[1] == 0:
        return torch.zeros_like(q), torch.full((heads, rows), _NEVER, device=q.device)
    folded = q.reshape(k.shape[0], -1, dim)
    out, lse = _flash(folded, k, v, scale, causal=False)
    return out.reshape(heads, rows, dim), lse.reshape(heads, rows)


def _square(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attends causally, to as many keys as queries."""
    group = q.shape[0] // k.shape[0]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    return _flash(q, k, v, scale, causal=True)


def _windowed(q: Tensor, k: Tensor, v: Tensor, scale: float, last_seen: int, window: int) -> tuple[Tensor, Tensor]:
    """Attends through a sliding window, by an explicit mask over the keys that some query sees."""
    heads, rows, dim = q.shape
    first = min(max(last_seen - window + 1, 0), k.shape[1])
    last = min(max(last_seen + rows, first), k.shape[1])
    k, v = k[:, first:last], v[:, first:last]
    if last == first:
        return torch.zeros_like(q), torch.full((heads, rows), _NEVER, device=q.device)
    behind = torch.arange(last_seen, last_seen + rows, device=q.device)[:, None] - torch.arange(
        first, last, device=q.device
    )
    hidden = (behind < 0) | (behind >= window)
    group = heads // k.shape[0]
    folded = q.reshape(k.shape[0], group * rows, dim)
    scores = (folded.float() @ k.float().transpose(-1, -2)).mul_(scale).view(k.shape[0], group, rows, -1)
    scores.masked_fill_(hidden, _NEVER)
    lse = torch.logsumexp(scores, dim=-1)
    weights = (scores - lse.masked_fill(lse == _NEVER, 0.0)[..., None]).exp_().to(v.dtype)
    out = weights.view(k.shape[0], group * rows, -1) @ v
    return out.view(heads, rows, dim), lse.view(heads, rows)


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
