"""The models of one run: options, decoder, embedder, generator; loaded once, shared."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, TypeVar

from minimemo.errors import InputError, MinimemoError
from minimemo.events import Event, Listener, silent
from minimemo.hub.catalog import CATALOG, defaults, pulled, resolve, writer
from minimemo.hub.download import note
from minimemo.models.config import ModelConfig
from minimemo.models.device import Device, check_name, choose, full
from minimemo.models.fingerprint import decoder_files, fingerprint

if TYPE_CHECKING:
    import torch

    from minimemo.engine.engine import Engine
    from minimemo.models.packed import PackedFile
    from minimemo.models.tokenizer import Tokenizer
    from minimemo.search.embedder import Embedder

T = TypeVar("T")
DTYPES = ("float32", "bfloat16", "float16", "int8")
KV_DTYPES = ("float32", "bfloat16", "float16", "int8", "int4")
_ON_GPU = ("float16",)  # a CPU multiplies them several times slower than any other
_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How models run. None leaves the choice to what this machine does best.

    dtype: number type of matrix products and of dense weights; int8 rounds the inputs of products with quantized
    weights to 8 bits. kv_dtype: number type of keys and values at work, by default that of dense products; int8 and
    int4 are for an opened memory alone: what is read and written beside it stays in that of dense products. threads:
    that torch and native kernels use, in the whole process. device: one of DEVICES, or cuda:N; auto is a GPU that the
    kernels serve, else the CPU. float16 is for a GPU. Raises InputError for names and numbers that are not offered;
    `place`, for a GPU that cannot be used.
    """

    dtype: str | None = None
    kv_dtype: str | None = None
    threads: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, value, choices in (("dtype", self.dtype, DTYPES), ("kv-dtype", self.kv_dtype, KV_DTYPES)):
            if value is not None and value not in choices:
                raise InputError(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")
        check_name(self.device)
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be 1 or more, not {self.threads}")

    def place(self) -> Device:
        """The device that a run with these options takes. Raises InputError where it cannot."""
        found = choose(self.device)
        if found.name == "cpu" and (named := next((x for x in (self.dtype, self.kv_dtype) if x in _ON_GPU), None)):
            raise InputError(f"dtype {named} is for a GPU; on a CPU take bfloat16, which is as small and quicker")
        return found

    def limit_threads(self) -> None:
        """Makes this process compute on `threads` threads from here on, where that is given."""
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def product_dtype(self) -> torch.dtype:
        """The number type of products of many rows."""
        from minimemo.models.weights import preferred_dtype

        return _torch_dtype(self.dtype) if self.dtype else preferred_dtype(self.place().name)

    def cache_dtype(self) -> torch.dtype:
        """The number type of dense caches, which is also what a memory is built from."""
        from minimemo.models.weights import dense_dtype

        if self.kv_dtype in ("float32", "bfloat16", "float16"):
            return _torch_dtype(self.kv_dtype)
        return _torch_dtype(self.dtype) if self.dtype not in (None, "int8") else dense_dtype(self.place().name)

    def memory_bits(self) -> int | None:
        """Bits of each number of an opened memory; None: it is dense."""
        return _BITS.get(self.kv_dtype or "")


DEFAULT_OPTIONS = RunOptions()


def _torch_dtype(name: str | None) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, str(name))
    return dtype


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A decoder on this disk, not loaded. source: what finds it again, a catalogue name or an absolute path."""

    source: str
    directory: Path
    fingerprint: str
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """One engine with its tokenizer; serves any number of memos."""

    located: LocatedModel
    engine: Engine
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True)
class OpenEmbedder:
    """An embedder with the name that finds it again."""

    source: str
    embedder: Embedder

    @property
    def fingerprint(self) -> str:
        return self.embedder.fingerprint()


def find(given: str, on_event: Listener = silent) -> tuple[str, Path]:
    """A model's name or path -> what finds it again (the name, or an absolute path), and what a loader is given.

    A catalogue model that is missing is pulled.
    """
    path = resolve(given, pull_missing=given in CATALOG, on_event=on_event)
    source = str(path.absolute()) if Path(given).expanduser().exists() and given not in CATALOG else given
    return source, path


def locate_model(name: str | Path | None = None, on_event: Listener = silent) -> LocatedModel:
    """Finds a decoder by catalogue name, directory, .gguf file or a hub's owner/name; None: the default one.

    A catalogue model that is missing is pulled, a GGUF file is converted once. Raises InputError, ModelError or
    FetchError.
    """
    from minimemo.hub.folder import as_directory

    source, path = find(str(name or defaults()[0]), on_event)
    directory = as_directory(path, on_event)
    return LocatedModel(source, directory, fingerprint(decoder_files(directory)), ModelConfig.from_directory(directory))


def load_model(
    model: str | Path | LocatedModel | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
    on_event: Listener = silent,
    *,
    beside: LanguageModel | None = None,
    kept: PackedFile | None = None,
) -> LanguageModel:
    """Loads a decoder into memory, to run as `options` say. beside: a loaded one, which shares its tokenizer where that
    is the same. kept: what is kept packed of it, where it is being read already."""
    from minimemo.engine.engine import Engine
    from minimemo.kernels.native.library import unavailable
    from minimemo.models.packed import PackedFile
    from minimemo.models.tokenizer import Tokenizer, same_tokenizer
    from minimemo.models.weights import load_decoder

    device = options.place()
    if beside is None:  # it has told
        on_event(device_event(device))
        if device.name == "cpu" and (why := unavailable()) and os.environ.get("MINIMEMO_NATIVE") != "off":
            on_event(Event(f"slower, and not quite the same bytes: no native library: {why}", 1, 1, "note"))
    options.limit_threads()
    located = model if isinstance(model, LocatedModel) else locate_model(model, on_event)
    with ThreadPoolExecutor(1) as pool:  # while weights are read
        shared = beside and same_tokenizer(beside.located.directory, located.directory)
        tokenizer = pool.submit(lambda: beside.tokenizer if beside and shared else Tokenizer(located.directory))
        decoder = _fitted(
            located.directory, device.name,
            lambda: load_decoder(
                located.directory, located.config, dtype=options.product_dtype(), device=device.name,
                kept=kept or PackedFile.of(located.fingerprint), on_event=on_event,
            ),
        )  # fmt: skip
    engine = Engine(decoder, kv_dtype=options.cache_dtype(), memory_bits=options.memory_bits())
    if device.name.startswith("cuda"):
        engine.warm(on_event)
    return LanguageModel(located, engine, tokenizer.result())


def device_event(device: Device) -> Event:
    """Tells where a run computes: a note where a GPU that is there is left out, a detail for who asks otherwise."""
    return note(device.note) if device.note else Event(f"device: {device.name}, {device.title}", 1, 1, "detail")


def open_embedder(name: str | Path | None = None, on_event: Listener = silent, *, device: str = "auto") -> OpenEmbedder:
    """Loads an embedder by catalogue name, directory or a hub's owner/name; None: the default. Pulled if missing.

    device: as in RunOptions.
    """
    from minimemo.search.embedder import Embedder

    source, path = find(str(name or defaults()[1]), on_event)
    here = choose(device).name
    return OpenEmbedder(source, _fitted(path, here, lambda: Embedder.load(path, device=here)))


def _fitted(path: Path, device: str, load: Callable[[], T]) -> T:
    """What `load` makes of a model's files; raises InputError where the GPU has no room for it."""
    import torch

    try:
        return load()
    except torch.OutOfMemoryError:
        held = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
        raise full(path.name, held, device) from None


