"""Views as numbers: what is taken, in what order, within what budget."""

from __future__ import annotations

import pytest

from minimemo.memory.view import Extent, MemoryView, Part, Span, blocks_of, chosen, held, neighbours, walk, whole

ONE = [Extent(95, 7, 10)]  # ten blocks, the last of 5 tokens
TWO = [Extent(25, 7, 10), Extent(31, 12, 10)]


def taken(view: MemoryView) -> list[tuple[int, int, int, int]]:
    return [(part.memory, part.block, part.first, part.end) for part in view.parts]


def test_the_whole_is_every_token_once_and_one_opening() -> None:
    assert whole(ONE).tokens == 95
    assert taken(whole(TWO)) == [
        (0, 0, 0, 10), (0, 1, 0, 10), (0, 2, 0, 5), (1, 1, 2, 10), (1, 2, 0, 10), (1, 3, 0, 1),
    ]  # fmt: skip
    assert whole(TWO).tokens == 25 + 31 - 12
    assert whole([]).tokens == 0


def test_chosen_blocks_come_in_order_behind_the_opening() -> None:
    assert taken(chosen(ONE, [(0, 5), (0, 2), (0, 5)], 50)) == [(0, 0, 0, 7), (0, 2, 0, 10), (0, 5, 0, 10)]
    assert taken(chosen(ONE, [(0, 0), (0, 9)], 50)) == [(0, 0, 0, 10), (0, 9, 0, 5)]
    assert taken(chosen(TWO, [(1, 1), (0, 2)], 50)) == [(0, 0, 0, 7), (0, 2, 0, 5), (1, 1, 2, 10)]
    view = chosen([Extent(40, 25, 10)], [(0, 3)], 50)
    assert taken(view) == [(0, 0, 0, 10), (0, 1, 0, 10), (0, 2, 0, 5), (0, 3, 0, 10)]


@pytest.mark.parametrize("budget", [7, 17, 18, 37, 90, 95, 1000])
def test_a_budget_is_filled_and_never_passed(budget: int) -> None:
    view = chosen(ONE, [(0, block) for block in range(10)], budget)
    assert view.tokens <= budget
    assert view.tokens > min(budget, 95) - 10
    assert {part.block for part in view.parts} >= {0}


def test_an_opening_of_another_memory_is_left_out() -> None:
    """Two openings would be two beginnings of a chat; block 0 of the second memory is nothing else."""
    assert taken(chosen(TWO, [(1, 0), (1, 1)], 100)) == [(0, 0, 0, 7), (1, 1, 2, 10)]


def test_spans_of_the_document_are_found_behind_the_opening() -> None:
    assert list(blocks_of(ONE, [Span(0, 0, 3)])) == [(0, 0)]
    found = blocks_of(ONE, [Span(0, 0, 4), Span(0, 2, 14)])
    assert list(found) == [(0, 0), (0, 1), (0, 0), (0, 1), (0, 2)]
    assert list(blocks_of(TWO, [Span(1, 0, 8)])) == [(1, 1)]
    assert list(blocks_of(ONE, [Span(0, 80, 999)])) == [(0, 8), (0, 9)]


def test_what_views_held_is_told_as_stretches_of_the_documents() -> None:
    extents = [Extent(tokens=1000, opening=40, block_tokens=256), Extent(tokens=600, opening=30, block_tokens=256)]
    views = [chosen(extents, [(0, 1), (1, 0)], 800), chosen(extents, [(0, 2), (0, 0)], 800)]
    assert held(extents, views) == [Span(0, 0, 728), Span(1, 0, 226)]
    assert held(extents, [whole(extents)]) == [Span(0, 0, 960), Span(1, 0, 570)]
    assert held(extents, []) == []


def test_neighbours_stay_inside_the_memory() -> None:
    assert list(neighbours(TWO, [(0, 0), (0, 2), (1, 1)])) == [(0, 1), (0, 1), (1, 0), (1, 2)]


def test_a_walk_goes_through_everything_where_it_may() -> None:
    views = walk(ONE, 40, most=9)
    assert taken(views[0]) == [(0, 0, 0, 10), (0, 1, 0, 10)]
    assert taken(views[1]) == [(0, 0, 0, 7), (0, 2, 0, 10), (0, 3, 0, 10), (0, 4, 0, 10)]
    assert [len(view.parts) for view in views] == [2, 4, 3, 4] and views[-1].parts[-1] == Part(0, 9, 0, 5)
    assert all(view.tokens <= 40 for view in views)


def test_a_walk_of_few_steps_takes_the_first_and_the_last() -> None:
    views = walk(ONE, 30, most=3)
    assert len(views) == 3 and all(view.tokens <= 30 for view in views)
    assert views[0].parts[1].block == 1 and views[-1].parts[-1].block == 9
