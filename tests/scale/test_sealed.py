"""A memo under a passphrase: nothing of it can be read without, and no byte can be changed unseen."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import minimemo
from minimemo.cli.arguments import main
from minimemo.errors import InputError, MemoError
from minimemo.scale import sealed
from minimemo.scale.archive import pack
from minimemo.scale.sealed import Sealer, unseal
from tests.conftest import TinyModels

pytest.importorskip("cryptography")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_LOG_N", 10)


@pytest.fixture(scope="module")
def memo(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    document = minimemo.Document.of("The red user said Hello world. " * 20, "red.txt")
    models = tiny_models.both
    return minimemo.build(document, tmp_path_factory.mktemp("sealed") / "red.memo", memory="int4", **models).folder


def seal(content: bytes, path: Path, passphrase: str = "four plain words here") -> bytes:
    with path.open("wb") as file:
        sealer = Sealer(file, passphrase)
        sealer.write(content)
        sealer.close()
    return path.read_bytes()


def test_a_sealed_memo_comes_back_and_says_nothing(
    memo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    word = tmp_path / "word.txt"
    word.write_text("four plain words here\n")
    file = tmp_path / "red.memo.zip"
    assert main(["export", str(memo), str(file), "--passphrase-file", str(word)]) == 0
    content = file.read_bytes()
    for trace in (b"Hello world", b"red.txt", b"manifest", b"PK\x03\x04", (memo / "index.bin").read_bytes()[60:100]):
        assert trace not in content
    assert pack(memo, tmp_path / "again.zip", "four plain words here").read_bytes() != content  # another salt
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.zip", "red.memo.zip", "word.txt"]
    capsys.readouterr()
    assert main(["import", str(file)]) == 2 and "--passphrase-file" in capsys.readouterr().err
    word.write_text("four plain words there")
    assert main(["import", str(file), "--passphrase-file", str(word)]) == 2
    assert "passphrase is another one" in capsys.readouterr().err and not (tmp_path / "red.memo").exists()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "four plain words here")
    assert main(["import", str(file)]) == 0
    back = tmp_path / "red.memo"
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {p.name: p.read_bytes() for p in memo.iterdir()}
    assert main(["export", str(memo), str(tmp_path / "folder.memo"), "--passphrase"]) == 2
    assert main(["export", str(memo), f"file://{tmp_path}/store.zip", "--passphrase"]) == 2


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 350])
def test_frames_are_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(sealed, "FRAME", 100)
    content = bytes(at % 251 for at in range(size))
    seal(content, tmp_path / "x")
    out = io.BytesIO()
    unseal(tmp_path / "x", "four plain words here", out)
    assert out.getvalue() == content


def test_what_is_cut_changed_or_reordered_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "FRAME", 100)
    path, head, step = tmp_path / "x", sealed._HEADER.size, 116
    whole = seal(bytes(350), path)
    frames = [whole[at : at + step] for at in range(head, len(whole), step)]
    other = seal(bytes(350), tmp_path / "y")  # the same passphrase, another salt
    cases = {
        "cut": whole[:-1], "without the last frame": whole[: head + 3 * step], "header alone": whole[:head],
        "cut header": whole[:10], "longer": whole + b"\0", "another frame": whole[:head] + other[head:],
        "reordered": whole[:head] + frames[1] + frames[0] + frames[2] + frames[3],
        "repeated": whole[:head] + frames[0] + frames[0] + frames[2] + frames[3],
        "one left out": whole[:head] + frames[0] + frames[2] + frames[3],
        "salt": whole[: head - 1] + bytes([whole[head - 1] ^ 1]) + whole[head:],
        "cost": whole[:9] + bytes([63]) + whole[10:], "version": whole[:8] + b"\2" + whole[9:],
    }  # fmt: skip
    cases |= {f"bit {at}": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 37)}
    for name, case in cases.items():
        path.write_bytes(case)
        with pytest.raises((MemoError, InputError)):
            unseal(path, "four plain words here", io.BytesIO())
            pytest.fail(name)


def test_an_empty_passphrase_seals_nothing(memo: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        pack(memo, tmp_path / "x.zip", "")
    assert not [*tmp_path.iterdir()]
