"""Divergences that models are said to know: of what is called, as exact, and in whose memory."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore.derivatives import known_divergence
from fastscore.scores import GaussianMixture


class HalfOf:
    """Hands on all attributes of a score that it changes."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, x: Tensor, sigma: Any = None) -> Tensor:
        return 0.5 * self.net(x, sigma)


class HalfAverage(torch.optim.swa_utils.AveragedModel):
    def forward(self, x: Tensor, sigma: Any = None) -> Tensor:
        return 0.5 * self.module(x, sigma)


def test_wrappers_that_change_the_output_have_no_known_divergence() -> None:
    mixture = GaussianMixture([0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 0.3).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    true = fastscore.divergence(lambda x: 0.5 * mixture(x), x, method="exact")
    bound = types.MethodType(lambda self, x: 0.5 * self(x), mixture)
    bound.__func__.__name__ = "forward"
    for model in (HalfOf(mixture), HalfAverage(mixture), bound):
        assert known_divergence(model) is None
        torch.testing.assert_close(fastscore.divergence(model, x, method="exact"), true)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, args, out: 0.5 * out)
    try:
        assert known_divergence(mixture) is None
    finally:
        handle.remove()
    assert known_divergence(torch.optim.swa_utils.AveragedModel(mixture)) is not None


def test_variances_that_are_written_to_are_seen() -> None:
    mixture = GaussianMixture([0.5, 0.5], torch.randn(2, 64), 0.3)
    x = torch.randn(3, 64)
    mixture.output_and_divergence(x)
    mixture.variances.data[1] = 3.0
    other = GaussianMixture([0.5, 0.5], mixture.means, torch.tensor([0.3, 3.0]))
    torch.testing.assert_close(
        mixture.output_and_divergence(x)[1], other.output_and_divergence(x)[1]
    )


def test_pairs_of_means_are_as_exact_as_the_rest() -> None:
    """Between two means, where the posterior turns on the last digits of float32."""
    means = torch.rand(10, 64, generator=torch.Generator().manual_seed(0))
    isotropic = GaussianMixture(torch.ones(10), means, 1e-4)
    diagonal = GaussianMixture(torch.ones(10), means, torch.full((10, 64), 1e-4))
    x = ((means[:5] + means[5:]) / 2)[:, :]
    ours, theirs = (m.output_and_divergence(x, 0.01)[1] for m in (isotropic, diagonal))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_a_divergence_in_memory_that_is_used_again() -> None:
    mixture = GaussianMixture([0.5, 0.5], torch.randn(2, 12), 0.3).double()
    process, x = fastscore.sde.VE(0.01, 20.0), torch.randn(4, 12, dtype=torch.float64)

    class Reuses(torch.nn.Module):
        conditioning = "sigma"
        buffer = torch.zeros(64, dtype=torch.float64)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return mixture(x, sigma)

        def output_and_divergence(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            output, self.buffer[: len(x)] = mixture.output_and_divergence(x, sigma)
            return output, self.buffer[: len(x)]

    found = fastscore.log_likelihood(Reuses(), x, process)
    expected = fastscore.log_likelihood(mixture, x, process)
    torch.testing.assert_close(found.log_prob, expected.log_prob)
