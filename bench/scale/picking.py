"""Are the right documents picked for a question? Real documents and the default embedder; no memory is needed."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from bench.common.data import SETS as QUESTIONS
from bench.common.data import questions, read_rows
from bench.common.kept import Kept
from bench.common.report import show
from bench.scale.library import MODELS, memo
from minimemo.ask import detect_language
from minimemo.errors import InputError
from minimemo.files import store_file
from minimemo.memo.library import PICKED, StoreIndex
from minimemo.memo.registry import remember_all
from minimemo.readers import read_document
from minimemo.runtime import OpenEmbedder, open_embedder
from minimemo.text.chunks import DEFAULT_SIZE, split
from minimemo.text.words import is_code, terms

# Sets by what their questions say of their document: what they ask about; what part of it is to be summarized; and
# nothing that tells one of ten contracts from another ("the parts related to Governing Law").
SETS = ("cmrc", "drcd", "gutenqa_emma", "literaryqa", "loogle", "nq_long", "xquad_en", "xquad_zh")
SUMMARIES, ALIKE = ("qmsum", "squality", "vcsum"), ("contracts",)
EACH = 4  # questions about a document at most
COLUMNS = (
    ("kind", "<9"), ("language", "<8"), ("documents", "9"), ("questions", "9"), ("picked_by", "<18"),
    ("first", "6.3f"), ("picked", "7.3f"),
)  # fmt: skip
WAYS = ("vectors", "vectors and words")
Asked = tuple[str, str]  # a document, and a question about it


def run(data: Path, characters: int, spread: int | None) -> dict[str, Any]:
    """Picks documents for several kinds of questions among all documents of at most so many characters, of each of
    which `spread` passages at most have vectors, evenly spread, and all have words."""
    texts = documents(data, characters)
    passages = embedded(texts, spread)
    kinds = {**_asked(data, texts), **_words(texts)}
    texts_of = [text for some in kinds.values() for _, text in some]
    vectors = dict(zip(texts_of, embedder().embedder.embed_queries(texts_of), strict=True))
    count = sum(map(len, passages.values()))
    print(f"{len(passages)} documents, {count} passages", flush=True)
    with (
        TemporaryDirectory(prefix="minimemo-scale-") as folder,
        patch.dict(os.environ, {"MINIMEMO_HOME": f"{folder}/home"}),
    ):
        memos = {name: Path(folder) / f"{name}.memo" for name in passages}
        for name, place in memos.items():
            memo(place, passages[name], [texts[name]])
        remember_all([*memos.values()])
        rows = show(COLUMNS, _rows(StoreIndex(store_file()), kinds, vectors))
    return {"documents": len(passages), "passages": count, "rows": rows}


def _rows(
    index: StoreIndex, kinds: Mapping[str, Sequence[Asked]], vectors: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    for kind, language, some in _by_language(kinds):
        row = {"kind": kind, "language": language, "documents": len({name for name, _ in some}), "questions": len(some)}
        for way in WAYS:
            places = [
                [path.stem for path in index.pick(vectors[text], *MODELS, PICKED, question=text * (way != WAYS[0]))]
                for _, text in some
            ]
            told = list(zip(some, places, strict=True))
            first, among = (sum(one[0] in names[:k] for one, names in told) / len(some) for k in (1, PICKED))
            missed = [one for one, names in told if one[0] not in names]
            yield {**row, "picked_by": way, "first": first, "picked": among, "missed": missed}


def documents(data: Path, characters: int) -> dict[str, str]:
    """The texts of the data's documents, and of its files that have questions, by their names, short ones first."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in data.glob("docs/*.txt")}
    for name in dict.fromkeys(row["file"] for row in read_rows(QUESTIONS / "documents.jsonl")):
        if (data / "files" / name).exists():
            texts[Path(name).stem] = read_document(data / "files" / name).text
    if not texts:
        raise InputError(f"{data}: no documents in its folder docs; name other data with --data")
    short = sorted((len(text), name) for name, text in texts.items() if len(text) <= characters)
    return {name: texts[name] for _, name in short}


def _asked(data: Path, texts: Mapping[str, str]) -> dict[str, list[Asked]]:
    """Questions that people asked, each with its document: by what they say of it, and of those that say something
    of it one for each document."""
    rows = read_rows(QUESTIONS / "documents.jsonl")
    made = {"asked": [(Path(row["file"]).stem, row["question"]) for row in rows]}
    for kind, sets in (("asked", SETS), ("summary", SUMMARIES), ("contract", ALIKE)):
        found = [one for name in sets for one in questions(data, name, 99999) if one.type != "gist"]
        made[kind] = [*made.get(kind, ()), *((one.doc_id, one.text) for one in found)]
    made = {kind: _at_most(EACH, [one for one in some if one[0] in texts]) for kind, some in made.items()}
    return {"one each": _at_most(1, [*made["asked"], *made["summary"]]), **made}


def _at_most(count: int, some: Sequence[Asked]) -> list[Asked]:
    """So many questions about each document, spread over those that there are."""
    of: dict[str, list[Asked]] = {}
    for one in some:
        of.setdefault(one[0], []).append(one)
    taken = {name: min(count, len(own)) for name, own in of.items()}
    return [own[at * len(own) // taken[name]] for name, own in of.items() for at in range(taken[name])]


def _by_language(kinds: Mapping[str, Sequence[Asked]]) -> list[tuple[str, str, list[Asked]]]:
    rows = []
    for kind, some in kinds.items():
        of = {language: [one for one in some if detect_language(one[1]) == language] for language in ("en", "zh")}
        rows += [(kind, language, own) for language, own in of.items() if own]
        if all(of.values()):
            rows.append((kind, "all", [*some]))
    return rows


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


def embedded(texts: Mapping[str, str], spread: int | None) -> dict[str, np.ndarray]:
    """The vectors (n, d) of the passages of texts, by their names, `spread` of each at most; kept from one run to the
    next."""
    kept, made = Kept("scale"), {}
    for name, text in texts.items():
        key = [embedder().fingerprint, f"{name}.txt", len(text), DEFAULT_SIZE]
        if spread is not None and not kept.has(key):
            key.append(spread)
        tensors, _ = kept.tensors(key, lambda text=text: ({"vectors": _vectors(text, spread)}, 0.0))  # type: ignore[misc]
        made[name] = tensors["vectors"].numpy()
    return made


def _vectors(text: str, spread: int | None) -> torch.Tensor:
    opened = embedder().embedder
    chunks = split(text, opened.offsets(text), size=min(DEFAULT_SIZE, opened.passage_room))
    count = min(len(chunks), spread or len(chunks))
    some = [chunks[(2 * at + 1) * len(chunks) // (2 * count)].text for at in range(count)]
    return torch.from_numpy(opened.embed_passages(some))


@cache
def embedder() -> OpenEmbedder:
    """The default one."""
    return open_embedder()
