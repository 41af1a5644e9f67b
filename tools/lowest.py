"""`python tools/lowest.py [EXTRA...]` prints the oldest versions that pyproject.toml allows, for pip to install.

python3 -m venv lowest && python tools/lowest.py server test > pins.txt
lowest/bin/pip install -r pins.txt && lowest/bin/pip install --no-deps -e . && lowest/bin/python -m pytest tests/text
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_BOUND = re.compile(r"([\w.-]+(?:\[[\w,]+\])?)>=([\w.]+)[^;]*(;.*)?")


def lowest(extras: list[str]) -> list[str]:
    """Pins of what the package needs, and what its extras need, each at the highest of its lower bounds."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    pins: dict[str, tuple[tuple[int, ...], str]] = {}
    for one in needed:
        bound = _BOUND.fullmatch(one)
        if bound is None:
            raise SystemExit(f"{one}: has no lower bound")
        name, version, marker = bound[1], bound[2], bound[3] or ""
        pin = tuple(map(int, version.split("."))), f"{name}=={version}{marker}"
        pins[name] = max(pin, pins.get(name, pin))
    return [line for _, line in pins.values()]


if __name__ == "__main__":
    print("\n".join(lowest(sys.argv[1:])))
