"""The example of colour and holes: what must hold whatever its network has learnt."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import guidance, operators

pytest.importorskip("sklearn")
pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parent.parent / "examples"
WAYS = ["known", "known, corrected", "known, resampled", "PiGDM", "MMPS"]


@pytest.fixture(scope="module")
def photographs():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import photographs
    finally:
        sys.path.remove(str(EXAMPLES))
    return photographs


@pytest.fixture(scope="module")
def data(photographs):
    training, x = photographs.training_and_held_out(3)
    return photographs.Gaussian(training[::7]), x


def test_no_pixel_is_in_both_parts(photographs):
    """Columns are numbered: the numbers of held-out patches are in no training patch."""
    columns = torch.arange(320.0).expand(2, 3, 213, 320)
    real = photographs.photographs
    assert real().shape == columns.shape
    photographs.photographs = lambda: columns
    try:
        training, held_out = photographs.training_and_held_out(130)
    finally:
        photographs.photographs = real
    assert not set(training.unique().tolist()) & set(held_out.unique().tolist())
    assert len(held_out.unique()) == 5 * photographs.SIZE


def test_the_posterior_of_the_gaussian_is_that_of_its_covariance(photographs):
    """It keeps the measurement, and says how far off it is on the very data that were fitted."""
    torch.manual_seed(0)
    mix = torch.randn(768, 768, dtype=torch.float64) / 20
    x = (torch.randn(3000, 768, dtype=torch.float64) @ mix).reshape(-1, 3, 16, 16)
    gaussian = photographs.Gaussian(x)
    grey = operators.Grey()
    mean, std = gaussian.posterior(grey, grey.A(x))
    assert (grey.A(mean) - grey.A(x)).abs().max() < 1e-4
    # The linear estimate is the best one on the data that its moments are from.
    error = (mean - x).square().mean(0)
    torch.testing.assert_close(
        error.mean().sqrt().float(), std.square().mean().sqrt(), rtol=1e-3, atol=0
    )


def test_it_runs_and_its_numbers_mean_something(photographs, tmp_path, capsys):
    photographs.main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "control_photographs.json").read_text())
    for job, plain in (("colour", "grey"), ("holes", "mean of the rest")):
        assert list(found[job]) == [plain, "Gaussian, exact", *WAYS]
        for way, numbers in found[job].items():
            assert all(math.isfinite(value) for value in numbers.values()), (job, way)
            assert 0 < numbers["rmse"] < 1, (job, way)
        for way in WAYS:
            numbers = found[job][way]
            assert 0 < numbers["coverage"] <= 1, (job, way)
            assert numbers["width"] > 1e-3, (job, way)
            limit = 1e-6 if way.startswith("known") else 0.02
            assert numbers["residual_max"] < limit, (job, way)
        assert (tmp_path / f"control-{job}.png").stat().st_size < 150_000
    assert "MMPS" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["colour", "holes"])
def test_what_was_measured_is_kept_and_samples_differ(photographs, data, name):
    gaussian, x = data
    torch.manual_seed(0)
    network = fastscore.nn.ScoreConvNet(3, photographs.SIZE, base_channels=8)
    score = photographs.Score(gaussian, network)  # untrained
    job = getattr(photographs, name)(score, x, gaussian=gaussian, samples=2, steps=8)
    assert torch.equal(job.measurement, job.operator.A(x))
    rows = x.repeat_interleave(2, 0)
    for way, draw in job.ways().items():
        found = draw()
        if name == "holes" and way.startswith("known"):
            held = job.mask.expand_as(found)
            assert torch.equal(found[held], rows[held]), way
        off = (job.operator.A(found) - job.operator.A(rows)).abs().max()
        assert off < (1e-5 if way.startswith("known") else 0.05), (way, off)
        pair = found.unflatten(0, (-1, 2))
        assert (pair[:, 0] - pair[:, 1]).abs().flatten(1).amax(1).min() > 0.01, way


def test_grey_is_the_first_element_of_the_basis(photographs, data):
    """Both kinds of way are given one measurement, and guided alike in either basis."""
    gaussian, x = data
    job = photographs.colour(gaussian, x, gaussian=gaussian, samples=1)
    turned = job.basis.A(x)
    torch.testing.assert_close(turned[:, :1], job.measurement)
    assert job.mask.flatten().tolist() == [True, False, False]

    z = 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 1.0, 5.0])
    there = guidance.InBasis(gaussian, job.basis)
    for method in (guidance.PiGDM, guidance.MMPS):
        by_mask = method(there, operators.Mask(job.mask))
        by_grey = method(gaussian, job.operator)
        known = torch.where(job.mask, turned, 0.0)
        first = by_mask(z, sigma, measurement=known).total()
        second = by_grey(job.basis.A_adjoint(z), sigma, measurement=job.measurement).total()
        torch.testing.assert_close(first, job.basis.A(second), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["colour", "holes"])
def test_samples_of_the_gaussian_are_its_posterior(photographs, data, name):
    """With the Gaussian's own score moment matching must come to the exact answer."""
    gaussian, x = data
    job = getattr(photographs, name)(gaussian, x[1:2], gaussian=gaussian, samples=32, steps=50)
    found = job.mmps(iterations=15)
    mean, std = gaussian.posterior(job.operator, job.measurement)
    unknown = std > 0.01
    off = ((found.mean(0) - mean[0]) / std)[unknown]
    assert off.square().mean() * 32 < 4  # 1, of few independent directions
    assert 0.75 < (found.std(0) / std)[unknown].mean() < 1.15
