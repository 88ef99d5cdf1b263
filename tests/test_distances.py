"""The measures of sample quality, against SciPy and values known in closed form."""

import itertools
import math

import numpy
import pytest
import scipy.stats
import torch
from memory import peak_bytes

from fastscore.evaluation import (
    distances,
    energy_distance,
    frechet_distance,
    nearest_distance,
    sliced_wasserstein,
)

MEASURES = [energy_distance, frechet_distance, nearest_distance, sliced_wasserstein]


def gaussian(n, seed, dim=2):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- Frechet -------------------------------------------------------------------------------------


def test_frechet_distance_of_two_gaussians():
    # |mean|^2 + (2 - 1)^2 + (3 - 1)^2 for standard deviations (2, 3) against (1, 1).
    a = gaussian(200_000, 0) * torch.tensor([2.0, 3.0]) + torch.tensor([1.0, -1.0])
    assert frechet_distance(a, gaussian(200_000, 1)) == pytest.approx(2 + 1 + 4, rel=0.02)


@pytest.mark.parametrize(("n", "dim"), [(100, 2), (40, 40), (20, 60), (2, 5), (5, 1)])
def test_frechet_distance_of_a_set_to_itself(n, dim):
    a = gaussian(n, 0, dim)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-11)
    assert frechet_distance(a, a + 2.0) == pytest.approx(4.0 * dim, rel=1e-12)


@pytest.mark.parametrize("sizes", [(90, 70, 7), (30, 20, 50), (60, 20, 40), (20, 60, 40)])
def test_frechet_distance_also_of_fewer_samples_than_dimensions(sizes):
    n, m, dim = sizes
    a, b = gaussian(n, 0, dim) * 2, gaussian(m, 1, dim) + 0.5
    # tr (C_a C_b)^{1/2}, by the eigenvalues of C_a C_b: right to the root of the machine epsilon.
    values = torch.linalg.eigvals(torch.cov(a.T) @ torch.cov(b.T)).real.clamp_min(0)
    spread = a.var(0).sum() + b.var(0).sum() - 2 * values.sqrt().sum()
    expected = float((a.mean(0) - b.mean(0)).square().sum() + spread)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_frechet_distance_of_images_is_that_of_their_pixels():
    a, b = gaussian(64, 0).reshape(16, 2, 2, 2), gaussian(64, 1).reshape(16, 2, 2, 2)
    assert frechet_distance(a, b) == frechet_distance(a.flatten(1), b.flatten(1))


# ---- sliced Wasserstein --------------------------------------------------------------------------

