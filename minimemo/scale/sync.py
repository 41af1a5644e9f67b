"""A folder as a collection: a memo of each document in it, kept in step with what is added, changed, moved and removed.

The memos of a collection lie in minimemo's data folder, under the paths that the documents have in theirs, and are all
that is ever replaced or deleted. Documents of the same bytes share one memo, that of the first. What a collection knows
of its documents is a table (journal.py), to which every document that is done adds a line: a sync that was stopped at
any moment goes on from there.
"""

from __future__ import annotations

import fnmatch
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock, Timeout

from minimemo.errors import InputError, MinimemoError
from minimemo.files import content_hash, data_dir, disk_bytes, private_folder, whole_path
from minimemo.journal import Journal, append
from minimemo.memo.folder import sweep
from minimemo.memo.library import remove_all
from minimemo.memo.manifest import NAME as MANIFEST
from minimemo.memo.registry import checked_name, forget, memos_of, remember_all
from minimemo.memo.registry import opened as registry
from minimemo.readers import ENDINGS

MOST = 100_000  # documents of a collection
# A folder that lost at least so many documents, and this share of them, is taken for one that was unmounted or emptied.
LOST, LOST_SHARE = 5, 0.5


# Makes memos of documents, (document, place, SHA-256 that it must have) each; gives each document, in whatever order,
# with why it failed or "".
Builds: TypeAlias = Callable[[Iterable[tuple[Path, Path, str]]], Generator[tuple[Path, str], None, None]]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a document. size and modified (nanoseconds): of the file when its hash was taken. error: why
    there is no memo of it, or "". same: the document of the same bytes whose memo is also its own, or ""."""

    sha256: str
    size: int
    modified: int
    error: str = ""
    same: str = ""


@dataclass(slots=True)
class Collection:
    """A folder and its documents, by their paths below it. synced: seconds since 1970 of the last sync that came to its
    end; 0: none did."""

    name: str
    folder: str
    documents: dict[str, Known] = field(default_factory=dict)
    synced: float = 0.0

    def memo(self, path: str) -> Path:
        """Where the memo of a document is."""
        known = self.documents.get(path)
        return memos_of(self.name) / f"{known.same if known and known.same else path}.memo"

    def memos(self, pattern: str | None = None) -> set[str]:
        """Where the memos of its documents are; of those whose name, or path below the folder, matches a pattern as
        shells have them. Raises InputError where there is none."""
        documents = [path for path, known in self.documents.items() if not known.error]
        if pattern is not None:
            documents = [path for path in documents if _matches(path, pattern)]
        if not documents:
            such = f" of a name like {pattern!r}" if pattern is not None else ""
            raise InputError(f"collection {self.name!r}: has no document{such}; minimemo status {self.name} tells more")
        return {str(self.memo(path)) for path in documents}

    def lost(self) -> int:
        """How many documents should have a memo and have none: somebody else took it away."""
        return sum(not (known.error or _built(self, known.same or path)) for path, known in self.documents.items())

    def note(self, *paths: str) -> None:
        """Keeps what is known of documents; nothing of those that are known no longer."""
        append(_file(self.name), self._rows(paths))

    def finish(self, paths: Iterable[str]) -> None:
        """Notes these documents and that a sync came to its end; nothing is left of what is known no longer."""
        self.synced = time.time()
        Journal(_file(self.name)).write({**self._rows(paths), "": [self.folder, self.synced]}, sweep=True)

    def _rows(self, paths: Iterable[str]) -> dict[str, Sequence[str | int] | None]:
        known = {path: self.documents.get(path) for path in paths}
        return {path: None if one is None else astuple(one) for path, one in known.items()}


@dataclass(slots=True)
class Plan:
    """What a sync is going to do, by paths below the folder. moved: to -> from; same: to the document whose memo is
    theirs too. failed: documents that are tried again as they were. kept: documents that are as they were; alike: how
    many documents share another one's memo, in all. bytes: of documents that are read."""

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    alike: int = 0
    bytes: int = 0
    files: dict[str, Known] = field(default_factory=dict)  # every document as it is now

    @property
    def read(self) -> list[str]:
        """The documents of which memos are made."""
        return [*self.new, *self.changed, *self.failed]

    def __bool__(self) -> bool:
        return bool(self.read or self.moved or self.same or self.gone)


def collections() -> list[Collection]:
    """All collections of this user, by name."""
    folder = data_dir() / "collections"
    names = sorted(path.stem for path in folder.glob("*.table")) if folder.is_dir() else []
    return [load(name) for name in names]


