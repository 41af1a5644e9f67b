"""A launch of a Triton kernel as a value: `run` executes it, aot.py compiles the very same one where no GPU is.

Rule of this folder's Triton code: a launcher checks its arguments, chooses block sizes by a small function of the shape
and makes a `Launch`; the kernel is pure. There is no autotuning: it needs a GPU to import, and hides what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Launch:
    """kernel over `grid`; `arguments` are run-time values, `constants` are compiled in.

    ampere: constants that differ on chips before compute capability 9, whose registers would spill.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float | None]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    ampere: Mapping[str, Any] = field(default_factory=dict)

    def constants_for(self, capability: int) -> dict[str, Any]:
        """What is compiled in for a chip, 80 or 90 say."""
        return {**self.constants, **(self.ampere if capability < 90 else {})}

    def run(self) -> None:
        """Queues the kernel on the device of its tensors; nothing happens for an empty grid."""
        if not all(self.grid):
            return
        tensor = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        constants = self.constants_for(_capability(tensor.device.index) if tensor.is_cuda else 90)
        with torch.cuda.device_of(tensor):
            self.kernel[self.grid](**self.arguments, **constants, num_warps=self.num_warps, num_stages=self.num_stages)


@lru_cache
def _capability(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def widened(kernel: Any, dtype: torch.dtype) -> bool:
    """Whether operands must be float32 before a product: Triton's interpreter multiplies bfloat16 bit patterns."""
    return dtype == torch.bfloat16 and not isinstance(kernel, triton.JITFunction)


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    like: Tensor | None = None,
) -> None:
    """ValueError naming `name` unless it has this shape (None: any), one of these dtypes, rows without gaps (the last
    stride is 1) and the device of `like`."""
    if tensor.dim() != len(shape) or any(w is not None and w != n for w, n in zip(shape, tensor.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected ({wanted})")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: {tensor.dtype}, expected {' or '.join(str(dtype) for dtype in dtypes)}")
    if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name}: elements of a row must lie side by side, the last stride is {tensor.stride(-1)}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name}: on {tensor.device}, the others are on {like.device}")
