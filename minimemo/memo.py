"""A memo: a folder with manifest.json, memory.bin, index.bin and chunks.json, opened to be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from minimemo import manifest as names
from minimemo.errors import MemoError
from minimemo.events import Listener, silent
from minimemo.language_model import LanguageModel, find, load_model, locate_model
from minimemo.loop import (
    DEFAULTS,
    PROMPTS,
    Answer,
    Clue,
    Found,
    Language,
    Mode,
    Piece,
    Prompts,
    Session,
    checked_question,
)
from minimemo.manifest import Manifest, file_info
from minimemo.models.catalog import defaults
from minimemo.options import DEFAULT_OPTIONS, RunOptions

if TYPE_CHECKING:
    from minimemo.engine.cache import KVCache
    from minimemo.memory.reader import MemoryReader
    from minimemo.retrieval.chunks import Chunk
    from minimemo.retrieval.embedder import Embedder
    from minimemo.retrieval.index import Retriever


@dataclass(frozen=True, slots=True)
class OpenEmbedder:
    """An embedder with the name that finds it again."""

    source: str
    embedder: Embedder

    @property
    def fingerprint(self) -> str:
        return self.embedder.fingerprint()


def open_embedder(name: str | Path | None = None, on_event: Listener = silent) -> OpenEmbedder:
    """Loads an embedder by catalogue name, directory or a hub's owner/name; None: the default. Pulled if missing."""
    from minimemo.retrieval.embedder import Embedder

    source, found = find(str(name or defaults()[1]), on_event)
    return OpenEmbedder(source, Embedder.load(found))


