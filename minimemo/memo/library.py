"""All memos on this machine: noted when they are built, listed, copied, deleted, and asked as one, the store.

Of the store's memos, an index of their passages picks those that a question is put to. It holds the vectors of all
memos (search/store.py) and which words they have (search/terms.py). It is a copy: what is new or changed is read from
the memos, and what of it is damaged or gone is read again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minimemo.ask import PROMPTS, Answer, Conversation, Found, Language, Mode, Piece, Prompts, checked_question
from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.events import Event, Listener, silent
from minimemo.files import parse_json, profiles_dir, store_file, whole_path, words_file
from minimemo.memo.folder import forget_tails, memo_files, restrict, sweep
from minimemo.memo.manifest import AGAIN, CHUNKS, INDEX, NAME, Manifest
from minimemo.memo.memo import Generator, Memo, open_memo, together
from minimemo.memo.registry import forget, opened
from minimemo.runtime import DEFAULT_OPTIONS, LanguageModel, LocatedModel, OpenEmbedder, RunOptions, Runtime
from minimemo.search.fusion import standard_scores
from minimemo.search.numbers import Entry
from minimemo.search.store import Vectors, VectorStore
from minimemo.search.terms import TermStore, hashes

PICKED = 4  # documents that a question is put to: each brings the passages that it is searched for

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
    with fresh(target) as copy:
        copy.mkdir()
        for file in files:
            shutil.copyfile(file, copy / file.name)
        restrict(copy, files[0].stat().st_mode)
    return target


@contextmanager
def fresh(out: Path) -> Iterator[Path]:
    """Gives a place for a file or a folder, which gets the name `out` when the block ends well. Raises InputError for
    an `out` that exists, MinimemoError when it cannot be written."""
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists; name a place where nothing is")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
            yield Path(scratch) / "made"
            os.rename(Path(scratch) / "made", out)
    except OSError as error:
        raise MinimemoError(f"{out}: cannot be written ({error.strerror or error}); name another place") from error


def remove(memo: Path) -> int:
    """Deletes a memo and forgets it; gives the bytes that are free now. Only what a memo is made of is deleted.

    Raises MemoError when it is no memo, InputError when it is a link or holds other files,
    MinimemoError when it cannot be deleted.
    """
    return remove_all([memo])


def remove_all(memos: Sequence[Path]) -> int:
    """Deletes memos like `remove`, one after the other; what names them is written once."""
    freed, removed = 0, []
    try:
        for memo in memos:
            freed += _remove(memo)
            removed.append(memo)
    finally:
        if removed:
            forget(*removed)
            gone = {str(whole_path(memo)) for memo in removed}
            VectorStore(store_file(), check=False).update([], gone)
            TermStore(words_file(), check=False).update([], gone)
    return freed


def _remove(memo: Path) -> int:
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
    sweep(memo)  # a build of it that was killed
    return freed


# -- the store ---------------------------------------------------------------------------------------------------------


class StoreIndex:
    """The vectors and words of every memo in the list, or of those in a few `folders`. Opening it costs one look at
    each memo's manifest, a question one at those that it picks. missing: the memos that are not where they were, or
    cannot be read."""

    def __init__(self, path: Path | None, folders: Callable[[], Collection[Path]] | None = None) -> None:
        """Reads what is new or changed since the files were written; a memo that cannot be read is left out. path: of
        the index; None: it is kept in this process alone."""
        self._store = VectorStore(path)
        self._words = TermStore(path and path.with_name(words_file().name))
        self._folders = folders
        self._list = opened() if folders is None else None
        self.missing: list[str] = []
        self._last: tuple[tuple[object, ...], list[Entry], list[str]] = (None,) * 4, [], []
        self.check()

    def check(self) -> None:
        """Looks at every memo for what was built, changed, moved or deleted, by hand too."""
        paths = self._list.values if self._list is not None else map(str, self._folders() if self._folders else ())
        listed, self.missing = dict.fromkeys(paths), []
        self._take_in(listed, self._store.entries.keys() - listed.keys())

    def refresh(self) -> None:
        """Takes in what minimemo has built, changed or deleted since, and looks again at what could not be read; the
        memos of folders are all looked at."""
        if self._list is None:
            self.check()
            return
        self._store.refresh()
        self._words.refresh()
        changes = self._list.read()
        paths = {*(path for path, noted in changes.items() if noted), *self.missing} & self._list.values.keys()
        self.missing = []
        self._take_in(paths, {p for p, noted in changes.items() if not noted})

    def _take_in(self, paths: Collection[str], gone: Collection[str]) -> None:
        vectors, words, unread = [], [], set()
        for path in paths:
            entry, known = self._store.entries.get(path), self._words.entries.get(path)
            try:
                stamp = os.stat(os.path.join(path, NAME)).st_mtime_ns
                if entry is None or known is None or not entry.stamp == known.stamp == stamp:
                    one, two = _read(Path(path), stamp)
                    vectors.append(one)
                    words.append(two)
            except (OSError, MemoError):
                unread.add(path)
        self.missing += sorted(unread - {*self.missing})
        self._store.update(vectors, {*gone, *unread})
        self._words.update(words, {*gone, *unread})

    @property
    def entries(self) -> Collection[Entry]:
        return self._store.entries.values()

    def fitting(self, among: Collection[str] | None) -> list[Entry]:
        """The entries of some paths, or all, as their vectors lie."""
        return [entry for entry in self._store.in_order() if among is None or entry.path in among]

    def _searched(
        self, model: str, embedder: str, among: Collection[str] | None
    ) -> tuple[Sequence[Entry], Sequence[str]]:
        """The entries that a question is put to, and their paths: the same lists as before where nothing changed."""
        key, before = (self._store.in_order(), among, model, embedder), self._last[0]
        if key[0] is not before[0] or among is not before[1] or key[2:] != before[2:]:
            entries = [one for one in self.fitting(among) if one.model == model and one.embedder == embedder]
            self._last = key, entries, [one.path for one in entries]
        return self._last[1:]

    def pick(
        self, query: Vectors, model: str, embedder: str, limit: int,
        among: Collection[str] | None = None, question: str = "",
    ) -> list[Path]:  # fmt: skip
        """The memos of these models (fingerprints), `among` some paths where those are given, whose best passages are
        nearest to `query` (d,) and that hold the rare words of the question: by the sum of both standard scores, best
        first. They are as they were read, or are read again now."""
        while True:
            entries, paths = self._searched(model, embedder, among)
            if not entries:
                return []
            near = self._store.scores(query, entries)
            if (far := np.isinf(near)).any():
                near = np.where(far, near[~far].min(), near)
            by_words = self._words.scores(question, paths)
            scores = (standard_scores(near[None]) + standard_scores(by_words[None]))[0]
            least = np.partition(scores, -limit)[-limit] if limit < len(scores) else -np.inf
            first = sorted(np.flatnonzero(scores >= least).tolist(), key=lambda at: (-scores[at], entries[at].path))
            picked = [entries[at] for at in first[:limit]]
            if not (changed := [one.path for one in picked if _stamp(one.path) != one.stamp]):
                return [Path(one.path) for one in picked]
            self._take_in(changed, ())


def _stamp(path: str) -> int:
    """When a memo's manifest was written; 0 where there is none."""
    with suppress(OSError):
        return os.stat(os.path.join(path, NAME)).st_mtime_ns
    return 0


