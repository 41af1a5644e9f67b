"""What a question asks of a table's cells, where no model needs to be asked: one cell, how many rows, a list, a sum,
the most or the least, a difference.

Every word of such a question is a name of a column, stands in a cell, or is one that every question on a table may
have; a question with another word asks for what the table does not tell, and is left. So is one that two rows, two
columns or two tables fit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from typing import Any

from minimemo.text.figures import FEWEST, MOST, Figured
from minimemo.text.scripts import HAN
from minimemo.text.sentences import sentence_ends
from minimemo.text.tables import MOST_ROWS, Grid, grids
from minimemo.text.words import STOPWORDS, normalize, root, without_escapes

_PARTS = re.compile(rf"[{HAN}]+|\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|(?:(?![{HAN}_])\w)+(?:[-.:/&'’+](?:(?![{HAN}_])\w)+)*")
_FORM = (
    r"^\W*(?:please\s)?(?:(?:on|in|at|by|to|for|from|of)\s)?(?:what|which|when|who|how\s(?:much|many)"
    r"|list|name|enumerate|give)"
)
_ASKS = re.compile(rf"{_FORM}\b|whats\b|多少|[几幾]|哪|谁|誰|什么|什麼|何时|何時|列出|最", re.IGNORECASE)
# "Which order", not "which is".
_NOUN = re.compile(
    rf"{_FORM}\s(?!me\s|is\b|are\b|was\b|were\b|do\b|does\b|did\b|has\b|have\b|had\b)|^\W*(?:list|name|give)\sme\s",
    re.IGNORECASE,
)
_WHAT_IS = re.compile(r"^\W*what(?:['’]?s|\s(?:is|are|was|were))\b", re.IGNORECASE)
_WHAT_DID = re.compile(r"^\W*what\s(?:do|does|did|has|have|had)\b", re.IGNORECASE)
_WHO_DID = re.compile(r"^\W*(?:\w+\s)?who\w*\s(?!is\b|was\b)", re.IGNORECASE)
# What reaches further than to a row, or leaves some out.
_BEYOND = re.compile(
    r"\b(?:not|no|nor|or|if|he|she|his|hers?|him|its?|they|their|these|those|this|why)\b|n['’]t\b"
    r"|\b(?:by|from|to)\s(?:\w+\s)?[$€£¥]?\d|[吗嗎不没沒未非除]|是否|为什么|為什麼|怎么|怎麼|如何",
    re.IGNORECASE,
)
_EXTREME = re.compile(
    rf"\b(?:(?P<price>most\sexpensive)|{MOST}|(?P<least>(?P<cheap>cheapest)|{FEWEST}))\b"
    r"|最(?:(?P<dear>[贵貴])|[高多大长長重晚新]|(?P<less>(?P<poor>便宜)|[低少小短轻輕早]))",
    re.IGNORECASE,
)
_SUM = re.compile(
    r"\b(?:in\s(?:all|total)|total|sum|altogether|together|combined)\b|一共|总共|總共|合计|合計|总和|總和|共"
)
_TOTAL = re.compile(r"\W*(?:(?:grand\s|sub-?)?totals?|sum|average|mean)\b|[合小总總]计|[合小總]計|平均", re.IGNORECASE)
_HOW_MANY = re.compile(r"\bhow\smany\b|\bnumber\sof\b|多少|[几幾]", re.IGNORECASE)
_HOW_MUCH = re.compile(r"\bhow\s(?:much|many)\b|多少|[几幾]", re.IGNORECASE)
_KINDS = re.compile(
    r"\bhow\smany\s(?:different\s)?(?:kind|type|sort)s\sof\b|(?:多少|[几幾])[种種款类類]", re.IGNORECASE
)
_DIFFERENT = re.compile(
    r"\b(?:different|distinct|(?:kind|type|sort)s)\b|不同|(?:多少|[几幾])[种種款类類家位名]", re.IGNORECASE
)
_GOODS = re.compile(r"\b(?:item|article|product|piece|good)s?\b|[货貨商产產]品|品名", re.IGNORECASE)
_OF_ROWS = re.compile(r"\b(?:rows?|lines|entries|records|items)\b|[行条條]|记录|記錄", re.IGNORECASE)
_WHEN = re.compile(r"^\W*when\b|何时|何時|什么时候|什麼時候|哪[一]?[天年月]", re.IGNORECASE)
_LIST = re.compile(r"^\W*(?:please\s)?(?:list|name|enumerate|give)\b|\blist\s(?:them|all)\b|哪些|列出", re.IGNORECASE)
_MORE = re.compile(
    r"\bhow\s(?:much|many)\s(?:more|(?P<less>less|fewer)|(?P<dearer>more\sexpensive)|(?P<cheaper>cheaper))\b"
    r"|\bdifference\s(?:in|of|between)\b|\bbetween\b",
    re.IGNORECASE,
)
_THAN = re.compile(r"\bthan\b|比", re.IGNORECASE)
_HAN_MORE = re.compile(
    r"(?:(?P<dear>[贵貴])|(?P<poor>便宜)|[高多大长長重]|(?P<less>[低少小短轻輕]))(?:出|了)?(?=多少|[几幾])|相差|差(?=多少|[几幾])"
)
# Words of a question that ask for no other rows or columns, as roots; characters of Chinese ones.
_PLAIN = frozenset(
    map(
        root,
        """
        all amount any appear belong bring brought buy bought contain contained data date different document each entry
        every exist file get give given got item kind line list listed made make many me much name number ordered per
        place placed please record recorded row sheet shown table take text there them total value whats invoice
        catalogue inventory schedule
        """.split(),  # noqa: SIM905
    )
)
_HAN_PLAIN = tuple(
    sorted(
        """
        的 是 有 在 了 和 与 與 请 請 表中 表里 表格 文件 文档 文檔 中 里 裡 所有 全部 列出 名称 名稱 其 它 各 每 又
        都 为 為 叫 这 這 个 個 多少 几 幾 哪一 哪些 哪 什么 什麼 谁 誰 何时 何時 什么时候 什麼時候 一 种 種 款 类 類
        位 名 家 条 條 行 项 項 天 年 月 记录 記錄 呢 分别 分別 价 價 由 那
        """.split(),  # noqa: SIM905
        key=len,
        reverse=True,
    )
)
_ORDINALS = frozenset(
    map(root, ("first", "second", "third", "last", "next", "more", "less", "before", "after", "average"))
)
_DIVIDES = re.compile(r"\b(?:and|or|not|no|without|except)\b|[和与與或不]", re.IGNORECASE)
_PRICE = frozenset(
    ("pric", "cost", "pay", "paid", "worth", "单价", "單價", "价格", "價格", "价钱", "售价", "售價", "多少钱", "多少錢")
)
_SAME = (
    _PRICE,
    frozenset(("stock", "库存", "庫存")),
    frozenset(("quantity", "qty", "数量", "數量")),
    frozenset(("supply", "supplier", "供应商", "供應商")),
    frozenset(("box", "盒")),
    frozenset(("bottl", "瓶")),
    frozenset(("bag", "袋")),
    frozenset(("yuan", "元")),
)
_SHORT = {"pos": "position", "qty": "quantity", "amt": "amount", "desc": "description", "dept": "department",
          "no": "number", "nr": "number", "tel": "telephone"}  # fmt: skip
_NAMES = frozenset(("品名", "名称", "名稱", "姓名", "产品", "產品", "商品", "name", "title", "product"))
_APIECE = re.compile(r"\b(?:unit|each|per|rate|age|year|no|number|id|code)\b|%|单|單|率|号|號", re.IGNORECASE)
_QUANTITY = re.compile(r"\b(?:qty|quantity|pieces|pcs|units)\b|数量|數量", re.IGNORECASE)
_AMOUNT = re.compile(r"\b(?:amount|total|sum)\b|金额|金額|总价|總價", re.IGNORECASE)
_MONEY = re.compile(r"[$€£¥]|\b(?:EUR|USD|GBP|CHF|euro)\b|元")
_VALUE = re.compile(r"(?P<sign>[$€£¥]?)\s?(?P<number>-?\d+(?:\.\d+)?)\s?(?P<unit>%|€|[^\W\d_]{1,8}[²³]?|)")


@dataclass(frozen=True, slots=True)
class _Mention:
    """What a word of a question, or some, mean in a table: columns; and for what stands in cells the rows with it.

    exact: whether it is all of a cell.
    """

    words: tuple[str, ...]
    columns: frozenset[int]
    rows: frozenset[int] | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class _Read:
    """A question as a table understands it: the rows that its words leave, the columns that it asks for, the column
    that it names first, all words that stand in cells, and whether it asks for a price that no column is named for."""

    rows: tuple[int, ...]
    columns: frozenset[int]
    noun: int | None
    held: tuple[_Mention, ...]
    words: tuple[str, ...]
    price: bool
    vague: bool


class _Vocabulary:
    """The words of one table: of its columns' names and of its cells."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.named: dict[tuple[str, ...], set[int]] = {}
        self.of_names: dict[str, set[int]] = {}
        self.cells: dict[tuple[str, ...], dict[int, set[int]]] = {}
        self.of_cells: dict[str, dict[int, set[int]]] = {}
        for column, name in enumerate(grid.names):
            self.named.setdefault(tuple(_words(_base(name), header=True)), set()).add(column)
            for word in _words(name, header=True):
                for part in _stretches(word) if _is_han(word) else [word]:
                    self.of_names.setdefault(part, set()).add(column)
            for row, fields in enumerate(grid.rows):
                words = _words(fields[column])
                self.cells.setdefault(tuple(words), {}).setdefault(column, set()).add(row)
                for word in words:
                    self.of_cells.setdefault(word, {}).setdefault(column, set()).add(row)
        self.named.pop((), None)
        self.cells.pop((), None)
        title = {*_words(grid.title)} - _PRICE - _ORDINALS
        self.title = title if len(title) <= 3 and not _DIVIDES.search(grid.title) else set()  # "Error codes"

    @cached_property
    def classes(self) -> frozenset[str]:
        """What all of a column's values end with: 茶 where a column has 绿茶, 红茶."""
        columns = ([fields[at] for fields in self.grid.rows] for at in range(len(self.grid.names)))
        return frozenset(
            values[0][-1:]
            for values in columns
            if all(value[-1:] == values[0][-1:] and value[:-1] and _is_han(value) for value in values)
        )

    @cached_property
    def known(self) -> list[str]:
        """The words of Han characters, the longest first."""
        words = [*self.of_cells, *self.of_names, *(word for group in _SAME for word in group)]
        return sorted((word for word in words if _is_han(word)), key=len, reverse=True)

    def segments(self, run: str) -> Iterator[str]:
        """Cuts a run of Han characters into words of this table, the longest first, and those that mean nothing in it
        away; what it does not know stays, by characters."""
        at = 0
        while at < len(run):
            word = next((word for word in self.known if run.startswith(word, at)), "")
            plain = next((word for word in _HAN_PLAIN if run.startswith(word, at)), "")
            if plain and len(plain) >= len(word):
                at += len(plain)
                continue
            word = word or run[at]
            if word not in self.classes or word in self.of_cells:
                yield word
            at += len(word)

    def read(self, text: str, *, noun: bool = False) -> _Read | None:
        """Understands a question, without the words of its form; None where a word means nothing, or two things."""
        words = [
            word for part in _words(text, header=False)
            for word in (self.segments(part) if _is_han(part) else [part])
        ]  # fmt: skip
        words = [word for word in words if self._means(word) or (word not in _PLAIN and word not in self.title)]
        mentions: list[_Mention] = []
        price, at = False, 0
        while at < len(words):
            for size in range(min(8, len(words) - at), 0, -1):
                phrase = tuple(words[at : at + size])
                columns, held = self.named.get(phrase), self.cells.get(phrase)
                if columns and held:
                    return None
                if columns:
                    mentions.append(_Mention(phrase, frozenset(columns)))
                elif held:
                    mentions.append(_Mention(phrase, frozenset(held), frozenset().union(*held.values()), exact=True))
                if columns or held:
                    at += size
                    break
            else:
                word = (words[at],)
                if columns := self._columns(words[at]):
                    mentions.append(_Mention(word, frozenset(columns)))
                elif held := self.of_cells.get(words[at]):
                    mentions.append(_Mention(word, frozenset(held), frozenset().union(*held.values())))
                elif words[at] in _PRICE:
                    price = True
                else:
                    return None
                at += 1
        return self._joined(mentions, words, price, noun)

    def _means(self, word: str) -> bool:
        return bool(self._columns(word)) or word in self.of_cells

    def _columns(self, word: str) -> set[int]:
        """The columns that a word names, by a word of their names, or by one that means the same."""
        if found := self.of_names.get(word):
            return found
        same = next((group for group in _SAME if word in group), frozenset())
        columns: set[int] = set().union(*(self.of_names.get(other, ()) for other in same))
        return columns | self._amounts() if columns and word in _PRICE else columns

    def _amounts(self) -> set[int]:
        return {at for at, name in enumerate(self.grid.names) if _AMOUNT.search(name.replace("_", " "))}

    def priced(self) -> set[int]:
        """The columns that "What does position 3 cost?" may mean: the price of a piece, the amount of all of them."""
        columns = self._columns("pric")
        return columns | self._amounts() if columns else columns

    def _joined(self, mentions: Sequence[_Mention], words: Sequence[str], price: bool, noun: bool) -> _Read | None:
        """What all mentions say together."""
        held: list[_Mention] = []
        for number, mention in enumerate(mentions):
            if mention.rows is None:
                continue
            if len(mention.columns) > 1:  # "job 3117": the column that is named beside it
                beside = [m.columns for m in mentions[max(0, number - 1) : number + 2] if m.rows is None]
                both = [mention.columns & columns for columns in beside if len(mention.columns & columns) == 1]
                if len(both) != 1:
                    return None
                (column,) = both[0]
                found = self.cells[mention.words] if mention.exact else self.of_cells[mention.words[0]]
                mention = _Mention(mention.words, both[0], frozenset(found[column]), mention.exact)
            held.append(mention)
        rows: frozenset[int] = frozenset(range(len(self.grid.rows))).intersection(
            *(m.rows for m in held if m.rows is not None)
        )
        used: frozenset[int] = frozenset().union(*(m.columns for m in held))
        named = [m for m in mentions if m.rows is None]
        first = named[0].columns if noun and named and named[0] is mentions[0] else None
        if first is not None and len(first) > 1:
            following = [m.columns & first for m in named[1:2] if m is mentions[1] and m.columns & first]
            first = following[0] if following else first
        if first is not None and len(first) != 1:
            return None
        sets = [m.columns for m in named if not m.columns & used or m.columns == first]
        if any(s != {0} for s in sets) and first != {0}:
            sets = [s for s in sets if s != {0}]
        sure: frozenset[int] = frozenset().union(*(s for s in sets if len(s) == 1))
        if any(len(s) > 1 and not s & sure for s in sets):
            shared = frozenset(range(len(self.grid.names))).intersection(*sets)
            if sure or len(shared) != 1:
                return None
            sure = shared
        vague = any(
            not m.exact and len({self.grid.rows[row][column] for row in rows for column in m.columns}) > 1 for m in held
        )
        return _Read(
            tuple(sorted(rows)), sure, next(iter(first)) if first else None, tuple(held), tuple(words), price, vague
        )


