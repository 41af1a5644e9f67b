"""Renames that a power cut cannot tear: what takes a name is on the disk before it does."""

from __future__ import annotations

import os
from pathlib import Path


def put(source: Path, target: Path) -> None:
    """Gives a file or a folder the name `target`, which no folder has yet. Raises OSError."""
    _sync(source)
    os.replace(source, target)
    if os.name != "nt":  # folders cannot be opened there
        _flush(target.absolute().parent)


def _sync(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir():
        for inner in path.iterdir():
            _sync(inner)
        if os.name == "nt":
            return
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
