"""The end of a step: the likeliest token of each row, and rows that move on."""

from __future__ import annotations

import pytest
import torch

from minimemo.kernels.triton.choose import choose_launches
from tests.kernels.triton.device import DEVICE, random


def test_the_lowest_of_equal_tokens_is_chosen_and_rows_move_on() -> None:
    logits = random(3, 9001)
    logits[0, [8200, 4100, 4099]] = 50.0
    logits[1, 9000] = 60.0
    logits[2] = float("-inf")
    ids = torch.full((3,), 7, dtype=torch.int32, device=DEVICE)
    places = torch.arange(18, dtype=torch.int32, device=DEVICE).view(6, 3)
    for launch in choose_launches(logits, ids, places[:4]):
        launch.run()
    assert ids.tolist() == [4099, 9000, 0]
    assert places.flatten().tolist() == [*range(1, 13), *range(12, 18)]


def test_what_does_not_fit_is_named() -> None:
    ids, places = torch.zeros(2, dtype=torch.int32), torch.zeros(4, 2, dtype=torch.int32)
    for args, message in (
        ((torch.zeros(2, 9).half(), ids, places), "logits: torch.float16"),
        ((torch.zeros(2, 9), ids[:1], places), "ids: shape"),
        ((torch.zeros(2, 9), ids, places.repeat(1, 2)[:, :2]), "places: "),
    ):
        with pytest.raises(ValueError, match=message):
            choose_launches(*args)
