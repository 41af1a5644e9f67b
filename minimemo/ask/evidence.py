"""A question and its clues are searched for, and what they hit becomes the passages of one prompt: ranked, within a
token budget, in document order, none twice. Or sentences of them are the answer: the document's own words, in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from minimemo.ask.answer import CITED, SUPPORTED, Answer, Found, Passage, cite, support
from minimemo.ask.question import Question
from minimemo.text.document import Place
from minimemo.text.tables import named_rows
from minimemo.text.words import content_units, without_blobs, without_escapes, without_points

if TYPE_CHECKING:
    from minimemo.memory.view import Span
    from minimemo.search.retriever import Hit, Retriever

EVIDENCE_TOKENS = 1500  # Passages of an answer take at most so many tokens.
# The question retrieves three passages for a short answer: eight instead gained F1 on literaryqa (12.6 to 24.2, 30
# questions) and lost it on loogle (54.8 to 42.5, 14 questions).
QUESTION_HITS = 3
# For an English paragraph it retrieves eight, and all that fit are shown. In Chinese, eight passages make a 0.5B model
# write a list of what they are about: ROUGE-L on vcsum 13.8, with three 17.6 (14 questions).
PARAGRAPH_HITS = 8
# A quotation is looked for among the sentences of eight passages: F1 on contracts 37.2, with five 35.8, three 33.0.
QUOTATION_HITS = 8
CLUE_HITS = 3  # Each clue retrieves so many.
# A passage is shown beside the best one, but for a paragraph, when it has this share of its score at least. A 0.5B
# model takes answers from passages that do not hold them: F1 on xquad_en 0.57 from the best passage alone, 0.42 and
# 0.40 from two and three (40 questions).
STAND_OUT = 0.8

# A document of at most so many tokens is read whole, but by small models (docs/decisions/34).
WHOLE_TOKENS = 1500
_TOKEN_CHARACTERS = 8  # a longer text is not counted

LABEL = "[{number}] "  # Passages are numbered so in a prompt.
SEPARATOR = "\n\n"
_HERE = "\0"  # where passages stand
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


class Whole(NamedTuple):
    """A document that is read whole, as one passage; what all prompts on it begin with; and what writes one, as
    `prompt_with` does, from a template and an answer."""

    passage: Passage
    beginning: str
    prompt: Callable[..., str]


class Evidence:
    """Searches one or several documents for what answers are written from.

    documents: their names, in the order of the retriever's; place_of: tells the place of a character of one.
    """

    def __init__(
        self, retriever: Retriever, documents: Sequence[str], place_of: Callable[[str, int], Place | None]
    ) -> None:
        self.holds = retriever.holds  # whether a passage has a word
        self._retriever = retriever
        self._documents = documents
        self._place_of = place_of

    def find(self, question: Question, found: Found) -> Found:
        """Gives what was found with the passages that the question and its clues retrieve, and each side of what it
        compares.

        A draft is short and takes its subject from the question: together they search best (Query2doc, 2303.07678). It
        is not shown: small models copy one that they are shown, right or wrong, which cost the 0.5B 13.7 points of F1
        on xquad_zh (40 questions).
        """
        queries = [("question", text) for text in (question.text, *question.sides)]
        lead = len(queries)
        for clue in found.clues:
            queries.append((clue.kind, f"{question.text} {clue.text}" if clue.kind == "draft" else clue.text))
        stand_out = 0.0 if question.kind == "paragraph" else STAND_OUT
        prompt = partial(prompt_with, question)
        return replace(found, passages=self.search(question, queries, EVIDENCE_TOKENS, prompt, lead, stand_out))

    def search(
        self,
        question: Question,
        queries: Sequence[tuple[str, str]],
        budget: int,
        prompt: Callable[[Sequence[Passage]], str],
        lead: int = 1,
        stand_out: float = 0.0,
    ) -> tuple[Passage, ...]:
        """Gives the passages that the queries retrieve and the prompt has room for, `budget` tokens at most; see
        `rank_passages` and `fit`. queries: "question" or a clue's kind, and the text."""
        paragraph = question.kind == "paragraph"
        most = PARAGRAPH_HITS if paragraph and question.language == "en" else QUESTION_HITS
        with question.clock.stage("retrieve"):
            kinds, texts = zip(*queries, strict=True)
            hits = self._retriever.retrieve(texts, max(most, CLUE_HITS), regions=paragraph)
            limits = [most if kind == "question" else CLUE_HITS for kind in kinds]
            kept = [best[:limit] for best, limit in zip(hits, limits, strict=True)]
            question.hits = kept[0] if kinds[0] == "question" else ()
            ranked = rank_passages(kinds, kept, lead, stand_out, self._documents)
        return self.placed(fit(question, ranked, budget, prompt))

    def whole(self, question: Question) -> Whole | None:
        """Gives the one document that is searched, where it takes at most WHOLE_TOKENS and its prompt fits."""
        text = self._retriever.whole(_TOKEN_CHARACTERS * WHOLE_TOKENS)
        passage = Passage(0, len(text), text, 1.0, document=self._documents[0])
        if not text or _cost(passage, question.generator.count) > WHOLE_TOKENS:
            return None
        whole = _prompts_on(question, passage)
        return whole if question.left(whole.prompt()) >= 0 else None

    def holding(self, answer: Answer, retrieved: Sequence[Passage]) -> tuple[Passage, ...]:
        """Gives the passages that an answer from the whole document rests on: of those that hold as many of its words
        as any does, the `retrieved`, else the QUESTION_HITS with the most of the question's. The retrieved where none
        holds SUPPORTED of it."""
        if answer.guess is not None:
            return tuple(replace(passage, cited=False, span=None) for passage in retrieved)
        every = rank_passages(["question"], [self._retriever.every()], documents=self._documents)
        cited = cite(answer.text, answer.asked, retrieved)
        most, ours = (
            max((support(answer.text, answer.asked, passage.text) or 0.0 for passage in some), default=0.0)
            for some in (every, cited)
        )
        if most < SUPPORTED or ours >= CITED * most:
            return cited
        asked = content_units(answer.asked)
        held = [passage for passage in cite(answer.text, answer.asked, every) if passage.cited]
        held.sort(key=lambda passage: -len(asked & content_units(passage.text)))
        return self.placed(sorted(held[:QUESTION_HITS], key=lambda passage: passage.start))

    def computed(self, question: Question) -> tuple[str, Found] | None:
        """Counts, lists or compares, where the documents' words settle it, with the passages that hold what it was
        computed from."""
        if not (told := self._retriever.figured(question.text)):
            return None
        figured, hits = told
        with question.clock.stage("retrieve"):
            ranked = rank_passages(["question"], [hits], documents=self._documents)
        passages = fit(question, ranked, EVIDENCE_TOKENS, lambda _: "")
        spans = [next((s for s in figured.spans if p.start <= s[0] and s[1] <= p.end), None) for p in passages]
        cited = [replace(p, cited=True, span=span) for p, span in zip(passages, spans, strict=True)]
        text = figured.text + (f" ({question.prompts.partial})" if figured.partial else "")
        return text, Found(passages=self.placed(cited))

    def quoted(self, question: Question) -> tuple[str, Found, bool]:
        """Gives the sentences that the question retrieves as they stand in the documents, the passages that hold them,
        and whether those have a word of what was asked for.

        What a 0.5B or 1.5B model copies when it is told to quote is mostly its own invention: F1 on contracts 22.6 and
        31.7, of the retrieved sentence 45 (28 and 14 questions).
        """
        with question.clock.stage("retrieve"):
            (hits,) = self._retriever.retrieve([question.text], QUOTATION_HITS)
            ranked = rank_passages(["question"], [hits], documents=self._documents)
            sentences = self._retriever.quote(question.text, hits)
        ranked = quoted_first(ranked, sentences, self._documents)
        found = Found(passages=self.placed(fit(question, ranked, EVIDENCE_TOKENS, lambda _: "")))
        named = any("lexical" in sentence.sources for sentence in sentences)
        return quotation(sentences, self._documents), found, named

    def sentences(self, question: Question) -> list[str]:
        """Gives the sentences that say best what a question that was searched for is about, best first."""
        sentences = self._retriever.quote(question.text, question.hits)
        return [" ".join(sentence.chunk.text.split()) for sentence in sentences]

    def placed(self, passages: Sequence[Passage], answer: str = "") -> tuple[Passage, ...]:
        """Gives the passages, each with the page, heading or time of its beginning, or of what is cited for the
        answer."""
        return tuple(placed(passage, self._place_of, answer) for passage in passages)

    def characters(self, spans: Sequence[Span]) -> tuple[tuple[str, int, int], ...]:
        """Gives about which characters of which document spans of tokens are."""
        at = self._retriever.characters
        return tuple((self._documents[span.memory], *at(span.memory, span.start, span.end)) for span in spans)


