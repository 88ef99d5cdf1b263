r"""The trace of a network's Jacobian in closed form, from the weights and the activations' slopes.

The Jacobian of a multilayer perceptron s(x) = W_n phi(... phi(W_1 x + b_1) ...) + b_n is, at every
sample, a product of weights, the same for all samples, and of diagonal matrices D_k = diag(d_k) of
the activations' slopes. With one or two of these its trace needs no loop over dimensions:

    s = W_2 phi(h_1)    tr J = tr(W_2 D_1 W_1)         = diag(W_1 W_2)' d_1
    s = W_3 phi(h_2)    tr J = tr(W_3 D_2 W_2 D_1 W_1) = d_2' (W_2 o (W_1 W_3)') d_1

where o is the elementwise product. The product W_1 W_3 is taken once for the whole batch, so that a
sample costs no more than one more pass through the layer W_2.

A :class:`JacobianTensor` runs through the unchanged model and writes the Jacobian down as a sum of
such products. Noise levels that come in as constants, scalings by them, skip connections and gates
need nothing special; what is not of this form raises :class:`NoClosedForm`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore._support.inference import recordable
from fastscore.derivatives.call import Call
from fastscore.derivatives.forward.state import (
    Unsupported,
    evaluate,
    in_callers_mode,
    model_is_without_gradients,
)
from fastscore.derivatives.forward.tensor import DualTensor, Run, find
from fastscore.ops import dual_slope

MAX_DIAGONALS = 2  # in a product whose trace has a closed form
MAX_TERMS = 16  # every residual block doubles their number


class NoClosedForm(Exception):
    """The Jacobian is not a short sum of products with at most two diagonal matrices."""


class Matrix(NamedTuple):
    """The weight (out, in) of a linear layer: one for all samples."""

    weight: Tensor


class Diagonal(NamedTuple):
    """A diagonal matrix for each sample: its entries (batch, n), or (1, n) for all samples."""

    entries: Tensor


class Rows(NamedTuple):
    """Places a vector into a longer one that is constant elsewhere, from row ``start`` on."""

    start: int
    stop: int


Factor = Matrix | Diagonal | Rows


class Term(NamedTuple):
    """The product ``scale * F_k ... F_1``; the factor that is applied first comes first."""

    factors: tuple[Factor, ...] = ()
    scale: Tensor | float = 1.0  # a number, or one for each sample: (batch, 1)

    def then(self, factor: Factor) -> Term:
        """``factor`` applied after this; neighbours that make one factor become one."""
        if not self.factors:
            return Term((factor,), self.scale)
        before, last = Term(self.factors[:-1], self.scale), self.factors[-1]
        if isinstance(last, Rows):
            if isinstance(factor, Matrix):
                return before.then(Matrix(factor.weight[:, last.start : last.stop]))
            if isinstance(factor, Diagonal):
                return before.then(Diagonal(factor.entries[:, last.start : last.stop])).then(last)
            return before.then(Rows(factor.start + last.start, factor.start + last.stop))
        if isinstance(factor, Diagonal) and isinstance(last, Diagonal):
            return before.then(Diagonal(last.entries * factor.entries))
        if isinstance(factor, Diagonal) and isinstance(last, Matrix) and len(factor.entries) == 1:
            return before.then(Matrix(last.weight * factor.entries.mT))
        if isinstance(factor, Matrix) and isinstance(last, Diagonal) and len(last.entries) == 1:
            return before.then(Matrix(factor.weight * last.entries))
        factors = (*self.factors, factor)
        # Under the trace the last factor and the first are neighbours too and may become one.
        if sum(isinstance(f, Diagonal) for f in factors) > MAX_DIAGONALS + 1:
            raise NoClosedForm(f"more than {MAX_DIAGONALS} layers of activations")
        return Term(factors, self.scale)

    def times(self, scale: Tensor | float) -> Term:
        return Term(self.factors, self.scale * scale)


class Jacobian(NamedTuple):
    """A model's output (batch, ...) and its Jacobian, as a sum of terms."""

    value: Tensor
    terms: tuple[Term, ...]

    def trace(self) -> Tensor:
        """tr J of each sample, (batch,): float32, or float64 for a float64 output."""
        size = math.prod(self.value.shape[1:])
        dtype = torch.promote_types(self.value.dtype, torch.float32)
        trace = torch.zeros(len(self.value), dtype=dtype, device=self.value.device)
        with torch.autocast(self.value.device.type, enabled=False):
            for term in self.terms:
                trace = trace + _trace(term, size, dtype)
        return trace

    def training_cost(self) -> int:
        """Multiply-adds that the trace and its gradient add to those of the model."""
        cycles = (_cycle(term.factors) for term in self.terms)
        return 3 * sum(_cost(cycle, len(self.value)) for cycle in cycles)

    def projection_cost(self) -> int:
        """Multiply-adds that one tangent and its gradient add, for comparison."""
        factors = (factor for term in self.terms for factor in term.factors)
        weights = {id(f.weight): f.weight.numel() for f in factors if isinstance(f, Matrix)}
        return 3 * sum(weights.values()) * len(self.value)


