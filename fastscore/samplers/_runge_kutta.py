"""Runge-Kutta methods whose stages are written for what the model is called with and returns.

A flow in a variable u = g w, w being what the model is called with, is du/dtau = p u + q o, where o
is what the model returns. All stages then are combinations of the state and of the outputs,

    w_i = c_0 w + c_1 o_1 + ... + c_(i-1) o_(i-1),

whose coefficients hold the linear part of the flow exactly as far as float64 goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastscore._support.lending import is_untouched
from fastscore.ops import rk_advance_, rk_error, rk_stage
from fastscore.samplers._frame import Frame
from fastscore.samplers._loop import Chain
from fastscore.samplers._plan import OPEN

__all__ = [
    "BOGACKI_SHAMPINE",
    "CLASSICAL",
    "DORMAND_PRINCE",
    "StagedChain",
    "Tableau",
    "coefficients_of",
    "data_coefficients",
    "flow_coefficients",
    "matrix",
    "rk_advance_",
    "rk_error",
    "rk_stage",
]


@dataclass(frozen=True)
class Tableau:
    """An explicit method: stages at ``nodes``, each from those before by its row of ``weights``.

    The rows begin with that of the second stage. The last of them, at node 1, is the new state; in
    ``error`` are the weights of the error of the new state, where the method has a second one.
    """

    nodes: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    error: tuple[float, ...] = ()
    order: int = 4  # with which power of the step its error, or the estimate of that, goes


CLASSICAL = Tableau(
    (0.0, 0.5, 0.5, 1.0),
    ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
)

# Dormand and Prince 1980; Hairer, Norsett and Wanner 1993, table II.5.2. The new state is the last
# stage, whose output is the first one of the next step.
DORMAND_PRINCE = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    order=5,
)

# Bogacki and Shampine 1989, of order 3(2), in the same way.
BOGACKI_SHAMPINE = Tableau(
    (0.0, 1 / 2, 3 / 4, 1.0),
    ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    order=3,
)


def matrix(tableau: Tableau, device: torch.device | None = None) -> Tensor:
    """All weights, (stages + 1, stages), float64: of the stages, and at last of the new state.

    Where the new state is the last stage, the last row is that of the error.
    """
    stages = len(tableau.nodes)
    given = [(), *tableau.weights, *([tableau.error] if tableau.error else [])]
    rows = [[*row, *[0.0] * (stages - len(row))] for row in given]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def coefficients_of(
    tableau: Tableau, weights: Tensor, h: Tensor, p: Tensor, q: Tensor, g: Tensor
) -> Tensor:
    """The coefficients of w and of the outputs, (stages + 1, n, 1 + stages), float64.

    ``weights`` are the method's :func:`matrix`; h (n,) the steps; p and q (stages, n); g (stages +
    1, n), that of each row's own w: the error is in that of the new state. The sums are taken in
    one order whatever n is, by operations that round alike everywhere.
    """
    stages = len(tableau.nodes)
    table = h.new_zeros(1 + stages, len(h), 1 + stages)
    table[: stages if tableau.error else stages + 1, :, 0] = g[0]
    of_outputs = h.new_zeros(stages, len(h), 1 + stages)
    of_outputs.diagonal(1, 0, 2).copy_(q.T)
    steps = (weights.unsqueeze(-1) * h).unsqueeze(-1).unbind(1)
    # A stage's weights of itself and of later ones are 0.
    columns = p.unsqueeze(-1).unbind(), table.unbind()[:-1], of_outputs.unbind(), steps
    for of_state, row, of_output, step in zip(*columns, strict=True):
        table.add_(step * (of_state * row).add_(of_output))
    return table.div_(g.unsqueeze(-1))


def flow_coefficients(
    frame: Frame, t: Tensor, s: Tensor, rho: Tensor, speed: Tensor, bend: Tensor | float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(alpha_w, p, q, g) there, of u = rho y along tau, with ds/dtau and d log rho/dtau.

    dy/ds is -s S, and S = alpha_w (A o + B w) with y = w/alpha_w.
    """
    alpha = frame.alpha(t, s)
    own, of_state = frame.score_coefficients(t, alpha, alpha * s)
    pull = -s * speed * alpha
    return alpha, bend + pull * alpha * of_state, pull * rho * own, rho / alpha


