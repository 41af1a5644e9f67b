"""Memos end to end on tiny models: build, open, ask from memory without reading again, verify, damage, interruption."""

from __future__ import annotations

import gc
import json
import os
import shutil
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

import minimemo
from minimemo.ask import Mode, memory_opening
from minimemo.engine.cache import KVCache
from minimemo.errors import InputError, MemoError
from minimemo.events import Event
from minimemo.files import cache_dir, exchange
from minimemo.memo.manifest import Manifest, checksum, file_info
from minimemo.memo.registry import remembered
from tests.conftest import TinyModels
from tests.memories import all_ids, whole_memory
from tests.tiny import write_model

TEXT = "".join(f"The user number {i} said Hello world, be brief about room {i * 7}. 你好{i}。\n\n" for i in range(14))


@pytest.fixture(scope="module")
def built(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memo")
    (folder / "doc.txt").write_text(TEXT, encoding="utf-8")
    memo = minimemo.build(folder / "doc.txt", **tiny_models.both)
    return memo.folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "doc.memo"))


def test_a_memo_has_four_files_and_nothing_is_left_beside_it(built: Path) -> None:
    assert sorted(p.name for p in built.iterdir()) == ["chunks.json", "index.bin", "manifest.json", "memory.bin"]
    assert sorted(p.name for p in built.parent.iterdir()) == ["doc.memo", "doc.txt"]
    minimemo.open(built).verify()


def test_chunks_are_exact_and_open_with_any_json_reader(built: Path) -> None:
    content = json.loads((built / "chunks.json").read_text(encoding="utf-8"))
    assert len(content["chunks"]) > 5
    for chunk in content["chunks"]:
        assert TEXT[chunk["start"] : chunk["end"]] == chunk["text"]
        assert 0 <= chunk["token_start"] < chunk["token_end"]


def test_index_opens_with_plain_faiss(built: Path) -> None:
    import faiss

    assert faiss.read_index(str(built / "index.bin")).ntotal == len(minimemo.open(built).chunks())


@pytest.mark.parametrize("codec", ["exact", "int4"])
def test_restored_memory_continues_like_the_saved_cache(codec: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    """save -> load -> continue: bit-equal logits for the exact codec, close ones for int4; nothing is prefilled."""
    model = minimemo.load_model(tiny_models.decoder, minimemo.RunOptions(dtype="float32"))
    document = minimemo.Document.of(TEXT, "doc")
    memo = minimemo.build(document, tmp_path / "a.memo", model=model, embedder=tiny_models.embedder, memory=codec)
    sequence = memory_opening("en").ids(model.tokenizer) + model.tokenizer.encode(TEXT)
    question = model.tokenizer.encode("Hello world")

    never_saved = model.engine.new_cache(len(sequence) + 64)
    model.engine.prefill(never_saved, sequence)
    before = model.engine.prefilled
    restored = whole_memory(memo)
    assert restored.length == len(sequence) and model.engine.prefilled == before
    if codec == "exact":
        assert torch.equal(restored.keys[:, :, : len(sequence)], never_saved.keys[:, :, : len(sequence)])
    expected, found = model.engine.prefill(never_saved, question), model.engine.prefill(restored, question)
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert difference == 0 if codec == "exact" else 0 < difference < 0.1


def test_asking_prefills_the_question_only(built: Path, tiny_models: TinyModels) -> None:
    """A re-prefill of the document in disguise would show in the engine's own count."""
    model = minimemo.load_model(tiny_models.decoder)
    memo = minimemo.open(built, model=model, embedder=tiny_models.embedder)
    tokens = memo.manifest.document.tokens
    assert tokens > 600
    answer = memo.ask("What did user number 3 say?", "memory", max_tokens=4)
    assert 0 < model.engine.prefilled == answer.prefilled_tokens < 300
    before = model.engine.prefilled
    memo.ask("What did user number 3 say?", "memory", max_tokens=4)
    assert model.engine.prefilled - before == answer.prefilled_tokens


@pytest.mark.parametrize("mode", ["memorag", "rag", "memory", "closed"])
def test_every_mode_answers_with_exact_sources(built: Path, tiny_models: TinyModels, mode: str) -> None:
    memo = minimemo.open(built, embedder=tiny_models.embedder)
    answer = memo.ask("What did user number 3 say?", mode, max_tokens=8)  # type: ignore[arg-type]
    assert bool(answer.passages) == (mode in ("memorag", "rag"))
    for passage in answer.passages:
        assert TEXT[passage.start : passage.end] == passage.text
    assert json.loads(json.dumps(answer.to_dict()))["mode"] == mode


def test_one_engine_serves_many_memos(built: Path, tiny_models: TinyModels, tmp_path: Path) -> None:
    model = minimemo.load_model(tiny_models.decoder)
    embedder = minimemo.open_embedder(tiny_models.embedder)
    other = minimemo.build(minimemo.Document.of("Hello. " * 40), tmp_path / "b.memo", model=model, embedder=embedder)
    first = minimemo.open(built, model=model, embedder=embedder)
    question = "What did user number 3 say?"
    one = first.ask(question, "memory", max_tokens=6).text
    two = other.ask(question, "memory", max_tokens=6).text
    assert first.ask(question, "memory", max_tokens=6).text == one
    assert other.ask(question, "memory", max_tokens=6).text == two


def test_building_again_returns_at_once(built: Path, tiny_models: TinyModels) -> None:
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in built.iterdir()}
    events: list[Event] = []
    document = built.parent / "doc.txt"
    minimemo.build(document, **tiny_models.both, on_event=events.append)
    assert "already built" in {e.stage for e in events} and "read" not in {e.stage for e in events}
    assert before == {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in built.iterdir()}


