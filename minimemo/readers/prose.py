"""Lines of printed pages -> paragraphs: what repeats on every page left out, columns in reading order, words whole."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from minimemo.text.document import Place
from minimemo.text.scripts import CJK, is_cjk

_CUT = "\ufffe\u0002\u00ad"  # how PDFium and typesetters mark a word cut at a line's end
_ENDS = tuple('.!?:;。！？：；…"”’»）)')
_BULLET = re.compile(
    r"[•◦▪●○■□‣·*–—-] |(?:\d{1,2}|[a-z]|[ivx]{1,4})(?:[.)] |[）、])|[(（](?:\d{1,2}|[a-z]|[ivx]{1,4})[)）]"
)
# What stands before the hyphen of a compound, in the main; other words that are cut there are whole without it.
_COMPOUNDS = re.compile(
    "cross|double|ex|five|four|full|half|high|long|low|mid|multi|near|non|old|one|open|part|quasi|real|second|self|semi"
    "|short|single|six|small|so|state|ten|third|three|top|two|well|wide"
)
_FULL_WIDTH = re.compile("[\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")
_SENTENCE = re.compile("[，。；！？]")
_SPACED = re.compile(f"[{CJK}] [A-Za-z0-9]|[A-Za-z0-9] [{CJK}]")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
# Characters that stand for others: ligatures, letters and digits of full width, radicals, compatible ideographs, Arabic
# letters as they look within a word.
_FORMS = re.compile(
    "[\ufb00-\ufb06\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\u2e80-\u2fdf\uf900-\ufaff\ufb50-\ufdff\ufe70-\ufefc]"
)
# Accents that a font draws as characters of their own behind a letter, and what they are called above it.
_ACCENTS = {"\u02c6": "\u0302", "\u02dc": "\u0303", "\u00b8": "\u0327", "\u00b4": "\u0301", "\u00a8": "\u0308"}
_ACCENT = re.compile("([A-Za-z])([\u02c6\u02dc\u00b8\u00b4\u00a8])(?=[a-z])")
_EDGE = 0.1  # of a page's height, at its top and its bottom: there stand running heads and page numbers
_NEAR = 4  # pages on each side on which a running head of a chapter is looked for
_NUMBERED = 20  # lines of a page that are numbered at the side


class Line(NamedTuple):
    """A line of a page, or the part of it in one column. Box in points from the page's lower left corner.

    size: the height of its letters; font: a number for the font of its first; gaps: how many wide gaps the whole line
    has.
    """

    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float = 10.0
    font: int = 0
    gaps: int = 0


class Page(NamedTuple):
    """label: the printed page number ("iv", "12"), "" where the file names none. pictures: whether it shows any."""

    label: str
    width: float
    height: float
    pictures: bool
    lines: tuple[Line, ...]


class Mark(NamedTuple):
    """An entry of a document's outline: its page from 1, its height there (None: the top), the titles down to it."""

    page: int
    top: float | None
    heading: tuple[str, ...]


def prose(pages: Sequence[Page], marks: Sequence[Mark] = ()) -> tuple[str, list[Place]]:
    """The text of all pages, paragraph by paragraph, and the places of pages and of headings of the outline.

    A paragraph that goes on in the next column or on the next page is one; the place of that page stands within it.
    Notes below the text, and what floats above it, stand behind the paragraph that they interrupt.
    """
    kept = _without_margins(pages)
    sizes = Counter[int]()
    for line in (line for lines in kept for line in lines):
        sizes[round(line.size)] += len(line.text)
    size = sizes.most_common(1)[0][0] if sizes else 10
    of_page: dict[int, list[Mark]] = defaultdict(list)
    for mark in marks:
        of_page[mark.page].append(mark)
    out = _Paragraphs(kept)
    for number, (page, lines) in enumerate(zip(pages, kept, strict=True), 1):
        text, asides = _ordered(lines, size, out.open)
        out.write(text, number, page.label, _marked(text, of_page.get(number, ())))
        if asides:
            out.held.append((asides, number, page.label))
    out.write_held()
    return "".join(out.parts), out.places


