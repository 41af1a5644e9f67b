"""Where the tests of Triton kernels run: a GPU, or Triton's interpreter on the CPU; and inputs at random for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimemo.models.layers import Linear
from tests.helpers import assert_close

DEVICE = os.environ.get("MINIMEMO_TEST_DEVICE", "cpu")
# bfloat16 is what models run in; the interpreter is slow, and float16 differs in how it rounds alone.
DTYPES = [torch.float32, torch.bfloat16] + [torch.float16] * (DEVICE == "cuda")
# float32 results of sums over exact products: rounding of the sums, and a GPU's approximate exp2 and log2.
SUMS = 2e-5 if DEVICE == "cuda" else 3e-6


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype).to(DEVICE)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Weights with `change` applied to every tensor, or to every matrix that it knows."""
    if isinstance(value, (Tensor, Linear)) and (changed := change(value)) is not None:
        return changed
    if isinstance(value, tuple):
        return tuple(mapped(part, change) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: mapped(getattr(value, f.name), change) for f in fields(value)})
    return value


def tables(tokens: int, dim: int) -> tuple[Tensor, Tensor]:
    """cos, sin (tokens, dim)."""
    angles = random(tokens, dim // 2, seed=9) * 9
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def assert_sums(found: Tensor, expected: Tensor, name: str = "result") -> None:
    """As near as sums of float32 are, or within the tolerance of a narrower dtype."""
    assert_close(found, expected, name, SUMS if found.dtype == torch.float32 else None)


class Draw:
    """Numbers, choices and tensors of one example."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._seed = 0

    def whole(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def one_of(self, *choices: Any) -> Any:
        return self._data.draw(st.sampled_from(choices))

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal numbers, as a view with gaps of a larger tensor whose other numbers are NaN, which shows whatever is
        read past an end; rows lie without gaps."""
        self._seed += 1
        around = [size + self.whole(0, 3) for size in shape]
        whole = torch.full(around, float("nan"), dtype=dtype, device=DEVICE)
        skip = [self.whole(0, wide - size) for wide, size in zip(around, shape, strict=True)]
        view = whole[tuple(slice(at, at + size) for at, size in zip(skip, shape, strict=True))]
        view.copy_(random(*shape, dtype=dtype, seed=self._seed))
        return view


def fuzz(test: Callable[[Draw], None]) -> Callable[[], None]:
    @settings(max_examples=30 if DEVICE == "cuda" else 5, deadline=None, derandomize=True)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        test(Draw(data))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
