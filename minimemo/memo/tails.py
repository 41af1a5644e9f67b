"""Exact ends of memos built on this machine, kept for documents that grow (memory/tail.py); the oldest make room.

A cache: any of them may be removed at any time, and a document that grew is then read from its beginning.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimemo.files import cache_dir

BUDGET = 1 << 30  # bytes of all; one of a 0.5B model's is up to 50 MB, or 400 MB where a whole context was read


def borrow(stamp: Mapping[str, Any], to: Path) -> bool:
    """Copies the end of the memo that was built under `stamp`; False when it is not kept."""
    try:
        shutil.copyfile(_path(stamp), to)
    except OSError:
        to.unlink(missing_ok=True)
        return False
    return True


def keep(file: Path, stamp: Mapping[str, Any], instead_of: Mapping[str, Any] | None = None) -> None:
    """Moves a file here, where there is one that the budget has room for and this folder can be written."""
    try:
        if instead_of is not None:
            _path(instead_of).unlink(missing_ok=True)
        size = file.stat().st_size
        path = _path(stamp)
        path.parent.mkdir(parents=True, exist_ok=True)
        others = sorted((p for p in path.parent.iterdir() if p != path), key=lambda p: p.stat().st_mtime, reverse=True)
        for other in others:
            size += other.stat().st_size
            if size > BUDGET:
                other.unlink(missing_ok=True)
        if file.stat().st_size <= BUDGET:
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                shutil.move(file, part)  # perhaps across file systems
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
    except OSError:
        return


def _path(stamp: Mapping[str, Any]) -> Path:
    return cache_dir() / "tails" / hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:24]
