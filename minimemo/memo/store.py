"""The store: all memos that were built on this machine, asked as one. An index of their passages picks the documents.

The index, store.bin in minimemo's folder, holds the vectors of all memos, behind a table that says whose they are. It
is a copy: what is new or changed is read from the memos, and an index that is damaged or gone is made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minimemo.ask import (
    DEFAULTS,
    PROMPTS,
    Answer,
    Found,
    Language,
    Mode,
    Piece,
    Prompts,
    Settings,
    checked_question,
)
from minimemo.ask.endpoint import Endpoint
from minimemo.errors import InputError, MemoError
from minimemo.events import Event, Listener, silent
from minimemo.files import store_file
from minimemo.memo.asking import Collection
from minimemo.memo.manifest import INDEX, NAME, Manifest
from minimemo.memo.memo import Memo
from minimemo.memo.shelf import noted, notes
from minimemo.runtime import (
    DEFAULT_OPTIONS,
    LanguageModel,
    LocatedModel,
    OpenEmbedder,
    RunOptions,
    Runtime,
    locate_model,
    open_embedder,
)

PICKED = 4  # documents that a question is put to: each brings the passages that it is searched for

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Entry:
    """A memo in the index. note: its name on the shelf; stamp: of its manifest when it was read."""

    note: str
    path: str
    stamp: int
    model: str  # fingerprints
    embedder: str
    rows: int  # passages
    dim: int


class StoreIndex:
    """The vectors of every memo on the shelf. Opening it costs one look at each memo's manifest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _load(path)
        before = [entry for entry, _ in self._known]
        self._refresh()
        if self.entries != before:
            self._save()

    @property
    def entries(self) -> list[Entry]:
        return [entry for entry, _ in self._known]

    def pick(self, query: Vectors, model: str, embedder: str, limit: int) -> list[Path]:
        """The memos of these models (fingerprints) whose best passages are nearest to `query` (d,), nearest first."""
        best = [
            (-float((vectors @ query).max()), entry.path)
            for entry, vectors in self._known
            if entry.rows and (entry.model, entry.embedder) == (model, embedder)
        ]
        return [Path(path) for _, path in sorted(best)[:limit]]

    def _refresh(self) -> None:
        """Reads what is new or changed and forgets what is gone; a memo that cannot be read is left out."""
        known = {entry.note: (entry, vectors) for entry, vectors in self._known}
        self._known = []
        for note in sorted(notes(), key=lambda note: note.name):
            try:
                path = known[note.name][0].path if note.name in known else str(noted(note))
                stamp = os.stat(os.path.join(path, NAME)).st_mtime_ns
                if note.name not in known or known[note.name][0].stamp != stamp:
                    known[note.name] = _read(note.name, Path(path), stamp)
            except (OSError, MemoError):
                continue
            self._known.append(known[note.name])

    def _save(self) -> None:
        """A folder that cannot be written means only that the memos are read again next time."""
        table = json.dumps([asdict(entry) for entry in self.entries]).encode()
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(len(table).to_bytes(8, "little") + table + bytes(-len(table) % 8))
                for _, vectors in self._known:
                    file.write(vectors.tobytes())
            os.replace(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)


def _load(path: Path) -> list[tuple[Entry, Vectors]]:
    """What `_save` wrote, mapped; nothing when it is not that."""
    try:
        whole = np.asarray(np.memmap(path, np.uint8, "r"))
        length = int.from_bytes(whole[:8].tobytes(), "little")
        entries = [Entry(**row) for row in json.loads(whole[8 : 8 + length].tobytes())]
        numbers = whole[8 + length + -length % 8 :].view(np.float32)
        ends = np.cumsum([0, *(entry.rows * entry.dim for entry in entries)])
        if ends[-1] != len(numbers):
            return []
        return [(e, numbers[a:b].reshape(e.rows, e.dim)) for e, a, b in zip(entries, ends[:-1], ends[1:], strict=True)]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _read(note: str, path: Path, stamp: int) -> tuple[Entry, Vectors]:
    from minimemo.search.index import VectorIndex

    manifest = Manifest.load(path)
    vectors = VectorIndex.open(path / INDEX).vectors()
    found = Entry(note, str(path), stamp, manifest.model.fingerprint, manifest.embedder.fingerprint, *vectors.shape)
    return found, vectors


class Store:
    """Every memo on the shelf that was built with these models. `picked`: how many documents a question is put to."""

    def __init__(self, runtime: Runtime, picked: int = PICKED) -> None:
        self._runtime = runtime
        self._picked = picked
        self._index: StoreIndex | None = None
        self._asked: Collection | None = None

    def prepare(self) -> None:
        """Loads the embedder and looks at the memos now rather than at the first question."""
        self._models()

    def stream(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Iterator[Found | Piece | Answer]:
        """As `Memo.stream`, from the documents that are picked for the question."""
        return self._collection(question).stream(question, mode, max_tokens)

    def ask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """As `Memo.ask`, from the documents that are picked for the question."""
        return self._collection(question).ask(question, mode, max_tokens)

    def pick(self, question: str) -> Sequence[Memo]:
        """The memos to ask, nearest first. Raises InputError when there is none of these models."""
        question = checked_question(question)
        located, embedder, index = self._models()
        models = located.fingerprint, embedder.fingerprint
        (query,) = embedder.embedder.embed_queries([question])
        paths = index.pick(query, *models, self._picked)
        others = sum((entry.model, entry.embedder) != models for entry in index.entries)
        if not paths:
            hint = f", but {others} of others: name theirs with --model and --embedder" if others else ""
            raise InputError(
                f"no memo of {located.source} and {embedder.source} to ask{hint}; make one: minimemo build DOCUMENT"
            )
        if others:
            told = f"{others} memos of other models are not asked: name theirs with --model and --embedder"
            self._runtime.on_event(Event(told, 1, 1, "note"))
        return [Memo.of(path, self._runtime) for path in paths]

    def _collection(self, question: str) -> Collection:
        """The documents that are picked for a question; those of the last one as they are, when they are the same."""
        picked = self.pick(question)
        known = [(memo.folder, memo.manifest) for memo in self._asked.memos] if self._asked else []
        if self._asked is None or known != [(memo.folder, memo.manifest) for memo in picked]:
            self._asked = Collection(picked)
        return self._asked

    def _models(self) -> tuple[LocatedModel, OpenEmbedder, StoreIndex]:
        runtime = self._runtime
        if self._index is None:
            self._index = StoreIndex(store_file())
        if not isinstance(runtime.embedder, OpenEmbedder):
            runtime.embedder = open_embedder(runtime.embedder, runtime.on_event)
        named = runtime.model
        located = named.located if isinstance(named, LanguageModel) else locate_model(named, runtime.on_event)
        return located, runtime.embedder, self._index


def open_store(
    *,
    model: LanguageModel | str | Path | None = None,
    embedder: OpenEmbedder | str | Path | None = None,
    prompts: Mapping[Language, Prompts] = PROMPTS,
    settings: Settings = DEFAULTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
    picked: int = PICKED,
    generator: Endpoint | LanguageModel | str | Path | None = None,
) -> Store:
    """The store of these models (None: the defaults); the other arguments are those of `open_memo`."""
    return Store(Runtime(model, embedder, prompts, settings, options, on_event, generator), picked)
