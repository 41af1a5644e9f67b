"""llama.cpp's own benchmark as the peer that `bench.engine` measures against: found, run, read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimemo.errors import InputError
from minimemo.threads import SPINS

VARIABLE = "LLAMA_BENCH"

# Linux hands the peak of a process on to the program that it becomes by exec: started from here, the peer's peak would
# be at least ours. A small interpreter starts it, and says after the peer's own lines how it ended and what it took.
_LAUNCHER = """
import json, os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(json.dumps({"exit": os.waitstatus_to_exitcode(status), "ru_maxrss": usage.ru_maxrss}))
"""


@dataclass(frozen=True, slots=True)
class PeerSpeeds:
    """Tokens a second at one depth, and the peak of resident memory. build: number and commit, as the peer says."""

    prefill: float
    decode: float
    peak_rss_bytes: int
    build: str


def find_llama_bench(given: str | None) -> Path:
    """The program: `given`, or $LLAMA_BENCH, or on PATH. Raises InputError."""
    origin, name = ("--llama-bench", given) if given else (f"${VARIABLE}", os.environ.get(VARIABLE))
    if not name:
        origin, name = "PATH", "llama-bench"
    if not (found := shutil.which(os.path.expanduser(name))):
        raise InputError(f"{name}: no such program ({origin}); give --llama-bench PATH or set {VARIABLE}")
    return Path(found).absolute()


def run_llama_bench(
    program: Path, model: Path, *, threads: int, depth: int, prefill_tokens: int, decode_tokens: int
) -> PeerSpeeds:
    """One run on a GGUF file: a chunk and some steps after `depth` tokens, flash attention on. Raises InputError when
    it fails or says something else than two results."""
    options = {"-m": model, "-t": threads, "-fa": 1, "-p": prefill_tokens, "-n": decode_tokens, "-d": depth, "-r": 1}
    command = [str(program), *(str(word) for pair in options.items() for word in pair), "-o", "jsonl"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command],
        capture_output=True,
        text=True,
        errors="replace",
        env=_environment(program),
        check=False,
    )
    lines = _json_lines(done.stdout)
    end: dict[str, Any] = lines.pop() if lines and "ru_maxrss" in lines[-1] else {}
    if end.get("exit") != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"{program}: failed ({end.get('exit', 'it did not start')}): {said}")
    prefill = _speed(lines, n_prompt=prefill_tokens, n_gen=0, n_depth=depth)
    decode = _speed(lines, n_prompt=0, n_gen=decode_tokens, n_depth=depth)
    if prefill is None or decode is None:
        raise InputError(f"{program}: no results of a prefill and a decode at depth {depth}; is it llama-bench?")
    build = f"{lines[0].get('build_number', '?')} ({lines[0].get('build_commit', '?')})"
    return PeerSpeeds(prefill, decode, end["ru_maxrss"] * (1 if sys.platform == "darwin" else 1024), build)


def _environment(program: Path) -> dict[str, str]:
    """Ours without what minimemo sets for itself; shared libraries that lie beside the program are found there."""
    own = {name: value for name, value in os.environ.items() if (name, value) != SPINS}
    folder = program.resolve().parent
    if not any(folder.glob("lib*.so*")):
        return own
    before = own.get("LD_LIBRARY_PATH")
    return {**own, "LD_LIBRARY_PATH": f"{folder}{os.pathsep}{before}" if before else str(folder)}


def _json_lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _speed(lines: Sequence[dict[str, Any]], **asked: int) -> float | None:
    """avg_ts of the line for what was asked."""
    for line in lines:
        if all(line.get(name) == value for name, value in asked.items()) and isinstance(line.get("avg_ts"), float):
            return line["avg_ts"]
    return None
