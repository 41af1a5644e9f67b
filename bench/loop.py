"""From a document to an answer: seconds, memory and bytes of each step.

    python -m bench.loop --model qwen2.5-coder-0.5b --doc book.txt [--questions FILE] [--memory int4] [--json]

The memo is built in a process of its own, whose peak memory counts; each question is then asked in a cold process, and
once more in the same, warm one. Questions: one a line, or JSON lines with a "question"; none: one of our own.
Stages of a build: load (models), tokenize, embed, prefill, encode (codec, zstd and writing), finish (hashes, manifest).
Seconds until: open (models and passages ready), first_clue, first_token, all counted from the start of a cold process,
imports included, or from the question in a warm one; ask_s: a whole warm question. clues_s: the clues of a question in
one batch over the memory; clue_alone_s: the longest of them asked for alone. Medians over the questions.
Other processes slow everything: figures are good where `others_cpu_share` is next to nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.bystanders import Bystanders
from minimemo.errors import InputError, MinimemoError
from minimemo.events import Event
from minimemo.memory.tiers import DEFAULT, TIERS

if TYPE_CHECKING:
    from minimemo.ask import Session

ASKED = {"en": "Who is named first in this document?", "zh": "最先出现的人物叫什么名字？"}


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        if args.child:
            print(json.dumps(_child_build(args) if args.child == "build" else _child_ask(args)))
            return 0
        found = _run(args)
    except MinimemoError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    _print_table(found)
    if args.json:
        print(json.dumps(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.loop", description="what building and asking a memo costs")
    parser.add_argument("--model", required=True, help="name in the catalogue (pulled), .gguf file or directory")
    parser.add_argument("--embedder", help="name or directory (default: the catalogue's)")
    parser.add_argument("--doc", required=True, type=Path, help="a text file")
    parser.add_argument("--questions", type=Path, help="one a line, or JSON lines with a question")
    parser.add_argument("--limit", type=int, default=5, help="questions, at most (default: 5)")
    parser.add_argument("--memory", choices=TIERS, default=DEFAULT)
    parser.add_argument("--window", type=int, help="as of minimemo build")
    parser.add_argument("--memo", type=Path, help="where to build, and leave, the memo (default: nowhere)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--child", choices=("build", "ask"), help=argparse.SUPPRESS)
    parser.add_argument("--question", help=argparse.SUPPRESS)
    return parser


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.memo and args.memo.exists():
        raise InputError(f"{args.memo}: exists, so nothing would be built; name another place")
    questions = _questions(args)
    others = Bystanders()
    with tempfile.TemporaryDirectory() as folder:
        memo = args.memo or Path(folder) / "bench.memo"
        built = _in_child(args, memo, "build")
        asked = [_in_child(args, memo, "ask", question or ASKED[built["language"]]) for question in questions]

    def median(key: str) -> float | None:
        values = [one[key] for one in asked if one.get(key) is not None]
        return statistics.median(values) if values else None

    timed = (
        *("open_s", "first_clue_s", "first_token_cold_s", "first_token_warm_s", "ask_s", "blocks_read"),
        *("clues_s", "clue_alone_s"),
    )
    return {
        **built,
        **{key: median(key) for key in timed},
        "questions": len(asked),
        "ask_errors": sorted({one["error"] for one in asked if "error" in one}),
        "ask_peak_rss_bytes": median("peak_rss_bytes"),
        "others_cpu_share": others.share(),
    }


def _questions(args: argparse.Namespace) -> list[str | None]:
    if args.questions is None:
        return [None]
    try:
        lines = [line for line in args.questions.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [str(json.loads(line)["question"]) if line.startswith("{") else line for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{args.questions}: not questions, one a line, or JSON lines with them ({error})") from None
    if not found:
        raise InputError(f"{args.questions}: holds no question")
    return list(found[: args.limit])


def _in_child(args: argparse.Namespace, memo: Path, what: str, question: str = "") -> dict[str, Any]:
    """Runs this bench for one step; what it prints, with times that count from the start of the process."""
    given = {
        "--model": args.model, "--embedder": args.embedder, "--doc": args.doc, "--memory": args.memory,
        "--window": args.window, "--memo": memo, "--child": what, "--question": question,
    }  # fmt: skip
    command = [sys.executable, "-m", "bench.loop"]
    for name, value in given.items():
        command += [name, str(value)] if value not in (None, "") else []
    began = time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError(f"{what}: failed, see above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for key, moment in found.pop("moments", {}).items():
        found[key] = moment - began
    return found


# -- in a child --------------------------------------------------------------------------------------------------------


class Stages:
    """Seconds by stage. What passes before an event belongs to the event's stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._coding = 0.0  # seconds of encoding since the last event
        self._last = time.perf_counter()

    def __call__(self, event: Event) -> None:
        known = {"tokenize": "tokenize", "embed": "embed", "read": "prefill"}
        stage = known.get(event.stage, "load")
        if event.stage == "tokenize" and not event.done:
            stage = "load"
        self.close(stage)

    def close(self, stage: str) -> None:
        """Ends a stretch of time."""
        now = time.perf_counter()
        spent = {stage: now - self._last - self._coding, "encode": self._coding}
        for name, seconds in spent.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._coding, self._last = 0.0, now

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted as encoding."""

        def run(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._coding += time.perf_counter() - begin

        return run


def _child_build(args: argparse.Namespace) -> dict[str, Any]:
    import minimemo
    from minimemo.memo import manifest as names
    from minimemo.memory import codec, int4
    from minimemo.memory import transform as klt
    from minimemo.memory.writer import MemoryWriter

    began, stages = time.perf_counter(), Stages()
    for kind in (codec.ExactCodec, int4.Int4Codec, klt.TransformCodec):
        kind.encode = stages.timed(kind.encode)  # type: ignore[method-assign]
    MemoryWriter.add = stages.timed(MemoryWriter.add)  # type: ignore[method-assign]
    memo = minimemo.build(
        args.doc, args.memo, model=args.model, embedder=args.embedder, memory=args.memory, window=args.window,
        on_event=stages,
    )  # fmt: skip
    stages.close("finish")
    seconds = time.perf_counter() - began
    told, files = memo.inspect(), memo.manifest.files
    return {
        "doc": args.doc.name,
        "characters": told["document"]["characters"],
        "language": told["document"]["language"],
        "memory": args.memory,
        "reading": dict(memo.manifest.recipe.reading),
        "build_seconds": seconds,
        "tokens": told["memory"]["tokens"],
        "tokens_per_s": told["memory"]["tokens"] / seconds,
        "stages": stages.seconds,
        "peak_rss_bytes": _peak_rss_bytes(),
        "memory_bytes": files[names.MEMORY].bytes,
        "index_bytes": files[names.INDEX].bytes,
        "chunks_bytes": files[names.CHUNKS].bytes,
    }


def _child_ask(args: argparse.Namespace) -> dict[str, Any]:
    import minimemo

    blocks = 0

    def count(event: Event) -> None:
        nonlocal blocks
        blocks += event.stage == "load memory"

    memo = minimemo.open(args.memo, model=args.model, embedder=args.embedder, on_event=count)
    try:
        memo.session()
        opened = time.time()
        clue, token, _ = _ask(memo, args.question)
        cold_blocks = blocks
        warm = time.time()
        _, again, end = _ask(memo, args.question)
        clues = _clue_seconds(memo.session(), args.question)
    except MinimemoError as error:
        return {"error": str(error)}
    return {
        "moments": {"open_s": opened, "first_clue_s": clue, "first_token_cold_s": token},
        "first_token_warm_s": again - warm,
        "ask_s": end - warm,
        **clues,
        "blocks_read": cold_blocks,
        "peak_rss_bytes": _peak_rss_bytes(),
    }


def _ask(memo: Any, question: str) -> tuple[float, float, float]:
    """When the clues were there, the first piece of the answer, and its end."""
    from minimemo.ask import Found, Piece

    clue = token = None
    for step in memo.stream(question):
        if isinstance(step, Found):
            clue = time.time()
        elif isinstance(step, Piece) and token is None:
            token = time.time()
    end = time.time()
    return clue or end, token or end, end


def _clue_seconds(session: Session, question: str) -> dict[str, float]:
    """The clues together and the longest of them alone, in turns, medians of three; nothing where an answer needs no
    clues."""
    together, alone = [], []
    for _ in range(3):
        spent = session.ask(question).timings
        if "recall" not in spent:
            return {}
        together.append(spent["recall"])
        session.recall(question)  # has the view for clues loaded again
        singly = []
        for verb in (session.recall, session.rewrite, session.draft):
            begin = time.perf_counter()
            verb(question)
            singly.append(time.perf_counter() - begin)
        alone.append(max(singly))
    return {"clues_s": statistics.median(together), "clue_alone_s": statistics.median(alone)}


def _peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _print_table(found: dict[str, Any]) -> None:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} s"

    print(f"{found['doc']}: {found['characters']:,} characters, {found['tokens']:,} tokens, memory {found['memory']}")
    print(f"build {seconds(found['build_seconds'])}, {found['tokens_per_s']:.0f} tokens/s")
    print("  " + ", ".join(f"{stage} {seconds(spent)}" for stage, spent in found["stages"].items()))
    sizes = ", ".join(f"{name} {found[f'{name}_bytes'] / 1e6:.1f} MB" for name in ("memory", "index", "chunks"))
    print(f"peak memory of the build {found['peak_rss_bytes'] / 1e6:.0f} MB; {sizes}")
    names = {
        "open_s": "open",
        "first_clue_s": "clues",
        "first_token_cold_s": "first token",
        "ask_s": "warm: whole answer",
    }
    names["first_token_warm_s"] = "warm: first token"
    print(
        f"{found['questions']} questions: " + ", ".join(f"{text} {seconds(found[key])}" for key, text in names.items())
    )
    if found["clues_s"]:
        ratio = found["clues_s"] / found["clue_alone_s"]
        print(f"clues together {found['clues_s']:.2f} s, the longest alone {found['clue_alone_s']:.2f} s: {ratio:.2f}x")
    for error in found["ask_errors"]:
        print(f"  not answered: {error}")
    if (others := found["others_cpu_share"]) is not None:
        print(f"other processes took {others:.0%} of the processor")


if __name__ == "__main__":
    sys.exit(main())
