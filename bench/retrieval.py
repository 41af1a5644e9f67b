"""Search over judged collections: dense, BM25 and fused as the product has them, for each embedder.

    python -m bench.retrieval [--sets cranfield,medquad] [--embedders NAME,NAME] [--data DIR] [--speed]

nDCG and recall at 10. For vectors a text is cut into passages as a document is. Vectors are kept in minimemo's folder:
a second run embeds nothing. `--speed`: passages a second beside sentence-transformers, same texts,
same folder, in turns. Prints a table and one JSON line:
`{"embedders": {name: {set: {"dense" | "bm25" | "fused": {ndcg, recall}}}}, "speed": ...}`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.questions import DATA
from bench.ranking import Collection, measured, read_collection
from bench.vectors import passage_vectors, query_vectors
from minimemo.errors import MinimemoError
from minimemo.hub.catalog import CATALOG
from minimemo.runtime import open_embedder
from minimemo.search.embedder import Embedder
from minimemo.search.fusion import NEIGHBOURS, WEIGHT, fuse_expanded
from minimemo.search.lexical import LexicalIndex
from minimemo.text.chunks import DEFAULT_SIZE, split

SETS = "cranfield,medquad,vcsum_headline,cmrc,xquad_en,xquad_zh"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 a mistake."""
    parser = argparse.ArgumentParser(description="search over judged collections")
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--embedders", help="names or folders (default: those of the catalogue)")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--speed", action="store_true", help="also passages a second beside sentence-transformers")
    parser.add_argument("--threads", type=int, default=2, help="of --speed")
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    args = parser.parse_args(argv)
    known = [name for name, model in CATALOG.items() if model.kind == "embedder"]
    told: dict[str, Any] = {"bench": "retrieval", "weight": WEIGHT, "embedders": {}}
    if not args.json:
        print(f"{'embedder':<24}{'set':<16}{'texts':>6}{'queries':>8}   " + "".join(
            f"{name:>15}" for name in ("dense", "bm25", "fused")) + "   nDCG and recall at 10")  # fmt: skip
    try:
        for name in args.embedders.split(",") if args.embedders else known:
            embedder = open_embedder(name).embedder
            told["embedders"][name] = {}
            for set_name in args.sets.split(","):
                collection = read_collection(args.data / "embed" / set_name)
                found = {k: measured(s, collection.judged) for k, s in rankings(collection, embedder).items()}
                told["embedders"][name][set_name] = found
                if not args.json:
                    print_row(name, set_name, collection, found)
            if args.speed:
                from bench.embed import side_by_side

                speed = side_by_side(name, _sample(args.data, embedder), threads=args.threads)
                told.setdefault("speed", {})[name] = speed
                if not args.json:
                    print(f"{name:<24}passages/s: " + ", ".join(f"{k} {v:.1f}" for k, v in speed.items()), flush=True)
    except MinimemoError as error:
        print(f"bench.retrieval: {error}", file=sys.stderr)
        return 2
    print(json.dumps(told))
    return 0


def rankings(collection: Collection, embedder: Embedder) -> dict[str, npt.NDArray[np.float32]]:
    """dense, bm25 and fused: (queries, texts). A text's vector score is that of its best passage, since an encoder sees
    no more at once, and two texts are as near as their nearest passages; words are looked for in the whole text."""
    passages, owner = cut(collection, embedder)
    vectors = passage_vectors(embedder, passages)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    dense = np.maximum.reduceat(query_vectors(embedder, collection.queries) @ vectors.T, starts, axis=1)
    near = np.maximum.reduceat(np.maximum.reduceat(vectors @ vectors.T, starts, axis=0), starts, axis=1)
    np.fill_diagonal(near, -np.inf)
    nearest = np.argsort(-near, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(near) - 1)]
    index = LexicalIndex([whole(*text) for text in zip(collection.titles, collection.texts, strict=True)])
    bm25 = np.stack([index.scores(query) for query in collection.queries])
    known = np.where(embedder.reads(collection.queries)[:, None], dense, np.float32(0))
    fused = fuse_expanded(known, bm25, index, collection.queries, lambda rows: nearest[rows])
    return {"dense": dense, "bm25": bm25, "fused": fused}


def whole(title: str, text: str) -> str:
    return f"{title}\n{text}".strip()


def cut(collection: Collection, embedder: Embedder) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The passages of all texts, and the number of the text that each is from; a text has one at least."""
    passages: list[str] = []
    owner: list[int] = []
    size = min(DEFAULT_SIZE, embedder.passage_room)
    for number, (title, text) in enumerate(zip(collection.titles, collection.texts, strict=True)):
        both = whole(title, text)
        own = [chunk.text for chunk in split(both, embedder.offsets(both), size=size)] or [""]
        passages += own
        owner += [number] * len(own)
    return passages, np.array(owner)


def print_row(name: str, set_name: str, collection: Collection, found: dict[str, dict[str, float]]) -> None:
    cells = "".join(f"{row['ndcg']:>9.3f}{row['recall']:>6.3f}" for row in found.values())
    print(f"{name:<24}{set_name:<16}{len(collection.texts):>6}{len(collection.queries):>8}   {cells}", flush=True)


def _sample(data: Path, embedder: Embedder) -> list[str]:
    """The passages of a document of 16,500 tokens, or of the first there is."""
    docs = data / "docs"
    path = docs / "xquad_en.txt"
    text = (path if path.exists() else min(docs.glob("*.txt"))).read_bytes().decode()
    return [c.text for c in split(text, embedder.offsets(text), size=min(DEFAULT_SIZE, embedder.passage_room))]


if __name__ == "__main__":
    sys.exit(main())