class _Paragraphs:
    """The text as it grows, and what waits for the end of a paragraph."""

    def __init__(self, pages: Sequence[Sequence[Line]]) -> None:
        self.parts: list[str] = []
        self.places: list[Place] = []
        self.held: list[tuple[list[Line], int, str]] = []  # lines, page, label
        self._length = 0
        self._heading: tuple[str, ...] = ()
        self._last: Line | None = None  # None: a paragraph has ended
        self._room = 0.0  # how far to the right the lines around the last one reach
        self._height = 0  # lines of the paragraph so far
        self._words = Counter(word for lines in pages for line in lines for word in _WORD.findall(line.text.lower()))
        self._pitches = _pitches(pages)
        cuts = (self._halves(a.text, b.text) for lines in pages for a, b in itertools.pairwise(lines))
        self._hyphenated = any(self._words[(one + two).lower()] for one, two in filter(None, cuts))

    @staticmethod
    def _halves(before: str, text: str) -> tuple[str, str] | None:
        """The parts of a word that a line's end cuts, or at whose hyphen the line ends."""
        if not (before and text[:1].isalpha()) or not (
            before[-1] in _CUT or (before.endswith("-") and before[-2:-1].isalpha())
        ):
            return None
        first, second = re.search(r"[^\W\d_]*$", before[:-1]), re.match(r"[^\W_]*", text)
        return first[0] if first else "", second[0] if second else ""

    @property
    def open(self) -> bool:
        """Whether the text so far ends within a sentence."""
        return self._last is not None and not self.parts[-1].endswith(_ENDS)

    def write_held(self) -> None:
        held, self.held = self.held, []
        for lines, number, label in held:
            self._last = None
            self.write(lines, number, label, {})
        self._last = None

    def write(self, lines: Sequence[Line], number: int, label: str, headings: dict[int, tuple[str, ...]]) -> None:
        """Adds lines of a page, whose headings begin at the lines of these numbers."""
        begun = placed = False
        for at, line in enumerate(lines):
            text = _plain(line.text)
            if not text:
                continue
            glue = self._glue(line, text, begun) if self._last is not None else "\n\n"
            if at in headings:
                glue = "\n\n"
            if glue == "\n\n" and self.held:
                self.write_held()
                placed = False
            if glue == "\t":
                glue = " "
            elif glue == " ":
                glue = self._joined(text)
            glue = glue if self.parts else ""
            if not placed or at in headings:
                self._heading = headings.get(at, self._heading)
                self.places.append(Place(self._length + len(glue), number, label, self._heading))
            self._add(glue + text)
            self._height = 1 if glue.startswith("\n") else self._height + 1
            around = lines[max(0, at - 3) : at + 4]
            self._room = max(near.right for near in around if near.left < line.right and line.left < near.right)
            self._last, begun, placed = line, True, True
        for heading in [heading for at, heading in headings.items() if at >= len(lines)]:
            self._heading = heading

    def _add(self, text: str) -> None:
        self.parts.append(text)
        self._length += len(text)

    def _glue(self, line: Line, text: str, same_page: bool) -> str:
        """What stands between the last line and this one: a blank line, a line break, a tab between
        the cells of a row, or " " for what goes on."""
        last = self._last
        assert last is not None
        before = self.parts[-1]
        if before[-1] in _CUT:
            return " "
        ended, goes_on = before.endswith(_ENDS), text[0].islower() and not before.endswith(_ENDS)
        high = max(last.size, line.size)
        drop = last.bottom - line.bottom
        shared = min(last.top, line.top) - max(last.bottom, line.bottom)
        if same_page and shared > 0.5 * min(last.size, line.size) and line.left >= last.right - 1:
            return "\t"
        first = 1 if is_cjk(text[0]) else len(text.split()[0]) + 1
        needed = first * (line.right - line.left) / len(text)
        fits = self._room - last.right > 1.2 * needed + line.size  # it would have stood on the last line
        beside = line.left >= last.right or last.left >= line.right
        alike = abs(line.size - last.size) < 0.03 * high and last.font == line.font
        if not same_page or (beside and drop < 0):  # the next page or column
            return " " if goes_on or (alike and self._height > 1 and not (ended or fits)) else "\n\n"
        if drop < 0:
            return "\n\n"
        if beside and not goes_on:  # the next row
            return "\n"
        steps = drop / self._pitches.get(round(line.size), max(1.2 * line.size, 1.0))
        if steps > 1.8 or (steps > 1.3 and not goes_on) or (steps > 1.12 and ended):
            return "\n\n"
        if abs(line.size - last.size) > 0.15 * high and not goes_on:
            return "\n\n"
        if _BULLET.match(text):
            return "\n"
        if goes_on:
            return " "
        if max(last.gaps, line.gaps) > 1 or (_is_row(last.text) and _is_row(line.text)):
            return "\n"
        turned = last.font != line.font
        indented = line.left > last.left + 0.6 * high
        outdented = line.left < last.left - 0.6 * high and self._height > 1
        if (fits and (turned or ended)) or ((indented or outdented) and ended):
            return "\n\n"
        return "\n" if fits else " "

    def _joined(self, text: str) -> str:
        """What stands between two parts of a paragraph; takes the hyphen of a cut word away."""
        if not self.parts:
            return ""
        before = self.parts[-1]
        cut = before[-1] in _CUT
        if halves := self._halves(before, text):
            one, two = (half.lower() for half in halves)
            whole, compound = self._words[one + two], self._words[f"{one}-{two}"]
            # Where no word of the document is cut, lines end at the hyphens that compounds have.
            words = not self._hyphenated and min(self._words[one], self._words[two]) > 1  # one is the half itself
            alone = words or _COMPOUNDS.fullmatch(one) or halves[1][:1].isupper()
            keep = compound > whole or bool(alone and not whole)
            if cut or not keep:
                self.parts[-1] = before[:-1] + "-" * keep
                self._length += keep - 1
            return ""
        if cut:
            self.parts[-1] = before[:-1] + "-" * (text[0].isdigit())
            self._length += text[0].isdigit() - 1
            return ""
        if before[-1] in "-–—/@" and before[-2:-1].isalnum() and text[0].isalnum():  # 2018–|19, www.a.org/|b
            return ""
        if "://" in before.split()[-1] and before[-1] in ":/-_%=&?#~":
            return ""
        sides = before[-1], text[0]
        if any(map(_FULL_WIDTH.match, sides)) or all(is_cjk(char) or char in "“”‘’…—" for char in sides):
            return ""
        mixed = any(map(is_cjk, sides))  # "在2018|年": with a space where the text has such spaces
        return "" if mixed and not _SPACED.search(f"{before[-80:]}\n{text[:80]}") else " "


