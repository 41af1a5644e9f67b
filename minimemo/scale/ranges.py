"""Parts of an object that were read once, kept on this disk: bytes come from there, or in few requests from the object.

A part is a file START-END in a folder that is named after the object's hash: parts never go stale.
All objects' parts share one bound: those that were used longest ago make room.
"""

from __future__ import annotations

import os
import shutil
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from minimemo.files import cache_dir, write_whole

KEPT_BYTES = 1 << 30  # of all objects on this disk; a sixteenth more may come before room is made again
JOINED = 32 << 10  # Bytes between two parts that cost less than a request of their own: 3 ms at 100 Mbit/s.
_AT_ONCE = 8  # requests
Spans = Sequence[tuple[int, int]]


def objects_dir() -> Path:
    """The folder of what is kept here of objects."""
    return cache_dir() / "objects"


class ObjectBytes:
    """Bytes of an object of known size, a `memory.reader.ByteSource`.

    name: for messages. get: gives the bytes [start, end) from the store, or raises MinimemoError.
    """

    def __init__(self, name: str, size: int, folder: Path, get: Callable[[int, int], bytes]) -> None:
        self.size = size
        self._name, self._folder, self._get = name, folder, get
        self._lock = Lock()
        self._came = 0  # bytes that may come before room is made
        kept = [path.name.split("-") for path in folder.glob("[0-9]*-[0-9]*")] if folder.is_dir() else []
        self._parts = sorted((int(start), int(end)) for start, end in kept if start.isdecimal() and end.isdecimal())

    def __str__(self) -> str:
        return self._name

    def read(self, start: int, end: int) -> bytes:
        if part := self._part(start, end):
            with suppress(OSError), open(self._folder / _named(part), "rb") as file:  # else another process made room
                file.seek(start - part[0])
                if len(content := file.read(end - start)) == end - start:
                    return content
            self._drop(part)
        return self._bring([(start, end)])[0] if start < end else b""

    def fetch(self, spans: Iterable[tuple[int, int]]) -> None:
        missing = []
        for start, end in sorted({span for span in spans if span[0] < span[1]}):
            if part := self._part(start, end):
                with suppress(OSError):
                    os.utime(self._folder / _named(part))
            else:
                missing.append((start, end))
        if missing:
            self._bring(missing)

    def forget(self, start: int, end: int) -> bool:
        with self._lock:
            parts = [part for part in self._parts if part[0] < end and start < part[1]]
        for part in parts:
            self._drop(part)
        return bool(parts)

    def close(self) -> None:
        """Nothing is open."""

    def _bring(self, spans: Spans) -> list[bytes]:
        """Gets spans from the store, neighbours in one request, and keeps each as a part."""
        requests = joined(spans)
        with ThreadPoolExecutor(min(_AT_ONCE, len(requests))) as pool:
            came = list(pool.map(lambda request: self._get(*request), requests))
        contents = []
        for start, end in spans:
            number = bisect_right(requests, (start, self.size)) - 1
            at = start - requests[number][0]
            contents.append(came[number][at : at + end - start])
            with suppress(OSError):  # a disk that is full costs a request the next time
                write_whole(self._folder / _named((start, end)), contents[-1], private=True)
                with self._lock:
                    insort(self._parts, (start, end))
        self._came -= sum(map(len, contents))
        if self._came < 0:
            self._came = KEPT_BYTES // 16
            make_room(KEPT_BYTES, self._folder.parent)
        return contents

    def _part(self, start: int, end: int) -> tuple[int, int] | None:
        """The part that holds a span."""
        with self._lock:
            number = bisect_right(self._parts, (start, self.size))
            return next((part for part in reversed(self._parts[max(0, number - 2) : number]) if part[1] >= end), None)

    def _drop(self, part: tuple[int, int]) -> None:
        with suppress(OSError):
            (self._folder / _named(part)).unlink(missing_ok=True)
        with self._lock, suppress(ValueError):
            self._parts.remove(part)


def joined(spans: Spans) -> list[tuple[int, int]]:
    """The spans, in order, as few requests: those that are less than JOINED bytes apart are one."""
    requests: list[tuple[int, int]] = []
    for start, end in spans:
        if requests and start - requests[-1][1] <= JOINED:
            requests[-1] = requests[-1][0], max(end, requests[-1][1])
        else:
            requests.append((start, end))
    return requests


def make_room(most: int, used: Path) -> None:
    """Deletes what was used longest ago until `most` bytes are left; of the memo in the folder `used`, only parts."""
    files = []
    for folder, _, names in os.walk(objects_dir()):
        for name in names:
            with suppress(OSError):
                path = os.path.join(folder, name)
                status = os.stat(path)
                files.append((status.st_mtime_ns, status.st_size, path))
    left = sum(size for _, size, _ in files) - most
    for _, size, path in sorted(files):
        if left <= 0:
            return
        if os.path.dirname(path) == str(used):
            continue
        with suppress(OSError):
            os.unlink(path)
            left -= size


def forget(folder: Path) -> None:
    """Deletes what is kept here of a memo."""
    shutil.rmtree(folder, ignore_errors=True)


def _named(part: tuple[int, int]) -> str:
    return f"{part[0]}-{part[1]}"
