"""Documents that are made to hang, to swell or to reach elsewhere when they are read."""

from __future__ import annotations

import base64
import os
import resource
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from archives import changed, zipped
from ground import Case, Ground, bounded, child

_MEMORY = 1_500_000  # kB that reading a document may take
_SECONDS = 40.0
Make = Callable[[], bytes]
_SECRET = "the year's work"
_zip = partial(zipped, compression=zipfile.ZIP_DEFLATED)


def documents(ground: Ground) -> Iterator[Case]:
    """Each is read, or refused in one line, in bounded time and memory; nothing of another file is in its text."""

    def case(name: str, make: Make) -> str:
        place = ground.fresh()
        (place / "thesis.txt").write_text(_SECRET)
        path = place / name
        path.write_bytes(make().replace(b"$THESIS", os.fsencode(place / "thesis.txt")))

        def read() -> None:
            from minimemo.readers import read_document
            from minimemo.readers.pdf import MEMORY

            with bounded(_MEMORY):
                text = read_document(path).text
                text.encode()
                print(len(text))
                assert _SECRET not in text, "it has another file's text"
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            assert used < MEMORY >> 10, f"{used} kB in the child that reads PDFs"

        ended = child(read, seconds=_SECONDS)
        if ended.out.count("\n") > 1:
            return f"said {ended.out[:200]!r}"
        left = {entry.name for entry in place.iterdir()} - {name, "thesis.txt"}
        return ended.fell(0) or (f"left {left}" if left else "")

    for group in (_word, _books, _pages, _mails, _plain, _pdfs):
        for name, (file, make) in group().items():
            yield Case(name, case, file, make)


_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
_LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
_BILLION = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "lol">{_LAUGHS}]>'
_OUTER = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e SYSTEM "file://$THESIS">]>'
_OUTER_DTD = '<?xml version="1.0"?><!DOCTYPE a SYSTEM "file://$THESIS">'


def _docx(body: str, head: str = "", **more: str | bytes) -> bytes:
    named = {f"word/{name}.xml": content for name, content in more.items() if name != "relations"}
    relations = more.get("relations", "")
    return _zip({
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
        "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"/>',
        "word/_rels/document.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/'
        f'relationships">{relations if isinstance(relations, str) else ""}</Relationships>',
        "word/document.xml": f"{head}<w:document {_W} {_R}><w:body>{body}</w:body></w:document>",
        **named,
    })  # fmt: skip


def _lied(content: bytes, size: int) -> bytes:
    """A zip file that says that each of its members unpacks to so many bytes."""
    return changed(changed(content, 24, "<L", size), 22, "<L", size, mark=b"PK\x03\x04")


