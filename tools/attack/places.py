"""Folders that are not what they seem: planted links, other people's files, devices, private documents, odd names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ground import Case, Ground, child, command, commands, digest, prose

_FILES = ("manifest.json", "chunks.json", "index.bin", "memory.bin")


def planted(ground: Ground) -> list[Case]:
    """Links and folders that came with a repository, where a build writes."""

    def attempt(plant: Callable[..., object], *given: object, fails: bool = False) -> str:
        case = ground.fresh()
        yours = case / "yours"
        yours.mkdir()
        (yours / "thesis.tex").write_text("a year's work")
        before, repository = digest(yours), case / "repository"
        repository.mkdir()
        (repository / "doc.txt").write_text(prose(900))
        plant(repository, *given)
        ended = command("build", repository / "doc.txt", *ground.models, "--memory", "int4", "-q")
        if wrong := ended.fell(*([2] if fails else [])):
            return wrong
        return "" if digest(yours) == before else "a file outside the memo was touched"

    def link_folder(repository: Path, name: str) -> None:
        (repository / name).symlink_to("../yours")

    def link_inside(repository: Path, name: str, stamped: bool) -> None:
        folder = repository / ".doc.memo.building"
        (folder / "memo").mkdir(parents=True)
        if stamped:
            (folder / "stamp.json").write_bytes(_stamp(ground, repository / "doc.txt"))
        place = folder / name
        place.unlink(missing_ok=True)
        place.symlink_to(repository.parent / "yours" / "thesis.tex")

    def foreign_memo(repository: Path) -> None:
        folder = repository / "doc.memo"
        folder.mkdir()
        (folder / "manifest.json").write_text('{"manifest_version": 3, "name": "an extension"}')
        os.link(repository.parent / "yours" / "thesis.tex", folder / "source.js")

    cases = [
        Case("the hidden folder is a link to a folder", attempt, link_folder, ".doc.memo.building", fails=True),
        Case("the memo's place is a link to a folder", attempt, link_folder, "doc.memo", fails=True),
        Case("a folder with a foreign manifest.json", attempt, foreign_memo, fails=True),
    ]
    names = ["lock", "stamp.json", "tail", "vectors", "quality.json", "memo/memory.bin.part", "memo/memory.bin.journal"]
    names += [f"memo/{name}" for name in _FILES]
    for stamped in (False, True):
        cases += [Case(f"{name} is a link, stamped: {stamped}", attempt, link_inside, name, stamped) for name in names]
    return cases


def _stamp(ground: Ground, document: Path) -> bytes:
    """What a build of the document would write; anyone can work it out at home."""
    noted = document.parent.parent / "stamp"

    def build() -> None:
        import minimemo.memo.build as building

        real = building.staging

        def recorded(target: Path, stamp: Any, *more: Any) -> Any:
            noted.write_text(json.dumps(stamp, sort_keys=True))
            return real(target, stamp, *more)

        building.staging = recorded
        ground.build(document, document.parent.parent / "elsewhere.memo")

    ended = child(build)
    assert ended.code == 0, ended.err
    return noted.read_bytes()


def files(ground: Ground) -> list[Case]:
    """Pipes, devices, circles and folders in place of a memo's files, a document, or what minimemo notes."""

    def put(what: str, path: Path) -> None:
        path.unlink(missing_ok=True)
        if what == "a pipe":
            os.mkfifo(path)
        elif what == "a folder":
            path.mkdir()
        else:
            path.symlink_to(path.name if what == "a circle" else what)

    def of_memo(name: str, what: str) -> str:
        ground.fresh()
        memo = ground.memo()
        put(what, memo / name)
        ask = ["ask", memo, "Who?", *ground.models, "-q"]
        return commands(["verify", memo], ["inspect", memo], ask, ["rm", memo], seconds=20)

    def document(what: str) -> str:
        case = ground.fresh()
        put(what, case / "doc.txt")
        return command("build", case / "doc.txt", *ground.models, "-q", seconds=20).fell(2)

    def note(what: str) -> str:
        ground.fresh()
        ground.memo()
        for folder, name in (("memos", "a" * 24), ("hashes", "x.json"), ("", "store.bin")):
            for old in (ground.home / folder).glob("*.json") if folder == "hashes" else ():
                put(what, old)
            (ground.home / folder).mkdir(exist_ok=True)
            put(what, ground.home / folder / name)
        ask = ["ask", "--all", "Who?", *ground.models, "-q"]
        return commands(["list"], ["list", "--du", "--json"], ask, seconds=20)

    kinds = ("a pipe", "a folder", "a circle", "/dev/zero", "/proc/self/mem")
    cases = [Case(f"{name} is {what}", of_memo, name, what) for what in kinds for name in _FILES]
    cases += [Case(f"the document is {what}", document, what) for what in kinds]
    return cases + [Case(f"notes are {what}", note, what) for what in kinds]


