"""The flow from data to noise, with what it does to the density on the way.

With u = g w, w being what the model is called with, and du/dtheta = p u + q o, o what it returns,
log p_u falls along the flow by the divergence of that field,

    div_u = D p + (q/g) div_w o,

of which p and q, the linear part, are known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastscore._support.sums import tree_sum
from fastscore.derivatives.call import Call
from fastscore.evaluation._divergence import Divergence, Identity
from fastscore.samplers._adaptive import AdaptiveChain, gathered
from fastscore.samplers._angle import Nodes
from fastscore.samplers._controller import NO_NUMBER

COMPARED = (1, 3, 5)  # steps after which derivatives are compared: of low, middle, high noise
FEW = 8  # samples for that


@dataclass
class LikelihoodChain(AdaptiveChain):
    """An adaptive chain that takes the divergence along, of each sample and probe, in float64.

    The integral takes the method's own weights: stages that those leave out, and nobody asks again,
    are asked for the output alone.
    """

    carried: ClassVar[tuple[str, ...]] = ("integral", "trace")
    told_by: ClassVar[str] = "the result"
    divergence: Divergence = field(kw_only=True)
    tolerance: float | None = field(kw_only=True, default=None)  # of log p, nats a dimension
    arrivals: Callable[[int], Any] | None = field(kw_only=True, default=None)
    compares: bool = field(kw_only=True, default=False)  # derivatives with differences
    steps_taken: int = field(init=False, default=0)
    integral: Tensor = field(init=False)  # (n, terms)
    trace: Tensor = field(init=False)  # (n, terms): of the output at x
    identity: Identity = field(init=False)  # of the samples in the chain
    change: Tensor = field(init=False)  # (n, terms): what a step adds to the integral
    traces: list[Tensor | None] = field(init=False, default_factory=list)  # of this step's stages
    wanted: bool = field(init=False, default=False)  # whether the next call is asked for it
    found: Tensor | None = field(init=False, default=None)  # and what it has found

    def __post_init__(self) -> None:
        super().__post_init__()
        batch, per_sample = len(self.x), self.key.dim() == 2
        numbers = self.samples
        if numbers is None and not per_sample:
            first = self.sample_offset
            numbers = torch.arange(first, first + batch, device=self.x.device)
        self.all_identity = self.identity = Identity(self.key, None if per_sample else numbers)
        last = self.stages - 1
        weights = [*self.method.tableau.weights[-1], 0.0]
        self.with_trace = [weight != 0 or i == last for i, weight in enumerate(weights)]
        self.sum_weights, self.error_weights = weights, self.method.tableau.error
        self.dimensions = math.prod(self.x.shape[1:])

    # ---- the model and its divergence --------------------------------------------------------

    def asked(self, stage: int, w: Tensor, at: Nodes) -> Tensor:
        """The output at a stage, and its divergence where that is wanted."""
        if stage == 0:
            self.wanted = True
            output = super().asked(stage, w, at)
            assert self.found is not None
            self.trace = self.found
            self.integral = torch.zeros_like(self.trace)
            return output
        if stage == 1:
            self.traces = [self.trace]
        self.wanted, self.found = self.with_trace[stage], None
        output = super().asked(stage, w, at)
        self.traces.append(self.found)
        if stage == self.stages - 1 and self.compares:
            self.steps_taken += 1
            if self.steps_taken in COMPARED:
                # The model may use the memory of what it returned again.
                self.kept = [kept.clone() for kept in self.kept]
                output = self.kept[-1]
                self.compare(w, at.alpha[stage] * at.s[stage])
        return output

    def compare(self, w: Tensor, sigma: Tensor) -> None:
        """The derivative of a few samples, or as many as a call takes, beside differences."""
        size = min(len(w), FEW) if self.batch_size is None else self.batch_size
        few = torch.arange(size, device=w.device).clamp_max(len(w) - 1)
        named = gathered(self.model_kwargs, len(w), few)
        arguments = tuple(argument[few] for argument in self.arguments)
        call = Call(self.fn, self.model, arguments, named)
        try:
            self.divergence.compare(call, w[few], self.identity.chosen(few), sigma[few])
        except Exception:  # a model that takes no other batch, as one around the labels of this one
            if self.batch_size is not None:
                raise
            call = Call(self.fn, self.model, self.arguments, self.model_kwargs)
            self.divergence.compare(call, w, self.identity, sigma)

    def call_model(self) -> Any:
        """The model's output; what is found of its divergence is kept."""
        if not self.wanted:
            return super().call_model()
        first, self.checked = not self.checked, True
        measure = self.divergence.first if first else self.divergence
        try:
            if self.batches is None:
                call = Call(self.fn, self.model, self.arguments, self.model_kwargs)
                output, self.found = measure(call, self.x, self.identity)
                return output
            parts: list[Tensor] = []
            rows = (*self.arguments, *self.identity.rows())
            output = self.batches(partial(self.measured, measure, parts), self.x, rows)
        except Exception as error:
            self.explain(error)
            raise
        self.found = torch.cat(parts)[: len(self.x)]
        return output

    def measured(
        self, measure: Any, parts: list[Tensor], x: Tensor, *given: Tensor, **named: Any
    ) -> Tensor:
        """The output of some rows; what is found of its divergence goes to ``parts``."""
        *arguments, rows = given
        call = Call(self.fn, self.model, tuple(arguments), named)
        output, found = measure(call, x, self.identity.of_rows(rows))
        parts.append(found)
        return output

    # ---- the integral ------------------------------------------------------------------------

    def judged(self, error: Tensor, h: Tensor, at: Nodes) -> Tensor:
        """What the step adds to the integral must be a number, and may have a tolerance."""
        fields = [
            None if trace is None else self.divergence_of(trace, at, stage)
            for stage, trace in enumerate(self.traces)
        ]
        h = h.unsqueeze(-1)
        self.change = h * weighted(self.sum_weights, fields)
        error = error.masked_fill(~self.change.isfinite().all(-1), torch.inf)
        if self.tolerance is None or self.equal_step is not None:
            return error
        off = h * weighted(self.error_weights, fields)
        off = tree_sum(off, 1).abs() / (off.shape[1] * self.dimensions)
        return torch.maximum(error, off / self.tolerance)

    def divergence_of(self, trace: Tensor, at: Nodes, stage: int) -> Tensor:
        """Of the field of u at a stage, (n, terms)."""
        slope = (at.q[stage] / at.g[stage]).unsqueeze(-1)
        return (self.dimensions * at.p[stage]).unsqueeze(-1) + slope * trace

    def moved(self, accepted: Tensor) -> None:
        """The integral goes on, and the last stage's divergence is the next step's first."""
        taken = accepted.unsqueeze(-1)
        self.integral.add_(self.change.masked_fill_(~taken, 0.0))
        assert self.traces[-1] is not None
        torch.where(taken, self.traces[-1], self.trace, out=self.trace)

    def tolerances(self) -> str:
        """What a step is held to, in words."""
        own = "" if self.tolerance is None else f", log_prob_atol={self.tolerance:g}"
        return super().tolerances() + own

    # ---- who is in the batch -------------------------------------------------------------------

    def keep_only(self, rows: Tensor) -> None:
        """Of the samples in the chain, those at these places stay; the others have arrived."""
        if self.arrivals is not None:
            self.arrivals(len(self.x) - len(rows))
        super().keep_only(rows)

    def gather(self, rows: Tensor) -> None:
        """The probes of a sample go with it."""
        super().gather(rows)
        assert self.live is not None
        self.identity = self.all_identity.chosen(self.live)

    def give_up(self, rows: Tensor) -> None:
        """Leave these (batch,) samples out from the beginning."""
        self.control.status.masked_fill_(rows, NO_NUMBER)

    def final_output(self) -> Tensor:
        """The model's output at the latents."""
        assert self.all_first is not None
        return self.all_first


def weighted(weights: Any, fields: list[Tensor | None]) -> Tensor:
    """The sum of the fields by their weights, in one order."""
    terms = [
        weight * each for weight, each in zip(weights, fields, strict=False) if each is not None
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
