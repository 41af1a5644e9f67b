"""A memo as one file: what goes in comes out, and a stranger's archive writes nowhere else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

import minimemo
from minimemo.cli.arguments import main
from minimemo.errors import InputError, MemoError
from minimemo.memo.registry import remembered
from minimemo.scale.archive import pack, unpack
from tests.conftest import TinyModels


@pytest.fixture(scope="module")
def memo(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    document = minimemo.Document.of("The red user said Hello world. " * 20, "red.txt")
    out = tmp_path_factory.mktemp("archive") / "red.memo"
    return minimemo.build(document, out, memory="int4", **tiny_models.both).folder


def test_what_is_exported_is_what_comes_back(memo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "red.memo.zip"
    assert main(["export", str(memo), str(archive)]) == 0
    assert main(["import", str(archive)]) == 0
    assert "every checksum is right" in capsys.readouterr().out
    back = tmp_path / "red.memo"
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {p.name: p.read_bytes() for p in memo.iterdir()}
    assert back in remembered()
    assert pack(memo, tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    assert main(["import", str(archive)]) == 2 and "exists" in capsys.readouterr().err
    (tmp_path / "red.pdf").write_bytes(b"%PDF-1.7")  # is no archive, wherever it would go
    assert main(["import", str(tmp_path / "red.pdf")]) != 0 and "no archive of a memo" in capsys.readouterr().err
    (tmp_path / "red.pdf").unlink()
    assert main(["export", str(memo), str(archive)]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.zip", "red.memo", "red.memo.zip"]


def test_a_strangers_archive_writes_nothing(memo: Path, tmp_path: Path) -> None:
    good = pack(memo, tmp_path / "good.zip")
    content = good.read_bytes()
    cases = {"empty": b"", "cut": content[:-30], "flipped": content.replace(b"Hello", b"Jello")}
    for name, (member, kind) in {
        "up": ("../up.txt", zipfile.ZIP_STORED), "rooted": ("/tmp/minimemo-up.txt", zipfile.ZIP_STORED),
        "more": ("thesis.txt", zipfile.ZIP_STORED), "bomb": ("places.json", zipfile.ZIP_DEFLATED),
    }.items():  # fmt: skip
        path = tmp_path / "case.zip"
        path.write_bytes(content)
        with zipfile.ZipFile(path, "a", kind) as writer:
            writer.writestr(member, b" " * 100_000)
        cases[name] = path.read_bytes()
        path.unlink()
    path = tmp_path / "case.zip"
    with zipfile.ZipFile(path, "w") as writer:
        writer.writestr("a\nline", b"")
    cases["line"] = path.read_bytes()
    path.unlink()
    letters, table = bytearray(cases["line"]), cases["line"].index(b"PK\x01\x02")
    letters[table + 9] |= 8  # names are UTF-8, it says
    letters[table + 46] = 0xCB
    cases["letters"] = bytes(letters)
    for name, case in cases.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(case)
        with pytest.raises((MemoError, InputError)):
            unpack(path, tmp_path / "out.memo")
        path.unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["good.zip"]
