"""How well are passages found: over judged collections, and as evidence within documents?

    python -m bench.search --sets cranfield,medquad
    python -m bench.search --passages --sets xquad_en,contracts --docs 3
    python -m bench.search --passages --sets xquad_en,xquad_zh,cmrc --size 192

Collections: nDCG and recall at 10 (Järvelin and Kekäläinen 2002, gains as judged; means over queries) of vectors alone
(dense), words alone (bm25) and both as the product fuses them. For vectors a text is cut into passages as a document
is.

--passages: how much of the evidence the best passages of a document hold, by ranking: vectors, words, and what the
product takes: `places` for a short answer, `regions` for a paragraph. held_k: share of questions whose answer lies
whole in one of the first k passages, where the set knows its place; tokens_n: mean share of the evidence's characters
within n tokens (of the embedder) of passages.
--size N cuts other passages than the product's.

No language model is asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.answers.measures import covered
from bench.common.data import DATA, Question, document_text, questions, read_rows
from bench.common.report import command, parser, show
from minimemo.errors import InputError
from minimemo.hub.catalog import CATALOG, defaults
from minimemo.runtime import open_embedder
from minimemo.search.embedder import Embedder
from minimemo.search.fusion import NEIGHBOURS, fuse_expanded
from minimemo.search.lexical import LexicalIndex
from minimemo.search.retriever import Retriever
from minimemo.search.vectors import VectorIndex
from minimemo.text.chunks import DEFAULT_SIZE, Chunk, split

COLLECTIONS = "cranfield,medquad,vcsum_headline,cmrc,xquad_en,xquad_zh"
SETS = "xquad_en,xquad_zh,cmrc,drcd,contracts,loogle,qmsum,vcsum"
K = 10
FIRST = (1, 2, 3, 5)
TOKENS = (500, 1000, 2000)
COLUMNS = (
    ("embedder", "<24"), ("set", "<16"), ("texts", "6"), ("queries", "7"), ("ranking", "<8"), ("ndcg", "6.3f"),
    ("recall", "6.3f"),
)  # fmt: skip
PASSAGE_COLUMNS = (
    ("embedder", "<24"), ("set", "<11"), ("n", "4"), ("ranking", "<10"), *((f"held_{k}", "6.3f") for k in FIRST),
    *((f"tokens_{n}", "6.3f") for n in TOKENS),
)  # fmt: skip
Scores = npt.NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.search")
    made.add_argument("--sets", help=f"default: {COLLECTIONS}; of --passages: {SETS}")
    made.add_argument("--embedders", help="names or folders (default: the catalogue's; of --passages: its first)")
    made.add_argument("--data", type=Path, default=DATA)
    made.add_argument("--passages", action="store_true", help="evidence within documents")
    made.add_argument("--docs", type=int, help="of --passages: only the so many smallest documents of each set")
    made.add_argument("--size", type=int, default=DEFAULT_SIZE, help="of --passages: tokens of a passage")
    return command(made.parse_args(arguments), "bench.search", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    every = [defaults()[1]] if args.passages else [n for n, model in CATALOG.items() if model.kind == "embedder"]
    names = args.embedders.split(",") if args.embedders else every
    columns = PASSAGE_COLUMNS if args.passages else COLUMNS
    return {"passages" if args.passages else "collections": show(columns, _rows(args, names))}


def _rows(args: argparse.Namespace, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        embedder = open_embedder(name).embedder
        for set_name in (args.sets or (SETS if args.passages else COLLECTIONS)).split(","):
            if args.passages:
                asked = [q for q in questions(args.data, set_name, 10**6, args.docs) if q.evidence]
                some = evidence(args.data, asked, embedder, args.size)
            else:
                some = judged(read_collection(args.data / "embed" / set_name), embedder)
            yield from ({"embedder": name, "set": set_name, **row} for row in some)


# -- judged collections ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Collection:
    """Texts (a title first), queries and judgements: query number -> {text number: gain}."""

    texts: tuple[str, ...]
    queries: tuple[str, ...]
    judged: Mapping[int, Mapping[int, float]]


def read_collection(folder: Path) -> Collection:
    """corpus.jsonl, queries.jsonl and qrels.tsv, as BEIR has them. Queries without a judgement are left out."""
    if not (folder / "corpus.jsonl").is_file():
        raise InputError(f"{folder}: no such set")
    corpus, asked = read_rows(folder / "corpus.jsonl"), read_rows(folder / "queries.jsonl")
    place = {row["id"]: number for number, row in enumerate(corpus)}
    gains: dict[str, dict[int, float]] = {}
    for row in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, text, gain = row.split("\t")
        if float(gain) > 0:
            gains.setdefault(query, {})[place[text]] = float(gain)
    kept = [row for row in asked if row["id"] in gains]
    return Collection(
        tuple(f"{row.get('title', '')}\n{row['text']}".strip() for row in corpus),
        tuple(row["text"] for row in kept),
        {number: gains[row["id"]] for number, row in enumerate(kept)},
    )


def judged(collection: Collection, embedder: Embedder) -> list[dict[str, Any]]:
    """dense, bm25 and fused. A text's vector score is that of its best passage, since an encoder sees no more at once,
    and two texts are as near as their nearest passages; words are looked for in the whole text."""
    passages, owner = cut(collection, embedder)
    vectors = embedder.embed_passages(passages)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    dense = np.maximum.reduceat(embedder.embed_queries(collection.queries) @ vectors.T, starts, axis=1)
    near = np.maximum.reduceat(np.maximum.reduceat(vectors @ vectors.T, starts, axis=0), starts, axis=1)
    np.fill_diagonal(near, -np.inf)
    nearest = np.argsort(-near, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(near) - 1)]
    index = LexicalIndex(collection.texts)
    bm25 = np.stack([index.scores(query) for query in collection.queries])
    read = np.where(embedder.reads(collection.queries)[:, None], dense, np.float32(0))
    fused = fuse_expanded(read, bm25, index, collection.queries, lambda rows: nearest[rows])
    sizes = {"texts": len(collection.texts), "queries": len(collection.queries)}
    rankings = {"dense": dense, "bm25": bm25, "fused": fused}
    return [{**sizes, "ranking": k, **ranked(scores, collection.judged)} for k, scores in rankings.items()]


def cut(collection: Collection, embedder: Embedder) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The passages of all texts, and the number of the text that each is from; a text has one at least."""
    passages: list[str] = []
    owner: list[int] = []
    for number, text in enumerate(collection.texts):
        some = [chunk.text for chunk in _chunks(text, embedder)] or [""]
        passages += some
        owner += [number] * len(some)
    return passages, np.array(owner)


