"""A score that is a weighted sum of others, handed on as it is."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_number, describe, fail, fail_type, per_sample

Weight = float | Tensor


class Terms:
    """The sum of ``weight * tensor`` over one or two pairs, which the sampling kernels take as is.

    What a guided score may return (Dhariwal and Nichol 2021; Ho and Salimans 2022): the kernels of
    the samplers add the terms as they read them, everything else that asks for a score adds them
    first.

    Args:
        pairs: one or two pairs (tensor, weight), the tensors of the shape of x, a weight a number
            or a tensor (batch,).

    Raises:
        ValueError, TypeError: neither one nor two pairs, shapes that differ, other weights.

    Example:
        >>> import torch
        >>> Terms([(torch.ones(2, 1), 3.0), (torch.ones(2, 1), torch.tensor([0.0, -1.0]))]).total()
        tensor([[3.],
                [2.]])
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Weight]]) -> None:
        """See the class."""
        if not 1 <= len(pairs) <= 2:
            fail("Terms", "pairs", "one or two pairs (tensor, weight)", len(pairs))
        first = pairs[0][0]
        for tensor, weight in pairs:
            if not isinstance(tensor, Tensor):
                fail_type("Terms", "pairs", "pairs (tensor, weight)", tensor)
            if tensor.shape != first.shape or tensor.dtype != first.dtype:
                fail("Terms", "pairs", f"like {describe(first)}", describe(tensor))
            if type(weight) is float and isfinite(weight):
                continue
            if not isinstance(weight, Tensor):
                check_number("Terms", "a weight", weight)
            elif weight.shape != first.shape[:1]:
                fail("Terms", "a weight", f"a number, or of shape {tuple(first.shape[:1])}",
                     describe(weight))  # fmt: skip
        self.pairs = [(tensor, weight) for tensor, weight in pairs]

    def total(self) -> Tensor:
        """The sum itself, of the tensors' dtype."""
        parts = []
        for tensor, weight in self.pairs:
            factor = per_sample(weight, tensor) if isinstance(weight, Tensor) else weight
            parts.append((tensor * factor).to(tensor.dtype))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def __repr__(self) -> str:
        parts = [w if isinstance(w, (int, float)) else describe(w) for _, w in self.pairs]
        return f"Terms({describe(self.pairs[0][0])}, weights {parts})"

    def weights(self) -> Tensor:
        """All weights as the kernels take them: float64, (terms,) or (batch, terms)."""
        given = [weight for _, weight in self.pairs]
        if not any(isinstance(weight, Tensor) for weight in given):
            return torch.tensor(given, dtype=torch.float64)
        like = self.pairs[0][0]
        columns = [
            weight.to(like.device, torch.float64)
            if isinstance(weight, Tensor)
            else like.new_full(like.shape[:1], weight, dtype=torch.float64)
            for weight in given
        ]
        return torch.stack(columns, dim=-1)


def summed(output: Any) -> Any:
    """A model's output with its terms added, where there are some."""
    return output.total() if isinstance(output, Terms) else output
