"""The adaptive solvers of the probability flow: every sample with its own steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from fastscore._support.checks import per_sample
from fastscore._support.model_kwargs import Shared, rebuilt
from fastscore._support.warn import warn_caller
from fastscore.samplers._angle import Angle, Nodes
from fastscore.samplers._batches import Batches
from fastscore.samplers._controller import (
    ARRIVED,
    AT_DATA,
    NO_NUMBER,
    RUNNING,
    TOO_MANY,
    TOO_SMALL,
    Control,
    first_step,
)
from fastscore.samplers._graph import StepGraph
from fastscore.samplers._loop import Course, stopped_by, surroundings
from fastscore.samplers._plan import Callback, Plan
from fastscore.samplers._runge_kutta import (
    DORMAND_PRINCE,
    StagedChain,
    Tableau,
    coefficients_of,
    matrix,
    rk_advance_,
    rk_error,
    rk_stage,
)
from fastscore.samplers._state import SamplerState

NAMED = 5  # of the samples that have failed
REASONS = {
    TOO_SMALL: "its step, in the angle of the noise level, has fallen to {h:.1e}; looser "
    "tolerances or float64 may do",
    NO_NUMBER: "the model returns NaN or infinity",
    TOO_MANY: "it has not arrived, and max_steps is {max_steps}: more, or looser tolerances",
}


@dataclass
class Method:
    """What a run with step control is asked for."""

    rtol: float
    atol: float
    max_steps: int
    denoise: bool
    returns_failed: bool
    tableau: Tableau = DORMAND_PRINCE
    equal_steps: int | None = None  # so many, without step control
    first: float = 1.0  # the first step, over what the tolerances suggest


@dataclass
class AdaptiveChain(StagedChain):
    """A chain of samples that are each at their own time; those that have arrived leave it.

    What is per sample is held twice: of the samples that are still moving, and of all.
    """

    carried: ClassVar[tuple[str, ...]] = ()  # what else steps change: attributes (n, ...)
    told_by: ClassVar[str] = "return_state=True"  # where a user finds which have failed
    method: Method = field(kw_only=True)
    angle: Angle = field(kw_only=True)
    control: Control = field(init=False)
    first: Tensor = field(init=False)  # the output at x
    new: Tensor = field(init=False)
    live: Tensor | None = field(init=False, default=None)  # (n,): which samples; None: all
    all_x: Tensor = field(init=False)
    all_first: Tensor | None = field(init=False, default=None)
    all_control: Control = field(init=False)
    all_carried: dict[str, Tensor] = field(init=False, default_factory=dict)
    failed: Tensor | None = field(init=False, default=None)  # (B,) bool, at the end of the run

    def __post_init__(self) -> None:
        """At the start; a run that is resumed is taken up then."""
        super().__post_init__()
        m, self.angle = self.method, self.angle.on(self.x.device)
        self.begin, self.end = (
            self.angle.of_time(self.angle.first),
            self.angle.of_time(self.angle.last),
        )
        span, tableau = self.end - self.begin, m.tableau
        h = m.first * first_step(span, m.rtol, m.atol, tableau.order)
        self.equal_step = None if m.equal_steps is None else span / m.equal_steps
        h = h if self.equal_step is None else self.equal_step
        device = self.x.device
        self.all_x, self.new = self.x, torch.empty_like(self.x)
        self.all_control = self.control = Control.start(len(self.x), self.begin, h, device)
        self.all_known = self.known, self.mask, self.known_noise, self.unknown
        self.all_kwargs, self.whole_batches = self.model_kwargs, self.batches
        nodes = torch.tensor(tableau.nodes, dtype=torch.float64, device=device)
        self.nodes, self.weights_of = nodes.unsqueeze(-1), matrix(tableau, device)
        self.stages, self.at_the_end = len(tableau.nodes), tableau.nodes.count(1.0)

    def take_up(self, state: SamplerState) -> None:
        """Go on from where another run has come to."""
        assert state.control is not None
        device = self.x.device
        found = {name: tensor.to(device, copy=True) for name, tensor in state.control.items()}
        assert isinstance(state.evaluations, Tensor)
        found["evaluations"] = state.evaluations.to(device, copy=True)
        self.all_control = self.control = Control(**found)
        self.all_first = None if state.history is None else state.history.to(device, copy=True)

    # ---- one step ------------------------------------------------------------------------------

    def ask_first(self) -> None:
        """The output at x, of every sample that is moving."""
        nodes = self.angle.nodes(self.control.tau.unsqueeze(0))
        self.tell(nodes.told[0].to(self.x.dtype), nodes.label_at(0))
        self.keep()
        self.first = self.asked(0, self.x, nodes).clone()
        self.control.evaluations.add_(1)

    def captured_step(self) -> None:
        """A step of all samples in the chain."""
        self.attempt(self.take_step)
        self.keep()

    def take_step(self) -> None:
        """A call of the model at each stage but the first; where the error is small, x moves.

        The first stage's output is that of the last one in the step before.
        """
        h, final, moving = self.control.next(self.end)
        tau = self.control.tau + self.nodes * h
        tau[-self.at_the_end :].masked_fill_(final, self.end)
        at = self.angle.nodes(tau)
        told = at.told.to(self.x.dtype)
        g = torch.cat([at.g, at.g[-1:]])
        table = coefficients_of(self.method.tableau, self.weights_of, h, at.p, at.q, g)
        base = self.unknown_part(self.x)
        self.keep(self.first)
        last = self.stages - 1
        for stage in range(1, self.stages):
            w = self.stage if stage < last else self.new
            rk_stage(base, self.kept, table[stage, :, : stage + 1].contiguous(), out=w)
            if self.mask is not None:
                self.with_known(w, at.known_at(stage))
            if stage == last:
                self.clamp_state(w, at.alpha[-1], tau[-1])
            self.tell(told[stage], at.label_at(stage))
            self.asked(stage, w, at)
        error = self.error_of(base, table[-1], at.g[0] / at.g[-1], at.alpha[-1])
        error = self.judged(error, h, at)
        accepted = self.control.after(
            h, tau[-1], error, final, moving, last, self.method.tableau.order, self.equal_step
        )
        rk_advance_(self.x, self.first, self.new, self.kept[-1], accepted)
        self.moved(accepted)

    def asked(self, stage: int, w: Tensor, at: Nodes) -> Tensor:
        """The model's output at a stage, whose place among the nodes that is."""
        return self.output_at(w, at.data_at(stage))

    def judged(self, error: Tensor, h: Tensor, at: Nodes) -> Tensor:
        """The error of each sample's step, by all that is to be as exact as x."""
        return error

    def moved(self, accepted: Tensor) -> None:
        """What goes on beside x, of the samples whose step is accepted."""

    def error_of(self, base: Tensor, e: Tensor, ratio: Tensor, alpha: Tensor) -> Tensor:
        """RMS of the error over the tolerance, of each sample, in the units of y.

        x is made as large as it would be at the new level, where ``alpha`` times y is w.
        """
        ratio = ratio.to(base.dtype)
        torch.mul(base, per_sample(ratio, base), out=self.stage)
        e[:, 0] /= ratio
        tolerances = torch.stack(
            [alpha * self.method.atol, torch.full_like(alpha, self.method.rtol)], dim=-1
        )
        error = rk_error(self.stage, self.new, self.kept, e, tolerances)
        return error if self.unknown is None else error * self.unknown.sqrt()

    def clamp_state(self, w: Tensor, alpha: Tensor, tau: Tensor) -> None:
        """The bounds are those of x."""
        low, high = self.clamp
        if low is None and high is None:
            return
        kappa = per_sample(self.angle.shown(tau).to(w.dtype), w)
        if low is not None:
            torch.maximum(w, low * kappa, out=w)
        if high is not None:
            torch.minimum(w, high * kappa, out=w)

    # ---- who is in the batch ---------------------------------------------------------------------

    def store(self) -> None:
        """Write what is of the moving samples into what is of all."""
        if self.live is None:
            self.all_first = self.first
            return
        assert self.all_first is not None
        self.all_x[self.live] = self.x
        self.all_first[self.live] = self.first
        for name, tensor in self.control.tensors().items():
            self.all_control.tensors()[name][self.live] = tensor
        for name, tensor in self.all_carried.items():
            tensor[self.live] = getattr(self, name)

    def keep_only(self, rows: Tensor) -> None:
        """Of the samples in the chain, those at these places stay."""
        self.store()
        if self.live is None:
            self.all_x, self.all_first, self.all_control = self.x, self.first, self.control
            self.all_carried = {name: getattr(self, name) for name in self.carried}
            self.live = rows
        else:
            self.live = self.live[rows]
        self.gather(rows)

    def gather(self, rows: Tensor) -> None:
        """Whatever is per sample goes with the samples."""
        assert self.live is not None
        self.x, self.first = self.x[rows], self.first[rows]
        self.stage, self.new = torch.empty_like(self.x), torch.empty_like(self.x)
        self.control = self.control.chosen(rows)
        for name in self.carried:
            setattr(self, name, getattr(self, name)[rows])
        self.known, self.mask, self.known_noise, self.unknown = (
            None if tensor is None else tensor[self.live] for tensor in self.all_known
        )
        batch = len(self.all_x)
        self.model_kwargs = gathered(self.all_kwargs, batch, self.live)
        if self.batch_size is not None and len(rows):
            self.batches = Batches(self.fn, self.batch_size, len(rows), self.model_kwargs)

    # ---- the run ---------------------------------------------------------------------------------

    def run(self, course: Course) -> tuple[int, Tensor]:
        """Until all have arrived, ``steps`` are taken, or a callback stops it."""
        nothing, done = self.x.new_empty(0, *self.x.shape), course.start_step
        if not self.x.numel():
            return done, nothing
        with surroundings(self, course.progress, done, None) as advance:
            stay = course.use_graph
            self.enter(stay)
            stay = stay and bool((self.control.status == RUNNING).any())
            memory = (self.x, self.first, *self.control.tensors().values())
            graph = StepGraph(self.fn, self.captured_step, memory) if stay else None
            moving, stopped = self.moving(done=done, stay=stay), False
            while moving and done < course.steps and not stopped:
                if graph is None:
                    self.captured_step()
                else:
                    graph.replay()
                done += 1
                moving = self.moving(done=done, stay=stay)
                advance()
                stopped = course.callback is not None and self.watched(course.callback, done)
            self.finish(done, given_up=moving and not stopped, stopped=stopped)
        return done, nothing

    def enter(self, use_graph: bool) -> None:
        """The first call of the model; samples that arrived in the run before are left out."""
        if self.all_first is None:
            self.ask_first()
            return
        self.first = self.all_first
        running = self.control.status == RUNNING
        if not use_graph and not bool(running.all()):
            self.keep_only(running.nonzero()[:, 0])

    def moving(self, *, done: int, stay: bool) -> bool:
        """Whether anybody is; the others leave. The one place where the host waits, once a step."""
        status = self.control.status.cpu()
        running = status == RUNNING
        if bool(running.all()):
            return len(status) > 0
        if not self.method.returns_failed and bool((status >= TOO_SMALL).any()):
            self.store()
            self.refuse(done)
        if not stay:
            self.keep_only(running.nonzero()[:, 0].to(self.x.device))
        return bool(running.any())

    def refuse(self, done: int) -> NoReturn:
        """Name a sample that has failed, its time and its step."""
        control = self.all_control
        row = int((control.status.cpu() >= TOO_SMALL).nonzero()[0])
        tau = control.tau[row : row + 1]
        t, s = self.angle.times(tau), self.angle.level_of(tau)
        status, h = int(control.status[row]), float(control.h[row])
        why = REASONS[status].format(h=abs(h), max_steps=self.method.max_steps)
        raise RuntimeError(
            f"{self.fn}: sample {self.number_of(row)} can't meet its tolerances "
            f"({self.tolerances()}) at t = {float(t):.6g}, where s = {float(s):.6g}, in step "
            f'{done}: {why}. failed="return" returns the others.'
        )

    def watched(self, callback: Callback, done: int) -> bool:
        """Show the whole batch; what is written to it goes into the chain."""
        self.store()
        shown = self.shown()
        version = shown._version
        stop = stopped_by(callback, done, shown)
        if shown._version != version:
            written = shown.detach() * per_sample(self.kappa().to(shown.dtype), shown)
            if self.live is None:
                self.x.copy_(written)
            else:
                self.all_x.copy_(written)
                self.x.copy_(written[self.live])
            if len(self.x):
                first = self.first
                self.ask_first()
                self.first = first.copy_(self.first)
                self.store()
        return stop

    def finish(self, done: int, *, given_up: bool, stopped: bool) -> None:
        """What is left to do when nobody moves any more."""
        if given_up:
            status = self.control.status
            status.copy_(torch.where(status == RUNNING, TOO_MANY, status))
        self.store()
        if given_up and not self.method.returns_failed:
            self.refuse(done)
        if self.live is not None:  # everybody is in again
            self.x, self.control = self.all_x, self.all_control
            vars(self).update(self.all_carried)
            self.model_kwargs, self.batches = self.all_kwargs, self.whole_batches
            self.known, self.mask, self.known_noise, self.unknown = self.all_known
            self.stage = torch.empty_like(self.x)
            self.live = None
        status = self.control.status
        self.failed = status >= TOO_SMALL
        if not stopped and self.method.denoise and bool((status == ARRIVED).any()):
            self.to_data()
        self.settle()

    def to_data(self) -> None:
        """The expected data at the last level, of those who have arrived."""
        status = self.control.status
        nodes = self.angle.nodes(self.control.tau.unsqueeze(0))
        self.tell(nodes.told[0].to(self.x.dtype), nodes.label_at(0))
        self.keep()
        output = self.output_at(self.x, nodes.data_at(0))
        arrived = status == ARRIVED
        data = rk_stage(self.x, [output], self.angle.data_of(self.control.tau))
        self.x.copy_(torch.where(per_sample(arrived, self.x), data, self.x))
        self.control.evaluations.add_(arrived)
        status.copy_(torch.where(arrived, AT_DATA, status))

    def settle(self) -> None:
        """Known elements are themselves; samples that failed are NaN."""
        status = self.control.status
        if self.mask is not None and self.known is not None:
            there = (status == ARRIVED) | (status == AT_DATA)
            known = self.known * per_sample(self.kappa().to(self.x.dtype), self.x)
            mask = self.mask & per_sample(there, self.x)
            torch.where(mask, known, self.x, out=self.x)
        assert self.failed is not None
        self.x.masked_fill_(per_sample(self.failed, self.x), torch.nan)
        if bool(self.failed.any()):
            self.warn_of_failed(self.failed.nonzero()[:, 0].tolist())

    def warn_of_failed(self, rows: list[int]) -> None:
        """Say how many samples are given up, and the first of them."""
        first = ", ".join(str(self.number_of(row)) for row in rows[:NAMED])
        first += ", ..." if len(rows) > NAMED else ""
        warn_caller(
            f"{self.fn}: {len(rows)} of {len(self.all_x)} samples can't meet their tolerances, or "
            f"met NaN, and are NaN (number {first}); {self.told_by} tells which, in failed.",
            UserWarning,
        )

    def tolerances(self) -> str:
        """What a step is held to, in words."""
        return f"rtol={self.method.rtol:g}, atol={self.method.atol:g}"

    def number_of(self, row: int) -> int:
        """The number of a sample."""
        return self.sample_offset + row if self.samples is None else int(self.samples[row])

    def kappa(self) -> Tensor:
        """By which x is multiplied in the state, of all samples."""
        control = self.all_control
        kappa = self.angle.shown(control.tau)
        return torch.where(control.status == AT_DATA, 1.0, kappa)

    def shown(self) -> Tensor:
        """All samples, as x."""
        return self.all_x / per_sample(self.kappa().to(self.all_x.dtype), self.all_x)

    def state_after(self, final: Tensor, taken: int, plan: Plan) -> SamplerState:
        """All that the run is taken up from."""
        seed = self.key.clone()
        seed[..., 1].zero_()
        control = self.all_control.tensors()
        evaluations = control.pop("evaluations")
        return SamplerState(
            final,
            taken,
            evaluations,
            failed=self.failed,
            seed=seed,
            state=self.all_x,
            history=self.all_first,
            control=control,
        )


def gathered(kwargs: dict[str, Any], batch: int, index: Tensor) -> dict[str, Any]:
    """What belongs to the chosen samples; all else is marked as one for the whole batch.

    As the number of samples changes, it may come to be the first size of anything.
    """

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch:
            return value[index.to(value.device)]
        changed = rebuilt(value, walk)
        return Shared(value) if changed is value and not isinstance(value, Shared) else changed

    return {name: walk(value) for name, value in kwargs.items()}
