"""Several memos in one question, and the store that picks them: tiny models, synthetic vectors where there are many."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minimemo
from minimemo.cli.arguments import main
from minimemo.errors import InputError, MemoError
from minimemo.events import Event
from minimemo.files import memos_dir, store_file, whole_path
from minimemo.memo.library import StoreIndex, export, remove
from minimemo.memo.manifest import DocumentInfo, FileInfo, Manifest, ModelInfo, Recipe
from minimemo.memo.registry import list_file, listed, opened, remember, remember_all, remembered
from minimemo.runtime import LanguageModel, OpenEmbedder
from minimemo.search.numbers import numbers_file
from minimemo.search.vectors import VectorIndex
from tests.conftest import TinyModels
from tests.memories import whole_memory
from tests.tiny import write_embedder, write_model

TEXTS = {
    "red.txt": "".join(f"The red user number {i} said Hello world in room {i * 7}.\n\n" for i in range(20)),
    "blue.txt": "".join(f"A blue wall, meter {i}, is painted over the tower {i * 5}.\n\n" for i in range(20)),
}


@pytest.fixture(scope="module")
def desk(loaded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    for name, text in TEXTS.items():
        document = minimemo.Document.of(text, name)
        minimemo.build(document, folder / f"{name[:-4]}.memo", **loaded)
    return folder


@pytest.mark.parametrize("mode", ["memorag", "rag", "memory"])
def test_passages_name_the_document_that_they_are_from(mode: str, desk: Path, loaded: dict[str, Any]) -> None:
    both = minimemo.open_memos([desk / "red.memo", desk / "blue.memo"], **loaded)
    answer = both.ask("What did red user 3 say of the blue tower 45?", mode, max_tokens=4)  # type: ignore[arg-type]
    assert bool(answer.passages) == (mode != "memory")
    for passage in answer.passages:
        assert TEXTS[passage.document][passage.start : passage.end] == passage.text
    assert [p["document"] for p in answer.to_dict()["passages"]] == [p.document for p in answer.passages]


def test_a_view_holds_two_memories_behind_one_opening(desk: Path, model: LanguageModel, loaded: dict[str, Any]) -> None:
    paths = [desk / "red.memo", desk / "blue.memo"]
    both = minimemo.open_memos(paths, **loaded)
    before = model.engine.prefilled
    one, two = (minimemo.open(path).inspect()["memory"] for path in paths)
    cache = whole_memory(both)
    assert model.engine.prefilled == before  # nothing of the documents is read again
    assert cache.length == one["tokens"] + two["tokens"] - two["opening_tokens"]


def test_documents_of_one_name_are_told_apart_by_folder(desk: Path, loaded: dict[str, Any], tmp_path: Path) -> None:
    document = minimemo.Document.of("Another text of that name.", "red.txt")
    other = minimemo.build(document, tmp_path / "other.memo", **loaded)
    both = minimemo.open_memos([desk / "red.memo", other.folder], **loaded)
    assert both.names() == [str(desk / "red.memo"), str(other.folder)]


def test_the_same_memo_twice_is_one(desk: Path) -> None:
    assert len(minimemo.open_memos([desk / "red.memo"] * 2).memos) == 1
    with pytest.raises(InputError, match="no memo to ask"):
        minimemo.open_memos([])


@pytest.mark.parametrize("what", ["model", "embedder"])
def test_memos_of_different_models_cannot_be_asked_together(
    what: str, desk: Path, tiny_models: TinyModels, tmp_path: Path
) -> None:
    models = tiny_models.both
    models[what] = {"model": write_model, "embedder": write_embedder}[what](tmp_path / "other", seed=9)
    memo = minimemo.build(minimemo.Document.of("Hello world. " * 9, "x"), tmp_path / "x.memo", **models)
    with pytest.raises(MemoError, match=rf"x.memo: built with another {what} .* only memos of the same models"):
        minimemo.open_memos([desk / "red.memo", memo.folder])


def test_the_store_asks_what_was_built(
    desk: Path, embedder: OpenEmbedder, loaded: dict[str, Any], tiny_models: TinyModels, tmp_path: Path
) -> None:
    events: list[Event] = []
    other = write_model(tmp_path / "other", seed=5)
    minimemo.build(minimemo.Document.of("Hello. " * 9, "x"), tmp_path / "x.memo", model=other, embedder=embedder)
    store = minimemo.open_store(**loaded, on_event=events.append, picked=1)
    (picked,) = store.pick("The red user number 3 said Hello world in room 21.")
    assert picked.folder == desk / "red.memo"
    answer = store.ask("A blue wall, meter 3, is painted over the tower 15.", "rag", max_tokens=4)
    assert {p.document for p in answer.passages} == {"blue.txt"}
    first = store._asked
    store.ask("A blue wall, meter 5, is painted over the tower 15.", "rag", max_tokens=2)
    assert store._asked is first, "the same documents are opened once"
    store.ask("The red user number 3 said Hello world in room 21.", "rag", max_tokens=2)
    assert store._asked is not first
    assert "memos of other models are not asked" in next(e.stage for e in events if e.unit == "note")
    nobody = minimemo.open_store(model=write_model(tmp_path / "new", seed=6), embedder=embedder)
    with pytest.raises(InputError, match=r"no memo of .*new and .* to ask, but \d of others"):
        nobody.pick("Who?")


def test_commands(
    desk: Path, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    ask = ("ask", "--mode", "rag", "--max-tokens", "3", *tiny_models.options)
    assert main([*ask, "red.memo", "blue.memo", "What did red user 3 say of the blue tower 45?", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {p["document"] for p in told["passages"]} <= set(TEXTS)
    assert main([*ask, "--all", "A blue wall, meter 3, is painted over the tower 15."]) == 0
    assert "blue.txt " in capsys.readouterr().out
    assert main([*ask, "--all", "red.memo", "Who?"]) == 2 and "quote the question" in capsys.readouterr().err
    assert main(["ask"]) == 2 and "name a memo, or --all" in capsys.readouterr().err
    assert main([*ask, "red.memo", "missing.memo", "Who?"]) == 1
    assert "missing.memo: no such memo" in capsys.readouterr().err
    assert main(["list", "--du"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("in all") and sum(line.endswith(".memo  0 B") for line in lines) == 0
    assert main(["list", "--du", "--json"]) == 0
    usage = json.loads(capsys.readouterr().out)["usage"]
    assert usage["memos"] == sum(f.stat().st_size for path in remembered() for f in path.iterdir())


def test_rm_deletes_memos_only(loaded: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memo = minimemo.build(minimemo.Document.of("Hello. " * 9, "x"), tmp_path / "x.memo", **loaded)
    size = sum(f.stat().st_size for f in memo.folder.iterdir())
    (memo.folder / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"holds thesis.txt, which no memo has"):
        remove(memo.folder)
    (memo.folder / "thesis.txt").rename(tmp_path / "thesis.txt")
    (tmp_path / "link.memo").symlink_to(memo.folder)
    with pytest.raises(InputError, match="is a link"):
        remove(tmp_path / "link.memo")
    with pytest.raises(MemoError, match="is a file, not a memo"):
        remove(tmp_path / "thesis.txt")
    with pytest.raises(MemoError, match="has no manifest"):
        remove(tmp_path)
    memo.verify()
    assert memo.folder in remembered()
    (tmp_path / ".x.memo.building").mkdir()  # of a build that was killed
    moved = memo.folder.rename(tmp_path / "y.memo")
    assert moved not in remembered()
    minimemo.build(minimemo.Document.of("Hello. " * 9, "x"), moved, **loaded)
    assert moved in remembered(), "building what is there notes where it is"
    moved.rename(memo.folder)
    assert main(["rm", str(memo.folder)]) == 0
    assert f"deleted, {size / 1e3:.1f} kB free" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.memo", "thesis.txt"]
    assert memo.folder not in remembered()
    assert main(["rm", str(memo.folder)]) == 1


def test_rm_leaves_nothing_of_the_document(loaded: dict[str, Any], tmp_path: Path, home: Path) -> None:
    """Its exact end, the store's vectors and the note of it; what belongs to another memo stays."""
    for name, text in TEXTS.items():
        document = minimemo.Document.of(text, name)
        minimemo.build(document, tmp_path / f"{name}.memo", **loaded, memory="int4")
    assert len(StoreIndex(store_file()).entries) == 2
    for left in (1, 0):
        remove(tmp_path / f"{'red' if left else 'blue'}.txt.memo")
        assert len(list((home / "tails").iterdir())) == len(opened().values) == left
        assert (numbers_file(store_file()).stat().st_size > 0) == bool(left)


