"""How small a memory may be and still be one: every tier and its rivals on documents that nothing was tuned on.

    python -m bench.memory --model qwen2.5-coder-0.5b
    python -m bench.memory --model qwen2.5-coder-0.5b --quick --tiers int4,kivi2
    python -m bench.memory --model qwen2.5-coder-0.5b --plot memory.png

--quick: two documents, 1,024 tokens, KL alone. Keys and values, results and answers are kept in minimemo's cache folder
(bench/memory; 50 MB a document of 4,096 tokens for the 0.5B model). Tiers that need a profile use the model's newest
one, or the one that the package has: one made from the documents that are measured would flatter them.

Columns: bits a number, bytes a token and ratio to fp16 of the whole file; KL (nats) over the next 256 tokens, its 99th
percentile by token, and over a passage of the memory that is repeated after it; share of equal first choices over the
next 256; needles among those that the exact cache finds; F1 of answers from memory alone over the exact cache's,
and its 95 % interval; prefill time over load time; encode time over prefill time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common.data import DATA
from bench.common.kept import Kept
from bench.common.report import command, parser, show
from bench.memory.rivals import RIVALS
from bench.memory.samples import FOLLOW, Library, document_sample, haystack_samples
from bench.memory.stats import Outcome, tier_row
from bench.memory.workbench import Workbench
from minimemo.errors import InputError
from minimemo.files import profiles_dir
from minimemo.memory.codec import Codec
from minimemo.memory.shipped import profile_at_hand
from minimemo.memory.size import recipe_of
from minimemo.memory.tiers import TIERS, codec_of, needs_profile
from minimemo.runtime import DTYPES, RunOptions, load_model

NAMES = (*TIERS, *RIVALS)
ROUNDS = 3  # in which each needle is hidden: a 0.5B model finds a quarter of them, and shares of few are coarse
COLUMNS = (
    ("name", "<10"), ("bits", "5.2f"), ("bytes_per_token", ".0f"), ("ratio", "6.2f"), ("kl", "8.4f"),
    ("kl_p99", "6.3f"), ("kl_again", "8.4f"), ("top1", "6.3f"), ("needle", ".2f"), ("answers_f1_share", ".3f"),
    ("share_low", ".2f"), ("share_high", ".2f"), ("load_x_prefill", ".1f"), ("encode_share", ".3f"),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.memory")
    made.add_argument("--model", required=True, help="name in the catalogue (pulled), .gguf file or directory")
    made.add_argument("--data", type=Path, default=DATA)
    made.add_argument("--docs", help="doc_ids with commas between; default: see bench/memory/samples.py")
    made.add_argument("--tokens", type=int, default=4096, help="of a memory")
    made.add_argument("--tiers", help=f"default all: {','.join(NAMES)}")
    made.add_argument("--questions", type=int, default=45, help="at most, of each document")
    made.add_argument("--quick", action="store_true", help="two documents, 1,024 tokens, KL alone")
    made.add_argument("--no-needles", dest="needles", action="store_false")
    made.add_argument("--dtype", choices=DTYPES, help="of products; default: the machine's quickest")
    made.add_argument("--fresh", action="store_true", help="measure again what an earlier run kept")
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="rate against KL (needs matplotlib)")
    return command(made.parse_args(arguments), "bench.memory", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.plot:
        _check_plot(args.plot)
    names, notice = args.tiers.split(",") if args.tiers else list(NAMES), ""
    if unknown := [name for name in names if name not in NAMES]:
        raise InputError(f"--tiers {','.join(unknown)}: unknown; choose from {','.join(NAMES)}")
    tokens = 1024 if args.quick else args.tokens
    if tokens < 1 or args.questions < 0:
        raise InputError(f"--tokens {tokens}, --questions {args.questions}: at least 1, and 0")
    library = Library.open(args.data)
    docs = args.docs.split(",") if args.docs else library.measured(tokens)
    if args.quick and not args.docs:
        docs = [docs[0], *[doc for doc in docs if library.language(doc) == "zh"][:1]]
    options = RunOptions(dtype=args.dtype)
    model = load_model(args.model, options)
    bench = Workbench(model, Kept("memory", args.fresh), options.product_dtype())
    profile = profile_at_hand(model.located.fingerprint, profiles_dir())
    if profile is None and (unmeasured := [name for name in names if needs_profile(name)]):
        how = f"{args.model} has no profile; make one: minimemo calibrate {args.model}"
        if args.tiers:
            raise InputError(f"{','.join(unmeasured)}: {how}")
        notice = f"left out: {', '.join(unmeasured)}, since {how}"
        names = [name for name in names if name not in unmeasured]
    rope = model.engine.decoder.rope
    codecs: dict[str, Codec] = {
        name: codec_of(*recipe_of(name, bench.layout, profile)) if name in TIERS else RIVALS[name](bench.layout, rope)
        for name in names
    }
    questions = 0 if args.quick else args.questions
    samples = [document_sample(library, doc, model.tokenizer, tokens, questions=questions) for doc in docs]
    if args.needles and not args.quick:
        for language in ("en", "zh"):
            samples += haystack_samples(library, language, model.tokenizer, tokens, ROUNDS)
    if notice:
        print(notice, file=sys.stderr)
    outcomes: dict[str, list[Outcome]] = {}
    for number, sample in enumerate(samples, 1):
        print(f"{number} of {len(samples)}: {sample.name}, {len(sample.asked)} questions", file=sys.stderr)
        progress = lambda name: print(f"  {name}", file=sys.stderr, flush=True)  # noqa: E731
        for name, outcome in bench.measure(sample, codecs, progress).items():
            outcomes.setdefault(name, []).append(outcome)
    rows = [tier_row(name, each, outcomes["exact"]) for name, each in outcomes.items()]
    exact = rows[0]
    print(f"{args.model}: {len(docs)} documents of {tokens} tokens, {exact['needles']} needles", end=" ")
    print(f"({exact['needles_found']} found in the exact cache), {exact['answers']} answers")
    show(COLUMNS, rows)
    if args.plot:
        plot(rows, args.plot, args.model)
    return {
        "model": args.model,
        "tokens": tokens,
        "follow": FOLLOW,
        "documents": docs,
        "profile": profile.hash if profile and any(needs_profile(name) for name in names) else None,
        "dtype": str(options.product_dtype()).removeprefix("torch."),
        "kv_dtype": bench.layout.dtype,
        "rows": rows,
    }


def _check_plot(path: Path) -> None:
    """Raises InputError now, not after an hour, when nothing could be plotted there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install -e '.[bench]'") from error
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: {path.parent} is no folder; make it first")


def plot(rows: Sequence[dict[str, Any]], path: Path, model: str) -> None:
    """Rate against KL, both logarithmic; minimemo's tiers as one line. Raises InputError when it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for ours, style in ((True, {"marker": "o", "linestyle": "-"}), (False, {"marker": "x", "linestyle": ""})):
        points = sorted((r["ratio"], r["kl"], r["name"]) for r in rows if r["kl"] and (r["name"] in TIERS) == ours)
        axes.plot([p[0] for p in points], [p[1] for p in points], label="minimemo" if ours else "others", **style)
        for ratio, kl, name in points:
            axes.annotate(name, (ratio, kl), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xscale="log", yscale="log", xlabel="times smaller than fp16 (whole file)", ylabel="KL to the exact cache, nats"
    )
    axes.set_title(model)
    axes.set_xticks([2**power for power in range(8)], [str(2**power) for power in range(8)])
    axes.minorticks_off()
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"--plot {path}: cannot be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
