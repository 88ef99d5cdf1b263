"""The family ``langevin``: the affine noisy update, fused.

    x <- a x + b s + c z,    z ~ N(0, I) of stream LANGEVIN

Least traffic: read x and s, write x (12 bytes an element in float32). The noise is never stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._support.checks import per_sample
from fastscore.ops._library import Differentiable, call_, check_bounds, check_same_device, ops
from fastscore.ops._vmap import map_slices

Clamp = tuple[float | None, float | None] | None
_NAMES = ("x", "score", "table", "key", "known")


def langevin_step_(
    x: Tensor,
    score: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: Clamp = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """One Langevin step in place; returns ``x``.

    Args:
        x: state, (batch, ...), any strides; float32, float64, bfloat16 or float16.
        score: of x's shape and dtype (or of half precision when x is float32).
        table: float64 (rows, 4), or (rows, batch, 4) for coefficients of each sample's own;
            columns a, b, c and k. The row is ``min(draw, rows - 1)``.
        key: int64 [seed, draw]; the draw is the step number. Or (batch, 2), a key of each sample's
            own, which then makes its own step, as if it were alone.
        known, mask: where ``mask`` (bool, x's shape) is True, x becomes ``known + k z``.
        clamp: (low, high) bounds of the result, either may be None.
        sample_offset: number of the first sample, so that shards draw what the whole would.
        samples: int64 (batch,) on x's device, at least 0, in place of ``sample_offset``: the
            number of each sample, in any order, repeated or not. (On CUDA a negative number goes
            unnoticed: it is noise of some other number.)

    Raises:
        ValueError: an argument does not fit, or requires grad (:func:`langevin_step` has
            a derivative).

    Song and Ermon 2019, Algorithm 1; Welling and Teh 2011.

    >>> import fastscore
    >>> x, table = torch.ones(1, 2), torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    >>> langevin_step_(x, -x, table, fastscore.random.key(0))
    tensor([[0.5000, 0.5000]])
    """
    fn = "langevin_step_"
    low, high = (None, None) if clamp is None else check_bounds(fn, clamp)
    op = ops.langevin_step_.default
    numbers = (sample_offset, samples)
    return call_(fn, op, _NAMES, x, score, table, key, known, mask, low, high, *numbers)


def langevin_step(
    x: Tensor,
    score: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: Clamp = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
) -> Tensor:
    """:func:`langevin_step_` into a new tensor, differentiable in x, score and known.

    >>> import fastscore
    >>> x, table = torch.ones(1, 2), torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    >>> langevin_step(x, -x, table, fastscore.random.key(0)), x
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    fn = "langevin_step"
    low, high = check_bounds(fn, clamp)
    args = (x, score, table, key, known, mask, low, high, sample_offset, samples)
    step: Tensor = _LangevinStep.run(fn, *args)
    return step


map_slices("langevin_step_", "langevin_step")


@torch.library.register_fake("fastscore::langevin_step_")
def _(x, score, table, key, known, mask, low, high, sample_offset, samples=None) -> None:
    like = {"score": score, "table": table, "key": key, "known": known, "mask": mask}
    check_same_device("langevin_step_", x, **like, samples=samples)


@torch.library.register_fake("fastscore::langevin_step")
def _(x, score, table, key, known, mask, low, high, sample_offset, samples=None) -> Tensor:
    like = {"score": score, "table": table, "key": key, "known": known, "mask": mask}
    check_same_device("langevin_step", x, **like, samples=samples)
    return torch.empty_like(x)


class _LangevinStep(Differentiable):
    @staticmethod
    def forward(x, score, table, key, known, mask, low, high, sample_offset, samples):
        return ops.langevin_step.default(
            x, score, table, key, known, mask, low, high, sample_offset, samples
        )

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, score, table, key, _, mask, low, high, _, _ = inputs
        # The row is read now: the caller may advance the key before backward runs.
        step = key[..., 1].clamp(0, table.shape[0] - 1)
        if key.dim() == 1:
            row = table.index_select(0, step.reshape(1))[0]
        elif table.dim() == 2:
            row = table.index_select(0, step)
        else:
            row = table[step, torch.arange(table.shape[1], device=table.device)]
        clamped = low is not None or high is not None
        ctx.save_for_backward(row, mask, output if clamped else None)
        ctx.bounds = (low, high)
        ctx.score_dtype = score.dtype

    @staticmethod
    def backward(ctx, grad):
        row, mask, output = ctx.saved_tensors
        low, high = ctx.bounds
        if low is not None:
            grad = torch.where(output > low, grad, 0)
        if high is not None:
            grad = torch.where(output < high, grad, 0)
        grad_known = None
        if mask is not None:
            grad_known = torch.where(mask, grad, 0)
            grad = torch.where(mask, 0, grad)
        a, b = row[..., 0], row[..., 1]
        if row.dim() == 2:
            a, b = per_sample(a, grad), per_sample(b, grad)
        work = torch.promote_types(grad.dtype, torch.float32)  # rounded once, at the end
        grad_x = (grad.to(work) * a.to(work)).to(grad.dtype)
        grad_score = (grad.to(work) * b.to(work)).to(ctx.score_dtype)
        return grad_x, grad_score, None, None, grad_known, None, None, None, None, None
