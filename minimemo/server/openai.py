"""The shapes of OpenAI's chat completions, models and embeddings, from and to what minimemo asks and answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from minimemo.ask import PROMPTS, Answer, Piece
from minimemo.errors import InputError

SOURCES = "\n\n---\n"  # stands before the list of sources, behind an answer
CAVEAT = {"en": "(The document does not clearly hold this answer.)", "zh": "（文档没有明确支持这个回答。）"}
MAX_TOKENS, MOST_TOKENS = 256, 4096  # of an answer: where a request says nothing of it, and at most
_UNANSWERED = {prompts.unanswered for prompts in PROMPTS.values()}


def asked(body: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]], int]:
    """The question, the turns before it, and the longest answer in tokens, of a chat completions request.

    System and tool messages are passed over: the document speaks, and what it says has one form. Raises InputError for
    what is no such request, or asks for what a greedy answer with its sources cannot give.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise InputError("messages: a list of {role, content} is needed")
    if body.get("n") not in (None, 1):
        raise InputError("n: one answer is given; leave it out")
    if body.get("tools") or body.get("functions"):
        raise InputError("tools: minimemo answers from documents and calls nothing; leave them out")
    said = [(one["role"], text_of(one.get("content"))) for one in messages if one.get("role") in ("user", "assistant")]
    if not said or said[-1][0] != "user":
        raise InputError("messages: the last one is to be the user's question")
    pairs: list[tuple[str, str]] = []
    for role, text in said[:-1]:
        if role == "user":
            pairs.append((text, ""))
        elif pairs:
            pairs[-1] = pairs[-1][0], text
    # Clients ask for as much as their model could say, not for what an answer needs.
    return said[-1][1], turns(pairs), min(MOST_TOKENS, longest(body, "max_completion_tokens", "max_tokens"))


def turns(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns before a question, of what was asked and what was answered: without those that asked nothing, without
    lists of sources, and without answers that say that the document does not say."""
    answers = ((question, answer.split(SOURCES)[0]) for question, answer in pairs if question.strip())
    return [(question, "" if answer.strip() in _UNANSWERED else answer) for question, answer in answers]


def longest(body: Mapping[str, Any], *names: str) -> int:
    """The longest answer that a request allows, in tokens, by the first of these names that it has. InputError."""
    name, limit = next(((name, body[name]) for name in names if body.get(name) is not None), ("", MAX_TOKENS))
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise InputError(f"{name}: a whole number from 1 on")
    return limit


def text_of(content: Any) -> str:
    """A message's text, which may come in parts. Raises InputError for pictures and sound."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise InputError("messages: content is text; pictures and sound are not understood")


def sources(answer: Answer, links: Mapping[str, str]) -> tuple[str, list[dict[str, Any]]]:
    """The numbered list of what an answer was written from, and the same as annotations of type url_citation.

    links: the page of each document, by its name. Offsets `start_index` and `end_index` are of the whole answer in the
    message, which the list stands behind; `minimemo` has those of the document.
    """
    cited = [passage for passage in answer.passages if passage.cited]
    if not cited:
        return "", []
    lines, annotations = [], []
    for number, passage in enumerate(cited, 1):
        begin, end = passage.span or (passage.start, passage.end)
        where = passage.where
        lines.append(f"[{number}] {passage.document}{', ' * bool(where)}{where}: {passage.quoted}")
        link = links.get(passage.document, "")
        page = f"#page={passage.page}" if passage.page is not None else ""
        annotations.append({
            "type": "url_citation",
            "url_citation": {
                "url": f"{link}{page}", "title": f"{passage.document} {where}".strip(), "start_index": 0,
                "end_index": len(answer.text),
            },
            "minimemo": {"document": passage.document, "start": begin, "end": end},
        })  # fmt: skip
    return SOURCES + "\n".join(lines), annotations


def behind(answer: Answer, links: Mapping[str, str]) -> tuple[str, list[dict[str, Any]]]:
    """What stands behind the text of an answer, a caveat where it is due and the sources, and the annotations."""
    listed, annotations = sources(answer, links)
    doubted = not answer.supported and answer.guess is None
    return (f"\n\n{CAVEAT[answer.language]}" if doubted else "") + listed, annotations


def completion(answer: Answer, model: str, links: Mapping[str, str]) -> dict[str, Any]:
    """A whole chat completion."""
    more, annotations = behind(answer, links)
    message = {"role": "assistant", "content": answer.text + more, "refusal": None, "annotations": annotations}
    return {
        **_head("chat.completion", model),
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}],
        "usage": usage(answer),
        "minimemo": answer.to_dict(),
    }


class Chunks:
    """The chunks of a streamed chat completion; the one with the finish reason has the whole Answer as `minimemo`."""

    def __init__(self, model: str, links: Mapping[str, str], with_usage: bool) -> None:
        self._head = _head("chat.completion.chunk", model)
        self._links = links
        self._with_usage = with_usage

    def begin(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""})

    def step(self, step: Piece | Answer) -> Iterator[dict[str, Any]]:
        """What a step of the answer becomes."""
        if isinstance(step, Piece):
            if step.text:
                yield self._chunk({"content": step.text})
            return
        more, annotations = behind(step, self._links)
        if more:
            yield self._chunk({"content": more, "annotations": annotations})
        yield self._chunk({}, step.finish_reason, minimemo=step.to_dict())
        if self._with_usage:
            yield {**self._head, "choices": [], "usage": usage(step)}

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._head, "choices": [choice], **({"usage": None} if self._with_usage else {}), **more}


def usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.generated_tokens,
        "total_tokens": answer.prompt_tokens + answer.generated_tokens,
    }


def models(ids: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """The list of models: ids with the seconds in which they were made."""
    rows = [{"id": id, "object": "model", "created": int(made), "owned_by": "minimemo"} for id, made in ids]
    return {"object": "list", "data": rows}


def embeddings(rows: Sequence[Sequence[float]], model: str, as_base64: bool) -> dict[str, Any]:
    """Vectors, as lists or, where a client asks for it, as base64 of their float32 bytes."""
    import base64
    from array import array

    def shown(row: Sequence[float]) -> Any:
        return base64.b64encode(array("f", row).tobytes()).decode() if as_base64 else [float(x) for x in row]

    data = [{"object": "embedding", "index": n, "embedding": shown(row)} for n, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


def error(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}
