"""How likely an answer is right: what its writer and the words of the passages say of it, weighed into a probability.

The weights in trust.toml are of a logistic regression, fitted to questions with known answers and to questions that
their documents do not answer; `python -m bench.answers.fit` fits and prints them. There is a set for writers of more
than writer.SMALL parameters, one for smaller ones, and one for those of whom nothing but their text is known.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from math import exp
from pathlib import Path

from minimemo.ask.answer import Passage
from minimemo.ask.writer import Weighed
from minimemo.text.scripts import HAN
from minimemo.text.sentences import sentence_ends
from minimemo.text.words import normalize, roots

OPEN = 0.5
NEAR = 2  # Sentences on both sides of an answer's: a person is named once, and is "she" from there on.

_WORD = re.compile(rf"[{HAN}]+|(?:(?![{HAN}])[^\W_])+")
_END = re.compile(r"\n+")
_PARAGRAPH = re.compile(r"\n\s*\n")
_NAME = re.compile(r"(?<!^)(?<![.!?]\s)\b[A-Z][\w'’-]*|(?<![A-Za-z0-9])[A-Za-z0-9-]*\d[A-Za-z0-9-]*(?:[.,]\d+)*")
_ASKS_NUMBER = re.compile(
    r"\bhow\s(?:many|much|long|old|far|high|large|big|tall|often)\b|多少|[几幾]|多[长長高大远遠久]", re.IGNORECASE
)
_COMPUTES = re.compile(
    r"\bhow\s(?:much|many)\s(?:more|less|fewer|longer|older|higher|larger)\b|\bdifference\b|相差|[差多少]多少",
    re.IGNORECASE,
)
_SUPERLATIVE = re.compile(
    r"\b(?:(?:larg|small|high|low|long|short|old|young|earli|lat|great|bigg|near|fast|cheap|heavi|tall|deep|new|few)est"
    r"|most|least)\b|最\w",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"\b(?:he|she|they|him|her|them|his|hers|their|theirs)\b|[他她它]们?", re.IGNORECASE)
_CAPITALS = re.compile(r"(?<!^)(?<![.!?]\s)\b[A-Z][A-Za-z'’-]*")
_FIGURE = re.compile(r"(?<![\d.,])\d+(?:[.,]\d+)*")
_HAN_DIGITS = re.compile("[〇零一二三四五六七八九]{2,}")
_DIGITS = str.maketrans("〇零一二三四五六七八九", "00123456789")
# Frequent characters of traditional Chinese and the simplified ones: a question in these asks of a document in those.
_SIMPLER = str.maketrans(
    "這個們來時說為會國學對開後長沒問還過從發經業東車書見門馬橋鎮創辦鹽顧遠蘭萬與於當關園樓廠場廟電話語讀寫聽買賣錢銀"
    "鐵鐘錄號間層歲歷縣鄉區灣島龍鳳鳥魚雞豬貓醫藥術藝畫樂劇戲戰軍隊將領選舉黨員議職務處辭參觀進運動輸達歸離邊裡裏內兩"
    "幾億點線網絡結紀級細組織統總計設訂許記論證評試詩該認誰請調談識譯護變讓負財責貨費貿資賓質購贈趙軌較輪轉農連遊適遷"
    "遺鄭鄧釋針鋼陳陸陽陰際隨險雖雙難雲靈靜頁項順預頭題額願類風飛飯館驗體鬥麼黃齊齡傳價優兒勞勢勝華協單嚴團圖圓報壓夠"
    "夢奪奧婦孫寶實審導專屬嶺師帶幣幫應廣張強彈徑復愛態慶憲戶執擔據擁擊斷數晉條楊極構標樣樹機權歐歡殺氣漢濟減測滅滿漁"
    "潔無熱爺爾狀獎獨獲環現產畢異療眾確礎禮種積穩競筆節範築簡籃紅約純紙終給維緊編練縮續罰羅義習聯聲肅腦臺舊艦蘇蔣藍蟲"
    "衛補裝製複覺親訴訪詞詳誤課",
    "这个们来时说为会国学对开后长没问还过从发经业东车书见门马桥镇创办盐顾远兰万与于当关园楼厂场庙电话语读写听买卖钱银"
    "铁钟录号间层岁历县乡区湾岛龙凤鸟鱼鸡猪猫医药术艺画乐剧戏战军队将领选举党员议职务处辞参观进运动输达归离边里里内两"
    "几亿点线网络结纪级细组织统总计设订许记论证评试诗该认谁请调谈识译护变让负财责货费贸资宾质购赠赵轨较轮转农连游适迁"
    "遗郑邓释针钢陈陆阳阴际随险虽双难云灵静页项顺预头题额愿类风飞饭馆验体斗么黄齐龄传价优儿劳势胜华协单严团图圆报压够"
    "梦夺奥妇孙宝实审导专属岭师带币帮应广张强弹径复爱态庆宪户执担据拥击断数晋条杨极构标样树机权欧欢杀气汉济减测灭满渔"
    "洁无热爷尔状奖独获环现产毕异疗众确础礼种积稳竞笔节范筑简篮红约纯纸终给维紧编练缩续罚罗义习联声肃脑台旧舰苏蒋蓝虫"
    "卫补装制复觉亲诉访词详误课",
)
_HAN_RUN = re.compile(f"[{HAN}]")
_ONES = "two|three|four|five|six|seven|eight|nine"
_TEENS = "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen"
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_WORD_VALUES = dict(zip(f"one|{_ONES}|{_TEENS}".split("|"), range(1, 20), strict=True))
_WORD_VALUES |= dict(zip(_TENS.split("|"), range(20, 100, 10), strict=True))
_NUMBER_WORDS = re.compile(  # "one" alone is a pronoun more often
    rf"\b({_TENS})(?:[-\s](one|{_ONES}))?\b|(?<!-)\b({_ONES}|{_TEENS})\b(?!-)", re.IGNORECASE
)
_CLAUSE = re.compile(
    r"[,;:，；：—]\s*|\s(?:and|but|though|although|while|whereas|because|since)\s|但是?|而且?|因[为為]"
)
_QUESTION = re.compile(r"[?？][\s\"”’」』)）]*$")
_ASKS = roots("what whichever many much name year date time number kind type")
_ASKS_ZH = re.compile(
    r"[是由被叫]?(?:谁|誰)|(?:叫|是)?(?:什[么麼])(?:名字|[时時]候)?|哪一?[个個年天位家种種座条條部次些里裡儿兒]?|在哪|多少"
    r"|[几幾][个個年天位家种種座条條部次名]?|有多|多[长長高大远遠久重深]|[为為如]何|何[时時地]|怎[么麼样樣]|[吗嗎呢]|是否|名字"
    r"|[的了在是于於和与與由被]"
)


def signals(question: str, answer: str, passages: Sequence[Passage], weighed: Weighed | None) -> dict[str, float]:
    """Gives the numbers that a probability is computed from, each within a few units of 0.

    held: share of the answer's words, those of the question left out, that the passages have. around: share of what is
    asked that stands within NEAR sentences of the answer. figures: whether the question's numbers stand beside it.
    named: share of the question's names that the passages have. zh: whether the question is Chinese, where models say
    "yes" more easily. margin: log-odds of the answer and of a refusal; stated: of yes and no, whether the passages
    state it. open: whether the question leaves something open (no part of the probability, which it limits).
    """
    text = "\n".join(filter(None, (line for p in passages for line in (p.header, p.text))))
    asked, shown, units = _asked(question), _roots(text), _roots(answer)
    new = units - asked or units
    around, figures = _beside(new, asked, _numbers(question), text)
    chinese = bool(_HAN_RUN.search(question))
    names = asked if chinese else frozenset().union(*map(roots, _CAPITALS.findall(question)))
    foreign = not asked & shown and chinese != bool(_HAN_RUN.search(text))
    values = {
        "held": len(new & shown) / len(new) if new else 0.5,
        "around": 0.5 if foreign else around,
        "figures": 0.5 if foreign and figures < 1 else figures,
        "named": len(names & shown) / len(names) if names and not foreign else 1.0,
        "zh": float(chinese),
        "open": float(_is_open(question, answer, text)),
    }
    if weighed:
        values |= {
            "margin": min(max(weighed.likely - weighed.refusal, -4.0), 12.0) / 4,
            "stated": min(max(weighed.stated, -4.0), 4.0),
        }
    return values


def probability(values: Mapping[str, float], small: bool = False) -> float:
    """Gives the probability, 0 to 1, that an answer with such signals is right, OPEN at most where the question leaves
    something open; small: whether its writer has less than writer.SMALL parameters."""
    weights = _weights()["words" if "stated" not in values else "small" if small else "large"]
    total = weights["bias"] + sum(weight * values[name] for name, weight in weights.items() if name != "bias")
    return min(1 / (1 + exp(-total)), OPEN if values["open"] else 1.0)


@cache
def _weights() -> dict[str, dict[str, float]]:
    return tomllib.loads(Path(__file__).with_name("trust.toml").read_text(encoding="utf-8"))


def names_within(question: str, text: str) -> float:
    """Gives the share of a question's names and numbers that a text has; 1 where it has none."""
    names, plain = [normalize(name) for name in _NAME.findall(question)], _plain(text)
    return sum(_within(name, plain) for name in names) / len(names) if names else 1.0


