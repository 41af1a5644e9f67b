"""Norms of a few rows on the CPU, where a torch operation would wake a team of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import CPU, check
from .library import library


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) to unit root mean square, times weight (C,), on the caller's thread. Raises ValueError for others than
    float32 on the CPU. arXiv 1910.07467."""
    rows, weight = x.contiguous(), weight.contiguous()
    columns = rows.shape[-1]
    check("x", rows, rows.shape, (torch.float32,), CPU)
    check("weight", weight, (columns,), (torch.float32,), CPU)
    out, opened = torch.empty_like(rows), library()
    opened.minimemo_rms_norm(
        opened.variant, rows.data_ptr(), weight.data_ptr(), eps, rows.numel() // columns, columns, out.data_ptr()
    )
    return out