def _read(path: Path, stamp: int) -> tuple[tuple[Entry, Vectors], tuple[Entry, npt.NDArray[np.uint32]]]:
    """What the index holds of a memo: its vectors, and the hashes of its words."""
    from minimemo.search.vectors import VectorIndex

    manifest = Manifest.load(path)
    vectors = VectorIndex.open(path / INDEX).vectors()
    try:
        chunks = parse_json((path / CHUNKS).read_bytes())["chunks"]
        words = hashes(chunk["text"] for chunk in chunks)
    except (ValueError, TypeError, KeyError) as error:
        raise MemoError(f"{path / CHUNKS}: damaged ({error}); {AGAIN}") from None
    entry = Entry(str(path), stamp, manifest.model.fingerprint, manifest.embedder.fingerprint, *vectors.shape)
    return (entry, vectors), (replace(entry, rows=len(words), dim=1), words)


class Store:
    """Every memo in the list that was built with these models. `picked`: how many documents a question is put to;
    `among`: paths of memos, all others are passed over."""

    def __init__(
        self, runtime: Runtime, prompts: Mapping[Language, Prompts] = PROMPTS, picked: int = PICKED,
        among: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        self._runtime = runtime
        self._among = among
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
        paths = index.pick(query, *models, self._picked, self._among, question)
        others = sum((entry.model, entry.embedder) != models for entry in index.fitting(self._among))
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
    among: Collection[str] | None = None,
) -> Store:
    """Opens the store of these models (None: the defaults), or those of it `among` some paths; the other arguments
    are those of `open_memo`."""
    return Store(Runtime(model, embedder, options, on_event, generator), prompts, picked, among)
