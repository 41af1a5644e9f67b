"""What a model wrote from memory -> clues to search with: split into lines, cleaned, filtered by content, deduplicated.

Written for small models: they number, quote, answer in JSON, repeat the instruction, repeat themselves until the token
limit. A clue is judged by what it says (`language.information`), never by words between spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from string import Formatter
from types import MappingProxyType
from typing import Literal, TypeAlias

from minimemo.text.scripts import information
from minimemo.text.words import content_units, normalize, shingles

ClueKind: TypeAlias = Literal["recall", "rewrite", "draft", "point"]

CAPS: Mapping[ClueKind, int] = MappingProxyType({"recall": 5, "rewrite": 4, "draft": 1})
MIN_INFORMATION = 6  # two Han characters, or six letters
MAX_CHARS = 400  # a longer line is cut at its sentences: an encoder reads 512 tokens, and one fact finds better
PIECE_INFORMATION = 100  # of such a piece, at least: some 20 English words or 33 Han characters
MAX_DRAFT = 200  # characters: more is no draft but a piece of the document said again
ECHO = 0.9  # share of a text's shingles that stand in the instruction and question: more, and it says nothing new
SAME = 0.7  # Jaccard overlap of two clues that find the same passages
CONTAINED = 0.9  # share of a clue's shingles that stand in an earlier one


_REFUSAL_WITHIN = 160  # Characters; a longer answer may say that of one point and answer the others.


@dataclass(frozen=True, slots=True)
class Clue:
    """One text to search the document with."""

    kind: ClueKind
    text: str


_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_QUOTED = re.compile(
    r"""
    "((?:[^"\\\n]|\\.)+)"(\s*:)?                                     # "item", or "key":
  | (?<=[\[,{:\s])'((?:[^'\\\n]|\\.|'(?=\w))+)'(\s*:)?(?=\s*[,\]}:])  # the same in single quotes: king's is a word
    """,
    re.VERBOSE,
)
_MARKER = re.compile(
    r"""^\s*(?:
        [-*+•·‣▪●○◦–—>\#]+(?=\s|[^\W\d])             # bullets; not the minus of -5
      | [(（]\s*(?:\d{1,2}|[一二三四五六七八九十]{1,3})\s*[)）]     # (1) （一）
      | (?:\d{1,2}|[一二三四五六七八九十]{1,3})\s*[)）、．]         # 1) 一、
      | \d{1,2}\s*[.:：](?!\d)                          # 1. 1: and not 3.5, 12:30
      | [一二三四五六七八九十]{1,3}\s*[:：.]
      | 第[一二三四五六七八九十\d]{1,3}[个条点句段]?\s*[:：、，]
      | [①-⑳❶-❿]
      | [a-eA-E]\)(?=\s)
    )\s*""",
    re.VERBOSE,
)
_LABEL = re.compile(
    r"^\s*(?:(?:passage|clue|question|(?:short\ )?answer|sentence|span|quote|point|key\ point|q|a)\s*\d{0,2}"
    r"|(?:片段|线索|问题|小问题|(?:简短的)?答案|回答|原文|原句|段落|句子|要点)\s*[\d一二三四五六七八九十]{0,2})\s*[:：]\s*",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "『": "』", "`": "`", "**": "**"}
_SENTENCE = re.compile(r"(?<=[。！？!?])|(?<=\w\w[.])\s+")  # "Y. pestis" and "p. 3" end no sentence
_NOTHING = re.compile(
    r"(?:none|null|n/a|nothing|no (?:relevant )?(?:information|passages?|answer)"
    r"|not (?:found|mentioned|available|specified)"
    r"|无|没有|未提及|未找到|没有提到|没有相关(?:信息|内容)|无相关(?:信息|内容))[.。!！]*",
    re.IGNORECASE,
)
# not after one letter or digit, nor after a title
_END = r"(?:(?<!\b\w)(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)[.]|[!?])[\"'”’)]*"
_FULL = re.compile(rf".*(?:[。！？…][”’」』）]*|{_END}(?=\s|$))", re.DOTALL)
_ENDED = re.compile(rf"[。！？]|{_END}\s+|\n+")
# Two or more words with capitals, after a word without punctuation: the first of a sentence, a title or a quotation may
# be any word, and one such word is often "French" where the document has "France".
_NAME = re.compile(r"(?<=[a-z] )[A-Z][a-z]+(?: [A-Z][a-z]+)+")
_REFUSAL = re.compile(
    r"not (?:found|mentioned|stated|specified|provided|given|available)|no (?:relevant )?information"
    r"|(?:can ?not|can't|could not|unable to) (?:be )?(?:found|find|determined?|answer(?:ed)?)"
    r"|do(?:es)? not (?:say|mention|contain|provide)"
    r"|未提[及到]|[没沒]有?(?:提[及到]|找到|说明|說明|相关|相關)|无法(?:确定|回答|找到)|無法(?:確定|回答|找到)|未找到|不清楚"
)
_LOOP = re.compile(r"(.{1,3}?)\1{5,}|(.{4,160}?)\2{2,}", re.DOTALL)
_TAIL_LOOP = re.compile(r"(.{8,120}?)\1{2,}\Z", re.DOTALL)


def collapse_loops(text: str) -> str:
    """A unit said three times or more in a row is said once: the runaway repetition of small models. Digits stay."""

    def once(match: re.Match[str]) -> str:
        unit = match[1] or match[2]
        return unit if any(char.isalpha() for char in unit) else match[0]

    return _LOOP.sub(once, text)


def is_looping(text: str) -> bool:
    """Whether a text ends in one unit (8-120 characters, with letters) said three times in a row."""
    match = _TAIL_LOOP.search(text[-400:])
    return match is not None and any(char.isalpha() for char in match[1])


def full_sentences(text: str) -> str:
    """A text up to the end of its last full sentence; all of it where no sentence ends."""
    match = _FULL.match(text)
    return match[0] if match else text


def without_inventions(text: str, holds: Callable[[str], bool]) -> str:
    """A text less the sentences with a name of several words of which the document `holds` none: asked for more than it
    was told, a small model goes on with what it knows of the world ("in the United States")."""

    def grounded(sentence: str) -> bool:
        return all(any(map(holds, name.split())) for name in _NAME.findall(sentence))

    ends = [match.end() for match in _ENDED.finditer(text)]
    return "".join(filter(grounded, (text[a:b] for a, b in pairwise([0, *ends, len(text)])))).strip()


def is_refusal(text: str, not_found: str = "") -> bool:
    """Tells whether an answer says that nothing answers: in the agreed words, or as usual in a short text."""
    plain = normalize(text)
    agreed = normalize(not_found)
    if not plain or (agreed and plain.startswith(agreed)):
        return True
    return len(plain) <= _REFUSAL_WITHIN and _REFUSAL.search(plain) is not None


def parse_lines(output: str) -> list[str]:
    """The items of a model's list: JSON or quoted strings, else one a line; marks and labels removed."""
    text = collapse_loops(_FENCE.sub("", output).replace("\r", "\n")).strip()
    lines = _quoted_items(text) if text[:1] in ("[", "{") else []
    items: list[str] = []
    for line in lines or text.splitlines():
        line = _strip_marks(line)
        if line.endswith((":", "：")):  # "Here are three passages:"
            continue
        items.extend(_passages(line) if len(line) > MAX_CHARS else [line])
    return [item[:MAX_CHARS] for item in items if item]


