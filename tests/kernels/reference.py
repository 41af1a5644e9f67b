"""This file says what each operation means, written for reading and not for speed, in any floating dtype, float64
included: the truth for the tests of the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimemo.kernels import PackedSource, Source
from minimemo.kernels.torch_ops import unpack_kv


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
