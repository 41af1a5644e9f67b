"""Document -> memo: text to passages and vectors, text to ids to KV to blocks to bytes, the manifest last.

A memo is written into a hidden folder beside its place and renamed: it is whole or absent.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from minimemo import manifest as names
from minimemo.document import Document, read_document
from minimemo.errors import InputError
from minimemo.events import Event, Listener, silent
from minimemo.language_model import LanguageModel, LocatedModel, load_model, locate_model
from minimemo.loop import DEFAULTS, PROMPTS, Language, MemoryOpening, Prompts, detect_language, memory_opening
from minimemo.manifest import DocumentInfo, Manifest, ModelInfo, Recipe, file_info
from minimemo.memo import Memo
from minimemo.models.cachedir import profiles_dir
from minimemo.options import DEFAULT_OPTIONS, RunOptions
from minimemo.runtime import OpenEmbedder, open_embedder
from minimemo.shelf import remember

if TYPE_CHECKING:
    import torch

MEMORY = "int4"
OPENING_ROOM = 64  # tokens kept for the text before the document; the real one is about 30
_SAMPLE = 16  # characters a token, more than text of any language has: longer documents are judged by their beginning


def build(
    source: str | Path | Document,
    out: str | Path | None = None,
    *,
    model: str | Path | LanguageModel | None = None,
    embedder: str | Path | OpenEmbedder | None = None,
    memory: str = MEMORY,
    encoding: str | None = None,
    prompts: Mapping[Language, Prompts] = PROMPTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
) -> Memo:
    """Reads a document once and leaves a memo folder; gives it back opened.

    source: a text file, "-" for standard input, or a Document. out: the folder, by default the document's name with
    the ending .memo. memory: a tier, see memory/tiers.py; some need `calibrate` once. A memo of the same document,
    model and settings that is already there is returned as it is.
    A loaded `model` runs as it was loaded, not as `options` say.
    Raises InputError, ModelError or FetchError; whatever happens, no half-written memo is left.
    """
    document = source if isinstance(source, Document) else read_document(source, encoding)
    target = _target(source, document, out)
    options.limit_threads()
    located = model.located if isinstance(model, LanguageModel) else locate_model(model, on_event)
    opened = embedder if isinstance(embedder, OpenEmbedder) else open_embedder(embedder, on_event)
    language = detect_language(document.text)
    opening = memory_opening(language, prompts)
    dtype = model.engine.kv_dtype if isinstance(model, LanguageModel) else options.cache_dtype()
    recipe = _recipe(document, located, opened, memory, dtype, opening)
    if (target / names.NAME).exists() and (known := Manifest.load(target)).recipe == recipe:
        on_event(Event("already built", 1, 1))
        return Memo(target, known, model=model, embedder=opened, prompts=prompts, options=options)
    language_model = model if isinstance(model, LanguageModel) else load_model(located, options, on_event)

    with _scratch(target) as folder:
        ids = _passages(document, opened, language_model, recipe, folder, on_event)
        _memory(ids, opening, language_model, recipe, folder / names.MEMORY, on_event)
        info = DocumentInfo(document.name, document.sha256, len(document.text), len(ids), language)
        files = {name: file_info(folder / name) for name in (names.MEMORY, names.INDEX, names.CHUNKS)}
        manifest = Manifest(
            info,
            ModelInfo(located.source, located.fingerprint),
            ModelInfo(opened.source, recipe.embedder),
            recipe,
            files,
        )
        manifest.save(folder)
    remember(target)
    return Memo(target, manifest, model=language_model, embedder=opened, prompts=prompts)


def _target(source: str | Path | Document, document: Document, out: str | Path | None) -> Path:
    """Where the memo goes; InputError when something else than a memo is there, or nothing can be."""
    if out is not None:
        target = Path(out)
    elif isinstance(source, Document) or str(source) == "-":
        target = Path(f"{Path(document.name).stem}.memo")
    else:
        target = Path(source).with_suffix(".memo")
    if target.exists() and not (target / names.NAME).is_file():
        raise InputError(f"{target}: exists and is no memo; name another place with -o")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.parent}: no such folder; make it first")
    return target


def _recipe(
    document: Document,
    located: LocatedModel,
    embedder: OpenEmbedder,
    memory: str,
    dtype: torch.dtype,
    opening: MemoryOpening,
) -> Recipe:
    from minimemo.memory.codec import KVLayout
    from minimemo.memory.profile import load_profile, profile_of
    from minimemo.memory.tiers import TIERS, needs_profile, recipe_of
    from minimemo.models.config import ModelConfig
    from minimemo.retrieval.chunks import DEFAULT_OVERLAP, DEFAULT_SIZE

    if memory not in TIERS:
        raise InputError(f"memory {memory!r} is unknown; choose one of {', '.join(TIERS)}")
    profile = profile_of(located.fingerprint, profiles_dir()) if needs_profile(memory) else None
    if needs_profile(memory) and profile is None:
        raise InputError(
            f"memory {memory!r} needs to know {located.source} first: minimemo calibrate {located.source} --text "
            "FILE... (once; texts of several kinds, about 16,000 tokens in all)"
        )
    config = ModelConfig.from_directory(located.directory)
    stored = str(dtype).removeprefix("torch.")
    layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, stored)
    codec, params = recipe_of(memory, layout, load_profile(profile, profiles_dir()) if profile else None)
    return Recipe(
        document_sha256=document.sha256,
        model=located.fingerprint,
        embedder=embedder.fingerprint,
        codec=codec,
        params=params,
        opening=opening.version,
        chunk_size=min(DEFAULT_SIZE, embedder.embedder.passage_room),
        chunk_overlap=DEFAULT_OVERLAP,
    )


def _passages(
    document: Document,
    embedder: OpenEmbedder,
    model: LanguageModel,
    recipe: Recipe,
    folder: Path,
    on_event: Listener,
) -> list[int]:
    """Writes chunks.json and index.bin; gives the document's token ids."""
    from minimemo.retrieval.chunks import split, with_token_spans
    from minimemo.retrieval.index import VectorIndex

    on_event(Event("tokenize", 0, 1))
    _check_fit(document, model)
    ids, offsets = model.tokenizer.encode_with_offsets(document.text)
    _check_fit(document, model, len(ids))
    spans = embedder.embedder.offsets(document.text)
    chunks = split(document.text, spans, size=recipe.chunk_size, overlap=recipe.chunk_overlap)
    chunks = with_token_spans(chunks, offsets)
    on_event(Event("tokenize", 1, 1))
    vectors = embedder.embedder.embed_passages([chunk.text for chunk in chunks], on_event)
    VectorIndex.build(vectors).save(folder / names.INDEX)
    content = {"document_sha256": document.sha256, "chunks": [asdict(chunk) for chunk in chunks]}
    (folder / names.CHUNKS).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return ids.tolist()