def _marked(lines: Sequence[Line], marks: Sequence[Mark]) -> dict[int, tuple[str, ...]]:
    """The lines at which entries of the outline begin: by their words, else by their height."""
    headings: dict[int, tuple[str, ...]] = {}
    letters = [_letters(line.text) for line in lines] if marks else []
    for mark in marks:
        words = mark.heading[-1].split()
        titles = [title for title in (_letters("".join(words)), _letters("".join(words[1:]))) if len(title) > 2]
        top = mark.top if mark.top is not None else 1e9
        reached = [at for at, line in enumerate(lines) if line.top <= top + line.size]
        short = [
            at for at, text in enumerate(letters)
            if len(text) < 2 * len(mark.heading[-1]) + 12 and any(title in text for title in titles)
        ]  # fmt: skip
        if short:
            at = min(short, key=lambda at: abs(lines[at].top - min(top, lines[0].top)))
        else:
            at = max(reached, key=lambda at: lines[at].top, default=len(lines))
        headings.setdefault(at, mark.heading)
    return headings


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _pitches(pages: Sequence[Sequence[Line]]) -> dict[int, float]:
    """The usual distance of two lines, in points, for each size of letters."""
    steps: dict[int, Counter[float]] = defaultdict(Counter)
    for lines in pages:
        for last, line in itertools.pairwise(lines):
            drop = last.bottom - line.bottom
            if round(last.size) == round(line.size) and 0.7 * line.size < drop < 3 * line.size:
                steps[round(line.size)][round(2 * drop) / 2] += 1
    usual = {size: of.most_common(1)[0] for size, of in steps.items()}
    return {size: pitch for size, (pitch, count) in usual.items() if count > 2}


