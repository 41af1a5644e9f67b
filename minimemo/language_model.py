"""A decoder that runs: engine and tokenizer of one model, and the hash that says which model it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minimemo.events import Listener, silent
from minimemo.models.catalog import CATALOG, defaults, resolve
from minimemo.models.converted import as_directory
from minimemo.models.fingerprint import decoder_files, fingerprint
from minimemo.options import DEFAULT_OPTIONS, RunOptions

if TYPE_CHECKING:
    from minimemo.engine.engine import Engine
    from minimemo.models.tokenizer import Tokenizer


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
