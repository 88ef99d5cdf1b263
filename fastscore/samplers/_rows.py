"""The steps of the linear samplers in continuous time, each a row of a table.

They are written for y = x / alpha, which is data perturbed by s = sigma / alpha whatever the
process, with S the score of y and D = y + s^2 S the expected data:

    y <- a y + b S + c z + h H,    H the D of the row before, or its slope -s S
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from fastscore._support.checks import fail
from fastscore.sde import DDPM, VE, VP, Cosine, Process, SubVP


@dataclass
class Levels:
    """Times, and s there, falling from noise to data (or rising, where data are encoded)."""

    t: Tensor  # (n,), NaN where s is 0: the data themselves
    s: Tensor

    @classmethod
    def of(cls, process: Process, times: Tensor, *, to_data: bool = False) -> Levels:
        """At the times given, and at the end the data."""
        s = process.noise_level(times)
        if to_data:
            times = torch.cat([times, times.new_tensor([torch.nan])])
            s = torch.cat([s, s.new_zeros(1)])
        return cls(times, s)

    def __getitem__(self, which: slice) -> Levels:
        return Levels(self.t[which], self.s[which])


@dataclass
class Rows:
    """One evaluation of the model each, (rows,), float64."""

    t: Tensor  # when the model is asked
    s: Tensor
    t_after: Tensor  # of the state after the row, NaN: the data
    s_after: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    h: Tensor
    slopes: bool = field(
        default=False, kw_only=True
    )  # whether H is the slope dy/ds of the row before, and not its D

    @classmethod
    def between(
        cls,
        at: Levels,
        to: Levels,
        a: Tensor | None = None,
        b: Tensor | None = None,
        c: Tensor | None = None,
        h: Tensor | None = None,
    ) -> Rows:
        """Rows that ask the model ``at`` levels and lead ``to`` others; a is 1, the rest 0."""
        one, nothing = torch.ones_like(at.s), torch.zeros_like(at.s)
        rest = (nothing if column is None else column for column in (b, c, h))
        return cls(at.t, at.s, to.t, to.s, one if a is None else a, *rest)

    def __len__(self) -> int:
        return len(self.s)

    def columns(self) -> list[Tensor]:
        return [getattr(self, entry.name) for entry in fields(self)[:-1]]

    def then(self, other: Rows) -> Rows:
        """These rows, and the others after them."""
        pairs = zip(self.columns(), other.columns(), strict=True)
        return Rows(*(torch.cat(pair) for pair in pairs))

    def each_followed_by(self, other: Rows, times: int) -> Rows:
        """After each row that of ``other`` with its number, so many times."""
        pairs = zip(self.columns(), other.columns(), strict=True)
        return Rows(
            *(torch.stack([own, *[after] * times], dim=1).flatten() for own, after in pairs)
        )


# ---- the reverse SDE ---------------------------------------------------------------------------


def predictor_rows(process: Process, times: Tensor, predictor: str, eta: float) -> Rows:
    """From each time to the next, by the predictor of that name."""
    levels = Levels.of(process, times)
    at, to = levels[:-1], levels[1:]
    if predictor == "ancestral":
        b, c = ancestral(at.s, to.s, eta)
        return Rows.between(at, to, b=b, c=c)
    if predictor == "reverse_diffusion" and not isinstance(process, SubVP):
        a, b, c = reverse_diffusion(process, at.t, to.t)
    else:
        a, b, c = euler_maruyama(process, at.t, to.t)
    # From x to y: x = alpha y, and the score of x is that of y divided by alpha.
    alpha, alpha_after = process.alpha(at.t), process.alpha(to.t)
    a = a * alpha / alpha_after
    return Rows.between(at, to, a, b / (alpha * alpha_after), c / alpha_after)


def euler_maruyama(process: Process, t: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x - (f x - g^2 score) dt + g sqrt(dt) z (Song et al. 2021, section 4.1)."""
    dt = t - after
    variance = process.diffusion_squared(t) * dt
    return 1 - process.drift(t) * dt, variance, variance.sqrt()


