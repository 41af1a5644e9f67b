"""The command line: parses and runs a command (commands.py); the one error boundary.

Rule of this file: nothing heavy is imported before the arguments are parsed.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from minimemo import __version__
from minimemo.cli import commands
from minimemo.cli.screen import plain, tell
from minimemo.errors import InputError, MinimemoError
from minimemo.files import parse_size
from minimemo.memory.tiers import DEFAULT, TIERS
from minimemo.models.device import DEVICES
from minimemo.runtime import DTYPES, KV_DTYPES

_EXAMPLES = """\
examples:
  minimemo build book.txt                         reads it once, leaves book.memo
  minimemo ask book.memo "Who is Mr. Knightley?"  answers, with its sources
  minimemo ask book.memo                          question after question
  minimemo ask a.memo b.memo "Who pays?"          from several documents at once
  minimemo ask --all "Who pays?"                  from all memos on this machine
  minimemo sync ~/reports                         a memo of each document there, kept in step
  minimemo ask --in reports "Who pays?"
  minimemo summarize book.memo
  minimemo serve                                  a page and an API for all memos on this machine
  minimemo inspect book.memo                      what is in it, and how small it is

exit codes: 0 done, 1 it could not be done (a line says why), 2 a word of the command line, a document or a question
cannot be used as it is, 130 interrupted
"""
# What a user can do about a place that a file system refuses.
_MENDS = {
    errno.ENAMETOOLONG: "take a shorter name",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check its permissions, or name another place"),
    **dict.fromkeys((errno.ENOTDIR, errno.ELOOP), "name a folder, or set MINIMEMO_HOME to one"),
    errno.EIO: "look at the disk",
}
_MODES = ("memorag", "rag", "memory", "closed", "gist")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses and runs. Exit codes: 0 done, 1 what was asked for could not be done, 2 the command line is wrong, or what
    it names or says cannot be used as it is (InputError), 130 interrupted. One line on stderr says why; with --json it
    is JSON on stdout too."""
    return run(parser().parse_args(argv))


def run(arguments: argparse.Namespace, interrupted: Callable[[], bool] = lambda: False) -> int:
    """Runs what was parsed; gives the exit code.

    `interrupted` says whether Ctrl-C was pressed: native code that calls Python may have made another error of it.
    """
    try:
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader of our output left, as `head` does
        _say_no_more()
        return 141
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or interrupted():
            building = arguments.run in (commands.build, commands.sync)
            what = "the same command goes on from here" if building else "nothing half-written is left"
            print(f"\nminimemo: interrupted; {what}", file=sys.stderr)
            return 130
        mended = _mended(error)
        if mended is None or os.environ.get("MINIMEMO_DEBUG"):
            raise
        try:
            tell(mended, json=getattr(arguments, "json", False))
            sys.stdout.flush()
        except OSError:  # it is what failed, and would fail once more at the end
            _say_no_more()
        return 2 if isinstance(mended, InputError) else 1