def _word() -> dict[str, tuple[str, Make]]:
    said = "<w:p><w:r><w:t>The lamp was lit.</w:t></w:r></w:p>"
    style = f'<w:styles {_W}><w:style w:type="paragraph" w:styleId="a"><w:basedOn w:val="a"/></w:style></w:styles>'
    called = '<w:p><w:r><w:footnoteReference w:id="1"/></w:r></w:p>'
    note = f'<w:footnotes {_W}><w:footnote w:id="1">{called}</w:footnote></w:footnotes>'
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/image"
    far = f'<Relationship Id="r1" Type="{kind}" Target="{{}}" {{}}/>'
    picture = (
        '<w:p><w:r><w:drawing><wp:inline xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing">'
        '<a:graphic xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><a:graphicData>'
        '<pic:pic xmlns:pic="http://schemas.openxmlformats.org/drawingml/2006/picture"><pic:blipFill>'
        '<a:blip r:link="r1" r:embed="r1"/></pic:blipFill></pic:pic></a:graphicData>'
        "</a:graphic></wp:inline></w:drawing></w:r></w:p>"
    )
    wide = '<w:tcPr><w:gridSpan w:val="1000000000"/></w:tcPr>'
    cells = f"<w:tbl><w:tr><w:tc>{wide}{said}</w:tc></w:tr></w:tbl>"
    tables = "<w:tbl><w:tr><w:tc>" * 400 + said + "</w:tc></w:tr></w:tbl>" * 400
    makes: dict[str, Make] = {
        "as it should be": lambda: _docx(said),
        "300 MB of spaces": lambda: _docx(" " * 300_000_000),
        "300 MB that say that they are 9 bytes": lambda: _lied(_docx(said + " " * 300_000_000), 9),
        "a billion laughs": lambda: _docx("<w:p><w:r><w:t>&l9;</w:t></w:r></w:p>", _BILLION),
        "entities in UTF-16": lambda: _zip({"word/document.xml": f"{_BILLION}<a>&l9;</a>".encode("utf-16")}),
        "an entity of another file": lambda: _docx("<w:p><w:r><w:t>&e;</w:t></w:r></w:p>", _OUTER),
        "a DTD of another file": lambda: _docx(said, _OUTER_DTD),
        "a link to a file": lambda: _docx(picture, relations=far.format("file://$THESIS", 'TargetMode="External"')),
        "a picture outside": lambda: _docx(picture + said, relations=far.format("../../../../$THESIS", "")),
        "a style of its own kind": lambda: _docx('<w:p><w:pPr><w:pStyle w:val="a"/></w:pPr></w:p>', styles=style),
        "a note in itself": lambda: _docx(called, footnotes=note),
        "a cell of 10**9 columns": lambda: _docx(cells),
        "tables within each other": lambda: _docx(tables),
        "30,000 paragraphs": lambda: _docx(said * 30_000),
        "nothing in it": lambda: _zip({"word/x": b""}),
        "no XML": lambda: _zip({"word/document.xml": bytes(range(256))}),
        "another encoding": lambda: _docx(said, '<?xml version="1.0" encoding="utf-7"?>'),
        "20,000 members": lambda: _zip({"word/document.xml": b"", **{f"word/{n}.xml": b"" for n in range(20_000)}}),
    }  # fmt: skip
    return {f"Word: {name}": ("doc.docx", make) for name, make in makes.items()}


def _epub(chapter: str | bytes, *, opf: str = "", container: str | bytes = "", **more: str | bytes) -> bytes:
    path = "OEBPS/book.opf"
    items = "".join(f'<item id="{name}" href="{name}.xhtml" media-type="application/xhtml+xml"/>' for name in more)
    package = opf or (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
        '<item id="c" href="c.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
        f'<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>{items}</manifest>'
        '<spine toc="ncx"><itemref idref="c"/></spine></package>'
    )
    return _zip({
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": container or '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        f'<rootfiles><rootfile full-path="{path}"/></rootfiles></container>',
        path: package, "OEBPS/c.xhtml": chapter,
        **{f"OEBPS/{name.replace('_', '.')}": content for name, content in more.items()},
    })  # fmt: skip


