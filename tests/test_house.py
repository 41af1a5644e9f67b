"""The walls: imports point one way, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each room may import itself, the rooms listed here, and FREE.
ROOMS: dict[str, set[str]] = {
    "kernels": set(),
    "models": {"kernels"},
    "engine": {"models", "kernels"},
    "memory": {"engine.cache", "models", "kernels"},
    "retrieval": {"models", "kernels"},
    "loop": {"engine", "memory", "retrieval", "models"},
}
FREE = {"minimemo.durable", "minimemo.errors", "minimemo.events"}


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append(node.module)
    return found


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_point_one_way(room: str) -> None:
    folder = ROOT / "kernels" if room == "kernels" else ROOT / "minimemo" / room
    files = sorted(folder.rglob("*.py"))
    assert files
    for path in files:
        for name in _imports(path):
            if not name.startswith("minimemo") or name in FREE:
                continue
            allowed = {f"minimemo.{other}" for other in ROOMS[room] | ({room} if room != "kernels" else set())}
            assert any(name == a or name.startswith(a + ".") for a in allowed), f"{path.relative_to(ROOT)}: {name}"


def test_loop_touches_no_tensors() -> None:
    for path in (ROOT / "minimemo" / "loop").glob("*.py"):
        assert not {name.split(".")[0] for name in _imports(path)} & {"torch", "numpy", "faiss"}, path


@pytest.mark.parametrize("code", ["import minimemo", "import minimemo.cli; minimemo.cli.parser()"])
def test_start_is_light(code: str) -> None:
    """No torch, numpy or faiss before the arguments are parsed."""
    probe = f"import sys; {code}; print([m for m in ('torch', 'numpy', 'faiss', 'tokenizers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "[]"
