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
from typing import Any

import numpy
import torch
from torch import Tensor

from fastscore.conditioning import call_model, condition
from fastscore.ops._library import ops
from fastscore.samplers._graph import capture

Model = Callable[..., Tensor]
Callback = Callable[[int, Tensor], Any]
Clamp = tuple[float | None, float | None]

# What fastscore.ops.langevin_step_ calls, without its checks: everything here has been checked.
update = ops.langevin_step_.default


@dataclass
class Plan:
    """What makes one sampler differ from another, on the CPU in float64."""

    table: Tensor  # (rows, 4): a, b, c, k of each step; the last row serves all steps after it
    sigmas: Tensor  # (L,): what the model is conditioned on
    steps: int  # model calls from start to end
    steps_per_level: int  # consecutive steps that see the same sigma
    init_scale: float  # standard deviation of a normal initial state
    known_scale: float  # standard deviation of the noise that known pixels have at the start
    device: torch.device | None = None  # where to sample when nothing else says so


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
    known: Tensor | None = None
    mask: Tensor | None = None
    clamp: Clamp = (None, None)
    sample_offset: int = 0
    autocast: torch.dtype | None = None  # None: whatever region the caller is in
    cache_casts: bool = True
    draw: Tensor = field(init=False)  # (1,): the number in the key
    sigma: Tensor = field(init=False)  # (B,): the level of the current step
    labels: Tensor = field(init=False)  # (B,) int64: its index
    arguments: tuple[Tensor, ...] = field(init=False)  # what the model is called with, besides x
    checked: bool = field(init=False, default=False)  # whether the model's output has been
    host_key: memoryview | None = field(init=False, default=None)  # the key's memory, on the CPU

    def __post_init__(self) -> None:
        batch = self.x.shape[0]
        self.draw = self.key[1:]
        self.sigma = self.sigmas.new_empty(batch)
        self.labels = self.key.new_empty(batch)
        if self.key.device.type == "cpu":
            self.host_key = memoryview(self.key.numpy())

    def set_level(self, level: int) -> None:
        """Fill ``sigma`` and ``labels`` with the level that the host knows."""
        self.labels.fill_(level)
        self.sigma.fill_(self.levels[level])
        self.arguments = condition(self.conditioning, self.sigma, self.labels)

    def set_level_of_draw(self) -> None:
        """Fill them for the current step, whose number stays on the device."""
        level = (self.draw // self.steps_per_level).clamp_(max=self.sigmas.shape[0] - 1)
        self.labels.copy_(level)
        self.sigma.copy_(self.sigmas.index_select(0, level))
        self.arguments = condition(self.conditioning, self.sigma, self.labels)

    def score(self) -> Tensor:
        """The score at the state. A half-precision score is left to the kernel to convert."""
        if self.autocast is None:
            score = self.call_model()
        else:
            kind, cache = self.x.device.type, self.cache_casts
            with torch.autocast(kind, dtype=self.autocast, cache_enabled=cache):
                score = self.call_model()
        return score.to(self.x.dtype) if torch.float64 in (score.dtype, self.x.dtype) else score

    def call_model(self) -> Tensor:
        """The model's output, looked at closely the first time; later the kernel's checks do."""
        if self.checked:
            return self.model(self.x, *self.arguments)
        self.checked = True
        return call_model(self.fn, self.model, self.x, self.sigma, self.labels, self.conditioning)

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
        )
        torch._C._increment_version((self.x,))
        if self.host_key is None:
            self.draw.add_(1)
        else:
            self.host_key[1] += 1  # a tenth of the time that an op on one number takes

    def set_level_and_step(self) -> None:
        """One step that serves every level: the work that a CUDA graph replays."""
        self.set_level_of_draw()
        self.step()


def run(
    chain: Chain,
    *,
    start_step: int,
    steps: int,
    record: Sequence[int],
    progress: bool,
    callback: Callback | None,
    use_graph: bool,
) -> Tensor:
    """Take steps ``start_step`` to ``steps - 1``, in place; return the recorded states.

    ``record`` lists, in increasing order, after how many steps the state is copied.
    """
    trajectory = chain.x.new_empty(len(record), *chain.x.shape)
    recorded = 0
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_device_guard(chain.x.device))
        if chain.autocast is not None:
            # Copies of the weights live until the outermost autocast region ends. This one, which
            # casts nothing itself, keeps them from one model call to the next.
            stack.enter_context(torch.autocast(chain.x.device.type, enabled=False))
        advance = stack.enter_context(_progress_bar(chain.fn, progress, start_step, steps))
        graph = capture(chain.fn, chain.set_level_and_step, (chain.x, chain.key), use_graph)

        for step in range(start_step, steps):
            if graph is not None:
                graph.replay()
            else:
                if step == start_step or step % chain.steps_per_level == 0:
                    chain.set_level(min(step // chain.steps_per_level, len(chain.levels) - 1))
                chain.step()
            done = step + 1
            if recorded < len(record) and done == record[recorded]:
                trajectory[recorded].copy_(chain.x)
                recorded += 1
            advance()
            if callback is not None and _says_stop(callback(done, chain.x)):
                break
        else:
            if chain.mask is not None:
                torch.where(chain.mask, chain.known, chain.x, out=chain.x)
    return trajectory[:recorded]


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
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(f"{fn}: progress=True needs tqdm: pip install tqdm") from error
    return tqdm
