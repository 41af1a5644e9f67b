"""Codecs keep their error bounds at any shape, and give the same bytes for the same block."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from torch import Tensor

from minimemo.errors import MemoError, ModelError
from minimemo.memory.blocks import FIRST_PREVIOUS, KVBlock, block_hash, token_array
from minimemo.memory.codec import Codec, ExactCodec, KVLayout
from minimemo.memory.int4 import Int4Codec
from minimemo.memory.tiers import make_codec
from tests.kv import blocks_of, real_looking

# layers, kv heads, tokens, head dim: partial groups of tokens and channels, odd counts, blocks no longer than the sinks
SHAPES = [(2, 2, 256, 64), (3, 1, 256, 80), (1, 3, 97, 50), (2, 2, 33, 16), (2, 1, 5, 2), (1, 2, 4, 8), (1, 1, 1, 6)]
CLASSES = {"exact": ExactCodec, "int4": Int4Codec}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def block_of(keys: Tensor, values: Tensor, start: int = 0) -> KVBlock:
    ids = token_array(range(keys.shape[2]))
    return KVBlock(start, ids, keys, values, block_hash(FIRST_PREVIOUS, ids))


def layout_of(x: Tensor) -> KVLayout:
    layers, heads, _, dim = x.shape
    return KVLayout(layers, heads, dim, str(x.dtype).removeprefix("torch."))


def step_bound(x: Tensor, dim: int, group: int, levels: int) -> Tensor:
    """The docstring's bound on the stored step, for every number of x (L, n, C) grouped along `dim`."""
    bounds = []
    for part in x.split(group, dim):
        low, high = part.amin(dim, keepdim=True), part.amax(dim, keepdim=True)
        bound = ((high - low) + low.abs() / 1024 + 2**-24) / (levels - 1) * (1 + 1 / 1024) + 2**-24
        bounds.append(bound.expand_as(part))
    return torch.cat(bounds, dim)


def largest_errors(codec: Int4Codec, found: tuple[Tensor, Tensor], keys: Tensor, values: Tensor) -> tuple[float, float]:
    """Those of keys and of values, in steps; (L, G, n, D) tensors."""
    key_errors = errors_in_steps(found[0], keys, 1, codec.key_group, codec.key_levels)
    value_errors = errors_in_steps(found[1], values, 2, codec.value_group, codec.value_levels)
    return float(key_errors.max()), float(value_errors.max())


def errors_in_steps(found: Tensor, coded: Tensor, dim: int, group: int, levels: int) -> Tensor:
    """|found - coded| over the bound on the step, less what float32 itself may round; (L, G, n, D) tensors."""
    rows, exact = found.transpose(1, 2).flatten(2).double(), coded.transpose(1, 2).flatten(2).double()
    float_rounding = exact.abs() * 2**-23
    return ((rows - exact).abs() - float_rounding).clamp_min(0) / step_bound(exact, dim, group, levels)


@pytest.mark.parametrize("start", [0, 256])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_int4_error_is_within_half_a_step(dtype: str, shape: tuple[int, int, int, int], start: int) -> None:
    keys, values = (x.to(DTYPES[dtype]) for x in real_looking(shape))
    codec = Int4Codec(layout_of(keys))
    found_keys, found_values = codec.decode(codec.encode(block_of(keys, values, start)), shape[2])
    assert found_keys.shape == found_values.shape == shape
    assert found_keys.dtype == found_values.dtype == torch.float32
    kept = min(4, shape[2]) if start == 0 else 0
    assert torch.equal(found_keys[:, :, :kept], keys[:, :, :kept].float())
    assert torch.equal(found_values[:, :, :kept], values[:, :, :kept].float())
    if kept == shape[2]:
        return
    rest = (slice(None), slice(None), slice(kept, None))
    largest = largest_errors(codec, (found_keys[rest], found_values[rest]), keys[rest], values[rest])
    assert max(largest) <= 0.5 * (1 + 1e-5)
    if keys[rest].numel() > 1000:  # the bound is tight, so it says something
        assert min(largest) > 0.45


