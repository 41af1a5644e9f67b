"""The ground that attacks are made on: tiny models, a minimemo folder of its own, and children that run the real code.

torch is imported once, here; a child is forked for every case, so whatever a case does to its process, the next one
starts from the same place. No model is ever loaded in this process: threads that computed are lost by a fork.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
os.environ["OMP_NUM_THREADS"] = "1"
_IMPORTS = ("memo.build", "memo.library", "memo.calibrate", "memory.profile", "models.weights", "cli.commands")
_PROSE = (
    "the lamp of the lighthouse was lit on the ninth of October and the keeper wrote it down in his book while a "
    "steamer named Aurelia passed with sixty passengers and her captain Harrow waved to the shore"
)


class Case:
    """One try. `run` calls `attempt` with what is given: it says what went wrong, or "" where minimemo held."""

    def __init__(self, name: str, attempt: Callable[..., str], *given: Any, **named: Any) -> None:
        self.name, self.run = name, partial(attempt, *given, **named)


class Ended(NamedTuple):
    """How a child ended: its exit code, minus the signal that killed it, or None where it did not end in time."""

    code: int | None
    out: str
    err: str

    def fell(self, *codes: int) -> str:
        """Says how it fell; "" for one of the exit codes (0 done, 1 and 2 said in one line)."""
        if self.code is None:
            return "hangs"
        if self.code < 0:
            return f"signal {-self.code}: {_last(self.err)}"
        if "Traceback (most recent call last)" in self.err:
            return f"traceback: {_last(self.err)}"
        if self.code not in (codes or (0, 1, 2)):
            return f"exit {self.code}: {_last(self.err)}"
        said = [line for line in self.err.splitlines() if line.startswith("minimemo: ")]
        return f"{len(said)} lines of errors" if self.code in (1, 2) and len(said) != 1 else ""


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["nothing said"])[-1][:200]


class Ground:
    """`folder`: all that attacks write, case: what one of them does. decoder, embedder: tiny models, models: these as
    options of a command; home: a minimemo folder with their profile."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.case, self.home = folder, folder / "case", folder / "home"
        self.decoder, self.embedder = folder / "models" / "decoder", folder / "models" / "embedder"
        self.models = ("--model", str(self.decoder), "--embedder", str(self.embedder))

    def fresh(self) -> Path:
        """An empty folder for a case; minimemo's own folder holds the profile alone again."""
        for old in (self.case, self.home):
            shutil.rmtree(old, ignore_errors=True)
            if old.exists():  # something in it may not be read
                old.rename(Path(tempfile.mkdtemp(dir=self.folder)) / "old")
        self.case.mkdir()
        shutil.copytree(self.folder / "profiles", self.home / "profiles")
        return self.case

    def build(self, document: Path, out: Path, **options: Any) -> Any:
        """`minimemo.build` with the tiny models; for use in a child."""
        import minimemo

        options.setdefault("memory", "int4")
        return minimemo.build(document, out, model=self.decoder, embedder=self.embedder, **options)

    def memo(self, chars: int = 900, name: str = "m", **options: Any) -> Path:
        """A memo of a document beside it, built in a child."""
        document = self.case / f"{name}.txt"
        document.write_text(prose(chars))
        memo = document.with_suffix(".memo")
        ended = child(lambda: self.build(document, memo, **options))
        assert ended.code == 0, ended.err
        return memo


def lay(folder: Path) -> Ground:
    """Makes the tiny models and their profile, and imports what every child needs."""
    sys.path.insert(0, str(ROOT))
    ground = Ground(folder)
    os.environ["MINIMEMO_HOME"] = str(ground.home)
    for name in [name for name in os.environ if "proxy" in name.lower() or name.endswith(("_API_KEY", "_TOKEN"))]:
        del os.environ[name]
    from importlib import import_module

    for name in _IMPORTS:  # minimemo before torch, of which it sets how much it keeps
        import_module(f"minimemo.{name}")
    import torch

    torch.set_num_threads(1)

    def setup() -> None:
        from minimemo.memo.calibrate import calibrate
        from minimemo.memo.calibration_text import shipped_texts
        from minimemo.runtime import load_model
        from tests.tiny import write_embedder, write_model

        write_model(ground.decoder)
        write_embedder(ground.embedder)
        calibrate(load_model(ground.decoder), [text[:600] for text in shipped_texts()[::2]])
        shutil.copytree(ground.home / "profiles", folder / "profiles")

    ended = child(setup, seconds=300)
    assert ended.code == 0, ended.err
    return ground


def prose(chars: int, seed: int = 0) -> str:
    """Sentences of so many characters in all; longer texts of one seed begin like shorter ones."""
    chance, text, words = random.Random(seed), "", _PROSE.split()
    while len(text) < chars:
        sentence = " ".join(chance.choice(words) for _ in range(chance.randint(6, 14)))
        text += f"{sentence.capitalize()} {chance.randint(1, 999)}. " + "\n\n" * (chance.random() < 0.15)
    return text[:chars]


def digest(folder: Path) -> str | None:
    """Of names and contents of all files in a folder; None where there is none."""
    if not folder.is_dir():
        return None
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            state.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return state.hexdigest()


@contextmanager
def bounded(most: int) -> Iterator[None]:
    """In a child: a MinimemoError is printed, and the block may take `most` kB of memory more than there was."""
    from minimemo.errors import MinimemoError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    except MinimemoError as error:
        print(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < most, f"{grown} kB more memory"


def start(body: Callable[[], Any], streams: Sequence[int] = ()) -> int:
    """Forks a child that runs `body` and ends: its exit code 0, an int that `body` returns, or 1 with a traceback."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin = io.TextIOWrapper(io.FileIO(0, "r", closefd=False), errors="replace")
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
        result = body()
        code = result if type(result) is int else 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if 0 <= code < 256 else 98)


def finish(pid: int, seconds: float) -> int | None:
    """Waits for a child: its exit code, minus its signal, or None (and it is killed) after so many seconds; after ten
    times as many where it was given little of a busy machine."""
    begin = time.monotonic()
    while (waited := time.monotonic() - begin) < 10 * seconds:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if waited > seconds and _computed(pid) > seconds / 3:
            break
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _computed(pid: int) -> float:
    """Seconds of processor time that a process has had, ended children of its own counted in."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def child(body: Callable[[], Any], *, seconds: float = 60, stdin: bytes = b"") -> Ended:
    """Runs `body` in a forked child of its own."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        code = finish(start(body, (given.fileno(), out.fileno(), err.fileno())), seconds)
        for stream in (out, err):
            stream.seek(0)
        return Ended(code, out.read().decode(errors="replace"), err.read().decode(errors="replace"))


def command(
    *words: str | Path, seconds: float = 60, stdin: bytes = b"", before: Callable[[], Any] = lambda: None
) -> Ended:
    """Runs a command line in a child; `before` is called there first."""

    def body() -> int:
        from minimemo.__main__ import main

        before()
        sys.argv = ["minimemo", *map(str, words)]
        try:
            return main()
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 1

    return child(body, seconds=seconds, stdin=stdin)


def commands(*lines: Sequence[str | Path], codes: Sequence[int] = (), seconds: float = 60) -> str:
    """Runs command lines one after the other; says which one fell, and how (see `Ended.fell`)."""
    for words in lines:
        if wrong := command(*words, seconds=seconds).fell(*codes):
            return f"{words[0]}: {wrong}"
    return ""
