"""Results and tensors that took long, kept in minimemo's folder by the hash of what they were made of.

So an interrupted run goes on, a run again costs nothing, and what changed is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minimemo.files import cache_dir


class Kept:
    """A folder of results. fresh: what an earlier run kept is made again."""

    def __init__(self, name: str, fresh: bool = False) -> None:
        self._folder, self._fresh = cache_dir() / "bench" / name, fresh
        self._made: set[Path] = set()
        self._folder.mkdir(parents=True, exist_ok=True)

    def result(self, key: Sequence[Any], make: Callable[[], Any]) -> Any:
        """What make() returns, JSON-able."""
        path = self._path(key, "json")
        if not self._has(path):
            self._write(path, lambda at: at.write_text(json.dumps(make(), ensure_ascii=False), encoding="utf-8"))
        return json.loads(path.read_text(encoding="utf-8"))

    def tensors(
        self, key: Sequence[Any], make: Callable[[], tuple[dict[str, Tensor], float]]
    ) -> tuple[dict[str, Tensor], float]:
        """What make() returns: tensors, and the seconds that they took."""
        path = self._path(key, "safetensors")
        if not self._has(path):
            tensors, seconds = make()
            self._write(path, lambda at: save_file(tensors, at, {"seconds": repr(seconds)}))
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, float(file.metadata()["seconds"])

    def has(self, key: Sequence[Any]) -> bool:
        """Whether tensors of an earlier run are there."""
        return self._has(self._path(key, "safetensors"))

    def _path(self, key: Sequence[Any], ending: str) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.{ending}"

    def _has(self, path: Path) -> bool:
        return path.exists() and (not self._fresh or path in self._made)

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            write(Path(scratch) / path.name)
            (Path(scratch) / path.name).replace(path)
        self._made.add(path)