@pytest.mark.parametrize(
    "groups",
    [
        {"key_group": 2, "value_group": 1024}, {"key_group": 96, "value_group": 10},
        {"key_group": 32, "key_levels": 16}, {"key_levels": 17, "value_levels": 256}, {"key_levels": 2},
    ],
)  # fmt: skip
def test_int4_groups_of_any_size(groups: dict[str, int]) -> None:
    keys, values = real_looking((2, 2, 101, 24))
    codec = Int4Codec(layout_of(keys), sinks=1, **groups)
    found = tuple(x[:, :, 1:] for x in codec.decode(codec.encode(block_of(keys, values)), 101))
    assert max(largest_errors(codec, found, keys[:, :, 1:], values[:, :, 1:])) <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("constant", [0.0, -0.0, 1.0, -146.0, 0.1, 65504.0, -60000.0, 3e-8, 1e-30, -1e-30])
def test_int4_of_constant_channels(constant: float) -> None:
    """A channel that never moves must not divide by zero; one that fp16 can hold comes back exactly."""
    x = torch.full((1, 1, 40, 8), constant)
    codec = Int4Codec(layout_of(x), sinks=0)
    keys, values = codec.decode(codec.encode(block_of(x, x)), 40)
    if torch.tensor(constant).half().float() == torch.tensor(constant):
        assert torch.equal(keys, x)
        assert torch.equal(values, x)
    assert max(largest_errors(codec, (keys, values), x, x)) <= 0.5 * (1 + 1e-5)


def test_int4_of_large_offsets() -> None:
    """Real keys sit at 150 and move by 0.4: the fp16 zero must not cost more than its share of the step."""
    random = torch.Generator().manual_seed(1)
    x = 150 + 0.4 * torch.randn((1, 1, 256, 64), generator=random)
    codec = Int4Codec(layout_of(x), sinks=0)
    keys, _ = codec.decode(codec.encode(block_of(x, x)), 256)
    ideal_step = (x.amax(2) - x.amin(2)) / 29
    assert (keys - x).abs().max() <= 0.5 * 1.25 * ideal_step.max()


def test_int4_beyond_half_precision_is_refused() -> None:
    x = torch.zeros(1, 1, 8, 4)
    x[0, 0, 7, 3] = -70_000
    with pytest.raises(ModelError, match=r"-?7e\+04 is beyond fp16: use the codec 'exact'"):
        Int4Codec(layout_of(x)).encode(block_of(x, x))
    exact = ExactCodec(layout_of(x))
    assert torch.equal(exact.decode(exact.encode(block_of(x, x)), 8)[0], x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("codec", sorted(CLASSES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_none_are_refused(codec: str, dtype: str, bad: float) -> None:
    keys, values = (x.to(DTYPES[dtype]) for x in real_looking((3, 2, 20, 8)))
    values[1, 0, 9, 3] = bad
    with pytest.raises(ModelError, match="infinite values in layer 1 for tokens 256 to 275"):
        CLASSES[codec](layout_of(keys)).encode(block_of(keys, values, start=256))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_is_bit_equal(dtype: str, shape: tuple[int, int, int, int]) -> None:
    keys, values = (x.to(DTYPES[dtype]) for x in real_looking(shape))
    codec = ExactCodec(layout_of(keys))
    found_keys, found_values = codec.decode(codec.encode(block_of(keys, values)), shape[2])
    assert found_keys.dtype == keys.dtype
    assert torch.equal(found_keys, keys)
    assert torch.equal(found_values, values)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_same_block_same_bytes(name: str) -> None:
    """Whatever the strides of the block's tensors, and however often it is coded."""
    (block,) = blocks_of(200)
    codec = CLASSES[name](layout_of(block.keys))
    strided = block.keys.transpose(2, 3).contiguous().transpose(2, 3)
    first = codec.encode(block)
    assert codec.encode(block) == first == codec.encode(replace(block, keys=strided))
    assert all(isinstance(stream, bytes) for stream in first)


@pytest.mark.parametrize(
    ("options", "lengths", "digest"),
    [
        ({"key_group": 32, "key_levels": 16}, [792, 72, 72, 72, 72],
         "d902074b1510b085738b47b36c670f93247dc8e513fdd07f761e9321b839a08f"),
        ({}, [1584, 24, 24, 24, 24], "574a3d5977eeb38fc7cca2e62f06cc36318dee176573344e8ceee198002c579a"),
    ],
)  # fmt: skip
def test_golden_streams(options: dict[str, int], lengths: list[int], digest: str) -> None:
    """The bytes of the int4 tier, which memories on disk are made of: those of before levels were a parameter, and
    those of today."""
    ramp = (torch.arange(2 * 2 * 70 * 6) % 253 - 100).view(2, 2, 70, 6) / 8
    streams = Int4Codec(layout_of(ramp), **options).encode(block_of(ramp, -ramp))
    assert [len(stream) for stream in streams] == [*lengths, 792, 132, 132, 132, 132, 192, 192, 192, 192]
    assert sha256(b"".join(streams)).hexdigest() == digest


@pytest.mark.parametrize(
    "codec",
    [
        ExactCodec(KVLayout(2, 2, 16, "bfloat16")),
        Int4Codec(KVLayout(24, 2, 64, "float32")),
        Int4Codec(KVLayout(3, 1, 80, "float16"), sinks=0, key_group=64, value_group=80),
    ],
)
def test_params_make_the_codec_again(codec: Codec) -> None:
    assert make_codec(codec.name, json.loads(json.dumps(codec.params()))) == codec


GOOD = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 16, "dtype": "float32"}


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("zip", {}, "codec 'zip' is unknown; known: exact, int4"),
        (["int4"], {}, "is unknown"),
        ("int4", {"dtype": "int8"}, "dtype 'int8' is unknown"),
        ("int4", {"dtype": ["float32"]}, "is unknown"),
        ("int4", {"num_layers": 0}, "num_layers must be a whole number"),
        ("int4", {"num_layers": 2.0}, "num_layers must be a whole number"),
        ("int4", {"head_dim": 10**9}, "head_dim must be a whole number"),
        ("int4", {"sinks": -1}, "sinks must be a whole number"),
        ("int4", {"sinks": True}, "sinks must be a whole number"),
        ("int4", {"key_group": 0}, "key_group must be a whole number"),
        ("int4", {"key_group": 33}, "key_group must be even"),
        ("int4", {"value_group": 2**40}, "value_group must be a whole number"),
        ("int4", {"colour": 1}, "unknown parameter 'colour'"),
        ("exact", {"sinks": 4}, "unknown parameter 'sinks'"),
    ],
)
def test_unknown_names_and_parameters_are_refused(name: str, change: dict[str, object], complaint: str) -> None:
    with pytest.raises(MemoError, match=complaint):
        make_codec(name, {**GOOD, **change})


