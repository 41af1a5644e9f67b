"""Triton is optional."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_kernels_import_without_triton() -> None:
    modules = "minimemo.kernels, tools.aot, minimemo.models.weights"
    code = f"import sys; sys.modules['triton'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
