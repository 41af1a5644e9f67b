"""Readers: the text of files that people have, and where each stretch of it stands; what cannot be read is one line."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

import minimemo
from minimemo.cli.arguments import main
from minimemo.errors import InputError
from minimemo.readers import read_document
from minimemo.text.document import Document
from tests.conftest import TinyModels

FILES = Path(__file__).parents[3] / "shared/data/files"
real_files = pytest.mark.skipif(not FILES.is_dir(), reason="needs ../shared/data/files")


def small_pdf(pages: list[str]) -> bytes:
    """A PDF with one line of text a page."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 600 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return out + f"{head}trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF".encode()


PAGES = ["The lighthouse was built in 1874 by Anna Berg.", "The storm of the second year broke its lamp."]


def read(tmp_path: Path, name: str, content: bytes | str) -> Document:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_document(path)


def test_justified_lines_of_letters_placed_one_by_one_are_a_paragraph(tmp_path: Path) -> None:
    """Browsers write such: a gap between words was held against the height of an "o", and lines for rows of a table."""
    rows = ["a good bond had done no good", "1090 a pond and a gong bode no good", "1100 hounds bound on a dune"]
    placed = ""
    for row, words in enumerate(rows):
        left = 72.0
        for word in words.split():
            for letter in word:  # all of them but "s" are .556 of the size wide
                placed += f") Tj 1 0 0 1 {left:.2f} {600 - 14 * row} Tm ({letter}"
                left += 6.67
            left += 8
    assert read(tmp_path, "a.pdf", small_pdf([placed])).text == " ".join(rows)


def test_a_pdf_is_known_by_its_content_and_has_pages(tmp_path: Path) -> None:
    document = read(tmp_path, "report.txt", small_pdf(PAGES))
    assert document.text.split("\n\n") == PAGES
    starts = [document.text.index(page) for page in PAGES]
    assert [(place.start, place.page) for place in document.places] == [(starts[0], 1), (starts[1], 2)]


