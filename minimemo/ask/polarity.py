"""What a sentence says to a question that asks yes or no: whether it has what is asked, and whether it asserts or
denies it.

A text's stance is its words, each asserted (1) or denied (-1): a "not" denies the word that it governs, in Chinese what
follows in its clause; "rejected" is a denied "approved". A sentence denies what is asked where one of the question's
words has the other sign in it, so that "Is leave that was not taken paid out?" is denied by "Leave that has not been
taken is not paid out". Two words of other signs say nothing: the sentence is about another case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from minimemo.ask.wording import ASKS, NAME, WORD, asked_roots, names_within, simplified, word_roots
from minimemo.text.scripts import HAN
from minimemo.text.sentences import sentence_ends
from minimemo.text.words import normalize

# What a sentence weighs in the log-odds of "yes" that has all words of the question: small models read over a "not".
DENIED, STRAY, ASSERTED, SAID = -4.0, -1.0, 0.5, 3.0
HELD = 0.5  # A sentence tells with this share of what is asked beside its names.
AFTER = 2  # So many sentences behind it are looked at for what it lacks.
SIDE = 0.5  # What a word behind a preposition ("on the site") weighs, as do a sentence's other clauses.
_GOVERNED = 4  # words behind a "not" among which it governs the first that is asked

_PARAGRAPH = re.compile(r"\n\s*\n")
# A message, an entry of a log, an item or a row begins a sentence; lines that were broken at a width do not.
_ROW = re.compile(r"\n(?=[^\S\n]*(?:[-*•·|#]|[\[(]?\d{1,4}[-./:年]\d|\d{1,3}[.)、]\s|[\w .]{1,30}:\s))")
_SPEAKER = re.compile(r"^\W*(?:\[?\d[\d/.:, TZ-]{4,24}(?:[AP]M)?\]?\s*(?:-\s)?)?(?:[\w .]{1,30}[:：]\s)?")
_CLAUSE = re.compile(
    r"[,;:，；：—]\s*|[.。]\s|\s(?:and|but|though|although|while|whereas|because|since)\s|(?<!不)但是?|而且?|因为"
)
_SIDES = re.compile(
    r"\b(?:in|on|at|during|while|when|before|after|until|since|from|for|with|as|to(?=\s(?:the|an?|my|our|this|that)\b))\b"
)
_REFERS = re.compile(
    r"^(?:it|they|he|she|this|that|these|those|both|neither|the)\b|^(?:[它他她其该此这那]|但|最终|结果)"
)

_IDIOMS = re.compile(
    r"\bnot\sonly\b|\b(?:not?)\s(?:later|earlier|more|less|fewer)\sthan\b|\bno\.?\s?\d|\bno\sdoubt\b|\bwhether\sor\snot\b"
    r"|是不是|有没有|能不能|会不会|可不可以|要不要|对不对|不(?:[但仅过久断少如]|同(?!意))|无论",
)
_AUXILIARY = re.compile(r"^\W*(?:is it (?:true|correct|right) that\b|\w+n['’]t\b)")
_NOT = re.compile(
    r"\b(?:(?:fail|refuse|decline)[sd]?(?:ed)?\sto|unable\sto|not|no|never|none|nobody|nothing|neither|nor|without|cannot)\b"
    r"|n['’]t\b|\b(?:do|does|did|is|was|are|were|has|have|had|wo|ca|could|should)nt\b"
    r"|没有|[不没未无勿]"
)
_SKIPPED = re.compile(
    r"^(?:\w+ly|any|yet|also|still|longer|ever|even|already|all|every|each|being|may|can|could|might|must|shall|should"
    r"|along|out|up|away|over|back|someone|somebody|anyone|anybody|there)$"
)
_SCOPE_ZH = re.compile(r"[的时者]")
_HELPS_ZH = re.compile(
    r"有没有|是不是|会不会|要不要|[吗嘛呢]|[了着]|(?<![通超经])过|已经?|可以|能够|(?<![可功性智节])能|需要|应该|必须"
    r"|[会要对应](?!议|员|计|场|求|点|象|方|用)|[按在把将]"
)

# Pairs of what asserts and what denies the same: the word of the other side is its denial.
_OPPOSITES = {
    name: tuple(map(re.compile, sides))
    for name, *sides in (
        ("pass", r"\b(?:carr(?:y|ied)|pass(?:ed|es)?|accept(?:s|ed)?|approv(?:e|es|ed|al)|adopt(?:s|ed)?|agree[sd]?"
         r"|grant(?:s|ed)?|succeed(?:s|ed)?|successful)\b|通过|同意|批准|接受|采纳",
         r"\b(?:los(?:t|es?)|reject(?:s|ed)?|defeat(?:s|ed)?|declin(?:es?|ed)|refus(?:es?|ed|al)|fail(?:s|ed)?"
         r"|dismiss(?:es|ed)?|turn(?:s|ed)\sdown|voted\sdown|den(?:y|ies|ied))\b|否决|驳回|拒绝|回绝"),
        ("allow", r"\b(?:allow(?:s|ed)?|permit(?:s|ted)?)\b|允许|准许|可以|(?<![可功性智])能(?![源力量])",
         r"\b(?:forbid(?:s|den)?|prohibit(?:s|ed)?|bann?(?:s|ed)?|impossible)\b|禁止|严禁|不得|不准|不许"),
        ("open", r"\bopen(?:s|ed)?\b|开放|开门|营业", r"\b(?:close[sd]?|shut)\b|关闭|停业|闭馆"),
        ("include", r"\b(?:includ(?:es?|ed|ing)|cover(?:s|ed)?|contain(?:s|ed)?)\b|包括|包含",
         r"\bexclud(?:es?|ed|ing)\b|除外"),
        ("sound", r"\b(?:ok|okay|correct|valid|match(?:es|ed)?|intact|works?|working)\b"
         r"|正常|完好|正确|合格|成功",
         r"\b(?:mismatch(?:es|ed)?|wrong|corrupt(?:ed)?|invalid|errors?|damaged|broken|faulty|defective|failed|failure)\b"
         r"|故障|损坏|异常|错误|失败"),
        ("held", r"\b(?:held|takes?\splace|took\splace|taken\splace|goes\sahead|went\sahead)\b"
         r"|举行|如期|原计划|按时|准时",
         r"\b(?:cancel(?:s|led|ed)?|called\soff|postponed)\b|(?:取消|推迟|延期|延后)(?:.*举行)?"),
        ("there", r"\b(?:attend(?:s|ed)?|present)\b|参加|出席|到场", r"\babsent\b|缺席|请假"),
        ("win", r"\b(?:win|wins|won)\b|获胜|赢", r"\blos(?:t|es?)\b|落败|输掉"),
    )
}  # fmt: skip
_YES = re.compile(r"^(?:(?:ha)+\s)?(?:yes|yeah|yep|sure|of course|certainly)\b|^(?:是的?|可以|能|对|有的?)[，。！,]")
_NO = re.compile(r"^(?:no|nope|sorry,? no)\b(?!\.?\s?\d|\s\w)|^(?:不是?|不可以|不能|没有|否)[，。！,]")


class Told(NamedTuple):
    """The sentence that tells, "" where none does, and what it adds to the log-odds of "yes"."""

    sentence: str
    weight: float


class _Sentence(NamedTuple):
    text: str
    before: str  # its paragraph, up to and with it
    asks: bool


def telling(question: str, texts: Sequence[str]) -> Told:
    """Finds the sentence with most of what a question asks beside its names, which stand in it or before it in its
    paragraph, and weighs it. Where it lacks some of that, a sentence behind it that has it, or its opposite ("lost" for
    "carried"), and speaks of the same is told with it. A sentence that asks tells nothing; one that asks the same
    and is answered with "yes" or "no" does."""
    asked = _Asked(question)
    found, best = Told("", 0.0), 0.0
    for text in texts:
        sentences = list(_sentences(text))
        for at, one in enumerate(sentences):
            share = asked.share(one.text)
            following = [each for each in sentences[at + 1 : at + 1 + AFTER] if not each.asks]
            if share < HELD or names_within(question, one.before) < 1:
                continue
            if one.asks:
                one_told = asked.answered(one, following[:1])
                if one_told is None:
                    continue
            else:
                one_told = asked.completed(one, [each for each in following if each.before.startswith(one.before)])
            score = share + SIDE * names_within(question, one.text)  # of two with as much, the one with the names
            if score > best:
                found, best = one_told, score
    return found


def weight(question: str, sentence: str) -> float:
    """Gives what a sentence adds to the log-odds of "yes"; 0 where it has less than HELD of what is asked."""
    return _Asked(question).weight(" ".join(sentence.split()))


class _Asked:
    """A question's stance, and what each word of it weighs."""

    def __init__(self, question: str) -> None:
        plain = _AUXILIARY.sub("", simplified(normalize(question)))
        self.names = frozenset().union(*map(word_roots, NAME.findall(question)))
        self.stance = {
            key: sign for key, sign in _stance(_HELPS_ZH.sub(_kept, plain), {}).items() if key not in self.names
        }
        words = plain.split()
        side = next((m.start() for m in _SIDES.finditer(plain) if m.start() > len(" ".join(words[:2]))), len(plain))
        core = _stance(plain[:side], {})
        self.weights = {key: 1.0 if key in core or not core else SIDE for key in self.stance}
        if re.match(r"\W*(?:may|can|could)\b", plain):
            self.stance.setdefault("=allow", 1)  # is asked, and need not be said

    def share(self, text: str) -> float:
        """The share of what is asked in a clause, with a part of what the others have; 0 to 1."""
        total = sum(self.weights.values())
        clauses = [self._sum(_stance(clause, self.stance)) for clause in _clauses(text)]
        best, every = max(clauses, default=0.0), self._sum(self._merged(text))
        return (best + SIDE * (every - best)) / total if total else 0.0

    def weight(self, text: str) -> float:
        """What a sentence adds, by its clauses; those with more of what is asked count before others."""
        total = sum(self.weights.values())
        stance = self._merged(text)
        held = self._sum(stance) / total if total else 0.0
        if held < HELD or "?" in stance:
            return 0.0
        turned = [key for key in self.stance if stance.get(key, self.stance[key]) != self.stance[key]]
        lacks = any(key not in stance for key, value in self.weights.items() if value == 1 or key[0] == "=")
        chinese = bool(re.search(f"[{HAN}]", text))
        if len(turned) % 2 or (turned and chinese):
            return DENIED * held
        if turned:
            return 0.0
        return ASSERTED if not lacks else STRAY if "~" in stance else 0.0

    def completed(self, one: _Sentence, following: Sequence[_Sentence]) -> Told:
        """A sentence with the one behind it that has what it lacks."""
        has = self._merged(one.text)
        missing = {key for key in self.weights if key not in has}
        for each in following:
            more = self._merged(each.text)
            plain = simplified(normalize(_SPEAKER.sub("", each.text)))
            if missing & more.keys() and (_REFERS.search(plain) or (self.weights.keys() - missing) & more.keys()):
                both = f"{one.text} {each.text}"
                return Told(both, self.weight(both))
        return Told(one.text, self.weight(one.text))

    def answered(self, one: _Sentence, following: Sequence[_Sentence]) -> Told | None:
        """The sentence behind a question of the document that is the one asked, where it begins with yes or no."""
        for each in following:
            plain = simplified(normalize(_SPEAKER.sub("", each.text)))
            sign = 1 if _YES.search(plain) else -1 if _NO.search(plain) else 0
            if sign:
                stance = self._merged(one.text)
                turned = sum(stance.get(key, was) != was for key, was in self.stance.items()) % 2
                return Told(each.text, SAID * (-sign if turned else sign))
        return None

    def _merged(self, text: str) -> dict[str, int]:
        """The stance of a sentence: of the clauses with the most of what is asked before others; "?" where two do not
        agree that each have some of it."""
        merged: dict[str, int] = {}
        for stance in sorted((_stance(clause, self.stance) for clause in _clauses(text)), key=self._sum):
            turned = [key for key in self.stance if merged.get(key, 0) == -stance.get(key, 0) != 0]
            asked = {*self.weights, *self.names}  # a name tells whose clause it is
            own = (asked & merged.keys()) - stance.keys(), (asked & stance.keys()) - merged.keys()
            merged.pop("~", None)
            merged |= stance
            if turned and all(own):
                merged["?"] = 1
        return merged

    def _sum(self, stance: Mapping[str, int]) -> float:
        return sum(value for key, value in self.weights.items() if key in stance)