class Tables:
    """The tables of one text, which are found and understood once, at the first question that may be of one."""

    def __init__(self, text: str):
        self._text = text

    @cached_property
    def _found(self) -> list[_Vocabulary]:
        return [_Vocabulary(grid) for grid in grids(self._text)]

    def told(self, question: str) -> Figured | None:
        """Computes what a question asks, where one of the tables settles it; else None."""
        plain = " ".join(unicodedata.normalize("NFKC", question).split())
        if not _ASKS.search(plain) or _BEYOND.search(plain):
            return None
        found = [told for table in self._found if (told := _told(table, plain, self._text))]
        return found[0] if len(found) == 1 else None


def _told(table: _Vocabulary, question: str, text: str) -> Figured | None:
    more, than = _HAN_MORE.search(question), re.search(r"\bthan\b|\bbetween\b", question, re.IGNORECASE)
    if (match := _MORE.search(question) or more) and (more or than):
        return _difference(table, question, match, text)
    if _THAN.search(question):
        return None
    if match := _EXTREME.search(question):
        return _extreme(table, question, match)
    sums = _SUM.search(question)
    rest = _SUM.sub(" ", question) if sums and not table.of_names.get(root(sums[0].casefold())) else question
    read = table.read(_KINDS.sub(" ", rest), noun=bool(_NOUN.search(question)) and not _KINDS.search(rest))
    if read is None or not read.rows:
        return None
    if _HOW_MANY.search(question) and (number := _count(table, read, question)):
        return number
    columns = _asked(table, read, question)
    if len(columns) != 1:
        return None
    (column,) = columns
    if sums and rest != question:
        return _sum(table, read, column, text)
    if _LIST.search(question) or (read.noun == column and len(read.rows) > 1):
        return _list(table, read, column, question)
    return _cell(table, read, column, question, text)


