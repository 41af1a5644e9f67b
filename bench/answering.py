"""Answers of each mode to the questions of a set, each asked once: what was answered is kept in minimemo's folder."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import minimemo
from bench.questions import Question
from bench.vectors import passage_vectors
from minimemo.ask import DEFAULTS, PROMPTS, Clue, Session, detect_language
from minimemo.ask.answer import Mode
from minimemo.ask.clues import CAPS, ClueKind, parse_draft, parse_lines
from minimemo.ask.run import Run
from minimemo.ask.writer import LocalGenerator
from minimemo.files import cache_dir
from minimemo.memo.memo import Memo
from minimemo.memory.tiers import DEFAULT
from minimemo.search.index import Retriever, VectorIndex
from minimemo.text.chunks import DEFAULT_OVERLAP, DEFAULT_SIZE, split
from minimemo.text.document import Document, read_document

MODES = ("closed", "gold", "rag", "gold_clue", "memory", "memorag", "gist")
_NO_MEMORY = ("closed", "gold", "rag", "gold_clue")
_LOOP = ("loop", "retrieval")  # the rooms whose code decides an answer, beside models and memory


class Oracle(Session):
    """A session whose memory, when it is asked for clues, recalls what it is given."""

    clues: tuple[Clue, ...] = ()

    def _run(self, question: str, mode: Mode, max_tokens: int) -> Run:
        """Never of the whole document, for which a memory would be walked through that is not there."""
        run = super()._run(question, mode, max_tokens)
        return replace(run, form="paragraph") if run.form == "whole" else run

    def _recollect(self, kinds: Sequence[ClueKind], run: Run) -> tuple[tuple[Clue, ...], str]:
        return self.clues, ""


class Runner:
    """Opens one document at a time, builds a memo when a mode first needs its memory, answers each question once.

    Modes are the product's, with its own settings, and two oracles: `gold`, the evidence itself as the passages, which
    is what the model could reach at best; `gold_clue`, memorag with the right answer as what the memory recalls. An
    answer is kept under everything that decides it: document, models, memory, settings, prompts, and the code of loop
    and retrieval, comments aside. `fresh`: ask again all the same.
    """

    def __init__(
        self,
        data: Path,
        model: str | None = None,
        embedder: str | None = None,
        memory: str = DEFAULT,
        fresh: bool = False,
    ) -> None:
        self.data = data
        self.memory = memory
        self.fresh = fresh
        self.model = minimemo.load_model(model)
        self.embedder = minimemo.open_embedder(embedder)
        self._doc_id = ""
        self._document: Document | None = None
        self._retriever: Retriever | None = None
        self._memo: Memo | None = None
        self._answers = cache_dir() / "bench" / "answers"
        self._answers.mkdir(parents=True, exist_ok=True)

    def answer(self, question: Question, mode: str, max_tokens: int) -> dict[str, Any]:
        """The answer's record: `Answer.to_dict`, id, doc_id and seconds."""
        document = self._open(question.doc_id)
        made_of: list[Any] = [self.model.located.fingerprint, self.embedder.fingerprint, document.sha256]
        if mode == "gold":
            made_of.append(question.evidence)
        elif mode == "gold_clue":
            made_of.append(question.answers[0])
        elif mode not in _NO_MEMORY:
            made_of.append(json.dumps(asdict(self._with_memory().manifest.recipe), sort_keys=True))
        made_of += [mode, question.text, max_tokens, DEFAULTS, [asdict(p) for p in PROMPTS.values()]]
        key = hashlib.sha256(repr([*made_of, loop_version()]).encode()).hexdigest()[:32]
        note = self._answers / f"{key}.json"
        if note.exists() and not self.fresh:
            kept: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
            return {**kept, "id": question.id}
        session = self._without_memory(question, mode) if mode in _NO_MEMORY else self._with_memory().session()
        begin = time.perf_counter()
        if mode == "gold":
            found = session.answer(question.text, [document.text[a:b] for a, b in question.evidence], max_tokens)
        else:
            found = session.ask(question.text, "memorag" if mode == "gold_clue" else cast(Any, mode), max_tokens)
        seconds = time.perf_counter() - begin
        record = {"id": question.id, "doc_id": question.doc_id, "seconds": seconds, **found.to_dict()}
        part = note.with_suffix(".part")
        part.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        part.replace(note)
        return record

    def _open(self, doc_id: str) -> Document:
        if self._document is None or doc_id != self._doc_id:
            self._memo = self._retriever = None  # one memory at a time
            self._doc_id = doc_id
            self._document = read_document(self.data / "docs" / f"{doc_id}.txt")
        return self._document

    def _with_memory(self) -> Memo:
        """The document's memo. A build that was killed goes on where it was."""
        if self._memo is None:
            assert self._document is not None
            folder = cache_dir() / "bench" / f"{self._doc_id}-{self.model.located.fingerprint[:8]}-{self.memory}.memo"
            begin = time.perf_counter()
            self._memo = minimemo.build(
                self._document, folder, model=self.model, embedder=self.embedder, memory=self.memory
            )
            print(f"{self._doc_id}: memo ready after {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        return self._memo

    def _without_memory(self, question: Question, mode: str) -> Session:
        """A session over the passages that a memo would have: what answers without memory needs no prefill of all."""
        assert self._document is not None
        if self._retriever is None:
            text, embedder = self._document.text, self.embedder.embedder
            size = min(DEFAULT_SIZE, embedder.passage_room)
            chunks = split(text, embedder.offsets(text), size=size, overlap=DEFAULT_OVERLAP)
            vectors = passage_vectors(embedder, [chunk.text for chunk in chunks])
            self._retriever = Retriever(VectorIndex.build(vectors), chunks, embedder)
        engine, tokenizer = self.model.engine, self.model.tokenizer
        oracle = mode == "gold_clue"
        session = Oracle(
            engine,
            tokenizer,
            self._retriever,
            _no_memory,
            documents=[self._document.name],
            language=detect_language(self._document.text),
            # as if it were another model, to which memory gives clues alone
            generator=LocalGenerator(engine, tokenizer) if oracle else None,
        )
        session.clues = _perfect(question) if oracle else ()
        return session


def _perfect(question: Question) -> tuple[Clue, ...]:
    """A right answer's lines as recalled passages, and what of it a draft may hold."""
    lines = [Clue("recall", line) for line in parse_lines(question.answers[0])]
    return *lines[: CAPS["recall"]], Clue("draft", parse_draft(question.answers[0]))


def _no_memory() -> Any:
    raise AssertionError("a mode without memory asked for it")


@cache
def loop_version() -> str:
    """A hash of the code that turns a question into an answer; comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for room in _LOOP:
        for path in sorted((Path(minimemo.__file__).parent / room).glob("*.py")):
            digest.update(meaning(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:16]


def meaning(code: str) -> str:
    """Python code without what does not decide its behaviour."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)