def _kept(match: re.Match[str]) -> str:
    """A helping word of Chinese as a gap, but for what has an opposite."""
    return match[0] if match[0] in ("可以", "能") else "|"


def _sentences(text: str) -> Iterator[_Sentence]:
    for paragraph in _PARAGRAPH.split(text):
        rows = (match.end() for match in _ROW.finditer(paragraph))
        for start, end in pairwise(sorted({0, *sentence_ends(paragraph), *rows, len(paragraph)})):
            if one := " ".join(paragraph[start:end].split()):
                yield _Sentence(one, paragraph[:end], bool(ASKS.search(one)))


def _clauses(text: str) -> list[str]:
    return [clause for clause in _CLAUSE.split(simplified(normalize(text)) + " ") if clause.strip()]


def _stance(clause: str, asked: Mapping[str, int]) -> dict[str, int]:
    """The words of one plain clause, each 1 or -1; "~" where what is denied is not asked."""
    clause = _IDIOMS.sub("|", clause)
    stance: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for name, sides in _OPPOSITES.items():
        signs, left = set(), clause
        for side, sign in ((sides[1], -1), (sides[0], 1)):
            for match in side.finditer(left):
                before = list(_NOT.finditer(clause, 0, match.start()))
                denied = bool(before) and _near(clause[before[-1].end() : match.start()])
                spans.append((before[-1].start() if denied else match.start(), match.end()))
                signs.add(-sign if denied else sign)
                left = _blanked(left, match.span())
        if len(signs) == 1:
            stance["=" + name] = signs.pop()
    for start, end in spans:
        clause = _blanked(clause, (start, end))
    first, *denied_parts = _NOT.split(clause)
    stance |= dict.fromkeys(_keys(first), 1)
    for part in denied_parts:
        stance |= _denied(part, asked, stance)
    return stance


