"""manifest.json: what a memo is made of, and the hashes that hold its files together."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from minimemo.errors import MemoError
from minimemo.files import content_hash, parse_json
from minimemo.text.scripts import Language

FORMAT = 1
NAME = "manifest.json"
MEMORY, INDEX, CHUNKS = "memory.bin", "index.bin", "chunks.json"
PLACES = "places.json"  # of documents that have pages, headings or times
FILES = (MEMORY, INDEX, CHUNKS, PLACES)
AGAIN = "build it again: minimemo build DOCUMENT"
Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    name: str
    sha256: str  # of the text in UTF-8
    characters: int
    tokens: int  # of the decoder
    language: Language


@dataclass(frozen=True, slots=True)
class ModelInfo:
    source: str  # a catalogue name, or the absolute path it was built with
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a memo's bytes; equal recipes give equal memos."""

    document_sha256: str
    model: str  # fingerprint
    embedder: str  # fingerprint
    codec: str
    params: Mapping[str, Any]  # of the codec
    opening: str  # version of the text before the document
    chunk_size: int  # tokens of the embedder
    chunk_overlap: int
    # Tokens (opening included) up to which each sees all before it; of longer documents it sees the opening, the
    # `first` tokens behind it and a window (engine/reading.py). Empty: a memo of times when longer ones were refused.
    reading: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judged:
    """What was measured at one place of a memory (quality.py), against the exact one.

    end: tokens before the place, the opening's included; tokens: how many that follow were looked at; kl: mean
    divergence of the distributions after each of them, in nats; top1: share of equal first choices.
    """

    end: int
    tokens: int
    kl: float
    top1: float


@dataclass(frozen=True, slots=True)
class FileInfo:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    document: DocumentInfo
    model: ModelInfo
    embedder: ModelInfo
    recipe: Recipe
    files: Mapping[str, FileInfo]
    quality: tuple[Judged, ...] = ()  # nothing in memos of times when it was not measured

    def save(self, folder: Path) -> None:
        body = {"format": FORMAT, **asdict(self)}
        text = json.dumps({**body, "checksum": checksum(body)}, ensure_ascii=False, indent=1, sort_keys=True)
        (folder / NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Raises MemoError when `folder` is no memo, or one that is damaged or of another version."""
        path = folder / NAME
        try:
            if not path.is_file() and path.exists():
                raise MemoError(f"{path}: is no file; {AGAIN}")
            content = path.read_bytes()
        except FileNotFoundError:
            what = "has no manifest.json, so it is no memo" if folder.is_dir() else "no such memo"
            raise MemoError(f"{folder}: {what}; {_beside(folder) or 'make one: minimemo build DOCUMENT'}") from None
        except NotADirectoryError:
            mend = _beside(folder) or f"make one: minimemo build {folder}"
            raise MemoError(f"{folder}: is a file, not a memo; {mend}") from None
        except OSError as error:
            raise MemoError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: Path | str) -> Manifest:
        """A manifest from its bytes; path: where they were, for messages. Raises MemoError like `load`."""
        try:
            body = parse_json(content)
        except ValueError:
            raise MemoError(f"{path}: damaged (not JSON); {AGAIN}") from None
        if not isinstance(body, dict) or "format" not in body:
            raise MemoError(f"{path}: damaged (no format); {AGAIN}")
        if body["format"] != FORMAT:
            raise MemoError(f"{path}: memo format {body['format']!r}, but this minimemo reads format {FORMAT}; {AGAIN}")
        if body.pop("checksum", None) != checksum(body):
            raise MemoError(f"{path}: damaged (checksum); {AGAIN}")
        try:
            return cls(
                record(DocumentInfo, body["document"]),
                record(ModelInfo, body["model"]),
                record(ModelInfo, body["embedder"]),
                _checked(record(Recipe, body["recipe"])),
                {n: record(FileInfo, body["files"][n]) for n in FILES if n != PLACES or n in body["files"]},
                tuple(record(Judged, judged) for judged in body.get("quality", ())),
            )
        except (KeyError, TypeError) as error:
            raise MemoError(f"{path}: damaged ({error}); {AGAIN}") from None


def records(path: Path, name: str, kind: type[Record]) -> list[Record]:
    """The records that a JSON file has as `name`. Raises MemoError for one that has none such."""
    try:
        return [record(kind, body) for body in parse_json(path.read_bytes())[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise MemoError(f"{path}: damaged ({error}); {AGAIN}") from None


def record(kind: type[Record], body: Any) -> Record:
    """A record from JSON, lists as tuples. Raises TypeError for other fields, and for values of other types: a memo
    with right checksums may be an enemy's."""
    if not isinstance(body, dict):
        raise TypeError(f"{body!r:.40} in place of fields")
    made = kind(**{name: tuple(value) if type(value) is list else value for name, value in body.items()})
    for name, type_ in _types(cast(Hashable, kind)).items():
        if not _fits(getattr(made, name), type_):
            raise TypeError(f"{name} is {getattr(made, name)!r:.40}")
    return made


@lru_cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, type_: Any) -> bool:
    if type_ is int:
        return type(value) is int and -1 <= value < 1 << 63
    if type_ is float:
        return type(value) in (int, float) and math.isfinite(value)
    inner = get_args(type_)
    if get_origin(type_) is tuple:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    if get_origin(type_) is Literal:
        return value in inner
    if get_origin(type_) is UnionType:
        return any(_fits(value, one) for one in inner)
    if inner:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    return type_ is Any or isinstance(value, type_)


def _checked(recipe: Recipe) -> Recipe:
    """Raises KeyError or TypeError where the codec's parameters do not tell the memory's shape."""
    for name in ("num_layers", "num_kv_heads", "head_dim"):
        if not _fits(recipe.params[name], int) or recipe.params[name] < 1:
            raise TypeError(f"{name} is {recipe.params[name]!r:.40}")
    return recipe


def _beside(path: Path) -> str:
    """Names the memo that lies beside what was named in its place, a document perhaps; "" where none does."""
    memo = path.with_suffix(".memo") if path.name else path
    return f"there is {memo}" if memo != path and (memo / NAME).is_file() else ""


def file_info(path: Path) -> FileInfo:
    """Size and hash of a file as it is now."""
    return FileInfo(path.stat().st_size, content_hash(path))


def checksum(body: Mapping[str, Any]) -> str:
    """Of JSON-able content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
