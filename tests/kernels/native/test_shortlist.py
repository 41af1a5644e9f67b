"""The likeliest outputs by way of a coarse copy, against the whole product, on every instruction set that runs here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimemo.engine.engine import Engine
from minimemo.kernels import native
from minimemo.kernels.native import expand_rows, library, pack_weights, packed_linear
from minimemo.kernels.native.shortlist import Shortlist, largest_linear, shortlist
from minimemo.models.decoder import Decoder, DecoderWeights, Row
from minimemo.models.weights import load_decoder
from tests.models.test_decoder import _reference

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
VARIANTS = native.variants() if native.unavailable() is None else ("portable",)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MINIMEMO_NATIVE", request.param)
    library._opened.cache_clear()
    yield request.param
    library._opened.cache_clear()


def _codes(rows: int, columns: int, offsets: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(rows + columns)
    codes = torch.randn(rows, columns, generator=generator).mul(40).round().clamp(-127, 127).to(torch.int8)
    scales = torch.rand(rows, columns // 32, generator=generator).mul(0.01).half().float()
    return codes, scales, torch.rand(scales.shape, generator=generator).mul(0.1).half().float() if offsets else None


def _made(rows: int, columns: int, offsets: bool = False) -> Shortlist:
    parts = _codes(rows, columns, offsets)
    return shortlist(pack_weights(*parts), *parts)


def _check(found: Tensor, x: Tensor, made: Shortlist) -> float:
    """Tiles of 16 outputs are those of one of the matrices, the largest of the exact one. Share of exact ones."""
    exact = packed_linear(x, made.exact)
    coarse = torch.cat([packed_linear(few, made.coarse, exact=False) for few in x.split(16)])
    assert torch.equal(found.argmax(1), exact.argmax(1)) and torch.equal(found.amax(1), exact.amax(1))
    tiles = torch.zeros(found.shape, dtype=torch.bool)
    for at in range(0, found.shape[1], 16):
        own = slice(at, at + 16)
        tiles[:, own] = (found[:, own] == exact[:, own]).all(1, keepdim=True)
    assert torch.equal(found[~tiles], coarse[~tiles])
    return float(tiles.float().mean())


@pytest.mark.parametrize("offsets", [False, True])
def test_the_largest_are_exact(variant: str, offsets: bool) -> None:
    made = _made(4001, 288, offsets)
    x = torch.randn(16, 288, generator=torch.Generator().manual_seed(1))
    # Few outputs are far above the others, as a model's are.
    x[:8] += 8 * expand_rows(made.exact, torch.arange(5, 85, 10))
    found = largest_linear(x, made)
    assert _check(found[:8], x[:8], made) < 0.5
    _check(found, x, made)
    coarse = packed_linear(x, made.coarse, exact=False)
    assert not torch.equal(coarse.argmax(1), found.argmax(1))  # the coarse copy alone would be wrong
    torch.set_num_threads(1)
    for row in (0, 9):
        assert torch.equal(largest_linear(x[row : row + 1], made)[0], found[row])


@pytest.mark.parametrize(("group", "offsets"), [(32, False), (32, True), (16, False)])
def test_the_coarse_copy_is_the_nearest_of_16_steps(group: int, offsets: bool) -> None:
    generator = torch.Generator().manual_seed(group)
    codes = torch.randn(130, 320, generator=generator).mul(40).round().clamp(-128, 127).to(torch.int8)
    scales = torch.rand(130, 320 // group, generator=generator).mul(0.01)
    scales[3], scales[4], scales[5] = 0.0, 1e-9, 1e-6  # nothing, below half precision, among its subnormals
    shift = torch.rand(scales.shape, generator=generator).mul(0.1) * (scales > 0.01 / 2) if offsets else None
    made = shortlist(pack_weights(codes, scales, shift), codes, scales, shift)
    wide = expand_rows(made.exact, torch.arange(130)).view(130, -1, 32)
    step = (wide.abs().amax(2, keepdim=True) / 7.5).half().float()
    nearest = (wide / step).nan_to_num(0.0).round().clamp(-8, 7) * step
    found = expand_rows(made.coarse, torch.arange(130)).view(130, -1, 32)
    assert ((found - nearest).abs() <= step * (1 + 1e-6)).all()
    assert (found != nearest).float().mean() < 1e-3  # ties
    assert made.noise == pytest.approx(float((found - wide).square().mean().sqrt()), rel=1e-4)


def test_weights_that_are_not_finite_stay_visible() -> None:
    codes, scales, _ = _codes(640, 64)
    scales[100, 0] = float("nan")
    made = shortlist(pack_weights(codes, scales), codes, scales)
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(largest_linear(x, made).isnan(), packed_linear(x, made.exact).isnan())


def test_what_does_not_fit_is_refused() -> None:
    codes, scales, _ = _codes(32, 64)
    exact = pack_weights(codes, scales)
    for wrong in (scales[:1], scales.half(), scales[:, :1]):
        with pytest.raises(ValueError, match="scales"):
            shortlist(exact, codes, wrong)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 20), st.booleans())
def test_any_shape(rows: int, blocks: int, count: int, offsets: bool) -> None:
    made = _made(rows, blocks * 32, offsets)
    x = torch.randn(count, blocks * 32)
    _check(largest_linear(x, made), x, made)


def test_zeros_and_what_is_not_finite(variant: str) -> None:
    made = _made(100, 64)
    x = torch.zeros(3, 64)
    x[1, 3], x[2, 40] = torch.inf, torch.nan
    found = largest_linear(x, made)
    assert not found[0].any() and not found[1].isfinite().any() and not found[2].isfinite().any()
    nothing = torch.zeros(20, 64, dtype=torch.int8), torch.zeros(20, 2)
    assert not largest_linear(torch.randn(2, 64), shortlist(pack_weights(*nothing), *nothing)).any()
    assert largest_linear(torch.zeros(0, 64), made).shape == (0, 100)


def test_errors_name_the_argument() -> None:
    parts = _codes(64, 64)
    with pytest.raises(ValueError, match=r"codes \(32, 64\) are not of a matrix \(64, 64\)"):
        shortlist(pack_weights(*parts), parts[0][:32], parts[1][:32])
    with pytest.raises(ValueError, match=r"x: shape \(1, 32\), expected \(any, 64\)"):
        largest_linear(torch.zeros(1, 32), _made(64, 64))


def test_decoding_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _reference("qwen2", tmp_path)
    decoder, asked = load_decoder(tmp_path, dtype=torch.float32), []
    forward = decoder.forward

    def spy(*arguments: Any, **options: Any) -> Tensor:
        asked.append(options["logits"])
        return forward(*arguments, **options)

    monkeypatch.setattr(decoder, "forward", spy)
    engine = Engine(decoder)
    memory = engine.new_cache(20)
    list(engine.generate(memory, [4], max_tokens=3))
    assert asked == ["last", "likeliest", "likeliest"]
    asked.clear()
    engine.generate_batch(memory, [[8, 9], [10]], max_tokens=3)
    assert asked == ["last", "likeliest", "likeliest"]


def test_the_decoder_uses_it(tmp_path: Path) -> None:
    _reference("qwen2", tmp_path)
    decoder = load_decoder(tmp_path, dtype=torch.float32)
    ids = torch.tensor([5, 6, 7])

    def logits(wanted: str, weights: DecoderWeights) -> Tensor:
        engine = Engine(Decoder(decoder.config, weights))
        return engine.decoder.forward(ids, [Row(engine.new_cache(1), 1) for _ in ids], logits=wanted)

    whole = logits("last", decoder.weights)
    assert torch.equal(logits("likeliest", decoder.weights), whole)
    made = Shortlist(*(pack_weights(torch.ones(97, 48, dtype=torch.int8), torch.ones(97, 3)) for _ in range(2)), 0.0)
    short = dataclasses.replace(decoder.weights, shortlist=made)
    assert torch.equal(logits("last", short), whole)
    assert not torch.equal(logits("likeliest", short), whole)
