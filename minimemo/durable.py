"""Renames that a power cut cannot tear: what takes a name is on the disk before it does."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def put(source: Path, target: Path) -> None:
    """Gives a file or a folder the name `target`, which no folder has yet. Raises OSError."""
    _sync(source)
    os.replace(source, target)
    _sync_folder(target.absolute().parent)


def _sync(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir():
        for inner in path.iterdir():
            _sync(inner)
        _sync_folder(path)
    else:
        _sync_file(path)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # Windows opens no folders, some network file systems sync none
        _sync_file(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
