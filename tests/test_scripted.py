"""TorchScript in networks: its executor drops tangents from the second or third call on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import randn
from torch import Tensor, nn

from fastscore.derivatives import divergence, jvps, quadratic_forms
from fastscore.losses import SSMLoss, score_matching_loss, ssm_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore:fastscore.jvp"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]

CALLS = 5  # the executor changes its ways after two or three


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()


@torch.jit.script
def silu(x: Tensor) -> Tensor:  # the name of a function with a rule
    return x * torch.sigmoid(x)


@torch.jit.script
def first_of(xs: list[Tensor]) -> Tensor:
    return xs[0] * torch.sigmoid(xs[0])


def with_part(net: nn.Sequential) -> nn.Module:
    return nn.Sequential(net[0], torch.jit.script(nn.Sequential(net[1], net[2], net[3])), net[4])


def with_function(net: nn.Sequential, f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: net[4](f(net[2](f(net[0](x)))))


SCRIPTED: dict[str, Callable[[nn.Sequential], Callable[[Tensor], Tensor]]] = {
    "script": torch.jit.script,
    "trace": lambda net: torch.jit.trace(net, randn(2, 3, dtype=torch.float64)),
    "method": lambda net: torch.jit.script(net).forward,
    "part": with_part,
    "function": lambda net: with_function(net, silu),
    "list": lambda net: with_function(net, lambda x: first_of([x])),
    "traced_function": lambda net: with_function(
        net, torch.jit.trace(lambda x: x * torch.sigmoid(x), randn(2, 3, dtype=torch.float64))
    ),
}


@pytest.mark.parametrize("kind", SCRIPTED)
def test_every_call_is_right(kind: str) -> None:
    net, x = network(), randn(6, 3, dtype=torch.float64)
    model, parameters = SCRIPTED[kind](net), list(net.parameters())
    if kind == "script":
        parameters = list(model.parameters())
    vs = randn(2, 6, 3, dtype=torch.float64, seed=1)
    for method in ("forward", "auto", "reverse", "exact"):
        eager = ssm_loss(net, x, method=method, seed=0)
        if method == "auto":  # no closed form, and no more to choose from
            eager = ssm_loss(net, x, method="reverse", seed=0)
        wanted = torch.autograd.grad(eager, list(net.parameters()))
        for _ in range(CALLS):
            loss = ssm_loss(model, x, method=method, seed=0)
            torch.testing.assert_close(loss, eager)
            torch.testing.assert_close(torch.autograd.grad(loss, parameters), wanted)
    for _ in range(CALLS):
        torch.testing.assert_close(jvps(model, x, vs), jvps(net, x, vs))
        torch.testing.assert_close(quadratic_forms(model, x, vs), quadratic_forms(net, x, vs))
        for estimate in (
            lambda f: divergence(f, x, seed=0),
            lambda f: divergence(f, x, method="exact"),
            lambda f: score_matching_loss(f, x),
        ):
            with torch.no_grad():
                torch.testing.assert_close(estimate(model), estimate(net))
            torch.testing.assert_close(estimate(model), estimate(net))


def test_auto_is_reverse() -> None:
    loss_fn = SSMLoss()
    loss_fn(torch.jit.script(network()), randn(6, 3, dtype=torch.float64), seed=0)
    assert loss_fn.chosen_method == "reverse"


@torch.jit.script
def doubled(x: Tensor) -> Tensor:
    return x * 2


@pytest.mark.filterwarnings("error:fastscore.jvp")
def test_scripted_code_may_work_on_constants() -> None:
    net, x = network(), randn(6, 3, dtype=torch.float64)
    sigma = torch.ones(6, 1, dtype=torch.float64)
    for _ in range(CALLS):
        got = jvps(lambda x: net(x) / doubled(sigma), x, x[None])[1]
        torch.testing.assert_close(got, jvps(net, x, x[None])[1] / 2)


def test_scripted_code_is_as_it_was_afterwards() -> None:
    kinds = (torch._C.ScriptFunction, torch._C.ScriptMethod)
    before = [kind.__dict__["__call__"] for kind in kinds]
    jvps(network(), randn(6, 3, dtype=torch.float64), randn(1, 6, 3, dtype=torch.float64))
    with pytest.raises(ZeroDivisionError):
        jvps(lambda x: x / (1 // 0), randn(6, 3), randn(1, 6, 3))
    assert [kind.__dict__["__call__"] for kind in kinds] == before
