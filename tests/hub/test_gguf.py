"""GGUF codes: exactly the library's dequantized values, for every format we keep as codes."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from minimemo.hub import gguf
from minimemo.models.weights import expand_groups


@pytest.mark.parametrize("kind", sorted(gguf._UNPACK))
def test_codes_equal_the_library(kind: str) -> None:
    block_bytes, unpack = gguf._UNPACK[kind]
    generator = np.random.default_rng(7)
    columns = 2 * (256 if "_K" in kind else 32)
    blocks = generator.integers(0, 256, (3 * columns // (256 if "_K" in kind else 32), block_bytes), dtype=np.uint8)
    # Half-precision fields must be finite: overwrite them with moderate numbers.
    halves = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2)}.get(kind, (0,))
    for at in halves:
        values = generator.normal(0, 0.02, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = values.view(np.uint8).reshape(-1, 2)
    rows = blocks.reshape(3, -1)
    expected = quants.dequantize(rows, GGMLQuantizationType[kind])
    found = unpack(blocks)
    offsets = None if found.offsets is None else torch.from_numpy(found.offsets.reshape(3, -1).copy())
    ours = expand_groups(
        torch.from_numpy(found.codes.reshape(3, -1).copy()),
        torch.from_numpy(found.scales.reshape(3, -1).copy()),
        offsets,
        torch.float32,
    )
    assert np.array_equal(ours.numpy(), expected.reshape(3, columns))
