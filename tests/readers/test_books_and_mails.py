"""EPUB, DOCX, HTML, subtitles and mail: headings, printed pages and times; notes apart; what is locked or hostile."""

from __future__ import annotations

import io
import time
import zipfile
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from minimemo.errors import InputError, MinimemoError
from minimemo.readers import documents_in, read_document
from minimemo.text.document import Document, Place
from tests.readers.test_readers import read, zipped

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OPS/book.opf"/></rootfiles></container>'
)
NAV = (
    '<html><body><nav epub:type="toc"><ol><li><span>Part One</span><ol>'
    '<li><a href="one.xhtml">The Lamp</a></li><li><a href="one.xhtml#storm">The Storm</a></li></ol></li></ol></nav>'
    '<nav epub:type="page-list"><ol><li><a href="one.xhtml#p12">12</a></li></ol></nav></body></html>'
)
ONE = (
    "<html><body><h1>The Lamp</h1><p>Anna built it.<a epub:type='noteref' href='#n1'>1</a></p>"
    "<aside epub:type='footnote' id='n1'><p>1. In spring.</p></aside><p>It burned<span id='p12'></span> all night.</p>"
    "<h2 id='storm'>The Storm</h2><p>It broke the lamp.</p><nav>menu</nav></body></html>"
)


def epub(**more: str) -> bytes:
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
        '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        '<item id="b" href="two.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="a" href="one.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="a"/><itemref idref="b"/><itemref idref="a"/></spine></package>',
        "OPS/nav.xhtml": NAV,
        "OPS/one.xhtml": ONE,
        "OPS/two.xhtml": "<html><body><p>It was mended in May.</p></body></html>",
    }
    return zipped(parts | {name.replace("__", "/").replace("_xml", ".xml"): text for name, text in more.items()})


def places(document: Document, *words: str) -> list[Place]:
    """Where these words stand."""
    return [
        max((p for p in document.places if p.start <= document.text.index(word)), key=lambda p: p.start)
        for word in words
    ]


def test_a_book_has_headings_printed_pages_and_notes_apart(tmp_path: Path) -> None:
    book = read(tmp_path, "a.epub", epub())
    assert book.text == (
        "The Lamp\n\nAnna built it.1\n\nIt burned all night.\n\nThe Storm\n\nIt broke the lamp.\n\n1. In spring.\n\n"
        "It was mended in May."
    )  # in the order of the spine, each part once
    lamp, storm, mended = places(book, "Anna", "It broke", "It was mended")
    assert (lamp.heading, lamp.page) == (("Part One", "The Lamp"), None)
    assert (storm.heading, storm.page, storm.label) == (("Part One", "The Storm"), 12, "12")
    assert mended.heading == ("Part One", "The Storm")


def test_an_older_book_has_its_contents_in_another_file(tmp_path: Path) -> None:
    """EPUB 2: toc.ncx, named by the spine, with parts within parts and a list of printed pages."""
    entry = "<{0}><navLabel><text>{1}</text></navLabel><content src='{2}'/>{3}</{0}>"
    storm = entry.format("navPoint", "The Storm", "one.xhtml#storm", "")
    part = entry.format("navPoint", "Part One", "one.xhtml", storm)
    page = entry.format("pageTarget", "xii", "two.xhtml", "")
    ncx = f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{part}</navMap><pageList>{page}</pageList></ncx>'
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
        '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
        '<item id="b" href="two.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="a" href="one.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine toc="ncx"><itemref idref="a"/><itemref idref="b"/></spine></package>'
    )
    one = "<html><body><p>Anna built it.</p><p id='storm'>It broke the lamp.</p></body></html>"
    book = read(tmp_path, "a.epub", epub(**{"OPS__book.opf": package, "OPS__toc.ncx": ncx, "OPS__one.xhtml": one}))
    built, broke, mended = places(book, "Anna", "It broke", "It was mended")
    assert (built.heading, broke.heading) == (("Part One",), ("Part One", "The Storm"))
    assert (mended.label, mended.page) == ("xii", None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"META-INF__encryption_xml": '<e><EncryptionMethod Algorithm="aes"/></e>'}, r"encrypted \(DRM\)"),
        (
            {"META-INF__encryption_xml": '<e><EncryptionMethod Algorithm="aes"/></e>', "META-INF__rights_xml": "<r/>"},
            r"encrypted \(Adobe ADEPT\)",
        ),
        ({"META-INF__container_xml": "<container/>"}, "damaged EPUB"),
        (
            {"META-INF__container_xml": '<!DOCTYPE a [<!ENTITY b "c">]><a/>'.encode("utf-16").decode("latin-1")},
            "damaged",
        ),
    ],
)
def test_a_book_that_is_locked_or_damaged_is_one_line(tmp_path: Path, more: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, "a.epub", epub(**more))
    assert "\n" not in str(caught.value)


