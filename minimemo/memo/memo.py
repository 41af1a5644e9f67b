"""A memo, opened to be asked: a folder with manifest.json, memory.bin, index.bin and chunks.json; or several as one."""

from __future__ import annotations

import asyncio
import stat
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from collections.abc import Generator as Generation
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import RLock
from time import sleep
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from minimemo.ask import (
    PROMPTS,
    Answer,
    Clue,
    Conversation,
    Found,
    Language,
    Mode,
    Passage,
    Piece,
    Prompts,
    Session,
    TextGenerator,
    Writer,
    checked_question,
)  # fmt: skip
from minimemo.ask.endpoint import Called, CalledGenerator, Endpoint, EndpointGenerator, HasGenerate, is_address
from minimemo.ask.evidence import placed, rank_passages
from minimemo.errors import InputError, MemoError
from minimemo.events import Listener, silent
from minimemo.memo.manifest import AGAIN, CHUNKS, INDEX, MEMORY, NAME, PLACES, Judged, Manifest, file_info, records
from minimemo.memo.registry import document_name
from minimemo.runtime import DEFAULT_OPTIONS, LanguageModel, OpenEmbedder, RunOptions, Runtime
from minimemo.text.document import Place, finder

if TYPE_CHECKING:
    from minimemo.engine.engine import Engine
    from minimemo.memory.codec import Codec
    from minimemo.memory.load import StoredMemory
    from minimemo.memory.reader import ByteSource, MemoryReader
    from minimemo.models.tokenizer import Tokenizer
    from minimemo.search.embedder import Embedder
    from minimemo.search.retriever import Retriever
    from minimemo.search.vectors import VectorIndex
    from minimemo.text.chunks import Chunk

# What writes answers: an endpoint or its address, a decoder or its name, anything that writes as those do, or what is
# given a prompt and returns a text or its pieces.
Generator: TypeAlias = Endpoint | LanguageModel | TextGenerator | Called | HasGenerate | str | Path | None
Steps: TypeAlias = Generation[Found | Piece | Answer, None, None]
_REPLACED = 0.05  # seconds in which a memo that is being replaced is back


