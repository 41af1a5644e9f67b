"""Many readers of one and of several memos: threads and asyncio get what one thread gets, whoever leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import minimemo
from minimemo import Memo
from minimemo.ask import Mode
from minimemo.errors import InputError
from tests.conftest import TinyModels

ASKED = [f"What did user number {i} say of room {i * 7}?" for i in (3, 5, 8)]


@pytest.fixture(scope="module")
def memos(loaded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Memo, Memo]:
    """Two memos with the same models."""
    folder = tmp_path_factory.mktemp("memos")

    def made(name: str, word: str) -> Memo:
        text = "".join(f"The user number {i} said {word}, be brief about room {i * 7}.\n\n" for i in range(12))
        return minimemo.build(minimemo.Document.of(text, name), folder / name, **loaded)

    return made("one.memo", "Hello world"), made("two.memo", "Good evening")


def _told(answer: Any) -> tuple[Any, ...]:
    return answer.text, answer.clues, answer.passages, answer.prompt_tokens, answer.prefilled_tokens


def _works(memos: tuple[Memo, Memo]) -> list[Callable[[], Any]]:
    modes: tuple[Mode, ...] = ("memorag", "memory")

    def work(memo: Memo, asked: str, mode: Mode) -> Callable[[], Any]:
        return lambda: _told(memo.ask(asked, mode, 6))

    return [work(memo, asked, mode) for memo in memos for asked in ASKED for mode in modes]


def test_eight_threads_on_two_memos_get_what_one_gets(memos: tuple[Memo, Memo]) -> None:
    works = _works(memos)
    alone = [work() for work in works]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda work: work(), works)) == alone


def test_threads_that_open_at_the_same_time_share_models(memos: tuple[Memo, Memo], tiny_models: TinyModels) -> None:
    memo = minimemo.open(memos[0].folder, **tiny_models.both)
    with ThreadPoolExecutor(6) as pool:
        sessions = list(pool.map(lambda _: memo.session(), range(6)))
    assert len({id(session) for session in sessions}) == 1
    memo.close()
    assert memo.ask(ASKED[0], "memory", 4).text == memos[0].ask(ASKED[0], "memory", 4).text


def test_readers_that_leave_in_the_middle_change_nothing(memos: tuple[Memo, Memo]) -> None:
    memo = memos[0]
    alone = _told(memo.ask(ASKED[1], "memory", 12))

    def leave(_: int) -> None:
        steps = memo.stream(ASKED[0], "memory", 12)
        next(steps), next(steps)
        steps.close()

    with ThreadPoolExecutor(8) as pool:
        left = [pool.submit(leave, number) for number in range(6)]
        stayed = [pool.submit(lambda: _told(memo.ask(ASKED[1], "memory", 12))) for _ in range(3)]
        assert [one.result() for one in stayed] == [alone] * 3
        assert [one.result() for one in left] == [None] * 6


def test_asyncio(memos: tuple[Memo, Memo]) -> None:
    """Questions at the same time, a stream, one that is left, and a bad one."""
    memo = memos[0]
    alone = [_told(memo.ask(asked, "memory", 6)) for asked in ASKED]

    async def asks() -> None:
        answers = await asyncio.gather(*(memo.aask(asked, "memory", 6) for asked in ASKED))
        assert [_told(answer) for answer in answers] == alone
        steps = [step async for step in memo.astream(ASKED[0], "memory", 6)]
        assert _told(steps[-1]) == alone[0]
        left = memo.astream(ASKED[1], "memory", 6)
        await anext(left)
        await left.aclose()
        task = asyncio.create_task(memo.aask(ASKED[1], "memory", 6))
        await asyncio.sleep(0)  # it has begun, and cannot have told yet that it is done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(InputError):
            await memo.aask(" ")
        assert _told(await memo.aask(ASKED[2], "memory", 6)) == alone[2]

    asyncio.run(asks())
