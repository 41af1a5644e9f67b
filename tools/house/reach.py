"""Definitions in minimemo/ and kernels/ that nothing there refers to: tests and bench/ do not count.

A definition is a function, a class, a method or a constant of a module. It is reached where its name stands outside of
it, as a name or an attribute, in code that is reached itself; which of several definitions of one name is meant is not
looked into. What is for the world outside is reached too: the names in `minimemo.__all__`, the methods of those classes
and of their bases, names with two underscores on both sides, and what a comment on its first line gives a reason for:
`# reached by: torch's dispatcher`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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

    def holds(self, path: Path, line: int) -> bool:
        return self.path == path and self.first <= line <= self.last


def definitions(path: Path, body: list[ast.stmt], inside: str = "") -> Iterator[Definition]:
    """Those of a file or a class; functions inside of functions are left out, as a linter sees them."""
    for node in body:
        last = node.end_lineno or node.lineno
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield Definition(node.name, path, first, last, inside)
            if isinstance(node, ast.ClassDef) and not inside:
                yield from definitions(path, node.body, node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not inside:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            yield from (Definition(name, path, node.lineno, last) for name in names)


def references(path: Path, tree: ast.Module) -> Iterator[tuple[str, Path, int]]:
    """Each name that a file refers to, with the line; its imports are not counted, what is imported is used by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            yield node.id, path, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, path, node.lineno


def public(trees: Mapping[Path, ast.Module]) -> set[str]:
    """What `minimemo.__all__` names, as it is called where it is defined, and the bases of the classes among it."""
    (package,) = (tree for path, tree in trees.items() if path.parts[-2:] == ("minimemo", "__init__.py"))
    nodes = list(ast.walk(package))
    (listed,) = (n.value for n in nodes if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")
    imported = [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    names = {alias.name for alias in imported if (alias.asname or alias.name) in ast.literal_eval(listed)}
    classes = [node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)]
    while more := {ast.unparse(base) for one in classes if one.name in names for base in one.bases} - names:
        names |= more
    return names


def unreached(paths: Mapping[str, Path]) -> list[Definition]:
    """Module names with their files -> the definitions that nothing reaches, by file and line."""
    sources = {path: path.read_text(encoding="utf-8") for path in paths.values()}
    trees = {path: ast.parse(source) for path, source in sources.items()}
    outside = public(trees)
    used = [use for path, tree in trees.items() for use in references(path, tree)]
    left, dead = [], []
    for path, tree in trees.items():
        lines = sources[path].splitlines()
        for one in definitions(path, tree.body):
            exempt = one.name in outside or (one.inside in outside and one.name[0] != "_")
            if not exempt and not _DUNDER.fullmatch(one.name) and not _REASON.search(lines[one.first - 1]):
                left.append(one)
    while True:
        places = defaultdict(list)
        for name, path, line in used:
            places[name].append((path, line))
        new = [one for one in left if all(one.holds(*place) for place in places[one.name])]
        if not new:
            return sorted(dead, key=lambda one: (one.path, one.first))
        dead, left = dead + new, [one for one in left if one not in new]
        used = [use for use in used if not any(one.holds(*use[1:]) for one in new)]
