"""What a model is, as a hash: a memory made by one model must never be read by another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from minimemo.files import remembered_hash

_DECODER_FILES = ("config.json", "tokenizer.json", "model.safetensors.index.json")


def decoder_files(directory: Path) -> list[Path]:
    """Lists the files of a decoder's directory that decide what it computes: configuration, tokenizer, weights."""
    named = [directory / name for name in _DECODER_FILES if (directory / name).exists()]
    return [*named, *sorted(directory.glob("*.safetensors"))]


def fingerprint(files: Sequence[Path], settings: str = "") -> str:
    """SHA-256 (hex) over the names and contents of `files` and over `settings`."""
    digest = hashlib.sha256(settings.encode())
    for path in files:
        digest.update(f"\n{path.name} {remembered_hash(path)}".encode())
    return digest.hexdigest()