def removal(ground: Ground) -> list[Case]:
    """`rm` takes a memo, all that was kept of its document, and nothing else."""

    def all_of_it() -> str:
        ground.fresh()
        memos = [ground.memo(900, name) for name in ("one", "two")]
        ask = command("ask", "--all", "Who?", *ground.models, "-q", "--max-tokens", "2")
        if wrong := ask.fell(0) or command("rm", *memos).fell(0):
            return wrong
        names = [memo.name.encode() for memo in memos]
        for path in (ground.home / name for name in ("memos", "tails")):
            for file in path.iterdir():
                if file.parent.name == "tails" or any(name in file.read_bytes() for name in names):
                    return f"left: {file}"
        size = (ground.home / "store.bin").stat().st_size
        return "" if size < 100 else f"store.bin still holds {size} bytes"

    def kept(change: Callable[[Path], object], ends: int) -> str:
        ground.fresh()
        memo = ground.memo()
        yours = memo.parent / "yours"
        yours.mkdir()
        (yours / "thesis.tex").write_text("a year's work")
        change(memo)
        before = digest(yours)
        if wrong := command("rm", memo).fell(ends):
            return wrong
        if digest(yours) != before:
            return "a file outside the memo was touched"
        return "" if (ends == 0) != memo.exists() else "removed" if ends else "still there"

    def outside(name: str) -> Callable[[Path], object]:
        def change(memo: Path) -> None:
            shutil.move(memo / name, memo.parent / "yours" / name)
            (memo / name).symlink_to(memo.parent / "yours" / name)

        return change

    cases = [
        Case("two memos of a store", all_of_it),
        Case("a file of the user's in it", kept, lambda memo: (memo / "notes.txt").write_text("x"), 2),
        Case("a folder in it", kept, lambda memo: (memo / "src").mkdir(), 2),
        Case("what a file manager left in it", kept, lambda memo: (memo / ".DS_Store").write_text("x"), 0),
    ]
    return cases + [Case(f"{name} lies elsewhere", kept, outside(name), 0) for name in _FILES]


def secrecy(ground: Ground) -> list[Case]:
    """What a document that only its owner may read leaves for others to read: nothing."""

    def run() -> str:
        case = ground.fresh()
        shutil.rmtree(ground.home)
        os.environ["MINIMEMO_HOME"] = str(ground.home / "inner")
        document = case / "doc.txt"
        document.write_text(prose(900))
        document.chmod(0o600)
        try:
            wrong = commands(
                ["build", document, *ground.models, "--memory", "int4", "-q"],
                ["ask", "--all", "Who?", *ground.models, "--max-tokens", "2", "-q"],
                ["export", case / "doc.memo", case / "away.memo"],
                codes=[0],
            )
        finally:
            os.environ["MINIMEMO_HOME"] = str(ground.home)
        open_ = [path for top in (case, ground.home) for path in top.rglob("*") if path.stat().st_mode & 0o077]
        open_ = [path for path in open_ if path.parent.name != "hashes"]  # of models
        return wrong or (f"others may read {', '.join(map(str, open_))}" if open_ else "")

    return [Case("a document of mode 0600", run)]