def placed(passage: Passage, place_of: Callable[[str, int], Place | None], answer: str = "") -> Passage:
    """Gives a passage with the place where the answer stands in its `span`, a sentence that may go on over the page, or
    where that begins, or else its first word; place_of: (document's name, character) -> place."""
    begin = passage.start + len(passage.text) - len(passage.text.lstrip())
    if passage.span:
        words = r"\s+".join(map(re.escape, answer.strip(" .。").split()))
        stands = re.compile(words, re.IGNORECASE).search(passage.text, *(at - passage.start for at in passage.span))
        begin = passage.start + stands.start() if stands else passage.span[0]
    place = place_of(passage.document, begin)
    if place is None:
        return passage
    return replace(passage, page=place.page, label=place.label, heading=place.heading, time=place.time)


def prompt_with(question: Question, passages: Sequence[Passage] | None, template: str = "", answer: str = "") -> str:
    """Writes the prompt for an answer from passages, or another `template` on them (and an `answer`); None: "..." in
    their place."""
    shown = "..." if passages is None else render_passages(passages, question.text)
    return _filled(question, template or question.template, shown, answer)


def _prompts_on(question: Question, passage: Passage) -> Whole:
    """The rows of a table that the question names stand behind the document."""
    text, rows = _shown(passage), named_rows(passage.text, "", question.text)
    shown = "\n\n".join(filter(None, [text, rows]))
    begins = _filled(question, question.template, _HERE, "").split(_HERE)[0] + text

    def prompt(template: str = "", answer: str = "") -> str:
        return _filled(question, template or question.template, shown, answer)

    return Whole(passage, begins, prompt)


