"""The family ``sliced``: projected reductions without a projection tensor.

    projections    v of stream PROJECTION, E[v v'] = I      write v
    sliced_terms   v'Jv, (v's)^2 / 2, |s|^2 / 2             forward reads s and Jv once; backward
                                                            reads s, writes both gradients

``sliced_terms`` regenerates v from the key, forward and backward. Song, Garg, Shi and Ermon 2019,
"Sliced Score Matching: A Scalable Approach to Density and Score Estimation".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore._support.checks import check_choice, check_int, check_tensor, fail, fail_type
from fastscore.ops._library import (
    Differentiable,
    call,
    check_same_device,
    kept,
    mapped_like,
    ops,
    sum_dtype,
)
from fastscore.ops._vmap import map_slices

# In the order of csrc/core/projections.h.
_NUMBERS = {"rademacher": 0, "gaussian": 1, "sphere": 2}
_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
    """``count`` projection vectors for each sample, of shape ``(count, *shape)``, on key's device.

    Made in float32, then converted. Projection m has draw number ``key[..., 1] * count + m``.

    Args:
        key: int64 tensor [seed, draw], see :func:`fastscore.random.key`; or (batch, 2), a key of
            each sample's own, whose v is then what it would be alone.
        shape: of the data; the first dimension is the batch.
        count: the number M of projections of each sample, at least 1.
        distribution: ``"rademacher"`` (independent signs), ``"gaussian"`` (standard normals) or
            ``"sphere"`` (uniform on the sphere of radius sqrt(d)). All have E[v v'] = I.
        dtype: float32, float64, bfloat16 or float16.
        sample_offset: number of the first sample: shards of a batch draw what the whole would.
        samples: int64 (batch,) on key's device, at least 0, in place of ``sample_offset``: the
            number of each sample, in any order, repeated or not. (On CUDA a negative number goes
            unnoticed: it is noise of some other number.)

    Raises:
        TypeError, ValueError: an argument does not fit.

    >>> import fastscore
    >>> v = projections(fastscore.random.key(0), (3, 4), 2, distribution="sphere")
    >>> v.shape, bool(torch.allclose(v.square().sum(-1), torch.tensor(4.0)))
    (torch.Size([2, 3, 4]), True)
    """
    fn = "projections"
    check_tensor(fn, "key", key)
    if samples is not None:
        check_tensor(fn, "samples", samples)
    number = _number(fn, distribution)
    count = check_int(fn, "count", count, minimum=1)
    if dtype not in _FLOATING:
        fail(fn, "dtype", "float32, float64, bfloat16 or float16", dtype)
    if not isinstance(shape, (tuple, list)) and (
        isinstance(shape, str) or not isinstance(shape, Sequence)
    ):
        fail_type(fn, "shape", "a sequence of integers", shape)
    if len(shape) < 1 or any(check_int(fn, "shape", n, minimum=0) < 0 for n in shape):
        fail(fn, "shape", "at least one dimension, the batch", tuple(shape))
    out = mapped_like(key, samples).new_empty((count, *shape), dtype=dtype)
    call(fn, ops.project_.default, out, key, number, sample_offset, samples)
    return out


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

    The terms of sliced score matching: the first plus the second is the objective, the first plus
    the third the one of reduced variance. v is what :func:`projections` gives for the same key,
    distribution, shape, M and dtype.

    Args:
        score: s, (batch, ...), any strides; float32, float64, bfloat16 or float16.
        jvp: the products J v of each projection, (M, *score.shape), of the dtype of score.
        key: int64 [seed, draw] on the data's device, or (batch, 2), that v was made with.
        distribution: of v: ``"rademacher"``, ``"gaussian"`` or ``"sphere"``.
        sample_offset: number of the first sample.
        samples: the number of each sample, as for :func:`projections`.

    Returns:
        float32 tensors; float64 for float64 data. Differentiable in score and jvp, any number of
        times. Sums run in a fixed order: the same bytes for any number of threads and any split of
        the batch.

    Raises:
        TypeError, ValueError: an argument does not fit.

    >>> import fastscore
    >>> key, x = fastscore.random.key(0), torch.ones(2, 3)
    >>> v = projections(key, x.shape, 1)
    >>> vjv, _, half_s2 = sliced_terms(-x, -v, key)  # of s(x) = -x
    >>> vjv.tolist(), half_s2.tolist()
    ([[-3.0, -3.0]], [1.5, 1.5])
    """
    number = _number("sliced_terms", distribution)
    args = (score, jvp, key, number, sample_offset, samples)
    vjv, _, half_vs2, half_s2 = _Terms.run("sliced_terms", *args)
    return vjv, half_vs2, half_s2


def _number(fn: str, distribution: str) -> int:
    try:
        return _NUMBERS[distribution]
    except (KeyError, TypeError):
        check_choice(fn, "distribution", distribution, tuple(_NUMBERS))
        raise


map_slices("project_", "sliced_terms", "sliced_terms_backward")


@torch.library.register_fake("fastscore::project_")
def _(out, key, distribution, sample_offset, samples=None) -> None:
    check_same_device("projections", out, key=key, samples=samples)


@torch.library.register_fake("fastscore::sliced_terms")
def _(score, jvp, key, distribution, sample_offset, samples=None):
    check_same_device("sliced_terms", score, jvp=jvp, key=key, samples=samples)
    dtype = sum_dtype(score.dtype)
    matrix = (jvp.shape[0], score.shape[0])
    vjv, vs, half_vs2 = (score.new_empty(matrix, dtype=dtype) for _ in range(3))
    return vjv, vs, half_vs2, score.new_empty(score.shape[0], dtype=dtype)


@torch.library.register_fake("fastscore::sliced_terms_backward")
def _(grad_vjv, grad_vs, grad_half_s2, score, key, distribution, sample_offset, samples=None):
    check_same_device(
        "sliced_terms_backward",
        score,
        grad_vjv=grad_vjv,
        grad_vs=grad_vs,
        grad_half_s2=grad_half_s2,
        key=key,
        samples=samples,
    )
    return torch.empty_like(score), score.new_empty((grad_vjv.shape[0], *score.shape))


class _Terms(Differentiable):
    """(v'Jv, v's, (v's)^2 / 2, |s|^2 / 2). The backward needs v's with its sign, and not Jv."""

    @staticmethod
    def forward(score, jvp, key, distribution, sample_offset, samples):
        return ops.sliced_terms.default(score, jvp, key, distribution, sample_offset, samples)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        score, _, key, ctx.distribution, ctx.sample_offset, samples = inputs
        # The caller may advance the key in place before backward runs: keep its value.
        ctx.save_for_backward(score, output[1], key.clone(), kept(samples))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_vjv, grad_vs, grad_half_vs2, grad_half_s2):
        score, vs, key, samples = ctx.saved_tensors
        if grad_half_vs2 is not None:
            through_square = grad_half_vs2 * vs
            grad_vs = through_square if grad_vs is None else grad_vs + through_square
        if grad_vjv is None:
            grad_vjv = torch.zeros_like(vs)
        grad_score, grad_jvp = _TermsBackward.run(
            "sliced_terms_backward",
            grad_vjv,
            grad_vs,
            grad_half_s2,
            score,
            key,
            ctx.distribution,
            ctx.sample_offset,
            samples,
        )
        return grad_score, grad_jvp, None, None, None, None


