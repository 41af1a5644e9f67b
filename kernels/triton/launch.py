"""A launch of a Triton kernel is a value: `run` executes it, tools/aot.py compiles the same one where no GPU is.

Checks, block sizes, and what Triton does to find the compiled kernel cost a processor many times the launch itself.
Launches that come again with the same tensors are kept in a `Recording`, which has them resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from threading import local
from types import TracebackType
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Whether compiled kernels are launched with constants among their arguments, as Triton has it from 3.3 on.
_WITH_CONSTANTS = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)
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
    narrow: what differs on those of `Chip.narrow`, where all have one stage. AMD's other chips take of it how many
    dimensions are multiplied at a time, and one stage, where a program has more query rows than a product takes.
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
        if chip.narrow:
            options["num_stages"] = 1
        if chip.narrow and self.narrow:
            constants = {**constants, **self.narrow}
            options["num_warps"] = 4 if constants["BLOCK_M"] == 16 and constants["BLOCK_D"] <= 128 else 8
        elif chip.amd and self.narrow and constants["BLOCK_M"] > 16:
            constants["SLICE"], options["num_stages"] = self.narrow["SLICE"], 1
        return constants, {**options, "enable_fp_fusion": True}

    def run(self) -> None:
        """Queues the kernel on the device of its tensors; nothing happens for an empty grid."""
        if not all(self.grid):
            return
        kinds, given, tensor = self._given()
        recording: Recording | None = getattr(_here, "recording", None)
        whole = recording is None or recording.whole
        elsewhere = tensor.is_cuda and tensor.device.index != torch.cuda.current_device()
        with torch.cuda.device_of(tensor) if elsewhere else nullcontext():
            if known := _known.get(kinds):
                launch = self._of(*known, given)
                launch()
            else:
                constants, options = self.settings(_chip(tensor.device.index) if tensor.is_cuda else CHIPS["sm_90"])
                launch = partial(self.kernel[self.grid], **self.arguments, **constants, **options)
                compiled = launch()
                if compiled is not None and _WITH_CONSTANTS:  # else interpreted, or to be dispatched each time
                    _known[kinds] = compiled, constants
                    launch = self._of(compiled, constants, given)
        if recording is not None:
            recording.whole = whole  # Triton's interpreter computes by torch
            recording.add(launch, [value for value in self.arguments.values() if isinstance(value, Tensor)])

    def _of(self, compiled: Any, constants: dict[str, Any], given: dict[str, Any]) -> Callable[[], object]:
        """This launch of a compiled kernel."""
        given = given | constants
        return partial(compiled[(*self.grid, 1, 1)[:3]], *(given[name] for name in self.kernel.arg_names))

    def _given(self) -> tuple[tuple[object, ...], dict[str, Any], Tensor]:
        """What tells which compiled kernel this is, as Triton would find by itself, in many times the time; the
        arguments as a compiled kernel takes them, tensors by their addresses; and one of the tensors."""
        kinds: list[object] = [id(self.kernel), self.num_warps, self.num_stages, self.stage]
        kinds += *self.constants.values(), *self.small.values(), *self.narrow.values()
        given, tensor = dict[str, Any](), None
        for name, value in self.arguments.items():
            given[name] = value
            if type(value) is int:
                kinds.append((value == 1, value % 16 == 0, -(1 << 31) <= value < 1 << 31))
            elif isinstance(value, Tensor):
                tensor, given[name] = value, value.data_ptr()
                kinds.append((value.dtype, given[name] % 16 == 0))
            else:
                kinds.append(type(value))
        assert tensor is not None
        return (tensor.device, *kinds), given, tensor


# Compiled kernels with what is compiled in, by what tells them apart.
_known: dict[tuple[object, ...], tuple[Any, dict[str, Any]]] = {}
_here = local()
_ALLOCATE = {getattr(torch.ops.aten, name) for name in ("empty", "empty_like", "empty_strided", "new_empty")}


class Recording(TorchDispatchMode):
    """Keeps what this thread launches while it is entered, to launch it `again` on the same tensors, which it holds.

    whole: whether that repeats all that was computed meanwhile: torch itself did nothing but allocate and view.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whole = True
        self._launches: list[Callable[[], object]] = []
        self._tensors: list[Tensor] = []  # that launches were given, which know their addresses alone

    def __len__(self) -> int:
        return len(self._launches)

    def __enter__(self) -> Recording:
        _here.recording = self
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.recording = None
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.whole = self.whole and (func.overloadpacket in _ALLOCATE or _views(func, args, out))
        return out

    def add(self, launch: Callable[[], object], tensors: Sequence[Tensor]) -> None:
        self._launches.append(launch)
        self._tensors += tensors

    def again(self) -> None:
        """Queues all of it once more, in order. Raises RuntimeError where it is not `whole`."""
        if not self.whole:
            raise RuntimeError("recording: torch computed as well, which launches alone do not repeat")
        with torch.cuda.device_of(self._tensors[-1]) if self._tensors else nullcontext():
            for launch in self._launches:
                launch()


def _views(func: Any, args: Any, out: Any) -> bool:
    """Whether an operation wrote nothing and gave tensors that lie in those that it was given."""
    given = {x.untyped_storage()._cdata for x in args if isinstance(x, Tensor)}
    outs = out if isinstance(out, (list, tuple)) else [out]
    alike = (isinstance(x, Tensor) and x.untyped_storage()._cdata in given for x in outs)
    return not func._schema.is_mutable and all(alike)


def cdiv(number: int, divisor: int) -> int:
    """The quotient rounded up; Triton's own takes a processor ten times as long, as does its power of 2."""
    return -(-number // divisor)


def power_of_2(number: int) -> int:
    """The least power of 2 that is no smaller."""
    return 1 << max(number - 1, 0).bit_length()


@lru_cache
def _chip(device: int) -> Chip:
    about: Any = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        arch = about.gcnArchName.partition(":")[0]
        return CHIPS.get(arch) or Chip(arch, 64 << 10, amd=True)
    return Chip(f"sm_{about.major}{about.minor}", about.shared_memory_per_block_optin, wide=about.major in (9, 10))
