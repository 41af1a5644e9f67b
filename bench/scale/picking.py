"""Are the right documents picked for a question? Real documents and the default embedder; no memory is needed."""

from __future__ import annotations

import os
from argparse import Namespace
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench.common.data import Question, questions
from bench.common.kept import Kept
from bench.scale.library import MODELS, memo
from minimemo.errors import InputError
from minimemo.files import store_file
from minimemo.memo.library import PICKED, StoreIndex
from minimemo.memo.registry import remember_all
from minimemo.runtime import OpenEmbedder, open_embedder
from minimemo.text.chunks import DEFAULT_SIZE, split

# Sets whose questions do not lean on a document that is named elsewhere, as "summarize the meeting" does.
SETS = ("cmrc", "drcd", "gutenqa_emma", "literaryqa", "loogle", "nq_long", "xquad_en", "xquad_zh")
EACH = 8  # questions about a document at most


def run(data: Path, characters: int) -> dict[str, Any]:
    """Picks documents for the questions of SETS among all documents of at most so many characters."""
    passages = embedded(data, characters)
    asked = [question for name in SETS for question in questions(data, name, 99999)]
    seen: Counter[str] = Counter()
    some: list[Question] = []
    for question in asked:
        if question.doc_id in passages and seen[question.doc_id] < EACH:
            seen[question.doc_id] += 1
            some.append(question)
    queries = _embedder().embedder.embed_queries([question.text for question in some])
    home = os.environ.get("MINIMEMO_HOME")
    with TemporaryDirectory(prefix="minimemo-scale-") as name:
        os.environ["MINIMEMO_HOME"] = f"{name}/home"
        try:
            for document, vectors in passages.items():
                memo(Path(name) / f"{document}.memo", vectors, [(data / "docs" / f"{document}.txt").read_text("utf-8")])
            remember_all([Path(name) / f"{document}.memo" for document in passages])
            index = StoreIndex(store_file())
            alone, picked = (
                [
                    [path.stem for path in index.pick(query, *MODELS, PICKED, question=question.text if words else "")]
                    for query, question in zip(queries, some, strict=True)
                ]
                for words in (False, True)
            )
        finally:
            del os.environ["MINIMEMO_HOME"]
            if home is not None:
                os.environ["MINIMEMO_HOME"] = home
    result = {
        "documents": len(passages),
        "passages": sum(map(len, passages.values())),
        "questions": len(some),
        "asked_about": len(seen),
        **{f"{way}first": _share(some, names, 1) for way, names in (("", picked), ("vectors_alone_", alone))},
        **{f"{way}picked": _share(some, names, PICKED) for way, names in (("", picked), ("vectors_alone_", alone))},
    }
    for key, value in result.items():
        print(f"{key:<24} {value}", flush=True)
    return result


def _share(asked: list[Question], picked: list[list[str]], among: int) -> float:
    return sum(one.doc_id in names[:among] for one, names in zip(asked, picked, strict=True)) / len(asked)


def embedded(data: Path, characters: int) -> dict[str, np.ndarray]:
    """The vectors (n, d) of the passages of documents, by their names; kept from one run to the next."""
    kept, made = Kept("scale"), {}
    paths = sorted(data.glob("docs/*.txt"), key=lambda path: path.stat().st_size)
    if not paths:
        raise InputError(f"{data}: no documents in its folder docs; name other data with --data")
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if len(text) <= characters:
            key = [_embedder().fingerprint, path.name, len(text), DEFAULT_SIZE]
            tensors, _ = kept.tensors(key, lambda text=text: ({"vectors": _vectors(text)}, 0.0))  # type: ignore[misc]
            made[path.stem] = tensors["vectors"].numpy()
    return made


def _vectors(text: str) -> torch.Tensor:
    embedder = _embedder().embedder
    chunks = split(text, embedder.offsets(text), size=min(DEFAULT_SIZE, embedder.passage_room))
    return torch.from_numpy(embedder.embed_passages([chunk.text for chunk in chunks]))


_opened = Namespace(embedder=None)


def _embedder() -> OpenEmbedder:
    _opened.embedder = _opened.embedder or open_embedder()
    return _opened.embedder
