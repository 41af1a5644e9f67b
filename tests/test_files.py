"""minimemo's folders, and files that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minimemo import files


@pytest.mark.parametrize(
    ("platform", "variables", "cache", "data"),
    [
        ("linux", {}, "user/.cache/minimemo", "user/.local/share/minimemo"),
        ("linux", {"XDG_CACHE_HOME": "ROOT/xdg"}, "xdg/minimemo", "user/.local/share/minimemo"),
        ("linux", {"XDG_DATA_HOME": "ROOT/xdg"}, "user/.cache/minimemo", "xdg/minimemo"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "user/.cache/minimemo", "user/.local/share/minimemo"),
        ("linux", {"XDG_DATA_HOME": "relative"}, "user/.cache/minimemo", "user/.local/share/minimemo"),
        ("darwin", {"XDG_CACHE_HOME": "ROOT/xdg"}, "user/Library/Caches/minimemo",
         "user/Library/Application Support/minimemo"),
        ("win32", {"LOCALAPPDATA": "ROOT/local"}, "local/minimemo", "local/minimemo"),
        ("win32", {}, "user/AppData/Local/minimemo", "user/AppData/Local/minimemo"),
        ("win32", {"MINIMEMO_HOME": "ROOT/mine", "LOCALAPPDATA": "ROOT/local"}, "mine", "mine"),
        ("linux", {"MINIMEMO_HOME": "~/mine", "XDG_DATA_HOME": "ROOT/xdg"}, "user/mine", "user/mine"),
    ],
)  # fmt: skip
def test_models_and_data_are_where_the_platform_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], cache: str, data: str
) -> None:
    for name in ("MINIMEMO_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("ROOT", str(tmp_path)))
    monkeypatch.setattr(files.sys, "platform", platform)
    assert (files.cache_dir(), files.data_dir()) == (tmp_path / cache, tmp_path / data)
    assert files.model_dir("owner/name") == tmp_path / cache / "models" / "owner--name"
    for place, name in ((files.profiles_dir, "profiles"), (files.memos_dir, "memos"), (files.store_file, "store.bin")):
        assert place() == tmp_path / data / name
    assert list(tmp_path.iterdir()) == []  # asking creates nothing


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home folder with profiles, a list and an index in the cache folder, where earlier versions kept them."""
    for name in ("MINIMEMO_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    old = tmp_path / ".cache" / "minimemo"
    (old / "profiles").mkdir(parents=True)
    (old / "memos").mkdir()
    (old / "models").mkdir()
    (old / "profiles" / "a.safetensors").write_bytes(b"profile")
    (old / "memos" / "0123").write_bytes(b"/book.memo")
    (old / "store.bin").write_bytes(b"index")
    return tmp_path


def test_what_earlier_versions_kept_as_cache_is_moved(user: Path) -> None:
    new = user / ".local" / "share" / "minimemo"
    (new / "profiles").mkdir(parents=True)
    (new / "profiles" / "b.safetensors").write_bytes(b"newer")
    assert {path.name: path.read_bytes() for path in files.profiles_dir().iterdir()} == {
        "a.safetensors": b"profile",
        "b.safetensors": b"newer",
    }
    assert (files.memos_dir() / "0123").read_bytes() == b"/book.memo"
    assert files.store_file().read_bytes() == b"index"
    assert [path.name for path in (user / ".cache" / "minimemo").iterdir()] == ["models"]
    assert files.profiles_dir() == new / "profiles" and not list(new.rglob("*.part"))


def test_what_cannot_be_moved_is_used_where_it_is(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.shutil, "copyfile", refuse)
    assert files.profiles_dir() == user / ".cache" / "minimemo" / "profiles"
    assert (files.profiles_dir() / "a.safetensors").read_bytes() == b"profile"


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "note"
    files.write_whole(path, b"first")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            files.write_whole(path, b"second")
    assert path.read_bytes() == b"first" and [p.name for p in path.parent.iterdir()] == ["note"]


def test_parts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    dead, running = tmp_path / ".note.999999999-1.part", tmp_path / f".note.{os.getppid()}-1.part"
    dead.write_bytes(b"x")
    running.write_bytes(b"x")
    files.write_whole(tmp_path / "note", b"y")
    assert sorted(p.name for p in tmp_path.iterdir()) == [running.name, "note"]
