"""Scripts and words, without a dictionary: which language prompts are written in, and what counts as content in a text.

Everything that follows counts characters of scripts written without spaces (Han, kana, Hangul here) one by one or in
pairs, and words elsewhere; counting words by spaces would make a Chinese sentence one word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

from minimemo.text.words import STOPWORDS

Language: TypeAlias = Literal["en", "zh"]

_HAN = r"々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HANGUL = r"\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
_CJK = _HAN + _KANA + _HANGUL
_HAN_CHAR = re.compile(f"[{_HAN}]")
_KANA_CHAR = re.compile(f"[{_KANA}]")
_HANGUL_CHAR = re.compile(f"[{_HANGUL}]")
_OTHER_WORD = re.compile(rf"(?:(?![{_CJK}\d_])\w)+")
_RUN = re.compile(rf"[{_CJK}]+|(?:(?![{_CJK}_])\w)+")

WORDS_A_TOKEN: Mapping[Language, float] = MappingProxyType({"en": 0.7, "zh": 1.4})  # characters in Chinese; about
# A Chinese word is about 1.6 characters: without this weight one Chinese name turns an English question into Chinese.
_HAN_PER_WORD = 1.6

# Texts longer than this many characters in all are judged by pieces from all over them: 114 MB took 12 s to count.
_PIECES, _PIECE = 64, 16_384


def detect_language(text: str, default: Language = "en") -> Language:
    """The language of the prompts for a text: "zh" when most of its words are Chinese, else "en".

    Japanese and Korean get the English prompts, which ask for an answer in the language of the question.
    A text without letters gets `default`. A text of more than a million characters is judged by a sample.
    """
    if len(text) > _PIECES * _PIECE:
        step = len(text) // _PIECES
        text = "\n".join(text[start : start + _PIECE] for start in range(0, _PIECES * step, step))
    han, kana, hangul = (len(p.findall(text)) for p in (_HAN_CHAR, _KANA_CHAR, _HANGUL_CHAR))
    words = len(_OTHER_WORD.findall(text))
    if han + kana + hangul + words == 0:
        return default
    if kana + hangul > 0.1 * (han + kana + hangul):
        return "en"
    han_words = han / _HAN_PER_WORD
    return "zh" if han_words >= 0.5 * (han_words + words) else "en"


def normalize(text: str) -> str:
    """NFKC, case folded, single spaces: what two writings of one text have in common."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def information(text: str) -> int:
    """How much a text says, in letters and digits of an alphabet: a Han character counts 3, kana and Hangul 2."""
    total = 0
    for char in text:
        if _HAN_CHAR.match(char):
            total += 3
        elif _KANA_CHAR.match(char) or _HANGUL_CHAR.match(char):
            total += 2
        elif char.isalnum():
            total += 1
    return total


def shingles(text: str) -> frozenset[str]:
    """Character n-grams of the normalized letters and digits: pairs in CJK runs, threes within words elsewhere."""
    grams: set[str] = set()
    for run in _RUN.findall(normalize(text)):
        size = 2 if _is_cjk(run) else 3
        grams.update(run[i : i + size] for i in range(max(1, len(run) - size + 1)))
    return frozenset(grams)


def content_units(text: str) -> frozenset[str]:
    """The words that carry content (English function words dropped); for CJK runs, their character pairs."""
    units: set[str] = set()
    for run in _RUN.findall(normalize(text)):
        if _is_cjk(run):
            units.update(run[i : i + 2] for i in range(max(1, len(run) - 1)))
        elif run not in STOPWORDS:
            units.add(run)
    return frozenset(units)


def _is_cjk(run: str) -> bool:
    return any(pattern.match(run) for pattern in (_HAN_CHAR, _KANA_CHAR, _HANGUL_CHAR))
