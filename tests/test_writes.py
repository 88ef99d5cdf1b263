"""Values with tangents that a network writes into tensors of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jvp_checks import gradients, point, reverse_twice, tangents_of
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack

from fastscore.derivatives import jvps, quadratic_forms
from fastscore.derivatives.forward import warned

LINEAR, SHAPE = nn.Linear(4, 4).double(), (5, 4)


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warned, "_WARNED", set())


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def accumulated(x: Tensor) -> Tensor:
    sums, h = zeros(*SHAPE), x
    for _ in range(3):
        h = LINEAR(h).sin()
        sums += h
    return LINEAR(sums)


def returned(x: Tensor) -> Tensor:
    out = torch.empty(SHAPE, dtype=x.dtype)
    out[:, :2] = x[:, 2:]
    out[:, 2:] = LINEAR(x)[:, :2]
    return out


def views(x: Tensor) -> Tensor:
    both = zeros(5, 8)
    first = both[:, :4]
    both[:, :4].copy_(LINEAR(x))
    both[:, 4:] += x.sin()
    both[:, 1] *= 2
    return first * both[:, 4:] + both.view(-1, 2, 4).sum(1)


def alias_in_a_list(x: Tensor) -> Tensor:
    held = [zeros(*SHAPE)]
    same = held[0]
    held[0] += x * x
    F.relu(held[0], inplace=True)
    return torch.cat([same, x], 1)[:, 2:6] * held[0]


def beside_parameters(x: Tensor) -> Tensor:
    embedding = LINEAR(torch.ones(SHAPE, dtype=x.dtype))
    view = embedding.view(-1, 2, 2)
    embedding += x * x
    return view.flatten(1) * x


def overwritten(x: Tensor) -> Tensor:
    out = zeros(*SHAPE).add_(x)
    out.zero_()
    out[:, 0] = 1
    return out * x


def other_functions(x: Tensor) -> Tensor:
    out = zeros(*SHAPE)
    out.index_add_(1, torch.tensor([0, 1]), x[:, :2])
    out.clamp_(max=0.3)
    out.addcmul_(x, x)
    out.masked_fill_(out.new_ones(4) > 2, 0.0)
    out.T.add_(x.T)
    return out


def laid_out_otherwise(x: Tensor) -> Tensor:
    out = zeros(4, 5).t()
    out += x.sin()
    out[:, 0] += x[:, 1]
    return out.reshape(-1, 4)


def in_a_mode(x: Tensor) -> Tensor:
    with torch.device("cpu"):
        out = zeros(*SHAPE)
        out += x
        with torch.no_grad():
            out.mul_(2)
    return out * x


def into_another(x: Tensor) -> Tensor:
    first, second = zeros(*SHAPE), zeros(*SHAPE)
    first += x.sin()
    second.copy_(first)
    first.zero_()
    return second * LINEAR(x) + first


def asked(x: Tensor) -> Tensor:
    out = zeros(*SHAPE)
    out += x
    assert out.shape == SHAPE
    assert out.dtype == torch.float64
    assert float(out.sum()) == float(x.sum())
    assert not bool(out.isnan().any())
    assert len(list(out)) == 5
    return out * out.detach()


WRITES: list[Callable[[Tensor], Tensor]] = [
    accumulated,
    returned,
    views,
    alias_in_a_list,
    beside_parameters,
    overwritten,
    other_functions,
    laid_out_otherwise,
    in_a_mode,
    into_another,
    asked,
]


def check(model: Callable[[Tensor], Tensor], leaves: list[Tensor]) -> None:
    x = point(SHAPE).requires_grad_()
    vs = tangents_of(x)
    expected = reverse_twice(model, x, vs)
    got = jvps(model, x, vs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, [x, *leaves]), gradients(expected, [x, *leaves]))
    forms = quadratic_forms(model, x, vs)[1]
    torch.testing.assert_close(forms, (expected[1] * vs).sum(-1))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            silent = jvps(model, x, vs)
        torch.testing.assert_close(silent, tuple(y.detach() for y in expected))
        assert not silent[1].requires_grad
    assert _len_torch_function_stack() == 0


@pytest.mark.parametrize("model", WRITES)
def test_writes(model: Callable[[Tensor], Tensor]) -> None:
    x = point(SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with torch.no_grad():
            jvps(model, x, tangents_of(x))
        jvps(model, x, tangents_of(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # views in inference mode can't be told
        check(model, list(LINEAR.parameters()))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad


def detached_before(x: Tensor) -> Tensor:
    out = zeros(*SHAPE)
    constant = out.detach()
    out += LINEAR(x)
    return constant * x + out


def custom(x: Tensor) -> Tensor:
    out = zeros(*SHAPE)
    out += x
    return Cube.apply(out)


def vectorised(x: Tensor) -> Tensor:
    out = zeros(*SHAPE)
    out += x
    return torch.func.vmap(torch.sin)(out)


def into_a_detached_value(x: Tensor) -> Tensor:
    h = x.sin()
    value = h.detach()
    value += LINEAR(x).detach()
    return h * h


@torch.jit.script
def scripted_sine(x: Tensor) -> Tensor:
    return x.sin()


def scripted(x: Tensor) -> Tensor:
    out = zeros(*SHAPE)
    out += x
    return scripted_sine(out)


def data_set(x: Tensor) -> Tensor:
    out = zeros(*SHAPE)
    out.data = x.detach() * 2
    return out * x


@pytest.mark.filterwarnings("ignore:fastscore.jvp")
@pytest.mark.parametrize(
    "model", [detached_before, custom, vectorised, into_a_detached_value, scripted, data_set]
)
def test_other_ways_out(model: Callable[[Tensor], Tensor]) -> None:
    for _ in range(3):
        check(model, list(LINEAR.parameters()))


class Remembers(nn.Module):
    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.register_buffer("state", zeros(*SHAPE)) if buffer else None
        if not buffer:
            self.state = zeros(*SHAPE)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.state.detach()
        state = self.state
        state.mul_(0.5)
        state += x.sin()
        if self.fails:
            raise ZeroDivisionError
        return state * x


@pytest.mark.filterwarnings("ignore:fastscore.jvp")
@pytest.mark.parametrize("buffer", [False, True])
def test_a_tensor_that_was_there_before_holds_its_values(buffer: bool) -> None:
    """Under no_grad, as reverse mode can't write into it otherwise and leave it a leaf."""
    model, x = Remembers(buffer).eval(), point(SHAPE)
    expected = zeros(*SHAPE)
    for _ in range(3):
        expected = expected * 0.5 + x.sin()
        with torch.no_grad():
            output, tangents = jvps(model, x, x[None])
        torch.testing.assert_close(output, expected * x)
        torch.testing.assert_close(tangents[0], (x.cos() * x + expected) * x)
        torch.testing.assert_close(model.state, expected)
    if not buffer:
        model.fails = True
        with torch.no_grad(), pytest.raises(ZeroDivisionError):
            jvps(model, x, x[None])
        torch.testing.assert_close(model.state, expected * 0.5)


def test_parameters_and_arguments_are_not_written_to() -> None:
    def into_argument(x: Tensor, given: Tensor) -> Tensor:
        given += x
        return given * x

    x, given = point(SHAPE), zeros(*SHAPE)
    output, tangents = jvps(into_argument, x, x[None], given)  # into what it is lent
    torch.testing.assert_close((output, tangents[0]), (x * x, 2 * x * x))
    assert not given.any()
    with pytest.raises(RuntimeError, match="leaf Variable"):
        jvps(lambda x: LINEAR.weight.add_(x[:4]) @ x.mT, x, x[None])
