"""Every prompt, English and Chinese, written for instruction models of 0.5-1.5 billion parameters: one job each, short.

The memory is one unfinished turn of a chat: [opening of the turn][memory_intro][document]. A question continues that
turn with one of the `recall`, `rewrite`, `draft`, `memory_answer`, `memory_paragraph` or `part` texts and closes it;
so those texts begin with a break. The first three are asked in one batch and only searched with: they begin with the
question, which is computed once, and go on with few words of their own. The other prompts are whole turns.
Answers to be given are asked for with what to do first, then the question, then a cue ("Answer:") as the last word:
with the instruction last, a 0.5B model wrote full sentences where a name was asked for, or took the words for "not
found" as its answer; and a base model, without a chat template, needs the cue to know that it is its turn.
A user's file may replace any of them (`load_prompts`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from minimemo.errors import InputError
from minimemo.text.scripts import Language

if TYPE_CHECKING:
    from minimemo.models.tokenizer import Tokenizer

_PLACEHOLDERS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "recall": frozenset({"question"}),
        "rewrite": frozenset({"question"}),
        "draft": frozenset({"question"}),
        "memory_answer": frozenset({"question"}),
        "answer": frozenset({"passages", "question", "not_found"}),
        "paragraph": frozenset({"passages", "question", "not_found"}),
        "closed": frozenset({"question"}),
        "memory_paragraph": frozenset({"question"}),
        "part": frozenset({"words"}),
        "summary": frozenset({"parts"}),
        "gist": frozenset({"points", "passages", "question"}),
    }
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """The texts of one language; `{name}` marks a placeholder, a literal brace is doubled.

    Raises InputError naming the field when a placeholder is missing or unknown.
    """

    system: str  # the system message of every turn; "" for the model's own default
    memory_intro: str  # stands before the document in memory
    recall: str  # {question} -> passages of the document, one a line
    rewrite: str  # {question} -> other questions, one a line
    draft: str  # {question} -> a first answer from memory
    memory_answer: str  # {question} -> the answer of mode `memory`
    answer: str  # {passages} {question} {not_found} -> the answer from evidence
    paragraph: str  # {passages} {question} {not_found} -> the same for a question that asks for a paragraph
    memory_paragraph: str  # {question} -> the same from memory
    not_found: str  # what the model is to write when the passages do not hold the answer
    closed: str  # {question} -> the answer of mode `closed`
    part: str  # {words} -> what a part of the document tells, in so many words (Chinese: characters)
    summary: str  # {parts} -> the summary
    gist: str  # {points} {passages} {question} -> the answer of mode `gist`
    summary_query: str  # what to search for when memory tells of no part

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_placeholders(field.name, getattr(self, field.name))


def _check_placeholders(name: str, text: str) -> None:
    wanted = _PLACEHOLDERS.get(name, frozenset())
    try:
        found = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise InputError(f"prompt {name}: {error}; write a literal brace twice, {{{{ or }}}}") from error
    names = {str(field) for field, _, _ in found}
    for missing in sorted(wanted - names):
        raise InputError(f"prompt {name}: the placeholder {{{missing}}} is missing; put it where its text belongs")
    for unknown in sorted(names - wanted):
        allowed = ", ".join(f"{{{n}}}" for n in sorted(wanted)) or "none"
        raise InputError(
            f"prompt {name}: unknown placeholder {{{unknown}}} (allowed: {allowed}); write {{{{ for a brace"
        )
    if any(spec or conversion for _, spec, conversion in found):
        raise InputError(f"prompt {name}: placeholders take no format; write {{name}} alone")


ENGLISH = Prompts(
    system="You answer questions about a document.",
    memory_intro="Read this document carefully. Questions about it follow.\n\n",
    recall="\n\n---\nQuestion: {question}\nSentences of the document above that help to answer it, one per line:",
    rewrite="\n\n---\nQuestion: {question}\nThree short questions about the facts needed to answer it, one per line:",
    draft="\n\n---\nQuestion: {question}\nShort answer:",
    memory_answer=(
        "\n\n---\nAnswer the question from the document above, in the language of the question, with only the name, "
        "number, phrase or explanation asked for.\nQuestion: {question}\nAnswer:"
    ),
    answer=(
        "Answer the question from the passages. Write only the answer, nothing else. If they do not say, write: "
        "{not_found}.\n\nPassages:\n\n{passages}\n\nAnswer the question with a short phrase copied from the passages "
        "above. Write only the answer, nothing else.\n\nQuestion: {question}\nAnswer:"
    ),
    paragraph=(
        "Answer the question about a document from passages of it. If they do not say, write: {not_found}.\n\n"
        "Passages:\n\n{passages}\n\nAnswer the question in a detailed paragraph of about 150 words, with the names and "
        "details that the passages above give.\n\nQuestion: {question}\nAnswer:"
    ),
    memory_paragraph=(
        "\n\n---\nAnswer the question from the document above, in one detailed paragraph of about 150 words, with "
        "names and details.\nQuestion: {question}\nAnswer:"
    ),
    not_found="Not found",
    closed=(
        "Answer the question, in its own language, with only the name, number, phrase or explanation asked for.\n"
        "Question: {question}\nAnswer:"
    ),
    part=(
        "\n\n---\nWhat happens, or is discussed, in the document above? Answer in a paragraph of about {words} words, "
        "with names, in the order of the document.\nAnswer:"
    ),
    summary=(
        "Summaries of the parts of a document, in order:\n{parts}\n\nWrite a detailed summary of the whole document in "
        "about 200 words, with names and details, in the language of the parts. Do not add anything.\nSummary:"
    ),
    gist=(
        "Sentences recalled from a document:\n{points}\n\nPassages from it:\n\n{passages}\n\nAnswer the question about "
        "the document as a whole in a detailed paragraph of about 150 words, from the sentences and the passages.\n"
        "Question: {question}\nAnswer:"
    ),
    summary_query="What is this document about?",
)

CHINESE = Prompts(
    system="你根据文档回答问题。",
    memory_intro="请仔细阅读下面的文档，之后会有关于它的问题。\n\n",
    recall="\n\n---\n问题：{question}\n上面文档中有助于回答的原句，每行一句：",
    rewrite="\n\n---\n问题：{question}\n问清所需事实的三个小问题，每行一个：",
    draft="\n\n---\n问题：{question}\n简短的答案：",
    memory_answer=("\n\n---\n根据上面的文档回答问题。问人名、数字或短语时，只写答案本身。\n问题：{question}\n答案："),
    answer=(
        "根据段落回答问题，只写答案，不写别的。如果段落没有提到，就写：{not_found}。\n\n段落：\n\n{passages}\n\n"
        "用上面段落中的原文短语回答问题，只写答案，不写别的。\n\n问题：{question}\n答案："
    ),
    paragraph=(
        "根据段落回答问题。如果段落没有提到，就写：{not_found}。\n\n段落：\n\n{passages}\n\n"
        "用上面段落中的原句回答问题，写成一段话，不要列举。\n\n问题：{question}\n答案："
    ),
    memory_paragraph="\n\n---\n用上面文档中的原句回答问题，写成一段话，不要列举。\n问题：{question}\n答案：",
    not_found="未提及",
    closed="回答问题。问人名、数字或短语时，只写答案本身。\n问题：{question}\n答案：",
    part="\n\n---\n上面的文档里说了什么？用文档中的原句写成一段话，约{words}字，不要列举。\n内容：",
    summary="文档各部分的内容：\n{parts}\n\n根据上面的内容，用一段约200字的话写出整份文档的摘要，不要列举。\n摘要：",
    gist=(
        "从文档中回忆起的句子：\n{points}\n\n文档中的段落：\n\n{passages}\n\n"
        "根据这些句子和段落，用一段话回答关于整份文档的问题。\n问题：{question}\n答案："
    ),
    summary_query="这份文档主要讲了什么？",
)

PROMPTS: Mapping[Language, Prompts] = MappingProxyType({"en": ENGLISH, "zh": CHINESE})


@dataclass(frozen=True, slots=True)
class MemoryOpening:
    """What stands before the document in memory. `version` changes with any of it; a memo records it."""

    system: str | None
    intro: str
    version: str

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """The tokens to prefill before the document's own."""
        opening, _ = tokenizer.turn(self.system)
        return [*opening, *tokenizer.encode(self.intro)]


