"""The transform codec over made-up KV whose structure is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zstandard

from minimemo.errors import MemoError, ModelError
from minimemo.memory.blocks import BlockAssembler, KVBlock
from minimemo.memory.codec import KVLayout
from minimemo.memory.profile import (
    MAX_JOINT,
    Opening,
    Profile,
    Statistics,
    Transform,
    groups,
    joint,
    load_profile,
    profile_of,
    save_profile,
)
from minimemo.memory.size import OVERHEAD, bytes_per_token
from minimemo.memory.tiers import make_codec
from minimemo.memory.transform import TransformCodec
from tests.helpers import assert_close

LAYOUT = KVLayout(num_layers=4, num_kv_heads=2, head_dim=8, dtype="float32")
RANK = 6


def _kv(tokens: int, seed: int) -> torch.Tensor:
    """(L, G, n, D): RANK directions over all layers, some noise, a mean."""
    shape = torch.Generator().manual_seed(7)
    directions = torch.randn(RANK, 64, generator=shape)
    mean = 5 * torch.randn(64, generator=shape)
    own = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, RANK, generator=own) @ directions + 0.01 * torch.randn(tokens, 64, generator=own) + mean
    return x.view(tokens, 4, 2, 8).permute(1, 2, 0, 3).contiguous()


def _block(tokens: int = 256, seed: int = 1, kv: torch.Tensor | None = None) -> KVBlock:
    return block_of(_kv(tokens, seed) if kv is None else kv, _kv(tokens, seed + 100))


def block_of(keys: torch.Tensor, values: torch.Tensor) -> KVBlock:
    assembler = BlockAssembler()
    blocks = assembler.push(list(range(keys.shape[2])), keys, values)
    return blocks[0] if blocks else assembler.finish()  # type: ignore[return-value]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def profile(folder: Path) -> Profile:
    halves = []
    for seed in (11, 12):
        statistics = Statistics(64)
        for part in range(4):
            statistics.add(_kv(256, seed + 10 * part).permute(2, 0, 1, 3).flatten(1))
        halves.append([statistics.transform(torch.tensor([1.0, 2.0, 0.5, 1.0]))])
    return save_profile("f" * 64, halves[0], halves[1], folder)


def _codec(profile: Profile, step: float = 0.1) -> TransformCodec:
    return TransformCodec(LAYOUT, profile, step, step)


@pytest.mark.parametrize("tokens", [1, 3, 100, 256])
def test_error_bound_and_exact_sinks(profile: Profile, tokens: int) -> None:
    block = _block(tokens)
    codec = _codec(profile)
    keys, values = codec.decode(codec.encode(block), tokens)
    assert torch.equal(keys[:, :, :16], block.keys[:, :, :16])
    assert torch.equal(values[:, :, :16], block.values[:, :, :16])
    half = profile.keys[0]
    error = (keys - block.keys).permute(2, 0, 1, 3).flatten(1) * half.weight.repeat_interleave(16)
    components = error @ codec._parts[0][0].basis.rows.float().T
    rounding = 2e-3 * float(block.keys.abs().max())  # of the basis, to float16
    assert float(components.abs().max()) <= 0.05 + rounding


@pytest.mark.parametrize("step", [2.0, 5.0])
def test_error_bound_of_a_coarse_step(profile: Profile, step: float) -> None:
    """Products of 8 bits add a share of each token's size."""
    block, codec = _block(), _codec(profile, step)
    part, half = codec._parts[0][0], profile.keys[0]
    assert not part.basis.exact and _codec(profile)._parts[0][0].basis.exact
    keys, _ = codec.decode(codec.encode(block), 256)
    wide = half.weight.repeat_interleave(16)
    error, x = ((y.permute(2, 0, 1, 3).flatten(1)) * wide for y in (keys - block.keys, block.keys))
    size = (x - half.mean * wide).norm(dim=1, keepdim=True)
    assert bool(((error @ part.basis.rows.float().T).abs() <= step / 2 + 0.02 * size).all())


