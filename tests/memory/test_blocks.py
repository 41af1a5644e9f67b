"""Any chunking of a sequence gives the same blocks."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
import torch

from minimemo.memory.blocks import BLOCK_TOKENS, BlockAssembler, KVBlock, block_hash, token_array
from tests.kv import blocks_of, real_looking


def assembled(tokens: int, chunk: int) -> list[KVBlock]:
    keys, values = real_looking((2, 2, tokens, 16))
    ids = [(7919 * i) % 150_000 for i in range(tokens)]
    assembler, blocks = BlockAssembler(), []
    for at in range(0, tokens, chunk):
        to = slice(at, at + chunk)
        blocks += assembler.push(ids[to], keys[:, :, to], values[:, :, to])
    last = assembler.finish()
    return blocks + ([last] if last else [])


@pytest.mark.parametrize("tokens", [1, 255, 256, 257, 700, 1024])
@pytest.mark.parametrize("chunk", [1, 97, 256, 300, 2000])
def test_any_chunking_gives_the_same_blocks(tokens: int, chunk: int) -> None:
    found, whole = assembled(tokens, chunk), blocks_of(tokens)
    keys, values = real_looking((2, 2, tokens, 16))
    assert [block.tokens for block in found] == [256] * (tokens // 256) + ([tokens % 256] if tokens % 256 else [])
    assert [block.start for block in found] == list(range(0, tokens, 256))
    assert [block.hash for block in found] == [block.hash for block in whole]
    assert torch.equal(torch.cat([block.keys for block in found], dim=2), keys)
    assert torch.equal(torch.cat([block.values for block in found], dim=2), values)
    assert np.array_equal(np.concatenate([block.ids for block in found]), [(7919 * i) % 150_000 for i in range(tokens)])


def test_hashes_chain() -> None:
    first, second, third = blocks_of(600)
    assert second.hash == block_hash(first.hash, second.ids)
    assert first.hash == blake2b(bytes(16) + first.ids.astype("<i4").tobytes(), digest_size=16).digest()
    assert third.hash == block_hash(second.hash, third.ids)
    assert block_hash(bytes(16), token_array([1, 2])).hex() == "5755319e7435b6b328396542a9e681c9"


def test_a_block_owns_its_tensors() -> None:
    keys, values = real_looking((1, 1, BLOCK_TOKENS, 8))
    before = keys.clone()
    (block,) = BlockAssembler().push(range(BLOCK_TOKENS), keys, values)
    keys.zero_()
    values.zero_()
    assert torch.equal(block.keys, before)
    assert block.values.abs().sum() > 0
    with pytest.raises(ValueError, match="read-only"):
        block.ids[0] = 1


def test_pending_tokens_stay_below_a_block() -> None:
    """The assembler of a long document does not grow with it."""
    assembler = BlockAssembler()
    keys, values = real_looking((1, 1, 100, 8))
    for _ in range(50):
        assembler.push(range(100), keys, values)
        for held in zip(*assembler._pieces, strict=True):
            assert sum(max(x.shape) for x in held) < BLOCK_TOKENS


def test_nothing_to_finish() -> None:
    assembler = BlockAssembler()
    assert assembler.push([], torch.empty(1, 1, 0, 8), torch.empty(1, 1, 0, 8)) == []
    assert assembler.finish() is None


def test_misuse_is_refused() -> None:
    keys, values = real_looking((1, 2, 4, 8))
    assembler = BlockAssembler()
    with pytest.raises(ValueError, match="do not fit together"):
        assembler.push([1, 2, 3], keys, values)
    with pytest.raises(ValueError, match="do not fit together"):
        assembler.push([1, 2, 3, 4], keys, values.half())
    with pytest.raises(ValueError, match="whole numbers"):
        assembler.push([1.5, 2, 3, 4], keys, values)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="token ids"):
        assembler.push([1, 2, 3, -4], keys, values)
    with pytest.raises(ValueError, match="token ids"):
        assembler.push([1, 2, 3, 2**31], keys, values)
    assembler.push([1, 2, 3, 4], keys, values)
    with pytest.raises(ValueError, match="after chunks of"):
        assembler.push([1, 2, 3, 4], keys.half(), values.half())