def _say_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _mended(error: BaseException) -> MinimemoError | None:
    """What the user is told of an error; None where it is a fault of the program. The machine's limits are not."""
    if isinstance(error, MinimemoError):
        return error
    said = f"{error}".lower()
    if "cuda out of memory" in said or "hip out of memory" in said:
        mend = "take --kv-dtype int8, or a smaller model, or --device cpu; close what else uses the GPU"
        return InputError(f"GPU memory: too little is free here; {mend}")
    if isinstance(error, MemoryError) or ("alloc" in said and isinstance(error, (RuntimeError, OSError))):
        return MinimemoError("memory: too little is free here; close other programs, or choose a smaller model")
    many = "too many open files"  # torch says it in a RuntimeError
    if many in said or (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
        return MinimemoError("files: too many are open; raise the limit (ulimit -n)")
    if isinstance(error, OSError) and error.errno in _MENDS:
        kind = InputError if error.errno == errno.ENAMETOOLONG else MinimemoError
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return kind(f"{where}{error.strerror}; {_MENDS[error.errno]}")
    if isinstance(error, RuntimeError) and ("thread" in said or "resource temporarily unavailable" in said):
        return MinimemoError("threads: none can be started; raise the limit (ulimit -u), or take --threads 1")
    return None


class _Parser(argparse.ArgumentParser):
    """Of wrong words it names the right ones that are near. Options have to be written whole, so that new ones may
    begin like old ones. commands: those of the whole command line."""

    commands: Any = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:  # reached by: argparse
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong and (near := get_close_matches(wrong[1], re.findall(r"[\w.-]+", wrong[2]), 1)):
            message += f"; did you mean {near[0]}?"
        if message.endswith(": COMMAND"):
            self.print_help(sys.stderr)
            self.exit(2, f"\n{self.prog}: error: name a command\n")
        super().error(plain(message))


class _Command(_Parser):
    """A command's parser, which takes options anywhere among the other words."""

    add = argparse.ArgumentParser.add_argument
    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # reached by: argparse
        if self._inside:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            known, rest = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False
        if rest:
            near = get_close_matches(rest[0], self._option_string_actions, 1)
            self.error(f"unrecognized arguments: {' '.join(rest)}{f'; did you mean {near[0]}?' if near else ''}")
        return known, rest


class _Version(argparse.Action):
    """Prints the version, and whether the native library works here; loads what that takes."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:  # reached by: argparse
        from minimemo.kernels.native.library import unavailable, variants

        why = unavailable()
        print(f"minimemo {__version__}, {f'no native library: {why}' if why else f'native: {variants()[-1]}'}")
        parser.exit()


class _Completion(argparse.Action):
    """Prints what makes a shell complete commands, options and files; shtab (an extra) writes it."""

    def __call__(self, parser: Any, namespace: Any, shell: Any, option: Any = None) -> None:  # reached by: argparse
        try:
            import shtab
        except ImportError:
            parser.error("shtab writes completions: pip install 'minimemo[completion]'")
        for command in parser.commands.choices.values():
            for action in command._actions:
                if not action.option_strings or action.metavar in ("FILE", "MEMO"):
                    action.complete = shtab.FILE
        print(shtab.complete(parser, shell))
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the whole command line; what it gives has `run`, the function of the command."""
    raw = argparse.RawDescriptionHelpFormatter
    description = "Ask questions of a long document on your own machine, from a compact KV memory."
    top = _Parser(prog="minimemo", description=description, epilog=_EXAMPLES, formatter_class=raw)
    top.add_argument("-V", "--version", action=_Version, nargs=0, help="say which version this is, and leave")
    shells, printed = ("bash", "zsh", "tcsh"), "print what makes a shell complete commands, and leave"
    top.add_argument("--print-completion", action=_Completion, choices=shells, help=printed)
    names = top.commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Command)

    def command(run: Callable[[argparse.Namespace], None], text: str, example: str, name: str = "") -> _Command:
        name, description = name or run.__name__, f"{text[0].upper()}{text[1:]}."
        epilog = f"example:\n  minimemo {example}"
        added = names.add_parser(name, help=text, description=description, epilog=epilog, formatter_class=raw)
        added.set_defaults(run=run)
        added.add("-q", "--quiet", action="store_true", help="no progress on stderr")
        added.set_defaults(verbose=False)
        return added

    pull = command(commands.pull, "get models by name", "pull")
    pull.add("name", nargs="*", help="names from `minimemo list`, or a hub's owner/name; none: the defaults")

    build = command(commands.build, "read a document once and leave a memo of it", "build book.txt")
    kinds = (
        "a PDF, EPUB, HTML, DOCX, Markdown, subtitle, mail or text file, several, or a folder of them; - reads stdin"
    )
    build.add("document", nargs="+", help=kinds)
    build.add("-o", "--out", metavar="MEMO", help="where the memo goes (default: DOCUMENT with ending .memo)")
    _models(build)
    small = build.add_mutually_exclusive_group()
    tiers = (
        f"from large to small (default: {DEFAULT}); all but exact and int4 first measure a model that has no profile"
    )
    small.add_argument("--memory", choices=TIERS, help=tiers)
    fits = "how large memory.bin may get, such as 20MB: the best memory that fits into it is kept"
    small.add_argument("--budget", type=_size, metavar="SIZE", help=fits)
    back = "how many tokens back each token sees (default: all, where the document fits the model; else 2048)"
    build.add("--window", type=_positive, metavar="TOKENS", help=back)
    build.add("--encoding", help="encoding of the document, when it is not UTF-8 (for example gb18030)")
    build.add("--password", help="password of an encrypted PDF")
    wrong = "replace puts a mark where bytes are no text (default: strict, which refuses the file)"
    build.add("--errors", choices=("strict", "replace"), default="strict", help=wrong)
    _prompts(build)

    measure = "measure a model once, for the smaller memories; a build does it when needed"
    step = "keep a memo of each document in a folder: new, changed, moved and removed ones"
    sync = command(commands.sync, step, "sync ~/reports")
    sync.add("folder", help="the folder whose documents become a collection")
    sync.add("--name", help="name of the collection (default: the folder's)")
    sync.add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    sync.add("--forget", action="store_true", help="delete memos even if half of the documents are gone")
    sync.add("--watch", action="store_true", help="go on, and follow what changes in the folder")
    sync.add("--jobs", type=_positive, default=1, metavar="N", help="processes that share out the cores (default: 1)")
    cluster = (
        "build on the machines of a Ray cluster: auto, HOST:6379 or ray://HOST:10001; --threads: cores of a worker"
    )
    sync.add("--ray", metavar="ADDRESS", help=cluster)
    sync.add("--memory", choices=TIERS, default=DEFAULT, help=f"of new memos, {tiers}")
    _models(sync)
    _prompts(sync)

    status = command(commands.status, "show the collections, or one of them", "status reports")
    status.add("name", nargs="?", help="name of a collection (default: all)")
    status.add("--json", action="store_true", help="print JSON")

    forget = command(commands.forget, "delete a collection's memos; its documents stay", "forget reports")
    forget.add("name", help="name of the collection")

    calibrate = command(commands.calibrate, measure, "calibrate qwen2.5-coder-0.5b")
    calibrate.add("model", nargs="?", help="a name from `minimemo list`, a directory or a .gguf file")
    texts = (
        "texts of several kinds and languages, 16,000 tokens or more in all (default: texts that come with minimemo)"
    )
    calibrate.add("--text", nargs="+", metavar="FILE", default=[], help=texts)
    _device(calibrate)
    calibrate.add("--encoding", help="encoding of the texts, when it is not UTF-8 (for example gb18030)")

    ask = command(commands.ask, "answer a question from a memo", 'ask book.memo "Who is Mr. Knightley?"')
    ask.add(
        "words", nargs="*", metavar="MEMO... QUESTION",
        help="one memo, or several to be asked together; without a question: a prompt, question after question; "
        "- reads the question from standard input",
    )  # fmt: skip
    ask.add("--all", action="store_true", help="ask all memos on this machine: an index picks the documents")
    ask.add("--in", dest="within", metavar="NAME", help="ask all memos of a collection, see sync")
    ask.add("--name", metavar="PATTERN", help="with --in: only documents of such a name, like '2024*.pdf'")
    _models(ask)
    ask.add(
        "--mode", choices=_MODES, default="memorag",
        help="memorag: clues from memory guide retrieval; rag: retrieval alone; memory: memory alone; closed: neither; "
        "gist: on the whole document, part by part",
    )  # fmt: skip
    _answering(ask, "what the memory recalled", 256)

    summarize = command(commands.summarize, "summarize a memo's document", "summarize book.memo")
    summarize.add("memo", nargs="+", help="a memo folder, or several")
    _models(summarize)
    _answering(summarize, "what memory tells of each part", 512)

    serve = command(commands.serve, "answer over HTTP: a page, an OpenAI-compatible API", "serve book.memo")
    serve.add("memo", nargs="*", help="memo folders, and folders of them (default: all on this machine)")
    serve.add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    serve.add("--port", type=_port, default=8765, help="port to listen at (default: 8765; 0: any that is free)")
    serve.add("--api-key-file", metavar="FILE", help="file with the key that requests must carry")
    serve.add("--access", metavar="FILE", help="tokens, each with documents and quotas: see docs/server.md")
    _models(serve)
    serve.add("--generator", metavar="NAME|DIR|FILE.gguf", help="another model that writes (default: as for ask)")

    tools = "serve memos as tools of an assistant (Model Context Protocol, over stdin and stdout)"
    assistant = command(commands.mcp, tools, "mcp book.memo")
    assistant.add("memo", nargs="*", help="memo folders, and folders of them (default: all on this machine)")
    assistant.add("--allow-writes", action="store_true", help="it may build memos, and delete them")
    _models(assistant)
    assistant.add("--generator", metavar="NAME|DIR|FILE.gguf", help="another model that writes (default: as for ask)")

    inspect = command(commands.inspect, "show what a memo is made of", "inspect book.memo")
    inspect.add("memo", help="a memo folder, or a memo's place in an object store")
    inspect.add("--json", action="store_true", help="print JSON")

    away = "write a copy of a memo that opens on other machines"
    export = command(commands.export, away, "export book.memo away.memo")
    export.add("memo", help="a memo folder")
    export.add(
        "out", help="what to write: a folder; one file, where the name ends in .zip; or a place in an object store: "
        "s3://bucket/prefix, gs://, az:// or file://",
    )  # fmt: skip
    export.add("--passphrase", action="store_true", help="seal the file under a passphrase, which is asked for")
    export.add("--passphrase-file", metavar="FILE", help="file with the passphrase, where nobody can be asked")

    back = "make a memo of what export wrote, and check it"
    importing = command(commands.import_memo, back, "import book.memo.zip", name="import")
    importing.add("archive", help="the file, or a memo's place in an object store")
    importing.add("out", nargs="?", help="the folder to make (default: beside the file, without .zip)")
    importing.add("--passphrase-file", metavar="FILE", help="file with the passphrase of a sealed one")

    verify = command(commands.verify, "check every byte of a memo", "verify book.memo")
    verify.add("memo", help="a memo folder")

    listing = command(commands.listing, "list models and memos on this machine", "list", name="list")
    listing.add("--du", action="store_true", help="show what takes the disk: memos, models, all else of minimemo's")
    listing.add("--json", action="store_true", help="print JSON")

    remove = command(commands.remove, "delete memos", "rm book.memo", name="rm")
    remove.add("memo", nargs="+", help="memo folders; the documents that they were built from are not touched")
    return top


