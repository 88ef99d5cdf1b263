"""The sampling loop that every sampler shares.

A sampler is a table whose rows (a, b, c, k, ...) are a call of the model each,

    x <- a x + b s(x, sigma) + c z,    z ~ N(0, I)

(known pixels are set to ``known + k z`` instead, and the state is projected to what was measured
otherwise: :mod:`fastscore.samplers._measured`). The loop asks the model for the score, applies
the row to the state in one fused kernel, and counts the row on the device. A step is a row, or
several where a solver looks twice or a corrector follows. It never waits for the device, and after
the first step it allocates nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy
import torch
from torch import Tensor

from fastscore._support.checks import check_output
from fastscore._support.explain import explain, parameter_dtypes
from fastscore._support.extras import require
from fastscore._support.lending import is_untouched, lend_own, lent
from fastscore._support.terms import Terms
from fastscore.conditioning import condition
from fastscore.ops import rk_stage
from fastscore.ops._library import ops
from fastscore.samplers._batches import Batches
from fastscore.samplers._graph import StepGraph
from fastscore.samplers._measured import Measured
from fastscore.samplers._plan import OPEN, Callback, Clamp, Model, Plan
from fastscore.samplers._state import SamplerState

# What fastscore.ops.langevin_step_ calls, without its checks: everything here has been checked.
update = ops.langevin_step_.default._op
multistep_update = ops.multistep_step_.default._op


class Course(NamedTuple):
    """The steps that a run takes, and what goes on beside them."""

    rows: Sequence[int]  # how many rows of the table come before each step, and before the end
    start_step: int
    steps: int  # where it ends
    record: Sequence[int]  # after how many steps the state is copied, in increasing order
    progress: bool
    callback: Callback | None
    use_graph: bool


@dataclass
class Chain:
    """The state of a run, in buffers that keep their place so that a CUDA graph can hold them."""

    fn: str
    model: Model
    conditioning: str
    x: Tensor  # (B, ...): the state, changed in place
    key: Tensor  # (2,) int64: seed, and the number of the next step
    table: Tensor  # (rows, columns) float64
    sigmas: Tensor  # (L,) in the dtype of x
    levels: list[float]  # the same, for the host
    steps_per_level: int
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None  # of each call of the model; None: all at once
    known: Tensor | None = None
    mask: Tensor | None = None
    clamp: Clamp = (None, None)
    sample_offset: int = 0
    samples: Tensor | None = None
    autocast: torch.dtype | None = None  # None: whatever region the caller is in
    static: bool = False  # whether a CUDA graph is to replay the step, on memory of its own alone
    labels_of: Sequence[int] | None = None  # the index of each level, where it is not its number
    scales: Sequence[float] | None = None  # x times this is the state, before each row and at last
    history: Tensor | None = None  # what multistep rows remember
    clip: Clamp = OPEN  # of the predicted data in them
    known_table: Tensor | None = None  # known elements are a known + b known_noise after each row
    known_noise: Tensor | None = None
    adjust: Callable[[Chain, Tensor], None] | None = None
    projection: Measured | None = None  # to what was measured
    row: int = 0  # the number of the next row, for the host
    second: Tensor | None = field(init=False, default=None)  # of a score that is a sum of two
    weights: Tensor | None = field(init=False, default=None)
    given: Any = field(init=False, default=None)  # the weights as they came
    draw: Tensor = field(init=False)  # (1,) or (B, 1): the number in the key
    sigma: Tensor = field(init=False)  # (B,): the level of the current step, or its time
    labels: Tensor = field(init=False)  # (B,) int64: its index
    arguments: tuple[Tensor, ...] = field(init=False)  # what the model is called with, besides x
    batches: Batches | None = field(init=False, default=None)
    failed: Tensor | None = field(init=False, default=None)  # (B,): which samples are given up
    model_dtype: torch.dtype | None = field(init=False)  # what the state is cast to for the model
    checked: bool = field(init=False, default=False)  # whether the model's output has been
    writes: bool = field(init=False, default=False)  # whether the model writes to its arguments
    host_key: memoryview | None = field(init=False, default=None)  # the key's memory, on the CPU

    def __post_init__(self) -> None:
        batch = self.x.shape[0]
        self.draw = self.key[..., 1:]
        self.sigma = self.sigmas.new_empty(batch)
        self.labels = self.key.new_empty(batch)
        self.model_dtype = half_dtype(self.model) if self.autocast is None else None
        if self.batch_size is not None and batch:
            self.batches = Batches(self.fn, self.batch_size, batch, self.model_kwargs)
        if self.key.device.type == "cpu" and self.key.dim() == 1 and not self.static:
            self.host_key = memoryview(cast(Any, self.key.numpy()))

    def set_level_of(self, row: int) -> None:
        """Fill ``sigma`` and ``labels`` with the level of a row; the host knows both."""
        level = min(row // self.steps_per_level, len(self.levels) - 1)
        self.labels.fill_(level if self.labels_of is None else self.labels_of[level])
        self.sigma.fill_(self.levels[level])
        self.tell(self.sigma, self.labels)

    def tell(self, told: Tensor, labels: Tensor) -> None:
        """What the model is called with besides x: the level (or the time), or its index."""
        self.arguments = condition(self.conditioning, told, labels, told)

    def score(self) -> Tensor:
        """The score at the state. A half-precision score is left to the kernel to convert."""
        if self.autocast is None:
            score = self.call_model()
        else:
            kind = self.x.device.type  # a graph must not read copies of weights that it doesn't own
            with torch.autocast(kind, dtype=self.autocast, cache_enabled=not self.static):
                score = self.call_model()
        if type(score) is Terms:
            score = self.first_of(score)
        elif self.second is not None:  # of the call before
            self.second = self.weights = self.given = None
        return self.fitting(score)

    def fitting(self, score: Tensor) -> Tensor:
        """Of the state's dtype, or of half precision."""
        return score.to(self.x.dtype) if torch.float64 in (score.dtype, self.x.dtype) else score

    def first_of(self, terms: Terms) -> Tensor:
        """The first of a score's terms; the second, and the weights of both, are kept."""
        first, *others = (tensor for tensor, _ in terms.pairs)
        second = others[0] if others else torch.zeros_like(first)
        self.second = self.fitting(check_output(self.fn, second, self.x))
        given = [weight for _, weight in terms.pairs]
        changes = any(isinstance(weight, Tensor) for weight in given)
        if changes or given != self.given:
            weights = terms.weights()
            if not others:
                weights = torch.nn.functional.pad(weights, (0, 1))
            self.weights, self.given = weights.to(self.x.device), None if changes else given
        return check_output(self.fn, first, self.x)

    def total(self, score: Tensor) -> Tensor:
        """What :meth:`score` has returned, with its second term added where there is one."""
        if self.second is None:
            return score
        assert self.weights is not None
        return rk_stage(score.to(self.x.dtype), [self.second], self.weights)

    def call_model(self) -> Any:
        """The model's output, looked at closely the first time; later the kernel's checks do.

        What it gets is lent, anew each time. Memory that is lent moves when it is written to, where
        a CUDA graph would not find it: there the model gets the memory itself, or copies if it is
        one that writes to what it gets.
        """
        x = self.x if self.model_dtype is None else self.x.to(self.model_dtype)
        if self.batches is not None:
            return self.call_in_batches(self.batches, x)
        named = lent(self.model_kwargs) if self.model_kwargs else {}
        if self.checked and not self.static:
            return self.model(lend_own(x), *map(lend_own, self.arguments), **named)
        handed = (x, *self.arguments)
        if self.checked:
            return self.model(*(map(torch.clone, handed) if self.writes else handed), **named)
        self.checked = True
        handed = tuple(map(lend_own, handed))
        try:
            output = self.model(*handed, **named)
        except Exception as error:
            self.explain(error)
            raise
        self.writes = not all(map(is_untouched, handed))
        return output if type(output) is Terms else check_output(self.fn, output, x)

    def call_in_batches(self, batches: Batches, x: Tensor) -> Tensor:
        """The model's output, from as many calls as it takes."""
        try:
            return batches(self.model, x, self.arguments)
        except Exception as error:
            self.explain(error)
            raise

    def explain(self, error: Exception) -> None:
        """What the model's failure may come from."""
        by_index = self.fn != "langevin"
        given = (self.x, self.conditioning, self.model_kwargs)
        explain(self.fn, self.model, *given, error, by_index=by_index)

    def step(self) -> None:
        """One model call, one fused update, one row further."""
        score = self.score()
        if self.adjust is not None:
            self.adjust(self, score)
        known = self.known if self.known_table is None else self.known_now()
        held = (self.table, self.key, known, self.mask, *self.clamp)
        sample_of = (self.sample_offset, self.samples, self.second, self.weights)
        if self.history is None:
            update(self.x, score, *held, *sample_of)
            torch._C._increment_version((self.x,))
        else:
            multistep_update(self.x, self.history, score, *held, *self.clip, *sample_of)
            torch._C._increment_version((self.x, self.history))
        self.count_row()
        if self.projection is not None:
            self.projection.project(self.x, self.key, self.sample_offset, self.samples)

    def count_row(self) -> None:
        """One row further, on the device and on the host."""
        if self.host_key is None:
            self.draw.add_(1)
        else:
            self.host_key[1] += 1  # a tenth of the time that an op on one number takes
        self.row += 1

    def known_now(self) -> Tensor:
        """Known elements at the noise of the next row, with the same noise as at all others."""
        none = (None, None, None, None, 0, None)
        return ops.langevin_step.default(
            self.known, self.known_noise, self.known_table, self.key, *none
        )

    def shown(self) -> Tensor:
        """The state as x: itself, or a copy where the run keeps another variable."""
        scale = 1.0 if self.scales is None else self.scales[self.row]
        return self.x if scale == 1 else self.x / scale

    def take_back(self, shown: Tensor, version: int) -> None:
        """What was written to ``shown`` goes into the chain."""
        if shown is not self.x and shown._version != version and self.scales is not None:
            self.x.copy_(shown).mul_(self.scales[self.row])

    def captured_step(self) -> None:
        """The work that a CUDA graph replays: what the model is told is made of ``sigma`` anew."""
        self.tell(self.sigma, self.labels)
        self.step()

    def take(self, rows: Sequence[int], graph: StepGraph | None) -> None:
        """The rows of one step, replayed where there is a graph of them."""
        for row in rows:
            if row % self.steps_per_level == 0:
                self.set_level_of(row)
            if graph is None:
                self.step()
            else:
                graph.replay()

    def can_capture(self) -> bool:
        """Whether a CUDA graph can replay what is to come."""
        return True

    def take_up(self, state: SamplerState) -> None:
        """Go on from a state, beyond x and history."""

    def run(self, course: Course) -> tuple[int, Tensor]:
        """Take the steps of a course, in place; return their end, recorded states.

        At the end of the last step the chain's state is x itself.
        """
        rows, record, end = course.rows, course.record, course.steps
        trajectory = self.x.new_empty(len(record), *self.x.shape)
        recorded, done = 0, course.start_step
        with surroundings(self, course.progress, done, end) as advance:
            self.row = rows[done]
            self.set_level_of(self.row)
            graph = None
            if course.use_graph and self.can_capture():
                memory = [self.x, self.key, self.sigma, self.labels]
                memory += [] if self.history is None else [self.history]
                graph = StepGraph(self.fn, self.captured_step, memory)

            for step in range(done, end):
                self.take(range(rows[step], rows[step + 1]), graph)
                self.row = rows[step + 1]
                done = step + 1
                if recorded < len(record) and done == record[recorded]:
                    trajectory[recorded].copy_(self.shown())
                    recorded += 1
                advance()
                if course.callback is not None and self.watched(course.callback, done):
                    break
            else:
                if self.mask is not None and self.known is not None:
                    scale = 1.0 if self.scales is None else self.scales[self.row]
                    known = self.known if scale == 1 else self.known * scale
                    torch.where(self.mask, known, self.x, out=self.x)
        return done, trajectory[:recorded]

    def watched(self, callback: Callback, done: int) -> bool:
        """Show the state to a callback; whether it says stop."""
        shown = self.shown()
        version = shown._version
        stop = stopped_by(callback, done, shown)
        self.take_back(shown, version)
        return stop

    def state_after(self, final: Tensor, taken: int, plan: Plan) -> SamplerState:
        """Where the run has come to, for one that goes on from there."""
        seed = self.key.clone()
        seed[..., 1].zero_()
        return SamplerState(
            final,
            taken,
            plan.rows[taken],
            seed=seed,
            state=None if final is self.x else self.x,
            history=self.history if plan.carries_history else None,
        )