def load(name: str) -> Collection:
    """A collection by its name. Raises InputError where there is none, or its file is no such thing."""
    checked_name(name)
    table = Journal(_file(name))
    head = table.values.pop("", None)
    if head is None and not _file(name).exists():
        raise InputError(f"collection {name!r}: there is none; make one: minimemo sync FOLDER --name {name}")
    try:
        folder, synced = head
        documents = {path: Known(*row) for path, row in table.values.items()}
        return Collection(name, str(whole_path(Path(folder))), documents, synced)
    except (TypeError, ValueError) as error:
        raise InputError(f"{_file(name)}: is no collection ({error}); delete it, and sync the folder again") from error


@contextmanager
def opened(folder: Path, name: str) -> Iterator[Collection]:
    """The collection of a folder, a new one where there is none, for one process at a time; `carry_out` keeps it.
    Raises InputError where another process has it, the name is another folder's, or a new one's folder is not there."""
    checked_name(name)
    if not folder.is_dir():
        before = load(name) if _file(name).exists() else None
        if before is None or before.folder != str(folder) or not before.documents:
            raise InputError(f"{folder}: is no folder; name the one that has the documents")
    private_folder(_file(name).parent)
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


def plan(collection: Collection, forget: bool = False, again: bool = True) -> Plan:
    """Compares a folder with what is known of it; files are read only where size or time of change differ.

    Raises InputError where the folder is not there, has too many files, or lost so many that it may be unmounted;
    forget: it is taken as it is. again: documents that failed are tried once more though they are as they were.
    """
    folder, made = Path(collection.folder), Plan()
    if not folder.is_dir():
        raise InputError(
            f"{folder}: is no folder now; nothing was forgotten. Mount it, or delete its memos with "
            f"minimemo forget {collection.name}"
        )
    for path, status in _documents(folder):
        known = collection.documents.get(path)
        as_it_was = known and (known.size, known.modified) == (status.st_size, status.st_mtime_ns)
        if known and as_it_was and not (known.error and again):
            made.files[path] = known
        else:
            try:
                digest = content_hash(folder / path)
                memo = collection.memo(path)  # of which the path or the name may be too long
                for place in (memo, _file(collection.name).with_name(memo.name)):
                    with suppress(FileNotFoundError):
                        os.lstat(place)
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
    _compare(collection, made, gone, again)
    return made


def _compare(collection: Collection, made: Plan, gone: list[str], again: bool) -> None:
    """Decides for every document where its memo comes from: it has its own, shares another one's, takes one that nobody
    has any longer, or needs a new one."""
    before = collection.documents
    owners: dict[str, str] = {}  # by hash: the document that has the memo
    left: dict[str, str] = {}  # by hash: a document that has a memo of what it is no longer
    for path, had in before.items():
        if had.same or had.error or not _built(collection, path):
            continue
        is_now = made.files.get(path)
        (owners if is_now and is_now.sha256 == had.sha256 else left).setdefault(had.sha256, path)
    for path, now in sorted(made.files.items()):
        known = before.get(path)
        if not now.sha256:
            continue
        if known and known.error and known.sha256 == now.sha256 and not again:
            made.files[path] = known
            continue
        owner = owners.setdefault(now.sha256, path)
        if owner != path:
            made.alike += 1
            made.files[path] = Known(now.sha256, now.size, now.modified, same=owner)
            if known and (known.sha256, known.same) == (now.sha256, owner):
                made.kept.append(path)
            else:
                made.same[path] = owner
            continue
        made.files[path] = Known(now.sha256, now.size, now.modified)
        if known and not known.same and known.sha256 == now.sha256 and _built(collection, path):
            made.kept.append(path)
        elif now.sha256 in left and not os.path.exists(memos_of(collection.name) / f"{path}.memo"):
            made.moved[path] = left.pop(now.sha256)
        else:
            if known and known.sha256 == now.sha256 and known.error:
                made.failed.append(path)
            else:
                (made.changed if known and known.sha256 != now.sha256 else made.new).append(path)
            made.bytes += now.size
    taken = {*made.moved.values()}
    made.gone = [path for path in gone if path not in taken]