SIZES = [(5, 5), (12, 18), (7, 13), (1, 9), (200, 333)]


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_sliced_wasserstein_in_one_dimension_is_scipys(n, m):
    a, b = gaussian(n, 0, 1) * 2, gaussian(m, 1, 1) + 0.3
    a[0] = b[0]  # a tie
    expected = scipy.stats.wasserstein_distance(a[:, 0], b[:, 0])
    assert sliced_wasserstein(a, b, p=1) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_wasserstein_2_merges_the_quantile_functions_exactly(n, m):
    a, b = gaussian(n, 0, 1) * 2, gaussian(m, 1, 1) + 0.3
    # Copies to a common number of samples, which pair in order.
    count = math.lcm(n, m)
    pairs = zip(
        sorted(a.repeat_interleave(count // n).tolist()),
        sorted(b.repeat_interleave(count // m).tolist()),
        strict=True,
    )
    expected = math.sqrt(sum((u - v) ** 2 for u, v in pairs) / count)
    assert sliced_wasserstein(a, b) == pytest.approx(expected, rel=1e-13)
    assert sliced_wasserstein(b, a) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_sliced_wasserstein_of_a_shift(dim):
    x, shift = gaussian(10, 0, dim), gaussian(1, 1, dim)
    length = float(shift.norm())
    by = {"projections": 50_000, "seed": 0}
    # E (t'c)^2 = |c|^2/d and E|t'c| = |c| Gamma(d/2) / (sqrt(pi) Gamma((d + 1)/2)).
    squared = sliced_wasserstein(x, x + shift, **by) ** 2
    assert squared == pytest.approx(length**2 / dim, rel=0.02)
    mean = length * math.exp(math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)) / math.sqrt(math.pi)
    assert sliced_wasserstein(x, x + shift, p=1, **by) == pytest.approx(mean, rel=0.02)


def test_sliced_wasserstein_of_two_gaussians():
    # Along any direction N(0, 9) and N(0, 1), so that W_2 = 2, whatever the numbers of samples.
    a, b = gaussian(100_000, 0) * 3, gaussian(60_000, 1)
    assert sliced_wasserstein(a, b, projections=20, seed=0) == pytest.approx(2.0, rel=0.01)


def test_directions_are_governed_by_the_seed():
    a, b = gaussian(50, 0, 3), gaussian(40, 1, 3) * 2
    one = sliced_wasserstein(a, b, projections=10, seed=4)
    assert one == sliced_wasserstein(a, b, projections=10, seed=4)
    assert one != sliced_wasserstein(a, b, projections=10, seed=5)
    torch.manual_seed(7)
    drawn = sliced_wasserstein(a, b, projections=10)
    assert drawn != sliced_wasserstein(a, b, projections=10)
    torch.manual_seed(7)
    assert drawn == sliced_wasserstein(a, b, projections=10)
    by = [torch.Generator().manual_seed(1) for _ in range(2)]
    found = [sliced_wasserstein(a, b, projections=10, generator=each) for each in by]
    assert found[0] == found[1] != drawn


def test_blocks_of_directions_change_nothing(monkeypatch):
    a, b = gaussian(50, 0, 3), gaussian(40, 1, 3)
    whole = sliced_wasserstein(a, b, projections=7, seed=0)
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 200)  # two at a time
    assert sliced_wasserstein(a, b, projections=7, seed=0) == pytest.approx(whole, rel=1e-14)


# ---- energy and nearest --------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_energy_distance_in_one_dimension_is_the_square_of_scipys(n, m):
    a, b = gaussian(n, 0, 1) * 2, gaussian(m, 1, 1) + 0.3
    expected = scipy.stats.energy_distance(a[:, 0], b[:, 0]) ** 2
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-12)


def plain_energy(a, b):
    """Over all pairs, written out."""

    def mean(x, y):
        return sum(math.dist(u, v) for u, v in itertools.product(x.tolist(), y.tolist())) / (
            len(x) * len(y)
        )

    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


@pytest.mark.parametrize("elements", [1, 100, 2**22])
def test_energy_distance_and_its_blocks(elements, monkeypatch):
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", elements)
    a, b = gaussian(31, 0, 3), gaussian(20, 1, 3) + 0.5
    assert energy_distance(a, b) == pytest.approx(plain_energy(a, b), rel=1e-12)
    assert energy_distance(a, a) == pytest.approx(0, abs=1e-14)
    assert energy_distance(a, a.flip(0)) >= 0


def test_energy_distance_of_one_distribution_is_what_the_docstring_says():
    pairs = [(gaussian(100, 2 * i), gaussian(50, 2 * i + 1)) for i in range(100)]
    mean = sum(energy_distance(a, b) for a, b in pairs) / len(pairs)
    between = math.sqrt(math.pi)  # E|x - x'| in the plane
    assert mean == pytest.approx(between * (1 / 100 + 1 / 50), rel=0.15)


@pytest.mark.parametrize("elements", [1, 5, 2**22])
def test_nearest_distance_is_the_median(elements, monkeypatch):
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", elements)
    x = torch.tensor([[0.0], [10.0], [20.0]])
    data = torch.tensor([[1.0], [12.0], [24.0], [100.0]])
    assert nearest_distance(x, data) == 2.0


def test_copies_are_at_distance_zero_however_far_from_the_origin():
    x = gaussian(100, 0, 30) + 1e6
    assert nearest_distance(x, x.flip(0)) == 0.0


@pytest.mark.parametrize("measure", [energy_distance, nearest_distance, sliced_wasserstein])
def test_memory_does_not_grow_with_the_product_of_the_numbers(measure):
    a, b = gaussian(6000, 0, 1), gaussian(6000, 1, 1)
    product, block = 8 * len(a) * len(b), 8 * distances._BLOCK_ELEMENTS
    # Sorting keeps numbers, places, and both again; the others a block at a time.
    allowed = 6 * block if measure is sliced_wasserstein else 1.2 * block
    assert peak_bytes(lambda: measure(a, b)) < allowed < product


# ---- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_floating_dtype_is_taken_to_float64(measure, dtype):
    a, b = gaussian(30, 0).to(dtype), gaussian(20, 1).to(dtype)
    options = {"seed": 0} if measure is sliced_wasserstein else {}
    value = measure(a, b, **options)
    assert type(value) is float
    assert value == measure(a.double(), b.double(), **options)
    wanting = a.clone().requires_grad_(True)
    assert measure(wanting, b, **options) == value
    with torch.inference_mode():
        assert measure(a, b, **options) == value


BAD = [
    (torch.zeros(0, 2), torch.zeros(3, 2), ValueError, "at least 1 sample, got 0"),
    (torch.zeros(3, 0), torch.zeros(3, 0), ValueError, "samples with at least one element"),
    (torch.zeros(3, 2).int(), torch.zeros(3, 2), ValueError, "a floating-point tensor"),
    (torch.zeros(3), torch.zeros(3), ValueError, "a tensor with at least 2 dimension"),
    (torch.full((3, 2), math.nan), torch.zeros(3, 2), ValueError, "finite everywhere"),
    (torch.zeros(3, 2), torch.tensor([[0.0], [math.inf]]), ValueError, "finite everywhere"),
    (
        torch.full((3, 2), 1e200, dtype=torch.float64),
        torch.zeros(3, 2),
        ValueError,
        "at most 1e\\+150",
    ),
    (torch.zeros(3, 2), torch.zeros(3, 4), ValueError, r"samples of shape \(2,\), as those of"),
    (numpy.zeros((3, 2)), torch.zeros(3, 2), TypeError, "a torch.Tensor, got a NumPy array"),
]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("a", "b", "kind", "message"), BAD)
def test_bad_input(measure, a, b, kind, message):
    if len(a) == 0 and measure in (frechet_distance, nearest_distance):
        message = "at least 2 samples, got 0"
    with pytest.raises(kind, match=f"^{measure.__name__}: \\w+ must be {message}"):
        measure(a, b)


