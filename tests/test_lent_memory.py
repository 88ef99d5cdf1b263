"""Memory that is lent until somebody writes to it: read as it is, and never written through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_same_bytes, make_key, randn
from torch import Tensor

from fastscore import ops

TABLE = torch.tensor([[0.9, 0.1, 0.2, 0.3]], dtype=torch.float64)
PAIR = torch.tensor([1.5, -0.5], dtype=torch.float64)


def lent(x: Tensor) -> Tensor:
    copy = torch._lazy_clone(x)
    assert is_lent(copy)
    return copy


def is_lent(x: Tensor) -> bool:
    return bool(torch._C._is_cow_tensor(x))


def data(device: torch.device, count: int) -> list[Tensor]:
    return [randn(3, 1025, dtype=torch.float32, seed=i).to(device) for i in range(count)]


READ: dict[str, Callable[..., Tensor]] = {
    "langevin_step": lambda x, s, t: ops.langevin_step(
        x, s, TABLE.to(x.device), make_key(1, 2, x.device), second=t, weights=PAIR.to(x.device)
    ),
    "rk_stage": lambda x, s, t: ops.rk_stage(x, [s, t], torch.ones(3).double().to(x.device)),
    "rk_error": lambda x, s, t: ops.rk_error(x, s, [t], PAIR.to(x.device), PAIR.to(x.device)),
}


@pytest.mark.parametrize("op", READ)
def test_what_is_read_stays_lent(op: str, device: torch.device) -> None:
    given = data(device, 3)
    want = READ[op](*given)
    lendings = [lent(x) for x in given]
    assert_same_bytes(READ[op](*lendings), want)
    assert all(map(is_lent, lendings))


def langevin_(x: Tensor, s: Tensor) -> None:
    ops.langevin_step_(x, s, TABLE.to(x.device), make_key(1, 2, x.device))


def multistep_(x: Tensor, s: Tensor) -> None:
    row = torch.tensor([[1.0, 0.01, 0.0, 0.0, 1.0, 1.0, -0.1, 1.0, 0.01, 0.0]]).double()
    ops.multistep_step_(x, torch.zeros_like(x), s, row.to(x.device), make_key(1, 2, x.device))


def stage_(x: Tensor, s: Tensor) -> None:
    ops.rk_stage(x, [s], PAIR.to(x.device), out=x)


def advance_(x: Tensor, s: Tensor) -> None:
    accepted = torch.tensor([True, False, True], device=x.device)
    ops.rk_advance_(x, torch.zeros_like(x), s, torch.ones_like(x), accepted)


@pytest.mark.parametrize("step", [langevin_, multistep_, stage_, advance_])
def test_what_is_written_is_written_nowhere_else(
    step: Callable[[Tensor, Tensor], None], device: torch.device
) -> None:
    x, s = data(device, 2)
    kept, want = x.clone(), x.clone()
    step(want, s)
    state = lent(x)
    step(state, s)
    assert_same_bytes(state, want)
    assert_same_bytes(x, kept)
    # The other way round: what was lent before is not changed by the step of its owner.
    other = lent(x)
    step(x, s)
    assert_same_bytes(x, want)
    assert_same_bytes(other, kept)


@pytest.mark.parametrize("step", [langevin_, multistep_, stage_, advance_])
def test_a_state_and_a_score_of_the_same_memory(
    step: Callable[[Tensor, Tensor], None], device: torch.device
) -> None:
    (x,) = data(device, 1)
    want = x.clone()
    step(want, x.clone())
    score = lent(x)
    step(x, score)
    assert_same_bytes(x, want)
