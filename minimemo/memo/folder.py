"""The hidden folder beside a memo in which it is built: taken over after a kill, gone when the build ends otherwise.

.NAME.building/lock         held while a build runs; a kill lets go of it
              /stamp.json   what is being built
              /memo/        becomes NAME when it is whole
              /...          what else a build needs to go on after a kill

Such a folder, or a link of its name, may have come with somebody's archive or repository, and a folder given as a memo
may be anything. So a build never follows a link here, and nothing is ever deleted that no build wrote.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from minimemo.errors import InputError, MemoError
from minimemo.files import put
from minimemo.memo.manifest import CHUNKS, INDEX, MEMORY, NAME, Manifest

MEMO = "memo"  # what becomes the target
TAIL, QUALITY, VECTORS = "tail", "quality.json", "vectors"  # what a build keeps to go on from
_LOCK, _STAMP, _OLD = "lock", "stamp.json", "old"
_WRITTEN = {MEMO, TAIL, QUALITY, VECTORS, _LOCK, _STAMP, _OLD, f"{QUALITY}.part", f"{_STAMP}.part"}
_CLUTTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*")  # what file managers leave in every folder
_MAGIC = b"MINIMEMO"  # how every memory.bin begins


@contextmanager
def scratch(target: Path, stamp: Mapping[str, Any]) -> Iterator[Path]:
    """Gives the hidden folder; when the block ends well, its folder MEMO takes the place of `target`.

    Finds what a killed build of the same stamp left in it. Whatever the block raises, the folder is gone afterwards.
    Raises InputError when it cannot be written, while another build of the same target runs, and where the folder or
    the target holds what no build wrote.
    """
    folder = _folder(target)
    try:
        held = _locked(folder, target)
    except OSError as error:
        raise InputError(f"{folder.parent}: cannot be written ({error.strerror}); name another place with -o") from None
    with held:
        try:
            _put_back(folder, target)
            _prepare(folder, json.dumps(stamp, sort_keys=True).encode())
            yield folder
            try:
                if target.exists():
                    memo_files(target)  # once more: a build takes long enough to put notes there
                    os.rename(target, folder / _OLD)
                put(folder / MEMO, target)
            finally:
                _put_back(folder, target)
        except OSError as error:
            raise InputError(
                f"{target}: cannot be written ({error.strerror or error}); free some space or name another place "
                "with -o"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _put_back(folder: Path, target: Path) -> None:
    """Undoes the first of the two renames above where the second did not come to pass."""
    if (folder / _OLD).exists() and not target.exists():
        os.rename(folder / _OLD, target)


def sweep(target: Path) -> None:
    """Removes what a killed build of `target` left, unless one is running."""
    folder = _folder(target)
    if folder.is_dir() and not folder.is_symlink():
        try:
            with _locked(folder, target):
                shutil.rmtree(folder, ignore_errors=True)
        except (InputError, OSError):
            return


def _folder(target: Path) -> Path:
    return target.absolute().parent / f".{target.name}.building"


def _locked(folder: Path, target: Path) -> AcquireReturnProxy:
    """Use it in a `with` statement."""
    while True:
        _check_own(folder)
        try:
            held = FileLock(folder / _LOCK, timeout=0).acquire()
        except FileNotFoundError:  # its owner finished just now
            continue
        except Timeout:
            raise InputError(
                f"{target}: is being built by another process; wait for it, or name another place"
            ) from None
        if (folder / _LOCK).exists():
            return held
        held.lock.release()


def _check_own(folder: Path) -> None:
    """Makes the folder where there is none. Raises InputError for one that no build made: a link, a folder of somebody
    else's, or one that holds other things than a build leaves."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    others = not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid())
    if others or {path.name for path in folder.iterdir()} - _WRITTEN or (folder / _LOCK).is_symlink():
        raise InputError(f"{folder}: is in the way, and no build left it; move it elsewhere first")


def _prepare(folder: Path, stamp: bytes) -> None:
    """Keeps what is there when it was made for the same stamp and only plain files are in it; removes it otherwise."""
    path = folder / _STAMP
    if not (_is_plain(folder) and path.is_file() and path.read_bytes() == stamp):
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.is_symlink():
                shutil.rmtree(inner)
            elif inner.name != _LOCK:
                inner.unlink()
        part = folder / f"{_STAMP}.part"
        part.write_bytes(stamp)
        os.replace(part, path)
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
    """All that lies in a memo's folder, the manifest first: what may be deleted with it.

    Raises MemoError for a folder that is no memo, InputError for one that holds anything that no memo has, but for what
    file managers leave. A memo whose manifest is damaged is known by the first bytes of memory.bin.
    """
    try:
        profile = Manifest.load(memo).recipe.params.get("profile")
    except MemoError:
        if not _begins_as_memory(memo / MEMORY):
            raise
        profile = None
    files = sorted(memo.iterdir(), key=lambda path: (path.name != NAME, path.name))
    written = {NAME, MEMORY, INDEX, CHUNKS}
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
