"""HTML -> the text a reader sees, with its headings. EPUB chapters and DOCX come through here as well."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minimemo.errors import InputError
from minimemo.text.document import Place

# Elements that show nothing, or that are for doing rather than for reading.
_HIDDEN = {
    "script", "style", "noscript", "template", "svg", "head", "nav", "iframe", "object", "button", "select", "textarea",
    "datalist", "dialog",
}  # fmt: skip
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset",
    "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main",
    "ol", "p", "pre", "section", "table", "tbody", "tfoot", "thead", "tr", "ul",
}  # fmt: skip
_PARAGRAPHS = {
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "table", "ul", "ol", "dl", "figure", "section",
    "aside", "article",
}  # fmt: skip
_DEPTH = 400  # elements within each other that are followed; what lies deeper is taken as it comes
_DEEPEST = 3000
_TAG = re.compile(rb"<(/?)([A-Za-z][A-Za-z0-9]*)")
_ATTRIBUTE = rb"""[\s/]*+(?:=[^\s/>=]*+|[^\s/>=]++)(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>]*+))?+"""
_ATTRIBUTES = 1000  # of one element
_MANY = re.compile(rb"<[A-Za-z][^\s/>]*+(?:%b){0,%d}+(%b)?" % (_ATTRIBUTE, _ATTRIBUTES, _ATTRIBUTE))
_CLOSING = frozenset(
    b"p li dt dd td th tr option area base br col embed hr img input link meta source track wbr path rect".split()
)
_UNSEEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden")
_MENUS = {"navigation", "menu", "menubar", "search", "dialog"}
_NOTE = re.compile(r"\b(?:footnote|endnote|rearnote)\b")  # of epub:type and role; not those of the whole list
_BACK = re.compile(r"[↑↩↵⏎^\ufe0e\ufe0f\s]*")  # the text of a link from a note back to where it is called


@dataclass
class Anchors:
    """What begins at elements of a page, by their ids: headings of a table of contents, and printed page numbers."""

    headings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)


class Text:
    """Text as it grows, block by block, and the places in it."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self._parts: list[str] = []
        self._length = 0
        self._break = ""  # what stands before the next text: a line break, a blank line
        self._space = False  # whether white space ended what was added last
        self._item = ""  # the mark of a list's item that nothing has followed yet
        self._here = Place(0)
        self._above: tuple[str, ...] = ()  # headings of the table of contents
        self._levels: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def end_block(self, blank: bool) -> None:
        """Begins a new line, or a new paragraph, with the next text."""
        if self._parts and not self._item:
            self._break = "\n\n" if blank or self._break == "\n\n" else "\n"

    def item(self, mark: str) -> None:
        """Begins an item of a list; one without text leaves nothing."""
        self._item = mark

    def add(self, text: str) -> None:
        """Adds text of the current block; white space around it is folded into one space."""
        words = " ".join(text.split())
        if not words:
            self._space = bool(text) or self._space
            return
        spaced = (text[:1].isspace() or self._space) and not self._break and not self._item and bool(self._parts)
        self.verbatim(" " * spaced + words)
        self._space = text[-1:].isspace()

    def verbatim(self, text: str) -> None:
        """Adds text as it stands."""
        added = self._break + self._item + text
        self._parts.append(added)
        self._length += len(added)
        self._break, self._item, self._space = "", "", False

    def begin(self, **here: Any) -> None:
        """A place that begins with the next text, after the break before it: what changes of page, heading, time."""
        self._here = replace(self._here, start=self._length + len(self._break), **here)
        self.places.append(self._here)

    def chapter(self, path: tuple[str, ...]) -> None:
        """What follows stands below this heading of the table of contents."""
        self._above, self._levels = path, []
        self.begin(heading=path)

    def page(self, label: str) -> None:
        """A printed page begins."""
        self.begin(page=int(label) if label.isdecimal() and len(label) < 7 else None, label=label)

    def heading(self, level: int, title: str) -> None:
        """A heading: what follows stands below it and below those of a higher level."""
        title = " ".join(title.split())
        self._levels = [(above, name) for above, name in self._levels if above < level]
        if not (self._above and _same(title, self._above[-1])):
            self._levels.append((level, title))
        self.end_block(blank=True)
        self.begin(heading=(*self._above, *(name for _, name in self._levels)))


def _same(title: str, other: str) -> bool:
    one, two = ("".join(filter(str.isalnum, text.casefold())) for text in (title, other))
    return bool(one) and (one in two or two in one)


