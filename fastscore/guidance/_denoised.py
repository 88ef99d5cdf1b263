"""The denoised mean of a score, and products with its Jacobian.

With S the score of data perturbed by noise of level s, Tweedie's formula gives the mean of the
data given a noisy sample, D(x) = x + s^2 S(x, s), and its covariance, s^2 dD/dx. A product
(dD/dx)'u = u + s^2 (dS/dx)'u takes one reverse pass of the score and one pass over memory.
"""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastscore._support.checks import fail, per_sample
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.explain import explain
from fastscore._support.inference import recordable, recording
from fastscore._support.sums import tree_sum
from fastscore._support.tangents import refuse_tangents
from fastscore.derivatives.call import Call
from fastscore.derivatives.traces import output_and_pullback
from fastscore.ops import rk_error, rk_stage

Weights = Sequence[Tensor | float]
FEW = 256  # samples: the levels of more take the host longer than the arithmetic


class Denoised(NamedTuple):
    """A score at some points, and what follows of it."""

    x: Tensor  # the points
    score: Tensor  # S, of their shape and dtype
    variance: Tensor | float  # s^2, the number of all samples or (batch,) float64
    pullback: Callable[[Tensor], Tensor]  # u to (dS/dx)'u

    @property
    def mean(self) -> Tensor:
        """D, made anew in a pass."""
        return combined(self.x, [self.score], (1.0, self.variance))

    def misfit(self, y: Tensor) -> Tensor:
        """y - D of y like x, or (1, ...), in one pass."""
        weights = (1.0, -1.0, -self.variance)
        return combined(y.expand_as(self.x), [self.x, self.score], weights)

    def pulled(self, u: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``scale`` (dD/dx)'u, the scale a number or (batch,)."""
        return combined(u, [self.pullback(u)], (scale, self.variance * scale))


def denoised(call: Call, x: Tensor, level: Tensor, *, differentiates: bool, once: bool) -> Denoised:
    """The score at x of what ``call`` says, and the mean and products that follow of it.

    Args:
        call: of a score, its noise levels and ``model_kwargs`` in it.
        x: points, (batch, ...), float32 or float64.
        level: their noise levels, (batch,).
        differentiates: whether the score takes a derivative itself, as that of an energy does.
        once: whether one product alone is asked for, so that the graph need not be kept.

    Raises:
        ValueError: a score in half precision, or one that has no graph.
    """
    try:
        score, pullback = _score_and_pullback(call, x, differentiates=differentiates, once=once)
    except Exception as error:
        explain(call.fn, call.model, x, "sigma", call.kwargs, error)
        raise
    refuse_half(call.fn, score)
    known = one_for_all(level)
    variance = level.double().square() if known is None else known * known
    return Denoised(x, score.to(x.dtype), variance, pullback)


def _score_and_pullback(
    call: Call, x: Tensor, *, differentiates: bool, once: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    if torch.is_grad_enabled() or differentiates or in_transform():
        return output_and_pullback(call, x)
    # First derivatives alone, which fused attention and compiled code have, too; but compiled code
    # may give memory away in its first reverse pass.
    refuse_tangents(call.fn, (x,))
    eagerly = contextlib.nullcontext() if once else compiled_parts_run_eagerly()
    with recording(), eagerly:
        point = recordable(x).detach().requires_grad_()
        output = call.recordable().output(point)
    if not output.requires_grad:
        refuse_no_graph(call.fn)

    def pullback(u: Tensor) -> Tensor:
        with recording():
            (product,) = torch.autograd.grad(
                output,
                point,
                recordable(u.to(output.dtype)),
                retain_graph=not once,
                allow_unused=True,
            )
        if product is None:
            refuse_no_graph(call.fn)
        return product

    return output.detach(), pullback


def one_for_all(level: Tensor) -> float | None:
    """The noise level of all samples, where there is one and the host may know it for nothing.

    Arithmetic with it costs nothing beside that with tensors, and has the same bytes as float64.
    """
    looks = _on_host(level) and 0 < level.numel() <= FEW and not torch.is_grad_enabled()
    if not looks or in_transform() or torch._C._get_tracing_state():
        return None
    levels: list[float] = level.tolist()
    return levels[0] if levels.count(levels[0]) == len(levels) else None


def _on_host(x: Tensor) -> bool:
    """Whether numbers on the host are where x is; not of a FakeTensor and the like."""
    return x.is_cpu and type(x) is Tensor


def in_transform() -> bool:
    """Whether this runs inside of torch.func, or is being compiled."""
    return torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()


def refuse_no_graph(fn: str) -> None:
    """Guidance goes through the score's derivative, which would be 0."""
    got = "one whose output has no graph that leads to x (detached, or from NumPy?)"
    fail(fn, "score", "differentiable in x", got)


def refuse_half(fn: str, score: Tensor) -> None:
    """D is a difference of x and nearly x, and its derivative one of 1 and nearly 1."""
    if score.dtype.itemsize < 4:
        expected = "one that returns float32 or float64, for the denoised mean is a small "
        expected += "difference (model.float())"
        fail(fn, "score", expected, score.dtype)


def combined(
    x: Tensor, others: Sequence[Tensor], weights: Weights, *, out: Tensor | None = None
) -> Tensor:
    """weights[0] x + sum_i weights[i] others[i - 1], in one pass where nothing is recorded.

    Args:
        x: (batch, ...), real or complex; ``others`` like it.
        weights: numbers, or float64 (batch,).
        out: where the result may be written, if nothing is recorded.
    """
    if x.is_complex():
        parts = [torch.view_as_real(other) for other in others]
        held = None if out is None else torch.view_as_real(out)
        return torch.view_as_complex(
            combined(torch.view_as_real(x), parts, weights, out=held).contiguous()
        )
    if in_transform() or is_recorded(x, *others, *weights):
        total = x * _factor(weights[0], x)
        for other, weight in zip(others, weights[1:], strict=True):
            total = total + other.to(x.dtype) * _factor(weight, x)
        return total
    others = [other.to(x.dtype) for other in others]
    if not others:
        others, weights = [x], [*weights, 0.0]  # as the kernel wants some
    return rk_stage(x, others, _stacked(weights, x), out=out)


def is_recorded(*values: Any) -> bool:
    """Whether autograd takes part in what is made of these."""
    if not torch.is_grad_enabled():
        return False
    return any(value.requires_grad for value in values if isinstance(value, Tensor))


def _factor(weight: Tensor | float, x: Tensor) -> Tensor | float:
    return per_sample(weight, x).to(x.dtype) if isinstance(weight, Tensor) else weight


def _stacked(weights: Weights, x: Tensor) -> Tensor:
    """As the kernels take them, float64: (terms,) of numbers on the host, or (batch, terms)."""
    if _on_host(x) and not any(isinstance(weight, Tensor) for weight in weights):
        return torch.frombuffer(array("d", weights), dtype=torch.float64)  # torch.tensor is slow
    batch = x.shape[:1]
    columns = [
        weight.double()
        if isinstance(weight, Tensor)
        else x.new_full(batch, weight, dtype=torch.float64)
        for weight in weights
    ]
    return torch.stack(columns, dim=-1)


def inner(x: Tensor, y: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    """<x, y> of each sample, given |x|^2 and |y|^2, in one pass where nothing is recorded.

    It is (|x|^2 + |t y|^2 - |x - t y|^2)/2t, with the t that makes |x| = |t y|: up to rounding of
    |x||y|, as a sum of products is. (batch,) float64, of complex numbers as pairs of real ones; its
    bytes hang on the sample alone.
    """
    if x.is_complex():
        x, y = torch.view_as_real(x), torch.view_as_real(y)
    if in_transform() or is_recorded(x, y):
        return sum_of_products(x, y)
    t = (x2 / y2).sqrt().to(x.dtype).double().masked_fill(y2 == 0, 0.0)
    apart = _squares(x, y, _stacked((1.0, -t), x))
    return ((x2 + t.square() * y2 - apart) / (2 * t)).masked_fill(t == 0, 0.0)


def sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> of each sample of real numbers likewise, in more passes."""
    products = (x * y).flatten(1) if x.dim() > 1 else (x * y).unsqueeze(1)
    return tree_sum(products, 1).double()


def squared(x: Tensor) -> Tensor:
    """|x|^2 of each sample likewise, in one pass where nothing is recorded; NaN of one with NaN."""
    if x.is_complex():
        x = torch.view_as_real(x)
    if in_transform() or is_recorded(x):
        return sum_of_products(x, x)
    return _squares(x, x, _one(x))


def _squares(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """|w_0 x + w_1 y|^2 of each sample."""
    return rk_error(x, x, [y], weights, _one(x)).square() * math.prod(x.shape[1:])


def _one(x: Tensor) -> Tensor:
    """1 and 0, as the kernels take them."""
    if _on_host(x):
        return _stacked((1.0, 0.0), x)
    return torch.eye(1, 2, dtype=torch.float64, device=x.device)[0]


def inverse(x: Tensor | float) -> Tensor | float:
    """1/x of numbers that are not negative, and NaN of 0."""
    if isinstance(x, Tensor):
        return torch.where(x > 0, 1 / x, torch.nan)
    return 1 / x if x > 0 else math.nan


def quotient(x: Tensor | float, y: Tensor, where: Tensor) -> Tensor:
    """x/y where that is asked for, and 0 elsewhere; so is its derivative."""
    if torch.is_grad_enabled():
        y = torch.where(where, y, 1.0)
    return torch.where(where, x / y, 0.0)


def signs_like(x: Tensor) -> Tensor:
    """Signs without a pattern, the same at each sample, of x's shape."""
    return _like(1 - 2 * ((_mixed(x) >> 7) & 1), x)


def values_like(x: Tensor) -> Tensor:
    """The same with sizes from 1/2 to 3/2."""
    return _like(0.5 + (_mixed(x) >> 8).double() / 2**24, x) * signs_like(x)


def _mixed(x: Tensor) -> Tensor:
    """32 bits without a pattern for each element of a sample."""
    n = torch.arange(x[0].numel(), device=x.device)
    mixed = (n * 2654435761 + 12345) % 2**32
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) % 2**32
    return mixed ^ (mixed >> 13)


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(x.shape[1:]).expand_as(x).contiguous()
