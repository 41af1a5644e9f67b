"""The command line: parses, calls the API, has it printed (printing.py); the one error boundary.

Rule of this file: nothing heavy is imported before the arguments are parsed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minimemo.errors import InputError, MinimemoError
from minimemo.memory.tiers import TIERS
from minimemo.options import DTYPES, KV_DTYPES, RunOptions
from minimemo.printing import Bar, print_answer, print_listing, print_memo, print_usage, progress, size

if TYPE_CHECKING:
    from minimemo.asking import Asking
    from minimemo.store import Store

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
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        added.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
        return added

    pull = command("pull", _pull, "get models by name", "minimemo pull")
    pull.add_argument("name", nargs="*", help="names from `minimemo list`, or a hub's owner/name; none: the defaults")

    build = command("build", _build, "read a document once and leave a memo of it", "minimemo build book.txt")
    build.add_argument("document", help="a text file; - reads standard input")
    build.add_argument("-o", "--out", metavar="MEMO", help="where the memo goes (default: DOCUMENT with ending .memo)")
    _models(build)
    build.add_argument(
        "--memory",
        choices=TIERS,
        default="int4",
        help="from large to small; high, balanced and small need `minimemo calibrate` once (default: int4)",
    )
    build.add_argument("--encoding", help="of the document, when it is not UTF-8 (for example gb18030)")
    build.add_argument("--prompts", metavar="FILE", help="JSON or TOML with prompts of your own")

    calibrate = command(
        "calibrate", _calibrate, "learn a model's keys and values, once, for the smaller memories",
        "minimemo calibrate qwen2.5-coder-0.5b --text novel.txt contract.txt",
    )  # fmt: skip
    calibrate.add_argument("model", help="a name from `minimemo list`, a directory or a .gguf file")
    calibrate.add_argument(
        "--text", nargs="+", metavar="FILE", required=True, help="of several kinds and languages, 16,000 tokens in all"
    )

    ask = command("ask", _ask, "answer a question from a memo", 'minimemo ask book.memo "Who is Mr. Knightley?"')
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
    ask.add_argument("--show-clues", action="store_true", help="also print what the memory recalled")
    ask.add_argument("--max-tokens", type=_positive, default=256, metavar="N", help="of the answer (default: 256)")
    _printing(ask)

    summarize = command("summarize", _summarize, "summarize a memo's document", "minimemo summarize book.memo")
    summarize.add_argument("memo", nargs="+", help="a memo folder, or several")
    _models(summarize)
    summarize.add_argument("--show-clues", action="store_true", help="also print the key points from memory")
    summarize.add_argument("--max-tokens", type=_positive, default=512, metavar="N", help="(default: 512)")
    _printing(summarize)

    inspect = command("inspect", _inspect, "show what a memo is made of", "minimemo inspect book.memo")
    inspect.add_argument("memo", help="a memo folder")
    inspect.add_argument("--json", action="store_true", help="as JSON")

    verify = command("verify", _verify, "check every byte of a memo", "minimemo verify book.memo")
    verify.add_argument("memo", help="a memo folder")

    listing = command("list", _list, "list models and memos on this machine", "minimemo list")
    listing.add_argument("--du", action="store_true", help="what takes the disk: memos, models, all else of minimemo's")
    listing.add_argument("--json", action="store_true", help="as JSON")

    remove = command("rm", _remove, "delete memos", "minimemo rm book.memo")
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
        "--threads", type=_positive, default=os.environ.get("MINIMEMO_THREADS"), metavar="N",
        help="to compute on (default: all cores) [$MINIMEMO_THREADS]",
    )  # fmt: skip


def _printing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="the whole answer as one JSON object")
    command.add_argument("--prompts", metavar="FILE", help="JSON or TOML with prompts of your own")


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def _version() -> str:
    from minimemo import __version__

    return f"minimemo {__version__}"


# -- commands ----------------------------------------------------------------------------------------------------------


def _pull(arguments: argparse.Namespace) -> None:
    from minimemo.models.catalog import CATALOG, defaults, pull

    for name in arguments.name or defaults():
        with progress(arguments.quiet) as on_event:
            path = pull(name, on_event)
            if name not in CATALOG or CATALOG[name].kind == "decoder":
                from minimemo.models.converted import as_directory

                path = as_directory(path, on_event)
        print(f"{name}: {path}")


def _calibrate(arguments: argparse.Namespace) -> None:
    from minimemo.calibration import calibrate
    from minimemo.document import read_document
    from minimemo.language_model import load_model

    texts = [read_document(path).text for path in arguments.text]
    with progress(arguments.quiet) as on_event:
        profile = calibrate(load_model(arguments.model, on_event=on_event), texts, on_event=on_event)
    print(f"{arguments.model}: profile {profile.hash}")


def _build(arguments: argparse.Namespace) -> None:
    from minimemo.builder import build

    with progress(arguments.quiet) as on_event:
        memo = build(
            arguments.document,
            arguments.out,
            model=arguments.model,
            embedder=arguments.embedder,
            memory=arguments.memory,
            encoding=arguments.encoding,
            prompts=_prompts(arguments),
            options=_options(arguments),
            on_event=on_event,
        )
    told = memo.inspect()
    memory = told["memory"]
    print(
        f"{told['path']}: {memory['tokens']:,} tokens, memory {size(memory['bytes'])} "
        f"({memory['ratio_to_fp16']:.1f}x smaller than fp16 KV), {size(told['bytes'])} in all\n"
        f'ask it: minimemo ask {told["path"]} "your question"'
    )


def _ask(arguments: argparse.Namespace) -> None:
    folders, question = _memos_and_question(arguments.words, arguments.all)
    with progress(arguments.quiet) as on_event:
        asked = _store(arguments, on_event) if arguments.all else _open(arguments, folders, on_event)

        def answer(question: str) -> None:
            steps = asked.stream(question, arguments.mode, arguments.max_tokens)
            named = arguments.all or len(folders) > 1
            print_answer(steps, on_event, as_json=arguments.json, clues=arguments.show_clues, named=named)

        if question is not None:
            answer(sys.stdin.read() if question == "-" else question)
            return
        asked.prepare()  # models first, so that the prompt appears when it can be answered
        for line in _questions(on_event):
            try:
                answer(line)
            except MinimemoError as error:
                print(f"minimemo: {error}", file=sys.stderr)


def _memos_and_question(words: Sequence[str], every: bool) -> tuple[list[str], str | None]:
    """Every word but the last is a memo, and so is the last one when it looks like one; else it is the question."""
    if every:
        if len(words) > 1:
            raise InputError(f"ask --all takes one question and no memos, not {len(words)} words: quote the question")
        return [], words[0] if words else None
    if not words:
        raise InputError("ask: name a memo, or --all for all on this machine; make one: minimemo build DOCUMENT")
    *memos, last = words
    if not memos or last.endswith(".memo") or (last and os.path.isdir(last)):
        return [*words], None
    return memos, last


def _questions(on_event: Bar) -> Iterator[str]:
    """Lines typed at a prompt; ends with end of file."""
    with suppress(ImportError):  # not on every platform
        import readline  # noqa: F401 (line editing and history for input())
    while True:
        on_event.clear()
        try:
            line = input("? " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _summarize(arguments: argparse.Namespace) -> None:
    with progress(arguments.quiet) as on_event:
        asked = _open(arguments, arguments.memo, on_event)
        steps = asked.session().stream_summary(arguments.max_tokens)
        print_answer(steps, on_event, as_json=arguments.json, clues=arguments.show_clues)


def _inspect(arguments: argparse.Namespace) -> None:
    from minimemo.memo import open_memo

    told = open_memo(arguments.memo).inspect()
    if arguments.json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        print_memo(told)


def _verify(arguments: argparse.Namespace) -> None:
    from minimemo.memo import open_memo

    with progress(arguments.quiet) as on_event:
        open_memo(arguments.memo).verify(on_event)
    print(f"{arguments.memo}: every checksum is right")


def _list(arguments: argparse.Namespace) -> None:
    from minimemo.inventory import disk_usage, memos, models

    known = {"models": [] if arguments.du else models(), "memos": memos()}
    usage = disk_usage() if arguments.du else {}
    if arguments.json:
        print(json.dumps({**known, **({"usage": usage} if arguments.du else {})}, ensure_ascii=False))
        return
    print_listing(known["models"], known["memos"])
    if arguments.du:
        print_usage(usage)


def _remove(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from minimemo.shelf import remove

    for memo in arguments.memo:
        print(f"{memo}: deleted, {size(remove(Path(memo)))} free")


def _open(arguments: argparse.Namespace, folders: Sequence[str], on_event: Bar) -> Asking:
    from minimemo.memo import open_memos

    return open_memos(
        folders,
        model=arguments.model,
        embedder=arguments.embedder,
        prompts=_prompts(arguments),
        options=_options(arguments),
        on_event=on_event,
    )


def _store(arguments: argparse.Namespace, on_event: Bar) -> Store:
    from minimemo.store import open_store

    return open_store(
        model=arguments.model,
        embedder=arguments.embedder,
        prompts=_prompts(arguments),
        options=_options(arguments),
        on_event=on_event,
    )


def _options(arguments: argparse.Namespace) -> RunOptions:
    return RunOptions(dtype=arguments.dtype, kv_dtype=arguments.kv_dtype, threads=arguments.threads)


def _prompts(arguments: argparse.Namespace) -> Any:
    from minimemo.loop import PROMPTS, load_prompts

    return load_prompts(arguments.prompts) if arguments.prompts else PROMPTS
