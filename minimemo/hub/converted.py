"""A .gguf file as the directory that it is converted to, once."""

from __future__ import annotations

import glob
import hashlib
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from minimemo.errors import InputError, ModelError
from minimemo.events import Listener, silent
from minimemo.files import cache_dir, put
from minimemo.hub.gguf import convert

_VERSION = 1  # of the converted form: raise it and every file is converted again


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
    identity = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{_VERSION}"
    target = cache_dir() / "converted" / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                prefix = f".converting-{target.name}-"
                for stale in target.parent.glob(f"{glob.escape(prefix)}*"):
                    shutil.rmtree(stale, ignore_errors=True)  # of a conversion that was killed
                with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as scratch:
                    out = Path(scratch) / "out"
                    out.mkdir()
                    convert(path, out, on_event)
                    put(out, target)
    except (OSError, SafetensorError) as error:  # the latter: that library's own, of a full disk too
        free = shutil.disk_usage(cache_dir().anchor).free / 1e9
        raise ModelError(
            f"{target}: cannot be written ({getattr(error, 'strerror', None) or error}; {free:.1f} GB free); "
            "make room, or set MINIMEMO_HOME to another folder"
        ) from error
    return target