class Memo:
    """One document that can be asked, or several of the same models. Models and memory are loaded when first needed.

    Of several, `folder`, `manifest` and what `inspect`, `chunks` and `reader` give are those of the first. Memos that
    share a runtime share their models. It may be asked from several threads, which decode together
    (engine/scheduler.py). In a `with` statement it is closed at the end.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        runtime: Runtime | None = None,
        prompts: Mapping[Language, Prompts] = PROMPTS,
        others: Sequence[Memo] = (),
        memory: Callable[[], ByteSource] | None = None,
    ) -> None:
        """memory: opens memory.bin where that is not in the folder (scale/objects.py)."""
        self.folder = folder
        self.manifest = manifest
        self.runtime = runtime or Runtime()
        self.prompts = prompts
        self._others = tuple(others)
        self._memory = memory
        self._session: Session | None = None
        self._searcher: Retriever | None = None
        self._readers: list[MemoryReader] = []
        self._opening = RLock()  # threads that ask first at the same time share one session
        if is_address(self.runtime.generator):
            self.runtime.generator = Endpoint(str(self.runtime.generator))

    def __enter__(self) -> Memo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the memo's files and of what was read of them; models stay with those who share them. A question
        after that opens them again."""
        for reader in self._readers:
            reader.close()
        self._readers.clear()
        self._session = self._searcher = None

    @property
    def memos(self) -> Sequence[Memo]:
        """Those that are asked together."""
        return (self, *self._others)

    def ask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """Answers a question, with its sources; see `Session.ask`."""
        checked = checked_question(question)  # before any model is loaded
        return self.session().ask(checked, mode, max_tokens)

    def ask_many(self, questions: Iterable[str], mode: Mode = "memorag", max_tokens: int = 256) -> list[Answer]:
        """Answers one question after the other; raises like `ask` at the first that cannot be answered."""
        return [self.ask(question, mode, max_tokens) for question in questions]

    def stream(self, question: str, mode: Mode = "memorag", max_tokens: int = 256, *, typed: str = "") -> Steps:
        """Answers as `ask` does, in steps: one Found, the Pieces of the text, the Answer. `close` drops the rest."""
        checked = checked_question(question)
        return cast(Steps, self.session().stream(checked, mode, max_tokens, typed=typed))

    async def aask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """Answers as `ask` does, in asyncio; cancelled, it stops at the next token."""
        async with aclosing(self.astream(question, mode, max_tokens)) as steps:
            *_, answer = [step async for step in steps]
        return cast(Answer, answer)

    async def astream(
        self, question: str, mode: Mode = "memorag", max_tokens: int = 256
    ) -> AsyncGenerator[Found | Piece | Answer, None]:
        """Answers as `stream` does, in asyncio: in a thread of its own. Closed or cancelled, it stops after the step
        that is being worked on, which nobody waits for."""
        loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, "minimemo")
        try:
            steps = await loop.run_in_executor(thread, self.stream, question, mode, max_tokens)
            try:
                while (step := await loop.run_in_executor(thread, next, steps, None)) is not None:
                    yield step
            finally:
                thread.submit(steps.close)
        finally:
            thread.shutdown(wait=False)

    def chat(self) -> Conversation:
        """Begins a conversation: a question that leans on those before it is understood from them."""
        return Conversation(self)

    def retrieve(self, query: str, k: int = 5) -> tuple[Passage, ...]:
        """Finds the k passages that say most of what is asked, best first: by meaning and by words, without an answer,
        the memory or its model. Raises InputError for an empty query or k < 1."""
        (hits,) = self._search().retrieve([checked_question(query)], k)
        place_of = self._place_of()
        return tuple(placed(p, place_of) for p in rank_passages(["question"], [hits], documents=self.names()))

    def recall(self, question: str) -> tuple[Clue, ...]:
        """Gives what the memory recalls of the documents for a question."""
        return self.session().recall(question)

    def rewrite(self, question: str) -> tuple[Clue, ...]:
        """Gives questions in the documents' own words that help to answer this one."""
        return self.session().rewrite(question)

    def answer(self, question: str, evidence: list[str], max_tokens: int = 256) -> Answer:
        """Answers from given texts alone."""
        return self.session().answer(question, evidence, max_tokens)

    def summarize(self, max_tokens: int = 512) -> Answer:
        """Summarizes everything, from memory."""
        return self.session().summarize(max_tokens)

    def prepare(self) -> None:
        """Loads the models now rather than at the first question that needs them."""
        self.session()
        self.memos[0].model()

    def session(self) -> Session:
        """Loads the models and gives what answers with them. Raises MemoError when memos were built with others."""
        with self._opening:
            if self._session is None:
                self.runtime.options.limit_threads()
                self.runtime.read_ahead(self.manifest.model.source)
                retriever = self._search()  # it checks small files: a damaged memo is named before models load
                for memo in self.memos:
                    memo.check_model()
                engine, tokenizer, generator = self._models()
                # A session that held this very memo would keep its caches after nobody else does.
                memos = [Memo(m.folder, m.manifest, self.runtime, memory=m._memory) for m in self.memos]
                self._session = Session(
                    engine,
                    tokenizer,
                    retriever,
                    partial(_open_memory, memos, self._readers),
                    documents=self.names(),
                    place_of=self._place_of(),
                    language=self.manifest.document.language,
                    prompts=self.prompts,
                    generator=generator,
                    on_event=self.runtime.on_event,
                )
            return self._session

    def _models(self) -> tuple[Engine | Callable[[], Engine], Tokenizer, TextGenerator | None]:
        """What asks the memory, loaded when that is first asked where another model writes, its tokenizer, and what
        writes beside it; None: that itself."""
        runtime, memo = self.runtime, self.memos[0]
        second = runtime.second_decoder()
        if second is None or isinstance(runtime.model, LanguageModel):
            model = memo.model()
            return model.engine, model.tokenizer, _writer(runtime, model, second)
        return lambda: memo.model().engine, runtime.tokenizer(), Writer(second.engine, second.tokenizer)

    def memory(self) -> StoredMemory:
        """Opens the memory of all memos; nothing of it is decoded yet."""
        return _open_memory(self.memos, self._readers)

    def names(self) -> list[str]:
        """What passages are cited by: the documents' names, in a collection their paths, and the memos' folders where
        two are the same."""
        names = [document_name(memo.folder, memo.manifest.document.name) for memo in self.memos]
        count = Counter(names)
        return [name if count[name] == 1 else str(memo.folder) for name, memo in zip(names, self.memos, strict=True)]

    def model(self) -> LanguageModel:
        """The decoder that made the memory. Raises MemoError, before it is loaded, when the one named is another."""
        self.check_model()
        return self.runtime.decoder()

    def check_model(self) -> None:
        """Raises MemoError when the decoder named is not the one that made the memory."""
        located = self.runtime.located(self.manifest.model.source)
        self._check_built_with("model", located.source, located.fingerprint)

    def embedder(self) -> Embedder:
        """The embedder that made the index. Raises MemoError when the one named is another."""
        opened = self.runtime.opened_embedder(self.manifest.embedder.source)
        self._check_built_with("embedder", opened.source, opened.fingerprint)
        return opened.embedder

    def _check_built_with(self, what: str, source: str, fingerprint: str) -> None:
        built_with = getattr(self.manifest, what)
        if fingerprint != built_with.fingerprint:
            raise MemoError(
                f"{self.folder}: built with another {what} ({built_with.source}) than {source}; name that one with "
                f"`{what}`, or build the memo again"
            )

    def _search(self) -> Retriever:
        with self._opening:
            self._searcher = self._searcher or self._retriever()
            return self._searcher

    def _retriever(self) -> Retriever:
        from minimemo.search.retriever import Retriever
        from minimemo.search.vectors import VectorIndex

        passages = [memo._passages() for memo in self.memos]
        embedders = [memo.embedder() for memo in self.memos]
        return Retriever(
            VectorIndex.joined([index for _, index in passages]),
            [chunk for chunks, _ in passages for chunk in chunks],
            embedders[0],
            [number for number, (chunks, _) in enumerate(passages) for _ in chunks],
        )

    def chunks(self) -> list[Chunk]:
        """The passages, in document order. Raises MemoError when chunks.json is not what was written."""
        from minimemo.text.chunks import Chunk

        self._check_file(CHUNKS, whole=True)
        return records(self.folder / CHUNKS, "chunks", Chunk)

    def places(self) -> tuple[Place, ...]:
        """Where stretches of the document stand, in order; none of plain text. MemoError when places.json is not what
        was written."""
        if PLACES not in self.manifest.files:
            return ()
        self._check_file(PLACES, whole=True)
        return tuple(records(self.folder / PLACES, "places", Place))

    def _place_of(self) -> Callable[[str, int], Place | None]:
        """What tells of a document (its name here) in which place a character stands."""
        return finder({name: memo.places() for name, memo in zip(self.names(), self.memos, strict=True)})

    def _passages(self) -> tuple[list[Chunk], VectorIndex]:
        """The passages with their vectors; MemoError unless all that asking needs is as it was written.

        Where a build has put another memo in this one's place since it was opened, this becomes that one.
        """
        from minimemo.search.vectors import VectorIndex

        try:
            self._check_file(MEMORY)
            self._check_file(INDEX, whole=True)
            chunks = self.chunks()
            return chunks, VectorIndex.open(self.folder / INDEX, count=len(chunks))
        except MemoError:
            before, self.manifest = self.manifest, _load_manifest(self.folder)
            if before == self.manifest:
                raise
            return self._passages()

    def reader(self) -> MemoryReader:
        """Opens memory.bin. Raises MemoError where it does not belong to this memo."""
        from minimemo.memory.reader import MemoryReader

        self._check_file(MEMORY)
        reader = MemoryReader(self._memory() if self._memory else self.folder / MEMORY)
        recipe = self.manifest.recipe
        belongs = {
            "model": recipe.model, "document": recipe.document_sha256, "codec": recipe.codec, "params": recipe.params,
        }  # fmt: skip
        for key, value in belongs.items():
            if reader.header.get(key) != value:
                reader.close()
                raise MemoError(f"{reader.path}: of another {key} than manifest.json says; {AGAIN}")
        return reader

    def memory_file(self) -> tuple[MemoryReader, Codec]:
        """Opens memory.bin with its codec. Raises MemoError when the profile that it needs is missing or damaged."""
        from minimemo.memory.tiers import codec_of

        recipe = self.manifest.recipe
        return self.reader(), codec_of(recipe.codec, recipe.params, self.folder)

    def verify(self, on_event: Listener = silent) -> None:
        """Reads every byte of every file against its checksum, the model's profile too where the memory needs one.
        Raises MemoError for the first that is wrong."""
        for memo in self.memos:
            memo.check_files()
            with memo.memory_file()[0] as reader:
                reader.verify(on_event)

    def check_files(self) -> None:
        """Raises MemoError for the first file that is not, byte for byte, what was written."""
        for name in sorted(self.manifest.files):
            self._check_file(name, whole=True)

    def _check_file(self, name: str, whole: bool = False) -> None:
        if name == MEMORY and self._memory is not None:
            return  # its reader checks what it reads
        path, written = self.folder / name, self.manifest.files[name]
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise MemoError(f"{path}: is no file; {AGAIN}")
            size = status.st_size
            intact = size == written.bytes and (not whole or file_info(path) == written)
        except FileNotFoundError:
            raise MemoError(f"{path}: missing; {AGAIN}") from None
        except OSError as error:
            raise MemoError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        if not intact:
            what = f"{size} bytes where {written.bytes} belong" if size != written.bytes else "checksum"
            raise MemoError(f"{path}: damaged ({what}); {AGAIN}")

    def inspect(self) -> dict[str, Any]:
        """Tells what the memo is made of, JSON-able: sizes in bytes, tokens, the ratio to fp16 KV, models, settings,
        quality (manifest.Judged; None where it was not measured)."""
        manifest, recipe = self.manifest, self.manifest.recipe
        with self.reader() as reader:
            parts, tokens, blocks = reader.sizes(), reader.tokens, len(reader)
        bytes_of = {name: file.bytes for name, file in manifest.files.items()}
        fp16 = 2 * 2 * recipe.params["num_layers"] * recipe.params["num_kv_heads"] * recipe.params["head_dim"]
        return {
            "path": str(self.folder),
            "document": asdict(manifest.document),
            "model": asdict(manifest.model),
            "embedder": asdict(manifest.embedder),
            "memory": {
                "codec": recipe.codec,
                "params": recipe.params,
                "tokens": tokens,
                "opening_tokens": tokens - manifest.document.tokens,
                "blocks": blocks,
                "bytes": bytes_of[MEMORY],
                "bytes_per_token": bytes_of[MEMORY] / tokens,
                "fp16_bytes_per_token": fp16,
                "ratio_to_fp16": fp16 * tokens / bytes_of[MEMORY],
                "parts": parts,
            },
            "quality": _mean_quality(manifest.quality),
            "index": {"bytes": bytes_of[INDEX]},
            "chunks": {"bytes": bytes_of[CHUNKS], "size": recipe.chunk_size, "overlap": recipe.chunk_overlap},
            "bytes": sum(bytes_of.values()) + (self.folder / NAME).stat().st_size,
        }


