"""Are the right documents picked for a question? Real documents and the default embedder; no memory is needed."""

from __future__ import annotations

import os
import random
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench.common.data import questions
from bench.common.kept import Kept
from bench.common.report import heading, line
from bench.scale.library import MODELS, memo
from minimemo.errors import InputError
from minimemo.files import store_file
from minimemo.memo.library import PICKED, StoreIndex
from minimemo.memo.registry import remember_all
from minimemo.runtime import OpenEmbedder, open_embedder
from minimemo.text.chunks import DEFAULT_SIZE, split
from minimemo.text.words import is_code, terms

# Sets whose questions name what they are about; "summarize the meeting" and "the contract's date" do not.
SETS = ("cmrc", "drcd", "gutenqa_emma", "literaryqa", "loogle", "nq_long", "xquad_en", "xquad_zh")
EACH = 8  # questions about a document at most
COLUMNS = (("kind", "<8"), ("questions", "9"), ("picked_by", "<18"), ("first", "6.3f"), ("picked", "7.3f"))


def run(data: Path, characters: int) -> dict[str, Any]:
    """Picks documents for three kinds of questions among all documents of at most so many characters."""
    passages = embedded(data, characters)
    texts = {name: (data / "docs" / f"{name}.txt").read_text(encoding="utf-8") for name in passages}
    rows = []
    home = os.environ.get("MINIMEMO_HOME")
    kinds = {**_asked(data, passages), **_words(texts)}
    vectors = {kind: _embedder().embedder.embed_queries([text for _, text in some]) for kind, some in kinds.items()}
    print(f"{len(passages)} documents, {sum(map(len, passages.values()))} passages\n{heading(COLUMNS)}", flush=True)
    with TemporaryDirectory(prefix="minimemo-scale-") as folder:
        os.environ["MINIMEMO_HOME"] = f"{folder}/home"
        try:
            for name, own in passages.items():
                memo(Path(folder) / f"{name}.memo", own, [texts[name]])
            remember_all([Path(folder) / f"{name}.memo" for name in passages])
            index = StoreIndex(store_file())
            for kind, some in kinds.items():
                for way in ("vectors", "vectors and words"):
                    picked = [
                        [
                            path.stem
                            for path in index.pick(query, *MODELS, PICKED, question=text if "words" in way else "")
                        ]
                        for query, (_, text) in zip(vectors[kind], some, strict=True)
                    ]
                    first, among = (
                        sum(name in names[:count] for (name, _), names in zip(some, picked, strict=True)) / len(some)
                        for count in (1, PICKED)
                    )
                    row = {"kind": kind, "questions": len(some), "picked_by": way, "first": first, "picked": among}
                    rows.append(row)
                    print(line(COLUMNS, row), flush=True)
        finally:
            del os.environ["MINIMEMO_HOME"]
            if home is not None:
                os.environ["MINIMEMO_HOME"] = home
    return {"documents": len(passages), "passages": sum(map(len, passages.values())), "rows": rows}


def _asked(data: Path, documents: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Questions of SETS, each with its document."""
    seen: Counter[str] = Counter()
    some = []
    for question in (question for name in SETS for question in questions(data, name, 99999)):
        if question.doc_id in documents and seen[question.doc_id] < EACH:
            seen[question.doc_id] += 1
            some.append((question.doc_id, question.text))
    return {"asked": some}


def _words(texts: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Two questions a document about numbers (or names with digits), and two about words, that it alone holds."""
    held = {name: {*terms(text)} for name, text in texts.items()}
    holders = Counter(term for own in held.values() for term in own)
    chance, made = random.Random(0), {"number": [], "word": []}  # type: ignore[var-annotated]
    for name, own in held.items():
        alone = sorted(term for term in own if holders[term] == 1 and term.isascii() and 5 < len(term) < 12)
        for kind in made:
            some = [term for term in alone if (is_code(term) if kind == "number" else term.isalpha())]
            chosen = chance.sample(some, min(2, len(some)))
            made[kind] += [(name, f"What is said about {term}?") for term in chosen]
    return made


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
