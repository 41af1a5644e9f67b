"""Every launcher of a Triton kernel at shapes, strides and dtypes at random, against the float64 definition.

Inputs are views with gaps in larger tensors of NaN, which shows whatever is read past an end; results that go into a
given tensor leave what lies around them. `test_triton_attention.py` does the same for dense attention of one kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimemo.kernels import PackedSource, Source, empty_packed, reference
from minimemo.kernels import triton_attention as attention
from minimemo.kernels import triton_matmul as matmul
from minimemo.kernels import triton_norm as norm
from minimemo.kernels import triton_pack as pack
from minimemo.kernels import triton_rope as rope
from minimemo.kernels.triton_merge import merge_attention
from minimemo.kernels.triton_packed import packed_attention, packed_shared_prefix_attention
from minimemo.kernels.triton_sources import attend
from tests.helpers import assert_close
from tests.triton_device import DEVICE, DTYPES, SUMS, assert_attention, random

EXAMPLES = 30 if DEVICE == "cuda" else 8
fuzzed = settings(max_examples=EXAMPLES, deadline=None, derandomize=True)


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
        """Normal numbers, as a view of a larger tensor whose other numbers are NaN; rows lie without gaps."""
        self._seed += 1
        around = [size + self.whole(0, 3) for size in shape]
        whole = torch.full(around, float("nan"), dtype=dtype, device=DEVICE)
        skip = [self.whole(0, wide - size) for wide, size in zip(around, shape, strict=True)]
        view = whole[tuple(slice(at, at + size) for at, size in zip(skip, shape, strict=True))]
        view.copy_(random(*shape, dtype=dtype, seed=self._seed))
        return view


def fuzz(test: Callable[[Draw], None]) -> Callable[[], None]:
    @fuzzed
    @given(st.data())
    def run(data: st.DataObject) -> None:
        test(Draw(data))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


def _heads(draw: Draw) -> tuple[int, int]:
    """Query heads, kv heads."""
    kv_heads = draw.whole(1, 2)
    return kv_heads * draw.whole(1, 5), kv_heads


def _tables(*shape: int) -> tuple[Tensor, Tensor]:
    angles = random(*shape[:-1], shape[-1] // 2, seed=9) * 9
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rule(draw: Draw, rows: int, tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = dict(scale=0.2, key_start=draw.whole(0, 50), soft_cap=draw.one_of(None, 3.0))
    if draw.one_of(True, False):
        first = draw.whole(0, found["key_start"] + tokens)
        found |= dict(query_positions=torch.arange(rows, device=DEVICE) + first)
        found |= dict(window=draw.one_of(None, 1, 33, 500), sinks=draw.whole(0, 60))
    return found


@fuzz
def test_norms(draw: Draw) -> None:
    shape, dtype = (draw.whole(0, 5), draw.whole(1, 4), draw.whole(1, 300)), draw.one_of(*DTYPES)
    x, residual, weight = (
        draw.tensor(*shape, dtype=dtype),
        draw.tensor(*shape, dtype=dtype),
        draw.tensor(shape[-1], dtype=dtype),
    )
    assert_close(norm.rms_norm(x, weight, 1e-5), reference.rms_norm(*_wide(x, weight), 1e-5))
    found, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert_close(found, reference.rms_norm(*_wide(total, weight), 1e-5))


@fuzz
def test_gates(draw: Draw) -> None:
    activation = draw.one_of("silu", "gelu_tanh")
    x = draw.tensor(draw.whole(0, 9), 2 * draw.whole(1, 1100), dtype=draw.one_of(*DTYPES))
    expected = reference.gated_mlp_activation(x.double(), activation)
    found = norm.gated_mlp_activation(x, activation)
    assert_close(found, expected, within=SUMS if x.dtype == torch.float32 else None)


@fuzz
def test_quantized_products(draw: Draw) -> None:
    group, bits, dtype = draw.one_of(32, 64, 128), draw.one_of(8, 4), draw.one_of(*DTYPES)
    rows, outputs, columns = draw.whole(0, 16), draw.whole(1, 70), group * draw.whole(1, 4)
    low, high = draw.one_of((0, 16), (-8, 8)) if bits == 4 else (-128, 128)
    codes = torch.randint(low, high, (outputs, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    scales = draw.tensor(outputs, columns // group, dtype=torch.float16)
    offsets = draw.tensor(outputs, columns // group, dtype=torch.float16) if draw.one_of(True, False) else None
    matrix = matmul.quantized_matrix(codes.to(DEVICE), scales, offsets, bits=bits)
    wide = matrix.widened(torch.float64)
    x = draw.tensor(rows, columns, dtype=dtype)
    bias = draw.tensor(outputs, dtype=dtype) if draw.one_of(True, False) else None
    expected = x.double() @ wide.T + (0 if bias is None else bias.double())
    assert_close(matmul.quantized_matmul(x, matrix, bias), expected, within=SUMS if dtype == torch.float32 else None)


@fuzz
def test_rope_store(draw: Draw) -> None:
    dtype, into = draw.one_of(*DTYPES), draw.one_of(*DTYPES)
    heads, n, dim = draw.whole(1, 3), draw.whole(0, 40), 2 * draw.whole(1, 45)
    start = draw.whole(0, 9)
    keys, values = draw.tensor(heads, n, dim, dtype=dtype), draw.tensor(heads, n, dim, dtype=dtype)
    cos, sin = _tables(n, dim)
    caches = [torch.full((heads, start + n + draw.whole(0, 5), dim), 7.0, dtype=into, device=DEVICE) for _ in range(2)]
    caches[1] = torch.full_like(caches[0], 7.0)
    rope.rope_store(keys, values, cos, sin, *caches, start)
    expected = reference.apply_rope(*_wide(keys, cos, sin))
    worst = None if torch.finfo(into).eps >= torch.finfo(dtype).eps else 2e-3
    assert_close(caches[0][:, start : start + n], expected, "keys", worst)
    assert torch.equal(caches[1][:, start : start + n], values.to(into))
    assert_close(rope.apply_rope(keys, cos, sin), expected, "apply_rope")
    for cache in caches:
        assert bool((cache[:, :start] == 7).all()) and bool((cache[:, start + n :] == 7).all())


@fuzz
def test_packing(draw: Draw) -> None:
    bits, dtype = draw.one_of(8, 4), draw.one_of(*DTYPES)
    heads, groups, dim, before = draw.whole(1, 3), draw.whole(0, 2), 2 * draw.whole(1, 45), draw.whole(0, 1)
    keys, values = (draw.tensor(heads, 64 * groups, dim, dtype=dtype) for _ in range(2))
    rotation = _tables(64 * groups, dim) if draw.one_of(True, False) else None
    packed = empty_packed(heads, 64 * (groups + before), dim, bits, DEVICE)
    pack.store_packed(keys, values, packed, 64 * before, rotation)
    turned = keys.float() if rotation is None else reference.apply_rope(keys.float(), *rotation)
    expected = reference.unpack_kv(reference.pack_kv(turned.cpu(), values.cpu(), bits))
    for x, y, of in zip(pack.unpack_kv(packed), expected, (turned, values), strict=True):
        # A key that was rotated may differ by a bit from the definition's, and its code by one.
        step = float(of.float().max() - of.float().min()) / (2**bits - 1) if groups and rotation else 0.0
        assert not groups or (x[:, 64 * before :].cpu() - y).abs().max() <= step + 1e-5


@fuzz
def test_packed_attention(draw: Draw) -> None:
    (heads, kv_heads), rows, groups, dim = _heads(draw), draw.whole(1, 20), draw.whole(0, 3), 2 * draw.whole(1, 40)
    keys, values = (draw.tensor(kv_heads, 64 * groups, dim) for _ in range(2))
    packed = pack.pack_kv(keys, values, draw.one_of(8, 4))
    q = draw.tensor(heads, rows, dim, dtype=draw.one_of(*DTYPES))
    rule = _rule(draw, rows, 64 * groups)
    found = packed_attention(q, packed, shares=draw.whole(1, 4), **rule)
    unpacked = reference.unpack_kv(packed)
    half = found[0].dtype != torch.float32
    expected = reference.attention(*_wide(q, *unpacked), **rule)
    if half:  # keys are rounded to the queries' dtype
        assert_close(found[0], expected[0], "out", 5e-3)
    else:
        assert_attention(found, expected)


@fuzz
def test_one_pass_and_shares(draw: Draw) -> None:
    (heads, kv_heads), rows, tokens, dim = _heads(draw), draw.whole(1, 40), draw.whole(0, 140), draw.whole(1, 70)
    dtype = draw.one_of(*DTYPES)
    q = draw.tensor(heads, rows, dim, dtype=dtype)
    k, v = (draw.tensor(kv_heads, tokens, dim, dtype=dtype) for _ in range(2))
    rule = _rule(draw, rows, tokens)
    expected = reference.attention(*_wide(q, k, v), **rule)
    for attended in (attention.prefill_attention, attention.decode_attention, attention.attention):
        assert_attention(attended(q, k, v, **rule), expected, attended.__name__)


@fuzz
def test_shared_prefixes(draw: Draw) -> None:
    (heads, kv_heads), dim, batch = _heads(draw), 2 * draw.whole(1, 35), draw.whole(1, 3)
    counts = [draw.whole(0, 9) for _ in range(batch)]
    counts[0] += 1
    prefix, longest_tail = 64 * draw.whole(0, 2), 12
    lengths = [count + draw.whole(0, longest_tail - count) for count in counts]
    q = draw.tensor(heads, sum(counts), dim)
    tails = [draw.tensor(batch, kv_heads, longest_tail, dim) for _ in range(2)]
    k, v = (draw.tensor(kv_heads, prefix, dim) for _ in range(2))
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32, device=DEVICE)
    lengths_there = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    rest = (starts, lengths_there)
    rule = dict(longest=max(counts), scale=0.2, soft_cap=draw.one_of(None, 3.0))
    found = attention.shared_prefix_attention(q, k, v, *tails, *rest, **rule)
    rule.pop("longest")
    assert_attention(found, reference.shared_prefix_attention(*_wide(q, k, v, *tails), *rest, **rule))
    packed = pack.pack_kv(k, v, 8)
    found = packed_shared_prefix_attention(q, packed, *tails, *rest, longest=max(counts), **rule)
    wide = _wide(q, *reference.unpack_kv(packed), *tails)
    assert_attention(found, reference.shared_prefix_attention(*wide, *rest, **rule), "packed")


@fuzz
def test_sources(draw: Draw) -> None:
    """Spans of a pass over dense and packed keys, in any number and order."""
    (heads, kv_heads), rows, dim = _heads(draw), draw.whole(1, 12), 2 * draw.whole(1, 35)
    q = draw.tensor(heads, rows, dim)
    out, lse = torch.zeros(heads, rows, dim, dtype=torch.float64), torch.full((heads, rows), float("-inf")).double()
    out, lse = out.to(DEVICE), lse.to(DEVICE)
    sources: list[Source | PackedSource] = []
    for _ in range(draw.whole(1, 4)):
        first = draw.whole(0, rows - 1)
        count = draw.whole(1, rows - first)
        tokens = draw.one_of(64, 128)
        last_seen = draw.one_of(None, draw.whole(0, tokens + 5))
        window = None if last_seen is None else draw.one_of(None, 7, 500)
        k, v = (draw.tensor(kv_heads, tokens, dim) for _ in range(2))
        if draw.one_of(True, False):
            packed = pack.pack_kv(k, v, draw.one_of(8, 4))
            k, v = reference.unpack_kv(packed)
            sources.append(PackedSource(packed, first, count, last_seen, window))
        else:
            sources.append(Source(k, v, first, count, last_seen, window))
        span = slice(first, first + count)
        positions = None if last_seen is None else torch.arange(count, device=DEVICE) + last_seen
        part = reference.attention(*_wide(q[:, span], k, v), scale=0.2, query_positions=positions, window=window)
        out[:, span], lse[:, span] = reference.merge_attention(out[:, span], lse[:, span], *part)
    assert_close(attend(q, sources, 0.2), out, within=SUMS)


@fuzz
def test_merges(draw: Draw) -> None:
    shape, dtype = (draw.whole(1, 5), draw.whole(0, 9), draw.whole(1, 90)), draw.one_of(*DTYPES)
    outs = [draw.tensor(*shape, dtype=dtype) for _ in range(2)]
    lses = [random(*shape[:2], seed=seed) * 20 for seed in (3, 4)]
    if shape[1] > 1:
        lses[0][:, 0] = float("-inf")
    found = merge_attention(outs[0], lses[0], outs[1], lses[1])
    assert_attention(found, reference.merge_attention(*_wide(outs[0], lses[0], outs[1], lses[1])))


@fuzz
def test_inverse_transforms(draw: Draw) -> None:
    layers, kv_heads, dim = draw.whole(1, 3), draw.whole(1, 2), 2 * draw.whole(1, 35)
    bits, kept, start = draw.one_of(None, 8, 4), draw.whole(1, 50), draw.whole(0, 9)
    n = 64 if bits else draw.whole(1, 40)
    codes_dtype = draw.one_of(torch.int8, torch.int16)
    top = 127 if codes_dtype == torch.int8 else 3000
    width = layers * kv_heads * dim
    arguments: dict[str, Any] = dict(
        codes=(random(n, kept) * top / 3).clamp(-top, top).to(codes_dtype),
        step=0.01,
        basis=draw.tensor(kept, width) / kept**0.5,
        mean=random(width, seed=2),
        layer_scale=random(layers, seed=3).abs() + 0.1,
    )
    cos, sin = _tables(2, n, dim)
    kinds = (torch.arange(layers, device=DEVICE) % 2).int()
    rotated = draw.one_of(True, False)
    rotations = rope.Rotations(cos, sin, kinds) if rotated else None
    wide = arguments | dict(basis=arguments["basis"].double())
    turns = dict(rotations=(cos[kinds.long()], sin[kinds.long()])) if rotated else {}
    expected = reference.inverse_transform(**wide, kv_heads=kv_heads, **turns)
    if bits is None:
        cache = torch.full((layers, kv_heads, start + n + 3, dim), 7.0, device=DEVICE)
        rope.inverse_transform(**arguments, cache=cache, start=start, rotations=rotations)
        assert_close(cache[:, :, start : start + n], expected, within=SUMS)
        assert bool((cache[:, :, :start] == 7).all()) and bool((cache[:, :, start + n :] == 7).all())
        return
    packed = empty_packed(layers * kv_heads, 128, dim, bits, DEVICE)
    rope.inverse_transform_packed(**arguments, packed=packed, start=64, rotations=rotations)
    found, keys = pack.unpack_kv(packed)[0][:, 64:], expected.flatten(0, 1)
    spread = keys.amax(1, keepdim=True) - keys.amin(1, keepdim=True)
    bound = spread / (2**bits - 1) * 0.5 + (spread + keys.abs().amax(1, keepdim=True)) * 2**-10
    assert bool(((found.double() - keys).abs() <= bound).all())


@pytest.mark.parametrize(
    "call",
    [
        lambda x: norm.rms_norm(x, torch.ones(8), 1e-6),
        lambda x: norm.gated_mlp_activation(x, "silu"),
        lambda x: attention.attention(x[None], x[None], x[None], scale=1.0),
        lambda x: attend(x[None], [Source(x[None], x[None], 0, 3)], 1.0),
        lambda x: rope.apply_rope(x[None], torch.ones(3, 8), torch.ones(3, 8)),
        lambda x: merge_attention(x[None], torch.ones(1, 3), x[None], torch.ones(1, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_other_dtypes_are_refused(call: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=str(dtype)):
        call(torch.ones(3, 8, dtype=dtype))