class Memo:
    """One document that can be asked. Models and memory are loaded when first needed, and only then.

    Give the same `model` and `embedder` to several memos and they share them.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        model: LanguageModel | str | Path | None = None,
        embedder: OpenEmbedder | str | Path | None = None,
        prompts: Mapping[Language, Prompts] = PROMPTS,
        options: RunOptions = DEFAULT_OPTIONS,
        on_event: Listener = silent,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._model = model
        self._embedder = embedder
        self._prompts = prompts
        self._options = options
        self._on_event = on_event
        self._session: Session | None = None

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """The answer with its sources; see `loop.Session.ask`."""
        checked = checked_question(question)  # before any model is loaded
        return self.session().ask(checked, mode, max_tokens)

    def stream(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Iterator[Found | Piece | Answer]:
        """As `ask`, in steps: one Found, the Pieces of the text, the Answer."""
        checked = checked_question(question)
        return self.session().stream(checked, mode, max_tokens)

    def recall(self, question: str) -> tuple[Clue, ...]:
        """What the memory recalls of the document for a question."""
        return self.session().recall(question)

    def rewrite(self, question: str) -> tuple[Clue, ...]:
        """Questions in the document's own words that help to answer this one."""
        return self.session().rewrite(question)

    def answer(self, question: str, evidence: list[str], max_tokens: int = 256) -> Answer:
        """Answers from given texts alone."""
        return self.session().answer(question, evidence, max_tokens)

    def summarize(self, max_tokens: int = 512) -> Answer:
        """A summary of the whole document, from its memory."""
        return self.session().summarize(max_tokens)

    def session(self) -> Session:
        """The loop over this memo; models are loaded here."""
        if self._session is None:
            self._options.limit_threads()
            retriever = self._retriever()  # first, as it checks small files: a damaged memo is named before models load
            model = self.model()
            self._session = Session(
                model.engine,
                model.tokenizer,
                retriever,
                self._load_memory,
                language=cast(Language, self.manifest.document.language),
                prompts=self._prompts,
                on_event=self._on_event,
            )
        return self._session

    def model(self) -> LanguageModel:
        """The decoder that made the memory. Raises MemoError when the one named is another."""
        if not isinstance(self._model, LanguageModel):
            located = locate_model(self._model or self.manifest.model.source, self._on_event)
            self._check("model", located.source, located.fingerprint, self.manifest.model.fingerprint)
            self._model = load_model(located, self._options, self._on_event)
        located = self._model.located
        self._check("model", located.source, located.fingerprint, self.manifest.model.fingerprint)
        return self._model

    def _check(self, what: str, source: str, found: str, wanted: str) -> None:
        if found != wanted:
            built_with = (self.manifest.model if what == "model" else self.manifest.embedder).source
            raise MemoError(
                f"{self.folder}: built with another {what} ({built_with}) than {source}; name that one with --{what}, "
                "or build the memo again"
            )

    def _retriever(self) -> Retriever:
        from minimemo.retrieval.index import Retriever, VectorIndex

        self._check_file(names.MEMORY)
        self._check_file(names.INDEX, whole=True)
        chunks = self.chunks()
        if not isinstance(self._embedder, OpenEmbedder):
            self._embedder = open_embedder(self._embedder or self.manifest.embedder.source, self._on_event)
        opened = self._embedder
        self._check("embedder", opened.source, opened.fingerprint, self.manifest.embedder.fingerprint)
        index = VectorIndex.open(self.folder / names.INDEX, dim=opened.embedder.dim, count=len(chunks))
        return Retriever(index, chunks, opened.embedder)

    def chunks(self) -> list[Chunk]:
        """The passages, in document order. Raises MemoError when chunks.json is not what was written."""
        from minimemo.retrieval.chunks import Chunk

        path = self.folder / names.CHUNKS
        self._check_file(names.CHUNKS, whole=True)
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Chunk(**chunk) for chunk in content["chunks"]]

    # -- memory ------------------------------------------------------------------------------------------------------

    def reader(self) -> MemoryReader:
        """memory.bin, opened and known to belong to this memo."""
        from minimemo.memory.reader import MemoryReader

        self._check_file(names.MEMORY)
        reader = MemoryReader(self.folder / names.MEMORY)
        recipe = self.manifest.recipe
        belongs = {
            "model": recipe.model, "document": recipe.document_sha256, "codec": recipe.codec, "params": recipe.params,
        }  # fmt: skip
        for key, wanted in belongs.items():
            if reader.header.get(key) != wanted:
                reader.close()
                raise MemoError(f"{reader.path}: of another {key} than manifest.json says; {names.AGAIN}")
        return reader

    def _load_memory(self) -> KVCache:
        """The whole memory as a cache with room to ask; nothing of the document is prefilled again."""
        from minimemo.memory.tiers import codec_of
        from minimemo.memory.view import MemoryView, load

        engine = self.model().engine
        with self.reader() as reader:
            codec = codec_of(self.manifest.recipe.codec, self.manifest.recipe.params)
            capacity = min(reader.tokens + DEFAULTS.memory_room(), engine.config.max_context)
            cache = engine.new_memory(reader.tokens, capacity)
            load(reader, codec, MemoryView.whole(reader), engine.decoder.rope, cache, self._on_event)
        return cache

    # -- the folder --------------------------------------------------------------------------------------------------

    def verify(self, on_event: Listener = silent) -> None:
        """Reads every byte of every file against its checksum. Raises MemoError for the first that is wrong."""
        for name in (names.CHUNKS, names.INDEX, names.MEMORY):
            self._check_file(name, whole=True)
        with self.reader() as reader:
            reader.verify(on_event)

    def _check_file(self, name: str, whole: bool = False) -> None:
        path, wanted = self.folder / name, self.manifest.files[name]
        try:
            size = path.stat().st_size
            intact = size == wanted.bytes and (not whole or file_info(path) == wanted)
        except FileNotFoundError:
            raise MemoError(f"{path}: missing; {names.AGAIN}") from None
        except OSError as error:
            raise MemoError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        if not intact:
            what = f"{size} bytes where {wanted.bytes} belong" if size != wanted.bytes else "checksum"
            raise MemoError(f"{path}: damaged ({what}); {names.AGAIN}")

    def inspect(self) -> dict[str, Any]:
        """What the memo is made of, JSON-able: sizes in bytes, tokens, the ratio to fp16 KV, models, settings."""
        manifest = self.manifest
        with self.reader() as reader:
            parts, tokens, blocks = reader.sizes(), reader.tokens, len(reader)
        params = manifest.recipe.params
        fp16 = 2 * 2 * params["num_layers"] * params["num_kv_heads"] * params["head_dim"]
        size = manifest.files[names.MEMORY].bytes
        return {
            "path": str(self.folder),
            "document": asdict(manifest.document),
            "model": asdict(manifest.model),
            "embedder": asdict(manifest.embedder),
            "memory": {
                "codec": manifest.recipe.codec,
                "params": params,
                "tokens": tokens,
                "opening_tokens": tokens - manifest.document.tokens,
                "blocks": blocks,
                "bytes": size,
                "bytes_per_token": size / tokens,
                "fp16_bytes_per_token": fp16,
                "ratio_to_fp16": fp16 * tokens / size,
                "parts": parts,
            },
            "index": {"bytes": manifest.files[names.INDEX].bytes},
            "chunks": {
                "bytes": manifest.files[names.CHUNKS].bytes,
                "size": manifest.recipe.chunk_size,
                "overlap": manifest.recipe.chunk_overlap,
            },
            "bytes": sum(file.bytes for file in manifest.files.values()) + (self.folder / names.NAME).stat().st_size,
        }


def open_memo(
    folder: str | Path,
    *,
    model: LanguageModel | str | Path | None = None,
    embedder: OpenEmbedder | str | Path | None = None,
    prompts: Mapping[Language, Prompts] = PROMPTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
) -> Memo:
    """Opens a memo folder. `model` and `embedder`: others than the manifest names, or already loaded ones, which run
    as they were loaded and not as `options` say.

    Raises MemoError when it is no memo, damaged, or of another version.
    """
    path = Path(folder)
    return Memo(
        path,
        Manifest.load(path),
        model=model,
        embedder=embedder,
        prompts=prompts,
        options=options,
        on_event=on_event,
    )
