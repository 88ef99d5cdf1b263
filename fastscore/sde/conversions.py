"""From what a network predicts to anything else: the one place for these formulas.

At x = alpha x_0 + sigma eps every prediction is a row (p, q), the numbers by which it is p x_0 +
q eps, with n = sqrt(alpha^2 + sigma^2):

==============  =================================  ============  =========
``prediction``  what it is                         p             q
==============  =================================  ============  =========
``"score"``     the gradient of the log density    0             -1/sigma
``"eps"``       the noise                          0             1
``"x0"``        the clean data, the posterior mean 1             0
``"v"``         the same number in every process   -sigma/n      alpha/n
``"velocity"``  dx/dt along the path of one pair   alpha'        sigma'
==============  =================================  ============  =========

Any two rows, one of them x's own (alpha, sigma), give every third: target = A source + B x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_choice,
    check_device,
    check_floating,
    check_shape,
    fail,
    per_sample,
)
from fastscore.conditioning import PREDICTIONS
from fastscore.sde._given import as_process
from fastscore.sde._process import Process, check_time


def coefficients(
    source: str,
    target: str,
    alpha: Tensor,
    sigma: Tensor,
    alpha_rate: Tensor | None = None,
    sigma_rate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(A, B) of target = A source + B x, in float64.

    Args:
        source, target: of "score", "eps", "x0", "v", "velocity".
        alpha, sigma: of the times, tensors of one shape.
        alpha_rate, sigma_rate: their derivatives in t, for "velocity".

    Raises:
        ValueError: an unknown prediction, or "velocity" without the rates.

    Example:
        >>> alpha, sigma = torch.tensor(0.5), torch.tensor(2.0)
        >>> [float(c) for c in coefficients("score", "x0", alpha, sigma)]  # Tweedie
        [8.0, 2.0]
    """
    fn = "coefficients"
    for arg, name in (("source", source), ("target", target)):
        check_choice(fn, arg, name, PREDICTIONS)
        if name == "velocity" and (alpha_rate is None or sigma_rate is None):
            fail(fn, "alpha_rate and sigma_rate", 'given for "velocity"', None)
    alpha, sigma = alpha.double(), sigma.double()
    if source == target:
        return torch.ones_like(alpha), torch.zeros_like(alpha)
    p, q = _row(source, alpha, sigma, alpha_rate, sigma_rate)
    to_p, to_q = _row(target, alpha, sigma, alpha_rate, sigma_rate)
    det = p * sigma - q * alpha
    a, b = (to_p * sigma - to_q * alpha) / det, (p * to_q - q * to_p) / det
    if source == "score":
        a = a * sigma
    if target == "score":
        a, b = a / sigma, b / sigma
    return a, b


def convert(
    output: Tensor,
    x: Tensor,
    t: Tensor | float,
    process: Process | Any,
    *,
    source: str,
    target: str,
) -> Tensor:
    """What a network predicts at x and t as another prediction of the same.

    The posterior mean "x0" is Tweedie's (x + sigma^2 score)/alpha (Efron 2011; Vincent 2011), v
    that of Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512) over n = sqrt(alpha^2 + sigma^2),
    so that it is the same number in every process, and the velocity alpha' x_0 + sigma' eps
    (Lipman et al. 2022, https://arxiv.org/abs/2210.02747).

    Args:
        output: the prediction, (batch, ...), floating-point.
        x: where it was made: the state x itself, of "v" too.
        t: one time, or one of each sample, (batch,); in [0, 1].
        process: of :mod:`fastscore.sde`, or any object with ``alpha(t)`` and ``sigma(t)``.
        source, target: of "score", "eps", "x0", "v", "velocity".

    Returns:
        A tensor like x, made in 32 bits at least; differentiable in output and x. Where the
        conversion is not defined (a score without noise, at t = 0, say) it is infinite or NaN.

    Raises:
        ValueError, TypeError: an argument does not fit.

    Example:
        >>> from fastscore.sde import VE
        >>> score, x = torch.full((1, 1), -0.5), torch.ones(1, 1)
        >>> float(convert(score, x, VE().time_of(1.0), VE(), source="score", target="x0"))
        0.5
    """
    fn = "convert"
    process = as_process(fn, process, "process")
    check_floating(fn, "x", x, min_dim=1)
    check_floating(fn, "output", output)
    check_shape(fn, "output", output, x.shape, "that of x")
    check_device(fn, "output", output, x.device, "as x is")
    time = check_time(fn, x, t)
    rates: tuple[Tensor, ...] = ()
    if "velocity" in (source, target):
        rates = process.alpha_rate(time), process.sigma_rate(time)
    values = coefficients(source, target, process.alpha(time), process.sigma(time), *rates)
    dtype = torch.promote_types(torch.promote_types(output.dtype, x.dtype), torch.float32)
    a, b = (per_sample(c.to(dtype), x) for c in values)
    made = a * output.to(dtype) if source == target else a * output.to(dtype) + b * x.to(dtype)
    return made.to(x.dtype)


