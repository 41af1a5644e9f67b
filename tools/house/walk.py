"""The files that one call enters, in order, and how often it returns to one that it had left.

A function is entered when it runs for the first time in the call: a second pass of a loop and the next token of an
answer count no more. Only functions of rooms that decide something count, not those of the rooms in TOOLS, which do one
thing for whoever calls. A return is an entry in a file that was entered before, with another file in between. Imports
do not count. In commit a0dbbed a question entered 22 files and returned 51 times.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

from graph import ROOT, modules, room

TOOLS = ("search", "engine", "models", "text", "files", "kernels", "threads", "events", "errors")
TEXT = "".join(f"The keeper of lamp {day} wrote day {7 * day} into his book. " for day in range(40))
QUESTION = "When was the light lit for the first time?"


def visits(call: Callable[[], Any]) -> list[str]:
    """The modules whose functions a call enters, in order; entries that follow each other in one module are one."""
    names = {str(path): name for name, path in modules().items() if room(name) not in TOOLS}
    entered: dict[tuple[str, str], None] = {}

    def on_event(frame: FrameType, event: str, _: object) -> None:
        name = names.get(frame.f_code.co_filename)
        if name and event == "call" and frame.f_code.co_name != "<module>":
            entered.setdefault((name, frame.f_code.co_qualname))

    sys.setprofile(on_event)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [name for name, _ in groupby(name for name, _ in entered)]


def walks() -> dict[str, list[str]]:
    """The visits of `ask` (a question for a phrase, in mode memorag) and of `build`, on tiny models that are loaded."""
    with tempfile.TemporaryDirectory(prefix="minimemo-house-") as scratch:
        folder = Path(scratch)
        os.environ["MINIMEMO_HOME"] = str(folder / "home")
        sys.path.insert(0, str(ROOT))
        import minimemo
        from tests.tiny import write_embedder, write_model

        model = minimemo.load_model(write_model(folder / "decoder"))
        embedder = minimemo.open_embedder(write_embedder(folder / "embedder"))
        minimemo.calibrate(model, [TEXT[:600], TEXT[600:1200]])
        document, target = minimemo.Document.of(TEXT), folder / "x.memo"
        building = visits(lambda: minimemo.build(document, target, model=model, embedder=embedder))
        memo = minimemo.open(target, model=model, embedder=embedder)
        memo.ask("Where was it?")  # opens the memory
        return {"ask": visits(lambda: memo.ask(QUESTION, max_tokens=8)), "build": building}
