"""A device that is none, for tests: its tensors say that they are torch's meta device's, and hold numbers nevertheless.

What a walk asks of torch is computed by the CPU and told apart by where its tensors claim to lie. Triton's kernels are
counted and not run; what they would write is zeros.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimemo import runtime
from minimemo.kernels import triton
from minimemo.kernels.triton.launch import Launch, _views
from minimemo.models.device import Device

_AWAY, _CPU = torch.device("meta"), torch.device("cpu")
_ROOT = Path(triton.__file__).resolve().parents[2]
_PACKAGES = tuple(f"{_ROOT / name}{os.sep}" for name in ("minimemo", "kernels"))
_MOVES = ("copy_", "to", "_to_copy")  # from one device to another


class Away(Tensor):
    """A tensor on that device; `held`: its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls: Any, held: Tensor) -> Away:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=_AWAY,
        )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: outside the walk")


class Walk(TorchDispatchMode):
    """What was asked for: `on_cpu`, operations that compute numbers, not whole ones, there, by name and by who asks;
    `moved`, bytes "to" that device and "from" it, by who asks; `launched`, kernels by name."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: Counter[tuple[str, str]] = Counter()
        self.moved: Counter[tuple[str, str]] = Counter()
        self.launched: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        given = list(_flat((args, tuple(kwargs.values()))))
        away, here = [x for x in given if isinstance(x, Away)], [x for x in given if type(x) is Tensor]
        wanted = [x for x in given if isinstance(x, torch.device)]
        to_away = bool(away) if not wanted else _AWAY in wanted
        if name == "copy_":
            to_away = isinstance(args[0], Away)
        crosses = bool(away and here) if not wanted else bool(here if to_away else away)
        if away and name not in _MOVES and any(x.dim() for x in here):
            raise AssertionError(f"{name}: tensors of two devices, {_asker()}")
        held = _changed(args, _held), {key: _changed(value, _held) for key, value in kwargs.items()}
        result = func(*held[0], **held[1])
        if crosses and name in _MOVES:
            self.moved["to" if to_away else "from", _asker()] += (here if to_away else away)[0].nbytes
        elif not to_away and not away and _computes(func, held[0], result):
            self.on_cpu[name, _asker()] += 1
        if name == "copy_":
            return args[0]
        owners = {id(x.held): x for x in away}

        def placed(x: Any) -> Any:
            """A result where it lies: what was given comes back, moved where it is to lie elsewhere."""
            if not isinstance(x, Tensor):
                return x
            if crosses and (id(x) in owners or any(x is one for one in here)):
                x = x.clone()
            elif not crosses and id(x) in owners:
                return owners[id(x)]
            if not to_away:
                return x
            return Away(x.zero_() if "empty" in name else x)

        return _changed(result, placed)


def _computes(func: Any, args: Any, result: Any) -> bool:
    """Whether an operation on the CPU computes numbers that are no whole ones, or of such."""
    if "empty" in func.overloadpacket.__name__ or _views(func, args, result):
        return False
    return any(x.is_floating_point() and x.numel() > 0 for x in _flat((args, result)) if isinstance(x, Tensor))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_changed(part, change) for part in value)
    return change(value)


def _held(x: Any) -> Any:
    if isinstance(x, Away):
        return x.held
    return _CPU if isinstance(x, torch.device) and x == _AWAY else x


def _asker() -> str:
    """The function of the package that asks."""
    frame: Any = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGES):
        frame = frame.f_back
    if frame is None:
        return ""
    path = Path(frame.f_code.co_filename).relative_to(_ROOT)
    name = str(path.with_suffix("")).replace("minimemo/kernels", "kernels")  # where the package is installed
    return f"{name}:{frame.f_code.co_name}"


@contextmanager
def apart(last: int) -> Iterator[Walk]:
    """Runs choose that device, and what they do is told. last: the token that steps of decoding choose."""
    walk, make = Walk(), torch.tensor

    def run(launch: Launch) -> None:
        walk.launched[launch.kernel.__name__] += 1
        if launch.kernel.__name__ == "_advance":
            ids: Any = launch.arguments["ids"]
            ids.fill_(last)

    def tensor(data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        made = make(data, dtype=dtype)
        return made.to(device) if device is not None else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "DEVICE", _AWAY.type)
        patch.setattr(runtime, "choose", lambda _="auto": Device(_AWAY.type, "a device of tests"))
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(Launch, "run", run)
        with torch.inference_mode(), walk:
            yield walk
