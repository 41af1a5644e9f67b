"""Dense Triton attention against its float64 definition, on odd shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimemo.kernels import PackedSource, Source, reference
from minimemo.kernels import triton_attention as kernels
from minimemo.kernels.triton_merge import merge_attention
from minimemo.kernels.triton_pack import pack_kv, unpack_kv
from minimemo.kernels.triton_sources import attend, sources_plan
from tests.helpers import assert_close
from tests.triton_device import DEVICE, DTYPES, SUMS, assert_attention, random

# heads, kv heads, queries, keys, head dim: groups of 1, 2, 4, 7, 8; no keys, one, one past a block.
SHAPES = [
    (4, 2, 33, 97, 64),
    (7, 1, 1, 65, 80),
    (8, 1, 9, 17, 96),
    (4, 1, 3, 129, 128),
    (1, 1, 5, 33, 256),
    (2, 2, 1, 1, 16),
    (2, 1, 2, 0, 64),
]
RULES = [dict(window=None), dict(window=1), dict(window=16, sinks=44, soft_cap=4.0)]


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads, rows, tokens, dim = shape
    make = lambda *size, seed: random(*size, dtype=dtype, seed=seed)  # noqa: E731
    return (
        make(heads, rows, dim, seed=0),
        make(kv_heads, tokens, dim, seed=1),
        make(kv_heads, tokens, dim, seed=2),
    )


def _expected(q: Tensor, k: Tensor, v: Tensor, **arguments) -> tuple[Tensor, Tensor]:
    return reference.attention(q.double(), k.double(), v.double(), **arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = _inputs(shape, dtype)
    positions = torch.arange(40 + shape[3] - shape[2], 40 + shape[3], device=DEVICE)
    for rule in RULES if dtype == torch.float32 or DEVICE == "cuda" else RULES[2:]:
        arguments = dict(scale=0.2, query_positions=positions, key_start=40, **rule)
        expected = _expected(q, k, v, **arguments)
        assert_attention(kernels.prefill_attention(q, k, v, **arguments), expected, f"prefill {rule}")
        assert_attention(kernels.decode_attention(q, k, v, shares=3, **arguments), expected, f"decode {rule}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_unmasked_attention_and_merge(dtype: torch.dtype) -> None:
    """Two disjoint key sets, one of them possibly empty, merge into attention over their union."""
    q, k, v = _inputs((6, 2, 5, 130, 64), dtype)
    expected = _expected(q, k, v, scale=0.1)
    for tokens in (0, 97):
        first = kernels.attention(q, k[:, :tokens], v[:, :tokens], scale=0.1)
        second = kernels.decode_attention(q, k[:, tokens:], v[:, tokens:], scale=0.1, shares=5)
        assert_attention(merge_attention(*first, *second), expected, f"{tokens} first")
        assert_attention(merge_attention(*second, *first), expected, f"{tokens} last")
    nothing = torch.zeros_like(q), torch.full(q.shape[:2], float("-inf"), device=DEVICE)
    out, lse = merge_attention(*nothing, *nothing)
    assert not out.any() and bool((lse == float("-inf")).all())


def test_positions_in_any_order_and_cache_slices() -> None:
    """Rows of different sequences over one windowed memory; operands are views with strides of their own."""
    q = random(5, 4, 64).transpose(0, 1)
    cache_k, cache_v = random(3, 2, 200, 64, seed=1), random(3, 2, 200, 64, seed=2)
    k, v = cache_k[1, :, :83], cache_v[1, :, :83]
    for positions in ([90, 3, 82, 0, 40], [83, 200, 83, 84, 300], [-1, -5, 0, 1, 2]):
        arguments = dict(scale=0.1, query_positions=torch.tensor(positions, device=DEVICE), window=20, sinks=3)
        found = kernels.attention(q, k, v, **arguments)
        assert_attention(found, _expected(q, k, v, **arguments), str(positions))
        assert found[0].transpose(0, 1).is_contiguous()  # what the output projection takes without a copy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [[1, 1, 1], [4, 1, 9]])
def test_shared_prefix(counts: list[int], dtype: torch.dtype) -> None:
    """Rows of different lengths over one memory: the same as each row over the memory and its own tail."""
    q, k, v = _inputs((4, 2, sum(counts), 70, 64), dtype)
    tail_k, tail_v = random(3, 2, 40, 64, dtype=dtype, seed=3), random(3, 2, 40, 64, dtype=dtype, seed=4)
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor([33, 1, 12], dtype=torch.int32, device=DEVICE)
    positions = torch.cat([torch.arange(70 + n - c, 70 + n) for n, c in zip(lengths.tolist(), counts, strict=True)]).to(
        DEVICE
    )
    for rule in (dict(window=None), dict(window=30, sinks=2, soft_cap=5.0)):
        arguments = (q, k, v, tail_k, tail_v)
        found = kernels.shared_prefix_attention(
            *arguments, starts, lengths, longest=max(counts), scale=0.2, query_positions=positions, **rule
        )
        wide = (tensor.double() for tensor in arguments)
        assert_attention(found, reference.shared_prefix_attention(*wide, starts, lengths, scale=0.2, **rule))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("counts", [[1, 1, 1], [4, 0, 9]])
def test_sources(counts: list[int], packed: bool) -> None:
    """A memory for all rows and a tail for each: the same as each row over the memory and its own tail."""
    q, k, v = _inputs((4, 2, sum(counts) + 1, 640, 64), torch.float32)
    sources: list = [Source(k, v, 0, sum(counts))]
    if packed:
        sources = [PackedSource(pack_kv(k, v, 8), 0, sum(counts))]
        k, v = unpack_kv(sources[0].packed)
    expected_out = torch.zeros_like(q).double()
    first = 0
    for row, count in enumerate(counts):
        tail = 12 + row
        tail_k, tail_v = random(2, tail, 64, seed=5 + row), random(2, tail, 64, seed=8 + row)
        sources.append(Source(tail_k, tail_v, first, count, tail - count, window=9))
        span = slice(first, first + count)
        parts = (
            _expected(q[:, span], k, v, scale=0.2),
            _expected(
                q[:, span],
                tail_k,
                tail_v,
                scale=0.2,
                window=9,
                query_positions=torch.arange(count, device=DEVICE) + tail - count,
            ),
        )
        expected_out[:, span] = reference.merge_attention(*parts[0], *parts[1])[0]
        first += count
    assert len(sources_plan(q, sources, 0.2).out) == 3  # two shares of the memory, all tails side by side
    out = attend(q, sources, 0.2)
    assert_close(out, expected_out, within=SUMS)
    assert not out[:, -1].any()  # a token without a source
    alone = attend(q, [Source(tail_k, tail_v, 0, q.shape[1])], 0.2)
    assert_close(alone, _expected(q, tail_k, tail_v, scale=0.2)[0], within=SUMS)
    with pytest.raises(ValueError, match=r"source: query tokens 1 \.\. 99 of"):
        attend(q, [Source(tail_k, tail_v, 1, 99)], 0.2)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.data())
def test_shapes_at_random(data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    kv_heads, group, rows, tokens, dim = draw(1, 2), draw(1, 9), draw(1, 40), draw(0, 140), draw(1, 70)
    dtype = data.draw(st.sampled_from(DTYPES))
    q, k, v = _inputs((kv_heads * group, kv_heads, rows, tokens, dim), dtype)
    start = draw(0, 50)
    arguments = dict(scale=0.2, key_start=start, soft_cap=data.draw(st.sampled_from([None, 3.0])))
    if data.draw(st.booleans()):
        arguments["query_positions"] = torch.arange(rows, device=DEVICE) + draw(0, start + tokens)
        arguments |= dict(window=data.draw(st.none() | st.integers(1, 100)), sinks=draw(0, 60))
    found = kernels.decode_attention(q, k, v, shares=draw(1, 4), **arguments)
    assert_attention(found, _expected(q, k, v, **arguments))


def test_bfloat16_inputs() -> None:
    """The interpreter cannot multiply bfloat16, so there the kernel widens it; a GPU multiplies it as it is."""
    q, k, v = _inputs((4, 2, 3, 70, 64), torch.bfloat16)
    assert_attention(kernels.attention(q, k, v, scale=0.2), _expected(q, k, v, scale=0.2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=torch.zeros(3, 5, 8), v=torch.zeros(3, 5, 8)), "q: 4 heads do not divide into the keys' 3"),
        (dict(k=torch.zeros(2, 5, 16)), r"k: shape \(2, 5, 16\), expected \(any, any, 8\)"),
        (dict(v=torch.zeros(2, 6, 8)), r"v: shape \(2, 6, 8\), expected \(2, 5, 8\)"),
        (dict(v=torch.zeros(2, 5, 8).double()), "v: torch.float64, expected torch.float32"),
        (dict(q=torch.zeros(4, 2, 8).half()), "k: torch.float32, expected torch.float16"),
        (dict(k=torch.zeros(2, 8, 5).transpose(1, 2)), "k: elements of a row must lie side by side"),
        (dict(query_positions=torch.arange(3)), r"query_positions: shape \(3,\), expected \(2\)"),
        (dict(query_positions=torch.zeros(2)), "query_positions: torch.float32, expected torch.int64 or torch.int32"),
        (dict(q=torch.zeros(4, 2)), r"q: shape \(4, 2\), expected \(any, any, any\)"),
        (dict(k=torch.zeros(2, 5)), r"k: shape \(2, 5\), expected \(any, any, 8\)"),
        (dict(window=3), "query_positions: needed where a window is given"),
        (dict(window=0, query_positions=torch.arange(2)), "window: 0, expected 1 or more"),
        (dict(sinks=-1), "sinks: -1, expected 0 or more"),
        (dict(soft_cap=0.0), "soft_cap: 0.0, expected a positive number"),
        (dict(q=torch.zeros(4, 2, 300), k=torch.zeros(2, 5, 300), v=torch.zeros(2, 5, 300)), "q: head dim 300"),
        (dict(v=torch.zeros(2, 5, 8, device="meta")), "v: on meta, the others are on cpu"),
    ],
)
def test_launch_checks_name_the_offender(change: dict, message: str) -> None:
    arguments = dict(q=torch.zeros(4, 2, 8), k=torch.zeros(2, 5, 8), v=torch.zeros(2, 5, 8), scale=1.0) | change
    with pytest.raises(ValueError, match=message):
        kernels.attention(**arguments)
