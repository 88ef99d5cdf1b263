"""Exact Jacobians by autograd, and the networks that the score matching tests are made with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastscore.scores import EnergyScore

F64 = torch.float64
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": lambda: nn.Softplus(beta=1.5, threshold=20),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": lambda: nn.ELU(alpha=0.7),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}


class LayerNormByHand(TorchFunctionMode):
    """Of the fused layer normalisation PyTorch gets the third derivatives wrong."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not nn.functional.layer_norm:
            return func(*args, **(kwargs or {}))
        call = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
        x = call["input"] - call["input"].mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + call["eps"]).sqrt()
        return x * call["weight"] + call["bias"]


def jacobians(model: Callable[..., Tensor], x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """s, (batch, d), and its Jacobian at each sample, (batch, d, d), row by row, with a graph."""
    point = x if x.requires_grad else x.detach().requires_grad_()
    with LayerNormByHand():
        score = model(point, *args).reshape(len(x), -1)
    rows = [
        torch.autograd.grad(score[:, i].sum(), point, create_graph=True, materialize_grads=True)[0]
        for i in range(score.shape[1])
    ]
    return score, torch.stack([row.reshape(len(x), -1) for row in rows], dim=1)


def exact_trace(model: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    return jacobians(model, x, *args)[1].diagonal(dim1=1, dim2=2).sum(1)


def sliced_term(
    model: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...], vs: Tensor, reduced: bool
) -> Tensor:
    """The mean over the projections vs, (M, *x.shape), of v'Jv + 1/2 |s|^2 or 1/2 (v's)^2."""
    score, jacobian = jacobians(model, x, *args)
    v = vs.reshape(*vs.shape[:2], -1)
    vjv = torch.einsum("mbi,bij,mbj->mb", v, jacobian, v)
    if reduced:
        return vjv.mean(0) + score.square().sum(1) / 2
    return (vjv + torch.einsum("mbi,bi->mb", v, score).square() / 2).mean(0)


def parameter_gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    parameters = list(model.parameters())
    return list(torch.autograd.grad(loss, parameters, materialize_grads=True))


def assert_same_training(
    got: Tensor, want: Tensor, model: nn.Module, rtol: float = 1e-9, atol: float = 1e-11
) -> None:
    """Values of each sample, and the gradients of a sum with weights that tell samples apart."""
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
    weights = torch.linspace(0.5, 2.0, len(want)).to(want)
    grads = [parameter_gradients((weights * values).sum(), model) for values in (got, want)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=max(atol, rtol * scale(theirs)))


def scale(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def mlp(
    d: int = 4,
    hidden: tuple[int, ...] = (7, 6),
    activation: str = "silu",
    out: int | None = None,
    seed: int = 0,
) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    width = d
    for next_width in hidden:
        layers += [nn.Linear(width, next_width), ACTIVATIONS[activation]()]
        width = next_width
    return nn.Sequential(*layers, nn.Linear(width, d if out is None else out)).double()


class Conditioned(nn.Module):
    """A network told the noise level (batch,), as a number beside x; of output 1/sigma."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        return self.net(x + sigma.log()) / sigma


def convnet(channels: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.Conv2d(4, channels, 3, padding=1),
    ).double()


class SumOfOutputs(nn.Module):
    """An energy: the sum of a network's outputs, and of a quadratic."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *sigma: Tensor) -> Tensor:
        quadratic = x.square().reshape(len(x), -1).sum(1) / 2
        return self.net(x, *sigma).reshape(len(x), -1).sum(1) + quadratic


def energy_of(net: nn.Module, *, takes_sigma: bool = False) -> EnergyScore:
    return EnergyScore(SumOfOutputs(net), conditioning="sigma" if takes_sigma else "none")
