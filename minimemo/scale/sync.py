"""A folder as a collection: a memo of each document in it, kept in step with what is added, changed, moved and removed.

The memos of a collection lie in minimemo's data folder, under the paths that the documents have in theirs, and are all
that is ever replaced or deleted. What a collection knows of its documents is one JSON file, written whole after each
document: a sync that was stopped at any moment goes on from there.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from minimemo.errors import InputError, MinimemoError
from minimemo.files import content_hash, data_dir, disk_bytes, private_folder, write_whole
from minimemo.memo.library import remove
from minimemo.memo.manifest import NAME as MANIFEST
from minimemo.memo.registry import remember as note_memo
from minimemo.readers import ENDINGS

MOST = 100_000  # documents of a collection
# A folder that lost at least so many documents, and this share of them, is taken for one that was unmounted or emptied.
LOST, LOST_SHARE = 5, 0.5
_NAME = re.compile(r"[\w][\w .-]{0,63}")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a document. size and modified (nanoseconds): of the file when its hash was taken. error: why
    there is no memo of it, or ""."""

    sha256: str
    size: int
    modified: int
    error: str = ""


@dataclass(slots=True)
class Collection:
    """A folder and its documents, by their paths below it. pace: bytes of documents that a second takes; 0: unknown."""

    name: str
    folder: str
    documents: dict[str, Known] = field(default_factory=dict)
    pace: float = 0.0
    synced: float = 0.0  # seconds since 1970; 0: never to the end

    def memo(self, path: str) -> Path:
        """Where the memo of a document is."""
        return memos_of(self.name) / f"{path}.memo"

    def save(self) -> None:
        content = {**asdict(self), "documents": {path: asdict(one) for path, one in self.documents.items()}}
        write_whole(_file(self.name), json.dumps(content, ensure_ascii=False, indent=1).encode(), private=True)


@dataclass(slots=True)
class Plan:
    """What a sync is going to do, by paths below the folder. moved: to -> from. seconds: about; 0: nothing is known."""

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    kept: int = 0
    bytes: int = 0  # of documents that are read
    seconds: float = 0.0
    files: dict[str, Known] = field(default_factory=dict)  # every document as it is now


def collections() -> list[Collection]:
    """All collections of this user, by name."""
    folder = data_dir() / "collections"
    names = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    return [load(name) for name in names]


def load(name: str) -> Collection:
    """A collection by its name. Raises InputError where there is none, or its file is no such thing."""
    checked_name(name)
    try:
        content = json.loads(_file(name).read_text(encoding="utf-8"))
        known = {path: Known(**one) for path, one in content.pop("documents").items()}
        return Collection(**content, documents=known)
    except FileNotFoundError:
        raise InputError(f"collection {name!r}: there is none; make one: minimemo sync FOLDER --name {name}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{_file(name)}: is no collection ({error}); delete it, and sync the folder again") from error


def memos_of(name: str) -> Path:
    """The folder of a collection's memos."""
    return data_dir() / "collections" / name


def checked_name(name: str) -> str:
    """Raises InputError for a name that is no plain one."""
    if not _NAME.fullmatch(name):
        raise InputError(f"collection {name!r}: a name has letters, digits, spaces, dots and dashes, 64 at most")
    return name


@contextmanager
def opened(folder: Path, name: str) -> Iterator[Collection]:
    """The collection of a folder, made where there is none, for one process at a time. Raises InputError where another
    process has it, or the name is another folder's."""
    checked_name(name)
    private_folder(memos_of(name))
    try:
        with FileLock(data_dir() / "collections" / f".{name}.lock", timeout=0):
            collection = load(name) if _file(name).exists() else Collection(name, str(folder))
            if collection.folder != str(folder):
                raise InputError(
                    f"collection {name!r}: is of {collection.folder}; give this folder another name with --name"
                )
            yield collection
    except Timeout:
        raise InputError(f"collection {name!r}: another sync of it is at work; wait for its end") from None


