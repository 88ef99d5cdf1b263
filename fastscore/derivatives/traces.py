"""Exact traces of Jacobians, and the checks and small sums that every use of them shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastscore._support.checks import check_int, check_output
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.inference import is_captured, recordable, recording
from fastscore._support.known import known_of
from fastscore._support.once import marked_once, only_once, refuse
from fastscore._support.reach import Statistics, modules_of, same_statistics
from fastscore._support.rewind import Rewind
from fastscore._support.sums import tree_sum
from fastscore._support.tangents import refuse_tangents
from fastscore._support.warn import warn_caller
from fastscore.derivatives.call import Call
from fastscore.derivatives.closed_form import NoClosedForm, jacobian
from fastscore.derivatives.forward.api import dual_output
from fastscore.derivatives.forward.tensor import DualTensor
from fastscore.derivatives.forward.whole import differentiable_to_third_order, warn_of_no_graph
from fastscore.derivatives.known import Keeping, known_divergence
from fastscore.derivatives.mixing import SampleSigns, refuse_mixed_samples
from fastscore.ops._library import sum_dtype

Model = Callable[..., Tensor]

# Elements of the tangents that one pass carries, where the caller does not say.
CHUNK_ELEMENTS = 2**21

# Fewer products than these may all be 0 by chance, along directions in which an energy is straight.
FEWEST_PRODUCTS = 8


def sum_over_sample(x: Tensor, batch_dims: int = 1) -> Tensor:
    """The sum over all dimensions but the first ``batch_dims``."""
    return x.flatten(batch_dims).sum(-1) if x.dim() > batch_dims else x


def has_energy(model: Model) -> bool:
    """Whether the model differentiates an energy: tangents of that need another way."""
    return any(getattr(m, "differentiates_energy", False) for m in modules_of(model))


def warn_of_flat_energy(call: Call, score: Tensor, products: Tensor) -> None:
    """Say that an energy's second derivatives, the ``products``, are 0 where its score is not.

    Those of a network of ReLUs are, and score matching does not see its kinks. Looked at once for
    each model, since on a GPU the host waits.
    """
    if not call.of_loss or not has_energy(call.model) or torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active() or is_captured(score):
        return
    known = known_of(call.model)
    if "curved" in known or products.shape[:2].numel() < FEWEST_PRODUCTS:
        return
    if not bool(score.detach().any()):
        return
    known["curved"] = bool(products.detach().any())
    if not known["curved"]:
        warn_caller(
            f"{call.fn}: the energy's second derivatives are 0 at all samples of this batch. Where "
            "they are 0 everywhere, as those of a network of ReLUs, score matching can't train it: "
            "take a smooth activation (SiLU, softplus, tanh).",
            UserWarning,
        )


def output_and_pullback(call: Call, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The model's output, and the function that takes v to J'v by reverse-mode differentiation."""
    if torch._C._are_functorch_transforms_active():
        return _output_and_functional_pullback(call, x)
    refuse_tangents(call.fn, (x,))
    record = torch.is_grad_enabled()
    # Compiled code has no second derivatives.
    with recording(), differentiable_to_third_order(), compiled_parts_run_eagerly():
        x, call = recordable(x), call.recordable()
        # The caller's own tensor only where its graph has to go on through it.
        point = x if record and x.requires_grad else x.detach().requires_grad_()
        output = call.output(point)
    once = marked_once(output)
    if once.derivatives:
        refuse(call.fn)

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
        return only_once(product, output) if record and once.functions else product

    return (output if record else output.detach()), pullback


def output_and_products_alone(call: Call, x: Tensor, vs: Tensor) -> tuple[Tensor, Tensor]:
    """The model's output and ``J'v`` of each v, (M, *x.shape), with no graph.

    That takes first derivatives alone, which fused attention and compiled code have, too. Of an
    energy, or another model that differentiates inside, it is the second.
    """
    if not has_energy(call.model) and not torch._C._are_functorch_transforms_active():
        kept = Statistics(call.model)
        try:
            return _products_of_first_order(call, x, vs)
        except RuntimeError:  # no second derivative; an error of the model's own comes again
            kept.restore()
    with torch.no_grad():
        output, pullback = output_and_pullback(call, x)
        return output, torch.stack([pullback(v) for v in vs])


def _products_of_first_order(call: Call, x: Tensor, vs: Tensor) -> tuple[Tensor, Tensor]:
    refuse_tangents(call.fn, (x,))
    with recording():
        point, call = recordable(x).detach().requires_grad_(), call.recordable()
        output = call.output(point)
        if not output.requires_grad:
            warn_of_no_graph()
            return output, torch.zeros_like(vs)
        products = []
        for i, v in enumerate(vs, 1):
            (product,) = torch.autograd.grad(
                output,
                point,
                recordable(v.to(output.dtype)),
                retain_graph=i < len(vs),
                allow_unused=True,
            )
            if product is None:
                warn_of_no_graph()
                product = torch.zeros_like(point)
            products.append(product)
    return output.detach(), torch.stack(products)


