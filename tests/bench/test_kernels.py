"""bench.kernels and bench.gpu: one run over few and small shapes; a machine without what they measure says so."""

from __future__ import annotations

import json

import pytest
import torch

from bench import gpu, kernels
from minimemo.kernels import native


def test_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if native.unavailable():
        pytest.skip("no native kernels")
    monkeypatch.setattr(kernels, "memory_gb_s", lambda seconds: 20.0)
    monkeypatch.setattr(kernels, "products_gflop_s", lambda dtype, seconds: 500.0)
    monkeypatch.setattr(kernels, "last_level_cache", lambda: 1 << 18)
    command = ["--matrices", "qkv,down_q4_k", "--rows", "1,3", "--depths", "0,128", "--seconds", "0"]
    assert kernels.main(command) == 0
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["kernels"]
    dtypes = sorted({row["of"] for row in rows if row["kernel"] == "prefill"})
    each = {name: [row for row in rows if row["kernel"] == name] for name in ("linear", "coarse", "prefill", "decode")}
    assert [len(some) for some in each.values()] == [4, 4, 2 * len(dtypes), 2 * (len(dtypes) + 2)]
    assert len(table) == 2 + len(rows)
    for row in rows:
        ceiling = 500 if row["kernel"] == "prefill" else 20
        assert row["share"] == pytest.approx(row["rate"] / ceiling)
        assert row["error"] < (2e-2 if row["kernel"] == "coarse" or row["of"] == "bfloat16" else 1e-3)
        assert ("torch_ms" in row) != row["of"].startswith("packed")
    assert kernels.main(["--matrices", "none", "--seconds", "0"]) == 2
    assert "--matrices none: choose from qkv,out" in capsys.readouterr().err


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "bench.gpu: torch finds no CUDA device\n"
