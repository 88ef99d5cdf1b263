"""torch.no_grad and torch.inference_mode inside a network: a constant, for every method."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import randn
from torch import Tensor, nn

from fastscore.derivatives import divergence, jvps, quadratic_forms
from fastscore.losses import score_matching_loss, ssm_loss

F64 = torch.float64
LINEAR, DEEP = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

pytestmark = pytest.mark.filterwarnings("ignore:fastscore.jvp")


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def normalised(x: Tensor) -> Tensor:
    with torch.no_grad():
        n = x.square().mean(1, keepdim=True).sqrt()
    return LINEAR(x / n)


def closed(x: Tensor) -> Tensor:
    """With a closed form, were the constant not one of x."""
    with torch.no_grad():
        shift = LINEAR(x)
    return DEEP(torch.tanh(LINEAR(x) + shift))


def elsewhere(x: Tensor) -> Tensor:
    """Where the whole model goes to torch.func.jvp."""
    with torch.no_grad():
        n = x.square().mean(1, keepdim=True).sqrt()
    return torch.func.vmap(LINEAR)(x / n)


def custom(x: Tensor) -> Tensor:
    with torch.no_grad():
        n = x.square().mean(1, keepdim=True).sqrt()
    return Cube.apply(LINEAR(x / n))


def written_in_place(x: Tensor) -> Tensor:
    h = LINEAR(x).sin()
    with torch.no_grad():
        h.mul_(2.0)
        h[:, 0] = 3.0
        h += 1
    return h * x


def copied(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    with torch.no_grad():
        out.copy_(LINEAR(x))
    return out * x


def viewed(x: Tensor) -> Tensor:
    h = x.sin()
    with torch.no_grad():
        same = h.contiguous()  # the tensor itself, with its derivatives
        again = h.clone()
    return LINEAR(same * again)


def turned_on_again(x: Tensor) -> Tensor:
    with torch.no_grad():
        n = x.square().mean(1, keepdim=True)
        with torch.enable_grad():
            y = LINEAR(x)
    return y * n


def deferred(x: Tensor) -> Tensor:
    h = LINEAR(x)
    with torch.no_grad():
        h.add_(1)
    return h


NETWORKS: list[Callable[[Tensor], Tensor]] = [
    normalised,
    closed,
    elsewhere,
    custom,
    written_in_place,
    copied,
    viewed,
    turned_on_again,
    deferred,
]


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_every_method_takes_it_for_a_constant(model: Callable[[Tensor], Tensor], mode: Any) -> None:
    x, vs = randn(5, 4, dtype=F64), randn(3, 5, 4, dtype=F64, seed=1)
    rows = [torch.autograd.functional.jacobian(lambda r: model(r[None])[0], row) for row in x]
    jacobian = torch.stack(rows)
    tangents = torch.einsum("bij,mbj->mbi", jacobian, vs)
    forms, trace = (tangents * vs).sum(-1), jacobian.diagonal(dim1=1, dim2=2).sum(1)
    wanted = ssm_loss(model, x, method="reverse", seed=0).detach()
    for _ in range(2):
        with mode():
            got = jvps(model, x, vs)[1], quadratic_forms(model, x, vs)[1]
            exact = divergence(model, x, method="exact"), score_matching_loss(model, x)
            losses = [ssm_loss(model, x, method=m, seed=0) for m in ("forward", "reverse")]
        torch.testing.assert_close(got, (tangents, forms))
        torch.testing.assert_close(exact[0], trace)
        torch.testing.assert_close(exact[1], (trace + model(x).square().sum(1) / 2).mean())
        torch.testing.assert_close(losses, [wanted, wanted])
        if mode is not nullcontext:
            assert not any(y.requires_grad for y in (*got, *exact, *losses))


def test_gradients_are_those_of_reverse_mode() -> None:
    x, parameters = randn(5, 4, dtype=F64), [*LINEAR.parameters()]
    for model in (normalised, elsewhere, custom, copied, viewed, turned_on_again):
        grads = [
            torch.autograd.grad(
                ssm_loss(model, x, method=method, seed=0) + 0 * sum(p.sum() for p in parameters),
                parameters,
            )
            for method in ("forward", "reverse")
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_inference_mode_inside(mode: Any) -> None:
    """Where autograd could not go on."""

    def model(x: Tensor) -> Tensor:
        with torch.inference_mode():
            n = x.square().mean(1, keepdim=True).sqrt()
        return LINEAR(x / n)

    x = randn(5, 4, dtype=F64)
    with mode():
        got = ssm_loss(model, x, method="forward", seed=0)
    torch.testing.assert_close(got, ssm_loss(normalised, x, method="reverse", seed=0))


def test_the_mode_is_the_callers_afterwards() -> None:
    x = randn(5, 4, dtype=F64)
    for model in NETWORKS:
        with torch.no_grad():
            jvps(model, x, x[None])
            assert not torch.is_grad_enabled()
        jvps(model, x, x[None])
        assert torch.is_grad_enabled()


def test_a_constant_output_has_no_tangents() -> None:
    def model(x: Tensor) -> Tensor:
        with torch.no_grad():
            return LINEAR(x)

    x = randn(5, 4, dtype=F64)
    assert not jvps(model, x, x[None])[1].any()
    assert not quadratic_forms(model, x, x[None])[1].any()


def test_a_write_that_a_detached_tensor_sees_comes_after_what_waits() -> None:
    def model(x: Tensor) -> Tensor:
        h = x.sin()
        y = LINEAR(h)  # runs when it is read
        h.detach().zero_()
        return y

    x = randn(5, 4, dtype=F64)
    with torch.no_grad():
        got = quadratic_forms(model, x, x[None])
        torch.testing.assert_close(got, quadratic_forms(lambda x: LINEAR(x.sin()), x, x[None]))
