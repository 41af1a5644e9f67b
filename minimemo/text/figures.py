"""What a text's own words and numbers give by counting and by comparing, where no model needs to be asked: what is
listed or counted of things with labels ("Tank A"), which of them is the largest, by how much one exceeds another.

A thing's figures stand in a sentence that names it, behind the name, or in those after it that begin with a pronoun.
What is not told in such a way, or in more than one, is not computed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from minimemo.text.sentences import sentence_ends
from minimemo.text.words import STOPWORDS, normalize, root, roots, singular, without_escapes

LEAST = 2  # things of one kind are something to list
LEAST_RECORDS = 5  # lines that begin with a date or a time make a log
MOST_LINES = 10  # of a log are listed

_LISTS = re.compile(
    r"^\W*(?:please\s)?(?:list|name|enumerate|give)\s(?:me\s)?(?:all\s|every\s|each\s)?(?:of\s)?(?:the\s)?(\w+)"
    r"|^\W*which\s(\w+)\s(?:is|are|was|were|did|do|does|have|had|has)\b",
    re.IGNORECASE,
)
_COUNTS = re.compile(r"\bhow\smany\s(?:different\s)?(\w+)\s(?!(?:more|less|fewer)\b)", re.IGNORECASE)
_EMPTY = frozenset("document text file report list mention name all there exist total altogether".split())  # noqa: SIM905
_LABEL = r"(?-i:[A-Z](?![\w'’.])|(?:[A-Z]{1,4}-)?\d+[a-zA-Z]?(?![\w.,]*\d))"

_MORE = (
    r"(?P<more>more|longer|older|higher|larger|bigger|heavier|taller|wider|deeper|faster|farther|later|greater"
    r"|(?P<less>less|fewer|shorter|younger|lower|smaller|lighter|cheaper|slower|earlier))"
)
_SIDES = r"(?:the\s)?(?P<one>[^,?]+?)\s(?:(?P<verb>(?-i:[a-z]{3,}))\s)?than\s(?:the\s)?(?P<other>[^,?]+?)\W*$"
_DIFFERENCE = re.compile(
    rf"\bhow\s(?:(?:much|many)\s)?{_MORE}\s(?:\w+\s){{0,3}}?(?:do|does|did|is|are|was|were|has|have|had)\s{_SIDES}",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"\bdifference\s(?:in\s(?P<of>\w+)\s)?between\s(?:the\s)?(?P<one>[^,?]+?)\sand\s(?:the\s)?(?P<other>[^,?]+?)\W*$",
    re.IGNORECASE,
)
_IS_MORE = re.compile(
    rf"^\W*(?:is|are|was|were|does|do|did)\s(?:the\s)?(?P<one>[^,?]+?)\s(?:(?P<verb>(?-i:[a-z]{{3,}}))\s)?{_MORE}\s"
    r"(?:\w+\s){0,2}?than\s(?:the\s)?(?P<other>[^,?]+?)\W*$",
    re.IGNORECASE,
)
MOST = r"most|largest|biggest|greatest|highest|longest|tallest|heaviest|deepest|widest|oldest|latest|newest|maximum"
FEWEST = r"least|fewest|smallest|lowest|shortest|lightest|cheapest|earliest|youngest|minimum"
_SUPERLATIVE = re.compile(rf"^\W*(?:which|what)\s(\w+)\s.*\b(?:(?P<most>{MOST})|(?P<fewest>{FEWEST}))\b", re.IGNORECASE)

_QUANTITY = re.compile(
    r"(?<![\w.,:/-])(?P<money>[$€£¥]\s?)?(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?![\d:/])"
    r"(?:[\s-]?(?P<unit>%|(?:cubic\s|square\s|US\s)?°?[^\W\d_]+[²³]?))?"
)
# Behind a number: of a day, an ordinal, an hour.
_NO_UNIT = frozenset(
    """
    january february march april may june july august september october november december st nd rd th am pm
    """.split()  # noqa: SIM905
)
_NUMBER_WORD = (
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty|several|many|hundred|more|other)"
)
_PARAGRAPH = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*•#|]|\d+[.)]\s))")
# "Oak, oiled: 1,765 euro" on a line of its own.
_ENTRY = re.compile(r"^[>\s]*[^\n:]{1,60}:[^\S\n]+[$€£¥]?\d[\d.,]*(?:[^\S\n]?[^\s\d]+){0,3}[^\S\n]*$", re.MULTILINE)
# "A table of oak", "one of ash".
_ONE_OF = re.compile(r"(?:an?\s|the\s)?(?P<noun>\w+)\sof\s(?:the\s)?(?P<name>.+)", re.IGNORECASE)
# A line of a log or a chat: it begins with a date or a time.
_RECORD = re.compile(r"^(?:\x1b\[[\d;]*m)*\[?\d[\d/.:T ,-]{6,}\S.*\S[^\S\n]*$", re.MULTILINE)
_SPEAKER = re.compile(r"\[?\d[\d/.:, -]{4,20}(?:\s?[AP]M)?\]?\s(?:-\s)?([^:\n\d]{1,40}):\s", re.IGNORECASE)
_LEVELS = ("ERROR", "WARN", "WARNING", "INFO", "DEBUG", "FATAL", "CRITICAL")
_RECORDS = roots("lines messages entries records events logged reported recorded sent written posted occurred happened")
_GOES_ON = re.compile(r"\W*(?:it|its|they|their|he|his|she|her|this)\b", re.IGNORECASE)
_DENIES = re.compile(r"\b(?:not|never|no|none|without|nor)\b|n['’]t\b", re.IGNORECASE)
# What is measured by words of a question, and the units of it, both as roots.
_DIMENSIONS = (
    (
        "cost price pay charg expensiv cheap fee rent worth earn",
        "$ € £ ¥ euro eur dollar us usd pound yuan yen mark franc",
    ),
    ("hold contain capaci larg big volum siz siz great small", "cubic litre liter l gallon barrel square hectar acre"),
    ("weigh heav weight light", "kg kilogram ton tonn g gram pound lb"),
    ("tall high long wid deep far short low length height width depth distanc", "m metr meter km kilometr cm mm feet"),
    ("long old young last tak age duration", "year month week day hour minut second"),
    ("fast slow speed", "km mph knot kilometr"),
)


@dataclass(frozen=True, slots=True)
class Figured:
    """An answer that was computed, and the sentences [start, end) of the text that it was computed from.

    partial: whether the text may tell the same of others in other words.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    partial: bool = False


