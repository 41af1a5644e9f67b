"""How much of the evidence do a document's best passages hold? By ranking, and by tokens that a prompt has for them.

    python -m bench.passage_recall [--sets xquad_en,contracts] [--docs N] [--data DIR]

Vectors alone, words alone (BM25), reciprocal rank fusion of both, `fuse_expanded` with several weights of the vectors,
and what the product takes: `places` for a short answer, `regions` for a paragraph.
`held`: share of questions whose answer lies whole in one of the first k passages, where the set knows its place;
`evidence`: mean share of the evidence's characters within so many tokens (of the embedder) of passages. No language
model is asked; vectors are kept. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.measures import covered
from bench.questions import DATA, Question, questions, read_document
from bench.vectors import passage_vectors, query_vectors
from minimemo.errors import MinimemoError
from minimemo.runtime import open_embedder
from minimemo.search.embedder import Embedder
from minimemo.search.fusion import NEIGHBOURS, fuse_expanded
from minimemo.search.index import Retriever, VectorIndex
from minimemo.search.lexical import LexicalIndex
from minimemo.text.chunks import DEFAULT_SIZE, Chunk, split

SETS = "xquad_en,xquad_zh,cmrc,drcd,contracts,loogle,qmsum,vcsum"
FIRST = (1, 2, 3, 5)
TOKENS = (500, 1000, 2000)
WEIGHTS = (0.3, 0.5, 0.6, 0.7)

Scores = npt.NDArray[np.float32]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 a mistake."""
    parser = argparse.ArgumentParser(description="evidence by ranking")
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--docs", type=int, help="only the so many smallest documents of each set")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--embedder")
    args = parser.parse_args(argv)
    told: dict[str, dict[str, dict[str, object]]] = {}
    try:
        embedder = open_embedder(args.embedder).embedder
        heads = "".join(f"{f'held {k}':>9}" for k in FIRST) + "".join(f"{f'evid. {n}':>12}" for n in TOKENS)
        print(f"{'set':<12}{'n':>4} {'ranking':<10}{heads}")
        for name in args.sets.split(","):
            asked = [q for q in questions(args.data, name, 10**6, args.docs) if q.evidence]
            told[name] = {}
            for ranking, (held, shares) in measured(args.data, asked, embedder).items():
                told[name][ranking] = {"n": len(asked), "held": held, "evidence": shares}
                cells = "".join(f"{h:>9.3f}" for h in held) or " " * 9 * len(FIRST)
                print(
                    f"{name:<12}{len(asked):>4} {ranking:<10}{cells}" + "".join(f"{s:>12.3f}" for s in shares),
                    flush=True,
                )
    except MinimemoError as error:
        print(f"bench.passage_recall: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"bench": "passage_recall", "first": FIRST, "tokens": TOKENS, "results": told}))
    return 0


def measured(data: Path, asked: Sequence[Question], embedder: Embedder) -> dict[str, tuple[list[float], list[float]]]:
    """ranking -> held for each of FIRST ([] where no answer's place is known), evidence for each of TOKENS."""
    held: dict[str, list[list[bool]]] = {}
    shares: dict[str, list[list[float]]] = {}
    for doc in dict.fromkeys(q.doc_id for q in asked):
        own = [q for q in asked if q.doc_id == doc]
        text = read_document(data, doc)
        offsets = embedder.offsets(text)
        chunks = split(text, offsets, size=min(DEFAULT_SIZE, embedder.passage_room))
        starts = offsets[:, 0]
        sizes = [int(np.searchsorted(starts, c.end) - np.searchsorted(starts, c.start)) for c in chunks]
        for ranking, scores in rankings(embedder, chunks, [q.text for q in own]).items():
            for question, row in zip(own, scores, strict=True):
                order = np.argsort(-row, kind="stable")
                if question.answer_span:
                    found = [_holds(chunks[i], question.answer_span) for i in order[: max(FIRST)]]
                    held.setdefault(ranking, []).append([any(found[:k]) for k in FIRST])
                filled = np.cumsum([sizes[i] for i in order])
                ranked = [{"start": chunks[i].start, "end": chunks[i].end} for i in order]
                kept = [ranked[: np.searchsorted(filled, n, side="right")] for n in TOKENS]
                shares.setdefault(ranking, []).append([covered(question.evidence, some) or 0.0 for some in kept])
    return {
        ranking: (np.mean(held[ranking], axis=0).tolist() if ranking in held else [], np.mean(rows, axis=0).tolist())
        for ranking, rows in shares.items()
    }


def rankings(embedder: Embedder, chunks: Sequence[Chunk], asked: Sequence[str]) -> dict[str, Scores]:
    """Scores (questions, passages) by each ranking."""
    passages = [chunk.text for chunk in chunks]
    embedded = passage_vectors(embedder, passages)
    vectors, near = query_vectors(embedder, asked) @ embedded.T, VectorIndex.build(embedded)
    retriever = Retriever(near, chunks, embedder)
    index = LexicalIndex(passages)
    words = np.stack([index.scores(question) for question in asked])
    found = {"vectors": vectors, "words": words, "ranks": reciprocal_ranks([vectors, words])}
    for weight in WEIGHTS:
        found[f"fused {weight}"] = fuse_expanded(
            vectors, words, index, asked, lambda rows: near.nearest(rows, NEIGHBOURS), weight
        )
    for name, regions in (("places", False), ("regions", True)):
        found[name] = np.empty_like(vectors)
        for row, hits in enumerate(retriever.retrieve(asked, len(chunks), regions=regions)):
            found[name][row, [hit.chunk.index for hit in hits]] = [hit.score for hit in hits]
    return found


def reciprocal_ranks(scored: Sequence[Scores], constant: int = 60) -> Scores:
    """The sum of 1 / (constant + rank) over rankings (q, n)."""
    ranks = [np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) for scores in scored]
    return np.sum([1 / (constant + rank) for rank in ranks], axis=0, dtype=np.float32)


def _holds(chunk: Chunk, span: tuple[int, int]) -> bool:
    return chunk.start <= span[0] and span[1] <= chunk.end


if __name__ == "__main__":
    sys.exit(main())
