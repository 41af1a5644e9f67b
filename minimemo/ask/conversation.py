"""A conversation: questions that lean on the turns before are given what they lean on, so that they stand alone.

Rules do that, no model: small ones invent. A question leans on the turns before when it has a pronoun and nothing that
the pronoun could mean, or lacks what it asks about ("why?", "the other one", "面积有多大呢？"). Those turns are put in
front of it: "When was the tower built? 1871. Who built it?" is searched for, and shown to the writer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from minimemo.ask.answer import Answer, Found
from minimemo.ask.question import Mode, checked_question
from minimemo.ask.writer import Piece
from minimemo.text.scripts import is_cjk
from minimemo.text.words import STOPWORDS

TURNS = 3  # So many turns are put in front of a question at most,
ANSWER = 80  # each with its answer where that has no more characters.

_FLAGS = re.IGNORECASE | re.VERBOSE
_ASKS = r"(?:who|whom|whose|what|which|where|when|why|how)"
# Words that begin a question, and name nothing there.
_NO_NAMES = STOPWORDS | {"whom", "can", "could", "also", "while", "during", "about", "after", "before"}
_NAME = re.compile(r"\b[A-Z][\w'’-]*|\b\d[\w,.]*")  # or a number
# What a pronoun behind it could mean, beside a name.
_THING = re.compile(
    r"\b(?:an?|the|every|each|any|some|no)\s\w+|\b(?:someone|anyone|everyone|people|you)\b"
    r"|\b(?:do|did|have|are|were|can|could|will|would|should)\s\w+s\b"
    r"|\b(?:member|king|queen|president|player|leader|person|student|man|woman|child|author|writer|artist)s?\b(?!\s\w+\s$)",
    re.IGNORECASE,
)
# Nothing that a pronoun behind it could mean: "the name of his", "the record before him".
_OF_IT = re.compile(
    r"\b(?:an?|the)\s(?:(?:\w+\s)?\w+\s(?:of|that|which|to|for|from|by|in)|\w+\s(?:before|after))\s$", re.IGNORECASE
)
_EXPLETIVE = re.compile(
    r"""
    (?:it|there)\s(?:(?:is|was|be|been|also)\s)?
      (?:takes?|took|taken|costs?|means?|meant|true|possible|important|necessary|called|rain\w*|snow\w*|like|legal|safe
        |said|believed|thought|known|that|who|\w+ed\s(?:that|how|whether))\b
    """,
    _FLAGS,
)
_DOCUMENT = r"(?:document|text|book|story|novel|report|paper|article|contract|agreement|policy|meeting|manual|law|file)"
_GENERAL = r"(?:year|time|period|day|month|man|woman|person|place|city|country|company|war|ones?|event|building)s?"
_PRONOUN = re.compile(
    rf"""
    \b(?P<one>he|him|his|she|hers?|himself|herself|they|them|theirs?|its|it(?!['’]))\b
  | \b(?<=\s)(?:this|these)(?=\W*$|\s(?:{_GENERAL}|mean|happen)\b)
  | \b(?:of|is|in|at|on|by|to|do|was|are|for|did|and|had|why|how)\s(?:that|those)
      (?=\W*$|\s(?!(?:the|an?|of|{_DOCUMENT})\b)\w)
  | \b(?:after|before|during|since|until|with|about|from|gave|made|does|were|like)\s(?:that|those)
      (?=\W*$|\s{_GENERAL}\b)
  | (?<!\bis\s)(?<!\bwas\s)(?<!\bbe\s)(?<!\bare\s)(?<!\bwere\s)
      \bthere(?=\W*$|\s(?:after|before|between|in|until)\b)
  | \bthen\W*$
    """,
    _FLAGS,
)
_FRAGMENT = re.compile(
    rf"""
    ^\W*(?:(?:and|but|so|or|then)\s)*(?:then|why|(?:\w+\s)?{_ASKS}
      (?:\s(?!(?:is|are|was|were|do|does|did|the)\b)\w+)?(?:\s(?:so|not|one|ones|times?))?)\W*$
  | ^\W*(?:and|but|so|or|also)\b(?!.*\b{_ASKS}\b)
      (?!\s(?:is|are|was|were|do|does|did|has|had|can|could|will|would)\b)
  | ^\W*(?:what|how)\sabout\b | ^\W*{_ASKS}\selse\b
    """,
    _FLAGS,
)
_LACKS = re.compile(  # where there is no name
    r"""
    ^\W*(?:and|but|so|or)\b
  | \b(?:the\s(?:others?|latter|former|first|second|third|last|same)|which|another)(?:\sones?)?\W*$
  | \bthe\sother\sones?\b | ^\W*how\smany\s(?:were|are|did)\b
    """,
    _FLAGS,
)

# Characters that may stand before a Chinese pronoun and name nothing.
_BEFORE_ZH = r"""(?:那么?|那麼|可是|但是?|而|所以|请问|請問|[为為][什何][么麼]?|怎[么麼]
    |[在和与與跟对對当當比被由从從是有，,]|后来|後來|当时|當時|除了|关于|關於|[谁誰]\w{0,3}|什[么麼]\w{0,3}|哪[里裡]|何[时時])*"""
# What is always of something.
_OWNED_ZH = r"""(?:面积|面積|人口|总部|總部|价格|價格|年龄|年齡|身高|长度|長度|高度|名字|作者|首都|原因|结果|結果|规模
    |規模|重量|父[亲親]|母[亲親]|妻子|丈夫|[儿兒]子|女[儿兒]|速度|成本|时间|時間|地点|地點|内容|內容)"""
_ASKS_ZH = r"(?:谁|誰|什么|什麼|哪|几|幾|多少|多|怎|如何|为何|為何|何|吗|嗎|是否)"
_LEANS_ZH = re.compile(
    rf"""
    ^\W*{_BEFORE_ZH}
      (?:[他她它牠祂]|其(?![他它余餘实實次中间間])|前者|后者|後者|[该該](?=公司|地|人|国|國|市|年|校|队|隊)
        |[这這](?=[里裡时時样樣件座家场場是怎为為]|[个個次](?!故事|会|會|文))
        |那(?=[一个個些里裡儿時时場场年位次家座天本件]|\w{{1,24}}呢\W*$))
  | ^\W*(?:后来|後來|之后|之後|然后|然後|接着|接著|随后|隨後|起初|当时|當時)(?=呢?\W*$|[怎什为為是在哪谁誰叫])
  | ^\W*(?:[那是有在得叫用花住又还還也谁誰呢了的]|[为為]?什[么麼]|[为為]何|怎[么麼样樣]|[哪几幾多]\w{{0,2}}
      |何[时時])+\W*$
  | ^(?!.*{_ASKS_ZH}).*呢\W*$
  | ^\W*{_OWNED_ZH}(?!的)
  | ^\W*[得花用叫住死赢贏输輸]了?(?:多少|几|幾|什[么麼]|谁|誰|在?哪)\w{{0,3}}\W*$
  | ^\W*[还還]有\w{{1,4}}\W*$ | ^(?!.*(?:(?<!另)一[个個]|[两兩])).*另一[个個家位] | 又[给給]
    """,
    re.VERBOSE,
)


def leans(question: str) -> bool:
    """Tells whether a question lacks what the turns before would give it: "And when was she born?", "他后来呢？"."""
    if _LEANS_ZH.search(question) or _FRAGMENT.search(question):
        return True
    names = [match.start() for match in _NAME.finditer(question) if match[0].lower() not in _NO_NAMES]
    if not names and _LACKS.search(question):
        return True
    asks = re.search(rf"\b{_ASKS}\b", question, re.IGNORECASE)
    for match in _PRONOUN.finditer(question):
        at = match.start()
        named = any(
            name < at or (asks and at < asks.start() < name) for name in names
        )  # "Beside his book, what did Ann"
        meant = match["one"] and _THING.search(_OF_IT.sub("", question[:at]))
        if not named and not meant and not _EXPLETIVE.match(question, at):
            return True
    return False


@dataclass(frozen=True, slots=True)
class Turn:
    """A question as it was typed, as it was `asked` (the same where it stood alone), and the answer's text; "" where
    the document did not say."""

    question: str
    asked: str
    answer: str


class Asked(Protocol):
    """What answers questions: a Session, a Memo, a Store."""

    def stream(
        self, question: str, mode: Mode = ..., max_tokens: int = ..., *, typed: str = ...
    ) -> Iterator[Found | Piece | Answer]: ...


def stands_alone(question: str, turns: Iterable[tuple[str, str]]) -> str:
    """Gives the question that stands alone after earlier ones with their answers, "" where the document did not say."""
    before: list[Turn] = []
    for earlier, answer in turns:
        before.append(Turn(earlier, _alone(earlier, before), answer))
    return _alone(question, before)


def _alone(question: str, turns: Sequence[Turn]) -> str:
    question = checked_question(question)
    if not turns or not leans(question):
        return question
    before: list[Turn] = []
    for turn in reversed(turns[-TURNS:]):
        before.insert(0, turn)
        if turn.asked == turn.question:
            break
    return "".join(map(_told, before)) + question


class Conversation:
    """Questions of which each may lean on those before it; made by `Memo.chat`."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._turns: list[Turn] = []

    @property
    def turns(self) -> list[dict[str, Any]]:
        """What was said so far, JSON-able: of each turn `question`, `asked` and `answer`; see Turn."""
        return [asdict(turn) for turn in self._turns]

    def forget(self) -> None:
        """Begins anew."""
        self._turns.clear()

    def alone(self, question: str) -> str:
        """Gives the question that stands alone: word for word the same where it does already."""
        return _alone(question, self._turns)

    def ask(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Answer:
        """Answers as `Session.ask` does."""
        *_, answer = self.stream(question, mode, max_tokens)
        assert isinstance(answer, Answer)
        return answer

    def stream(self, question: str, mode: Mode = "memorag", max_tokens: int = 256) -> Iterator[Found | Piece | Answer]:
        """Answers as `Session.stream` does. The turn counts once its answer is there: one that is left half read is
        forgotten. A bad question raises here, not later."""
        asked = self.alone(question)
        return self._noted(self._asked.stream(asked, mode, max_tokens, typed=question))

    def _noted(self, steps: Iterator[Found | Piece | Answer]) -> Iterator[Found | Piece | Answer]:
        for step in steps:
            if isinstance(step, Answer):
                self._turns.append(Turn(step.question, step.asked, step.text if step.guess is None else ""))
            yield step


def _told(turn: Turn) -> str:
    """A turn as it is put in front of a question."""
    answer = turn.answer.strip() if len(turn.answer) <= ANSWER else ""
    space = "" if is_cjk(turn.question[-2:]) or is_cjk(turn.question) else " "
    if answer and answer[-1] not in ".!?。！？":
        answer += "." if space else "。"
    return "".join(part + space for part in (turn.question, answer) if part)
