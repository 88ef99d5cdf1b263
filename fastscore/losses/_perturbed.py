"""Data, or data perturbed at a noise level of each sample: what all losses begin with."""

from __future__ import annotations

from collections.abc import Callable
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
    fail_type,
)
from fastscore._support.common_options import KeyOptions
from fastscore._support.warn import warn_caller
from fastscore._support.wrappers import parameters_of
from fastscore.losses._options import DrawOptions
from fastscore.ops import perturb
from fastscore.ops._library import traced


class Perturbed(NamedTuple):
    """x~ = x + sigma_i z, and the levels i."""

    x: Tensor  # (batch, ...)
    sigma: Tensor  # (batch,), float32, or float64 for float64 data
    levels: Tensor  # (batch,), int64 in [0, L)
    drawn: Tensor  # the same as they came, for the kernel that makes NaN of those out of range


def perturbed(
    x: Tensor, sigmas: Tensor, table: Tensor, key: Tensor, draws: DrawOptions
) -> Perturbed:
    """Perturb ``x`` at the levels given, or drawn."""
    levels = draws["levels"]
    noisy, drawn = perturb(x, table, key, labels=levels, **numbering(draws))
    valid = drawn
    if levels is not None and levels.device.type != "cpu":
        # A level out of range, unseen so far, has made its sample NaN; it must not read past the
        # sigmas, nor past an embedding of the model's, as well.
        valid = drawn.clamp(0, len(sigmas) - 1)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return Perturbed(noisy, sigmas.index_select(0, valid).to(dtype), valid, drawn)


def beside(output: Tensor, x: Tensor) -> Tensor:
    """Data as the kernel takes them beside an output: of its dtype, or float32 beside half."""
    if x.dtype == output.dtype:
        return x
    return x.to(torch.promote_types(output.dtype, torch.float32))


def given_weights(
    fn: str, weighting: Callable[[Tensor], Tensor], at: Tensor, each: str
) -> tuple[Tensor, Tensor]:
    """The weights of a caller's function at ``at``, and which are finite and at least 0.

    The caller says what becomes of those that are not.
    """
    values = weighting(at)
    if not isinstance(values, Tensor):
        fail_type(fn, "weighting", "a function that returns a tensor", values)
    check_shape(fn, "weighting", values, at.shape, f"one weight for each {each}")
    if values.requires_grad and torch.is_grad_enabled():
        expected = "a function whose weights need no gradient, for none reaches them"
        fail(fn, "weighting", expected, "weights that require grad")
    values = values.detach().to(at)
    return values, torch.isfinite(values) & (values >= 0)


def numbering(draws: KeyOptions) -> dict[str, Any]:
    """How an op is told which samples these are."""
    return {"sample_offset": draws["sample_offset"], "samples": draws["samples"]}


def noise_key(fn: str, x: Tensor, draws: KeyOptions) -> Tensor:
    """The key of a call's random numbers, with the numbering of the samples checked."""
    key = random.noise_key(fn, x, draws["key"], draws["seed"], draws["generator"])
    random.check_numbering(fn, key, draws["samples"], draws["sample_offset"], len(x), x.device)
    return key


def check_data(fn: str, x: Any, sigmas: Tensor | None = None) -> None:
    """Floating-point data where the noise levels are; finite, where that can be looked at."""
    check_floating(fn, "x", x, min_dim=1)
    if sigmas is not None:
        check_device(fn, "x", x, sigmas.device, "where the loss and its sigmas are")
    if values_can_be_read(x):
        check_finite(fn, "x", x)


def check_levels(fn: str, draws: DrawOptions, x: Tensor, count: int) -> None:
    """A noise level of each sample, or None; in range, where that can be looked at."""
    levels = draws["levels"]
    if levels is None:
        return
    arg = "levels" if draws["labels"] is None else "labels"
    check_tensor(fn, arg, levels)
    if levels.dtype != torch.int64:
        fail(fn, arg, "a tensor of torch.int64", describe(levels))
    check_shape(fn, arg, levels, x.shape[:1], "one level for each sample")
    check_device(fn, arg, levels, x.device, "where x is")
    if not count:
        fail(fn, arg, "None without sigmas", describe(levels))
    if values_can_be_read(levels) and bool(((levels < 0) | (levels >= count)).any()):
        lo, hi = int(levels.min()), int(levels.max())
        fail(fn, arg, f"in [0, {count})", f"indices from {lo} to {hi}")


def with_levels(
    fn: str, model: Callable[..., Tensor], conditioning: str, draws: DrawOptions
) -> DrawOptions:
    """``draws`` with ``labels``, the old name of ``levels``, taken for that.

    Raises:
        TypeError: both names, or ``labels`` for a model with an argument that they may be meant
            for: of its classes.
    """
    labels = draws["labels"]
    if labels is None:
        return draws
    if draws["levels"] is not None:
        raise TypeError(f"{fn}: levels is given twice, also by its old name labels")
    named = draws["model_kwargs"] or {}
    taken = 1 if conditioning == "none" else 2
    free = [name for name in parameters_of(model)[taken:] if name not in named]
    if free:
        name = "label" if free[0].startswith("**") else free[0]
        raise TypeError(
            f"{fn}: labels is the old name of levels, the index of each sample's noise level, and "
            f"this model takes {free[0]!r} too: give classes as model_kwargs={{{name!r}: ...}}, "
            "and noise levels as levels="
        )
    warn_caller(
        f"{fn}: labels= is now levels=, the index of each sample's noise level (labels of classes "
        "go into model_kwargs)",
        FutureWarning,  # which all users see: they may have meant classes
    )
    return {**draws, "levels": labels}


def values_can_be_read(x: Tensor) -> bool:
    """Not on a GPU, where the host would wait, nor in a traced graph or a function transform."""
    return x.device.type == "cpu" and not traced()