def _books() -> dict[str, tuple[str, Make]]:
    said = "<html><body><p>The lamp was lit.</p></body></html>"
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>{}</rootfiles></container>'
    )
    outer = container.format('<rootfile full-path="../../../../../../$THESIS"/>')

    def spine(items: list[tuple[str, str]], times: int = 1) -> str:
        parts = "".join(f'<item id="{i}" href="{href}" media-type="application/xhtml+xml"/>' for i, href in items)
        order = "".join(f'<itemref idref="{i}"/>' for i, _ in items) * times
        package = '<package xmlns="http://www.idpf.org/2007/opf">'
        return f"{package}<manifest>{parts}</manifest><spine>{order}</spine></package>"

    ncx = '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{}</navMap></ncx>'
    points = "<navPoint><navLabel><text>x</text></navLabel>" * 3_000 + "</navPoint>" * 3_000
    nav = '<nav epub:type="toc"><ol>' + '<li><a href="c.xhtml">x</a><ol>' * 3_000
    makes: dict[str, Make] = {
        "as it should be": lambda: _epub(said),
        "400 MB of spaces": lambda: _epub(b" " * 400_000_000),
        "300 MB that say that they are 9 bytes": lambda: _lied(_epub(said + " " * 300_000_000), 9),
        "a chapter of a million paragraphs": lambda: _epub("<html><body>" + "<p>a</p>" * 1_000_000),
        "a billion laughs": lambda: _epub(f"{_BILLION}<html><body><p>&l9;</p></body></html>"),
        "laughs in the package": lambda: _epub(said, opf=f"{_BILLION}<package>&l9;</package>"),
        "laughs in the container, in UTF-16": lambda: _epub(said, container=f"{_BILLION}<a>&l9;</a>".encode("utf-16")),
        "another file's text": lambda: _epub(f"{_OUTER}<html><body><p>&e;</p></body></html>"),
        "a package elsewhere": lambda: _epub(said, container=outer),
        "chapters elsewhere": lambda: _epub(said, opf=spine([("a", "../../../../$THESIS")])),
        "a chapter 100,000 times": lambda: _epub(said, opf=spine([("c", "c.xhtml")], 100_000)),
        "50,000 names of one chapter": lambda: _epub(
            said, opf=spine([(f"i{n}", f"./{'./' * (n % 7)}c.xhtml?{n}") for n in range(50_000)])
        ),
        "headings within each other": lambda: _epub(said, toc_ncx=ncx.format(points)),
        "lists within each other": lambda: _epub(said, nav_xhtml=nav),
        "elements within each other": lambda: _epub("<html><body>" + "<div>" * 100_000),
        "no package": lambda: _epub(said, container="<container/>"),
        "a package of nothing": lambda: _epub(said, opf="<package/>"),
    }  # fmt: skip
    return {f"EPUB: {name}": ("book.epub", make) for name, make in makes.items()}


def _pages() -> dict[str, tuple[str, Make]]:
    makes: dict[str, Make] = {
        "a million brackets": lambda: b"<html>" + b"<" * 1_000_000,
        "a million unclosed comments": lambda: b"<html>" + b"<!--" * 1_000_000,
        "a million elements": lambda: b"<html>" + b"<p>a" * 1_000_000,
        "elements within each other": lambda: b"<html>" + b"<div>" * 1_000_000,
        "misnested": lambda: b"<html>" + b"<b><i><a><p>" * 5_000 + b"x",
        "tables within each other": lambda: b"<html>" + b"<table><tr><td>" * 5_000 + b"x",
        "a cell of 10**9": lambda: b'<html><table><tr><td colspan="1000000000" rowspan="1000000000">x</table>',
        "100,000 attributes": lambda: b"<html><p " + b"".join(b"a%d=b " % n for n in range(100_000)) + b">x",
        "an attribute of 20 MB": lambda: b'<html><p title="' + b"a" * 20_000_000 + b'">x',
        "references": lambda: b"<html><p>" + b"&amp;" * 1_000_000 + b"&#x110000;&#0;&#xd800;&#99999999999;",
        "a million words": lambda: b"<html><p>" + b"word " * 1_000_000,
        "laughs": lambda: f"{_BILLION}<html><body>&l9;".encode(),
        "another file": lambda: f'{_OUTER}<html><body>&e;<iframe src="file://$THESIS"></iframe>'.encode(),
        "a list that begins at 10**30": lambda: b"<html><ol start=%d><li>x<li value=-9>y" % 10**30,
        "lists within each other": lambda: b"<html>" + b"<ul><li>x" * 20_000,
        "headings": lambda: b"<html>" + b"<h1>a</h1><h6>b</h6>" * 100_000,
        "an encoding that is none": lambda: b'<html><meta charset="undefined"><p>\xff\xfe caf\xe9',
        "a pre of 10 MB": lambda: b"<html><pre>" + b"a \n" * 3_000_000,
    }
    return {f"HTML: {name}": ("page.html", make) for name, make in makes.items()}


