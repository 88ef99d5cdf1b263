"""From the arguments of a sampler to a chain that is ready to run: checks first, then work."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastscore import random
from fastscore._support.checks import (
    check_callable,
    check_choice,
    check_device,
    check_device_there,
    check_finite,
    check_floating,
    check_int,
    check_number,
    check_sequence,
    check_tensor,
    describe,
    fail,
    fail_type,
)
from fastscore._support.explain import parameter_dtypes
from fastscore._support.model_kwargs import check_model_kwargs
from fastscore._support.wrappers import said_by
from fastscore.conditioning import conditioning_of, prediction_of
from fastscore.random import Stream
from fastscore.samplers._graph import wants_graph
from fastscore.samplers._loop import Chain, Course, progress_bar_class
from fastscore.samplers._plan import Clamp, Model, Plan, Setting
from fastscore.samplers._state import SamplerState, check_run, seed_of
from fastscore.samplers._warnings import FirstLook, warn_of_divergence

if TYPE_CHECKING:
    from fastscore.samplers._options import SamplerOptions

DEFAULT_SAMPLES = 64
MAX_STEPS = 2**32  # the step number is one 32-bit word of the noise counter
INITS = ("normal", "uniform")
STATE_DTYPES = (torch.float32, torch.float64)
AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)


def sample(
    fn: str,
    model: Model,
    x: Tensor | None,
    plan: Plan,
    options: SamplerOptions,
    trajectory: Sequence[int] | None,
) -> Any:
    """Check everything, build the chain and run it: what every public sampler ends with."""
    record = plan.recorded(fn, trajectory)
    x, resumed, options = resumed_from(fn, x, plan, options)
    start_step, seed = options["start_step"], options["seed"]
    check_callable(fn, "model", model)
    continuous = plan.continuous
    conditioning = conditioning_of(
        fn, model, options["conditioning"], plan.conditioning, in_time=continuous
    )
    prediction = prediction_of(fn, model, options["prediction"], in_time=continuous)
    model_kwargs = check_model_kwargs(fn, options["model_kwargs"])
    check_start(fn, start_step, plan.steps, x, seed)
    bounds = check_settings(fn, options)
    callback, progress = options["callback"], options["progress"]
    if callback is not None and not callable(callback):
        fail_type(fn, "callback", "callable", callback)
    if progress:
        progress_bar_class(fn)
    batch_size = options["batch_size"]
    if batch_size is not None:
        check_int(fn, "batch_size", batch_size, minimum=1)
    shape, dtype, device = state_of(fn, model, x, plan, options)
    known, mask = check_known(fn, options["known"], options["mask"], shape, dtype, device)
    mean = check_init_mean(fn, plan.init_mean, x, options["init"], shape, dtype, device)
    steps = plan.steps if shape.numel() else start_step  # nothing to do for no samples
    calls = plan.rows[steps] - plan.rows[start_step]
    use_graph = wants_graph(fn, options["cuda_graph"], device, calls)
    use_graph = use_graph and steps > start_step and plan.adjust is None
    use_graph = use_graph and (plan.graph_by_itself or options["cuda_graph"] is True)
    measured = None
    if plan.projection is not None:
        measured = plan.projection.along(fn, plan.held(), shape, dtype, device)
    if plan.prepare is not None and shape.numel():
        plan.prepare(Setting(shape, dtype, device, dict(options)))

    with torch.no_grad():
        noise = Noise.of(fn, options, shape[0], device, plan.rows[start_step])
        if continuous:
            check_distinct(fn, noise.samples)
        state, known_noise = first_state(
            noise, x, resumed, plan, options, shape, dtype, known, mask, mean
        )
        if measured is not None and start_step == 0 and shape.numel():
            measured.project(state, noise.initial(), noise.sample_offset, noise.samples)
    chain = (Chain if plan.make_chain is None else plan.make_chain)(
        fn,
        model,
        conditioning,
        state,
        noise.key,
        plan.table_for(prediction).to(device, non_blocking=True),
        plan.sigmas.to(device, dtype, non_blocking=True),
        plan.sigmas.to(dtype).tolist(),
        plan.steps_per_level,
        model_kwargs=model_kwargs,
        batch_size=batch_size,
        known=known,
        mask=mask,
        clamp=bounds,
        sample_offset=noise.sample_offset,
        samples=noise.samples,
        autocast=options["autocast"],
        static=use_graph,
        labels_of=plan.labels,
        scales=plan.scales,
        history=history_of(state, resumed, plan),
        clip=plan.clip,
        known_table=None
        if plan.known_table is None or known is None
        else plan.known_table.to(device),
        known_noise=known_noise,
        adjust=plan.adjust,
        projection=measured,
    )
    if resumed is not None:
        chain.take_up(resumed)
    look = None
    noise_alone = x is None and mean is None and options["init"] == "normal"
    if plan.prior is not None and noise_alone and shape.numel():
        look = FirstLook(chain, plan.prior)
    recorded = [n for n in record or () if n > start_step]
    course = Course(plan.rows, start_step, steps, recorded, progress, callback, use_graph)
    taken, states = chain.run(course)
    final = chain.shown().detach()  # a callback may have asked for gradients with respect to it
    if look is not None:
        look.warn()
    if taken > start_step:
        seen = final if chain.failed is None else final[~chain.failed]
        warn_of_divergence(fn, seen, x, taken, plan)
    if plan.returns_state:
        kept = replace(chain.state_after(final, taken, plan), run=run_of(fn, plan))
        return with_states(kept, record, states)
    return with_states(final, record, states)


def with_states(result: Any, record: Sequence[int] | None, states: Tensor) -> Any:
    """The result, and the recorded states where they are asked for."""
    return result if record is None else (result, states)


def run_of(fn: str, plan: Plan) -> str:
    """A run's sampler and settings, in words."""
    return f"{fn}({plan.settings or plan.step_size})"


