"""This file norms a few rows on the CPU, where a torch operation would wake a team of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import library


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `elementwise.rms_norm`, in float32 on the caller's thread. Raises ValueError."""
    if not (x.is_cpu and weight.is_cpu and x.dtype == weight.dtype == torch.float32 and weight.shape == x.shape[-1:]):
        raise ValueError(f"rms_norm: x {x.dtype} {tuple(x.shape)}, weight {weight.dtype} {tuple(weight.shape)}")
    rows, weight, columns = x.contiguous(), weight.contiguous(), x.shape[-1]
    out, opened = torch.empty_like(rows), library()
    opened.minimemo_rms_norm(
        opened.variant, rows.data_ptr(), weight.data_ptr(), eps, rows.numel() // columns, columns, out.data_ptr()
    )
    return out