@dataclass(frozen=True, slots=True)
class _Told:
    """A stretch of text that tells of a thing, behind its name, and the sentence that it is in."""

    start: int
    end: int
    sentence: tuple[int, int]


_Measures: TypeAlias = tuple[list[float], str, tuple[tuple[int, int], ...]]


def figured(text: str, question: str) -> Figured | None:
    """Computes what a question asks of a text; None where it asks for something else, or where the text does not
    settle it."""
    plain = " ".join(question.split())
    for compute in (_difference, _comparison, _extreme, _recorded, _listed):
        if found := compute(text, plain):
            return found
    return None


def _difference(text: str, question: str) -> Figured | None:
    """By how much one of two exceeds the other."""
    if match := _DIFFERENCE.search(question):
        less, word, verb = bool(match["less"]), match["more"], match["verb"] or ""
    elif match := _BETWEEN.search(question):
        less, word, verb = None, match["of"] or "", ""
    else:
        return None
    told = _compared(text, (match["one"], match["other"]), f"{question[: match.start('one')]} {verb} {word}")
    if told is None:
        return None
    (one, other), unit, spans = told
    gap = abs(one - other)
    if less is not None and (one < other) != less:  # the question has it the other way round
        return None
    high, low = max(one, other), min(one, other)
    return Figured(f"{_written(gap, unit)} ({_written(high, unit)} - {_written(low, unit)})", spans)


def _comparison(text: str, question: str) -> Figured | None:
    """Whether one of two exceeds the other."""
    if not (match := _IS_MORE.search(question)):
        return None
    told = _compared(text, (match["one"], match["other"]), f"{match['verb'] or ''} {match['more']}")
    if told is None:
        return None
    (one, other), unit, spans = told
    word = "Yes" if (one < other if match["less"] else one > other) else "No"
    sides = f"{match['one']}: {_written(one, unit)}; {match['other']}: {_written(other, unit)}"
    return Figured(f"{word}. {sides[0].upper()}{sides[1:]}.", spans)


def _extreme(text: str, question: str) -> Figured | None:
    """Which of several things with labels has the most, or the least, of what is asked for."""
    if not (match := _SUPERLATIVE.search(question)):
        return None
    things = _labelled(text, match[1])
    if len(things) < LEAST:
        return None
    told = _measured(text, things, question[match.end(1) :])
    if told is None:
        return None
    values, unit, spans = told
    best = (min if match["fewest"] else max)(values)
    chosen = [name for name, value in zip(things, values, strict=True) if value == best]
    return Figured(f"{', '.join(chosen)} ({_written(best, unit)})", spans)


