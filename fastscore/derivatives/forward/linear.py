"""Rules of linear and multilinear functions: layers, convolutions, matrix products, einsum.

A linear layer runs once on the stacked value and tangents. Its bias, which has no derivative, is
then added in place to the value alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.derivatives.forward.plain import check_as_plain, value_of
from fastscore.derivatives.forward.tensor import (
    DualTensor,
    Run,
    by_forward_ad,
    is_dual,
    join,
    rule,
    rules,
)
from fastscore.ops._library import Differentiable


class AddToValue(Differentiable):
    """Add a number or broadcastable tensor to the first rows of ``out``, in place or on a copy.

    The gradient of ``out`` passes unchanged and uncopied, as it would not through a slice.
    """

    @staticmethod
    def forward(out: Tensor, value: Tensor | float, rows: int, in_place: bool) -> Tensor:
        result = out if in_place else out.clone()
        result.narrow(0, 0, rows).add_(value)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        out, value, ctx.rows, in_place = inputs
        if isinstance(value, Tensor):
            ctx.value_shape, ctx.value_dtype = value.shape, value.dtype
        if in_place:
            ctx.mark_dirty(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        value_grad = None
        if ctx.needs_input_grad[1]:
            value_grad = grad.narrow(0, 0, ctx.rows).sum_to_size(ctx.value_shape)
            value_grad = value_grad.to(ctx.value_dtype)
        return grad, value_grad, None, None


def add_to_value(out: Tensor, value: Tensor | float, rows: int = 1, *, in_place: bool) -> Tensor:
    """``out`` with ``value`` added to the first rows, which hold the value of a dual tensor."""
    if torch._C._are_functorch_transforms_active():  # vmap has no functions that work in place
        return torch.cat([out.narrow(0, 0, rows) + value, out.narrow(0, rows, len(out) - rows)])
    return AddToValue.run("jvp", out, value, rows, in_place)


def add_bias(out: Tensor, bias: Tensor | None, rows: int = 1) -> Tensor:
    """``out``, fresh from a linear operation, with the bias on the rows that hold the value."""
    return out if bias is None else add_to_value(out, bias, rows, in_place=True)


class DeferredLinear(NamedTuple):
    """A linear layer that has not run yet, so that a form v'Jv can run it backwards instead.

    ``after`` holds elementwise linear maps that follow the layer, such as a division by sigma.
    """

    stacked: Tensor  # (1 + M, ..., in)
    weight: Tensor  # (out, in)
    bias: Tensor | None
    record: bool  # whether gradients were recorded where the model called the layer
    after: tuple[Callable[[Tensor], Tensor], ...] = ()

    def evaluate(self) -> Tensor:
        with torch.set_grad_enabled(self.record):
            return self.finish(add_bias(F.linear(self.stacked, self.weight), self.bias))

    def finish(self, x: Tensor) -> Tensor:
        for f in self.after:
            x = f(x)
        return x

    def then(self, f: Callable[[Tensor], Tensor]) -> DeferredLinear:
        return self._replace(after=(*self.after, f))

    def result(self, run: Run) -> DualTensor:
        """A dual tensor of the layer's result, with nothing computed yet."""
        shape = (*self.stacked.shape[:-1], self.weight.shape[0])
        x = DualTensor(self.stacked.new_empty(()).expand(shape), run)
        x.materialised, x.deferred = None, self
        return x


def scaled(x: Any, factor: Any, operation: Callable[[Any, Any], Tensor]) -> DualTensor | None:
    """A product or quotient of a deferred layer by what has no tangents, deferred as well.

    None where that would change shape or dtype, or where nothing is deferred.
    """
    if not isinstance(x, DualTensor) or isinstance(factor, DualTensor):
        return None
    if not isinstance(x.deferred, DeferredLinear):
        return None
    if isinstance(factor, Tensor):
        same_shape = torch.broadcast_shapes(x.shape, factor.shape) == x.shape
        if not same_shape or torch.promote_types(x.dtype, factor.dtype) != x.dtype:
            return None
    elif not isinstance(factor, (int, float)):
        return None
    return x.deferred.then(lambda y: operation(y, factor)).result(x.run)


