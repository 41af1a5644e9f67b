"""Questions of ../shared/data answered in several modes, scored: `python -m bench.qa --sets xquad_en --limit 20`.

Prints a table and one JSON line. Memos and answers are kept in minimemo's folder: a run that was interrupted goes on,
and a run again costs nothing. Mode `gold` puts the evidence itself into the prompt: what the model could reach at best.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minimemo
from bench.scores import exact_match, f1
from minimemo.loop import PROMPTS
from minimemo.memory.tiers import DEFAULT
from minimemo.models.cachedir import home

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODES = ("closed", "gold", "rag", "memory", "memorag")
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    doc_id: str
    text: str
    answers: tuple[str, ...]
    evidence: tuple[tuple[int, int], ...]


def questions(data: Path, name: str, limit: int) -> list[Question]:
    """`limit` questions of a set, spread evenly over it, in its order; those of a smaller limit are among them."""
    path = data / "qa" / f"{name}.jsonl"
    if not path.exists():
        raise SystemExit(f"{path}: no such set")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    spread = sorted(range(len(rows)), key=lambda at: at * GOLDEN % 1)  # every beginning of it covers the set evenly
    return [
        Question(r["id"], r["doc_id"], r["question"], tuple(r["answers"]), tuple(map(tuple, r.get("evidence", ()))))
        for r in (rows[at] for at in sorted(spread[:limit]))
    ]


class Runner:
    """Builds memos once, answers each question once."""

    def __init__(
        self,
        data: Path,
        model: str | None = None,
        embedder: str | None = None,
        memory: str = DEFAULT,
        fresh: bool = False,
    ) -> None:
        self.fresh = fresh
        self.data = data
        self.memory = memory
        self.model = minimemo.load_model(model)
        self.embedder = minimemo.open_embedder(embedder)
        self._memos: dict[str, minimemo.Memo] = {}
        self._answers = home() / "bench" / "answers"
        self._answers.mkdir(parents=True, exist_ok=True)

    def memo(self, doc_id: str) -> minimemo.Memo:
        if doc_id not in self._memos:
            self._memos.clear()  # one memory at a time
            source = self.data / "docs" / f"{doc_id}.txt"
            folder = home() / "bench" / f"{doc_id}-{self.model.located.fingerprint[:8]}-{self.memory}.memo"
            begin = time.perf_counter()
            self._memos[doc_id] = minimemo.build(
                source, folder, model=self.model, embedder=self.embedder, memory=self.memory
            )
            print(f"{doc_id}: memo ready after {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        return self._memos[doc_id]

    def answer(self, question: Question, mode: str, max_tokens: int) -> dict[str, Any]:
        """The answer's record, from the store when the same was asked of the same memo before."""
        memo = self.memo(question.doc_id)
        session = memo.session()
        asked = [memo.manifest.recipe, mode, question.text, max_tokens, session.settings, dict(PROMPTS)]
        note = self._answers / f"{hashlib.sha256(repr(asked).encode()).hexdigest()[:32]}.json"
        if note.exists() and not self.fresh:
            stored: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
            return stored
        begin = time.perf_counter()
        if mode == "gold":
            text = (self.data / "docs" / f"{question.doc_id}.txt").read_bytes().decode()
            found = memo.answer(question.text, [text[a:b] for a, b in question.evidence], max_tokens)
        else:
            found = memo.ask(question.text, mode, max_tokens)  # type: ignore[arg-type]
        record = {
            "id": question.id,
            "doc_id": question.doc_id,
            "seconds": time.perf_counter() - begin,
            **found.to_dict(),
        }
        note.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        return record


def recall_of(evidence: Iterable[tuple[int, int]], passages: Iterable[dict[str, Any]]) -> float | None:
    """Share of the evidence's characters that the passages hold; None without evidence."""
    spans = list(evidence)
    if not spans:
        return None
    held = {at for p in passages for at in range(p["start"], p["end"])}
    wanted = {at for a, b in spans for at in range(a, b)}
    return len(wanted & held) / len(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", default="xquad_en,xquad_zh")
    parser.add_argument("--modes", default="rag,memorag", help=f"some of {','.join(MODES)}")
    parser.add_argument("--limit", type=int, default=20, help="questions a set")
    parser.add_argument("--model")
    parser.add_argument("--embedder")
    parser.add_argument("--memory", default=DEFAULT)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--fresh", action="store_true", help="ask again what was asked before (the loop has changed)")
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    parser.add_argument("--show", action="store_true", help="each answer")
    options = parser.parse_args()
    runner = Runner(options.data, options.model, options.embedder, options.memory, options.fresh)
    result = evaluate(
        runner, options.sets.split(","), options.modes.split(","), options.limit, options.max_tokens, options.show
    )
    if not options.json:
        print(f"{'set':<12}{'mode':<10}{'n':>4}{'F1':>8}{'EM':>8}{'evidence':>10}{'s/question':>12}")
        for name, modes in result.items():
            for mode, row in modes.items():
                held = "" if row["evidence"] is None else f"{row['evidence']:.2f}"
                print(
                    f"{name:<12}{mode:<10}{row['n']:>4}{row['f1']:>8.3f}{row['em']:>8.3f}{held:>10}{row['seconds']:>12.1f}"
                )
    print(json.dumps({"model": runner.model.located.source, "memory": options.memory, "sets": result}))


def evaluate(
    runner: Runner, sets: list[str], modes: list[str], limit: int, max_tokens: int = 64, show: bool = False
) -> dict[str, dict[str, dict[str, Any]]]:
    """set -> mode -> {n, f1, em, evidence, seconds}: means over the questions, seconds their median."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name in sets:
        asked = questions(runner.data, name, limit)
        result[name] = {}
        for mode in modes:
            rows = []
            for question in asked:
                record = runner.answer(question, mode, max_tokens)
                rows.append((question, record))
                if show:
                    print(f"[{mode}] {question.text}\n  {record['text']!r}  right: {question.answers}", file=sys.stderr)
            recalls = [recall_of(q.evidence, r["passages"]) for q, r in rows]
            known = [recall for recall in recalls if recall is not None]
            result[name][mode] = {
                "n": len(rows),
                "f1": statistics.fmean(f1(r["text"], q.answers) for q, r in rows),
                "em": statistics.fmean(exact_match(r["text"], q.answers) for q, r in rows),
                "evidence": statistics.fmean(known) if known and mode in ("rag", "memorag") else None,
                "seconds": statistics.median(r["seconds"] for _, r in rows),
            }
    return result


if __name__ == "__main__":
    main()
