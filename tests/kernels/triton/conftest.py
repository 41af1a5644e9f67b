"""The kernels need triton, which is optional."""

from __future__ import annotations

from minimemo.kernels import triton

collect_ignore_glob = [] if triton.installed() else ["test_*.py"]
