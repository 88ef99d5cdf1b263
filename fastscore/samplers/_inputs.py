"""From the arguments of a sampler to a chain that is ready to run: checks first, then work."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore import random
from fastscore._support.checks import (
    check_choice,
    check_device,
    check_finite,
    check_floating,
    check_int,
    check_number,
    check_tensor,
    describe,
    fail,
    fail_type,
)
from fastscore.conditioning import CONDITIONINGS, parameter_dtypes
from fastscore.random import Stream
from fastscore.samplers._graph import wants_graph
from fastscore.samplers._loop import Callback, Chain, Clamp, Model, Plan, progress_bar_class, run

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
    *,
    shape: Sequence[int] | None,
    num_samples: int | None,
    conditioning: str,
    init: str,
    known: Tensor | None,
    mask: Tensor | None,
    clamp: Clamp | None,
    seed: int | None,
    generator: torch.Generator | None,
    sample_offset: int,
    start_step: int,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    autocast: torch.dtype | None,
    progress: bool,
    callback: Callback | None,
    record: Sequence[int] | None,
    cuda_graph: bool | str,
) -> Tensor | tuple[Tensor, Tensor]:
    """Check everything, build the chain and run it: what every public sampler ends with."""
    if not callable(model):
        fail_type(fn, "model", "callable", model)
    check_choice(fn, "conditioning", conditioning, CONDITIONINGS)
    check_choice(fn, "init", init, INITS)
    check_int(fn, "sample_offset", sample_offset, minimum=0)
    check_start(fn, start_step, plan.steps, x, seed)
    bounds = check_clamp(fn, clamp)
    check_autocast(fn, autocast)
    if callback is not None and not callable(callback):
        fail_type(fn, "callback", "callable", callback)
    if progress:
        progress_bar_class(fn)
    if x is None:
        shape = state_shape(fn, model, shape, num_samples)
        device = full_device(device if device is not None else model_device(model, plan.device))
        dtype = check_state_dtype(fn, dtype, model)
    else:
        check_given_state(fn, x, shape=shape, num_samples=num_samples, dtype=dtype, device=device)
        shape, device = x.shape, x.device
        dtype = x.dtype if x.dtype in STATE_DTYPES else torch.float32
    known, mask = check_known(fn, known, mask, torch.Size(shape), dtype, device)
    steps = plan.steps if torch.Size(shape).numel() else start_step  # nothing to do for no samples
    use_graph = wants_graph(fn, cuda_graph, device, steps - start_step) and steps > start_step

    with torch.no_grad():
        key = random.make_key(fn, seed, draw=start_step, device=device, generator=generator)
        if x is None:
            state = draw_state(initial(key), shape, init, plan.init_scale, dtype, sample_offset)
        else:
            state = x.detach().to(dtype, copy=True)
        if mask is not None and start_step == 0:
            # The model sees known elements at the noise level of the others from the first step on.
            z = random.normal(
                initial(key), shape, dtype=dtype, stream=Stream.INIT, sample_offset=sample_offset
            )
            state = torch.where(mask, z.mul_(plan.known_scale).add_(known), state)
    chain = Chain(
        fn,
        model,
        conditioning,
        state,
        key,
        plan.table.to(device),
        plan.sigmas.to(device, dtype),
        plan.sigmas.to(dtype).tolist(),
        plan.steps_per_level,
        known=known,
        mask=mask,
        clamp=bounds,
        sample_offset=sample_offset,
        autocast=autocast,
        cache_casts=not use_graph,  # a graph must not read memory that it does not own
    )
    trajectory = run(
        chain,
        start_step=start_step,
        steps=steps,
        record=[n for n in record or () if n > start_step],
        progress=progress,
        callback=callback,
        use_graph=use_graph,
    )
    final = chain.x.detach()  # a model may have asked for gradients with respect to it
    return final if record is None else (final, trajectory)


def initial(key: Tensor) -> Tensor:
    """The key of what is drawn before the first step, wherever the run starts: draw number 0."""
    return torch.stack([key[0], torch.zeros_like(key[0])])


def draw_state(
    key: Tensor,
    shape: Sequence[int],
    init: str,
    scale: float,
    dtype: torch.dtype,
    sample_offset: int,
) -> Tensor:
    """The initial state: normal of standard deviation ``scale``, or uniform in [0, 1)."""
    if init == "uniform":
        return random.uniform(
            key, shape, dtype=dtype, stream=Stream.INIT, sample_offset=sample_offset
        )
    z = random.normal(key, shape, dtype=dtype, stream=Stream.INIT, sample_offset=sample_offset)
    return z.mul_(scale)


# ---- checks ------------------------------------------------------------------------------------


def check_sequence(fn: str, arg: str, value: Any, of: str) -> None:
    """A sequence, but not a string; ``of`` says of what."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        fail_type(fn, arg, f"a sequence of {of}", value)


