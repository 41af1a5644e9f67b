"""The walls: rooms stand in a line, a room imports only what stands to its right, and start-up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minimemo
from tests.conftest import TinyModels
from tools.house.graph import ROOT, between, circles, graph, longest_chain, modules, room, within
from tools.house.reach import unreached

# Folders and single files of minimemo/; kernels/ is installed as minimemo.kernels.
ORDER = (
    "cli", "server", "scale", "memo", "ask", "runtime", "memory", "search", "engine", "hub", "models", "readers",
    "text", "journal", "files", "kernels", "threads", "events", "errors",
)  # fmt: skip
# Imports against the order that are still to go.
LEFT: set[tuple[str, str]] = set()
# Lines of Python that a room may have. Raising one is a line in the diff, with its reason in the message.
LINES = {
    "__init__": 80, "__main__": 40, "ask": 3610, "cli": 1360, "engine": 1082, "errors": 30, "events": 70, "files": 290,
    "hub": 1870, "journal": 170, "kernels": 4214, "memo": 2490, "memory": 2702, "models": 2340, "readers": 1460,
    "runtime": 320, "scale": 1590, "search": 1020, "server": 2350, "text": 1820, "threads": 120,
}  # fmt: skip
ENTRIES = 20  # at the top of minimemo/, kernels and __main__ among them, __init__ not
FLOORS = 10  # the longest chain of imports through the rooms
INNER_FLOORS = 6  # the same through the files of one room, its door (__init__.py) not counted

PATHS = modules()
EDGES = graph(PATHS)


@pytest.mark.parametrize("name", ORDER)
def test_a_room_imports_only_what_stands_to_its_right(name: str) -> None:
    allowed = {*ORDER[ORDER.index(name) :]}
    for module, imported in EDGES.items():
        if room(module) == name:
            others = {other for other in map(room, imported) if other not in allowed and (name, other) not in LEFT}
            assert not others, f"{module}: {others}"


def test_nothing_else_stands_at_the_top() -> None:
    entries = {room(module) for module in PATHS} - {"__init__"}
    assert entries == {*ORDER, "__main__"}
    assert len(entries) <= ENTRIES
    assert LINES.keys() == {*entries, "__init__"}


def test_no_import_comes_back_to_where_it_began() -> None:
    """Not even one that only types need: files of a circle can only be understood together."""
    assert not circles(EDGES)


def test_the_house_stays_low() -> None:
    assert len(longest_chain(between(EDGES))) <= FLOORS
    for name in ORDER:
        chain = [module for module in longest_chain(within(EDGES, name)) if PATHS[module].stem != "__init__"]
        assert len(chain) <= INNER_FLOORS, " > ".join(chain)


@pytest.mark.parametrize("name", LINES)
def test_a_room_keeps_its_budget(name: str) -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for m, path in PATHS.items() if room(m) == name)
    assert lines <= LINES[name], f"{name}: {lines} lines"


def test_a_question_goes_one_way(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that it enters, and how often it returns to one that it had left; `python tools/house` names them."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "house"))
    from tools.house.walk import TEXT, visits

    with_models = {"model": minimemo.load_model(tiny_models.decoder), "embedder": tiny_models.embedder}
    memo = minimemo.build(minimemo.Document.of(TEXT), tmp_path / "x.memo", **with_models)
    memo.ask("Where was it?")  # opens the memory
    visited = visits(lambda: memo.ask("When was the light lit for the first time?", max_tokens=8))
    files = len({*visited})
    assert files <= 14 and len(visited) - files <= 20, " > ".join(visited)


def test_circles_and_chains_are_seen() -> None:
    edges = {"a": {"b", "c"}, "b": {"d"}, "c": set[str](), "d": {"b", "c"}}
    assert circles(edges) == [["b", "d"]]
    assert longest_chain({"a": {"c", "b"}, "b": {"c"}, "c": {"d"}, "d": set()}) == ["a", "b", "c", "d"]


def test_asking_touches_no_tensors() -> None:
    for path in (ROOT / "minimemo" / "ask").glob("*.py"):
        names = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        roots = {alias.name.split(".")[0] for node in names if isinstance(node, ast.Import) for alias in node.names}
        assert not roots & {"torch", "numpy", "faiss"}, path


@pytest.mark.parametrize("code", ["import minimemo", "from minimemo.cli.arguments import parser; parser()"])
def test_start_is_light(code: str) -> None:
    """No torch, numpy or faiss before the arguments are parsed."""
    heavy = ("torch", "numpy", "faiss", "tokenizers", "huggingface_hub", "gguf")
    probe = f"import sys; {code}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "[]"


def test_what_nothing_reaches_is_named(tmp_path: Path) -> None:
    """Recursion and calls from what is unreached itself reach nothing; public names, special methods and reasons do."""
    path = tmp_path / "minimemo" / "__init__.py"
    path.parent.mkdir()
    path.write_text(
        "from minimemo import Memo\n__all__ = ['Memo']\nLIMIT = 3\nUNUSED = 4\n"
        "class Memo:\n    def ask(self): return _used()\n    def _idle(self): return LIMIT\n"
        "    def __len__(self): return LIMIT\n"
        "def _used(): return 1\ndef loops(): return loops() + inner()\ndef inner(): return 2\n"
        "def hook(): return 3  # reached by: a library that calls it by name\n"
    )
    names = [one.name for one in unreached({"minimemo": path})]
    assert names == ["UNUSED", "_idle", "loops", "inner"]
