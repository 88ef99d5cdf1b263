"""Sums whose order hangs on nothing but their length."""

from __future__ import annotations

import torch
from torch import Tensor


def tree_sum(x: Tensor, dim: int) -> Tensor:
    """The sum over ``dim`` in halves: with the same bytes whatever the other dimensions are.

    Elementwise additions alone. PyTorch's own sums, and products of matrices, take their terms in
    an order that may hang on the whole shape, and on the number of threads.

    Example:
        >>> tree_sum(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 1)
        tensor([ 6., 15.])
    """
    count = x.shape[dim]
    if count == 0:
        return x.sum(dim)
    while count > 1:
        half = count // 2
        left = [x.narrow(dim, 0, half) + x.narrow(dim, half, half)]
        if count % 2:
            left.append(x.narrow(dim, count - 1, 1))
        x = torch.cat(left, dim) if count % 2 else left[0]
        count -= half
    return x.select(dim, 0)
