"""Functions with one derivative, or a second one that nobody wrote."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import randn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastscore.derivatives import divergence, jvps, output_and_divergence, quadratic_forms
from fastscore.losses import dsm_loss, score_matching_loss, ssm_loss
from fastscore.scores import EnergyScore

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:fastscore.jvp")


class Distances(nn.Module):
    """torch.cdist, which has neither forward mode nor a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(5, 3).double()
        self.register_buffer("centres", randn(5, 3, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cdist(x, self.centres))


def test_forms_and_traces_of_a_network_with_cdist() -> None:
    model, x = Distances(), randn(6, 3, dtype=F64)
    vs = randn(2, 6, 3, dtype=F64, seed=1)
    rows = [torch.autograd.functional.jacobian(lambda r: model(r[None])[0], row) for row in x]
    jacobian = torch.stack(rows)
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    forms = torch.einsum("mbi,bij,mbj->mb", vs, jacobian, vs)
    torch.testing.assert_close(quadratic_forms(model, x, vs), (model(x), forms))
    for chunk_size in (None, 1):
        got = divergence(model, x, method="exact", chunk_size=chunk_size)
        torch.testing.assert_close(got, trace)
    mean, stderr = divergence(model, x, projections=4000, return_stderr=True, seed=0)
    assert bool(((mean - trace).abs() < 5 * stderr).all())
    torch.testing.assert_close(output_and_divergence(model, x, seed=0)[0], model(x))
    torch.testing.assert_close(
        score_matching_loss(model, x, reduction="none"), trace + model(x).square().sum(1) / 2
    )
    losses = [ssm_loss(model, x, method=method, seed=0) for method in ("forward", "reverse")]
    torch.testing.assert_close(*losses)
    if torch.__version__ < "2.14":  # without a second derivative
        with pytest.raises(NotImplementedError, match="cdist"):
            losses[0].backward()
        with pytest.raises(NotImplementedError, match="cdist"):
            jvps(model, x, vs)
    else:
        losses[0].backward()
        _, want = torch.autograd.functional.jvp(model, x, vs[0])
        torch.testing.assert_close(jvps(model, x, vs)[1][0], want)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2 * ctx.saved_tensors[0]


WEIGHT = torch.ones((), dtype=F64, requires_grad=True)


def model(x: Tensor) -> Tensor:
    return Square.apply(x * WEIGHT) + x


def test_a_function_that_is_once_differentiable() -> None:
    x = torch.ones(2, 1, dtype=F64)
    three = torch.full((2,), 3.0, dtype=F64)
    torch.testing.assert_close(quadratic_forms(model, x, x[None])[1], three[None])
    for method in ("hutchinson", "exact"):
        torch.testing.assert_close(divergence(model, x, method=method), three)
    for method in ("forward", "reverse", "auto", "exact"):
        loss = ssm_loss(model, x, method=method)
        torch.testing.assert_close(loss, torch.tensor(5.0, dtype=F64))
        with torch.no_grad():
            torch.testing.assert_close(ssm_loss(model, x, method=method), loss.detach())
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad(loss, WEIGHT, retain_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            loss.backward()
    with pytest.raises(RuntimeError, match=r"^jvps: .*once_differentiable"):
        jvps(model, x, x[None])


def test_an_energy_that_is_once_differentiable() -> None:
    score = EnergyScore(lambda x: Square.apply(x * WEIGHT).sum(1), conditioning="none")
    x = torch.ones(2, 1, dtype=F64)
    torch.testing.assert_close(score(x).detach(), -2 * x)
    with torch.no_grad():
        torch.testing.assert_close(score(x), -2 * x)
    for differentiate in (
        lambda: ssm_loss(score, x, method="reverse"),
        lambda: ssm_loss(score, x, method="forward"),
        lambda: torch.autograd.grad(score(x).sum(), WEIGHT),
    ):
        with pytest.raises(RuntimeError, match="once_differentiable"):
            differentiate()


def differentiates(x: Tensor) -> Tensor:
    """A model that differentiates inside itself, along a vector of its own."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        energy = (Square.apply(x) * x.sin()).sum(1)
        return -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


def test_a_model_that_differentiates_a_once_differentiable_function() -> None:
    x = torch.ones(2, 1, dtype=F64)
    for method in ("reverse", "forward", "auto", "exact"):
        with pytest.raises(RuntimeError, match="once_differentiable"):
            ssm_loss(differentiates, x, method=method)


def test_an_energy_with_a_compiled_part() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    compiled = torch.compile(net, backend="aot_eager")
    x, sigmas = randn(4, 3, dtype=F64), torch.tensor([1.0, 0.5], dtype=F64)
    grads = []
    for part in (net, compiled):
        score = EnergyScore(lambda x, sigma, part=part: part(x).squeeze(1) / sigma)
        loss = dsm_loss(score, x, sigmas, seed=0)
        grads.append(torch.autograd.grad(loss, list(net.parameters())[:3]))
    torch.testing.assert_close(*grads)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:fastscore.jvp")
@pytest.mark.parametrize("include_self", [True, False])
def test_products_that_are_scattered(include_self: bool) -> None:
    """Whose tangents PyTorch's forward mode has wrong."""
    index = torch.tensor([[0, 0, 2, 2]] * 3)

    def model(x: Tensor) -> Tensor:
        return x.scatter_reduce(1, index, x * x, "prod", include_self=include_self)

    x, v = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    output, tangent = jvps(model, x, v[None])
    want = torch.autograd.functional.jvp(model, x, v)
    torch.testing.assert_close((output, tangent[0]), want)
    _, form = quadratic_forms(model, x, v[None])
    torch.testing.assert_close(form[0], (v * want[1]).sum(1))