def test_a_password_is_no_argument_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments are shown to every user of the machine, by `ps`."""
    started: list[list[str]] = []
    run = subprocess.run

    def watched(command: list[str], **options: Any) -> Any:
        started.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", watched)
    (tmp_path / "a.pdf").write_bytes(small_pdf(PAGES))
    assert read_document(tmp_path / "a.pdf", password="s3cret \u00e9").text
    assert started and "s3cret" not in str(started)


def test_markdown_subtitles_mail_and_html(tmp_path: Path) -> None:
    notes = read(tmp_path, "a.md", "---\ntitle: x\n---\n# One\nText.\n\n## Two\nMore.\n")
    assert notes.text == "# One\nText.\n\n## Two\nMore.\n"
    assert [place.heading for place in notes.places] == [("One",), ("One", "Two")]
    talk = read(
        tmp_path, "a.srt", "1\n00:00:01,000 --> 00:00:02,000\nHello\n\n2\n01:02:03,000 --> 01:02:04,000\nworld\n"
    )
    assert talk.text == "Hello world"
    assert [place.time for place in talk.places] == ["0:00:01", "1:02:03"]
    mail = read(tmp_path, "a.eml", "Subject: Tea\nFrom: a@b.example\nDate: today\n\nCome at five.\n")
    assert mail.text.endswith("Come at five.") and mail.places[0].heading == ("Tea",)
    page = read(tmp_path, "a", "<!doctype html><title>T</title><nav>menu</nav><h1>One</h1><p>Text.<script>x()</script>")
    assert page.text == "T\n\nOne\n\nText." and page.places[-1].heading == ("One",)


def zipped(parts: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in parts.items():
            package.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"%PDF-1.4 nothing", "damaged PDF"),
        ("a.rtf", b"{\\rtf1 hello}", "Rich Text"),
        ("a.doc", b"\xd0\xcf\x11\xe0" + bytes(600), "old Word"),
        ("a.zip", zipped({"a.txt": "text"}), "ZIP archive"),
        ("a.epub", b"PK\x03\x04 nothing", "damaged EPUB"),
        ("a.epub", zipped({"META-INF/container.xml": "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>"}), "defines entities"),
        ("a.docx", zipped({"word/document.xml": "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>"}), "defines XML entities"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, name, content)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimemo.readers.office.LARGEST", 1 << 20)
    monkeypatch.setattr("minimemo.readers.epub.LARGEST", 1 << 20)
    bomb = zipped({"word/document.xml": "x" * (2 << 20)})
    for name in ("a.docx", "a.epub"):
        with pytest.raises(InputError, match="unpacks to more than 1 MB"):
            read(tmp_path, name, bomb)


@real_files
def test_real_pdfs() -> None:
    register = read_document(FILES / "pdf/federal-register-2020-17221.pdf")
    assert "Federal Register / Vol." not in register.text and "\ufffe" not in register.text
    assert {place.page for place in register.places} == {*range(1, 8), *range(9, 16)}
    assert "Soekarno-Hatta International Airport" in register.text  # cut by the notes below the first page
    assert register.notes == ("page 8 of 15: scanned, the text is not read",)
    assert read_document(FILES / "pdf/libreoffice-writer-password.pdf", password="openpassword").text
    for name, message in (
        ("libreoffice-writer-password", "with `password`"),
        ("imagemagick-images", "ocrmypdf"),
        ("empty", "an empty file"),
    ):
        with pytest.raises(InputError, match=message):
            read_document(FILES / f"pdf/{name}.pdf")


@real_files
def test_a_real_book_and_real_letters() -> None:
    alice = read_document(FILES / "epub/alice.epub")
    at = alice.text.index("A Mad Tea-Party") if "A Mad Tea-Party" in alice.text else -1
    headings = [place.heading for place in alice.places]
    assert at >= 0 or any("tea" in " ".join(heading).lower() for heading in headings)
    assert len(set(headings)) >= 10
    assert "Top left" in read_document(FILES / "docx/tables.docx").text
    assert read_document(FILES / "docx/footnotes.docx").text


def test_a_page_is_cited(tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.pdf").write_bytes(small_pdf(PAGES))
    memo = minimemo.build(tmp_path / "report.pdf", **tiny_models.both)
    memo.verify()
    places = json.loads((memo.folder / "places.json").read_text(encoding="utf-8"))["places"]
    assert [place["page"] for place in places] == [1, 2]
    models = tiny_models.options
    asked = ["ask", str(memo.folder), "Who built the lighthouse?", "--mode", "rag", "--max-tokens", "4", *models]
    assert main([*asked, "--json"]) == 0
    passages = json.loads(capsys.readouterr().out)["passages"]
    assert passages and all(p["text"].strip() == PAGES[p["page"] - 1] and p["heading"] == [] for p in passages)
    assert main(asked) == 0
    page = passages[0]["page"]
    assert f"[p. {page}] {PAGES[page - 1]}" in capsys.readouterr().out
    assert main(["export", str(memo.folder), str(tmp_path / "away.memo")]) == 0
    assert (tmp_path / "away.memo/places.json").exists()


def test_one_document_that_fails_stops_no_other(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in "acdef":
        (folder / f"{name}.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "b.pdf").write_bytes(small_pdf(PAGES))
    (folder / "b.txt").write_text("Another text.")
    models = [*tiny_models.options, "-q"]
    assert main(["build", str(folder), str(tmp_path / "gone.txt"), *models]) == 2
    said = capsys.readouterr()
    assert sorted(path.name for path in folder.glob("*.memo")) == ["b.memo", "b.txt.memo"]
    assert said.out.count("ask it: minimemo ask") == 2
    assert said.err.splitlines() == [
        "minimemo: 6 of 8 documents were not built:",
        f"  {', '.join(f'{folder}/{name}.pdf' for name in 'acd')} and 2 more: "
        "a damaged PDF; open it in a viewer and save it again",
        f"  {tmp_path}/gone.txt: no such file; give a text file, or - for standard input",
    ]
    assert main(["build", str(folder / "b.pdf"), str(folder / "b.txt"), "-o", "one.memo", *models]) == 2
    assert "-o names one memo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("degrees", "first", "second"),
    [
        (0, "1 0 0 1 72 600", "1 0 0 1 72 584"),
        (90, "0 1 -1 0 100 72", "0 1 -1 0 116 72"),
        (180, "-1 0 0 -1 540 100", "-1 0 0 -1 540 116"),
        (270, "0 -1 1 0 500 700", "0 -1 1 0 484 700"),
    ],
)
def test_a_page_that_is_turned_is_read_as_it_is_seen(tmp_path: Path, degrees: int, first: str, second: str) -> None:
    """Two lines that a reader sees below each other, drawn sideways or head down on a page that is turned back."""
    lines = f") Tj {second} Tm (he ran to wake the keeper and two women who slept below.".join(
        ["When the storm broke the lamp of the tower at last,", ""]
    )
    page = small_pdf([lines]).replace(b"72 600 Td", f"{first} Tm".encode())
    page = page.replace(b"/MediaBox", f"/Rotate {degrees} /MediaBox".encode())
    assert " ".join(read(tmp_path, "a.pdf", page).text.split()) == (
        "When the storm broke the lamp of the tower at last, he ran to wake the keeper and two women who slept below."
    )


def endless_pdf() -> bytes:
    """A PDF that says that it has a million pages."""
    return small_pdf(PAGES).replace(b"/Count 2", b"/Count 1000000")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pages.pdf", endless_pdf(), "1,000,000 pages, 20,000 are read at most"),
        ("deep.pdf", b"%PDF-1.4\n1 0 obj\n" + b"[" * 300_000, "damaged PDF"),
        ("deep.docx", zipped({"word/document.xml": "<a>" * 50_000}), "damaged Word document"),
        ("deep.epub", zipped({"META-INF/container.xml": "<a>" * 50_000}), "damaged EPUB"),
        ("deep.html", b"<html>" + b"<b>" * 50_000 + b"text", "within each other"),
        ("deep.eml", b"Subject: a\nFrom: b\nTo: c\nContent-Type: message/rfc822\n\n" * 20_000, "too many parts"),
    ],
    ids=lambda part: repr(part)[:20],
)
def test_hostile_files_end_in_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["build", str(tmp_path / name), "-q"]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("ends", ["crash", "time"])
def test_a_pdf_that_kills_its_reader_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    def died(command: list[str], **_: Any) -> Any:
        if ends == "time":
            raise subprocess.TimeoutExpired(command, 600)
        return subprocess.CompletedProcess(command, -11, b'{"pages": [', b"")

    monkeypatch.setattr(subprocess, "run", died)
    with pytest.raises(InputError, match="damaged PDF" if ends == "crash" else "took more than 600 s"):
        read(tmp_path, "a.pdf", small_pdf(PAGES))


def test_pages_have_their_printed_numbers_and_headings() -> None:
    document = read_document(Path(__file__).parents[2] / "examples/skarn-point.pdf")
    assert [(place.page, place.label) for place in document.places][:2] == [(1, "i"), (2, "1")]
    at = document.text.index("She straightened the shaft")
    place = max((place for place in document.places if place.start <= at), key=lambda place: place.start)
    assert (place.page, place.label, place.heading) == (4, "3", ("4. The night of the broken lens",))
    assert "advertised for a new keeper" in document.text and "The light on Skarn Point\n\n1" not in document.text
