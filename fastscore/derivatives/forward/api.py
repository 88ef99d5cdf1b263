"""The public functions: a network's output and its Jacobian-vector products in one pass."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_device,
    check_floating,
    check_shape,
    check_tensor,
    fail,
    fail_type,
)
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.explain import explained
from fastscore._support.inference import recordable
from fastscore._support.reach import Statistics
from fastscore.derivatives.call import Call
from fastscore.derivatives.forward.forms import forms_of_layer, inner_products
from fastscore.derivatives.forward.state import Unsupported, evaluate
from fastscore.derivatives.forward.tensor import DualTensor, Run
from fastscore.derivatives.forward.warned import warn_once
from fastscore.derivatives.forward.whole import whole_model

Model = Callable[..., Tensor]
CHANNELS_LAST = torch.channels_last

# Models that some function has kept from running on dual tensors: not tried again.
_WHOLE: weakref.WeakSet[Any] = weakref.WeakSet()


def jvp(model: Model, x: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """``model(x)`` and its Jacobian-vector product ``J v``, in one forward pass.

    See :func:`jvps`, which takes many tangents at once, for what this works on and how.

    Args:
        model: a module or function, called ``model(x, *args, **kwargs)``, that returns a tensor.
        x: floating-point tensor of any shape.
        v: the tangent: x's shape, dtype and device.
        args, kwargs: passed on to the model, constant in the derivative.

    Returns:
        The output and the tangent, both of the output's shape.

    Raises:
        ValueError: v's shape, dtype or device is not x's; x is not of a floating-point dtype.
        TypeError: x or v is not a tensor, or the model returns something else.

    Example:
        >>> import torch
        >>> from fastscore.derivatives.forward import jvp
        >>> model = lambda x: x.square()
        >>> output, tangent = jvp(model, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 10.0]))
        >>> output.tolist(), tangent.tolist()
        ([1.0, 4.0], [2.0, 40.0])
    """
    _check_point("jvp", model, x)
    check_tensor("jvp", "v", v)
    check_shape("jvp", "v", v, x.shape, "x's shape")
    _check_like("jvp", "v", v, x)
    call = Call("jvp", model, args, kwargs)
    with explained("jvp", model, x, "none"):
        output, tangents = _split(dual_output(call, x, v.unsqueeze(0), lazy=False))
    return output, tangents.squeeze(0)


def jvps(model: Model, x: Tensor, vs: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """``model(x)`` and ``J v_1, ..., J v_M``, in one forward pass that computes the value once.

    The model is any module or function made of PyTorch operations, unchanged. It is called with a
    tensor that carries its tangents: linear layers and convolutions run once on value and tangents
    stacked along the batch, activations give value and tangents in one fused operation,
    normalisation layers share the value's statistics. Rules exist for linear, convolution,
    normalisation, pooling, activation, attention and embedding layers, dropout, arithmetic, matrix
    products, einsum, reductions, indexing and whatever rearranges a tensor, also where they work in
    place, under autocast and in training mode.

    A function without a rule goes through ``torch.func.jvp`` on its own. Where that is not
    possible (a custom ``autograd.Function``, a model that differentiates inside itself) the whole
    model does, and where ``torch.func.jvp`` fails on it or can't be trusted (TorchScript), reverse
    mode is applied twice. The result is the same; a ``UserWarning``, once in a process for each
    function, names it. What the model computes under ``torch.no_grad`` is a constant, as it is for
    reverse mode.

    Output and tangents are differentiable: reverse mode through them gives the gradients of the
    model's parameters, of x and of vs.

    Args:
        model: a module or function, called ``model(x, *args, **kwargs)``, that returns a tensor.
        x: floating-point tensor of any shape.
        vs: the tangents, shape ``(M, *x.shape)`` with M >= 1, of x's dtype and device.
        args, kwargs: passed on to the model, constant in the derivative.

    Returns:
        The output, and the tangents of shape ``(M, *output.shape)``.

    Raises:
        ValueError: vs is not of shape ``(M, *x.shape)``, or not of x's dtype or device; x is not
            of a floating-point dtype.
        TypeError: x or vs is not a tensor, or the model returns something else.
        RuntimeError: reverse mode can't be applied twice either: a function has no second
            derivative. (Of such a model :func:`quadratic_forms` takes one reverse pass.)

    Example:
        >>> import torch
        >>> from fastscore.derivatives.forward import jvps
        >>> _ = torch.manual_seed(0)
        >>> first, last = torch.nn.Linear(3, 8), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(first, torch.nn.SiLU(), last)
        >>> output, tangents = jvps(model, torch.randn(5, 3), torch.randn(4, 5, 3))
        >>> output.shape, tangents.shape
        (torch.Size([5, 3]), torch.Size([4, 5, 3]))
    """
    _check_tangents("jvps", model, x, vs)
    with explained("jvps", model, x, "none"):
        return _split(dual_output(Call("jvps", model, args, kwargs), x, vs, lazy=False))


def quadratic_forms(
    model: Model, x: Tensor, vs: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """``model(x)`` and ``v_m' J v_m`` of each sample and tangent, for sliced score matching.

    As :func:`jvps` followed by the inner product of ``J v_m`` and ``v_m``, but cheaper for a
    network that ends in a linear layer with weight W: from the tangents a of what enters that
    layer, v'Jv = (W'v)'a, so that the layer need not run on the tangents, nor its backward.

    Args:
        model: a module or function, called ``model(x, *args, **kwargs)``, that returns a tensor
            of x's shape.
        x: floating-point tensor ``(B, ...)``.
        vs: the tangents, shape ``(M, *x.shape)`` with M >= 1, of x's dtype and device.
        args, kwargs: passed on to the model, constant in the derivative.

    Returns:
        The output, and the forms of shape ``(M, B)``.

    Raises:
        ValueError: as :func:`jvps`, or the output's shape is not x's.
        TypeError: as :func:`jvps`.

    Example:
        >>> import torch
        >>> from fastscore.derivatives.forward import quadratic_forms
        >>> output, forms = quadratic_forms(lambda x: -3 * x, torch.ones(2, 4), torch.ones(1, 2, 4))
        >>> forms.tolist()
        [[-12.0, -12.0]]
    """
    fn = "quadratic_forms"
    _check_tangents(fn, model, x, vs)
    if x.dim() < 1:
        fail(fn, "x", "of shape (batch, ...)", f"shape {tuple(x.shape)}")
    with explained(fn, model, x, "none"):
        result = dual_output(Call(fn, model, args, kwargs), x, vs, lazy=True, transposed=True)
    deferred = result.deferred if isinstance(result, DualTensor) else None
    shape = result.shape if isinstance(result, DualTensor) else result[0].shape
    if shape != x.shape:
        fail(fn, "the model's output", f"of shape {tuple(x.shape)} (x's shape)", tuple(shape))
    if deferred is not None:
        return forms_of_layer(deferred, vs)
    output, tangents = _split(result)
    return output, inner_products(vs, tangents)


def _check_point(fn: str, model: Any, x: Any) -> None:
    if not callable(model):
        fail_type(fn, "model", "a module or function", model)
    if isinstance(x, DualTensor):
        fail_type(fn, "x", "a tensor without tangents (no jvp inside a jvp)", x)
    check_floating(fn, "x", x)


def _check_tangents(fn: str, model: Any, x: Any, vs: Any) -> None:
    _check_point(fn, model, x)
    check_tensor(fn, "vs", vs)
    if vs.dim() != x.dim() + 1 or vs.shape[1:] != x.shape or vs.shape[0] < 1:
        expected = f"of shape (M, {', '.join(map(str, x.shape))}) with M >= 1 (tangents of x)"
        fail(fn, "vs", expected, f"shape {tuple(vs.shape)}")
    _check_like(fn, "vs", vs, x)


def _check_like(fn: str, name: str, v: Tensor, x: Tensor) -> None:
    check_device(fn, name, v, x.device, "x's device")
    if v.dtype != x.dtype:
        fail(fn, name, f"of dtype {x.dtype} (x's dtype)", v.dtype)


def _split(result: DualTensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return result.parts() if isinstance(result, DualTensor) else result


def dual_output(
    call: Call, x: Tensor, vs: Tensor, *, lazy: bool, transposed: bool = False
) -> DualTensor | tuple[Tensor, Tensor]:
    """The model's output as a dual tensor; as value and tangents where it needed another way.

    With ``transposed`` these may be J'v in place of J v, where only v'J v is wanted.
    """
    if torch.is_inference_mode_enabled():  # where PyTorch 2.11's own forward mode has no tangents
        with torch.inference_mode(False), torch.no_grad():
            call, x, vs = call.recordable(), recordable(x), recordable(vs)
            return dual_output(call, x, vs, lazy=lazy, transposed=transposed)
    with compiled_parts_run_eagerly():
        if not _needs_another_way(call.model):
            statistics = Statistics(call.model)
            try:
                return on_dual_tensors(call, x, vs, lazy=lazy)
            except (Unsupported, RuntimeError) as error:
                reason = _unsupported(error)
                if reason is None:
                    raise
                statistics.restore()
                _remember(call.model)
                message = f"can't be given tangents ({reason}); the whole model goes another way"
                warn_once(reason.function, message)
        return whole_model(call, x, vs, transposed=transposed)


def _unsupported(error: Exception) -> Unsupported | None:
    """What keeps a model from dual tensors: a function, or the layout of a sparse tensor."""
    if isinstance(error, Unsupported):
        return error
    return Unsupported("a product", "of a sparse tensor") if "parse" in str(error) else None


def on_dual_tensors(
    call: Call, x: Tensor, vs: Tensor, *, lazy: bool
) -> DualTensor | tuple[Tensor, Tensor]:
    """The model's output as a dual tensor; as value and zeros where it is a constant."""
    run = Run(vs.shape[0], lazy=lazy, given=tuple(call[1:]))
    output = evaluate(call, DualTensor(_stack(x, vs), run))
    if not isinstance(output, Tensor):
        fail_type(call.fn, "model", "a function that returns a tensor", output)
    if isinstance(output, DualTensor):
        return output
    if run.detached:
        raise Unsupported("detach", "it takes the output away from its tangents")
    return output, output.new_zeros((vs.shape[0], *output.shape))  # constant in x


def _stack(x: Tensor, vs: Tensor) -> Tensor:
    """``(1 + M, *x.shape)``, in x's memory format where that is channels_last."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=CHANNELS_LAST):
        merged = torch.cat([x, vs.flatten(0, 1)]).contiguous(memory_format=CHANNELS_LAST)
        return merged.unflatten(0, (1 + vs.shape[0], x.shape[0]))
    return torch.cat([x.unsqueeze(0), vs])


def _needs_another_way(model: Model) -> bool:
    try:
        return model in _WHOLE
    except TypeError:  # a callable that can't be hashed
        return False


def _remember(model: Model) -> None:
    with contextlib.suppress(TypeError):  # a callable that can't be hashed or referred to weakly
        _WHOLE.add(model)
