"""Document -> memo: text to passages and vectors, text to ids to KV to blocks to bytes, the manifest last.

A memo is written into a hidden folder beside its place and renamed: it is whole or absent. A build that was killed or
interrupted, or whose document has grown since, goes on from what there is; the bytes are those of a build in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from minimemo.ask import PROMPTS, Language, MemoryOpening, Prompts, detect_language, memory_opening
from minimemo.errors import InputError, MemoError
from minimemo.events import Event, Listener, silent
from minimemo.files import parse_size, profiles_dir
from minimemo.memo.calibrate import calibrate
from minimemo.memo.folder import MEMO, TAIL, borrow_tail, keep_tail, kept_tails, memo_files, restrict, staging, sweep
from minimemo.memo.manifest import FILES, MEMORY, DocumentInfo, Manifest, ModelInfo, Recipe, file_info
from minimemo.memo.memo import Memo
from minimemo.memo.memorize import Earlier, reading_rule, write_memory
from minimemo.memo.passages import reuse_passages, tokenize, write_passages
from minimemo.memo.registry import remember
from minimemo.memory.codec import Codec, KVLayout
from minimemo.memory.profile import Profile
from minimemo.memory.shipped import profile_at_hand
from minimemo.memory.size import fit, over, recipe_of
from minimemo.memory.tiers import DEFAULT, TIERS, make_codec, needs_profile
from minimemo.models.layers import product_dtype
from minimemo.models.tokenizer import Tokenizer
from minimemo.readers import read_document
from minimemo.runtime import DEFAULT_OPTIONS, LanguageModel, OpenEmbedder, RunOptions, Runtime
from minimemo.text.chunks import DEFAULT_SIZE
from minimemo.text.document import UNNAMED, Document
from minimemo.text.pieces import Encoded


def build(
    source: str | Path | Document | None = None,
    out: str | Path | None = None,
    *,
    text: str | None = None,
    model: str | Path | LanguageModel | None = None,
    embedder: str | Path | OpenEmbedder | None = None,
    memory: str | None = None,
    budget: int | str | None = None,
    window: int | None = None,
    encoding: str | None = None,
    errors: str = "strict",
    password: str | None = None,
    sha256: str | None = None,
    prompts: Mapping[Language, Prompts] = PROMPTS,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
) -> Memo:
    """Reads a document once and leaves a memo folder; gives it back opened.

    source: a file of a kind that `read_document` reads, "-" for standard input, or a Document. text: a text in place of
    a source; name its memo's place. encoding, errors, sha256: see `read_document`; password: of an encrypted PDF. out:
    the folder, by default the document's name with the ending .memo. memory: a tier, see memory/tiers.py, "balanced" by
    default; where one needs a profile of the model and there is none, here or in the package, the model is measured
    first, in minutes, once. budget: bytes that memory.bin may take ("20MB" will do), instead of a tier; notes say what
    to expect. window: tokens back that each token of a longer document sees at least; None: all, while the document
    fits the model's context, and a window past that. A memo of the same document, model and settings that is already
    there is returned as it is. What others may not do with the document's file they may not do with the memo.
    A loaded `model` runs as it was loaded, not as `options` say.
    Raises InputError, ModelError or FetchError. Whatever is raised, no half-written memo is left; after a kill, or a
    KeyboardInterrupt, the same call goes on from there.
    """
    if (source is None) == (text is None):
        raise InputError("build: give a document or a text, one of them")
    if source is None:
        source = Document.of(text or "")
    if memory is not None and budget is not None:
        raise InputError("memory and budget: give one of them; a budget chooses how small the memory gets")
    tier, limit = memory or DEFAULT, None if budget is None else parse_size(str(budget))
    if tier not in TIERS:
        raise InputError(f"memory {tier!r} is unknown; choose one of {', '.join(TIERS)}")
    if isinstance(source, Document):
        document = source
    else:
        document = read_document(source, encoding, password, errors=errors, sha256=sha256)
    for note in document.notes:
        on_event(Event(note, 1, 1, "note"))
    target, mode = _target(source, document, out), _mode(source)
    options.limit_threads()
    models = Runtime(model, embedder, options, on_event)
    before = _intact(target)
    tokens = cache(lambda: tokenize(document, _tokenizer(models), on_event))
    plan = _plan(document, models, tier, limit, window, prompts, before, tokens)
    if before is not None and before.manifest.recipe == plan.recipe and before.places() == document.places:
        sweep(target)
        with suppress(OSError):
            restrict(target, mode)
        remember(target)  # it may have been moved here
        on_event(Event("already built", 1, 1))
        return Memo(target, before.manifest, Runtime(models.model, models.embedder, options), prompts)
    if before is not None and not _alike(before, plan.recipe):
        on_event(Event(f"{target}: the memo there, of other settings or models, is replaced", 1, 1, "note"))
    if plan.note:
        on_event(Event(plan.note, 1, 1, "note"))
    decoder, embedding = models.decoder(), models.opened_embedder()
    engine, codec = decoder.engine, plan.codec
    products = product_dtype(engine.decoder.weights.layers[0].gate_up)
    run = {
        "chunk": engine.chunk, "products": str(products), "numbers": str(codec.layout),
        "model": plan.recipe.model, "reading": plan.recipe.reading,
    }  # fmt: skip
    stamp = {"recipe": asdict(plan.recipe), "run": run}
    with staging(target, stamp, mode) as folder, _earlier(before, plan.recipe, run, folder) as earlier:
        ids = write_passages(document, tokens, embedding.embedder, plan.recipe, folder, on_event)
        tokens.cache_clear()  # of each token 16 bytes that are not needed any longer
        opening = plan.opening.ids(decoder.tokenizer)
        others = kept_tails(run)
        quality = write_memory(ids, opening, engine, plan.recipe, codec, folder, on_event, earlier, others)
        manifest = Manifest(
            DocumentInfo(document.name, document.sha256, len(document.text), len(ids), plan.language),
            ModelInfo(decoder.located.source, plan.recipe.model),
            ModelInfo(embedding.source, plan.recipe.embedder),
            plan.recipe,
            {name: file_info(folder / MEMO / name) for name in FILES if (folder / MEMO / name).exists()},
            quality,
        )
        manifest.save(folder / MEMO)
        whole = len(opening) + len(ids) <= plan.recipe.reading["whole"]
        replaced = before.manifest.recipe if before is not None else None
        keep_tail(folder / TAIL, plan.recipe, run, whole=whole, instead_of=replaced)
    if limit is not None and manifest.files[MEMORY].bytes > limit:
        on_event(Event(over(limit, manifest.files[MEMORY].bytes), 1, 1, "note"))
    remember(target)
    return Memo(target, manifest, Runtime(decoder, embedding, options), prompts)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build is going to do. note: what a budget gives."""

    recipe: Recipe
    codec: Codec
    language: Language
    opening: MemoryOpening
    note: str = ""


