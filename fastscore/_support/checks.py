"""Argument checks shared by every public function: one wording, one place.

Each message reads ``<function>: <argument> must be <expected>, got <what came>``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy
import torch
from torch import Tensor


def fail(fn: str, arg: str, expected: str, got: object) -> NoReturn:
    """Raise the ValueError that names function, argument, expectation and what came."""
    raise ValueError(f"{fn}: {arg} must be {expected}, got {got}")


def fail_type(fn: str, arg: str, expected: str, got: object) -> NoReturn:
    """Raise the TypeError of the same form, naming the type that came."""
    raise TypeError(f"{fn}: {arg} must be {expected}, got {type(got).__name__}")


def describe(x: Tensor) -> str:
    """Shape, dtype and device of a tensor, for messages."""
    return f"a {x.dtype} tensor of shape {tuple(x.shape)} on {x.device}"


def check_callable(fn: str, arg: str, value: Any) -> None:
    """A function or a module; of what holds one, the message says where."""
    if callable(value):
        return
    held = next((n for n in ("module", "model") if callable(getattr(value, n, None))), None)
    way = f" (its .{held} is)" if held else ""
    raise TypeError(f"{fn}: {arg} must be callable, got {type(value).__name__}{way}")


def check_tensor(
    fn: str, arg: str, x: Any, *, min_dim: int = 0, as_tensor: str = "torch.as_tensor(array)"
) -> Tensor:
    """A tensor with at least ``min_dim`` dimensions; ``as_tensor`` makes one of an array."""
    if isinstance(x, numpy.ndarray):
        got = f"got a NumPy array ({as_tensor} makes one)"
        raise TypeError(f"{fn}: {arg} must be a torch.Tensor, {got}")
    if not isinstance(x, Tensor):
        fail_type(fn, arg, "a torch.Tensor", x)
    if x.dim() < min_dim:
        fail(fn, arg, f"a tensor with at least {min_dim} dimension(s)", describe(x))
    return x


def check_floating(fn: str, arg: str, x: Any, *, min_dim: int = 0) -> Tensor:
    """A tensor of a floating-point dtype."""
    way = "torch.as_tensor(array, dtype=torch.float32)"
    check_tensor(fn, arg, x, min_dim=min_dim, as_tensor=way)
    if not x.is_floating_point():
        fail(fn, arg, "a floating-point tensor", describe(x))
    return x


def check_shape(fn: str, arg: str, x: Tensor, shape: Sequence[int], like: str) -> None:
    """Exactly ``shape``; ``like`` says in words whose shape that is."""
    if tuple(x.shape) != tuple(shape):
        fail(fn, arg, f"of shape {tuple(shape)} ({like})", f"shape {tuple(x.shape)}")


def check_device(fn: str, arg: str, x: Tensor, device: torch.device, like: str) -> None:
    """On ``device``; ``like`` says in words whose device that is."""
    if x.device != device:
        fail(fn, arg, f"on {device} ({like})", f"a tensor on {x.device}")


def check_device_there(fn: str, device: Any) -> torch.device:
    """A device, or its name, on which tensors can be made here; its number stays open if it was."""
    expected = "a device that is there"
    if not isinstance(device, (str, torch.device)):
        fail_type(fn, "device", f"{expected} (a torch.device or its name)", device)
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        fail(fn, "device", expected, f"{device} ({reason})")
    return found


def check_key(fn: str, key: Any, batch: int) -> None:
    """A key [seed, draw], or one for each sample: (batch, 2)."""
    check_tensor(fn, "key", key)
    if key.dtype != torch.int64 or (key.shape != (2,) and key.shape != (batch, 2)):
        expected = f"an int64 tensor [seed, draw], or ({batch}, 2) for a key of each sample's own"
        fail(fn, "key", expected, describe(key))


def check_samples(fn: str, samples: Any, batch: int, device: torch.device) -> None:
    """Sample numbers: int64 (batch,) where the data are; none negative, where looking is free."""
    check_tensor(fn, "samples", samples)
    if samples.dtype != torch.int64 or samples.shape != (batch,):
        fail(fn, "samples", f"an int64 tensor of shape ({batch},)", describe(samples))
    check_device(fn, "samples", samples, device, "where the data are")
    if device.type == "cpu" and bool((samples < 0).any()):
        fail(fn, "samples", "at least 0", int(samples.min()))


def check_finite(fn: str, arg: str, x: Tensor) -> None:
    """No NaN and no infinity. Synchronises with the device: call it before a loop, never in one."""
    # The sum is finite unless an element is not, or it overflows: then every element is looked at.
    values = x.detach() if x.requires_grad else x
    if math.isfinite(values.sum(dtype=torch.float32).item()):
        return
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        fail(fn, arg, "finite everywhere", f"{bad} NaN or infinite element(s) of {x.numel()}")


def largest(x: Tensor) -> float:
    """The largest magnitude, NaN where there is one; 0 of no elements. Waits for the device."""
    if not x.numel():
        return 0.0
    ends = torch.aminmax(x.detach())  # a fifteenth of the time of an infinity norm
    low, high = torch.stack(tuple(ends)).tolist()
    return max(-low, high) if low == low else float("nan")


def check_choice(
    fn: str, arg: str, value: Any, choices: Sequence[str], *, other: str | None = None
) -> str:
    """One of the strings in ``choices``; ``other`` names what else the argument may be."""
    if isinstance(value, str) and value in choices:
        return value
    expected = "one of " + ", ".join(map(repr, choices)) + (f" or {other}" if other else "")
    if not isinstance(value, str):
        fail_type(fn, arg, expected, value)
    fail(fn, arg, expected, repr(value))


def check_sequence(fn: str, arg: str, value: Any, of: str) -> None:
    """A sequence, but not a string; ``of`` says of what."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        fail_type(fn, arg, f"a sequence of {of}", value)