def _is_row(text: str) -> bool:
    """Whether a line looks like one of a table: half of its words are numbers, and it is no Chinese sentence."""
    cells = text.split()
    numbers = sum(any(char.isdigit() for char in cell) for cell in cells)
    return len(cells) > 2 and 2 * numbers >= len(cells) and not _SENTENCE.search(text)


def _ordered(lines: list[Line], size: float, within: bool) -> tuple[list[Line], list[Line]]:
    """Lines of a page in the order of reading, and those in small letters that stand below the text of their column.

    within: whether a sentence goes on from the page before; then small letters above the text are set aside as well.
    """
    small = [line.size < 0.92 * size for line in lines]
    if small.count(False) < 5:
        small = [False] * len(lines)
    aside = [False] * len(lines)
    for at, line in enumerate(lines):
        if small[at]:
            aside[at] = not any(
                not is_small and other.bottom < line.bottom and other.left < line.right and line.left < other.right
                for other, is_small in zip(lines, small, strict=True)
            )
    if within and True in small and lines:
        for at in range(small.index(False)):
            aside[at] = True
    text = [line for line, is_aside in zip(lines, aside, strict=True) if not is_aside]
    rising = sum(line.bottom > last.top and line.left < last.right and last.left < line.right
                 for last, line in itertools.pairwise(text))  # fmt: skip
    if 3 * rising > len(text):
        text.sort(key=lambda line: -line.bottom)
    return _by_columns(text), [line for line, is_aside in zip(lines, aside, strict=True) if is_aside]


def _by_columns(lines: list[Line]) -> list[Line]:
    """Columns one behind the other where the file goes through them side by side, line by line; tables stay as they
    are: their cells do not go on below."""
    pairs = [
        (left, right)
        for left, right in itertools.pairwise(lines)
        if abs(left.bottom - right.bottom) < 0.4 * left.size and right.left > left.right
        and min(len(left.text), len(right.text)) >= 15
    ]  # fmt: skip
    lefts = Counter(round(right.left / 12) for _, right in pairs)
    gutter = lefts.most_common(1)[0][0] if lefts else 0
    pairs = [(left, right) for left, right in pairs if abs(right.left / 12 - gutter) < 2]
    going_on = sum(_goes_on(part.text) for pair in pairs for part in pair)
    if len(pairs) < 5 or going_on < 0.3 * 2 * len(pairs):
        return lines
    edge = min(right.left for _, right in pairs) - 1
    ordered: list[Line] = []
    left: list[Line] = []
    right: list[Line] = []
    for line in [*sorted(lines, key=lambda line: -line.bottom), None]:
        if line is None or (line.left < edge < line.right - 3):
            ordered += [*_by_columns(left), *_by_columns(right)]
            left, right = [], []
            ordered += [line] if line is not None else []
        else:
            (left if line.right <= edge + 3 else right).append(line)
    return ordered


def _goes_on(text: str) -> bool:
    return text[0].islower() or is_cjk(text[0])


