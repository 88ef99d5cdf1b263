"""The Langevin step in pure PyTorch.

    x <- a x + b s(x) + c z,    z ~ N(0, I)

and where values are known  x <- m known + k z,  all of it clamped to [u low, u high]. The score s
may be of two terms, w0 score + w1 second, as guidance has them.

With a = 1, b = alpha/2 and c = sqrt(alpha) this is the step of Song and Ermon 2019 (the "half"
convention); with b = alpha and c = sqrt(2 alpha) that of Song and Ermon 2020 ("full"); and with
b = eta sigma_i^2 and c = beta sigma_{i+1} consistent annealed sampling (Jolicoeur-Martineau et
al. 2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore._support.checks import fail
from fastscore._support.streams import Stream
from fastscore.reference.random import normal


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic is done in: half precision computes in float32, rounds once."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient for all samples, or one for each, shaped to broadcast against ``x``."""
    coefficient = coefficient.to(compute_dtype(x.dtype))
    if coefficient.dim() == 0:
        return coefficient
    return coefficient.reshape(-1, *[1] * (x.dim() - 1))


def scaled_bounds(
    x: Tensor, u: Tensor | None, clamp: tuple[float | None, float | None] | None
) -> Tensor:
    """``x`` clamped to [u low, u high]; ``u`` of shape () or (batch,), None for 1.

    NaN stays NaN, and an infinite bound bounds nothing, whatever u is.
    """
    low, high = (None, None) if clamp is None else clamp
    scale = x.new_ones(()) if u is None else per_sample(u, x)
    if low is not None:
        bottom = scale * low if math.isfinite(low) else low
        x = torch.where(x < bottom, bottom, x)
    if high is not None:
        top = scale * high if math.isfinite(high) else high
        x = torch.where(x > top, top, x)
    return x


def guided(
    score: Tensor, second: Tensor | None, weights: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The score of a step: ``w0 score + w1 second``, or ``score`` where there is no second."""
    if (second is None) != (weights is None):
        missing, given = ("second", "weights") if second is None else ("weights", "second")
        fail("langevin_step", missing, f"given together with {given}", None)
    if second is None or weights is None:
        return score.to(dtype)
    first, other = weights.unbind(-1)
    score, second = score.to(dtype), second.to(dtype)
    return per_sample(first, score) * score + per_sample(other, second) * second


def held(x: Tensor, z: Tensor, m: Tensor | None, known: Tensor, k: Tensor) -> Tensor:
    """Known values as a state carries them: ``m known + k z``; None for m = 1."""
    known = known.to(x.dtype)
    return (known if m is None else per_sample(m, x) * known) + per_sample(k, x) * z


def update(
    x: Tensor,
    score: Tensor,
    z: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    k: Tensor | None = None,
    m: Tensor | None = None,
    u: Tensor | None = None,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: tuple[float | None, float | None] | None = None,
    second: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """One step with the noise ``z`` given.

    Coefficients are tensors of shape () or (batch,). Where ``mask`` is True the new state is
    ``m known + k z``; ``clamp = (low, high)`` bounds the result to [u low, u high]. NaN stays NaN.
    """
    work = compute_dtype(x.dtype)
    z = z.to(work)
    new = per_sample(a, x) * x.to(work)
    new = new + per_sample(b, x) * guided(score, second, weights, work)
    new = new + per_sample(c, x) * z
    if mask is not None:
        if known is None or k is None:
            fail("update", "known and k", "given together with mask", None)
        new = torch.where(mask, held(new, z, m, known, k), new)
    return scaled_bounds(new, u, clamp).to(x.dtype)


def coefficients(table: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """The columns of the row of step number key[..., 1], each of shape () or (batch,).

    The last row serves every step after it.
    """
    row = key[..., 1].clamp(0, table.shape[0] - 1)
    if key.dim() == 1:
        return table.index_select(0, row.reshape(1))[0].unbind(-1)
    if table.dim() == 2:
        return table[row].unbind(-1)
    return table[row, torch.arange(len(row), device=row.device)].unbind(-1)


def langevin_step(
    x: Tensor,
    score: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: tuple[float | None, float | None] | None = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
    second: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """One step, noise drawn from ``key = [seed, step number]`` in stream LANGEVIN.

    ``table`` is float64 of shape (rows, 4) or (rows, 6), or with a dimension (rows, batch, ...) for
    coefficients of each sample's own; its columns are a, b, c and k, and then m and u, which are 1
    where there are four. With keys (batch, 2) each sample has its own step number. With ``second``
    and ``weights``, float64 (2,) or (batch, 2), the score is w0 score + w1 second. Differentiable
    in x, score, known and second.
    """
    stream = Stream.LANGEVIN
    z = normal(key, x.shape, stream=stream, sample_offset=sample_offset, samples=samples)
    return update(
        x,
        score,
        z,
        *coefficients(table, key),
        known=known,
        mask=mask,
        clamp=clamp,
        second=second,
        weights=weights,
    )


def langevin_step_(
    x: Tensor,
    score: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: tuple[float | None, float | None] | None = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
    second: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """:func:`langevin_step` in place; returns ``x``. No derivative: refuses what requires grad."""
    refuse_gradients("langevin_step_", x, score, known, second)
    with torch.no_grad():
        new = langevin_step(
            x,
            score,
            table,
            key,
            known=known,
            mask=mask,
            clamp=clamp,
            sample_offset=sample_offset,
            samples=samples,
            second=second,
            weights=weights,
        )
    return x.copy_(new)


def refuse_gradients(fn: str, *tensors: Tensor | None) -> None:
    """A step in place has no derivative."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        fail(fn, "its tensors", "without requires_grad", "one that requires grad")
