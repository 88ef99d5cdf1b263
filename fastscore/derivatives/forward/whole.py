"""Jacobian-vector products of a whole model, for models that dual tensors can't pass through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fastscore._support.checks import fail_type
from fastscore._support.inference import recordable, recording
from fastscore._support.lending import lend
from fastscore._support.once import marked_once, only_once, refuse
from fastscore._support.reach import Statistics
from fastscore._support.tangents import refuse_tangents
from fastscore._support.terms import summed
from fastscore.derivatives.call import Call
from fastscore.derivatives.forward.elementary import ELEMENTARY
from fastscore.derivatives.forward.state import (
    Unsupported,
    custom_function,
    evaluate,
    has_wrong_tangents,
    model_is_without_gradients,
)
from fastscore.derivatives.forward.tensor import along_all
from fastscore.derivatives.forward.warned import warn_once


def whole_model(
    call: Call, x: Tensor, vs: Tensor, *, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """Output and tangents by torch.func.jvp or, where a function has no forward mode, by reverse
    mode: applied twice or, with ``transposed``, once for J'v in place of J v."""
    if not torch._C._are_functorch_transforms_active():
        refuse_tangents(call.fn, (x, vs))
    call = call._replace(model=partial(_to_third_order, call.fn, call.model))
    statistics = Statistics(call.model)
    try:
        return _forward(call, x, vs, statistics)
    except Exception:  # whatever a transform can't do; an error of the model's own comes again
        statistics.restore()
        return _reverse_once(call, x, vs) if transposed else _reverse_twice(call, x, vs)


def _to_third_order(fn: str, model: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    with differentiable_to_third_order():
        output = summed(model(*args, **kwargs))
    if not isinstance(output, Tensor):
        fail_type(fn, "model", "a function that returns a tensor", output)
    return output


def _forward(call: Call, x: Tensor, vs: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
    def guarded(point: Tensor) -> Tensor:
        with _WithoutConstants():
            return evaluate(call, lend(point))

    def along(v: Tensor) -> Any:
        output, tangent = torch.func.jvp(guarded, (x,), (v,))[:2]
        if tangent.shape != output.shape:  # as after some changes of a shape in place
            raise RuntimeError("torch.func.jvp has lost the tangent's shape")
        return output, tangent

    output, tangents = along_all(along, (vs,), statistics.restore)
    if torch.is_grad_enabled():
        return output, tangents
    return output.detach(), tangents.detach()  # the model itself has run with gradients on


class _WithoutConstants(TorchFunctionMode):
    """Stops where the model computes with gradients off.

    That is a constant to reverse mode, but torch.func.jvp goes on with its tangents.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if has_wrong_tangents(getattr(func, "__name__", ""), args, kwargs):
            raise Unsupported(func.__name__, "its tangents are wrong in PyTorch")
        if (
            model_is_without_gradients()
            and any(map(_has_tangent, tree_leaves((args, kwargs))))
            and custom_function() is None
        ):
            raise Unsupported(str(func), "gradients are off")
        return func(*args, **kwargs)


def _has_tangent(x: Any) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def _reverse_twice(call: Call, x: Tensor, vs: Tensor) -> tuple[Tensor, Tensor]:
    """J v as the derivative of u -> J' u, which is linear, along v."""
    record = torch.is_grad_enabled()
    with recording():
        x, vs = recordable(x), recordable(vs)
        point = x if x.requires_grad else x.detach().requires_grad_()
        output = call(point)
        if any(marked_once(output)):
            refuse(call.fn)
        u = torch.zeros_like(output, requires_grad=True)
        pulled = _gradient(output, point, u, create_graph=True)
        tangents = torch.stack([_gradient(pulled, u, v, create_graph=record) for v in vs])
    return (output, tangents) if record else (output.detach(), tangents.detach())


def _reverse_once(call: Call, x: Tensor, vs: Tensor) -> tuple[Tensor, Tensor]:
    """The output and J'v, where only v'(J'v) = v'(J v) is wanted."""
    record = torch.is_grad_enabled()
    with recording():
        x, vs = recordable(x), recordable(vs)
        point = x if record and x.requires_grad else x.detach().requires_grad_()
        output = call(point)
        if output.shape != x.shape:  # for the caller to refuse
            return output, torch.zeros_like(vs)
        once = marked_once(output)
        if once.derivatives:
            refuse(call.fn)
        vs = vs.to(output.dtype)
        products = torch.stack([_gradient(output, point, v, create_graph=record) for v in vs])
        if record and once.functions:
            products = only_once(products, output)
    return (output, products) if record else (output.detach(), products.detach())


def _gradient(output: Tensor, at: Tensor, along: Tensor, *, create_graph: bool) -> Tensor:
    """The vector-Jacobian product; 0 where the output does not depend on ``at``."""
    if not output.requires_grad:
        warn_of_no_graph()
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad(
        output, at, along, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    if gradient is None:
        warn_of_no_graph()
        return torch.zeros_like(at)
    return gradient


def warn_of_no_graph() -> None:
    """It may be a constant, or a model that left autograd's graph on its way."""
    message = "has no graph that leads to x (detached, or computed in NumPy or without gradients?)"
    warn_once("the model's output", f"{message}: its Jacobian is taken as 0")


@contextmanager
def differentiable_to_third_order() -> Iterator[None]:
    """Run a model on functions whose derivatives PyTorch has, and has right, to third order.

    That is the order which the gradients of a Jacobian-vector product by reverse mode need. In it,
    and in reverse mode over torch.func.jvp, PyTorch takes the statistics of its fused
    normalisation layers for constants; fused attention has no second derivatives.
    """
    with sdpa_kernel(SDPBackend.MATH), _Elementary():
        yield


class _Elementary(TorchFunctionMode):
    """Replaces the functions in ``_ELEMENTARY`` by compositions of simpler ones."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _ELEMENTARY.get(func, func)(*args, **(kwargs or {}))


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine(_standardised(input, dims, eps), weight, bias)


def _rms_norm(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    full = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    eps = torch.finfo(full.dtype).eps if eps is None else eps
    out = full * torch.rsqrt(full.square().mean(dims, keepdim=True) + eps)
    return _affine(out, weight, None).to(input.dtype)


def _channel_norm(
    original: Callable[..., Tensor], over_batch: tuple[int, ...]
) -> Callable[..., Tensor]:
    def norm(
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = not over_batch,
        momentum: float = 0.1,
        eps: float = 1e-5,
        *,
        training: bool = False,
    ) -> Tensor:
        from_input = use_input_stats or training
        if not from_input or running_mean is not None:
            state = (running_mean, running_var)
            out = original(input, *state, weight, bias, from_input, momentum, eps)
            if not from_input:  # an affine map
                return out
        shape = (-1, *(1,) * (input.dim() - 2))
        dims = (*over_batch, *range(2, input.dim()))
        weight, bias = (p if p is None else p.view(shape) for p in (weight, bias))
        return _affine(_standardised(input, dims, eps), weight, bias)

    return norm


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * torch.sigmoid(gate)


_ELEMENTARY: dict[Any, Callable[..., Any]] = {
    **ELEMENTARY,
    F.batch_norm: _channel_norm(F.batch_norm, over_batch=(0,)),
    F.glu: _glu,
    F.instance_norm: _channel_norm(F.instance_norm, over_batch=()),
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
}