def _mails() -> dict[str, tuple[str, Make]]:
    head = b"Subject: Tea\nFrom: a@b.example\nTo: c@d.example\nDate: today\nMIME-Version: 1.0\n"

    def nested(depth: int) -> bytes:
        parts = [b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(depth)]
        return head + b"".join(parts) + b"Content-Type: text/plain\n\nx\n"

    def typed(content: bytes) -> Make:
        return lambda: head + content

    def many(count: int) -> bytes:
        return head + b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\nContent-Type: text/plain\n\nx\n" * count

    one = b"From a@b.example Thu Jan 1 00:00:00 1970\n" + head + b"\nx\n\n"
    makes: dict[str, Make] = {
        "3,000 parts within each other": lambda: nested(3_000),
        "20,000 parts": lambda: many(20_000),
        "messages within each other": lambda: head[:-18] + b"Content-Type: message/rfc822\n\n" * 3_000,
        "a Content-Type of 5 MB": typed(b"Content-Type: text/plain; a=" + b"=?utf-8?q?=61?= ; " * 300_000 + b"\n\nx"),
        "an unknown charset": typed(b"Content-Type: text/plain; charset=undefined\n\ncaf\xe9"),
        "a charset that is code": typed(b"Content-Type: text/plain; charset=unicode_escape\n\n\\x41\\ud800"),
        "a charset of bytes": typed(b"Content-Type: text/plain; charset=zlib\n\nx\xff"),
        "odd base64": typed(b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n===A\xff\n"),
        "uuencode of lies": typed(b"Content-Transfer-Encoding: x-uuencode\n\nbegin 644 x\nMx\n"),
        "a subject of coded words": lambda: b"Subject: " + b"=?utf-8?q?=61?= " * 200_000 + b"\nFrom: a\nTo: b\n\nx",
        "a coded word of nothing": lambda: b"Subject: =?undefined?b?=ff?= =?utf-8?x?a?=\nFrom: =?\nTo: b\n\nx",
        "100,000 addresses": lambda: b"Subject: a\nFrom: " + b"a@b, (((" * 100_000 + b"\nTo: b\n\nx",
        "comments within each other": lambda: b"Subject: a\nTo: b\nFrom: " + b"(" * 99_999 + b"\n\nx",
        "a header of 20 MB": lambda: b"Subject: " + b"a" * 20_000_000 + b"\nFrom: a\nTo: b\n\nx",
        "a boundary of regular expressions": typed(
            b'Content-Type: multipart/mixed; boundary="(a+)+$"\n\n--(a+)+$\n\n' + b"a" * 50_000
        ),
        "parameters in 10,000 pieces": typed(
            b"Content-Type: text/plain; " + b"; ".join(b"charset*%d=u" % n for n in range(10_000)) + b"\n\nx"
        ),
        "a page that hangs": typed(b"Content-Type: text/html\n\n" + b"<div>" * 200_000),
        "an mbox of 5,000": lambda: one * 5_000,
        "an mbox of From alone": lambda: one + b"From \n" * 300_000,
    }  # fmt: skip
    return {f"mail: {name}": ("mail.mbox" if "mbox" in name else "mail.eml", make) for name, make in makes.items()}


def _plain() -> dict[str, tuple[str, Make]]:
    cue = b"1\n00:00:01,000 --> 00:00:02,000\nx\n\n"
    of: dict[str, tuple[str, Make]] = {
        f"Markdown: {count:,} of {part!r}": ("a.md", lambda part=part, count=count: part * count)
        for part, count in (
            (b"#", 1_000_000), (b"# \n", 300_000), (b"[", 500_000), (b"`", 500_000), (b"* ", 500_000), (b"> ", 500_000),
            (b"---\n", 300_000), (b"```\n", 300_000), (b"a\n=\n", 300_000), (b"![](", 200_000), (b"\t", 1_000_000),
            (b"|a", 500_000), (b"<!--", 300_000), (b"#" * 6 + b" a #", 200_000), (b"- \n", 300_000),
        )
    }  # fmt: skip
    of |= {
        "subtitles: 200,000": ("a.srt", lambda: cue * 200_000),
        "subtitles: times of 9,999 digits": ("a.srt", lambda: cue + b"9" * 9_999 + b":00:00,000 --> 00:01\nx\n\n" * 99),
        "Markdown: a heading of spaces": ("a.md", lambda: b"# " + b" " * 20_000 + b"x" + b" #" * 9_000 + b"y"),
        "Markdown: a rule of spaces": ("a.md", lambda: b"a\n===" + b" " * 200_000 + b"x\n"),
        "subtitles: numbers alone": ("a.srt", lambda: cue + b"1\n" * 1_000_000),
        "subtitles: tags": ("a.vtt", lambda: b"WEBVTT\n\n00:01.000 --> 00:02.000\n" + b"<" * 500_000),
        "subtitles: closed tags": ("a.vtt", lambda: b"WEBVTT\n\n00:01.000 --> 00:02.000\n" + b"<v a" * 200_000),
        "subtitles: notes": ("a.vtt", lambda: b"WEBVTT\n\n" + b"NOTE\n" * 500_000),
        "subtitles: arrows": ("a.vtt", lambda: b"WEBVTT\n\n" + b"00:01.000 --> " * 200_000),
        "front matter without an end": ("a.md", lambda: b"---\n" + b"a: b\n" * 500_000),
        "an archive": ("a.zip", lambda: _zip({"a.txt": b"x"})),
        "RTF": ("a.rtf", lambda: b"{\\rtf1" + b"{" * 500_000),
        "an old Word file": ("a.doc", lambda: b"\xd0\xcf\x11\xe0" + bytes(5_000)),
        "headers without an end": ("a.txt", lambda: b"A: b\n" * 200_000),
        "headers that go on": ("a.txt", lambda: b"From: a\nSubject: b\nTo: " + b"\n \n" * 200_000),
        "comments before a page": ("a.txt", lambda: b"<!-- -->" * 120 + b"<!--" * 300),
    }  # fmt: skip
    return of


def _pdf(objects: dict[int, bytes], root: int = 1, trailer: bytes = b"") -> bytes:
    out, offsets = b"%PDF-1.4\n", {}
    for number, content in objects.items():
        offsets[number] = len(out)
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offsets.get(n, 0) for n in range(1, max(objects) + 1))
    head = b"xref\n0 %d\n0000000000 65535 f \n%b" % (max(objects) + 1, table)
    return out + head + b"trailer << /Size %d /Root %d 0 R %b >>\nstartxref\n%d\n%%%%EOF" % (
        max(objects) + 1, root, trailer, len(out),
    )  # fmt: skip


