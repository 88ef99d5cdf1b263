"""The sampling loop that every sampler shares.

A sampler is a table with one row (a, b, c, k) for each step, and a step is

    x <- a x + b s(x, sigma) + c z,    z ~ N(0, I)

(known pixels are set to ``known + k z`` instead). The loop asks the model for the score, applies
the row to the state in one fused kernel, and counts the step on the device. It never waits for the
device, and after the first step it allocates nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy
import torch
from torch import Tensor

from fastscore._support.checks import check_output
from fastscore._support.explain import explain, parameter_dtypes
from fastscore._support.extras import require
from fastscore._support.lending import is_untouched, lend_own, lent
from fastscore.conditioning import condition
from fastscore.ops._library import ops
from fastscore.samplers._batches import Batches
from fastscore.samplers._graph import capture
from fastscore.samplers._plan import Callback, Clamp, Model

# What fastscore.ops.langevin_step_ calls, without its checks: everything here has been checked.
update = ops.langevin_step_.default._op


@dataclass
class Chain:
    """The state of a run, in buffers that keep their place so that a CUDA graph can hold them."""

    fn: str
    model: Model
    conditioning: str
    x: Tensor  # (B, ...): the state, changed in place
    key: Tensor  # (2,) int64: seed, and the number of the next step
    table: Tensor  # (rows, 4) float64
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
    draw: Tensor = field(init=False)  # (1,) or (B, 1): the number in the key
    sigma: Tensor = field(init=False)  # (B,): the level of the current step
    labels: Tensor = field(init=False)  # (B,) int64: its index
    arguments: tuple[Tensor, ...] = field(init=False)  # what the model is called with, besides x
    batches: Batches | None = field(init=False, default=None)
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

    def set_level_of(self, step: int) -> None:
        """Fill ``sigma`` and ``labels`` with the level of a step; the host knows both."""
        level = min(step // self.steps_per_level, len(self.levels) - 1)
        self.labels.fill_(level)
        self.sigma.fill_(self.levels[level])
        self.arguments = condition(self.conditioning, self.sigma, self.labels)

    def score(self) -> Tensor:
        """The score at the state. A half-precision score is left to the kernel to convert."""
        if self.autocast is None:
            score = self.call_model()
        else:
            kind = self.x.device.type  # a graph must not read copies of weights that it doesn't own
            with torch.autocast(kind, dtype=self.autocast, cache_enabled=not self.static):
                score = self.call_model()
        return score.to(self.x.dtype) if torch.float64 in (score.dtype, self.x.dtype) else score

    def call_model(self) -> Tensor:
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
        return check_output(self.fn, output, x)

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
        """One model call, one fused update, one step further."""
        update(
            self.x,
            self.score(),
            self.table,
            self.key,
            self.known,
            self.mask,
            *self.clamp,
            self.sample_offset,
            self.samples,
        )
        torch._C._increment_version((self.x,))
        if self.host_key is None:
            self.draw.add_(1)
        else:
            self.host_key[1] += 1  # a tenth of the time that an op on one number takes

    def captured_step(self) -> None:
        """The work that a CUDA graph replays: what the model is told is made of ``sigma`` anew."""
        self.arguments = condition(self.conditioning, self.sigma, self.labels)
        self.step()


def half_dtype(model: Model) -> torch.dtype | None:
    """The dtype of a model whose floating-point parameters all are of one half precision."""
    dtypes = parameter_dtypes(model)
    if len(dtypes) == 1 and torch.finfo(dtype := next(iter(dtypes))).bits == 16:
        return dtype
    return None


def run(
    chain: Chain,
    *,
    start_step: int,
    steps: int,
    record: Sequence[int],
    progress: bool,
    callback: Callback | None,
    use_graph: bool,
) -> tuple[int, Tensor]:
    """Take steps ``start_step`` to ``steps - 1``, in place; return their end, recorded states.

    ``record`` lists, in increasing order, after how many steps the state is copied.
    """
    trajectory = chain.x.new_empty(len(record), *chain.x.shape)
    recorded, done = 0, start_step
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_device_guard(chain.x.device))
        if chain.autocast is not None:
            # Copies of the weights live until the outermost autocast region ends. This one, which
            # casts nothing itself, keeps them from one model call to the next.
            stack.enter_context(torch.autocast(chain.x.device.type, enabled=False))
        advance = stack.enter_context(_progress_bar(chain.fn, progress, start_step, steps))
        chain.set_level_of(start_step)
        state = (chain.x, chain.key, chain.sigma, chain.labels)
        graph = capture(chain.fn, chain.captured_step, state, use_graph)

        for step in range(start_step, steps):
            if step > start_step and step % chain.steps_per_level == 0:
                chain.set_level_of(step)
            if graph is not None:
                graph.replay()
            else:
                chain.step()
            done = step + 1
            if recorded < len(record) and done == record[recorded]:
                trajectory[recorded].copy_(chain.x)
                recorded += 1
            advance()
            if callback is not None and _says_stop(callback(done, chain.x)):
                break
        else:
            if chain.mask is not None and chain.known is not None:
                torch.where(chain.mask, chain.known, chain.x, out=chain.x)
    return done, trajectory[:recorded]


def _says_stop(answer: Any) -> bool:
    """True, also NumPy's or a tensor's; whatever else a callback returns is its own business."""
    if isinstance(answer, Tensor):
        return answer.dim() == 0 and answer.dtype == torch.bool and bool(answer)
    return isinstance(answer, (bool, numpy.bool_)) and bool(answer)


def _device_guard(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _progress_bar(fn: str, progress: bool, start: int, steps: int) -> Iterator[Callable[[], Any]]:
    if not progress:
        yield lambda: None
        return
    with progress_bar_class(fn)(total=steps, initial=start, desc=fn, unit="step") as bar:
        yield bar.update


def progress_bar_class(fn: str) -> Any:
    """tqdm, an optional dependency."""
    return require(fn, "tqdm.auto", "tqdm", what="progress=True").tqdm