def telling_sentence(question: str, passages: Sequence[Passage]) -> str:
    """The sentence with most of what a question asks beside its names, which stand in it or before it in its paragraph;
    "" where none has half of that."""
    named = frozenset().union(*map(_roots, _NAME.findall(question)))
    asked = _asked(question) - named
    found = ""
    best = max(1, (len(asked) + 1) // 2) - 1
    for passage in passages:
        for paragraph in _PARAGRAPH.split(passage.text):
            ends = [0, *sentence_ends(paragraph), len(paragraph)]
            for start, end in pairwise(ends):
                words = len(asked & _roots(paragraph[start:end]))
                if words > best and names_within(question, paragraph[:end]) == 1:
                    found, best = paragraph[start:end], words
    return " ".join(found.split())


def telling_clause(question: str, sentence: str) -> str:
    """The part of a sentence with most of what a question asks, or those parts: in "approved the budget, but not the
    loan" nothing is denied of the budget."""
    asked, clauses = _asked(question), _CLAUSE.split(sentence)
    words = [len(asked & _roots(clause)) for clause in clauses]
    return ", ".join(clause for clause, count in zip(clauses, words, strict=True) if count == max(words))


def _plain(text: str) -> str:
    """Single words, a space around each."""
    return " ".join(["", *_WORD.findall(normalize(text)), ""])


def _within(name: str, text: str) -> bool:
    """Whether a text of single words has all words of a name."""
    return all(f" {word} " in text or f" {word}s " in text for word in _WORD.findall(name))


def _roots(text: str) -> frozenset[str]:
    return roots(_in_figures(text.translate(_SIMPLER)))


def _in_figures(text: str) -> str:
    """A text with its English numbers below a hundred in figures: "twenty-seven" as 27."""

    def figure(match: re.Match[str]) -> str:
        return str(sum(_WORD_VALUES[part.casefold()] for part in match.groups() if part))

    return _NUMBER_WORDS.sub(figure, text)


def _asked(question: str) -> frozenset[str]:
    """The roots of a question's words less those that only ask ("in which year", "是谁")."""
    return _roots(_ASKS_ZH.sub("|", normalize(question))) - _ASKS


def _beside(units: frozenset[str], asked: frozenset[str], numbers: frozenset[str], text: str) -> tuple[float, float]:
    """The best share of `asked` within NEAR sentences of one that holds most of an answer's units, and whether all
    `numbers` stand beside such a one. A sentence that asks something tells nothing: in a chat the one who asks who
    brings the tent does not bring it."""
    ends = [0, *sorted({*sentence_ends(text), *(m.end() for m in _END.finditer(text))}), len(text)]
    told = [text[a:b] for a, b in pairwise(ends) if text[a:b].strip() and not _QUESTION.search(text[a:b])]
    words = list(map(_roots, told))
    held = [len(units & some) for some in words]
    around, figures = 0.0, 0.0
    for at in (at for at, count in enumerate(held) if count and count == max(held)):
        near = frozenset().union(*words[max(0, at - NEAR) : at + NEAR + 1])
        around = max(around, len(asked & near) / len(asked) if asked else 0.5)
        figures = max(figures, float(numbers <= _numbers("\n".join(told[max(0, at - 1) : at + 2]))))
    return around, figures if numbers else 1.0


def _numbers(text: str) -> frozenset[str]:
    """The numbers of a text, written as figures: 1,200 as 1200, 一九三五 as 1935."""
    plain = _HAN_DIGITS.sub(lambda run: run[0].translate(_DIGITS), _in_figures(normalize(text)))
    return frozenset(number.replace(",", "") for number in _FIGURE.findall(plain))


def _is_open(question: str, answer: str, text: str) -> bool:
    """Whether a question leaves open of whom it speaks, or asks to compute or to compare what the passages do not state
    themselves, or for a count."""
    superlative = _SUPERLATIVE.search(question)
    if _COMPUTES.search(question) or (superlative and superlative[0].casefold() not in text.casefold()):
        return True
    if (pronoun := _PRONOUN.search(question)) and not _NAME.search(question[: pronoun.start()]):
        return True
    counts = _numbers(answer)
    return bool(_ASKS_NUMBER.search(question) and counts and not counts & _numbers(text))
