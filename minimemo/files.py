"""minimemo's folders, writes that are whole or absent, hashes, numbers of bytes in words. Nothing happens at import."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minimemo.errors import InputError

_UNITS = {"G": 1e9, "M": 1e6, "k": 1e3}
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMmGg]?)[Bb]?", re.ASCII)


def cache_dir() -> Path:
    """minimemo's folder for what can be had again: models, weights in other forms, hashes, exact ends of memories.

    `$MINIMEMO_HOME`, or `minimemo` in the user's cache folder as the platform names it. Linux and other Unixes follow
    the XDG base directory rule: a relative `$XDG_CACHE_HOME` does not count.
    Raises InputError when the user has no home folder and `$MINIMEMO_HOME` is not set.
    """
    return _minimemo_folder("XDG_CACHE_HOME", ".cache", "Library/Caches")


def data_dir() -> Path:
    """minimemo's folder for what only work makes again: profiles of models, the list of memos, the store's index.

    `$MINIMEMO_HOME`, or `minimemo` in the user's data folder as the platform names it. Raises InputError like
    `cache_dir`.
    """
    return _minimemo_folder("XDG_DATA_HOME", ".local/share", "Library/Application Support")


def _minimemo_folder(xdg: str, unix: str, mac: str) -> Path:
    try:
        if chosen := os.environ.get("MINIMEMO_HOME"):
            return whole_path(Path(chosen).expanduser())
        if sys.platform == "darwin":
            return Path.home() / mac / "minimemo"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "minimemo"
        named = os.environ.get(xdg, "")
        return (Path(named) if os.path.isabs(named) else Path.home() / unix) / "minimemo"
    except RuntimeError as error:  # pathlib knows no home folder
        raise InputError("MINIMEMO_HOME: no home folder is known; set it to a folder for the models") from error


def whole_path(path: Path) -> Path:
    """A path from the root and without `..`, by which what is kept of a file or folder is found: with `..` it would be
    another one wherever it is said. Links stay, but where `..` stands behind them."""
    path = path.absolute()
    if ".." not in path.parts:
        return path
    return Path(os.path.realpath(path)) if path.name == ".." else Path(os.path.realpath(path.parent)) / path.name


def models_dir() -> Path:
    """The folder that holds one folder for each pulled model."""
    return cache_dir() / "models"


def model_dir(name: str) -> Path:
    """The folder of one model: a catalogue name, or a hub's `owner/name` (one flat level: `owner--name`)."""
    return models_dir() / name.replace("/", "--")


def profiles_dir() -> Path:
    """The folder of the transform codec's profiles."""
    return _data("profiles")


def memos_dir() -> Path:
    """The folder of the list of memos: a small file for each."""
    return _data("memos")


def store_file() -> Path:
    """The index over the passages of all memos."""
    return _data("store.bin")


def words_file() -> Path:
    """The index of the words of all memos."""
    return data_dir() / "words.bin"


def _data(name: str) -> Path:
    """A place in the data folder. What an earlier version put under this name into the cache folder is moved there, and
    used where it is if it cannot be moved."""
    new, old = data_dir() / name, cache_dir() / name
    if new == old or not old.exists():
        return new
    try:
        private_folder(new.parent)
        for source in list(old.iterdir()) if old.is_dir() else [old]:
            target = new / source.name if old.is_dir() else new
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                part = target.with_name(f".{target.name}.{os.getpid()}.part")
                shutil.copyfile(source, part)  # perhaps to another file system
                os.replace(part, target)
            source.unlink()
        if old.is_dir():
            old.rmdir()
    except FileNotFoundError:  # another process moved it just now
        return new
    except OSError:
        return new if new.exists() and not old.exists() else old
    return new


def private_folder(path: Path) -> None:
    """Makes a folder, and those above it that are missing, for this user alone. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)


def write_whole(path: Path, content: bytes, private: bool = False) -> None:
    """Writes a file that is whole or absent, readers never see a part of it; makes its folder. private: for this user
    alone. Raises OSError.

    What a killed process left of the same file is removed. After a power cut an earlier content may be back: see `put`.
    """
    with arriving(path) as part:
        part.touch(0o600 if private else 0o666)
        part.write_bytes(content)


def move_whole(source: Path, target: Path) -> None:
    """Gives a file another place, perhaps on another file system, where it is for this user alone, and whole or absent
    like what `write_whole` writes. Raises OSError."""
    with arriving(target) as part:
        source.chmod(0o600)
        shutil.move(source, part)


@contextmanager
def arriving(path: Path) -> Iterator[Path]:
    """Names a file beside `path` that takes its name when the block ends well."""
    private_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if not is_running(stale.name.rsplit(".", 2)[1].split("-")[0]):
            stale.unlink(missing_ok=True)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_running(pid: str) -> bool:
    """Whether a process of that number runs; True where the system cannot be asked."""
    try:
        if os.name == "posix":
            os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def put(source: Path, target: Path) -> None:
    """Gives a file or a folder the name `target`, which no folder has yet. Raises OSError."""
    _sync(source)
    os.replace(source, target)
    _sync_folder(target.absolute().parent)


def exchange(one: Path, two: Path) -> bool:
    """Lets two folders of one file system change places in one step: neither name is ever without a folder.

    False where that cannot be done: only Linux has renameat2(2), and not all of its file systems.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc has it, musl does not
    here, both_ways = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename is None or rename(here, os.fsencode(one), here, os.fsencode(two), both_ways):
        return False
    _sync_folder(one.absolute().parent)
    _sync_folder(two.absolute().parent)
    return True


def _sync(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir():
        for inner in path.iterdir():
            _sync(inner)
        _sync_folder(path)
    else:
        _sync_file(path)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # Windows opens no folders, some network file systems sync none
        _sync_file(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def content_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(content: bytes | str) -> Any:
    """JSON that others wrote. Raises ValueError for what is none, and for what is nested too deeply to be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def remembered_hash(path: Path) -> str:
    """SHA-256 (hex) of a large file, hashed once: a note in the cache folder, by path, size and time of change, says it
    from then on, where that folder can be written. The time is that of the last change to the file, which nobody sets:
    copies and backups keep the one of its content."""
    stat = path.stat()
    identity = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0{stat.st_ino}"
    note = cache_dir() / "hashes" / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # not hashed yet
        fields = parse_json(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if fields["identity"] == identity and len(fields["sha256"]) == 64:
            return str(fields["sha256"])
    content = content_hash(path)
    with suppress(OSError):  # a folder that cannot be written costs a second a run, no more
        write_whole(note, json.dumps({"identity": identity, "sha256": content}).encode())
    return content


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return _bytes_in(str(path))


def _bytes_in(folder: str) -> int:
    with os.scandir(folder) as entries:
        return sum(
            _bytes_in(one.path) if one.is_dir(follow_symlinks=False) else one.stat(follow_symlinks=False).st_size
            for one in entries
        )


def size(count: float) -> str:
    """For people: 20.4 MB."""
    for unit, scale in _UNITS.items():
        if count >= scale:
            return f"{count / scale:.1f} {unit}B"
    return f"{count:.0f} B"


def parse_size(text: str) -> int:
    """Bytes of 20MB, 500kB, 1.5GB or a plain number. Raises InputError for anything else, and for less than a byte."""
    written = _WRITTEN.fullmatch(text.strip())
    scales = {"": 1.0, **{unit.lower(): scale for unit, scale in _UNITS.items()}}
    count = round(float(written[1]) * scales[written[2].lower()]) if written else 0
    if count < 1:
        raise InputError(f"size {text!r}: write it like 20MB, 500kB, 1.5GB or 300000")
    return count