def test_the_same_document_gives_the_same_bytes(built: Path, tiny_models: TinyModels, tmp_path: Path) -> None:
    document = built.parent / "doc.txt"
    memo = minimemo.build(document, tmp_path / "c.memo", **tiny_models.both)
    for path in built.iterdir():
        assert (memo.folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_changed_document_replaces_the_memo(tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tmp_path / "doc.txt"
    for text in ("Hello world. " * 20, "Be brief. " * 20):
        source.write_text(text)
        memo = minimemo.build(source, **tiny_models.both)
        assert memo.chunks()[0].text.startswith(text[:5])
        memo.verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["doc.memo", "doc.txt"]


@pytest.mark.parametrize("name", ["chunks.json", "index.bin", "memory.bin", "manifest.json"])
def test_a_flipped_byte_is_found(copy: Path, name: str) -> None:
    path = copy / name
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), max(1, len(content) // 23)):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(MemoError, match=r"build it again"):
            minimemo.open(copy).verify()


@pytest.mark.parametrize("name", ["chunks.json", "index.bin"])
def test_a_flipped_byte_is_found_by_asking(copy: Path, name: str) -> None:
    """A damaged vector once went unnoticed: only `verify` looked at index.bin's checksum. No model is loaded for it."""
    path = copy / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(MemoError, match=rf"{name}: damaged \(checksum\)"):
        minimemo.open(copy, model="no-such-model", embedder="no-such-model").ask("Who?", "rag")


def test_a_flipped_byte_of_the_memory_is_found_by_asking(copy: Path, tiny_models: TinyModels) -> None:
    """Every block's checksum is looked at when it is read; a damaged one is computed again from its ids, and a note
    says so; anything else is an error. Ids themselves are read only then, or to verify."""
    path = copy / "memory.bin"
    content = bytearray(path.read_bytes())
    with minimemo.open(copy).reader() as reader:
        first, ids = reader.block(0), len(reader.ids(0))
    computed = 0
    for at in range(100, len(content) - 100, len(content) // 7):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        notes: list[Event] = []
        memo = minimemo.open(copy, **tiny_models.both, on_event=notes.append)
        try:
            memo.ask("Who?", "memory")
        except MemoError as error:
            assert "memory.bin" in str(error)
        else:
            told = [event.stage for event in notes if event.unit == "note"]
            if not told:
                with memo.reader() as reader, pytest.raises(MemoError, match="checksum"):
                    all_ids(reader)
                continue
            (note,) = told
            assert "memory.bin: damaged (checksum of block" in note and "computed from its text" in note
            computed += 1
    assert computed > 0 and ids == first.tokens


@pytest.mark.parametrize("name", ["chunks.json", "index.bin", "memory.bin", "manifest.json"])
def test_missing_and_truncated_files_are_named(copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(MemoError, match=name):
        minimemo.open(copy).verify()
    path.unlink()
    with pytest.raises(MemoError, match=name):
        minimemo.open(copy).verify()


def test_a_memo_of_another_model_or_version_is_refused(copy: Path, tiny_models: TinyModels, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=9)
    memo = minimemo.open(copy, model=other, embedder=tiny_models.embedder)
    with pytest.raises(MemoError, match=r"built with another model .* name that one with `model`"):
        memo.ask("Who?", "memory")
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(MemoError, match="memo format 2, but this minimemo reads format 1"):
        minimemo.open(copy)


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("document", "name", {}), ("document", "language", "x"), ("document", "tokens", 10**30),
        ("recipe", "params", []), ("recipe", "params", {"num_layers": 0}), ("recipe", "reading", {"first": "x"}),
        ("files", "memory.bin", {"bytes": None, "sha256": ""}), ("quality", None, [{"end": 0}]),
        ("quality", None, [{"end": 0, "tokens": 1, "kl": float("nan"), "top1": 1}]), ("model", "source", None),
    ],
)  # fmt: skip
def test_a_memo_of_an_enemys_has_the_fields_of_a_memo(copy: Path, key: str, field: str | None, value: object) -> None:
    """Its checksums are right, whatever it says."""
    body = json.loads((copy / "manifest.json").read_text())
    if field is None:
        body[key] = value
    else:
        body[key][field] = value
    del body["checksum"]
    (copy / "manifest.json").write_text(json.dumps({**body, "checksum": checksum(body)}))
    with pytest.raises(MemoError, match="damaged"):
        minimemo.open(copy)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"null", b'{"chunks": [{"index": "x"}]}', b'{"chunks": 5}'])
