"""Document -> memo: text to passages and vectors, text to ids to KV to blocks to bytes, the manifest last.

A memo is written into a hidden folder beside its place and renamed: it is whole or absent. A build that was killed, or
whose document has grown since, goes on from what there is; the bytes are those of a build in one go.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimemo.ask import PROMPTS, Language, MemoryOpening, Prompts, detect_language, memory_opening
from minimemo.errors import InputError, MemoError
from minimemo.events import Event, Listener, silent
from minimemo.files import parse_size, profiles_dir
from minimemo.memo import manifest as names
from minimemo.memo import tails
from minimemo.memo.folder import MEMO, TAIL, memo_files, scratch, sweep
from minimemo.memo.manifest import DocumentInfo, Manifest, ModelInfo, Recipe, file_info
from minimemo.memo.memo import Memo
from minimemo.memo.memorize import reading_rule, write_memory
from minimemo.memo.passages import reuse_passages, write_passages
from minimemo.memo.shelf import remember
from minimemo.memory.size import fit, over
from minimemo.memory.tiers import DEFAULT, TIERS, needs_profile, recipe_of
from minimemo.runtime import (
    DEFAULT_OPTIONS,
    LanguageModel,
    LocatedModel,
    OpenEmbedder,
    RunOptions,
    load_model,
    locate_model,
    open_embedder,
)
from minimemo.text.document import Document, read_document

if TYPE_CHECKING:
    import torch

    from minimemo.memory.codec import KVLayout
    from minimemo.memory.profile import Profile
    from minimemo.memory.reader import MemoryReader


def build(
    source: str | Path | Document,
    out: str | Path | None = None,
    *,
    model: str | Path | LanguageModel | None = None,
    embedder: str | Path | OpenEmbedder | None = None,
    memory: str | None = None,
    budget: int | str | None = None,
    window: int | None = None,
    encoding: str | None = None,
    prompts: Mapping[Language, Prompts] = PROMPTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
) -> Memo:
    """Reads a document once and leaves a memo folder; gives it back opened.

    source: a text file, "-" for standard input, or a Document. out: the folder, by default the document's name with
    the ending .memo. memory: a tier, see memory/tiers.py, "balanced" by default; where one needs a profile of the model
    and there is none, the model is measured first, which takes minutes, once. budget: bytes that memory.bin may take
    ("20MB" will do), instead of a tier; notes say what to expect. window: tokens back that each token of a longer
    document sees at least; None: all, while the document fits the model's context, and a window past that. A memo of
    the same document, model and settings that is already there is returned as it is.
    A loaded `model` runs as it was loaded, not as `options` say.
    Raises InputError, ModelError or FetchError. Whatever is raised, no half-written memo is left; after a kill the same
    call goes on from there.
    """
    from minimemo.memory.tiers import make_codec

    if memory is not None and budget is not None:
        raise InputError("memory and budget: give one of them; a budget chooses how small the memory gets")
    tier, limit = memory or DEFAULT, None if budget is None else parse_size(str(budget))
    if tier not in TIERS:
        raise InputError(f"memory {tier!r} is unknown; choose one of {', '.join(TIERS)}")
    document = source if isinstance(source, Document) else read_document(source, encoding)
    target = _target(source, document, out)
    options.limit_threads()
    located = model.located if isinstance(model, LanguageModel) else locate_model(model, on_event)
    opened = embedder if isinstance(embedder, OpenEmbedder) else open_embedder(embedder, on_event)
    language = detect_language(document.text)
    opening = memory_opening(language, prompts)
    layout = _layout(located, model.engine.kv_dtype if isinstance(model, LanguageModel) else options.cache_dtype())
    known, profile, fitted = _known(target), None, None
    if limit is not None or needs_profile(tier):
        profile, model = _profile(located, model, options, on_event)
    if limit is not None and profile is not None:
        before, tokens = _counted(document, opening, located, model, known)
        fitted = fit(limit, layout, profile, before, tokens)
    codec, params = recipe_of(tier, layout, profile) if fitted is None else (fitted.codec, fitted.params)
    recipe = _recipe(document, located, opened, codec, params, opening, window)
    if known is not None and known.recipe == recipe:
        sweep(target)
        remember(target)  # it may have been moved here
        on_event(Event("already built", 1, 1))
        return Memo(target, known, model=model, embedder=opened, prompts=prompts, options=options)
    if fitted is not None:
        on_event(Event(fitted.note, 1, 1, "note"))
    language_model = model if isinstance(model, LanguageModel) else load_model(located, options, on_event)
    run = {"chunk": language_model.engine.chunk, "products": str(_products(language_model))}
    stamp = {"recipe": asdict(recipe), "run": run}

    with scratch(target, stamp) as folder, ExitStack() as stack:
        old = None
        if known is not None and _grew(known.recipe, recipe):
            earlier = {"recipe": asdict(known.recipe), "run": run}
            old = _reuse(Memo(target, known), earlier, folder, stack)
        ids = write_passages(document, language_model.tokenizer, opened.embedder, recipe, folder, on_event)
        before = opening.ids(language_model.tokenizer)
        coder = make_codec(codec, params, None if profile is None else lambda _: profile)
        judged = known.quality if known is not None else ()
        quality = write_memory(ids, before, language_model.engine, recipe, coder, folder, on_event, old, judged)
        info = DocumentInfo(document.name, document.sha256, len(document.text), len(ids), language)
        files = {name: file_info(folder / MEMO / name) for name in (names.MEMORY, names.INDEX, names.CHUNKS)}
        manifest = Manifest(
            info,
            ModelInfo(located.source, located.fingerprint),
            ModelInfo(opened.source, recipe.embedder),
            recipe,
            files,
            quality,
        )
        manifest.save(folder / MEMO)
        tails.keep(folder / TAIL, stamp, instead_of=earlier if old is not None else None)
    if limit is not None and files[names.MEMORY].bytes > limit:
        on_event(Event(over(limit, files[names.MEMORY].bytes), 1, 1, "note"))
    remember(target)
    return Memo(target, manifest, model=language_model, embedder=opened, prompts=prompts)


def _profile(
    located: LocatedModel, model: LanguageModel | str | Path | None, options: RunOptions, on_event: Listener
) -> tuple[Profile, LanguageModel | str | Path | None]:
    """The model's profile, measured now where there is none; and the model, loaded if that was needed."""
    from minimemo.memo.calibrate import calibrate
    from minimemo.memory.profile import load_profile, profile_of

    if (known := profile_of(located.fingerprint, profiles_dir())) is not None:
        return load_profile(known, profiles_dir()), model
    on_event(Event(f"{located.source} is measured for small memories: minutes, once", 1, 1, "note"))
    loaded = model if isinstance(model, LanguageModel) else load_model(located, options, on_event)
    return calibrate(loaded, on_event=on_event), loaded


