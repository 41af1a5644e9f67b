"""RoPE with the store into a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimemo.kernels import torch_ops
from minimemo.kernels.triton import rope as kernels
from tests.helpers import assert_close
from tests.kernels import reference
from tests.kernels.triton.device import DEVICE, DTYPES, Draw, fuzz, random, tables


def _check(keys: Tensor, values: Tensor, into: torch.dtype, start: int, rest: int) -> None:
    """Tokens around the new ones stay."""
    heads, n, dim = keys.shape
    cos, sin = tables(n, dim)
    caches = [torch.full((heads, start + n + rest, dim), 7.0, device=DEVICE, dtype=into) for _ in range(2)]
    kernels.store_launch(keys, values, cos, sin, *caches, start).run()
    new = slice(start, start + n)
    expected = reference.apply_rope(keys.double(), cos.double(), sin.double())
    as_near = torch.finfo(into).eps >= torch.finfo(keys.dtype).eps
    assert_close(caches[0][:, new], expected, "keys", None if as_near else 2e-3)
    assert_close(kernels.apply_rope(keys, cos, sin), expected, "apply_rope")
    if DEVICE == "cpu" and into == keys.dtype:
        assert torch.equal(caches[0][:, new], torch_ops.apply_rope(keys, cos, sin))
    assert torch.equal(caches[1][:, new], values.to(into))
    for cache in caches:
        assert bool((cache[:, :start] == 7).all()) and bool((cache[:, start + n :] == 7).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "dim"), [(0, 64), (1, 80), (17, 64), (33, 22)])
def test_rope_store(n: int, dim: int, dtype: torch.dtype) -> None:
    """Rotated as by torch_ops, to the last bit but for fused multiply-adds."""
    keys, values = random(n, 3, dim, dtype=dtype).transpose(0, 1), random(3, n, dim, dtype=dtype, seed=1)
    _check(keys, values, dtype, 11, 39 - n)


@fuzz
def test_rope_store_at_random(draw: Draw) -> None:
    shape, dtype = (draw.whole(1, 3), draw.whole(0, 40), 2 * draw.whole(1, 45)), draw.one_of(*DTYPES)
    keys, values = draw.tensor(*shape, dtype=dtype), draw.tensor(*shape, dtype=dtype)
    _check(keys, values, draw.one_of(*DTYPES), draw.whole(0, 9), draw.whole(0, 5))


def test_launch_checks_name_the_offender() -> None:
    x, table, cache = torch.zeros(2, 3, 8), torch.zeros(3, 8), torch.zeros(2, 10, 8)
    for change, message in (
        ({0: torch.zeros(2, 3, 7)}, "keys: head dim 7, expected an even number"),
        ({1: torch.zeros(2, 4, 8)}, r"values: shape \(2, 4, 8\), expected \(2, 3, 8\)"),
        ({2: table.half()}, "cos: torch.float16, expected torch.float32"),
        ({3: torch.zeros(4, 8)}, r"sin: shape \(4, 8\)"),
        ({4: torch.zeros(2, 10, 6)}, r"cache_keys: shape \(2, 10, 6\)"),
        ({6: 8}, "start: 8 with 3 tokens in a cache of 10"),
    ):
        arguments = dict(enumerate((x, x, table, table, cache, cache, 0))) | change
        with pytest.raises(ValueError, match=message):
            kernels.store_launch(*arguments.values())
