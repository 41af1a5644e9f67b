"""What the command line shows: answers on stdout as they come, clues and progress on stderr, tables for people."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import dumps
from time import monotonic
from typing import TYPE_CHECKING, Any
from unicodedata import combining, east_asian_width

from minimemo.files import size

if TYPE_CHECKING:
    from minimemo.ask import Answer, Found, Piece


JSON_VERSION = 1  # raised when a field goes or changes; new ones may come at any time
FIRST_LINE, NEXT_LINE = 5.0, 10.0  # seconds
_OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        "budget", "device", "embedder", "encoding", "errors", "generator", "kv_dtype", "max_tokens", "memory", "model",
        "password",
    )
}  # fmt: skip
_OPTIONS |= {"out": "-o", "texts": "--text"}
_OPTIONS |= {"Endpoint.model": "--generator-model", "Endpoint.plain_http": "--plain-http"}
_ARGUMENT = re.compile(f"`({'|'.join(map(re.escape, _OPTIONS))})(=[^`]*|)`")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def print_answer(
    steps: Iterator[Found | Piece | Answer],
    bar: Bar,
    *,
    json: bool,
    clues: bool,
    named: bool = False,
    device: Mapping[str, str] | None = None,
) -> Answer:
    """Streams an answer and returns it: clues if asked for, the text as it comes, then the sources, `named` by their
    documents. device: what computes, for JSON."""
    from minimemo.ask import Answer, Found, Piece
    from minimemo.ask.clues import is_refusal

    begun = False
    width = shutil.get_terminal_size().columns
    try:
        for step in steps:
            bar.clear()
            if isinstance(step, Answer):
                answer = step
            elif json:
                continue
            elif isinstance(step, Piece):
                print(plain(step.text), end="", flush=True)
                begun = True
            elif isinstance(step, Found) and clues:
                for clue in step.clues:
                    print(f"[{clue.kind}] {plain(clue.text)}", file=sys.stderr)
    finally:
        if begun:
            print(flush=True)  # an error begins a new line
    if json:
        print(as_json({**answer.to_dict(), "device": device}), flush=True)
        return answer
    if not answer.supported and not is_refusal(answer.text):
        print("(the document does not clearly hold this answer)")
    for passage in answer.passages:
        place = f"{passage.document} " * named + (passage.where or f"{passage.start}-{passage.end}")
        print(_cut(plain(f"  {'*' if passage.cited else ' '} [{place}] {passage.quoted}"), width))
    sys.stdout.flush()
    return answer


def plain(text: object) -> str:
    """Text that a terminal shows and does not obey: a mark in place of each control character, and of those that turn
    the direction of writing."""
    return _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", str(text))


def _cut(line: str, width: int) -> str:
    """As much of a line as so many columns hold; a character of Chinese, Japanese or Korean takes two."""
    column = 0
    for at, char in enumerate(line):
        column += 0 if combining(char) else 1 + (east_asian_width(char) in "WF")
        if column > width - 1 and at + 1 < len(line):
            return line[:at] + "…"
    return line


def tell(error: Exception, *, json: bool) -> None:
    """Says in a line what went wrong; in JSON too, for who reads that."""
    message = as_options(str(error))
    print(f"minimemo: {plain(message)}", file=sys.stderr)
    if json:
        print(as_json({"error": {"kind": type(error).__name__, "message": message}}), flush=True)


def as_options(text: str) -> str:
    """What the library says of its `arguments`, in options of the command line."""
    return _ARGUMENT.sub(lambda found: f"{_OPTIONS[found[1]]}{found[2].replace('=', ' ')}", text)


def as_json(value: Mapping[str, Any]) -> str:
    """JSON on one line, with its version; in ASCII where stdout is of an encoding that lacks some characters."""
    whole = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return dumps({"version": JSON_VERSION, **value}, ensure_ascii=not whole)


def print_built(facts: Mapping[str, Any]) -> None:
    """Says what a build made (`Memo.inspect`), and what to do with it."""
    path, memory = plain(facts["path"]), facts["memory"]
    word = shlex.quote(path) if os.name != "nt" else f'"{path}"' if " " in path else path
    print(
        f"{path}: {memory['tokens']:,} tokens, memory {size(memory['bytes'])} "
        f"({memory['ratio_to_fp16']:.1f}x smaller than fp16 KV), {size(facts['bytes'])} in all\n"
        f"quality: {_quality(facts['quality'])}\n"
        f'ask it: minimemo ask {word} "your question"'
    )


def print_memo(facts: Mapping[str, Any]) -> None:
    """Prints what `Memo.inspect` tells, as a table."""
    document, memory, chunks = facts["document"], facts["memory"], facts["chunks"]
    settings = " ".join(f"{key} {value}" for key, value in memory["params"].items())
    rows = [
        ("document", f"{document['name']}, {document['characters']:,} characters, language {document['language']}"),
        *((kind, f"{facts[kind]['source']} ({facts[kind]['fingerprint'][:12]})") for kind in ("model", "embedder")),
        ("memory", f"{memory['tokens']:,} tokens in {memory['blocks']} blocks, {size(memory['bytes'])}"),
        ("", f"{memory['bytes_per_token']:.0f} bytes a token, {memory['ratio_to_fp16']:.2f}x smaller than fp16 KV "
             f"({memory['fp16_bytes_per_token']} bytes a token)"),
        ("", f"codec {memory['codec']}: {settings}"),
        ("", "parts: " + ", ".join(f"{name} {size(count)}" for name, count in memory["parts"].items())),
        ("quality", _quality(facts["quality"])),
        ("index", size(facts["index"]["bytes"])),
        ("chunks", f"{size(chunks['bytes'])}, at most {chunks['size']} tokens each, {chunks['overlap']} shared"),
        ("in all", size(facts["bytes"])),
        ("device", f"{facts['device']['name']}, {facts['device']['title']}: models run there on this machine"),
    ]  # fmt: skip
    for name, text in rows:
        print(f"{name:<10}{plain(text)}")


def _quality(measured: Mapping[str, Any] | None) -> str:
    """What was measured of a memory, in a line."""
    if measured is None:
        return "not measured: a memo of earlier times"
    places = len(measured["places"])
    return (
        f"{measured['top1']:.1%} of next tokens as from the exact cache, KL {measured['kl']:.2g} "
        f"({measured['tokens']} tokens at {places} place{'s' * (places > 1)})"
    )


def print_listing(models: Sequence[Mapping[str, Any]], memos: Sequence[Mapping[str, Any]]) -> None:
    """One line each."""
    for model in models:
        state = "pulled" if model["pulled"] else "-"
        print(f"{model['name']:<24}{model['kind']:<10}{state:<8}{size(model['bytes']):>9}  {model['about']}")
    print(plain("".join([f"{memo['path']}  {size(memo['bytes'])}\n" for memo in memos])), end="")


def print_usage(usage: Mapping[str, int]) -> None:
    """One line each, largest first, and all together."""
    for name, count in sorted(usage.items(), key=lambda pair: -pair[1]):
        print(f"{size(count):>9}  {plain(name)}")
    print(f"{size(sum(usage.values())):>9}  in all")


class Bar:
    """Events as one progress bar on stderr, the stage's name before it; where stderr is no terminal, as a line of a
    stage that takes longer than FIRST_LINE seconds, and one every NEXT_LINE from then on. Nothing of either with -q."""

    def __init__(self, quiet: bool, terminal: bool, verbose: bool = False) -> None:
        self._shown, self._lines = terminal and not quiet, not terminal and not quiet
        self._verbose = verbose
        self._bar: Any = None
        self._stage = ""
        self._due = 0.0  # when a line is told next

    def __call__(self, event: Any) -> None:
        if event.unit in ("note", "detail"):
            if event.unit == "note" or self._verbose:
                self.clear()
                print(plain(as_options(event.stage)), file=sys.stderr)
            return
        if event.stage == "answer":
            return
        if self._lines:
            self._line(event)
        if not self._shown:
            return
        if event.stage != self._stage:
            self.clear()
            from tqdm import tqdm

            self._stage = event.stage
            whole = event.unit == "B"
            self._bar = tqdm(
                total=event.total or None, desc=event.stage, unit=event.unit, unit_scale=whole, leave=False,
                file=sys.stderr, dynamic_ncols=True, smoothing=0.1, delay=0.2,
            )  # fmt: skip
        self._bar.total = event.total or None
        self._bar.update(event.done - self._bar.n)
        if event.total and event.done >= event.total:
            self.clear()

    def _line(self, event: Any) -> None:
        now = monotonic()
        if event.stage != self._stage:
            self._stage, self._due = event.stage, now + FIRST_LINE
        elif now >= self._due:
            self._due = now + NEXT_LINE
            done, total = (size(n) if event.unit == "B" else f"{n:,}" for n in (event.done, event.total))
            far = f"{done} of {total}" if event.total else done
            print(f"{plain(event.stage)}: {far}" + f" {event.unit}" * (event.unit != "B"), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the bar away, so that something can be printed."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""


@contextmanager
def progress(quiet: bool, verbose: bool = False) -> Iterator[Bar]:
    """A bar for the length of a `with`; taken away whatever happens."""
    bar = Bar(quiet, sys.stderr.isatty(), verbose)
    try:
        yield bar
    finally:
        bar.clear()
