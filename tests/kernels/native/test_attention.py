"""Native attention against float64, on every instruction set that this processor runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimemo.kernels import PackedSource, Source, native, torch_ops
from minimemo.kernels.native.attention import attention, attention_variants
from minimemo.kernels.native.library import library
from tests.helpers import assert_close
from tests.kernels import reference

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
VARIANTS = attention_variants() if native.unavailable() is None else ()
STORES = ("float32", "bfloat16", "packed8", "packed4")
# Of the largest output, by what products take: float32; weights rounded to 8 bits (bfloat16); all rounded to 14 bits.
TOLERANCE = {"float": 4e-6, "bfloat16": 3e-3, "bytes": 1e-3}
LSE_TOLERANCE = {"float": 2e-5, "bfloat16": 5e-5, "bytes": 2e-3}  # bfloat16: a query as the sum of two, 16 bits
FINE_KEYS, FEW_ROWS = 4096, 16  # keys that a single row meets so; rows of a step
AnySource: TypeAlias = Source | PackedSource


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
    Case(12, 2, 43, 700, 128),
]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    _use(request.param, monkeypatch)
    return request.param


def _use(variant: str, patch: pytest.MonkeyPatch) -> None:
    number = ("portable", "avx2", "avx512", "avx512bf16", "amx").index(variant)
    patch.setattr(library(), "attention_variant", number)


def _source(
    kv_heads: int, tokens: int, dim: int, store: str, *rest: Any, seed: int = 0, **more: Any
) -> tuple[AnySource, Source]:
    """A source of that store, and what it holds in float64. Dense ones are views of a larger cache full of NaN."""
    random = torch.Generator().manual_seed(seed + 131 * tokens + dim)
    offset = 4 * torch.randn(kv_heads, 1, dim, generator=random)
    k, v = (torch.randn(kv_heads, tokens, dim, generator=random) for _ in range(2))
    k = k + offset
    source: AnySource
    if store.startswith("packed"):
        packed = torch_ops.pack_kv(k, v, int(store[-1]))
        source, (k, v) = PackedSource(packed, *rest, **more), torch_ops.unpack_kv(packed)
    else:
        cache = torch.full((2, kv_heads, tokens + 3, dim), float("nan"), dtype=getattr(torch, store))
        cache[0, :, :tokens], cache[1, :, :tokens] = k, v
        k, v = cache[0, :, :tokens], cache[1, :, :tokens]
        source = Source(k, v, *rest, **more)
    return source, Source(k.double(), v.double(), *rest, **more)


def _queries(heads: int, rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(heads, rows, dim, generator=torch.Generator().manual_seed(seed))


def _arithmetic(variant: str, stores: tuple[str, ...], dim: int) -> str:
    """The coarsest numbers that products of such a job take."""
    if dim % 16 == 0 and variant in ("avx512bf16", "amx") and "bfloat16" in stores:
        return "bfloat16"
    quick = variant.startswith(("avx512", "amx")) and dim % 16 == 0
    return "bytes" if quick and any(store.startswith("packed") for store in stores) else "float"


def _wide(q: Tensor, arithmetic: str, tokens: int, variant: str) -> Tensor:
    """The query that a job meets, in float64: rounded where all of its keys are bfloat16, but for one row over few, and
    in tiles for the rows of a step."""
    fine = q.shape[1] == 1 and tokens <= FINE_KEYS
    fine |= variant == "amx" and q.shape[1] <= FEW_ROWS and q.shape[2] % 64 == 0
    rounded = arithmetic == "bfloat16" and not fine
    return (q.bfloat16() if rounded else q).double()


def _check(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], arithmetic: str) -> None:
    assert_close(found[0], expected[0], "out", TOLERANCE[arithmetic])
    assert torch.equal(found[1].isinf(), expected[1].isinf())
    seen = ~expected[1].isinf()
    if seen.any():
        assert float((found[1] - expected[1])[seen].abs().max()) <= LSE_TOLERANCE[arithmetic]


def _whole_groups(case: Case, store: str) -> Case:
    return case._replace(tokens=(case.tokens + 63) // 64 * 64) if store.startswith("packed") else case


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case: Case, store: str, variant: str) -> None:
    heads, kv_heads, rows, tokens, dim = _whole_groups(case, store)
    q, arithmetic = _queries(heads, rows, dim, rows), _arithmetic(variant, (store,), dim)
    for last_seen, window in ((None, None), (tokens - rows, None), (tokens - rows, 50), (tokens - rows, 1)):
        source, wide = _source(kv_heads, tokens, dim, store, 0, rows, last_seen, window)
        expected = reference.attention(_wide(q, arithmetic, tokens, variant), [wide], dim**-0.5)
        _check(attention(q, [source], dim**-0.5), expected, arithmetic)


@pytest.mark.parametrize("prefix", STORES)
def test_shared_prefix_and_own_tails(prefix: str, variant: str) -> None:
    """Three sequences over one memory: each row sees the prefix and its own tail, up to its position."""
    heads, kv_heads, dim, shared, rows = 14, 2, 64, 1216, 5
    q, arithmetic = _queries(heads, rows, dim, 1), _arithmetic(variant, (prefix, "bfloat16"), dim)
    query = _wide(q, arithmetic, shared, variant) if prefix == "bfloat16" else q.double()
    pairs = [_source(kv_heads, shared, dim, prefix, 0, rows)]
    for first, count, tokens in ((0, 2, 30), (2, 1, 1), (3, 2, 65)):  # a row's tokens sit at its tail's end
        pairs.append(_source(kv_heads, tokens, dim, "bfloat16", first, count, tokens - count, seed=first + 1))
    found = attention(q, [source for source, _ in pairs], 0.125)
    expected = reference.attention(query, [wide for _, wide in pairs], 0.125)
    assert_close(found[0], expected[0], "out", TOLERANCE[arithmetic])
    within = LSE_TOLERANCE["bytes" if prefix.startswith("packed") else "bfloat16"]
    assert float((found[1] - expected[1]).abs().max()) <= within


@pytest.mark.skipif("avx512bf16" not in VARIANTS, reason="the processor multiplies no bfloat16")
@pytest.mark.parametrize("tokens", [(FINE_KEYS,), (FINE_KEYS - 64, 64), (FINE_KEYS + 1,), (FINE_KEYS, 1)], ids=str)
def test_a_single_row_is_exact_over_few_keys(tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its query, that is; over more keys it is rounded to bfloat16."""
    _use("avx512bf16", monkeypatch)
    pairs = [_source(2, count, 64, "bfloat16", 0, 1, seed=index) for index, count in enumerate(tokens)]
    q = _queries(14, 1, 64, 3)
    _, found = attention(q, [source for source, _ in pairs], 0.125)
    wide = [wide for _, wide in pairs]
    exact, rounded = (reference.attention(query.double(), wide, 0.125)[1] for query in (q, q.bfloat16()))
    few = sum(tokens) <= FINE_KEYS
    assert float((found - (exact if few else rounded)).abs().max()) <= LSE_TOLERANCE["bfloat16"]
    assert float((found - (rounded if few else exact)).abs().max()) > 10 * LSE_TOLERANCE["bfloat16"]


