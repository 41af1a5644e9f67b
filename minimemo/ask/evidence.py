"""Hits of many queries become the passages of one prompt: ranked, within a token budget, in document order, none twice.
Or sentences of them are the answer: the document's own words, in its order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from minimemo.text.document import Place
from minimemo.text.tables import named_rows
from minimemo.text.words import without_blobs, without_escapes, without_points

if TYPE_CHECKING:
    from minimemo.search.retriever import Hit

LABEL = "[{number}] "  # Passages are numbered so in a prompt.
SEPARATOR = "\n\n"
_Place = tuple[int, int, int]  # document, first character, end
_VOTERS = 3  # Clues share one vote; with fewer than this many, each has no more than one of three.

# A line of a chat with a question: date or time, name, colon.
_ASKS = re.compile(
    r"^(\[?\d[\d/.:, -]{4,20}(?:\s?[AP]M)?\]?\s(?:-\s)?[^:\n\d]{1,40}):\s(.*[?？]\W*)$", re.MULTILINE | re.IGNORECASE
)
_STRETCH = re.compile(r"[.!?](?=\s)|[。！？]|\n")
_ORDER = re.compile(
    r"""
    \b(?:ignore|disregard|forget|override[sn]?|bypass)\b.{0,40}
      \b(?:instructions?|prompts?|rules?|directions?|guidelines|passages?|(?:above|before)(?=\W*$))
  | ^\W*(?:system|assistant|instructions?|prompt)(?:\s(?:prompt|message|note))?\s*[:：\]>]
  | ^\#+\s*(?:new\s)?(?:system|instructions?)\W*$
  | <\|?/?(?:im_start|im_end|system|user|assistant|endoftext)\|?>
  | \b(?:answer|reply|respond)\b.{0,30}\b(?:only|always|nothing\sbut)\b.{0,20}\b(?:with|words?|by)\b
  | ^\W*(?:you\smust\s)?(?:only|always)\s(?:answer|reply|respond)\b
  | \b(?:answer|reply|response)s?\sto\s(?:every|each|any|all)\squestions?\s(?:is|must|should|with)\b
  | \b(?:whatever|no\smatter\swhat|whenever)\s(?:is|you\sare|the\suser|anyone)\b.{0,12}\bask
  | \b(?:you\sare|act\sas|pretend)\b.{0,20}\b(?:AI|assistant|language\smodel|chatbot)\b
  | (?:忽略|无视|無視|不要理会|不要理會|忘记|忘記|不用管).{0,16}(?:指令|指示|提示|规则|規則|要求|命令)
  | ^\W*(?:系统|系統|指令|提示词|提示詞)\s*[:：]
  | (?:无论|無論|不管|不论|不論).{0,8}问.{0,12}(?:回答|回复|回覆|輸出|输出|说)
  | (?:只能|只准|一律|总是|總是)(?:回答|回复|回覆|输出|輸出)
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of evidence: `text == [start:end]` of the document's text, in characters.

    score: the best one over the queries that retrieved it.
    sources: the retrieval lists that it came from, "embedding" and "lexical".
    found_by: "question", or the kinds of clue that retrieved it.
    cited: whether the answer's words come from it (see `cite`).
    span: of a cited passage, the sentence that holds most of the answer's words: [start, end) of the document's text.
    document: its name.
    header: of the table that it begins inside of; it is no part of the text.
    page, label, heading, time: where the answer's words stand, else its sentence, else where it begins; see
    text.document.Place.
    """

    start: int
    end: int
    text: str
    score: float
    sources: tuple[str, ...] = ()
    found_by: tuple[str, ...] = ()
    cited: bool = False
    span: tuple[int, int] | None = None
    document: str = ""
    header: str = ""
    page: int | None = None
    label: str = ""
    heading: tuple[str, ...] = ()
    time: str = ""

    def placed(self, place_of: Callable[[str, int], Place | None], answer: str = "") -> Passage:
        """Returns it with the place where the answer stands in its `span`, a sentence that may go on over the page, or
        where that begins, or else its first word; place_of: (document's name, character) -> place."""
        begin = self.start + len(self.text) - len(self.text.lstrip())
        if self.span:
            words = r"\s+".join(map(re.escape, answer.strip(" .。").split()))
            stands = re.compile(words, re.IGNORECASE).search(self.text, *(at - self.start for at in self.span))
            begin = self.start + stands.start() if stands else self.span[0]
        place = place_of(self.document, begin)
        if place is None:
            return self
        return replace(self, page=place.page, label=place.label, heading=place.heading, time=place.time)

    @property
    def where(self) -> str:
        """Where it stands, for people: its page by the printed number, else headings or time; "" in plain text."""
        if self.page is not None:
            return f"p. {self.label or self.page}"
        return " > ".join(self.heading) or self.time

    @property
    def quoted(self) -> str:
        """The sentence of its span, the whole of it where there is none, in one line."""
        begin, end = self.span or (self.start, self.end)
        return " ".join(self.text[begin - self.start : end - self.start].split())

    def cut(self, start: int, end: int) -> Passage:
        """Returns the part from character `start` to `end` of the document."""
        return replace(self, start=start, end=end, text=self.text[start - self.start : end - self.start])


def rank_passages(
    kinds: Sequence[str],
    hits: Sequence[Sequence[Hit]],
    lead: int = 1,
    stand_out: float = 0.0,
    documents: Sequence[str] = ("",),
) -> tuple[Passage, ...]:
    """Unites the hits of several queries (one list each, best first) into passages, best first.

    kinds: what each query is, "question" or a clue's kind. documents: the names of those that hits count through.

    A passage weighs the mean of what the `lead` first queries score it and the mean of what the others do: what one
    clue alone finds weighs little, what all find as much as what the question finds. Left out are passages below
    `stand_out` (0 to 1) times the best weight, but for those that stand out among a leading query's own hits, and a
    leading query's first hit comes before all others: no clue can push them out. A passage keeps its best score and
    the kinds that retrieved it.
    """
    hits_at: dict[_Place, list[tuple[Hit, str]]] = {}
    weights: dict[_Place, float] = {}
    first: set[_Place] = set()
    kept: set[_Place] = set()
    for number, (kind, query_hits) in enumerate(zip(kinds, hits, strict=True)):
        share = 1 / lead if number < lead else 1 / max(_VOTERS, len(kinds) - lead)
        for rank, hit in enumerate(query_hits):
            place = hit.document, hit.chunk.start, hit.chunk.end
            hits_at.setdefault(place, []).append((hit, kind))
            weights[place] = weights.get(place, 0.0) + share * hit.score
            if number < lead and hit.score >= _floor(query_hits[0].score, stand_out):
                kept.add(place)
            if number < lead and rank == 0:
                first.add(place)
    floor = _floor(max(weights.values(), default=0.0), stand_out)
    shown = [place for place in hits_at if place in kept or weights[place] >= floor]
    shown.sort(key=lambda place: (place not in first, -weights[place], place))
    return tuple(_passage(hits_at[place], documents[place[0]]) for place in shown)


def _floor(best: float, stand_out: float) -> float:
    """The least score beside the best one. Scores are about a mean of 0: in a short document all may lie below it."""
    return best - (1 - stand_out) * abs(best) if stand_out else -inf


def _passage(entries: Sequence[tuple[Hit, str]], document: str) -> Passage:
    best = max((hit for hit, _ in entries), key=lambda hit: hit.score)
    chunk = best.chunk
    sources = dict.fromkeys(source for hit, _ in entries for source in hit.sources)
    kinds = dict.fromkeys(kind for _, kind in entries)
    return Passage(
        chunk.start,
        chunk.end,
        chunk.text,
        float(best.score),
        tuple(sources),
        tuple(kinds),
        document=document,
        header=best.header,
    )


def fit_passages(ranked: Sequence[Passage], budget: int, count_tokens: Callable[[str], int]) -> tuple[Passage, ...]:
    """Picks the best passages whose labelled texts take at most `budget` tokens, by document's name and in its order.

    Text that a better passage already shows is cut off; a passage that does not fit is passed over for smaller ones,
    but the best one is cut rather than dropped: its longest fitting beginning stays.
    """
    chosen: list[Passage] = []
    left = budget
    for passage in ranked:
        trimmed = _without(passage, chosen)
        if trimmed is None:
            continue
        cost = _cost(trimmed, count_tokens)
        if cost > left and not chosen:
            trimmed = _longest_fitting(trimmed, left, count_tokens)
            cost = _cost(trimmed, count_tokens)
        if trimmed.text.strip() and cost <= left:
            chosen.append(trimmed)
            left -= cost
    return tuple(sorted(chosen, key=lambda passage: (passage.document, passage.start)))


def render_passages(passages: Sequence[Passage], question: str = "") -> str:
    """Writes passages into one text, numbered from 1, a blank line between: "[1] first passage".

    Of a table, the rows that the question names are written with the names of their columns, else all under the header.
    What gives orders to a model, not to a reader, is left out: small models follow it wherever it stands. Who asks
    something in a chat is said to ask: they take the one who asks who brings the tent for the one who does. Vowel signs
    of Arabic and Hebrew are left out too: models have read few texts with them.
    """
    shown = (named_rows(p.text, p.header, question) or _shown(p) for p in passages)
    return SEPARATOR.join(LABEL.format(number=n) + text for n, text in enumerate(shown, 1))


def without_orders(text: str) -> str:
    """Puts "[...]" in place of the sentences that tell a model to forget what it was told, or what to answer."""
    if not _ORDER.search(text):
        return text
    cuts = sorted({0, *(m.end() for m in _STRETCH.finditer(text)), len(text)})
    kept = (text[a:b] if not _ORDER.search(text[a:b]) else "[...]\n" for a, b in pairwise(cuts))
    return "".join(kept).replace("[...]\n[...]", "[...]")


def _shown(passage: Passage) -> str:
    plain = _ASKS.sub(r"\1 asks: \2", without_points(without_blobs(without_escapes(passage.text.strip()))))
    return "\n".join(filter(None, [passage.header, without_orders(plain)]))


def _cost(passage: Passage, count_tokens: Callable[[str], int]) -> int:
    return count_tokens(LABEL.format(number=10) + _shown(passage) + SEPARATOR)


def _without(passage: Passage, chosen: Sequence[Passage]) -> Passage | None:
    """Cuts off what the chosen passages cover; None when nothing is left, or only pieces on both sides."""
    start, end = passage.start, passage.end
    for other in chosen:
        if other.document != passage.document:
            continue
        if other.start <= start < other.end:
            start = min(other.end, end)
        elif other.start < end <= other.end:
            end = other.start
        elif start < other.start and other.end < end:
            return None
    return passage.cut(start, end) if start < end else None


def _longest_fitting(passage: Passage, budget: int, count_tokens: Callable[[str], int]) -> Passage:
    """Cuts a passage to its longest beginning that fits, by bisection over characters."""
    low, high = 0, len(passage.text)
    while low < high:
        middle = (low + high + 1) // 2
        if _cost(replace(passage, text=passage.text[:middle]), count_tokens) <= budget:
            low = middle
        else:
            high = middle - 1
    return passage.cut(passage.start, passage.start + low)


def quotation(sentences: Sequence[Hit], documents: Sequence[str]) -> str:
    """Writes sentences one a line, in order; documents: the names of those that hits count through."""
    ordered = sorted(sentences, key=lambda one: (documents[one.document], one.chunk.start))
    return "\n".join(" ".join(one.chunk.text.split()) for one in ordered)


def quoted_first(
    passages: Sequence[Passage], sentences: Sequence[Hit], documents: Sequence[str]
) -> tuple[Passage, ...]:
    """Puts the passages that hold one of the sentences before all others, and marks them as cited."""
    places = [(documents[one.document], one.chunk.start) for one in sentences]
    marked = [
        replace(p, cited=any(p.document == document and p.start <= start < p.end for document, start in places))
        for p in passages
    ]
    return tuple(sorted(marked, key=lambda passage: not passage.cited))
