"""What memos are asked with: a decoder and an embedder, loaded when first needed, shared by those asked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minimemo.endpoint import Endpoint, EndpointGenerator, is_address
from minimemo.errors import MemoError
from minimemo.events import Listener, silent
from minimemo.language_model import LanguageModel, find, load_model, locate_model
from minimemo.loop import Language, LocalGenerator, Prompts, Settings, TextGenerator
from minimemo.models.catalog import defaults
from minimemo.options import RunOptions

if TYPE_CHECKING:
    from minimemo.manifest import ModelInfo
    from minimemo.retrieval.embedder import Embedder


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