def test_rm_leaves_no_byte_that_was_made_of_the_document(
    model: LanguageModel, loaded: dict[str, Any], tmp_path: Path, home: Path
) -> None:
    """Its text, its vectors and its token ids are in no file below minimemo's folder, nor beside the memo, while the
    other document's vectors are still there."""
    vectors = {}
    for name, text in TEXTS.items():
        document = minimemo.Document.of(text, name)
        memo = minimemo.build(document, tmp_path / f"{name}.memo", **loaded, memory="int4")
        vectors[name] = [row.tobytes() for row in VectorIndex.open(memo.folder / "index.bin").vectors()]
        ids = model.tokenizer.encode(text)[5:13]
        if name == "red.txt":
            traces = [text[30:60].encode(), *vectors[name]]
            traces += [np.array(ids, kind).tobytes() for kind in (np.int16, np.int32, np.int64)]
    StoreIndex(store_file())

    def found() -> int:
        files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        return sum(trace in content for trace in traces for content in files)

    assert found() > len(vectors["red.txt"])
    remove(tmp_path / "red.txt.memo")
    assert found() == 0
    assert all(row in numbers_file(store_file()).read_bytes() for row in vectors["blue.txt"])


def test_what_a_private_document_leaves_is_private(
    loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "some" / "home"))
    modes: list[list[int]] = []
    for name, mode in (("a", 0o600), ("b", 0o644)):
        path = tmp_path / f"{name}.txt"
        path.write_text(TEXTS["red.txt"])
        path.chmod(mode)
        memo = minimemo.build(path, **loaded, memory="int4")
        copy = export(memo.folder, tmp_path / f"{name}.copy")
        StoreIndex(store_file())
        made = [memo.folder, copy, *memo.folder.iterdir(), *copy.iterdir()]
        modes.append(sorted({stat.S_IMODE(one.stat().st_mode) for one in made}))
    assert modes == [[0o600, 0o700], [0o644, 0o755]]
    for one in (tmp_path / "some").rglob("*"):
        assert one.stat().st_mode & 0o077 == 0 or one.parent.name == "hashes", one
    path = tmp_path / "b.txt"
    path.chmod(0o600)
    memo = minimemo.build(path, **loaded, memory="int4")  # there already
    assert stat.S_IMODE(memo.folder.stat().st_mode) == 0o700