def _asked(table: _Vocabulary, read: _Read, question: str) -> frozenset[int]:
    """The columns that are asked for; of "how much" without a name of one the price."""
    if read.columns or not (read.price or re.search(r"\bhow\smuch\b", question, re.IGNORECASE)):
        return read.columns
    return frozenset(table.priced())


def _cell(table: _Vocabulary, read: _Read, column: int, question: str, text: str) -> Figured | None:
    """One cell of the one row that is named."""
    grid = table.grid
    if len(read.rows) != 1 or not read.held or (read.noun is not None and read.noun != column):
        return None
    value = grid.rows[read.rows[0]][column]
    digits = any(map(str.isdigit, value))
    number = _number(value) is not None
    if (
        not value
        or _WHO_DID.search(question)
        or (_WHAT_DID.search(question) and not (number and _PRICE & {*read.words}))
        or (_HOW_MUCH.search(question) and not number)
        or (_WHEN.search(question) and not re.search(r"\d[-:./年月]\d|^(?:1|2)\d{3}$", value))
        or (digits and re.search(r"\bwho|谁|誰", question, re.IGNORECASE))
        or (read.price and not _MONEY.search(value + grid.names[column]))
        or _rivals(table, read, (column,), text)
    ):
        return None
    return Figured(f"{value} ({grid.names[column]})" if digits and column else value, (grid.spans[read.rows[0]],))


