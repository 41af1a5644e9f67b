"""Bring files onto this disk: whole, verified by hash, or not at all.

The rule obeyed here: `NAME.partial` holds the first bytes of NAME, whichever source wrote them, so any source may
carry on where another stopped; only a file whose hash is the wanted one is ever renamed to NAME.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from minimemo.errors import FetchError
from minimemo.events import Event, Listener

Tick = Callable[[int], None]  # called often; its argument: bytes on the way that are not yet in a file of ours

_RETRYABLE = frozenset({429, 500, 502, 503, 504})


class DiskFull(FetchError):
    """No source can help: there is no room."""


class Mismatch(FetchError):
    """The bytes came, and are not those that were asked for."""


class Unreachable(ConnectionError):
    """Nobody answered at all; any other ConnectionError here may pass if tried again."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a model: its path inside the model's folder, its size in bytes, and the hash that decides.

    `digest` is a SHA-256 (64 hex digits) or, where a hub states nothing better, git's SHA-1 of the blob (40).
    """

    path: str
    size: int
    digest: str

    def at(self, folder: Path) -> Path:
        return folder / self.path

    def partial(self, folder: Path) -> Path:
        return folder / (self.path + ".partial")


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: until the first answer (name lookup included), for each later read, and between two tries."""

    connect: float = 5.0
    read: float = 30.0
    pause: float = 1.0
    tries: int = 3  # in a row without one new byte


class Source(Protocol):
    """Somewhere files can come from."""

    @property
    def label(self) -> str: ...

    def fetch(self, files: Sequence[File], folder: Path, tick: Tick) -> None:
        """Put every one of `files` into `folder`, verified; FetchError says in one line why that was impossible."""


def note(text: str) -> Event:
    """A line for the user among the progress: a stage of no length."""
    return Event(text, 0, 0, "note")


def fetch_all(name: str, files: Sequence[File], sources: Sequence[Source], folder: Path, on_event: Listener) -> None:
    """Try the sources in order until `folder` holds every file.

    Raises FetchError with one line a source when all of them failed; DiskFull at once.
    """
    total = sum(file.size for file in files)

    def tick(coming: int) -> None:
        held = sum(max(length_of(file.at(folder)), length_of(file.partial(folder))) for file in files)
        on_event(Event(f"pull {name}", min(total, held + coming), total, "B"))

    reasons: list[str] = []
    for source in sources:
        missing = [file for file in files if not file.at(folder).is_file()]
        try:
            if missing:
                source.fetch(missing, folder, tick)
        except DiskFull:
            raise
        except FetchError as error:
            reasons.append(f"{source.label}: {error}")
            on_event(note(reasons[-1]))
        else:
            tick(0)
            return
    head = f"{name} could not be pulled; what arrived is kept, so run `minimemo pull {name}` again once this is mended:"
    raise FetchError("\n  ".join([head, *reasons]))


def bring_verified(files: Sequence[File], folder: Path, bring: Callable[[], None]) -> None:
    """Run `bring`, which completes the partials, then check and rename each.

    A mismatch is thrown away. Where an earlier pull had begun the file the fault may be its: then once more, from
    nothing. Raises Mismatch naming file, wanted hash and found hash.
    """
    begun = any(length_of(file.partial(folder)) for file in files)
    bring()
    try:
        _settle(files, folder)
    except Mismatch:
        if not begun:
            raise
        bring()
        _settle(files, folder)


def matches(path: Path, file: File) -> bool:
    """Whether the file at `path` is `file`, by size and hash."""
    return length_of(path) == file.size and digest_of(path, file) == file.digest


def digest_of(path: Path, file: File) -> str:
    """The hash of `path`, of the kind that `file` states."""
    if len(file.digest) == 64:
        state = hashlib.sha256()
    else:
        state = hashlib.sha1(b"blob %d\0" % length_of(path), usedforsecurity=False)
    with open(path, "rb") as data:
        while block := data.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def missing_bytes(files: Sequence[File], folder: Path) -> int:
    """Bytes still to be written into `folder`."""
    return sum(max(0, file.size - length_of(file.partial(folder))) for file in files)


