"""Ctrl-C wherever it comes: while Python imports, while native code calls Python, twice."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minimemo.cli import arguments as cli
from minimemo.cli.interrupt import Interrupt

# Sends SIGINT to itself when a module is about to be imported, then runs the command line.
_PROGRAM = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.modules.pop("argparse", None)
sys.meta_path.insert(0, Finder())
sys.argv = ["minimemo", "build", "doc.txt"]
runpy.run_module("minimemo", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "told"),
    [("argparse", ""), ("minimemo.memo.build", "interrupted"), ("torch._jit_internal", "interrupted")],
)
def test_while_importing(tmp_path: Path, module: str, told: str) -> None:
    """Nothing is said before there is a command; nothing but one line after; the exit code is 130."""
    (tmp_path / "doc.txt").write_text("Something to read.")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(module=module)], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130 and done.stdout == "", done.stderr
    assert told in done.stderr and len(done.stderr.split("\n")) <= 3 and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["doc.txt"]


def test_an_interrupt_in_an_import_waits_for_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The module is whole, and the interrupt comes after it."""
    source = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.1)\nwhole = True\n"
    (tmp_path / "slow_to_import.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    signal.signal(signal.SIGINT, Interrupt())
    try:
        with pytest.raises(KeyboardInterrupt):
            import slow_to_import  # type: ignore[import-not-found]

            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                pass
        assert slow_to_import.whole
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_second_one_does_not_cut_short_what_the_first_undoes() -> None:
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)
    interrupt(signal.SIGINT, None)
    interrupt._again = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)


def test_an_error_that_native_code_made_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """safetensors and torch turn a KeyboardInterrupt in a Python method that they call into a ValueError."""

    def command(_: argparse.Namespace) -> None:
        raise ValueError("could not determine the shape")

    assert cli.run(argparse.Namespace(run=command), interrupted=lambda: True) == 130
    assert capsys.readouterr().err.endswith("nothing half-written is left\n")
    with pytest.raises(ValueError, match="shape"):
        cli.run(argparse.Namespace(run=command))
