"""A memo's folder: what may lie in it, and the hidden folder beside it in which a memo is built.

.NAME.building/lock         held while a build runs; a kill lets go of it
              /stamp.json   what is being built
              /memo/        becomes NAME when it is whole
              /...          what else a build needs to go on after a kill

Such a folder, or a link of its name, may have come with somebody's archive or repository, and a folder given as a memo
may be anything. So a build never follows a link here, and nothing is ever deleted that no build wrote.

The exact end of a memory, which a build goes on from when its document has grown, is kept in minimemo's cache folder.
Any of these may be removed at any time: a document that grew is then read from its beginning.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.files import cache_dir, exchange, move_whole, put, write_whole
from minimemo.memo.manifest import FILES, MEMORY, NAME, Manifest, Recipe

MEMO = "memo"  # what becomes the target
TAIL, QUALITY, VECTORS = "tail", "quality.json", "vectors"  # what a build keeps to go on from
TAILS_BYTES = 1 << 30  # of all kept ends; one of a 0.5B model's is up to 50 MB, or 400 MB of a memory read whole
_LOCK, _STAMP, _NEW, _OLD = "lock", "stamp.json", "new", "old"
_WRITTEN = re.compile(r"memo|new|old|lock|tail|vectors|\.?(stamp|quality)\.json(\..*)?")
_CLUTTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*")  # what file managers leave in every folder
_SPARE = 4  # descriptors that removing the folder takes, kept for when all others are in use
_MAGIC = b"MINIMEMO"  # how every memory.bin begins


@contextmanager
def staging(target: Path, stamp: Mapping[str, Any], mode: int = 0o666) -> Iterator[Path]:
    """Gives the hidden folder; when the block ends well, its folder MEMO takes the place of `target`. mode: what may be
    done with the document, and so with the memo, unless the user's umask forbids more.

    The folder holds what a killed or interrupted build of the same stamp left. It is gone afterwards, whatever the
    block raises but KeyboardInterrupt. Raises MinimemoError when it cannot be written and while another build of the
    same target runs, InputError where the folder or the target holds what no build wrote.
    """
    folder = _folder(target)
    with ExitStack() as spare:
        for _ in range(_SPARE):
            spare.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        try:
            lock = _locked(folder, target)
        except OSError as error:
            why = f"{folder.parent}: cannot be written ({error.strerror}); name another place with `out`"
            raise MinimemoError(why) from None
        spares = spare.pop_all()
    with lock, ExitStack() as undo, spares:
        undo.callback(_clear, folder, target)
        try:
            _put_back(folder, target)
            _prepare(folder, json.dumps(stamp, sort_keys=True).encode())
            yield folder
            restrict(folder / MEMO, mode)
            _take_place(folder, target)
        except KeyboardInterrupt:
            undo.pop_all()
            raise
        except OSError as error:
            raise MinimemoError(
                f"{target}: cannot be written ({error.strerror or error}); free some space or name another place "
                "with `out`"
            ) from error


def restrict(memo: Path, mode: int) -> None:
    """Takes from a memo what `mode`, that of its document, does not allow. Raises OSError."""
    for path in (*(path for path in memo.iterdir() if not path.is_symlink()), memo):
        before = stat.S_IMODE(path.stat().st_mode)
        # A folder is entered by those who may read it.
        after = before & (mode | 0o700 | (mode & 0o444) >> 2 if path == memo else mode | 0o600)
        if after != before:
            path.chmod(after)


def _take_place(folder: Path, target: Path) -> None:
    """Renames the finished memo to `target`. A memo that stands there does until then, and stays after an error."""
    new = folder / _NEW
    shutil.rmtree(new, ignore_errors=True)
    put(folder / MEMO, new)  # written to the disk before it is seen; after a kill from here on it is not gone on from
    if target.exists():
        memo_files(target)  # once more: a build takes long enough to put notes there
        if exchange(new, target):
            return
        os.rename(target, folder / _OLD)
    try:
        put(new, target)
    finally:
        _put_back(folder, target)


def _put_back(folder: Path, target: Path) -> None:
    """Gives an old memo its place again where the new one did not come to take it."""
    if (folder / _OLD).exists() and not target.exists():
        os.rename(folder / _OLD, target)


def _clear(folder: Path, target: Path) -> None:
    """Removes the hidden folder, but not while it holds an old memo that has its place nowhere else."""
    if target.exists() or not (folder / _OLD).exists():
        shutil.rmtree(folder, ignore_errors=True)


def sweep(target: Path) -> None:
    """Removes what a killed build of `target` left, unless one is running."""
    folder = _folder(target)
    with suppress(MinimemoError, OSError):  # also where the name is too long for such a folder
        if folder.is_dir() and not folder.is_symlink():
            with _locked(folder, target):
                shutil.rmtree(folder, ignore_errors=True)


def _folder(target: Path) -> Path:
    return target.absolute().parent / f".{target.name}.building"


def _locked(folder: Path, target: Path) -> AcquireReturnProxy:
    """Makes the folder where there is none, and holds its lock; use it in a `with` statement.

    Raises MinimemoError while another build has it, InputError for a folder that no build made: a link, a folder of
    somebody else's, or one that holds other things than a build leaves.
    """
    while True:
        made = not folder.exists()
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        foreign = not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid())
        try:
            names = [] if foreign else os.listdir(folder)
        except OSError:
            if made:
                _take_away(folder)
            raise
        if foreign or not all(map(_WRITTEN.fullmatch, names)) or (folder / _LOCK).is_symlink():
            raise InputError(f"{folder}: is in the way, and no build left it; move it elsewhere first")
        try:
            lock = FileLock(folder / _LOCK, timeout=0).acquire()
        except FileNotFoundError:  # its owner finished just now
            continue
        except Timeout:
            raise MinimemoError(
                f"{target}: is being built by another process; wait for it, or name another place"
            ) from None
        except (OSError, NotImplementedError) as error:
            if made:
                _take_away(folder)
            raise MinimemoError(
                f"{folder.parent}: files cannot be locked there ({getattr(error, 'strerror', None) or error}); name "
                "another place with `out`"
            ) from None
        if (folder / _LOCK).exists():
            return lock
        lock.lock.release()


def _take_away(folder: Path) -> None:
    """Removes a folder that holds a lock at most; opens nothing, as there may be no descriptor left."""
    with suppress(OSError):
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _prepare(folder: Path, stamp: bytes) -> None:
    """Keeps what is there when it was made for the same stamp and only plain files are in it; removes it otherwise."""
    path = folder / _STAMP
    if not (_is_plain(folder) and path.is_file() and path.read_bytes() == stamp):
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.is_symlink():
                shutil.rmtree(inner)
            elif inner.name != _LOCK:
                inner.unlink()
        write_whole(path, stamp)
    (folder / MEMO).mkdir(exist_ok=True)


def _is_plain(folder: Path) -> bool:
    """Whether a folder holds, at any depth, nothing but folders and files of one name each."""
    for path in folder.iterdir():
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            if not _is_plain(path):
                return False
        elif not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return False
    return True


def memo_files(memo: Path) -> list[Path]:
    """All that lies in a memo's folder, the manifest first, memory.bin last: what may be deleted with it.

    Raises MemoError for a folder that is no memo, InputError for one that holds anything that no memo has, but for what
    file managers leave. The first bytes of memory.bin tell a memo whose manifest is damaged.
    """
    try:
        profile = Manifest.load(memo).recipe.params.get("profile")
    except MemoError:
        if not _begins_as_memory(memo / MEMORY):
            raise
        profile = None
    files = sorted(memo.iterdir(), key=lambda path: (path.name != NAME, path.name == MEMORY, path.name))
    written = {NAME, *FILES}
    if isinstance(profile, str):  # an exported memo carries it
        written |= {path.name for path in files if path.name.endswith(f"-{profile}.safetensors")}
    others = [path.name for path in files if path.name not in written and not _CLUTTER.fullmatch(path.name)]
    others += [path.name for path in files if path.name in written and path.is_dir() and not path.is_symlink()]
    if others:
        raise InputError(f"{memo}: holds {', '.join(others)}, which no memo has; move it elsewhere first")
    return files


def _begins_as_memory(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return stat.S_ISREG(path.lstat().st_mode) and file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def borrow_tail(recipe: Recipe, run: Mapping[str, Any], to: Path) -> bool:
    """Copies the end of the memory that was built by this recipe in such a run; False when it is not kept."""
    for whole in (True, False):
        try:
            shutil.copyfile(_kept_tail(recipe, run, whole), to)
            return True
        except OSError:
            to.unlink(missing_ok=True)
    return False


def keep_tail(
    file: Path, recipe: Recipe, run: Mapping[str, Any], *, whole: bool, instead_of: Recipe | None = None
) -> None:
    """Keeps the end of a memory; that of the memo which it replaces, and the oldest ones, make room. Where there is no
    file, or the cache folder cannot be written, nothing is kept. whole: each token saw all before it."""
    with suppress(OSError):
        if instead_of is not None:
            forget_tails(instead_of)
        path, left = _kept_tail(recipe, run, whole), TAILS_BYTES
        move_whole(file, path)
        for tail in sorted(path.parent.iterdir(), key=lambda tail: -tail.stat().st_mtime_ns):
            left -= tail.stat().st_size
            if left < 0:
                tail.unlink(missing_ok=True)


def kept_tails(run: Mapping[str, Any]) -> list[Path]:
    """The kept ends of all memories that were built in such a run and read whole."""
    return sorted(_kept_tail_folder().glob(f"*-{_hash(run)}-whole"))


def forget_tails(recipe: Recipe) -> None:
    """Removes the kept ends of memories of this recipe, whatever the run."""
    with suppress(OSError):
        for tail in _kept_tail_folder().glob(f"{_hash(asdict(recipe))}-*"):
            tail.unlink(missing_ok=True)


def _kept_tail(recipe: Recipe, run: Mapping[str, Any], whole: bool) -> Path:
    return _kept_tail_folder() / f"{_hash(asdict(recipe))}-{_hash(run)}{'-whole' * whole}"


def _kept_tail_folder() -> Path:
    return cache_dir() / "tails"


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
