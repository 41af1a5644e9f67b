"""Every prompt, in prompts/en.toml and prompts/zh.toml, written for small instruction models: one job each, short.

The memory is one unfinished turn of a chat: [opening of the turn][memory_intro][document]. A question continues that
turn with one of the `recall`, `rewrite`, `draft`, `memory_answer`, `memory_paragraph` or `part` texts and closes it;
so those texts begin with a break. The first three are asked in one batch and only searched with: they begin with the
question, which is computed once, and go on with few words. The other prompts are whole turns.
Answers to be given are asked for with what to do first, then the question, then a cue ("Answer:") as the last word:
with the instruction last, a 0.5B model wrote full sentences where a name was asked for, or took the words for "not
found" as its answer; and a base model, without a chat template, needs the cue to know that it is its turn.
A user's file may replace any of them (`load_prompts`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

from minimemo.errors import InputError
from minimemo.files import parse_json
from minimemo.text.scripts import Language

if TYPE_CHECKING:
    from minimemo.models.tokenizer import Tokenizer


def _shipped(language: Language) -> dict[str, str]:
    path = Path(__file__).with_name("prompts") / f"{language}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _placeholders(text: str) -> frozenset[str]:
    return frozenset(str(name) for _, name, _, _ in string.Formatter().parse(text) if name is not None)


# What a prompt takes in any language is what it takes in English.
_PLACEHOLDERS: Mapping[str, frozenset[str]] = {name: _placeholders(text) for name, text in _shipped("en").items()}


@dataclass(frozen=True, slots=True)
class Prompts:
    """The texts of one language; `{name}` marks a placeholder, a literal brace is doubled.

    system: the system message of every turn; "" for the model's default.
    memory_intro: stands before the document in memory.
    recall: asks memory for sentences of the document, one a line.
    rewrite: asks memory for other questions, one a line.
    draft: asks memory for a first answer, to search with.
    memory_answer, memory_paragraph: ask memory for a short answer, and for a paragraph.
    answer, paragraph: ask for the same from passages.
    yes_no: asks whether something is so by the passages. It and `check` begin as `answer` does, up to the passages:
        what two prompts begin with is computed once.
    check: asks whether the passages state an answer. yes, no: the two answers to both, in one token each.
    not_found: what a model is to write when the passages do not hold the answer.
    unanswered: what a reader is told then. partial: and what where a list may lack something.
    closed: asks for an answer without any document.
    part: asks memory what its part of the document tells, in {words} words (Chinese: characters).
    summary: asks for a summary of what the parts tell.
    gist: asks for an answer on the whole document, from recalled sentences and passages.
    summary_query: what is searched for when memory tells nothing of any part.

    Raises InputError naming the field when a placeholder is missing or unknown.
    """

    system: str
    memory_intro: str
    recall: str
    rewrite: str
    draft: str
    memory_answer: str
    answer: str
    yes_no: str
    check: str
    yes: str
    no: str
    paragraph: str
    memory_paragraph: str
    not_found: str
    unanswered: str
    partial: str
    closed: str
    part: str
    summary: str
    gist: str
    summary_query: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_placeholders(field.name, getattr(self, field.name))


def _check_placeholders(name: str, text: str) -> None:
    allowed = _PLACEHOLDERS[name]
    try:
        names = _placeholders(text)
    except ValueError as error:
        raise InputError(f"prompt {name}: {error}; write a literal brace twice, {{{{ or }}}}") from error
    for missing in sorted(allowed - names):
        raise InputError(f"prompt {name}: the placeholder {{{missing}}} is missing; put it where its text belongs")
    for unknown in sorted(names - allowed):
        offered = ", ".join(f"{{{n}}}" for n in sorted(allowed)) or "none"
        raise InputError(
            f"prompt {name}: unknown placeholder {{{unknown}}} (allowed: {offered}); write {{{{ for a brace"
        )
    if any(form or conversion for _, _, form, conversion in string.Formatter().parse(text)):
        raise InputError(f"prompt {name}: placeholders take no format; write {{name}} alone")


PROMPTS: Mapping[Language, Prompts] = MappingProxyType(
    {language: Prompts(**_shipped(language)) for language in get_args(Language)}
)


@dataclass(frozen=True, slots=True)
class MemoryOpening:
    """What stands before the document in memory. `version` changes with any of it; a memo records it."""

    system: str | None
    intro: str
    version: str

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Returns the tokens to prefill before those of the document."""
        opening, _ = tokenizer.turn(self.system)
        return [*opening, *tokenizer.encode(self.intro)]


def memory_opening(language: Language, prompts: Mapping[Language, Prompts] = PROMPTS) -> MemoryOpening:
    """Gives the opening for a document of `language`: the same at build and at ask, given the same prompts."""
    texts = prompts[language]
    version = hashlib.sha256(f"{texts.system}\0{texts.memory_intro}".encode()).hexdigest()[:16]
    return MemoryOpening(texts.system or None, texts.memory_intro, version)


def load_prompts(path: str | Path) -> Mapping[Language, Prompts]:
    """Reads a user's prompts, JSON or TOML, `{"en": {"recall": "..."}, "zh": {...}}`; those it does not give stay.

    Raises InputError naming file, language and prompt for anything that is not a prompt with its placeholders.
    """
    path = Path(path)
    content = _read_table(path)
    for key in content:
        if key not in PROMPTS:
            raise InputError(f"{path}: unknown language {key!r}; use {' or '.join(map(repr, PROMPTS))}")
    books = dict(PROMPTS)
    for language in PROMPTS:
        texts = content.get(language, {})
        if not isinstance(texts, dict):
            raise InputError(f"{path}: {language!r} must hold a table of prompts by name")
        for name, text in texts.items():
            if name not in _PLACEHOLDERS:
                offered = ", ".join(sorted(_PLACEHOLDERS))
                raise InputError(f"{path}: {language}.{name} is no prompt; known: {offered}")
            if not isinstance(text, str):
                raise InputError(f"{path}: {language}.{name} must be text, not {type(text).__name__}")
        try:
            books[language] = dataclasses.replace(books[language], **texts)
        except InputError as error:
            raise InputError(f"{path}: {language}: {error}") from error
    return MappingProxyType(books)


def _read_table(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
        raise InputError(f"{path}: cannot read the prompts: {reason}") from error
    try:
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else parse_json(text)
    except ValueError as error:  # JSONDecodeError and TOMLDecodeError are ValueErrors
        raise InputError(f"{path}: not valid {path.suffix.lstrip('.').upper() or 'JSON'}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a table of languages, like {{'en': {{'recall': '...'}}}}")
    return content