def _models(command: _Command) -> None:
    command.add(
        "--model", default=os.environ.get("MINIMEMO_MODEL"), metavar="NAME|DIR|FILE.gguf",
        help="the language model: a name from `minimemo list`, a directory or a .gguf file (default: the one that made "
        "the memo; for a new memo, the default of `minimemo list`) [$MINIMEMO_MODEL]",
    )  # fmt: skip
    command.add(
        "--embedder", default=os.environ.get("MINIMEMO_EMBEDDER"), metavar="NAME|DIR",
        help="the model that finds passages by meaning (default: as for --model) [$MINIMEMO_EMBEDDER]",
    )  # fmt: skip
    command.add(
        "--dtype", choices=DTYPES,
        help="number type of the model's large matrix products: int8 rounds most and is mostly fastest, float32 rounds "
        "least (default: the fastest here)",
    )  # fmt: skip
    command.add(
        "--kv-dtype", choices=KV_DTYPES,
        help="number type of the memory's keys and values while they are in use: int8 and int4 take a half and a "
        "quarter of the space and need a memo that is not exact (default: that of --dtype, if not int8)",
    )  # fmt: skip
    command.add(
        "--threads", type=_positive, default=os.environ.get("MINIMEMO_THREADS") or None, metavar="N",
        help="threads to compute on (default: all cores) [$MINIMEMO_THREADS]",
    )  # fmt: skip
    _device(command)


