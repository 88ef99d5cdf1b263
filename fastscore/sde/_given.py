"""Any object with alpha(t) and sigma(t), made a process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy
import torch
from torch import Tensor

from fastscore._support.checks import check_choice, check_number, describe, fail
from fastscore._support.inference import recordable, recording
from fastscore._support.known import known_of
from fastscore.sde._process import Process

_GRID = 129
_HALVINGS = 64
_BEFORE_THE_END = 1 - 1e-3
LEAST_STEP = 1e-2  # of central differences near t = 0, of their step elsewhere


class _Way(NamedTuple):
    """How a function is called and differentiated.

    "autograd": with a tensor, on any device, and there is a graph; "array": with one of NumPy's;
    "tensor": with one on the CPU; "numbers": with one float at a time. All but the first have
    central differences.
    """

    kind: str
    step: float  # of the differences: about the cube root of the rounding error


class _Found(NamedTuple):
    """What has been seen of an object, once; nothing here refers to it."""

    alpha: _Way
    sigma: _Way
    t_min: float
    t_max: float
    t_eps: float
    conditioning: str


class Given(Process):
    """A process of somebody's own functions alpha(t) and sigma(t), as :func:`as_process` makes it.

    Derivatives are taken by autograd, or by central differences where a function's result has no
    graph; the inverse by bisection. What the functions return is taken to float64.

    Attributes:
        of: the object itself.
    """

    of: Any
    _found: _Found

    def __init__(self, of: Any, found: _Found) -> None:
        """See the class."""
        values = {"of": of, "_found": found}
        values.update((name, getattr(found, name)) for name in _Found._fields[2:])
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} of a process can't be set: processes are immutable")

    def __repr__(self) -> str:
        return f"as_process({self.of!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and bool(self.of == other.of)

    def __hash__(self) -> int:
        return hash((Given, self.of))

    def __reduce__(self) -> tuple[Any, ...]:
        return Given, (self.of, self._found)

    def constants(self) -> dict[str, Any]:
        """What tells this process from another: its noise levels at some times."""
        kind = type(self.of)
        levels = self.noise_level(torch.linspace(self.t_eps, self.t_max, 5)).tolist()
        return {"process": f"{kind.__module__}:{kind.__qualname__}", "noise_levels": levels}

    def _value(self, name: str, t: Tensor) -> Tensor:
        return _call(getattr(self.of, name), getattr(self._found, name).kind, t)

    def _rate(self, name: str, t: Tensor) -> Tensor:
        function, way = getattr(self.of, name), getattr(self._found, name)
        return _derivative(function, way, t, self.t_max)

    def _alpha(self, t: Tensor) -> Tensor:
        return self._value("alpha", t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self._value("sigma", t)

    def _alpha_rate(self, t: Tensor) -> Tensor:
        return self._rate("alpha", t)

    def _sigma_rate(self, t: Tensor) -> Tensor:
        return self._rate("sigma", t)

    def _drift(self, t: Tensor) -> Tensor:
        return self._alpha_rate(t) / self._alpha(t)

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        return 2 * sigma * (self._sigma_rate(t) - self._drift(t) * sigma)

    def _time_of(self, s: Tensor) -> Tensor:
        low = torch.zeros_like(s)
        high = torch.full_like(s, self.t_max)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = self._noise_level(middle).detach() > s
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2


def as_process(fn: str, obj: Any, arg: str = "sde") -> Process:
    """A process as it is; any object with ``alpha(t)`` and ``sigma(t)``, checked and wrapped.

    ``alpha`` and ``sigma`` are called with a float64 tensor of times, or with one float at a time
    where they can't be; they may return tensors of any real dtype, NumPy arrays or numbers. Where
    the object has them, its own ``t_min`` (else 1e-3), ``t_max`` (1, or 1 - 1e-3 where alpha is 0
    at 1), ``t_eps`` (1e-5) and ``conditioning`` ("time") hold.

    Args:
        fn: the public function on whose behalf this is done, for messages.
        obj: the process or the object.
        arg: what ``fn`` calls it.

    Raises:
        TypeError: something else; results that are no numbers.
        ValueError: on a grid of times alpha is not positive and finite, or sigma not finite, or
            sigma/alpha does not increase.

    Example:
        >>> class Linear:
        ...     def alpha(self, t):
        ...         return 1.0
        ...     def sigma(self, t):
        ...         return 80 * t
        >>> as_process("sde_loss", Linear()).diffusion_squared(0.5)
        tensor(6400., dtype=torch.float64)
    """
    if isinstance(obj, Process):
        return obj
    functions = [getattr(obj, name, None) for name in ("alpha", "sigma")]
    if isinstance(obj, type) or not all(map(callable, functions)):
        _refuse(fn, arg, obj)
    known = known_of(obj)
    if Given not in known:
        known[Given] = _look_at(fn, arg, obj)
    return Given(obj, known[Given])


def _refuse(fn: str, arg: str, obj: Any) -> NoReturn:
    expected = f"{arg} must be a process: fastscore.sde.VP(), or any object with alpha(t), sigma(t)"
    if isinstance(obj, type):
        raise TypeError(f"{fn}: {expected}, got the class {obj.__name__} ({obj.__name__}() is one)")
    kind = describe(obj) if isinstance(obj, Tensor) else type(obj).__name__
    levels = isinstance(obj, (Tensor, numpy.ndarray, list, tuple))
    way = " (noise scales go to dsm_loss and annealed_langevin)" if levels else ""
    raise TypeError(f"{fn}: {expected}, got {kind}{way}")


def _look_at(fn: str, arg: str, obj: Any) -> _Found:
    """How the object's functions are to be called, and that they make a process, on a grid."""
    t_eps = _own_time(fn, arg, obj, "t_eps", Process.t_eps)
    t_max = _own_time(fn, arg, obj, "t_max", _BEFORE_THE_END)
    grid = torch.linspace(t_eps, t_max, _GRID, dtype=torch.float64)
    ways = [_way_of(fn, arg, obj, name, grid) for name in ("alpha", "sigma")]
    if getattr(obj, "t_max", None) is None:
        end = torch.ones((), dtype=torch.float64)
        t_max = 1.0 if float(_call(obj.alpha, ways[0].kind, end)) > 1e-9 else t_max
        grid = torch.linspace(t_eps, t_max, _GRID, dtype=torch.float64)
    t_min = _own_time(fn, arg, obj, "t_min", Process.t_min)
    for name, time in (("t_eps", t_eps), ("t_min", t_min)):
        if time >= t_max:
            fail(fn, arg, f"a process whose {name} is below its t_max = {t_max}", time)
    _check_values(fn, arg, obj, ways, grid)
    how = getattr(obj, "conditioning", None)
    how = Process.conditioning if how is None else how
    check_choice(fn, f"{arg}.conditioning", how, ("sigma", "log_sigma", "time", "index"))
    return _Found(ways[0], ways[1], t_min, t_max, t_eps, how)