def _counted(
    document: Document,
    opening: MemoryOpening,
    located: LocatedModel,
    model: LanguageModel | str | Path | None,
    known: Manifest | None,
) -> tuple[list[int], int]:
    """Ids of the opening, and how many tokens the document has."""
    from minimemo.models.tokenizer import Tokenizer
    from minimemo.text.pieces import encode_in_pieces

    tokenizer = model.tokenizer if isinstance(model, LanguageModel) else Tokenizer.load(located.directory)
    before = opening.ids(tokenizer)
    if known is not None and (known.document.sha256, known.model.fingerprint) == (document.sha256, located.fingerprint):
        return before, known.document.tokens
    return before, len(encode_in_pieces(document.text, tokenizer.encode_with_offsets)[0])


def _known(target: Path) -> Manifest | None:
    """The manifest of the memo that is there already, if all of it is as it was written."""
    try:
        memo = Memo(target, Manifest.load(target))
        memo.check_files()
        return memo.manifest
    except MemoError:
        return None


def _products(model: LanguageModel) -> torch.dtype:
    from minimemo.models.linear import product_dtype

    return product_dtype(model.engine.decoder.weights.layers[0].gate_up)


def _grew(old: Recipe, new: Recipe) -> bool:
    """Whether two recipes differ in the document alone: perhaps it grew."""
    return replace(old, document_sha256=new.document_sha256) == new


def _reuse(old: Memo, stamp: Mapping[str, Any], folder: Path, stack: ExitStack) -> MemoryReader | None:
    """Lays ready in `folder` what a memo of the document's earlier state offers; its memory, open until `stack` ends.

    None where its exact end is not kept, or the memo is damaged: then the document is read from its beginning.
    """
    try:
        reuse_passages(old, folder)
        if not (folder / TAIL).exists() and not tails.borrow(stamp, folder / TAIL):
            return None
        return stack.enter_context(old.reader())
    except MemoError:
        return None


def _target(source: str | Path | Document, document: Document, out: str | Path | None) -> Path:
    """Where the memo goes; InputError when something else than a memo is there, or nothing can be."""
    if out is not None:
        target = Path(out)
    elif isinstance(source, Document) or str(source) == "-":
        target = Path(f"{Path(document.name).stem}.memo")
    else:
        target = Path(source).with_suffix(".memo")
    if target.is_symlink():  # what it leads to is written, not the link
        try:
            target = target.resolve()
        except (OSError, RuntimeError):  # a circle
            raise InputError(f"{target}: is a link that leads nowhere; name another place with -o") from None
    if target.exists():
        try:
            memo_files(target)
        except MemoError:
            raise InputError(f"{target}: exists and is no memo; name another place with -o") from None
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.parent}: no such folder; make it first")
    if out is None and (there := _document_of(target)) not in (None, document.name):
        raise InputError(f"{target}: is the memo of {there}; name another place for that of {document.name} with -o")
    return target


def _document_of(memo: Path) -> str | None:
    """The name of the document that a memo is of; None where there is no memo that can be read."""
    try:
        return Manifest.load(memo).document.name
    except MemoError:
        return None


def _layout(located: LocatedModel, dtype: torch.dtype) -> KVLayout:
    from minimemo.memory.codec import KVLayout
    from minimemo.models.config import ModelConfig

    config = ModelConfig.from_directory(located.directory)
    return KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, str(dtype).removeprefix("torch."))


def _recipe(
    document: Document,
    located: LocatedModel,
    embedder: OpenEmbedder,
    codec: str,
    params: Mapping[str, Any],
    opening: MemoryOpening,
    window: int | None,
) -> Recipe:
    from minimemo.models.config import ModelConfig
    from minimemo.text.chunks import DEFAULT_OVERLAP, DEFAULT_SIZE

    config = ModelConfig.from_directory(located.directory)
    return Recipe(
        document_sha256=document.sha256,
        model=located.fingerprint,
        embedder=embedder.fingerprint,
        codec=codec,
        params=params,
        opening=opening.version,
        chunk_size=min(DEFAULT_SIZE, embedder.embedder.passage_room),
        chunk_overlap=DEFAULT_OVERLAP,
        reading=reading_rule(config.max_context, window),
    )
