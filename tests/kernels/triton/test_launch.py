"""A launch is checked and resolved once: a recording asks for it again, on the same tensors, and for nothing else."""

from __future__ import annotations

import pytest
import torch

from minimemo.kernels.triton.elementwise import norm_launch
from minimemo.kernels.triton.launch import Launch, Recording, cdiv, power_of_2
from tests.kernels.triton.device import DEVICE, random

_ONES = torch.ones(32, device=DEVICE)


def _norm(x: torch.Tensor, out: torch.Tensor) -> Launch:
    return norm_launch(x, _ONES, 1e-6, out)


def test_a_recording_launches_again() -> None:
    """It reads what its tensors hold by then, keeps those alive that were made meanwhile, and takes in no launch of
    its own or of before and after."""
    x, out = random(3, 32), torch.empty(3, 32, device=DEVICE)
    _norm(x, torch.empty_like(x)).run()
    with Recording() as recording:
        between = torch.empty_like(x)
        _norm(x, between).run()
        _norm(between[:2], out[1:]).run()
    del between
    _norm(x, torch.empty_like(x)).run()
    assert recording.whole and len(recording) == 2
    x.mul_(2.0).add_(1.0)
    recording.again()
    assert len(recording) == 2
    expected = torch.empty_like(x)
    _norm(x, expected).run()
    _norm(expected.clone(), expected).run()
    assert torch.equal(out[1:], expected[:2])


@pytest.mark.parametrize(
    "computes",
    [lambda x: x * 2, lambda x: x.add_(1), lambda x: x.t().reshape(-1), lambda x: x.to(torch.float64), torch.clone],
)
def test_what_torch_computes_is_not_repeated(computes: object) -> None:
    x = random(3, 32)
    with Recording() as recording:
        _norm(x.view(3, 32)[:2], torch.empty_like(x)).run()
        torch.empty(4, device=DEVICE).new_empty(3).unsqueeze(0).transpose(0, 1)
        x.split(1), x.unbind(), x.to(x.dtype), x.contiguous(), x.reshape(-1)
    assert recording.whole
    with Recording() as recording:
        computes(x)  # type: ignore[operator]
    assert not recording.whole
    with pytest.raises(RuntimeError, match="torch computed"):
        recording.again()


def test_a_recording_ends_with_an_error() -> None:
    x = random(3, 32)
    with pytest.raises(KeyError), Recording() as recording:
        raise KeyError
    _norm(x, torch.empty_like(x)).run()
    assert not len(recording)


def test_whole_numbers() -> None:
    import triton

    for number in range(1, 70):
        assert power_of_2(number) == triton.next_power_of_2(number)
        assert all(cdiv(number, divisor) == triton.cdiv(number, divisor) for divisor in (1, 3, 16))
