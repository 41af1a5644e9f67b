"""Builds that were killed and documents that grew: the same bytes as in one go, with less to read."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import minimemo
from minimemo.errors import MinimemoError
from minimemo.events import Event, Listener, silent
from minimemo.memo import folder as folders
from minimemo.memo import memorize as build_memory
from minimemo.memo import passages as build_passages
from minimemo.memo.calibrate import calibrate
from minimemo.memo.library import remove
from minimemo.memo.manifest import Recipe
from minimemo.memo.memo import Memo
from minimemo.memory import writer
from minimemo.runtime import LanguageModel, open_embedder
from minimemo.text.pieces import encode_in_pieces
from tests.commands import python
from tests.conftest import TinyModels
from tests.search.test_embedder import tiny_embedder
from tests.tiny import write_model

SHORT = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}. 你好{i}。\n\n" for i in range(50))
LONG = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}. 你好{i}。\n\n" for i in range(84))
FILES = ["chunks.json", "index.bin", "manifest.json", "memory.bin"]
Build = Callable[..., Memo]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """SHORT's 2,600 tokens are read whole in this context, LONG's 4,300 through a window of 2,048."""
    return minimemo.load_model(write_model(tmp_path_factory.mktemp("model") / "decoder", max_context=4500))


@pytest.fixture
def build(
    loaded: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Build:
    """Builds; "fresh.memo" takes nothing that other memos leave, and leaves them nothing."""
    monkeypatch.setattr(build_passages, "GROUP", 8)
    home, nowhere = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("nowhere")
    monkeypatch.setenv("MINIMEMO_HOME", str(home))

    def run(text: str, name: str = "a.memo", memory: str = "int4", on_event: Listener = silent) -> Memo:
        document = minimemo.Document.of(text, "doc")
        with pytest.MonkeyPatch.context() as patch:
            if name == "fresh.memo":
                patch.setattr(folders, "_kept_tail_folder", lambda: nowhere / "tails")
            memo = minimemo.build(document, tmp_path / name, **loaded, memory=memory, on_event=on_event)
        shutil.rmtree(nowhere / "tails", ignore_errors=True)
        return memo

    return run


class Killed(BaseException):
    pass


def killed(build: Build, folder: Path, stop: int, *arguments: str, stage: str = "") -> bool:
    """A build that ends at event number `stop` (of a stage), with what a kill leaves; False: it came to its end."""
    seen = 0

    def listen(event: Event) -> None:
        nonlocal seen
        seen += stage in event.stage
        if seen == stop:
            shutil.copytree(folder / ".a.memo.building", folder / "left")
            raise Killed

    try:
        build(*arguments, on_event=listen)
    except Killed:
        (folder / "left").rename(folder / ".a.memo.building")
        return True
    return False


def same(one: Path, two: Path) -> bool:
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("memory", ["int4", "exact"])
@pytest.mark.parametrize("text", [SHORT, LONG], ids=["whole", "window"])
def test_a_killed_build_goes_on(build: Build, model: LanguageModel, tmp_path: Path, text: str, memory: str) -> None:
    """Killed again and again, some events later each time: every life adds to what the one before left."""
    fresh = build(text, "fresh.memo", memory)
    lives, read = 0, model.engine.prefilled
    while killed(build, tmp_path, 3 * lives + 3, text, "a.memo", memory):
        lives += 1
    assert lives >= 5
    assert same(tmp_path / "a.memo", fresh.folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.memo", "fresh.memo"]
    tokens = fresh.inspect()["memory"]["tokens"]
    assert model.engine.prefilled - read <= tokens + 1024 * lives


@pytest.mark.parametrize("seed", range(4))
def test_what_a_crash_damaged_is_read_again(build: Build, tmp_path: Path, seed: int) -> None:
    """Any byte of what is left flipped, or any end cut off: the same memo, or better no memo than a wrong one."""
    chance = random.Random(seed)
    fresh = build(LONG, "fresh.memo")
    assert killed(build, tmp_path, 4 + seed, LONG, stage="read")
    left = tmp_path / ".a.memo.building"
    assert {"tail", "vectors", "stamp.json"} <= {p.name for p in left.iterdir()}
    for path in [p for p in left.rglob("*") if p.is_file() and p.stat().st_size]:
        content = bytearray(path.read_bytes())
        if chance.random() < 0.5:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        elif chance.random() < 0.5:
            del content[chance.randrange(len(content)) :]
        path.write_bytes(content)
    again = build(LONG)
    assert again.manifest.quality  # some of it, where the figures were damaged
    replace(again.manifest, quality=fresh.manifest.quality).save(again.folder)
    assert same(again.folder, fresh.folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.memo", "fresh.memo"]


def test_a_long_document_says_how_long_it_takes(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    build(LONG, on_event=events.append)
    assert not [event for event in events if event.unit == "note"]
    monkeypatch.setattr(build_memory, "LONG", 4200)
    monkeypatch.setattr(build_memory, "SAMPLE", 1024)
    memo = build(LONG, "b.memo", on_event=events.append)
    told = memo.inspect()["memory"]
    (note,) = [event.stage for event in events if event.unit == "note"]
    found = re.fullmatch(r"([\d,]+) tokens: about (\d+) minutes to read, memory\.bin about ([\d.]+) kB", note)
    assert found and int(found[1].replace(",", "")) == told["tokens"]
    assert float(found[3]) * 1000 == pytest.approx(told["bytes"], rel=0.1)


def test_a_document_that_the_embedder_cannot_read(model: LanguageModel, tmp_path: Path) -> None:
    """A vocabulary without the document's language is said, since vectors find nothing there."""
    english = open_embedder(tiny_embedder(tmp_path / "embedder"))
    unread = ["search goes by words alone"]
    for text, told in (("the cat ran . the dogs ran far", []), ("灯塔很高，船长老了。" * 9, unread)):
        events: list[Event] = []
        document = minimemo.Document.of(text, "doc")
        minimemo.build(
            document, tmp_path / f"{len(told)}.memo", model=model, embedder=english, memory="int4",
            on_event=events.append,
        )  # fmt: skip
        notes = [event.stage for event in events if event.unit == "note"]
        assert len(notes) == len(told) and all(part in note for part, note in zip(told, notes, strict=True))