def resumed_from(
    fn: str, x: Any, plan: Plan, options: SamplerOptions
) -> tuple[Tensor | None, SamplerState | None, SamplerOptions]:
    """What ``x`` is as a tensor, and the state of a run that it may be, with its step and seed."""
    if not isinstance(x, SamplerState):
        scaled = plan.scales is not None and any(scale != 1 for scale in plan.scales)
        if options["start_step"] and (plan.carries_history or scaled):
            fail(fn, "x", "a SamplerState, as return_state=True returns, to be resumed", "a tensor")
        return x, None, options
    if not plan.continuous:
        fail_type(fn, "x", "a tensor", x)
    if options["start_step"] not in (0, x.step):
        fail(fn, "start_step", f"{x.step}, that of the state, or left out", options["start_step"])
    check_run(fn, x, run_of(fn, plan))
    seed = seed_of(fn, x, options["seed"])
    # What has failed is NaN, and is not gone on with.
    where = x.x if x.failed is None else x.x.nan_to_num()
    return where, x, {**options, "start_step": x.step, "seed": seed}


def first_state(
    noise: Noise,
    x: Tensor | None,
    resumed: SamplerState | None,
    plan: Plan,
    options: SamplerOptions,
    shape: torch.Size,
    dtype: torch.dtype,
    known: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The state that the run begins with, and the noise that known elements keep, if they do."""
    start_step = options["start_step"]
    keeps = mask is not None and plan.known_table is not None
    z = noise.normal(shape, dtype) if keeps else None
    if resumed is not None and resumed.state is not None:
        return resumed.state.detach().to(dtype, copy=True), z
    if x is None:
        state = draw_state(noise, shape, options["init"], plan.init_scale, dtype)
        if mean is not None:
            state.add_(mean, alpha=plan.known_part)
    else:
        state = x.detach().to(dtype, copy=True)
    if mask is not None and known is not None and start_step == 0:
        # The model sees known elements at the noise level of the others from the first step on.
        own = noise.normal(shape, dtype) if z is None else z.clone()
        own = own.mul_(plan.known_scale).add_(known, alpha=plan.known_part)
        state = torch.where(mask, own, state)
    if plan.scales is not None and (scale := plan.scales[plan.rows[start_step]]) != 1:
        state = state.mul_(scale)
    return state, z


def history_of(state: Tensor, resumed: SamplerState | None, plan: Plan) -> Tensor | None:
    """What multistep rows remember; at first nothing, and nothing is asked of it then."""
    if not plan.multistep:
        return None
    if resumed is not None and resumed.history is not None:
        return resumed.history.detach().to(state.dtype, copy=True)
    return torch.zeros_like(state)


def state_of(
    fn: str, model: Model, x: Tensor | None, plan: Plan, options: SamplerOptions
) -> tuple[torch.Size, torch.dtype, torch.device]:
    """Shape, dtype and device of the state: those of ``x``, or as the options say."""
    shape, num_samples = options["shape"], options["num_samples"]
    dtype, device = options["dtype"], options["device"]
    if x is None:
        size = torch.Size(state_shape(fn, model, shape, num_samples))
        where = device if device is not None else model_device(model, plan.device)
        return size, check_state_dtype(fn, dtype, model), full_device(fn, where)
    check_given_state(fn, x, shape=shape, num_samples=num_samples, dtype=dtype, device=device)
    return x.shape, x.dtype if x.dtype in STATE_DTYPES else torch.float32, x.device


class Noise(NamedTuple):
    """Where a run's random numbers come from."""

    key: Tensor  # [seed, step] of all samples, (2,), or of each, (batch, 2)
    sample_offset: int
    samples: Tensor | None

    @classmethod
    def of(
        cls, fn: str, options: SamplerOptions, batch: int, device: torch.device, draw: int
    ) -> Noise:
        """As the options say, for a batch of this size on this device, from this draw on."""
        samples, offset = options["samples"], options["sample_offset"]
        key = random.make_key(
            fn,
            options["seed"],
            draw=draw,
            device=device,
            generator=options["generator"],
        )
        random.check_numbering(fn, key, samples, offset, batch, device)
        return cls(key, offset, samples)

    def initial(self) -> Tensor:
        """The key of what is drawn before the first step, wherever the run starts: draw 0."""
        key = self.key.clone()
        key[..., 1].zero_()  # not an assignment, which waits for a GPU
        return key

    def normal(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return random.normal(self.initial(), shape, dtype=dtype, **self._numbering())

    def uniform(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return random.uniform(self.initial(), shape, dtype=dtype, **self._numbering())

    def _numbering(self) -> dict[str, Any]:
        return {
            "stream": Stream.INIT,
            "sample_offset": self.sample_offset,
            "samples": self.samples,
        }


def draw_state(
    noise: Noise, shape: torch.Size, init: str, scale: float, dtype: torch.dtype
) -> Tensor:
    """The initial state: normal of standard deviation ``scale``, or uniform in [0, 1)."""
    if init == "uniform":
        return noise.uniform(shape, dtype)
    return noise.normal(shape, dtype).mul_(scale)


# ---- checks ------------------------------------------------------------------------------------


def check_settings(fn: str, options: SamplerOptions) -> Clamp:
    """What can be told of a sampler's common settings without a model; the clamp, as a pair."""
    check_choice(fn, "init", options["init"], INITS)
    check_state_dtype(fn, options["dtype"], None)
    check_autocast(fn, options["autocast"])
    return check_clamp(fn, options["clamp"])


def check_start(fn: str, start_step: int, steps: int, x: Tensor | None, seed: Any) -> None:
    """Resuming needs the state and the seed of the run that is resumed."""
    check_int(fn, "start_step", start_step, minimum=0)
    if steps >= MAX_STEPS:
        fail(
            fn,
            "the number of steps",
            f"below 2^32, the period of the noise counter, in {fn}",
            steps,
        )
    if start_step > steps:
        fail(fn, "start_step", f"at most {steps}, the number of steps", start_step)
    if start_step and x is None:
        fail(fn, "x", f"the state after start_step={start_step} steps", None)
    if start_step and seed is None:
        fail(fn, "seed", f"that of the run that stopped after start_step={start_step} steps", None)


def state_shape(
    fn: str, model: Any, shape: Sequence[int] | None, num_samples: int | None
) -> tuple[int, ...]:
    """``shape`` itself, or ``num_samples`` times the model's ``data_shape``."""
    if shape is not None:
        if num_samples is not None:
            fail(fn, "num_samples", "None when shape is given", num_samples)
        check_sequence(fn, "shape", shape, "sizes, (batch, ...)")
        if not len(shape):
            fail(fn, "shape", "at least 1-dimensional, (batch, ...)", tuple(shape))
        return tuple(check_int(fn, "shape", size, minimum=0) for size in shape)
    data_shape = said_by(model, "data_shape")
    if data_shape is None:
        fail(fn, "shape", "given, or x, or a model with a data_shape", "none of them")
    samples = DEFAULT_SAMPLES if num_samples is None else num_samples
    return (check_int(fn, "num_samples", samples, minimum=0), *map(int, data_shape))


def full_device(fn: str, device: torch.device | str) -> torch.device:
    """The device that a tensor made there says it is on: "cuda:0" for "cuda"."""
    return torch.empty(0, device=check_device_there(fn, device)).device


def model_device(model: Any, default: torch.device | None) -> torch.device:
    """Where the model's parameters lie, where that can be told."""
    if isinstance(model, torch.nn.Module):
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            return tensor.device
    return torch.device("cpu") if default is None else default


def check_state_dtype(fn: str, dtype: torch.dtype | None, model: Any) -> torch.dtype:
    """float32 unless something else is asked for, or the model's parameters are float64."""
    if dtype is None:
        return torch.float64 if parameter_dtypes(model) == {torch.float64} else torch.float32
    if not isinstance(dtype, torch.dtype):
        fail_type(fn, "dtype", "a torch.dtype", dtype)
    if dtype not in STATE_DTYPES:
        fail(fn, "dtype", "torch.float32 or torch.float64 (for the model, see autocast)", dtype)
    return dtype


def check_given_state(fn: str, x: Tensor, **unused: Any) -> None:
    """A finite state that goes with no argument which only says how to draw one."""
    check_floating(fn, "x", x, min_dim=1)
    check_finite(fn, "x", x)
    for name, value in unused.items():
        if value is not None:
            fail(fn, name, "None when x is given", value)


def check_known(
    fn: str,
    known: Tensor | float | None,
    mask: Tensor | None,
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None]:
    """Both or neither, broadcast to the state's shape; finite where the mask says known, if any."""
    if known is None and mask is None:
        return None, None
    if known is None or mask is None:
        missing, other = ("known", "mask") if known is None else ("mask", "known")
        fail(fn, missing, f"given together with {other}", None)
    if not isinstance(known, Tensor) and isinstance(known, numbers.Real):
        known = torch.tensor(float(known), dtype=dtype, device=device)
    known = check_floating(fn, "known", known)
    check_tensor(fn, "mask", mask)
    if mask.dtype != torch.bool:
        fail(fn, "mask", "a tensor of torch.bool, True where known", describe(mask))
    for name, tensor in (("known", known), ("mask", mask)):
        check_device(fn, name, tensor, device, "where the state is")
        check_broadcast(fn, name, tensor, shape)
    known, mask = (
        known.detach().to(dtype).expand(shape).contiguous(),
        mask.expand(shape).contiguous(),
    )
    if mask.numel() and not bool(mask.any()):
        fail(fn, "mask", "True for one element at least", f"{describe(mask)}, False everywhere")
    if not bool((torch.isfinite(known) | ~mask).all()):
        fail(fn, "known", "finite wherever mask is True", "NaN or infinity there")
    return known, mask


def check_init_mean(
    fn: str,
    mean: Tensor | float | None,
    x: Tensor | None,
    init: str,
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """Finite, and of a shape that broadcasts to the state's; only where one is drawn."""
    arg = "init_mean"
    if mean is None:
        return None
    if x is not None or init != "normal":
        fail(fn, arg, 'None but for a state that is drawn, with init="normal"', "a mean")
    if not isinstance(mean, Tensor):
        mean = torch.tensor(check_number(fn, arg, mean), dtype=dtype, device=device)
    check_floating(fn, arg, mean)
    check_device(fn, arg, mean, device, "where the state is")
    check_broadcast(fn, arg, mean, shape)
    check_finite(fn, arg, mean)
    return mean.detach().to(dtype)


def check_broadcast(fn: str, arg: str, tensor: Tensor, shape: torch.Size) -> None:
    """Of the state's shape, or of one that broadcasts to it."""
    try:
        fits = torch.broadcast_shapes(tensor.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        expected = f"of the state's shape {tuple(shape)}, or broadcast to it"
        fail(fn, arg, expected, describe(tensor))


def check_distinct(fn: str, samples: Tensor | None) -> None:
    """No sample number twice: the two would be one sample."""
    if samples is None:
        return
    values, counts = samples.unique(return_counts=True)
    if bool((counts > 1).any()):
        twice = int(values[counts > 1][0])
        fail(fn, "samples", "numbers of which each is there once", f"{twice} more than once")


def check_clamp(fn: str, clamp: Clamp | None, arg: str = "clamp") -> Clamp:
    """(lo, hi) with lo <= hi; either may be None, and both are when there is no clamp."""
    if clamp is None:
        return None, None
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        fail_type(fn, arg, "a pair (lo, hi)", clamp)
    lo, hi = (None if end is None else check_number(fn, arg, end) for end in clamp)
    if lo is not None and hi is not None and lo > hi:
        fail(fn, arg, "a pair (lo, hi) with lo <= hi", (lo, hi))
    return lo, hi


def check_autocast(fn: str, autocast: torch.dtype | None) -> None:
    if autocast is None:
        return
    if not isinstance(autocast, torch.dtype):
        fail_type(fn, "autocast", "None, torch.bfloat16 or torch.float16", autocast)
    if autocast not in AUTOCAST_DTYPES:
        fail(fn, "autocast", "None, torch.bfloat16 or torch.float16", autocast)