def plan(collection: Collection, forget: bool = False) -> Plan:
    """Compares a folder with what is known of it; files are read only where size or time of change differ.

    Raises InputError where the folder is not there, has too many files, or lost so many that it may be unmounted;
    forget: it is taken as it is.
    """
    folder, made = Path(collection.folder), Plan()
    if not folder.is_dir():
        raise InputError(
            f"{folder}: is no folder now; nothing was forgotten. Mount it, or delete its memos with "
            f"minimemo forget {collection.name}"
        )
    for path, status in _documents(folder):
        known = collection.documents.get(path)
        if known and (known.size, known.modified) == (status.st_size, status.st_mtime_ns):
            made.files[path] = known
        else:
            try:
                digest = content_hash(folder / path)
            except OSError as error:
                made.files[path] = Known("", -1, -1, f"cannot be read ({error.strerror})")
                continue
            made.files[path] = Known(digest, status.st_size, status.st_mtime_ns)
    gone = [path for path in collection.documents if path not in made.files]
    if not forget and len(gone) >= LOST and len(gone) >= LOST_SHARE * len(collection.documents):
        raise InputError(
            f"{folder}: {len(gone)} of {len(collection.documents)} documents are gone; nothing was forgotten. "
            "If that is meant, sync with --forget"
        )
    left = {collection.documents[path].sha256: path for path in gone if _built(collection, path)}
    for path, now in made.files.items():
        before = collection.documents.get(path)
        if before and before.sha256 == now.sha256 and _built(collection, path):
            made.kept += 1
        elif path not in collection.documents and now.sha256 in left:
            made.moved[path] = left.pop(now.sha256)
        elif now.sha256:
            (made.changed if before and before.sha256 != now.sha256 else made.new).append(path)
            made.bytes += now.size
    made.gone = [path for path in gone if path not in made.moved.values()]
    made.seconds = made.bytes / collection.pace if collection.pace else 0.0
    return made


def carry_out(
    collection: Collection, made: Plan, build: Callable[[Path, Path], object], tell: Callable[[str], None]
) -> Mapping[str, str]:
    """Does what was planned, and gives the documents of which no memo could be made, with the reasons.

    build: makes the memo of a document in a place. tell: gets a line for each thing that was done.
    """
    failed: dict[str, str] = {path: one.error for path, one in made.files.items() if one.error and not one.sha256}
    for path, before in made.moved.items():
        target = collection.memo(path)
        private_folder(target.parent)
        _forget(collection, path)
        os.rename(collection.memo(before), target)
        note_memo(target)
        _sweep(collection, before)
        collection.documents[path] = made.files[path]
        del collection.documents[before]
        collection.save()
        tell(f"moved    {before} -> {path}")
    for path in made.gone:
        _forget(collection, path)
        del collection.documents[path]
        collection.save()
        tell(f"gone     {path}")
    read, took = 0, 0.0
    for path in [*made.new, *made.changed]:
        target, begun = collection.memo(path), time.monotonic()
        private_folder(target.parent)
        try:
            build(Path(collection.folder) / path, target)
        except MinimemoError as error:
            failed[path] = str(error).removeprefix(f"{Path(collection.folder) / path}: ")
            _forget(collection, path)  # what it said before is not what it says now
            now = made.files[path]
            collection.documents[path] = Known(now.sha256, now.size, now.modified, failed[path])
            collection.save()
            tell(f"failed   {path}: {failed[path]}")
            continue
        read, took = read + made.files[path].size, took + time.monotonic() - begun
        collection.documents[path] = made.files[path]
        collection.pace = read / took if took else collection.pace
        collection.save()
        tell(f"{'changed' if path in made.changed else 'built':<8} {path}")
    collection.synced = time.time()
    collection.save()
    return failed


def delete(name: str) -> int:
    """Deletes a collection's memos and all that is known of it, no document; gives the bytes that are free now."""
    collection = load(name)
    freed = 0
    with opened(Path(collection.folder), name):
        for path in collection.documents:
            freed += disk_bytes(collection.memo(path)) if collection.memo(path).is_dir() else 0
            _forget(collection, path)
        with suppress(OSError):
            memos_of(name).rmdir()
        _file(name).unlink(missing_ok=True)
    (data_dir() / "collections" / f".{name}.lock").unlink(missing_ok=True)
    return freed


def _forget(collection: Collection, path: str) -> None:
    """Deletes the memo of a document, where there is one."""
    if collection.memo(path).exists():
        remove(collection.memo(path))
    _sweep(collection, path)


def _sweep(collection: Collection, path: str) -> None:
    """Removes the folders above a memo that is not there any longer, those that are empty."""
    for parent in collection.memo(path).parents:
        if parent == memos_of(collection.name) or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()


def _built(collection: Collection, path: str) -> bool:
    return (collection.memo(path) / MANIFEST).is_file()


def _documents(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Paths of the documents below a folder, and their status: what ends as documents do and is a file. Hidden files
    and folders, links and memos are passed over."""
    count, folders = 0, [folder]
    while folders:
        here = folders.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.is_symlink():
                        continue
                    if entry.is_dir():
                        if not entry.name.endswith(".memo"):
                            folders.append(Path(entry.path))
                    elif entry.is_file() and Path(entry.name).suffix.lower() in ENDINGS:
                        count += 1
                        if count > MOST:
                            raise InputError(f"{folder}: has more than {MOST:,} documents; sync folders below it")
                        yield os.path.relpath(entry.path, folder), entry.stat()
        except OSError as error:
            raise InputError(f"{here}: cannot be read ({error.strerror}); nothing was forgotten") from error


def _file(name: str) -> Path:
    return data_dir() / "collections" / f"{name}.json"
