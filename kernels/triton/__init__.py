"""This folder holds Triton's kernels for a GPU, an operation a file; `serves` says which calls they take.

This file imports nothing of triton, which is optional. A launcher checks its arguments, chooses block sizes by a small
function of the shape and makes a `Launch`; the kernel is pure. There is no autotuning: it needs a GPU to import, and
hides what runs.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

DEVICE = "cuda"  # where the kernels run; tests in Triton's interpreter say "cpu"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# What the registers of a program hold.
MAX_WIDTH = 16384  # numbers of a row that is normed
MAX_ROWS = 16  # rows of a quantized product; for more, widening the matrix is worth its cost


def installed() -> bool:
    return find_spec("triton") is not None


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors, which must lie where they run and be of one dtype."""
    first = tensors[0]
    if first.device.type != DEVICE or first.dtype not in FLOATS:
        return False
    return all(x.device.type == DEVICE and x.dtype == first.dtype for x in tensors[1:]) and installed()