def ranked(scores: Scores, judgements: Mapping[int, Mapping[int, float]]) -> dict[str, float]:
    """{"ndcg", "recall"} at K of score rows (queries, texts)."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    ndcg = [gain_of([gains.get(int(i), 0.0) for i in order[q]], gains) for q, gains in judgements.items()]
    recall = [sum(int(i) in gains for i in order[q]) / len(gains) for q, gains in judgements.items()]
    return {"ndcg": float(np.mean(ndcg)), "recall": float(np.mean(recall))}


def gain_of(gains: Sequence[float], judgements: Mapping[int, float]) -> float:
    """nDCG at K of one query: gains in the order of a ranking against the best order of all judged."""

    def discounted(some: Sequence[float]) -> float:
        return float(sum(gain / np.log2(rank + 2) for rank, gain in enumerate(some[:K])))

    return discounted(gains) / discounted(sorted(judgements.values(), reverse=True))


# -- evidence within documents -----------------------------------------------------------------------------------------


def evidence(data: Path, asked: Sequence[Question], embedder: Embedder, size: int) -> list[dict[str, Any]]:
    """A row for each ranking."""
    held: dict[str, list[list[bool]]] = {}
    shares: dict[str, list[list[float]]] = {}
    for doc in dict.fromkeys(q.doc_id for q in asked):
        some = [q for q in asked if q.doc_id == doc]
        text = document_text(data, doc)
        starts, chunks = embedder.offsets(text)[:, 0], _chunks(text, embedder, size)
        sizes = [int(np.searchsorted(starts, c.end) - np.searchsorted(starts, c.start)) for c in chunks]
        for ranking, scores in rankings(embedder, chunks, [q.text for q in some]).items():
            for question, row in zip(some, scores, strict=True):
                order = np.argsort(-row, kind="stable")
                if span := question.answer_span:
                    hits = [chunks[i].start <= span[0] and span[1] <= chunks[i].end for i in order[: max(FIRST)]]
                    held.setdefault(ranking, []).append([any(hits[:k]) for k in FIRST])
                filled = np.cumsum([sizes[i] for i in order])
                places = [{"start": chunks[i].start, "end": chunks[i].end} for i in order]
                kept = [places[: np.searchsorted(filled, n, side="right")] for n in TOKENS]
                shares.setdefault(ranking, []).append([covered(question.evidence, part) or 0.0 for part in kept])
    return [
        {"n": len(asked), "ranking": ranking}
        | {f"held_{k}": float(x) for k, x in zip(FIRST, np.mean(held.get(ranking, [[]]), axis=0), strict=False)}
        | {f"tokens_{n}": float(x) for n, x in zip(TOKENS, np.mean(rows, axis=0), strict=True)}
        for ranking, rows in shares.items()
    ]


def rankings(embedder: Embedder, chunks: Sequence[Chunk], asked: Sequence[str]) -> dict[str, Scores]:
    """Scores (questions, passages) by each ranking."""
    passages = [chunk.text for chunk in chunks]
    embedded = embedder.embed_passages(passages)
    vectors, index = embedder.embed_queries(asked) @ embedded.T, LexicalIndex(passages)
    retriever = Retriever(VectorIndex.build(embedded), chunks, embedder)
    words = np.stack([index.scores(question) for question in asked])
    every = {"vectors": vectors, "words": words}
    for name, regions in (("places", False), ("regions", True)):
        every[name] = np.empty_like(vectors)
        for row, hits in enumerate(retriever.retrieve(asked, len(chunks), regions=regions)):
            every[name][row, [hit.chunk.index for hit in hits]] = [hit.score for hit in hits]
    return every


def _chunks(text: str, embedder: Embedder, size: int = DEFAULT_SIZE) -> list[Chunk]:
    return split(text, embedder.offsets(text), size=min(size, embedder.passage_room))


if __name__ == "__main__":
    sys.exit(main())
