"""The Langevin step in pure PyTorch.

    x <- a x + b s(x) + c z,    z ~ N(0, I)

With a = 1, b = alpha/2 and c = sqrt(alpha) this is the step of Song and Ermon 2019 (the "half"
convention); with b = alpha and c = sqrt(2 alpha) that of Song and Ermon 2020 ("full"); and with
b = eta sigma_i^2 and c = beta sigma_{i+1} consistent annealed sampling (Jolicoeur-Martineau et
al. 2020).
"""

from __future__ import annotations

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


def update(
    x: Tensor,
    score: Tensor,
    z: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    k: Tensor | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """One step with the noise ``z`` given.

    Coefficients are tensors of shape () or (batch,). Where ``mask`` is True the new state is
    ``known + k z``; ``clamp = (lo, hi)`` bounds the result. NaN stays NaN.
    """
    work = compute_dtype(x.dtype)
    z = z.to(work)
    new = per_sample(a, x) * x.to(work)
    new = new + per_sample(b, x) * score.to(work)
    new = new + per_sample(c, x) * z
    if mask is not None:
        if known is None or k is None:
            fail("update", "known and k", "given together with mask", None)
        new = torch.where(mask, known.to(work) + per_sample(k, x) * z, new)
    if clamp is not None:
        new = torch.clamp(new, *clamp)
    return new.to(x.dtype)


def coefficients(table: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """a, b, c, k of the step number key[..., 1]; the last row serves every step after it."""
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
    clamp: tuple[float, float] | None = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """One step, noise drawn from ``key = [seed, step number]`` in stream LANGEVIN.

    ``table`` is float64 of shape (rows, 4), or (rows, batch, 4) for coefficients of each sample's
    own; its columns are a, b, c and k. With keys (batch, 2) each sample has its own step number.
    Differentiable in x, score and known.
    """
    stream = Stream.LANGEVIN
    z = normal(key, x.shape, stream=stream, sample_offset=sample_offset, samples=samples)
    a, b, c, k = coefficients(table, key)
    return update(x, score, z, a, b, c, k, known, mask, clamp)


def langevin_step_(
    x: Tensor,
    score: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """:func:`langevin_step` in place; returns ``x``. No derivative: refuses what requires grad."""
    inputs = (x, score) if known is None else (x, score, known)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        fail("langevin_step_", "its tensors", "without requires_grad", "one that requires grad")
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
        )
    return x.copy_(new)