def parse_draft(output: str) -> str:
    """The first paragraph of a draft on one line, its first sentence when that is long; "" when it says nothing."""
    paragraph = collapse_loops(output).strip().split("\n\n", 1)[0]
    draft = _strip_marks(" ".join(paragraph.split()))
    if len(draft) > MAX_DRAFT:
        draft = _SENTENCE.split(draft)[0][:MAX_DRAFT].strip()
    return "" if not draft or _NOTHING.fullmatch(draft) else draft


def select_clues(
    items: Mapping[ClueKind, Sequence[str]],
    *,
    question: str = "",
    instructions: Iterable[str] = (),
    caps: Mapping[ClueKind, int] = CAPS,
) -> tuple[Clue, ...]:
    """Items by kind -> at most `caps` of each, in the order given, none of them empty of content, an echo or a repeat.

    An echo has nearly all its shingles in the question and the instructions together; a repeat is nearly a clue that
    came before it, or part of one. The question itself is no clue: the caller always searches with it.
    """
    echoed = shingles(question).union(*(shingles(instruction(text)) for text in instructions))
    kept: list[Clue] = []
    seen: list[frozenset[str]] = []
    for kind, texts in items.items():
        taken = 0
        for text in texts:
            grams = shingles(text)
            if taken == caps[kind]:
                break
            if not is_informative(text) or len(grams & echoed) >= ECHO * len(grams):
                continue
            if any(_repeats(grams, earlier) for earlier in seen):
                continue
            kept.append(Clue(kind, text))
            seen.append(grams)
            taken += 1
    return tuple(kept)


def instruction(template: str) -> str:
    """Strips a prompt of its placeholders: what a model that echoes its instructions would repeat."""
    return " ".join(literal for literal, _, _, _ in Formatter().parse(template))


def is_informative(text: str) -> bool:
    """Whether a text is worth searching with: enough letters of its script, a content word, and not "not found"."""
    plain = normalize(text)
    return information(plain) >= MIN_INFORMATION and bool(content_units(plain)) and not _NOTHING.fullmatch(plain)


def _repeats(new: frozenset[str], earlier: frozenset[str]) -> bool:
    common = len(new & earlier)
    return common >= CONTAINED * len(new) or common >= SAME * len(new | earlier)


def _quoted_items(text: str) -> list[str]:
    """The strings of a JSON or Python list, also of one that the token limit cut; keys of objects left out."""
    items = []
    for double, double_key, single, single_key in _QUOTED.findall(text):
        if double_key or single_key:
            continue
        if double:
            try:
                items.append(str(json.loads(f'"{double}"')))
            except ValueError:  # an escape that JSON does not know: the raw text serves
                items.append(double)
        else:
            items.append(single.replace("\\'", "'"))
    return items


def _strip_marks(line: str) -> str:
    """A line without what lists and chats wrap around it; done until nothing changes, as marks nest."""
    before = None
    while line != before:
        before = line
        line = _LABEL.sub("", _MARKER.sub("", line)).strip()
        for left, right in _QUOTES.items():
            inner = line[len(left) : -len(right)]
            if inner and line.startswith(left) and line.endswith(right) and right not in inner:
                line = inner.strip()
    return line


def _passages(line: str) -> list[str]:
    """A long line at its sentence ends, into pieces that say enough to be searched with on their own."""
    pieces: list[str] = []
    for sentence in filter(None, _SENTENCE.split(line)):
        if pieces and information(pieces[-1]) < PIECE_INFORMATION:
            space = "" if pieces[-1].endswith(("。", "！", "？")) else " "
            pieces[-1] += space + sentence.strip()
        else:
            pieces.append(sentence.strip())
    return pieces
