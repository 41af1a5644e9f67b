"""The command line: parses and runs a command (commands.py); the one error boundary.

Rule of this file: nothing heavy is imported before the arguments are parsed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from minimemo.cli import commands
from minimemo.errors import InputError, MinimemoError
from minimemo.files import parse_size
from minimemo.memory.tiers import DEFAULT, TIERS
from minimemo.runtime import DTYPES, KV_DTYPES

_EXAMPLES = """\
examples:
  minimemo build book.txt                         reads it once, leaves book.memo
  minimemo ask book.memo "Who is Mr. Knightley?"  answers, with its sources
  minimemo ask book.memo                          question after question
  minimemo ask a.memo b.memo "Who pays?"          from several documents at once
  minimemo ask --all "Who pays?"                  from all memos on this machine
  minimemo summarize book.memo
  minimemo inspect book.memo                      what is in it, and how small it is
"""
_MODES = ("memorag", "rag", "memory", "closed", "gist")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses and runs. Exit codes: 0 done, 2 a mistake that can be mended (one line on stderr), 130 interrupted."""
    return run(parser().parse_args(argv))


def run(arguments: argparse.Namespace, interrupted: Callable[[], bool] = lambda: False) -> int:
    """Runs what was parsed; the exit code.

    `interrupted` says whether Ctrl-C was pressed: native code that calls Python may have made another error of it.
    """
    try:
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or interrupted():
            print("\nminimemo: interrupted; nothing half-written is left", file=sys.stderr)
            return 130
        if not isinstance(error, MinimemoError) or os.environ.get("MINIMEMO_DEBUG"):
            raise
        print(f"minimemo: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minimemo",
        description="Ask questions of a long document on your own machine, from a compact KV memory.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=_version())
    known = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
    ) -> argparse.ArgumentParser:
        added = known.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        added.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
        return added

    pull = command("pull", commands.pull, "get models by name", "minimemo pull")
    pull.add_argument("name", nargs="*", help="names from `minimemo list`, or a hub's owner/name; none: the defaults")

    build = command("build", commands.build, "read a document once and leave a memo of it", "minimemo build book.txt")
    build.add_argument("document", help="a text file; - reads standard input")
    build.add_argument("-o", "--out", metavar="MEMO", help="where the memo goes (default: DOCUMENT with ending .memo)")
    _models(build)
    small = build.add_mutually_exclusive_group()
    small.add_argument(
        "--memory",
        choices=TIERS,
        help=f"from large to small (default: {DEFAULT}); all but exact and int4 measure the model first, once",
    )
    small.add_argument(
        "--budget", type=_size, metavar="SIZE", help="that memory.bin may take, such as 20MB: as good as fits into it"
    )
    build.add_argument(
        "--window", type=_positive, metavar="TOKENS",
        help="how far back each token of a long document sees (default: all while it fits the model, then 2048)",
    )  # fmt: skip
    build.add_argument("--encoding", help="of the document, when it is not UTF-8 (for example gb18030)")
    build.add_argument("--prompts", metavar="FILE", help="JSON or TOML with prompts of your own")

    calibrate = command(
        "calibrate", commands.calibrate, "measure a model once, for the smaller memories; a build does it when needed",
        "minimemo calibrate qwen2.5-coder-0.5b",
    )  # fmt: skip
    calibrate.add_argument("model", help="a name from `minimemo list`, a directory or a .gguf file")
    calibrate.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        default=[],
        help="of several kinds and languages, 16,000 tokens or more in all (default: texts that come with minimemo)",
    )
    calibrate.add_argument("--encoding", help="of the texts, when it is not UTF-8 (for example gb18030)")

    ask = command(
        "ask", commands.ask, "answer a question from a memo", 'minimemo ask book.memo "Who is Mr. Knightley?"'
    )
    ask.add_argument(
        "words",
        nargs="*",
        metavar="MEMO... QUESTION",
        help="one memo, or several to be asked together; without a question: a prompt, question after question; "
        "- reads the question from standard input",
    )
    ask.add_argument("--all", action="store_true", help="ask all memos on this machine: an index picks the documents")
    _models(ask)
    ask.add_argument(
        "--mode",
        choices=_MODES,
        default="memorag",
        help="memorag: clues from memory guide retrieval; rag: retrieval alone; memory: memory alone; closed: neither; "
        "gist: on the whole document, part by part",
    )
    _generator(ask)
    ask.add_argument("--show-clues", action="store_true", help="also print what the memory recalled")
    ask.add_argument("--max-tokens", type=_positive, default=256, metavar="N", help="of the answer (default: 256)")
    _printing(ask)

    summarize = command("summarize", commands.summarize, "summarize a memo's document", "minimemo summarize book.memo")
    summarize.add_argument("memo", nargs="+", help="a memo folder, or several")
    _models(summarize)
    _generator(summarize)
    summarize.add_argument("--show-clues", action="store_true", help="also print what memory tells of each part")
    summarize.add_argument("--max-tokens", type=_positive, default=512, metavar="N", help="(default: 512)")
    _printing(summarize)

    inspect = command("inspect", commands.inspect, "show what a memo is made of", "minimemo inspect book.memo")
    inspect.add_argument("memo", help="a memo folder")
    inspect.add_argument("--json", action="store_true", help="as JSON")

    export = command(
        "export",
        commands.export,
        "a copy of a memo that opens on other machines",
        "minimemo export book.memo away.memo",
    )
    export.add_argument("memo", help="a memo folder")
    export.add_argument("out", help="the folder to make")

    verify = command("verify", commands.verify, "check every byte of a memo", "minimemo verify book.memo")
    verify.add_argument("memo", help="a memo folder")

    listing = command("list", commands.listing, "list models and memos on this machine", "minimemo list")
    listing.add_argument("--du", action="store_true", help="what takes the disk: memos, models, all else of minimemo's")
    listing.add_argument("--json", action="store_true", help="as JSON")

    remove = command("rm", commands.remove, "delete memos", "minimemo rm book.memo")
    remove.add_argument("memo", nargs="+", help="memo folders; the documents that they were built from are not touched")
    return top


def _models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default=os.environ.get("MINIMEMO_MODEL"), metavar="NAME|DIR|FILE.gguf", help="[$MINIMEMO_MODEL]"
    )
    command.add_argument(
        "--embedder", default=os.environ.get("MINIMEMO_EMBEDDER"), metavar="NAME|DIR", help="[$MINIMEMO_EMBEDDER]"
    )
    command.add_argument("--dtype", choices=DTYPES, help="of large products (default: the fastest here)")
    command.add_argument(
        "--kv-dtype", choices=KV_DTYPES, help="of keys and values at work (default: as dense products)"
    )
    command.add_argument(
        "--threads", type=_positive, default=os.environ.get("MINIMEMO_THREADS") or None, metavar="N",
        help="to compute on (default: all cores) [$MINIMEMO_THREADS]",
    )  # fmt: skip


def _generator(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--generator", metavar="URL|NAME|DIR|FILE.gguf",
        help="what writes the answer: an OpenAI-compatible endpoint (key: $MINIMEMO_API_KEY, else $OPENAI_API_KEY), or "
        "another model (default: the memory's own)",
    )  # fmt: skip
    command.add_argument("--generator-model", metavar="NAME", help="of an endpoint that has several")


def _printing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="the whole answer as one JSON object")
    command.add_argument("--prompts", metavar="FILE", help="JSON or TOML with prompts of your own")


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _version() -> str:
    from minimemo import __version__

    return f"minimemo {__version__}"