def _own_time(fn: str, arg: str, obj: Any, name: str, default: float) -> float:
    own = getattr(obj, name, None)
    if own is None:
        return default
    time = check_number(fn, f"{arg}.{name}", own, minimum=0.0)
    if time > 1:
        fail(fn, f"{arg}.{name}", "in [0, 1]", time)
    return time


def _check_values(fn: str, arg: str, obj: Any, ways: list[_Way], grid: Tensor) -> None:
    """Finite, alpha positive, and sigma/alpha rising."""
    alpha = _call(obj.alpha, ways[0].kind, grid).detach()
    sigma = _call(obj.sigma, ways[1].kind, grid).detach()
    level = sigma / alpha
    rises = torch.cat([level[1:] > level[:-1], torch.ones(1, dtype=torch.bool)])
    for what, values, good in (
        ("alpha(t) is positive and finite", alpha, alpha.isfinite() & (alpha > 0)),
        ("sigma(t) is at least 0 and finite", sigma, sigma.isfinite() & (sigma >= 0)),
        ("sigma(t)/alpha(t) increases", level, rises),
    ):
        if not bool(good.all()):
            at = int((~good).nonzero()[0, 0])
            got = f"{float(values[at]):.6g} at t = {float(grid[at]):.6g}"
            fail(fn, arg, f"one whose {what}", got)