def test_two_texts_without_a_name(
    model: LanguageModel, embedder: OpenEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models: dict[str, Any] = {"model": model, "embedder": embedder, "memory": "int4"}
    first = minimemo.build(minimemo.Document.of(TEXTS["red.txt"]), **models)
    with pytest.raises(InputError, match="the memo of another text without a name"):
        minimemo.build(minimemo.Document.of(TEXTS["blue.txt"]), **models)
    first.verify()
    minimemo.build(minimemo.Document.of(TEXTS["red.txt"]), **models)  # the same one
    minimemo.build(minimemo.Document.of(TEXTS["blue.txt"]), "blue.memo", **models)
    minimemo.build(minimemo.Document.of(TEXTS["red.txt"], "log"), **models)
    minimemo.build(minimemo.Document.of(TEXTS["blue.txt"], "log"), **models)  # one that changes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blue.memo", "log.memo", "text.memo"]
    reader, end = os.pipe()
    os.write(end, TEXTS["red.txt"].encode())
    os.close(end)
    assert minimemo.build(f"/dev/fd/{reader}", **models).folder == Path(f"{reader}.memo")


def many_memos(folder: Path, count: int, passages: int = 20, dim: int = 384) -> np.ndarray:
    """Folders with a manifest and an index of random unit vectors, on the shelf; gives the vectors (count, n, dim)."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(count, passages, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    for number, own in enumerate(vectors):
        memo = folder / f"{number}.memo"
        memo.mkdir()
        info = FileInfo(0, "")
        Manifest(
            DocumentInfo(f"{number}.txt", "", 1, 1, "en"), ModelInfo("m", "model"), ModelInfo("e", "embedder"),
            Recipe("", "model", "embedder", "int4", {"num_layers": 1, "num_kv_heads": 1, "head_dim": 2}, "", 192, 0),
            {"memory.bin": info, "index.bin": info, "chunks.json": info},
        ).save(memo)  # fmt: skip
        VectorIndex.build(own).save(memo / "index.bin")
        (memo / "chunks.json").write_text(json.dumps({"chunks": [{"text": f"Report RX{number} of the committee."}]}))
    remember_all([folder / f"{number}.memo" for number in range(count)])
    return vectors


def test_picking_from_1000_memos_is_quick(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under 100 ms of processor time from the file on, though every memo is looked at for changes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    vectors = many_memos(tmp_path, 1000)
    path = store_file()
    StoreIndex(path)
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        found = StoreIndex(path).pick(vectors[700, 3], "model", "embedder", 4)
        seconds.append(time.process_time() - begin)
    assert found[0] == tmp_path / "700.memo" and len(set(found)) == 4
    best = (vectors @ vectors[700, 3]).max(1).argsort()[::-1][:4]
    assert found == [tmp_path / f"{number}.memo" for number in best]
    assert min(seconds) < 0.1
    assert StoreIndex(path).pick(vectors[700, 3], "model", "other", 4) == []


def test_an_open_store_takes_in_what_others_build_and_delete(tmp_path: Path, home: Path) -> None:
    """Two that are open at once write the same files; what one adds the other does not lose."""
    path = store_file()
    one, two = StoreIndex(path), StoreIndex(path)
    vectors = many_memos(tmp_path, 6, passages=3, dim=8)
    one.refresh()
    remove(tmp_path / "2.memo")
    two.refresh()
    one.refresh()
    third = StoreIndex(path)
    for index in (one, two, third):
        assert len(index.entries) == 5
        for number in (0, 1, 3, 4, 5):
            picked = index.pick(vectors[number, 2], "model", "embedder", 1)
            assert picked == [tmp_path / f"{number}.memo"]
    assert third.pick(vectors[0, 0], "model", "embedder", 9, {str(tmp_path / "4")}) == []
    assert third.pick(vectors[0, 0], "model", "embedder", 9, {str(tmp_path / "4.memo")}) == [tmp_path / "4.memo"]


@pytest.mark.parametrize("what", ["added", "removed"])
def test_a_store_whose_writer_was_killed_has_no_leftovers(what: str, tmp_path: Path, home: Path) -> None:
    """Numbers are written before the table: those that no entry accounts for are gone when it is opened again."""
    vectors = many_memos(tmp_path, 3, passages=3, dim=8)
    path = store_file()
    StoreIndex(path)
    table, numbers = path.read_bytes(), numbers_file(path).read_bytes()
    if what == "added":
        numbers_file(path).write_bytes(numbers + vectors[1].tobytes())
        left = vectors
    else:
        remove(tmp_path / "1.memo")
        assert vectors[1].tobytes() not in numbers_file(path).read_bytes()
        path.write_bytes(table)
        left = vectors[[0, 2]]
    index = StoreIndex(path)
    assert numbers_file(path).stat().st_size == left.nbytes and len(index.entries) == len(left)
    assert index.pick(vectors[2, 1], "model", "embedder", 1) == [tmp_path / "2.memo"]


def test_the_store_follows_what_changes(tmp_path: Path, home: Path) -> None:
    vectors = many_memos(tmp_path, 5, passages=3, dim=8)
    path = store_file()
    assert len(StoreIndex(path).entries) == 5

    remove(tmp_path / "1.memo")  # gone
    (tmp_path / "2.memo" / "index.bin").write_bytes(b"damaged")
    os.utime(tmp_path / "2.memo" / "manifest.json", ns=(1, 1))
    VectorIndex.build(vectors[4][:1]).save(tmp_path / "3.memo" / "index.bin")
    os.utime(tmp_path / "3.memo" / "manifest.json", ns=(2, 2))
    index = StoreIndex(path)
    assert [Path(path).name for path in index.missing] == ["2.memo"]
    assert {Path(e.path).name: e.rows for e in index.entries} == {"0.memo": 3, "3.memo": 1, "4.memo": 3}
    assert index.pick(vectors[4, 0], "model", "embedder", 2) == [tmp_path / "3.memo", tmp_path / "4.memo"]

    for file in (path, numbers_file(path)):
        content = file.read_bytes()
        for damaged in (b"", content[:7], content[:-4], content[9:], bytes(len(content))):
            file.write_bytes(damaged)
            assert len(StoreIndex(path).entries) == 3
        content = file.read_bytes()
        for at in range(0, len(content), 11):  # every bit counts
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
            assert StoreIndex(path).pick(vectors[4, 0], "model", "embedder", 2)[0] == tmp_path / "3.memo"
    assert len(remembered()) == 4


def test_a_memo_is_one_by_whatever_path_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built as ../0.memo it was noted so: asked twice, and its vectors outlived a deletion of /.../0.memo."""
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    vectors = many_memos(tmp_path, 3, passages=3, dim=8)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    for path in (Path("../0.memo"), Path("b/../../1.memo"), Path("../a/../2.memo")):
        remember(path)
    index = StoreIndex(store_file())
    assert len(opened().values) == len(index.entries) == 3
    (tmp_path / "link").symlink_to("a/b", target_is_directory=True)
    assert whole_path(tmp_path / "link" / ".." / "c") == (tmp_path / "a" / "c").resolve()  # not tmp_path / "c"
    remove(Path("../1.memo"))
    assert vectors[1].tobytes() not in numbers_file(store_file()).read_bytes() and len(opened().values) == 2


def test_a_memo_that_cannot_be_read_for_a_moment_comes_back(tmp_path: Path, home: Path) -> None:
    many_memos(tmp_path, 3, passages=3, dim=8)
    index = StoreIndex(store_file())
    memo = tmp_path / "1.memo"
    os.utime(memo / "manifest.json", ns=(7, 7))
    remember(memo)
    (memo / "index.bin").rename(memo / "aside")
    index.refresh()
    assert index.missing == [str(memo)] and len(index.entries) == 2
    (memo / "aside").rename(memo / "index.bin")
    index.refresh()
    assert not index.missing and len(index.entries) == 3
    (memo / "index.bin").unlink()
    os.utime(memo / "manifest.json", ns=(8, 8))
    remember(memo)
    index.refresh()
    remove(memo)
    index.refresh()
    assert not index.missing


def test_what_an_earlier_list_names_is_taken_over(tmp_path: Path, home: Path) -> None:
    """It was a file for each memo; whatever else lies among them stays, and harms nobody."""
    many_memos(tmp_path, 3, passages=1, dim=8)
    list_file().unlink()
    remember(tmp_path / "2.memo")
    named = {"a" * 24: tmp_path / "0.memo", "b" * 24: tmp_path / "1.memo", "e" * 24: tmp_path / "gone.memo"}
    for name, memo in named.items():
        (memos_dir() / name).write_bytes(os.fsencode(memo))
    (memos_dir() / ("f" * 24)).write_bytes(b"a\0b")
    (memos_dir() / ("c" * 24)).mkdir()
    os.mkfifo(memos_dir() / ("d" * 24))
    assert remembered() == [tmp_path / f"{number}.memo" for number in range(3)]
    assert {path.name[0] for path in memos_dir().iterdir()} == {".", "l", "c", "d", "f"}
    assert len(StoreIndex(store_file()).entries) == 3


def test_a_damaged_list_is_made_whole_from_the_index(tmp_path: Path, home: Path) -> None:
    many_memos(tmp_path, 3, passages=1, dim=8)
    StoreIndex(store_file())
    content = list_file().read_bytes()
    for damaged in (b"", content[:50] + b"?" + content[51:], content[:9], bytes(99)):
        list_file().write_bytes(damaged)
        if damaged:
            assert len(remembered()) == 3
    assert list_file().stat().st_size == len(content)


def test_the_list_opens_no_memo_and_sees_what_was_done_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMEMO_HOME", str(tmp_path / "home"))
    many_memos(tmp_path, 3, passages=1, dim=8)
    before = listed()
    assert [memo.bytes for memo in before] == [
        sum(file.stat().st_size for file in Path(memo.path).iterdir()) for memo in before
    ]
    monkeypatch.setattr(Manifest, "load", None)
    shutil.rmtree(tmp_path / "0.memo")
    (tmp_path / "1.memo" / "index.bin").write_bytes(b"more" * 999)
    os.utime(tmp_path / "1.memo" / "manifest.json", ns=(5, 5))
    after = listed()
    assert [memo.path for memo in after] == [memo.path for memo in before[1:]]
    assert after[0].bytes != before[1].bytes and after[1] == before[2]
    assert len(opened().values) == 2


def test_a_question_looks_again_at_the_memos_that_it_picks(tmp_path: Path, home: Path) -> None:
    """One that was deleted, moved or replaced by hand since the index was opened is not asked as it was."""
    vectors = many_memos(tmp_path, 4, passages=2, dim=8)
    for index in (StoreIndex(store_file()), StoreIndex(None, lambda: [tmp_path / f"{n}.memo" for n in range(4)])):
        assert index.pick(vectors[1, 0], "model", "embedder", 1) == [tmp_path / "1.memo"]
        (tmp_path / "1.memo").rename(tmp_path / "away.memo")
        VectorIndex.build(vectors[1][:1]).save(tmp_path / "3.memo" / "index.bin")
        os.utime(tmp_path / "3.memo" / "manifest.json", ns=(7, 7))
        picked = index.pick(vectors[1, 0], "model", "embedder", 4)
        assert {path.name for path in picked} == {"0.memo", "2.memo", "3.memo"}
        assert index.pick(vectors[1, 0], "model", "embedder", 1) == [tmp_path / "3.memo"]
        among = {str(tmp_path / "0.memo"), str(tmp_path / "2.memo")}
        assert len(index.pick(vectors[1, 0], "model", "embedder", 4, among=among)) == 2
        (tmp_path / "away.memo").rename(tmp_path / "1.memo")
        VectorIndex.build(vectors[3]).save(tmp_path / "3.memo" / "index.bin")
        os.utime(tmp_path / "3.memo" / "manifest.json", ns=(9, 9))


def test_a_sketch_finds_what_exact_search_does(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made after some questions, of many passages; it knows what was added, removed and written anew since."""
    from minimemo.search import sketch, store

    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(store, "FROM", 500)
    monkeypatch.setattr(store, "AFTER", 3)
    monkeypatch.setattr(sketch, "COMPARED", 300)
    vectors = many_memos(tmp_path, 60, passages=10, dim=32)
    index = StoreIndex(store_file())

    def right(number: int) -> None:
        exact = (vectors[:, :, :] @ vectors[number, 4]).max(1).argsort()[::-1]
        best = [tmp_path / f"{n}.memo" for n in exact if (tmp_path / f"{n}.memo").exists()][:3]
        assert index.pick(vectors[number, 4], "model", "embedder", 3) == best

    for number in range(5):
        right(number)
        assert (index._store._sketch is not None) == (number >= 2)
    made = index._store._sketch
    more = tmp_path / "more"
    more.mkdir()
    own = many_memos(more, 2, passages=10, dim=32) * np.float32(1)
    index.refresh()
    assert index.pick(own[1, 2], "model", "embedder", 1)[0].name == "1.memo" and index._store._sketch is made
    remove(more / "0.memo")
    remove(more / "1.memo")
    for number in (7, 8, 9, 59):
        remove(tmp_path / f"{number}.memo")
        index.refresh()
        right(12)
    for number in range(20, 25):
        right(number)
    assert index._store._sketch not in (made, None)


def test_words_find_what_vectors_blur(tmp_path: Path, home: Path) -> None:
    """A code that one document alone holds leads to it, though others are nearer; words that all hold change nothing;
    what was removed or changed is not found any longer."""
    vectors = many_memos(tmp_path, 9, passages=3, dim=8)
    index = StoreIndex(store_file())

    def picked(question: str, count: int = 1) -> list[str]:
        return [path.name for path in index.pick(vectors[4, 0], "model", "embedder", count, question=question)]

    assert picked("") == picked("What does the committee report?") == ["4.memo"]
    assert picked("What is in report RX7?") == ["7.memo"] and picked("rx7", 2) == ["7.memo", "4.memo"]
    (tmp_path / "7.memo" / "chunks.json").write_text(json.dumps({"chunks": [{"text": "Report QQ1."}]}))
    os.utime(tmp_path / "7.memo" / "manifest.json", ns=(7, 7))
    remember(tmp_path / "7.memo")
    index.refresh()
    assert picked("RX7") == ["4.memo"] and picked("QQ1") == ["7.memo"] == [
        path.name for path in StoreIndex(store_file()).pick(vectors[4, 0], "model", "embedder", 1, question="QQ1")
    ]
    remove(tmp_path / "7.memo")
    index.refresh()
    assert picked("QQ1") == ["4.memo"]
    (tmp_path / "6.memo" / "chunks.json").write_text("{}")
    os.utime(tmp_path / "6.memo" / "manifest.json", ns=(7, 7))
    assert StoreIndex(store_file()).missing == [str(tmp_path / "6.memo")]


def test_picks_are_those_of_every_score_in_order(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By words and vectors, ties by path; documents of any number of terms, none too."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    vectors = many_memos(tmp_path, 40, passages=2, dim=8)
    vectors[20:] = vectors[20]  # twins
    chance = np.random.default_rng(1)
    said = []
    for number, own in enumerate(vectors):
        count = (0, 1, 2, 3, 4, 7, 8, 17, 64, 97)[number % 10]
        said.append({f"w{word}" for word in chance.choice(120, count, replace=False)})
        text = {"chunks": [{"text": " ".join(sorted(said[-1]))}]}
        (tmp_path / f"{number}.memo" / "chunks.json").write_text(json.dumps(text))
        VectorIndex.build(own).save(tmp_path / f"{number}.memo" / "index.bin")
    index = StoreIndex(store_file())
    for turn in range(30):
        query, words = vectors[turn, 0], [f"w{word}" for word in chance.choice(120, 6, replace=False)]
        near, by_words = (vectors @ query).max(1), np.zeros(40, np.float32)
        for word in words:
            holds = np.array([word in own for own in said])
            by_words[holds] += np.float32(np.log1p((40 - holds.sum() + 0.5) / (holds.sum() + 0.5)))
        scores = sum((one - one.mean()) / (one.std() or 1) for one in (near, by_words)).round(5)
        best = sorted(range(40), key=lambda at: (-scores[at], str(tmp_path / f"{at}.memo")))[:4]
        picked = index.pick(query, "model", "embedder", 4, question=" ".join(words))
        assert [path.name for path in picked] == [f"{number}.memo" for number in best]
    assert len(index.pick(query, "model", "embedder", 99)) == 40


def test_the_list_loads_nothing_heavy(tmp_path: Path, home: Path) -> None:
    many_memos(tmp_path, 2, passages=1, dim=8)
    heavy = ("torch", "numpy", "faiss", "filelock", "minimemo.ask", "minimemo.memo.library")
    code = "import sys; from minimemo.cli.arguments import main; main(['list']); "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "1.memo  " in out and out.endswith("\n[]\n")
