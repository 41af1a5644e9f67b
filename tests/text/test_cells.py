"""What a table's cells settle is computed in English and Chinese, and what they leave open is not."""

from __future__ import annotations

import pytest

from minimemo.text.cells import Tables

ORDERS = "\n".join(
    ["order,customer,price,shipped"]
    + [f"{7000 + i},{('Mina Sato', 'Ivo Novak')[i % 2]},{i}.50,2024-01-{i + 10}" for i in range(12)]
)
TOOLS = """编号,名称,种类,单价(元),库存(件),产地,负责人
K-11,羊角锤,锤子,45,12,宁波,韩雪
K-12,橡皮锤,锤子,38,7,宁波,丁力
K-13,管钳,钳子,62,30,永康,韩雪
K-14,尖嘴钳,钳子,29,4,永康,丁力
K-15,电钻,电动工具,399,9,苏州,韩雪"""
FERRY = """# Lake ferry

## Fares

| Crossing | Adult | Child (4-14) | Bicycle |
|---|---|---|---|
| One way | €9.50 | €4.00 | €3.20 |
| Return trip | €16.00 | €7.00 | €5.00 |
| Day card | €24.00 | €11.50 | |

## Boats

| Boat | Length (m) | Seats | Built | Captain |
|---|---|---|---|---|
| Heron | 31 | 180 | 1988 | Ada Roth |
| Swift | 24 | 95 | 2004 | Jan Beck |
| Otter | 27.5 | 140 | 1996 | Ada Roth |

The bar on the Heron opens at noon. The Otter has 120 seats in winter."""
BILL = """Bill to: Ann Lee, Oslo

Pos  Article   Goods                    Qty   Unit price     Amount
1    RP-40     Rope, 40 m                12       10.00     120.00
2    HK-2      Hook with ring             3        3.10       9.30
3    PT-7      Tin of paint, 2 kg         5       14.00      70.00

Total                                                       199.30"""