def reverse_diffusion(process: Process, t: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x - f + G^2 score + G z, with the forward step x + f + G z exact for Gaussians.

    For VE G^2 is s_k^2 - s_(k-1)^2 and f = 0; for VP, with beta = 1 - (alpha_k/alpha_(k-1))^2, it
    is beta, and the coefficient of x is 2 - sqrt(1 - beta) (Song et al. 2021, appendix E).
    """
    if isinstance(process, VE):
        ratio = torch.ones_like(t)
        variance = process.sigma(t).square() - process.sigma(after).square()
    elif isinstance(process, (VP, DDPM, Cosine)):  # whose alpha^2 + sigma^2 is 1
        ratio = process.alpha(t) / process.alpha(after)
        variance = 1 - ratio.square()
    else:
        ratio = process.alpha(t) / process.alpha(after)
        variance = process.sigma(t).square() - (ratio * process.sigma(after)).square()
    return 2 - ratio, variance, variance.sqrt()


def ancestral(s: Tensor, after: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The coefficients of S and z, drawn from the Gaussian p(y_(k-1) | y_k, x_0 = D).

    With eta = 1 that posterior itself (Ho et al. 2020; y + (s_k^2 - s_(k-1)^2) S), with eta = 0
    DDIM, and between them as Song, Meng and Ermon 2021, equation 16.
    """
    c = eta * after * torch.sqrt(1 - (after / s).square())
    kept = torch.sqrt(after.square() - c.square())  # the part of the noise that stays the same
    return s * (s - kept), c


def step_ratio(process: Process, times: Tensor) -> Tensor:
    """(alpha_k / alpha_(k-1))^2 of each interval: 1 for VE, 1 - beta_k for VP."""
    alpha = process.alpha(times)
    return (alpha[:-1] / alpha[1:]).square()


def corrector_rows(process: Process, times: Tensor, size: Tensor) -> Rows:
    """Langevin steps y + e S + sqrt(2 e) z, at the end of each interval, e = ``size``."""
    after = Levels.of(process, times)[1:]
    return Rows.between(after, after, b=size, c=(2 * size).sqrt())


def annealed_size(process: Process, times: Tensor, snr: float) -> Tensor:
    """e = 2 (alpha_k/alpha_(k-1))^2 (snr s)^2: depends on the level alone."""
    s = process.noise_level(times[1:])
    return 2 * step_ratio(process, times) * (snr * s).square()


def langevin_size(
    process: Process, times: Tensor, snr: float, mean_square: Tensor, dimension: int
) -> Tensor:
    """e = 2 (alpha_k/alpha_(k-1))^2 snr^2 D / n^2, with n^2 the mean of |S|^2 at each time."""
    return 2 * step_ratio(process, times) * snr**2 * dimension / mean_square


def denoising_row(process: Process, time: Tensor) -> Rows:
    """From the last time to the expected data, y + s^2 S (Tweedie's formula)."""
    levels = Levels.of(process, time.reshape(1), to_data=True)
    at, to = levels[:1], levels[1:]
    return Rows.between(at, to, b=at.s.square())


def resampled(rows: Rows, levels: Levels, times: int) -> Rows:
    """The rows of each interval so many times over, back at its beginning after all but the last.

    The way back, y + sqrt(s^2 - s'^2) z (Lugmayr et al. 2022), has no row of its own: its noise is
    added to that of the row before, c'^2 = c^2 + s^2 - s'^2.
    """
    intervals = len(levels.s) - 1
    shape = (intervals, 1, len(rows) // intervals)
    repeated = Rows(*(column.view(shape).repeat(1, times, 1) for column in rows.columns()))
    back = (slice(None), slice(-1), -1)  # the last row of every time but the last
    at = levels[:-1]
    rise = at.s.square() - levels.s[1:].square()
    repeated.c[back] = (repeated.c[back].square() + rise.unsqueeze(-1)).sqrt()
    repeated.t_after[back], repeated.s_after[back] = at.t.unsqueeze(-1), at.s.unsqueeze(-1)
    return Rows(*(column.flatten() for column in repeated.columns()))


# ---- the probability flow, dy/ds = -s S ----------------------------------------------------------


def euler_rows(levels: Levels) -> Rows:
    """Euler's method in s, which is DDIM (Song, Meng and Ermon 2021)."""
    at, to = levels[:-1], levels[1:]
    return Rows.between(at, to, b=at.s * (at.s - to.s))


def heun_rows(
    process: Process,
    levels: Levels,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, torch.inf),
    churn_noise: float = 1.0,
    *,
    slopes: bool = True,
) -> Rows:
    """Heun's method in s, two rows a step and one to the data (Karras et al. 2022, algorithm 2).

    The second row corrects Euler's step from s to s', y' = y_e + (s' - s)/2 (k_2 - k_1), with the
    slopes k = -s S; or, where data are clipped, k_1 = (y_e - D_1)/s', which loses digits in a step
    to a much smaller s'. Churn is fresh noise before a step, which the row before adds; the first
    step has none, nor does noise rise above where it began.
    """
    steps = len(levels.s) - 1
    gamma = torch.full_like(levels.s[:-1], min(churn / steps, 2**0.5 - 1))
    inside = (levels.s[:-1] >= churn_range[0]) & (levels.s[:-1] <= churn_range[1])
    raised = levels.s[:-1] * (1 + gamma * inside)
    raised = torch.minimum(raised, levels.s[0]) if churn else levels.s[:-1]
    times = process.time_of(raised) if churn else levels.t[:-1]
    at, to = Levels(times, raised), levels[1:]
    first = Rows.between(at, to, b=at.s * (at.s - to.s))
    whole = to.s > 0
    change = torch.where(whole, (to.s - at.s) / (2 * to.s), 0.0)
    b = -change * to.s.square()
    if slopes:
        second = Rows.between(to, to, b=b, h=-change * to.s)
    else:
        second = Rows.between(to, to, 1 - change, b, h=change)
    rows = first.each_followed_by(second, 1)
    rows.slopes = slopes
    # The noise that takes the state to the level of the next step, after the last row of each.
    rise = torch.cat([raised[1:].square() - levels.s[1:-1].square(), raised.new_zeros(1)])
    rows.c[1::2] = churn_noise * rise.clamp_min(0).sqrt()
    # So that is where the state is then, in a variable that may be another one there.
    rows.t_after[1:-1:2], rows.s_after[1:-1:2] = times[1:], raised[1:]
    if bool(whole[-1]):
        return rows
    return Rows(*(column[:-1] for column in rows.columns()), slopes=slopes)


def dpmpp_rows(levels: Levels, eta: float = 0.0) -> Rows:
    """DPM-Solver++(2M) in log s (Lu et al. 2022), or with ``eta`` its form for the SDE.

    y' = (s'/s) e^(-eta l) y + q (D + (D - H)/(2 r)), l = log(s/s'), q = 1 - (s'/s)^(1 + eta), r the
    last l over this one, and noise s' sqrt(1 - e^(-2 eta l)). First order in the first step, and
    in the one to the data.
    """
    at, to = levels[:-1], levels[1:]
    ratio = to.s / at.s
    kept = ratio ** (1 + eta)
    step = -ratio.log()
    share = torch.zeros_like(step)
    share[1:] = step[1:] / step[:-1] / 2  # 1/(2 r)
    share = torch.where(to.s > 0, share, 0.0)
    q = 1 - kept
    c = to.s * torch.sqrt((1 - ratio ** (2 * eta)).clamp_min(0)) if eta else None
    own = q * (1 + share)
    return Rows.between(at, to, kept + own, own * at.s.square(), c, -q * share)


def check_rows(fn: str, rows: Rows) -> Rows:
    """That the steps are numbers: a process of one's own, or a grid, may lead elsewhere."""
    for entry in ("a", "b", "c", "h"):
        if not bool(torch.isfinite(getattr(rows, entry)).all()):
            where = int((~torch.isfinite(getattr(rows, entry))).nonzero()[0])
            got = f"NaN or infinity from t = {float(rows.t[where]):.6g} on"
            fail(fn, "sde", "a process whose noise level falls all the way to the data", got)
    return rows
