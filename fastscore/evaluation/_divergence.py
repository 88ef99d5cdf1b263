"""The divergence of a model's output at each sample, by the way that suits the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore._support.checks import fail, largest
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.inference import recordable, recording
from fastscore._support.known import known_of
from fastscore._support.rewind import Rewind
from fastscore.derivatives.call import Call
from fastscore.derivatives.closed_form import NoClosedForm
from fastscore.derivatives.known import known_divergence
from fastscore.derivatives.mixing import far_apart, mixes_samples, modes_of
from fastscore.derivatives.projections import Batch, Slicing, reverse_alone
from fastscore.derivatives.traces import output_and_trace

METHODS = ("auto", "exact", "hutchinson")
FEW_DIMENSIONS = 8  # of which "auto" takes the exact trace of any model


@dataclass
class Identity:
    """Whose probes are drawn: the key, of all or (n, 2), and the number of each sample, (n,)."""

    key: Tensor
    samples: Tensor | None

    def rows(self) -> tuple[Tensor, ...]:
        """What goes with the samples when the model is called with some of them."""
        return (self.key,) if self.samples is None else (self.samples,)

    def of_rows(self, rows: Tensor) -> Identity:
        """With these in their place."""
        return Identity(rows, None) if self.samples is None else Identity(self.key, rows)

    def chosen(self, index: Tensor) -> Identity:
        """Of some samples."""
        return self.of_rows(self.rows()[0][index])


@dataclass
class Divergence:
    """How the divergence is taken: found at the first call, and the same for the whole job.

    Probes take one reverse pass each, which share the forward one: on a CPU 0.4 to 0.9 times a
    dual pass's time, of four probes 0.6 to 1.2 (benchmarks/divergence_ways.py).
    """

    fn: str
    method: str  # "auto" until it is known
    probes: int
    distribution: str

    @property
    def terms(self) -> int:
        """How many values there are for each sample."""
        return 1 if self.method == "exact" else self.probes

    def __call__(self, call: Call, x: Tensor, identity: Identity) -> tuple[Tensor, Tensor]:
        """The model's output, and its divergence by each probe: (n, terms), float64."""
        if self.method == "exact":
            output, trace = output_and_trace(call, x)
            return output, trace.detach().double().unsqueeze(-1)
        batch = Batch(x, call, None, identity.key, samples=identity.samples)
        found = reverse_alone(batch, Slicing(self.probes, self.distribution))
        return found.output, found.vjv.detach().double().T

    def first(self, call: Call, x: Tensor, identity: Identity) -> tuple[Tensor, Tensor]:
        """The same, of a model that is seen for the first time, which may be refused."""
        if isinstance(call.model, torch.nn.Module) and mixes_samples(call.model):
            got = "one with a BatchNorm layer that takes the statistics of its batch (model.eval())"
            fail(self.fn, "model", "one whose samples do not depend on one another", got)
        before = Rewind(call.model, x)
        output, found = self.chosen(call, x, identity)
        if before.has_drawn():
            before()
            expected = "a function of x alone, for the flow is integrated"
            got = "one that draws random numbers (dropout? model.eval() turns it off)"
            fail(self.fn, "model", expected, got)
        self.refuse_half(output)
        if found.numel() and not bool(found.any()) and not has_graph(call, x):
            got = "one whose output has no graph that leads to x (detached, or from NumPy?)"
            fail(self.fn, "model", "differentiable in x", got)
        self.refuse_mixing(call, x, output)
        return output, found

    def chosen(self, call: Call, x: Tensor, identity: Identity) -> tuple[Tensor, Tensor]:
        """What "auto" is, is found by trying: exact where that costs no more than probes."""
        if self.method != "auto":
            return self(call, x, identity)
        few = math.prod(x.shape[1:]) <= max(self.probes, FEW_DIMENSIONS)
        self.method = "exact"
        if few or known_divergence(call.model) is not None:
            return self(call, x, identity)
        try:
            output, trace = output_and_trace(call, x, closed=True)
        except NoClosedForm:
            self.method = "hutchinson"
            return self(call, x, identity)
        return output, trace.detach().double().unsqueeze(-1)

    def refuse_half(self, output: Tensor) -> None:
        """Rounding to half precision is as large as what is wanted."""
        if torch.finfo(output.dtype).bits < 32:
            expected = "one that returns float32 or float64 (half precision rounds the divergence "
            expected += "by 0.1 to 1 percent; model.float())"
            fail(self.fn, "model", expected, output.dtype)

    def refuse_mixing(self, call: Call, x: Tensor, output: Tensor) -> None:
        """A sample's output must not change where those of others do; looked at once."""
        if len(x) < 2 or not x.numel():
            return
        is_module = isinstance(call.model, torch.nn.Module)
        known, situation = known_of(call.model), ("alone", modes_of(call.model))
        if is_module and situation in known:
            return
        changed = x.clone()
        changed[1::2] = 1 - 2 * x[1::2]
        again = call.output(changed)
        if far_apart(output[::2], again[::2], largest(output[::2])):
            got = "one whose output for a sample changes with the others in its batch"
            fail(self.fn, "model", "one whose samples do not depend on one another", got)
        if is_module:
            known[situation] = True


def has_graph(call: Call, x: Tensor) -> bool:
    """Whether reverse mode finds a way from the output to x."""
    with recording(), compiled_parts_run_eagerly():
        point = recordable(x).detach().requires_grad_()
        output = call.recordable().output(point)
        if not output.requires_grad:
            return False
        found = torch.autograd.grad(output.sum(), point, allow_unused=True)[0]
    return found is not None
