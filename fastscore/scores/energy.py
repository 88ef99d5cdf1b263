"""The score of an energy-based model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fastscore._support.checks import check_floating, describe, fail, fail_type
from fastscore._support.explain import explained
from fastscore._support.lending import lend, lent
from fastscore._support.warn import warn_caller
from fastscore.conditioning import as_sigma
from fastscore.derivatives.gradients import gradient_of_values
from fastscore.scores.adapters import Adapter


class EnergyScore(Adapter):
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
        conditioning: what ``energy`` is given beside x: ``"sigma"``, ``"log_sigma"``, ``"index"``
            or, for an energy of x alone, ``"none"``; by default what its own attribute
            ``conditioning`` says, else "sigma". The score itself is always called
            ``model(x, sigma)``, or ``model(x)`` with "none".
        sigmas: for ``conditioning="index"``, the noise levels (L,) that the index counts; a sigma
            between two of them gets the index of the nearer one.
        takes_sigma: deprecated; False is ``conditioning="none"``.

    Attributes:
        data_shape: that of ``energy``, None if it has none.

    Raises:
        ValueError: an unknown ``conditioning``, ``sigmas`` without "index" or the reverse; on call,
            an energy that is not one number per sample or does not depend on x; a sigma of a wrong
            shape, or none where the energy takes one.
        TypeError: ``energy`` can't be called or does not return a tensor.

    Example:
        >>> import torch
        >>> model = EnergyScore(lambda x, sigma: 0.5 * x.square().sum(1) / sigma**2)
        >>> model(torch.ones(2, 2), torch.tensor([1.0, 2.0])).detach()
        tensor([[-1.0000, -1.0000],
                [-0.2500, -0.2500]])
        >>> EnergyScore(lambda x: x.square().sum(1), conditioning="none")(torch.ones(1, 2)).detach()
        tensor([[-2., -2.]])
    """

    differentiates_energy = True  # its Jacobian is symmetric, and tangents need another way

    def __init__(
        self,
        energy: Callable[..., Tensor],
        *,
        conditioning: str | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
        takes_sigma: bool | None = None,
    ) -> None:
        """See the class."""
        if takes_sigma is not None:
            message = 'EnergyScore: takes_sigma=False is now conditioning="none"'
            warn_caller(message, DeprecationWarning)
            conditioning = conditioning if takes_sigma else "none"
        super().__init__("energy", energy, conditioning, sigmas)
        self.energy = energy

    @property
    def inner(self) -> Any:
        """The energy."""
        return self.energy

    @property
    def sigma_optional(self) -> bool:
        """Whether the score may be called as ``model(x)``: the energy is told no noise level."""
        return self.net_conditioning == "none"

    @property
    def takes_sigma(self) -> bool:
        """Deprecated: ``not sigma_optional``."""
        warn_caller("EnergyScore: takes_sigma is now not sigma_optional", DeprecationWarning)
        return not self.sigma_optional

    def forward(
        self, x: Tensor, sigma: Tensor | float | None = None, **model_kwargs: Any
    ) -> Tensor:
        """The score at ``x``, shape (batch, ...); ``sigma`` has shape (batch,) or is a number.

        What else is given by name goes to the energy.
        """
        level = self._level(x, sigma)

        def values(at: Tensor, *level: Tensor) -> Tensor:
            return self._values(at, level, model_kwargs)

        return -gradient_of_values("EnergyScore", "energy", values, x, level)

    def values(self, x: Tensor, sigma: Tensor | float | None = None, **model_kwargs: Any) -> Tensor:
        """The energy itself, one number of each sample, (batch,); arguments as of the score.

        >>> import torch
        >>> model = EnergyScore(lambda x, sigma: 0.5 * x.square().sum(1) / sigma**2)
        >>> model.values(torch.ones(2, 2), torch.tensor([1.0, 2.0]))
        tensor([1.0000, 0.2500])
        """
        return self._values(x, self._level(x, sigma), model_kwargs).reshape(len(x))

    def _level(self, x: Tensor, sigma: Tensor | float | None) -> tuple[Tensor, ...]:
        """What the energy is given beside x, checked."""
        check_floating("EnergyScore", "x", x, min_dim=1)
        if self.sigma_optional:
            return ()
        if sigma is None:
            fail("EnergyScore", "sigma", "given for an energy that takes one", None)
        return self._conditioned(as_sigma("EnergyScore", x, sigma))

    def _values(self, x: Tensor, level: tuple[Tensor, ...], model_kwargs: dict[str, Any]) -> Tensor:
        with explained("EnergyScore", self.energy, x, self.net_conditioning, model_kwargs):
            values = self.energy(lend(x), *map(lend, level), **lent(model_kwargs))
        if not isinstance(values, Tensor):
            fail_type("EnergyScore", "energy", "a function that returns a tensor", values)
        if values.shape not in ((len(x),), (len(x), 1)):
            expected = f"a function that returns one number per sample, shape ({len(x)},)"
            fail("EnergyScore", "energy", expected, describe(values))
        return values
