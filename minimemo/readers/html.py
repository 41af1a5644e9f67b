"""HTML -> the text a reader sees, with its headings. EPUB chapters and DOCX come through here as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minimemo.text.document import Place

# Elements that show nothing, or that stand around the text of a page rather than in it.
_HIDDEN = {
    "script", "style", "noscript", "template", "svg", "head", "nav", "aside", "iframe", "object", "form", "button",
}  # fmt: skip
_BLOCKS = {
    "address", "article", "blockquote", "body", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption", "figure",
    "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main", "ol", "p", "pre", "section",
    "table", "tbody", "tfoot", "thead", "tr", "ul", "caption",
}  # fmt: skip
_PARAGRAPHS = {
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "table", "ul", "ol", "dl", "figure", "section",
}  # fmt: skip
_DEPTH = 400  # elements within each other that are followed; what lies deeper is taken as it comes


class Text:
    """Text as it grows, block by block, and the places in it."""

    def __init__(self, heading: tuple[str, ...] = ()) -> None:
        self.places: list[Place] = []
        self._parts: list[str] = []
        self._length = 0
        self._break = ""  # what stands before the next text: a line break, a blank line
        self._space = False  # whether white space ended what was added last
        self._heading = heading
        self._levels: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def end_block(self, blank: bool) -> None:
        """Begins a new line, or a new paragraph, with the next text."""
        if self._parts:
            self._break = "\n\n" if blank or self._break == "\n\n" else "\n"

    def add(self, text: str) -> None:
        """Adds text of the current block; white space around it is folded into one space."""
        words = " ".join(text.split())
        if not words:
            self._space = bool(text) or self._space
            return
        spaced = (text[:1].isspace() or self._space) and not self._break and bool(self._parts)
        self.verbatim(" " * spaced + words)
        self._space = text[-1:].isspace()

    def verbatim(self, text: str) -> None:
        """Adds text as it stands."""
        self._parts.append(self._break + text)
        self._length += len(self._break) + len(text)
        self._break, self._space = "", False

    def begin(self, heading: tuple[str, ...] = (), time: str = "") -> None:
        """A place that begins with the next text: after the break before it."""
        self.places.append(Place(self._length + len(self._break), heading=heading, time=time))

    def heading(self, level: int, title: str) -> None:
        """A heading: what follows stands below it and below those of a higher level."""
        self._levels = [(above, name) for above, name in self._levels if above < level]
        self._levels.append((level, " ".join(title.split())))
        self.end_block(blank=True)
        self.begin(heading=(*self._heading, *(name for _, name in self._levels)))


def read_html(content: bytes | str, heading: tuple[str, ...] = (), target: Text | None = None) -> Text:
    """The text of a page, its title first. `heading`: what stands above all of it (a book's chapter)."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(content)
    text = target or Text(heading)
    if target is None and (title := tree.css_first("title")) is not None and title.text().strip():
        first = tree.css_first("h1")
        if first is None or " ".join(first.text().split()) not in " ".join(title.text().split()):
            text.add(title.text())
            text.end_block(blank=True)
    if tree.body is not None:
        _walk(tree.body, text)
    return text


def _walk(root: Any, text: Text) -> None:
    """Goes through the elements in the order of the document; a stack of its own, as pages may be deep."""
    stack: list[tuple[Any, bool, int]] = [(root, False, 0)]
    while stack:
        node, leaving, depth = stack.pop()
        tag = node.tag
        if leaving:
            text.end_block(blank=tag in _PARAGRAPHS)
            continue
        if tag == "-text":
            text.add(node.text_content or "")
            continue
        if tag in _HIDDEN or tag.startswith(("-", "!")) or "hidden" in node.attributes:
            continue
        if tag == "br":
            text.end_block(blank=False)
        elif tag == "pre":
            text.end_block(blank=True)
            if body := node.text().strip("\n"):
                text.verbatim(body)
            text.end_block(blank=True)
        elif tag == "table":
            text.end_block(blank=True)
            for row in _rows(node):
                text.add(row)
                text.end_block(blank=False)
            text.end_block(blank=True)
        elif tag[0] == "h" and tag[1:].isdecimal() and node.text().strip():
            text.heading(int(tag[1:]), node.text())
            text.add(node.text())
            text.end_block(blank=True)
        else:
            if tag in _BLOCKS:
                text.end_block(blank=tag in _PARAGRAPHS)
                stack.append((node, True, depth))
            if tag == "li":
                text.add("- ")
            if depth > _DEPTH:
                text.add(node.text(separator=" "))
                continue
            stack.extend((child, False, depth + 1) for child in reversed(list(node.iter(include_text=True))))


def _rows(table: Any) -> Iterator[str]:
    """A table row by row, its cells between bars."""
    for row in table.css("tr"):
        cells = [" ".join(cell.text(separator=" ").split()) for cell in row.iter() if cell.tag in ("td", "th")]
        if any(cells):
            yield " | ".join(cells)
