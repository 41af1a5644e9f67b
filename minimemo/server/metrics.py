"""What is counted of a server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from minimemo.ask import Answer
from minimemo.server.desk import Desk

_SECONDS = (0.2, 0.5, 1, 2, 5, 10, 20, 60, 180)


class Metrics:
    """Questions by what came of them, seconds to the first piece and to the end, tokens, the line."""

    def __init__(self, desk: Desk) -> None:
        of = self._registry = CollectorRegistry()
        ProcessCollector(registry=of)
        self._questions = Counter("minimemo_questions", "Questions answered", ["outcome"], registry=of)
        self._tokens = Counter("minimemo_tokens", "Tokens of answers and of prompts", ["kind"], registry=of)
        self._whole = Histogram(
            "minimemo_answer_seconds", "From question to end of answer", buckets=_SECONDS, registry=of
        )
        self.first = Histogram("minimemo_first_seconds", "From question to first piece", buckets=_SECONDS, registry=of)
        Gauge("minimemo_waiting", "Questions in the line", registry=of).set_function(lambda: float(desk.waiting))

    def answered(self, answer: Answer, seconds: float) -> None:
        outcome = "refused" if answer.guess is not None else "held" if answer.supported else "doubted"
        self._questions.labels(outcome).inc()
        self._tokens.labels("generated").inc(answer.generated_tokens)
        self._tokens.labels("prefilled").inc(answer.prefilled_tokens)
        self._whole.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
