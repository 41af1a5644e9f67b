"""The texts that come with the package: whole and various."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import minimemo.memo.calibration_text as package
from minimemo.ask import detect_language
from minimemo.errors import MinimemoError
from minimemo.memo.calibrate import _Piece, _spread_out
from minimemo.memo.calibration_text import shipped_texts

FOLDER = Path(package.__file__).parent
CJK = re.compile(r"[\u4e00-\u9fff]")
LEAST, LEAST_CJK = 4500, 1600  # characters; about 1,300 tokens
GRAM = 24  # bytes: 8 Chinese characters or 4 English words
RULED = re.compile(r"([-.|])\1{3,}")  # lines of tables


def test_every_file_in_order() -> None:
    files = sorted(FOLDER.glob("*.txt"))
    assert len(files) >= 36
    assert shipped_texts() == [file.read_bytes().decode("utf-8") for file in files] == shipped_texts()


def test_each_is_long_enough_and_clean() -> None:
    for text in shipped_texts():
        assert len(text) >= (LEAST_CJK if CJK.match(text) else LEAST), text[:40]
        assert text.endswith("\n") and not {"\r", "\ufeff", "\ufffd"} & set(text), text[:40]


def test_languages_and_scripts() -> None:
    texts = shipped_texts()
    chinese = [text for text in texts if len(CJK.findall(text)) > len(text) / 2]
    traditional = [text for text in chinese if sum(map(text.count, "這與於後")) > sum(map(text.count, "这与于后"))]
    assert len(traditional) >= 6 and len(chinese) - len(traditional) >= 10 and len(texts) - len(chinese) >= 18
    for text in chinese:  # most of the punctuation is full width, as in the documents to come
        assert text.count("\uff0c") > 2 * text.count(","), text[:40]


def test_layers_are_judged_by_texts_unlike_each_other() -> None:
    texts = shipped_texts()
    pieces = _spread_out([_Piece([at], [0] * 1500) for at in range(len(texts))], 3)
    judged = [texts[piece.opening[0]] for piece in pieces]
    assert len(set(judged)) == 3 and {detect_language(text) for text in judged} == {"en", "zh"}


def test_no_phrase_comes_in_two_texts_and_few_come_twice_in_one() -> None:
    first: dict[bytes, int] = {}
    for at, text in enumerate(shipped_texts()):
        data = RULED.sub("", " ".join(text.split())).encode()
        grams = [data[start : start + GRAM] for start in range(len(data) - GRAM + 1)]
        assert len(set(grams)) > 0.98 * len(grams), text[:40]
        for gram in grams:
            assert first.setdefault(gram, at) == at, gram.decode(errors="replace")


def test_missing_texts_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(package.resources, "files", lambda name: tmp_path)
    with pytest.raises(MinimemoError, match="`texts`"):
        shipped_texts()
