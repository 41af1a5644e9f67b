"""Needles in a haystack, by depth: `python -m bench.needle --model NAME --haystack FILE --lengths 4k,16k,64k,150k`.

For each length one document: the beginning of the haystack with needles of the data folder hidden at even depths, a
paragraph each. Each needle is asked for in three ways: from memory alone (`memory`), by retrieval alone (`rag`), by the
loop (`memorag`). Found: the answer holds a right one, as `bench.memory` counts it. Memos are kept in minimemo's folder,
so a run again only asks. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import minimemo
from bench.memory_samples import HAY_SHARE, Library, hide
from bench.memory_stats import holds
from bench.questions import DATA
from minimemo.ask import Mode, detect_language
from minimemo.errors import InputError, MinimemoError
from minimemo.files import cache_dir
from minimemo.memory.tiers import DEFAULT, TIERS
from minimemo.models.tokenizer import Tokenizer
from minimemo.runtime import LanguageModel, OpenEmbedder
from minimemo.text.document import read_document

MODES: tuple[Mode, ...] = ("memory", "rag", "memorag")
_CHARS = 12  # characters read for a token asked for


@dataclass(frozen=True, slots=True)
class Needle:
    """texts: hidden together at `depth`, 0 to 1."""

    depth: float
    texts: tuple[str, ...]
    question: str
    answers: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        found = _run(args)
    except MinimemoError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if not args.json:
        _print(found)
    print(json.dumps(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.needle", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="name in the catalogue (pulled), .gguf file or directory")
    parser.add_argument("--embedder")
    parser.add_argument("--haystack", type=Path, required=True, metavar="FILE")
    parser.add_argument("--lengths", default="4k,16k,64k,150k", help="tokens, with commas between; k: thousands")
    parser.add_argument("--depths", type=int, default=10, help="needles in each document")
    parser.add_argument("--modes", default=",".join(MODES), help=f"some of {','.join(MODES)}")
    parser.add_argument("--memory", choices=TIERS, default=DEFAULT)
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--show", action="store_true", help="each answer, on stderr")
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    return parser


def _run(args: argparse.Namespace) -> dict[str, Any]:
    lengths = [_tokens(word) for word in args.lengths.split(",")]
    modes = args.modes.split(",")
    if args.depths < 1 or set(modes) - set(get_args(Mode)):
        raise InputError(f"--depths {args.depths}, --modes {args.modes}: at least 1; known modes: {','.join(MODES)}")
    document = read_document(args.haystack)
    language = detect_language(document.text)
    groups = Library.open(args.data).needles(language)
    # one sentence asked for alone comes before several that belong together
    groups = sorted(groups, key=len)[: args.depths]
    if len(groups) < args.depths:
        raise InputError(f"--depths {args.depths}: {args.data} has {len(groups)} needles in this language; lower it")
    model, embedder = minimemo.load_model(args.model), minimemo.open_embedder(args.embedder)
    needles = [
        Needle(
            (number + 0.5) / len(groups),
            tuple(row["needle"] for row in group),
            group[0]["question"],
            tuple(group[0]["answers"]),
        )
        for number, group in enumerate(groups)
    ]
    return {
        "model": model.located.source,
        "memory": args.memory,
        "haystack": args.haystack.name,
        "language": language,
        "depths": [needle.depth for needle in needles],
        "lengths": {
            str(length): _measure(args, document.text, length, needles, modes, model, embedder) for length in lengths
        },
    }


def _measure(
    args: argparse.Namespace,
    hay: str,
    length: int,
    needles: Sequence[Needle],
    modes: Sequence[Mode],
    model: LanguageModel,
    embedder: OpenEmbedder,
) -> dict[str, Any]:
    """mode -> {found: share, by_depth: 0 or 1 each, evidence: share whose passages hold an answer, seconds: median}."""
    name = f"{args.haystack.stem}-{length}-{len(needles)}"
    document = minimemo.Document.of(haystack(hay, length, needles, model.tokenizer, args.haystack.name), f"{name}.txt")
    folder = cache_dir() / "bench" / "needle" / f"{name}-{model.located.fingerprint[:8]}-{args.memory}.memo"
    folder.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    memo = minimemo.build(document, folder, model=model, embedder=embedder, memory=args.memory)
    told: dict[str, Any] = {"tokens": memo.manifest.document.tokens, "build_seconds": time.perf_counter() - begin}
    for mode in modes:
        hits, shown, seconds = [], [], []
        for needle in needles:
            begin = time.perf_counter()
            answer = memo.ask(needle.question, mode, args.max_tokens)
            seconds.append(time.perf_counter() - begin)
            hits.append(holds(answer.text, needle.answers))
            evidence = "\n".join(passage.text for passage in answer.passages)
            shown.append(holds(evidence, needle.answers))
            if args.show:
                print(f"[{length} {mode} {needle.depth:.2f}] {needle.question}\n  {answer.text!r}", file=sys.stderr)
        told[mode] = {
            "found": statistics.fmean(hits),
            "by_depth": [int(hit) for hit in hits],
            "evidence": statistics.fmean(shown) if mode != "memory" else None,
            "seconds": statistics.median(seconds),
        }
    return told


def haystack(hay: str, length: int, needles: Sequence[Needle], tokenizer: Tokenizer, name: str = "haystack") -> str:
    """`length` tokens of hay and needles. Raises InputError when the hay is too short, or most would be needles."""
    texts = [text for needle in needles for text in needle.texts]
    straw = length - sum(len(tokenizer.encode(f"{text}\n\n")) for text in texts)
    if straw < HAY_SHARE * length:
        raise InputError(f"{length} tokens: {len(texts)} needles would be most of them; lower --depths")
    _, spans = tokenizer.encode_with_offsets(hay[: _CHARS * length])
    if len(spans) < straw:
        raise InputError(f"{name}: {len(spans)} tokens, not the {straw} needed; give a longer haystack")
    places = [int(spans[int(straw * needle.depth), 0]) for needle in needles for _ in needle.texts]
    return hide(hay[: int(spans[straw - 1, 1])], 0, places, texts)


def _tokens(word: str) -> int:
    try:
        found = int(float(word[:-1]) * 1000) if word.lower().endswith("k") else int(word)
    except ValueError:
        found = 0
    if found < 1:
        raise InputError(f"--lengths: {word!r} is no number of tokens; write 4096 or 4k")
    return found


def _print(found: dict[str, Any]) -> None:
    print(f"{found['model']}, {found['memory']}, {found['haystack']}: {len(found['depths'])} depths")
    print(f"{'tokens':>8}  {'mode':<8}{'found':>6}{'shown':>7}{'s':>7}  by depth")
    for told in found["lengths"].values():
        for mode in told:
            if mode in get_args(Mode):
                row = told[mode]
                shown = "" if row["evidence"] is None else f"{row['evidence']:.2f}"
                marks = "".join("x" if hit else "." for hit in row["by_depth"])
                print(f"{told['tokens']:>8}  {mode:<8}{row['found']:>6.2f}{shown:>7}{row['seconds']:>7.1f}  {marks}")


if __name__ == "__main__":
    sys.exit(main())
