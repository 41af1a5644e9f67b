"""The operations on plain torch: right on every device, and the quick path on a CPU without native kernels.

Attention runs on torch's CPU flash kernel, which returns the log-sum-exp that merging needs. Query heads that share
a kv head are folded into rows, so that keys are read once a group: 24x quicker at decode than expanding them.
A causal chunk is the unmasked past merged with the causal square of the chunk itself, so no (N, T) mask is ever made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER = float("-inf")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) scaled to unit root mean square, times weight (C,). arXiv 1910.07467."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def gated_mlp_activation(gate_up: Tensor, activation: str) -> Tensor:
    """gate_up (..., 2I) -> act(gate) * up (..., I); activation "silu" or "gelu_tanh". arXiv 2002.05202."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate).mul_(up)
    if activation == "gelu_tanh":
        return F.gelu(gate, approximate="tanh").mul_(up)
    raise ValueError(f"activation must be silu or gelu_tanh, got {activation!r}")


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (..., N, D) by cos, sin (N, D) float32; dimension i pairs with i + D/2. arXiv 2104.09864.

    Computed in float32 and rounded once to x.dtype, element by element: the same key gives the same bits whatever
    it is batched with, which is what lets a restored exact memory equal the cache it came from.
    """
    half = x.shape[-1] // 2
    wide = x.to(torch.float32)
    rotated = wide * cos
    rotated[..., :half] -= wide[..., half:] * sin[..., :half]
    rotated[..., half:] += wide[..., :half] * sin[..., half:]
    return rotated.to(x.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    query_positions: Tensor | None = None,
    key_start: int = 0,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention with the log-sum-exp of each row (arguments and result as in `reference.attention`).

    Computed in the dtype of k and v; out has q's.
    With `query_positions`, and no window, positions must be the last N key positions in order (a causal chunk).
    Raises ValueError for shapes or dtypes that do not fit together.
    """
    heads, rows, dim = q.shape
    kv_heads, tokens, _ = k.shape
    if k.shape != v.shape or k.shape[2] != dim or heads % kv_heads:
        raise ValueError(f"attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit")
    if k.dtype != v.dtype:
        raise ValueError(f"attention: dtypes differ: k {k.dtype}, v {v.dtype}")
    if q.dtype != k.dtype:
        narrow = q.to(k.dtype)
        out, lse = attention(
            narrow, k, v, scale=scale, query_positions=query_positions, key_start=key_start, window=window
        )
        return out.to(q.dtype), lse
    if query_positions is None:
        return _unmasked(q, k, v, scale)
    if query_positions.shape != (rows,):
        raise ValueError(f"attention: {rows} queries but query_positions {tuple(query_positions.shape)}")
    if window is not None:
        return _windowed(q, k, v, scale, query_positions, key_start, window)
    past = tokens - rows
    if past < 0 or int(query_positions[0]) != key_start + past or int(query_positions[-1]) != key_start + tokens - 1:
        raise ValueError("attention: a causal chunk needs its queries at the last key positions")
    if rows == 1:
        return _unmasked(q, k, v, scale)
    own = _square(q, k[:, past:], v[:, past:], scale)
    if past == 0:
        return own
    return merge_attention(*_unmasked(q, k[:, :past], v[:, :past], scale), *own)


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets; out (H, N, D), lse (H, N). See `reference.merge_attention`."""
    lse = torch.logaddexp(lse_a, lse_b)
    safe = lse.masked_fill(lse == _NEVER, 0.0)
    weight_a, weight_b = (lse_a - safe).exp_().unsqueeze(-1), (lse_b - safe).exp_().unsqueeze(-1)
    return (out_a * weight_a).add_(out_b * weight_b).to(out_a.dtype), lse


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(B, N, D) x (B, T, D) -> out (B, N, D), lse (B, N) float32; B heads of one kind."""
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
    """Causal, as many keys as queries."""
    group = q.shape[0] // k.shape[0]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    return _flash(q, k, v, scale, causal=True)


def _windowed(
    q: Tensor, k: Tensor, v: Tensor, scale: float, positions: Tensor, key_start: int, window: int
) -> tuple[Tensor, Tensor]:
    """Sliding window: only the keys that some query sees are touched, by an explicit mask over those."""
    heads, rows, dim = q.shape
    first = min(max(int(positions.min()) - window + 1 - key_start, 0), k.shape[1])
    last = min(max(int(positions.max()) + 1 - key_start, first), k.shape[1])
    k, v = k[:, first:last], v[:, first:last]
    if last == first:
        return torch.zeros_like(q), torch.full((heads, rows), _NEVER, device=q.device)
    keys = torch.arange(key_start + first, key_start + last, device=q.device)
    hidden = (keys[None, :] > positions[:, None]) | (keys[None, :] <= positions[:, None] - window)
    group = heads // k.shape[0]
    folded = q.reshape(k.shape[0], group * rows, dim)
    scores = (folded.float() @ k.float().transpose(-1, -2)).mul_(scale).view(k.shape[0], group, rows, -1)
    scores.masked_fill_(hidden, _NEVER)
    lse = torch.logsumexp(scores, dim=-1)
    weights = (scores - lse.masked_fill(lse == _NEVER, 0.0)[..., None]).exp_().to(v.dtype)
    out = weights.view(k.shape[0], group * rows, -1) @ v
    return out.view(heads, rows, dim), lse.view(heads, rows)
