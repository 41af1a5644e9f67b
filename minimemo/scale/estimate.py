"""How long a sync will take, and how much disk: from an earlier one of the same models, or a sample of its documents.

A sample is a memo of some thousand characters, taken from a few of the documents, that is built twice and deleted: the
first time loads the models, the second is measured. Both numbers are then in proportion to the characters of the
documents, which are as many for each byte of a file as in those that were looked at, by kind of file. Long documents
take up to half as long again for each character as short ones: what is said is "about".
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minimemo.errors import MinimemoError
from minimemo.files import data_dir, disk_bytes
from minimemo.journal import Journal
from minimemo.memo.library import remove
from minimemo.readers import read_document
from minimemo.text.document import Document

DOCUMENTS, CHARACTERS = 5, 6_000  # that a sample is taken from; of it, in all
WORTH = 300_000  # bytes of documents from which on it is worth its seconds


@dataclass(frozen=True, slots=True)
class Pace:
    """What a byte of documents takes: seconds to read it, bytes of memos."""

    seconds: float
    disk: float


def known(key: Sequence[Any]) -> Pace | None:
    """The pace of the last sync of these models and settings; None: there was none."""
    row = Journal(_file()).values.get(json.dumps(key))
    return Pace(*row) if row else None


def learn(key: Sequence[Any], documents: int, seconds: float, disk: int) -> None:
    """Keeps what a sync took that read so many bytes of documents."""
    if documents >= WORTH:
        with suppress(OSError):
            Journal(_file()).write({json.dumps(key): [seconds / documents, disk / documents]})


def measured(files: Mapping[Path, int], build: Callable[[Document, Path], object]) -> Pace | None:
    """The pace of this machine for documents of these sizes, from a sample of them; None where none can be read."""
    by_size = sorted((size, path) for path, size in files.items() if size)
    some = [by_size[at * (len(by_size) - 1) // (DOCUMENTS - 1)] for at in range(DOCUMENTS)] if by_size else []
    texts, ratios = [], defaultdict[str, list[float]](list)
    for size, path in dict.fromkeys(some):
        with suppress(MinimemoError):
            text = read_document(path).text
            ratios[path.suffix.lower()].append(len(text) / size)
            start = max(0, len(text) - CHARACTERS // DOCUMENTS) // 2
            texts.append(text[start : start + CHARACTERS // DOCUMENTS])
    sample = Document.of("\n\n".join(texts), "sample.txt")
    if not sample.text.strip():
        return None
    with TemporaryDirectory(prefix="minimemo-") as folder:
        for number, document in enumerate((Document.of(sample.text[:200], "first.txt"), sample)):
            memo, begun = Path(folder) / f"{number}.memo", time.monotonic()
            build(document, memo)
            seconds, disk = time.monotonic() - begun, disk_bytes(memo)
            remove(memo)
    every = [ratio for some in ratios.values() for ratio in some]
    mean = {kind: sum(some) / len(some) for kind, some in {**ratios, "": every}.items()}
    characters = sum(size * mean.get(path.suffix.lower(), mean[""]) for path, size in files.items())
    share = characters / sum(files.values()) / len(sample.text)
    return Pace(seconds * share, disk * share)


def _file() -> Path:
    return data_dir() / "collections" / "pace"
