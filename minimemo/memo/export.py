"""A memo as a folder that opens anywhere: with it goes the profile of the model, which memos of a machine share."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from minimemo.errors import InputError
from minimemo.files import profiles_dir
from minimemo.memo import manifest as names
from minimemo.memo.memo import open_memo


def export(memo: str | Path, out: str | Path) -> Path:
    """Copies a memo, whole or not at all, to the folder `out`, which must not exist yet.

    Raises MemoError for what is no memo or damaged, InputError when `out` cannot be made.
    """
    from minimemo.memory.profile import profile_file

    source, target = Path(memo), Path(out)
    opened = open_memo(source)
    opened.verify()
    files = [source / name for name in (names.NAME, names.MEMORY, names.INDEX, names.CHUNKS)]
    profile = opened.manifest.recipe.params.get("profile")
    if profile is not None:
        files.append(profile_file(profile, profiles_dir(), source))
    if target.exists():
        raise InputError(f"{target}: exists; name a place where nothing is")
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
        try:
            for file in files:
                shutil.copyfile(file, scratch / file.name)
            scratch.chmod(0o755)
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error}); name another place") from error
    return target