def carry_out(collection: Collection, made: Plan, builds: Builds, tell: Callable[[str], None]) -> Mapping[str, str]:
    """Does what was planned, and gives the documents of which no memo could be made, with the reasons.

    tell: gets a line for each thing that was done.
    """
    if not _file(collection.name).exists():
        append(_file(collection.name), {"": [collection.folder, 0.0]})
    failed: dict[str, str] = {path: one.error for path, one in made.files.items() if one.error and not one.sha256}
    folder, memos = Path(collection.folder), memos_of(collection.name)
    for path, before in made.moved.items():
        source, target = memos / f"{before}.memo", memos / f"{path}.memo"
        private_folder(target.parent)
        os.rename(source, target)
        remember_all([target])
        _sweep(collection, source)
        collection.documents[path] = made.files[path]
        if before not in made.files:
            del collection.documents[before]
        collection.note(path, before)
        tell(f"moved    {before} -> {path}")
    forget(*(memos / f"{before}.memo" for before in made.moved.values()))
    _delete(collection, *(memos / f"{path}.memo" for path in made.gone))
    for path in made.gone:
        del collection.documents[path]
        tell(f"gone     {path}")
    collection.note(*made.gone)

    def tasks() -> Iterator[tuple[Path, Path, str]]:
        for path in made.read:
            private_folder((memos / path).parent)
            yield folder / path, memos / f"{path}.memo", made.files[path].sha256

    changed = {*made.changed}
    with closing(builds(tasks())) as built:
        for document, why in built:
            path = str(document.relative_to(folder))
            now = made.files[path]
            if why:
                failed[path] = why.removeprefix(f"{document}: ")
                _delete(collection, memos / f"{path}.memo")  # what it said before is not what it says now
                now = Known(now.sha256, now.size, now.modified, failed[path])
            collection.documents[path] = now
            collection.note(path)
            what = "failed" if why else "changed" if path in changed else "built"
            tell(f"{what:<8} {path}{': ' * bool(why)}{failed.get(path, '')}")
    for path, owner in made.same.items():
        now = made.files[path]
        _delete(collection, memos / f"{path}.memo")
        if owner in failed:
            failed[path] = failed[owner]
            now = Known(now.sha256, now.size, now.modified, failed[owner])
        collection.documents[path] = now
        tell(f"failed   {path}: {failed[path]}" if path in failed else f"same     {path} = {owner}")
    kept = [path for path in made.kept if collection.documents[path] != made.files[path]]  # touched, not changed
    collection.documents |= {path: made.files[path] for path in kept}
    _delete_strays(collection)
    collection.finish([*made.same, *kept])
    known = registry().values
    own = [memos / f"{path}.memo" for path, one in collection.documents.items() if not (one.same or one.error)]
    if lost := [memo for memo in own if str(memo) not in known]:
        remember_all(lost)
    return failed


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(os.path.basename(path), pattern)


def one_by_one(build: Callable[[Path, Path, str], object]) -> Builds:
    """Builds in this process."""

    def builds(tasks: Iterable[tuple[Path, Path, str]]) -> Generator[tuple[Path, str], None, None]:
        for document, memo, sha256 in tasks:
            try:
                build(document, memo, sha256)
                yield document, ""
            except MinimemoError as error:
                yield document, str(error) or type(error).__name__
            except MemoryError:
                yield document, "too little memory is free"

    return builds


def delete(name: str) -> int:
    """Deletes a collection's memos and all that is known of it, no document; gives the bytes that are free now."""
    folder = memos_of(name)
    with opened(Path(load(name).folder), name) as collection:
        freed = disk_bytes(folder) if folder.is_dir() else 0
        collection.documents.clear()
        _delete_strays(collection)
        with suppress(OSError):
            folder.rmdir()
        _file(name).unlink(missing_ok=True)
    for lock in (f".{name}.lock", f".{name}.table.lock"):
        (data_dir() / "collections" / lock).unlink(missing_ok=True)
    return freed


def _delete_strays(collection: Collection) -> None:
    """Deletes the memos that no document of a collection has, and what was built of documents that it does not have:
    a sync that was stopped may have known of them alone."""
    root, documents = memos_of(collection.name), collection.documents
    strays, unfinished = [], []
    for folder, names, _ in os.walk(root):
        for name in [name for name in names if re.fullmatch(r".*\.memo|\..*\.memo\.building", name, re.DOTALL)]:
            names.remove(name)  # nothing of it is looked at
            memo = Path(folder) / name.removeprefix(".").removesuffix(".building")
            known = documents.get(str(memo.relative_to(root)).removesuffix(".memo"))
            if name == memo.name:
                strays += [] if known and not (known.same or known.error) else [memo]
            elif known is None:
                unfinished.append(memo)
    for memo in unfinished:
        sweep(memo)
        _sweep(collection, memo)
    _delete(collection, *strays)


def _delete(collection: Collection, *memos: Path) -> None:
    """Deletes memos of a collection, those that are there."""
    remove_all([memo for memo in memos if os.path.exists(memo)])
    for memo in memos:
        _sweep(collection, memo)


def _sweep(collection: Collection, memo: Path) -> None:
    """Removes the folders above a memo that is not there any longer, those that are empty."""
    for parent in memo.parents:
        if parent == memos_of(collection.name) or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()


def _built(collection: Collection, path: str) -> bool:
    return os.path.isfile(os.path.join(memos_of(collection.name), f"{path}.memo", MANIFEST))


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
                    elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in ENDINGS:
                        count += 1
                        if count > MOST:
                            raise InputError(f"{folder}: has more than {MOST:,} documents; sync folders below it")
                        yield os.path.relpath(entry.path, folder), entry.stat()
        except OSError as error:
            raise InputError(f"{here}: cannot be read ({error.strerror}); nothing was forgotten") from error


def _file(name: str) -> Path:
    return data_dir() / "collections" / f"{name}.table"
