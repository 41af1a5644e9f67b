"""Builds one memo in a process of its own and tells of it in lines of JSON on stdout; ends with who started it.

    python -m minimemo.server.builder DOCUMENT '{"memory": "balanced"}'

A line: {"stage", "done", "total", "unit"} of progress, {"memo"} or {"error"} at the end. The password of an encrypted
document comes in the environment: everybody on the machine can read a command line.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from minimemo.errors import MinimemoError
from minimemo.events import Event
from minimemo.files import size
from minimemo.memo.build import build
from minimemo.server.jobs import PASSWORD

EVERY = 0.2  # seconds between two lines of one stage


def main() -> int:
    source, options = sys.argv[1], json.loads(sys.argv[2])
    if password := os.environ.pop(PASSWORD, ""):
        options["password"] = password
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)  # readers come first
    last = ("", 0.0)

    def on_event(event: Event) -> None:
        nonlocal last
        now = time.monotonic()
        if event.stage != last[0] or event.done >= event.total or now - last[1] >= EVERY:
            last = event.stage, now
            _tell({"stage": event.stage, "done": event.done, "total": event.total, "unit": event.unit})

    try:
        memo = build(Path(source), on_event=on_event, **options)
    except (MinimemoError, MemoryError, OSError) as error:
        said = str(error) if isinstance(error, MinimemoError) else f"{Path(source).name}: {error or 'out of memory'}"
        _tell({"error": said.replace(f"{source}:", f"{Path(source).name}:")})
        return 1
    _tell({"memo": str(memo.folder), "note": size(memo.manifest.files["memory.bin"].bytes)})
    return 0


def _tell(fact: object) -> None:
    print(json.dumps(fact), flush=True)


def _end_with_parent() -> None:
    """Standard input ends when the parent does, however it does; what was read so far is kept for the next build."""
    while os.read(0, 1024):  # not through sys.stdin, whose lock Python waits for when it ends
        pass
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
