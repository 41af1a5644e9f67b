"""Room in a model's context: what a prompt and its answer leave, and the passages that fit into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from minimemo.ask.answer import Passage
from minimemo.ask.evidence import fit_passages
from minimemo.ask.prompts import Prompts
from minimemo.ask.run import Run
from minimemo.ask.writer import TextGenerator
from minimemo.errors import InputError
from minimemo.text.scripts import Language

MIN_EVIDENCE = 128  # tokens that everything else must leave for passages


def evidence_template(prompts: Prompts, run: Run) -> str:
    """The prompt for what is written from passages."""
    return prompts.answer if run.form == "phrase" else prompts.paragraph


class Room:
    """`own` is the memory's own model, `generator` what writes the rest: it counts passages."""

    def __init__(self, own: TextGenerator, generator: TextGenerator, prompts: Mapping[Language, Prompts]) -> None:
        self._own = own
        self._generator = generator
        self._prompts = prompts

    def generator(self, run: Run) -> TextGenerator:
        """What writes the answer: only the memory's own model can answer from memory alone."""
        return self._own if run.mode == "memory" else self._generator

    def left(self, run: Run, text: str) -> int:
        """Tokens of the context that a prompt and its answer leave; negative when they do not fit."""
        generator = self.generator(run)
        return (
            generator.max_context - generator.prompt_tokens(self._prompts[run.language].system, text) - run.max_tokens
        )

    def checked(self, run: Run, text: str) -> int:
        """As `left`, at least 1; InputError when max_tokens leaves none."""
        if run.max_tokens < 1:
            raise InputError(f"max_tokens is {run.max_tokens}: it must be at least 1")
        room = self.left(run, text)
        if room < 1:
            raise InputError(
                f"max_tokens is {run.max_tokens}, too many for this model's context of "
                f"{self.generator(run).max_context} tokens: lower it by {1 - room} or more"
            )
        return room

    def check_question(self, run: Run, most: int) -> None:
        """Raises InputError for a question of more than `most` tokens, or one that leaves passages no room."""
        prompts = self._prompts[run.language]
        bare = prompts.closed.format(question="")
        if run.mode in ("memorag", "rag"):
            bare = evidence_template(prompts, run).format(question="", passages="", not_found=prompts.not_found)
        elif run.mode == "gist":
            bare = prompts.gist.format(question="", passages="", points="")
        reserved = MIN_EVIDENCE if run.mode in ("memorag", "rag", "gist") else 0
        limit = min(most, self.checked(run, bare) - reserved)
        count = self.generator(run).count(run.question)
        if count > limit:
            raise InputError(f"question is {count} tokens long, and at most {max(0, limit)} fit: shorten it")

    def fit(
        self, run: Run, ranked: Sequence[Passage], budget: int, text: Callable[[Sequence[Passage]], str]
    ) -> tuple[Passage, ...]:
        """The passages within the budget and, with the prompt's own text, within the context."""
        budget = min(budget, self.left(run, text(())))
        passages = fit_passages(ranked, budget, self._generator.count)
        while passages and (room := self.left(run, text(passages))) < 0:
            budget += room  # joined texts may take a token more than their parts
            passages = fit_passages(ranked, budget, self._generator.count)
        return passages
