"""All memos on this machine: noted when they are built, listed, copied, deleted, and asked as one, the store.

Of the store's memos, an index of their passages picks those that a question is put to. It holds the vectors of all
memos, behind a table that says whose they are. It is a copy: what is new or changed is read from the memos, and an
index that is damaged or gone is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from minimemo.ask import PROMPTS, Answer, Conversation, Found, Language, Mode, Piece, Prompts, checked_question
from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.events import Event, Listener, silent
from minimemo.files import cache_dir, data_dir, memos_dir, profiles_dir, store_file, write_whole
from minimemo.memo.folder import forget_tails, memo_files, restrict, sweep
from minimemo.memo.manifest import INDEX, NAME, Manifest
from minimemo.memo.memo import Generator, Memo, open_memo, together
from minimemo.runtime import DEFAULT_OPTIONS, LanguageModel, LocatedModel, OpenEmbedder, RunOptions, Runtime

PICKED = 4  # documents that a question is put to: each brings the passages that it is searched for

Vectors = npt.NDArray[np.float32]

_NOTE = re.compile(r"[0-9a-f]{24}")
# The index: magic, CRC-32C of all that follows it, length of the table.
_HEAD, _COVERED, _MAGIC = struct.Struct("<4sIQ"), 8, b"MMST"


# -- the list: one small file for each memo, which holds its path ------------------------------------------------------


def remember(memo: Path) -> None:
    """Notes where a memo lies. A folder that cannot be written means only that `minimemo list` will not know it."""
    with suppress(OSError):
        write_whole(_note(memo), os.fsencode(memo.absolute()), private=True)


def notes() -> list[Path]:
    """The files of the list, by name; some of the memos may be gone. Anything else that lies among them is left out."""
    folder = memos_dir()
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if _NOTE.fullmatch(entry.name) and entry.is_file())


def noted(note: Path) -> Path:
    """The memo that a note is of. Raises MemoError for what names no place."""
    name = note.read_bytes()
    if not name or b"\0" in name or not os.path.isabs(name):
        raise MemoError(f"{note}: names no memo; remove it")
    return Path(os.fsdecode(name))


def remembered() -> list[Path]:
    """The memos that are still where they were built, by path; the notes of others are removed."""
    memos = []
    for note in notes():
        with suppress(OSError, MemoError):
            if (noted(note) / NAME).is_file():
                memos.append(noted(note))
                continue
            note.unlink(missing_ok=True)
    return sorted(memos)


def _note(memo: Path) -> Path:
    return memos_dir() / hashlib.sha256(os.fsencode(memo.absolute())).hexdigest()[:24]


def disk_usage() -> dict[str, int]:
    """Bytes by what they are for: "memos", wherever they lie, and everything in minimemo's folders by its place."""
    usage = {"memos": sum(map(disk_bytes, remembered()))}
    for folder in {cache_dir(), data_dir()}:
        if folder.is_dir():
            usage |= {str(path): disk_bytes(path) for path in sorted(folder.iterdir())}
    return usage


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(map(disk_bytes, path.iterdir()))


# -- copying and deleting ----------------------------------------------------------------------------------------------


