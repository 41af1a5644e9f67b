"""EPUB -> the chapters of a book in reading order, with the headings of its table of contents and its printed pages."""

from __future__ import annotations

import io
import posixpath
import re
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from minimemo.errors import InputError
from minimemo.readers.html import Anchors, Text, read_html
from minimemo.text.document import Place

LARGEST = 256 << 20  # bytes of a book's text, unpacked
_NAMES = {"c": "urn:oasis:names:tc:opendocument:xmlns:container", "o": "http://www.idpf.org/2007/opf",
          "n": "http://www.daisy.org/z3986/2005/ncx/"}  # fmt: skip
_FONTS_ONLY = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_LOCKS = {
    "META-INF/sinf.xml": "Apple FairPlay", "META-INF/license.lcpl": "Readium LCP", "META-INF/rights.xml": "Adobe ADEPT",
}  # fmt: skip


def read_epub(content: bytes, name: str) -> tuple[str, list[Place], list[str]]:
    """The text of a book, its places (headings, printed pages) and notes.

    Raises InputError for what is damaged, too large, or locked.
    """
    try:
        book = zipfile.ZipFile(io.BytesIO(content))
        _check(book, name)
        opf = _root_file(book)
        package, folder = _xml(book, opf), posixpath.dirname(opf)
        manifest = {item.get("id"): item for item in package.iterfind("o:manifest/o:item", _NAMES)}
        contents = _contents(book, package, manifest, folder)
        text, read, missing = Text(), set[str](), 0
        for itemref in package.iterfind("o:spine/o:itemref", _NAMES):
            item = manifest.get(itemref.get("idref"))
            if item is None or itemref.get("linear") == "no" or "html" not in item.get("media-type", ""):
                continue
            path = _join(folder, item.get("href", ""))
            if path in read:
                continue
            read.add(path)
            if path not in book.NameToInfo:
                missing += 1
                continue
            anchors = contents[path]
            text.end_block(blank=True)
            if "" in anchors.headings:
                text.chapter(anchors.headings[""])
            if "" in anchors.pages:
                text.page(anchors.pages[""])
            read_html(book.read(path), name, text, anchors)
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, NotImplementedError, RuntimeError, EOFError,
            ValueError, struct.error, zlib.error) as error:  # fmt: skip
        raise InputError(f"{name}: a damaged EPUB ({error}); get it again") from None
    notes = [f"{missing} of {len(read)} parts are not in the file: their text is not read"] if missing else []
    return text.text, text.places, notes


def _check(book: zipfile.ZipFile, name: str) -> None:
    """Raises InputError for a book that is locked or too large."""
    names = book.NameToInfo
    if "META-INF/encryption.xml" in names:
        used = re.findall(rb"EncryptionMethod[^>]*Algorithm=[\"']([^\"']*)", book.read("META-INF/encryption.xml"))
        if not all(method.decode(errors="replace") in _FONTS_ONLY for method in used):
            lock = next((lock for file, lock in _LOCKS.items() if file in names), "DRM")
            raise InputError(f"{name}: its text is encrypted ({lock}); only the shop's reader opens it")
    texts = (info.file_size for inner, info in names.items() if inner.endswith(("html", "htm", "xml", "opf", "ncx")))
    if sum(texts) > LARGEST:
        raise InputError(f"{name}: unpacks to more than {LARGEST >> 20} MB of text; split it")


def _root_file(book: zipfile.ZipFile) -> str:
    named = _xml(book, "META-INF/container.xml").find("c:rootfiles/c:rootfile", _NAMES)
    if named is None:
        raise KeyError("no package is named")
    return named.get("full-path", "")


def _xml(book: zipfile.ZipFile, path: str) -> ElementTree.Element:
    """A part of the book as XML. Documents that define entities are refused: they may unfold without end."""
    content = book.read(path)
    if b"<!ENTITY" in content.replace(b"\0", b""):
        raise KeyError(f"{path} defines entities")
    return ElementTree.fromstring(content)


def _join(folder: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote(href.split("#")[0])))


def _contents(
    book: zipfile.ZipFile, package: ElementTree.Element, manifest: dict[str | None, ElementTree.Element], folder: str
) -> dict[str, Anchors]:
    """What the tables of contents and of printed pages say of each file; of its beginning, under the name ""."""
    contents: dict[str, Anchors] = defaultdict(Anchors)
    spine = package.find("o:spine", _NAMES)
    for item in manifest.values():
        path = _join(folder, item.get("href", ""))
        is_nav = "nav" in (item.get("properties") or "").split()
        if path not in book.NameToInfo or not (is_nav or (spine is not None and item.get("id") == spine.get("toc"))):
            continue
        for href, heading, label in _nav(book.read(path)) if is_nav else _ncx(_xml(book, path)):
            anchors = contents[_join(posixpath.dirname(path), href)]
            at = unquote(href.partition("#")[2])
            if heading:
                anchors.headings.setdefault(at, heading)
            elif label:
                anchors.pages.setdefault(at, label)
    return contents


def _nav(content: bytes) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Links of the navigation of an EPUB 3: target, headings down to it or none, printed page or none."""
    from selectolax.lexbor import LexborHTMLParser

    for nav in LexborHTMLParser(content).css("nav"):
        kind = nav.attributes.get("epub:type") or "toc"
        for link in nav.css("a") if kind in ("toc", "page-list") else ():
            title, href = " ".join(link.text().split()), link.attributes.get("href") or ""
            if kind == "page-list":
                yield href, (), title
                continue
            path, item, depth = [title], link.parent, 0
            while item is not None and item.tag != "nav" and depth < 20:
                item, depth = item.parent, depth + 1
                if item is not None and item.tag == "li" and (above := item.css_first("a, span")) is not None:
                    name = " ".join(above.text().split())
                    path += [name] if name != path[-1] else []
            yield href, tuple(reversed(path)), ""


def _ncx(root: Any) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """The same of an EPUB 2."""
    stack: list[tuple[Any, tuple[str, ...]]] = [
        (point, ()) for point in reversed(root.findall("n:navMap/n:navPoint", _NAMES))
    ]
    while stack:
        point, above = stack.pop()
        href, title = _entry(point)
        path = (*above, title) if title else above
        yield href, path, ""
        if len(path) < 20:
            stack += [(inner, path) for inner in reversed(point.findall("n:navPoint", _NAMES))]
    for target in root.iterfind("n:pageList/n:pageTarget", _NAMES):
        href, label = _entry(target)
        yield href, (), label


def _entry(point: Any) -> tuple[str, str]:
    label, target = point.find("n:navLabel/n:text", _NAMES), point.find("n:content", _NAMES)
    title = " ".join((label.text or "").split()) if label is not None else ""
    return target.get("src", "") if target is not None else "", title
