"""Definitions in minimemo/ and kernels/ that nothing there refers to: tests and bench/ do not count.

A definition is a function, a class, a method or a constant of a module. It is reached where its name stands outside of
it, as a name, an attribute or a string that is nothing but the name, in code that is reached itself; which of several
definitions of one name is meant is not looked into. What is for the world outside is reached: the names in
`minimemo.__all__`, the methods and properties of those classes, names with two underscores on both sides, and what a
comment on its first line says: `# reached by: torch's dispatcher`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_REASON = re.compile(r"#\s*reached by: \S")
_DUNDER = re.compile(r"__\w+__")


@dataclass(frozen=True)
class Definition:
    """A name, the lines first to last of its file that define it, and the class that it stands in."""

    name: str
    path: Path
    first: int
    last: int
    inside: str = ""


def definitions(path: Path, tree: ast.Module) -> Iterator[Definition]:
    """Those of one file; functions inside of functions are left out, as a linter sees them."""
    for node in tree.body:
        if isinstance(node, _DEFINITIONS):
            yield _definition(path, node)
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, _DEFINITIONS):
                    yield _definition(path, inner, node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        yield Definition(name.id, path, node.lineno, node.end_lineno or node.lineno)


def _definition(
    path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, inside: str = ""
) -> Definition:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return Definition(node.name, path, first, node.end_lineno or first, inside)


def references(path: Path, tree: ast.Module) -> Iterator[tuple[str, Path, int]]:
    """Each name that a file refers to, with the line; its imports are not counted, what is imported is used by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            yield node.id, path, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, path, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value, path, node.lineno


def unreached(paths: Mapping[str, Path], public: frozenset[str]) -> list[Definition]:
    """Module names with their files, the names of `minimemo.__all__` -> what nothing reaches, by file and line."""
    defined: list[Definition] = []
    used: list[tuple[str, Path, int]] = []
    for path in paths.values():
        source = path.read_text(encoding="utf-8")
        lines, tree = source.splitlines(), ast.parse(source)
        used += references(path, tree)
        for one in definitions(path, tree):
            outside = one.name in public or (one.inside in public and one.name[0] != "_")
            if not outside and not _DUNDER.fullmatch(one.name) and not _REASON.search(lines[one.first - 1]):
                defined.append(one)
    dead: list[Definition] = []
    while True:
        counts = Counter(name for name, _, _ in used)
        inside = Counter((name, path, line) for name, path, line in used)
        new = [one for one in defined if one not in dead and counts[one.name] <= _own(one, inside)]
        if not new:
            return sorted(dead, key=lambda one: (one.path, one.first))
        dead += new
        used = [(n, path, line) for n, path, line in used if not any(_holds(one, path, line) for one in new)]


def _own(one: Definition, used: Mapping[tuple[str, Path, int], int]) -> int:
    return sum(used.get((one.name, one.path, line), 0) for line in range(one.first, one.last + 1))


def _holds(one: Definition, path: Path, line: int) -> bool:
    return one.path == path and one.first <= line <= one.last