def _blanked(text: str, span: tuple[int, int]) -> str:
    return text[: span[0]] + " " * (span[1] - span[0]) + text[span[1] :]


def _near(gap: str) -> bool:
    """Whether a denial that stands `gap` before a word governs it."""
    words = [word for word in WORD.findall(gap) if word_roots(word) and not _SKIPPED.match(word)]
    return len(gap.strip()) <= 2 if re.search(f"[{HAN}]", gap) else not words


def _denied(part: str, asked: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """The words behind a denial; those `before` it where none is behind it ("but the loan was not")."""
    words = [word for word in WORD.findall(part) if not _SKIPPED.match(word) and word_roots(word)]
    if not words:
        return dict.fromkeys(before, -1)
    if re.search(f"[{HAN}]", words[0]):
        scope, *rest = _SCOPE_ZH.split(part, maxsplit=1)
        keys = dict.fromkeys(_keys(" ".join(rest)), 1) | dict.fromkeys(_keys(scope), -1)
        return keys if not asked or any(keys[key] < 0 for key in keys if key in asked) else keys | {"~": -1}
    keys = dict.fromkeys(_keys(part), 1)
    governed = next((word for word in words[:_GOVERNED] if asked and word_roots(word) & asked.keys()), words[0])
    keys |= dict.fromkeys(word_roots(governed), -1)
    return keys if not asked or word_roots(governed) & asked.keys() else keys | {"~": -1}


def _keys(text: str) -> frozenset[str]:
    """The roots of words, without those that help others."""
    return asked_roots(" ".join(word for word in WORD.findall(text) if not _SKIPPED.match(word)))
