"""Little of everything: descriptors, memory, threads, time; signals at any moment of a build."""

from __future__ import annotations

import os
import random
import resource
import signal
import time

from ground import Case, Ground, command, digest, prose, start


def _hidden(ground: Ground) -> str:
    left = [path.name for path in ground.case.iterdir() if path.name.startswith(".")]
    return f"left {left}" if left else ""


def scarce(ground: Ground) -> list[Case]:
    """Every command under limits: done, or refused in one line, with nothing hidden left."""

    def case(kind: int, most: int, verb: str) -> str:
        place = ground.fresh()
        (place / "doc.txt").write_text(prose(3000))
        memo = ground.memo(900) if verb != "build" else place / "doc.memo"
        words = {
            "build": ("build", place / "doc.txt", *ground.models, "--memory", "int4", "-q"),
            "ask": ("ask", memo, "When was the lamp lit?", *ground.models, "--max-tokens", "3", "-q"),
            "verify": ("verify", memo),
            "list": ("list",),
        }[verb]
        value = most
        if kind == resource.RLIMIT_AS:
            with open("/proc/self/statm") as file:
                value += int(file.read().split()[0]) * 4096
        # Set last: what a limit does to this program's own start is not of interest.
        ended = command(*words, before=lambda: resource.setrlimit(kind, (value, value)), seconds=90)
        if ended.code and memo.exists() and verb == "build":
            return "a memo after an error"
        if ended.code == 1 and kind == resource.RLIMIT_FSIZE and not most:
            return _hidden(ground)  # what it says goes to a file too
        return ended.fell() or _hidden(ground)

    descriptors = (3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 48)
    megabytes = (1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)
    cases = [
        Case(f"{verb} with {n} descriptors", case, resource.RLIMIT_NOFILE, n, verb)
        for n in descriptors
        for verb in ("build", "ask", "verify", "list")
    ]
    cases += [
        Case(f"{verb} with {n} MB", case, resource.RLIMIT_AS, n << 20, verb)
        for n in megabytes
        for verb in ("build", "ask")
    ]
    full = (0, 99, 9999, 40_000)
    return cases + [Case(f"build with files of {n} bytes", case, resource.RLIMIT_FSIZE, n, "build") for n in full]


def signals(ground: Ground) -> list[Case]:
    """Ctrl-C once and twice, SIGTERM and SIGHUP: the next build gives the bytes of one in one go."""
    whole: list[str | None] = []

    def case(seed: int) -> str:
        chance = random.Random(seed)
        sent = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[seed % 3]

        def lay() -> tuple[str, ...]:
            place = ground.fresh()
            (place / "doc.txt").write_text(prose(3000))
            return "build", str(place / "doc.txt"), *ground.models, "-q"

        begin = time.monotonic()
        if not whole:
            command(*lay())
            whole.append(digest(ground.case / "doc.memo"))
        seconds = chance.uniform(0, max(1.0, time.monotonic() - begin))
        words = lay()

        def before() -> None:
            parent = os.getpid()

            def strike() -> None:
                time.sleep(seconds)
                for _ in range(1 + seed % 2):
                    os.kill(parent, sent)
                    time.sleep(0.02)

            start(strike)

        ended = command(*words, before=before)
        if "Traceback" in ended.err or ended.code not in (0, 130, -sent):
            return ended.fell(0, 130, -sent) or f"exit {ended.code}"
        ended = command(*words)
        if wrong := ended.fell(0):
            return f"the next build: {wrong}"
        return _hidden(ground) or ("" if digest(ground.case / "doc.memo") == whole[0] else "other bytes")

    return [Case(f"seed {seed}", case, seed) for seed in range(30)]