def test_sources_weigh_alike_whatever_their_store() -> None:
    """A key channel far off zero must not shift bfloat16 keys against packed ones: rounding the query once did."""
    random = torch.Generator().manual_seed(5)
    k, v = torch.randn(2, 128, 64, generator=random), torch.randn(2, 128, 64, generator=random)
    k[:, :, 0] = 160.0
    q = torch.randn(14, 1, 64, generator=random) + 0.3
    packed = torch_ops.pack_kv(k[:, :64], v[:, :64], 8)
    sources = [PackedSource(packed, 0, 1), Source(k[:, 64:].bfloat16(), v[:, 64:].bfloat16(), 0, 1)]
    expected = reference.attention(q.double(), sources, 0.125)
    found = attention(q, sources, 0.125)
    assert_close(found[0], expected[0], "out", 6e-3)
    assert float((found[1] - expected[1]).abs().max()) < 6e-3


@pytest.mark.parametrize("store", STORES)
def test_the_same_bits_on_any_number_of_threads(store: str, variant: str) -> None:
    for rows in (1, 40):
        q, (source, _) = _queries(14, rows, 64, rows), _source(2, 1984, 64, store, 0, rows, 1984 - rows)
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(attention(q, [source], 0.125))
        for other in results[1:]:
            assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])


def test_rows_that_see_nothing(variant: str) -> None:
    """Before the first key, and with all keys behind their window."""
    q = _queries(4, 3, 32)
    pairs = [_source(2, 70, 32, "float32", row, 1, last_seen, 20) for row, last_seen in enumerate((-1, 5, 200))]
    expected = reference.attention(q.double(), [wide for _, wide in pairs], 0.2)
    assert expected[1].isinf().any(1).all()
    _check(attention(q, [source for source, _ in pairs], 0.2), expected, "float")
    source = _source(2, 70, 32, "float32", 0, 3)[0]
    assert isinstance(source, Source)
    empty, lse = attention(q, [replace(source, keys=source.keys[:, :0], values=source.values[:, :0])], 0.2)
    assert bool((empty == 0).all()) and bool((lse == float("-inf")).all())
    assert attention(q[:, :0], [replace(source, count=0)], 0.2)[0].shape == (4, 0, 32)


def test_large_scores_and_nan(variant: str) -> None:
    """Scores of some thousands do not overflow; what is not a number stays so in its own row only."""
    source, wide = _source(1, 200, 64, "float32", 0, 2)
    q = _queries(2, 2, 64) * 300
    expected = reference.attention(q.double(), [wide], 1.0)
    found = attention(q, [source], 1.0)
    assert float((found[1] / expected[1] - 1).abs().max()) < 1e-5
    q[1, 0, 3] = float("nan")
    broken = attention(q, [source], 1.0)
    assert bool(broken[0][1, 0].isnan().all()) and bool(broken[1][1, 0].isnan())
    for head, row in ((0, 0), (0, 1), (1, 1)):
        assert torch.equal(broken[0][head, row], found[0][head, row])


