"""PDF -> prose with page numbers. PDFium runs in a child process with limits, since its fonts may come from strangers.

The child gives, for every page, its printed label, its size and its lines in the order of the file, each with its box;
`prose` makes paragraphs of them and needs no PDFium.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from minimemo.errors import InputError
from minimemo.readers.prose import Line, Mark, Page, prose
from minimemo.text.document import Place
from minimemo.text.scripts import CJK

SECONDS, MEMORY, PAGES = 600, 4 << 30, 20_000  # of the child; a 3,000-page PDF takes about 10 s
_MARKS = 10_000  # entries of an outline that are read
_FEW = 500  # characters of a page that may be but a running head around a picture of text
_GAP = 0.8  # of a line's height: what is wider stands between columns or cells
Box = tuple[float, float, float, float]  # left, bottom, right, top
Char = tuple[str, Box]
Turn = tuple[int, float, float, float, float]  # degrees; left, bottom, width and height before
_CJK = re.compile(f"[{CJK}]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")


def read_pdf(content: bytes, name: str, password: str | None = None) -> tuple[str, list[Place], list[str]]:
    """The text of a PDF, the places of its pages, and a note for each run of pages whose text is not there.

    Raises InputError for what is damaged, encrypted, too large, or nothing but pictures of text.
    """
    if not content:
        raise InputError(f"{name}: an empty file (0 bytes); get it again")
    pages, marks = _pages(content, name, password)
    text, places = prose(pages, marks)
    read = {place.page for place in places}  # not those with nothing but a running head around a picture
    scans = [number for number, page in enumerate(pages, 1) if page.pictures and number not in read]
    if not any(char.isalnum() for char in text):
        what = f"{_runs(scans)} of {len(pages)}: scanned, pictures of text" if scans else "it holds no text"
        raise InputError(f"{name}: {what}; read them first, for example with: ocrmypdf {name} read.pdf")
    notes = [f"{_runs(scans)} of {len(pages)}: scanned, the text is not read"] if scans else []
    return text, places, notes


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


def _pages(content: bytes, name: str, password: str | None) -> tuple[list[Page], list[Mark]]:
    """What the child process reads of a PDF: its pages and the entries of its outline."""
    command = [sys.executable, "-c", "from minimemo.readers.pdf import child; child()"]
    first_line = json.dumps(password or "").encode() + b"\n"  # not as an argument, which `ps` shows to everybody
    try:
        done = subprocess.run(command, input=first_line + content, capture_output=True, timeout=SECONDS, check=False)
        read: Any = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise InputError(f"{name}: reading the PDF took more than {SECONDS} s; split it into smaller ones") from None
    except ValueError:
        raise InputError(f"{name}: a damaged PDF; open it in a viewer and save it again") from None
    if "error" in read:
        raise InputError(f"{name}: {read['error']}")
    pages = [Page._make((*page[:4], tuple(map(Line._make, page[4])))) for page in read["pages"]]
    return pages, [Mark(page, top, tuple(heading)) for page, top, heading in read["marks"]]


def child() -> None:
    """Reads a password (a line of JSON) and a PDF from standard input, writes its pages as JSON; dies with what is
    wrong in it.
    """
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import pypdfium2 as pdfium

    password = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read()
    try:
        document = pdfium.PdfDocument(content, password=password or None)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            what = "this password does not open it" if password else "encrypted"
            mend = f"{what}; give its password with `password`"
        else:
            mend = "a damaged PDF; open it in a viewer and save it again"
        print(json.dumps({"error": mend}))
        return
    if len(document) > PAGES:
        print(json.dumps({"error": f"{len(document):,} pages, {PAGES:,} are read at most; split the PDF"}))
        return
    print(json.dumps({"pages": list(_read(document)), "marks": list(_marks(document))}))


def _read(document: Any) -> Iterator[tuple[Any, ...]]:
    """The pages of a document, as `Page` has them."""
    import pypdfium2 as pdfium

    fonts: dict[bytes, int] = {}
    for number in range(len(document)):
        try:
            page = document[number]
            lines = [line for line in _lines(page, fonts) if line[0]]
            pictures = sum(len(line[0]) for line in lines) < _FEW and _has_pictures(page)
            yield document.get_page_label(number), *page.get_size(), pictures, lines
            page.close()
        except pdfium.PdfiumError:  # one that is broken does not stop the others
            yield "", 1.0, 1.0, True, []


def _marks(document: Any) -> Iterator[tuple[int, float | None, tuple[str, ...]]]:
    """The outline: page from 1, height on it (None: its top), titles from the outermost to its own."""
    import pypdfium2 as pdfium

    path: list[str] = []
    try:
        for count, mark in enumerate(document.get_toc(max_depth=8)):
            if count >= _MARKS:
                return
            path[mark.level :] = [" ".join(mark.get_title().split())[:200]]
            target = mark.get_dest()
            page = target.get_index() if target else None
            if page is not None and path[-1]:
                mode, view = target.get_view()
                at = {pdfium.raw.PDFDEST_VIEW_XYZ: 1, pdfium.raw.PDFDEST_VIEW_FITH: 0}.get(mode)
                yield page + 1, view[at] if at is not None and len(view) > at else None, tuple(path)
    except (pdfium.PdfiumError, ValueError):
        return  # a broken outline is as good as none


def _has_pictures(page: Any) -> bool:
    import pypdfium2.raw as raw

    return any(True for _ in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=3))


def _lines(page: Any, fonts: dict[bytes, int]) -> Iterator[tuple[Any, ...]]:
    """Lines in the order of the file, as `Line` has them; fonts: the numbers of those seen so far.

    PDFium lets a line go on behind a cut word and, at times, from the end of one line back to the next: both are cut
    here, text that was printed twice to look bold is taken once, and wide gaps are counted.
    """
    import pypdfium2.raw as raw

    textpage = page.get_textpage()
    box, flags = raw.FS_RECTF(), ctypes.c_int()
    box_at, name = ctypes.byref(box), ctypes.create_string_buffer(128)
    rect = [ctypes.c_double() for _ in range(4)]
    rect_at = [ctypes.byref(side) for side in rect]
    turn, width = _turn(page), page.get_width()

    def char_box(index: int) -> Box:
        raw.FPDFText_GetLooseCharBox(textpage.raw, index, box_at)
        return box.left, box.bottom, box.right, box.top

    def font(index: int) -> int:
        name.value = b""
        raw.FPDFText_GetFontInfo(textpage.raw, index, name, 128, ctypes.byref(flags))
        return fonts.setdefault(name.value, len(fonts))

    def rects(first: int, count: int) -> list[list[float]]:
        """Left, top, right, bottom of each stretch of one font without a gap."""
        boxes = []
        for number in range(raw.FPDFText_CountRects(textpage.raw, first, count)):
            raw.FPDFText_GetRect(textpage.raw, number, *rect_at)
            boxes.append([side.value for side in rect])
        return boxes

    text, at = textpage.get_text_range(), 0
    same = len(text) == textpage.count_chars()  # else the text lacks some of the characters

    def index(place: int) -> int:
        return place if same else int(raw.FPDFText_GetCharIndexFromTextIndex(textpage.raw, place))

    for line in text.replace("\ufffe", "\ufffe\n").split("\n"):
        start, body = at + len(line) - len(line.lstrip()), line.strip()
        at += len(line) + (0 if line.endswith("\ufffe") else 1)
        if not body:
            continue
        first, last = index(start), index(start + len(body.rstrip("\ufffe")) - 1)
        stretches = rects(first, last - first + 1)
        jumps = gaps = 0
        if not turn:
            loose = 0.0  # where a file places each letter for itself, a stretch is one, and no higher than that
            for before, after in itertools.pairwise(stretches):
                high = max(before[1] - before[3], after[1] - after[3], 1.0)
                jumps += after[0] < before[2] - high and after[2] > after[0]
                if after[0] - before[2] > _GAP * high:
                    loose = loose or max(box[3] - box[1] for box in (char_box(first), char_box(last)))
                    gaps += after[0] - before[2] > _GAP * loose
        wide = bool(stretches) and stretches[-1][2] - stretches[0][0] > 0.45 * width
        chars: list[Char] = []
        if jumps or (0 < gaps < 4 and wide) or (gaps and _CJK.search(body)) or _RIGHT_TO_LEFT.search(body):
            chars = [(char, char_box(index(start + i))) for i, char in enumerate(body)]
        if gaps and _CJK.search(body):  # the empty half of a full-width comma is none
            drawn = [box for char, box in chars if not char.isspace() and box[2] > box[0]]
            gaps = sum(b[0] - a[2] > _GAP * max(a[3] - a[1], b[3] - b[1], 1.0) for a, b in itertools.pairwise(drawn))
        if jumps or (0 < gaps < 4 and wide) or _RIGHT_TO_LEFT.search(body):
            for part in _parts(chars):
                boxes = [b for _, b in part if b[2] > b[0]] or [part[0][1]]
                whole = min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), boxes[0][3]
                plain = _logical(part).strip()
                yield (plain, *_turned(whole, turn), boxes[0][3] - boxes[0][1], font(first), gaps)
            continue
        a, b = char_box(first), char_box(last)
        whole = min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])
        yield (body, *_turned(whole, turn), max(a[3] - a[1], b[3] - b[1]), font(first), gaps)


def _parts(chars: list[Char]) -> Iterator[list[Char]]:
    """A line cut where it goes back to the left and at wide gaps; characters printed twice at one place come once.

    chars: each with its box (left, bottom, right, top).
    """
    parts: list[list[Char]] = [[]]
    last: Char | None = None
    for char, box in chars:
        if char.isspace() or box[2] <= box[0]:
            parts[-1].append((char, box))
            continue
        if last is not None and char == last[0] and _over(box, last[1]):
            continue
        if last is not None:
            high = max(box[3] - box[1], last[1][3] - last[1][1], 1.0)
            backwards = box[0] < last[1][2] - high and not _RIGHT_TO_LEFT.match(char)
            if backwards or box[0] - last[1][2] > _GAP * high:
                parts.append([])
        parts[-1].append((char, box))
        last = char, box
    seen: list[tuple[str, list[Char]]] = []
    for part in parts:
        text = "".join(char for char, _ in part).strip()
        at = [(one, earlier.find(text)) for earlier, one in seen]
        if text and not any(place >= 0 and _over(part[0][1], one[place][1]) for one, place in at):
            seen.append((text, part))
            yield part


def _over(box: Box, other: Box) -> bool:
    """Whether two characters stand at one place."""
    return abs(box[0] - other[0]) < 0.4 * (box[2] - box[0]) and abs(box[1] - other[1]) < 0.2 * (box[3] - box[1])


def _logical(part: list[Char]) -> str:
    """Its text in the order of reading: Arabic and Hebrew that stand from left to right in the file are turned."""
    text = "".join(char for char, _ in part)
    lefts = [box[0] for char, box in part if _RIGHT_TO_LEFT.match(char) and box[2] > box[0]]
    rising = sum((after > before) - (after < before) for before, after in itertools.pairwise(lefts))
    if rising < 0 or not lefts:  # none rises or falls where the file spells out a drawing; PDFium has turned that
        return text
    if 2 * len(lefts) <= sum(map(str.isalpha, text)):  # words within a text of another script
        return re.sub(f"{_RIGHT_TO_LEFT.pattern}(?:.*{_RIGHT_TO_LEFT.pattern})?", lambda run: run[0][::-1], text)
    return re.sub(r"[^\W\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]+", lambda run: run[0][::-1], text[::-1])


def _turn(page: Any) -> Turn | None:
    """How a page is turned for its reader, with its left, bottom, width and height before; None: not at all."""
    left, bottom, right, top = page.get_cropbox()
    left, right, bottom, top = min(left, right), max(left, right), min(bottom, top), max(bottom, top)
    turned = page.get_rotation()
    return None if not (turned or left or bottom) else (turned, left, bottom, right - left, top - bottom)


def _turned(box: Box, turn: Turn | None) -> Box:
    """A box (left, bottom, right, top) as the reader sees it."""
    if turn is None:
        return box
    degrees, left, bottom, width, height = turn
    a, b, c, d = box[0] - left, box[1] - bottom, box[2] - left, box[3] - bottom
    if degrees == 90:
        return b, width - c, d, width - a
    if degrees == 180:
        return width - c, height - d, width - a, height - b
    if degrees == 270:
        return height - d, a, height - b, c
    return a, b, c, d