def _count(table: _Vocabulary, read: _Read, question: str) -> Figured | None:
    """How many rows are left, or of how many values."""
    grid = table.grid
    if _aggregated(grid) or read.vague or read.price or read.columns.difference({read.noun}):
        return None
    if read.noun is None:
        if not (_KINDS.search(question) or _OF_ROWS.search(question)) or (read.columns - {0}):
            return None
        column = _key(table) if _KINDS.search(question) else None
    else:
        column = read.noun or None
        if column and (all(_number(fields[column]) for fields in grid.rows)):
            return None
    goods = _GOODS.search(question) and any(_QUANTITY.search(name.replace("_", " ")) for name in grid.names)
    if goods and not _DIFFERENT.search(question):
        return None  # kinds, or pieces
    values = {grid.rows[row][column] for row in read.rows} if column is not None else set(map(str, read.rows))
    names = all(value[:1].isupper() for value in values)
    if column is not None and len(values) < len(read.rows) and not (names or _DIFFERENT.search(question)):
        return None  # "How many bikes": six kinds, or 44; of names each is one
    return Figured(str(len(values)), tuple(grid.spans[row] for row in read.rows))


def _sum(table: _Vocabulary, read: _Read, column: int, text: str) -> Figured | None:
    """The sum of a column over the rows that are left, if it can be added up."""
    grid, name = table.grid, table.grid.names[column].replace("_", " ")
    priced = any(word in _PRICE for word in _words(grid.names[column], header=True))
    quantities = any(_QUANTITY.search(other.replace("_", " ")) for other in grid.names)
    if _aggregated(grid) or read.vague or _APIECE.search(name) or (priced and quantities) or column == 0:
        return None
    values = _numbers([grid.rows[row][column] for row in read.rows])
    if not read.held and any(_TOTAL.match(line) for line in text.split("\n")):
        return None  # the document has sums of its own, with taxes maybe
    if values is None or (read.noun is not None and read.noun != column):
        return None
    numbers, sign, unit = values
    told = _written(sum(numbers, Decimal(0)), sign, unit)
    if 1 < len(numbers) <= 12:
        told += f" ({' + '.join(grid.rows[row][column] for row in read.rows)})"
    return Figured(told, tuple(grid.spans[row] for row in read.rows))


