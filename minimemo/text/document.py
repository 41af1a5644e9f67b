"""A document: its text, and where stretches of it stand; and text from the bytes of a file, or one reason why not."""

from __future__ import annotations

import hashlib
import sys
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


def file_bytes(source: str | Path) -> tuple[bytes, str]:
    """The content of a file and its name, or of standard input for "-". Raises InputError naming the file."""
    name = "standard input" if str(source) == "-" else str(source)
    try:
        content = sys.stdin.buffer.read() if str(source) == "-" else Path(source).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; give a text file, or - for standard input") from None
    except IsADirectoryError:
        raise InputError(f"{name}: is a directory; give one file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); check its permissions") from None
    return content, Path(source).name if str(source) != "-" else "stdin"


def decode(content: bytes, encoding: str | None, name: str) -> str:
    """Bytes of a text file as text. A byte order mark decides the encoding, else `encoding`, else UTF-8.

    Raises InputError naming the file (`name`) for what is binary or wrongly encoded.
    """
    for mark, marked in _MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], marked
            break
    return _decode(content, encoding or "utf-8", name)


def _decode(content: bytes, encoding: str, name: str) -> str:
    try:
        text = content.decode(encoding)
    except LookupError:
        raise InputError(f"{name}: encoding {encoding!r} is not known to Python; try utf-8, gb18030 or big5") from None
    except UnicodeDecodeError as error:
        if _looks_binary(content):
            raise InputError(f"{name}: a binary file; convert it to plain text first") from None
        raise InputError(
            f"{name}: not {encoding} at byte {error.start}; name its encoding, for example --encoding gb18030"
        ) from None
    if "\0" in text:
        raise InputError(f"{name}: a binary file (it holds NUL characters); convert it to plain text first")
    return text


def _looks_binary(content: bytes) -> bool:
    """Control bytes that no text encoding in use here has, in the first 64 KiB."""
    sample = content[:65536]
    return sum(byte < 9 or 13 < byte < 27 or 27 < byte < 32 for byte in sample) > len(sample) // 100