def _open_memory(memos: Sequence[Memo], readers: list[MemoryReader]) -> StoredMemory:
    """readers: takes those that are opened, for who closes them."""
    from minimemo.memory.load import StoredMemory

    files = [memo.memory_file() for memo in memos]
    readers += (reader for reader, _ in files)
    return StoredMemory(files, memos[0].model().engine, memos[0].runtime.on_event)


def _writer(runtime: Runtime, model: LanguageModel, second: LanguageModel | None) -> TextGenerator | None:
    """What writes answers beside the memory's own model; None leaves that to the model itself."""
    if second is not None:
        return Writer(second.engine, second.tokenizer) if second.engine is not model.engine else None
    generator = runtime.generator
    if generator is None or hasattr(generator, "write"):
        return cast(TextGenerator | None, generator)

    def count(text: str) -> int:
        return len(model.tokenizer.encode(text))

    if isinstance(generator, Endpoint):
        return EndpointGenerator(generator, count)
    called = getattr(generator, "generate", generator)
    if not callable(called):
        raise InputError(f"generator {generator!r}: no address, model, function or object with `generate`")
    return CalledGenerator(called, count)


def _mean_quality(quality: Sequence[Judged]) -> dict[str, Any] | None:
    tokens = sum(judged.tokens for judged in quality)
    if not tokens:
        return None
    kl, top1 = (sum(getattr(x, name) * x.tokens for x in quality) / tokens for name in ("kl", "top1"))
    return {"kl": kl, "top1": top1, "tokens": tokens, "places": [asdict(judged) for judged in quality]}


