"""`python tools/house`: rooms, floors, circles and walks of the tree as it stands; `--reach`: what nothing reaches.

Lines are those of .py files; the budgets are those of tests/test_house.py. With --reach it exits 1 when there is any.
"""

from __future__ import annotations

import argparse
import sys

from graph import ROOT, between, circles, graph, longest_chain, modules, room, within
from reach import unreached
from walk import walks


def main() -> int:
    parser = argparse.ArgumentParser(prog="house", description=__doc__.split("\n")[0])
    parser.add_argument("--reach", action="store_true", help="definitions that nothing in minimemo/ or kernels/ uses")
    if parser.parse_args().reach:
        dead = unreached(modules())
        for one in dead:
            name = f"{one.inside}.{one.name}".lstrip(".")
            print(f"{one.path.relative_to(ROOT)}:{one.first}: {name}, {one.last - one.first + 1} lines")
        return 1 if dead else 0
    sys.path.insert(0, str(ROOT))
    from tests.test_house import LINES

    paths = modules()
    edges = graph(paths)
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in paths.items()}
    print(f"{'room':<10}{'files':>6}{'lines':>7}{'budget':>8}{'floors':>8}")
    rooms = sorted({room(name) for name in paths})
    for name in rooms:
        inside = [module for module in paths if room(module) == name]
        floors = len(longest_chain(within(edges, name)))
        print(f"{name:<10}{len(inside):>6}{sum(lines[one] for one in inside):>7}{LINES.get(name, 0):>8}{floors:>8}")
    print(f"{'all':<10}{len(paths):>6}{sum(lines.values()):>7}{sum(LINES.values()):>8}\n")
    print(f"entries at the top: {len(rooms) - 1} and __init__")
    for what, imported in (("rooms", between(edges)), ("files", edges)):
        chain, rings = longest_chain(imported), circles(imported)
        print(f"floors by {what}: {len(chain)}: {' > '.join(name.removeprefix('minimemo.') for name in chain)}")
        print(f"circles of {what}: {', '.join(map(str, rings)) or 'none'}")
    for call, visited in walks().items():
        names = list(dict.fromkeys(visited))
        print(f"{call}: {len(names)} files, {len(visited) - len(names)} returns")
        print(f"  {' > '.join(name.removeprefix('minimemo.') for name in names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
