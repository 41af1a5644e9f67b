"""Which memos were built on this machine: one small note each in minimemo's folder, forgotten when the memo is gone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from minimemo.errors import InputError
from minimemo.files import memos_dir
from minimemo.memo.folder import memo_files, sweep
from minimemo.memo.manifest import NAME


def remember(memo: Path) -> None:
    """Notes where a memo lies. A folder that cannot be written means only that `minimemo list` will not know it."""
    note = _note(memo)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{note.name}.{os.getpid()}")
        temporary.write_bytes(os.fsencode(memo.absolute()))
        os.replace(temporary, note)
    except OSError:
        return


def notes() -> list[Path]:
    """The notes, each a file that holds a memo's path; some of the memos may be gone."""
    return list(memos_dir().glob("*"))


def noted(note: Path) -> Path:
    """The memo that a note is of."""
    return Path(os.fsdecode(note.read_bytes()))


def remembered() -> list[Path]:
    """The memos that are still where they were built, by path."""
    found = []
    for note in notes():
        path = noted(note)
        if (path / NAME).is_file():
            found.append(path)
        else:
            note.unlink(missing_ok=True)
    return sorted(found)


def remove(memo: Path) -> int:
    """Deletes a memo and forgets it; the bytes that are free now. Only what a memo is made of is deleted.

    Raises MemoError when it is no memo, InputError when it is a link, holds other files, or cannot be deleted.
    """
    if memo.is_symlink():
        raise InputError(f"{memo}: is a link; name the folder that it leads to: {memo.resolve()}")
    files = memo_files(memo)  # whatever is not a memo stays
    freed = sum(path.lstat().st_size for path in files)
    try:
        for path in files:  # the manifest first: half a memo is none
            path.unlink()
        memo.rmdir()
    except OSError as error:
        raise InputError(f"{memo}: cannot be deleted ({error.strerror}); check its permissions") from None
    _note(memo).unlink(missing_ok=True)
    sweep(memo)  # a build of it that was killed
    return freed


def _note(memo: Path) -> Path:
    return memos_dir() / hashlib.sha256(os.fsencode(memo.absolute())).hexdigest()[:24]
