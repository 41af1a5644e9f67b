"""Folders for `minimemo sync` that reach elsewhere, hold no files, change while they are read, or empty themselves."""

from __future__ import annotations

import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ground import Case, Ended, Ground, command, digest, finish, prose, start

_SECRET = "the year's work"
Lay = Callable[
    [Path, Path], None
]  # gets the folder, with a good document in it, and one of another's that lies outside


def folders(ground: Ground) -> Iterator[Case]:
    """Each is synced, its good document has a memo, and nothing outside is read, written or deleted."""

    def sync(*more: str, before: Callable[[], object] = lambda: None) -> Ended:
        words = ("sync", ground.case / "reports", *ground.models, "--memory", "exact")
        return command(*words, *more, before=before, seconds=90)

    def laid() -> tuple[Path, Path]:
        place = ground.fresh()
        reports, outside = place / "reports", place / "outside"
        reports.mkdir()
        outside.mkdir()
        (reports / "good.txt").write_text(prose(400))
        (outside / "thesis.txt").write_text(_SECRET)
        return reports, outside

    def memos() -> list[str]:
        root = ground.home / "collections" / "reports"
        return sorted(str(path.parent.relative_to(root)) for path in root.rglob("manifest.json"))

    def fell(ended: Ended, outside: Path, before: str | None) -> str:
        if wrong := ended.fell():
            return wrong
        if "\x1b" in ended.out + ended.err:
            return "commands for a terminal in what it says"
        if digest(outside) != before:
            return "a file outside the folder was touched"
        secret = [path for path in ground.home.rglob("*") if path.is_file() and _SECRET.encode() in path.read_bytes()]
        return f"{secret} holds what lies outside" if secret else ""

    def planted(lay: Lay) -> str:
        reports, outside = laid()
        before = digest(outside)
        lay(reports, outside)
        for _ in range(2):
            ended = sync()
            if wrong := fell(ended, outside, before):
                return wrong
            if "good.txt.memo" not in memos() and ended.code != 2:
                return f"the good document has no memo; {memos()}"
        shutil.rmtree(reports)
        reports.mkdir()
        (reports / "good.txt").write_text(prose(400))
        if wrong := fell(sync("--forget"), outside, before):
            return wrong
        return "" if memos() == ["good.txt.memo"] else f"then {memos()}"

    def moving(seed: int) -> str:
        """Documents come, change, go and become folders while they are synced; a sync of what is left then is right."""
        reports, outside = laid()
        before, chance = digest(outside), random.Random(seed)
        for number in range(4):
            (reports / f"{number}.txt").write_text(prose(200 + number, number))

        def stir() -> None:
            for _ in range(400):
                _stir(reports / f"{chance.randrange(4)}.txt", outside / "thesis.txt", chance)
                time.sleep(chance.uniform(0, 0.01))

        stirring = start(stir)
        first = sync("--forget")
        finish(stirring, 60)
        if wrong := fell(first, outside, before):
            return wrong
        for path in reports.iterdir():
            if path.is_symlink() or path.name != "good.txt":
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (reports / "last.txt").write_text(prose(300, 9))
        last = sync("--forget")
        if wrong := fell(last, outside, before) or last.code:
            return f"the next sync: {wrong}"
        return "" if memos() == ["good.txt.memo", "last.txt.memo"] else f"then {memos()}"

    def emptied(empty: Callable[[Path], None]) -> str:
        """A folder of seven documents that is suddenly without them: nothing is forgotten unasked."""
        reports, outside = laid()
        before = digest(outside)
        for number in range(6):
            (reports / f"{number}.txt").write_text(prose(200 + number, number))
        if wrong := fell(sync(), outside, before):
            return wrong
        had = memos()
        empty(reports)
        ended = sync()
        if wrong := fell(ended, outside, before):
            return wrong
        if not ended.code or memos() != had:
            return f"exit {ended.code}, {len(memos())} of {len(had)} memos left"
        return ""

    def unreadable(number: int) -> str:
        """As permissions have it for all but root: a document, or a folder, whose reading is refused."""
        reports, outside = laid()
        (reports / "sub").mkdir()
        for seed, name in enumerate(("secret.txt", "sub/other.txt")):
            (reports / name).write_text(prose(300, seed))

        def refuse() -> None:
            real = {name: getattr(os, name) for name in ("open", "scandir")}
            import builtins
            import io

            real["builtins"] = builtins.open
            target = ("secret.txt", "sub", "other.txt")[number]

            def refusing(name: str) -> Callable[..., object]:
                def call(path: object = ".", *a: object, **k: object) -> object:
                    if isinstance(path, str | os.PathLike) and os.path.basename(os.fspath(path)) == target:
                        raise PermissionError(13, "Permission denied", os.fspath(path))
                    return real[name](path, *a, **k)

                return call

            os.open, os.scandir, builtins.open = map(refusing, ("open", "scandir", "builtins"))
            io.open = builtins.open

        ended = sync(before=refuse)
        return fell(ended, outside, digest(outside)) or ("" if ended.code else "what cannot be read is not told")

    for name, lay in _LAID.items():
        yield Case(name, planted, lay)
    for name, empty in _EMPTIED.items():
        yield Case(name, emptied, empty)
    for number in range(3):
        yield Case(f"unreadable {number}", unreadable, number)
    for seed in range(12):
        yield Case(f"changes meanwhile, seed {seed}", moving, seed)


