"""Attention over several sources: the kernel that is picked, against one softmax over all keys in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimemo import kernels
from minimemo.kernels import PackedSource, Source, native, placement, reference
from minimemo.kernels.attention import CANDIDATES
from tests.helpers import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Keys and values are taken as rounded. Half precision rounds queries and weights too; torch alone serves float16.
NEAR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def _expected(q: Tensor, sources: list[Source], scale: float) -> Tensor:
    heads, tokens, _ = q.shape
    group = heads // sources[0].keys.shape[0]
    scores, values = [], []
    for source in sources:
        keys = source.keys.double().repeat_interleave(group, dim=0)
        values.append(source.values.double().repeat_interleave(group, dim=0))
        index, token = torch.arange(keys.shape[1]), torch.arange(tokens)[:, None] - source.first
        seen = ((token >= 0) & (token < source.count)).expand(tokens, len(index))
        if source.last_seen is not None:
            seen = seen & (index <= source.last_seen + token)
            if source.window is not None:
                seen = seen & (index > source.last_seen + token - source.window)
        scores.append((q.double() @ keys.transpose(1, 2) * scale).masked_fill(~seen, float("-inf")))
    joined = torch.cat(scores, dim=2)
    lse = torch.logsumexp(joined, dim=2, keepdim=True).nan_to_num(neginf=0.0)
    return (joined - lse).exp() @ torch.cat(values, dim=1)


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


def test_candidates_say_why_they_cannot() -> None:
    q, keys = _random(4, 5, 32, dtype=torch.float32), _random(2, 50, 32, dtype=torch.float32)
    source = Source(keys, keys, 0, 5, 45)
    by_name = {candidate.name: candidate for candidate in CANDIDATES}
    assert "GPU" in str(by_name["triton"].refuses(q, [source]))
    assert "float32 queries" in str(by_name["native"].refuses(q.double(), [source]))
    assert "float32 and bfloat16 keys" in str(by_name["native"].refuses(q, [Source(keys.half(), keys.half(), 0, 5)]))
    assert by_name["native"].refuses(q, [source]) == native.unavailable()
    assert by_name["torch"].refuses(q, [source]) is None


def test_triton_declines_what_its_kernels_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the next candidate serves the call, instead of an error in the middle of a pass."""
    pytest.importorskip("triton")
    monkeypatch.setattr(placement, "TRITON_DEVICE", "cpu")
    refuses = CANDIDATES[0].refuses

    def ask(q_dtype: torch.dtype, k_dtype: torch.dtype, dim: int = 32) -> str | None:
        q, keys = _random(4, 5, dim, dtype=q_dtype), _random(2, 50, dim, dtype=k_dtype)
        return refuses(q, [Source(keys, keys, 0, 5, 45)])

    assert ask(torch.float32, torch.float32) is None and ask(torch.float16, torch.float16, 256) is None
    for dtypes in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64), (torch.float16, torch.float32)):
        assert "one dtype" in str(ask(*dtypes))
    assert "at most 256 dims" in str(ask(torch.float32, torch.float32, 258))
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
    packed = reference.pack_kv(*(_random(2, 128, 32, dtype=torch.float32, seed=seed) for seed in (1, 2)), bits)
    own = [_random(2, 29, 32, dtype=torch.float32, seed=seed) for seed in (3, 4)]
    seen = None if window is None else 148
    tail = Source(*own, 0, 9, 20, window)
    by_name = {one.name: one for one in CANDIDATES}
    sources = [PackedSource(packed, 0, 9, seen, window), tail]
    assert by_name[candidate].refuses(q, sources) is None
    expected = _expected(q, [Source(*reference.unpack_kv(packed), 0, 9, seen, window), tail], 0.2)
    near = 2e-3 if candidate == "native" else 2e-6  # native kernels round queries to integers of 14 bits
    assert_close(by_name[candidate].run(q, sources, 0.2), expected, within=near)
