"""What all commands share: help that begins with commands, a table of named columns, one JSON object as the last line.

An error that minimemo explains is one line on stderr, and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

import minimemo
from bench.common.machine import processor
from minimemo.errors import MinimemoError
from minimemo.kernels import native

Columns = Sequence[tuple[str, str]]  # key of a row and format of its value, with the width: ("ms", "9.3f")


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring, the indented commands of its second paragraph first."""
    first, commands, rest = (doc or "").replace("%", "%%").split("\n\n", 2)
    usage = "\n       ".join(line.strip() for line in commands.splitlines())
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(prog=name, usage=usage, description=f"{first}\n\n{rest}", formatter_class=form)
    made.add_argument("--threads", type=positive, help="of torch and the kernels (default: torch's)")
    return made


def command(args: argparse.Namespace, prog: str, run: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    """Runs a bench and prints its result after what it printed itself. Returns the exit code: 0 done, 1 stopped before
    all was done ("unanswered" in the result), 2 a mistake."""
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        result = run(args)
    except MinimemoError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    print(json.dumps({**machine(), **result}, ensure_ascii=False))
    return int(bool(result.get("unanswered")))


def machine() -> dict[str, Any]:
    """What a measurement was made on and with."""
    return {
        "minimemo": minimemo.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "native": variant(),
        "load": os.getloadavg()[0],
    }


def variant() -> str:
    """The instruction set that the native kernels were chosen for; "torch" where they are not there."""
    return "torch" if native.unavailable() else os.environ.get("MINIMEMO_NATIVE") or native.variants()[-1]


def show(columns: Columns, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints a table, every row as soon as it comes, unless it has none; "-" for what is None or not there. Returns the
    rows."""
    shown: list[dict[str, Any]] = []
    for row in rows:
        if not shown:
            print(*(_aligned(name, name, form) for name, form in columns))
        values = {name: "-" if row.get(name) is None else format(row[name], form) for name, form in columns}
        print(*(_aligned(name, values[name], form) for name, form in columns), flush=True)
        shown.append(row)
    return shown


def _aligned(name: str, cell: str, form: str) -> str:
    width = max(len(name), int("".join(c for c in form.lstrip("<").split(".")[0] if c.isdecimal()) or 0))
    return f"{cell:<{width}}" if form.startswith("<") else f"{cell:>{width}}"


def numbers(text: str) -> list[int]:
    """Numbers with commas between, each once, in order; k: thousands (of a --depths or --lengths)."""
    try:
        return sorted({int(float(word[:-1]) * 1000) if word.endswith("k") else int(word) for word in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: numbers with commas between, like 0,4096,16k") from None


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return int(text)