def test_a_kill_before_the_journal_goes(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """memory.bin has its name, its journal is still there: the next build leaves none."""
    fresh = build(SHORT, "fresh.memo")

    def put(part: Path, path: Path) -> None:
        part.rename(path)
        shutil.copytree(tmp_path / ".a.memo.building", tmp_path / "left")
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(writer, "put", put)
        build(SHORT)
    (tmp_path / "left").rename(tmp_path / ".a.memo.building")
    assert same(build(SHORT).folder, fresh.folder)
    assert sorted(path.name for path in (tmp_path / "a.memo").iterdir()) == FILES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_kill_9_five_times(tiny_models: TinyModels, tmp_path: Path) -> None:
    """The signal itself, while embedding, reading, coding and at the very end; each build is a process of its own,
    forked from one that has imported everything and computed nothing."""
    document = tmp_path / "doc.txt"
    document.write_text(LONG, encoding="utf-8")
    program = f"""
import os, signal, sys, minimemo, torch
os.environ["MINIMEMO_HOME"] = {os.environ["MINIMEMO_HOME"]!r}
from minimemo.memo import build as builder
import minimemo.engine.engine, minimemo.models.weights, minimemo.search.embedder
torch.set_num_threads(1)
models = {(str(tiny_models.decoder), str(tiny_models.embedder))!r}
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def life(stage, number):
    def listen(event):
        nonlocal number
        number -= event.stage == stage
        number or kill()
    if stage == "manifest":
        minimemo.memo.manifest.Manifest.save = lambda *_: kill()
    if stage == "keep":
        builder.keep_tail = lambda *_, **__: kill()
    minimemo.build({str(document)!r}, model=models[0], embedder=models[1], on_event=listen)
for stage, number in [("embed", 2), ("read", 3), ("read", 5), ("manifest", -1), ("keep", -1), ("none", -1)]:
    child = os.fork()
    if not child:
        try:
            life(stage, number)
            os._exit(0)
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *sorted(os.listdir({str(tmp_path)!r})), flush=True)
"""
    said = python(program)
    killed = f"{-signal.SIGKILL} .doc.memo.building doc.txt"
    assert said.splitlines() == [*[killed] * 5, "0 doc.memo doc.txt"]
    fresh = minimemo.build(document, tmp_path / "f.memo", **tiny_models.both)
    assert same(tmp_path / "doc.memo", fresh.folder)


def test_what_another_build_left_is_not_used(build: Build, tmp_path: Path) -> None:
    fresh = build(LONG, "fresh.memo")
    assert killed(build, tmp_path, 6, LONG, "a.memo", "exact", stage="read")
    assert same(build(LONG).folder, fresh.folder)
    assert killed(build, tmp_path, 3, SHORT, stage="read")
    again = build(LONG)  # already there: what is left is swept
    assert same(again.folder, fresh.folder) and not list(tmp_path.glob(".*"))


def test_two_builds_of_one_memo_at_once(build: Build, tmp_path: Path) -> None:
    with folders.staging(tmp_path / "a.memo", {}) as folder:
        with pytest.raises(MinimemoError, match=r"a\.memo: is being built by another process; wait for it"):
            build(SHORT)
        (folder / "memo" / "manifest.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.memo"]


@pytest.mark.parametrize("memory", ["int4", "exact"])
@pytest.mark.parametrize(
    ("before", "text", "reused"),
    [
        (SHORT[:3000], SHORT, True),
        (SHORT[:-1], SHORT, True),
        (LONG[:4700], LONG, True),
        (LONG[:-2], LONG + "Hello. " * 30, True),
        (LONG, LONG[:-40], True),  # the end taken off
        ("Hello. " + SHORT, SHORT, False),
        (SHORT, LONG, False),  # read whole before, through a window now
    ],
    ids=["grown", "by one character", "grown, window", "a little, window", "shortened", "another", "past the context"],
)
def test_a_document_that_grew(
    build: Build, model: LanguageModel, tmp_path: Path, before: str, text: str, reused: bool, memory: str
) -> None:
    fresh = build(text, "fresh.memo", memory)
    tokens = fresh.inspect()["memory"]["tokens"]
    earlier = build(before, "a.memo", memory).inspect()["memory"]["tokens"]
    read = model.engine.prefilled
    assert same(build(text, "a.memo", memory).folder, fresh.folder)
    read = model.engine.prefilled - read
    if reused:
        assert read <= tokens - earlier + 1600
    else:
        assert read == tokens + 2 * sum(judged.tokens for judged in fresh.manifest.quality)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.memo", "fresh.memo"]


@pytest.mark.parametrize("tier", ["int4", "balanced"])
def test_what_begins_like_another_document_is_read_from_where_they_part(
    build: Build, model: LanguageModel, tmp_path: Path, tier: str
) -> None:
    """Whatever the tier of the other, or its length; not what was read through a window, whose places differ. What
    another leaves is gone with it, and a damaged one is of no use."""
    if tier == "balanced":
        calibrate(model, [SHORT, SHORT[::-1]])
    base = SHORT[:3000]
    other = base[:2000] + "Here another room begins. " * 40
    texts = (base, other, base[:2000] + "Short.", base + "More. " * 9)
    for text, begins in zip(texts, ("int4", "exact", "int4", "exact"), strict=True):
        fresh = build(text, "fresh.memo", tier)
        tokens = fresh.inspect()["memory"]["tokens"] + 2 * sum(one.tokens for one in fresh.manifest.quality)
        first = build(base if text != base else other, "first.memo", begins)
        read = model.engine.prefilled
        assert same(build(text, "a.memo", tier).folder, fresh.folder)
        taken = tokens - (model.engine.prefilled - read)
        assert taken >= 512 and taken % 512 == 0
        remove(tmp_path / "a.memo")
        (tail,) = (folders.cache_dir() / "tails").iterdir()
        content = tail.read_bytes()
        tail.write_bytes(content[:5000] + b"x" + content[5001:])
        read = model.engine.prefilled
        assert same(build(text, "a.memo", tier).folder, fresh.folder)
        assert model.engine.prefilled - read == tokens
        for memo in (tmp_path / "a.memo", first.folder, fresh.folder):
            remove(memo)
        assert not list((folders.cache_dir() / "tails").iterdir())
    for before, text in ((LONG, SHORT), (SHORT, LONG)) if tier == "int4" else ():  # one of them through a window
        build(before, "first.memo", tier)
        marks = [model.engine.prefilled]
        for name in ("fresh.memo", "a.memo"):
            build(text, name, tier)
            marks.append(model.engine.prefilled)
        assert same(tmp_path / "a.memo", tmp_path / "fresh.memo") and marks[2] - marks[1] == marks[1] - marks[0]
        for memo in ("a.memo", "first.memo", "fresh.memo"):
            remove(tmp_path / memo)


def test_the_transform_codec_too(build: Build, model: LanguageModel, tmp_path: Path) -> None:
    """It codes the end of a document with more care, which blocks taken over must not have got or lack."""
    calibrate(model, [SHORT, SHORT[::-1]])
    fresh = build(LONG, "fresh.memo", "balanced")
    assert killed(build, tmp_path, 6, LONG, "a.memo", "balanced", stage="read")
    assert same(build(LONG, "a.memo", "balanced").folder, fresh.folder)
    for before in (LONG[:4700], LONG + "Hello. " * 30):
        build(before, "b.memo", "balanced")
        assert same(build(LONG, "b.memo", "balanced").folder, fresh.folder)


def test_a_grown_document_without_its_exact_end(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "TAILS_BYTES", 1000)
    fresh = build(LONG, "fresh.memo")
    build(LONG[:4700])
    assert not list((folders.cache_dir() / "tails").iterdir())
    assert same(build(LONG).folder, fresh.folder)


def test_a_damaged_memo_is_built_again(build: Build, tmp_path: Path) -> None:
    """By the very build that its message asks for, of the same document or of one that has grown since."""
    fresh = build(SHORT, "fresh.memo")
    grown = build(SHORT + "More.", "grown.memo")
    memo = build(SHORT)
    for name in FILES:
        path = memo.folder / name
        content = path.read_bytes()
        at = len(content) // 2
        flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        for damaged in (content[:-7], flipped):
            path.write_bytes(damaged)
            assert same(build(SHORT).folder, fresh.folder)
        path.write_bytes(flipped)
        assert same(build(SHORT + "More.").folder, grown.folder)
        if name != "manifest.json":  # without it there is no memo, only files that nobody may overwrite
            path.unlink()
        assert same(build(SHORT).folder, fresh.folder)


def test_the_oldest_ends_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "TAILS_BYTES", 250)
    recipes = [Recipe(f"{number}", "m", "e", "int4", {}, "o", 256, 32) for number in range(4)]
    for number in range(4):
        (tmp_path / "end").write_bytes(bytes([number]) * 100)
        folders.keep_tail(tmp_path / "end", recipes[number], {}, whole=number % 2 == 0)
    kept = [folders.borrow_tail(recipes[n], {}, tmp_path / f"got{n}") for n in range(4)]
    assert kept == [False, False, True, True]
    assert (tmp_path / "got3").read_bytes() == bytes([3]) * 100


@pytest.mark.parametrize("piece", [1, 50, 1000, 100_000])
def test_tokens_in_pieces(model: LanguageModel, piece: int) -> None:
    tokenizer = model.tokenizer
    for text in (SHORT, "", "no line end " * 300, "\n\n  \n a\n\n\nb \n" * 40, LONG.replace("\n", "\r\n")):
        ids, spans = tokenizer.encode_with_offsets(text)
        found, where = encode_in_pieces(text, tokenizer.encode_with_offsets, piece=piece)
        assert found.tolist() == ids.tolist() and where.tolist() == spans.tolist()
