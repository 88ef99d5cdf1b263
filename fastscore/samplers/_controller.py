"""The step size of an adaptive method, of each sample on its own, on the device in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SAFETY = 0.9
BETA = 0.04  # how much the error of the step before counts
LEAST, MOST = 0.2, 10.0  # by what a step may change
LEAST_ERROR = 1e-10
LEAST_LAST = math.log(1e-4)  # of the error that is remembered: Hairer's bound
NOT_FINITE = 0.1  # what a step that leads to NaN is made smaller by
SMALLEST = 1e-10  # a step over the distance from 0: no time passes in less

RUNNING, ARRIVED, AT_DATA, TOO_SMALL, NO_NUMBER, TOO_MANY = range(6)  # the last three: failed


def first_step(span: float, rtol: float, atol: float, order: int) -> float:
    """A guess that costs nothing: the error estimate goes with this power of the step."""
    return span * min(0.3, 0.8 * (rtol + atol) ** (1 / order))


@dataclass
class Control:
    """Where each sample is, (n,): tau, its next step, the last error, ..."""

    tau: Tensor  # float64
    h: Tensor  # float64, of the sign of the way
    last: Tensor  # float64: the logarithm of the error of the last accepted step
    rejected: Tensor  # bool: whether the step before was
    status: Tensor  # int8
    evaluations: Tensor  # int64

    @classmethod
    def start(cls, batch: int, tau: float, h: float, device: torch.device) -> Control:
        """At the beginning of a run."""
        fill = torch.zeros(batch, dtype=torch.float64, device=device)
        return cls(
            fill + tau,
            fill + h,
            fill + LEAST_LAST,
            torch.zeros(batch, dtype=torch.bool, device=device),
            torch.zeros(batch, dtype=torch.int8, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def next(self, end: float) -> tuple[Tensor, Tensor, Tensor]:
        """The step that is made now, whether it is the last, and who makes one: others have 0."""
        left, moving = end - self.tau, self.status == RUNNING
        final = self.h.abs() >= left.abs() * (1 - 1e-9)
        h = torch.where(final, left, self.h)
        return h.masked_fill_(~moving, 0.0), final, moving

    def after(
        self,
        h: Tensor,
        tau: Tensor,
        error: Tensor,
        final: Tensor,
        moving: Tensor,
        calls: int,
        order: int,
        equal_step: float | None,
    ) -> Tensor:
        """Take in what steps to ``tau`` have come to; returns which are accepted.

        Equal steps are accepted whatever their error, if that is a number.

        Gustafsson's PI controller (Hairer and Wanner 1996, section IV.2), by operations whose
        results do not hang on the sample's place in the batch.
        """
        finite = error < torch.inf
        accepted = moving & (finite if equal_step is not None else error <= 1)
        refused = ~accepted
        log = error.clamp_min(LEAST_ERROR).log_()
        gain = (self.last + log * 0.75).mul_(BETA).masked_fill_(refused, 0.0)
        factor = (gain - log / order).exp_().mul_(SAFETY).clamp_(LEAST, MOST)
        factor = torch.where(self.rejected | refused, factor.clamp_max(1.0), factor)
        following = h * factor.masked_fill_(~finite, NOT_FINITE)
        stuck = moving & (following.abs() < self.tau * SMALLEST)
        if equal_step is not None:
            following, stuck = torch.full_like(h, equal_step), moving & ~finite
        self.status.masked_fill_(stuck, TOO_SMALL)
        self.status.masked_fill_(stuck & ~finite, NO_NUMBER)
        self.status.masked_fill_(accepted & final, ARRIVED)
        torch.where(accepted, tau, self.tau, out=self.tau)
        torch.where(moving, following, self.h, out=self.h)
        torch.where(accepted, log.clamp_min_(LEAST_LAST), self.last, out=self.last)
        torch.bitwise_and(moving, refused, out=self.rejected)
        self.evaluations.add_(moving, alpha=calls)
        return accepted

    def tensors(self) -> dict[str, Tensor]:
        """All of them, by name."""
        return dict(vars(self))

    def chosen(self, index: Tensor) -> Control:
        """Of some samples."""
        return Control(**{name: tensor[index] for name, tensor in vars(self).items()})
