"""How large should a chunk be? Share of questions whose answer lies whole in one of the retrieved chunks, by size.

    python bench/chunk_size.py EMBEDDER_FOLDER [--questions 150] [--sizes 96,128,192,256,384]

Columns: tokens a chunk (the embedder's), overlap, chunks, recall in the top 3 and the tokens that those 3 hold, recall
when the best chunks fill 500, 1000 and 1500 tokens. Each set counts alike. Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from minimemo.search.embedder import Embedder
from minimemo.text.chunks import split

SETS = {"xquad_en": "xquad_en", "xquad_zh": "xquad_zh", "cmrc_60k": "cmrc"}  # document -> question file
BUDGETS = (500, 1000, 1500)


def main() -> None:
    parser = argparse.ArgumentParser(description="recall by chunk size")
    parser.add_argument("embedder", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "../shared/data")
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--sizes", default="96,128,192,256,384")
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder = Embedder.load(args.embedder)
    loaded = {}
    for document, name in SETS.items():
        text = (args.data / "docs" / f"{document}.txt").read_text("utf-8")
        rows = [json.loads(line) for line in (args.data / "qa" / f"{name}.jsonl").open(encoding="utf-8")]
        rows = [row for row in rows if row["doc_id"] == document and "answer_span" in row]
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(args.questions, len(rows))).astype(int)]
        queries = embedder.embed_queries([row["question"] for row in rows])
        loaded[document] = (text, embedder.offsets(text), queries, np.array([row["answer_span"] for row in rows]))
    print("document    size overlap chunks  top3 tokens" + "".join(f"  @{b}" for b in BUDGETS))
    results = []
    for size in map(int, args.sizes.split(",")):
        for overlap in (0, size // 10):
            figures = []
            for document, (text, offsets, queries, spans) in loaded.items():
                chunks = split(text, offsets, size=size, overlap=overlap)
                scores = queries @ embedder.embed_passages([chunk.text for chunk in chunks]).T
                order = np.argsort(-scores, axis=1)
                bounds = np.array([(chunk.start, chunk.end) for chunk in chunks])
                lengths = np.diff(np.searchsorted(offsets[:, 0], bounds), axis=1)[:, 0]
                holds = (bounds[None, :, 0] <= spans[:, :1]) & (spans[:, 1:] <= bounds[None, :, 1])
                found = np.take_along_axis(holds, order, 1)
                filled = np.cumsum(lengths[order], axis=1)
                row = [found[:, :3].any(1).mean(), filled[:, min(2, len(chunks) - 1)].mean()]
                row += [(found & (filled <= budget)).any(1).mean() for budget in BUDGETS]
                figures.append(row)
                print(f"{document:11} {size:4} {overlap:7} {len(chunks):6}  {row[0]:.3f} {row[1]:6.0f}", end="")
                print("".join(f"  {value:.3f}" for value in row[2:]))
            mean = np.mean(figures, axis=0)
            print(f"{'mean':11} {size:4} {overlap:7}         {mean[0]:.3f} {mean[1]:6.0f}", end="")
            print("".join(f"  {value:.3f}" for value in mean[2:]), flush=True)
            results.append(
                {"size": size, "overlap": overlap, **dict(zip(("top3", "tokens"), mean[:2].round(4), strict=True))}
            )
    print(json.dumps({"bench": "chunk_size", "torch": torch.__version__, "threads": 1, "results": results}))


if __name__ == "__main__":
    main()
