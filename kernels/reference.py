"""What each operation means, written for reading and not for speed. Works in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


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
