"""`python tools/attack` for some seconds: two cases or more of eight attacks, on tiny models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.package
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="attacks fork, and count what Linux counts")
def test_nothing_falls() -> None:
    attacks = "file operation|links|^rm|private|locks|endpoints|keys|open memo"
    command = [sys.executable, str(ROOT / "tools" / "attack"), "--minutes", "0.1", "--only", attacks]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split()[-3:] for line in done.stdout.splitlines()[1:]]
    assert len(rows) == 8 and all(cases == survived != "0" for cases, survived, _ in rows)