def half_dtype(model: Model) -> torch.dtype | None:
    """The dtype of a model whose floating-point parameters all are of one half precision."""
    dtypes = parameter_dtypes(model)
    if len(dtypes) == 1 and torch.finfo(dtype := next(iter(dtypes))).bits == 16:
        return dtype
    return None


@contextmanager
def surroundings(
    chain: Chain, progress: bool, start: int, steps: int | None
) -> Iterator[Callable[[], Any]]:
    """What a run goes on in; yields what is called after each step."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_device_guard(chain.x.device))
        if chain.autocast is not None:
            # Copies of the weights live until the outermost autocast region ends. This one, which
            # casts nothing itself, keeps them from one model call to the next.
            stack.enter_context(torch.autocast(chain.x.device.type, enabled=False))
        yield stack.enter_context(_progress_bar(chain.fn, progress, start, steps))


def stopped_by(callback: Callback, done: int, shown: Tensor) -> bool:
    """Whether the answer is True, NumPy's or a tensor's too; any other is the callback's own."""
    answer = callback(done, shown)
    if isinstance(answer, Tensor):
        return answer.dim() == 0 and answer.dtype == torch.bool and bool(answer)
    return isinstance(answer, (bool, numpy.bool_)) and bool(answer)


def _device_guard(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _progress_bar(
    fn: str, progress: bool, start: int, steps: int | None
) -> Iterator[Callable[[], Any]]:
    if not progress:
        yield lambda: None
        return
    with progress_bar_class(fn)(total=steps, initial=start, desc=fn, unit="step") as bar:
        yield bar.update


def progress_bar_class(fn: str) -> Any:
    """tqdm, an optional dependency."""
    return require(fn, "tqdm.auto", "tqdm", what="progress=True").tqdm
