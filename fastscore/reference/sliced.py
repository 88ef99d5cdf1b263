"""Projections and projected reductions in pure PyTorch.

Sliced score matching (Song, Garg, Shi and Ermon 2019, "Sliced Score Matching: A Scalable Approach
to Density and Score Estimation") needs, for a sample x, the score s and its Jacobian J,

    v'Jv + (v's)^2 / 2    or, with less variance,    v'Jv + |s|^2 / 2,

averaged over random v with E[v v'] = I. Then E[v'Jv] is the trace of J, and E[(v's)^2] is |s|^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, check_device, check_floating, check_int, fail
from fastscore._support.streams import Stream
from fastscore.reference.langevin import compute_dtype
from fastscore.reference.random import normal, rademacher

#: All with E[v v'] = I: independent signs, standard normals, and the sphere of radius sqrt(d).
DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")


def one_projection(
    key: Tensor,
    shape: Sequence[int],
    distribution: str,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """One vector v for each sample, in float32; ``key`` has the projection's own draw number."""
    stream = Stream.PROJECTION
    draw = rademacher if distribution == "rademacher" else normal
    g = draw(key, shape, stream=stream, sample_offset=sample_offset, samples=samples)
    if distribution != "sphere":
        return g
    size = math.prod(shape[1:])
    square_norm = g.double().reshape(shape[0], size).square().sum(dim=1)
    # Were all of g 0, v would be 0.
    radius = torch.where(square_norm > 0, torch.sqrt(size / square_norm), 0.0).float()
    return g * radius.reshape(-1, *[1] * (g.dim() - 1))


def projections(
    key: Tensor,
    shape: Sequence[int],
    count: int,
    *,
    distribution: str = "rademacher",
    dtype: torch.dtype = torch.float32,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """``count`` projection vectors for each sample, of shape ``(count, *shape)``.

    Projection m has draw number ``key[..., 1] * count + m`` and stream PROJECTION. Made in float32
    and then converted to ``dtype``.
    """
    check_choice("projections", "distribution", distribution, DISTRIBUTIONS)
    check_int("projections", "count", count, minimum=1)
    seed, draw = key.unbind(-1)
    keys = [torch.stack([seed, draw * count + m], dim=-1) for m in range(count)]
    vectors = [one_projection(k, shape, distribution, sample_offset, samples) for k in keys]
    return torch.stack(vectors).to(dtype)


def terms(score: Tensor, jvp: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """v'Jv, (v's)^2 / 2 and |s|^2 / 2 with the projections given, (M, *score.shape)."""
    work = compute_dtype(score.dtype)
    count, batch, size = jvp.shape[0], score.shape[0], math.prod(score.shape[1:])
    s = score.to(work).reshape(batch, size)
    j = jvp.to(work).reshape(count, batch, size)
    v = v.to(work).reshape(count, batch, size)
    return (v * j).sum(-1), (v * s).sum(-1).square() / 2, s.square().sum(-1) / 2


def sliced_terms(
    score: Tensor,
    jvp: Tensor,
    key: Tensor,
    *,
    distribution: str = "rademacher",
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """v'Jv and (v's)^2 / 2, both (M, batch), and |s|^2 / 2, (batch,), per sample and projection.

    Args:
        score: s, (batch, ...).
        jvp: the products J v of each projection, (M, *score.shape), of the dtype of score.
        key: the key [seed, draw], or (batch, 2), that :func:`projections` had when v was made.
        distribution: of v: ``"rademacher"``, ``"gaussian"`` or ``"sphere"``.
        sample_offset: number of the first sample.
        samples: int64 (batch,), the number of each sample, in place of ``sample_offset``.

    Returns:
        Sums in float32, in float64 for float64 data. v is what :func:`projections` gives in the
        dtype of the data. Differentiable in score and jvp.

    Raises:
        ValueError: an argument does not fit.

    Example:
        >>> import torch
        >>> from fastscore.reference.sliced import sliced_terms
        >>> x = torch.ones(2, 3)
        >>> key = torch.tensor([0, 0])
        >>> vjv, _, half_s2 = sliced_terms(-x, -torch.ones(1, 2, 3), key)
        >>> half_s2.tolist()
        [1.5, 1.5]
    """
    check_floating("sliced_terms", "score", score, min_dim=1)
    check_floating("sliced_terms", "jvp", jvp, min_dim=2)
    if jvp.shape[0] < 1 or jvp.shape[1:] != score.shape:
        expected = "of shape (projections, *score.shape) with at least one projection"
        fail("sliced_terms", "jvp", expected, f"shape {tuple(jvp.shape)}")
    if jvp.dtype != score.dtype:
        fail("sliced_terms", "jvp", f"of dtype {score.dtype} (score's dtype)", jvp.dtype)
    check_device("sliced_terms", "jvp", jvp, score.device, "score's device")
    v = projections(
        key,
        score.shape,
        jvp.shape[0],
        distribution=distribution,
        dtype=score.dtype,
        sample_offset=sample_offset,
        samples=samples,
    )
    return terms(score, jvp, v)
