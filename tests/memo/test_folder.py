"""A build deletes nothing that no build wrote: planted links, folders that only look like memos, notes in a memo."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import minimemo
from minimemo.errors import InputError
from minimemo.memo.folder import staging
from minimemo.memo.library import remove
from minimemo.memo.manifest import Manifest
from minimemo.memo.memo import Memo

TEXT = "The keeper lit the lamp. 守灯人点亮了灯。\n\n" * 8
Build = Callable[..., Memo]


@pytest.fixture
def build(loaded: dict[str, Any], tmp_path: Path) -> Build:
    def run(text: str = TEXT) -> Memo:
        document = minimemo.Document.of(text, "doc.txt")
        return minimemo.build(document, tmp_path / "doc.memo", **loaded, memory="int4")

    return run


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["", "lock", "notes.txt"])
def test_a_planted_scratch_folder_is_refused(build: Build, tmp_path: Path, place: str) -> None:
    """A repository can carry `.doc.memo.building` beside a document: a link to a folder, or one of other things."""
    victim = tmp_path / "home"
    (victim / "photos").mkdir(parents=True)
    (victim / "photos" / "a.jpg").write_text("x")
    planted = tmp_path / ".doc.memo.building"
    if place:
        planted.mkdir()
        (planted / place).symlink_to(victim / "photos" / "a.jpg")
    else:
        planted.symlink_to(victim, target_is_directory=True)
    with pytest.raises(InputError, match=r"\.doc\.memo\.building: is in the way"):
        build()
    assert tree(victim) == {"photos/a.jpg": b"x"}
    assert planted.is_symlink() or (planted / place).is_symlink()


@pytest.mark.parametrize(
    "place", ["tail", "vectors", "quality.json", "memo/memory.bin", "memo/memory.bin.part", "memo"]
)
@pytest.mark.parametrize("hard", [False, True])
def test_links_in_a_folder_with_the_right_stamp_are_not_written_through(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, hard: bool
) -> None:
    """The stamp is predictable: default models and a document that comes with it."""
    stamps: list[Mapping[str, Any]] = []

    def recorded(target: Path, stamp: Mapping[str, Any], mode: int) -> AbstractContextManager[Path]:
        stamps.append(stamp)
        return staging(target, stamp, mode)

    monkeypatch.setattr("minimemo.memo.build.staging", recorded)
    clean = tree(build().folder)
    remove(tmp_path / "doc.memo")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "bashrc").write_text("precious")
    target = tmp_path / ".doc.memo.building" / place
    target.parent.mkdir(parents=True)
    (tmp_path / ".doc.memo.building" / "stamp.json").write_text(json.dumps(stamps[0], sort_keys=True))
    if place == "memo":
        target.symlink_to(victim, target_is_directory=True)
    elif hard:
        target.hardlink_to(victim / "bashrc")
    else:
        target.symlink_to(victim / "bashrc")
    assert tree(build().folder) == clean
    assert tree(victim) == {"bashrc": b"precious"}
    assert not (tmp_path / ".doc.memo.building").exists()


def test_a_folder_with_a_foreign_manifest_is_no_memo(build: Build, tmp_path: Path) -> None:
    """Browser extensions and web applications have a manifest.json too."""
    target = tmp_path / "doc.memo"
    (target / "src").mkdir(parents=True)
    (target / "manifest.json").write_text('{"manifest_version": 3}')
    (target / "src" / "a.js").write_text("work of a year")
    before = tree(target)
    with pytest.raises(InputError, match="exists and is no memo"):
        build()
    assert tree(target) == before


@pytest.mark.parametrize("notes", ["notes.txt", "notes/a.txt"])
def test_notes_in_a_memo_are_never_deleted(build: Build, notes: str) -> None:
    folder = build().folder
    (folder / notes).parent.mkdir(exist_ok=True)
    (folder / notes).write_text("mine")
    before = tree(folder)
    for action in (lambda: build(TEXT + "More."), lambda: remove(folder)):
        with pytest.raises(InputError, match="holds notes"):
            action()
    assert tree(folder) == before


def test_notes_that_come_during_a_build_stay(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build().folder
    save = Manifest.save

    def save_and_note(manifest: Manifest, place: Path) -> None:
        save(manifest, place)
        (folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(Manifest, "save", save_and_note)
    before = tree(folder)
    with pytest.raises(InputError, match=r"holds notes\.txt"):
        build(TEXT + "More.")
    assert tree(folder) == {**before, "notes.txt": b"mine"}


@pytest.mark.parametrize("clutter", [".DS_Store", "Thumbs.db", "._memory.bin"])
def test_what_file_managers_leave_is_no_reason_to_refuse(build: Build, clutter: str) -> None:
    folder = build().folder
    (folder / clutter).write_bytes(b"\0")
    build(TEXT + "More.")
    (folder / clutter).write_bytes(b"\0")
    remove(folder)
    assert not folder.exists()


def test_a_memo_with_a_damaged_manifest_is_built_again(build: Build) -> None:
    folder = build().folder
    before = tree(folder)
    (folder / "manifest.json").write_text("{")
    build()
    assert tree(folder) == before


def test_a_memo_that_is_half_deleted_is_deleted_the_next_time(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any file of it."""
    build()
    saved, memo = tmp_path / "saved", tmp_path / "doc.memo"
    shutil.copytree(memo, saved)
    (saved / "places.json").write_text("{}")  # as one of a PDF has
    unlink = Path.unlink
    for stop in range(1, len(list(saved.iterdir()))):
        shutil.rmtree(memo, ignore_errors=True)
        shutil.copytree(saved, memo)
        left = stop

        def killed(path: Path, missing_ok: bool = False) -> None:
            nonlocal left
            left -= path.parent == memo
            if left < 0:
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                remove(memo)
        remove(memo)
        assert not memo.exists()


def test_an_old_memo_outlives_a_build_that_cannot_give_it_back(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two folders cannot change places in one step, and the disk fails between the two."""
    build()
    before = tree(tmp_path / "doc.memo")
    monkeypatch.setattr("minimemo.memo.folder.exchange", lambda *_: False)
    rename, target = os.rename, tmp_path / "doc.memo"

    def fails(source: Path, place: Path) -> None:
        if place == target:
            raise OSError(errno.EIO, "input/output error")
        rename(source, place)

    with monkeypatch.context() as patch:
        patch.setattr("minimemo.memo.folder.os.rename", fails)
        patch.setattr("minimemo.memo.folder.put", lambda source, place: fails(Path(source), Path(place)))
        with pytest.raises(minimemo.MinimemoError, match="input/output"):
            build(TEXT * 2)
        with pytest.raises(minimemo.MinimemoError, match="input/output"):
            build(TEXT * 2)
    assert not target.exists()
    with staging(target, {}) as folder:
        assert tree(target) == before and tree(folder / "memo") == {}
        (folder / "memo" / "x").write_text("x")


def test_a_memo_may_have_a_name_that_no_build_would_take(build: Build, tmp_path: Path) -> None:
    """Moved by hand to where its hidden folder's name would be too long."""
    build()
    long = tmp_path / f"{'x' * 245}.memo"
    (tmp_path / "doc.memo").rename(long)
    assert remove(long) > 0 and not long.exists()
