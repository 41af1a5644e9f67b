"""The files of minimemo/ and kernels/, their lines, and who imports whom.

A file imports another where it says so at its top, in a function or under TYPE_CHECKING: all three are read together.
minimemo/__init__.py stands outside: it names files of every room, and loads each on first use.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Set
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Graph = dict[str, set[str]]  # module -> modules that it imports


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Module name -> file; kernels/ is installed as minimemo.kernels."""
    paths = {}
    for folder, package in (("minimemo", "minimemo"), ("kernels", "minimemo.kernels")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            paths[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return paths


def room(module: str) -> str:
    """A folder or a single file of minimemo/; "__init__" is minimemo itself."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path, package: str, names: Set[str]) -> set[str]:
    """Those of the modules `names` that a file in `package` imports."""
    written: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            written |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            inner = {f"{source}.{alias.name}" for alias in node.names}
            written |= inner & names | ({source} if inner - names else set())
    return written & names


def graph(paths: Mapping[str, Path]) -> Graph:
    """Every file's imports of others."""
    names = paths.keys() - {"minimemo"}
    edges = {}
    for name in sorted(names):
        package = name if paths[name].stem == "__init__" else name.rpartition(".")[0]
        edges[name] = imports(paths[name], package, names) - {name}
    return edges


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which imports all others of its group, by way of others."""
    below: Graph = {}
    for name in edges:
        below[name], todo = set(), [name]
        while todo:
            new = edges[todo.pop()] - below[name]
            below[name] |= new
            todo += new
    rings = {tuple(sorted(other for other in below[name] if name in below[other])) for name in edges}
    return [list(ring) for ring in sorted(rings) if ring]


def longest_chain(edges: Mapping[str, set[str]]) -> list[str]:
    """The longest way down imports, from the file that nobody on it imports; its length is the number of floors."""
    chains: dict[str, list[str]] = {}

    def chain(name: str) -> list[str]:
        if name not in chains:
            chains[name] = [name]  # a circle ends where it comes back
            chains[name] = [name, *max((chain(other) for other in sorted(edges[name])), key=len, default=[])]
        return chains[name]

    return max((chain(name) for name in edges), key=len, default=[])


def within(edges: Mapping[str, set[str]], name: str) -> Graph:
    """The imports among the files of one room."""
    inside = {module for module in edges if room(module) == name}
    return {module: edges[module] & inside for module in sorted(inside)}


def between(edges: Mapping[str, set[str]]) -> Graph:
    """The imports of rooms."""
    rooms: Graph = {room(module): set() for module in edges}
    for module, others in edges.items():
        rooms[room(module)] |= {room(other) for other in others} - {room(module)}
    return rooms
