"""A launch of a Triton kernel is a value: `run` executes it, tools/aot.py compiles the same one where no GPU is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Launch:
    """Launches a kernel over `grid`; `arguments` are run-time values, `constants` are compiled in.

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
        """Returns what is compiled in for a chip, 80 or 90 say."""
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
    """Says whether operands must be float32 before a product: Triton's interpreter multiplies bfloat16 bit patterns."""
    return dtype == torch.bfloat16 and not isinstance(kernel, triton.JITFunction)
