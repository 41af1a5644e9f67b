"""What `bench.memory` asks of a memory: documents and what follows them, questions on them, needles in haystacks.

Which documents is a rule, not a list, so that other data of the same layout (docs.jsonl, docs/, qa/, needle/) will do:
of each language and kind the shortest that is long enough, and of each source of joined passages one. Documents that
nobody asks about are haystacks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.common.data import HAY_SHARE, document_text, hide, needle_groups, read_rows
from minimemo.ask import Language, memory_opening
from minimemo.errors import InputError
from minimemo.models.tokenizer import Tokenizer

FOLLOW = 256  # tokens after the memory whose distributions are compared
AGAIN = 128  # tokens of a passage from its middle that is repeated after it, for the same
_CHARS = 12  # characters read for a token asked for; a document that has more to a token is too short for us
_MARGIN = 1.25  # approx_tokens of docs.jsonl are a guess


@dataclass(frozen=True, slots=True)
class Asked:
    """A question whose answer stands in the memory."""

    id: str
    kind: Literal["answer", "needle"]
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """ids: of the memory, the opening of the turn first; follow: how the document goes on, again: a passage of it (none
    after a haystack)."""

    name: str
    language: Language
    ids: tuple[int, ...]
    opening: int  # how many of the ids stand before the document
    follow: tuple[int, ...] = ()
    again: tuple[int, ...] = ()
    asked: tuple[Asked, ...] = ()


@dataclass(frozen=True, slots=True)
class Library:
    """A data folder. docs: the rows of docs.jsonl; questions: of each document."""

    folder: Path
    docs: tuple[dict[str, Any], ...]
    questions: dict[str, list[dict[str, Any]]] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Library:
        """Raises InputError when it is not of this layout."""
        questions: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for path in sorted((folder / "qa").glob("*.jsonl")):
            for row in read_rows(path):
                questions[row["doc_id"]].append(row)
        return cls(folder, tuple(read_rows(folder / "docs.jsonl")), dict(questions))

    def language(self, doc_id: str) -> Language:
        """Raises InputError for an unknown document."""
        for row in self.docs:
            if row["doc_id"] == doc_id:
                return "zh" if row["lang"] == "zh" else "en"
        raise InputError(f"{doc_id}: no such document in {self.folder / 'docs.jsonl'}")

    def measured(self, tokens: int) -> list[str]:
        """doc_ids that are measured with memories of `tokens` tokens when nobody names others."""
        enough = (tokens + FOLLOW) * _MARGIN
        return [
            min(fit, key=lambda row: row["approx_tokens"])["doc_id"]
            for group in self._groups().values()
            if (fit := [row for row in group if row["approx_tokens"] >= enough])
        ]

    def haystack(self, language: Language) -> str | None:
        """The shortest document of a language that nobody asks about."""
        hay = [row for row in self.docs if row["lang"] == language and row["doc_id"] not in self.questions]
        return min(hay, key=lambda row: row["approx_tokens"])["doc_id"] if hay else None

    def _groups(self) -> dict[tuple[str, ...], list[dict[str, Any]]]:
        """Documents that somebody asks about by language and kind; joined passages by their source."""
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in self.docs:
            if row["doc_id"] in self.questions:
                source = row["doc_id"].split("_")[0] if row["kind"] == "wiki-concat" else ""
                groups[row["lang"], row["kind"], source].append(row)
        return groups


def document_sample(
    library: Library, doc_id: str, tokenizer: Tokenizer, tokens: int, follow: int = FOLLOW, questions: int = 0
) -> Sample:
    """A memory of `tokens` tokens of a document's beginning, the `follow` next ones, and at most `questions` questions,
    spread evenly, whose answer lies in it. Raises InputError when the document is too short."""
    language = library.language(doc_id)
    opening = memory_opening(language).ids(tokenizer)
    text = document_text(library.folder, doc_id, _CHARS * (tokens + follow))
    ids, offsets = tokenizer.encode_with_offsets(text)
    room = tokens - len(opening)
    if room < 1 or len(ids) < room + follow:
        raise InputError(f"{doc_id}: {len(ids)} tokens, not the {max(room, 1) + follow} needed; lower --tokens")
    end = int(offsets[room - 1, 1])
    asked = [
        Asked(row["id"], "answer", row["question"], tuple(row["answers"]))
        for row in library.questions.get(doc_id, ())
        if row["type"] == "extractive" and "answer_span" in row and row["answer_span"][1] <= end
    ]
    return Sample(
        doc_id,
        language,
        (*opening, *ids[:room].tolist()),
        len(opening),
        tuple(ids[room : room + follow].tolist()),
        tuple(ids[room // 2 : room // 2 + AGAIN].tolist()),
        tuple(spread(asked, questions)),
    )


def haystack_samples(
    library: Library, language: Language, tokenizer: Tokenizer, tokens: int, rounds: int = 1
) -> list[Sample]:
    """Memories of `tokens` tokens with the needles of a language at even depths, several to a haystack. Each needle is
    hidden `rounds` times, every time among others and in other hay. One that would be most of its haystack is left
    out. Raises InputError when the hay is too short for them all."""
    hay, once = library.haystack(language), needle_groups(library.folder, language)
    groups = [(turn, group) for turn in range(rounds) for group in _turned(once, turn, rounds)]
    if hay is None or not groups:
        return []
    opening = memory_opening(language).ids(tokenizer)
    room = tokens - len(opening)
    batches = _share_out(groups, tokenizer, int(room * (1 - HAY_SHARE)))
    text = document_text(library.folder, hay, _CHARS * tokens * max(1, len(batches)))
    _, spans = tokenizer.encode_with_offsets(text)
    if room < 1 or len(spans) < room * len(batches):
        raise InputError(f"{hay}: too short a haystack for {len(batches)} times {tokens} tokens; lower --tokens")
    samples = []
    for number, batch in enumerate(batches):
        hidden = [needle["needle"] for _, group in batch for needle in group]
        straw = room - sum(_length(needle, tokenizer) for needle in hidden)
        first = number * room
        places = [int(spans[first + int(straw * (k + 0.5) / len(hidden)), 0]) for k in range(len(hidden))]
        ids = tokenizer.encode(hide(text, int(spans[first, 0]), places, hidden))[:room]
        asked = tuple(
            Asked(f"{group[0]['id']}/{turn}", "needle", group[0]["question"], tuple(group[0]["answers"]))
            for turn, group in batch
        )
        samples.append(Sample(f"{hay}+{number}", language, (*opening, *ids), len(opening), asked=asked))
    return samples


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly over all of them."""
    if count >= len(items):
        return list(items)
    return [items[int(at * len(items) / count)] for at in range(count)]


def _share_out(
    groups: Sequence[tuple[int, list[dict[str, Any]]]], tokenizer: Tokenizer, room: int
) -> list[list[tuple[int, list[dict[str, Any]]]]]:
    """Groups of needles, each with its round, into batches of one round and at most `room` tokens, in order."""
    batches: list[list[tuple[int, list[dict[str, Any]]]]] = []
    free = 0
    for turn, group in groups:
        size = sum(_length(needle["needle"], tokenizer) for needle in group)
        if size > room:
            continue
        if size > free or batches[-1][0][0] != turn:
            batches.append([])
            free = room
        batches[-1].append((turn, group))
        free -= size
    return batches


def _turned(items: Sequence[Any], turn: int, rounds: int) -> list[Any]:
    """The items from another one on in every round."""
    first = turn * len(items) // rounds
    return [*items[first:], *items[:first]]


def _length(needle: str, tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode(f"{needle}\n\n"))