@rule("linear")
def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    if not isinstance(input, DualTensor) or is_dual(weight) or is_dual(bias):
        return _with_offset(F.linear, _matrix_product(input, weight), input, weight, bias)
    run = input.run
    if run.lazy and weight.dim() == 2 and not torch.is_autocast_enabled(input.device.type):
        return DeferredLinear(input.stacked, weight, bias, torch.is_grad_enabled()).result(run)
    return DualTensor(add_bias(F.linear(input.stacked, weight), bias), run)


def _matrix_product(input: Any, weight: Any) -> Any:
    return torch.matmul(input, weight.mT if weight.dim() > 1 else weight)


def _with_offset(func: Callable[..., Any], out: Any, *args: Any) -> Any:
    """``out`` plus the last argument of ``func``, which must not change its shape."""
    bias = args[-1]
    if bias is None:
        return out
    if torch.broadcast_shapes(out.shape, bias.shape) != out.shape:
        check_as_plain(func, *args)
    return out + bias


@rules(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
def convolution(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _convolve(func, *args, **kwargs)


def _convolve(
    func: Callable[..., Any], input: Any, weight: Any, bias: Any = None, *rest: Any, **options: Any
) -> Any:
    if isinstance(weight, DualTensor) or isinstance(bias, DualTensor):
        return by_forward_ad(func, (input, weight, bias, *rest), options)
    spatial = weight.dim() - 2
    batched = input.dim() == spatial + 2
    stacked = input.stacked.flatten(0, 1) if batched else input.stacked
    rows = input.shape[0] if batched else 1
    out = func(stacked, weight, None, *rest, **options)
    if bias is not None:
        out = add_bias(out, bias.view(-1, *(1,) * spatial), rows)
    if batched:
        out = out.unflatten(0, (1 + input.run.tangents, rows))
    return DualTensor(out, input.run)


def align(stacked: Tensor, rank: int) -> Tensor:
    """A stacked tensor with singleton dimensions after the first, for values of rank ``rank``."""
    missing = rank + 1 - stacked.dim()
    return stacked if missing <= 0 else stacked[(slice(None), *(None,) * missing)]


@rule("matmul", "__matmul__")
def matmul(input: Any, other: Any) -> Any:
    if other.dim() == 1:
        return matmul(input, other.unsqueeze(-1)).squeeze(-1)
    if input.dim() == 1:
        return matmul(input.unsqueeze(0), other).squeeze(-2)
    rank = max(input.dim(), other.dim())
    if not isinstance(other, DualTensor):
        return DualTensor(torch.matmul(align(input.stacked, rank), other), input.run)
    if not isinstance(input, DualTensor):
        return DualTensor(torch.matmul(input, align(other.stacked, rank)), other.run)
    value, tangents = input.parts()
    other_value, other_tangents = other.parts()
    slopes = torch.matmul(align(tangents, rank), other_value)
    slopes = slopes + torch.matmul(value, align(other_tangents, rank))
    return join(torch.matmul(value, other_value), slopes, input.run)


_RANKS = {"mm": (2, 2), "bmm": (3, 3), "mv": (2, 1), "dot": (1, 1)}


@rules(_RANKS)
def matmul_of_rank(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """:func:`matmul` of matrices, of vectors, or of batches that do not broadcast."""
    first, second = (*args, *kwargs.values())
    of_batches = first.dim() == 3 and first.shape[0] != second.shape[0]
    if (first.dim(), second.dim()) != _RANKS[func.__name__] or of_batches:
        check_as_plain(func, first, second)
    return matmul(first, second)


@rule("__rmatmul__")
def rmatmul(input: Any, other: Any) -> Any:
    return matmul(other, input)


@rules("addmm baddbmm addmv")
def addmm(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _addmm(func, *args, **kwargs)


def _addmm(
    func: Callable[..., Any],
    input: Any,
    first: Any,
    second: Any,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Any:
    products: dict[str, Callable[..., Any]]
    products = {"addmm": torch.mm, "baddbmm": torch.bmm, "addmv": torch.mv}
    out = products[func.__name__](first, second)
    if torch.broadcast_shapes(input.shape, out.shape) != out.shape or input.dtype != out.dtype:
        check_as_plain(func, input, first, second)
    out = out if alpha == 1 else out * alpha
    if beta == 0:  # whatever the input holds, NaN included
        return out
    return out + (input if beta == 1 else input * beta)


@rule("einsum")
def einsum(equation: str, *operands: Any) -> Any:
    if not isinstance(equation, str):
        return by_forward_ad(torch.einsum, (equation, *operands), {})
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    return _multilinear(lambda *x: torch.einsum(equation, *x), operands)


@rule("bilinear")
def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    sizes = (*input1.shape[:-1], input1.shape[-1], input2.shape[-1])
    if sizes != (*input2.shape[:-1], *weight.shape[1:]):
        check_as_plain(F.bilinear, input1, input2, weight, bias)
    out = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return _with_offset(F.bilinear, out, input1, input2, weight, bias)


@rules(["outer", "ger", "inner", "tensordot", "kron", "vdot", "cross", "linalg_cross"])
def product(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _multilinear(lambda *x: func(*x, *args[2:], **kwargs), args[:2])


def _multilinear(func: Callable[..., Tensor], operands: Sequence[Any]) -> DualTensor:
    """A function linear in each operand: the tangents are a sum, one operand's tangents at a time.

    With one dual operand the value and the tangents take the same path, in one call.
    """
    duals = [i for i, x in enumerate(operands) if isinstance(x, DualTensor)]
    run = operands[duals[0]].run
    values = [x.primal if isinstance(x, DualTensor) else x for x in operands]

    def with_operand(i: int, stacked: Tensor) -> Tensor:
        return torch.func.vmap(lambda x: func(*values[:i], x, *values[i + 1 :]))(stacked)

    if len(duals) == 1:
        return DualTensor(with_operand(duals[0], operands[duals[0]].stacked), run)
    first, *others = (with_operand(i, operands[i].parts()[1]) for i in duals)
    return join(func(*values), sum(others, first), run)


@rule("linalg_solve")
def solve(A: Any, B: Any, *, left: bool = True) -> Any:
    """X = A^-1 B has the tangents A^-1 (Bdot - Adot X)."""
    if not left:
        return solve(A.mT, B.mT).mT
    if B.dim() == 1 or B.shape == A.shape[:-1]:
        return solve(A, B.unsqueeze(-1)).squeeze(-1)
    run = (A if isinstance(A, DualTensor) else B).run
    matrix, vectors = value_of(A), value_of(B)
    solution = torch.linalg.solve(matrix, vectors)
    terms = []
    if isinstance(B, DualTensor):
        terms.append(align(B.parts()[1], solution.dim()))
    if isinstance(A, DualTensor):
        terms.append(-torch.matmul(align(A.parts()[1], solution.dim()), solution))
    return join(solution, torch.linalg.solve(matrix, sum(terms)), run)


@rule("linalg_solve_ex")
def solve_ex(A: Any, B: Any, *, left: bool = True, check_errors: bool = False) -> Any:
    """With PyTorch's own answer where the matrix is singular, and so no tangents."""
    plain = torch.linalg.solve_ex(value_of(A), value_of(B), left=left, check_errors=check_errors)
    if plain.info.any():
        return plain
    return type(plain)((solve(A, B, left=left), plain.info))


@rule("linalg_tensorsolve")
def tensorsolve(A: Any, B: Any, dims: Any = None) -> Any:
    if dims is not None:
        dims = [d % A.dim() for d in ([dims] if isinstance(dims, int) else dims)]
        A = A.permute(*(d for d in range(A.dim()) if d not in dims), *dims)
    check_as_plain(torch.linalg.tensorsolve, A, B)
    matrix = A.reshape(B.numel(), B.numel())
    return torch.linalg.solve(matrix, B.reshape(-1)).reshape(A.shape[B.dim() :])


@rules("det linalg_det logdet slogdet linalg_slogdet")
def determinant(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """log |det A| has the tangents tr(A^-1 Adot)."""
    (A,) = (*args, *kwargs.values())
    matrix, tangents = A.parts()
    slopes = (torch.linalg.inv(matrix).mT * tangents).sum((-2, -1))
    result = func(matrix)
    if not isinstance(result, Tensor):
        sign, logarithm = result
        return type(result)((sign, join(logarithm, slopes, A.run)))
    return join(result, slopes if func.__name__ == "logdet" else result * slopes, A.run)
