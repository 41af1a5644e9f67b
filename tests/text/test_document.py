"""Documents: whatever is not text is refused in one line that says what to do; text is kept to the character."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from minimemo.errors import InputError
from minimemo.readers import read_document

AWKWARD = "one\r\ntwo\rthree \U0001f469‍\U0001f52c e\u0301 你好，世界"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (AWKWARD.encode(), None),
        (b"\xef\xbb\xbf" + AWKWARD.encode(), None),
        (b"\xff\xfe" + AWKWARD.encode("utf-16-le"), None),
        (b"\xfe\xff" + AWKWARD.encode("utf-16-be"), "utf-8"),
        (AWKWARD.encode("utf-32"), "utf-32"),
        (b"\0\0\xfe\xff" + AWKWARD.encode("utf-32-be"), None),
        ("你好，世界".encode("gb18030"), "gb18030"),
        ("你好，世界".encode("big5"), "big5"),
    ],
)
def test_text_is_kept_to_the_character(tmp_path: Path, content: bytes, encoding: str | None) -> None:
    path = tmp_path / "doc.txt"
    path.write_bytes(content)
    expected = "你好，世界" if encoding in ("gb18030", "big5") else AWKWARD
    document = read_document(path, encoding)
    assert (document.text, document.name) == (expected, "doc.txt")


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"", None, "the document is empty"),
        (b" \n\t\r\n ...", None, "the document is empty"),
        (b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 9, None, "a binary file; convert it to plain text first"),
        (b"some text\0with a NUL", None, "a binary file"),
        ("你好，世界。".encode("gb18030") * 9, None, "at byte 0; it looks like gb18030: `encoding=gb18030`"),
        (b"caf\xe9 au lait", "ascii", "not ascii at byte 3"),
        (b"text", "klingon", "encoding 'klingon' is none of text that Python knows"),
    ],
)
def test_bad_content_is_one_line(tmp_path: Path, content: bytes, encoding: str | None, message: str) -> None:
    path = tmp_path / "doc.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_document(path, encoding)
    assert "doc.txt" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("Le café à la carte, où l'on dîne à l'été, naïf et déjà bon.".encode("cp1252"), "`encoding=cp1252`"),
        ("灯台の光は一八八六年に建てられた。灯台守の名前は山田健吾である。".encode("cp932"), "`encoding=cp932`"),
        ("the keeper lit the lamp".encode("utf-16-le"), "`encoding=utf-16-le`"),
        ("Ein schöner Müller über dem Fluß".encode() + b"\xff", "name its encoding"),  # a stray byte
        (b"{\\rtf1 some words}", "a Rich Text file"),
    ],
)
def test_what_it_may_be_is_proposed(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "doc.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_document(path)
    if "`encoding=`" in told:
        assert read_document(path, told.split()[-1]).text


def test_a_mark_in_place_of_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "doc.txt"
    path.write_bytes("Müller\0 says ".encode() + b"\xff so")
    assert read_document(path, errors="replace").text == "Müller\ufffd says \ufffd so"


def test_pipes_are_read_and_devices_are_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="the document is empty"):  # nobody writes to it
        read_document(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("some words"))
    writer.start()
    reader, end = os.pipe()
    os.write(end, b"more words")
    os.close(end)
    assert read_document(f"/dev/fd/{reader}").text == "more words"
    with (tmp_path / "pipe").open() as file:
        assert file.read() == "some words"
    writer.join()
    with pytest.raises(InputError, match="is a device"):
        read_document("/dev/zero")


def test_bad_paths_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_document(tmp_path / "missing.txt")
    with pytest.raises(InputError, match="is a directory"):
        read_document(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_document(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "doc.txt"
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(InputError, match="check its permissions"):
        read_document(path)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(AWKWARD.encode())))
    assert read_document("-").text == AWKWARD
