"""PDF -> prose with page numbers. PDFium runs in a child process with limits, since its fonts may come from strangers.

The child gives, for every page, its printed label, its size and its lines in the order of the file, each with the box
of its first and last character. What makes prose of them stands in `prose`, which needs no PDFium.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from minimemo.errors import InputError
from minimemo.text.document import Place
from minimemo.text.scripts import is_cjk

SECONDS, MEMORY, PAGES = 600, 4 << 30, 20_000  # of the child; a 3,000-page PDF takes about 10 s
_CUT = "\ufffe\u0002\u00ad"  # how PDFium and typesetters mark a word cut at a line's end
_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
_ENDS = tuple('.!?:;。！？：；…"”’»）)')
_BULLETS = tuple("•◦▪●○■□‣·–—*-")


class Line(NamedTuple):
    """A line of a page; box in points from the lower left corner, that of its first and last character."""

    text: str
    left: float
    bottom: float
    right: float
    top: float


@dataclass(frozen=True, slots=True)
class Page:
    """label: the printed page number ("iv", "12"), "" where the file names none. pictures: whether it shows any."""

    label: str
    width: float
    height: float
    pictures: bool
    lines: tuple[Line, ...]


def read_pdf(content: bytes, name: str, password: str | None = None) -> tuple[str, list[Place], list[str]]:
    """The text of a PDF, the places of its pages, and a note for each run of pages whose text is not there.

    Raises InputError for what is damaged, encrypted, too large, or nothing but pictures of text.
    """
    pages = _pages(content, name, password)
    text, places = prose(pages)
    read = {place.page for place in places}  # not those with nothing but a running head around a picture
    scans = [number for number, page in enumerate(pages, 1) if page.pictures and number not in read]
    if not any(char.isalnum() for char in text):
        what = "its pages are pictures of text" if scans else "it holds no text"
        raise InputError(f"{name}: {what}; read them first, for example with: ocrmypdf {name} read.pdf")
    notes = [f"{_runs(scans)} of {len(pages)}: scanned, the text is not read"] if scans else []
    return text, places, notes


def prose(pages: Sequence[Page]) -> tuple[str, list[Place]]:
    """Paragraphs from lines: running heads, feet and page numbers left out, cut words and lines joined.

    A paragraph that goes on on the next page is one paragraph; the place of that page stands within it.
    """
    repeated = _repeated(pages)
    kept = [[line for line in page.lines if not _is_margin(line, page, repeated)] for page in pages]
    words = Counter(word for lines in kept for line in lines for word in line.text.split())
    parts: list[str] = []
    places: list[Place] = []
    length, last = 0, None
    for number, (page, lines) in enumerate(zip(pages, kept, strict=True), 1):
        begun = False
        pitch = _pitch(lines)
        block_left = None
        for line in lines:
            text = _plain(line.text)
            if not text:
                continue
            glue = ""
            if last is not None:
                glue = _glue(parts[-1], last, line, text, pitch, block_left, words, turned=not begun)
            if last is not None and glue.startswith("\n"):
                block_left = None
            if glue == "-":  # a word cut at the line's end
                length -= len(parts[-1]) - len(parts[-1][:-1])
                parts[-1], glue = parts[-1][:-1], ""
            elif parts and parts[-1][-1:] in _CUT and glue == "":
                length -= 1
                parts[-1] = parts[-1][:-1]
            if not begun:
                begun = True
                places.append(Place(length + len(glue), page=number, label=page.label))
            parts += [glue, text]
            length += len(glue) + len(text)
            block_left = line.left if block_left is None else min(block_left, line.left)
            last = line
    return "".join(parts), places


def _glue(
    before: str,
    last: Line,
    line: Line,
    text: str,
    pitch: float,
    block_left: float | None,
    words: Counter[str],
    turned: bool,
) -> str:
    """What stands between two lines: a space, nothing, "-" (take the hyphen away), a line break or a blank line."""
    if before[-1:] in _CUT:
        return ""
    same_column = not turned and line.left < last.right and last.left < line.right and line.top <= last.top
    drop = last.bottom - line.bottom
    if same_column:
        if drop > 1.45 * pitch or abs((line.top - line.bottom) - (last.top - last.bottom)) > 6:
            return "\n\n"
        if text.startswith(_BULLETS) and len(text) > 1 and text[1] == " ":
            return "\n"
        indented = block_left is not None and line.left > block_left + 5 and last.left <= block_left + 5
        if indented and before.endswith(_ENDS):
            return "\n\n"
        if drop < 0.3 * pitch:  # beside it: a cell of the same row
            return " "
        if _is_row(before) and _is_row(text):
            return "\n"
    elif before.endswith(_ENDS) or not (text[0].islower() or is_cjk(text[0])):
        return "\n\n"
    if before.endswith("-") and before[-2:-1].isalpha() and text[0].islower():
        first, second = before.split()[-1], text.split()[0]
        return "" if words[first + second] > words[first[:-1] + second] else "-"
    return "" if is_cjk(before[-1]) and is_cjk(text[0]) else " "


def _is_row(text: str) -> bool:
    """Whether a line looks like one of a table: a third of its words are numbers."""
    cells = text.split()
    return len(cells) > 2 and sum(any(char.isdigit() for char in cell) for cell in cells) * 3 >= len(cells)


def _pitch(lines: Iterable[Line]) -> float:
    """The usual distance of two lines of one column, in points."""
    steps: Counter[float] = Counter()
    last = None
    for line in lines:
        drop = last.bottom - line.bottom if last and line.left < last.right and last.left < line.right else 0.0
        if 4 < drop < 40:
            steps[round(drop)] += 1
        last = line
    return max(8.0, steps.most_common(1)[0][0] + 2.0) if steps else 14.0


def _shape(text: str) -> str:
    """A line with its numbers made equal, so that "page 3" and "page 4" are one."""
    return re.sub(r"\d+", "#", " ".join(text.split()))


def _repeated(pages: Sequence[Page]) -> set[tuple[str, int, int]]:
    """Lines that stand at the same place of three pages or more, a quarter of all at least."""
    seen: Counter[tuple[str, int, int]] = Counter()
    for page in pages:
        seen.update({(_shape(line.text), round(line.bottom / 6), 0) for line in page.lines})
    least = max(3, len(pages) / 4)
    return {key for key, count in seen.items() if count >= least}


def _is_margin(line: Line, page: Page, repeated: set[tuple[str, int, int]]) -> bool:
    """Running heads and feet, page numbers at the top or the bottom, numbers of lines, text turned on its side."""
    row = round(line.bottom / 6)
    if any((_shape(line.text), near, 0) in repeated for near in (row - 1, row, row + 1)):
        return True
    words = line.text.split()
    edge = line.bottom > 0.92 * page.height or line.top < 0.08 * page.height
    number = len(words) == 1 and (words[0].strip("-–—.[]()").isdecimal() or not words[0].strip("ivxlc"))
    upright = line.top - line.bottom > 3 * (line.right - line.left) and len(line.text.strip()) > 3
    return (edge and number) or upright


def _plain(text: str) -> str:
    """A line in the characters that its language is written in, single spaces."""
    changed = []
    for char in text:
        code = ord(char)
        if char in _LIGATURES:
            char = _LIGATURES[char]
        elif (0xFF10 <= code <= 0xFF5A and char.isalnum()) or 0x2E80 <= code <= 0x2FDF:  # full-width letters; radicals
            char = unicodedata.normalize("NFKC", char)
        elif char in "\ufffe\u0002" or char.isprintable() or char.isspace() or unicodedata.category(char) == "Cf":
            pass
        else:
            continue
        changed.append(char)
    plain = " ".join("".join(changed).split())
    inner = "".join(plain.split())
    if len(inner) >= 6 and len(inner) % 2 == 0 and inner[::2] == inner[1::2]:  # printed twice to look bold
        plain = " ".join(word[::2] for word in plain.split())
    for cut in "\ufffe\u0002":  # within a line: the two halves follow each other
        plain = plain[:-1].replace(cut, "") + plain[-1:]
    return plain


def _runs(numbers: Sequence[int]) -> str:
    """Page 4; pages 4 to 6, 9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    written = ", ".join(" to ".join(map(str, run)) for run in runs)
    return f"page{'s' * (len(numbers) > 1)} {written}"


