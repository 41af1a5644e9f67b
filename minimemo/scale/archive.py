"""A memo as one file: a zip archive whose members are stored as they are, with the profile that the memo needs."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.memo.folder import memo_files
from minimemo.memo.library import export
from minimemo.memo.memo import open_memo
from minimemo.memo.registry import remember

MOST = 16  # members; a memo has six at most
_STAMP = (1980, 1, 1, 0, 0, 0)  # of each member, so that one memo gives one archive


def pack(memo: Path, out: Path) -> Path:
    """Writes a memo into the archive `out`, which must not exist yet: whole or not at all. Raises like `export`."""
    if out.exists():
        raise InputError(f"{out}: exists; name a place where nothing is")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
            copy = export(memo, Path(scratch) / "memo")
            archive = Path(scratch) / "zip"
            archive.touch(0o600)
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as writer:
                for path in memo_files(copy):
                    info = zipfile.ZipInfo(path.name, _STAMP)
                    with path.open("rb") as file, writer.open(info, "w", force_zip64=True) as member:
                        shutil.copyfileobj(file, member, 1 << 20)
            archive.chmod((copy / "manifest.json").stat().st_mode & 0o666)
            os.rename(archive, out)
    except OSError as error:
        raise MinimemoError(f"{out}: cannot be written ({error.strerror or error}); name another place") from error
    return out


def unpack(archive: Path, out: Path) -> Path:
    """Makes a memo, whole or not at all, of an archive that `pack` wrote, checks every byte of it and notes it.

    An archive may be a stranger's: only stored members with plain names are taken, and no more bytes than the archive
    has. Raises InputError for an `out` that exists, MemoError for what is no such archive or damaged, MinimemoError
    when the memo cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists; name a place where nothing is")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
            memo = Path(scratch) / "memo"
            memo.mkdir()
            with zipfile.ZipFile(archive) as reader:
                _check(archive, reader.infolist())
                for info in reader.infolist():
                    with reader.open(info) as member, (memo / info.filename).open("xb") as file:
                        shutil.copyfileobj(member, file, 1 << 20)
            memo_files(memo)  # nothing that no memo has
            open_memo(memo).verify()
            os.rename(memo, out)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise MemoError(f"{archive}: damaged, or no archive of a memo ({error}); export it again") from error
    except OSError as error:
        where = out if archive.is_file() else archive
        raise MinimemoError(f"{where}: cannot be imported ({error.strerror or error})") from error
    remember(out)
    return out


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [info.filename for info in members]
    plain = all(name == PurePosixPath(name).name and "\\" not in name and "\0" not in name for name in names)
    stored = all(info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 for info in members)
    fits = sum(info.file_size for info in members) <= archive.stat().st_size
    if not (plain and stored and fits and len(members) <= MOST and len({*names}) == len(names)):
        raise MemoError(f"{archive}: is no archive of a memo; minimemo export MEMO FILE.zip makes one")
