"""Which memos were built on this machine: one small note each in minimemo's folder, forgotten when the memo is gone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from minimemo.manifest import NAME
from minimemo.models.cachedir import home


def remember(memo: Path) -> None:
    """Notes where a memo lies. A folder that cannot be written means only that `minimemo list` will not know it."""
    path = str(memo.absolute())
    note = home() / "memos" / hashlib.sha256(path.encode()).hexdigest()[:24]
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{note.name}.{os.getpid()}")
        temporary.write_text(path, encoding="utf-8")
        os.replace(temporary, note)
    except OSError:
        return


def remembered() -> list[Path]:
    """The memos that are still where they were built, by path."""
    found = []
    for note in (home() / "memos").glob("*"):
        path = Path(note.read_text(encoding="utf-8"))
        if (path / NAME).is_file():
            found.append(path)
        else:
            note.unlink(missing_ok=True)
    return sorted(found)
