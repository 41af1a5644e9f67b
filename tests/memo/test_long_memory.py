"""A memory longer than the model's context, on a tiny model: every mode answers, from views that fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import minimemo
from minimemo.memory.view import Span, blocks_of
from minimemo.runtime import OpenEmbedder
from tests.conftest import TinyModels

TEXT = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}.\n\n" for i in range(120))
CONTEXT = 3000


@pytest.fixture(scope="module")
def built(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "doc.memo"
    document = minimemo.Document.of(TEXT, "doc")
    return minimemo.build(document, path, **tiny_models.both).folder


@pytest.fixture
def memo(built: Path, tiny_models: TinyModels) -> minimemo.Memo:
    """The model's context is cut after it was loaded: its fingerprint is that of the model that built the memo."""
    model = minimemo.load_model(tiny_models.decoder)
    model.engine.decoder.config = replace(model.engine.config, max_context=CONTEXT)
    embedder: OpenEmbedder = minimemo.open_embedder(tiny_models.embedder)
    return minimemo.open(built, model=model, embedder=embedder)


@pytest.mark.parametrize("mode", ["memorag", "memory", "gist"])
def test_every_mode_answers(mode: str, memo: minimemo.Memo) -> None:
    assert memo.manifest.document.tokens > 1.5 * CONTEXT
    engine = memo.model().engine
    before = engine.prefilled
    answer = memo.ask("What did user number 33 say of room 231?", mode, max_tokens=8)  # type: ignore[arg-type]
    assert answer.prompt_tokens > 0
    assert engine.prefilled - before == answer.prefilled_tokens < CONTEXT * (3 if mode == "gist" else 1)
    _, cache, _ = memo.session()._memory._idle[-1]
    assert 500 < cache.length <= cache.capacity <= CONTEXT


def test_a_summary(memo: minimemo.Memo) -> None:
    assert memo.summarize(max_tokens=8).mode == "summarize"


def test_a_warm_question_decodes_nothing(memo: minimemo.Memo) -> None:
    question = "What did user number 33 say of room 231?"
    first = memo.ask(question, "memory", max_tokens=4)
    stored = memo.session()._memory._open()
    decoded = stored.decoded  # type: ignore[attr-defined]
    assert 0 < decoded < stored.extents[0].blocks
    again = memo.ask(question, "memory", max_tokens=4)
    assert again.text == first.text and stored.decoded == decoded  # type: ignore[attr-defined]
    assert "memory" in first.timings and "memory" not in again.timings  # the view is still there
    memo.ask("What did user number 2 say of room 14?", "memory", max_tokens=4)
    more = stored.decoded  # type: ignore[attr-defined]
    assert memo.ask(question, "memory", max_tokens=4).text == first.text
    assert stored.decoded == more  # type: ignore[attr-defined]


def test_the_view_holds_the_passage_that_the_question_finds(memo: minimemo.Memo) -> None:
    question = "What did user number 33 say of room 231?"
    (passage,) = memo.ask(question, "rag", max_tokens=4).passages[:1]
    chunk = next(chunk for chunk in memo.chunks() if chunk.start == passage.start)
    memo.ask(question, "memory", max_tokens=4)
    view, *_ = memo.session()._memory._idle[-1]
    extents = memo.memory().extents
    held = {(part.memory, part.block) for part in view.parts}
    assert set(blocks_of(extents, [Span(0, chunk.token_start, chunk.token_end)])) <= held