def test_a_known_opening_costs_nothing_and_is_exact(profile: Profile, folder: Path) -> None:
    block = _block()
    opening = Opening(torch.arange(20, dtype=torch.int32), torch.stack((block.keys, block.values))[:, :, :, :20])
    knowing = save_profile("a" * 64, profile.keys, profile.values, folder, [opening])
    codec, other = _codec(load_profile(knowing.hash, folder)), _codec(profile)
    streams = codec.encode(block)
    assert sum(map(len, streams)) < sum(map(len, other.encode(block))) - 16 * 2 * 64 * 4 + 100
    keys, values = codec.decode(streams, 256)
    assert torch.equal(keys[:, :, :20], block.keys[:, :, :20])
    assert torch.equal(values[:, :, :20], block.values[:, :, :20])
    assert not torch.equal(keys[:, :, 20:], block.keys[:, :, 20:])
    with pytest.raises(MemoError, match="opening"):
        other.decode(streams, 256)
    with pytest.raises(MemoError, match="opening of 20"):
        codec.decode(streams, 19)
    elsewhere = replace(block, ids=block.ids + 1)
    assert codec.encode(elsewhere) == other.encode(elsewhere)


def test_few_directions_need_few_bytes(profile: Profile) -> None:
    codec = _codec(profile, 0.5)
    assert len(codec._parts[0][0].basis.rows) == RANK  # the noise lies below the step
    assert sum(map(len, codec.encode(_block())[5:])) < 256 * 64 * 2 / 10


@pytest.mark.parametrize("step", [0.1, 2.0])
def test_same_bytes_with_any_number_of_threads(profile: Profile, step: float) -> None:
    codec, block, before = _codec(profile, step), _block(), torch.get_num_threads()
    try:
        coded = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            coded.append(codec.encode(block))
    finally:
        torch.set_num_threads(before)
    assert coded[0] == coded[1] == codec.encode(block)


def test_made_again_from_its_parameters(profile: Profile, folder: Path) -> None:
    codec = _codec(profile)
    again = make_codec("klt", codec.params(), lambda hash_: load_profile(hash_, folder))
    block = _block()
    assert again.encode(block) == codec.encode(block)
    assert profile_of("f" * 64, folder) == profile.hash and profile_of("e" * 64, folder) is None


@pytest.mark.parametrize(
    "change", [{"key_step": 0}, {"key_step": "a"}, {"sinks": -1}, {"num_layers": 5}, {"profile": "0" * 32},
               {"profile": 3}, {"profile": "../x"}, {"extra": 1}],
)  # fmt: skip
def test_parameters_from_a_stranger(profile: Profile, folder: Path, change: dict[str, object]) -> None:
    with pytest.raises(MemoError):
        make_codec("klt", {**_codec(profile).params(), **change}, lambda hash_: load_profile(hash_, folder))


def test_extreme_numbers(profile: Profile) -> None:
    kv = _kv(256, 1)
    kv[0, 0, 10] = 1e6
    kv[1, 1, 20] = 1e-30
    codec = _codec(profile)
    keys, _ = codec.decode(codec.encode(_block(kv=kv)), 256)
    assert bool(keys.isfinite().all())
    kv[0, 0, 10, 3] = float("nan")
    with pytest.raises(ModelError, match="layer 0"):
        codec.encode(_block(kv=kv))


def test_damaged_streams_are_named(profile: Profile) -> None:
    codec = _codec(profile)
    streams = codec.encode(_block())
    for at in range(5, len(streams)):
        if not streams[at]:
            continue
        with pytest.raises(MemoError):
            codec.decode((*streams[:at], streams[at] + b"\xfe", *streams[at + 1 :]), 256)
    with pytest.raises(MemoError, match="streams"):
        codec.decode(streams[1:], 256)