def test_other_devices_are_refused(monkeypatch):
    # A meta tensor has no values to look at: it stands for a set on a GPU.
    monkeypatch.setattr(distances, "check_finite", lambda *_: None)
    monkeypatch.setattr(distances, "largest", lambda _: 0.0)
    for measure in MEASURES:
        with pytest.raises(ValueError, match=r"(b|data) must be on cpu \(where (a|x) is\), got"):
            measure(torch.zeros(3, 2), torch.zeros(3, 2, device="meta"))


@pytest.mark.parametrize("measure", [frechet_distance, nearest_distance])
def test_one_sample_is_too_few_where_it_says_nothing(measure):
    with pytest.raises(ValueError, match="must be at least 2 samples, got 1"):
        measure(torch.zeros(1, 2), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"projections": 0}, ValueError, "projections must be at least 1, got 0"),
        ({"projections": 1.5}, TypeError, "projections must be an integer, got float"),
        ({"p": 3}, ValueError, "p must be 1 or 2, got 3"),
        ({"p": 0}, ValueError, "p must be at least 1, got 0"),
        ({"p": 1.0}, TypeError, "p must be an integer, got float"),
        ({"seed": [1, 2]}, ValueError, "seed must be one integer, got 2 of them"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "generator must be None"),
    ],
)
def test_bad_options_of_sliced_wasserstein(options, kind, message):
    with pytest.raises(kind, match=f"^sliced_wasserstein: {message}"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 2), **options)