def check_start(fn: str, start_step: int, steps: int, x: Tensor | None, seed: int | None) -> None:
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
    data_shape = getattr(model, "data_shape", None)
    if data_shape is None:
        fail(fn, "shape", "given, or else x: this model has no data_shape to take it from", None)
    samples = DEFAULT_SAMPLES if num_samples is None else num_samples
    return (check_int(fn, "num_samples", samples, minimum=0), *map(int, data_shape))


def full_device(device: torch.device | str) -> torch.device:
    """The device that a tensor made there says it is on: "cuda:0" for "cuda"."""
    return torch.empty(0, device=device).device


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
    known: Tensor | None,
    mask: Tensor | None,
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None]:
    """Both or neither, broadcast to the state's shape; finite where the mask says known."""
    if known is None and mask is None:
        return None, None
    if known is None or mask is None:
        missing, other = ("known", "mask") if known is None else ("mask", "known")
        fail(fn, missing, f"given together with {other}", None)
    check_floating(fn, "known", known)
    check_tensor(fn, "mask", mask)
    if mask.dtype != torch.bool:
        fail(fn, "mask", "a tensor of torch.bool, True where known", describe(mask))
    for name, tensor in (("known", known), ("mask", mask)):
        check_device(fn, name, tensor, device, "where the state is")
        try:
            fits = torch.broadcast_shapes(tensor.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            fail(
                fn,
                name,
                f"of the state's shape {tuple(shape)}, or broadcast to it",
                describe(tensor),
            )
    known, mask = (
        known.detach().to(dtype).expand(shape).contiguous(),
        mask.expand(shape).contiguous(),
    )
    if not bool((torch.isfinite(known) | ~mask).all()):
        fail(fn, "known", "finite wherever mask is True", "NaN or infinity there")
    return known, mask


def check_clamp(fn: str, clamp: Clamp | None) -> Clamp:
    """(lo, hi) with lo <= hi; either may be None, and both are when there is no clamp."""
    if clamp is None:
        return None, None
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        fail_type(fn, "clamp", "a pair (lo, hi)", clamp)
    lo, hi = (None if end is None else check_number(fn, "clamp", end) for end in clamp)
    if lo is not None and hi is not None and lo > hi:
        fail(fn, "clamp", "a pair (lo, hi) with lo <= hi", (lo, hi))
    return lo, hi


def check_autocast(fn: str, autocast: torch.dtype | None) -> None:
    if autocast is None:
        return
    if not isinstance(autocast, torch.dtype):
        fail_type(fn, "autocast", "None, torch.bfloat16 or torch.float16", autocast)
    if autocast not in AUTOCAST_DTYPES:
        fail(fn, "autocast", "None, torch.bfloat16 or torch.float16", autocast)


def check_levels(fn: str, trajectory: Sequence[int] | None, levels: int) -> list[int] | None:
    """The levels to record, sorted, negative ones counted from the end."""
    if trajectory is None:
        return None
    check_sequence(fn, "trajectory", trajectory, "level numbers, such as range(0, 10)")
    chosen = set()
    for level in trajectory:
        check_int(fn, "trajectory", level, minimum=-levels)
        if level >= levels:
            fail(fn, "trajectory", f"levels below {levels}", level)
        chosen.add(level % levels)
    return sorted(chosen)