def score_coefficients(
    prediction: str,
    alpha: Tensor,
    sigma: Tensor,
    alpha_rate: Tensor | None = None,
    sigma_rate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(A, B) of score = A output + B x for a network that returns ``prediction``, in float64.

    Args, Raises: as :func:`coefficients`. B is for x itself, of "v" too, whose network sees
    x/sqrt(alpha^2 + sigma^2).

    Example:
        >>> a, b = score_coefficients("eps", torch.ones(1), torch.tensor([4.0]))
        >>> float(a)
        -0.25
    """
    return coefficients(prediction, "score", alpha, sigma, alpha_rate, sigma_rate)


def residual_coefficients(
    prediction: str,
    alpha: Tensor,
    sigma: Tensor,
    alpha_rate: Tensor | None = None,
    sigma_rate: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(p, q, h) of sigma score + eps = p output + q eps + h x_0, in float64: what a loss squares.

    Written in x_0 instead of x nothing cancels near the data: of a denoiser D it is (D - x_0)/s,
    where (alpha D - x)/sigma + eps has lost all digits of float32 at s = 1e-6. Where x_0 plays no
    part, for "score" and "eps", h is None.

    Args, Raises: as :func:`coefficients`.

    Example:
        >>> alpha, sigma = torch.ones(1).double(), torch.full((1,), 0.25).double()
        >>> [float(c) for c in residual_coefficients("x0", alpha, sigma)]
        [4.0, 0.0, -4.0]
    """
    check_choice("residual_coefficients", "prediction", prediction, PREDICTIONS)
    alpha, sigma = alpha.double(), sigma.double()
    one = torch.ones_like(alpha)
    if prediction == "score":
        return sigma, one, None
    if prediction == "eps":
        return -one, one, None
    if prediction == "x0":
        p = alpha / sigma
        return p, torch.zeros_like(p), -p
    if prediction == "v":
        n = torch.hypot(alpha, sigma)
        p = -alpha / n
        return p, p.square(), p * sigma / n
    if alpha_rate is None or sigma_rate is None:
        fail("residual_coefficients", "alpha_rate and sigma_rate", 'given for "velocity"', None)
    own_p, own_q = alpha_rate.double(), sigma_rate.double()
    p = alpha / (own_p * sigma - own_q * alpha)
    return p, -p * own_q, -p * own_p


def _row(
    name: str,
    alpha: Tensor,
    sigma: Tensor,
    alpha_rate: Tensor | None,
    sigma_rate: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(p, q) of a prediction; of sigma times the score, which is finite at sigma = 0."""
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if name == "velocity":
        assert alpha_rate is not None
        assert sigma_rate is not None
        return alpha_rate.double(), sigma_rate.double()
    if name == "v":
        norm = torch.hypot(alpha, sigma)
        return -sigma / norm, alpha / norm
    return {"score": (zero, -one), "eps": (zero, one), "x0": (one, zero)}[name]
