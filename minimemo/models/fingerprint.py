"""What a model is, as a hash: a memory made by one model must never be read by another."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minimemo.files import cache_dir, content_hash

_DECODER_FILES = ("config.json", "tokenizer.json", "model.safetensors.index.json")


def decoder_files(directory: Path) -> list[Path]:
    """The files of a decoder's directory that decide what it computes: configuration, tokenizer, weights."""
    named = [directory / name for name in _DECODER_FILES if (directory / name).exists()]
    return [*named, *sorted(directory.glob("*.safetensors"))]


def fingerprint(files: Sequence[Path], settings: str = "") -> str:
    """SHA-256 (hex) over the names and contents of `files` and over `settings`.

    Contents are hashed once: the result is remembered by path, size and time of change in minimemo's folder, where
    that can be written.
    """
    digest = hashlib.sha256(settings.encode())
    for path in files:
        digest.update(f"\n{path.name} {_file_hash(path)}".encode())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    stat = path.stat()
    identity = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    note = cache_dir() / "hashes" / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["identity"] == identity and len(known["sha256"]) == 64:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not hashed yet
    found = content_hash(path)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False, encoding="utf-8") as temporary:
            json.dump({"identity": identity, "sha256": found}, temporary)
        os.replace(temporary.name, note)
    except OSError:
        pass  # a folder that cannot be written costs a second a run, no more
    return found
