"""What a step on a GPU costs the processor, in a process of its own, where Triton does not interpret."""

from __future__ import annotations

import json

import pytest

from minimemo.kernels import triton
from tests.commands import python

_PROGRAM = """
import os, sys
os.environ["TRITON_INTERPRET"] = "0"
from bench.nogpu import main
sys.exit(main(["--seconds", "0.1"]))
"""


@pytest.mark.skipif(not triton.installed(), reason="needs triton")
def test_a_step_costs_the_processor_little() -> None:
<<<<<<< HEAD
    """Without a graph; the limit is for a busy machine, on which this was ten times the least that it took."""
    result = json.loads(python(_PROGRAM).splitlines()[-1])
    assert [row["launches"] for row in result["passes"]] == [173, 197]
    assert all(row["ms"] < 400 for row in result["passes"]), result["passes"]
=======
    """Without a graph, and besides one; the limits are for a busy machine, ten times and more the least that was
    measured."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "bench.nogpu", "--seconds", "0.02"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).resolve().parents[2]
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert [row["launches"] for row in result["passes"]] == [173, 173, 197, 197, 169]
    assert all(row["ms"] < (20 if "recorded" in row["pass"] else 900) for row in result["passes"]), result["passes"]
    assert result["ms_besides_a_graph"] < 0.5
>>>>>>> gpu3
    assert all(held["of_the_file"] <= 1.08 for held in result["weights"].values())
