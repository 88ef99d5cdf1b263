"""The divergence of a model's output at each sample, by the way that suits the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore._support.checks import fail, largest, per_sample
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.inference import recordable, recording
from fastscore._support.known import known_of
from fastscore._support.rewind import Rewind
from fastscore.derivatives.call import Call
from fastscore.derivatives.closed_form import NoClosedForm
from fastscore.derivatives.known import Keeping, known_divergence
from fastscore.derivatives.mixing import far_apart, mixes_samples, modes_of
from fastscore.derivatives.projections import (
    Batch,
    Slicing,
    Terms,
    draw,
    forward,
    reverse_alone,
)
from fastscore.derivatives.traces import output_and_trace, sum_over_sample

METHODS = ("auto", "exact", "hutchinson")
# Of the comparison with differences: their step over the noise, at most, over what rounding spoils.
STEP, MOST_STEP, ROUNDED = 0.01, 0.1, 1e3
DISAGREE = 0.05  # smooth networks are 1e-5 to 5e-3 apart
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
    reverses: bool = True  # whether reverse mode has not failed
    worst: Tensor | None = None  # how far v'J v has been from differences, over its size

    def __call__(self, call: Call, x: Tensor, identity: Identity) -> tuple[Tensor, Tensor]:
        """The model's output, and its divergence by each probe: (n, terms), float64."""
        if self.method == "exact":
            if (method := known_divergence(call.model)) is not None:  # in float64
                keeping = Keeping(method)
                output = call._replace(model=keeping).output(x)
                return output, column(keeping.checked(self.fn, x))
            output, trace = output_and_trace(call, x)
            return output, column(trace)
        batch = Batch(x, call, None, identity.key, samples=identity.samples)
        slicing = Slicing(self.probes, self.distribution)
        found = self.by_reverse(batch, slicing) if self.reverses else forward(batch, slicing)
        return found.output, found.vjv.detach().double().T

    def by_reverse(self, batch: Batch, slicing: Slicing) -> Terms:
        """By dual tensors, from then on, where reverse mode fails: as on writes in place."""
        try:
            return reverse_alone(batch, slicing)
        except RuntimeError as error:
            self.reverses = False
            try:
                return forward(batch, slicing)
            except Exception:
                raise error from None

    def first(self, call: Call, x: Tensor, identity: Identity) -> tuple[Tensor, Tensor]:
        """The same, of a model that is seen for the first time, which may be refused."""
        if isinstance(call.model, torch.nn.Module) and mixes_samples(call.model):
            got = "one with a BatchNorm layer that takes the statistics of its batch (model.eval())"
            fail(self.fn, "model", "one whose samples do not depend on one another", got)
        before = Rewind(call.model, x)
        output, found = self.chosen(call, x, identity)
        output = output.clone()  # the model may use its memory again, below
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
        return output, column(trace)

    def compare(self, call: Call, x: Tensor, identity: Identity, sigma: Tensor) -> None:
        """Take v'J v of some samples by differences, too, at points of noise sigma, (n,).

        What a model computes without a graph is a constant to autograd, and would be missing in
        silence. The result is kept on the device; :meth:`refuse_what_is_missing` looks at it.
        """
        batch = Batch(x, call, None, identity.key, samples=identity.samples)
        slicing = Slicing(1, self.distribution)
        by_reverse = self.reverses and self.method != "exact"
        derivative = (reverse_alone if by_reverse else forward)(batch, slicing).vjv[0].double()
        v = draw(batch, slicing)[0]
        rounding = ROUNDED * torch.finfo(x.dtype).eps * x.abs().reshape(len(x), -1).amax(1)
        step = torch.maximum(STEP * sigma, rounding.double())
        along = v * per_sample(step.to(x.dtype), x)
        ahead, behind = call.output(x + along).clone(), call.output(x - along)
        terms = v.double() * (ahead - behind)
        off = (sum_over_sample(terms) / (2 * step) - derivative).abs()
        good = (step <= MOST_STEP * sigma) & off.isfinite()  # one that fails hides no other
        size = (sum_over_sample(terms.abs()) / (2 * step))[good].sum()
        off = off[good].sum()
        share = torch.where(off > 0, off / size, 0.0)
        self.worst = share if self.worst is None else torch.maximum(self.worst, share)

    def refuse_what_is_missing(self) -> None:
        """That autograd and differences agree."""
        if self.worst is None or not float(self.worst) > DISAGREE:
            return
        got = f"one whose v'J v by autograd and by differences are {float(self.worst):.2g} of it "
        got += "apart (a part without a graph, as a gradient that is taken inside without "
        got += "create_graph=True; or one in half precision)"
        fail(self.fn, "model", "differentiable in x, all of it", got)

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


def column(trace: Tensor) -> Tensor:
    """(n, 1) float64, in memory of its own."""
    return trace.detach().to(torch.float64, copy=True).unsqueeze(-1)


def has_graph(call: Call, x: Tensor) -> bool:
    """Whether reverse mode finds a way from the output to x."""
    with recording(), compiled_parts_run_eagerly():
        point = recordable(x).detach().requires_grad_()
        output = call.recordable().output(point)
        if not output.requires_grad:
            return False
        found = torch.autograd.grad(output.sum(), point, allow_unused=True)[0]
    return found is not None
