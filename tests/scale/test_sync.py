"""A folder in step with its collection: tiny models, exact memories."""

from __future__ import annotations

import errno
import json
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minimemo.cli.arguments import main
from minimemo.errors import InputError
from minimemo.files import data_dir
from minimemo.memo.build import build
from minimemo.memo.library import remove
from minimemo.memo.registry import list_file, memos_of, remembered
from minimemo.scale.sync import carry_out, collections, load, one_by_one, opened, plan
from tests.conftest import TinyModels

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "reports"
    (folder / "old").mkdir(parents=True)
    for number, path in enumerate(("a.txt", "b.txt", "c.md", "old/d.txt")):
        (folder / path).write_text(f"Room {number} is where user {number} said hello. " * 6)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("not a document")
    return folder


@pytest.fixture
def sync(folder: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(*more: str) -> tuple[int, str, str]:
        given = [*tiny_models.options, "--memory", "exact"]
        code = main(["sync", str(folder), *given, *more])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def memos() -> set[str]:
    root = memos_of("reports")
    return {str(path.parent.relative_to(root)) for path in root.rglob("manifest.json")}


def test_new_changed_moved_and_gone_documents_and_no_others(folder: Path, sync) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = sync()
    assert code == 0 and "4 new, 0 as they were" in out
    assert memos() == {"a.txt.memo", "b.txt.memo", "c.md.memo", "old/d.txt.memo"}
    assert {path.name for path in remembered()} == {"a.txt.memo", "b.txt.memo", "c.md.memo", "d.txt.memo"}
    assert sync()[1].startswith("reports: 4 as they were\n")
    os.utime(folder / "a.txt", (1, 1))  # touched, not changed
    (folder / "b.txt").write_text("Another text is here now, of room 9. " * 5)
    (folder / "old/d.txt").rename(folder / "e.txt")
    (folder / "c.md").unlink()
    written = (memos_of("reports") / "old/d.txt.memo/memory.bin").stat().st_mtime_ns
    _, planned, _ = sync("--dry-run")
    assert "1 changed, 1 moved, 1 gone, 1 as they were" in planned and "moved    old/d.txt -> e.txt" in planned
    assert memos() == {"a.txt.memo", "b.txt.memo", "c.md.memo", "old/d.txt.memo"}  # nothing was done
    assert sync()[0] == 0
    assert memos() == {"a.txt.memo", "b.txt.memo", "e.txt.memo"}
    assert (memos_of("reports") / "e.txt.memo/memory.bin").stat().st_mtime_ns == written
    assert not (memos_of("reports") / "old").exists()
    assert {path.name for path in remembered()} == {"a.txt.memo", "b.txt.memo", "e.txt.memo"}
    assert len(list(folder.rglob("*"))) == 6  # the folder itself has nothing new


def test_a_name_too_long_for_a_memo_stops_no_other(folder: Path, sync) -> None:  # type: ignore[no-untyped-def]
    (folder / f"{'x' * 249}.txt").write_text("No memo can be called so. " * 9)
    code, out, err = sync()
    assert code != 0 and "1 of 5" in out + err and "name too long" in out + err, out + err
    assert memos() == {"a.txt.memo", "b.txt.memo", "c.md.memo", "old/d.txt.memo"}
    assert sync()[0] == code


def test_what_changes_between_the_look_and_the_reading_leaves_no_memo(
    folder: Path, tmp_path: Path, tiny_models: TinyModels
) -> None:
    """A link takes a document's place, another is written anew, its time set back; the next sync reads that."""
    (outside := tmp_path / "outside.txt").write_text("Nobody shared this. " * 9)
    given: dict[str, Any] = {**tiny_models.both, "memory": "exact"}

    def build_and_meddle(document: Path, memo: Path, sha256: str) -> None:
        if document.name == "b.txt":
            document.unlink()
            document.symlink_to(outside)
        if document.name == "c.md":
            status = document.stat()
            document.write_bytes(document.read_bytes().replace(b"hello", b"olleh"))
            os.utime(document, ns=(status.st_atime_ns, status.st_mtime_ns))
        build(document, memo, sha256=sha256, **given)

    with opened(folder, "reports") as collection:
        failed = carry_out(collection, plan(collection), one_by_one(build_and_meddle), lambda line: None)
    assert failed.keys() == {"b.txt", "c.md"} and all("has changed" in why for why in failed.values())
    assert memos() == {"a.txt.memo", "old/d.txt.memo"}
    with opened(folder, "reports") as collection:
        same = one_by_one(lambda document, memo, sha256: build(document, memo, sha256=sha256, **given))
        assert not carry_out(collection, plan(collection), same, lambda line: None)
    assert memos() == {"a.txt.memo", "c.md.memo", "old/d.txt.memo"}
    assert "olleh" in (memos_of("reports") / "c.md.memo/chunks.json").read_text()


def test_a_bad_document_stops_no_other_and_is_named(folder: Path, sync) -> None:  # type: ignore[no-untyped-def]
    (folder / "a.txt").write_bytes(b"\x00\xff\xfe broken \x80" * 9)
    code, out, err = sync()
    assert code == 2 and memos() == {"b.txt.memo", "c.md.memo", "old/d.txt.memo"}
    assert "failed   a.txt" in out and "1 of 4 documents have no memo" in err
    assert load("reports").documents["a.txt"].error
    main(["status", "--json"])
    assert "1 to try again, 3 as they were" in sync("--dry-run")[1] and "again    a.txt" in sync("--dry-run")[1]
    (folder / "a.txt").write_text("Now it is a text, of room 3. " * 5)
    assert sync()[0] == 0 and "a.txt.memo" in memos()


def test_a_document_that_takes_too_much_memory_stops_no_other(folder: Path) -> None:
    def build(document: Path, memo: Path, sha256: str) -> None:
        if document.name == "a.txt":
            raise MemoryError

    tasks = [(folder / name, folder / f"{name}.memo", "") for name in ("a.txt", "b.txt")]
    told = {path.name: why for path, why in one_by_one(build)(tasks)}
    assert told == {"a.txt": "too little memory is free", "b.txt": ""}


def test_a_folder_that_is_empty_or_gone_forgets_nothing_unasked(folder: Path, sync) -> None:  # type: ignore[no-untyped-def]
    (folder / "f.txt").write_text("A fifth one, of room 5. " * 5)
    sync()
    before = memos()
    for path in ("a.txt", "b.txt", "c.md", "old/d.txt", "f.txt"):
        (folder / path).unlink()
    code, _, err = sync()
    assert code == 2 and "5 of 5 documents are gone; nothing was forgotten" in err and memos() == before
    folder.rename(folder.with_name("elsewhere"))
    code, _, err = sync()
    assert code == 2 and "is no folder now" in err and memos() == before
    folder.with_name("elsewhere").rename(folder)
    assert sync("--forget")[0] == 0 and not memos()


def test_it_goes_on_after_a_stop_at_any_moment(folder: Path, sync, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Killed after each step of its own: between a memo and the note of it."""
    from minimemo.scale import sync as module

    noted = module.Collection.note
    for stop in range(3):
        left = stop

        def note(self: module.Collection, *paths: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            noted(self, *paths)

        monkeypatch.setattr(module.Collection, "note", note)
        assert sync()[0] == 130
    monkeypatch.setattr(module.Collection, "note", noted)
    assert sync()[0] == 0
    assert memos() == {"a.txt.memo", "b.txt.memo", "c.md.memo", "old/d.txt.memo"}


@pytest.mark.parametrize("command", ["sync", "forget"])
def test_nothing_stays_of_a_document_that_a_stopped_sync_alone_knew(  # type: ignore[no-untyped-def]
    folder: Path, sync, home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Stopped within one document, and between another one's memo and the note of it; then both go."""
    sync()
    secret = "Nobody else knows of the seventh staircase. " * 9

    def stop(*given: object) -> None:
        if len(given) > 1:  # a note of something, at least
            raise KeyboardInterrupt

    for where, name in (("scale.sync.Collection.note", "new.building/f.txt"), ("memo.build.write_memory", "g.txt")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(secret)
        with monkeypatch.context() as patch:
            patch.setattr(f"minimemo.{where}", stop)
            assert sync()[0] == 130
        (folder / name).unlink()
    assert {"new.building/f.txt.memo", ".g.txt.memo.building"} <= {
        str(path.relative_to(memos_of("reports"))) for path in memos_of("reports").rglob("*")
    }
    assert main(["forget", "reports"]) == 0 if command == "forget" else sync()[0] == 0
    left = [path for path in home.rglob("*") if path.is_file() and b"staircase" in path.read_bytes()]
    assert not left and not list(home.rglob(".*.building")) and not list(home.rglob("new.building"))
    assert memos() == (set() if command == "forget" else {"a.txt.memo", "b.txt.memo", "c.md.memo", "old/d.txt.memo"})


def test_documents_of_the_same_bytes_share_a_memo(folder: Path, sync) -> None:  # type: ignore[no-untyped-def]
    """Whichever of them goes or changes, the memo is built once and stays while one of them is there."""
    (folder / "z.txt").write_bytes((folder / "b.txt").read_bytes())
    (folder / "old/y.txt").write_bytes((folder / "b.txt").read_bytes())
    code, out, _ = sync()
    assert code == 0 and "2 of the same bytes as others" in out and "same     z.txt = b.txt" in out
    every = {"a.txt.memo", "b.txt.memo", "c.md.memo", "old/d.txt.memo"}
    assert memos() == every and "6 as they were; 2 of the same" in sync()[1]
    written = (memos_of("reports") / "b.txt.memo/memory.bin").stat().st_mtime_ns
    (folder / "b.txt").unlink()  # the one whose memo it is
    assert "moved    b.txt -> old/y.txt" in sync()[1]
    assert memos() == every - {"b.txt.memo"} | {"old/y.txt.memo"}
    assert (memos_of("reports") / "old/y.txt.memo/memory.bin").stat().st_mtime_ns == written
    assert load("reports").memo("z.txt") == memos_of("reports") / "old/y.txt.memo"
    (folder / "old/y.txt").write_text("Something else is here, of room 5. " * 5)
    sync()
    assert memos() == every - {"b.txt.memo"} | {"old/y.txt.memo", "z.txt.memo"}
    assert (memos_of("reports") / "z.txt.memo/memory.bin").stat().st_mtime_ns == written
    (folder / "a.txt").write_bytes((folder / "z.txt").read_bytes())  # one that had a memo of its own
    sync()
    assert memos() == every - {"a.txt.memo", "b.txt.memo"} | {"old/y.txt.memo", "z.txt.memo"}
    (folder / "z.txt").unlink()
    sync()
    assert memos() == every - {"b.txt.memo"} | {"old/y.txt.memo"} and sync()[1].startswith("reports: 4 as they were\n")


def test_documents_that_changed_places(folder: Path, sync) -> None:  # type: ignore[no-untyped-def]
    sync()
    texts = {path: (folder / path).read_text() for path in ("a.txt", "b.txt")}
    (folder / "a.txt").write_text(texts["b.txt"] + "!")
    (folder / "b.txt").write_text(texts["a.txt"])
    assert "2 changed, 2 as they were" in sync()[1]
    for path, text in (("a.txt", texts["b.txt"]), ("b.txt", texts["a.txt"])):
        chunks = json.loads((memos_of("reports") / f"{path}.memo/chunks.json").read_text())
        assert text[:20] in json.dumps(chunks)


def test_a_memo_that_the_list_lost_is_noted_again(folder: Path, sync) -> None:  # type: ignore[no-untyped-def]
    sync()
    list_file().unlink()
    assert not remembered()
    sync()
    assert len(remembered()) == 4


def test_a_folder_of_many_files_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are no documents take no memory, and more documents than a collection has are refused."""
    from minimemo.scale import sync as module

    class File:
        def __init__(self, number: int) -> None:
            self.name, self.path = f"{number}.{ending}", f"{tmp_path}/{number}.{ending}"

        def is_file(self) -> bool:
            return True

        def is_dir(self) -> bool:
            return False

        is_symlink = is_dir

        def stat(self) -> os.stat_result:
            return os.stat(tmp_path)

    @contextmanager
    def listing(_: Path) -> Iterator[Iterator[File]]:
        yield map(File, range(20_000))

    monkeypatch.setattr(os, "scandir", listing)
    ending = "jpg"
    tracemalloc.start()
    assert not [*module._documents(tmp_path)]
    assert tracemalloc.get_traced_memory()[1] < 2e5
    tracemalloc.stop()
    ending = "txt"
    monkeypatch.setattr(module, "MOST", 1000)
    with pytest.raises(InputError, match="more than 1,000 documents"):
        for _ in module._documents(tmp_path):
            pass


def test_a_watched_folder_is_followed_and_what_failed_waits_for_a_change(  # type: ignore[no-untyped-def]
    folder: Path, sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "c.md").write_bytes(b"\x00\xff\xfe broken \x80" * 9)
    steps = [
        lambda: (folder / "new.txt").write_text("A new one is here, of room 8. " * 5),
        lambda: None,
        lambda: folder.rename(folder.with_name("away")),
        lambda: folder.with_name("away").rename(folder),
        lambda: (folder / "c.md").write_text("It is whole now, of room 9. " * 5),
    ]

    def step(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr("minimemo.cli.commands.sleep", step)
    code, out, err = sync("--watch")
    assert code == 130
    told = out.split("watching; Ctrl-C ends it\n")[1].splitlines()
    assert told == ["built    new.txt", "changed  c.md"] and err.count("is no folder now") == 1
    assert memos() == {"a.txt.memo", "b.txt.memo", "c.md.memo", "new.txt.memo", "old/d.txt.memo"}


def test_a_watched_folder_outlives_a_full_disk(
    folder: Path, sync: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, steps = False, [True, True, False]

    def carried_out(*given: Any) -> Any:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "memos")
        return carry_out(*given)

    def step(_: float) -> None:
        nonlocal full
        if not steps:
            raise KeyboardInterrupt
        full = steps.pop(0)
        (folder / "new.txt").write_text("A new one is here, of room 8. " * 5)

    monkeypatch.setattr("minimemo.cli.commands.sleep", step)
    monkeypatch.setattr("minimemo.scale.sync.carry_out", carried_out)
    code, out, err = sync("--watch")
    assert code == 130 and err.count("No space left") == 1 and out.endswith("built    new.txt\n")


def test_the_estimate_is_of_these_documents(folder: Path, sync, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A sample the first time, and what the last sync took from then on."""
    monkeypatch.setattr("minimemo.scale.estimate.WORTH", 100)
    _, out, _ = sync("--dry-run")
    assert "new      a.txt" in out and "\nabout 1 min and " in out and not (remembered() or collections())
    code, out, _ = sync()
    assert code == 0 and "a sample of them is read first" in out and re.search(r"\nabout 1 min and [\d.]+ [kM]B; ", out)
    assert {path.name for path in remembered()} == {"a.txt.memo", "b.txt.memo", "c.md.memo", "d.txt.memo"}
    (folder / "f.txt").write_text("A fifth one, of room 5. " * 9)
    _, out, _ = sync()
    said = re.search(r"about 1 min and ([\d.]+) kB", out)
    assert "a sample" not in out and said
    memo = sum(file.stat().st_size for file in (memos_of("reports") / "f.txt.memo").iterdir()) / 1e3
    assert float(said[1]) == pytest.approx(memo, rel=0.5)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=9))
    (folder / "f.txt").write_text("Another one, of room 6. " * 9)
    code, _, err = sync()
    assert code == 2 and "has no room for" in err


def test_a_collection_is_asked_shown_and_deleted_alone(
    folder: Path, sync, tmp_path: Path, tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    sync()
    other = tmp_path / "other"
    other.mkdir()
    (other / "z.txt").write_text("Room 77 is where user 77 said hello. " * 6)
    models = tiny_models.options
    assert main(["sync", str(other), "--memory", "exact", *models]) == 0
    capsys.readouterr()
    assert main(["ask", "--in", "other", "Where did user 77 say hello?", "--mode", "rag", "--json", *models]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {passage["document"] for passage in answer["passages"]} == {"z.txt"}
    ask = ["ask", "--mode", "rag", "--json", *models, "Where did user 1 say hello?", "--in", "reports", "--name"]
    for pattern, names in (("[ab].txt", {"a.txt", "b.txt"}), ("old/*", {"old/d.txt"}), ("?.md", {"c.md"})):
        assert main([*ask, pattern]) == 0
        found = {passage["document"] for passage in json.loads(capsys.readouterr().out)["passages"]}
        assert found and found <= names
    (folder / "old/d.txt").rename(folder / "b.md")  # cited by where it is now
    assert sync()[0] == 0 and main([*ask, "b.md"]) == 0
    assert {passage["document"] for passage in json.loads(capsys.readouterr().out)["passages"]} == {"b.md"}
    assert main([*ask, "2024*"]) == 2 and "no document of a name like '2024*'" in capsys.readouterr().err
    assert main(["ask", "--all", "Where?", "--name", "2024*"]) == 2
    capsys.readouterr()
    assert main(["status", "reports"]) == 0
    assert capsys.readouterr().out.startswith("reports: 4 documents of ")
    remove(memos_of("reports") / "a.txt.memo")
    assert main(["status", "reports"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("reports: 3 documents of ") and "gone: 1; the next sync" in shown
    assert "1 new, 3 as they were" in sync()[1] and load("reports").lost() == 0
    assert main(["ask", "--in", "nosuch", "Where?", *models]) == 2
    assert "there is none" in capsys.readouterr().err
    assert main(["forget", "reports"]) == 0
    assert [one.name for one in collections()] == ["other"] and not memos_of("reports").exists()
    assert {path.name for path in remembered()} == {"z.txt.memo"} and (folder / "a.txt").exists()
    assert not list((data_dir() / "collections").glob("*reports*"))


def test_names_and_folders_are_checked(folder: Path, sync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    for name in ("../up", "", "a/b", ".x"):
        assert sync("--name", name)[0] == 2 or name == ""
    sync()
    (tmp_path / "two" / "reports").mkdir(parents=True)
    with pytest.raises(InputError, match="give this folder another name"):
        from minimemo.scale.sync import opened

        with opened(tmp_path / "two" / "reports", "reports"):
            pass
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    assert main(["sync", "../reports", "--dry-run"]) == 0  # the same folder
    for name in ("reports", "other"):
        with pytest.raises(InputError, match="is no folder; name"), opened(tmp_path / "nothing", name):
            pass
    assert main(["sync", str(tmp_path / "misspelt")]) == 2
    assert [one.name for one in collections()] == ["reports"]
