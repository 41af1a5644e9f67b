"""Answers of each mode to the questions of a set, each asked once: what was answered is kept in minimemo's folder."""

from __future__ import annotations

import hashlib
import sys
import time
from contextlib import closing
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

import minimemo
from bench.common.data import Question
from bench.common.kept import Kept
from bench.common.report import variant
from minimemo.ask import PROMPTS, Conversation, Session, Writer, detect_language
from minimemo.ask.answer import Found
from minimemo.ask.endpoint import CalledGenerator
from minimemo.files import cache_dir
from minimemo.memo.memo import Memo
from minimemo.memo.passages import GROUP
from minimemo.memory.tiers import DEFAULT
from minimemo.readers import read_document
from minimemo.runtime import Runtime
from minimemo.search.retriever import Retriever
from minimemo.search.vectors import VectorIndex
from minimemo.text.chunks import DEFAULT_SIZE, split
from minimemo.text.document import Document

MODES = ("closed", "gold", "rag", "memory", "memorag", "gist", "search")
_NO_MEMORY = ("closed", "gold", "rag", "search")
_ROOMS = ("ask", "search", "text")  # whose code decides an answer, beside models and memory


class Runner:
    """Opens one document at a time, builds a memo when a mode first needs its memory, answers each question once.

    generator: a second model, that writes the answers. Modes are the product's, and `gold`: the evidence itself as the
    passages, which is what the model could reach at best; and of follow-ups `search`: no model writes, the first
    question has the answer that the set gives. An answer is kept under everything that decides it: document, models,
    memory, prompts, and the code of the rooms that answer. `fresh`: ask again all the same.
    """

    def __init__(
        self,
        model: str | None = None,
        embedder: str | None = None,
        memory: str = DEFAULT,
        fresh: bool = False,
        generator: str | None = None,
    ) -> None:
        self.memory = memory
        self.model = minimemo.load_model(model)
        self.embedder = minimemo.open_embedder(embedder)
        self.generator = Runtime(self.model, generator=generator).second_decoder()
        self._doc_id = ""
        self._document: Document | None = None
        self._retriever: Retriever | None = None  # of what needs no memory
        self._memo: Memo | None = None
        self._kept = Kept("answers", fresh)

    def answer(self, question: Question, mode: str, max_tokens: int) -> dict[str, Any]:
        """The answer's record: `Answer.to_dict`, id, doc_id and seconds."""
        document = self._open(question)
        made_of: list[Any] = [self.model.located.fingerprint, self.embedder.fingerprint, document.sha256]
        if mode == "gold":
            made_of.append(question.evidence)
        elif mode not in _NO_MEMORY:
            made_of.append(asdict(self._with_memory().manifest.recipe))
        made_of += [mode, question.text, max_tokens, *([question.first] if question.first else [])]
        made_of += [[asdict(p) for p in PROMPTS.values()], code_version(), variant()]
        made_of += [self.generator.located.fingerprint] if self.generator else []
        made_of += [question.first_answer, question.held] if question.first else []
        record = self._kept.result(made_of, lambda: self._ask(question, mode, max_tokens))
        return {"id": question.id, "doc_id": question.doc_id, **record}

    def _followed(self, question: Question, mode: str) -> dict[str, Any]:
        """Whether the passages that a question would be answered from have its `held`: asked alone, and in a
        conversation after `first`."""
        begin = time.perf_counter()
        record: dict[str, Any] = {"text": "", "passages": []}
        session, way = self._session_of(mode), cast(Any, mode)
        if mode == "search":
            session, way = self._without_memory(CalledGenerator(lambda _: question.first_answer, self._count)), "rag"
        talk = Conversation(session)
        talk.ask(question.first, way)
        record["asked"] = talk.alone(question.text)
        talks: dict[str, Any] = {"alone": session, "conversation": talk}
        for name, asked in talks.items():
            start = time.perf_counter()
            with closing(asked.stream(question.text, way)) as steps:
                passages = next(step for step in steps if isinstance(step, Found)).passages  # comes before the answer
            record[name] = any(question.held in passage.text for passage in passages)
            record[f"{name}_s"] = time.perf_counter() - start
        return {**record, "seconds": time.perf_counter() - begin}

    def _ask(self, question: Question, mode: str, max_tokens: int) -> dict[str, Any]:
        if question.type == "followup":
            return self._followed(question, mode)
        session = self._session_of(mode)
        begin = time.perf_counter()
        if mode == "gold":
            texts = [self._open(question).text[start:end] for start, end in question.evidence]
            answer = session.answer(question.text, texts, max_tokens)
        else:
            answer = session.ask(question.text, cast(Any, mode), max_tokens)
        return {"seconds": time.perf_counter() - begin, **answer.to_dict()}

    def _session_of(self, mode: str) -> Session:
        return self._without_memory() if mode in _NO_MEMORY else self._with_memory().session()

    def _open(self, question: Question) -> Document:
        if self._document is None or question.doc_id != self._doc_id:
            self._memo = self._retriever = None  # one memory at a time
            self._doc_id = question.doc_id
            self._document = read_document(question.path)
        return self._document

    def _with_memory(self) -> Memo:
        """The document's memo. A build that was killed goes on where it was."""
        if self._memo is None:
            assert self._document is not None
            name = f"{self._doc_id}-{self.model.located.fingerprint[:8]}-{self.memory}.memo"
            begin = time.perf_counter()
            models: dict[str, Any] = {"model": self.model, "embedder": self.embedder}
            folder = cache_dir() / "bench" / name
            self._memo = minimemo.build(self._document, folder, memory=self.memory, **models)
            if self.generator:
                self._memo = minimemo.open(folder, generator=self.generator, **models)
            print(f"{self._doc_id}: memo ready after {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        return self._memo

    def _without_memory(self, generator: CalledGenerator | None = None) -> Session:
        """A session over the passages that a memo would have: what answers without memory needs no prefill of all."""
        assert self._document is not None
        text, embedder = self._document.text, self.embedder.embedder
        if self._retriever is None:
            size = min(DEFAULT_SIZE, embedder.passage_room)
            chunks = split(text, embedder.offsets(text), size=size)
            groups = [chunks[at : at + GROUP] for at in range(0, len(chunks), GROUP)]  # as a build embeds them
            vectors = np.concatenate([embedder.embed_passages([chunk.text for chunk in some]) for some in groups])
            self._retriever = Retriever(VectorIndex.build(vectors), chunks, embedder)
        second = Writer(self.generator.engine, self.generator.tokenizer) if self.generator else None
        return Session(
            self.model.engine,
            self.model.tokenizer,
            self._retriever,
            _no_memory,
            documents=[self._document.name],
            language=detect_language(text),
            generator=generator or second,
        )

    def _count(self, text: str) -> int:
        return len(self.model.tokenizer.encode(text))


def _no_memory() -> Any:
    raise AssertionError("a mode without memory asked for it")


@cache
def code_version() -> str:
    """A hash of the code that turns a question into an answer."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((Path(minimemo.__file__).parent / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