def test_fonts_may_be_locked(tmp_path: Path) -> None:
    font = '<e><EncryptionMethod Algorithm="http://www.idpf.org/2008/embedding"/></e>'
    assert read(tmp_path, "a.epub", epub(**{"META-INF__encryption_xml": font})).text


def test_html_is_what_a_reader_sees(tmp_path: Path) -> None:
    page = read(
        tmp_path,
        "a.html",
        "<html><head><title>The lamp</title><style>p{}</style></head><body><div role='navigation'>Home</div>"
        "<form id='all'><h1>The <b>lamp</b></h1><ol><li>oil</li><li><p>wick</p></li></ol><button>Buy</button>"
        "<p style='display: none'>secret</p><p aria-hidden='true'>x</p><p>Burns&nbsp;long,<br>and bright.</p>"
        "<table><tr><th>Year<td>Oil</tr><tr><td>1874<td>9</tr></table></form><aside>also read</aside></body></html>",
    )
    assert page.text == "The lamp\n\n1. oil\n2. wick\n\nBurns long,\nand bright.\n\nYear | Oil\n1874 | 9"


def test_elements_without_end_within_each_other(tmp_path: Path) -> None:
    deep = "<html><body>" + "<div>" * 1000 + "the lamp" + "</div>" * 1000 + "<p>and its oil" * 5000
    assert read(tmp_path, "a.html", deep).text.startswith("the lamp\n\nand its oil\n\n")
    with pytest.raises(InputError, match="within each other"):
        read(tmp_path, "a.html", "<html><body>" + "<div>" * 100_000 + "the lamp")


@pytest.mark.parametrize("one", [" a{}=b", " a{}", '"a{}"="b>"', " =a{}=c", " a{} = 'b'", "/a{}", '\na{}="<b>"'])
def test_an_element_of_attributes_without_end(tmp_path: Path, one: str) -> None:
    """The parser holds each against all before it."""
    kept, more = ("".join(one.format(n) for n in range(count)) for count in (900, 3000))
    assert read(tmp_path, "a.html", f"<html><p {kept}>The lamp.</p>").text
    with pytest.raises(InputError, match="more than 1,000 attributes"):
        read(tmp_path, "b.html", f"<html><p>The lamp.</p><p {more}>")


def test_subtitles_name_who_speaks_and_say_nothing_twice(tmp_path: Path) -> None:
    talk = read(
        tmp_path,
        "a.vtt",
        "WEBVTT\n\nNOTE made by hand\n\n00:01.000 --> 00:02.000\n<v Anna>It burns &amp; shines.\n"
        "2\n00:03.000 --> 00:04.000\nIt burns &amp; shines.\n<i>All</i> night.\n",
    )
    assert talk.text == "- Anna: It burns & shines. It burns & shines. All night."
    assert [place.time for place in talk.places] == ["0:00:01", "0:00:03"]


def test_an_mbox_has_a_place_for_each_mail(tmp_path: Path) -> None:
    html = (
        "Subject: =?utf-8?b?w5ZsIQ==?=\nFrom: c@d.example\nContent-Type: text/html; charset=x-unknown\n\n"
        "<p>Five <b>litres</b>"
    )
    box = (
        "From a@b Sat Jan  3 01:05:34 1996\nSubject: Tea\nFrom: a@b.example\n\nCome at five.\nFrom now on at six.\n\n"
        f"From c@d Sun Jan  4 01:05:34 1996\n{html}\n"
    )
    mails = read(tmp_path, "a.mbox", box)
    assert [place.heading for place in mails.places] == [("Tea",), ("Öl!",)]
    assert "Come at five.\nFrom now on at six." in mails.text and mails.text.endswith("Five litres")


