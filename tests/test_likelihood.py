"""Log densities by the flow: against closed forms, of every process and every kind of model."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from continuous import (
    BETAS,
    MEAN,
    PREDICTIONS,
    VARIANCE,
    InTime,
    every_process,
    gaussian,
)
from helpers import randn
from scipy.integrate import solve_ivp
from torch import Tensor

from fastscore import log_likelihood, sde
from fastscore.evaluation import prior_mismatch
from fastscore.scores import EnergyScore, EpsScore, GaussianMixture, Parzen
from fastscore.sde import Process

# Some of the fields here are no scores.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*at the highest noise level", "ignore:.*(the latents|the data's mean square)"
)

STD = VARIANCE**0.5
TIGHT: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7}
TRUE_PRIOR: dict[str, Any] = {"prior": (MEAN, STD)}
PLANE = GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), [[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], 0.09
).double()


def at_t_eps(process: Process, x: Tensor, mean: Any = MEAN, variance: Any = VARIANCE) -> Tensor:
    """The log density of Gaussian data at the process's t_eps."""
    alpha, sigma = process.alpha(process.t_eps), process.sigma(process.t_eps)
    v = torch.as_tensor(alpha**2 * variance + sigma**2, dtype=torch.float64)
    square = (x.double() - alpha * mean).square() / v + (2 * math.pi * v).log()
    return -0.5 * square.reshape(len(x), -1).sum(1)


def data(batch: int, *shape: int, seed: int = 0, dtype: Any = torch.float64) -> Tensor:
    return MEAN + STD * randn(batch, *shape, seed=seed, dtype=dtype)


def mixture_under_noise(x: Tensor, s: float, mixture: Any = PLANE) -> Tensor:
    return mixture.log_prob(x, s)


# ---- closed forms ------------------------------------------------------------------------------


@every_process
@pytest.mark.parametrize("solver", ["rk45", "rk23"])
def test_gaussian_data_under_every_process(process: Process, solver: str) -> None:
    x = data(6, 3)
    tight = TIGHT if solver == "rk45" else {"rtol": 1e-6, "atol": 1e-6}
    found = log_likelihood(gaussian, x, process, conditioning="sigma", **tight, solver=solver,
                           **TRUE_PRIOR)  # fmt: skip
    torch.testing.assert_close(found.log_prob, at_t_eps(process, x), rtol=0, atol=3e-5)
    assert found.exact
    assert found.log_prob.dtype == torch.float64
    assert bool((found.stderr == 0).all())
    assert not bool(found.failed.any())


@every_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_in_time_that_predicts_anything(process: Process, prediction: str) -> None:
    if prediction == "velocity" and isinstance(process, sde.DDPM):
        pytest.skip("the rates of a table of betas are not smooth")
    x, model = data(4, 3), InTime(process, prediction, scale=7.0)
    found = log_likelihood(model, x, process, **TIGHT, **TRUE_PRIOR)
    torch.testing.assert_close(found.log_prob, at_t_eps(process, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(2,), (64,), (3, 32, 32)], ids=lambda s: str(math.prod(s)))
@pytest.mark.parametrize("variance", [0.01, 0.25, 4.0])
def test_within_a_ten_thousandth_of_a_nat_per_dimension(
    shape: tuple[int, ...], variance: float
) -> None:
    """With the spread unknown to the solver: 0.5 is what it guesses."""
    process, d = sde.VE(0.01, 50.0), math.prod(shape)
    x = (0.4 + variance**0.5 * randn(4, *shape, dtype=torch.float64)).float()
    mixture = GaussianMixture([1.0], torch.full((1, *shape), 0.4), variance)
    accuracy = {"rtol": 1e-6, "atol": 1e-6}
    found = log_likelihood(mixture, x, process, **accuracy, prior=(0.4, variance**0.5))
    off = (found.log_prob - at_t_eps(process, x, 0.4, variance)).abs().max() / d
    assert off < 1e-4
    controlled = log_likelihood(
        mixture, x, process, rtol=3e-4, atol=3e-4, log_prob_atol=3e-5, prior=(0.4, variance**0.5)
    )
    off = (controlled.log_prob - at_t_eps(process, x, 0.4, variance)).abs().max() / d
    assert off < 3e-4
    assert controlled.evaluations.max() < 80