def _pages(content: bytes, name: str, password: str | None) -> list[Page]:
    """What the child process tells of a PDF."""
    command = [sys.executable, "-c", "from minimemo.readers.pdf import child; child()"]
    first_line = json.dumps(password or "").encode() + b"\n"  # not as an argument, which `ps` shows to everybody
    try:
        done = subprocess.run(command, input=first_line + content, capture_output=True, timeout=SECONDS, check=False)
        told: Any = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise InputError(f"{name}: reading the PDF took more than {SECONDS} s; split it into smaller ones") from None
    except ValueError:
        raise InputError(f"{name}: a damaged PDF; open it in a viewer and save it again") from None
    if "error" in told:
        raise InputError(f"{name}: {told['error']}")
    return [
        Page(label, width, height, pictures, tuple(Line(*line) for line in lines))
        for label, width, height, pictures, lines in told["pages"]
    ]


def child() -> None:
    """Reads a password (a line of JSON) and a PDF from standard input, writes its pages as JSON; dies with what is
    wrong in it.
    """
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import pypdfium2 as pdfium

    password = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read()
    try:
        document = pdfium.PdfDocument(content, password=password or None)
    except pdfium.PdfiumError as error:
        locked = "password" in str(error).lower()
        damaged = "a damaged PDF; save it again from a viewer"
        mend = "encrypted; give its password with --password" if locked else damaged
        print(json.dumps({"error": mend}))
        return
    if len(document) > PAGES:
        print(json.dumps({"error": f"{len(document):,} pages, {PAGES:,} are read at most; split the PDF"}))
        return
    pages: list[Any] = []
    for number in range(len(document)):
        try:
            page = document[number]
        except pdfium.PdfiumError:  # one that is broken does not stop the others
            pages.append(("", 1.0, 1.0, True, []))
            continue
        pages.append((document.get_page_label(number), *page.get_size(), _has_pictures(page), list(_lines(page))))
        page.close()
    print(json.dumps({"pages": pages}))


def _has_pictures(page: Any) -> bool:
    import pypdfium2.raw as raw

    return any(True for _ in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=3))


def _lines(page: Any) -> Iterable[tuple[str, float, float, float, float]]:
    """Lines in the order of the file. A line that goes on behind a cut word is one line to PDFium: it is cut there."""
    textpage = page.get_textpage()
    text = textpage.get_text_range()
    exact = len(text) == textpage.count_chars()
    at = 0
    for line in text.replace("\ufffe", "\ufffe\n").split("\n"):
        size = len(line) + (0 if line.endswith("\ufffe") else 1)
        body = line.strip()
        if body:
            first = at + len(line) - len(line.lstrip())
            left, bottom, right, top = 0.0, 0.0, 0.0, 0.0
            if exact:
                end = first + len(body.rstrip("\ufffe")) - 1
                a, b = textpage.get_charbox(first, loose=True), textpage.get_charbox(end, loose=True)
                left, bottom, right, top = a[0], min(a[1], b[1]), b[2], max(a[3], b[3])
            yield body, left, bottom, right, top
        at += size
