"""What a sampler's run is resumed from, where that is more than x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import fail


@dataclass(frozen=True, eq=False)
class SamplerState:
    """Where a run in continuous time has come to: what ``return_state=True`` returns.

    Given as ``x`` to the same sampler with the same settings, the run goes on from there, and ends
    with the bytes of one that was not stopped. It can be saved by ``torch.save`` and moved by
    ``.to(device)``.

    Attributes:
        x: the samples, or where they are on their way, (batch, ...).
        step: how many steps have been taken.
        evaluations: how many calls of the model; a tensor (batch,), int64, where each sample has
            had its own number.
        failed: (batch,), True for samples that an adaptive solver has given up; None where there
            is none.

    Example:
        >>> import torch, fastscore
        >>> score = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)
        >>> sde, how = fastscore.sde.VE(0.01, 10.0), {"solver": "dpmpp_2m", "steps": 8}
        >>> state = fastscore.probability_flow(
        ...     score, sde, shape=(4, 2), seed=0, return_state=True,
        ...     callback=lambda step, x: step == 3, **how,
        ... )
        >>> state
        SamplerState(x of shape (4, 2), step=3, evaluations=3)
        >>> rest = fastscore.probability_flow(score, sde, state, **how)
        >>> whole = fastscore.probability_flow(score, sde, shape=(4, 2), seed=0, **how)
        >>> torch.equal(rest, whole)
        True
    """

    x: Tensor
    step: int
    evaluations: int | Tensor
    failed: Tensor | None = None
    seed: Tensor | None = None  # (2,) or (batch, 2) int64, its draws zero
    state: Tensor | None = None  # the run's own variable, where that is not x
    history: Tensor | None = None  # of multistep solvers: what the last step found the data to be
    control: dict[str, Tensor] | None = None  # of each sample of an adaptive solver
    run: str | None = None  # the sampler and the settings that it comes from

    def to(self, device: torch.device | str) -> SamplerState:
        """The same on another device."""
        return SamplerState(**{name: _moved(value, device) for name, value in vars(self).items()})

    def __repr__(self) -> str:
        shape = tuple(self.x.shape)
        return f"SamplerState(x of shape {shape}, step={self.step}, {self._evaluations()})"

    def _evaluations(self) -> str:
        if not isinstance(self.evaluations, Tensor):
            return f"evaluations={self.evaluations}"
        if not self.evaluations.numel():
            return "evaluations of no samples"
        lo, hi = self.evaluations.aminmax()
        return f"evaluations from {int(lo)} to {int(hi)}"


torch.serialization.add_safe_globals([SamplerState])  # torch.load reads it as it is


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(entry, device) for name, entry in value.items()}
    return value


def check_run(fn: str, state: SamplerState, run: str) -> None:
    """A run goes on in the way in which it began: its step number means nothing to another."""
    if state.run is not None and state.run != run:
        fail(fn, "x", f"the state of a run of {run}", f"one of {state.run}")


def seed_of(fn: str, state: SamplerState, seed: Any) -> Any:
    """The seed of the run that is resumed, which need not be given again."""
    if state.seed is None:
        return seed
    own = state.seed[..., 0]
    if seed is None:
        return own if own.dim() else int(own)
    given = torch.as_tensor(seed).cpu() if not isinstance(seed, Tensor) else seed.cpu()
    if given.shape != own.shape or not bool((given == own.cpu()).all()):
        fail(fn, "seed", "that of the run that is resumed, or left out", seed)
    return seed
