"""What several test files share."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

# Largest allowed |found - expected| relative to the largest |expected|, by the dtype computed in.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_close(found: Tensor, expected: Tensor, name: str = "result", within: float | None = None) -> None:
    """Same shape, same infinities, no NaN, and within the tolerance (of `found`'s dtype unless given)."""
    within = within or TOLERANCE[found.dtype]
    assert found.shape == expected.shape, f"{name}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    wide = found.to(torch.float64)
    assert not wide.isnan().any(), f"{name}: {int(wide.isnan().sum())} NaN"
    assert torch.equal(wide.isinf(), expected.isinf()), f"{name}: infinities differ"
    if found.numel() == 0:
        return
    finite = ~expected.isinf()
    error = (wide[finite] - expected[finite]).abs()
    scale = expected[finite].abs().max().clamp_min(1e-30) if finite.any() else torch.tensor(1.0)
    worst = float(error.max() / scale) if error.numel() else 0.0
    assert worst <= within, f"{name}: relative error {worst:.2e} above {within:.0e}"


def until(true: Callable[[], object], seconds: float = 20) -> None:
    """Waits until something is true; fails where it is not by then."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
