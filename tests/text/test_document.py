"""Documents: whatever is not text is refused in one line that says what to do; text is kept to the character."""

from __future__ import annotations

import io
import os
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
        ("你好，世界。".encode("gb18030") * 9, None, "not utf-8 at byte 0; name its encoding, for example --encoding"),
        (b"caf\xe9 au lait", "ascii", "not ascii at byte 3"),
        (b"text", "klingon", "encoding 'klingon' is not known"),
    ],
)
def test_bad_content_is_one_line(tmp_path: Path, content: bytes, encoding: str | None, message: str) -> None:
    path = tmp_path / "doc.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_document(path, encoding)
    assert "doc.txt" in str(caught.value) and "\n" not in str(caught.value)


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
