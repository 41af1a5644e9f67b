"""These kernels take rows on a GPU: RMSNorm and gated activations.

Bound by memory traffic: each number is read once and written once. Computed in float32, rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats import check
from . import FLOATS, MAX_WIDTH
from .launch import Launch, cdiv, power_of_2

_BLOCK = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `elementwise.rms_norm`."""
    rows = _rows("x", x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    norm_launch(rows, weight, eps, out).run()
    return out


def gated_mlp_activation(gate_up: Tensor, activation: str) -> Tensor:
    """As `elementwise.gated_mlp_activation`."""
    if activation not in ("silu", "gelu_tanh"):
        raise ValueError(f"activation must be silu or gelu_tanh, got {activation!r}")
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up: shape {tuple(gate_up.shape)}, expected an even number of columns")
    rows = _rows("gate_up", gate_up)
    out = torch.empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2), dtype=gate_up.dtype, device=gate_up.device)
    gate_launch(rows, activation, out).run()
    return out


def norm_launch(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Launch:
    """Norms x (rows, C) -> out, without gaps."""
    rows, width = x.shape
    check("x", x, (None, None), FLOATS)
    check("weight", weight, (width,), (x.dtype,), x.device)
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"x: {width} columns, expected 1 to {MAX_WIDTH}")
    block = power_of_2(width)
    return Launch(
        _rms_norm,
        (rows,),
        {"x": x, "weight": weight, "out": out, "eps": float(eps), "stride_x": x.stride(0)},
        {"C": width, "BLOCK": block},
        num_warps=min(16, max(1, block // 512)),
        num_stages=1,
    )  # fmt: skip


def gate_launch(gate_up: Tensor, activation: str, out: Tensor) -> Launch:
    """Gates gate_up (rows, 2I) -> out (rows, I) without gaps."""
    check("gate_up", gate_up, (None, None), FLOATS)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    return Launch(
        _gate,
        (rows, cdiv(width, _BLOCK)),
        {"gate_up": gate_up, "out": out, "width": width, "stride_g": gate_up.stride(0)},
        {"GELU": activation == "gelu_tanh", "BLOCK": _BLOCK},
        num_warps=4,
        num_stages=1,
    )


def _rows(name: str, x: Tensor) -> Tensor:
    """Views (..., C) as (rows, C), without a copy where strides allow it."""
    if x.dim() == 0 or (x.shape[-1] > 1 and x.stride(-1) != 1):
        raise ValueError(f"{name}: shape {tuple(x.shape)}, strides {x.stride()}: expected rows without gaps")
    return x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty((0, x.shape[-1]))


@triton.jit
def _rms_norm(x, weight, out, eps, stride_x, C: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    norm_row(x + row * stride_x, weight, out + row * C, C, eps, BLOCK)


@triton.jit
def norm_row(x, weight, out, C, eps, BLOCK: tl.constexpr):
    """Norms a row of C numbers, of which BLOCK is no fewer."""
    columns = tl.arange(0, BLOCK)
    inside = columns < C
    values = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(values * values, axis=0) / C + eps)
    scaled = values * factor * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + columns, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["width"])
def _gate(gate_up, out, width, stride_g, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * stride_g + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride_g + width + columns, mask=inside, other=0.0).to(tl.float32)
    # gelu_tanh(x) = x / (1 + exp(-2 z)), z = sqrt(2 / pi) (x + 0.044715 x^3): both are x times a logistic function.
    z = gate
    if GELU:
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    tl.store(out + row * width + columns, (gate * tl.sigmoid(z) * up).to(out.dtype.element_ty), mask=inside)
