"""What a question and a sentence have in common: roots of words, numbers in figures, names; Chinese in simplified
characters."""

from __future__ import annotations

import re

from minimemo.text.scripts import HAN
from minimemo.text.words import normalize, roots

WORD = re.compile(rf"[{HAN}]+|(?:(?![{HAN}])[^\W_])+")
NAME = re.compile(r"(?<!^)(?<![.!?]\s)\b[A-Z][\w'’-]*|(?<![A-Za-z0-9])[A-Za-z0-9-]*\d[A-Za-z0-9-]*(?:[.,]\d+)*")
ASKS = re.compile(r"[?？][\s\"”’」』)）]*$")  # A sentence that asks something ends so.
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
_ONES = "two|three|four|five|six|seven|eight|nine"
_TEENS = "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen"
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_WORD_VALUES = dict(zip(f"one|{_ONES}|{_TEENS}".split("|"), range(1, 20), strict=True))
_WORD_VALUES |= dict(zip(_TENS.split("|"), range(20, 100, 10), strict=True))
_NUMBER_WORDS = re.compile(  # "one" alone is a pronoun more often
    rf"\b({_TENS})(?:[-\s](one|{_ONES}))?\b|(?<!-)\b({_ONES}|{_TEENS})\b(?!-)", re.IGNORECASE
)
_ASKS = roots("what whichever many much name year date time number kind type")
_ASKS_ZH = re.compile(
    r"[是由被叫]?(?:谁|誰)|(?:叫|是)?(?:什[么麼])(?:名字|[时時]候)?|哪一?[个個年天位家种種座条條部次些里裡儿兒]?|在哪|多少"
    r"|[几幾][个個年天位家种種座条條部次名]?|有多|多[长長高大远遠久重深]|[为為如]何|何[时時地]|怎[么麼样樣]|[吗嗎呢]|是否|名字"
    r"|[的了在是于於和与與由被]"
)


def word_roots(text: str) -> frozenset[str]:
    return roots(in_figures(simplified(text)))


def simplified(text: str) -> str:
    """A text with frequent characters of traditional Chinese in their simplified form."""
    return text.translate(_SIMPLER)


def in_figures(text: str) -> str:
    """A text with its English numbers below a hundred in figures: "twenty-seven" as 27."""

    def figure(match: re.Match[str]) -> str:
        return str(sum(_WORD_VALUES[part.casefold()] for part in match.groups() if part))

    return _NUMBER_WORDS.sub(figure, text)


def asked_roots(question: str) -> frozenset[str]:
    """The roots of a question's words less those that only ask ("in which year", "是谁")."""
    return word_roots(_ASKS_ZH.sub("|", normalize(question))) - _ASKS


def names_within(question: str, text: str) -> float:
    """Gives the share of a question's names and numbers that a text has; 1 where it has none."""
    names, plain = [normalize(name) for name in NAME.findall(question)], _plain(text)
    return sum(_within(name, plain) for name in names) / len(names) if names else 1.0


def _plain(text: str) -> str:
    """Single words, a space around each."""
    return " ".join(["", *WORD.findall(normalize(text)), ""])


def _within(name: str, text: str) -> bool:
    """Whether a text of single words has all words of a name."""
    return all(f" {word} " in text or f" {word}s " in text for word in WORD.findall(name))
