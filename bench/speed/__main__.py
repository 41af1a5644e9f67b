"""How quick is minimemo: tokens a second by depth of the memory, a document from its text to an answer, two versions?

    python -m bench.speed --model qwen2.5-coder-0.5b --depths 0,4096,16k --peer llamacpp
    python -m bench.speed --model qwen2.5-coder-0.5b --doc examples/lighthouse.txt
    python -m bench.speed --model qwen2.5-coder-0.5b --vs ../other-checkout --repeat 5

By depth: see bench/speed/engine.py. --doc: what building a memo and asking it takes, in seconds, memory and bytes; see
bench/speed/document.py. --vs: the same figures of this checkout and of another, through its own .venv, in turns; see
bench/speed/turn.py.

Other processes slow everything, manifold and unevenly: figures and ratios mean something only where they take next to
nothing of the processor meanwhile ("load", in the last line, is that of the minute before the end).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common.report import command, numbers, parser, positive
from bench.speed import document, engine, peer, versus
from minimemo.errors import InputError
from minimemo.hub.catalog import resolve
from minimemo.memory.tiers import DEFAULT, TIERS
from minimemo.runtime import KV_DTYPES, RunOptions, load_model


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser(__doc__, "bench.speed")
    made.add_argument("--model", required=True, help="name in the catalogue (pulled), .gguf file or directory")
    made.add_argument("--kv-dtype", choices=KV_DTYPES, help="of the cache; int8, int4: a packed memory")
    made.add_argument("--repeat", type=positive, default=3)
    depth = made.add_argument_group("by depth")
    depth.add_argument("--depths", type=numbers, default=[0, 4096, 16384], help="tokens in the cache")
    depth.add_argument("--peer", choices=["llamacpp"], help="measure it too")
    depth.add_argument("--llama-bench", metavar="PATH", help="the peer's program; else on PATH")
    one = made.add_argument_group("a document")
    one.add_argument("--doc", type=Path, nargs="+", metavar="FILE", help="text files, one memo of each")
    one.add_argument("--embedder", help="name or directory (default: the catalogue's)")
    one.add_argument("--memory", choices=TIERS, default=DEFAULT)
    one.add_argument("--window", type=int, help="as of minimemo build")
    made.add_argument("--vs", type=Path, metavar="DIR", help="another checkout, with a .venv; on --doc's first FILE")
    return command(made.parse_args(arguments), "bench.speed", _run)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.vs:
        text = args.doc[0].absolute() if args.doc else None
        models = [str(Path(n).absolute()) if n and Path(n).exists() else n for n in (args.model, args.embedder)]
        result = versus.compare(args.vs, *models, text, args.repeat)
    elif args.doc:
        names = ("model", "embedder", "memory", "window", "kv_dtype", "threads")
        options = {name: getattr(args, name) for name in names}
        result = document.measure(args.doc, options, args.repeat)
    else:
        path = resolve(args.model)
        program = peer.locate(args.llama_bench) if args.peer else None
        if program and path.suffix != ".gguf":
            raise InputError(f"{args.model}: llama-bench needs a GGUF file, this is {path.name}; leave out --peer")
        loaded = load_model(args.model, RunOptions(kv_dtype=args.kv_dtype)).engine
        result = engine.measure(loaded, args.depths, args.repeat, program, path)
    return {"model": args.model, **result}


if __name__ == "__main__":
    sys.exit(main())