def test_passages_of_an_enemys_are_checked(copy: Path, content: bytes) -> None:
    (copy / "chunks.json").write_bytes(content)
    manifest = Manifest.load(copy)
    replace(manifest, files={**manifest.files, "chunks.json": file_info(copy / "chunks.json")}).save(copy)
    with pytest.raises(MemoError, match=r"chunks\.json: damaged"):
        minimemo.open(copy).chunks()


def test_a_document_past_the_context_is_read_through_a_window(tiny_models: TinyModels, tmp_path: Path) -> None:
    """The cache has room for the window, whatever the document's length; another window is another memo."""
    model = minimemo.load_model(tiny_models.decoder)
    capacities: list[int] = []
    new_cache = model.engine.new_cache

    def counting(capacity: int) -> KVCache:
        capacities.append(capacity)
        return new_cache(capacity)

    model.engine.new_cache = counting  # type: ignore[method-assign]
    long = minimemo.Document.of("".join(f"Hello world {i}.\n" for i in range(900)), "long.txt")
    memos = [
        minimemo.build(long, tmp_path / f"{n}.memo", model=model, embedder=tiny_models.embedder, window=n)
        for n in (None, 512)
    ]
    opening = len(memory_opening("en").ids(model.tokenizer))
    card = opening + 1024 + 64  # of the quality card's small caches
    assert [at for at in capacities if at != card] == [opening + 16 + 2048 + 512, opening + 16 + 512 + 512]
    for memo in memos:
        assert memo.inspect()["memory"]["tokens"] > 6144
        memo.verify()
    assert memos[0].manifest.recipe != memos[1].manifest.recipe