def told(text: str, question: str) -> str | None:
    found = Tables(text).told(question)
    return found and found.text


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many orders are in the file?", "12"),
        ("How many orders did Ivo Novak place?", "6"),
        ("How many customers are there?", "2"),
        ("How many rows are there?", "12"),
        ("How many orders were shipped on 2024-01-15?", "1"),
        ("How many valves did Mina Sato buy?", None),
        ("How many orders did Zoe Quist place?", None),
        ("How many orders were cancelled?", None),
        ("How many orders were shipped by 2024-01-15?", None),
        ("How many orders did Mina Sato not place?", None),
        ("When was order 7003 shipped?", "2024-01-13 (shipped)"),
        ("What is the price of order 7004?", "4.50 (price)"),
        ("What did order 7004 cost?", "4.50 (price)"),
        ("How much was order 7004?", "4.50 (price)"),
        ("Whose order was 7004?", None),
        ("Who shipped order 7004?", None),
        ("Which customer placed order 7004?", "Mina Sato"),
        ("What is the price of order 8004?", None),
        ("What is the price of the orders of Mina Sato?", None),
        ("What do the orders of Mina Sato cost together?", "33.00 (0.50 + 2.50 + 4.50 + 6.50 + 8.50 + 10.50)"),
        ("What is the total price of all orders of Ivo Novak?", "39.00 (1.50 + 3.50 + 5.50 + 7.50 + 9.50 + 11.50)"),
        ("Which order has the highest price?", "7011 (price: 11.50)"),
        ("Which order is the cheapest?", "7000 (price: 0.50)"),
        ("What is the lowest price of Ivo Novak?", "1.50"),
        ("Which order of Mina Sato has the largest price?", "7010 (price: 10.50)"),
        ("Which order has the latest shipped date?", "7011 (shipped: 2024-01-21)"),
        ("Which order has the second highest price?", None),
        ("Which customer placed the most orders?", None),
        ("Which customer paid the most?", None),
        ("Who has the highest price?", None),
        ("Which order is the heaviest?", None),
        ("List all the customers.", "Mina Sato, Ivo Novak"),
        ("List the orders of Ivo Novak.", "7001, 7003, 7005, 7007, 7009, 7011"),
        ("Which order was shipped on 2024-01-15?", "7005"),
        ("Which orders were cancelled?", None),
        ("List all the valves.", None),
        ("How much more does order 7009 cost than order 7002?", "7.00 (9.50 - 2.50)"),
        ("How much less does order 7009 cost than order 7002?", None),
        ("What is the difference in price between order 7002 and order 7009?", "7.00 (9.50 - 2.50)"),
        ("Is order 7009 shipped?", None),
        ("Why was order 7003 shipped?", None),
    ],
)
def test_a_csv_file_is_asked(question: str, answer: str | None) -> None:
    assert told(ORDERS, question) == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("编号K-13的单价是多少元？", "62 (单价(元))"),
        ("管钳的价格是多少？", "62 (单价(元))"),
        ("电钻的产地是哪里？", "苏州"),
        ("编号K-14的负责人是谁？", "丁力"),
        ("编号K-19的单价是多少元？", None),
        ("锤子的单价是多少元？", None),
        ("羊角锤的重量是多少？", None),
        ("尖嘴钳有多少件库存？", "4 (库存(件))"),
        ("表中一共有多少种钳子？", "2"),
        ("钳子的库存一共有多少件？", "34 (30 + 4)"),
        ("哪一种锤子的库存最少？", "橡皮锤 (编号: K-12; 库存(件): 7)"),
        ("哪种工具最贵？", None),
        ("最高的单价是多少？", "399"),
        ("单价最低的是哪一种？", "尖嘴钳 (编号: K-14; 单价(元): 29)"),
        ("羊角锤比橡皮锤贵多少元？", "7 (45 - 38)"),
        ("羊角锤比橡皮锤便宜多少元？", None),
        ("管钳和尖嘴钳的库存相差多少？", "26 (30 - 4)"),
        ("韩雪负责的有哪些？", None),
        ("库存不足10件的有几种？", None),
        ("电钻是苏州产的吗？", None),
        ("How many pieces of 管钳 are in stock?", None),
        ("What is the price of 管钳?", "62 (单价(元))"),
        ("What is the price of item K-15?", "399 (单价(元))"),
    ],
)
def test_a_chinese_table_is_asked(question: str, answer: str | None) -> None:
    assert told(TOOLS, question) == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How much more does the return trip cost for an adult than for a child?", "€9.00 (€16.00 - €7.00)"),
        ("How much more does a day card cost than a return trip for a child?", "€4.50 (€11.50 - €7.00)"),
        ("How much more does a day card cost for an adult than a return trip for a child?", None),
        ("How much less does a child pay for a day card than an adult?", "€12.50 (€24.00 - €11.50)"),
        ("How much is the day card for a child?", "€11.50 (Child (4-14))"),
        ("How much is the day card for a bicycle?", None),
        ("How much is the day card for two adults?", None),
        ("Which boat has the fewest seats?", "Swift (Seats: 95)"),
        ("Which boat is made with the greatest length?", "Heron (Length (m): 31)"),
        ("How many seats does the Swift have?", "95 (Seats)"),
        ("How many seats does the Otter have?", None),
        ("How many boats does captain Ada Roth have?", "2"),
        ("How many boats have more than 100 seats?", None),
        ("How many captains are there?", "2"),
        ("How much longer is the Heron than the Swift?", None),
        ("Who is the captain of the Swift?", "Jan Beck"),
        ("Who built the Swift?", None),
        ("Which boats have captain Ada Roth? List them all.", "Heron, Otter"),
        ("Which captain has the boat built in 1996?", "Ada Roth"),
        ("When was the Heron built?", "1988 (Built)"),
        ("When was the Heron sold?", None),
    ],
)
def test_markdown_tables_are_asked(question: str, answer: str | None) -> None:
    assert told(FERRY, question) == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which position has the lowest amount?", "2 (Amount: 9.30)"),
        ("What is the unit price of article PT-7?", "14.00 (Unit price)"),
        ("What does position 3 cost?", None),
        ("What is the quantity of position 3?", "5 (Qty)"),
        ("What is the total of the unit price?", None),
        ("What is the total amount of all positions?", None),
        ("How much is article HK-2?", None),
        ("How many articles were ordered?", None),
    ],
)
def test_aligned_columns_are_asked(question: str, answer: str | None) -> None:
    assert told(BILL, question) == answer


def test_what_two_tables_answer_is_left() -> None:
    assert told(f"{BILL}\n\n{BILL}", "What is the unit price of article PT-7?") is None
    totals = ORDERS + "\nTotal,all of them,72.00,2024-02-01"
    assert told(totals, "Which order has the highest price?") is None
    assert Tables("Some prose, and more.").told("How many orders are there?") is None


def test_the_rows_that_it_was_computed_from_are_cited() -> None:
    found = Tables(FERRY).told("Which boats have captain Ada Roth? List them all.")
    assert found and [FERRY[slice(*span)].split()[1] for span in found.spans] == ["Heron", "Otter"]
