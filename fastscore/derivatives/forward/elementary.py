"""Functions as compositions whose derivatives PyTorch has right: to third order, under vmap.

In reverse mode over torch.func.jvp and in derivatives of third order it takes the factors that
``linalg.solve``, the determinants and ``householder_product`` compute on their way for constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.derivatives.forward.tensor import by_forward_ad, rule


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    if left and (B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1])):
        return _solve(A, B.unsqueeze(-1)).squeeze(-1)
    return torch.linalg.lu_solve(*torch.linalg.lu_factor(A), B, left=left)


def _slogdet(A: Tensor) -> Any:
    result = torch.linalg.slogdet(A)
    factors, _ = torch.linalg.lu_factor(A)
    logarithm = factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return type(result)((result[0], logarithm))


def _logdet(A: Tensor) -> Tensor:
    sign, logarithm = _slogdet(A)
    return torch.where(sign < 0, torch.nan, logarithm)


def _det(A: Tensor) -> Tensor:
    factors, pivots = torch.linalg.lu_factor(A)
    unmoved = torch.arange(1, 1 + pivots.shape[-1], device=A.device)
    sign = 1 - 2 * ((pivots != unmoved).sum(-1) % 2)
    return sign * factors.diagonal(dim1=-2, dim2=-1).prod(-1)


@rule("linalg_householder_product", "orgqr")
def householder_product(input: Any, tau: Any) -> Any:
    """The first columns of the product of the reflections I - tau_i v_i v_i'."""
    rows = torch.arange(input.shape[-2], device=input.device)
    product = torch.eye(*input.shape[-2:], dtype=input.dtype, device=input.device)
    product = product.expand(input.shape)
    for i in reversed(range(tau.shape[-1])):
        v = (input[..., i] * (rows > i) + (rows == i)).unsqueeze(-1)
        product = product - tau[..., i, None, None] * (v @ (v.mH @ product))
    return product


@rule("index_fill")
def index_fill(input: Any, dim: int, index: Any, value: Any) -> Any:
    """By a mask: PyTorch's, under vmap, takes the value of the first tangent for all."""
    mask = torch.zeros(input.shape, dtype=torch.bool, device=input.device)
    return torch.masked_fill(input, mask.index_fill(dim, index, True), value)


def _index_fill_(input: Tensor, dim: int, index: Any, value: Any) -> Tensor:
    return input.copy_(index_fill(input, dim, index, value))


ELEMENTARY: dict[Any, Callable[..., Any]] = {
    torch.det: _det,
    torch.linalg.det: _det,
    torch.Tensor.det: _det,
    torch.linalg.householder_product: householder_product,
    torch.index_fill: index_fill,
    torch.Tensor.index_fill: index_fill,
    torch.Tensor.index_fill_: _index_fill_,
    torch.logdet: _logdet,
    torch.Tensor.logdet: _logdet,
    torch.linalg.slogdet: _slogdet,
    torch.slogdet: _slogdet,
    torch.Tensor.slogdet: _slogdet,
    torch.linalg.solve: _solve,
}

# Gradients of a loss in pieces are computed with its value, and are constants after that.


@rule("linear_cross_entropy")
def _linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Any:
    return by_forward_ad(F.linear_cross_entropy, args, kwargs)


def _in_one_piece(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
    return F.linear_cross_entropy(*args, **kwargs)


if hasattr(F, "linear_cross_entropy"):  # from PyTorch 2.13 on
    ELEMENTARY[F.linear_cross_entropy] = _in_one_piece
