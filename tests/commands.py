"""Runs `minimemo`, and other programs, in processes forked from one that has imported torch: as far apart as those of a
shell, and each three seconds of import shorter."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["torch", "faiss", "jinja2.ext", "jinja2.sandbox", "minimemo.cli.commands", "minimemo.memo.build",
     "minimemo.memo.library", "minimemo.search.retriever"]
)  # fmt: skip


def run(arguments: Sequence[str], *given: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    """What `python -m minimemo *arguments` would write, and its exit code; given, more: as for Command."""
    with Command(arguments, *given, **more) as command:
        code = command.end()
        return subprocess.CompletedProcess(list(arguments), code, command.out, command.err)


def python(code: str, *arguments: str) -> str:
    """What `python -c code *arguments` prints, where torch is imported already."""
    with TemporaryDirectory() as scratch:
        files = [Path(os.devnull), Path(scratch) / "out", Path(scratch) / "err"]
        process = _FORKS.Process(target=_program, args=(code, arguments, files))
        process.start()
        process.join()
        assert process.exitcode == 0, files[2].read_text(encoding="utf-8")
        return files[1].read_text(encoding="utf-8")


class Command:
    """`python -m minimemo *arguments` in a folder, for the length of a `with`: killed at the end of it, if it has not
    ended by then. largest: bytes of a file, on a disk that is full from there on."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        stdin: str | bytes = "",
        *,
        largest: int | None = None,
    ) -> None:
        self._scratch = TemporaryDirectory()
        self._files = [Path(self._scratch.name) / name for name in ("in", "out", "err")]
        self._files[0].write_bytes(stdin if isinstance(stdin, bytes) else stdin.encode())
        given = list(arguments), folder, dict(environment), self._files, largest
        self._process = _FORKS.Process(target=_child, args=given)

    def __enter__(self) -> Command:
        self._process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.join()
        self._scratch.cleanup()

    @property
    def runs(self) -> bool:
        return self._process.is_alive()

    @property
    def out(self) -> str:
        return self._files[1].read_text(encoding="utf-8") if self._files[1].exists() else ""

    @property
    def err(self) -> str:
        return self._files[2].read_text(encoding="utf-8") if self._files[2].exists() else ""

    def send(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def until(self, happens: Callable[[], bool], seconds: float = 60) -> None:
        """Waits for something that it does while it runs."""
        deadline = time.monotonic() + seconds
        while not happens():
            assert self.runs and time.monotonic() < deadline, self.err
            time.sleep(0.005)

    def end(self, seconds: float = 120) -> int:
        """Its exit code, when it has ended; negative: the signal that killed it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"runs for more than {seconds} seconds"
        return self._process.exitcode


def _redirect(files: Sequence[Path], encoding: str = "utf-8") -> None:
    from minimemo.models import chat

    os.fsync, chat._said = (lambda _: None), render_here  # as in conftest.py
    for number, file in enumerate(files):
        opened = os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, "r" if number == 0 else "w", encoding=encoding, buffering=1)  # noqa: SIM115
        for number in range(3)
    )


def render_here(job: str, _: float) -> str:
    """What a chat template's process would say, without one."""
    from minimemo.models import chat

    return json.dumps(chat._render(json.loads(job)))


def _program(code: str, arguments: Sequence[str], files: Sequence[Path]) -> None:
    _redirect(files)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})


def _child(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], files: Sequence[Path], largest: int | None
) -> None:
    _redirect(files, environment.get("PYTHONIOENCODING", "utf-8"))
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["minimemo", *arguments]
    from minimemo.__main__ import main

    sys.exit(main())