def test_the_defaults_are_within_a_hundredth_of_a_bit() -> None:
    x, process = data(16, 64), sde.VE(0.01, 50.0)
    mixture = GaussianMixture([1.0], torch.full((1, 64), MEAN), VARIANCE).double()
    found = log_likelihood(mixture, x, process, **TRUE_PRIOR)
    off = (found.log_prob - at_t_eps(process, x)).abs() / 64 / math.log(2)
    assert off.max() < 0.01
    assert found.evaluations.max() <= 40


def test_a_mixture_in_the_plane_within_a_thousandth_of_a_nat() -> None:
    x, process = PLANE.sample(64, seed=0), sde.VE(0.01, 100.0)
    mean = PLANE.weights @ PLANE.means
    second = PLANE.weights @ (PLANE.means.square() + 0.09)
    moments = (mean, (second - mean.square()).sqrt())
    found = log_likelihood(PLANE, x, process, rtol=1e-6, atol=1e-6, prior=moments)
    off = (found.log_prob - PLANE.log_prob(x, 0.01)).abs().max()
    assert off < 1e-3
    fields = lambda x, s: PLANE(x, s)  # noqa: E731 - without a divergence of its own
    again = log_likelihood(fields, x, process, rtol=1e-6, atol=1e-6, prior=moments)
    assert again.exact  # of two dimensions
    torch.testing.assert_close(again.log_prob, found.log_prob, rtol=0, atol=1e-5)


def test_parzen() -> None:
    parzen = Parzen(randn(7, 2, 2, dtype=torch.float64), variance=0.04, chunk_size=3)
    x, process = parzen.sample(9, seed=1), sde.VE(0.02, 80.0)
    moments = (parzen.data.mean(0), parzen.data.std(0))
    found = log_likelihood(parzen, x, process, **TIGHT, prior=moments)
    assert found.exact
    assert (found.log_prob - parzen.log_prob(x, 0.02)).abs().max() < 1e-3


def test_against_an_integration_in_time_by_scipy() -> None:
    """dx/dt = f x - g^2 s/2 itself, and the integral of its divergence."""
    process, x = sde.VP(), PLANE.sample(3, seed=2)

    def field(t: float, state: Any) -> Any:
        y = torch.from_numpy(state[:6].reshape(3, 2)).requires_grad_()
        alpha, sigma = process.alpha(t), process.sigma(t)
        score = PLANE(y / alpha, float(sigma / alpha)) / alpha
        f, g2 = process.drift(t), process.diffusion_squared(t)
        slope = f * y - 0.5 * g2 * score
        rows = [
            torch.autograd.grad(slope[:, i].sum(), y, retain_graph=True)[0][:, i] for i in (0, 1)
        ]
        return torch.cat([slope.detach().reshape(-1), sum(rows)]).numpy()

    start = torch.cat([x.reshape(-1), x.new_zeros(3)]).numpy()
    end = solve_ivp(field, (process.t_eps, 1.0), start, rtol=1e-9, atol=1e-9).y[:, -1]
    latent, change = torch.from_numpy(end[:6]).reshape(3, 2), torch.from_numpy(end[6:])
    found = log_likelihood(PLANE, x, process, conditioning="sigma", sigma_range=(1e-3, 200.0),
                           rtol=1e-8, atol=1e-8)  # fmt: skip
    torch.testing.assert_close(found.latent, latent, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log_prob - found.log_prior, change, rtol=1e-5, atol=1e-5)
    sigma = float(process.sigma(1.0))
    normal = torch.distributions.Normal(0.0, sigma).log_prob(latent).sum(1)
    torch.testing.assert_close(found.log_prior, normal, rtol=1e-5, atol=1e-5)


# ---- the prior ---------------------------------------------------------------------------------


@every_process
def test_priors_are_what_they_say(process: Process) -> None:
    x = data(40, 2)
    how: dict[str, Any] = {"conditioning": "sigma", "sigma_data": STD}
    published = log_likelihood(gaussian, x, process, **how)
    fitted = log_likelihood(gaussian, x, process, **how, prior=(MEAN, torch.full((2,), STD)))
    change = published.log_prob - published.log_prior
    torch.testing.assert_close(fitted.log_prob - fitted.log_prior, change)
    alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
    noise = torch.distributions.Normal(0.0, sigma)
    torch.testing.assert_close(published.log_prior, noise.log_prob(published.latent).sum(1))
    true = torch.distributions.Normal(alpha * MEAN, (alpha**2 * VARIANCE + sigma**2).sqrt())
    torch.testing.assert_close(fitted.log_prior, true.log_prob(fitted.latent).sum(1))