def memory_opening(language: Language, prompts: Mapping[Language, Prompts] = PROMPTS) -> MemoryOpening:
    """The opening for a document of `language`: the same at build and at ask, given the same prompts."""
    texts = prompts[language]
    version = hashlib.sha256(f"{texts.system}\0{texts.memory_intro}".encode()).hexdigest()[:16]
    return MemoryOpening(texts.system or None, texts.memory_intro, version)


def instruction(template: str) -> str:
    """A prompt without its placeholders: what a model that echoes its instructions would repeat."""
    return " ".join(literal for literal, _, _, _ in string.Formatter().parse(template))


def load_prompts(path: str | Path) -> Mapping[Language, Prompts]:
    """The prompts with those replaced that a file gives: `{"en": {"recall": "..."}, "zh": {...}}`, JSON or TOML.

    Raises InputError naming file, language and prompt for anything that is not a known prompt with its placeholders.
    """
    path = Path(path)
    content = _read_table(path)
    known = {field.name for field in dataclasses.fields(Prompts)}
    for key in content:
        if key not in PROMPTS:
            raise InputError(f"{path}: unknown language {key!r}; use {' or '.join(map(repr, PROMPTS))}")
    books = dict(PROMPTS)
    for language in PROMPTS:
        texts = content.get(language, {})
        if not isinstance(texts, dict):
            raise InputError(f"{path}: {language!r} must hold a table of prompts by name")
        for name, text in texts.items():
            if name not in known:
                raise InputError(f"{path}: {language}.{name} is no prompt; known: {', '.join(sorted(known))}")
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
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except ValueError as error:  # JSONDecodeError and TOMLDecodeError are ValueErrors
        raise InputError(f"{path}: not valid {path.suffix.lstrip('.').upper() or 'JSON'}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a table of languages, like {{'en': {{'recall': '...'}}}}")
    return content
