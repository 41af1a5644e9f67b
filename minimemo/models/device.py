"""The device that models run on: the CPU, or a GPU that Triton's kernels serve. Nothing is looked at before a run."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minimemo.errors import InputError
from minimemo.files import size

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
_BEST = (8, 0)  # compute capability from which a GPU is taken unasked: bfloat16, asynchronous copies
_LEAST = (7, 5)  # that Triton compiles for, in float16
_MEND = "or leave it to the CPU with `device=cpu`"


@dataclass(frozen=True, slots=True)
class Device:
    """Where a run computes. name: as torch calls it, "cpu" or "cuda:0". title: for people. note: why a GPU that is
    there is not used, or ""."""

    name: str
    title: str
    note: str = ""

    def facts(self) -> dict[str, str]:
        """What JSON tells of it."""
        return {"name": self.name, "title": self.title}


def check_name(wanted: str) -> None:
    """Raises InputError unless `wanted` is one of DEVICES, or cuda:N."""
    if wanted not in DEVICES and not re.fullmatch(r"cuda:\d{1,3}", wanted):
        raise InputError(
            f"device {wanted!r} is unknown; choose one of {', '.join(DEVICES)}, or cuda:1 for the second GPU"
        )


def choose(wanted: str = "auto") -> Device:
    """Finds the device that `wanted` means here: auto is a GPU of capability 8.0 or more where Triton is, else the CPU.

    Raises InputError, which says how to mend it, where a GPU is asked for and cannot be used.
    """
    check_name(wanted)
    if wanted == "cpu":
        return _cpu()
    index = int(wanted.partition(":")[2] or 0)
    capability = _capability(index)
    if isinstance(capability, tuple):
        why = None if _has_triton() else "triton is not installed: pip install 'minimemo[gpu]'"
        least = _BEST if wanted == "auto" else _LEAST
        if capability < least:
            why = "has compute capability {}.{}, kernels here need {}.{}".format(*capability, *least)
        if why is None:
            return Device(f"cuda:{index}", "{} ({}.{})".format(_name(index), *capability))
        why = f"{_name(index)}: {why}"
    else:
        why = capability
    if wanted != "auto":
        raise InputError(f"device {wanted}: {why}; {_MEND}")
    return _cpu(f"the GPU is not used: {why}" if isinstance(capability, tuple) or _driver() else "")


def _cpu(note: str = "") -> Device:
    return Device("cpu", f"CPU, {os.cpu_count() or 1} processors", note)


def _capability(index: int) -> tuple[int, int] | str:
    """Compute capability of a GPU, or why there is none."""
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            return "this torch is built for CPUs alone: install the one for your GPU (pytorch.org tells the command)"
        return "torch finds no GPU: see that nvidia-smi (or rocm-smi) lists one, and that the driver is not too old"
    if index >= (count := torch.cuda.device_count()):
        return f"the GPUs here are cuda:0 to cuda:{count - 1}"
    return torch.cuda.get_device_capability(index)


def _has_triton() -> bool:
    from minimemo.kernels import triton

    return triton.installed()


def _name(index: int) -> str:
    import torch

    return torch.cuda.get_device_name(index)


def _driver() -> bool:
    """Whether a GPU's driver is here, whatever torch says."""
    return os.path.exists("/dev/nvidia0") or os.path.exists("/dev/kfd") or shutil.which("nvidia-smi") is not None


def full(what: str, needed: int, device: torch.device | str, tokens: int = 0) -> InputError:
    """The error for a GPU on which `needed` bytes were not free, for so many `tokens` of a cache, or for a model."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    mend = "choose a smaller model"
    if tokens:
        fits = int(tokens * free / max(needed, 1)) // 256 * 256
        mend = f"about {fits:,} tokens fit: take `kv_dtype=int8` or int4, or a smaller memory"
    return InputError(
        f"GPU memory: {what} takes {size(needed)}, and {size(free)} of {size(total)} are free; {mend}, {_MEND}"
    )