def test_the_published_prior_is_off_by_what_is_said() -> None:
    process, x = sde.VE(0.01, 2.0), data(20_000, 2, seed=5)
    how: dict[str, Any] = {"sigma_data": STD, "rtol": 1e-4, "atol": 1e-4}
    moments = (torch.full((2,), MEAN), torch.full((2,), STD))
    published = log_likelihood(gaussian, x, process, **how)
    fitted = log_likelihood(gaussian, x, process, **how, prior=moments)
    off, expected = fitted.log_prob - published.log_prob, prior_mismatch(process, *moments)
    assert expected > 0.1
    assert abs(off.mean() - expected) < 3 * off.std() / 20_000**0.5


def test_prior_mismatch_is_the_divergence_of_two_gaussians() -> None:
    process = sde.VE(0.01, 3.0)
    mean, std = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 0.1, 2.0])
    latents = torch.distributions.Normal(mean.double(), (std.double() ** 2 + 9).sqrt())
    noise = torch.distributions.Normal(torch.zeros(3).double(), 3.0)
    exact = torch.distributions.kl_divergence(latents, noise).sum()
    torch.testing.assert_close(prior_mismatch(process, mean, std), exact)
    assert prior_mismatch(process, 0.0, 0.0) == 0


# ---- estimated divergences ---------------------------------------------------------------------


class Coupled(torch.nn.Module):
    """A field whose Jacobian has large off-diagonal elements."""

    def __init__(self, d: int = 12, hidden: int = 16, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(3)
        widths = [d, *[hidden] * layers, d]
        pairs = itertools.pairwise(widths)
        parts = [part for a, b in pairs for part in (torch.nn.Linear(a, b), torch.nn.Tanh())]
        self.net = torch.nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None]
        return self.net(x / (1 + s)) / (1 + s) - x / (1 + s**2)


def test_probes_are_without_bias_and_know_their_error() -> None:
    model, x, process = Coupled().double(), randn(8, 12, dtype=torch.float64), sde.VE(0.01, 20.0)
    alike: dict[str, Any] = {"log_prob_atol": None}  # the same steps
    exact = log_likelihood(model, x, process, divergence="exact", **alike)
    found = log_likelihood(model, x, process, probes=400, divergence="hutchinson", seed=0, **alike)
    assert exact.exact
    assert not found.exact
    torch.testing.assert_close(found.latent, exact.latent, rtol=0, atol=1e-6)
    error = (found.log_prob - exact.log_prob) / found.stderr
    assert error.abs().max() < 3.5
    assert error.square().mean() < 2.5
    few = [
        log_likelihood(model, x, process, probes=4, divergence="hutchinson", seed=i, **alike)
        for i in range(40)
    ]
    spread = torch.stack([each.log_prob for each in few]).std(0)
    told = torch.stack([each.stderr for each in few]).square().mean(0).sqrt()
    assert ((spread / told).log().mean().abs()) < 0.15


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "sphere"])
def test_distributions_of_probes(distribution: str) -> None:
    model, x, process = Coupled(), randn(6, 12), sde.VE(0.01, 20.0)
    exact = log_likelihood(model, x, process, divergence="exact")
    found = log_likelihood(
        model, x, process, divergence="hutchinson", probes=64, distribution=distribution, seed=1
    )
    assert ((found.log_prob - exact.log_prob) / found.stderr).abs().max() < 4


def test_one_probe_has_no_error_bar() -> None:
    found = log_likelihood(Coupled(), randn(2, 12), sde.VE(), divergence="hutchinson", seed=0)
    with pytest.raises(ValueError, match="probes must be at least 2 for a standard error, got 1"):
        _ = found.stderr


def test_of_probes_of_equal_numbers_the_same_result() -> None:
    """Probes are those of the sample: of its number, or of its own seed."""
    model, x, process = Coupled(), randn(5, 12), sde.VE(0.01, 20.0)
    how: dict[str, Any] = {"divergence": "hutchinson", "probes": 2}
    whole = log_likelihood(model, x, process, seed=4, **how)
    shard = log_likelihood(model, x[3:], process, seed=4, sample_offset=3, **how)
    chosen = log_likelihood(model, x[[4, 1]], process, seed=4, samples=torch.tensor([4, 1]), **how)
    torch.testing.assert_close(shard.log_prob, whole.log_prob[3:], rtol=0, atol=2e-4)
    torch.testing.assert_close(chosen.log_prob, whole.log_prob[[4, 1]], rtol=0, atol=2e-4)
    own = log_likelihood(model, x, process, seed=[1, 2, 3, 4, 5], **how)
    alone = log_likelihood(model, x[2:3], process, seed=3, **how)
    torch.testing.assert_close(own.log_prob[2:3], alone.log_prob, rtol=0, atol=2e-4)
    other = log_likelihood(model, x, process, seed=5, **how)
    assert (other.log_prob - whole.log_prob).abs().max() > 0.01