def _listed(text: str, question: str) -> Figured | None:
    """All things of a kind, or those of which a sentence tells what the question says; their number, where it is asked
    for."""
    counts = _COUNTS.search(question)
    if not (match := counts or _LISTS.search(question)):
        return None
    noun = next(filter(None, match.groups()))
    things = _labelled(text, noun)
    if len(things) < LEAST:
        return None
    sought = roots(question[: match.start()] + question[match.end() :]) - _EMPTY - roots(noun)
    if sought & roots("more less fewer than before after least most first last"):
        return None
    if not sought and not _all_of_them(text, noun, things):
        return None
    told = _stretches(text, things)
    chosen: list[str] = []
    spans: list[tuple[int, int]] = []
    for name, some in told.items():
        for each in some:
            words = text[slice(*each.sentence)]
            if not sought <= roots(words):
                continue
            if sought and sum(map(words.count, things)) > 1 and not _joined(words, things):
                return None  # of which of them the sentence tells it is not told by its words
            if not sought or bool(_DENIES.search(words)) == bool(_DENIES.search(question)):
                chosen.append(name)
                spans.append(each.sentence)
                break
    if not chosen:
        return None
    names = ", ".join(chosen)
    if counts:
        names = f"{len(chosen)} ({names})"
    elif question.lstrip().casefold().startswith("which") and len(chosen) > 1 and singular(noun) == noun:
        return None  # one is asked for
    return Figured(names, tuple(spans), partial=bool(sought) and (bool(counts) or len(chosen) > 1))


def _recorded(text: str, question: str) -> Figured | None:
    """How many lines of a log or a chat have all words of a question, or which do: "How many errors did the scheduler
    report?", "How many messages did Ann send?"."""
    counts = _COUNTS.search(question)
    if not (match := counts or _LISTS.search(question)):
        return None
    lines = [found.span() for found in _RECORD.finditer(text)]
    if len(lines) < LEAST_RECORDS or 2 * len(lines) < len([line for line in text.splitlines() if line.strip()]):
        return None
    noun = root(next(filter(None, match.groups())).casefold())
    levels = {level for level in _LEVELS if root(level.casefold()) == noun}
    if not levels and noun not in _RECORDS:
        return None
    sought = roots(question[: match.start()] + question[match.end() :]) - _EMPTY - _RECORDS
    names = roots(" ".join(re.findall(r"(?<!^)\b[A-Z]\w+", question))) - {noun}
    chosen = []
    for start, end in lines:
        line = without_escapes(text[start:end])
        if levels and not any(re.search(rf"\b{level}\b", line) for level in levels):
            continue
        speaker = _SPEAKER.match(line)
        if sought <= roots(line) and (not speaker or names <= roots(speaker[1])):
            chosen.append((start, end))
    if not chosen or (not counts and len(chosen) > MOST_LINES):
        return None
    listed = "\n".join(" ".join(without_escapes(text[start:end]).split()) for start, end in chosen)
    return Figured(str(len(chosen)) if counts else listed, tuple(chosen), partial=bool(sought))


def _compared(text: str, names: tuple[str, str], hint: str) -> _Measures | None:
    one, other = names
    first, second = _ONE_OF.fullmatch(one), _ONE_OF.fullmatch(other)
    if first and second and normalize(second["noun"]) in ("one", "that", normalize(first["noun"])):
        one, other = first["name"], second["name"]
    return None if normalize(one) == normalize(other) else _measured(text, [one, other], hint)


def _measured(text: str, names: Sequence[str], hint: str) -> _Measures | None:
    """The figure of each name in the one unit that all have and the hint's words ask for, with the sentences."""
    asked = roots(hint)
    found: list[dict[str, dict[float, tuple[int, int]]]] = []  # of each name: unit -> value -> sentence
    for stretches in _stretches(text, names).values():
        units: dict[str, dict[float, tuple[int, int]]] = {}
        for told in stretches:
            for match in _QUANTITY.finditer(text, told.start, told.end):
                unit = _unit(match)
                if unit and _fits(unit, asked, roots(text[slice(*told.sentence)])):
                    units.setdefault(unit, {})[float(match["number"].replace(",", ""))] = told.sentence
        found.append(units)
    common = [unit for unit in found[0] if all(len(units.get(unit, ())) == 1 for units in found)] if found else []
    if len(common) != 1:
        return None
    pairs = [next(iter(units[common[0]].items())) for units in found]
    return [value for value, _ in pairs], common[0], tuple(dict.fromkeys(span for _, span in pairs))


