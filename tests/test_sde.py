"""Processes in continuous time: design's formulas against derivatives, and known numbers."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from helpers import assert_same_bytes, randn

import fastscore
from fastscore import sde

LINEAR = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESSES = [
    sde.VE(),
    sde.VP(),
    sde.SubVP(),
    sde.Cosine(),
    sde.Cosine(offset=0.0),
    sde.DDPM(LINEAR),
    sde.RectifiedFlow(),
    sde.VP(1.0, 1.0),
    sde.VP(0.0, 20.0),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def times(process: sde.Process) -> torch.Tensor:
    middle = torch.linspace(0.01, 0.99, 57, dtype=torch.float64)
    ends = torch.tensor([1e-5, 1e-4, 1e-3, process.t_max], dtype=torch.float64)
    return torch.cat([ends[:3], middle, ends[3:]])


def derivative(function, t: torch.Tensor) -> torch.Tensor:
    t = t.clone().requires_grad_()
    return torch.autograd.grad(function(t).sum(), t, allow_unused=True)[0].detach()


@every_process
def test_rates_are_the_derivatives(process):
    t = times(process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    close = {"rtol": 1e-9, "atol": 1e-12}
    d_alpha = torch.zeros_like(t) if isinstance(process, sde.VE) else derivative(process.alpha, t)
    torch.testing.assert_close(process.alpha_rate(t), d_alpha, **close)
    torch.testing.assert_close(process.sigma_rate(t), derivative(process.sigma, t), **close)
    torch.testing.assert_close(process.drift(t), d_alpha / alpha, **close)
    torch.testing.assert_close(process.noise_level(t), sigma / alpha, rtol=1e-11, atol=0)
    d_level = derivative(lambda t: process.noise_level(t).square(), t)
    torch.testing.assert_close(process.diffusion_squared(t), alpha**2 * d_level, **close)
    d_log = derivative(lambda t: 2 * process.noise_level(t).log(), t)
    torch.testing.assert_close(process.diffusion_squared(t) / sigma**2, d_log, **close)


@every_process
def test_time_of_is_the_inverse(process):
    t = times(process)
    torch.testing.assert_close(process.time_of(process.noise_level(t)), t, rtol=1e-12, atol=1e-15)


@every_process
def test_copies_and_pickles_are_equal(process):
    for other in (copy.copy(process), copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
        assert other == process
        assert hash(other) == hash(process)
        assert torch.equal(other.sigma(times(process)), process.sigma(times(process)))


def test_known_ranges():
    def of(process, t):
        return float(process.noise_level(t))

    assert of(sde.VE(), 0.0) == 0.01
    assert of(sde.VE(), 1.0) == pytest.approx(50, rel=1e-14)
    assert of(sde.VP(), 1e-3) == pytest.approx(0.0105, rel=0.01)
    assert of(sde.VP(), 1.0) == pytest.approx(152, rel=0.003)
    assert of(sde.SubVP(), 1e-3) == pytest.approx(1.1e-4, rel=0.01)
    assert of(sde.SubVP(), 1.0) == pytest.approx(152, rel=0.003)


def test_scores_from_every_prediction():
    torch.manual_seed(0)
    x0, z = torch.randn(2, 200, dtype=torch.float64)
    for process in PROCESSES:
        t = torch.linspace(0.01, 0.99, 200, dtype=torch.float64)
        alpha, sigma = process.alpha(t), process.sigma(t)
        d_alpha, d_sigma = process.alpha_rate(t), process.sigma_rate(t)
        x = alpha * x0 + sigma * z
        output = {
            "score": -z / sigma,
            "eps": z,
            "x0": x0,
            "v": (alpha * z - sigma * x0) / (alpha**2 + sigma**2).sqrt(),
            "velocity": d_alpha * x0 + d_sigma * z,
        }
        for name, value in output.items():
            a, b = sde.conversions.score_coefficients(name, alpha, sigma, d_alpha, d_sigma)
            torch.testing.assert_close(a * value + b * x, -z / sigma, rtol=1e-8, atol=1e-8)


# ---- objects ------------------------------------------------------------------------------------


def test_what_they_are_called():
    assert repr(sde.VE()) == "VE(sigma_min=0.01, sigma_max=50.0)"
    assert repr(sde.VP()) == "VP(beta_min=0.1, beta_max=20.0)"
    assert repr(sde.SubVP(beta_max=10)) == "SubVP(beta_min=0.1, beta_max=10.0)"
    assert repr(sde.Cosine()) == "Cosine(offset=0.008)"
    assert repr(sde.RectifiedFlow()) == "RectifiedFlow()"
    assert repr(sde.DDPM(LINEAR)) == "DDPM(betas=1000 from 0.0001 to 0.02)"
    for process in PROCESSES:
        assert process.constants()["process"] == type(process).__name__


def test_they_are_known_by_their_constants():
    assert sde.VP() == sde.VP(0.1, 20) == sde.VP(np.float64(0.1), torch.tensor(20))
    assert sde.VP() != sde.VP(0.1, 21)
    assert sde.VP() != sde.SubVP()
    assert sde.DDPM(LINEAR) == sde.DDPM(LINEAR.tolist()) == sde.DDPM(LINEAR.numpy())
    assert sde.DDPM(LINEAR) != sde.DDPM(LINEAR / 2)
    assert sde.DDPM(LINEAR).betas == tuple(LINEAR.tolist())
    assert len({sde.VP(), sde.VP(0.1, 20.0), sde.SubVP(), sde.VE()}) == 3


@every_process
def test_they_do_not_change(process):
    for name in ("beta_min", "sigma_min", "offset", "betas", "t_min", "anything"):
        with pytest.raises(FrozenInstanceError):
            setattr(process, name, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sde.VE(sigma_min=0), "VE: sigma_min must be positive, got 0.0"),
        (lambda: sde.VE(50, 0.01), "VE: sigma_max must be larger than sigma_min = 50.0, got 0.01"),
        (lambda: sde.VE(0.1, math.inf), "VE: sigma_max must be finite, got inf"),
        (lambda: sde.VP(beta_min=-1), "VP: beta_min must be at least 0.0, got -1.0"),
        (lambda: sde.VP(20, 0.1), "VP: beta_max must be at least beta_min = 20.0, got 0.1"),
        (lambda: sde.SubVP(0, 0), "SubVP: beta_max must be positive, got 0.0"),
        (lambda: sde.Cosine(-0.1), "Cosine: offset must be at least 0.0, got -0.1"),
        (lambda: sde.DDPM([0.1]), "DDPM: betas must be a tensor or a sequence of at least 2 numb"),
        (lambda: sde.DDPM([0.1, 1.0]), "DDPM: betas must be .* between 0 and 1, got .0.1, 1.0., a"),
        (lambda: sde.DDPM([0.1, math.nan]), "DDPM: betas must be"),
        (lambda: sde.DDPM(torch.full((2, 2), 0.1)), "DDPM: betas must be"),
        (lambda: sde.VP().alpha(1.5), r"VP.alpha: t must be in .0, 1., got 1.5"),
        (lambda: sde.VP().drift(-0.1), "VP.drift: t must be at least 0.0, got -0.1"),
        (lambda: sde.VP().sigma(math.nan), "VP.sigma: t must be finite, got nan"),
        (lambda: sde.VP().sigma(torch.tensor([True])), "VP.sigma: t must be a number or a tensor"),
        (lambda: sde.VP().time_of(-1), "VP.time_of: noise_level must be at least 0.0, got -1"),
    ],
)
def test_wrong_constants_and_times(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_a_process_is_no_noise_scales():
    for call in (
        lambda: fastscore.dsm_loss(lambda x, s: -x, randn(2, 2), sde.VP()),
        lambda: fastscore.annealed_langevin(lambda x, s: -x, sde.VE(), shape=(2, 2)),
    ):
        with pytest.raises(TypeError, match=r"sigmas must be noise scales, got V., a process"):
            call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sde.VE("a"), "VE: sigma_min must be a real number, got str"),
        (lambda: sde.VP(True), "VP: beta_min must be a real number, got bool"),
        (lambda: sde.DDPM("linear"), "DDPM: betas must be a tensor or a sequence"),
        (lambda: sde.DDPM(None), "DDPM: betas must be a tensor or a sequence"),
        (lambda: sde.VP().alpha("0.5"), "VP.alpha: t must be a real number, got str"),
        (lambda: sde.Process(), "abstract"),
    ],
)
def test_wrong_types(make, message):
    with pytest.raises(TypeError, match=message):
        make()


# ---- values -------------------------------------------------------------------------------------

METHODS = ["alpha", "sigma", "noise_level", "drift", "diffusion_squared", "alpha_rate"]


@every_process
@pytest.mark.parametrize("method", [*METHODS, "sigma_rate", "time_of"])
def test_any_time_gives_float64_of_its_shape(process, method):
    function = getattr(process, method)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in ((), (4,), (2, 1, 3), (0,)):
            got = function(torch.full(shape, 0.5, dtype=dtype))
            assert got.dtype == torch.float64
            torch.testing.assert_close(got, function(0.5).expand(shape), rtol=0, atol=0)
    assert function(torch.zeros(3, device="meta")).device.type == "meta"
    at = torch.tensor([1, 0])[:1] if method == "time_of" else torch.tensor([0])
    assert function(at).dtype == torch.float64


def test_time_0():
    for process in PROCESSES:
        assert float(process.alpha(0.0)) == pytest.approx(1, rel=1e-4)
        if not isinstance(process, sde.VE | sde.DDPM):
            assert float(process.sigma(0.0)) == 0
            assert float(process.time_of(0.0)) == 0


def test_the_trap_of_float32():
    """1 - exp in float32 is some per cent off in variance at t = 1e-5: it has steps of 6e-8."""
    t = torch.tensor(1e-5)
    for process, power in ((sde.VP(), 0.5), (sde.SubVP(), 1.0)):
        decay = float(t) ** 2 * 19.9 / 2 + float(t) * 0.1  # -2L
        want = (-math.expm1(-decay)) ** power
        assert float(process.sigma(t)) == pytest.approx(want, rel=1e-14)
    by_exp = 1 - torch.exp(-(t**2 * 19.9 / 2 + t * 0.1))
    assert abs(float(by_exp) / float(sde.VP().sigma(t)) ** 2 - 1) > 0.01


def test_ddpm_has_its_levels():
    process, i = sde.DDPM(LINEAR), torch.arange(1000, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - LINEAR, 0)
    torch.testing.assert_close(process.alpha(i / 999), alpha_bar.sqrt(), rtol=1e-10, atol=0)
    torch.testing.assert_close(process.sigma(i / 999), (1 - alpha_bar).sqrt(), rtol=1e-8, atol=0)
    middle = process.noise_level((i[:-1] + 0.5) / 999).log()
    at = process.noise_level(i / 999).log()
    torch.testing.assert_close(middle, (at[1:] + at[:-1]) / 2, rtol=1e-10, atol=1e-10)
    slope = process.diffusion_squared(i / 999)  # of the segment that follows, in float32 too
    torch.testing.assert_close(
        process.diffusion_squared((i / 999).float()), slope, rtol=1e-3, atol=0
    )


def test_defaults_of_time():
    for process in PROCESSES:
        starts_at_noise = isinstance(process, sde.VE | sde.DDPM)
        assert process.t_min == (0 if starts_at_noise else 1e-3)
        assert process.t_eps == (0 if starts_at_noise else 1e-5)
        assert process.conditioning == ("sigma" if isinstance(process, sde.VE) else "time")
        ends_early = isinstance(process, sde.Cosine | sde.RectifiedFlow)
        assert process.t_max == (1 - 1e-3 if ends_early else 1)
        low, high = process.sigma_range
        assert low < high < math.inf


# ---- perturbing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_perturb(dtype):
    x, process = randn(7, 2, 3).to(dtype), sde.VP()
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    kept = x.clone()
    z = fastscore.random.normal(x.shape, seed=3, stream=fastscore.random.Stream.PERTURB).double()
    alpha, sigma = (f(t)[:, None, None] for f in (process.alpha, process.sigma))
    got = process.perturb(x, t, seed=3)
    close = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(got.double(), alpha * x.double() + sigma * z, rtol=close, atol=close)
    assert got.dtype == dtype
    assert_same_bytes(x, kept)
    assert process.perturb(x[:0], t[:0], seed=3).shape == x[:0].shape
    one = process.perturb(x, 0.5, seed=3)
    assert_same_bytes(one, process.perturb(x, torch.full((7,), 0.5), seed=3))
    assert_same_bytes(one, process.perturb(x, torch.tensor(0.5), seed=3))
    assert_same_bytes(one[2:], process.perturb(x[2:], 0.5, seed=3, sample_offset=2))
    some = torch.tensor([5, 1])
    assert_same_bytes(one[some], process.perturb(x[some], 0.5, seed=3, samples=some))
    assert_same_bytes(one, process.perturb(x, 0.5, key=fastscore.random.key(3)))
    torch.manual_seed(0)
    first = process.perturb(x, 0.5)
    torch.manual_seed(0)
    assert_same_bytes(first, process.perturb(x, 0.5))
    assert process.perturb(x[:0], 0.5).shape == (0, 2, 3)


def test_perturb_is_differentiable_and_compiles():
    x, t = randn(4, 3).requires_grad_(), torch.rand(4)
    process = sde.SubVP()
    (grad,) = torch.autograd.grad(process.perturb(x, t, seed=0).sum(), x)
    torch.testing.assert_close(grad, process.alpha(t)[:, None].expand(4, 3).float())
    key = fastscore.random.key(0)
    compiled = torch.compile(
        lambda x, t: process.perturb(x, t, key=key), backend="eager", fullgraph=True
    )
    assert_same_bytes(compiled(x, t), process.perturb(x, t, key=key))


def test_perturb_refuses():
    x, process = randn(4, 3), sde.VP()
    for t, options, message in (
        (1.5, {}, r"VP.perturb: t must be in \[0, 1\], got 1.5"),
        (
            torch.tensor([0.1, 0.2, math.nan, 0.3]),
            {},
            r"VP.perturb: t must be in \[0, 1\], got nan",
        ),
        (torch.rand(3), {}, r"VP.perturb: t must be of shape \(4,\)"),
        (torch.rand(4).requires_grad_(), {}, "VP.perturb: t must be times that need no gradient"),
        (0.5, {"seed": 1, "key": fastscore.random.key(0)}, "VP.perturb: seed must be None when"),
        (0.5, {"sample_offset": -1}, "VP.perturb: sample_offset must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            process.perturb(x, t, **options)
    with pytest.raises(ValueError, match=r"VP.perturb: x must be a floating-point tensor"):
        process.perturb(x.long(), 0.5)
    with pytest.raises(TypeError, match="perturb: there is no option 'sead'"):
        process.perturb(x, 0.5, sead=1)