class _TermsBackward(Differentiable):
    """(sum_m c_m v_m + g s, g_m v_m): linear in the gradients c, g and g_m, and in s."""

    @staticmethod
    def forward(grad_vjv, grad_vs, grad_half_s2, score, key, distribution, sample_offset, samples):
        return ops.sliced_terms_backward.default(
            grad_vjv, grad_vs, grad_half_s2, score, key, distribution, sample_offset, samples
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, grad_vs, grad_half_s2, score, key, ctx.distribution, ctx.sample_offset, samples = inputs
        ctx.has_vs = grad_vs is not None
        ctx.save_for_backward(grad_half_s2, score, key, samples)

    @staticmethod
    def backward(ctx, dscore, djvp):
        grad_half_s2, score, key, samples = ctx.saved_tensors
        # The products of the cotangents with v are what the op itself computes.
        dvjv, dvs, _, _ = _Terms.run(
            "sliced_terms", dscore, djvp, key, ctx.distribution, ctx.sample_offset, samples
        )
        dhalf_s2 = out = None
        if grad_half_s2 is not None:
            work = sum_dtype(score.dtype)
            products = (score.to(work) * dscore.to(work)).flatten(1) if score.dim() > 1 else None
            dhalf_s2 = score * dscore if products is None else products.sum(1)
            scale = grad_half_s2.reshape(-1, *[1] * (score.dim() - 1))
            out = (scale * dscore.to(work)).to(score.dtype)
        return dvjv, dvs if ctx.has_vs else None, dhalf_s2, out, None, None, None, None