def _device(command: _Command) -> None:
    command.add(
        "--device", default=os.environ.get("MINIMEMO_DEVICE") or "auto", metavar="|".join(DEVICES),
        help="what computes: cuda is an NVIDIA or AMD GPU, cuda:1 the second one; auto takes a GPU where there is one "
        "of capability 8.0 or more and triton, else the CPU (default: auto) [$MINIMEMO_DEVICE]",
    )  # fmt: skip
    command.add("-v", "--verbose", action="store_true", help="tell more on stderr: what computes, and where")


def _answering(command: _Command, clues: str, most: int) -> None:
    command.add(
        "--generator", metavar="URL|NAME|DIR|FILE.gguf",
        help="what writes the answer: an OpenAI-compatible endpoint (key: $MINIMEMO_API_KEY; OpenAI's own takes "
        "$OPENAI_API_KEY too), or another model (default: the memory's own; for the default model's memos the larger "
        "one that `pull` gets, where it is here)",
    )  # fmt: skip
    command.add("--generator-model", metavar="NAME", help="the model of an endpoint that has several")
    command.add("--api-key-file", metavar="FILE", help="file with the endpoint's key, in place of a variable")
    command.add("--plain-http", action="store_true", help="let passages and the key leave this machine unencrypted")
    command.add("--show-clues", action="store_true", help=f"also print {clues}")
    length = f"longest answer, in tokens of three quarters of an English word (default: {most})"
    command.add("--max-tokens", type=_positive, default=most, metavar="N", help=length)
    command.add("--json", action="store_true", help="the whole answer as one JSON object")
    _prompts(command)


def _prompts(command: _Command) -> None:
    command.add("--prompts", metavar="FILE", help="JSON or TOML with prompts of your own")


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not {text!r}")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
