"""How often `supported` is right, without a model: `python -m bench.support --sets xquad_en,xquad_zh,cmrc,drcd`.

Every question is judged with its evidence as the passage and two answers: its own, which should be supported, and
those of other questions about the same evidence, which stand in the passage and answer something else.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from bench.questions import DATA, Question, questions
from minimemo.ask.answer import Passage, is_supported


def shares(data: Path, name: str) -> tuple[float, int, float, int]:
    """Share of own answers called supported, their number, and the same of other questions' answers."""
    groups: dict[tuple[str, tuple[int, int]], list[Question]] = defaultdict(list)
    for question in questions(data, name, limit=10**6):
        if question.evidence:
            groups[question.doc_id, question.evidence[0]].append(question)
    texts = {doc: (data / "docs" / f"{doc}.txt").read_bytes().decode() for doc, _ in groups}
    own, others = [], []
    for (doc, (start, end)), asked in groups.items():
        passages = [Passage(start, end, texts[doc][start:end], score=0.0)]
        for question in asked:
            own.append(is_supported(question.answers[0], question.text, passages))
            others += [
                is_supported(other.answers[0], question.text, passages)
                for other in asked
                if not set(other.answers) & set(question.answers)
            ]
    return sum(own) / max(1, len(own)), len(own), sum(others) / max(1, len(others)), len(others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", default="xquad_en,xquad_zh,cmrc,drcd")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    print(f"{'set':<12}{'own':>8}{'n':>6}{'others':>8}{'n':>6}")
    for name in options.sets.split(","):
        own, n, others, m = shares(options.data, name)
        print(f"{name:<12}{own:>8.3f}{n:>6}{others:>8.3f}{m:>6}")


if __name__ == "__main__":
    main()
