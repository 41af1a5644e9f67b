"""`python tools/sanitize`: the native kernels under Address- with UndefinedBehaviorSanitizer, then ThreadSanitizer.

For each, a copy of the package with a library built so runs the tests of products, attention and the stack in a process
that preloads the sanitizer. Takes GCC on Linux, about ten minutes, and up to 8 GB of memory. Work is cut for our own
threads alone: ThreadSanitizer does not see what torch's OpenMP library synchronizes. Exits 1 at the first report.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("kernels/native", "kernels/test_transform.py", "memory/test_packed_memory.py", "memory/test_symbols.py")
# They start processes that have limits of memory or compile, which says nothing about kernels.
LEFT_OUT = "not a_memo_is_asked and not exact_memory and not command_line"
FLAGS = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fno-omit-frame-pointer", "-pthread", "-fPIC", "-Wno-psabi")
# Leaks: the interpreter's own. Operators new and delete: torch's allocations are not instrumented.
SANITIZERS = {
    "address,undefined": (
        "libasan.so",
        {
            "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        },
    ),
    "thread": ("libtsan.so", {"TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:exitcode=66"}),
}
_PLUGIN = """
import os
from minimemo.kernels.native import library

assert library.__file__.startswith(os.getcwd()), f"{library.__file__} is not the copy"
library._openmp_entry = lambda: None
assert library.unavailable() is None, library.unavailable()
"""


def copy(folder: Path) -> None:
    """The package and its tests, without a library."""
    left_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "minimemo", folder / "minimemo", ignore=left_out)
    shutil.copytree(ROOT / "kernels", folder / "minimemo" / "kernels", ignore=left_out)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=left_out)
    (folder / "own_threads.py").write_text(_PLUGIN, encoding="utf-8")


def compile_library(folder: Path, sanitizer: str) -> None:
    flags = [*FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=undefined"]

    def compiled(source: Path) -> str:
        to = str(folder / f"{source.stem}.o")
        subprocess.run(["g++", *flags, "-c", str(source), "-o", to], check=True)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sorted((ROOT / "kernels" / "native" / "src").glob("*.cpp"))))
    library = folder / "minimemo" / "kernels" / "_native.abi3.so"
    subprocess.run(["g++", *flags, "-shared", *objects, "-o", str(library)], check=True)


def runtime(name: str) -> str:
    """Where GCC keeps a sanitizer's library."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="sanitize", description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=tuple(SANITIZERS), help="one of them")
    parser.add_argument("tests", nargs="*", default=TESTS, help="of tests/; options of pytest after --")
    options = parser.parse_args()
    if sys.platform != "linux" or shutil.which("g++") is None:
        print("sanitize: needs Linux and GCC")
        return 1
    for sanitizer in (options.only,) if options.only else SANITIZERS:
        library, environment = SANITIZERS[sanitizer]
        with tempfile.TemporaryDirectory(prefix="minimemo-sanitize-") as scratch:
            folder = Path(scratch)
            copy(folder)
            compile_library(folder, sanitizer)
            tests = [name if name.startswith("-") else f"tests/{name}" for name in options.tests]
            command = [sys.executable, "-m", "pytest", "-x", "-s", "-p", "no:cacheprovider", "-p", "own_threads"]
            command += ["-m", "not real", "-k", LEFT_OUT, *tests]
            if sanitizer == "thread":  # which wants addresses where it expects them
                command = ["setarch", os.uname().machine, "-R", *command]
            print(f"sanitize: {sanitizer}: {' '.join(command)}", flush=True)
            preload = {"LD_PRELOAD": runtime(library), "PYTHONPATH": str(folder)}
            code = subprocess.run(command, cwd=folder, env=os.environ | environment | preload).returncode
            if code:
                print(f"sanitize: {sanitizer}: failed, exit code {code}")
                return 1
    print("sanitize: no report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
