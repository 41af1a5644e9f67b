"""Native attention against float64, on every instruction set that this processor runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimemo import kernels
from minimemo.kernels import Source, native, native_attention, reference

from .helpers import assert_close

VARIANTS = native.variants() if native.unavailable() is None else ()
pytestmark = pytest.mark.skipif(not VARIANTS, reason=str(native.unavailable()))
# Against float64 over the same, already rounded, keys and values. Pairs of bfloat16 round queries and weights too.
FLOAT32, PAIRS = 2e-6, 8e-3


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MINIMEMO_NATIVE", request.param)
    native._library.cache_clear()
    yield request.param
    native._library.cache_clear()


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def _view(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Part of a larger cache: heads lie further apart than their tokens reach; what lies between must not be read."""
    heads, tokens, dim = shape
    cache = torch.full((heads, tokens + 7, dim), torch.nan, dtype=dtype)
    cache[:, :tokens] = _random(*shape, dtype=dtype, seed=seed)
    return cache[:, :tokens]


def _expected(q: Tensor, sources: list[Source], scale: float) -> tuple[Tensor, Tensor]:
    """By one softmax over all keys of all sources, in float64."""
    heads, tokens, _ = q.shape
    group = heads // sources[0].keys.shape[0]
    scores, values = [], []
    for source in sources:
        keys = source.keys.double().repeat_interleave(group, dim=0)
        values.append(source.values.double().repeat_interleave(group, dim=0))
        part = q.double() @ keys.transpose(1, 2) * scale
        index, token = torch.arange(keys.shape[1]), torch.arange(tokens)[:, None] - source.first
        seen = (token >= 0) & (token < source.count)
        if source.last_seen is not None:
            seen = seen & (index <= source.last_seen + token)
        if source.window is not None:
            last = source.last_seen if source.last_seen is not None else 1 << 40
            seen = seen & (index > last + token - source.window)
        scores.append(part.masked_fill(~seen.expand(tokens, -1), float("-inf")))
    joined = torch.cat(scores, dim=2)
    lse = torch.logsumexp(joined, dim=2)
    weights = (joined - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    return weights @ torch.cat(values, dim=1), lse


def _compare(q: Tensor, sources: list[Source], variant: str) -> None:
    scale = q.shape[2] ** -0.5
    found, lse = native_attention.attention(q, sources, scale=scale, threads=2)
    expected = _expected(q, sources, scale)
    pairs = variant.endswith("bf16") and any(source.keys.dtype == torch.bfloat16 for source in sources)
    assert_close(found, expected[0], f"out, {variant}", PAIRS if pairs else FLOAT32)
    assert_close(lse, expected[1], f"lse, {variant}", PAIRS if pairs else FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 64), (4, 2, 80), (7, 1, 96), (8, 1, 128), (4, 4, 256)])