def _filled(question: Question, template: str, shown: str, answer: str) -> str:
    return template.format(passages=shown, question=question.text, not_found=question.prompts.not_found, answer=answer)


def fit(
    question: Question, ranked: Sequence[Passage], budget: int, prompt: Callable[[Sequence[Passage]], str]
) -> tuple[Passage, ...]:
    """Picks the best passages that fit the budget and, with the prompt that they stand in, the context."""
    count, budget = question.generator.count, min(budget, question.left(prompt(())))
    passages = fit_passages(ranked, budget, count)
    while passages and (left := question.left(prompt(passages))) < 0:
        budget += left  # joined texts may take a token more than their parts
        passages = fit_passages(ranked, budget, count)
    return passages


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
    return _cut(passage, start, end) if start < end else None


def _longest_fitting(passage: Passage, budget: int, count_tokens: Callable[[str], int]) -> Passage:
    """Cuts a passage to its longest beginning that fits, by bisection over characters."""
    low, high = 0, len(passage.text)
    while low < high:
        middle = (low + high + 1) // 2
        if _cost(replace(passage, text=passage.text[:middle]), count_tokens) <= budget:
            low = middle
        else:
            high = middle - 1
    return _cut(passage, passage.start, passage.start + low)


def _cut(passage: Passage, start: int, end: int) -> Passage:
    """The part from character `start` to `end` of the document."""
    text = passage.text[start - passage.start : end - passage.start]
    return replace(passage, start=start, end=end, text=text)


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