def data_coefficients(frame: Frame, t: Tensor, s: Tensor) -> Tensor:
    """(d, e) of the expected data D = d w + e o = y + s^2 S (Tweedie), stacked at the end."""
    alpha = frame.alpha(t, s)
    own, of_state = frame.score_coefficients(t, alpha, alpha * s)
    factor = s.square() * alpha
    return torch.stack([1 / alpha + factor * of_state, factor * own], dim=-1)


class MemoryUsedAgain(Exception):
    """The model has returned memory that holds an output which is needed yet."""


@dataclass
class StagedChain(Chain):
    """A chain whose steps ask the model several times, and keep what it has returned."""

    stage: Tensor = field(init=False)  # what the model is called with, in place of x
    copies: bool = field(init=False, default=False)  # whether the model uses its memory again
    kept: list[Tensor] = field(init=False, default_factory=list)  # this step's outputs
    places: list[int] = field(
        init=False, default_factory=list
    )  # where they are, of the model's own
    unknown: Tensor | None = field(init=False, default=None)  # (B,): D over how many are unknown

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stage = torch.empty_like(self.x)
        self.count_unknown()

    def count_unknown(self) -> None:
        """How much larger a mean over unknown elements is than over all with zeros for others."""
        if self.mask is not None:
            free = (~self.mask).reshape(len(self.mask), -1).sum(1)
            self.unknown = self.mask[:1].numel() / free.clamp_min(1).double()

    def output_at(self, w: Tensor, data: Tensor | None = None) -> Tensor:
        """The model's output at w, in memory that stays as it is until the step is over.

        ``data`` are coefficients of D, where it is D, clipped, that takes the output's place.
        """
        state, self.x = self.x, w
        try:
            before = versions(self.kept)
            output = self.score()
            if versions(self.kept) != before:
                raise MemoryUsedAgain
            if self.adjust is not None:
                self.adjust(self, output)
        finally:
            self.x = state
        fresh = False
        if self.second is not None:
            output, fresh = self.total(output), True
        if data is not None:
            output, fresh = rk_stage(w, [output], data), True
            output.clamp_(*self.clip)
        if self.mask is not None:
            output, fresh = output.masked_fill(self.mask, 0), True
        if not fresh:
            output = self.held(output, w)
        self.kept.append(output)
        return output

    def held(self, output: Tensor, w: Tensor) -> Tensor:
        """The output, or a copy where its memory is not its own for the whole step."""
        if self.copies:
            return output.clone()
        if is_untouched(output):  # memory shared until somebody writes to it
            return output
        place = place_of(output)
        if place in (place_of(w), place_of(self.x)):
            return output.clone()
        if place in self.places:
            raise MemoryUsedAgain
        self.places.append(place)
        return output

    def attempt(self, body: Callable[[], None]) -> None:
        """Call ``body``, and once more with copies where the model overwrites what it returned."""
        try:
            body()
        except MemoryUsedAgain:
            self.copies = True
            self.keep()
            body()

    def keep(self, *outputs: Tensor) -> None:
        """Begin a step, with these alone."""
        self.kept, self.places = list(outputs), []

    def with_known(self, w: Tensor, coefficients: Tensor) -> Tensor:
        """w with its known elements at their level, a known + b z, in place."""
        if self.mask is not None:
            assert self.known is not None
            assert self.known_noise is not None
            known = rk_stage(self.known, [self.known_noise], coefficients)
            torch.where(self.mask, known, w, out=w)
        return w

    def unknown_part(self, w: Tensor) -> Tensor:
        """w with zeros for its known elements: the flow moves the others alone."""
        return w if self.mask is None else w.masked_fill(self.mask, 0)

    @property
    def clips(self) -> bool:
        """Whether the data that the model predicts are clipped."""
        return self.clip != OPEN


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each has been written to, where that is counted."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def place_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
