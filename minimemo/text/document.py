"""A document: its text, and where stretches of it stand; and text from the bytes of a file, or one reason why not."""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minimemo.errors import InputError

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),  # before that of UTF-16, which it begins with
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)


_LOOKED_AT = 1 << 16  # bytes that an encoding is guessed from
_COMMON = ("utf_8", "gb18030", "cp932", "big5", "euc_kr", "cp1252", "cp1250", "cp1251", "cp1253", "koi8_r")
UNNAMED = ("text", "stdin")  # names of documents to which nobody gave one


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stretch of a document's text stands; it begins at character `start` and goes on to the next place.

    page: counted from 1; label: the page number that is printed, where it is known. heading: the headings above it, the
    outermost first. time: "0:12:05" of speech.
    """

    start: int
    page: int | None = None
    label: str = ""
    heading: tuple[str, ...] = ()
    time: str = ""


def finder(places: Mapping[str, Sequence[Place]]) -> Callable[[str, int], Place | None]:
    """Gives what finds the place where a character of a document stands; places: by document's name, in order."""
    starts = {name: [place.start for place in of] for name, of in places.items()}

    def place_of(document: str, start: int) -> Place | None:
        number = bisect_right(starts.get(document, ()), start)
        return places[document][number - 1] if number else None

    return place_of


@dataclass(frozen=True, slots=True)
class Document:
    """Text exactly as decoded: line ends, emoji and combining marks untouched. Offsets everywhere count its characters.

    name: what to call it, with a mark for each byte of a file's name that is no text. sha256: of the text in UTF-8.
    places: where stretches of the text stand, in order. notes: what of the file is not in the text, for people.
    """

    name: str
    text: str
    sha256: str
    places: tuple[Place, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, name: str = "text") -> Document:
        """Raises InputError for text that is empty or holds nothing to read."""
        if not any(char.isalnum() for char in text):
            raise InputError(f"{name}: the document is empty; there is nothing to remember")
        try:
            content = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{name}: not valid Unicode at character {error.start}; decode it again") from None
        return cls(name.encode(errors="replace").decode(), text, hashlib.sha256(content).hexdigest())


def file_bytes(source: str | Path, sha256: str | None = None) -> tuple[bytes, str]:
    """The content of a file and its name, or of standard input for "-". Raises InputError naming the file, also where
    its bytes have another SHA-256 than the one that is given."""
    name = "standard input" if str(source) == "-" else str(source)
    try:
        content = sys.stdin.buffer.read() if str(source) == "-" else _content(Path(source))
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; give a text file, or - for standard input") from None
    except IsADirectoryError:
        raise InputError(f"{name}: is a directory; give one file") from None
    except ValueError:  # a NUL in its name
        raise InputError(f"{name!r}: is no name of a file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); check its permissions") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{name}: has changed since it was looked at; look at it again")
    return content, Path(source).name if str(source) != "-" else "stdin"


def decode(content: bytes, encoding: str | None, name: str, errors: str = "strict") -> str:
    """Bytes of a text file as text. A byte order mark decides the encoding, else `encoding`, else UTF-8.

    Raises InputError naming the file (`name`) for what is binary or wrongly encoded.
    """
    for mark, marked in _MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], marked
            break
    return _decode(content, encoding or "utf-8", name, errors)


def _content(path: Path) -> bytes:
    """A file's bytes, or a pipe's; nothing of a pipe that nobody writes to. Raises InputError for a device."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not file.isatty()):
            raise InputError(f"{path}: is a device; give a text file, or - for standard input")
        if not stat.S_ISREG(mode):
            os.set_blocking(descriptor, True)
        return file.read()


def _decode(content: bytes, encoding: str, name: str, errors: str) -> str:
    try:
        text = content.decode(encoding, errors)
    except UnicodeDecodeError as error:
        guess = _guess(content, encoding)
        if guess is None and _looks_binary(content):
            raise InputError(f"{name}: a binary file; convert it to plain text first") from None
        mend = f"it looks like {guess}: `encoding={guess}`" if guess else "name its encoding, say `encoding=gb18030`"
        raise InputError(
            f"{name}: not {encoding} at byte {error.start}; {mend}, or `errors=replace` to put a mark there"
        ) from None
    except (LookupError, ValueError, TypeError):  # unknown, or an encoding of something else than text
        raise InputError(
            f"{name}: encoding {encoding[:40]!r} is none of text that Python knows; try utf-8, gb18030 or big5"
        ) from None
    if "\0" in text and (wide := _without_mark(content)):
        raise InputError(f"{name}: looks like {wide} without its mark; name it with `encoding={wide}`")
    if errors == "replace":
        text = text.replace("\0", "\ufffd")
        if text.count("\ufffd") > len(text) / 3:
            raise InputError(f"{name}: a binary file, or in another encoding than {encoding}")
    if "\0" in text:
        raise InputError(f"{name}: a binary file (it holds NUL characters); convert it to plain text first")
    return text


def _without_mark(content: bytes) -> str | None:
    """UTF-16 of a text in which every other byte is mostly NUL."""
    sample = content[:_LOOKED_AT]
    first, second = sample[::2].count(0), sample[1::2].count(0)
    if max(first, second) < len(sample) / 8 or min(first, second) > len(sample) / 99:
        return None
    return "utf-16-le" if second > first else "utf-16-be"


def _guess(content: bytes, failed: str) -> str | None:
    """The encoding that a text is likely in, another one than `failed`; None where nothing is likely."""
    from charset_normalizer import from_bytes

    strays = content.decode(errors="replace")
    if strays.count("\ufffd") < sum(char > "\x7f" for char in strays) / 2:
        return None  # UTF-8 with some damage
    if wide := _without_mark(content):
        return wide
    matches = from_bytes(content[:_LOOKED_AT], cp_isolation=list(_COMMON))
    likely = [match.encoding for match in sorted(matches, key=lambda m: (round(m.chaos, 2), _COMMON.index(m.encoding)))]
    for encoding in likely or _COMMON[1:5]:
        with suppress(UnicodeError, LookupError):
            name, text = codecs.lookup(encoding).name, content.decode(encoding)
            usual = all(char < "\x7f" or "\u2000" < char < "\ud800" or char > "\uff00" for char in text)
            if name != codecs.lookup(failed).name and "\0" not in text and (likely or usual):
                return name
    return None


def _looks_binary(content: bytes) -> bool:
    """Control bytes that no text encoding in use here has, in the first 64 KiB."""
    sample = content[:65536]
    return sum(byte < 9 or 13 < byte < 27 or 27 < byte < 32 for byte in sample) > len(sample) // 100
