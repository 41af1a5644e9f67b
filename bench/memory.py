"""How small a memory may be and still be one: every tier and its rivals on documents that nothing was tuned on.

    python -m bench.memory --model qwen2.5-coder-0.5b
    python -m bench.memory --model qwen2.5-coder-0.5b --tiers int4,kivi2 --quick

Prints a table and one JSON line, {"rows": [...]}. `--quick`: two documents, 1,024 tokens, KL alone. Keys and values,
results and answers are kept in minimemo's folder (bench/memory; 50 MB a document of 4,096 tokens for the 0.5B model).
Tiers that need a profile use the model's newest one: one made from the documents that are measured would flatter them.
Columns: bits a number, bytes a token and ratio to fp16 of the whole file; KL (nats) and share of equal first choices
over the next 256 tokens; KL while a passage is repeated; needles among those that the exact cache finds; F1 of answers
from memory alone over the exact cache's; agreement of the answers with the exact cache's; prefill time over load time;
encode time over prefill time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.bystanders import Bystanders
from bench.memory_pca import LayerPca, fit
from bench.memory_rivals import RIVALS
from bench.memory_run import Store, Tier, Workbench
from bench.memory_samples import FOLLOW, Library, Sample, document_sample, haystack_samples
from bench.memory_stats import Outcome, row
from minimemo.ask import memory_opening
from minimemo.errors import InputError, MinimemoError
from minimemo.files import home, profiles_dir
from minimemo.memory.profile import load_profile, profile_of
from minimemo.memory.tiers import TIERS, codec_of, needs_profile, recipe_of
from minimemo.runtime import DTYPES, RunOptions, load_model

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PCA = {"pca": (0.4, 1.0), "pca+": (0.6, 1.5)}  # steps of keys and values, see LayerPca
CALIBRATION_TOKENS = 1280  # of each document
ROUNDS = 3  # in which each needle is hidden: a 0.5B model finds a quarter of them, and shares of few are coarse


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        if args.plot:
            _check_plot(args.plot)
        found = _run(args)
        if not args.json:
            _print_table(found)
        print(json.dumps(found, ensure_ascii=False))
        if args.plot:
            plot(found["rows"], args.plot, found["model"])
    except MinimemoError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="name in the catalogue (pulled), .gguf file or directory")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--docs", help="doc_ids with commas between; default: see bench/memory_samples.py")
    parser.add_argument("--tokens", type=int, default=4096, help="of a memory")
    parser.add_argument("--tiers", help=f"default all: {','.join(names())}")
    parser.add_argument("--questions", type=int, default=45, help="at most, of each document")
    parser.add_argument("--quick", action="store_true", help="two documents, 1,024 tokens, KL alone")
    parser.add_argument("--no-needles", dest="needles", action="store_false")
    parser.add_argument("--dtype", choices=DTYPES, help="of products; default: the machine's quickest")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="rate against KL (needs matplotlib)")
    return parser


def names() -> list[str]:
    """Everything that can be measured."""
    return [*TIERS, *RIVALS, *PCA]


def _run(args: argparse.Namespace) -> dict[str, Any]:
    wanted = args.tiers.split(",") if args.tiers else names()
    if unknown := [name for name in wanted if name not in names()]:
        raise InputError(f"--tiers {','.join(unknown)}: unknown; choose from {','.join(names())}")
    tokens = 1024 if args.quick else args.tokens
    if tokens < 1 or args.questions < 0:
        raise InputError(f"--tokens {tokens}, --questions {args.questions}: at least 1, and 0")
    library = Library.open(args.data)
    docs = args.docs.split(",") if args.docs else library.measured(tokens)
    if args.quick and not args.docs:
        docs = [docs[0], *[doc for doc in docs if library.language(doc) == "zh"][:1]]
    others = Bystanders()
    options = RunOptions(dtype=args.dtype)
    dtype = options.product_dtype()
    model = load_model(args.model, options)
    bench = Workbench(model, Store(home() / "bench" / "memory", args.fresh), dtype)
    calibration = library.calibration([*docs, *library.measured(args.tokens)])
    notice = ""
    profile = profile_of(model.located.fingerprint, profiles_dir())
    if profile is None and (unmeasured := [name for name in wanted if needs_profile(name)]):
        how = f"{args.model} has no profile; make one: minimemo calibrate {args.model}"
        if args.tiers:
            raise InputError(f"{','.join(unmeasured)}: {how}")
        notice = f"left out: {', '.join(unmeasured)}, since {how}"
        wanted = [name for name in wanted if name not in unmeasured]
    tiers = open_tiers(wanted, bench, profile, library, calibration)
    tokenizer = model.tokenizer
    questions = 0 if args.quick else args.questions
    samples = [document_sample(library, doc, tokenizer, tokens, questions=questions) for doc in docs]
    if args.needles and not args.quick:
        for language in ("en", "zh"):
            samples += haystack_samples(library, language, tokenizer, tokens, ROUNDS)
    if notice:
        print(notice, file=sys.stderr)
    rows = measure(bench, samples, tiers, repeat=not args.quick)
    return {
        "model": args.model,
        "tokens": tokens,
        "follow": FOLLOW,
        "documents": docs,
        "profile": profile if any(needs_profile(name) for name in wanted) else None,
        "calibration": calibration if any(tier.name in PCA for tier in tiers) else [],
        "dtype": str(dtype).removeprefix("torch."),
        "kv_dtype": bench.layout.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "others_cpu_share": others.share(),
        "rows": rows,
    }


def open_tiers(
    wanted: Iterable[str], bench: Workbench, profile: str | None, library: Library, calibration: Sequence[str]
) -> list[Tier]:
    """The codecs by name. profile: the hash of the model's; the rivals that need calibrating are calibrated here."""
    layout, rope = bench.layout, bench.engine.decoder.rope
    bases = None
    known = load_profile(profile, profiles_dir()) if profile else None
    tiers = []
    for name in wanted:
        if name in TIERS:
            tiers.append(Tier(name, codec_of(*recipe_of(name, layout, known))))
        elif name in RIVALS:
            tiers.append(Tier(name, RIVALS[name](layout, rope)))
        else:
            bases = bases or fit(calibration_pieces(bench, library, calibration))
            tiers.append(Tier(name, LayerPca(name, layout, *bases, *PCA[name])))
    return tiers