def _output_and_functional_pullback(
    call: Call, x: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The same by torch.func, where autograd.grad can't be used."""

    def evaluate(point: Tensor) -> Tensor:
        with differentiable_to_third_order():
            return call.output(point)

    result: Any = torch.func.vjp(evaluate, x)
    output, pullback = result
    return output, lambda v: pullback(v.to(output.dtype))[0]


def output_and_products(call: Call, x: Tensor, vs: Tensor) -> tuple[Tensor, Tensor]:
    """The model's output and ``J v`` of each v, (M, *x.shape), or ``J'v``.

    Their inner products with v are the same. J'v is cheaper of an energy, and the last way out.
    """
    if has_energy(call.model):
        output, pullback = output_and_pullback(call, x)
        products = torch.stack([pullback(v) for v in vs])
        warn_of_flat_energy(call, output, products)
        return output, products
    result = dual_output(call, x, vs, lazy=False, transposed=True)
    output, products = result.parts() if isinstance(result, DualTensor) else result
    return check_output(call.fn, output, x), products


def output_and_trace(
    call: Call, x: Tensor, *, chunk_size: int | None = None, closed: bool = False
) -> tuple[Tensor, Tensor]:
    """The model's output and the exact trace of its Jacobian at each sample.

    Of a model that knows its own (:mod:`fastscore.derivatives.known`), what that says; in closed
    form where there is one (:mod:`fastscore.derivatives.closed_form`); else by tangents along the
    unit vectors (:func:`trace_by_unit_vectors`).

    Args:
        call: of a model whose samples do not depend on one another.
        x: (batch, ...).
        chunk_size: how many unit vectors one pass carries.
        closed: not to use unit vectors.

    Returns:
        The output, and the trace (batch,) in float32, float64 for a float64 output.

    Raises:
        ValueError, TypeError: an output that is not of x's shape; samples that depend on one
            another (:class:`fastscore.derivatives.mixing.MixedSamples`).
        NoClosedForm: with ``closed``, where there is none.
    """
    if (method := known_divergence(call.model)) is not None:
        keeping = Keeping(method)
        output = call._replace(model=keeping).output(x)
        trace = keeping.checked(call.fn, x).to(sum_dtype(output.dtype))
        # Its gradient is taken on trust, not that it has none.
        if trace.requires_grad or not (torch.is_grad_enabled() and output.requires_grad):
            return output, trace
    refuse_mixed_samples(call.fn, call.model)
    kept = Statistics(call.model)
    try:
        with compiled_parts_run_eagerly():
            form = jacobian(call.model, x, *call.args, **call.kwargs)
    except NoClosedForm:
        kept.restore()
        if closed:
            raise
        return trace_by_unit_vectors(call, x, chunk_size=chunk_size)
    return check_output(call.fn, form.value, x), form.trace()


def trace_by_unit_vectors(
    call: Call, x: Tensor, *, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`output_and_trace`, always as the sum of e_i' J e_i over the unit vectors e_i.

    The time grows with the number of dimensions d; the memory with ``chunk_size``, also while
    gradients are recorded, for the backward pass computes each chunk again. The terms are added in
    float64, in an order that hangs on d alone: what a sample gets does not hang on the batch that
    it is in, nor on the chunks, as far as its derivatives don't.
    """
    refuse_mixed_samples(call.fn, call.model)
    dimensions = math.prod(x.shape[1:])
    chunk = _chunk_size(call.fn, chunk_size, x, dimensions)
    if dimensions == 0:
        output = call.output(x)
        return output, output.new_zeros(len(x), dtype=sum_dtype(output.dtype))
    signs = SampleSigns.of(call.model, x)
    rewind = Rewind(call.model, x) if signs.checked else None

    def of_chunk(start: int) -> tuple[Tensor, Tensor]:
        indices = torch.arange(start, min(start + chunk, dimensions), device=x.device)
        vs = signs.applied_to(unit_vectors(x, indices))
        if start == 0:
            vs = signs.with_probes(vs, dimensions)
        output, products = output_and_products(call, x, vs)
        if start == 0 and signs.depend_on_one_another(products, len(indices)):
            if rewind is not None:
                rewind()
            refuse_mixed_samples(call.fn, call.model, found=True)
        along = torch.arange(len(indices), device=x.device)
        diagonal = products[: len(indices)].reshape(len(indices), len(x), dimensions)
        return output, signs.applied_to(diagonal[along, :, indices])

    output, diagonal = of_chunk(0)
    parts = [diagonal]

    def of_another(start: int) -> Tensor:
        with same_statistics(call.model):  # which the first chunk has moved for this batch
            return of_chunk(start)[1]

    for start in range(chunk, dimensions, chunk):
        if torch.is_grad_enabled():
            parts.append(checkpoint(of_another, start, use_reentrant=False))
        else:
            parts.append(of_another(start))
    trace = tree_sum(torch.cat(parts).double(), 0)
    return output, (trace + 0.0).to(sum_dtype(output.dtype))  # a sample's sign leaves no -0


def unit_vectors(x: Tensor, indices: Tensor) -> Tensor:
    """The unit vectors e_i of the given dimensions at each sample: (len(indices), *x.shape)."""
    # Compared, not written to places: x may be a batch of torch.func's, and then so is x.new_zeros.
    places = torch.arange(math.prod(x.shape[1:]), device=x.device)
    vs = (indices[:, None, None] == places).to(x.dtype)
    return vs.expand(-1, len(x), -1).reshape(len(indices), *x.shape).contiguous()


def _chunk_size(fn: str, chunk_size: int | None, x: Tensor, dimensions: int) -> int:
    if chunk_size is None:
        return max(1, min(dimensions, CHUNK_ELEMENTS // max(1, x.numel())))
    return check_int(fn, "chunk_size", chunk_size, minimum=1)
