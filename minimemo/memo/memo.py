"""A memo: a folder with manifest.json, memory.bin, index.bin and chunks.json, opened to be asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimemo.ask import DEFAULTS, PROMPTS, Language, Prompts, Settings
from minimemo.ask.endpoint import Endpoint
from minimemo.errors import InputError, MemoError
from minimemo.events import Listener, silent
from minimemo.memo import manifest as names
from minimemo.memo.asking import Asking, Collection
from minimemo.memo.manifest import Judged, Manifest, file_info
from minimemo.runtime import DEFAULT_OPTIONS, LanguageModel, OpenEmbedder, RunOptions, Runtime

if TYPE_CHECKING:
    from minimemo.memory.codec import Codec
    from minimemo.memory.reader import MemoryReader
    from minimemo.search.embedder import Embedder
    from minimemo.search.index import VectorIndex
    from minimemo.text.chunks import Chunk


class Memo(Asking):
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
        settings: Settings = DEFAULTS,
        options: RunOptions = DEFAULT_OPTIONS,
        on_event: Listener = silent,
        generator: Endpoint | LanguageModel | str | Path | None = None,
    ) -> None:
        super().__init__(Runtime(model, embedder, prompts, settings, options, on_event, generator))
        self.folder = folder
        self.manifest = manifest

    @property
    def memos(self) -> Sequence[Memo]:
        return (self,)

    @classmethod
    def of(cls, folder: Path, runtime: Runtime) -> Memo:
        """A memo that shares its models with others. Raises MemoError when it is none, or damaged."""
        memo = cls(folder, Manifest.load(folder))
        memo.runtime = runtime
        return memo

    def model(self) -> LanguageModel:
        """The decoder that made the memory. Raises MemoError when the one named is another."""
        return self.runtime.model_for(self.folder, self.manifest.model)

    def embedder(self) -> Embedder:
        """The embedder that made the index. Raises MemoError when the one named is another."""
        return self.runtime.embedder_for(self.folder, self.manifest.embedder)

    # -- passages ----------------------------------------------------------------------------------------------------

    def checked_chunks(self) -> list[Chunk]:
        """The passages, when everything that asking needs is there and as it was written; MemoError otherwise."""
        self._check_file(names.MEMORY)
        self._check_file(names.INDEX, whole=True)
        return self.chunks()

    def chunks(self) -> list[Chunk]:
        """The passages, in document order. Raises MemoError when chunks.json is not what was written."""
        from minimemo.text.chunks import Chunk

        path = self.folder / names.CHUNKS
        self._check_file(names.CHUNKS, whole=True)
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Chunk(**chunk) for chunk in content["chunks"]]

    def index(self, count: int) -> VectorIndex:
        """The vectors of `count` passages, of the embedder's dimension; MemoError for anything else."""
        from minimemo.search.index import VectorIndex

        return VectorIndex.open(self.folder / names.INDEX, dim=self.embedder().dim, count=count)

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

    def memory_file(self) -> tuple[MemoryReader, Codec]:
        """memory.bin, opened, and its codec."""
        return self.reader(), self._codec()

    def _codec(self) -> Codec:
        """What memory.bin is read with. Raises MemoError when the profile that it needs is missing or damaged."""
        from minimemo.memory.tiers import codec_of

        return codec_of(self.manifest.recipe.codec, self.manifest.recipe.params, self.folder)

    # -- the folder --------------------------------------------------------------------------------------------------

    def verify(self, on_event: Listener = silent) -> None:
        """Reads every byte of every file against its checksum, the model's profile too where the memory needs one.
        Raises MemoError for the first that is wrong."""
        self.check_files()
        with self.reader() as reader:
            reader.verify(on_event)
        self._codec()

    def check_files(self) -> None:
        """Raises MemoError for the first file that is not, byte for byte, what was written."""
        for name in (names.CHUNKS, names.INDEX, names.MEMORY):
            self._check_file(name, whole=True)

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
        """What the memo is made of, JSON-able: sizes in bytes, tokens, the ratio to fp16 KV, models, settings, quality
        (manifest.Judged; None where it was not measured)."""
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
            "quality": _summary(manifest.quality),
            "index": {"bytes": manifest.files[names.INDEX].bytes},
            "chunks": {
                "bytes": manifest.files[names.CHUNKS].bytes,
                "size": manifest.recipe.chunk_size,
                "overlap": manifest.recipe.chunk_overlap,
            },
            "bytes": sum(file.bytes for file in manifest.files.values()) + (self.folder / names.NAME).stat().st_size,
        }


def _summary(quality: Sequence[Judged]) -> dict[str, Any] | None:
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
    settings: Settings = DEFAULTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
    generator: Endpoint | LanguageModel | str | Path | None = None,
) -> Memo:
    """Opens a memo folder. `model` and `embedder`: others than the manifest names, or already loaded ones, which run
    as they were loaded and not as `options` say. `generator` writes the answers: an OpenAI-compatible endpoint or its
    address, or another model than the memory's; None: that one.

    Raises MemoError when it is no memo, damaged, or of another version.
    """
    return Memo.of(Path(folder), Runtime(model, embedder, prompts, settings, options, on_event, generator))


def open_memos(
    folders: Sequence[str | Path],
    *,
    model: LanguageModel | str | Path | None = None,
    embedder: OpenEmbedder | str | Path | None = None,
    prompts: Mapping[Language, Prompts] = PROMPTS,
    settings: Settings = DEFAULTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
    generator: Endpoint | LanguageModel | str | Path | None = None,
) -> Asking:
    """Opens memos of the same models to be asked together; the arguments are those of `open_memo`.

    Raises InputError for none at all, MemoError when one cannot be opened or was built with other models than the
    first.
    """
    paths = list(dict.fromkeys(Path(folder) for folder in folders))
    if not paths:
        raise InputError("no memo to ask: name one; make one: minimemo build DOCUMENT")
    runtime = Runtime(model, embedder, prompts, settings, options, on_event, generator)
    memos = [Memo.of(path, runtime) for path in paths]
    first = memos[0]
    if len(memos) == 1:
        return first
    for memo in memos[1:]:
        _check_same(first, memo)
    return Collection(memos)


def _check_same(first: Memo, other: Memo) -> None:
    for what in ("model", "embedder"):
        one, two = getattr(first.manifest, what), getattr(other.manifest, what)
        if one.fingerprint != two.fingerprint:
            raise MemoError(
                f"{other.folder}: built with another {what} ({two.source}) than {first.folder} ({one.source}); only "
                "memos of the same models can be asked together: build one of them again"
            )
