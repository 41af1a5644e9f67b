"""The packed matrices of a model, kept in minimemo's cache folder.

Packing two billion codes takes seconds, reading what was packed takes one, and then the codes need not be in memory.

packed/FINGERPRINT.safetensors   a uint8 tensor for each matrix, as `native.pack_weights` lays it out, and for the
                                 coarse copy of the head, whose noise stands in the metadata
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minimemo.files import arriving, cache_dir, parse_json
from minimemo.kernels.hugepages import Arena
from minimemo.kernels.native import PackedMatrix
from minimemo.kernels.native.shortlist import Shortlist

_METADATA, _NOISE = "__metadata__", "noise"  # the former as safetensors spells it


class PackedFile:
    """What an earlier run packed of a model, and what this one packs. arena: where the buffers lie."""

    def __init__(self, path: Path | None) -> None:
        """path: None keeps nothing."""
        self.arena = Arena()
        self._path, self._noise = path, ""
        self._spans: dict[str, tuple[int, int]] = {}  # bytes of the file
        self._buffers: dict[str, Tensor] = {}
        self._ahead: dict[str, tuple[Tensor, Future[bool]]] = {}  # buffers, and whether they are filled
        self._new = False
        try:
            if path and path.is_file():
                with path.open("rb") as file:
                    size = int.from_bytes(file.read(8), "little")
                    header = parse_json(file.read(min(size, 1 << 24)))
                self._noise = header.pop(_METADATA, {}).get(_NOISE, "")
                spans = [(name, *one["data_offsets"]) for name, one in header.items()]
                if all(0 <= start < end <= path.stat().st_size for _, start, end in spans):
                    self._spans = {name: (8 + size + start, 8 + size + end) for name, start, end in spans}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self._spans = {}  # no file of ours: another one takes its place

    @staticmethod
    def of(fingerprint: str) -> PackedFile:
        """That of a model whose files have this fingerprint."""
        return PackedFile(cache_dir() / "packed" / f"{fingerprint}.safetensors")

    def read_ahead(self) -> PackedFile:
        """Begins to read all of it, two buffers at a time, while whoever is to take them loads something else."""
        if self._path and self._spans and not self._ahead:
            pool = ThreadPoolExecutor(2)
            for name, (start, end) in self._spans.items():
                buffer = self.arena.take(end - start)
                self._ahead[name] = buffer, pool.submit(_filled, buffer, self._path, start)
            pool.shutdown(wait=False)
        return self

    def matrix(self, name: str, pack: Callable[[], PackedMatrix]) -> PackedMatrix:
        """The matrix of a name, as it was kept, else as `pack` makes it. Raises what `pack` raises."""
        if (found := self._read(name)) is None:
            found, self._new = pack(), True
        (self._buffers[name],) = found.buffers
        return found

    def shortlist(self, name: str, exact: PackedMatrix, coarsen: Callable[[], Shortlist]) -> Shortlist:
        """A head with its coarse copy, as `matrix`."""
        if self._noise and (coarse := self._read(name)) is not None:
            made = Shortlist(exact, coarse, float(self._noise))
        else:
            made, self._new = coarsen(), True
        (self._buffers[name],), self._noise = made.coarse.buffers, repr(made.noise)
        return made

    def keep(self) -> str:
        """Writes the file, whole or not at all, where something was packed; why it could not, or ""."""
        if not self._path or not self._new:
            return ""
        try:
            with arriving(self._path) as part:
                part.touch(0o600)
                save_file(self._buffers, part, {_NOISE: self._noise})
        except (SafetensorError, OSError) as error:
            return str(error)
        finally:
            self._new = False
        return ""

    def _read(self, name: str) -> PackedMatrix | None:
        if name not in self.read_ahead()._ahead:
            return None
        buffer, filled = self._ahead[name]
        try:
            return PackedMatrix.from_buffers([buffer]) if filled.result() else None
        except (OSError, ValueError):  # ValueError: of another version of the layout
            return None


def _filled(buffer: Tensor, path: Path, start: int) -> bool:
    """Whether the file had as many bytes from `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        return file.readinto(buffer.numpy().data) == buffer.numel()
