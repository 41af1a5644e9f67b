"""The interpreter as tests mend it: bfloat16 is computed with, and a clash of stores is seen."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from minimemo.kernels.triton.launch import Launch
from tests.kernels.triton.device import DEVICE, random

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU needs no mending")


@triton.jit
def _product(a, b, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)).to(tl.bfloat16))


@triton.jit
def _store(out, width, BLOCK: tl.constexpr):
    at = tl.program_id(0) * width + tl.arange(0, BLOCK)
    tl.store(out + at, at)


def test_bfloat16_is_multiplied_and_rounded_to_the_nearest() -> None:
    a, b = (random(16, 16, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    out = torch.empty_like(a)
    Launch(_product, (1,), {"a": a, "b": b, "out": out}, {"BLOCK": 16}, 4, 1).run()
    near = (a.double() @ b.double()).float().bfloat16()
    assert ((out.float() - near.float()).abs() <= 2**-8 * near.float().abs()).all()  # sums may be added in any order
    assert torch.equal(out, near) or (out != near).sum() < 3


@pytest.mark.parametrize(("width", "clash"), [(16, False), (15, True)])
def test_programs_that_store_to_one_address_are_seen(width: int, clash: bool) -> None:
    launch = Launch(_store, (3,), {"out": torch.empty(48, dtype=torch.int32), "width": width}, {"BLOCK": 16}, 4, 1)
    if not clash:
        launch.run()
        return
    with pytest.raises(AssertionError, match="_store: 2 addresses are stored to by several programs"):
        launch.run()
