"""Data, or data perturbed at a noise level of each sample: what all losses begin with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastscore import random
from fastscore._support.checks import (
    check_device,
    check_finite,
    check_floating,
    check_shape,
    check_tensor,
    describe,
    fail,
)
from fastscore.losses._options import DrawOptions
from fastscore.ops import perturb
from fastscore.ops._library import traced


class Perturbed(NamedTuple):
    """x~ = x + sigma_label z, and the levels."""

    x: Tensor  # (batch, ...)
    sigma: Tensor  # (batch,), float32, or float64 for float64 data
    labels: Tensor  # (batch,), int64 in [0, L)
    drawn: Tensor  # the same as they came, for the kernel that makes NaN of those out of range


def perturbed(
    x: Tensor, sigmas: Tensor, table: Tensor, key: Tensor, draws: DrawOptions
) -> Perturbed:
    """Perturb ``x`` with the labels given, or drawn."""
    labels = draws["labels"]
    noisy, drawn = perturb(x, table, key, labels=labels, **numbering(draws))
    valid = drawn
    if labels is not None and labels.device.type != "cpu":
        # A label out of range, unseen so far, has made its sample NaN; it must not read past the
        # sigmas, nor past an embedding of the model's, as well.
        valid = drawn.clamp(0, len(sigmas) - 1)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return Perturbed(noisy, sigmas.index_select(0, valid).to(dtype), valid, drawn)


def numbering(draws: DrawOptions) -> dict[str, Any]:
    """How an op is told which samples these are."""
    return {"sample_offset": draws["sample_offset"], "samples": draws["samples"]}


def noise_key(fn: str, x: Tensor, draws: DrawOptions) -> Tensor:
    """The key of a call's random numbers, with the numbering of the samples checked."""
    key = random.noise_key(fn, x, draws["key"], draws["seed"], draws["generator"])
    random.check_numbering(fn, key, draws["samples"], draws["sample_offset"], len(x), x.device)
    return key


def check_data(fn: str, x: Any, sigmas: Tensor) -> None:
    """Floating-point data where the noise levels are; finite, where that can be looked at."""
    check_floating(fn, "x", x, min_dim=1)
    check_device(fn, "x", x, sigmas.device, "where the loss and its sigmas are")
    if _values_can_be_read(x):
        check_finite(fn, "x", x)


def check_labels(fn: str, labels: Any, x: Tensor, levels: int) -> None:
    """A noise level of each sample; in range, where that can be looked at."""
    check_tensor(fn, "labels", labels)
    if labels.dtype != torch.int64:
        fail(fn, "labels", "a tensor of torch.int64", describe(labels))
    check_shape(fn, "labels", labels, x.shape[:1], "one label for each sample")
    check_device(fn, "labels", labels, x.device, "where x is")
    if _values_can_be_read(labels) and bool(((labels < 0) | (labels >= levels)).any()):
        lo, hi = int(labels.min()), int(labels.max())
        fail(fn, "labels", f"in [0, {levels})", f"labels from {lo} to {hi}")


def _values_can_be_read(x: Tensor) -> bool:
    """Not on a GPU, where the host would wait, nor in a traced graph or a function transform."""
    return x.device.type == "cpu" and not traced()
