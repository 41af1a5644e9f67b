"""`python tools/gpu_check`: everything that needs a GPU, in one command of at most eight minutes.

Runs the tests of the Triton kernels in float32, float16 and bfloat16, the engine's parity with the CPU, a real model
(model.py, where --model names one) and the microbenchmarks of bench/gpu.py. Exits 0 when all is well or no GPU is here,
1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 8 * 60  # seconds for all of it


def missing() -> str | None:
    """Why nothing can be checked here, or None."""
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed (pip install 'minimemo[gpu,test]')"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, the kernels need 8.0"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_check", description="Kernel tests, parity and benchmarks on a GPU.")
    parser.add_argument("--no-bench", action="store_true", help="tests only")
    parser.add_argument("--model", help="a pulled model, to be run beside the CPU")
    parser.add_argument("--document", help="a text that it builds a memo of")
    options = parser.parse_args()
    if reason := missing():
        print(f"gpu_check: nothing to check here: {reason}")
        return 0
    steps = {"tests": [sys.executable, "-m", "pytest", "--durations=5", "tests/kernels/triton"]}
    if find_spec("xdist"):  # nearly all of it is compiling
        steps["tests"] += ["-n", str(min(12, os.cpu_count() or 1))]
    if options.model:
        steps["model"] = [sys.executable, "-m", "tools.gpu_check.model", "--model", options.model]
        steps["model"] += ["--document", options.document] if options.document else []
    if not options.no_bench:
        steps["bench"] = [sys.executable, "-m", "bench.gpu", "--seconds", "0.3"]
    environment = os.environ | {"MINIMEMO_TEST_DEVICE": "cuda", "TRITON_INTERPRET": "0"}
    end, failed = time.monotonic() + LIMIT, []
    for name, command in steps.items():
        print(f"gpu_check: {name}: {' '.join(command[1:])}", flush=True)
        try:
            code = subprocess.run(command, cwd=ROOT, env=environment, timeout=end - time.monotonic()).returncode
        except subprocess.TimeoutExpired:
            print(f"gpu_check: {name} did not end within the {LIMIT} s that all steps have", flush=True)
            failed.append(name)
            break
        if code:
            failed.append(name)
    print(f"gpu_check: {'failed: ' + ', '.join(failed) if failed else 'all is well'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
