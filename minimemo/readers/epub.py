"""EPUB -> the chapters of a book in reading order, each with its heading; by the OPF package that the book names."""

from __future__ import annotations

import io
import posixpath
import zipfile
from urllib.parse import unquote
from xml.etree import ElementTree

from minimemo.errors import InputError
from minimemo.readers.html import Text, read_html
from minimemo.text.document import Place

LARGEST = 256 << 20  # bytes of a book's text, unpacked
_NAMES = {"c": "urn:oasis:names:tc:opendocument:xmlns:container", "o": "http://www.idpf.org/2007/opf",
          "d": "http://purl.org/dc/elements/1.1/", "n": "http://www.daisy.org/z3986/2005/ncx/"}  # fmt: skip


def read_epub(content: bytes, name: str) -> tuple[str, list[Place], list[str]]:
    """The text of a book, its places (headings) and notes.

    Raises InputError for what is damaged, too large, or locked.
    """
    try:
        book = zipfile.ZipFile(io.BytesIO(content))
        names = set(book.namelist())
        locked = book.read("META-INF/encryption.xml") if "META-INF/encryption.xml" in names else b""
        if locked and b"idpf.org/2008/embedding" not in locked:  # which locks fonts only
            raise InputError(f"{name}: its text is encrypted (DRM); only the shop's reader opens it")
        if sum(book.getinfo(inner).file_size for inner in names if inner.endswith(("html", "htm", "xml"))) > LARGEST:
            raise InputError(f"{name}: unpacks to more than {LARGEST >> 20} MB of text; split it")
        opf = _root_file(book)
        package = _xml(book, opf)
        folder = posixpath.dirname(opf)
        manifest = {item.get("id"): item for item in package.iterfind("o:manifest/o:item", _NAMES)}
        titles = _titles(book, package, manifest, folder)
        text = Text()
        for itemref in package.iterfind("o:spine/o:itemref", _NAMES):
            item = manifest.get(itemref.get("idref"))
            if item is None or itemref.get("linear") == "no" or "html" not in item.get("media-type", ""):
                continue
            path = _join(folder, item.get("href", ""))
            text.end_block(blank=True)
            if path in titles:
                text.begin(heading=(titles[path],))
            read_html(book.read(path), target=text)
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"{name}: a damaged EPUB ({error}); get it again") from None
    return text.text, text.places, []


def _root_file(book: zipfile.ZipFile) -> str:
    found = _xml(book, "META-INF/container.xml").find("c:rootfiles/c:rootfile", _NAMES)
    if found is None:
        raise KeyError("no package is named")
    return found.get("full-path", "")


def _xml(book: zipfile.ZipFile, path: str) -> ElementTree.Element:
    """A part of the book as XML. Documents that define entities are refused: they may unfold without end."""
    content = book.read(path)
    if b"<!ENTITY" in content:
        raise KeyError(f"{path} defines entities")
    return ElementTree.fromstring(content)


def _join(folder: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote(href.split("#")[0])))


def _titles(
    book: zipfile.ZipFile, package: ElementTree.Element, manifest: dict[str | None, ElementTree.Element], folder: str
) -> dict[str, str]:
    """What the table of contents calls each file (its first entry)."""
    titles: dict[str, str] = {}
    spine = package.find("o:spine", _NAMES)
    for item in manifest.values():
        path = _join(folder, item.get("href", ""))
        if "nav" in (item.get("properties") or "").split():
            from selectolax.lexbor import LexborHTMLParser

            for link in LexborHTMLParser(book.read(path)).css("nav a"):
                target = _join(posixpath.dirname(path), link.attributes.get("href") or "")
                titles.setdefault(target, " ".join(link.text().split()))
        elif spine is not None and item.get("id") == spine.get("toc"):
            for point in _xml(book, path).iterfind(".//n:navPoint", _NAMES):
                label, file = point.find("n:navLabel/n:text", _NAMES), point.find("n:content", _NAMES)
                if label is not None and file is not None and label.text:
                    target = _join(posixpath.dirname(path), file.get("src", ""))
                    titles.setdefault(target, " ".join(label.text.split()))
    return titles