def _without_margins(pages: Sequence[Page]) -> list[list[Line]]:
    """The lines of each page without running heads and feet, page numbers, numbers of lines, stamps at the side, and
    without what is printed twice at one place."""
    rows: dict[tuple[str, int], list[int]] = defaultdict(list)  # (shape, height) -> pages where it stands at the edge
    edges = [_edge(page) for page in pages]
    for number, (page, edge) in enumerate(zip(pages, edges, strict=True)):
        for key in {_shape(page.lines[at]) for at in edge}:
            rows[key].append(number)

    def repeats(line: Line, number: int) -> bool:
        shape, row = _shape(line)
        there = {page for near in (row - 1, row, row + 1) for page in rows.get((shape, near), ())} - {number}
        close = sum(abs(page - number) <= _NEAR for page in there)
        return close >= 2 or len(there) + 1 >= max(3, len(pages) / 4) or len(there) + 1 == len(pages) == 2

    kept = []
    for number, (page, edge) in enumerate(zip(pages, edges, strict=True)):
        numbers = _line_numbers(page.lines)
        drawn: dict[str, list[Line]] = defaultdict(list)
        lines: list[Line] = []
        for at, line in enumerate(page.lines):
            if at in edge and (repeats(line, number) or _is_page_number(line.text)):
                continue
            upright = line.top - line.bottom > 3 * (line.right - line.left) and len(line.text) > 3
            if upright and (line.right < _EDGE * page.width or line.left > (1 - _EDGE) * page.width):
                continue
            if any(abs(one.left - line.left) + abs(one.bottom - line.bottom) < 0.4 * line.size
                   for one in drawn[line.text]):  # fmt: skip
                continue
            drawn[line.text].append(line)
            if at in numbers:
                line = line._replace(text=line.text[len(str(numbers[at])) :].lstrip())
            if line.text:
                lines.append(line)
        kept.append(lines)
    return kept


def _edge(page: Page) -> set[int]:
    """Numbers of the lines at a page's top and bottom: the two outermost rows there, and all of the margin."""
    heights = sorted({round(line.bottom / 4) for line in page.lines})
    outer = {*heights[:2], *heights[-2:]} if len(heights) > 4 else set[int]()
    edge = set()
    for at, line in enumerate(page.lines):
        low, high = line.top / max(page.height, 1), line.bottom / max(page.height, 1)
        wide = 2 * _EDGE if round(line.bottom / 4) in outer else _EDGE
        if low < wide or high > 1 - wide:
            edge.add(at)
    return edge


def _shape(line: Line) -> tuple[str, int]:
    """A line with its numbers made equal, so that "page 3" and "page 4" are one; and its height. Of more than two
    numbers without a word, the numbers themselves: they are a row of a table."""
    text = " ".join(line.text.split())
    shape = re.sub(r"\d+", "#", text)
    if not any(map(str.isalpha, text)) and shape.count("#") > 2:
        shape = text
    return shape, round(line.bottom / 6)


def _is_page_number(text: str) -> bool:
    number = text.strip("-–—.[]() ")
    return number.isdecimal() or (bool(number) and not number.strip("ivxlc"))


def _line_numbers(lines: Sequence[Line]) -> dict[int, int]:
    """Lines that begin with the number of the line, as transcripts have them: 1 to 20 or more, evenly down the page."""
    numbers: dict[int, int] = {}
    heights: list[float] = []
    for at in sorted(range(len(lines)), key=lambda at: (-round(lines[at].bottom / 2), lines[at].left)):
        match = re.match(r"(\d{1,2})(?:\s|$)", lines[at].text)
        if match and int(match[1]) == len(numbers) + 1:
            numbers[at] = int(match[1])
            heights.append(lines[at].bottom)
    steps = [before - after for before, after in itertools.pairwise(heights)]
    even = steps and max(steps) < 1.3 * min(steps)
    return numbers if even and len(numbers) >= _NUMBERED else {}


def _plain(text: str) -> str:
    """A line in the characters that its language is written in, single spaces."""
    if not text.isascii():
        text = _FORMS.sub(lambda char: unicodedata.normalize("NFKC", char[0]), text)
        text = _ACCENT.sub(lambda pair: unicodedata.normalize("NFC", pair[1] + _ACCENTS[pair[2]]), text)
    plain = " ".join(text.split())
    if not plain.isprintable():
        plain = "".join(c for c in plain if c.isprintable() or c in _CUT or unicodedata.category(c) == "Cf")
        for cut in "\ufffe\u0002":  # within a line: the two halves follow each other
            plain = plain[:-1].replace(cut, "") + plain[-1:]
    return plain
