"""Exact traces of Jacobians, and the checks and small sums that every use of them shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastscore._support.checks import check_int, check_output, fail
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.inference import recordable, recording
from fastscore.derivatives.closed_form import NoClosedForm, jacobian
from fastscore.derivatives.forward.api import _dual_output
from fastscore.derivatives.forward.tensor import DualTensor
from fastscore.derivatives.forward.whole import differentiable_to_third_order, warn_of_no_graph
from fastscore.ops._library import sum_dtype

Model = Callable[..., Tensor]

# Elements of the tangents that one pass carries, where the caller does not say.
CHUNK_ELEMENTS = 2**21


def sum_over_sample(x: Tensor, batch_dims: int = 1) -> Tensor:
    """The sum over all dimensions but the first ``batch_dims``."""
    return x.flatten(batch_dims).sum(-1) if x.dim() > batch_dims else x


def has_energy(model: Model) -> bool:
    """Whether the model differentiates an energy: tangents of that need another way."""
    return isinstance(model, nn.Module) and any(
        getattr(m, "differentiates_energy", False) for m in model.modules()
    )


def mixes_samples(model: Model) -> bool:
    """Whether the model normalises by the statistics of its batch, as far as its modules tell."""
    return isinstance(model, nn.Module) and any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or m.running_mean is None)
        for m in model.modules()
    )


def _refuse_mixed_samples(fn: str, model: Model) -> None:
    """A unit vector is one for the whole batch: it would meet other samples' derivatives too."""
    if mixes_samples(model):
        expected = "one whose samples do not depend on one another, for an exact trace"
        got = "one with a BatchNorm layer that takes the statistics of its batch"
        fail(fn, "model", expected, got)


class Rewind:
    """The random number generators and a model's running statistics, as they were."""

    def __init__(self, model: Model, x: Tensor) -> None:
        self.device = x.device if x.device.type == "cuda" else None
        self.states = self._states()
        self.statistics = _running_statistics(model)

    def _states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device is not None:
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def has_drawn(self) -> bool:
        """Whether anything was drawn from PyTorch's generators since."""
        return not all(map(torch.equal, self.states, self._states()))

    def __call__(self) -> None:
        torch.set_rng_state(self.states[0])
        if self.device is not None:
            torch.cuda.set_rng_state(self.states[1], self.device)
        _restore(self.statistics)