def test_incomplete_parameters_are_refused() -> None:
    with pytest.raises(MemoError, match="parameter 'head_dim' is missing"):
        make_codec("int4", {key: value for key, value in GOOD.items() if key != "head_dim"})
    with pytest.raises(MemoError, match="must be an object"):
        make_codec("int4", [1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_damaged_streams_are_refused(name: str) -> None:
    (block,) = blocks_of(40)
    codec = CLASSES[name](layout_of(block.keys))
    streams = codec.encode(block)
    with pytest.raises(MemoError, match="streams where"):
        codec.decode(streams[:-1], 40)
    for number, stream in enumerate(streams):
        for wrong in (stream[:-1], stream + b"\0", b""):
            with pytest.raises(MemoError, match=r"belong|sinks in a block"):
                codec.decode((*streams[:number], wrong, *streams[number + 1 :]), 40)
    for tokens in (1, 39, 41, 256):
        with pytest.raises(MemoError, match=r"belong|sinks in a block"):
            codec.decode(streams, tokens)


def test_a_block_of_another_layout_is_refused() -> None:
    (block,) = blocks_of(40)
    with pytest.raises(ValueError, match="in a memory of"):
        Int4Codec(KVLayout(2, 2, 32, "float32")).encode(block)
    with pytest.raises(ValueError, match="in a memory of"):
        Int4Codec(KVLayout(2, 2, 16, "bfloat16")).encode(block)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("shape", [(2, 2, 256, 64), (1, 3, 97, 50), (1, 2, 4, 8)])
def test_decoded_on_a_device(name: str, shape: tuple[int, int, int, int]) -> None:
    """The same bits as on the processor, from one copy of the streams. "cpu:0" goes the way of a GPU."""
    keys, values = (x.bfloat16() for x in real_looking(shape))
    codec = CLASSES[name](layout_of(keys))
    streams = codec.encode(block_of(keys, values))
    expected = codec.decode(streams, shape[2])
    found = codec.decode(streams, shape[2], torch.device("cpu:0"))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))
    for x in codec.decode(streams, shape[2], torch.device("meta")):
        assert x.device.type == "meta" and x.shape == shape
