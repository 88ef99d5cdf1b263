"""The measures of sample quality, against values known in closed form."""

import pytest
import torch

from fastscore.evaluation.distances import frechet_distance, nearest_distance


def gaussian(n, seed):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_distance_of_two_gaussians():
    # |mean|^2 + (2 - 1)^2 + (3 - 1)^2 for standard deviations (2, 3) against (1, 1).
    a = gaussian(200_000, 0) * torch.tensor([2.0, 3.0]) + torch.tensor([1.0, -1.0])
    assert frechet_distance(a, gaussian(200_000, 1)) == pytest.approx(2 + 1 + 4, rel=0.02)


def test_frechet_distance_of_a_set_to_itself():
    a = gaussian(100, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_images_is_that_of_their_pixels():
    a, b = gaussian(64, 0).reshape(16, 2, 2, 2), gaussian(64, 1).reshape(16, 2, 2, 2)
    assert frechet_distance(a, b) == frechet_distance(a.flatten(1), b.flatten(1))


def test_nearest_distance_is_the_median():
    x = torch.tensor([[0.0], [10.0], [20.0]])
    data = torch.tensor([[1.0], [12.0], [24.0]])
    assert nearest_distance(x, data) == 2.0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(3, 2), "a must be at least 2 samples, got 1"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 4),
            "b must be samples of shape \\(2,\\), as those of a",
        ),
        (torch.zeros(3, 2).int(), torch.zeros(3, 2), "a must be a floating-point tensor"),
    ],
)
def test_bad_input(a, b, message):
    with pytest.raises(ValueError, match=f"frechet_distance: {message}"):
        frechet_distance(a, b)
