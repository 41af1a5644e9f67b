"""Files that people have -> a Document: its text, and where each stretch of it stands (page, heading, time).

A file's type is told by its content, its ending comes second. Further readers register as entry points of the group
`minimemo.readers`: a name, and a function (content, file name) -> (text, places, notes) or None where it is not theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

from minimemo.errors import InputError, MinimemoError
from minimemo.text.document import Document, Place, decode, file_bytes

_MAIL = re.compile(rb"\A(?:From \S+ .*\r?\n)?(?:[A-Za-z][A-Za-z0-9-]*:[ \t].*\r?\n(?:[ \t].*\r?\n)*){3,}\r?\n")
_PAGE = re.compile(rb"(?i)(?:<\?xml[^>]*>\s*)?(?>(?:<!--(?>.*?-->)\s*)*)<(?:!doctype html|html|head|body)\b", re.DOTALL)
_CUES = re.compile(r"\A\ufeff?\s*(?:WEBVTT\b|\d+\s*\n\d{2}:\d{2}:\d{2},\d{3} --> )")


def read_document(
    source: str | Path,
    encoding: str | None = None,
    password: str | None = None,
    *,
    errors: str = "strict",
    sha256: str | None = None,
) -> Document:
    """Reads a PDF, EPUB, HTML, DOCX, Markdown, SRT, WebVTT, EML, MBOX or text file; "-" is standard input.

    encoding: of text files that have no mark and are not UTF-8. errors: "replace" puts U+FFFD where the bytes of a text
    file are no text, instead of refusing it. password: of an encrypted PDF. sha256: of the bytes that are expected.
    Raises InputError naming the file and the mend.
    """
    content, name = file_bytes(source, sha256)
    shown = "standard input" if str(source) == "-" else str(source)
    kind = _kind(content, Path(name).suffix.lower())
    places: list[Place] = []
    notes: list[str] = []
    for further in entry_points(group="minimemo.readers"):
        try:
            read = further.load()(content, shown)
        except MinimemoError:
            raise
        except Exception as error:
            why = f"{shown}: the reader {further.name!r} failed ({error}); mend or uninstall it"
            raise MinimemoError(why) from error
        if read is not None:
            text, places, notes = read
            return _document(text, name, places, notes)
    if kind == "pdf":
        from minimemo.readers.pdf import read_pdf

        text, places, notes = read_pdf(content, shown, password)
    elif kind == "epub":
        from minimemo.readers.epub import read_epub

        text, places, notes = read_epub(content, shown)
    elif kind == "docx":
        from minimemo.readers.office import read_docx

        text, places, notes = read_docx(content, shown)
    elif kind == "html":
        from minimemo.readers.html import read_html

        page = read_html(content, shown)
        text, places = page.text, page.places
    elif kind == "mail":
        from minimemo.readers.plain import read_mail

        text, places = read_mail(content, shown)
    elif kind in _REFUSED:
        raise InputError(f"{shown}: {_REFUSED[kind]}")
    else:
        text = decode(content, encoding, shown, errors)
        if kind == "markdown":
            from minimemo.readers.plain import read_markdown

            text, places = read_markdown(text)
        elif _CUES.match(text):
            from minimemo.readers.plain import read_subtitles

            text, places = read_subtitles(text)
    return _document(text, name, places, notes)


ENDINGS = {
    ".pdf", ".epub", ".html", ".htm", ".xhtml", ".docx", ".md", ".markdown", ".srt", ".vtt", ".eml", ".mbox", ".txt",
}  # fmt: skip


def documents_in(sources: Sequence[str]) -> list[str]:
    """The files of which memos are made: those named, and of a folder those below it that end as documents do.

    Raises InputError for a folder without any, or for a memo.
    """
    documents: list[str] = []
    for source in sources:
        if not Path(source).is_dir():
            documents.append(source)
            continue
        if (Path(source) / "manifest.json").exists():
            raise InputError(f"{source}: is a memo; name the document that it was built from, or ask it")
        within = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        within = [path for path in within if not any(part.startswith(".") for part in path.relative_to(source).parts)]
        if not within:
            raise InputError(f"{source}: no documents are in this folder ({', '.join(sorted(ENDINGS))})")
        documents += map(str, within)
    return list(dict.fromkeys(documents))


_REFUSED = {
    "rtf": "a Rich Text file; save it as .docx, .html or plain text",
    "doc": "an old Word, Excel or PowerPoint file; save it as .docx or PDF",
    "zip": "a ZIP archive; unpack it, and build what is in it",
}


def _document(text: str, name: str, places: list[Place], notes: list[str]) -> Document:
    """places behind each other that say the same, or begin at one character, become one."""
    merged: list[Place] = []
    for place in sorted(places, key=lambda place: place.start):
        if merged and merged[-1].start == place.start:
            merged[-1] = place
        elif not merged or replace(merged[-1], start=place.start) != place:
            merged.append(place)
    return replace(Document.of(text, name), places=tuple(merged), notes=tuple(notes))


def _kind(content: bytes, ending: str) -> str:
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"%PDF-" in content[:1024] or ending == ".pdf":
        return "pdf"
    if content.startswith(b"PK\x03\x04"):
        if b"application/epub+zip" in content[:128] or ending == ".epub":
            return "epub"
        return "docx" if b"word/" in content else "zip"
    if ending in (".epub", ".docx"):
        return ending[1:]
    if content.startswith(b"\xd0\xcf\x11\xe0"):
        return "doc"
    if start.startswith(b"{\\rtf"):
        return "rtf"
    if _PAGE.match(start):
        return "html"
    if ending in (".html", ".htm", ".xhtml") and b"<" in start:
        return "html"
    has_sender = re.search(rb"(?mi)^(?:from|subject):", content[:8192])
    if ending in (".eml", ".mbox") or (has_sender and _MAIL.match(content[:65536])):
        return "mail"
    return "markdown" if ending in (".md", ".markdown") else "text"
