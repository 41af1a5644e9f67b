"""Memory and disk of documents: `python -m bench.footprint examples/lighthouse.txt ../shared/data/docs/xquad_en.txt`.

Builds a memo of each document and asks it, each command a process of its own, and prints the peak of its resident
memory as the kernel counted it (getrusage(2)): the mapped weights are in it. Further options (`--kv-dtype int4`) are
given to both commands.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import minimemo
from minimemo.files import size
from minimemo.hub.catalog import defaults, pulled
from minimemo.memo.inventory import disk_bytes
from minimemo.runtime import locate_model

_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss


def peak(*arguments: str | Path) -> int:
    """Bytes of memory that `minimemo ARGUMENTS...` held at most."""
    process = subprocess.Popen([sys.executable, "-m", "minimemo", *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"minimemo {arguments[0]}: exit {process.returncode}")
    return used.ru_maxrss * _UNIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument("--question", default="What happened?")
    parser.add_argument("--mode", default="memorag")
    options, others = parser.parse_known_args()
    print(f"{'document':<24}{'tokens':>8}{'build':>10}{'ask':>10}{'memo':>10}")
    with tempfile.TemporaryDirectory() as scratch:
        for document in options.documents:
            memo = Path(scratch) / f"{document.stem}.memo"
            built = peak("build", document, "-o", memo, *others)
            asked = peak("ask", memo, options.question, "--mode", options.mode, *others)
            told = minimemo.open(memo).inspect()
            row = f"{told['memory']['tokens']:>8,}{size(built):>10}{size(asked):>10}{size(told['bytes']):>10}"
            print(f"{document.stem:<24}{row}", flush=True)
    converted = disk_bytes(locate_model().directory)
    for model in pulled():
        if model.name in defaults():
            print(f"{model.name}: {size(model.bytes)} pulled")
    print(f"{defaults()[0]}: {size(converted)} converted")


if __name__ == "__main__":
    main()
