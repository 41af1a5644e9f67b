"""Models of many layers: groups with bases of their own, by arithmetic for real shapes and by a run on made-up KV."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minimemo.memory import profile as profiles
from minimemo.memory.blocks import BlockAssembler, KVBlock
from minimemo.memory.codec import KVLayout
from minimemo.memory.format import MAX_FRAMES
from minimemo.memory.profile import MAX_JOINT, Profile, Statistics, groups, joint, save_profile
from minimemo.memory.transform import TAIL, TransformCodec
from minimemo.models.config import ModelConfig, RopeConfig
from tests.commands import python
from tests.tiny import matmul_parameters

LAYOUT = KVLayout(num_layers=6, num_kv_heads=2, head_dim=16, dtype="float32")
WIDTH, RANK = 32, 5
# layers, query heads, kv heads, head dim, hidden, intermediate, vocabulary
SHAPES = {
    "Qwen2.5-7B": (28, 28, 4, 128, 3584, 18944, 152064),
    "Llama-3-8B": (32, 32, 8, 128, 4096, 14336, 128256),
    "Qwen2.5-32B": (64, 40, 8, 128, 5120, 27648, 152064),
}


@pytest.mark.parametrize("name", SHAPES)
def test_bases_beside_the_weights(name: str) -> None:
    """Under a tenth of the weights at 2 bytes each; of weights in 4 bits up to an eighth (Llama-3-8B's many heads)."""
    layers, heads, kv_heads, dim, hidden, middle, vocabulary = SHAPES[name]
    config = ModelConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=middle, num_layers=layers,
        num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, max_context=32768, norm_eps=1e-6, rope=RopeConfig(1e6),
        tied_head=False,
    )  # fmt: skip
    cut = groups(layers, kv_heads * dim)
    assert [layer for group in cut for layer in group] == list(range(layers))
    assert max(map(len, cut)) * kv_heads * dim <= MAX_JOINT and max(map(len, cut)) - min(map(len, cut)) <= 1
    bases = 2 * 2 * sum((len(group) * kv_heads * dim) ** 2 for group in cut)  # keys and values, float16
    weights = matmul_parameters(config) + vocabulary * hidden
    assert bases < 0.1 * 2 * weights
    assert bases < 0.135 * weights / 2
    most = 2 * len(cut) * (14 + 2)  # streams: bands of symbols, remainders, large numbers
    assert most < MAX_FRAMES / 1.5


def kv(tokens: int, seed: int) -> Tensor:
    """(L, G, n, D): RANK directions that all layers share, noise, a mean; layers of unlike size."""
    shape = torch.Generator().manual_seed(7)
    directions = torch.randn(RANK, 6 * WIDTH, generator=shape)
    mean = 3 * torch.randn(6 * WIDTH, generator=shape)
    size = torch.tensor([30.0, 10.0, 3.0, 1.0, 0.3, 0.1]).repeat_interleave(WIDTH)
    own = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, RANK, generator=own) @ directions + 0.02 * torch.randn(tokens, 6 * WIDTH, generator=own)
    return ((x + mean) * size).view(tokens, 6, 2, 16).permute(1, 2, 0, 3).contiguous()


@pytest.fixture(params=[64, 96], ids=["three groups", "two groups"])
def profile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Profile:
    monkeypatch.setattr(profiles, "MAX_JOINT", request.param)
    cut = groups(6, WIDTH)
    assert len(cut) == 6 * WIDTH // request.param
    return made(cut, tmp_path)


def made(cut: list[range], folder: Path) -> Profile:
    halves = []
    for seed in (1, 2):
        found = [Statistics(len(layers) * WIDTH) for layers in cut]
        for part in range(4):
            x = kv(256, 10 * part + seed)
            for layers, statistics in zip(cut, found, strict=True):
                statistics.add(joint(x[layers.start : layers.stop]))
        halves.append([s.transform(1 / s.deviation(len(g)).float()) for s, g in zip(found, cut, strict=True)])
    return save_profile("f" * 64, halves[0], halves[1], folder)


def stream(blocks: int, rest: int = 0) -> Iterator[KVBlock]:
    assembler = BlockAssembler()
    for number in range(blocks):
        yield from assembler.push([number] * 256, kv(256, 100 + number), kv(256, 200 + number))
    if rest:
        assembler.push([9] * rest, kv(rest, 98), kv(rest, 99))
        last = assembler.finish()
        assert last is not None
        yield last


@pytest.mark.parametrize("step", [0.05, 0.4])
def test_every_group_keeps_its_bound(profile: Profile, step: float) -> None:
    """Half a step in every coded component of every group; a known share of the token's size more where products of
    8 bits are used."""
    codec = TransformCodec(LAYOUT, profile, step, step)
    for block in stream(1, 100):
        following = 100 if block.start == 0 else 0
        found = codec.decode(codec.encode(block, following), block.tokens)
        kept, last = (16 if block.start == 0 else 0), block.tokens - max(0, TAIL - following)
        for kind, (x, back) in enumerate(zip((block.keys, block.values), found, strict=True)):
            assert torch.equal(back[:, :, :kept], x[:, :, :kept])
            for layers, parts in codec._by_layers(codec._parts):
                part = parts[kind]
                error = joint((back - x)[layers][:, :, kept:last]) * part.scale()
                size = ((joint(x[layers][:, :, kept:last]) - part.half.mean) * part.scale()).norm(dim=1, keepdim=True)
                more = (2e-3 if part.basis.exact else 0.05) * size
                assert bool(((error @ part.basis.rows.float().T).abs() <= step / 2 + more).all())


def test_groups_code_what_they_share_in_few_bytes(profile: Profile) -> None:
    codec = TransformCodec(LAYOUT, profile, 0.3, 0.3)
    assert all(len(part.basis.rows) == RANK for parts in codec._parts for part in parts)  # noise lies below the step
    (block,) = islice(stream(2), 1, 2)
    assert sum(map(len, codec.encode(block))) < 256 * 2 * 6 * WIDTH * 2 / 16


_PROGRAM = """\
import resource, sys
from pathlib import Path
from minimemo.memory.transform import TransformCodec
from minimemo.memory.profile import groups
from minimemo.memory import profile
from minimemo.memory.reader import MemoryReader
from minimemo.memory.writer import writing
from tests.memory.test_transform_groups import LAYOUT, WIDTH, made, stream
profile.MAX_JOINT = 64
folder = Path(sys.argv[1])
codec = TransformCodec(LAYOUT, made(groups(6, WIDTH), folder), 0.3, 0.3)
for blocks in (12, 120):
    with writing(folder / "memory.bin", {}, level=3) as writer:
        for block in stream(blocks):
            writer.add(block.hash, block.ids, codec.encode(block))
    with MemoryReader(folder / "memory.bin") as reader:
        for index in range(len(reader)):
            codec.decode(reader.payload(index), 256)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_ten_times_the_length_takes_no_more_memory(tmp_path: Path) -> None:
    """A block is 0.8 MB here: 108 more of them, were they kept, would show."""
    short, long = map(int, python(_PROGRAM, str(tmp_path)).split())
    assert 0 <= long - short < 16_000  # kB