def _pdfs() -> dict[str, tuple[str, Make]]:
    drawn = b"BT /F1 12 Tf 72 600 Td (The lamp was lit.) Tj ET"
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"

    def paged(content: bytes, kids: bytes = b"[3 0 R]", count: int = 1, **more: bytes) -> dict[int, bytes]:
        stream = b"<< /Length %d %b >>\nstream\n%b\nendstream" % (len(content), more.get("filters", b""), content)
        box = more.get("box", b"[0 0 612 792]")
        return {
            1: b"<< /Type /Catalog /Pages 2 0 R %b >>" % more.get("catalog", b""),
            2: b"<< /Type /Pages /Kids %b /Count %d %b >>" % (kids, count, more.get("pages", b"")),
            3: b"<< /Type /Page /Parent 2 0 R /MediaBox %b /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> "
               b"/XObject << /X 6 0 R >> >> >>" % box,
            4: stream, 5: more.get("font", font),
            6: more.get("form", b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Length 0 >>\nstream\n\nendstream"),
        }  # fmt: skip

    form = (
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 6 0 R >> >> /Length 11 >>\n"
        b"stream\n/X Do /X Do\nendstream"
    )
    bomb = zlib.compress(zlib.compress(b" " * 400_000_000, 9), 9)
    outline = b"/Outlines 6 0 R"
    circle = b"<< /Type /Outlines /First 6 0 R /Last 6 0 R /Next 6 0 R /Title (x) /Dest [3 0 R /Fit] >>"
    makes: dict[str, Make] = {
        "as it should be": lambda: _pdf(paged(drawn)),
        "pages that are their own": lambda: _pdf(paged(drawn, b"[2 0 R 3 0 R]", 2)),
        "a page 19,000 times": lambda: _pdf(paged(drawn, b"[" + b"3 0 R " * 19_000 + b"]", 19_000)),
        "a count of 10**9": lambda: _pdf(paged(drawn, count=10**9)),
        "a count of -1": lambda: _pdf(paged(drawn, count=-1)),
        "a bomb of 400 MB": lambda: _pdf(paged(bomb, filters=b"/Filter [/FlateDecode /FlateDecode]")),
        "a form in itself": lambda: _pdf(paged(drawn + b" /X Do", form=form)),
        "an outline in itself": lambda: _pdf(paged(drawn, catalog=outline, form=circle)),
        "a page of 10**30": lambda: _pdf(paged(drawn, box=b"[0 0 %d %d]" % (10**30, 10**30))),
        "a page of nothing": lambda: _pdf(paged(drawn, box=b"[0 0 0 0]")),
        "a page of NaN": lambda: _pdf(paged(drawn, box=b"[nan -inf (x) null]")),
        "many letters at one place": lambda: _pdf(paged(b"BT /F1 12 Tf 72 600 Td " + b"(a) Tj " * 300_000 + b"ET")),
        "letters of 10**9": lambda: _pdf(paged(b"BT /F1 1000000000 Tf 1e38 0 0 1e-38 1e38 -1e38 Tm (lamp) Tj ET")),
        "letters of nothing": lambda: _pdf(paged(b"BT /F1 0 Tf 0 0 0 0 0 0 Tm (lamp) Tj ET" * 500)),
        "100,000 saved states": lambda: _pdf(paged(b"q " * 100_000 + drawn)),
        "arrays within each other": lambda: _pdf(paged(b"[" * 100_000 + drawn)),
        "dictionaries within each other": lambda: _pdf({1: b"<< /A " * 100_000}),
        "a table that is its own": lambda: _pdf(paged(drawn), trailer=b"/Prev 0"),
        "a root that is none": lambda: _pdf(paged(drawn), root=99),
        "encrypted by nothing": lambda: _pdf(
            paged(drawn), trailer=b"/Encrypt << /Filter /Standard /V 4 /R 4 /O () /U () /P 0 >>"
        ),
        "a length of 10**12": lambda: _pdf(paged(drawn)).replace(b"/Length %d" % len(drawn), b"/Length 1000000000000"),
        "another file": lambda: _pdf(paged(drawn)).replace(b"/Length %d" % len(drawn), b"/F ($THESIS) /Length 0"),
        "a font that is a page": lambda: _pdf(paged(drawn, font=b"3 0 R")),
        "a map of 2**32 letters": lambda: _pdf(paged(
            drawn, font=b"<< /Type /Font /Subtype /Type0 /BaseFont /A /Encoding /Identity-H /DescendantFonts [5 0 R] "
            b"/ToUnicode 4 0 R >>"
        )),
        "the head alone": lambda: b"%PDF-1.4\n",
        "a head and 20 MB of nothing": lambda: b"%PDF-1.4\n" + bytes(20_000_000),
        "pictures of text": lambda: b"%PDF-1.4\n" + base64.b85encode(bytes(range(256)) * 2_000),
    }  # fmt: skip
    return {f"PDF: {name}": ("paper.pdf", make) for name, make in makes.items()}