@given(st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_shapes_at_random(data: st.DataObject) -> None:
    """The rows in spans, each of which sees its own part of the keys."""
    draw = data.draw
    kv_heads, store, variant = draw(st.integers(1, 3)), draw(st.sampled_from(STORES)), draw(st.sampled_from(VARIANTS))
    packed = store.startswith("packed")
    dim = min(256, draw(st.integers(1, 17)) * (2 if packed else 1) * draw(st.sampled_from((1, 8))))
    tokens = draw(st.integers(0, 4)) * 64 if packed else draw(st.integers(0, 300))
    window = draw(st.none() | st.integers(1, 200))
    rows, pairs = 0, []
    for _ in range(draw(st.integers(1, 4))):
        count, last_seen = draw(st.integers(0, 12)), draw(st.integers(-20, 350))
        seen = last_seen if window is not None or draw(st.booleans()) else None
        pairs.append(_source(kv_heads, tokens, dim, store, rows, count, seen, window))
        rows += count
    q, arithmetic = _queries(kv_heads * draw(st.integers(1, 9)), rows, dim, rows), _arithmetic(variant, (store,), dim)
    expected = reference.attention(_wide(q, arithmetic, tokens, variant), [wide for _, wide in pairs], dim**-0.5)
    with pytest.MonkeyPatch.context() as patch:
        _use(variant, patch)
        _check(attention(q, [source for source, _ in pairs], dim**-0.5), expected, arithmetic)


def _packed(**change: Any) -> PackedSource:
    x = torch.linspace(-1, 1, 2 * 128 * 16).view(2, 128, 16)
    return PackedSource(replace(torch_ops.pack_kv(x, x, 8), **change), 0, 2)


Q, K = torch.zeros(4, 2, 16), torch.zeros(2, 9, 16)
THREE, WIDE = torch.zeros(3, 9, 16), torch.zeros(2, 9, 257)
WRONG: list[tuple[str, Tensor, Sequence[AnySource]]] = [
    ("^q: .*float64", Q.double(), [Source(K, K, 0, 2)]),
    ("^q: shape", Q[0], [Source(K, K, 0, 2)]),
    ("^q: 4 heads do not share 3", Q, [Source(THREE, THREE, 0, 2)]),
    ("^q: head dim 257", torch.zeros(4, 2, 257), [Source(WIDE, WIDE, 0, 2)]),
    ("^q: on meta", Q.to("meta"), [Source(K, K, 0, 2)]),
    ("^source 0: keys: .*float16", Q, [Source(K.half(), K.half(), 0, 2)]),
    ("^source 0: keys: shape", Q, [Source(torch.zeros(2, 9, 8), K, 0, 2)]),
    ("^source 0: values: shape", Q, [Source(K, K[:, :8], 0, 2)]),
    ("^source 0: values: .*bfloat16, expected", Q, [Source(K, K.bfloat16(), 0, 2)]),
    ("^source 0: keys: strides", Q, [Source(torch.zeros(9, 2, 16).transpose(0, 1), K, 0, 2)]),
    ("^source 0: values: elements of a row", Q, [Source(K, torch.zeros(2, 9, 32)[..., ::2], 0, 2)]),
    ("^source 1: keys: shape", Q, [Source(K, K, 0, 2), Source(K[:1], K[:1], 0, 2)]),
    ("^source 0: query tokens 1 .. 3 of 2", Q, [Source(K, K, 1, 3)]),
    ("^sources: 0, expected 1 to 64", Q, []),
    ("^source 0: window: 0, expected 1 or more", Q, [Source(K, K, 0, 2, 7, 0)]),
    ("^source 0: window: 3, expected .* last_seen", Q, [Source(K, K, 0, 2, None, 3)]),
    ("^source 1: window: 4, the others have 3", Q, [Source(K, K, 0, 2, 7, 3), Source(K, K, 0, 2, 7, 4)]),
    ("^source 0: bits: 6", Q, [_packed(bits=6)]),
    ("^source 0: key_scale: shape", Q, [_packed(bits=4)]),
    ("^source 0: key_codes: 9 tokens", Q, [_packed(key_codes=torch.zeros(2, 9, 16).byte())]),
    ("^source 0: key_scale: shape", Q, [_packed(key_scale=torch.zeros(2, 1, 16).half())]),
    ("^source 0: value_low: .*float32", Q, [_packed(value_low=torch.zeros(2, 128))]),
    ("^source 0: value_low: strides", Q, [_packed(value_low=torch.zeros(2, 200).half()[:, :128])]),
]


@pytest.mark.parametrize(("message", "q", "sources"), WRONG, ids=[message for message, _, _ in WRONG])
def test_refuses_what_does_not_fit(message: str, q: Tensor, sources: Sequence[AnySource]) -> None:
    with pytest.raises(ValueError, match=message):
        attention(q, sources, 1.0)


@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_refuses_a_scale_that_is_none(scale: float) -> None:
    with pytest.raises(ValueError, match=r"^scale"):
        attention(Q, [Source(K, K, 0, 2)], scale)