@dataclass(slots=True)
class Runtime:
    """The models that memos share: loaded ones or names; None is what the first memo names, or the default.

    generator: another decoder, loaded or named, that writes the answers; anything else in its place is left to those
    who ask. None: see `second_decoder`.
    """

    model: LanguageModel | LocatedModel | str | Path | None = None
    embedder: OpenEmbedder | str | Path | None = None
    options: RunOptions = DEFAULT_OPTIONS
    on_event: Listener = silent
    generator: object = None
    _loading: RLock = field(default_factory=RLock, repr=False)  # threads that need a model first load it once
    _ahead: dict[str, PackedFile] = field(default_factory=dict, repr=False)  # being read, by the model's fingerprint

    def located(self, default: str | None = None) -> LocatedModel:
        """Where the decoder lies, without loading it. default: the one that is taken where none was named."""
        if isinstance(self.model, LanguageModel):
            return self.model.located
        if not isinstance(self.model, LocatedModel):
            self.model = locate_model(self.model or default, self.on_event)
        return self.model

    def decoder(self) -> LanguageModel:
        """The decoder, loaded."""
        with self._loading:
            if not isinstance(self.model, LanguageModel):
                beside = self.generator if isinstance(self.generator, LanguageModel) else None
                self.model = self._load(self.located(), beside)
            return self.model

    def _load(self, located: LocatedModel, beside: LanguageModel | None) -> LanguageModel:
        kept = self._ahead.pop(located.fingerprint, None)
        return load_model(located, self.options, self.on_event, beside=beside, kept=kept)

    def tokenizer(self) -> Tokenizer:
        """The decoder's, without loading that; one that is loaded beside it shares its own where that is the same."""
        from minimemo.models.tokenizer import Tokenizer, same_tokenizer

        with self._loading:
            if isinstance(self.model, LanguageModel):
                return self.model.tokenizer
            directory, beside = self.located().directory, self.generator
            if isinstance(beside, LanguageModel) and same_tokenizer(beside.located.directory, directory):
                return beside.tokenizer
            return Tokenizer(directory)

    def opened_embedder(self, default: str | None = None) -> OpenEmbedder:
        """The embedder, loaded. default: the one that is taken where none was named."""
        with self._loading:
            if not isinstance(self.embedder, OpenEmbedder):
                self.embedder = open_embedder(self.embedder or default, self.on_event, device=self.options.device)
            return self.embedder

    def second_decoder(self) -> LanguageModel | None:
        """The generator, loaded; the decoder itself where it is the same model; None where it is no model.

        Where none is named, the catalogue's writer writes beside the default decoder's memories, if it was pulled.
        """
        with self._loading:
            if (located := self._generator_located()) is not None:
                same = located.fingerprint == self.located().fingerprint
                beside = self.model if isinstance(self.model, LanguageModel) else None
                self.generator = self.decoder() if same else self._load(located, beside)
            elif self.generator is None and self.located().source == defaults()[0] and (name := writer()):
                self.on_event(note(f"{name} would answer better: `minimemo pull` fetches it"))
            return self.generator if isinstance(self.generator, LanguageModel) else None

    def _generator_located(self) -> LocatedModel | None:
        """Where the generator lies, if it is a model that is not loaded."""
        if self.generator is None and self.located().source == defaults()[0]:
            name = writer()
            self.generator = name if name in {model.name for model in pulled()} else None
        if isinstance(self.generator, (str, Path)):
            self.generator = locate_model(self.generator, self.on_event)
        return self.generator if isinstance(self.generator, LocatedModel) else None

    def read_ahead(self, default: str | None = None) -> None:
        """Begins to read, on a CPU, the model that writes answers: what is loaded before it need not wait for that.
        default: the decoder that is taken where none was named. One that is not found is left to whoever loads it."""
        from minimemo.kernels.native.library import unavailable
        from minimemo.models.packed import PackedFile

        with self._loading, suppress(MinimemoError):
            self.located(default)
            located = self._generator_located()
            if located is None and self.generator is None and not isinstance(self.model, LanguageModel):
                located = self.located()
            if located is not None and self.options.place().name == "cpu" and unavailable() is None:
                self._ahead[located.fingerprint] = PackedFile.of(located.fingerprint).read_ahead()
