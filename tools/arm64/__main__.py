"""`python tools/arm64`: the native library compiled for 64-bit ARM, run by an emulator, gives what it gives here.

The sources are compiled with the flags of pyproject.toml by Debian's g++-aarch64-linux-gnu, and by g++ for this
machine; a driver (driver.cpp) calls the portable kernels of both, and their results are compared. Takes
g++-aarch64-linux-gnu and qemu-user, and a minute. Exits 1 where a result differs, 2 where a tool is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPILERS = {"here": "g++", "arm64": "aarch64-linux-gnu-g++"}
QEMU = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")


def compiled(compiler: str, folder: Path) -> Path:
    """The driver with the library's sources, as a program."""
    (module,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    # -O1: what is looked for is what the compiler understands otherwise, not what it optimizes
    flags = [flag if flag != "-O3" else "-O1" for flag in module["extra-compile-args"]]

    def built(source: Path) -> str:
        to = str(folder / f"{source.stem}.o")
        subprocess.run([compiler, *flags, "-c", str(source), "-o", to], check=True)
        return to

    sources = [*(ROOT / name for name in module["sources"]), Path(__file__).with_name("driver.cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(built, sources))
    subprocess.run([compiler, *objects, "-pthread", "-o", str(folder / "driver")], check=True)
    return folder / "driver"


def main() -> int:
    if missing := [name for name in (*COMPILERS.values(), QEMU[0]) if shutil.which(name) is None]:
        print(f"arm64: needs {', '.join(missing)}; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user")
        return 2
    told = {}
    with tempfile.TemporaryDirectory(prefix="arm64-") as scratch:
        for name, compiler in COMPILERS.items():
            folder = Path(scratch) / name
            folder.mkdir()
            program = str(compiled(compiler, folder))
            command = [*QEMU, program] if name == "arm64" else [program]
            told[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for here, there in zip(told["here"], told["arm64"], strict=True):
        print(there if here == there else f"{there}, but {here} here")
    return 0 if told["here"] == told["arm64"] else 1


if __name__ == "__main__":
    sys.exit(main())
