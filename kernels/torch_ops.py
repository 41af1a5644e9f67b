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

from . import reference
from .formats import PackedSource, Source

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
            k, v = (x.to(q.dtype) for x in reference.unpack_kv(source.packed))
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