def test_a_damaged_or_missing_profile(profile: Profile, folder: Path, tmp_path: Path) -> None:
    (path,) = folder.glob(f"*-{profile.hash}.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (tmp_path / path.name).write_bytes(content)
    with pytest.raises(MemoError, match="damaged"):
        load_profile(profile.hash, tmp_path)
    with pytest.raises(MemoError, match="is not in"):
        load_profile(profile.hash, tmp_path / "nowhere")


def test_a_profile_from_a_stranger(profile: Profile, tmp_path: Path) -> None:
    """Whatever its tensors are: no profile of this model, never anything else than a MemoError."""
    (key,), (value,) = profile.keys, profile.values
    for change in (
        {"weight": torch.tensor(1.0)},
        {"weight": torch.empty(0)},
        {"mean": key.mean[None]},
        {"basis": key.basis[0]},
        {"deviation": torch.tensor(1.0)},
    ):
        saved = save_profile("f" * 64, [replace(key, **change)], [value], tmp_path)
        with pytest.raises(MemoError, match=r"of other shapes|do not fit together"):
            load_profile(saved.hash, tmp_path)

    def part(half: Transform, layers: int) -> Transform:
        width = 16 * layers
        cut = (half.mean[:width], half.weight[:layers], half.basis[:width, :width], half.deviation[:width])
        return Transform(*(tensor.clone() for tensor in cut))

    saved = save_profile("f" * 64, [part(key, 1), part(key, 3)], [part(value, 2), part(value, 2)], tmp_path)
    with pytest.raises(MemoError, match="in different ways"):
        _codec(load_profile(saved.hash, tmp_path))


def test_layers_in_groups() -> None:
    assert groups(24, 128) == [range(24)]
    assert [len(part) for part in groups(30, 192)] == [15, 15]
    large = groups(64, 1024)  # a 32B model: its bases stay below a tenth of its weights at 2 bytes a number
    assert max(map(len, large)) * 1024 <= MAX_JOINT and sum(map(len, large)) == 64
    assert sum(2 * 2 * (len(part) * 1024) ** 2 for part in large) < 0.1 * 64e9


def test_too_little_text(profile: Profile) -> None:
    statistics = Statistics(64)
    statistics.add(torch.randn(10, 64))
    with pytest.raises(ModelError, match="more text"):
        statistics.transform(torch.ones(4))
    assert replace(profile, model="x").layers == 4


def test_the_expected_size_is_about_the_real_one(profile: Profile) -> None:
    for step in (0.05, 0.5, 2.0):
        codec = _codec(profile, step)
        compress = zstandard.ZstdCompressor(level=codec.level).compress
        streams = codec.encode(replace(_block(), start=256))
        real = sum(len(compress(stream)) for stream in streams if stream) / 256 + OVERHEAD
        assert bytes_per_token(profile, step, step) == pytest.approx(real, rel=0.25)


@pytest.mark.parametrize(
    ("tokens", "following", "fine"), [(256, 0, 64), (256, 61, 3), (3, 0, 0), (30, 0, 14), (256, 64, 0)]
)
def test_the_end_is_finer(profile: Profile, tokens: int, following: int, fine: int) -> None:
    """fine: how many of the block's tokens have a finer step; the first 16 are exact in any case."""
    block, codec = _block(tokens), _codec(profile, 3.0)
    streams = codec.encode(block, following)
    keys, values = codec.decode(streams, tokens)
    for found, exact in ((keys, block.keys), (values, block.values)):
        errors = (found - exact).abs().mean((0, 1, 3))
        assert not fine or float(errors[tokens - fine :].max()) < 0.5 * float(
            errors[16 : tokens - fine].median().nan_to_num(9)
        )
    assert bool(streams[-1]) == (fine > 0)
    if fine:
        for damaged in (streams[-1][:-1], streams[-1] + b"\0", b"", b"\xff" * 4 + streams[-1][4:]):
            with pytest.raises(MemoError):
                codec.decode((*streams[:-1], damaged), tokens)
        with pytest.raises(MemoError):
            codec.decode((bytes([0, 255]), *streams[1:]), min(tokens, 200))


@pytest.mark.parametrize(("tokens", "following", "time"), [(256, 256, 1), (256, 20, 64), (100, 0, 32), (5, 0, 1)])
def test_decoded_on_a_device(profile: Profile, tokens: int, following: int, time: int) -> None:
    """As on the processor in float32. "cpu:0" goes the way of a GPU."""
    codec = TransformCodec(LAYOUT, profile, 0.05, 0.05, time=time)
    for parts in (*codec._parts, *codec._fine):
        for part in parts:
            part.basis.exact = True
    streams = codec.encode(_block(tokens), following)
    expected = codec.decode(streams, tokens)
    for found, near in zip(codec.decode(streams, tokens, torch.device("cpu:0")), expected, strict=True):
        assert_close(found, near.double(), within=1e-5)
    for x in codec.decode(streams, tokens, torch.device("meta")):
        assert x.device.type == "meta" and x.shape == expected[0].shape


def test_components_on_a_device(profile: Profile) -> None:
    for part in _codec(profile)._parts[0]:
        x = joint(_kv(50, 3))
        exact = (x - part.half.mean) * part.scale() @ part.basis.rows.float().T
        assert_close(part.components_on(x), exact.double(), within=1e-5)