def open_memo(
    folder: str | Path,
    *,
    model: LanguageModel | str | Path | None = None,
    embedder: OpenEmbedder | str | Path | None = None,
    prompts: Mapping[Language, Prompts] = PROMPTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
    generator: Generator = None,
) -> Memo:
    """Opens a memo folder. `model` and `embedder`: others than the manifest names, or already loaded ones, which run
    as they were loaded and not as `options` say. `generator` writes the answers: an OpenAI-compatible endpoint or its
    address, another model than the memory's, a function of a prompt that returns a text or yields its pieces, an object
    with such a function as `generate`, or one that writes (`TextGenerator`); None: see `Runtime.second_decoder`.

    Raises MemoError when it is no memo, damaged, or of another version.
    """
    runtime = Runtime(model, embedder, options, on_event, generator)
    return Memo(Path(folder), _load_manifest(Path(folder)), runtime, prompts)


def open_memos(
    folders: Sequence[str | Path],
    *,
    model: LanguageModel | str | Path | None = None,
    embedder: OpenEmbedder | str | Path | None = None,
    prompts: Mapping[Language, Prompts] = PROMPTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
    generator: Generator = None,
) -> Memo:
    """Opens memos of the same models to be asked together; the arguments are those of `open_memo`.

    Raises InputError for none at all, MemoError when one cannot be opened or was built with other models than the
    first.
    """
    paths = list(dict.fromkeys(Path(folder) for folder in folders))
    if not paths:
        raise InputError("no memo to ask: name one; make one: minimemo build DOCUMENT")
    runtime = Runtime(model, embedder, options, on_event, generator)
    return together([Memo(path, _load_manifest(path), runtime, prompts) for path in paths])


def together(memos: Sequence[Memo]) -> Memo:
    """Makes one memo of several that share a runtime. Raises MemoError for one of other models than the first."""
    first, *others = memos
    for other in others:
        for what in ("model", "embedder"):
            one, two = getattr(first.manifest, what), getattr(other.manifest, what)
            if one.fingerprint != two.fingerprint:
                raise MemoError(
                    f"{other.folder}: built with another {what} ({two.source}) than {first.folder} ({one.source}); "
                    "only memos of the same models can be asked together: build one of them again"
                )
    return Memo(first.folder, first.manifest, first.runtime, first.prompts, others, first._memory)


def _load_manifest(folder: Path) -> Manifest:
    if not folder.exists():  # perhaps a build is about to put another one in its place
        sleep(_REPLACED)
    return Manifest.load(folder)
