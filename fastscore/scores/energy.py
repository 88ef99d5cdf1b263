"""The score of an energy-based model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastscore._support.checks import check_floating, describe, fail, fail_type
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.inference import recordable, recording
from fastscore._support.once import marked_once, only_once
from fastscore._support.tangents import refuse_tangents
from fastscore.conditioning import as_sigma


class EnergyScore(nn.Module):
    """The score of an energy: s(x, sigma) = -grad_x f(x, sigma), for a density p ~ exp(-f).

    While gradients are recorded the score can itself be differentiated, with respect to the
    energy's parameters and x, so that it trains with any score matching loss. Under
    ``torch.no_grad`` and in inference mode it still returns the score, and keeps no graph. The
    tensor passed in is never changed, nor is its ``requires_grad``.

    Inside ``torch.func`` transforms and ``torch.compile`` the gradient is taken by
    ``torch.func.vjp``, which can't see through what PyTorch's function transforms can't
    (checkpointing, updates of batch statistics).

    Args:
        energy: a module or function ``energy(x, sigma)`` that returns one number per sample, of
            shape (batch,) or (batch, 1), with sigma of shape (batch,).
        takes_sigma: False for an energy of x alone, called ``energy(x)``.

    Attributes:
        data_shape: that of ``energy``, None if it has none.

    Raises:
        ValueError: on call, an energy that is not one number per sample or does not depend on x;
            a sigma of a wrong shape, or none where the energy takes one.
        TypeError: ``energy`` can't be called or does not return a tensor.

    Example:
        >>> model = EnergyScore(lambda x, sigma: 0.5 * x.square().sum(1) / sigma**2)
        >>> model(torch.ones(2, 2), torch.tensor([1.0, 2.0])).detach()
        tensor([[-1.0000, -1.0000],
                [-0.2500, -0.2500]])
        >>> EnergyScore(lambda x: x.square().sum(1), takes_sigma=False)(torch.ones(1, 2)).detach()
        tensor([[-2., -2.]])
    """

    differentiates_energy = True  # its Jacobian is symmetric, and tangents need another way

    def __init__(self, energy: Callable[..., Tensor], *, takes_sigma: bool = True) -> None:
        super().__init__()
        if not callable(energy):
            fail_type("EnergyScore", "energy", "callable", energy)
        self.energy = energy
        self.takes_sigma = takes_sigma
        self.data_shape: tuple[int, ...] | None = getattr(energy, "data_shape", None)

    def forward(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """The score at ``x``, shape (batch, ...); ``sigma`` has shape (batch,) or is a number."""
        check_floating("EnergyScore", "x", x, min_dim=1)
        level: tuple[Tensor, ...] = ()
        if self.takes_sigma:
            if sigma is None:
                fail("EnergyScore", "sigma", "given for an energy that takes one", None)
            level = (as_sigma("EnergyScore", x, sigma),)
        gradient = self._functional_gradient if _needs_functional() else self._gradient
        return -gradient(x, level)

    def _values(self, x: Tensor, level: tuple[Tensor, ...]) -> Tensor:
        values = self.energy(x, *level)
        if not isinstance(values, Tensor):
            fail_type("EnergyScore", "energy", "a function that returns a tensor", values)
        if values.shape not in ((len(x),), (len(x), 1)):
            expected = f"a function that returns one number per sample, shape ({len(x)},)"
            fail("EnergyScore", "energy", expected, describe(values))
        return values

    def _gradient(self, x: Tensor, level: tuple[Tensor, ...]) -> Tensor:
        refuse_tangents("EnergyScore", (x,))
        record = torch.is_grad_enabled()
        # Compiled code has no second derivatives.
        eagerly = compiled_parts_run_eagerly() if record else contextlib.nullcontext()
        with recording(), eagerly:
            x, level = recordable(x), tuple(map(recordable, level))
            # The caller's own tensor only where its graph has to go on through it.
            leaf = x if record and x.requires_grad else x.detach().requires_grad_()
            values = self._values(leaf, level)
            if not values.requires_grad:
                fail("EnergyScore", "energy", "differentiable in x", "a value with no graph")
            (gradient,) = torch.autograd.grad(values.sum(), leaf, create_graph=record)
            if record and marked_once(values).functions:
                gradient = only_once(gradient, values)
        return gradient

    def _functional_gradient(self, x: Tensor, level: tuple[Tensor, ...]) -> Tensor:
        result: Any = torch.func.vjp(lambda point: self._values(point, level), x)
        values, pullback = result
        return pullback(torch.ones_like(values))[0]


def _needs_functional() -> bool:
    """Whether autograd.grad on a leaf of our own is out of the question here."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
