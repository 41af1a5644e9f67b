"""What an answer loses where its document has to be picked among others first: each question is asked over all memos,
and of its own alone.

The documents are the articles of XQuAD, in English and Chinese (one says in Chinese what the other does in English, so
only one of the two languages has an article). Memos and answers are kept in minimemo's cache folder.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import minimemo
from bench.answers.runner import code_version
from bench.common.data import Question, document_text, questions
from bench.common.intervals import interval
from bench.common.kept import Kept
from bench.common.report import show
from bench.common.scores import f1
from minimemo.ask import Mode
from minimemo.files import cache_dir
from minimemo.memo.library import open_store
from minimemo.memory.tiers import DEFAULT
from minimemo.runtime import Runtime
from minimemo.text.document import Document

LANGUAGES = ("en", "zh")
COLUMNS = (
    ("language", "<8"), ("n", "4"), ("alone", "6.1f"), ("over_all", "8.1f"), ("difference", "10.1f"), ("low", "6.1f"),
    ("high", "6.1f"), ("same", "5"), ("picked", "6"),
)  # fmt: skip


def run(data: Path, count: int, each: int, mode: Mode) -> dict[str, Any]:
    """Asks `each` questions about each of `count` articles with the default models, and prints F1 in points, the mean
    of the paired differences and its interval, how many answers are the same, and for how many questions the right
    document was among those picked."""
    texts, asked = articles(data, count, each)
    kept = Kept("scale")  # beside it lie the memos
    begun = time.perf_counter()
    model, embedder = minimemo.load_model(None), minimemo.open_embedder(None)
    models: dict[str, Any] = {"model": model, "embedder": embedder}
    memos = {}
    for name, text in texts.items():
        folder = cache_dir() / "bench" / f"{name}-{model.located.fingerprint[:8]}-{DEFAULT}.memo"
        memos[name] = minimemo.build(Document.of(text, f"{name}.txt"), folder, **models)
    print(f"{len(memos)} memos after {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    models["generator"] = Runtime(model).second_decoder()
    store = open_store(among={str(memo.folder) for memo in memos.values()}, **models)
    rows = []
    recipes = {name: asdict(memo.manifest) for name, memo in memos.items()}
    key = [code_version(), models["generator"] and models["generator"].located.fingerprint, mode]
    for name, some in asked.items():
        alone = minimemo.open(memos[name].folder, **models)
        for question in some:
            one = kept.result(
                [*key, question.text, recipes[name]],
                lambda text=question.text, alone=alone: alone.ask(text, mode).to_dict(),
            )
            every = kept.result(
                [*key, question.text, recipes],
                lambda text=question.text: {
                    "picked": [memo.manifest.document.name for memo in store.pick(text)],
                    **store.ask(text, mode).to_dict(),
                },
            )
            rows.append({
                "document": name, "question": question.text, "alone": one["text"], "over_all": every["text"],
                "f1_alone": f1(one["text"], question.answers), "f1_over_all": f1(every["text"], question.answers),
                "picked": f"{name}.txt" in every["picked"],
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    summary = [figures(language, rows) for language in (*LANGUAGES, "all")]
    show(COLUMNS, (row for row in summary if row["n"]))
    return {"documents": len(memos), "mode": mode, "figures": summary, "rows": rows}


def figures(language: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the rows of one language, or of all."""
    some = [row for row in rows if language in ("all", row["document"].partition("_")[0])]
    if not some:
        return {"language": language, "n": 0}
    one, every = ([100 * row[f"f1_{way}"] for row in some] for way in ("alone", "over_all"))
    told = interval([b - a for a, b in zip(one, every, strict=True)])
    return {
        "language": language, "n": len(some), "alone": sum(one) / len(one), "over_all": sum(every) / len(every),
        "difference": told["mean"], "low": told["low"], "high": told["high"],
        "same": sum(row["alone"] == row["over_all"] for row in some), "picked": sum(row["picked"] for row in some),
    }  # fmt: skip


def articles(data: Path, count: int, each: int) -> tuple[dict[str, str], dict[str, list[Question]]]:
    """So many articles by their names, by turns of both languages, and questions about each, spread over those that
    there are."""
    english = document_text(data, "xquad_en")
    starts = [match.start() for match in re.finditer(r"^= .+ =$", english, re.M)]
    sets = {language: questions(data, f"xquad_{language}", 99999) for language in LANGUAGES}
    numbers = {one.id[-4:]: sum(at <= one.evidence[0][0] for at in starts) for one in sets["en"]}  # of both languages
    texts, asked = dict[str, str](), dict[str, list[Question]]()
    for number in range(1, min(count, len(starts)) + 1):
        language = LANGUAGES[number % len(LANGUAGES)]
        own = [one for one in sets[language] if numbers.get(one.id[-4:]) == number]
        spans = [span for one in own for span in one.evidence]
        name = f"{language}_{number}"
        text = document_text(data, f"xquad_{language}")
        texts[name] = text[min(start for start, _ in spans) : max(end for _, end in spans)]
        asked[name] = [own[at * len(own) // each] for at in range(min(each, len(own)))]
    return texts, asked
