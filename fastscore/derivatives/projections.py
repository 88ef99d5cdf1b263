r"""v'J v of a model at each sample, by each way of taking it, with what sliced losses add to it.

With s the model's output and J its Jacobian, and projections v with E[v v'] = I, the mean of v'J v
is the trace of J (Hutchinson 1989), and the terms of sliced score matching (Song, Garg, Shi and
Ermon 2019) are

    SSM       v'J v + 1/2 (v's)^2
    SSM-VR    v'J v + 1/2 |s|^2
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastscore._support.checks import check_output, describe, fail, per_sample
from fastscore._support.known import known_of
from fastscore._support.rewind import Rewind
from fastscore.derivatives.call import Call
from fastscore.derivatives.forward.api import dual_output
from fastscore.derivatives.forward.forms import forms_of_layer
from fastscore.derivatives.forward.tensor import DualTensor
from fastscore.derivatives.mixing import values_depend_on_one_another
from fastscore.derivatives.traces import (
    has_energy,
    output_and_products_alone,
    output_and_pullback,
    sum_over_sample,
    warn_of_flat_energy,
)
from fastscore.ops import projections, sliced_terms

DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")
LOST = "(the difference of two half-precision scores is lost to rounding)"


class Batch(NamedTuple):
    """The points that a model is evaluated at, how, and the noise that belongs to them."""

    x: Tensor  # (batch, ...)
    call: Call
    sigma: Tensor | None  # (batch,), None for clean data
    key: Tensor | None  # None where nothing is drawn
    sample_offset: int = 0
    samples: Tensor | None = None  # (batch,)


class Slicing(NamedTuple):
    """How projections are drawn and used."""

    count: int  # type: ignore[assignment]  # over the method of tuples
    distribution: str
    variance_reduced: bool = True
    epsilon: float | None = None


class Terms(NamedTuple):
    """The terms of sliced score matching, for each projection and sample."""

    vjv: Tensor  # v'J v, (M, batch)
    half: Tensor  # 1/2 |s|^2, (batch,) or (M, batch), or 1/2 (v's)^2, (M, batch)
    output: Tensor  # s, or of finite differences the mean of two, (M, batch, ...)

    def mean(self) -> Tensor:
        """The term of each sample, (batch,): the mean over projections."""
        return self.vjv.mean(0) + (self.half.mean(0) if self.half.dim() == 2 else self.half)


def forward(batch: Batch, slicing: Slicing) -> Terms:
    """J v by forward-mode differentiation, in one pass with s and for all projections at once.

    Of an energy's gradient J is symmetric, and J'v is what reverse mode gives for less.
    """
    x, call = batch.x, batch.call
    if has_energy(call.model):
        return reverse(batch, slicing)
    vs = draw(batch, slicing)
    lazy = torch.finfo(x.dtype).bits >= 32  # sums of half precision belong in float32, below
    result = dual_output(call, x, vs, lazy=lazy, transposed=True)
    if isinstance(result, DualTensor):
        check_output(call.fn, result, x)
        if result.deferred is not None:  # a linear layer W comes last: v'W a = (W'v)'a
            score, vjv = forms_of_layer(result.deferred, vs)
            return _from_forms(score, vjv, vs, slicing)
        result = result.parts()
    score, jv = result
    return _from_products(check_output(call.fn, score, x), jv, batch, slicing)


def reverse(batch: Batch, slicing: Slicing) -> Terms:
    """J'v by reverse-mode differentiation of v's, one projection after the other."""
    vs = draw(batch, slicing)
    score, pullback = output_and_pullback(batch.call, batch.x)
    jtv = torch.stack([pullback(v) for v in vs])
    warn_of_flat_energy(batch.call, score, jtv)
    return _from_products(score, jtv, batch, slicing)  # v'(J'v) = v'J v


def reverse_alone(batch: Batch, slicing: Slicing) -> Terms:
    """As :func:`reverse`, of values that are not differentiated again."""
    vs = draw(batch, slicing)
    score, jtv = output_and_products_alone(batch.call, batch.x, vs)
    return _from_products(score, jtv, batch, slicing)


def finite_difference(batch: Batch, slicing: Slicing) -> Terms:
    r"""Two scores in place of a derivative (FD-SSM of Pang, Xu, Li, Song, Ermon and Zhu 2020):

        1/8 |s(x + u) + s(x - u)|^2 + d/(2 epsilon^2) (s(x + u) - s(x - u))'u,    |u| = epsilon.

    With u = h v and h = epsilon / sqrt(d) that is 1/2 |s|^2 + v'J v, where s is the mean of the two
    scores and J v their difference over 2h. Both scores see the same random numbers.
    """
    x, fn = batch.x, batch.call.fn
    _refuse_half_precision(fn, "x", x)
    if torch.is_autocast_enabled(x.device.type):
        fail(fn, "method", f'other than "finite_difference" under autocast {LOST}', "it")
    v = draw(batch, slicing)
    h = _step(x, slicing.epsilon) * (1.0 if batch.sigma is None else per_sample(batch.sigma, x))
    plus, minus = _two_scores(batch, h * v)
    _refuse_half_precision(fn, "model", plus)
    score, jv = (plus + minus) / 2, (plus - minus) / (2 * h)
    return _from_forms(score, sum_over_sample(v * jv, 2), v, slicing)


def _two_scores(batch: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
    """The scores at x + u and at x - u, (M, batch, ...) each.

    In one call, of 2M times the batch, where the model gives for a sample what it gives in a batch
    of this size. Not where it draws random numbers, for masks of dropout that were not the same
    would be divided by h; that a model has drawn is remembered, that it has not is not: it may
    begin to. Nor where samples depend on one another, or where the model takes no other batch, as
    a function around the labels of this one.
    """
    if torch.compiler.is_compiling():
        return _in_one_call(batch, u)
    model = batch.call.model
    known, before = known_of(model), Rewind(model, batch.x)
    if "draws" not in known and not values_depend_on_one_another(batch.call, batch.x):
        try:
            scores = _in_one_call(batch, u)
        except Exception:  # an error of the model's own comes again
            before()
            return _one_by_one(batch, u, before)
        if not before.has_drawn():
            return scores
        known["draws"] = True
        before()
    return _one_by_one(batch, u, before)


def _one_by_one(batch: Batch, u: Tensor, before: Rewind) -> tuple[Tensor, Tensor]:
    """The scores of a batch of this size at a time, all with the same random numbers."""
    x = batch.x

    def score(points: Tensor) -> Tensor:
        before()
        return batch.call.output(points)

    return torch.stack([score(x + v) for v in u]), torch.stack([score(x - v) for v in u])


def _in_one_call(batch: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
    """The scores in one call, what belongs to the samples repeated with them."""
    points = torch.cat([batch.x + u, batch.x - u])  # (2M, batch, ...)

    def repeated(value: Tensor) -> Tensor:
        return value.repeat(len(points), *[1] * (value.dim() - 1))

    scores = batch.call.changed(len(batch.x), repeated).output(points.flatten(0, 1))
    plus, minus = scores.reshape(points.shape).chunk(2)
    return plus, minus


def half_square(score: Tensor, batch_dims: int = 1) -> Tensor:
    """1/2 |s|^2 of each sample, summed in float32 or float64."""
    dtype = torch.promote_types(score.dtype, torch.float32)
    return sum_over_sample(score.to(dtype).square(), batch_dims) / 2


def draw(batch: Batch, slicing: Slicing) -> Tensor:
    """The projections v, (M, *x.shape)."""
    assert batch.key is not None
    return projections(
        batch.key,
        batch.x.shape,
        slicing.count,
        distribution=slicing.distribution,
        dtype=batch.x.dtype,
        sample_offset=batch.sample_offset,
        samples=batch.samples,
    )


def _from_products(score: Tensor, jv: Tensor, batch: Batch, slicing: Slicing) -> Terms:
    """The terms from s and J v (or J'v); the kernel draws v again."""
    assert batch.key is not None
    vjv, half_vs2, half_s2 = sliced_terms(
        score,
        jv.to(score.dtype),
        batch.key,
        distribution=slicing.distribution,
        sample_offset=batch.sample_offset,
        samples=batch.samples,
    )
    return Terms(vjv, half_s2 if slicing.variance_reduced else half_vs2, score)


def _from_forms(score: Tensor, vjv: Tensor, vs: Tensor, slicing: Slicing) -> Terms:
    """The terms from v'J v, and s, one for all projections or one for each."""
    if slicing.variance_reduced:
        return Terms(vjv, half_square(score, score.dim() - vs.dim() + 2), score)
    return Terms(vjv, sum_over_sample(vs * score, 2).square() / 2, score)


def _step(x: Tensor, epsilon: float | None) -> float:
    """h = epsilon / sqrt(d); by default truncation and rounding errors are of one size."""
    if epsilon is None:
        return torch.finfo(x.dtype).eps ** (1 / 3)
    return epsilon / math.sqrt(max(1, math.prod(x.shape[1:])))


def _refuse_half_precision(fn: str, arg: str, value: Tensor) -> None:
    if torch.finfo(value.dtype).bits < 32:
        what = "of float32 or float64" if arg == "x" else "a model that returns float32 or float64"
        fail(fn, arg, f'{what} for method="finite_difference" {LOST}', describe(value))


METHODS: dict[str, Callable[[Batch, Slicing], Terms]] = {
    "forward": forward,
    "reverse": reverse,
    "finite_difference": finite_difference,
}
