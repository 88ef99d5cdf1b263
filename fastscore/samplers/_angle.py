"""The variable in which the adaptive solver integrates: y over its standard deviation, by angle.

With u = y/sqrt(s^2 + d^2) and theta = atan(s/d) the flow dy/ds = -s S is at rest for data
N(0, d^2 I), and for all others changes by about as much at high noise, where u is the direction of
the noise, as at low, where it is that of the data. With d within a factor of two of the data's
standard deviation that is nearly as good as with that itself.

Of a divergence along the way there is more to see at low noise, where x hardly moves: theta may be
atan of a root of s/d.

On mixtures of ten Gaussians theta = atan(s/d) took the fewest calls of the model of what was tried, at about the
same errors: u over log s, x over the time of VP, y over log s and y over s took more. A guessed
first step spares two more calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastscore._support.alike import alike_everywhere
from fastscore.samplers._frame import Frame
from fastscore.samplers._runge_kutta import data_coefficients, flow_coefficients

DATA_SCALE = 0.5  # of a model that does not say its sigma_data


class Nodes(NamedTuple):
    """What there is to know at some angles, each (stages, n), in float64."""

    s: Tensor
    told: Tensor  # what the model is told
    alpha: Tensor  # w = alpha y + alpha s z
    p: Tensor  # du/dtheta = p u + q o, u = g w
    q: Tensor
    g: Tensor
    labels: Tensor | None = None  # or the index that the model is told, int64
    data: Tensor | None = None  # (stages, n, 2): d and e of D = d w + e o, where D is clipped

    def label_at(self, stage: int) -> Tensor:
        """The indices of a stage, or what is no index and not asked for."""
        return (self.told if self.labels is None else self.labels)[stage]

    def data_at(self, stage: int) -> Tensor | None:
        """The coefficients of D at a stage, where they are asked for."""
        return None if self.data is None else self.data[stage]

    def known_at(self, stage: int) -> Tensor:
        """(n, 2): by what known elements and their noise are multiplied."""
        alpha = self.alpha[stage]
        return torch.stack([alpha, alpha * self.s[stage]], dim=-1)


@dataclass
class Angle:
    """The path of a process by its angle, in the frame of a model."""

    frame: Frame
    first: float  # the times at the ends
    last: float
    clips: bool
    scale: float = DATA_SCALE  # d
    root: int = 1  # of s/d, whose atan theta is: the higher, the more of the way at low noise

    @property
    def in_time(self) -> bool:
        """Whether the model is called in the process's own time, or in its x."""
        return self.frame.kind == "x" or self.frame.conditioning == "time"

    def of_time(self, t: float) -> float:
        """Theta at a time."""
        return math.atan((float(self.frame.process.noise_level(t)) / self.scale) ** (1 / self.root))

    def level_of(self, theta: Tensor) -> Tensor:
        """S at these angles."""
        return theta.tan().pow(self.root) * self.scale

    def on(self, device: torch.device) -> Angle:
        """With what it holds on a device."""
        levels = self.frame.levels
        if levels is None:
            return self
        return replace(self, frame=replace(self.frame, levels=levels.to(device)))

    def levels(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """(t, s) at these angles; t is NaN where nothing asks for it."""
        s = self.level_of(theta)
        if not self.in_time:
            return torch.full_like(s, torch.nan), s
        return self.times(theta), s

    def nodes(self, theta: Tensor) -> Nodes:
        """At these angles, (stages, n); bytes at one do not hang on how many others there are."""
        found = alike_everywhere(self._nodes, theta)
        labels = found[6] if self.frame.levels is not None else None
        s, told, alpha, p, q, g = found[:6]
        return Nodes(s, told, alpha, p, q, g, labels, found[-1] if self.clips else None)

    def _nodes(self, theta: Tensor) -> tuple[Tensor, ...]:
        frame = self.frame
        t, s = self.levels(theta)
        variance = s.square() + self.scale**2
        r = theta.tan()
        speed = (r.square() + 1) * r.pow(self.root - 1) * (self.scale * self.root)
        of = replace(frame, prediction="x0") if self.clips else frame
        bend = -s * speed / variance
        alpha, p, q, g = flow_coefficients(of, t, s, variance.rsqrt(), speed, bend)
        found = [s, frame.told(t, s), alpha, p, q, g]
        if frame.levels is not None:
            found.append(frame.index(s))
        if self.clips:
            found.append(data_coefficients(frame, t, s))
        return tuple(found)

    def data_of(self, theta: Tensor) -> Tensor:
        """(n, 2): the expected data at these angles (n,), in what stands for the output."""
        if self.clips:
            return torch.stack([torch.zeros_like(theta), torch.ones_like(theta)], dim=-1)
        return alike_everywhere(
            lambda angle: (data_coefficients(self.frame, *self.levels(angle)),), theta
        )[0]

    def times(self, theta: Tensor) -> Tensor:
        """T at these angles, which never leave the process."""
        lo, hi = sorted((self.first, self.last))
        return self.frame.process.time_of(self.level_of(theta)).clamp(lo, hi)

    def shown(self, theta: Tensor) -> Tensor:
        """Kappa, by which x is multiplied in w."""

        def kappa(angle: Tensor) -> tuple[Tensor, ...]:
            return (self.frame.scale(self.times(angle), self.level_of(angle)),)

        return alike_everywhere(kappa, theta)[0]