def calibration_pieces(bench: Workbench, library: Library, docs: Sequence[str]) -> Iterable[tuple[Tensor, Tensor]]:
    """Keys before RoPE and values of the beginnings of documents, as a memory of them begins."""
    tokenizer = bench.model.tokenizer
    if not docs:
        raise InputError("--docs: nothing is left to calibrate on; name fewer, or leave pca out of --tiers")
    for doc in docs:
        text = library.text(doc, 12 * CALIBRATION_TOKENS)
        ids = [*memory_opening(library.language(doc)).ids(tokenizer), *tokenizer.encode(text)][:CALIBRATION_TOKENS]
        known = bench.prefilled(ids)
        yield known.keys, known.values


def measure(
    bench: Workbench, samples: Sequence[Sample], tiers: Sequence[Tier], *, repeat: bool
) -> list[dict[str, Any]]:
    """A row for the exact cache and for each tier."""
    found: dict[str, list[Outcome]] = {}
    for number, sample in enumerate(samples, 1):
        label = f"{number} of {len(samples)}: {sample.name}, {len(sample.ids)} tokens, {len(sample.asked)} questions"
        outcomes = bench.measure(sample, tiers, repeat=repeat, on_outcome=_reporter(label))
        for name, outcome in outcomes.items():
            found.setdefault(name, []).append(outcome)
    return [row(name, outcomes, found["exact"]) for name, outcomes in found.items()]


def _reporter(label: str) -> Callable[[str], None]:
    return lambda name: print(f"{label}: {name}", file=sys.stderr, flush=True)


COLUMNS = (
    ("bits", 5, ".2f"), ("bytes_per_token", 15, ".0f"), ("ratio", 6, ".2f"), ("kl", 8, ".4f"), ("kl_p99", 8, ".3f"),
    ("top1", 6, ".3f"), ("repeat_kl", 9, ".4f"), ("needle", 6, ".2f"), ("answers_f1_share", 16, ".3f"),
    ("answers_agree", 13, ".3f"), ("load_x_prefill", 14, ".1f"), ("encode_share", 12, ".3f"),
)  # fmt: skip


def _print_table(found: dict[str, Any]) -> None:
    first = found["rows"][0]
    print(
        f"{found['model']}, {len(found['documents'])} documents of {found['tokens']} tokens, {first['needles']} "
        f"needles (exact cache: {first['needles_found']}), {first['answers']} answers (exact cache: "
        f"{'-' if first['answers_f1'] is None else format(first['answers_f1'], '.3f')} F1); {first['prefill_tps']:.0f} "
        "tokens/s of prefill"
    )
    print(f"{'':<10}" + " ".join(f"{name:>{width}}" for name, width, _ in COLUMNS))
    for line in found["rows"]:
        cells = (f"{'-' if line[name] is None else format(line[name], form):>{width}}" for name, width, form in COLUMNS)
        print(f"{line['name']:<10}" + " ".join(cells))
    if (others := found["others_cpu_share"]) is not None:
        print(f"other processes took {others:.0%} of the processor of {os.cpu_count()} cores")


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
    for own, style in ((True, {"marker": "o", "linestyle": "-"}), (False, {"marker": "x", "linestyle": ""})):
        points = sorted((r["ratio"], r["kl"], r["name"]) for r in rows if r["kl"] and (r["name"] in TIERS) == own)
        axes.plot([p[0] for p in points], [p[1] for p in points], label="minimemo" if own else "others", **style)
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
