"""The models of one run: its options, a decoder, an embedder, what writes answers; loaded when first needed, shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minimemo.ask import Language, LocalGenerator, Prompts, Settings, TextGenerator
from minimemo.ask.endpoint import Endpoint, EndpointGenerator, is_address
from minimemo.errors import InputError, MemoError
from minimemo.events import Listener, silent
from minimemo.hub.catalog import CATALOG, defaults, resolve
from minimemo.models.fingerprint import decoder_files, fingerprint

if TYPE_CHECKING:
    import torch

    from minimemo.engine.engine import Engine
    from minimemo.memo.manifest import ModelInfo
    from minimemo.models.tokenizer import Tokenizer
    from minimemo.search.embedder import Embedder

DTYPES = ("float32", "bfloat16", "int8")
KV_DTYPES = ("float32", "bfloat16", "int8", "int4")
_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """None: what this machine does best. Raises InputError for names and numbers that are not offered.

    dtype: of large products and dense weights; int8: activations of products with quantized weights are rounded to 8
    bits. kv_dtype: of keys and values at work; None: that of dense products; int8 and int4: of an opened memory, with
    what is read and written beside it in that of dense products. threads: of torch and of native kernels, in the whole
    process. device: as torch names it.
    """

    dtype: str | None = None
    kv_dtype: str | None = None
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value, known in (("dtype", self.dtype, DTYPES), ("kv-dtype", self.kv_dtype, KV_DTYPES)):
            if value is not None and value not in known:
                raise InputError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be 1 or more, not {self.threads}")

    def limit_threads(self) -> None:
        """Makes this process compute on `threads` threads from here on, where that is given."""
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def product_dtype(self) -> torch.dtype:
        """Of products of many rows."""
        from minimemo.models.weights import preferred_dtype

        return _torch_dtype(self.dtype) if self.dtype else preferred_dtype(self.device)

    def cache_dtype(self) -> torch.dtype:
        """Of dense caches, which is also what a memory is built from."""
        from minimemo.models.weights import dense_dtype

        if self.kv_dtype in ("float32", "bfloat16"):
            return _torch_dtype(self.kv_dtype)
        return _torch_dtype(self.dtype) if self.dtype not in (None, "int8") else dense_dtype(self.device)

    def memory_bits(self) -> int | None:
        """Of a number of an opened memory; None: it is dense."""
        return _BITS.get(self.kv_dtype or "")


DEFAULT_OPTIONS = RunOptions()


def _torch_dtype(name: str | None) -> torch.dtype:
    import torch

    found = getattr(torch, str(name))
    assert isinstance(found, torch.dtype)
    return found


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A decoder on this disk, not loaded. source: what finds it again, a catalogue name or an absolute path."""

    source: str
    directory: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """One engine with its tokenizer; serves any number of memos, one call at a time."""

    located: LocatedModel
    engine: Engine
    tokenizer: Tokenizer


def find(given: str, on_event: Listener = silent) -> tuple[str, Path]:
    """A model's name or path -> what finds it again (the name, or an absolute path), and what a loader is given.

    A catalogue model that is missing is pulled.
    """
    found = resolve(given, pull_missing=given in CATALOG, on_event=on_event)
    source = str(found.absolute()) if Path(given).expanduser().exists() and given not in CATALOG else given
    return source, found


def locate_model(name: str | Path | None = None, on_event: Listener = silent) -> LocatedModel:
    """Finds a decoder by catalogue name, directory, .gguf file or a hub's owner/name; None: the default one.

    A catalogue model that is missing is pulled, a GGUF file is converted once. Raises InputError, ModelError or
    FetchError.
    """
    from minimemo.hub.folder import as_directory

    source, found = find(str(name or defaults()[0]), on_event)
    directory = as_directory(found, on_event)
    return LocatedModel(source, directory, fingerprint(decoder_files(directory)))


def load_model(
    model: str | Path | LocatedModel | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
) -> LanguageModel:
    """Loads a decoder into memory, to run as `options` say."""
    from minimemo.engine.engine import Engine
    from minimemo.models.tokenizer import Tokenizer
    from minimemo.models.weights import load_decoder

    options.limit_threads()

    located = model if isinstance(model, LocatedModel) else locate_model(model, on_event)
    tokenizer = Tokenizer.load(located.directory)
    decoder = load_decoder(located.directory, dtype=options.product_dtype(), device=options.device, on_event=on_event)
    return LanguageModel(
        located, Engine(decoder, kv_dtype=options.cache_dtype(), memory_bits=options.memory_bits()), tokenizer
    )


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
    from minimemo.search.embedder import Embedder

    source, found = find(str(name or defaults()[1]), on_event)
    return OpenEmbedder(source, Embedder.load(found))


@dataclass(slots=True)
class Runtime:
    """model, embedder: names, loaded ones, or None for those that the first memo names. prompts and settings are the
    loop's. generator: what writes answers, an endpoint or its address, or another model; None: the memory's own."""

    model: LanguageModel | str | Path | None
    embedder: OpenEmbedder | str | Path | None
    prompts: Mapping[Language, Prompts]
    settings: Settings
    options: RunOptions
    on_event: Listener
    generator: Endpoint | LanguageModel | str | Path | None = None

    def __post_init__(self) -> None:
        if is_address(self.generator):
            self.generator = Endpoint(str(self.generator))

    def model_for(self, memo: Path, built_with: ModelInfo) -> LanguageModel:
        """The decoder, when it is the one that a memo was built with. MemoError when it is another, before it loads."""
        if not isinstance(self.model, LanguageModel):
            located = locate_model(self.model or built_with.source, self.on_event)
            _check(memo, "model", built_with, located.source, located.fingerprint)
            self.model = load_model(located, self.options, self.on_event)
        located = self.model.located
        _check(memo, "model", built_with, located.source, located.fingerprint)
        return self.model

    def embedder_for(self, memo: Path, built_with: ModelInfo) -> Embedder:
        """The embedder, when it is the one that a memo was built with; MemoError when it is another."""
        if not isinstance(self.embedder, OpenEmbedder):
            self.embedder = open_embedder(self.embedder or built_with.source, self.on_event)
        _check(memo, "embedder", built_with, self.embedder.source, self.embedder.fingerprint)
        return self.embedder.embedder

    def generator_for(self, own: LanguageModel) -> TextGenerator | None:
        """What writes answers beside a memory of the model `own`; None when that is to do it itself."""
        if isinstance(self.generator, Endpoint):
            return EndpointGenerator(self.generator, lambda text: len(own.tokenizer.encode(text)))
        if self.generator is None:
            return None
        if not isinstance(self.generator, LanguageModel):
            located = locate_model(self.generator, self.on_event)
            same = located.fingerprint == own.located.fingerprint
            self.generator = own if same else load_model(located, self.options, self.on_event)
        return LocalGenerator(self.generator.engine, self.generator.tokenizer)


def _check(memo: Path, what: str, built_with: ModelInfo, source: str, fingerprint: str) -> None:
    if fingerprint != built_with.fingerprint:
        raise MemoError(
            f"{memo}: built with another {what} ({built_with.source}) than {source}; name that one with --{what}, or "
            "build the memo again"
        )