def _list(table: _Vocabulary, read: _Read, column: int, question: str) -> Figured | None:
    """All values of a column in the rows that are left, each once."""
    if _aggregated(table.grid) or read.vague or (read.noun is not None and read.noun != column):
        return None
    values = list(dict.fromkeys(table.grid.rows[row][column] for row in read.rows if table.grid.rows[row][column]))
    plural = re.match(r"\W*(?:which|what)\s\w+s\b", question, re.IGNORECASE)
    if not values or (len(values) > 1 and not (plural or _LIST.search(question))):
        return None
    return Figured(", ".join(values), tuple(table.grid.spans[row] for row in read.rows))


def _extreme(table: _Vocabulary, question: str, match: re.Match[str]) -> Figured | None:
    """Which row has the most or the least of a column, or how much that is."""
    grid = table.grid
    price = match["price"] or match["cheap"] or match["dear"] or match["poor"]
    rest = f"{question[: match.start()]} {'price' if price else ''} {question[match.end() :]}"
    read = table.read(rest, noun=bool(_NOUN.search(question)))
    if read is None or not read.rows or read.vague or read.price or _aggregated(grid) or _SUM.search(rest):
        return None
    columns = read.columns - ({read.noun} if len(read.columns) > 1 and read.noun is not None else set())
    if len(columns) != 1 or 0 in columns or re.match(r"\W*who", question, re.IGNORECASE):
        return None
    (column,) = columns
    cells = [grid.rows[row][column] for row in read.rows]
    dates = all(re.fullmatch(r"\d{4}-\d\d(?:-\d\d)?", cell) and len(cell) == len(cells[0]) for cell in cells)
    if dates and not re.search(r"latest|newest|earliest|最[早晚新]", match[0], re.IGNORECASE):
        return None
    values: Sequence[Any]  # dates, or numbers
    values = cells if dates else (_numbers(cells) or ([],))[0]
    if not values:
        return None
    best = (min if match["least"] or match["less"] else max)(values)
    rows = [row for row, value in zip(read.rows, values, strict=True) if value == best]
    if len(rows) > MOST_ROWS:
        return None
    key = read.noun if read.noun != column else None
    if key is None and (re.search("哪", question) or _OF_ROWS.search(question)) and read.noun is None:
        key = _key(table)
    if key is None and not (_WHAT_IS.match(question) or re.search(r"多少|[几幾]", question)):
        return None
    if key and key != _key(table) and re.fullmatch(r"most|least|fewest|最[多少]", match[0], re.IGNORECASE):
        every = [fields[key] for fields in grid.rows]
        if len({*every}) < len(every):
            return None  # "Which customer paid the most?" may mean all rows of each
    name = grid.names[column]
    told = []
    for row in rows:
        value = grid.rows[row][column]
        label = [f"{name}: {value}"]
        if key and key == _key(table) and _is_han(grid.rows[row][key][:1]):
            label.insert(0, f"{grid.names[0]}: {grid.rows[row][0]}")
        told.append(f"{grid.rows[row][key]} ({'; '.join(label)})" if key is not None else value)
    return Figured(", ".join(dict.fromkeys(told)), tuple(grid.spans[row] for row in rows))


