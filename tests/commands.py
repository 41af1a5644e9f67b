"""Runs `minimemo` in processes forked from one that has imported torch: as far apart as those of a shell, and each
three seconds of import shorter."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch", "faiss", "minimemo.cli.commands", "minimemo.memo.build", "minimemo.memo.memo"])


def run(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    stdin: str = "",
    *,
    largest: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """What `python -m minimemo *arguments` would write in `folder`, and its exit code. largest: bytes of a file, on a
    disk that is full from there on."""
    with TemporaryDirectory() as scratch:
        files = [Path(scratch) / name for name in ("in", "out", "err")]
        files[0].write_text(stdin, encoding="utf-8")
        process = _FORKS.Process(target=_child, args=(list(arguments), folder, dict(environment), files, largest))
        process.start()
        process.join()
        assert process.exitcode is not None
        out, err = (file.read_text(encoding="utf-8") for file in files[1:])
        return subprocess.CompletedProcess(list(arguments), process.exitcode, out, err)


def _child(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], files: Sequence[Path], largest: int | None
) -> None:
    for number, file in enumerate(files):
        opened = os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, "r" if number == 0 else "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        for number in range(3)
    )
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["minimemo", *arguments]
    from minimemo.__main__ import main

    sys.exit(main())
