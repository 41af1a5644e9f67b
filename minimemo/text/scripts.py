"""The scripts that are written without spaces, as one table of characters, and the language that a text is in.

What counts words or characters of a text counts characters of these scripts one by one or in pairs, and words
elsewhere; counting words by spaces would make a Chinese sentence one word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

Language: TypeAlias = Literal["en", "zh"]

# Character classes of regular expressions, without brackets.
HAN = r"々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
HANGUL = r"\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
CJK = HAN + KANA + HANGUL

WORDS_A_TOKEN: Mapping[Language, float] = MappingProxyType({"en": 0.7, "zh": 1.4})  # characters in Chinese; about
# A Chinese word is about 1.6 characters: without this weight one Chinese name turns an English question into Chinese.
_HAN_PER_WORD = 1.6
_HAN, _KANA_OR_HANGUL = re.compile(f"[{HAN}]"), re.compile(f"[{KANA}{HANGUL}]")
_CJK = re.compile(f"[{CJK}]")
_OTHER_WORD = re.compile(rf"(?:(?![{CJK}\d_])\w)+")

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
    han, other_cjk, words = (len(pattern.findall(text)) for pattern in (_HAN, _KANA_OR_HANGUL, _OTHER_WORD))
    if han + other_cjk + words == 0:
        return default
    if other_cjk > 0.1 * (han + other_cjk):
        return "en"
    han_words = han / _HAN_PER_WORD
    return "zh" if han_words >= 0.5 * (han_words + words) else "en"


def information(text: str) -> int:
    """How much a text says, in letters and digits of an alphabet: a Han character counts 3, kana and Hangul 2."""
    rest, han = _HAN.subn("", text)
    rest, other_cjk = _KANA_OR_HANGUL.subn("", rest)
    return 3 * han + 2 * other_cjk + sum(map(str.isalnum, rest))


def is_cjk(text: str) -> bool:
    """Whether a text begins with a character of a script that is written without spaces."""
    return _CJK.match(text) is not None