def output_and_pullback(
    fn: str, model: Model, x: Tensor, args: tuple[Any, ...]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``model(x, *args)``, and the function that takes v to J'v by reverse-mode differentiation."""
    if torch._C._are_functorch_transforms_active():
        return _output_and_functional_pullback(fn, model, x, args)
    record = torch.is_grad_enabled()
    # Compiled code has no second derivatives.
    with recording(), differentiable_to_third_order(), compiled_parts_run_eagerly():
        x, args = recordable(x), tuple(map(recordable, args))
        # The caller's own tensor only where its graph has to go on through it.
        point = x if record and x.requires_grad else x.detach().requires_grad_()
        output = check_output(fn, model(point, *args), x)

    def pullback(v: Tensor) -> Tensor:
        if not output.requires_grad:
            warn_of_no_graph()
            return torch.zeros_like(point)
        with recording():
            (product,) = torch.autograd.grad(
                output,
                point,
                recordable(v.to(output.dtype)),
                retain_graph=True,
                create_graph=record,
                allow_unused=True,
            )
        if product is None:
            warn_of_no_graph()
            return torch.zeros_like(point)
        return product

    return (output if record else output.detach()), pullback


def _output_and_functional_pullback(
    fn: str, model: Model, x: Tensor, args: tuple[Any, ...]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The same by torch.func, where autograd.grad can't be used."""

    def call(point: Tensor) -> Tensor:
        with differentiable_to_third_order():
            return check_output(fn, model(point, *args), x)

    output, pullback = torch.func.vjp(call, x)
    return output, lambda v: pullback(v.to(output.dtype))[0]


def output_and_products(
    fn: str, model: Model, x: Tensor, vs: Tensor, args: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """``model(x, *args)`` and ``J v`` of each v, (M, *x.shape); ``J'v`` where an energy is inside.

    Their inner products with v are the same.
    """
    if has_energy(model):
        output, pullback = output_and_pullback(fn, model, x, args)
        return output, torch.stack([pullback(v) for v in vs])
    result = _dual_output(fn, model, x, vs, args, {}, lazy=False)
    output, products = result.parts() if isinstance(result, DualTensor) else result
    return check_output(fn, output, x), products


def output_and_trace(
    fn: str,
    model: Model,
    x: Tensor,
    args: tuple[Any, ...] = (),
    *,
    chunk_size: int | None = None,
    closed: bool = False,
) -> tuple[Tensor, Tensor]:
    """``model(x, *args)`` and the exact trace of its Jacobian at each sample.

    In closed form where there is one (:mod:`fastscore.derivatives.closed_form`), else by tangents
    along the unit vectors (:func:`trace_by_unit_vectors`).

    Args:
        fn: the public function on whose behalf this is done, for messages.
        model: a module or function whose samples do not depend on one another.
        x: (batch, ...).
        args: passed on to the model.
        chunk_size: how many unit vectors one pass carries.
        closed: not to use unit vectors.

    Returns:
        The output, and the trace (batch,) in float32, float64 for a float64 output.

    Raises:
        ValueError, TypeError: an output that is not of x's shape; batch normalisation in training.
        NoClosedForm: with ``closed``, where there is none.
    """
    _refuse_mixed_samples(fn, model)
    kept = _running_statistics(model)
    try:
        with compiled_parts_run_eagerly():
            form = jacobian(model, x, *args)
    except NoClosedForm:
        _restore(kept)
        if closed:
            raise
        return trace_by_unit_vectors(fn, model, x, args, chunk_size=chunk_size)
    return check_output(fn, form.value, x), form.trace()


def trace_by_unit_vectors(
    fn: str,
    model: Model,
    x: Tensor,
    args: tuple[Any, ...] = (),
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`output_and_trace`, always as the sum of e_i' J e_i over the unit vectors e_i.

    The time grows with the number of dimensions d; the memory with ``chunk_size``, also while
    gradients are recorded, for the backward pass computes each chunk again.
    """
    _refuse_mixed_samples(fn, model)
    dimensions = math.prod(x.shape[1:])
    chunk = _chunk_size(fn, chunk_size, x, dimensions)

    def of_chunk(start: int) -> tuple[Tensor, Tensor]:
        indices = torch.arange(start, min(start + chunk, dimensions), device=x.device)
        vs = unit_vectors(x, indices)
        output, products = output_and_products(fn, model, x, vs, args)
        along = torch.arange(len(indices), device=x.device)
        diagonal = products.reshape(len(vs), len(x), dimensions)[along, :, indices]
        return output, diagonal.sum(0, dtype=sum_dtype(output.dtype))

    if dimensions == 0:
        output = check_output(fn, model(x, *args), x)
        return output, output.new_zeros(len(x), dtype=sum_dtype(output.dtype))
    output, trace = of_chunk(0)

    def of_another(start: int) -> Tensor:
        with same_statistics(model):  # which the first chunk has moved for this batch
            return of_chunk(start)[1]

    for start in range(chunk, dimensions, chunk):
        if torch.is_grad_enabled():
            part = checkpoint(of_another, start, use_reentrant=False)
        else:
            part = of_another(start)
        trace = trace + part
    return output, trace


@contextmanager
def untouched(model: Model, x: Tensor) -> Iterator[None]:
    """Leave the model's running statistics and the random number generators alone."""
    rewind = Rewind(model, x)
    try:
        yield
    finally:
        rewind()


@contextmanager
def same_statistics(model: Model) -> Iterator[None]:
    """Leave the running statistics of a model in training alone."""
    kept = _running_statistics(model)
    try:
        yield
    finally:  # a checkpoint's second run ends by an exception
        _restore(kept)


def _running_statistics(model: Model) -> list[tuple[Tensor, Tensor]]:
    """The buffers of a model in training, and their values."""
    if not isinstance(model, nn.Module) or not model.training:
        return []
    return [(buffer, buffer.clone()) for buffer in model.buffers()]


def _restore(kept: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in kept:
        buffer.data.copy_(value)  # unseen by autograd, as a layer's own update of it is


def unit_vectors(x: Tensor, indices: Tensor) -> Tensor:
    """The unit vectors e_i of the given dimensions at each sample: (len(indices), *x.shape)."""
    vs = x.new_zeros(len(indices), len(x), math.prod(x.shape[1:]))
    vs[torch.arange(len(indices), device=x.device), :, indices] = 1
    return vs.reshape(len(indices), *x.shape)


def _chunk_size(fn: str, chunk_size: int | None, x: Tensor, dimensions: int) -> int:
    if chunk_size is None:
        return max(1, min(dimensions, CHUNK_ELEMENTS // max(1, x.numel())))
    return check_int(fn, "chunk_size", chunk_size, minimum=1)
