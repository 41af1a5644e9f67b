"""The list of all memos on this machine: where each lies, and what it takes. And where collections keep theirs. Nothing
heavy is imported with it.

A memo that was moved, replaced or deleted by hand is found out when the list is read: one look at each manifest's time,
none at what is in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from minimemo.errors import InputError
from minimemo.files import cache_dir, data_dir, disk_bytes, memos_dir, store_file, whole_path
from minimemo.journal import Journal, append
from minimemo.memo.manifest import NAME

_NAME = re.compile(r"[\w][\w .-]{0,63}")  # of a collection
_NOTE = re.compile(r"[0-9a-f]{24}")  # an earlier list: one file for each memo, which holds its path


class Noted(NamedTuple):
    """A memo in the list. stamp: time of its manifest, in nanoseconds; bytes: of all its files."""

    path: str
    stamp: int
    bytes: int


def list_file() -> Path:
    """The list of memos."""
    return memos_dir() / "list"


def remember(memo: Path) -> None:
    """Notes where a memo lies. A folder that cannot be written means only that `minimemo list` will not know it."""
    remember_all([memo])


def remember_all(memos: list[Path]) -> None:
    """Notes where memos lie."""
    with suppress(OSError, NotImplementedError):  # filelock's Timeout is an OSError
        append(list_file(), {path: _facts(path) for path in map(str, map(whole_path, memos))})


def forget(*memos: Path) -> None:
    """Takes memos off the list; nothing of their names is left in it."""
    with suppress(OSError, NotImplementedError):
        if memos:
            Journal(list_file()).write(dict.fromkeys(map(str, map(whole_path, memos))), sweep=True)


def opened() -> Journal:
    """The list, to be read on as it grows: path -> stamp and bytes. What an earlier version or a damaged file holds is
    taken into it."""
    journal = Journal(list_file())
    found: dict[str, list[int]] = {}
    notes = _earlier_notes()
    lost = Journal(store_file()).values if journal.damaged else ()  # the index names the memos that it was made of
    for path in {*notes.values(), *lost} - journal.values.keys():
        with suppress(OSError):
            found[path] = _facts(path)
    if found or notes or journal.damaged:
        try:
            journal.write(found)
            for note in notes:
                note.unlink(missing_ok=True)
        except (OSError, NotImplementedError):
            journal.values |= found  # for this process
    return journal


def listed() -> list[Noted]:
    """The memos that are where they were noted, by path; the others are taken off the list."""
    journal = opened()
    memos: list[Noted] = []
    changes: dict[str, list[int] | None] = {}
    for path, (stamp, size) in sorted(journal.values.items()):
        try:
            if os.stat(f"{path}/{NAME}").st_mtime_ns != stamp:
                changes[path] = [stamp, size] = _facts(path)
            memos.append(Noted(path, stamp, size))
        except OSError:
            changes[path] = None
    if changes:
        with suppress(OSError, NotImplementedError):
            journal.write(changes)
    return memos


def remembered() -> list[Path]:
    """The memos that are where they were noted, by path."""
    return [Path(memo.path) for memo in listed()]


def disk_usage() -> dict[str, int]:
    """Bytes by what they are for: "memos", wherever they lie, and everything in minimemo's folders by its place."""
    usage = {"memos": sum(memo.bytes for memo in listed())}
    for folder in {cache_dir(), data_dir()}:
        if folder.is_dir():
            usage |= {str(path): disk_bytes(path) for path in sorted(folder.iterdir())}
    return usage


def _facts(path: str) -> list[int]:
    return [os.stat(os.path.join(path, NAME)).st_mtime_ns, disk_bytes(Path(path))]


def _earlier_notes() -> Mapping[Path, str]:
    notes = {}
    with suppress(OSError), os.scandir(memos_dir()) as entries:
        for entry in entries:
            if _NOTE.fullmatch(entry.name) and entry.is_file():
                name = Path(entry.path).read_bytes()
                notes[Path(entry.path)] = os.fsdecode(name) if b"\0" not in name else ""
    return {note: path for note, path in notes.items() if os.path.isabs(path)}


def memos_of(name: str) -> Path:
    """The folder of a collection's memos."""
    return data_dir() / "collections" / name


def document_name(memo: Path, name: str) -> str:
    """What a memo's document, of this name when it was built, is cited by: in a collection its path below the folder,
    as it is now."""
    with suppress(ValueError):
        _, *path = whole_path(memo).relative_to(data_dir() / "collections").parts
        return "/".join(path).removesuffix(".memo") or name
    return name


def checked_name(name: str) -> str:
    """Raises InputError for a name that is no plain one."""
    if not _NAME.fullmatch(name):
        raise InputError(f"collection {name!r}: a name has letters, digits, spaces, dots and dashes, 64 at most")
    return name
