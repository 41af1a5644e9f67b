"""llama.cpp's own benchmark as the peer that `bench.speed` measures against: located, run, read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from minimemo.errors import InputError
from minimemo.threads import SPINS


@dataclass(frozen=True, slots=True)
class PeerSpeeds:
    """Tokens a second at one depth. build: number and commit, as the peer says."""

    prefill: float
    decode: float
    build: str


def locate(given: str | None) -> Path:
    """The program: `given`, or on PATH. Raises InputError."""
    name = given or "llama-bench"
    if not (program := shutil.which(os.path.expanduser(name))):
        raise InputError(f"{name}: no such program; give --llama-bench PATH")
    return Path(program).absolute()


def run(program: Path, model: Path, *, threads: int, depth: int, prefill_tokens: int, decode_tokens: int) -> PeerSpeeds:
    """One run on a GGUF file: a chunk and some steps after `depth` tokens, flash attention on. Raises InputError when
    it fails or says something else than two results."""
    options = {"-m": model, "-t": threads, "-fa": 1, "-p": prefill_tokens, "-n": decode_tokens, "-d": depth, "-r": 1}
    command = [str(program), *(str(word) for pair in options.items() for word in pair), "-o", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment(program))
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"{program}: failed ({done.returncode}): {said}")
    try:
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        speeds = {(line["n_prompt"], line["n_gen"], line["n_depth"]): float(line["avg_ts"]) for line in lines}
        prefill, decode = speeds[prefill_tokens, 0, depth], speeds[0, decode_tokens, depth]
    except (ValueError, KeyError) as error:
        how = f"no results of a prefill and a decode at depth {depth}; is it llama-bench?"
        raise InputError(f"{program}: {how}") from error
    build = f"{lines[0].get('build_number', '?')} ({lines[0].get('build_commit', '?')})"
    return PeerSpeeds(prefill, decode, build)


def environment(program: Path) -> dict[str, str]:
    """A peer's environment: ours without what minimemo sets for itself; shared libraries that lie beside the program
    are found there."""
    inherited = {name: value for name, value in os.environ.items() if (name, value) != SPINS}
    folder = program.resolve().parent
    if not any(folder.glob("lib*.so*")):
        return inherited
    before = inherited.get("LD_LIBRARY_PATH")
    return {**inherited, "LD_LIBRARY_PATH": f"{folder}{os.pathsep}{before}" if before else str(folder)}