def _stretches(text: str, names: Sequence[str]) -> dict[str, list[_Told]]:
    """Where a text tells of each of some names: behind it, up to the end of its sentence or the next name, and on
    through the sentences that begin with a pronoun."""
    places = sorted(
        (match.start(), match.end(), name)
        for name, words in ((name, r"\s+".join(map(re.escape, name.split()))) for name in names)
        for match in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE)
    )
    cuts = sorted(
        {0, *sentence_ends(text), *(m.start() for m in _PARAGRAPH.finditer(text)), len(text)}
        | {place for m in _ENTRY.finditer(text) for place in m.span()}
    )
    sentences = list(pairwise(cuts))
    told: dict[str, list[_Told]] = {name: [] for name in names}
    at = 0
    for number, (start, behind, name) in enumerate(places):
        following = places[number + 1][0] if number + 1 < len(places) else len(text)
        while sentences[at][1] <= start:
            at += 1
        told[name].append(_Told(behind, min(sentences[at][1], following), _trimmed(text, *sentences[at])))
        for begin, end in sentences[at + 1 :]:
            if begin >= following or _PARAGRAPH.match(text, begin) or not _GOES_ON.match(text, begin):
                break
            told[name].append(_Told(begin, min(end, following), _trimmed(text, begin, end)))
    return told


def _labelled(text: str, noun: str) -> list[str]:
    """The things of a kind that have labels, as the text writes them, in its order; none where it also lists them in
    another way ("tanks A and B", "two more tanks")."""
    word = re.escape(singular(noun.casefold()))
    if re.search(rf"\b{word}s\s+{_LABEL}(?:,|\sand\s)", text, re.IGNORECASE):
        return []
    found = re.finditer(rf"\b{word}\s+{_LABEL}(?!\w)", text, re.IGNORECASE)
    return list({normalize(match[0]): " ".join(match[0].split()) for match in found}.values())


def _all_of_them(text: str, noun: str, things: Sequence[str]) -> bool:
    """Whether a text seems to name all things of a kind: their labels go on from A or 1 without a gap, and it tells no
    number of them ("80 rooms")."""
    labels = sorted(name.split()[-1] for name in things)
    count = len(labels)
    if set(labels) not in ({str(n + 1) for n in range(count)}, {chr(ord("A") + n) for n in range(count)}):
        return False
    return not re.search(
        rf"\b(?:\d+|{_NUMBER_WORD})\s(?:\w+\s)?{re.escape(singular(noun.casefold()))}s\b", text, re.IGNORECASE
    )


def _joined(sentence: str, names: Sequence[str]) -> bool:
    """Whether all names of a sentence stand in one row, with nothing but commas and "and" between."""
    places = sorted(match.span() for name in names for match in re.finditer(re.escape(name), sentence))
    return all(re.fullmatch(r"[\s,&]*(?:and)?\s*", sentence[a:b]) for (_, a), (b, _) in pairwise(places))


def _unit(match: re.Match[str]) -> str:
    """What a quantity is counted in, as it is written; "" where it is a year, a day or a bare number."""
    if match["money"]:
        return match["money"].strip()
    unit = (match["unit"] or "").casefold()
    return "" if unit in _NO_UNIT or unit in STOPWORDS else unit


def _fits(unit: str, asked: frozenset[str], told: frozenset[str]) -> bool:
    """Whether what is asked for is measured in a unit, or is what the sentence with it tells."""
    of = {root(word) for word in unit.split()} | {unit}
    dimensions = [units.split() for words, units in _DIMENSIONS if asked & {*words.split()}]
    if dimensions:
        return any(of & {*units, *map(root, units)} for units in dimensions)
    return bool(asked & (told | of))


def _written(value: float, unit: str) -> str:
    number = f"{value:,.10g}"
    return f"{unit}{number}" if unit in "$€£¥" else f"{number}{'' if unit == '%' else ' '}{unit}"


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A stretch without the white space around it."""
    return end - len(text[start:end].lstrip()), start + len(text[start:end].rstrip())
