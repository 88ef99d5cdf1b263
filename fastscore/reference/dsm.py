"""Denoising score matching in pure PyTorch (Vincent 2011; Song and Ermon 2019).

Data are perturbed to x~ = a x + sigma z, and the loss of a sample is

    w/2 |p out + q z|^2.

With out the score, p = sigma, q = 1 and w = lambda(sigma) / sigma^2 this is
1/2 lambda(sigma) |s(x~, sigma) + z / sigma|^2. With out the predicted noise, p = -1. What else
a network may predict needs the perturbed data too: w/2 |p out + q z + h x~|^2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, fail
from fastscore._support.streams import Stream
from fastscore.reference.langevin import compute_dtype, per_sample
from fastscore.reference.random import labels as draw_labels
from fastscore.reference.random import normal


def perturbation_noise(
    key: Tensor, x: Tensor, sample_offset: int = 0, samples: Tensor | None = None
) -> Tensor:
    """The normals that :func:`perturb` adds and :func:`dsm_residual` meets again."""
    dtype, stream = compute_dtype(x.dtype), Stream.PERTURB
    return normal(
        key, x.shape, dtype=dtype, stream=stream, sample_offset=sample_offset, samples=samples
    )


def rows_of(function: str, table: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The columns of ``table`` at each sample's label.

    A label outside [0, L) is an error on the CPU; elsewhere, where asking would wait for the
    device, its sample becomes NaN.
    """
    levels = table.shape[0]
    bad = (labels < 0) | (labels >= levels)
    if labels.device.type == "cpu" and bool(bad.any()):
        fail(function, "labels", f"from 0 to {levels - 1}", int(labels[bad][0]))
    rows = table[labels.clamp(0, levels - 1)]
    return torch.where(bad.unsqueeze(-1), torch.nan, rows).unbind(-1)


def perturbed(x: Tensor, z: Tensor, a: Tensor, sigma: Tensor) -> Tensor:
    """a x + sigma z with the noise given; a and sigma of shape (batch,)."""
    work = compute_dtype(x.dtype)
    return (per_sample(a, x) * x.to(work) + per_sample(sigma, x) * z.to(work)).to(x.dtype)


def residual(
    output: Tensor,
    z: Tensor,
    p: Tensor,
    q: Tensor,
    w: Tensor,
    h: Tensor | None = None,
    noisy: Tensor | None = None,
) -> Tensor:
    """w/2 |p out + q z + h noisy|^2 of each sample with the noise given; p, ... of shape (batch,).

    ``h`` and ``noisy`` come together or not at all.
    """
    work = compute_dtype(output.dtype)
    r = per_sample(p, output) * output.to(work)
    if h is not None and noisy is not None:
        r = r + per_sample(h, output) * noisy.to(work)
    r = r + per_sample(q, output) * z.to(work)
    squares = r.square().reshape(r.shape[0], math.prod(r.shape[1:]))
    return w.to(work) / 2 * squares.sum(dim=1)


def perturb(
    x: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    labels: Tensor | None = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """a x + sigma z of each sample's noise level, and the labels of these levels.

    ``table`` is float64 of shape (L, 2) with columns a and sigma. Labels are int64 of shape
    (batch,), drawn uniformly from [0, L) when none are given. Differentiable in x.
    """
    if labels is None:
        numbers: Any = {"sample_offset": sample_offset, "samples": samples}
        labels = draw_labels(key, x.shape[0], table.shape[0], **numbers)
    a, sigma = rows_of("perturb", table, labels)
    return perturbed(x, perturbation_noise(key, x, sample_offset, samples), a, sigma), labels


def dsm_residual(
    output: Tensor,
    table: Tensor,
    labels: Tensor,
    key: Tensor,
    *,
    noisy: Tensor | None = None,
    reduction: str = "none",
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """w/2 |p out + q z|^2 of each sample, z being what :func:`perturb` drew with the same key.

    ``table`` is float64 of shape (L, 3) with columns p, q and w. With ``noisy``, of output's shape
    and in its dtype (or float32 beside an output of half precision), it has a fourth column h, and
    the loss is w/2 |p out + q z + h noisy|^2. The result has shape (batch,), or () for the
    reductions "mean" and "sum", and is float32 (float64 for a float64 output). Differentiable in
    output and noisy, twice.
    """
    fn = "dsm_residual"
    check_choice(fn, "reduction", reduction, ("mean", "sum", "none"))
    if table.shape[-1] != (3 if noisy is None else 4):
        expected = "of shape (rows, 3) without noisy, (rows, 4) with it"
        fail(fn, "table", expected, f"{tuple(table.shape)}")
    p, q, w, *h = rows_of(fn, table, labels)
    z = perturbation_noise(key, output, sample_offset, samples)
    loss = residual(output, z, p, q, w, h[0] if h else None, noisy)
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss
