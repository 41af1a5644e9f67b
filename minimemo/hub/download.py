"""Brings files onto this disk: whole and verified by hash, or not at all.

The rule obeyed here: `NAME.partial` holds the first bytes of NAME, whichever source wrote them, so any source may
carry on where another stopped; only a file whose hash is the stated one is ever renamed to NAME.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from minimemo.errors import FetchError
from minimemo.events import Event, Listener
from minimemo.files import content_hash

Tick = Callable[[int], None]  # called often; its argument: bytes on the way that are not yet in a file of ours


class DiskFull(FetchError):
    """No source can help: there is no room."""


class Mismatch(FetchError):
    """The bytes came, and are not those that were asked for."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a model: its path inside the model's folder, its size in bytes, and the hash that decides.

    `digest` is a SHA-256 (64 hex digits) or, where a hub states nothing better, git's SHA-1 of the blob (40).
    """

    path: str
    size: int
    digest: str

    def at(self, folder: Path) -> Path:
        return folder / self.path

    def partial(self, folder: Path) -> Path:
        return folder / (self.path + ".partial")

    def matches(self, path: Path) -> bool:
        """Whether what lies at `path` is this file, by size and hash."""
        return length_of(path) == self.size and self.digest_of(path) == self.digest

    def digest_of(self, path: Path) -> str:
        """The hash of what lies at `path`, of the kind that this file states."""
        if len(self.digest) == 64:
            return content_hash(path)
        blob = hashlib.sha1(b"blob %d\0" % length_of(path), usedforsecurity=False)
        with open(path, "rb") as data:
            return hashlib.file_digest(data, lambda: blob).hexdigest()


class Source(Protocol):
    """Somewhere files can come from."""

    @property
    def label(self) -> str: ...

    def fetch(self, files: Sequence[File], folder: Path, tick: Tick) -> None:
        """Put every one of `files` into `folder`, verified; FetchError says in one line why that was impossible."""


def note(text: str) -> Event:
    """A line for the user among the progress: a stage of no length."""
    return Event(text, 0, 0, "note")


def fetch_all(name: str, files: Sequence[File], sources: Sequence[Source], folder: Path, on_event: Listener) -> None:
    """Tries the sources in order until `folder` holds every file.

    Raises FetchError with one line a source when all of them failed; DiskFull at once.
    """
    total = sum(file.size for file in files)

    def tick(coming: int) -> None:
        held = sum(max(length_of(file.at(folder)), length_of(file.partial(folder))) for file in files)
        on_event(Event(f"pull {name}", min(total, held + coming), total, "B"))

    reasons: list[str] = []
    for source in sources:
        missing = [file for file in files if not file.at(folder).is_file()]
        try:
            if missing:
                source.fetch(missing, folder, tick)
        except DiskFull:
            raise
        except FetchError as error:
            reasons.append(f"{source.label}: {error}")
            on_event(note(reasons[-1]))
        else:
            tick(0)
            return
    head = f"{name} could not be pulled; what arrived is kept, so run `minimemo pull {name}` again once this is mended:"
    raise FetchError("\n  ".join([head, *reasons]))


def bring_verified(files: Sequence[File], folder: Path, bring: Callable[[], None]) -> None:
    """Runs `bring`, which completes the partials, then checks and renames each.

    A mismatch is thrown away. Where an earlier pull had begun the file the fault may be its: then once more, from
    nothing. Raises Mismatch naming the file, its stated hash and the one it has.
    """
    begun = any(length_of(file.partial(folder)) for file in files)
    bring()
    try:
        _settle(files, folder)
    except Mismatch:
        if not begun:
            raise
        bring()
        _settle(files, folder)


def _settle(files: Sequence[File], folder: Path) -> None:
    for file in files:
        partial = file.partial(folder)
        if file.at(folder).is_file():
            continue
        if not file.matches(partial):
            length = length_of(partial)
            actual = file.digest_of(partial) if length == file.size else f"{length:,} bytes"
            partial.unlink(missing_ok=True)
            raise Mismatch(f"{file.path}: expected {file.digest}, found {actual}; thrown away")
        with open(partial, "rb+") as data:
            os.fsync(data.fileno())  # or a power cut could leave the right name on the wrong bytes
        os.replace(partial, file.at(folder))


def require_space(folder: Path, files: Sequence[File], besides: int = 0) -> None:
    """Raises DiskFull, saying how much is needed and free, unless the rest of `files` and `besides` bytes fit."""
    needed = besides + sum(max(0, file.size - length_of(file.partial(folder))) for file in files)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"{folder}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free;"
            " make room, or set MINIMEMO_HOME to a folder on another disk"
        )


def length_of(path: Path) -> int:
    """The size of a file in bytes; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