def _difference(table: _Vocabulary, question: str, match: re.Match[str], text: str) -> Figured | None:
    """By how much one cell exceeds another one of its row, or of its column."""
    grid, groups = table.grid, match.groupdict()
    price = any(groups.get(name) for name in ("dearer", "cheaper", "dear", "poor"))
    less = any(groups.get(name) for name in ("less", "cheaper", "poor"))
    told = _MORE.sub(" ", _HAN_MORE.sub(" ", re.sub(r"\bhow\s(?:much|many)\smore\sexpensive\b", " ", question)))
    if (cut := _THAN.search(told)) or (cut := re.search(r"\band\b|[和与與跟]", told)):
        left, right = told[: cut.start()], told[cut.end() :]
    else:
        return None
    one, other = table.read(left), table.read(right)
    if one is None or other is None or one.vague or other.vague:
        return None
    price = price or one.price or other.price
    places: list[tuple[int, int]] = []
    if one.held and other.held:
        columns = one.columns | other.columns or (table.priced() if price else set())
        if len(columns) != 1 or len(one.rows) != 1 or len(other.rows) != 1:
            return None
        (column,) = columns
        places = [(one.rows[0], column), (other.rows[0], column)]
        price = price and not table.priced()
    elif one.held and len(one.rows) == len(one.columns) == len(other.columns) == 1:
        places = [(one.rows[0], column) for of in (one, other) for column in of.columns]
        if _unit_of(grid.names[places[0][1]]) != _unit_of(grid.names[places[1][1]]):
            return None
    if not places or places[0] == places[1]:
        return None
    cells = [grid.rows[row][column] for row, column in places]
    if price and not all(_MONEY.search(cell) for cell in cells):
        return None
    if (values := _numbers(cells)) is None or _rivals(table, one, {column for _, column in places}, text):
        return None
    (first, second), sign, unit = values
    ordered = bool(_THAN.search(told))
    if first == second or (ordered and (first < second) != less):
        return None  # the question has it the other way round
    high, low = (cells[0], cells[1]) if first > second else (cells[1], cells[0])
    gap = _written(abs(first - second), sign, unit)
    return Figured(f"{gap} ({high} - {low})", tuple(dict.fromkeys(grid.spans[row] for row, _ in places)))


