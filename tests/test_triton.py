"""The Triton kernels without a GPU: their meaning in Triton's interpreter (`make aot` compiles them)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


def test_every_kernel_in_the_interpreter() -> None:
    """tests/test_triton_*.py, in a process in which triton interprets from its first import on."""
    files = sorted(str(path) for path in HERE.glob("test_triton_*.py"))
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--durations=5", *files]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent)
    print(result.stdout[-3000:])
    assert result.returncode == 0, result.stderr[-2000:]


def test_kernels_import_without_triton() -> None:
    modules = "minimemo.kernels, minimemo.kernels.aot, minimemo.kernels.packed"
    code = f"import sys; sys.modules['triton'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent)
