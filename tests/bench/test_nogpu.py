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
sys.exit(main(["--seconds", "0.02"]))
"""


@pytest.mark.skipif(not triton.installed(), reason="needs triton")
def test_a_step_costs_the_processor_little() -> None:
    """Without a graph, and besides one; the limits are for a busy machine, ten times and more the least that was
    measured."""
    result = json.loads(python(_PROGRAM).splitlines()[-1])
    assert [row["launches"] for row in result["passes"]] == [173, 173, 197, 197, 169]
    assert all(row["ms"] < (20 if "recorded" in row["pass"] else 900) for row in result["passes"]), result["passes"]
    assert result["ms_besides_a_graph"] < 0.5
    assert 30 < result["compiled_at_load"] <= 40 and result["compiled_later"] == 0  # none in the middle of an answer
    assert all(held["of_the_file"] <= 1.08 for held in result["weights"].values())