def read_html(content: bytes | str, name: str, target: Text | None = None, anchors: Anchors | None = None) -> Text:
    """The text of a page, its title first, notes last; without its menus, and without its asides unless it is added to
    a `target`, as a part of a book is.

    Raises InputError for elements within each other without end, and for one of attributes without end: the time to
    parse them grows with their square.
    """
    from selectolax.lexbor import LexborHTMLParser

    raw = content.encode() if isinstance(content, str) else content
    if any(tag[1] for tag in _MANY.finditer(raw)):
        raise InputError(f"{name}: a page with an element of more than {_ATTRIBUTES:,} attributes; save its text")
    if _deepest(raw) > _DEEPEST:
        raise InputError(f"{name}: a page of elements within each other, {_DEEPEST:,} deep and more; save its text")
    tree = LexborHTMLParser(content)
    text = target or Text()
    if target is None and (title := tree.css_first("title")) is not None and title.text().strip():
        first = tree.css_first("h1")
        if first is None or " ".join(first.text().split()) not in " ".join(title.text().split()):
            text.add(title.text())
            text.end_block(blank=True)
    if tree.body is not None:
        notes = _walk(tree.body, text, _HIDDEN if target else _HIDDEN | {"aside"}, anchors or Anchors())
        for note in notes:
            text.end_block(blank=True)
            _walk(note, text, _HIDDEN, Anchors())
            text.end_block(blank=True)
    return text


def _deepest(content: bytes) -> int:
    """How deep elements stand within each other, those that close by themselves not counted."""
    depth = deepest = 0
    for closes, tag in (match.groups() for match in _TAG.finditer(content)):
        if tag.lower() not in _CLOSING:
            depth = max(depth - 1, 0) if closes else depth + 1
            deepest = max(depth, deepest)
    return deepest


def _walk(root: Any, text: Text, hidden: set[str], anchors: Anchors) -> list[Any]:
    """Goes through the elements in the order of the document; a stack of its own, as pages may be deep. Gives the notes
    that it passed."""
    notes: list[Any] = []
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
        if tag.startswith(("-", "!")):
            continue
        about = node.attributes
        kind = f"{about.get('epub:type') or ''} {about.get('role') or ''}".replace("doc-", "")
        if node is not root and _NOTE.search(kind):
            notes.append(node)
            continue
        if tag in hidden or "hidden" in about or about.get("aria-hidden") == "true":
            continue
        if _UNSEEN.search(about.get("style") or "") or not _MENUS.isdisjoint(kind.split()):
            continue
        _begin(about, kind, text, anchors)
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
        elif tag == "a" and (about.get("href") or "").startswith("#") and _BACK.fullmatch(node.text()):
            continue
        else:
            if tag in _BLOCKS:
                text.end_block(blank=tag in _PARAGRAPHS)
                stack.append((node, True, depth))
            if tag == "li":
                text.item(_mark(node, about))
            if depth > _DEPTH:
                text.add(node.text(separator=" "))
                continue
            stack.extend((child, False, depth + 1) for child in reversed(list(node.iter(include_text=True))))
    return notes


def _begin(about: Mapping[str, str | None], kind: str, text: Text, anchors: Anchors) -> None:
    """The heading or the page that begins at an element."""
    name = about.get("id") or ""
    if name and name in anchors.headings:
        text.chapter(anchors.headings[name])
    label = (name and anchors.pages.get(name)) or (
        "pagebreak" in kind and (about.get("aria-label") or about.get("title"))
    )
    if label:
        text.page(label.strip().removesuffix("."))


def _mark(item: Any, about: Mapping[str, str | None]) -> str:
    """What stands before an item of a list: its number, the number of the note that it is, or a hyphen."""
    if item.parent is None or item.parent.tag != "ol":
        return "- "
    number, before = 1, item.prev
    while before is not None and number < 1000:
        number, before = number + (before.tag == "li"), before.prev
    is_note = re.fullmatch(r"(?:foot|end)note-\d+", about.get("id") or "")  # mammoth's, which it calls [1]
    return f"[{number}] " if is_note else f"{number}. "


def _rows(table: Any) -> Iterator[str]:
    """A table row by row, its cells between bars."""
    for row in table.css("tr"):
        cells = [" ".join(cell.text(separator=" ").split()) for cell in row.iter() if cell.tag in ("td", "th")]
        if any(cells):
            yield " | ".join(cells)