def test_what_auto_takes() -> None:
    x, process = randn(4, 12), sde.VE(0.01, 20.0)

    def exact(model: Any, x: Tensor = x, **options: Any) -> bool:
        return log_likelihood(model, x, process, rtol=0.1, atol=0.1, **options).exact

    assert exact(Coupled(layers=1))
    assert exact(Coupled(layers=2))
    assert not exact(Coupled())
    assert exact(Coupled(), probes=12)
    assert exact(Coupled(d=8), randn(4, 8))
    assert exact(GaussianMixture([1.0], torch.zeros(1, 12), 1.0))
    energy = EnergyScore(
        lambda x, s: (x.square() / (1 + s[:, None] ** 2) + 0.1 * x.cos()).sum(1) / 2
    )
    assert not exact(energy)
    assert exact(energy, randn(4, 3))


@pytest.mark.parametrize("layers", [1, 2])
def test_closed_forms_agree_with_unit_vectors(layers: int) -> None:
    model, x = Coupled(layers=layers).double(), randn(5, 12, dtype=torch.float64)
    process = sde.VE(0.01, 20.0)
    closed = log_likelihood(model, x, process)
    by_columns = log_likelihood(lambda x, s: model(x, s), x, process, divergence="exact")
    torch.testing.assert_close(closed.log_prob, by_columns.log_prob, rtol=0, atol=1e-8)


def test_energies_and_adapters() -> None:
    process, x = sde.VE(0.01, 30.0), PLANE.sample(5, seed=1)
    exact = log_likelihood(PLANE, x, process)
    energy = EnergyScore(lambda x, s: -PLANE.log_prob(x, s))
    found = log_likelihood(energy, x, process)
    torch.testing.assert_close(found.log_prob, exact.log_prob, rtol=0, atol=1e-7)
    eps = EpsScore(lambda x, s: -s[:, None] * PLANE(x, s))
    found = log_likelihood(eps, x, process)
    torch.testing.assert_close(found.log_prob, exact.log_prob, rtol=0, atol=1e-7)
    betas = log_likelihood(
        lambda y, i: InTime(sde.DDPM(BETAS), "eps")(y, (i + 1) / 1000), data(4, 2), sde.DDPM(BETAS),
        conditioning="index", prediction="eps", betas=BETAS, **TRUE_PRIOR,
    )  # fmt: skip
    off = betas.log_prob - at_t_eps(sde.DDPM(BETAS), data(4, 2))
    assert off.abs().max() < 0.02  # levels are the nearest


# ---- the solver --------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "order", "steps"), [("rk45", 5, 12), ("rk23", 3, 24)])
def test_order_of_equal_steps(solver: str, order: int, steps: int) -> None:
    x, process = data(5, 2), sde.VE(0.05, 20.0)
    how: dict[str, Any] = {"solver": solver, "sigma_data": 0.7, **TRUE_PRIOR}
    errors = [
        (log_likelihood(gaussian, x, process, steps=n, **how).log_prob - at_t_eps(process, x))
        .abs().max() for n in (steps, 2 * steps, 4 * steps)
    ]  # fmt: skip
    rates = [math.log2(errors[0] / errors[1]), math.log2(errors[1] / errors[2])]
    assert min(rates) > order - 0.6


def test_evaluations_are_counted() -> None:
    process, x = sde.VE(0.01, 20.0), data(3, 2)
    model = InTime(process)
    found = log_likelihood(model, x, process, steps=5, divergence="hutchinson", seed=0)
    assert found.evaluations.tolist() == [31, 31, 31]
    # One call tells whether samples depend on one another; of three steps derivatives are compared
    # with differences, by three calls each.
    assert model.calls == 31 + 1 + 9
    loose = log_likelihood(gaussian, x, process, rtol=0.1, atol=0.1).evaluations
    tight = log_likelihood(gaussian, x, process, rtol=1e-8, atol=1e-8).evaluations
    assert bool((loose < tight).all())


