"""Any object as a process; the grids of times; conversions between predictions."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from test_sde import PROCESSES, every_process
from torch import Tensor

from fastscore import sde
from fastscore.conditioning import PREDICTIONS
from fastscore.sde.conversions import convert

T = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)


@dataclass(frozen=True)
class OwnVP:
    """VP written anew, in whatever mathematics ``lib`` has."""

    lib: Any = torch
    constant: float = 0.1

    def alpha(self, t: Any) -> Any:
        return self.lib.exp(-(t * t) * 19.9 / 4 - t * self.constant / 2)

    def sigma(self, t: Any) -> Any:
        return self.lib.sqrt(1 - self.alpha(t) ** 2)


class Float32(OwnVP):
    def alpha(self, t: Any) -> Any:
        return super().alpha(t).float()


class Detached(OwnVP):
    """Autograd sees a part of it."""

    def alpha(self, t: Any) -> Any:
        return super().alpha(t.detach()) + 0 * t


class NumPy32(OwnVP):
    def alpha(self, t: Any) -> Any:
        return np.exp(-(np.asarray(t) ** 2) * 19.9 / 4 - np.asarray(t) * 0.05).astype(np.float32)

    def sigma(self, t: Any) -> Any:
        return np.sqrt(1 - self.alpha(t) ** 2)


OWN = {
    "torch": (OwnVP(), "autograd", 1e-10),
    "numpy": (OwnVP(np), "array", 1e-6),
    "math": (OwnVP(math), "numbers", 1e-6),
    "float32": (Float32(), "autograd", 2e-3),
    "detached": (Detached(), "tensor", 1e-6),
    "numpy32": (NumPy32(), "array", 2e-2),
}


@pytest.mark.parametrize(("own", "way", "close"), OWN.values(), ids=list(OWN))
def test_an_object_of_alpha_and_sigma_is_a_process(own: Any, way: str, close: float) -> None:
    process, vp = sde.as_process("sde_loss", own), sde.VP()
    assert process._found.alpha.kind == way
    for t in (T, T.reshape(1, 23, 1), T[3], 0.5):
        for name in ("alpha", "sigma", "noise_level", "drift", "diffusion_squared"):
            got, want = getattr(process, name)(t), getattr(vp, name)(t)
            assert got.dtype == torch.float64
            torch.testing.assert_close(got, want, rtol=close, atol=close)
    for name in ("alpha_rate", "sigma_rate"):
        got, want = getattr(process, name)(T), getattr(vp, name)(T)
        torch.testing.assert_close(got, want, rtol=close, atol=close)
    with torch.inference_mode():
        got = process.drift(T.float())
    torch.testing.assert_close(got, vp.drift(T), rtol=close, atol=max(close, 1e-5))


@pytest.mark.parametrize(
    ("own", "first", "close"),
    [(OwnVP(np), 1e-5, 1e-3), (OwnVP(np), 1e-3, 1e-5), (NumPy32(), 1e-3, 2e-2)],
    ids=["numpy", "numpy later", "float32"],
)
def test_differences_near_the_data(own: Any, first: float, close: float) -> None:
    """Where sigma goes like sqrt(t), and g^2 is what the likelihood weighting takes."""
    g2 = sde.as_process("test", own).diffusion_squared(first)
    torch.testing.assert_close(g2, sde.VP().diffusion_squared(first), rtol=close, atol=0)


def test_its_inverse() -> None:
    process = sde.as_process("sde_loss", Straight())
    t = torch.cat([torch.tensor([1e-4, 1e-3], dtype=torch.float64), T])
    torch.testing.assert_close(process.time_of(process.noise_level(t)), t, rtol=1e-12, atol=0)
    assert float(process.time_of(1e9)) == pytest.approx(process.t_max)


def test_its_identity() -> None:
    process = sde.as_process("sde_loss", OwnVP())
    assert process == sde.as_process("sde_loss", OwnVP())
    assert process != sde.as_process("sde_loss", OwnVP(constant=0.2))
    assert process != sde.VP()
    assert hash(process) == hash(sde.as_process("sde_loss", OwnVP()))
    assert repr(sde.as_process("sde_loss", Straight())).startswith("as_process(<")
    straight = sde.as_process("sde_loss", Straight())
    for other in (pickle.loads(pickle.dumps(straight)), copy.deepcopy(straight)):
        assert torch.equal(other.sigma(T), straight.sigma(T))
    with pytest.raises(AttributeError, match="immutable"):
        process.t_min = 0.1
    assert sde.as_process("sde_loss", process) is process
    assert sde.as_process("sde_loss", sde.VE()) == sde.VE()


class Straight:
    """A rectified flow."""

    def alpha(self, t: Any) -> Any:
        return 1 - t

    def sigma(self, t: Any) -> Any:
        return t


def test_where_it_begins_and_ends() -> None:
    straight = sde.as_process("f", Straight())
    assert (straight.t_min, straight.t_max, straight.t_eps) == (1e-3, 1 - 1e-3, 1e-5)
    assert straight.conditioning == "time"
    own = Straight()
    own.t_min, own.t_max, own.t_eps, own.conditioning = 0.01, 0.9, 0.005, "sigma"
    process = sde.as_process("f", own)
    assert (process.t_min, process.t_max, process.t_eps) == (0.01, 0.9, 0.005)
    assert process.conditioning == "sigma"
    assert sde.as_process("f", OwnVP()).t_max == 1
    for name, value in (("t_max", 1.5), ("t_min", -1), ("t_eps", 0.99), ("conditioning", "film")):
        own = Straight()
        own.t_max = 0.9
        setattr(own, name, value)
        with pytest.raises(ValueError, match=r"^f: sde"):
            sde.as_process("f", own)


def of(alpha: Any, sigma: Any) -> Any:
    made = type("Made", (), {})()
    made.alpha, made.sigma = alpha, sigma
    return made


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (of(lambda t: 1 - 2 * t, lambda t: t), ValueError, "alpha.t. is positive and finite, got"),
        (of(lambda t: t / 0, lambda t: t), Exception, "^f: sde must be"),
        (of(lambda t: t**0, lambda t: 1 - t), ValueError, "increases, got .* at t = 1e-05"),
        (of(lambda t: t**0, lambda t: t * math.nan), ValueError, "sigma.t. is at least 0 and fin"),
        (of(lambda t: "a", lambda t: t), TypeError, "alpha.t. returns a number for each time, got"),
        (
            of(lambda t, u: t, lambda t: t),
            TypeError,
            "alpha.t. returns a number for each time, got",
        ),
        (of(lambda t: torch.ones(7), lambda t: t), TypeError, "alpha.t. returns a number for each"),
        (sde.VP, TypeError, r"got the class VP \(VP\(\) is one\)"),
        ([3.0, 2.0], TypeError, r"got list \(noise scales go to dsm_loss"),
        (torch.ones(3), TypeError, r"got a torch.float32 tensor of shape .* \(noise scales go to"),
        ("vp", TypeError, r"must be a process: fastscore.sde.VP\(\), or any object.*got str$"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_what_is_no_process(wrong: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        sde.as_process("f", wrong)
    assert str(caught.value).startswith("f: sde must be ")


def test_an_object_is_looked_at_once() -> None:
    calls = []

    class Counted(Straight):
        def alpha(self, t: Any) -> Any:
            calls.append(1)
            return 1 - t

    own = Counted()
    sde.as_process("f", own)
    seen = len(calls)
    sde.as_process("f", own)
    assert seen
    assert len(calls) == seen


# ---- grids --------------------------------------------------------------------------------------


@every_process
@pytest.mark.parametrize("grid", sde.grids.GRIDS)
def test_grids(process: sde.Process, grid: str) -> None:
    end = max(process.t_min, 1e-3)
    t = sde.time_grid("f", process, grid, 41, None, end)
    assert t.shape == (41,)
    assert t.dtype == torch.float64
    assert float(t[0]) == process.t_max
    assert float(t[-1]) == end
    assert bool((t[1:] < t[:-1]).all())
    s = process.noise_level(t)
    even = {"uniform": t, "karras": s ** (1 / 7), "log": s.log()}[grid]
    torch.testing.assert_close(even.diff(), even.diff().mean().expand(40), rtol=1e-8, atol=1e-10)


def test_a_process_without_data_at_its_start() -> None:
    with pytest.raises(ValueError, match=r"^f: sde must be a process whose noise level"):
        sde.time_grid("f", sde.VP(beta_max=5000.0), "karras", 5)


def test_karras_ladder() -> None:
    """.002 to 80, as published: table 1 and equation 5."""
    ve = sde.VE(0.002, 80)
    got = ve.noise_level(sde.time_grid("f", ve, "karras", 18))
    i = torch.arange(18, dtype=torch.float64)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    to_zero = sde.time_grid("f", sde.VP(), "karras", 9, 0.5, 0.0)
    assert (float(to_zero[0]), float(to_zero[-1])) == (0.5, 0.0)


def test_given_times() -> None:
    want = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    for given in ([0.9, 0.5, 0.1], (0.1, 0.5, 0.9), np.array([0.9, 0.5, 0.1]), want):
        assert torch.equal(sde.time_grid("f", sde.VP(), given), want)
    assert torch.equal(sde.time_grid("f", sde.VP(), want, 3, 0.9, 0.1), want)
    assert sde.time_grid("f", sde.VP(), want) is not want


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ([0.9, 0.5, 0.5], {}, "grid must be strictly monotone"),
        ([0.9, 0.1, 0.5], {}, "grid must be strictly monotone"),
        ([0.9, math.nan, 0.5], {}, "grid must be strictly monotone"),
        ([0.9], {}, "grid must be at least 2 times"),
        ([1.2, 0.5], {}, r"grid must be inside the process, in \[0, 0.999\]"),
        ([0.5, -0.1], {}, "grid must be inside the process"),
        ([1.0, 0.5], {}, "grid must be inside the process"),
        ([0.9, 0.5], {"points": 3}, "points must be left out, or the 2 of the grid"),
        ([0.9, 0.5], {"t_start": 1.0}, "t_start must be left out"),
        ("cosine", {"points": 3}, "grid must be one of 'uniform', 'karras', 'log' or a sequence"),
        ("uniform", {}, "points must be given"),
        ("uniform", {"points": 1}, "points must be at least 2"),
        (
            "uniform",
            {"points": 3, "t_start": 0.1, "t_end": 0.2},
            "t_start must be later than t_end",
        ),
        ("uniform", {"points": 3, "t_start": 1.1}, r"t_start must be in \[0, 1\]"),
        ("uniform", {"points": 3, "t_end": math.nan}, "t_end must be finite"),
        ("log", {"points": 3, "t_end": 0.0}, "t_end must be later than the time without noise"),
        (
            "uniform",
            {"points": 9, "t_start": 0.5 + 1e-16, "t_end": 0.5 - 2e-16},
            "points must be so",
        ),
    ],
)
def test_wrong_grids(grid: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^reverse_sde: {message}"):
        sde.time_grid("reverse_sde", sde.RectifiedFlow(), grid, **options)
    with pytest.raises(TypeError, match="grid must be a name, or"):
        sde.time_grid("reverse_sde", sde.RectifiedFlow(), object())


# ---- conversions --------------------------------------------------------------------------------


def exact(name: str, process: sde.Process, t: Tensor, x0: Tensor, z: Tensor) -> Tensor:
    alpha, sigma = process.alpha(t), process.sigma(t)
    if name == "velocity":
        return process.alpha_rate(t) * x0 + process.sigma_rate(t) * z
    if name == "v":
        return (alpha * z - sigma * x0) / (alpha**2 + sigma**2).sqrt()
    return {"score": -z / sigma, "eps": z, "x0": x0}[name]


@every_process
@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_each_to_each(process: sde.Process, source: str, target: str) -> None:
    torch.manual_seed(0)
    t = torch.cat([torch.tensor([1e-3], dtype=torch.float64), T])
    x0, z = torch.randn(2, len(t), dtype=torch.float64)
    x = process.alpha(t) * x0 + process.sigma(t) * z
    given, want = (exact(name, process, t, x0, z) for name in (source, target))
    got = convert(given, x, t, process, source=source, target=target)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    back = convert(got, x, t, process, source=target, target=source)
    torch.testing.assert_close(back, given, rtol=1e-6, atol=1e-8)


def test_v_is_the_same_number_in_every_process() -> None:
    torch.manual_seed(0)
    s = torch.logspace(-1.5, 1.5, 40, dtype=torch.float64)
    x0, z = torch.randn(2, 40, dtype=torch.float64)
    y, want = x0 + s * z, (z - s * x0) / (1 + s**2).sqrt()
    for process in PROCESSES:
        reached = s <= process.sigma_range[1]
        t, x = process.time_of(s[reached]), y[reached]
        got = convert(z[reached], process.alpha(t) * x, t, process, source="eps", target="v")
        torch.testing.assert_close(got, want[reached], rtol=1e-9, atol=1e-9)


def test_conversions_of_other_dtypes_and_bad_ones() -> None:
    x, out = torch.randn(4, 2, 3), torch.randn(4, 2, 3).bfloat16()
    got = convert(out, x, 0.5, sde.VP(), source="eps", target="x0")
    assert got.dtype == torch.float32
    want = convert(out.double(), x.double(), 0.5, sde.VP(), source="eps", target="x0")
    torch.testing.assert_close(got, want.float())
    assert torch.equal(convert(x, x, 0.0, sde.VP(), source="score", target="score"), x)
    assert float(convert(x, x, 0.0, sde.VP(), source="score", target="x0").sub(x).abs().max()) == 0
    how = {"source": "eps", "target": "x0"}
    with pytest.raises(ValueError, match=r"^convert: output must be of shape \(4, 2, 3\)"):
        convert(x[:2], x, 0.5, sde.VP(), **how)
    with pytest.raises(ValueError, match=r"t must be of shape \(4,\)"):
        convert(x, x, torch.rand(3), sde.VP(), **how)
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\], got 1.5"):
        convert(x, x, torch.tensor([0.5, 1.5, 0.2, 0.1]), sde.VP(), **how)
    with pytest.raises(ValueError, match="source must be one of 'score'"):
        convert(x, x, 0.5, sde.VP(), source="noise", target="x0")
    with pytest.raises(TypeError, match="process must be a process"):
        convert(x, x, 0.5, [2.0, 1.0], **how)
    with pytest.raises(ValueError, match='alpha_rate and sigma_rate must be given for "velocity"'):
        sde.conversions.score_coefficients("velocity", torch.ones(1), torch.ones(1))
