"""What minimemo holds on this disk: models, memos, and what else lies in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minimemo.files import cache_dir, data_dir
from minimemo.hub.catalog import CATALOG, defaults, pulled
from minimemo.memo.shelf import remembered


def models() -> list[dict[str, Any]]:
    """Those that `pull` knows by name, and whatever else was pulled; JSON-able."""
    here = {model.name: model for model in pulled()}
    return [
        {
            "name": name,
            "kind": CATALOG[name].kind if name in CATALOG else "hub",
            "pulled": name in here,
            "default": name in defaults(),
            "bytes": here[name].bytes if name in here else CATALOG[name].size,
            "about": f"{CATALOG[name].licence}; {CATALOG[name].notes}" if name in CATALOG else "",
            "path": str(here[name].path) if name in here else None,
        }
        for name in [*CATALOG, *(name for name in here if name not in CATALOG)]
    ]


def memos() -> list[dict[str, Any]]:
    """Those that were built here, by path; JSON-able."""
    return [{"path": str(path), "bytes": disk_bytes(path)} for path in remembered()]


def disk_usage() -> dict[str, int]:
    """Bytes by what they are for: "memos", wherever they lie, and everything in minimemo's folders by its place."""
    usage = {"memos": sum(memo["bytes"] for memo in memos())}
    for folder in {cache_dir(), data_dir()}:
        if folder.is_dir():
            usage |= {str(path): disk_bytes(path) for path in sorted(folder.iterdir())}
    return usage


def disk_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(disk_bytes(inner) for inner in path.iterdir())