def _plan(
    document: Document,
    models: Runtime,
    tier: str,
    limit: int | None,
    window: int | None,
    prompts: Mapping[Language, Prompts],
    before: Memo | None,
    tokens: Callable[[], Encoded],
) -> Plan:
    """Decides all that decides the memo's bytes. The model is loaded only where it has to be measured first."""
    located, embedding, loaded = models.located(), models.opened_embedder(), models.model
    config, language = located.config, detect_language(document.text)
    opening, reading = memory_opening(language, prompts), reading_rule(config.max_context, window)
    dtype = loaded.engine.kv_dtype if isinstance(loaded, LanguageModel) else models.options.cache_dtype()
    layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, str(dtype).removeprefix("torch."))
    profile = _profile(models) if limit is not None or needs_profile(tier) else None
    note = ""
    if limit is None or profile is None:
        codec, params = recipe_of(tier, layout, profile)
    else:
        made_of = before and (before.manifest.document.sha256, before.manifest.model.fingerprint)
        same = before is not None and made_of == (document.sha256, located.fingerprint)
        count = before.manifest.document.tokens if before is not None and same else len(tokens()[0])
        codec, params, note = fit(limit, layout, profile, opening.ids(_tokenizer(models)), count)
    recipe = Recipe(
        document_sha256=document.sha256,
        model=located.fingerprint,
        embedder=embedding.fingerprint,
        codec=codec,
        params=params,
        opening=opening.version,
        chunk_size=min(DEFAULT_SIZE, embedding.embedder.passage_room),
        chunk_overlap=0,
        reading=reading,
    )
    coder = make_codec(codec, params, None if profile is None else lambda _: profile)
    return Plan(recipe, coder, language, opening, note)


