"""A table on the disk that is changed by appending to it: the keys and values of a dict, as JSON.

After a head, every line holds changes behind their CRC-32: {key: value, or null where the key is gone}. One change
costs the same however large the table is. A last line that was torn by a kill or a full disk is as if it had never
been; a line that is damaged is left out, and told. A file with more spent changes than live keys is written anew, whole
or absent. Several processes may write one table: they take turns by a lock beside it; who reads needs none.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from minimemo.files import parse_json, private_folder, write_whole

_HEAD = b"minimemo table 1 "  # then 16 hex digits that no other writing of the file has
_HEAD_BYTES = len(_HEAD) + 17
LINE = 64  # changes in a line: what one damaged bit takes with it
SPARE = 1000  # spent changes that a file may have, however few keys are live
_WAIT = 10  # seconds for another process that writes


class Journal:
    """The table at `path`, as it was when `read` last looked. damaged: whether lines were left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.damaged = False
        self._head, self._end, self._changes = b"", 0, 0
        self.read()

    def read(self) -> dict[str, Any]:
        """Takes in what was written since the last time, and gives it: key -> value, None where it is gone. A file that
        is not there, or is none, is empty; where it cannot be read for now, nothing has changed."""
        try:
            return self._read()
        except OSError:
            return {}

    def _read(self) -> dict[str, Any]:
        """Raises OSError where a file is there that cannot be read."""
        try:
            with _opened(self.path, os.O_RDONLY) as file:
                head = file.read(_HEAD_BYTES)
                anew = head != self._head or os.fstat(file.fileno()).st_size < self._end
                file.seek(_HEAD_BYTES if anew else self._end)
                content = file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            head = content = b""
            anew = bool(self._head)
        before: dict[str, Any] = {}
        if anew:
            before, self.values = self.values, {}
            ours = head.startswith(_HEAD) and len(head) == _HEAD_BYTES
            self.damaged = bool(head) and not ours
            self._head, self._end, self._changes = head, len(head), 0
            content = content if ours else b""
        changes: dict[str, Any] = {}
        *lines, torn = content.split(b"\n")
        for line in lines:
            if (change := _parsed(line)) is None:
                self.damaged = True
            else:
                changes.update(change)
                self._changes += len(change)
        self._end += len(content) - len(torn)
        self.values.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del self.values[key]
        return {**dict.fromkeys(before.keys() - self.values.keys()), **changes} if anew else changes

    def write(self, changes: Mapping[str, Any], sweep: bool = False) -> dict[str, Any]:
        """Adds changes, and gives them with what others wrote, like `read`. sweep: nothing spent is left in the file.
        Raises OSError."""
        with locked(self.path):
            append(self.path, changes)
            told = self._read()  # never written anew without what it holds
            if sweep or self.damaged or self._changes > 2 * len(self.values) + SPARE:
                _begin(self.path, self.values)
                self._read()
            return told


def append(path: Path, changes: Mapping[str, Any]) -> None:
    """Adds changes to a table without reading it; makes it where there is none. Raises like `Journal.write`."""
    if not changes and path.exists():
        return
    with locked(path):
        try:
            file = _opened(path, os.O_RDWR)
        except (FileNotFoundError, IsADirectoryError):
            _begin(path, changes)
            return
        with file:
            end = _whole(file)
            if end:
                file.truncate(end)
                file.seek(end)
                file.write(_lines(changes))
        if not end:
            _begin(path, changes)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps others from writing a table; a thread that has the lock may take it again."""
    from filelock import FileLock

    private_folder(path.parent)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=_WAIT, mode=0o600, is_singleton=True):
        yield


def _opened(path: Path, flags: int) -> BinaryIO:
    """Raises OSError; IsADirectoryError for whatever stands there that is no file, a pipe or a device."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "is no file", str(path))
    return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "rb")


def _begin(path: Path, values: Mapping[str, Any]) -> None:
    live = {key: value for key, value in values.items() if value is not None}
    write_whole(path, _HEAD + os.urandom(8).hex().encode() + b"\n" + _lines(live), private=True)


def _whole(file: BinaryIO) -> int:
    """Where the last whole line of a table ends; 0 where the file is none."""
    if not file.read(_HEAD_BYTES).startswith(_HEAD):
        return 0
    end = file.seek(0, os.SEEK_END)
    while end > _HEAD_BYTES:
        start = max(_HEAD_BYTES, end - (1 << 16))
        file.seek(start)
        if (at := file.read(end - start).rfind(b"\n")) >= 0:
            return start + at + 1
        end = start
    return _HEAD_BYTES


def _lines(changes: Mapping[str, Any]) -> bytes:
    items, lines = iter(changes.items()), []
    while some := dict(islice(items, LINE)):
        text = json.dumps(some, separators=(",", ":")).encode()
        lines.append(b"%08x %s\n" % (zlib.crc32(text), text))
    return b"".join(lines)


def _parsed(line: bytes) -> dict[str, Any] | None:
    if line[:9] != b"%08x " % zlib.crc32(line[9:]):
        return None
    try:
        change = parse_json(line[9:])
    except ValueError:
        return None
    return change if isinstance(change, dict) else None
