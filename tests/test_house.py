"""The walls: rooms stand in a line, a room imports only what stands to its right, and start-up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folders and single files of minimemo/; kernels/ is installed as minimemo.kernels.
ORDER = (
    "cli", "memo", "ask", "runtime", "memory", "search", "engine", "hub", "models", "text", "files", "kernels",
    "threads", "events", "errors",
)  # fmt: skip
# Imports against the order that are still to go.
LEFT: set[tuple[str, str]] = set()


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] == "kernels" else Path(parts[1]).stem


def imports(path: Path) -> set[str]:
    """Rooms of minimemo that a file imports, at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("minimemo.")}


def files() -> list[Path]:
    return sorted([*(ROOT / "minimemo").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_what_stands_to_its_right(room: str) -> None:
    allowed = {*ORDER[ORDER.index(room) :], "__version__"}
    for path in files():
        if room_of(path) == room:
            others = {other for other in imports(path) - allowed if (room, other) not in LEFT}
            assert not others, f"{path.relative_to(ROOT)}: {others}"


def test_nothing_else_stands_at_the_top() -> None:
    assert {room_of(path) for path in files()} == {*ORDER, "__init__", "__main__"}


def test_asking_touches_no_tensors() -> None:
    for path in (ROOT / "minimemo" / "ask").glob("*.py"):
        names = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        roots = {alias.name.split(".")[0] for node in names if isinstance(node, ast.Import) for alias in node.names}
        assert not roots & {"torch", "numpy", "faiss"}, path


@pytest.mark.parametrize("code", ["import minimemo", "from minimemo.cli.arguments import parser; parser()"])
def test_start_is_light(code: str) -> None:
    """No torch, numpy or faiss before the arguments are parsed."""
    probe = f"import sys; {code}; print([m for m in ('torch', 'numpy', 'faiss', 'tokenizers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "[]"
