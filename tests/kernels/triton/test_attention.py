"""Triton attention against its float64 definition, on odd shapes: dense and packed sources, alone and together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from minimemo.kernels import PackedSource, Rows, Source, empty_packed, torch_ops
from minimemo.kernels.triton import tiles
from minimemo.kernels.triton.attention import attention, attention_launches
from minimemo.kernels.triton.launch import CHIPS
from minimemo.kernels.triton.pack import pack_into
from tests.kernels import reference
from tests.kernels.triton.device import DEVICE, DTYPES, Draw, assert_sums, fuzz, random

# heads, kv heads, queries, keys, head dim: groups of 1, 2, 4, 7, 8; no keys, one, one past a block.
SHAPES = [
    (4, 2, 17, 97, 64),
    (7, 1, 1, 65, 80),
    (8, 1, 9, 17, 96),
    (4, 1, 3, 129, 128),
    (1, 1, 5, 33, 256),
    (2, 2, 1, 1, 16),
    (2, 1, 2, 0, 64),
]
PACKED_SHAPES = [(2, 1, 17, 128, 64), (7, 1, 1, 128, 80), (4, 2, 3, 64, 96), (4, 2, 3, 0, 64)]
SHARES = [256, 32]  # keys of a share: a single one here, or several


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads, rows, tokens, dim = shape
    keys, values = (random(kv_heads, tokens, dim, dtype=dtype, seed=seed) for seed in (1, 2))
    return random(heads, rows, dim, dtype=dtype), keys, values


def _packed(keys: Tensor, values: Tensor, bits: int, *rest: Any) -> tuple[PackedSource, Source]:
    """Packed keys and values, and what they hold."""
    packed = empty_packed(*keys.shape, bits, DEVICE)
    pack_into(packed, 0, keys, values)
    return PackedSource(packed, *rest), Source(*torch_ops.unpack_kv(packed), *rest)


def _expected(q: Tensor, sources: Sequence[Source], scale: float) -> Tensor:
    """Keys and values are rounded to the queries' dtype, as the kernels round what they unpack."""
    rounded = [
        Source(s.keys.to(q.dtype), s.values.to(q.dtype), s.first, s.count, s.last_seen, s.window) for s in sources
    ]
    return reference.attention(q.double(), rounded, scale)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_keys(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _inputs(shape, dtype)
    rows, past = shape[2], shape[3] - shape[2]
    rules = [(past, 16), (None, None), (past, None), (past, 1), (past - 3, 20)]
    few = 1 if dtype != torch.float32 else None if shape in SHAPES[:2] else 3
    for number, (last_seen, window) in enumerate(rules[: few if DEVICE == "cpu" else None]):
        monkeypatch.setattr(tiles, "LEAST_SHARE", SHARES[1 - number % 2])
        source = Source(k, v, 0, rows, last_seen, window)
        assert_sums(attention(q, [source], 0.2), _expected(q, [source], 0.2), f"{last_seen} {window}")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", PACKED_SHAPES, ids=str)
def test_packed_keys(shape: tuple[int, ...], dtype: torch.dtype, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _inputs(shape, dtype)
    rules = [(90, 30), (50, None), (None, None)]
    few = 1 if dtype != torch.float32 else 3 if bits == 8 else 2
    for number, rule in enumerate(rules[: few if DEVICE == "cpu" else 3]):
        monkeypatch.setattr(tiles, "LEAST_SHARE", SHARES[number % 2])
        packed, source = _packed(k, v, bits, 0, shape[2], *rule)
        assert_sums(attention(q, [packed], 0.1), _expected(q, [source], 0.1), str(rule))


@pytest.mark.skipif(DEVICE == "cuda", reason="takes the blocks of another chip than this one")
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_a_narrow_chip(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """It multiplies 32 dimensions of queries and keys at a time, 16 of float32, of 72 the last 8 alone; AMD's others do
    so too where queries are many."""
    monkeypatch.setitem(CHIPS, "sm_90", CHIPS["gfx1100"])
    q, k, v = _inputs((3, 1, 7, 64, 72), dtype)
    for rule in ((50, 30), (None, None)):
        dense = Source(k, v, 0, 7, *rule)
        packed, unpacked = _packed(k, v, 4, 0, 7, *rule)
        for given, expected in ((dense, dense), (packed, unpacked)):
            (launch, *_), _ = attention_launches(q, [given], 0.1)
            for chip in ("gfx1100", "gfx942"):
                constants, options = launch.settings(CHIPS[chip])
                assert constants["SLICE"] < constants["BLOCK_D"] and options["num_stages"] == 1
            assert_sums(attention(q, [given], 0.1), _expected(q, [expected], 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slices_of_wide_heads_where_registers_are_few(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 256 dimensions float32 takes 32 at a time there, few queries over 4 packed bits 64 of each half."""
    monkeypatch.setitem(CHIPS, "sm_90", CHIPS["sm_86"])
    q, k, v = _inputs((2, 1, 3, 64, 256), dtype)
    dense = Source(k, v, 0, 3, 50, None)
    packed, unpacked = _packed(k, v, 4, 0, 3, 50, None)
    for given, expected, sliced in ((dense, dense, dtype == torch.float32), (packed, unpacked, True)):
        (launch, *_), _ = attention_launches(q, [given], 0.1)
        constants, _ = launch.settings(CHIPS["sm_86"])
        assert (constants["SLICE"] < constants["BLOCK_D"]) == sliced
        assert_sums(attention(q, [given], 0.1), _expected(q, [expected], 0.1))


def test_positions_past_either_end_and_cache_slices() -> None:
    """A windowed memory before, around and after the queries; operands are views with strides of their own."""
    q = random(5, 4, 64).transpose(0, 1)
    cache_k, cache_v = random(3, 2, 200, 64, seed=1), random(3, 2, 200, 64, seed=2)
    for last_seen in (-9, -2, 3, 40, 83, 99, 300):
        source = Source(cache_k[1, :, :83], cache_v[1, :, :83], 0, 5, last_seen, 20)
        found = attention(q, [source], 0.1)
        assert_sums(found, _expected(q, [source], 0.1), str(last_seen))
        assert found.transpose(0, 1).is_contiguous()  # what the output projection takes without a copy


@pytest.mark.parametrize(("counts", "packed"), [([1, 1, 1], False), ([4, 0, 2], True)], ids=str)
def test_a_memory_for_all_rows_and_a_tail_for_each(
    counts: list[int], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "LEAST_SHARE", 64)
    q, k, v = _inputs((4, 2, sum(counts) + 1, 128, 64), torch.float32)
    memory = Source(k, v, 0, sum(counts))
    given: list[Source | PackedSource] = [memory]
    if packed:
        given[0], memory = _packed(k, v, 8, 0, sum(counts))
    first, tails = 0, []
    for row, count in enumerate(counts):
        tokens = 12 + row
        tail = (random(2, tokens, 64, seed=seed + row) for seed in (5, 8))
        tails.append(Source(*tail, first, count, tokens - count, window=9))
        first += count
    launches, _ = attention_launches(q, [*given, *tails], 0.2)
    assert launches[-1].arguments["count"] == 3  # two shares of the memory, all tails side by side
    out = attention(q, [*given, *tails], 0.2)
    assert_sums(out, _expected(q, [memory, *tails], 0.2))
    assert not out[:, -1].any()  # a token without a source
    assert not attention(q, [], 0.2).any()


@fuzz
def test_sources_at_random(draw: Draw) -> None:
    """Spans of a pass over dense and packed keys, in any number and order."""
    kv_heads, rows, dim, dtype = draw.whole(1, 2), draw.whole(1, 12), 2 * draw.whole(1, 40), draw.one_of(*DTYPES)
    q = draw.tensor(kv_heads * draw.whole(1, 5), rows, dim, dtype=dtype)
    given: list[Source | PackedSource] = []
    expected: list[Source] = []
    for _ in range(draw.whole(1, 3)):
        first = draw.whole(0, rows - 1)
        count = draw.whole(1, rows - first)
        packed = draw.one_of(True, False)
        tokens = draw.one_of(0, 64, 128) if packed else draw.whole(0, 140)
        last_seen = draw.one_of(None, draw.whole(-5, tokens + 5))
        rule = (first, count, last_seen, None if last_seen is None else draw.one_of(None, 1, 7, 33, 500))
        k, v = (draw.tensor(kv_heads, tokens, dim, dtype=dtype) for _ in range(2))
        source = dense = Source(k, v, *rule)
        if packed:
            source, dense = _packed(k, v, draw.one_of(8, 4), *rule)
        given.append(source)
        expected.append(dense)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "LEAST_SHARE", draw.one_of(*SHARES))
        assert_sums(attention(q, given, 0.2), _expected(q, expected, 0.2))


K = torch.zeros(2, 5, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keys=torch.zeros(3, 5, 8), values=torch.zeros(3, 5, 8)), "q: 4 heads do not divide into the keys' 3"),
        (dict(keys=torch.zeros(2, 5, 16)), r"keys: shape \(2, 5, 16\), expected \(any, any, 8\)"),
        (dict(values=torch.zeros(2, 6, 8)), r"values: shape \(2, 6, 8\), expected \(2, 5, 8\)"),
        (dict(values=K.double()), "values: torch.float64, expected torch.float32"),
        (dict(q=torch.zeros(4, 2, 8).half()), "keys: torch.float32, expected torch.float16"),
        (dict(keys=torch.zeros(2, 8, 5).transpose(1, 2)), "keys: elements of a row must lie side by side"),
        (dict(q=torch.zeros(4, 2)), r"q: shape \(4, 2\), expected \(any, any, any\)"),
        (dict(q=torch.zeros(4, 2, 8).double()), "q: torch.float64, expected torch.float16"),
        (dict(window=3), "window: 3, expected 1 or more, and last_seen or places with it"),
        (dict(window=0, last_seen=3), "window: 0, expected 1 or more"),
        (dict(q=torch.zeros(4, 2, 300), keys=torch.zeros(2, 5, 300), values=torch.zeros(2, 5, 300)), "q: head dim 300"),
        (dict(values=K.to("meta")), "values: on meta, expected cpu"),
        (dict(first=1, count=99), r"source: query tokens 1 \.\. 99 of 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_launch_checks_name_the_offender(change: dict, message: str) -> None:
    arguments = dict(q=torch.zeros(4, 2, 8), keys=K, values=K, first=0, count=2) | change
    with pytest.raises(ValueError, match=message):
        attention(arguments.pop("q"), [Source(**arguments)], 1.0)


def test_packed_launch_checks_name_the_offender() -> None:
    packed = empty_packed(1, 128, 16, 8, "cpu")
    with pytest.raises(ValueError, match=r"q: shape \(2, 3, 8\), expected \(any, any, 16\)"):
        attention(torch.zeros(2, 3, 8), [PackedSource(packed, 0, 3)], 1.0)


@pytest.mark.parametrize("window", [None, 9])
def test_rows_that_a_gpu_counts(window: int | None) -> None:
    """Three rows of one token: all keys of a memory, dense and packed, and of each its own, told by numbers on the
    device; as told by the processor. What lies behind is not read."""
    q = random(8, 3, 32)
    memory, own = random(2, 70, 32, seed=1), random(3, 2, 40, 32, seed=2)
    memory[:, 66:], own[:, :, 35:] = float("nan"), float("nan")
    part, as_dense = _packed(random(2, 64, 32, seed=3), random(2, 64, 32, seed=4), 8, 0, 3)
    slots, places = [33, 0, 7], [140, 130, 137]  # in its own keys, and counted from the first packed one
    on_device = lambda numbers: torch.tensor(numbers, dtype=torch.int32, device=DEVICE)  # noqa: E731
    seen = None if window is None else on_device(places)
    behind = None if window is None else on_device([place - 64 for place in places])
    found = attention(
        q,
        [
            PackedSource(part.packed, 0, 3, None, window, Rows(on_device([64] * (3 if window else 1)), seen)),
            Source(memory, memory, 0, 3, None, window, Rows(on_device([66] * (3 if window else 1)), behind)),
            Source(own[0], own[0], 0, 3, None, window, Rows(on_device([s + 1 for s in slots]), on_device(slots), 2560)),
        ],
        0.2,
    )
    expected = []
    for row, (slot, place) in enumerate(zip(slots, places, strict=True)):
        last = lambda at: None if window is None else at  # noqa: E731
        expected += [
            Source(as_dense.keys, as_dense.values, row, 1, last(place), window),
            Source(memory[:, :66], memory[:, :66], row, 1, last(place - 64), window),
            Source(own[row, :, : slot + 1], own[row, :, : slot + 1], row, 1, slot, window),
        ]
    assert_sums(found, _expected(q, expected, 0.2))


def test_counts_are_checked() -> None:
    q, keys = torch.zeros(64, 2, 16), torch.zeros(1, 5, 16)
    number = torch.zeros(2, dtype=torch.int32)
    for rows, message in (
        (Rows(number), r"counts: shape \(2,\), expected \(1\)"),
        (Rows(number.long()[:1]), "counts: torch.int64"),
        (Rows(number, number), "64 heads a kv head, expected at most 32"),
    ):
        heads = q if rows.places is not None else q[:4]
        with pytest.raises(ValueError, match=message):
            attention(heads.float(), [Source(keys, keys, 0, 2, rows=rows)], 1.0)