def jacobian(model: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Jacobian:
    """``model(x, *args, **kwargs)`` and its Jacobian with respect to ``x``, written down.

    Args:
        model: a module or function of samples that do not depend on one another.
        x: (batch, ...), of a floating-point dtype.
        args, kwargs: passed on to the model, constant in the derivative.

    Raises:
        NoClosedForm: the model calls a function without a rule here, or passes through too many
            activations or branches.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> first, last = torch.nn.Linear(3, 8), torch.nn.Linear(8, 3)
        >>> model, x = torch.nn.Sequential(first, torch.nn.Tanh(), last), torch.randn(2, 3)
        >>> exact = torch.stack([torch.func.jacrev(model)(row).trace() for row in x])
        >>> bool(torch.allclose(jacobian(model, x).trace(), exact))
        True
    """
    if torch.is_inference_mode_enabled():  # where PyTorch 2.11's own forward mode has no tangents
        with torch.inference_mode(False), torch.no_grad():
            return jacobian(model, recordable(x), *map(recordable, args), **kwargs)
    try:
        output: Any = evaluate(Call("jacobian", model, args, kwargs), JacobianTensor(x, (Term(),)))
    except Unsupported as error:
        raise NoClosedForm(str(error)) from error
    if not isinstance(output, JacobianTensor):
        raise NoClosedForm("an output that has lost its Jacobian")
    for term in output.terms:
        if term.factors and isinstance(term.factors[-1], Rows):
            raise NoClosedForm("cat in the output")
        _cycle(term.factors)  # raises where there are too many diagonals
    return Jacobian(output.value, output.terms)


# ---- traces ------------------------------------------------------------------------------------


class Cycle(NamedTuple):
    """A product under the trace, tr(D_n M_n ... D_1 M_1), M_k being the chain before D_k.

    Without a diagonal there is one chain.
    """

    diagonals: list[Tensor]
    chains: list[list[Tensor]]


def _cycle(factors: tuple[Any, ...]) -> Cycle:
    """The factors turned so that a diagonal comes last, neighbouring diagonals made one."""
    where = [i for i, factor in enumerate(factors) if isinstance(factor, Diagonal)]
    if not where:
        return Cycle([], [[factor.weight for factor in factors]])
    diagonals: list[Tensor] = []
    chains: list[list[Tensor]] = []
    chain: list[Tensor] = []
    for factor in (*factors[where[-1] + 1 :], *factors[: where[-1] + 1]):
        if isinstance(factor, Matrix):
            chain.append(factor.weight)
        elif chain or not diagonals:
            diagonals.append(factor.entries)
            chains.append(chain)
            chain = []
        else:
            diagonals[-1] = diagonals[-1] * factor.entries
    if len(diagonals) > 1 and not chains[0]:  # nothing between the last diagonal and the first
        diagonals[-1] = diagonals[-1] * diagonals.pop(0)
        chains.pop(0)
    if len(diagonals) > MAX_DIAGONALS:
        raise NoClosedForm(f"more than {MAX_DIAGONALS} layers of activations")
    return Cycle(diagonals, chains)


def _product(chain: list[Tensor]) -> Tensor:
    """``W_k ... W_1`` of the chain W_1, ..., W_k."""
    product, *rest = chain
    for weight in rest:
        product = weight @ product
    return product


def _diagonal(chain: list[Tensor]) -> Tensor:
    """The diagonal of ``W_k ... W_1``; the last product is not taken in full."""
    if len(chain) == 1:
        return chain[0].diagonal()
    return (chain[-1] * _product(chain[:-1]).mT).sum(dim=1)


def _trace(term: Term, size: int, dtype: torch.dtype) -> Tensor | float:
    """The trace of a term, of each sample or the same for all; ``size`` is the identity's."""
    diagonals, chains = _cycle(term.factors)
    diagonals = [d.to(dtype) for d in diagonals]
    chains = [[weight.to(dtype) for weight in chain] for chain in chains]
    trace: Tensor | float
    if not diagonals:
        trace = _diagonal(chains[0]).sum() if chains[0] else size
    elif len(diagonals) == 1:
        (d,), (chain,) = diagonals, chains
        trace = d @ _diagonal(chain) if chain else d.sum(dim=1)
    else:
        (d1, d2), (chain1, chain2) = diagonals, chains
        m2 = _product(chain2)
        m1_transposed = _product([weight.mT for weight in reversed(chain1)])
        trace = (d2 * F.linear(d1, m2 * m1_transposed)).sum(dim=1)  # d_2' (M_2 o M_1') d_1
    scale = term.scale
    return trace * (scale.squeeze(1).to(dtype) if isinstance(scale, Tensor) else scale)


def _cost(cycle: Cycle, batch: int) -> int:
    """Multiply-adds of the matrix products in the trace of one term."""
    if len(cycle.diagonals) < MAX_DIAGONALS:
        return 0
    products = 0
    for first, *rest in cycle.chains:
        products += sum(weight.numel() * first.shape[1] for weight in rest)
    return products + batch * cycle.diagonals[0].shape[1] * cycle.diagonals[1].shape[1]


# ---- the tensor that carries its Jacobian ------------------------------------------------------


class JacobianTensor(torch.Tensor):
    """A value with its Jacobian with respect to a model's input, as a sum of terms."""

    value: Tensor
    terms: tuple[Term, ...]
    shared: bool  # whether another tensor shows the same value

    @staticmethod
    def __new__(cls, value: Tensor, terms: Iterable[Term]) -> JacobianTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, value.shape, dtype=value.dtype, device=value.device
        )

    def __init__(self, value: Tensor, terms: Iterable[Term]) -> None:
        self.value = value
        self.terms = tuple(terms)
        self.shared = False
        if len(self.terms) > MAX_TERMS:
            raise NoClosedForm(f"more than {MAX_TERMS} terms")

    def then(self, factor: Factor) -> list[Term]:
        return [term.then(factor) for term in self.terms]

    def times(self, scale: Any) -> list[Term]:
        """The terms multiplied by a constant that broadcasts to the value."""
        if not isinstance(scale, Tensor):
            return [term.times(scale) for term in self.terms]
        if torch.broadcast_shapes(scale.shape, self.value.shape) != self.value.shape:
            raise NoClosedForm("a product that broadcasts")
        aligned = scale.reshape((1,) * (self.value.dim() - scale.dim()) + scale.shape)
        if math.prod(aligned.shape[1:]) == 1:
            return [term.times(aligned.reshape(-1, 1)) for term in self.terms]
        shape = (len(aligned), *self.value.shape[1:])
        return self.then(Diagonal(aligned.expand(shape).flatten(1)))

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name, _ = find(func)
        if name in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if model_is_without_gradients():  # a custom function, or a constant
            raise NoClosedForm(f"{name} with gradients off")
        rule = _RULES.get(name)
        if rule is None:
            raise NoClosedForm(name)
        try:
            return in_callers_mode(rule, func, *args, **(kwargs or {}))
        except TypeError as error:
            try:
                inspect.signature(rule).bind(func, *args, **(kwargs or {}))
            except TypeError:  # an option that the rule does not know
                raise NoClosedForm(f"{name} with these options") from error
            raise

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        raise NoClosedForm(str(func))