def _profile(models: Runtime) -> Profile:
    """The model's newest profile; where there is none, the one that the package has, or one measured now."""
    located = models.located()
    if (profile := profile_at_hand(located.fingerprint, profiles_dir())) is not None:
        return profile
    models.on_event(Event(f"{located.source} is measured for small memories: minutes, once", 1, 1, "note"))
    return calibrate(models.decoder(), on_event=models.on_event)


def _tokenizer(models: Runtime) -> Tokenizer:
    loaded = models.model
    return loaded.tokenizer if isinstance(loaded, LanguageModel) else Tokenizer(models.located().directory)


def _target(source: str | Path | Document, document: Document, out: str | Path | None) -> Path:
    """Where the memo goes; InputError when something else than a memo is there, or nothing can be."""
    if out is not None:
        target = Path(out)
    elif isinstance(source, Document) or not _is_file(source):
        target = Path(f"{Path(document.name).stem}.memo")
    else:
        target = Path(source).with_suffix(".memo")
    try:
        if "\0" in str(target):  # pathlib finds nothing there
            raise ValueError("a NUL in its name")
        if target.is_symlink():  # what it leads to is written, not the link
            target = target.resolve()
        taken = target.exists()
    except RuntimeError:  # a circle
        raise InputError(f"{target}: is a link that leads nowhere; name another place with `out`") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{target}: cannot be a memo ({why}); name another place with `out`") from None
    if taken:
        try:
            memo_files(target)
        except MemoError:
            raise InputError(f"{target}: exists and is no memo; name another place with `out`") from None
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.parent}: no such folder; make it first")
    if out is None:
        with suppress(MemoError):  # where there is no memo, or its manifest is damaged
            there = Manifest.load(target).document
            if there.name != document.name:
                raise InputError(
                    f"{target}: is the memo of {there.name}; name another place for that of {document.name} with `out`"
                )
            if not _is_file(source) and document.name in UNNAMED and there.sha256 != document.sha256:
                raise InputError(
                    f"{target}: is the memo of another text without a name; name a place for this one with `out`, or "
                    "the text itself"
                )
    return target


def _is_file(source: str | Path | Document) -> bool:
    """Whether a memo goes beside the source: it is no stream, nor text of this process."""
    if isinstance(source, Document) or str(source) == "-" or str(source).startswith(("/dev/", "/proc/")):
        return False
    return Path(source).is_file()


def _mode(source: str | Path | Document) -> int:
    """What others may do with the document, and so with a memo of it."""
    if isinstance(source, Document) or not _is_file(source):
        return 0o666
    return Path(source).stat().st_mode & 0o666


def _intact(target: Path) -> Memo | None:
    """The memo that is there already, if all of it is as it was written."""
    try:
        memo = Memo(target, Manifest.load(target))
        memo.check_files()
        return memo
    except MemoError:
        return None


def _alike(before: Memo, recipe: Recipe) -> bool:
    """Whether a memo's recipe differs in the document alone, if at all."""
    return replace(before.manifest.recipe, document_sha256=recipe.document_sha256) == recipe


@contextmanager
def _earlier(before: Memo | None, recipe: Recipe, run: Mapping[str, Any], folder: Path) -> Iterator[Earlier | None]:
    """Lays ready in `folder` what a memo of the document's earlier state offers, and gives its memory, open.

    None where there is no such memo, or its exact end is not kept: then the document is read from its beginning.
    """
    with ExitStack() as stack:
        earlier = None
        if before is not None and _alike(before, recipe):
            with suppress(MemoError):
                reuse_passages(before, folder)
                if (folder / TAIL).exists() or borrow_tail(before.manifest.recipe, run, folder / TAIL):
                    earlier = Earlier(stack.enter_context(before.reader()), before.manifest.quality)
        yield earlier
