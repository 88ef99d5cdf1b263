"""The step size of an adaptive method, of each sample on its own, on the device in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ORDER = 5
SAFETY = 0.9
BETA = 0.04  # how much the error of the step before counts
LEAST, MOST = 0.2, 10.0  # by what a step may change
LEAST_ERROR = 1e-10
LEAST_LAST = 1e-4  # of the error that is remembered: Hairer's bound
NOT_FINITE = 0.1  # what a step that leads to NaN is made smaller by
SMALLEST = 1e-10  # a step over the distance from 0: no time passes in less

RUNNING, ARRIVED, AT_DATA, TOO_SMALL, NO_NUMBER, TOO_MANY = range(6)  # the last three: failed


def first_step(span: float, rtol: float, atol: float) -> float:
    """A guess that costs nothing: the local error goes with the fifth power of the step."""
    return span * min(0.3, 0.8 * (rtol + atol) ** (1 / ORDER))


@dataclass
class Control:
    """Where each sample is, (n,): tau, its next step, the last error, ..."""

    tau: Tensor  # float64
    h: Tensor  # float64, of the sign of the way
    last: Tensor  # float64: the error of the last accepted step
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

    def next(self, end: float) -> tuple[Tensor, Tensor]:
        """The step that is made now, 0 where a sample does not move, and whether it is the last."""
        left = end - self.tau
        final = self.h.abs() >= left.abs() * (1 - 1e-9)
        h = torch.where(final, left, self.h)
        return torch.where(self.status == RUNNING, h, 0.0), final

    def after(self, h: Tensor, final: Tensor, error: Tensor, end: float, calls: int) -> Tensor:
        """Take in what a step has come to; returns where it is accepted.

        Gustafsson's PI controller (Hairer and Wanner 1996, section IV.2), by operations whose
        results do not hang on the sample's place in the batch.
        """
        moving = self.status == RUNNING
        finite = torch.isfinite(error)
        accepted = moving & (error <= 1)
        log = error.clamp_min(LEAST_ERROR).log()
        exponent = torch.where(
            accepted, self.last.log() * BETA - log * (1 / ORDER - 0.75 * BETA), log * (-1 / ORDER)
        )
        most = torch.where(self.rejected | ~accepted, 1.0, MOST)
        factor = torch.minimum((exponent.exp() * SAFETY).clamp_min(LEAST), most)
        factor = torch.where(finite, factor, NOT_FINITE)
        following = h * factor
        stuck = following.abs() < self.tau.abs() * SMALLEST
        arrived = accepted & final
        status = torch.where(finite, TOO_SMALL, NO_NUMBER).to(torch.int8)
        status = torch.where(stuck & moving, status, self.status)
        status = torch.where(arrived, ARRIVED, status).to(torch.int8)
        tau = torch.where(final, end, self.tau + h)
        self.tau.copy_(torch.where(accepted, tau, self.tau))
        self.h.copy_(torch.where(moving, following, self.h))
        self.last.copy_(torch.where(accepted, error.clamp_min(LEAST_LAST), self.last))
        self.rejected.copy_(moving & ~accepted)
        self.evaluations.add_(moving, alpha=calls)
        self.status.copy_(status)
        return accepted

    def tensors(self) -> dict[str, Tensor]:
        """All of them, by name."""
        return dict(vars(self))

    def chosen(self, index: Tensor) -> Control:
        """Of some samples."""
        return Control(**{name: tensor[index] for name, tensor in vars(self).items()})
