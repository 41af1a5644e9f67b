"""Triton is optional."""

from __future__ import annotations

import subprocess
import sys


def test_kernels_import_without_triton() -> None:
    modules = "minimemo.kernels, minimemo.kernels.triton.aot, minimemo.models.weights"
    code = f"import sys; sys.modules['triton'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