def _stir(path: Path, outside: Path, chance: random.Random) -> None:
    """Puts something else in a place: another text, nothing, a link, a pipe, a folder."""
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        match chance.randrange(6):
            case 0 | 1:
                path.write_text(prose(chance.randint(100, 400), chance.randrange(99)))
            case 2:
                path.symlink_to(outside)
            case 3:
                os.mkfifo(path)
            case 4:
                path.mkdir()
    except OSError:
        return  # the folder is not this one's alone


def _named(name: bytes) -> Lay:
    def lay(reports: Path, _: Path) -> None:
        place = os.path.join(os.fsencode(reports), name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "w") as file:
            file.write(prose(300, 5))

    return lay


def _socket(reports: Path, _: Path) -> None:
    here = os.getcwd()
    os.chdir(reports)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("a.txt")
    finally:
        os.chdir(here)


def _deep(reports: Path, _: Path) -> None:
    here = os.open(reports, os.O_RDONLY)
    for _depth in range(60):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with open(os.open("a.txt", os.O_WRONLY | os.O_CREAT, dir_fd=here), "w") as file:
        file.write(prose(300, 5))
    os.close(here)


_LAID: dict[str, Lay] = {
    "a link to a document outside": lambda r, o: (r / "a.txt").symlink_to(o / "thesis.txt"),
    "a link to a folder outside": lambda r, o: (r / "sub").symlink_to(o),
    "a link to the folder itself": lambda r, o: (r / "sub").symlink_to(r),
    "a link to /": lambda r, o: (r / "root.txt").symlink_to("/"),
    "a link to itself": lambda r, o: (r / "a.txt").symlink_to(r / "a.txt"),
    "a link to nothing": lambda r, o: (r / "a.txt").symlink_to(r / "gone.txt"),
    "a memo's link": lambda r, o: (r / "good.txt.memo").symlink_to(o),
    "a building's link": lambda r, o: (r / ".good.txt.memo.building").symlink_to(o),
    "a pipe": lambda r, o: os.mkfifo(r / "a.txt"),
    "a socket": _socket,
    "a folder of a document's name": lambda r, o: (r / "a.txt").mkdir(),
    "an empty document": lambda r, o: (r / "a.txt").write_bytes(b""),
    "a document of zeros": lambda r, o: (r / "a.txt").write_bytes(bytes(9999)),
    "deeper than paths may be": _deep,
    "a folder and a memo of one name": _named(b"a.txt.memo/b.txt"),
    "a table's name": _named(b"manifest.json"),
    "no UTF-8": _named(b"\xff\xfe.txt"),
    "a folder of no UTF-8": _named(b"\xff/a.txt"),
    "a line in a name": _named(b"a\nb.txt"),
    "commands in a name": _named(b"\x1b[2Ja.txt"),
    "an option's name": _named(b"-rf.txt"),
    "a space's name": _named(b" .txt"),
    "a bracket's name": _named(b"[a-z]*?.txt"),
    "as long as a name may be": _named(b"a" * 251 + b".txt"),
    "as long as a name with .memo may be": _named(b"a" * 246 + b".txt"),
    "long in another script": _named("灯".encode() * 83 + b".txt"),
    "a long folder": _named(b"d" * 255 + b"/a.txt"),
    "three hundred folders": _named(b"d/" * 300 + b"a.txt"),
}


def _elsewhere(reports: Path) -> None:
    reports.rename(reports.with_name("moved"))
    reports.symlink_to(reports.with_name("outside"))


def _bare(reports: Path) -> None:
    for path in list(reports.iterdir()):
        path.unlink()


def _file(reports: Path) -> None:
    shutil.rmtree(reports)
    reports.write_text("x")


def _unnamed(reports: Path) -> None:
    for path in list(reports.iterdir()):
        path.rename(path.with_suffix(".bak"))


def _piped(reports: Path) -> None:
    for path in list(reports.iterdir()):
        path.unlink()
        os.mkfifo(path)


_EMPTIED: dict[str, Callable[[Path], None]] = {
    "a folder that is gone": shutil.rmtree,
    "a folder without documents": _bare,
    "a folder whose documents are renamed": _unnamed,
    "a folder that is a link elsewhere": _elsewhere,
    "a folder of pipes": _piped,
    "a folder that is a file": _file,
}