def _check_fit(document: Document, model: LanguageModel, tokens: int | None = None) -> None:
    """The whole document has to fit the model's context, with room to ask.

    `tokens` None: judged by the beginning of a document that is far too long, since tokenizing it whole takes long.
    """
    room = model.engine.config.max_context - DEFAULTS.memory_room() - OPENING_ROOM
    about = ""
    if tokens is None:
        sample = document.text[: _SAMPLE * max(1, room)]
        if len(sample) == len(document.text):
            return
        counted = len(model.tokenizer.encode(sample))
        if counted <= room:  # of very long tokens: only counting them all can tell
            return
        tokens, about = counted * len(document.text) // len(sample), "about "
    if tokens > room:
        raise InputError(
            f"{document.name}: {about}{tokens} tokens, {about}{tokens - room} more than this model's context leaves "
            f"for a document ({room} of {model.engine.config.max_context}); shorten it, or use a model with a longer "
            "context"
        )


def _memory(
    ids: Sequence[int], opening: MemoryOpening, model: LanguageModel, recipe: Recipe, path: Path, on_event: Listener
) -> None:
    """Prefills opening and document; every finished block goes through the codec into memory.bin."""
    from minimemo.memory.blocks import BlockAssembler
    from minimemo.memory.tiers import codec_of
    from minimemo.memory.writer import MemoryWriter

    engine = model.engine
    sequence = [*opening.ids(model.tokenizer), *ids]
    codec = codec_of(recipe.codec, recipe.params)
    header = {
        "model": recipe.model,
        "document": recipe.document_sha256,
        "opening": recipe.opening,
        "opening_tokens": len(sequence) - len(ids),
        "codec": recipe.codec,
        "params": recipe.params,
    }
    assembler = BlockAssembler()
    cache = engine.new_cache(len(sequence))
    with MemoryWriter(path, header, level=codec.level) as writer:
        on_event(Event("read", 0, len(sequence), "tok"))
        for piece in engine.read(cache, sequence):
            for block in assembler.push(piece.ids, piece.keys, piece.values):
                writer.add(block.hash, block.ids, codec.encode(block, len(sequence) - block.start - block.tokens))
            on_event(Event("read", cache.length, len(sequence), "tok"))
        if (rest := assembler.finish()) is not None:
            writer.add(rest.hash, rest.ids, codec.encode(rest, 0))


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` that takes its place when all went well, and is gone otherwise."""
    parent = target.absolute().parent
    try:
        _sweep(parent, target.name)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.{os.getpid()}-", dir=parent))
    except OSError as error:
        raise InputError(f"{parent}: cannot be written ({error.strerror}); name another place with -o") from None
    try:
        yield folder
        folder.chmod(0o755)
        old = folder.with_name(f"{folder.name}-old")
        if target.exists():
            os.rename(target, old)
        os.rename(folder, target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}); free some space or name another place with -o"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path, name: str) -> None:
    """Removes what killed builds of the same memo left behind."""
    for stale in parent.glob(f".{name}.*-*"):
        owner = stale.name[len(name) + 2 :].split("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(stale, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True
