"""docs/privacy.md says what a memo reveals of its document. Each sentence of it that can be tried is tried here."""

from __future__ import annotations

import pytest
import torch

import minimemo
from minimemo.memo.memo import Memo
from tests.conftest import TinyModels

TEXT = "\n\n".join(f"In room {i} the user number {i} said Hello world, be brief." for i in range(40))


@pytest.fixture(scope="module")
def memo(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Memo:
    out = tmp_path_factory.mktemp("reveals") / "x.memo"
    return minimemo.build(minimemo.Document.of(TEXT, "x.txt"), out, memory="int4", **tiny_models.both)


def test_the_passages_are_the_text(memo: Memo) -> None:
    covered = "".join(chunk.text for chunk in memo.chunks())
    assert "".join(covered.split()) == "".join(TEXT.split())


def test_memory_bin_alone_is_the_text_with_its_tokenizer(memo: Memo) -> None:
    with memo.reader() as reader:
        ids = [token for index in range(len(reader)) for token in reader.ids(index).tolist()]
    text = memo.model().tokenizer.decode(ids)
    assert "".join(TEXT.split()) in "".join(text.split())


def test_values_alone_are_the_text_with_their_model(memo: Memo) -> None:
    """Without any ids: the first layer's values hang on nothing but their token, so the token is the one whose own
    values are nearest to those stored, 4 bits a number."""
    engine = memo.model().engine
    size = engine.config.vocab_size
    own = []
    for first in range(0, size, 256):
        tokens = [*range(first, min(first + 256, size))]
        cache = engine.new_cache(len(tokens))
        engine.extend(cache, tokens)
        own.append(cache.values[0, :, : len(tokens)].float().transpose(0, 1).flatten(1))
    _, values = memo.memory().block(0, 1)
    stored = values[0].float().transpose(0, 1).flatten(1)
    found = torch.cdist(stored, torch.cat(own)).argmin(1).tolist()
    with memo.reader() as reader:
        true = reader.ids(1).tolist()
    assert sum(a == b for a, b in zip(found, true, strict=True)) >= 0.95 * len(true)