@pytest.mark.parametrize("window", [255, 5553, 10**9])
def test_a_window_that_cannot_be_is_refused(tiny_models: TinyModels, tmp_path: Path, window: int) -> None:
    with pytest.raises(InputError, match=rf"window {window}: choose 256 to 5552 tokens for this model"):
        minimemo.build(minimemo.Document.of(TEXT), tmp_path / "x.memo", **tiny_models.both, window=window)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["embed", "read"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a listener's own")])
def test_a_failed_build_leaves_nothing(tiny_models: TinyModels, tmp_path: Path, stage: str, error: Exception) -> None:
    def fail(event: Event) -> None:
        if event.stage == stage and event.done:
            raise error

    with pytest.raises(minimemo.MinimemoError if isinstance(error, OSError) else ValueError):
        minimemo.build(minimemo.Document.of(TEXT, "doc"), tmp_path / "x.memo", **tiny_models.both, on_event=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["embed", "read"])
def test_a_build_that_is_interrupted_goes_on(tiny_models: TinyModels, tmp_path: Path, stage: str) -> None:
    """No memo is there after Ctrl-C, half or whole; the same call goes on and gives the bytes of one in one go."""
    document, notes = minimemo.Document.of(TEXT * 3, "doc"), []

    def interrupt(event: Event) -> None:
        if event.stage == stage and event.done > 1024 * (stage == "read"):
            raise KeyboardInterrupt

    fresh = minimemo.build(document, tmp_path / "fresh.memo", **tiny_models.both)
    shutil.rmtree(cache_dir() / "tails")  # of which another build would take what it reads
    with pytest.raises(KeyboardInterrupt):
        minimemo.build(document, tmp_path / "x.memo", on_event=interrupt, **tiny_models.both)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.memo.building", "fresh.memo"]
    memo = minimemo.build(document, tmp_path / "x.memo", on_event=lambda e: notes.append(e.stage), **tiny_models.both)
    assert any("goes on at token" in note for note in notes) == (stage == "read")
    for path in fresh.folder.iterdir():
        assert (memo.folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh.memo", "x.memo"]


def test_what_is_no_memo_is_not_overwritten(tiny_models: TinyModels, tmp_path: Path) -> None:
    document = minimemo.Document.of(TEXT, "doc")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("mine", "file"):
        with pytest.raises(InputError, match="exists and is no memo"):
            minimemo.build(document, tmp_path / name, **tiny_models.both)
    with pytest.raises(InputError, match="no such folder"):
        minimemo.build(document, tmp_path / "no" / "x.memo", **tiny_models.both)


def test_a_memo_of_another_document_is_not_replaced_unasked(tiny_models: TinyModels, tmp_path: Path) -> None:
    models = {**tiny_models.both, "memory": "int4"}
    for name in ("notes.txt", "notes.md"):
        (tmp_path / name).write_text(f"Hello from {name}.")
    first = minimemo.build(tmp_path / "notes.txt", **models)
    refused = r"is the memo of notes\.txt; name another place for that of notes\.md with `out`"
    with pytest.raises(InputError, match=refused):
        minimemo.build(tmp_path / "notes.md", **models)
    first.verify()
    assert minimemo.build(tmp_path / "notes.md", first.folder, **models).manifest.document.name == "notes.md"


def test_threads_that_ask_two_memos_of_one_model_get_answers_of_one(tiny_models: TinyModels, tmp_path: Path) -> None:
    """Eight at once; `python tools/attack --only once` asks fifty questions in each thread."""
    model, embedder = minimemo.load_model(tiny_models.decoder), minimemo.open_embedder(tiny_models.embedder)
    models = {"model": model, "embedder": embedder, "memory": "int4"}
    memos = [minimemo.build(text=TEXT[at:], out=tmp_path / f"{at}.memo", **models) for at in (0, 90)]
    modes = ("memorag", "rag", "memory")
    asked = [(memos[n % 2], f"What did user {n} say about Hello?", modes[n % 3]) for n in range(8)]

    def answer(one: tuple[minimemo.Memo, str, str]) -> minimemo.Answer:
        memo, question, mode = one
        return memo.ask(question, cast(Mode, mode), max_tokens=4)

    alone = [answer(one) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, asked)) == alone


def test_a_text_is_built_as_it_is(tiny_models: TinyModels, tmp_path: Path) -> None:
    models = {**tiny_models.both, "memory": "int4"}
    memo = minimemo.build(text="Hello world.", out=tmp_path / "x.memo", **models)
    assert memo.chunks()[0].text == "Hello world."
    for given in ({}, {"source": tmp_path / "x.txt", "text": "Hello."}):
        with pytest.raises(InputError, match="give a document or a text, one of them"):
            minimemo.build(**given, **models)
    with pytest.raises(InputError, match="cannot be a memo"):
        minimemo.build(text="Hello.", out="a\0b", **models)


def test_a_link_leads_to_the_memo(tiny_models: TinyModels, tmp_path: Path) -> None:
    """What it leads to is written, also where nothing is yet."""
    (tmp_path / "large_disk").mkdir()
    link = tmp_path / "doc.memo"
    link.symlink_to(tmp_path / "large_disk/doc.memo")
    for text in ("Hello world.", "Be brief."):
        document = minimemo.Document.of(text, "doc")
        minimemo.build(document, link, **tiny_models.both, memory="int4")
        assert link.is_symlink() and minimemo.open(tmp_path / "large_disk/doc.memo").chunks()[0].text == text


def test_a_link_in_a_circle_is_one_line(tiny_models: TinyModels, tmp_path: Path) -> None:
    link = tmp_path / "loop.memo"
    link.symlink_to(link)
    with pytest.raises(InputError, match=r"leads nowhere|exists and is no memo"):
        minimemo.build(minimemo.Document.of("Hello.", "doc"), link, model=tiny_models.decoder)


def test_a_folder_that_cannot_be_synced_costs_nothing(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", refuse)
    models = {**tiny_models.both, "memory": "int4"}
    minimemo.build(minimemo.Document.of("Hello.", "doc"), tmp_path / "a.memo", **models).verify()


@pytest.mark.parametrize("place", ["new", "doc.memo"])
def test_the_old_memo_stays_where_the_new_one_cannot_take_its_place(
    copy: Path, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Where two folders cannot change places in one step, the old one is moved away, and back after an error."""

    def fail(source: Path, target: Path) -> None:
        if target.name == place:
            raise OSError(5, "Input/output error")
        source.rename(target)

    monkeypatch.setattr("minimemo.memo.folder.put", fail)
    monkeypatch.setattr("minimemo.memo.folder.exchange", lambda *_: False)
    with pytest.raises(minimemo.MinimemoError, match="cannot be written"):
        document = minimemo.Document.of("Something else.", "doc")
        minimemo.build(document, copy, **tiny_models.both, memory="int4")
    minimemo.open(copy).verify()
    assert not list(copy.parent.glob(".*"))


@pytest.mark.parametrize("way", ["exchange", "rename"])
def test_a_memo_is_replaced_while_others_look(
    copy: Path, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Whoever opens it at any moment finds the old one or the new one, and answers from one of them alone."""
    if way == "rename":
        monkeypatch.setattr("minimemo.memo.folder.exchange", lambda *_: False)
    elif not exchange(copy, Path(shutil.copytree(copy, copy.with_name("other")))):
        pytest.skip("no renameat2 here")
    early = minimemo.open(copy, **tiny_models.both)
    rename, seen = os.rename, []

    def slow_rename(source: Path, target: Path) -> None:
        rename(source, target)
        if not copy.exists():
            reader = threading.Thread(target=lambda: seen.append(minimemo.open(copy).manifest.document.name))
            reader.start()
            time.sleep(0.01)
            readers.append(reader)

    readers: list[threading.Thread] = []
    monkeypatch.setattr("os.rename", slow_rename)
    minimemo.build(minimemo.Document.of("Something else.", "new"), copy, memory="int4", **tiny_models.both)
    for reader in readers:
        reader.join()
    assert (len(readers), seen) == ((1, ["new"]) if way == "rename" else (0, []))
    assert early.ask("What else?", "rag", max_tokens=2).passages[0].text == "Something else."
    assert early.manifest.document.name == "new"
    assert not list(copy.parent.glob(".*"))


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_a_file_whose_name_is_no_text(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode("书".encode("gb18030"))
    folder.mkdir()
    source = folder / os.fsdecode("红楼梦.txt".encode("gb18030"))
    source.write_text("Hello world.")
    memo = minimemo.build(source, **tiny_models.both, memory="int4")
    assert memo.manifest.document.name.encode().endswith(b".txt"), "text again, with marks"
    assert memo.folder in remembered()
    again = minimemo.open(memo.folder)
    again.verify()
    assert again.manifest == memo.manifest and again.ask("Who?", max_tokens=2).passages


def test_passages_alone(built: Path, tiny_models: TinyModels) -> None:
    """By the embedder, without the model of the memory."""
    memo = minimemo.open(built, model="nowhere", embedder=tiny_models.embedder)
    passages = memo.retrieve("What did user number 3 say?", 2)
    assert len(passages) == 2 and passages[0].score >= passages[1].score
    for passage in passages:
        assert TEXT[passage.start : passage.end] == passage.text and passage.document == "doc.txt"
    for query, k in (("", 1), ("Who?", 0)):
        with pytest.raises(InputError):
            memo.retrieve(query, k)


def test_a_memo_is_closed_and_asked_again(built: Path, tiny_models: TinyModels) -> None:
    def held() -> int:
        return sum(os.path.exists(f"/dev/fd/{n}") and "memory.bin" in os.readlink(f"/dev/fd/{n}") for n in range(99))

    gc.collect()
    before = held()  # by tests that failed on purpose
    questions = ["What did user 3 say?", "Who said Hello?"]
    with minimemo.open(built, **tiny_models.both) as memo:
        answers = memo.ask_many(questions, max_tokens=4)
        assert held() == before + 1 or sys.platform != "linux"
    assert held() == before
    assert memo.ask_many(questions, max_tokens=4) == answers, "timings do not count"
    whole, cut = (memo.ask(questions[0], "closed", max_tokens=most) for most in (400, 1))
    assert cut.finish_reason == "length" == cut.to_dict()["finish_reason"] and len(cut.text) < len(whole.text)
    memo.close()


def test_the_memorys_model_is_loaded_when_memory_is_asked(built: Path, tiny_models: TinyModels, tmp_path: Path) -> None:
    """Where another model writes; its tokenizer serves both where they have the same one, whichever comes first."""
    memo = minimemo.open(built, generator=write_model(tmp_path / "generator", seed=7), **tiny_models.both)
    found = memo.ask("What did user 3 say?", "rag", max_tokens=4)
    assert not isinstance(memo.runtime.model, minimemo.LanguageModel) and found.passages
    recalled = memo.recall("What did user 3 say?")
    assert isinstance(memo.runtime.model, minimemo.LanguageModel)
    assert memo.runtime.model.tokenizer is memo.runtime.second_decoder().tokenizer
    whole = minimemo.open(built, generator=tmp_path / "generator", **tiny_models.both)
    whole.prepare()
    assert isinstance(whole.runtime.model, minimemo.LanguageModel)
    assert whole.recall("What did user 3 say?") == recalled
    assert whole.ask("What did user 3 say?", "rag", max_tokens=4) == found


def test_anything_that_is_given_a_prompt_may_write(built: Path, tiny_models: TinyModels) -> None:
    class Own:
        def generate(self, prompt: str) -> list[str]:
            prompts.append(prompt)
            return [" As", " it", " says.", " "]

    prompts: list[str] = []
    models = {"model": minimemo.load_model(tiny_models.decoder), "embedder": tiny_models.embedder}
    for generator, said in ((Own(), "As it says."), (lambda prompt: "No.", "No.")):
        answer = minimemo.open(built, generator=generator, **models).ask("What did user 3 say?", "rag")
        assert (answer.text, answer.finish_reason) == (said, "stop")
    assert "What did user 3 say?" in prompts[0] and answer.passages[0].text.strip() in prompts[0]
    with pytest.raises(InputError, match="generator 5: no address, model, function or object"):
        minimemo.open(built, generator=5, **models).prepare()  # type: ignore[arg-type]


def test_a_file_that_is_cut_off_while_it_is_open(copy: Path, tiny_models: TinyModels) -> None:
    memo = minimemo.open(copy, **tiny_models.both)
    with memo.reader() as reader:
        os.truncate(copy / "memory.bin", 5000)
        with pytest.raises(MemoError, match="damaged"):
            reader.verify()


@pytest.mark.parametrize("question", ["", "  \n", "?!…"])
def test_an_empty_question_is_refused_before_a_model_is_loaded(built: Path, question: str) -> None:
    memo = minimemo.open(built)
    for ask in (memo.ask, memo.stream):
        with pytest.raises(InputError, match="question is empty"):
            ask(question)
    assert memo._session is None and memo.runtime.model is None
