"""The multistep update in pure PyTorch: every solver on a fixed grid is rows of it.

    D  = d x + e s,    D' = D clamped to [clip_low, clip_high]
    x <- a x + b s + h H + r (D' - D) + c z,    z ~ N(0, I),    H <- D'

With h = r = 0 it is the Langevin step. With D the denoised mean it is DPM-Solver++(2M) and its
stochastic form (Lu et al. 2022), whose history H is the mean of the step before; with rows in
turn, the two halves of a step of Heun's method (Karras et al. 2022), whose history is the slope;
with a clip of D, DDPM and DDIM as they are published (Ho et al. 2020; Song et al. 2021), with the
predicted x_0 held in the range of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._support.streams import Stream
from fastscore.reference.langevin import (
    coefficients,
    compute_dtype,
    guided,
    held,
    per_sample,
    refuse_gradients,
    scaled_bounds,
)
from fastscore.reference.random import normal

Bounds = tuple[float | None, float | None]


def update(
    x: Tensor,
    history: Tensor,
    score: Tensor,
    z: Tensor,
    row: tuple[Tensor, ...],
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: Bounds | None = None,
    clip: Bounds | None = None,
    second: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The new state and the new history, with the noise ``z`` given.

    ``row`` is a, b, c, k, m, u, h, d, e and r, tensors of shape () or (batch,). A term whose h, r
    or c is 0 is not there: NaN in the history, or an infinite D, then does no harm.
    """
    work = compute_dtype(x.dtype)
    a, b, c, k, m, u, h, d, e, r = (per_sample(column, x) for column in row)
    state, past, z = x.to(work), history.to(work), z.to(work)
    s = guided(score, second, weights, work)
    whole = d * state + e * s
    clipped = scaled_bounds(whole, None, clip)
    new = a * state + b * s
    new = torch.where(h == 0, new, new + h * past)
    if clip is not None and clip != (None, None):
        new = torch.where(r == 0, new, new + r * (clipped - whole))
    new = torch.where(c == 0, new, new + c * z)
    if mask is not None and known is not None:
        new = torch.where(mask, held(new, z, m, known, k), new)
    return scaled_bounds(new, u, clamp).to(x.dtype), clipped.to(x.dtype)


def multistep_step_(
    x: Tensor,
    history: Tensor,
    score: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: Bounds | None = None,
    clip: Bounds | None = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
    second: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """One step in place on ``x`` and ``history``; returns ``x``.

    ``table`` is float64 (rows, 10), or (rows, batch, 10) for coefficients of each sample's own; its
    columns are a, b, c, k, m, u, h, d, e and r. Noise is drawn from ``key = [seed, step number]``
    in stream LANGEVIN. No derivative: refuses what requires grad.
    """
    refuse_gradients("multistep_step_", x, history, score, known, second)
    stream = Stream.LANGEVIN
    with torch.no_grad():
        z = normal(key, x.shape, stream=stream, sample_offset=sample_offset, samples=samples)
        new, past = update(
            x,
            history,
            score,
            z,
            coefficients(table, key),
            known=known,
            mask=mask,
            clamp=clamp,
            clip=clip,
            second=second,
            weights=weights,
        )
    history.copy_(past)
    return x.copy_(new)
