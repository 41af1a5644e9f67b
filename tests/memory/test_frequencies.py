"""Groups of tokens as frequencies, and the codec that stores them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from minimemo.errors import MemoError
from minimemo.kernels import native
from minimemo.kernels.transform import along_tokens
from minimemo.memory.frequencies import loudness, order, to_frequencies
from minimemo.memory.profile import Profile, Statistics, save_profile
from minimemo.memory.size import bytes_per_token
from minimemo.memory.tiers import make_codec
from minimemo.memory.transform import TransformCodec
from tests.memory.test_transform import LAYOUT, block_of

TOKENS = [1, 5, 16, 17, 64, 226, 256]


def _slow(tokens: int, seed: int) -> torch.Tensor:
    """(L, G, n, D): twelve directions over all layers, along each of which neighbouring tokens are alike."""
    directions = torch.randn(12, 64, generator=torch.Generator().manual_seed(7))
    steps = torch.randn(tokens + 40, 12, generator=torch.Generator().manual_seed(seed))
    walk = torch.stack([steps[t : t + 40].mul(0.7 ** torch.arange(40)[:, None]).sum(0) for t in range(tokens)])
    return (walk @ directions).view(tokens, 4, 2, 8).permute(1, 2, 0, 3).contiguous()


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    statistics = Statistics(64)
    for seed in range(4):
        statistics.add(_slow(256, seed).permute(2, 0, 1, 3).flatten(1))
    keys, values = ([statistics.transform(torch.tensor([1.0, 2.0, 0.5, 1.0]))] for _ in range(2))
    return save_profile("f" * 64, keys, values, tmp_path_factory.mktemp("profiles"))


def _codec(profile: Profile, time: int, step: float = 0.5, ranges: int = 0) -> TransformCodec:
    return TransformCodec(LAYOUT, profile, step, step, sinks=0, time=time, ranges=ranges)


@pytest.mark.parametrize("group", [1, 2, 7, 16, 33, 64])
def test_frequencies_keep_the_energy(group: int) -> None:
    assert np.square(loudness(group)).mean() == pytest.approx(1)
    assert (np.diff(loudness(group)) < 1e-9).all()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("group", [3, 16, 64])
def test_there_and_back(tokens: int, group: int) -> None:
    x = torch.randn(3, tokens, 37)
    found = x.clone()
    to_frequencies(found, group)
    assert torch.allclose(found.norm(dim=1), x.norm(dim=1), atol=1e-5)
    assert tokens == 1 or not torch.allclose(found, x, atol=0.1)
    to_frequencies(found, group, inverse=True)
    assert torch.allclose(found, x, atol=1e-5)


def test_a_slow_wave_is_one_low_frequency() -> None:
    t = torch.arange(16)
    x = torch.cos(torch.pi / 16 * (t + 0.5) * 3)[None, :, None].clone()
    to_frequencies(x, 16)
    assert x[0, 3, 0] == pytest.approx(8**0.5) and float(x[0, :, 0].abs().sort().values[-2]) < 1e-5


@pytest.mark.skipif(native.unavailable() is not None, reason="needs the native library")
@pytest.mark.parametrize("group", [1, 5, 16, 64])
def test_the_same_bits_natively_in_torch_and_on_any_threads(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, before = torch.randn(2, 3 * group, 71), torch.get_num_threads()
    matrix, found = torch.randn(group, group), []
    whole = torch.zeros(4, 3 * group, 71)
    for way in ("one thread", "two", "apart", "torch"):
        torch.set_num_threads(1 if way == "one thread" else 2)
        if way == "torch":
            monkeypatch.setattr(native, "unavailable", lambda: "not here")
        y = whole[::2] if way == "apart" else x.clone()
        y.copy_(x)
        along_tokens(matrix, y)
        found.append(y.clone())
    torch.set_num_threads(before)
    assert all(torch.equal(y, found[0]) for y in found)
    exact = (matrix.double() @ x.double().unflatten(1, (-1, group))).flatten(1, 2)
    assert torch.allclose(found[0].double(), exact, atol=1e-4)
    assert not bool(whole[1].any())


def test_shapes_that_do_not_fit() -> None:
    square = torch.eye(4)
    cases = (torch.eye(65), torch.ones(1, 65, 4)), (square, torch.ones(1, 6, 4)), (square.double(), torch.ones(1, 4, 4))
    for matrix, x in (*cases, (square, torch.ones(1, 4, 8)[..., ::2])):
        with pytest.raises(ValueError, match="do not fit"):
            along_tokens(matrix, x)


@pytest.mark.parametrize("tokens", TOKENS)
def test_every_symbol_has_one_place(tokens: int) -> None:
    steps = np.array([4.0, 2.0, 0.5])
    places, spread = order(steps, tokens, 16, 0.0)
    assert sorted(places) == list(range(3 * tokens)) and (np.diff(spread) <= 0).all()
    kept, loud = order(steps, tokens, 16, 1.0)
    assert np.array_equal(kept, places[: len(kept)]) and (loud >= 1).all()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("time", "ranges"), [(16, 0), (64, 0), (16, 1)])
def test_the_codec_with_frequencies(
    profile: Profile, tokens: int, time: int, ranges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, codec = block_of(_slow(tokens, 9), _slow(tokens, 10)), _codec(profile, time, ranges=ranges)
    streams = codec.encode(block)
    keys, values = codec.decode(streams, tokens)
    wide = profile.keys[0].weight.repeat_interleave(16)
    for found, exact, bound in ((keys, block.keys, 0.5), (values, block.values, 0.55)):
        error = (found - exact).permute(2, 0, 1, 3).flatten(1) * wide
        kept = error @ profile.keys[0].basis[:12].float().T  # a group's errors are as large in frequencies as in tokens
        assert float(kept.pow(2).mean().sqrt()) <= bound * 0.5 + 0.01
    again = make_codec("klt", codec.params(), lambda _: profile)
    assert again.params()["time"] == time and again.params().get("ranges", 0) == ranges
    assert again.encode(block) == streams
    monkeypatch.setattr(native, "unavailable", lambda: "not here")
    for found, native_ in zip(codec.decode(streams, tokens), (keys, values), strict=True):
        assert torch.allclose(found, native_, atol=0.02)


@pytest.mark.parametrize("tokens", TOKENS)
def test_ranges_hold_the_same_symbols(profile: Profile, tokens: int) -> None:
    block = block_of(_slow(tokens, 9), _slow(tokens, 10))
    for step in (0.02, 0.5, 3.0, 1e4):  # loud symbols, with low bits; quiet ones; none
        found = [
            codec.decode(codec.encode(block), tokens)
            for codec in (_codec(profile, 16, step, ranges=1), _codec(profile, 16, step))
        ]
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_fewer_bytes_where_neighbours_are_alike(profile: Profile) -> None:
    block = replace(block_of(_slow(256, 9), _slow(256, 10)), start=256)
    compress = zstandard.ZstdCompressor(level=13).compress
    coded = [_codec(profile, time).encode(block) for time in (1, 16, 64)]
    sizes = [sum(len(compress(stream)) for stream in streams if stream) for streams in coded]
    assert sizes[1] < 0.975 * sizes[0]
    assert bytes_per_token(profile, 0.5, 0.5, 16) < 0.99 * bytes_per_token(profile, 0.5, 0.5)


def test_the_end_is_coded_token_by_token(profile: Profile) -> None:
    block = block_of(_slow(256, 9), _slow(256, 10))
    for codec in (_codec(profile, 1), _codec(profile, 16)):
        streams = codec.encode(block, following=0)
        tails = codec.decode(streams, 256)[0][:, :, 192:]
        assert streams[0] == bytes([0, 64])
        assert torch.equal(tails, _codec(profile, 64).decode(_codec(profile, 64).encode(block, 0), 256)[0][:, :, 192:])


@pytest.mark.parametrize(("tokens", "following"), [(1, 0), (30, 0), (64, 0), (70, 0), (256, 50)])
def test_every_block_has_as_many_streams(profile: Profile, tokens: int, following: int) -> None:
    codec, block = _codec(profile, 16, step=0.3), block_of(_slow(tokens, 9), _slow(tokens, 10))
    streams = codec.encode(block, following)
    assert len(streams) == len(codec.encode(block_of(_slow(256, 1), _slow(256, 2))))
    keys, _ = codec.decode(streams, tokens)
    assert float((keys - block.keys).abs().mean()) < 0.5


@pytest.mark.parametrize("ranges", [0, 1])
def test_damage_and_strangers(profile: Profile, tmp_path: Path, ranges: int) -> None:
    codec = _codec(profile, 16, ranges=ranges)
    streams = codec.encode(block_of(_slow(100, 9), _slow(100, 10)))
    for at in range(5, len(streams)):
        if streams[at]:
            with pytest.raises(MemoError):
                codec.decode((*streams[:at], streams[at] + b"\xfe", *streams[at + 1 :]), 100)
    for time in (0, 65, 1.5, "16"):
        with pytest.raises(MemoError, match="time"):
            make_codec("klt", {**codec.params(), "time": time}, lambda _: profile)
    for wrong in ({"ranges": 2}, {"ranges": True}, {"ranges": 1, "time": 1}):
        with pytest.raises(MemoError, match="ranges"):
            make_codec("klt", {**codec.params(), **wrong}, lambda _: profile)


def test_values_are_rounded_up_early(profile: Profile) -> None:
    """Keys from half a step on, values from 0.45 of one: small numbers of values keep more of their sum."""
    block = block_of(_slow(256, 9), _slow(256, 9))
    keys, values = _codec(profile, 1, step=2.0).decode(_codec(profile, 1, step=2.0).encode(block), 256)
    assert float(values.abs().sum()) > 1.003 * float(keys.abs().sum())
