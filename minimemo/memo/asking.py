"""What can be asked: one memo, or several at once. The verbs, and the session behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from minimemo.ask import Answer, Clue, Found, Language, Mode, Piece, Session, checked_question
from minimemo.runtime import Runtime

if TYPE_CHECKING:
    from minimemo.memo.memo import Memo
    from minimemo.memory.load import StoredMemory
    from minimemo.search.index import Retriever


class Asking(ABC):
    """Answers questions about its memos together. Models and memory are loaded when first needed, and only then."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._session: Session | None = None

    @property
    @abstractmethod
    def memos(self) -> Sequence[Memo]:
        """Those that are asked, the one whose opening stands before all of them first."""

    def ask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """The answer with its sources; see `loop.Session.ask`."""
        checked = checked_question(question)  # before any model is loaded
        return self.session().ask(checked, mode, max_tokens)

    def stream(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Iterator[Found | Piece | Answer]:
        """As `ask`, in steps: one Found, the Pieces of the text, the Answer."""
        checked = checked_question(question)
        return self.session().stream(checked, mode, max_tokens)

    def recall(self, question: str) -> tuple[Clue, ...]:
        """What the memory recalls of the documents for a question."""
        return self.session().recall(question)

    def rewrite(self, question: str) -> tuple[Clue, ...]:
        """Questions in the documents' own words that help to answer this one."""
        return self.session().rewrite(question)

    def answer(self, question: str, evidence: list[str], max_tokens: int = 256) -> Answer:
        """Answers from given texts alone."""
        return self.session().answer(question, evidence, max_tokens)

    def summarize(self, max_tokens: int = 512) -> Answer:
        """A summary of everything, from memory."""
        return self.session().summarize(max_tokens)

    def prepare(self) -> None:
        """Loads the models now rather than at the first question."""
        self.session()

    def session(self) -> Session:
        """The loop; models are loaded here. Raises MemoError when memos were built with different ones."""
        if self._session is None:
            self.runtime.options.limit_threads()
            retriever = self._retriever()  # first, as it checks small files: a damaged memo is named before models load
            for memo in self.memos:
                model = memo.model()
            self._session = Session(
                model.engine,
                model.tokenizer,
                retriever,
                partial(_open_memory, self.memos, self.runtime),
                documents=self.names(),
                language=cast(Language, self.memos[0].manifest.document.language),
                prompts=self.runtime.prompts,
                settings=self.runtime.settings,
                generator=self.runtime.generator_for(model),
                on_event=self.runtime.on_event,
            )
        return self._session

    def memory(self) -> StoredMemory:
        """The memory of all memos, opened; nothing of it is decoded yet."""
        return _open_memory(self.memos, self.runtime)

    def names(self) -> list[str]:
        """What passages are cited by: the documents' names, and the memos' folders where two are the same."""
        names = [memo.manifest.document.name for memo in self.memos]
        known = Counter(names)
        return [name if known[name] == 1 else str(memo.folder) for name, memo in zip(names, self.memos, strict=True)]

    def _retriever(self) -> Retriever:
        from minimemo.search.index import Retriever, VectorIndex

        chunks = [memo.checked_chunks() for memo in self.memos]
        embedders = [memo.embedder() for memo in self.memos]
        indexes = [memo.index(len(own)) for memo, own in zip(self.memos, chunks, strict=True)]
        return Retriever(
            VectorIndex.joined(indexes),
            [chunk for own in chunks for chunk in own],
            embedders[0],
            [number for number, own in enumerate(chunks) for _ in own],
        )


def _open_memory(memos: Sequence[Memo], runtime: Runtime) -> StoredMemory:
    """Apart from what is asked: a collection that its own session held would keep its caches after it is gone."""
    from minimemo.memory.load import StoredMemory

    return StoredMemory([memo.memory_file() for memo in memos], memos[0].model().engine, runtime.on_event)


class Collection(Asking):
    """Several memos of the same models, asked at once; passages say which document they are from."""

    def __init__(self, memos: Sequence[Memo]) -> None:
        """The memos have to share a runtime (see `Memo.of`), at least one of them."""
        super().__init__(memos[0].runtime)
        self._memos = tuple(memos)

    @property
    def memos(self) -> Sequence[Memo]:
        return self._memos
