"""minimemo's folders, writes that are whole or absent, hashes, numbers of bytes in words. Nothing happens at import."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from minimemo.errors import InputError

_UNITS = {"G": 1e9, "M": 1e6, "k": 1e3}
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMmGg]?)[Bb]?", re.ASCII)


def home() -> Path:
    """minimemo's folder: `$MINIMEMO_HOME`, or `minimemo` in the user's cache folder as the platform names it.

    Linux and other Unixes follow the XDG base directory rule: a relative `$XDG_CACHE_HOME` does not count.
    Raises InputError when the user has no home folder and `$MINIMEMO_HOME` is not set.
    """
    chosen = os.environ.get("MINIMEMO_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        return _user_cache() / "minimemo"
    except RuntimeError as error:  # pathlib knows no home folder
        raise InputError("MINIMEMO_HOME: no home folder is known; set it to a folder for the models") from error


def models_dir() -> Path:
    """The folder that holds one folder for each pulled model."""
    return home() / "models"


def model_dir(name: str) -> Path:
    """The folder of one model: a catalogue name, or a hub's `owner/name` (one flat level: `owner--name`)."""
    return models_dir() / name.replace("/", "--")


def profiles_dir() -> Path:
    """The folder of the transform codec's profiles."""
    return home() / "profiles"


def _user_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"


def put(source: Path, target: Path) -> None:
    """Gives a file or a folder the name `target`, which no folder has yet. Raises OSError."""
    _sync(source)
    os.replace(source, target)
    _sync_folder(target.absolute().parent)


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
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


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
