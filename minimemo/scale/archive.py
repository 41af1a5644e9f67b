"""A memo as one file: a zip archive whose members are stored as they are, with the profile that the memo needs."""

from __future__ import annotations

import shutil
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from minimemo.errors import MemoError, MinimemoError
from minimemo.memo.folder import memo_files
from minimemo.memo.library import fresh, portable_files
from minimemo.memo.manifest import NAME
from minimemo.memo.memo import open_memo
from minimemo.memo.registry import remember
from minimemo.scale.sealed import Sealer, is_sealed, unseal

MOST = 16  # members; a memo has six at most
_STAMP = (1980, 1, 1, 0, 0, 0)  # of each member, so that one memo gives one archive


def pack(memo: Path, out: Path, passphrase: str | None = None) -> Path:
    """Writes a memo into the archive `out`, which must not exist yet: whole or not at all; under a passphrase, where
    one is given, nothing of it is on the disk in clear (sealed.py). Raises like `export`."""
    files = portable_files(memo)
    with fresh(out) as archive:
        archive.touch(0o600)
        with archive.open("wb") as file:
            if passphrase is None:
                _write(files, file)
            else:
                sealer = Sealer(file, passphrase)
                _write(files, cast(IO[bytes], sealer))
                sealer.close()
        archive.chmod(files[0].stat().st_mode & 0o666)
    return out


def _write(files: Sequence[Path], out: IO[bytes]) -> None:
    """Writes files into an archive, as they are and in an order that is always the same."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as writer:
        for path in sorted(files, key=lambda path: (path.name != NAME, path.name)):
            with (
                path.open("rb") as file,
                writer.open(zipfile.ZipInfo(path.name, _STAMP), "w", force_zip64=True) as member,
            ):
                shutil.copyfileobj(file, member, 1 << 20)


def unpack(archive: Path, out: Path, passphrase: str | None = None) -> Path:
    """Makes a memo, whole or not at all, of an archive that `pack` wrote, checks every byte of it and notes it.
    passphrase: of a sealed one.

    An archive may be a stranger's: only stored members with plain names are taken, and no more bytes than the archive
    has. Raises InputError for an `out` that exists, MemoError for what is no such archive or damaged, MinimemoError
    when the memo cannot be written.
    """
    if not archive.is_file():
        raise MinimemoError(f"{archive}: no such file")
    if not (is_sealed(archive) or zipfile.is_zipfile(archive)):
        raise MemoError(f"{archive}: damaged, or no archive of a memo; minimemo export MEMO FILE.zip makes one")
    try:
        with arriving(out) as memo, _opened(archive, memo.parent, passphrase) as reader:
            _check(archive, reader.infolist())
            for info in reader.infolist():
                with reader.open(info) as member, (memo / info.filename).open("xb") as file:
                    shutil.copyfileobj(member, file, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise MemoError(f"{archive}: damaged, or no archive of a memo ({error}); export it again") from error
    return out


@contextmanager
def _opened(archive: Path, scratch: Path, passphrase: str | None) -> Iterator[zipfile.ZipFile]:
    """The archive; a sealed one is unsealed into `scratch` first."""
    if is_sealed(archive):
        clear = scratch / "zip"
        clear.touch(0o600)
        with clear.open("wb") as file:
            unseal(archive, passphrase or "", file)
        archive = clear
    with zipfile.ZipFile(archive) as reader:
        yield reader


@contextmanager
def arriving(out: Path) -> Iterator[Path]:
    """Gives an empty folder for a memo's files; when the block ends well, they are checked, get the name `out` and are
    noted. Raises InputError for an `out` that exists, MemoError for what is no whole memo, MinimemoError when it cannot
    be written."""
    with fresh(out) as memo:
        memo.mkdir()
        yield memo
        memo_files(memo)  # nothing that no memo has
        open_memo(memo).verify()
    remember(out)


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [info.filename for info in members]
    plain = all(name == PurePosixPath(name).name and "\\" not in name and name.isprintable() for name in names)
    stored = all(info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 for info in members)
    fits = sum(info.file_size for info in members) <= archive.stat().st_size
    if not (plain and stored and fits and len(members) <= MOST and len({*names}) == len(names)):
        raise MemoError(f"{archive}: is no archive of a memo; minimemo export MEMO FILE.zip makes one")
