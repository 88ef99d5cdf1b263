"""Quadratic forms v'Jv from the tangents of a network's output or, cheaper, of its last layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.derivatives.forward.linear import DeferredLinear
from fastscore.derivatives.forward.tensor import Deferred
from fastscore.ops._library import Differentiable


def _over_samples(values: Tensor, like: Tensor) -> Tensor:
    """``(M, B)``, shaped to broadcast against ``like`` of shape ``(M, B, ...)``."""
    return values[(..., *(None,) * (like.dim() - 2))]


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of ``(M, B, ...)`` over all dimensions but two."""
    return (a * b).sum(tuple(range(2, a.dim()))) if a.dim() > 2 else a * b


class InnerProducts(Differentiable):
    """:func:`_products` with nothing kept but its arguments."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _products(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        grad = _over_samples(grad, a)
        needs_a, needs_b = ctx.needs_input_grad
        return grad * b if needs_a else None, grad * a if needs_b else None


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of ``(M, B, ...)`` over all dimensions but two: ``(M, B)``."""
    return InnerProducts.run("quadratic_forms", a, b)


class FormsOfLayer(Differentiable):
    """A linear layer's value, and v'Wa = (W'v)'a for the tangents a of what enters it.

    The layer's input comes stacked and so does its gradient, with no copy between. The pulled-back
    vectors W'v are an output only so that the backward finds them again.
    """

    @staticmethod
    def forward(
        stacked: Tensor, weight: Tensor, bias: Tensor | None, vs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        pulled = torch.matmul(vs, weight)
        return F.linear(stacked[0], weight, bias), _products(pulled, stacked[1:]), pulled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        stacked, weight, bias, vs = inputs
        pulled = output[2]
        ctx.mark_non_differentiable(pulled)
        ctx.has_bias = bias is not None
        ctx.save_for_backward(stacked, weight, vs, pulled)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, grad_forms: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        stacked, weight, vs, pulled = ctx.saved_tensors
        value, tangents = stacked[0], stacked[1:]
        grad_forms = _over_samples(grad_forms, vs)
        needs_stacked, needs_weight, _, needs_vs = ctx.needs_input_grad
        stacked_grad = weight_grad = bias_grad = vs_grad = None
        if needs_stacked and torch.is_grad_enabled():
            pulled = torch.matmul(vs, weight)  # with its graph, for a second derivative
            stacked_grad = torch.cat([(grad @ weight).unsqueeze(0), pulled * grad_forms])
        elif needs_stacked:
            stacked_grad = torch.empty_like(stacked)
            torch.matmul(grad, weight, out=stacked_grad[0])
            torch.mul(pulled, grad_forms, out=stacked_grad[1:])
        if needs_weight:
            weight_grad = torch.addmm(
                _rows(grad).mT @ _rows(value), _rows(vs * grad_forms).mT, _rows(tangents)
            )
        if ctx.has_bias:
            bias_grad = _rows(grad).sum(0)
        if needs_vs:
            vs_grad = grad_forms * F.linear(tangents, weight)
        return stacked_grad, weight_grad, bias_grad, vs_grad


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2)


def forms_of_layer(layer: Deferred, vs: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's value and the forms of ``vs`` (M, B, ...) with its tangents."""
    assert isinstance(layer, DeferredLinear)
    with torch.set_grad_enabled(layer.record and torch.is_grad_enabled()):
        output, forms, _ = FormsOfLayer.run(
            "quadratic_forms", layer.stacked, layer.weight, layer.bias, layer.finish(vs)
        )
        return layer.finish(output), forms
