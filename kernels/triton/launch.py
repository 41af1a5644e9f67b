"""A launch of a Triton kernel is a value: `run` executes it, tools/aot.py compiles the same one where no GPU is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_BESIDE = 12 << 10  # bytes of shared memory that no stage takes: queries, and what a reduction exchanges


@dataclass(frozen=True, slots=True)
class Chip:
    """A kind of GPU. shared: bytes of shared memory that a program may ask for. wide: products take operands from
    shared memory (wgmma, tcgen05), which leaves registers for larger blocks. amd: threads of a warp, matrix cores and
    pipelining are AMD's."""

    name: str
    shared: int
    wide: bool = False
    amd: bool = False

    @property
    def narrow(self) -> bool:
        """RDNA: both halves of a warp of 32 hold the operands of a product, which leaves half the registers."""
        return self.name.startswith("gfx1")


# What tools/aot.py compiles for. RTX 30, 40 and 50 are 8.6, 8.9 and 12.0; MI300 is gfx942, RX 7900 gfx1100.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("sm_80", 163 << 10), Chip("sm_86", 99 << 10), Chip("sm_89", 99 << 10), Chip("sm_90", 227 << 10, wide=True),
        Chip("sm_100", 227 << 10, wide=True), Chip("sm_120", 99 << 10), Chip("gfx942", 64 << 10, amd=True),
        Chip("gfx1100", 64 << 10, amd=True),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Launch:
    """Launches a kernel over `grid`; `arguments` are run-time values, `constants` are compiled in.

    small: what differs on chips that take both operands of a product from registers, which would spill (`Chip.wide`).
    narrow: what differs on those of `Chip.narrow`, where 8 warps take it, and one stage.
    stage: bytes of shared memory that one more stage takes; there are as many stages as the chip has room for.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float | None]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    small: Mapping[str, Any] = field(default_factory=dict)
    narrow: Mapping[str, Any] = field(default_factory=dict)
    stage: int = 0

    def settings(self, chip: Chip) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (what is compiled in, the compiler's options) for a chip."""
        constants = {**self.constants, **({} if chip.wide else self.small)}
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.stage:
            options["num_stages"] = max(1, min(options["num_stages"], 1 + (chip.shared - _BESIDE) // self.stage))
        if chip.narrow and self.narrow:
            constants, options = {**constants, **self.narrow}, {"num_warps": 8, "num_stages": 1}
        return constants, {**options, "enable_fp_fusion": True}

    def run(self) -> None:
        """Queues the kernel on the device of its tensors; nothing happens for an empty grid."""
        if not all(self.grid):
            return
        tensor = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        if not tensor.is_cuda:
            constants, options = self.settings(CHIPS["sm_90"])
            self.kernel[self.grid](**self.arguments, **constants, **options)
            return
        constants, options = self.settings(_chip(tensor.device.index))
        with torch.cuda.device_of(tensor):
            self.kernel[self.grid](**self.arguments, **constants, **options)


@lru_cache
def _chip(device: int) -> Chip:
    about: Any = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        arch = about.gcnArchName.partition(":")[0]
        return CHIPS.get(arch) or Chip(arch, 64 << 10, amd=True)
    return Chip(f"sm_{about.major}{about.minor}", about.shared_memory_per_block_optin, wide=about.major in (9, 10))