def export(memo: str | Path, out: str | Path) -> Path:
    """Copies a memo, whole or not at all, to the folder `out`, which must not exist yet. With it goes the profile of
    the model, which memos of a machine share: the copy opens anywhere.

    Raises MemoError for what is no memo or damaged, InputError for an `out` that exists, MinimemoError when it
    cannot be written.
    """
    from minimemo.memory.profile import profile_file

    source, target = Path(memo), Path(out)
    opened = open_memo(source)
    opened.verify()
    files = [source / name for name in (NAME, *opened.manifest.files)]
    profile = opened.manifest.recipe.params.get("profile")
    if profile is not None:
        files.append(profile_file(profile, profiles_dir(), source))
    if target.exists():
        raise InputError(f"{target}: exists; name a place where nothing is")
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
        try:
            copy = scratch / "copy"
            copy.mkdir()
            for file in files:
                shutil.copyfile(file, copy / file.name)
            restrict(copy, files[0].stat().st_mode)
            os.rename(copy, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise MinimemoError(f"{target}: cannot be written ({error.strerror or error}); name another place") from error
    return target


def remove(memo: Path) -> int:
    """Deletes a memo and forgets it; gives the bytes that are free now. Only what a memo is made of is deleted.

    Raises MemoError when it is no memo, InputError when it is a link or holds other files,
    MinimemoError when it cannot be deleted.
    """
    if memo.is_symlink():
        raise InputError(f"{memo}: is a link; name the folder that it leads to: {memo.resolve()}")
    files = memo_files(memo)  # whatever is not a memo stays
    with suppress(MemoError):
        forget_tails(Manifest.load(memo).recipe)
    freed = sum(path.lstat().st_size for path in files)
    try:
        for path in files:  # the manifest first: half a memo is none
            path.unlink()
        memo.rmdir()
    except OSError as error:
        raise MinimemoError(f"{memo}: cannot be deleted ({error.strerror}); check its permissions") from None
    _note(memo).unlink(missing_ok=True)
    sweep(memo)  # a build of it that was killed
    kept = _load(store_file())
    if kept.pop(_note(memo).name, None):
        _save(store_file(), kept)
    return freed


# -- the store ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """A memo in the index. note: its name in the list; stamp: of its manifest when it was read."""

    note: str
    path: str
    stamp: int
    model: str  # fingerprints
    embedder: str
    rows: int  # passages
    dim: int


class StoreIndex:
    """The vectors of every memo in the list. Opening it costs one look at each memo's manifest. missing: the memos that
    are not where they were, or cannot be read."""

    def __init__(self, path: Path) -> None:
        """Reads what is new or changed since the file was written; a memo that cannot be read is left out."""
        kept = _load(path)
        self._memos: dict[str, tuple[Entry, Vectors]] = {}
        self.missing: list[str] = []
        for note in notes():
            row, memo = kept.get(note.name), note.name
            try:
                memo = row[0].path if row else str(noted(note))
                stamp = os.stat(os.path.join(memo, NAME)).st_mtime_ns
                if row is None or row[0].stamp != stamp:
                    row = _read(note.name, Path(memo), stamp)
            except (OSError, MemoError):
                self.missing.append(memo)
                continue
            self._memos[note.name] = row
        if self.entries != [entry for entry, _ in kept.values()]:
            _save(path, self._memos)

    @property
    def entries(self) -> list[Entry]:
        return [entry for entry, _ in self._memos.values()]

    def pick(self, query: Vectors, model: str, embedder: str, limit: int, within: Path | None = None) -> list[Path]:
        """The memos of these models (fingerprints), below `within`, whose best passages are nearest to `query` (d,),
        nearest first."""
        best = [
            (-float((vectors @ query).max()), entry.path)
            for entry, vectors in self._memos.values()
            if entry.rows
            and (entry.model, entry.embedder) == (model, embedder)
            and (within is None or Path(entry.path).is_relative_to(within))
        ]
        return [Path(path) for _, path in sorted(best)[:limit]]


def _load(path: Path) -> dict[str, tuple[Entry, Vectors]]:
    """What the file holds, by note; nothing when it is not, byte for byte, what was written."""
    try:
        content = path.read_bytes()
        magic, checksum, length = _HEAD.unpack_from(content)
        if magic != _MAGIC or checksum != crc32c(memoryview(content)[_COVERED:]):
            return {}
        entries = [Entry(**row) for row in json.loads(content[_HEAD.size : _HEAD.size + length])]
        numbers = np.frombuffer(content, np.float32, offset=_HEAD.size + length + -length % 8)
        ends = np.cumsum([0, *(entry.rows * entry.dim for entry in entries)])
        if ends[-1] != len(numbers):
            return {}
        spans = zip(entries, ends[:-1], ends[1:], strict=True)
        return {entry.note: (entry, numbers[a:b].reshape(entry.rows, entry.dim)) for entry, a, b in spans}
    except (OSError, ValueError, TypeError, struct.error):
        return {}


def _save(path: Path, memos: Mapping[str, tuple[Entry, Vectors]]) -> None:
    """Where it cannot be written, the memos are read again next time."""
    table = json.dumps([asdict(entry) for entry, _ in memos.values()]).encode()
    body = len(table).to_bytes(8, "little") + table + bytes(-len(table) % 8)
    body += b"".join(vectors.tobytes() for _, vectors in memos.values())
    with suppress(OSError):
        write_whole(path, _HEAD.pack(_MAGIC, crc32c(body), 0)[:_COVERED] + body, private=True)


def _read(note: str, path: Path, stamp: int) -> tuple[Entry, Vectors]:
    from minimemo.search.vectors import VectorIndex

    manifest = Manifest.load(path)
    vectors = VectorIndex.open(path / INDEX).vectors()
    entry = Entry(note, str(path), stamp, manifest.model.fingerprint, manifest.embedder.fingerprint, *vectors.shape)
    return entry, vectors


class Store:
    """Every memo in the list that was built with these models. `picked`: how many documents a question is put to;
    `within`: a folder that the memos lie below, all others are passed over."""

    def __init__(
        self, runtime: Runtime, prompts: Mapping[Language, Prompts] = PROMPTS, picked: int = PICKED,
        within: Path | None = None,
    ) -> None:  # fmt: skip
        self._runtime = runtime
        self._within = within
        self._prompts = prompts
        self._picked = picked
        self._index: StoreIndex | None = None
        self._asked: Memo | None = None

    def prepare(self) -> None:
        """Loads the embedder and looks at the memos now rather than at the first question."""
        self._models()

    def ask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """Answers as `Memo.ask` does, from the documents that are picked for the question."""
        return self._documents(question).ask(question, mode, max_tokens)

    def stream(
        self, question: str, mode: Mode = "memorag", max_tokens: int = 256, *, typed: str = ""
    ) -> Iterator[Found | Piece | Answer]:
        """Answers as `Memo.stream` does, from the documents that are picked for the question."""
        return self._documents(question).stream(question, mode, max_tokens, typed=typed)

    def chat(self) -> Conversation:
        """Begins a conversation as `Memo.chat` does; documents are picked for each question anew."""
        return Conversation(self)

    def pick(self, question: str) -> Sequence[Memo]:
        """The memos to ask, nearest first. Raises InputError when there is none of these models."""
        question = checked_question(question)
        located, embedder, index = self._models()
        models = located.fingerprint, embedder.fingerprint
        (query,) = embedder.embedder.embed_queries([question])
        entries = [one for one in index.entries if self._within is None or Path(one.path).is_relative_to(self._within)]
        paths = index.pick(query, *models, self._picked, self._within)
        others = sum((entry.model, entry.embedder) != models for entry in entries)
        if not paths:
            hint = f", but {others} of others: name theirs with `model` and `embedder`" if others else ""
            raise InputError(
                f"no memo of {located.source} and {embedder.source} to ask{hint}; make one: minimemo build DOCUMENT"
            )
        if others:
            note = f"{others} memos of other models are not asked: name theirs with `model` and `embedder`"
            self._runtime.on_event(Event(note, 1, 1, "note"))
        return [Memo(path, Manifest.load(path), self._runtime, self._prompts) for path in paths]

    def _documents(self, question: str) -> Memo:
        """The documents that are picked for a question; those of the last one as they are, when they are the same."""
        picked = self.pick(question)
        before = [(memo.folder, memo.manifest) for memo in self._asked.memos] if self._asked else []
        if self._asked is None or before != [(memo.folder, memo.manifest) for memo in picked]:
            self._asked = together(picked)
        return self._asked

    def _models(self) -> tuple[LocatedModel, OpenEmbedder, StoreIndex]:
        if self._index is None:
            self._index = StoreIndex(store_file())
            if missing := self._index.missing:
                note = f"{len(missing)} memos cannot be read, or are not where they were: {', '.join(missing[:9])}"
                self._runtime.on_event(Event(note, 1, 1, "note"))
        embedder = self._runtime.opened_embedder()
        return self._runtime.located(), embedder, self._index


def open_store(
    *,
    model: LanguageModel | str | Path | None = None,
    embedder: OpenEmbedder | str | Path | None = None,
    prompts: Mapping[Language, Prompts] = PROMPTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
    picked: int = PICKED,
    generator: Generator = None,
    within: Path | None = None,
) -> Store:
    """Opens the store of these models (None: the defaults), or the part of it `within` a folder; the other arguments
    are those of `open_memo`."""
    return Store(Runtime(model, embedder, options, on_event, generator), prompts, picked, within)
