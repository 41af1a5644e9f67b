"""Where the tests of Triton kernels run: a GPU, or Triton's interpreter on the CPU."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from tests.helpers import assert_close

DEVICE = os.environ.get("MINIMEMO_TEST_DEVICE", "cpu")
# On a GPU float16 and bfloat16 are what matters; the interpreter rounds bfloat16 results towards zero and is slow.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")
# float32 results of sums over exact products: rounding of the sums, and a GPU's approximate exp2 and log2.
SUMS = 2e-5 if DEVICE == "cuda" else 3e-6


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype).to(DEVICE)


def assert_attention(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], name: str = "") -> None:
    """out within its dtype's tolerance, lse as near as float32 sums are."""
    half = found[0].dtype != torch.float32
    assert_close(found[0], expected[0], f"{name} out", None if half else SUMS)
    assert_close(found[1], expected[1], f"{name} lse", SUMS)
