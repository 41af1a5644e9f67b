"""The documents that a server answers from: found by an id, opened when they are asked, closed when many others are."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from minimemo.ask import PROMPTS, Answer, Found, Mode, Piece, checked_question, stands_alone
from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.files import data_dir, private_folder, store_file, whole_path
from minimemo.memo.library import PICKED, StoreIndex, remove
from minimemo.memo.manifest import MEMORY, NAME, Manifest
from minimemo.memo.memo import Memo, together
from minimemo.memo.registry import document_name, remembered
from minimemo.readers import ENDINGS
from minimemo.runtime import Runtime

TOGETHER = 64  # So many documents are asked together at most: each has a file open.
OPEN = 8  # So many memos, or sets of memos that are asked together, stay open.
EVERY = "all"  # the id that stands for all documents
_NAME_BYTES = 180  # of an upload; file systems have room for 255, and its memo's folders need some
_UNSAFE = re.compile(r"[\s/\\?#%:\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Document:
    """A memo as the server offers it."""

    id: str
    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return document_name(self.folder, self.manifest.document.name)

    def original(self) -> Path | None:
        """The file that it was built from, where that lies beside the memo still.

        Only one that a build gives this memo's name, and that is read as a document: a memo of a stranger's may name
        any file that lies beside it.
        """
        path = self.beside()
        return path if path is not None and path.suffix.lower() in ENDINGS else None

    def beside(self) -> Path | None:
        """The file of the document's name that lies beside the memo, where a build of it gives this memo's name."""
        path = self.folder.parent / Path(self.name).name
        here = self.folder in (path.with_suffix(".memo"), Path(f"{path}.memo"))
        return path if here and path.is_file() and not path.is_symlink() else None

    def created(self) -> float:
        """When its memo was made, in seconds since 1970."""
        return (self.folder / NAME).stat().st_mtime

    def facts(self) -> dict[str, Any]:
        """JSON-able: sizes in bytes, `ratio` to fp16 KV, `quality` 0 to 1 (the share of next tokens as from the exact
        cache) or None, `created` in seconds since 1970."""
        manifest, params = self.manifest, self.manifest.recipe.params
        fp16 = 4 * params["num_layers"] * params["num_kv_heads"] * params["head_dim"] * manifest.document.tokens
        judged = sum(place.tokens for place in manifest.quality)
        original = self.original()
        return {
            "id": self.id,
            "name": self.name,
            "kind": Path(self.name).suffix.lstrip(".").lower() or "txt",
            "language": manifest.document.language,
            "characters": manifest.document.characters,
            "tokens": manifest.document.tokens,
            "bytes": sum(file.bytes for file in manifest.files.values()),
            "ratio": fp16 / manifest.files[MEMORY].bytes,
            "quality": sum(place.top1 * place.tokens for place in manifest.quality) / judged if judged else None,
            "created": self.created(),
            "file": f"/documents/{self.id}/file" if original else None,
        }


class Shelf:
    """Every memo that the server was started with, and those that are built through it; safe from several threads.

    places: memos, and folders of them; none: all memos on this machine, as they come and go. models: what a Runtime is
    made of. Models are loaded once and shared by all memos of the same ones.
    """

    def __init__(self, places: Sequence[str | Path] = (), **models: Any) -> None:
        self._places = [whole_path(Path(place)) for place in places]
        self._runtime = Runtime(**models)
        self._runtimes: dict[tuple[str, str], Runtime] = {}
        self._open: OrderedDict[tuple[Path, ...], Memo] = OrderedDict()
        self._manifests: dict[Path, tuple[int, Manifest]] = {}  # with the time of the file that they are of
        self._index: StoreIndex | None = None
        self._lock = RLock()
        self._sees: Callable[[Path], bool] | None = None
        self.uploads = data_dir() / "documents"
        for place in self._places:
            if not place.is_dir():
                raise InputError(f"{place}: is neither a memo nor a folder of memos; make one: minimemo build DOCUMENT")

    def of(self, sees: Callable[[Path], bool], uploads: Path) -> Shelf:
        """The same shelf with those memos alone that may be seen; what is open is shared. uploads: its own folder."""
        part = copy(self)
        part._sees, part.uploads = sees, uploads
        return part

    def documents(self) -> dict[str, Document]:
        """The documents by id: the memo's name, with a mark behind it where two have the same one."""
        found = []
        for folder in self._folders():
            try:
                stamp = (folder / NAME).stat().st_mtime_ns
                before, manifest = self._manifests.get(folder, (0, None))
                if manifest is None or before != stamp:
                    manifest = Manifest.load(folder)
                    self._manifests[folder] = stamp, manifest
                found.append((folder, manifest))
            except (MinimemoError, OSError):
                self._manifests.pop(folder, None)  # being replaced, or damaged: `minimemo verify` says what is wrong
        stems = [_UNSAFE.sub("-", folder.name.removesuffix(".memo")).strip("-.") or "memo" for folder, _ in found]
        count = Counter([*stems, EVERY])
        ids = [
            stem if count[stem] == 1 else f"{stem}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"
            for stem, (folder, _) in zip(stems, found, strict=True)
        ]
        return {id: Document(id, folder, manifest) for id, (folder, manifest) in zip(ids, found, strict=True)}

    def document(self, id: str) -> Document:
        """The document of an id. Raises InputError where there is none."""
        return self._some([id])[0]

    def _some(self, ids: Sequence[str]) -> list[Document]:
        documents = self.documents()
        for id in ids:
            if id not in documents:
                raise InputError(f"no document {id!r} here: /api/documents lists them")
        return [documents[id] for id in ids]

    def ids(self, memo: Memo) -> dict[str, str]:
        """The ids of the documents that a memo is of, by the names that its passages have."""
        here = {one.folder: id for id, one in self.documents().items()}
        return {name: here.get(one.folder, "") for name, one in zip(memo.names(), memo.memos, strict=True)}

    def memo(self, ids: Sequence[str], question: str) -> Memo:
        """What answers a question about these documents together; of none, or of "all", those that fit it best."""
        if ids and list(ids) != [EVERY]:
            if len(once := list(dict.fromkeys(ids))) > TOGETHER:
                raise InputError(
                    f"documents: {TOGETHER} are asked together at most; of none named, those that fit best"
                )
            return self.opened([document.folder for document in self._some(once)])
        documents = list(self.documents().values())
        if not documents:
            raise InputError("no document is here yet: build one")
        some = documents if len(documents) == 1 else self._nearest(documents, question)
        if not some:
            raise MemoError("the documents here cannot be searched; minimemo verify tells what is wrong with a memo")
        return self.opened([document.folder for document in some])

    def opened(self, folders: Sequence[Path]) -> Memo:
        """Memos, opened to be asked together. A memo that was built anew is opened anew."""
        with self._lock:
            key = tuple(folders)
            manifests = [Manifest.load(folder) for folder in folders]
            memo = self._open.pop(key, None)
            if memo is None or [one.manifest for one in memo.memos] != manifests:
                memos = [Memo(f, m, self._runtime_of(m), PROMPTS) for f, m in zip(folders, manifests, strict=True)]
                memo = together(memos)
            self._open[key] = memo
            while len(self._open) > OPEN:
                self._open.popitem(last=False)  # who is answered from it keeps it open
            return memo

    def stream(
        self, ids: Sequence[str], question: str, mode: Mode = "memorag", max_tokens: int = 256,
        turns: Sequence[tuple[str, str]] = (),
    ) -> Iterator[dict[str, str] | Found | Piece | Answer]:  # fmt: skip
        """Answers as `Memo.stream` does, after earlier turns of a conversation: questions with their answers. Gives
        what `ids` does first."""
        asked = stands_alone(question, turns)
        memo = self.memo(ids, asked)
        yield self.ids(memo)
        yield from memo.stream(asked, mode, max_tokens, typed=question)

    def text(self, id: str, start: int = 0, end: int | None = None) -> str:
        """Characters [start, end) of a document; spaces stand where no passage holds its text."""
        document = self.document(id)
        whole, at = [], 0
        for chunk in Memo(document.folder, document.manifest, self._runtime).chunks():
            if chunk.end > at:
                whole.append(" " * max(0, chunk.start - at) + chunk.text[max(0, at - chunk.start) :])
                at = chunk.end
        return "".join(whole)[start:end]

    def pages(self, document: Document) -> int | None:
        """How many pages a document has; None where it has none."""
        places = Memo(document.folder, document.manifest, self._runtime).places()
        return max((place.page for place in places if place.page is not None), default=None)

    def remove(self, id: str) -> int:
        """Deletes a memo, and the document too where it came here as an upload; gives the bytes that are free now."""
        with self._lock:
            document = self.document(id)
            for key in [key for key in self._open if document.folder in key]:
                del self._open[key]
            original = document.beside()  # whatever its ending: it was read as a text
            freed = remove(document.folder)
            if original is not None and data_dir() / "documents" in original.parents:
                freed += original.stat().st_size
                original.unlink()
            return freed

    def place_for(self, name: str) -> Path:
        """A file that does not exist yet, for an upload of this name, in the server's own folder."""
        private_folder(self.uploads)
        end = _UNSAFE.sub("-", Path(name.replace("\\", "/")).name).encode("utf-8", "replace")[-_NAME_BYTES:]
        plain = end.decode("utf-8", "ignore").strip("-.") or "document"
        stems = {entry.stem for entry in self.uploads.iterdir()}  # a.pdf and a.docx would both become a.memo
        path, number = self.uploads / plain, 1
        while path.stem in stems or path.suffix == ".memo":
            number += 1
            path = self.uploads / f"{Path(plain).stem}-{number}{Path(plain).suffix.replace('.memo', '.txt')}"
        return path

    def embedder(self) -> Any:
        """The embedder of the first document; without one, what new memos are made with."""
        for document in self.documents().values():
            return self._runtime_of(document.manifest).opened_embedder().embedder
        return self._runtime.opened_embedder().embedder

    def _nearest(self, documents: Sequence[Document], question: str) -> list[Document]:
        """The documents whose best passages are nearest to a question, of those with the models that most have."""
        models = [_models(document.manifest) for document in documents]
        ((usual, _),) = Counter(models).most_common(1)
        some = [document for document, of in zip(documents, models, strict=True) if of == usual]
        embedder = self._runtime_of(some[0].manifest).opened_embedder(some[0].manifest.embedder.source).embedder
        (query,) = embedder.embed_queries([checked_question(question)])
        by_folder = {str(document.folder): document for document in some}
        with self._lock:
            if self._index is None:
                self._index = StoreIndex(None, self._folders) if self._places else StoreIndex(store_file())
            else:
                self._index.refresh()
            return [by_folder[str(path)] for path in self._index.pick(query, *usual, PICKED, by_folder, question)]

    def _folders(self) -> list[Path]:
        every = self._all_folders()
        return every if self._sees is None else [folder for folder in every if self._sees(folder)]

    def _all_folders(self) -> list[Path]:
        if not self._places:
            return remembered()
        found = []
        for place in [*self._places, *([self.uploads] if self.uploads.is_dir() else [])]:
            if (place / NAME).is_file():
                found.append(place)
            elif place.is_dir():
                found += sorted(path for path in place.iterdir() if (path / NAME).is_file())
        return list(dict.fromkeys(found))

    def _runtime_of(self, manifest: Manifest) -> Runtime:
        """One runtime for each pair of models."""
        key = _models(manifest)
        with self._lock:
            if key not in self._runtimes:
                first = self._runtime
                self._runtimes[key] = Runtime(
                    first.model or manifest.model.source, first.embedder or manifest.embedder.source, first.options,
                    first.on_event, first.generator,
                )  # fmt: skip
            return self._runtimes[key]


def _models(manifest: Manifest) -> tuple[str, str]:
    """The fingerprints of the models that a memo was made with."""
    return manifest.model.fingerprint, manifest.embedder.fingerprint