def test_the_divergence_is_not_asked_where_its_weight_is_nothing() -> None:
    """The second stage of rk45 has none: five reverse passes in six calls."""
    process, x, passes = sde.VE(0.01, 20.0), data(1, 20), []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            passes.append(1)
            return g

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian(Counted.apply(x), sigma)

    log_likelihood(model, x, process, steps=4, divergence="hutchinson", seed=0)
    assert len(passes) == 1 + 5 * 4 + 2  # and the first and the third step's are compared


def test_a_sample_that_does_not_move_is_as_exact_as_others() -> None:
    """The step control sees the density too: at a mode there is no error of x to go by."""
    process, mean = sde.VE(0.01, 50.0), torch.full((2, 64), 3.0, dtype=torch.float64)
    mixture = GaussianMixture([1.0], torch.full((1, 64), 3.0), 0.1).double()
    how: dict[str, Any] = {"prior": (3.0, 0.1**0.5)}
    exact = at_t_eps(process, mean, 3.0, 0.1)
    found = log_likelihood(mixture, mean, process, **how)
    assert (found.log_prob - exact).abs().max() / 64 < 1e-3
    blind = log_likelihood(mixture, mean, process, log_prob_atol=None, **how)
    assert (blind.log_prob - exact).abs().max() / 64 > 1e-3


def test_a_guess_of_the_spread_changes_the_cost_and_not_the_result() -> None:
    x, process = PLANE.sample(8, seed=3), sde.VE(0.01, 50.0)
    found = [
        log_likelihood(PLANE, x, process, rtol=1e-7, atol=1e-7, sigma_data=guess)
        for guess in (0.1, 0.3, 1.0, 4.0)
    ]
    for each in found[1:]:
        torch.testing.assert_close(each.log_prob, found[0].log_prob, rtol=0, atol=1e-4)
    costs = {int(each.evaluations.sum()) for each in found}
    assert len(costs) == 4
    said = log_likelihood(PLANE, x, process, rtol=1e-7, atol=1e-7, prior=(0.0, 0.3))
    assert torch.equal(said.evaluations, found[1].evaluations)


def test_the_density_is_that_of_the_lowest_level_that_the_model_knows() -> None:
    x, process = data(4, 3), sde.VP()
    found = log_likelihood(gaussian, x, process, conditioning="sigma", sigma_range=(0.05, 60.0),
                           **TIGHT, **TRUE_PRIOR)  # fmt: skip
    t = process.time_of(0.05)
    v = process.alpha(t) ** 2 * VARIANCE + process.sigma(t) ** 2
    square = (x - process.alpha(t) * MEAN).square() / v + (2 * math.pi * v).log()
    torch.testing.assert_close(found.log_prob, -0.5 * square.sum(1), rtol=0, atol=1e-5)
    end = process.time_of(60.0)
    v = process.alpha(end) ** 2 * VARIANCE + process.sigma(end) ** 2
    prior = torch.distributions.Normal(process.alpha(end) * MEAN, v.sqrt())
    torch.testing.assert_close(found.log_prior, prior.log_prob(found.latent).sum(1))


def test_densities_integrate_to_one() -> None:
    """On a grid over the line."""
    process = sde.VE(0.05, 30.0)
    mixture = GaussianMixture([0.7, 0.3], [-1.0, 1.5], [0.09, 0.25]).double()
    x = torch.linspace(-5, 6, 441, dtype=torch.float64)
    found = log_likelihood(mixture, x, process)
    assert abs(float(found.log_prob.exp().sum() * (x[1] - x[0])) - 1) < 2e-3


# ---- on every device -----------------------------------------------------------------------------


def test_each_device_has_the_same_densities(device: torch.device) -> None:
    """Probes, steps and integrals by the CPU's kernels, and by those of CUDA."""
    process, x = sde.VE(0.01, 20.0), data(5, 12, dtype=torch.float32).to(device)
    how: dict[str, Any] = {"divergence": "hutchinson", "probes": 2, "seed": 1, **TRUE_PRIOR}
    found = log_likelihood(gaussian, x, process, **how)
    exact = at_t_eps(process, x)
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=0.02)
    mine = log_likelihood(Coupled().to(device), x, process, **how)
    other = log_likelihood(Coupled(), x.cpu(), process, **how)
    torch.testing.assert_close(mine.log_prob.cpu(), other.log_prob, rtol=0, atol=1e-3)
