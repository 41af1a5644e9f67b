"""kill -9 of a build: before each of its file operations, and at random moments.

After a kill the memo's place holds what it held before, or the whole new memo; the next build gives the bytes of one
that was never killed, and leaves nothing behind.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ground import Case, Ground, child, digest, finish, prose, start

_OPERATIONS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.chmod", "shutil.rmtree"}
_MODES = ("fresh", "grown", "another document", "another tier", "measured first")
_MOST = 120  # operations of a build; the sweep ends where a build does


class _Kills:
    """Builds of one document in one place, with what they should give, which is made once for each kind."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._whole: dict[str, str | None] = {}
        self.longest: dict[str, int] = {}

    @property
    def target(self) -> Path:
        return self.ground.case / "doc.memo"

    def lay(self, mode: str) -> tuple[str | None, str | None]:
        """The place as it is before the kill; digests of the memo there and of the one that is to come."""
        place = self.ground.fresh()
        if mode == "measured first":
            shutil.rmtree(self.ground.home)
        document, before = place / "doc.txt", None
        last = prose(2600 if mode == "grown" else 1500, seed=5 if mode == "another document" else 0)
        if mode not in self._whole:
            document.write_text(last)
            self._build(mode, "balanced")
            self._whole[mode] = digest(self.target)
            return self.lay(mode)
        if mode not in ("fresh", "measured first"):
            document.write_text(prose(1500))
            self._build(mode, "exact" if mode == "another tier" else "balanced")
            before = digest(self.target)
        document.write_text(last)
        return before, self._whole[mode]

    def body(self, mode: str, memory: str = "balanced", kill_at: int = 0) -> Callable[[], None]:
        """A build; with `kill_at` it is killed before its file operation of that number."""

        def run() -> None:
            if mode == "measured first":
                import minimemo.memo.calibrate as measuring

                few = [text[:600] for text in measuring.shipped_texts()[::2]]
                measuring.shipped_texts = lambda: few
            count = 0

            def hook(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal count
                writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
                if event in _OPERATIONS or writes or (event == "ctypes.dlsym" and "renameat2" in arguments):
                    count += 1
                    if count == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            self.ground.build(self.target.with_suffix(".txt"), self.target, memory=memory)

        return run

    def _build(self, mode: str, memory: str = "balanced") -> None:
        ended = child(self.body(mode, memory))
        assert ended.code == 0, ended.err

    def check(self, before: str | None, whole: str | None) -> str:
        """What a kill must leave."""
        now = digest(self.target)
        if now in (before, whole):
            return ""
        return "the old memo is gone" if now is None else "half a memo"

    def check_next(self, mode: str, whole: str | None) -> str:
        """What the next build must leave."""
        ended = child(self.body(mode))
        if ended.code:
            return f"the next build failed: {ended.fell()}"
        if digest(self.target) != whole:
            return "the next build gives other bytes"
        left = [path for path in self.ground.case.iterdir() if path.name not in ("doc.txt", "doc.memo")]
        kept = {"profiles": 1, "hashes": None, "memos": 2, "tails": 1}  # the list and its lock
        kept |= dict.fromkeys(("store.bin", "store.f32", "store.lock"))
        for folder in self.ground.home.iterdir():
            files = list(folder.iterdir()) if folder.is_dir() else []
            if folder.name not in kept or len(files) > (kept[folder.name] or 99):
                left += files or [folder]
            left += [file for file in files if ".part" in file.name]
        return f"left behind: {', '.join(str(path.relative_to(self.ground.folder)) for path in left)}" if left else ""


def sweep(ground: Ground) -> list[Case]:
    """Every operation of every kind of build."""
    kills = _Kills(ground)

    def case(mode: str, number: int) -> str:
        if number > kills.longest.get(mode, _MOST):
            return ""  # there is no such operation
        before, whole = kills.lay(mode)
        if child(kills.body(mode, kill_at=number)).code == 0:
            kills.longest[mode] = number - 1
        return kills.check(before, whole) or kills.check_next(mode, whole)

    # The kinds in turn, and in each the operations in steps that halve (64, then 32 and 96, then 16, 48, ...), by the
    # largest power of two that divides each: a short run sees all of a build.
    spread = sorted(range(1, _MOST + 1), key=lambda number: -(number & -number))
    return [Case(f"{mode}, operation {n}", case, mode, n) for n in spread for mode in _MODES]


def at_random(ground: Ground, count: int = 1000) -> list[Case]:
    """Up to five kills one after the other, at any moment."""
    kills = _Kills(ground)
    seconds: dict[str, float] = {}

    def case(seed: int) -> str:
        chance = random.Random(seed)
        mode = chance.choice(_MODES[:4])
        if mode not in seconds:
            kills.lay(mode)
            begin = time.monotonic()
            child(kills.body(mode))
            seconds[mode] = time.monotonic() - begin
        before, whole = kills.lay(mode)
        null = os.open(os.devnull, os.O_RDWR)
        try:
            for _ in range(chance.randint(1, 5)):
                pid = start(kills.body(mode), (null, null, null))
                time.sleep(chance.uniform(0, 1.1 * seconds[mode]))
                os.kill(pid, signal.SIGKILL)
                if finish(pid, 10) == 0:
                    before = whole
                if wrong := kills.check(before, whole):
                    return wrong
        finally:
            os.close(null)
        return kills.check_next(mode, whole)

    return [Case(f"seed {seed}", case, seed) for seed in range(count)]