_METADATA = set(
    """size dim ndimension numel nelement is_floating_point is_complex get_device __len__ is_tensor
    .shape .dtype .device .ndim .is_cuda .layout .itemsize""".split()  # noqa: SIM905
)
_RULES: dict[str, Callable[..., Any]] = {}


def _rule(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of (func, *args, **kwargs) for the functions named."""

    def register(f: Callable[..., Any]) -> Callable[..., Any]:
        _RULES.update(dict.fromkeys(names.split(), f))
        return f

    return register


@_rule("linear")
def _linear(func: Any, input: Any, weight: Tensor, bias: Tensor | None = None) -> JacobianTensor:
    if not isinstance(input, JacobianTensor) or input.value.dim() != 2 or weight.dim() != 2:
        raise NoClosedForm("linear")
    return JacobianTensor(F.linear(input.value, weight, bias), input.then(Matrix(weight)))


def _activation(name: str, *parameters: str) -> None:
    """The rule of an activation whose parameters follow its input in this order."""

    @_rule(name)
    def rule(func: Any, input: JacobianTensor, *args: Any, **kwargs: Any) -> JacobianTensor:
        params = dict(zip((*parameters, "inplace"), args, strict=False)) | kwargs
        inplace = params.pop("inplace", False)
        h = input.value
        value, slope = dual_slope(h, name, **params)
        terms = input.then(Diagonal(slope.flatten(1)))
        if not inplace:
            return JacobianTensor(value, terms)
        if input.shared:
            raise NoClosedForm(f"{name} in place of a tensor that is seen elsewhere")
        input.value, input.terms = value, tuple(terms)
        return input


_activation("softplus", "beta", "threshold")
_activation("elu", "alpha")
_activation("leaky_relu", "negative_slope")
for _name in ("silu", "tanh", "sigmoid", "relu", "gelu"):
    _activation(_name)


@_rule(
    """arctan asinh atan celu cos erf exp expm1 hardtanh log1p log_sigmoid logsigmoid mish pow
    __pow__ reciprocal relu6 rsqrt selu sin sinh softsign sqrt square tanhshrink"""
)
def _elementwise(func: Any, input: Any, *args: Any, **kwargs: Any) -> JacobianTensor:
    """Any other function of one tensor: the slope is a tangent along ones."""
    if not isinstance(input, JacobianTensor) or kwargs.get("inplace"):
        raise NoClosedForm(func.__name__)
    h = input.value
    result = func(DualTensor(torch.stack([h, torch.ones_like(h)]), Run(1)), *args, **kwargs)
    value, slope = result.parts()
    return JacobianTensor(value, input.then(Diagonal(slope.squeeze(0).flatten(1))))


@_rule("add __add__ __radd__")
def _add(func: Any, input: Any, other: Any, *, alpha: float = 1) -> JacobianTensor:
    if alpha != 1:
        other = other * alpha
    if not isinstance(input, JacobianTensor):
        input, other = other, input
    if isinstance(other, JacobianTensor):
        _check_shapes(input.value, other.value, input.value.shape)
        return JacobianTensor(input.value + other.value, input.terms + other.terms)
    value = input.value + other
    _check_shapes(value, input.value, value.shape)
    return JacobianTensor(value, input.terms)


@_rule("sub subtract __sub__")
def _sub(func: Any, input: Any, other: Any, *, alpha: float = 1) -> JacobianTensor:
    return _add(func, input, other * -alpha)


@_rule("rsub __rsub__")
def _rsub(func: Any, input: Any, other: Any, *, alpha: float = 1) -> JacobianTensor:
    return _add(func, input * -alpha, other)


@_rule("mul multiply __mul__ __rmul__")
def _mul(func: Any, input: Any, other: Any) -> JacobianTensor:
    if not isinstance(input, JacobianTensor):
        input, other = other, input
    if not isinstance(other, JacobianTensor):
        return JacobianTensor(input.value * other, input.times(other))
    _check_shapes(input.value, other.value, input.value.shape)
    terms = [*input.times(other.value), *other.times(input.value)]
    return JacobianTensor(input.value * other.value, terms)


@_rule("div divide true_divide __truediv__ __div__")
def _div(func: Any, input: Any, other: Any) -> JacobianTensor:
    if isinstance(other, JacobianTensor):
        raise NoClosedForm("division by a function of x")
    return JacobianTensor(input.value / other, input.times(1 / other))


@_rule("neg negative __neg__")
def _neg(func: Any, input: JacobianTensor) -> JacobianTensor:
    return JacobianTensor(-input.value, input.times(-1.0))


@_rule("cat concat concatenate")
def _cat(func: Any, tensors: Any, dim: int = 0, *, axis: int | None = None) -> JacobianTensor:
    if any(t.dim() != 2 for t in tensors) or (dim if axis is None else axis) not in (1, -1):
        raise NoClosedForm("cat")
    terms: list[Term] = []
    start = 0
    for tensor in tensors:
        stop = start + tensor.shape[1]
        if isinstance(tensor, JacobianTensor):
            terms += tensor.then(Rows(start, stop))
        start = stop
    values = [t.value if isinstance(t, JacobianTensor) else t for t in tensors]
    return JacobianTensor(torch.cat(values, dim=1), terms)


@_rule("reshape view flatten unflatten")
def _reshape(func: Any, input: JacobianTensor, *args: Any, **kwargs: Any) -> JacobianTensor:
    value = func(input.value, *args, **kwargs)
    if value.shape[:1] != input.value.shape[:1]:
        raise NoClosedForm("a new shape of the batch")
    result = JacobianTensor(value, input.terms)
    input.shared = result.shared = True
    return result


@_rule("clone _lazy_clone contiguous to float double type_as")
def _copy(func: Any, input: JacobianTensor, *args: Any, **kwargs: Any) -> JacobianTensor:
    if "clone" in func.__name__:  # nobody writes to the value itself
        return JacobianTensor(input.value, input.terms)
    value = func(input.value, *args, **kwargs)
    if not value.is_floating_point():
        raise NoClosedForm("numbers that are rounded to integers")
    return input if value is input.value else JacobianTensor(value, input.terms)


@_rule("dropout alpha_dropout feature_dropout")
def _dropout(
    func: Any, input: JacobianTensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> JacobianTensor:
    if training and p > 0:
        raise NoClosedForm(func.__name__)
    return input


def _check_shapes(a: Tensor, b: Tensor, shape: torch.Size) -> None:
    if not a.shape == b.shape == shape:
        raise NoClosedForm("a sum or product that broadcasts")
