"""How does a library of thousands of memos grow, and does a folder stay in step with its documents?

    python -m bench.scale --parts library --memos 100,1000,10000
    python -m bench.scale --parts folder
    python -m bench.scale --parts picking --data ../shared/data
    python -m bench.scale --parts nearest --vectors 1000000
    python -m bench.scale --parts answers --articles 20 --each 2
    python -m bench.scale --parts jobs --jobs 1,2 --articles 8
    python -m bench.scale --parts jobs --jobs 2 --tiny --ray --files 60
    python -m bench.scale --parts store --memo book.memo --tokens 180000

library: memos with synthetic vectors of the default embedder's length. Seconds and milliseconds are of the processor,
so that other work on the machine does not count, but for list_wall_s. first_s: to make the library's index; open_s:
until it is there in a new process, with every memo looked at for changes; rss_mb: that process's peak, the questions
put, no model loaded; pick_ms, p95_ms: a question's documents, median and 95th percentile; add_ms: an open library takes
one more memo in; rm_ms: one is deleted; list_s: `minimemo list` as a command, Python's start included; disk_mb: the
list and the index; recall: share of questions, passages with noise, whose own document comes first.

folder: a tiny model with random weights. 500 files are synced; 20 changed, 5 broken and 3 gone ones are told, and no
others; a folder whose sync is killed (-9) twenty times has the same memos, byte for byte, as one that was left alone.

picking: documents of the data with the default embedder: share of questions whose document is the first, and among the
four, that are picked, by vectors alone and with words. Questions that people asked, none of which names its document:
of what it is about; of what of it is to be summarized; of contracts, which ask the same of each; and one for each
document of the first two kinds. And "What is said about X?" for numbers and words that one document alone holds. With
--spread N long documents get vectors of N passages only, evenly spread; all their words count. Embedded passages are
kept in minimemo's cache folder.

nearest: unit vectors as the data's passages lie (mixtures of two, with noise of their spread): recall@10 and
milliseconds of one core for exact search and for the sketch that takes its place in a large library.

answers: questions about articles with the default models, each asked over all memos and of its own memo alone: F1 in
points and the paired difference with its 95 % interval. A run that was stopped goes on where it was.

jobs: articles built in so many processes (--tiny: other documents, models with random weights), and by --ray on a
cluster of this machine with as many cores: seconds until the last memo and until the first, ms from one to the next
between those; ms of the processor that each of the last two thirds takes, but for Ray's own processes; most memory of
one worker (rss_mb), of all with what they share counted once (pss_mb), and of that what each has for itself
(private_mb).

store: a question of a memo in an object store, cold and warm: bytes, their share of the memo's, and requests.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from bench.common.data import DATA
from bench.common.report import command, numbers, parser, positive, show
from bench.scale import answers, folder, jobs, library, nearest, picking, store
from minimemo.ask import Mode
from minimemo.errors import InputError

PARTS = ("library", "folder", "picking", "answers", "jobs", "nearest", "store")


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.scale")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=["library", "folder"])
    made.add_argument("--memos", type=numbers, default=[100, 1000, 10000], help="library: a row for each number")
    made.add_argument("--passages", type=positive, default=5, help="library: of each memo")
    made.add_argument("--files", type=positive, default=500, help="folder, jobs: documents")
    made.add_argument("--kills", type=positive, default=20, help="folder: of a sync of a tenth of them")
    made.add_argument("--data", type=Path, default=DATA, help="picking, nearest: documents and questions")
    made.add_argument("--characters", type=positive, default=150_000, help="picking: of a document at most")
    made.add_argument("--spread", type=positive, help="picking: passages of a document that get vectors (default: all)")
    made.add_argument("--articles", type=positive, default=20, help="answers, jobs: documents")
    made.add_argument("--each", type=positive, default=2, help="answers: questions about each")
    made.add_argument("--jobs", type=numbers, default=[1, 2], help="jobs: a row for each number of processes")
    made.add_argument("--ray", action="store_true", help="jobs: a row for a cluster too")
    made.add_argument("--tiny", action="store_true", help="jobs: --files documents and tiny models")
    made.add_argument("--mode", choices=get_args(Mode), default="memorag", help="answers: how they are asked")
    made.add_argument("--vectors", type=positive, default=100_000, help="nearest: how many")
    made.add_argument("--memo", type=Path, help="store: whose blocks are repeated")
    made.add_argument("--tokens", type=positive, default=180_000, help="store: of the long memo")
    made.add_argument("--question", help="store: asked with the models (default: none, what one reads at most)")
    return command(made.parse_args(arguments), "bench.scale", _run)


def _run(args: Namespace) -> dict[str, Any]:
    if "store" in args.parts and args.memo is None:
        raise InputError("store: name a memo with --memo")
    built = args.files if args.tiny else args.articles
    parts: dict[str, Callable[[], Any]] = {
        "library": lambda: show(library.COLUMNS, (library.row(count, args.passages) for count in args.memos)),
        "folder": lambda: folder.run(args.files, args.kills),
        "picking": lambda: picking.run(args.data, args.characters, args.spread),
        "answers": lambda: answers.run(args.data, args.articles, args.each, args.mode),
        "jobs": lambda: jobs.run(args.data, args.jobs, built, args.ray, args.tiny),
        "nearest": lambda: nearest.run(args.data, args.characters, args.vectors),
        "store": lambda: store.measure(args.memo, args.tokens, args.question),
    }
    return {name: parts[name]() for name in PARTS if name in args.parts}


if __name__ == "__main__":
    sys.exit(main())