def _way_of(fn: str, arg: str, obj: Any, name: str, grid: Tensor) -> _Way:
    """The first way in which a function of the object works, and its derivative is right."""
    function = getattr(obj, name)
    reasons = []
    for kind in ("autograd", "array", "tensor", "numbers"):
        try:
            with warnings.catch_warnings():  # of ways that are not its own
                warnings.simplefilter("ignore")
                return _tried(function, kind, grid)
        except Exception as error:  # whatever somebody's code raises
            reasons.append(f"{type(error).__name__}: {error}")
    expected = f"one whose {name}(t) returns a number for each time"
    raise TypeError(f"{fn}: {arg} must be {expected}, got {reasons[-1]}")


def _tried(function: Callable[..., Any], kind: str, grid: Tensor) -> _Way:
    """A way, if the function can be called so."""
    at = grid.clone().requires_grad_(kind == "autograd")  # which NumPy refuses
    _call(function, kind, at)
    way = _Way(kind, _step(function, kind, at))
    if kind == "autograd" and not _graph_is_right(function, way, grid):
        raise TypeError("autograd does not see all of it")
    return way


def _step(function: Callable[..., Any], kind: str, grid: Tensor) -> float:
    """Of central differences of a function, by the precision of its results."""
    value = function(_told(kind, grid[0] if kind == "numbers" else grid))
    name = str(getattr(value, "dtype", ""))
    return 6e-6 if "float" not in name or "64" in name else 5e-3


def _graph_is_right(function: Callable[..., Any], way: _Way, grid: Tensor) -> bool:
    """Whether autograd sees all of the function: its derivative is that of the differences."""
    inner = grid[2:-2]
    by_graph, by_difference = (
        _derivative(function, way._replace(kind=kind), inner, float(grid[-1]))
        for kind in ("autograd", "tensor")
    )
    close = torch.isclose(by_graph, by_difference, rtol=1e-2, atol=1e-3)
    return bool(close.double().mean() > 0.9)  # there may be kinks


def _told(kind: str, t: Tensor) -> Any:
    """Times as a function takes them."""
    if kind == "autograd":
        return t
    on_cpu = t.detach().cpu()
    if kind == "numbers":
        return float(on_cpu)
    return on_cpu.numpy() if kind == "array" else on_cpu


def _call(function: Callable[..., Any], kind: str, t: Tensor) -> Tensor:
    """A function's values at times t, in float64 on their device."""
    if kind == "numbers":
        values = [float(function(each)) for each in t.detach().reshape(-1).tolist()]
        return torch.tensor(values, dtype=torch.float64, device=t.device).reshape(t.shape)
    value: Any = function(_told(kind, t))
    if not isinstance(value, Tensor):
        value = torch.as_tensor(numpy.asarray(value, dtype=numpy.float64))
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"results of {value.dtype}")
    value = value.to(t.device, torch.float64)
    if value.numel() == 1:
        value = value.reshape(())
    return value.expand(t.shape)


def _derivative(function: Callable[..., Any], way: _Way, t: Tensor, last: float) -> Tensor:
    """By autograd, or by central differences within [0, last]."""
    if way.kind == "autograd":
        with recording():
            at = recordable(t).detach().requires_grad_()
            value = _call(function, way.kind, at)
            if not value.requires_grad:  # a constant
                return torch.zeros_like(t)
            (rate,) = torch.autograd.grad(value.sum(), at, allow_unused=True)
        return torch.zeros_like(t) if rate is None else rate
    # Near 0 sigma may go like sqrt(t): steps are small beside t there, as far as rounding allows.
    step = (t / 16).clamp(way.step * LEAST_STEP, way.step)
    low, high = (t - step).clamp(min=0), (t + step).clamp(max=last)
    rise = _call(function, way.kind, high) - _call(function, way.kind, low)
    return rise / (high - low)