def damage(ground: Ground) -> list[Case]:
    """Files that are cut off, emptied or written over while a memo is open, and a store whose bytes flip."""

    def open_while(change: Callable[[Path], object], prepared: bool) -> str:
        ground.fresh()
        memo = ground.memo(4000)

        def body() -> None:
            import minimemo

            opened = minimemo.open(memo, model=ground.decoder, embedder=ground.embedder)
            if prepared:
                opened.prepare()
            else:
                opened.ask("Who?", max_tokens=2)
            reader = opened.reader()
            change(memo / "memory.bin")
            with suppress(minimemo.MinimemoError):
                reader.verify()
                opened.ask("Who passed in the steamer Aurelia?", max_tokens=2)

        return child(body).fell(0)

    def flipped(seed: int) -> str:
        ground.fresh()
        for name in ("one", "two"):
            ground.memo(900 + len(name), name)
        picked: list[str] = []
        for at in (None, seed):
            if at is not None:
                store = bytearray((ground.home / "store.bin").read_bytes())
                store[at * 7919 % len(store)] ^= 1 << at % 8
                (ground.home / "store.bin").write_bytes(store)
            ended = command("ask", "--all", "Who passed?", *ground.models, "--json", "--max-tokens", "2", "-q")
            if wrong := ended.fell(0):
                return wrong
            answer = json.loads(ended.out)
            picked.append(json.dumps([answer["text"], answer["passages"]]))
        return "" if picked[0] == picked[1] else "another answer"

    ways: dict[str, Callable[[Path], object]] = {
        "cut off": lambda path: os.truncate(path, 5000),
        "emptied": lambda path: os.truncate(path, 0),
        "written over": lambda path: path.write_bytes(b"x" * path.stat().st_size),
        "deleted": lambda path: path.unlink(),
        "gone with its folder": lambda path: shutil.rmtree(path.parent),
    }
    cases = [
        Case(f"memory.bin is {how}, models loaded: {prepared}", open_while, change, prepared)
        for how, change in ways.items()
        for prepared in (False, True)
    ]
    return cases + [Case(f"store.bin, bit {seed}", flipped, seed) for seed in range(12)]


def names(ground: Ground) -> list[Case]:
    """Names of documents and places that no one expects, and text without one."""

    def document(name: bytes) -> str:
        path = Path(os.fsdecode(os.path.join(os.fsencode(ground.fresh()), name)))
        try:
            path.write_bytes(prose(600).encode())
        except OSError:
            return ""  # not a name here
        build = command("build", path, *ground.models, "--memory", "int4", "-q")
        memo = path.with_suffix(".memo")
        then = [["inspect", memo], ["list"], ["export", memo, f"{memo}.2"], ["rm", memo]]
        return build.fell() or commands(*([] if build.code else then))

    def place(name: str) -> str:
        case = ground.fresh()
        (case / "doc.txt").write_text(prose(600))
        words = ("build", case / "doc.txt", "-o", name, *ground.models, "--memory", "int4", "-q")
        ended = command(*words, before=lambda: os.chdir(case))
        return ended.fell() or ("a hidden folder is left" if ended.code and list(case.glob(".*")) else "")

    def unnamed() -> str:
        case = ground.fresh()

        def body() -> None:
            import minimemo

            os.chdir(case)
            for number in range(2):
                try:
                    minimemo.build(
                        minimemo.Document.of(prose(600, number)), model=ground.decoder, embedder=ground.embedder,
                        memory="int4",
                    )  # fmt: skip
                except minimemo.InputError:
                    assert number == 1
                    return
            raise AssertionError("the second text took the first one's place")

        return child(body).fell(0)

    odd = (b"\xff\xfe.txt", "灯塔 🌊.txt".encode(), b"-rf.txt", b"a b'\"$(x).txt", b"\n.txt", b".hidden.txt", b"x.memo")
    odd += (b"a" * 240 + b".txt", b"a" * 251 + b".txt", b"%s{0}.txt", b"\x1b[31m.txt", b"manifest.json", b"noext")
    targets = ("", ".", "..", "/", "a" * 300, "a/" * 3000 + "x", "x\n", "nodir/x", "/dev/null", "/proc/x", "doc.txt")
    targets += ("x/", "a\0b")
    cases = [Case("two texts without a name", unnamed)]
    cases += [Case(f"a document {name[:20]!r}", document, name) for name in odd]
    return cases + [Case(f"-o {name[:20]!r}", place, name) for name in targets]


def locks(ground: Ground) -> list[Case]:
    """File systems without locks, as some network ones are: flock(2) answers with an error."""

    def case(number: int) -> str:
        place = ground.fresh()
        (place / "doc.txt").write_text(prose(600))

        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        def before() -> None:
            import fcntl

            fcntl.flock = refuse  # type: ignore[assignment]

        ended = command("build", place / "doc.txt", *ground.models, "--memory", "int4", "-q", before=before)
        return ended.fell() or ("a hidden folder is left" if list(place.glob(".*")) else "")

    return [Case(f"flock says {os.strerror(number)}", case, number) for number in (38, 37, 95, 5)]
