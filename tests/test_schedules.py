"""Noise scales and step sizes against scipy, brute force and the papers' own numbers."""

from __future__ import annotations

import doctest
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.spatial.distance import pdist
from scipy.stats import chi, norm

from fastscore import schedules
from fastscore.schedules import (
    geometric_sigmas,
    langevin_step_size,
    noise_scales,
    sigma_max_from_data,
)

# geometric_sigmas


@pytest.mark.parametrize("n", [2, 3, 10, 232, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_geometric_sigmas_is_the_progression_rounded_once(n: int, dtype: torch.dtype) -> None:
    sigmas = geometric_sigmas(50.0, 0.01, n, dtype=dtype)
    expected = np.geomspace(50.0, 0.01, n)
    assert sigmas.shape == (n,)
    assert sigmas.dtype == dtype
    assert sigmas[0] == torch.tensor(50.0, dtype=dtype)
    assert sigmas[-1] == torch.tensor(0.01, dtype=dtype)
    relative = (sigmas.double() - torch.from_numpy(expected)).abs() / torch.from_numpy(expected)
    assert relative.max() <= torch.finfo(dtype).eps / 2 + 4e-15


def test_geometric_sigmas_default_dtype_is_float32_whatever_torchs_default() -> None:
    assert geometric_sigmas(2, 1, 3).dtype == torch.float32
    assert geometric_sigmas(2, 1, 3, device="meta").device.type == "meta"


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((1.0, 1.0, 4), ValueError, "sigma_max must be larger than sigma_min = 1.0, got 1.0"),
        ((0.5, 1.0, 4), ValueError, "sigma_max must be larger than sigma_min"),
        ((1.0, 0.0, 4), ValueError, "sigma_min must be positive, got 0.0"),
        ((1.0, -1.0, 4), ValueError, "sigma_min must be positive"),
        ((math.inf, 1.0, 4), ValueError, "sigma_max must be finite"),
        ((math.nan, 1.0, 4), ValueError, "sigma_max must be finite"),
        ((2.0, 1.0, 1), ValueError, "n must be at least 2, got 1"),
        ((2.0, 1.0, 2.0), TypeError, "n must be an integer, got float"),
        (("2", 1.0, 2), TypeError, "sigma_max must be a real number, got str"),
        ((1.0 + 1e-6, 1.0, 100), ValueError, "n must be a number of levels that torch.float32"),
    ],
)
def test_geometric_sigmas_bad_input(args, error, message) -> None:
    with pytest.raises(error, match="^geometric_sigmas: " + message):
        geometric_sigmas(*args)


def test_geometric_sigmas_bad_dtype() -> None:
    with pytest.raises(ValueError, match="dtype must be a floating-point dtype"):
        geometric_sigmas(2.0, 1.0, 2, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"dtype must be a torch\.dtype, got str"):
        geometric_sigmas(2.0, 1.0, 2, dtype="float32")  # type: ignore[arg-type]


# sigma_max_from_data


def brute_force(x: torch.Tensor) -> float:
    return float(pdist(x.reshape(len(x), -1).double().numpy()).max())


