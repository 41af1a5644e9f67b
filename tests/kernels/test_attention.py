"""Attention over several sources: the kernel that is picked, against one softmax over all keys in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from minimemo import kernels
from minimemo.kernels import PackedSource, Source, native, torch_ops, triton
from minimemo.kernels.attention import CANDIDATES
from tests.helpers import assert_close
from tests.kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Keys and values are taken as rounded. Half precision rounds queries and weights too; torch alone serves float16.
NEAR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def _expected(q: Tensor, sources: Sequence[Source | PackedSource], scale: float) -> Tensor:
    return reference.attention(q.double(), sources, scale)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 30, 2000])
@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 1, 12), (40, 7, 30)])
def test_a_shared_memory_and_own_tails(counts: tuple[int, ...], window: int | None, dtype: torch.dtype) -> None:
    """Rows of a batch over one memory, each with a tail of its own, as the decoder asks for them."""
    tokens, first = sum(counts), 0
    q = _random(6, tokens, 32, dtype=torch.float32)
    memory = [_random(2, 600, 32, dtype=dtype, seed=seed)[:, :555] for seed in (1, 2)]
    sources = [Source(*memory, 0, tokens)] if window is None else []
    for row, count in enumerate(counts):
        own = [_random(2, 20 + count, 32, dtype=dtype, seed=3 + row + seed) for seed in (0, 10)]
        sources.append(Source(*own, first, count, 20, window))
        if window is not None:
            sources.append(Source(*memory, first, count, 575, window))
        first += count
    assert_close(kernels.attend(q, sources, 0.2), _expected(q, sources, 0.2), within=NEAR[dtype])


def test_candidates_serve_what_they_can() -> None:
    q, keys = _random(4, 5, 32, dtype=torch.float32), _random(2, 50, 32, dtype=torch.float32)
    source, half = Source(keys, keys, 0, 5, 45), Source(keys.half(), keys.half(), 0, 5)
    by_name = {candidate.name: candidate for candidate in CANDIDATES}
    assert not by_name["triton"].serves(q, [source])  # on the CPU
    assert not by_name["native"].serves(q.double(), [source]) and not by_name["native"].serves(q, [half])
    assert by_name["native"].serves(q, [source]) == (native.unavailable() is None)
    assert by_name["torch"].serves(q, [source])


def test_triton_declines_what_its_kernels_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the next candidate serves the call, instead of an error in the middle of a pass."""
    pytest.importorskip("triton")
    monkeypatch.setattr(triton, "DEVICE", "cpu")

    def serves(q_dtype: torch.dtype, k_dtype: torch.dtype, dim: int = 32) -> bool:
        q, keys = _random(4, 5, dim, dtype=q_dtype), _random(2, 50, dim, dtype=k_dtype)
        return CANDIDATES[0].serves(q, [Source(keys, keys, 0, 5, 45)])

    assert serves(torch.float32, torch.float32) and serves(torch.float16, torch.float16, 256)
    for dtypes in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64), (torch.float16, torch.float32)):
        assert not serves(*dtypes)
    assert not serves(torch.float32, torch.float32, 258)
    q, keys = _random(4, 5, 258, dtype=torch.float64), _random(2, 50, 258, dtype=torch.float64)
    sources = [Source(keys, keys, 0, 5, 45)]
    assert_close(kernels.attend(q, sources, 0.1), _expected(q, sources, 0.1), within=1e-12)


@pytest.mark.parametrize("candidate", ["native", "torch"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("window", [None, 70])
def test_packed_sources(window: int | None, bits: int, candidate: str) -> None:
    """As over the unpacked numbers, beside a dense source."""
    if candidate == "native" and native.unavailable() is not None:
        pytest.skip(str(native.unavailable()))
    q = _random(6, 9, 32, dtype=torch.float32)
    packed = torch_ops.pack_kv(*(_random(2, 128, 32, dtype=torch.float32, seed=seed) for seed in (1, 2)), bits)
    own = [_random(2, 29, 32, dtype=torch.float32, seed=seed) for seed in (3, 4)]
    seen = None if window is None else 148
    by_name = {one.name: one for one in CANDIDATES}
    sources = [PackedSource(packed, 0, 9, seen, window), Source(*own, 0, 9, 20, window)]
    assert by_name[candidate].serves(q, sources)
    expected = _expected(q, sources, 0.2)
    near = 2e-3 if candidate == "native" else 2e-6  # native kernels round queries to integers of 14 bits
    assert_close(by_name[candidate].run(q, sources, 0.2), expected, within=near)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (7, 1), (8, 1)])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 97), (17, 17), (33, 97), (5, 600)])
def test_torch_on_one_source(heads: int, kv_heads: int, rows: int, tokens: int, dtype: torch.dtype) -> None:
    q = _random(heads, rows, 32, dtype=dtype)
    k, v = (_random(kv_heads, tokens, 32, dtype=dtype, seed=seed) for seed in (1, 2))
    past = tokens - rows
    for last_seen, window in ((None, None), (past, None), (past, 1), (past, 16), (past, 1000), (past + 40, 50)):
        source = Source(k, v, 0, rows, last_seen, window)
        assert_close(torch_ops.attention(q, [source], 0.2), _expected(q, [source], 0.2), f"{last_seen} {window}")


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("tokens", [0, 1, 97])
def test_torch_merges_disjoint_keys(tokens: int, dtype: torch.dtype) -> None:
    """Two key sets, one of them possibly empty, or all behind the window of some rows."""
    q = _random(6, 5, 64, dtype=dtype)
    k, v = _random(2, 130, 64, dtype=dtype, seed=1), _random(2, 130, 64, dtype=dtype, seed=2)
    for last_seen, window in ((None, None), (tokens + 5, 7)):
        first = Source(k[:, :tokens], v[:, :tokens], 0, 5, last_seen, window)
        second = Source(k[:, tokens:], v[:, tokens:], 0, 5)
        for sources in ([first, second], [second, first], [first]):
            assert_close(torch_ops.attention(q, sources, 0.1), _expected(q, sources, 0.1))


def test_torch_names_the_offender() -> None:
    q, k = torch.zeros(4, 2, 8), torch.zeros(2, 5, 8)
    for source, message in (
        (Source(torch.zeros(3, 5, 8), torch.zeros(3, 5, 8), 0, 2), "do not fit"),
        (Source(k, k.double(), 0, 2), "dtypes differ"),
        (Source(k, k, 0, 2, 0), "2 queries from key 0 on do not end at the last of 5 keys"),
    ):
        with pytest.raises(ValueError, match=message):
            torch_ops.attention(q, [source], 1.0)
