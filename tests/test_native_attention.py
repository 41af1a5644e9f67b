"""Native attention against float64, on every instruction set that this processor runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimemo.kernels import native, reference
from minimemo.kernels import native_attention as na
from tests.helpers import assert_close

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
VARIANTS = na.attention_variants() if native.unavailable() is None else ()
STORES = ("float32", "bfloat16", "packed8", "packed4")
# Of the largest output, by what products take: float32; weights rounded to 8 bits (bfloat16); all rounded to 14 bits.
TOLERANCE = {"float": 4e-6, "bfloat16": 3e-3, "bytes": 1e-3}
LSE_TOLERANCE = {"float": 2e-5, "bfloat16": 5e-5, "bytes": 2e-3}  # bfloat16: a query as the sum of two, 16 bits
FINE_KEYS = 4096  # that a single row meets so


class Case(NamedTuple):
    heads: int
    kv_heads: int
    rows: int
    tokens: int
    dim: int


# One key, one past a block, groups of 1, 2, 4, 7, 8, more keys than one split holds, more rows than one piece.
CASES = [
    Case(2, 2, 1, 1, 16),
    Case(14, 2, 1, 1500, 64),
    Case(14, 2, 3, 704, 64),
    Case(4, 1, 5, 130, 80),
    Case(6, 3, 17, 97, 48),
    Case(6, 2, 7, 65, 12),
    Case(8, 1, 2, 1000, 128),
    Case(3, 3, 9, 64, 256),
    Case(14, 2, 133, 300, 64),
    Case(2, 1, 70, 33, 32),
]


def _keys(kv_heads: int, tokens: int, dim: int, store: str, seed: int = 0) -> tuple[Any, Tensor, Tensor]:
    """A segment of that store, and what it holds in float64. Dense ones are views of a larger cache full of NaN."""
    random = torch.Generator().manual_seed(seed + 131 * tokens + dim)
    offset = 4 * torch.randn(kv_heads, 1, dim, generator=random)
    k, v = (torch.randn(kv_heads, tokens, dim, generator=random) for _ in range(2))
    k = k + offset
    if store.startswith("packed"):
        packed = reference.pack_kv(k, v, int(store[-1]))
        return na.PackedSegment(packed), *(x.double() for x in reference.unpack_kv(packed))
    dtype = getattr(torch, store)
    cache = torch.full((2, kv_heads, tokens + 3, dim), float("nan"), dtype=dtype)
    cache[0, :, :tokens], cache[1, :, :tokens] = k, v
    k, v = cache[0, :, :tokens], cache[1, :, :tokens]
    return na.DenseSegment(k, v), k.double(), v.double()


def _arithmetic(variant: str, stores: tuple[str, ...], dim: int) -> str:
    """The coarsest numbers that products of such a job take."""
    if dim % 16 == 0 and variant == "avx512bf16" and "bfloat16" in stores:
        return "bfloat16"
    quick = variant.startswith("avx512") and dim % 16 == 0
    return "bytes" if quick and any(store.startswith("packed") for store in stores) else "float"


def _wide(q: Tensor, arithmetic: str, tokens: int) -> Tensor:
    """The query that a job meets, in float64: rounded where all of its keys are bfloat16, but for one row over few."""
    rounded = arithmetic == "bfloat16" and (q.shape[1] > 1 or tokens > FINE_KEYS)
    return (q.bfloat16() if rounded else q).double()


def _check(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], arithmetic: str) -> None:
    assert_close(found[0], expected[0], "out", TOLERANCE[arithmetic])
    assert torch.equal(found[1].isinf(), expected[1].isinf())
    seen = ~expected[1].isinf()
    if seen.any():
        assert float((found[1] - expected[1])[seen].abs().max()) <= LSE_TOLERANCE[arithmetic]


def _whole_groups(case: Case, store: str) -> Case:
    return case._replace(tokens=(case.tokens + 63) // 64 * 64) if store.startswith("packed") else case


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case: Case, store: str, variant: str) -> None:
    heads, kv_heads, rows, tokens, dim = _whole_groups(case, store)
    segment, k, v = _keys(kv_heads, tokens, dim, store)
    q = torch.randn(heads, rows, dim, generator=torch.Generator().manual_seed(rows))
    last = torch.arange(tokens - rows, tokens)
    arithmetic = _arithmetic(variant, (store,), dim)
    query = _wide(q, arithmetic, tokens)
    for where, window in ((None, None), (last, None), (last, 50), (last, 1)):
        expected = reference.attention(query, k, v, scale=dim**-0.5, query_positions=where, window=window)
        found = na.segment_attention(
            q, [segment], scale=dim**-0.5, query_positions=where, window=window, threads=2, variant=variant
        )
        _check(found, expected, arithmetic)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prefix", STORES)
def test_shared_prefix_and_own_tails(prefix: str, variant: str) -> None:
    """Three sequences over one memory: each row sees the prefix and its own tail, up to its position."""
    heads, kv_heads, dim, shared, rows = 14, 2, 64, 1216, 5
    head, k, v = _keys(kv_heads, shared, dim, prefix)
    tails = [(0, 2, 30), (2, 3, 1), (3, 5, 65)]  # first row, last row + 1, keys; the last rows sit at the tail's end
    positions = torch.tensor([shared + 28, shared + 29, shared, shared + 63, shared + 64])
    q = torch.randn(heads, rows, dim, generator=torch.Generator().manual_seed(1))
    arithmetic = _arithmetic(variant, (prefix, "bfloat16"), dim)
    query = _wide(q, arithmetic, shared) if prefix == "bfloat16" else q.double()
    segments, expected = [head], []
    for index, (first, last, tokens) in enumerate(tails):
        own, own_k, own_v = _keys(kv_heads, tokens, dim, "bfloat16", seed=index + 1)
        segments.append(replace(own, start=shared, rows=(first, last)))
        keys, values = torch.cat((k, own_k), 1), torch.cat((v, own_v), 1)
        where = positions[first:last]
        expected.append(reference.attention(query[:, first:last], keys, values, scale=0.125, query_positions=where))
    found = na.segment_attention(q, segments, scale=0.125, query_positions=positions, threads=2, variant=variant)
    whole = torch.cat([out for out, _ in expected], 1), torch.cat([lse for _, lse in expected], 1)
    assert_close(found[0], whole[0], "out", TOLERANCE[arithmetic])
    within = LSE_TOLERANCE["bytes" if prefix.startswith("packed") else "bfloat16"]
    assert float((found[1] - whole[1]).abs().max()) <= within


@pytest.mark.skipif("avx512bf16" not in VARIANTS, reason="the processor multiplies no bfloat16")
@pytest.mark.parametrize("tokens", [(FINE_KEYS,), (FINE_KEYS - 64, 64), (FINE_KEYS + 1,), (FINE_KEYS, 1)], ids=str)
def test_a_single_row_is_exact_over_few_keys(tokens: tuple[int, ...]) -> None:
    """Its query, that is; over more keys it is rounded to bfloat16."""
    parts = [_keys(2, count, 64, "bfloat16", seed=index) for index, count in enumerate(tokens)]
    k, v = (torch.cat([part[i] for part in parts], 1) for i in (1, 2))
    q = torch.randn(14, 1, 64, generator=torch.Generator().manual_seed(3))
    _, found = na.segment_attention(q, [part[0] for part in parts], scale=0.125, variant="avx512bf16")
    exact, rounded = (reference.attention(query.double(), k, v, scale=0.125)[1] for query in (q, q.bfloat16()))
    few = sum(tokens) <= FINE_KEYS
    assert float((found - (exact if few else rounded)).abs().max()) <= LSE_TOLERANCE["bfloat16"]
    assert float((found - (rounded if few else exact)).abs().max()) > 10 * LSE_TOLERANCE["bfloat16"]


def test_segments_weigh_alike_whatever_their_store() -> None:
    """A key channel far off zero must not shift bfloat16 keys against packed ones: rounding the query once did."""
    random = torch.Generator().manual_seed(5)
    k, v = torch.randn(2, 128, 64, generator=random), torch.randn(2, 128, 64, generator=random)
    k[:, :, 0] = 160.0
    q = torch.randn(14, 1, 64, generator=random) + 0.3
    packed = reference.pack_kv(k[:, :64], v[:, :64], 8)
    tail = na.DenseSegment(k[:, 64:].bfloat16(), v[:, 64:].bfloat16())
    keys, values = reference.unpack_kv(packed)
    keys, values = (
        torch.cat((keys, tail.keys.float()), 1).double(),
        torch.cat((values, tail.values.float()), 1).double(),
    )
    expected = reference.attention(q.double(), keys, values, scale=0.125)
    found = na.segment_attention(q, [na.PackedSegment(packed), tail], scale=0.125)
    assert_close(found[0], expected[0], "out", 6e-3)
    assert float((found[1] - expected[1]).abs().max()) < 6e-3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("store", STORES)
def test_the_same_bits_on_any_number_of_threads(store: str, variant: str) -> None:
    segment, _, _ = _keys(2, 1984, 64, store)
    for rows in (1, 40):
        q = torch.randn(14, rows, 64, generator=torch.Generator().manual_seed(rows))
        where = torch.arange(1984 - rows, 1984)
        one, two, three = (
            na.segment_attention(q, [segment], scale=0.125, query_positions=where, threads=n, variant=variant)
            for n in (1, 2, 3)
        )
        for other in (two, three):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_that_see_nothing(variant: str) -> None:
    segment, k, v = _keys(2, 70, 32, "float32")
    q = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(0))
    where = torch.tensor([-1, 5, 200])
    expected = reference.attention(q.double(), k, v, scale=0.2, query_positions=where, window=20)
    assert expected[1].isinf().any(1).all()
    _check(
        na.segment_attention(q, [segment], scale=0.2, query_positions=where, window=20, variant=variant),
        expected,
        "float",
    )
    empty, lse = na.segment_attention(
        q, [na.DenseSegment(segment.keys[:, :0], segment.values[:, :0])], scale=0.2, variant=variant
    )
    assert bool((empty == 0).all()) and bool((lse == float("-inf")).all())
    assert na.segment_attention(q[:, :0], [segment], scale=0.2, variant=variant)[0].shape == (4, 0, 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_scores_and_nan(variant: str) -> None:
    """Scores of some thousands do not overflow; what is not a number stays so in its own row only."""
    segment, k, v = _keys(1, 200, 64, "float32")
    q = torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(0)) * 300
    expected = reference.attention(q.double(), k, v, scale=1.0)
    found = na.segment_attention(q, [segment], scale=1.0, variant=variant)
    assert float((found[1] / expected[1] - 1).abs().max()) < 1e-5
    q[1, 0, 3] = float("nan")
    broken = na.segment_attention(q, [segment], scale=1.0, variant=variant)
    assert bool(broken[0][1, 0].isnan().all()) and bool(broken[1][1, 0].isnan())
    for head, row in ((0, 0), (0, 1), (1, 1)):
        assert torch.equal(broken[0][head, row], found[0][head, row])


@st.composite
def _jobs(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    store = draw(st.sampled_from(STORES))
    dim = draw(st.integers(1, 17)) * (2 if store == "packed4" else 1) * draw(st.sampled_from((1, 8)))
    tokens = draw(st.integers(0, 4)) * 64 if store.startswith("packed") else draw(st.integers(0, 300))
    rows = draw(st.integers(0, 40))
    return {
        "heads": kv_heads * draw(st.integers(1, 9)),
        "kv_heads": kv_heads,
        "dim": min(dim, 256),
        "tokens": tokens,
        "rows": rows,
        "store": store,
        "window": draw(st.none() | st.integers(1, 200)),
        "start": draw(st.integers(-50, 1000)),
        "positions": draw(st.none() | st.lists(st.integers(-20, 350), min_size=rows, max_size=rows)),
        "variant": draw(st.sampled_from(VARIANTS)),
    }


@given(_jobs())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_shapes_at_random(job: dict[str, Any]) -> None:
    segment, k, v = _keys(job["kv_heads"], job["tokens"], job["dim"], job["store"])
    segment = replace(segment, start=job["start"])
    q = torch.randn(job["heads"], job["rows"], job["dim"], generator=torch.Generator().manual_seed(job["rows"]))
    where = None if job["positions"] is None else torch.tensor(job["positions"], dtype=torch.int64) + job["start"]
    window = job["window"] if where is not None else None
    arithmetic, scale = _arithmetic(job["variant"], (job["store"],), job["dim"]), job["dim"] ** -0.5
    expected = reference.attention(
        _wide(q, arithmetic, job["tokens"]),
        k,
        v,
        scale=job["dim"] ** -0.5,
        query_positions=where,
        key_start=job["start"],
        window=window,
    )
    found = na.segment_attention(
        q, [segment], scale=scale, query_positions=where, window=window, threads=2, variant=job["variant"]
    )
    _check(found, expected, arithmetic)


def _packed(**change: Any) -> na.PackedSegment:
    x = torch.linspace(-1, 1, 2 * 128 * 16).view(2, 128, 16)
    return na.PackedSegment(replace(reference.pack_kv(x, x, 8), **change))


Q, K = torch.zeros(4, 2, 16), torch.zeros(2, 9, 16)
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("^q: .*float64", {"q": Q.double()}),
    ("^q: .*2 dimensions", {"q": Q[0]}),
    ("^q: 4 heads do not share 3", {"segments": [na.DenseSegment(torch.zeros(3, 9, 16), torch.zeros(3, 9, 16))]}),
    ("^q: head dim 257", {"q": torch.zeros(4, 2, 257)}),
    ("^q: .*meta", {"q": Q.to("meta")}),
    ("^k: .*float16", {"segments": [na.DenseSegment(K.half(), K.half())]}),
    ("^k: shape", {"segments": [na.DenseSegment(torch.zeros(2, 9, 8), K)]}),
    ("^v: shape", {"segments": [na.DenseSegment(K, K[:, :8])]}),
    ("^v: .*bfloat16, but", {"segments": [na.DenseSegment(K, K.bfloat16())]}),
    ("^k: strides", {"segments": [na.DenseSegment(torch.zeros(9, 2, 16).transpose(0, 1), K)]}),
    ("^v: strides", {"segments": [na.DenseSegment(K, torch.zeros(2, 9, 32)[..., ::2])]}),
    ("^k of segment 1: shape", {"segments": [na.DenseSegment(K, K), na.DenseSegment(K[:1], K[:1])]}),
    ("^rows: 1 .. 3 of 2", {"segments": [na.DenseSegment(K, K, rows=(1, 3))]}),
    ("^segments: 1 to 64, got 0", {"segments": []}),
    ("^scale", {"scale": 0.0}),
    ("^scale", {"scale": float("nan")}),
    ("^window must", {"window": 0, "query_positions": torch.arange(2)}),
    ("^query_positions: a window", {"window": 3}),
    ("^query_positions: 3 for 2", {"query_positions": torch.arange(3)}),
    ("^query_positions: .*int32", {"query_positions": torch.arange(2, dtype=torch.int32)}),
    ("^variant", {"variant": "sse"}),
    ("^packed: 6 bits", {"segments": [_packed(bits=6)]}),
    ("^key_codes: shape", {"segments": [_packed(bits=4)]}),
    ("^key_codes: 9 tokens", {"segments": [_packed(key_codes=torch.zeros(2, 9, 16).byte())]}),
    ("^key_scale: shape", {"segments": [_packed(key_scale=torch.zeros(2, 1, 16).half())]}),
    ("^value_low: .*float32", {"segments": [_packed(value_low=torch.zeros(2, 128))]}),
    ("^value_low: strides", {"segments": [_packed(value_low=torch.zeros(2, 200).half()[:, :128])]}),
]


@pytest.mark.parametrize(("message", "change"), WRONG, ids=[message for message, _ in WRONG])
def test_refuses_what_does_not_fit(message: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"q": Q, "segments": [na.DenseSegment(K, K)], "scale": 1.0} | change
    with pytest.raises(ValueError, match=message):
        na.segment_attention(arguments.pop("q"), arguments.pop("segments"), **arguments)


def test_same_arguments_as_the_reference() -> None:
    segment, k, v = _keys(2, 40, 16, "float32")
    q = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    where = torch.arange(137, 140)
    arguments: dict[str, Any] = {"scale": 0.25, "query_positions": where, "key_start": 100, "window": 9}
    expected = reference.attention(q.double(), k, v, **arguments)
    _check(na.attention(q, segment.keys, segment.values, **arguments), expected, "float")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "dim"), [(64, 2), (192, 64), (128, 98), (0, 16)])
def test_packs_the_same_bits_as_the_reference(tokens: int, dim: int, dtype: torch.dtype, bits: int) -> None:
    random = torch.Generator().manual_seed(tokens + dim)
    wide = torch.randn(2, 3, tokens + 5, dim, generator=random).mul(torch.logspace(-9, 4, dim))
    k, v = wide.to(dtype)[:, :, :tokens]
    if tokens:
        k[0, :, 0] = 0.25  # one value: scale 0
        k[1, :64, -1] = torch.linspace(-65000, 65000, 64)
    expected, found = reference.pack_kv(k, v, bits), na.pack_kv(k, v, bits, threads=2)
    for field in ("key_codes", "key_scale", "key_low", "value_codes", "value_scale", "value_low"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field


def test_packs_into_a_cache() -> None:
    k, v = torch.randn(2, 2, 192, 16, generator=torch.Generator().manual_seed(0))
    whole, cache = na.pack_kv(k, v, 4), na.pack_kv(torch.zeros_like(k), torch.zeros_like(v), 4)
    na.pack_kv_into(cache, 0, k[:, :64], v[:, :64])
    na.pack_kv_into(cache, 64, k[:, 64:], v[:, 64:])
    for one, other in zip(reference.unpack_kv(cache), reference.unpack_kv(whole), strict=True):
        assert torch.equal(one, other)
    for first in (-64, 32, 128):
        with pytest.raises(ValueError, match="whole groups"):
            na.pack_kv_into(cache, first, k[:, :128], v[:, :128])


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), 65600.0])
def test_refuses_to_pack_what_float16_does_not_hold(bad: float) -> None:
    for letter, position in (("k", 0), ("v", 1)):
        kv = [torch.zeros(2, 64, 16), torch.zeros(2, 64, 16)]
        kv[position][1, 63, 15] = bad
        with pytest.raises(ValueError, match=f"^{letter}: numbers"):
            na.pack_kv(*kv, 8)
        with pytest.raises(ValueError, match="pack_kv"):
            reference.pack_kv(*kv, 8)