@pytest.mark.parametrize("shape", [(2, 1), (7,), (50, 2), (33, 5, 3), (400, 3, 8, 8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_sigma_max_is_the_largest_distance(shape: tuple[int, ...], seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    assert sigma_max_from_data(x) == pytest.approx(brute_force(x), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_sigma_max_over_several_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "_BLOCK_ROWS", rows)
    for seed in range(5):
        x = torch.randn(130, 6, generator=torch.Generator().manual_seed(seed))
        assert sigma_max_from_data(x) == pytest.approx(brute_force(x), rel=1e-12)


def test_sigma_max_where_every_radius_is_the_same() -> None:
    # Points on a circle: the radii can rule nothing out, opposite points are 2 apart.
    angle = torch.arange(300, dtype=torch.float64) * (2 * math.pi / 300)
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert sigma_max_from_data(x) == pytest.approx(2.0, rel=1e-14)
    one_hot = torch.eye(200)
    assert sigma_max_from_data(one_hot) == pytest.approx(math.sqrt(2), rel=1e-14)


@pytest.mark.parametrize("offset", [1e3, 1e6, -3e7])
def test_sigma_max_far_from_the_origin(offset: float) -> None:
    # In float32 |a|^2 + |b|^2 - 2ab has no correct digit here; the data differ by a few ulps.
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(0)) * 8 + offset
    assert sigma_max_from_data(x) == pytest.approx(brute_force(x), rel=1e-12)


def test_sigma_max_of_float64_data_whose_spread_is_tiny() -> None:
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(0)).double() * 1e-9 + 1e3
    assert sigma_max_from_data(x) == pytest.approx(brute_force(x), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sigma_max_in_other_dtypes(dtype: torch.dtype) -> None:
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(3)).to(dtype) * 200
    assert sigma_max_from_data(x) == pytest.approx(brute_force(x), rel=1e-12)


def test_sigma_max_leaves_its_input_alone_and_takes_any_layout() -> None:
    x = torch.randn(40, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    before = x.detach().clone()
    strided = torch.randn(80, 9)[::2, 1::2]
    assert sigma_max_from_data(x) == pytest.approx(brute_force(before), rel=1e-12)
    assert sigma_max_from_data(strided) == pytest.approx(brute_force(strided), rel=1e-12)
    assert torch.equal(x.detach(), before)
    assert x.grad is None


def test_sigma_max_on_cifar_sized_data_stays_below_a_gigabyte() -> None:
    # The peak of a process of its own, the data (123 MB) included, beyond what was there before: a
    # PyTorch for GPUs takes most of a gigabyte itself.
    script = r"""
import re, torch
from fastscore.schedules import sigma_max_from_data
def kib(field):
    return int(re.search(field + r":\s+(\d+)", open("/proc/self/status").read())[1])
before = kib("VmRSS")
x = torch.rand(10_000, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 3072)
x += 1e-4 * torch.arange(3072)
print(sigma_max_from_data(x), float(x[:, 0].max() - x[:, 0].min()) * 3072**0.5)
# Not getrusage, whose peak a child inherits from its parent.
print(kib("VmHWM") - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    distance, expected, peak_kib = (float(word) for word in done.stdout.split())
    assert distance == pytest.approx(expected, rel=1e-5)
    assert peak_kib * 1024 < 6e8


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(1, 3), r"x must be at least two samples, got shape \(1, 3\)"),
        (torch.randn(0, 3), r"x must be at least two samples"),
        (torch.randn(3, 0), r"x must be samples with at least one element"),
        (torch.ones(5, 3) / 3, r"x must be samples that are not all equal, got 5 equal samples"),
        (torch.tensor([[1.0], [math.nan], [2.0]]), r"x must be finite everywhere, got 1 NaN"),
        (torch.tensor([[1.0], [math.inf], [2.0]]), r"x must be finite everywhere, got 1 NaN"),
        (torch.ones(5, 3, dtype=torch.uint8), r"x must be a floating-point tensor"),
        (torch.tensor([1e200, 0.0], dtype=torch.float64), r"x must be small enough"),
        (torch.tensor(3.0), r"x must be a tensor with at least 1 dimension"),
    ],
)
def test_sigma_max_bad_input(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match="^sigma_max_from_data: " + message):
        sigma_max_from_data(x)


def test_sigma_max_of_something_else() -> None:
    with pytest.raises(TypeError, match=r"^sigma_max_from_data: x must be a torch\.Tensor"):
        sigma_max_from_data([[1.0], [2.0]])  # type: ignore[arg-type]


# noise_scales


def technique_2(dim: int, overlap: float) -> float:
    scale = math.sqrt(2 * dim)

    def equation(gamma: float) -> float:
        shift = scale * (gamma - 1)
        return norm.cdf(shift + 3 * gamma) - norm.cdf(shift - 3 * gamma) - overlap

    return brentq(equation, 1 + 1e-12, 100.0, xtol=1e-15, rtol=1e-14)


def two_points(dim: int, distance: float) -> torch.Tensor:
    x = torch.zeros(2, dim)
    x[1, -1] = distance
    return x


@pytest.mark.parametrize("dim", [5, 8, 64, 3072, 200_000])
@pytest.mark.parametrize("overlap", [0.05, 0.5, 0.9, 0.99])
def test_noise_scales_are_techniques_1_and_2(dim: int, overlap: float) -> None:
    gamma = technique_2(dim, overlap)
    x = two_points(dim, 50.0)
    sigmas = noise_scales(x, sigma_min=0.01, overlap=overlap, max_ratio=None)
    n = len(sigmas)
    assert n == 1 + math.ceil(math.log(50 / 0.01) / math.log(gamma))
    # As few scales as keep every neighbouring ratio at gamma or below.
    assert (50 / 0.01) ** (1 / (n - 1)) <= gamma < (50 / 0.01) ** (1 / max(n - 2, 1e-9))
    assert torch.equal(sigmas, geometric_sigmas(50.0, 0.01, n))


def test_noise_scales_take_sigma_1_from_the_data() -> None:
    x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = noise_scales(x, sigma_min=0.01, dtype=torch.float64)
    assert float(sigmas[0]) == sigma_max_from_data(x)
    assert float(sigmas[-1]) == 0.01
    assert sigmas.dtype == torch.float64
    assert bool((sigmas[1:] < sigmas[:-1]).all())


def test_noise_scales_are_two_at_least() -> None:
    assert noise_scales(two_points(64, 1.001), sigma_min=1.0).tolist() == pytest.approx([1.001, 1])


@pytest.mark.parametrize(
    ("x", "kwargs", "message"),
    [
        (two_points(8, 1.0), {"sigma_min": 1.0}, "sigma_min must be below the largest pairwise"),
        (two_points(8, 1.0), {"sigma_min": 2.0}, "sigma_min must be below the largest pairwise"),
        (two_points(8, 1.0), {"sigma_min": 0.0}, "sigma_min must be positive"),
        (two_points(8, 1.0), {"sigma_min": 0.1, "overlap": 0.0}, "overlap must be positive"),
        (two_points(8, 1.0), {"sigma_min": 0.1, "overlap": 0.9974}, "overlap must be below 0.9973"),
        (two_points(8, 1.0), {"max_ratio": 1.0}, "max_ratio must be above 1, or None, got 1.0"),
        (two_points(2, 1.0), {"max_ratio": -2.0}, "max_ratio must be above 1, or None, got -2.0"),
        (two_points(2, 1.0), {"max_ratio": math.inf}, "max_ratio must be finite"),
        (two_points(4, 1.0), {"max_ratio": None}, "max_ratio must be a number below 5 elements"),
        (two_points(8, 1.0)[:1], {"sigma_min": 0.1}, "x must be at least two samples"),
    ],
)
def test_noise_scales_bad_input(x: torch.Tensor, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^noise_scales: " + message):
        noise_scales(x, **kwargs)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 64, 150])
def test_noise_scales_in_few_dimensions_are_a_fifth_apart(dim: int) -> None:
    sigmas = noise_scales(two_points(dim, 50.0), sigma_min=0.01, dtype=torch.float64)
    ratios = sigmas[:-1] / sigmas[1:]
    assert (sigmas[0], sigmas[-1]) == (50.0, 0.01)
    assert 1.19 < ratios.min() <= ratios.max() <= 1.2
    # One scale less would be too far apart.
    assert (50 / 0.01) ** (1 / (len(sigmas) - 2)) > 1.2


def test_the_cap_leaves_images_alone() -> None:
    x = two_points(3072, 50.0)
    default = noise_scales(x, sigma_min=0.01)
    assert len(default) == 220
    assert torch.equal(default, noise_scales(x, sigma_min=0.01, max_ratio=None))


@pytest.mark.parametrize("dim", [1, 4, 5, 8, 64, 3072])
@pytest.mark.parametrize("limit", [1.05, 1.2, 3.0, 100.0])
def test_noise_scales_hold_to_the_largest_ratio(dim: int, limit: float) -> None:
    x = two_points(dim, 50.0)
    sigmas = noise_scales(x, sigma_min=0.01, max_ratio=limit, dtype=torch.float64)
    ratio = limit if dim < 5 else min(limit, technique_2(dim, 0.5))
    n = 1 + max(1, math.ceil(math.log(50 / 0.01) / math.log(ratio)))
    assert len(sigmas) == n
    assert (sigmas[:-1] / sigmas[1:]).max() <= ratio * (1 + 1e-12)


def test_smallest_scale_is_a_hundredth_of_the_standard_deviation() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 2, generator=g) * torch.tensor([3.0, 1.0]) + torch.tensor([50.0, 0.0])
    spread = float(x.double().var(0, correction=0).mean().sqrt())
    assert float(noise_scales(x)[-1]) == pytest.approx(0.01 * spread, rel=1e-6)
    # Chosen from the data: as they are scaled, so are the scales.
    torch.testing.assert_close(noise_scales(1000 * x), 1000 * noise_scales(x))
    images = x.reshape(1500, 1, 2, 2)
    expected = 0.01 * float(images.double().var(0, correction=0).mean().sqrt())
    assert float(noise_scales(images)[-1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("dim", "exact", "formula"),
    [
        (1, 399, None),
        (2, 22.7, None),
        (3, 8.9, None),
        (4, 5.6, None),
        (8, 2.8, 4.0),
        (64, 1.34, 1.36),
    ],
)
def test_technique_2_with_the_exact_law_of_the_norm(dim, exact, formula) -> None:
    """The docstring's figures: below 5 dimensions an answer too, and one of no use."""
    low, high = chi.ppf(norm.cdf([-3, 3]), dim)
    ratio = brentq(lambda r: chi.cdf(high * r, dim) - chi.cdf(low * r, dim) - 0.5, 1.001, 1e4)
    assert ratio == pytest.approx(exact, rel=0.01)
    if formula:
        assert technique_2(dim, 0.5) == pytest.approx(formula, rel=0.01)


def test_the_docstrings_table_of_ratios_is_the_study() -> None:
    path = Path(__file__).parents[1] / "benchmarks/results/defaults.json"
    study = json.loads(path.read_text())["levels"]
    found = re.findall(r"^    D = (\d+) +((?:[\d.]+ *){7})$", noise_scales.__doc__ or "", re.M)
    assert [int(dim) for dim, _ in found] == [1, 2, 4, 8, 64]
    for dim, cells in found:
        rows = [r for r in study if r["dim"] == int(dim) and r["steps_per_sigma"] == 5]
        expected = [r["distance"] for r in rows if r["ratio"] > 1.05] + [rows[0]["fresh"]]
        shown = [float(cell) for cell in cells.split()]
        assert shown == pytest.approx([100 * value for value in expected], abs=0.051)


def test_noise_scales_of_equal_samples() -> None:
    with pytest.raises(ValueError, match="samples that are not all equal"):
        noise_scales(torch.ones(4, 8), sigma_min=0.1)
    with pytest.raises(ValueError, match="samples that are not all equal"):
        noise_scales(torch.ones(4, 2))


# langevin_step_size


def final_ratio(eta: np.ndarray | float, gamma: float, steps: int) -> np.ndarray | float:
    b = 2 / (2 - eta)
    return (1 - eta) ** (2 * steps) * (gamma**2 - b) + b


def test_step_size_of_the_paper() -> None:
    sigmas = geometric_sigmas(50.0, 0.01, 232)
    full = langevin_step_size(sigmas, 5, convention="full")
    assert full == pytest.approx(6.18e-6, rel=1e-3)
    assert langevin_step_size(sigmas, 5, convention="half") == 2 * full
    assert langevin_step_size(sigmas, 5) == 2 * full


@pytest.mark.parametrize("steps", [1, 2, 5, 100, 1000])
@pytest.mark.parametrize(("sigma_max", "n"), [(50.0, 232), (1.0, 10), (1000.0, 2), (1.0, 5000)])
def test_step_size_brings_the_ratio_closest_to_one(sigma_max: float, n: int, steps: int) -> None:
    sigmas = geometric_sigmas(sigma_max, 0.01, n, dtype=torch.float64)
    gamma = (sigma_max / 0.01) ** (1 / (n - 1))
    eta = langevin_step_size(sigmas, steps, convention="full") / 0.01**2
    assert 0 < eta < 1
    grid = np.concatenate([np.geomspace(1e-9, 1, 20_001), np.linspace(1e-4, 2 - 1e-4, 20_001)])
    # On the whole stable interval no step size does better, and to either side it gets worse.
    best = final_ratio(eta, gamma, steps) - 1
    assert best <= np.abs(final_ratio(grid, gamma, steps) - 1).min() + 1e-12
    for near in (0.999 * eta, min(1.001 * eta, 1.0)):
        assert final_ratio(near, gamma, steps) - 1 >= best


def test_step_size_keeps_the_variance_of_a_one_point_data_set() -> None:
    # Annealed Langevin on s = -x / sigma^2, the variance through all levels in closed form: at
    # the paper's 6.2e-6 it ends at 1.1283 sigma_L^2.
    sigmas = geometric_sigmas(50.0, 0.01, 232, dtype=torch.float64)

    def end(step_size: float) -> float:
        eta = step_size / 0.01**2
        variance = 0.0
        for sigma in sigmas.tolist():
            for _ in range(5):
                variance = (1 - eta) ** 2 * variance + 2 * eta * sigma**2
        return variance / 0.01**2

    assert end(6.2e-6) == pytest.approx(1.1283, abs=5e-5)
    assert end(langevin_step_size(sigmas, 5, convention="full")) == pytest.approx(1.1286, abs=5e-5)


def test_step_size_for_uneven_sigmas_serves_the_largest_ratio() -> None:
    uneven = langevin_step_size([8.0, 4.0, 3.5, 3.2], 10, convention="full") / 3.2**2
    even = langevin_step_size([2.0, 1.0], 10, convention="full")
    assert uneven == pytest.approx(even, rel=1e-12)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (([1.0], 5), ValueError, "sigmas must be a 1-D tensor of at least 2"),
        (([1.0, 2.0], 5), ValueError, "sigmas must be strictly decreasing"),
        (([1.0, 1.0], 5), ValueError, "sigmas must be strictly decreasing"),
        (([1.0, 0.0], 5), ValueError, "sigmas must be positive and finite"),
        (([2.0, 1.0], 0), ValueError, "steps must be at least 1, got 0"),
        (([2.0, 1.0], 1.5), TypeError, "steps must be an integer, got float"),
        (([2.0, 1.0], 5, "none"), ValueError, "convention must be one of 'half', 'full', got"),
    ],
)
def test_step_size_bad_input(args, error, message) -> None:
    sigmas, steps, *convention = args
    with pytest.raises(error, match="^langevin_step_size: " + message):
        langevin_step_size(sigmas, steps, **({"convention": convention[0]} if convention else {}))


def test_docstring_examples() -> None:
    assert doctest.testmod(schedules).failed == 0


@pytest.mark.parametrize(
    ("steps", "spread"), [(1, "0.355"), (2, "0.289"), (5, "0.264"), (10, "0.257")]
)
def test_spread_left_at_few_steps_is_what_the_docstring_says(steps: int, spread: str) -> None:
    """Of N(0, 0.25^2), whose variance a chain with the exact score maps linearly."""
    sigmas = schedules.geometric_sigmas(50.0, 0.01, 1000, dtype=torch.float64).tolist()
    step_size = schedules.langevin_step_size(sigmas, steps, convention="full")
    variance = sigmas[0] ** 2
    for sigma in sigmas:
        alpha = step_size * (sigma / sigmas[-1]) ** 2
        for _ in range(steps):
            variance = variance * (1 - alpha / (0.25**2 + sigma**2)) ** 2 + 2 * alpha
    variance *= (1 - sigmas[-1] ** 2 / (0.25**2 + sigmas[-1] ** 2)) ** 2  # the denoising step
    assert f"{variance**0.5:.3f}" == spread
    assert spread in str(schedules.langevin_step_size.__doc__)