def test_causal_chunks(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, variant: str) -> None:
    for rows, tokens in ((1, 1), (1, 97), (3, 33), (16, 300), (17, 17), (33, 600)):
        q = _random(heads, rows, dim)
        keys, values = (_view(kv_heads, tokens, dim, dtype=dtype, seed=seed) for seed in (1, 2))
        for window in (None, 1, 16, 1000):
            _compare(q, [Source(keys, values, 0, rows, tokens - rows, window)], variant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_memory_and_own_tails(dtype: torch.dtype, variant: str) -> None:
    """Three rows of a batch over one memory, each with a tail of its own, few and many tokens."""
    for counts in ((1, 1, 1), (2, 5, 1), (9, 30, 40)):
        tokens, first = sum(counts), 0
        q = _random(6, tokens, 64)
        memory = [_view(2, 700, 64, dtype=dtype, seed=seed) for seed in (1, 2)]
        for window in (None, 50):
            sources = [Source(*memory, 0, tokens)] if window is None else []
            first = 0
            for row, count in enumerate(counts):
                own = [_view(2, 40 + count, 64, dtype=dtype, seed=3 + row + seed) for seed in (0, 10)]
                sources.append(Source(*own, first, count, 40, window))
                if window is not None:
                    sources.append(Source(*memory, first, count, 740, window))
                first += count
            _compare(q, sources, variant)


@settings(max_examples=40, deadline=None)
@given(
    group=st.integers(1, 8), kv_heads=st.integers(1, 3), rows=st.integers(1, 40), past=st.integers(0, 530),
    dim=st.sampled_from([8, 24, 64, 72, 80, 128]), window=st.none() | st.integers(1, 600), half=st.booleans(),
    name=st.sampled_from(VARIANTS or ("none",)),
)  # fmt: skip
def test_any_shape(
    group: int, kv_heads: int, rows: int, past: int, dim: int, window: int | None, half: bool, name: str
) -> None:
    dtype = torch.bfloat16 if half else torch.float32
    keys, values = (_view(kv_heads, past + rows, dim, dtype=dtype, seed=seed) for seed in (1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIMEMO_NATIVE", name)
        native._library.cache_clear()
        _compare(_random(group * kv_heads, rows, dim), [Source(keys, values, 0, rows, past, window)], name)
    native._library.cache_clear()


def test_nothing_seen_gives_nothing(variant: str) -> None:
    """A window that has moved past a shared memory: zeros and -inf, so that merging leaves the tail alone."""
    q, keys = _random(2, 3, 16), _random(1, 10, 16)
    out, lse = native_attention.attention(q, [Source(keys, keys, 0, 3, 30, 4)], scale=1.0)
    assert not out.any() and bool((lse == float("-inf")).all())
    out, lse = native_attention.attention(q, [Source(keys[:, :0], keys[:, :0], 0, 3)], scale=1.0)
    assert not out.any() and bool((lse == float("-inf")).all())
    big = native_attention.attention(q * 1e4, [Source(keys, keys, 0, 3)], scale=1.0)
    assert all(bool(tensor.isfinite().all()) for tensor in big)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_whatever_the_threads(dtype: torch.dtype) -> None:
    keys, values = (_view(2, 3000, 64, dtype=dtype, seed=seed) for seed in (1, 2))
    for rows in (1, 5, 200):
        q = _random(14, rows, 64)
        source = Source(keys, values, 0, rows, 3000 - rows)
        one = native_attention.attention(q, [source], scale=0.1, threads=1)
        for threads in (2, 3):
            other = native_attention.attention(q, [source], scale=0.1, threads=threads)
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_attend_picks_a_kernel_that_can() -> None:
    """Native for float32 queries on the CPU, torch for the rest; both mean the same."""
    keys, values = _random(2, 50, 32), _random(2, 50, 32, seed=1)
    q = _random(4, 5, 32)
    sources = [Source(keys[:, :30], values[:, :30], 0, 5), Source(keys[:, 30:], values[:, 30:], 0, 5, 15)]
    expected = _expected(q, sources, 0.2)[0]
    assert_close(kernels.attend(q, sources, 0.2), expected, within=FLOAT32)
    double = [Source(s.keys.double(), s.values.double(), s.first, s.count, s.last_seen) for s in sources]
    assert_close(kernels.attend(q.double(), double, 0.2), expected)
    whole = reference.attention(
        q.double(), keys.double(), values.double(), scale=0.2, query_positions=torch.arange(45, 50)
    )
    assert_close(expected, whole[0])


def test_errors_name_the_argument() -> None:
    q, keys = _random(4, 2, 8), _random(2, 5, 8)

    def refused(match: str, q: Tensor = q, keys: Tensor = keys, values: Tensor | None = None, **fields: object) -> None:
        source = Source(keys, keys if values is None else values, **({"first": 0, "count": 2} | fields))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=match):
            native_attention.attention(q, [source], scale=1.0)

    refused("q must be .* float32", q=q.double())
    refused("q must be", q=q.transpose(1, 2))
    refused("do not share 3 kv heads", keys=_random(3, 5, 8))
    refused("keys must be .* got torch.float64", keys=keys.double())
    refused(r"keys \(2, 5, 9\), expected \(2, T, 8\)", keys=_random(2, 5, 9))
    refused("the tokens of a head must be neighbours", keys=_random(5, 2, 8).transpose(0, 1))
    refused("keys .* and values .* differ", values=_random(2, 6, 8))
    refused("a source for tokens 1 . 2 of 2", first=1)
    refused("at least -1 and 1", window=0)
    with pytest.raises(ValueError, match="no keys to attend to"):
        native_attention.attention(q, [], scale=1.0)
    with pytest.raises(ValueError, match=r"out \(4, 3, 8\) is not shaped like q"):
        native_attention.attention(q, [Source(keys, keys, 0, 2)], scale=1.0, out=_random(4, 3, 8))