def check_int(fn: str, arg: str, value: Any, *, minimum: int) -> int:
    """An integer (bool excluded) of at least ``minimum``."""
    if type(value) is int and value >= minimum:  # asking abstract classes takes longer than an op
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        fail_type(fn, arg, "an integer", value)
    number = int(value)  # torch.compile of PyTorch 2.11 can't compare an enumeration's
    if number < minimum:
        fail(fn, arg, f"at least {minimum}", number)
    return number


def _numbers(fn: str, arg: str, values: Any) -> Tensor:
    """A float64 tensor of a sequence or an array of numbers."""
    expected = "a torch.Tensor, or a sequence or an array of numbers"
    sequence = isinstance(values, Sequence) and not isinstance(values, str)
    if not sequence and not hasattr(values, "__array__"):
        fail_type(fn, arg, expected, values)
    if sequence:
        values = [float(v) if isinstance(v, Tensor) else v for v in values]
    array = numpy.asarray(values)
    if array.size and array.dtype.kind not in "iuf":
        raise TypeError(f"{fn}: {arg} must be {expected}, got {values!r}")
    return torch.as_tensor(array.astype(numpy.float64))


def check_number(
    fn: str, arg: str, value: Any, *, positive: bool = False, minimum: float | None = None
) -> float:
    """A finite real number; positive, or at least ``minimum``, when asked.

    NumPy's numbers, and arrays and tensors of one element, are numbers too.
    """
    if isinstance(value, (Tensor, numpy.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        fail_type(fn, arg, "a real number", value)
    number = float(value)
    if not math.isfinite(number):
        fail(fn, arg, "finite", number)
    if positive and number <= 0:
        fail(fn, arg, "positive", number)
    if minimum is not None and number < minimum:
        fail(fn, arg, f"at least {minimum}", number)
    return number


def check_value_range(fn: str, arg: str, value_range: Any) -> tuple[float, float]:
    """A pair of finite numbers, the first below the second."""
    check_sequence(fn, arg, value_range, "two numbers, (lo, hi)")
    if len(value_range) != 2:
        fail(fn, arg, "two numbers, (lo, hi)", value_range)
    lo, hi = (check_number(fn, arg, end) for end in value_range)
    if not lo < hi:
        fail(fn, arg, "a pair (lo, hi) with lo < hi", (lo, hi))
    return lo, hi


def check_sigmas(fn: str, sigmas: Any, *, minimum_levels: int = 1) -> Tensor:
    """Noise scales: 1-D, positive, finite, strictly decreasing. Synchronises with the device.

    In a graph that torch.compile traces the values can't be looked at.
    """
    if not isinstance(sigmas, Tensor):
        if callable(getattr(sigmas, "sigma", None)):
            got = f"got {type(sigmas).__name__}, a process"
            way = "sde_loss, reverse_sde and probability_flow take one"
            raise TypeError(f"{fn}: sigmas must be noise scales, {got} ({way})")
        sigmas = _numbers(fn, "sigmas", sigmas)
    check_floating(fn, "sigmas", sigmas)
    if sigmas.requires_grad and torch.is_grad_enabled():
        expected = "a tensor that needs no gradient, for none reaches it (detach it)"
        fail(fn, "sigmas", expected, "one that requires grad")
    if sigmas.dim() != 1 or sigmas.numel() < minimum_levels:
        fail(fn, "sigmas", f"a 1-D tensor of at least {minimum_levels} level(s)", describe(sigmas))
    if torch.compiler.is_compiling():
        return sigmas
    values = sigmas.detach().double().cpu()
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        fail(fn, "sigmas", "positive and finite", values.tolist()[:8])
    if not bool((values[1:] < values[:-1]).all()):
        fail(fn, "sigmas", "strictly decreasing, from sigma_1 to sigma_L", values.tolist()[:8])
    return sigmas


def check_output(fn: str, output: Any, x: Tensor, *, arg: str = "model") -> Tensor:
    """A model's output: a floating-point tensor of x's shape, where x is."""
    expected = f"a model whose output is a floating-point tensor of x's shape {tuple(x.shape)}"
    if not isinstance(output, Tensor):
        fail_type(fn, arg, expected, output)
    if output.shape != x.shape or not output.is_floating_point():
        energy = output.shape in ((), x.shape[:1], (*x.shape[:1], 1))
        way = " (fastscore.scores.EnergyScore makes a score of an energy)" if energy else ""
        fail(fn, arg, expected, describe(output) + way)
    if output.device != x.device:
        fail(fn, arg, f"a model whose output is on {x.device}, as x is", describe(output))
    return output


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """View a (batch,) tensor so that it broadcasts against ``x`` of shape (batch, ...)."""
    return value.reshape(-1, *(1,) * (x.dim() - 1))