def require_space(folder: Path, needed: int) -> None:
    """Raise DiskFull, saying how much is needed and free, unless `needed` bytes fit beside `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"{folder}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free;"
            " make room, or set MINIMEMO_HOME to a folder on another disk"
        )


def open_url(url: str, patience: Patience, headers: dict[str, str] | None = None, token: str = "") -> Any:
    """The response to a GET, its headers read. Raises FetchError (no use trying again), Unreachable, ConnectionError.

    The request runs in a thread because a socket's timeout covers neither name lookup nor a chain of redirects.
    `token` goes to the first host only, never along a redirect.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "minimemo", **(headers or {})})
    if token and url.startswith("https:"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    box: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            box.put(urllib.request.urlopen(request, timeout=patience.read))
        except Exception as error:
            box.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        got = box.get(timeout=patience.connect)
    except queue.Empty:
        raise Unreachable(f"{url}: no answer within {patience.connect:g} s") from None
    if isinstance(got, urllib.error.HTTPError):
        got.close()
        if got.code in _RETRYABLE:
            raise ConnectionError(f"{url}: HTTP {got.code} {got.reason}")
        if got.code in (401, 403):
            raise FetchError(f"{url}: HTTP {got.code}: not there, or it asks for a login (then set HF_TOKEN)")
        raise FetchError(f"{url}: HTTP {got.code} {got.reason}")
    if isinstance(got, Exception):
        raise Unreachable(f"{url}: {getattr(got, 'reason', None) or got}") from got
    return got


def download(url: str, target: Path, size: int, tick: Tick, patience: Patience, token: str = "") -> None:
    """Complete `target`, `size` bytes long, from `url`; goes on from the bytes that are there (HTTP Range).

    A broken connection is taken up again as long as bytes keep coming. Raises FetchError.
    """
    first = length_of(target)
    idle = 0
    while (before := length_of(target)) < size or not target.exists():
        try:
            _transfer(url, target, size, tick, patience, token)
        except ConnectionError as error:
            idle = 0 if length_of(target) > before else idle + 1
            if idle >= patience.tries or (isinstance(error, Unreachable) and length_of(target) == first):
                raise FetchError(str(error)) from error
            time.sleep(patience.pause)


def _transfer(url: str, target: Path, size: int, tick: Tick, patience: Patience, token: str) -> None:
    start = length_of(target)
    with closing(open_url(url, patience, {"Range": f"bytes={start}-"} if start else {}, token)) as response:
        if response.status == 206:
            answer = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if answer is None or int(answer[1]) != start:
                raise FetchError(f"{url}: the server answers a range with another one")
            announced = int(answer[2])
        else:
            start, announced = 0, int(response.headers.get("Content-Length") or size)
        if announced != size:
            raise FetchError(f"{url}: {announced:,} bytes there, {size:,} expected: not the same file")
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab" if start else "wb") as out:
            while block := _read(response, url):
                start += len(block)
                if start > size:
                    raise FetchError(f"{url}: more than the {size:,} bytes announced")
                out.write(block)
                out.flush()
                tick(0)
    if start < size:
        raise ConnectionError(f"{url}: the connection ended at byte {start:,} of {size:,}")


def _read(response: Any, url: str) -> bytes:
    try:
        return response.read1(1 << 18)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url}: {error}") from error


def _settle(files: Sequence[File], folder: Path) -> None:
    for file in files:
        partial = file.partial(folder)
        if file.at(folder).is_file():
            continue
        if not matches(partial, file):
            found = f"{length_of(partial):,} bytes" if length_of(partial) != file.size else digest_of(partial, file)
            partial.unlink(missing_ok=True)
            raise Mismatch(f"{file.path}: expected {file.digest}, found {found}; thrown away")
        with open(partial, "rb+") as data:
            os.fsync(data.fileno())  # or a power cut could leave the right name on the wrong bytes
        os.replace(partial, file.at(folder))


def length_of(path: Path) -> int:
    """Its size in bytes; 0 where there is no file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
