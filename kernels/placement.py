"""Which calls Triton's kernels serve."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

TRITON_DEVICE = "cuda"  # where they run; tests in Triton's interpreter say "cpu"
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TRITON_DIMS = 256  # of a head: what the registers of a program hold


def on_triton_device(tensor: Tensor) -> bool:
    """Whether the tensor lies where Triton's kernels run."""
    return tensor.device.type == TRITON_DEVICE


def has_triton() -> bool:
    return find_spec("triton") is not None


def triton_serves(*tensors: Tensor) -> bool:
    """Whether Triton's kernels take these tensors, which must be of one dtype."""
    dtype = tensors[0].dtype
    alike = all(on_triton_device(tensor) and tensor.dtype == dtype for tensor in tensors)
    return alike and dtype in TRITON_DTYPES and has_triton()
