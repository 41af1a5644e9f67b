"""The hidden folder beside a memo in which it is built: taken over after a kill, gone when the build ends otherwise.

.NAME.building/lock         held while a build runs; a kill lets go of it
              /stamp.json   what is being built
              /memo/        becomes NAME when it is whole
              /...          what else a build needs to go on after a kill
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from minimemo.durable import put
from minimemo.errors import InputError

MEMO = "memo"  # what becomes the target
_LOCK, _STAMP, _OLD = "lock", "stamp.json", "old"


@contextmanager
def scratch(target: Path, stamp: Mapping[str, Any]) -> Iterator[Path]:
    """Gives the hidden folder; when the block ends well, its folder MEMO takes the place of `target`.

    Finds what a killed build of the same stamp left in it. Whatever the block raises, the folder is gone afterwards.
    Raises InputError when it cannot be written, or while another build of the same target runs.
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
    if folder.is_dir():
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
        folder.mkdir(exist_ok=True)
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


def _prepare(folder: Path, stamp: bytes) -> None:
    """Keeps what is there when it was made for the same stamp, and removes it otherwise."""
    path = folder / _STAMP
    if not (path.is_file() and path.read_bytes() == stamp):
        for found in folder.iterdir():
            if found.is_dir():
                shutil.rmtree(found)
            elif found.name != _LOCK:
                found.unlink()
        part = folder / f"{_STAMP}.part"
        part.write_bytes(stamp)
        os.replace(part, path)
    (folder / MEMO).mkdir(exist_ok=True)
