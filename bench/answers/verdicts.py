"""Whether an answer is right, and whether it sounds sure, by exact rules: no model is asked, nor the code that answers.

Sets that are judged so have a pattern of right answers (type "pattern") or the right answers themselves (type "held"),
and neither where the document does not say.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.common.data import Question
from bench.common.intervals import interval
from bench.common.scores import holds

JUDGED = ("pattern", "held")  # types of questions
_LONG = 160  # characters; a longer answer may refuse one point and answer the others

_VERBS = (
    "mention state specif provide give found indicate disclose describe include answer list say said tell told contain"
)
_TOLD = f"(?:{'|'.join(_VERBS.split())})"
_PAPER = r"(?:documents?|texts?|passages?|context|excerpts?|article|information)"
_REFUSAL = re.compile(
    rf"""
    ^\W*(?:not\ (?:{_TOLD}|available|known|applicable|in\ the)|unknown\W*$|n/?a\W*$|none\W*$)
  | \b{_PAPER}\b.{{0,40}}?\b(?:do(?:es)?\ not|don't|doesn't|did\ not|didn't|never)\ (?:\w+\ )?{_TOLD}
  | \bnot\ (?:\w+\ )?{_TOLD}\w*\ (?:in|by|within|from)\ (?:the|this|these|any)\ (?:\w+\ )?{_PAPER}
  | \b(?:is|are|was|were)\ (?:not\ (?:mentioned|stated|specified|disclosed|indicated|known)|unknown|unclear)\b
  | \b(?:no\ (?:\w+\ )?(?:information|mention|answer)|nothing\ in\ (?:the|these)\ {_PAPER})\b
  | \b(?:can\ ?not|can't|could\ not|couldn't|unable\ to)\ (?:be\ )?(?:answer|determine|find|found|tell|say)
  | \bdo(?:n't|\ not)\ know\b
  | ^\W*(?:不知道|不清楚|不详|不詳|未知|无\W*$|無\W*$|没有答案|沒有答案)
  | (?:未|没有?|沒有?|不)\w{{0,2}}(?:提及|提到|提供|说明|說明|说到|指出|给出|給出|写明|寫明|涉及|找到)
  | (?:未|没有?|沒有?|不)\w{{0,2}}(?:记载|記載|明确|明確|相关|相關)
  | (?:文档|文檔|文件|文中|文章|原文|段落|资料|資料)\w{{0,4}}(?:未|没有?|沒有?|不)\w{{0,2}}[说說讲講写寫含]
  | (?:无法|無法|不能)\w{{0,4}}(?:确定|確定|回答|找到|得知|判断|判斷|知道)
    """,
    re.VERBOSE | re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether an answer says that the document does not tell, or says nothing."""
    plain = " ".join(text.split()).replace("’", "'")
    return not plain or (len(plain) <= _LONG and _REFUSAL.search(plain) is not None)


def is_right(text: str, question: Question) -> bool:
    """Whether an answer has what a right one has; case, and commas within numbers, do not matter."""
    if question.type == "pattern":  # whose ^ is the answer's beginning
        whole = " ".join(text.split())
        return any(re.search(question.answers[0], some, re.IGNORECASE) for some in (whole, _plain(whole)))
    return holds(_plain(text), [_plain(answer) for answer in question.answers])


def is_sure(record: Mapping[str, Any]) -> bool:
    """Whether an answer's record (`Answer.to_dict`) stands there without a word of doubt."""
    return record["supported"] is True and not refuses(record["text"])


def verdict(question: Question, record: Mapping[str, Any]) -> str:
    """ "right" and "wrong", each "doubted" or not (a wrong answer without doubt is "sure"), and for refusals "refused"
    where there is an answer and "said no" where there is none."""
    if refuses(record["text"]):
        return "refused" if question.answers else "said no"
    sure = is_sure(record)
    if question.answers and is_right(record["text"], question):
        return "right" if sure else "right, doubted"
    return "wrong, sure" if sure else "wrong, doubted"


def _plain(text: str) -> str:
    return re.sub(r"(?<=\d)[,，](?=\d{3}(?!\d))", "", text)


def cites(record: Mapping[str, Any]) -> bool | None:
    """Whether a sentence that an answer cites holds it; None where it is not in the words of a passage."""
    answer, passages = _flat(record["text"]).strip(" .。"), record["passages"]
    if not answer or not any(answer in _flat(p["text"]) for p in passages):
        return None
    cited = (p["text"][p["span"][0] - p["start"] : p["span"][1] - p["start"]] for p in passages if p["span"])
    return any(answer in _flat(sentence) for sentence in cited)


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


def figures(rows: Sequence[tuple[Question, str, float, bool | None]]) -> list[dict[str, Any]]:
    """Shares in percent with their intervals, of questions with their verdicts, seconds, and whether what is cited
    holds the answer (`cites`).

    right (with or without doubt), right, doubted and refuses wrongly: of those that the document answers; says no: of
    the others, and of each reason why they have none; wrong, doubted and wrong, sure: of all; citation holds it: of
    right answers in the words of a passage. s: of an answer (median).
    """
    answered = [each for question, each, *_ in rows if question.answers]
    others: dict[str, list[str]] = {"says no": [each for question, each, *_ in rows if not question.answers]}
    for question, each, *_ in rows:
        if question.why and not question.answers:
            others.setdefault(f"says no: {question.why}", []).append(each)
    every = [each for _, each, *_ in rows]
    held = [str(held) for _, each, _, held in rows if held is not None and each.startswith("right")]
    parts = [
        ("right", answered, ("right", "right, doubted")),
        ("right, doubted", answered, ("right, doubted",)),
        ("wrong, doubted", every, ("wrong, doubted",)),
        ("wrong, sure", every, ("wrong, sure",)),
        ("refuses wrongly", answered, ("refused",)),
        ("citation holds it", held, ("True",)),
        *((name, of, ("said no",)) for name, of in others.items()),
    ]
    seconds = statistics.median(took for _, _, took, _ in rows)
    return [
        {"figure": name, "n": len(of), **interval([100.0 * (each in counted) for each in of]), "s": seconds}
        for name, of, counted in parts
        if of
    ]
