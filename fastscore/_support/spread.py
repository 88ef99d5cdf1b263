"""Data sets: what can be one, and how far its samples spread."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore._support.checks import check_finite, check_floating, fail
from fastscore._support.warn import warn_caller

FAR_OFF = 3.0  # standard deviations from 0, where networks do a little worse


def check_data(fn: str, x: Tensor) -> None:
    """At least two samples (n, ...) with at least one element each."""
    check_floating(fn, "x", x, min_dim=1)
    if len(x) < 2:
        fail(fn, "x", "at least two samples", f"shape {tuple(x.shape)}")
    if x.numel() == 0:
        fail(fn, "x", "samples with at least one element", f"shape {tuple(x.shape)}")


def standard_deviation(fn: str, x: Tensor) -> float:
    """The root mean square of all elements about their means over the samples, one number.

    Raises:
        ValueError: what :func:`check_data` refuses; NaN or infinity; samples that are all equal.
    """
    check_data(fn, x)
    check_finite(fn, "x", x)
    values = x.detach()
    variances = (values.float() if x.dtype.itemsize < 4 else values).var(0, correction=0)
    spread = math.sqrt(float(variances.double().mean()))
    if spread == 0:
        fail(fn, "x", "samples that are not all equal", f"{len(x)} equal samples")
    if not math.isfinite(spread):
        fail(fn, "x", f"small enough that its variance fits {variances.dtype}", "an overflow")
    return spread


def warn_if_far_off(fn: str, x: Tensor, spread: float) -> None:
    """Say that networks and samplers, which work about 0, are given data that lie elsewhere."""
    mean = x.detach().mean(0, dtype=torch.float64)
    distance = float(mean.square().mean().sqrt()) / spread
    if distance > FAR_OFF:
        warn_caller(
            f"{fn}: the mean of x is {distance:.3g} standard deviations from 0, where networks and "
            "samplers start: train on x - x.mean(0), and add x.mean(0) to the samples.",
            UserWarning,
        )
