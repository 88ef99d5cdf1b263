"""The levels of a network that is called by an index, in the network's own order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastscore._support.checks import check_sigmas, fail
from fastscore.sde.processes import check_betas, levels_of_betas

Numbers = Tensor | Sequence[float]


def levels_of(fn: str, sigmas: Numbers | None = None, betas: Numbers | None = None) -> Tensor:
    """The noise levels s = sigma/alpha that an index counts, (L,), float64.

    Args:
        fn: the public function on whose behalf this is asked, for messages.
        sigmas: the levels themselves, falling (index 0 is the most noise, as NCSN counts) or
            rising.
        betas: those of a chain (index 0 is the least noise, as DDPM counts).

    Raises:
        ValueError, TypeError: both or neither of them, or levels that are no such numbers.

    Example:
        >>> levels_of("reverse_sde", betas=[0.1, 0.2]).square()
        tensor([0.1111, 0.3889], dtype=torch.float64)
    """
    if (sigmas is None) == (betas is None):
        expected = 'given, one of the two, for conditioning="index"'
        fail(fn, "sigmas or betas", expected, "neither" if sigmas is None else "both")
    if betas is not None:
        return levels_of_betas(check_betas(fn, betas))
    levels: Any = sigmas
    rising = len(levels) > 1 and float(levels[0]) < float(levels[-1])
    if rising:
        levels = levels.flip(0) if isinstance(levels, Tensor) else levels[::-1]
    checked = check_sigmas(fn, levels).detach().double()
    return checked.flip(0) if rising else checked


def nearest_level(levels: Tensor, s: Tensor) -> Tensor:
    """The index of the level that is nearest to each s in log s: int64, of the shape of s.

    >>> import torch
    >>> levels = torch.tensor([1.0, 0.1]).double()
    >>> nearest_level(levels, torch.tensor([0.2, 0.5]).double())
    tensor([1, 0])
    """
    logs = levels.to(s.device).log()
    return (s.double().log().unsqueeze(-1) - logs).abs().argmin(dim=-1)
