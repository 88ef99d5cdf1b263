"""Steps of Dormand and Prince's method in plain PyTorch, and by torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Dormand and Prince 1980: stages 2 to 7, of which the last is the new state, and its error.
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

Terms = Sequence[tuple[Tensor, Tensor]]  # coefficients (batch, 1, ...), and slopes


def terms(scale: Tensor, row: Sequence[float], slopes: Sequence[Tensor]) -> Terms:
    """Those of a row that are not 0; ``scale`` is each sample's step."""
    size = (-1, *[1] * (slopes[0].dim() - 1))
    factors = [(scale * c).to(slopes[0].dtype).reshape(size) for c in row]
    return [(f, k) for c, f, k in zip(row, factors, slopes, strict=True) if c]


def stage(x: Tensor, parts: Terms, out: Tensor) -> Tensor:
    """x + sum_j c_j k_j, in place from the second term on."""
    (c, k), *rest = parts
    torch.addcmul(x, c, k, out=out)
    for c, k in rest:
        out.addcmul_(c, k)
    return out


class Errors:
    """The RMS of each sample's error over its tolerance, in buffers that are kept."""

    def __init__(self, x: Tensor, atol: float, rtol: float) -> None:
        self.error, self.scale, self.other = (torch.empty_like(x) for _ in range(3))
        self.atol, self.rtol = atol, rtol

    def __call__(self, x: Tensor, new: Tensor, parts: Terms) -> Tensor:
        (c, k), *rest = parts
        torch.mul(k, c, out=self.error)
        for c, k in rest:
            self.error.addcmul_(c, k)
        torch.abs(x, out=self.scale)
        torch.abs(new, out=self.other)
        torch.maximum(self.scale, self.other, out=self.scale).mul_(self.rtol).add_(self.atol)
        return self.error.div_(self.scale).square_().flatten(1).mean(1).sqrt()


def combined(x: Tensor, parts: Terms) -> Tensor:
    """As a user writes it who leaves the rest to torch.compile."""
    for c, k in parts:
        x = x + c * k
    return x


def error_norms(x: Tensor, new: Tensor, parts: Terms, atol: float, rtol: float) -> Tensor:
    error = combined(torch.zeros_like(x), parts)
    scale = atol + rtol * torch.maximum(x.abs(), new.abs())
    return (error / scale).square().flatten(1).mean(1).sqrt()


def torchdiffeq_dopri5(
    x: Tensor, slopes: Sequence[Tensor], step: float, steps: int
) -> Callable[[], Tensor]:
    """So many steps of ``odeint``; the network gives the slopes of each step in turn.

    Its step never changes, and no step is made again: one for all samples.
    """
    from torchdiffeq import odeint

    end = torch.tensor([0.0, steps * step * (1 - 1e-9)], dtype=torch.float64, device=x.device)
    options = {"first_step": step, "ifactor": 1.0, "dfactor": 1.0}

    def run() -> Tensor:
        calls = 0

        def network(t: Tensor, y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return slopes[1 + (calls - 2) % 6] if calls > 1 else slopes[0]

        states: Tensor = odeint(
            network, x, end, method="dopri5", rtol=1e3, atol=1e3, options=options
        )
        return states[-1]

    return run
