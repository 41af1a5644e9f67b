"""All memos on this machine: noted when they are built, listed, copied, deleted, and asked as one, the store.

Of the store's memos, an index of their passages picks those that a question is put to. It holds the vectors of all
memos (search/store.py). It is a copy: what is new or changed is read from the memos, and what of it is damaged or gone
is read again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from minimemo.ask import PROMPTS, Answer, Conversation, Found, Language, Mode, Piece, Prompts, checked_question
from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.events import Event, Listener, silent
from minimemo.files import cache_dir, data_dir, memos_dir, profiles_dir, store_file, write_whole
from minimemo.memo.folder import forget_tails, memo_files, restrict, sweep
from minimemo.memo.manifest import INDEX, NAME, Manifest
from minimemo.memo.memo import Generator, Memo, open_memo, together
from minimemo.runtime import DEFAULT_OPTIONS, LanguageModel, LocatedModel, OpenEmbedder, RunOptions, Runtime
from minimemo.search.store import Entry, Vectors, VectorStore, table_paths

PICKED = 4  # documents that a question is put to: each brings the passages that it is searched for

_NOTE = re.compile(r"[0-9a-f]{24}")


# -- the list: one small file for each memo, which holds its path ------------------------------------------------------


def remember(memo: Path) -> None:
    """Notes where a memo lies. A folder that cannot be written means only that `minimemo list` will not know it."""
    with suppress(OSError):
        write_whole(_note(memo), os.fsencode(memo.absolute()), private=True)


def notes() -> list[Path]:
    """The files of the list, by name; some of the memos may be gone. Anything else that lies among them is left out."""
    folder = memos_dir()
    return [folder / name for name in _note_names()]


def _note_names() -> list[str]:
    folder = memos_dir()
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _NOTE.fullmatch(entry.name) and entry.is_file())


def noted(note: Path) -> Path:
    """The memo that a note is of. Raises MemoError for what names no place."""
    name = note.read_bytes()
    if not name or b"\0" in name or not os.path.isabs(name):
        raise MemoError(f"{note}: names no memo; remove it")
    return Path(os.fsdecode(name))


def remembered() -> list[Path]:
    """The memos that are still where they were built, by path; the notes of others are removed."""
    memos, folder, paths = [], memos_dir(), table_paths(store_file())  # the paths in one read, of those in the index
    for name in _note_names():
        with suppress(OSError, MemoError):
            memo = paths.get(name) or str(noted(folder / name))
            if os.path.isfile(os.path.join(memo, NAME)):
                memos.append(memo)
                continue
            (folder / name).unlink(missing_ok=True)
    return [Path(memo) for memo in sorted(memos)]


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
    return _bytes_in(str(path))


def _bytes_in(folder: str) -> int:
    with os.scandir(folder) as entries:
        return sum(
            _bytes_in(one.path) if one.is_dir(follow_symlinks=False) else one.stat(follow_symlinks=False).st_size
            for one in entries
        )


# -- copying and deleting ----------------------------------------------------------------------------------------------


def portable_files(memo: Path) -> list[Path]:
    """The files of a memo, the manifest first, each byte of them checked, and last the profile of the model, which
    memos of a machine share: all that another machine needs. Raises MemoError for what is no memo or damaged."""
    from minimemo.memory.profile import profile_file

    opened = open_memo(memo)
    opened.verify()
    files = [memo / name for name in (NAME, *opened.manifest.files)]
    profile = opened.manifest.recipe.params.get("profile")
    return files if profile is None else [*files, profile_file(profile, profiles_dir(), memo)]


def export(memo: str | Path, out: str | Path) -> Path:
    """Copies a memo, whole or not at all, to the folder `out`, which must not exist yet. With it goes the profile of
    the model: the copy opens anywhere.

    Raises MemoError for what is no memo or damaged, InputError for an `out` that exists, MinimemoError when it
    cannot be written.
    """
    target = Path(out)
    files = portable_files(Path(memo))
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
    VectorStore(store_file()).update([], {_note(memo).name})
    return freed


# -- the store ---------------------------------------------------------------------------------------------------------


class StoreIndex:
    """The vectors of every memo in the list. Opening it costs one look at each memo's manifest. missing: the memos that
    are not where they were, or cannot be read."""

    def __init__(self, path: Path) -> None:
        """Reads what is new or changed since the files were written; a memo that cannot be read is left out."""
        self._store = VectorStore(path)
        self.missing: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        """Takes in what has been built, changed or deleted since."""
        kept, added, listed = self._store.entries, [], set()
        self.missing = []
        for note in _note_names():
            entry, memo = kept.get(note), note
            try:
                memo = entry.path if entry else str(noted(memos_dir() / note))
                stamp = os.stat(os.path.join(memo, NAME)).st_mtime_ns
                if entry is None or entry.stamp != stamp:
                    added.append(_read(note, Path(memo), stamp))
            except (OSError, MemoError):
                self.missing.append(memo)
                continue
            listed.add(note)
        self._store.update(added, kept.keys() - listed)

    @property
    def entries(self) -> list[Entry]:
        return [*self._store.entries.values()]

    def below(self, within: Path | None) -> list[Entry]:
        """The entries of memos below a folder; None: all."""
        start = "" if within is None else os.path.join(within.absolute(), "")
        return [entry for entry in self._store.entries.values() if entry.path.startswith(start)]

    def pick(self, query: Vectors, model: str, embedder: str, limit: int, within: Path | None = None) -> list[Path]:
        """The memos of these models (fingerprints), below the folder `within` where one is given, whose best passages
        are nearest to `query` (d,), nearest first."""
        models = model, embedder
        among = [entry for entry in self.below(within) if (entry.model, entry.embedder) == models]
        return [Path(path) for path in self._store.best(query, among, limit)]


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
        paths = index.pick(query, *models, self._picked, self._within)
        others = sum((entry.model, entry.embedder) != models for entry in index.below(self._within))
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