def test_text_parts_of_a_mail_are_read_and_others_are_not(tmp_path: Path) -> None:
    mail = (
        "Subject: Oil\nFrom: a@b.example\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n--x\n"
        "Content-Type: text/plain\n\nSee the list.\n--x\nContent-Type: text/plain\nContent-Disposition: attachment\n\n"
        "Nine barrels.\n--x\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\niVBORw0KGgo=\n--x--\n"
    )
    assert read(tmp_path, "a.eml", mail).text.endswith("See the list.\n\nNine barrels.")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("subject.eml", b"Subject: " + b"=?utf-8?q?=61?= " * 100_000 + b"\nFrom: a\nTo: b\n\nThe lamp."),
        ("comments.eml", b"Subject: a\nFrom: " + b"(" * 9_000 + b"\nDate: " + b"(" * 9_000 + b"\nTo: b\n\nThe lamp."),
        ("comments", b"<!-- -->" * 120 + b" The lamp."),
        ("heading.md", b"# " + b" " * 9_000 + b"x" + b" #" * 9_000 + b"y\nThe lamp."),
        (
            "digits.srt",
            b"1\n00:00:01,000 --> 00:00:02,000\nThe lamp.\n\n" + b"9" * 5_000 + b":00:00,000 --> 00:01\nx\n",
        ),
    ],
)
def test_what_patterns_and_parsers_would_go_through_without_end(tmp_path: Path, name: str, content: bytes) -> None:
    begin = time.process_time()
    assert "The lamp." in read(tmp_path, name, content).text
    assert time.process_time() - begin < 3


def test_front_matter_is_no_text_and_a_rule_is(tmp_path: Path) -> None:
    assert read(tmp_path, "a.md", "+++\na = 1\n+++\n# One\n").text == "# One\n"
    assert read(tmp_path, "b.md", "---\nThe lamp\n---\nText.\n").text.startswith("---\nThe lamp")


def test_a_document_of_a_million_entities_is_refused(tmp_path: Path) -> None:
    bomb = "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>".encode("utf-16")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as package:
        package.writestr("word/document.xml", bomb)
    with pytest.raises(InputError, match="entities"):
        read(tmp_path, "a.docx", out.getvalue())


def test_a_further_reader_comes_first_and_its_faults_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def points(group: str) -> EntryPoints:
        value = f"{__name__}:scan" if group == "minimemo.readers" else ""
        return EntryPoints([EntryPoint("ocr", value, group)])

    monkeypatch.setattr("minimemo.readers.entry_points", points)
    scan = read(tmp_path, "a.tiff", b"II*\0 the lamp")
    assert (scan.text, scan.places, scan.notes) == ("the lamp", (Place(0, 3),), ("by sight",))
    assert read(tmp_path, "a.txt", "other text").text == "other text"
    with pytest.raises(MinimemoError, match="the reader 'ocr' failed"):
        read(tmp_path, "b.tiff", b"II*\0")


def scan(content: bytes, name: str) -> tuple[str, list[Place], list[str]] | None:
    if not content.startswith(b"II*"):
        return None
    text = content[4:].decode().strip()
    return text, [Place(0, [3][len(text) == 0])], ["by sight"]


def test_a_folder_is_the_documents_below_it(tmp_path: Path) -> None:
    for name in ("b.txt", "in/a.pdf", "x.png", ".git/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    one, other = tmp_path / "b.txt", tmp_path / "in/a.pdf"
    assert documents_in([str(tmp_path), str(one), "-"]) == [str(one), str(other), "-"]
    with pytest.raises(InputError, match="no documents"):
        documents_in([str(tmp_path / ".git")]) if not (tmp_path / ".git/c.txt").unlink() else None
    assert read_document(one).text == "text"