def _rivals(table: _Vocabulary, read: _Read, columns: Sequence[int] | set[int], text: str) -> bool:
    """Whether a sentence outside of the table also has the words of the row and of a column, and may differ."""
    row = {word for mention in read.held for word in mention.words}
    names = [{*_words(_base(table.grid.names[column]), header=True)} for column in columns]
    starts = {start for start, _ in table.grid.spans}
    cuts = sorted({0, len(text), *sentence_ends(text), *(match.end() for match in re.finditer("\n", text))})
    for start, end in pairwise(cuts):
        line = text[start:end]
        if not row or start in starts:
            continue
        words = {*_words(line)}
        if all(word in words or (_is_han(word) and word in line) for word in row) and any(
            name <= words or any(_is_han(word) and word in line for word in name) for name in names
        ):
            return True
    return False


def _aggregated(grid: Grid) -> bool:
    """Whether a row holds a sum of the others."""
    return any(_TOTAL.match(field) for fields in grid.rows for field in fields)


def _key(table: _Vocabulary) -> int:
    """The column whose values people call the rows by."""
    return next((at for at, name in enumerate(table.grid.names) if normalize(name) in _NAMES), 0)


def _number(cell: str) -> tuple[Decimal, str, str] | None:
    """The number of a cell, the sign before it and the unit behind; None where it is none."""
    match = _VALUE.fullmatch(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", cell))
    return (Decimal(match["number"]), match["sign"], match["unit"]) if match else None


def _numbers(cells: Sequence[str]) -> tuple[list[Decimal], str, str] | None:
    """The numbers of some cells in their one unit."""
    values = [_number(cell) for cell in cells]
    told = [value for value in values if value is not None]
    if not told or len(told) < len(values) or len({value[1:] for value in told}) > 1:
        return None
    return [value for value, _, _ in told], told[0][1], told[0][2]


def _written(value: Decimal, sign: str, unit: str) -> str:
    return f"{sign}{value:,}{unit if unit in ('%', '') else f' {unit}'}"


def _base(name: str) -> str:
    """A column's name without what stands in brackets behind it."""
    return re.sub(r"\s*[(（\[][^)）\]]*[)）\]]", "", name) or name


def _unit_of(name: str) -> str:
    """What stands in brackets in a column's name, if it is a unit and no range ("5-15")."""
    match = re.search(r"[(（\[]([^)）\]\d]*)[)）\]]", name)
    return normalize(match[1]) if match else ""


def _is_han(text: str) -> bool:
    return bool(re.match(rf"[{HAN}]", text))


def _stretches(run: str) -> set[str]:
    """All stretches of two characters and more of a run, and the run."""
    return {run, *(run[a:b] for a in range(len(run)) for b in range(a + 2, len(run) + 1))}


def _words(text: str, *, header: bool = False) -> list[str]:
    """The words of a text: roots of English ones without function words, codes with their hyphens, runs of Han."""
    words = []
    for match in _PARTS.finditer(unicodedata.normalize("NFKC", without_escapes(text))):
        word = re.sub(r"['’]s$", "", match[0])
        folded = word.casefold()
        if header and folded in _SHORT:
            folded = _SHORT[folded]
        elif folded in STOPWORDS and not (len(word) <= 3 and word.isupper()):
            continue
        words.append(root(folded))
    return words
