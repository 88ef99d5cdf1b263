"""The family ``multistep``: one row of any solver on a fixed grid, fused.

    D = d x + e s,    D' = D clipped
    x <- a x + b s + h H + r (D' - D) + c z,    z ~ N(0, I) of stream LANGEVIN,    H <- D'

Least traffic: read x, s and H, write x and H (20 bytes an element in float32), and with a score of
two terms read both (24). The noise is never stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.ops._library import call_, check_bounds, check_same_device, ops
from fastscore.ops._vmap import map_slices

Bounds = tuple[float | None, float | None] | None
_NAMES = (
    "x", "history", "score", "table", "key", "known", "mask", "low", "high", "clip_low",
    "clip_high", "sample_offset", "samples", "second", "weights",
)  # fmt: skip


def multistep_step_(
    x: Tensor,
    history: Tensor,
    score: Tensor,
    table: Tensor,
    key: Tensor,
    *,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    clamp: Bounds = None,
    clip: Bounds = None,
    sample_offset: int = 0,
    samples: Tensor | None = None,
    second: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """One row of a solver, in place on ``x`` and ``history``; returns ``x``.

    With x_0 = d x + e s it is DPM-Solver++(2M) and its stochastic form, whose history is the x_0 of
    the step before; with ``clip``, also DDPM and DDIM that keep x_0 in the range of the data; with
    the slope in place of x_0, Heun's method in two rows a step.

    Args:
        x: state, (batch, ...), any strides; float32, float64, bfloat16 or float16.
        history: of x's shape and dtype, any strides, in memory of its own. A row whose h is 0 does
            not care what it holds.
        score: of x's shape and dtype (or of half precision when x is float32).
        table: float64 (rows, 10), or (rows, batch, 10) for coefficients of each sample's own;
            columns a, b, c, k, m, u, h, d, e and r. The row is ``min(draw, rows - 1)``.
        key: int64 [seed, draw]; the draw is the number of the row. Or (batch, 2), a key of each
            sample's own.
        known, mask: where ``mask`` (bool, x's shape) is True, x becomes ``m known + k z``.
        clamp: (low, high), either may be None: x is kept in [u low, u high].
        clip: (low, high), either may be None: D is kept in [low, high], and what that changes
            moves x by r times as much.
        sample_offset, samples, second, weights: as for :func:`~fastscore.ops.langevin_step_`.

    Raises:
        ValueError: an argument does not fit, or requires grad: there is no derivative.

    Lu et al. 2022 (DPM-Solver++); Song et al. 2021 (DDIM); Karras et al. 2022.

    >>> import fastscore
    >>> x, history = torch.ones(1, 2), torch.full((1, 2), torch.nan)
    >>> row = [0.5, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.25, 0.0]
    >>> table = torch.tensor([row], dtype=torch.float64)
    >>> multistep_step_(x, history, -x, table, fastscore.random.key(0)), history
    (tensor([[0.5000, 0.5000]]), tensor([[0.7500, 0.7500]]))
    """
    fn = "multistep_step_"
    low, high = (None, None) if clamp is None else check_bounds(fn, clamp)
    clip_low, clip_high = (None, None) if clip is None else check_bounds(fn, clip, "clip")
    given = (x, history, score, table, key, known, mask, low, high, clip_low, clip_high)
    rest = (sample_offset, samples, second, weights)
    return call_(fn, ops.multistep_step_.default, _NAMES, *given, *rest, also=(history,))


map_slices("multistep_step_")


@torch.library.register_fake("fastscore::multistep_step_")
def _(x, *others) -> None:
    named = dict(zip(_NAMES[1:], others, strict=False))
    tensors = {name: other for name, other in named.items() if isinstance(other, Tensor)}
    check_same_device("multistep_step_", x, **tensors)
