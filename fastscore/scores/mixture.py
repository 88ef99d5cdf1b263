"""The exact score of a Gaussian mixture at every noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastscore._support.checks import check_finite, check_int, check_shape, fail
from fastscore._support.sums import tree_sum
from fastscore.conditioning import as_sigma
from fastscore.scores._common import check_points, float_tensor, sampling_generator

MOST_PAIRS = 64  # components whose distances from one another are worth taking


class GaussianMixture(nn.Module):
    """A Gaussian mixture, perturbed by noise of any level: log density, score and samples.

    The mixture sum_k w_k N(mu_k, v_k) convolved with N(0, sigma^2 I) is again a mixture, with
    variances v_k + sigma^2 and score sum_k r_k(x) (mu_k - x) / (v_k + sigma^2), where r_k is the
    posterior probability of component k. Called ``model(x, sigma)``, like every score model of
    this library, or ``model(x)`` for the mixture itself. It is the ground truth of Song & Ermon
    2019 (https://arxiv.org/abs/1907.05600), section 4.3, and a model in its own right.

    float32 and float64 points are handled in their own dtype, bfloat16 and float16 in float32 and
    rounded once. Everything is differentiable and lies in log space, so that it holds where every
    density underflows. Memory is of the order of batch * components * elements per sample.

    Args:
        weights: shape (K,), not negative; they are divided by their sum.
        means: shape (K, *event), of any event shape; (K,) for scalars.
        variances: a number, shape (K,) for isotropic components or (K, *event) for diagonal
            ones. A variance of 0 is a point mass, which has a density once sigma > 0.

    Attributes:
        data_shape: the event shape.

    Raises:
        ValueError: no component, shapes that don't fit, NaN or infinity, a negative weight or
            variance, weights that are all 0.
        TypeError: an argument of the wrong type.

    Example:
        >>> mixture = GaussianMixture([0.8, 0.2], [[2.0, 0.0], [-2.0, 0.0]], 1.0)
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
        >>> mixture(x)
        tensor([[ 1.2000,  0.0000],
                [ 1.2000, -1.0000]])
        >>> mixture(x, torch.tensor([0.0, 1.0]))
        tensor([[ 1.2000,  0.0000],
                [ 0.6000, -0.5000]])
        >>> mixture.sample(3, seed=0).shape
        torch.Size([3, 2])
    """

    conditioning = "sigma"
    sigma_optional = True
    prediction = "score"
    weights: Tensor
    means: Tensor
    variances: Tensor

    def __init__(self, weights: Any, means: Any, variances: Any) -> None:
        """See the class."""
        super().__init__()
        fn = "GaussianMixture"
        mean = float_tensor(fn, "means", means).clone()
        if mean.dim() == 0 or mean.numel() == 0:
            fail(fn, "means", "of shape (components, *event), not empty", tuple(mean.shape))
        weight = float_tensor(fn, "weights", weights, mean)
        check_shape(fn, "weights", weight, (len(mean),), "one for each mean")
        variance = float_tensor(fn, "variances", variances, mean)
        if variance.dim() == 0:
            variance = variance.expand(len(mean))
        if variance.shape not in (mean.shape[:1], mean.shape):
            expected = f"a number or of shape {(len(mean),)} or {tuple(mean.shape)}"
            fail(fn, "variances", expected, f"shape {tuple(variance.shape)}")
        for name, value in (("weights", weight), ("means", mean), ("variances", variance)):
            check_finite(fn, name, value)
        if bool((weight < 0).any()) or float(weight.sum()) <= 0:
            fail(fn, "weights", "not negative, with a positive sum", weight.tolist())
        if bool((variance < 0).any()):
            fail(fn, "variances", "at least 0", float(variance.min()))
        self.register_buffer("weights", weight / weight.sum())
        self.register_buffer("means", mean)
        self.register_buffer("variances", variance.clone())
        self.data_shape = tuple(mean.shape[1:])
        self._has_density = bool((variance > 0).all())

    def log_prob(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """The log density of the mixture perturbed by noise of level ``sigma``.

        Args:
            x: points, shape (batch, *data_shape).
            sigma: noise level(s), a number or shape (batch,); None for the mixture itself.

        Returns:
            Shape (batch,), in the dtype of ``x``.

        Raises:
            ValueError: a wrong shape or device; a point mass without noise.
            TypeError: an argument of the wrong type.

        Example:
            >>> GaussianMixture([1.0], [0.0], 1.0).log_prob(torch.zeros(1))
            tensor([-0.9189])
        """
        logits, _, _ = self._components("GaussianMixture.log_prob", x, sigma)
        return logits.logsumexp(1).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """The gradient of ``log_prob`` with respect to ``x``: same arguments, shape of ``x``."""
        return self._score(x, *self._components("GaussianMixture.score", x, sigma))

    def forward(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """``score``, so that the mixture is called like any score model."""
        return self.score(x, sigma)

    def output_and_divergence(
        self, x: Tensor, sigma: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor]:
        """The score and its divergence, the trace of its Jacobian, in closed form.

        With V_k = v_k + sigma^2, diagonal, and g_k = (mu_k - x) / V_k, whose posterior mean is the
        score s, it is sum_k r_k |g_k - s|^2 - sum_k r_k tr V_k^-1: a difference of two sums in
        which nothing cancels. Differentiable as the score is.

        Args:
            x: points, shape (batch, *data_shape).
            sigma: noise level(s), a number or shape (batch,); None for the mixture itself.

        Returns:
            The score, as ``score`` gives it, and the divergence (batch,), taken in float64 for
            points of any dtype. Its bytes do not hang on the batch that a sample is in.

        Raises:
            ValueError, TypeError: as ``log_prob``.

        Example:
            >>> mixture = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 1.0)
            >>> score, divergence = mixture.output_and_divergence(torch.zeros(1, 2), 1.0)
            >>> divergence
            tensor([-0.7500], dtype=torch.float64)
        """
        fn = "GaussianMixture.output_and_divergence"
        parts = self._components(fn, x, sigma)
        score, size = self._score(x, *parts), parts[1].shape[2]
        by_pairs = self._shares_variance() and len(self.means) <= min(size, MOST_PAIRS)
        sum_over = torch.sum if by_pairs else tree_sum
        logits, offset, variance = self._components(fn, x, sigma, torch.float64, sum_over)
        weight = (logits - logits.detach().amax(1, keepdim=True)).exp()
        posterior = weight / tree_sum(weight, 1).unsqueeze(1)
        if by_pairs:
            one = variance[:, 0, 0]
            return score, self._spread_of_pairs(posterior) / one.square() - size / one
        pull, shares = offset / variance, posterior.unsqueeze(2)
        mean = tree_sum(shares * pull, 1).unsqueeze(1)
        spread = tree_sum(tree_sum(shares * (pull - mean).square(), 1), 1)
        stiffness = tree_sum(variance.reciprocal(), 2) * (size / variance.shape[2])
        return score, spread - tree_sum(posterior * stiffness, 1)

    def _shares_variance(self) -> bool:
        """Whether all components have one variance; on a GPU, where the host would wait, not so."""
        variances = self.variances
        if variances.is_cuda or variances.dim() > 1:
            return False
        return bool((variances == variances[0]).all())

    def _spread_of_pairs(self, posterior: Tensor) -> Tensor:
        """The variance of mu_k under the posterior (batch, K): of distances between the means."""
        means = self._flat_means().double()
        squares = tree_sum((means.unsqueeze(1) - means).square(), 2)
        near = tree_sum(posterior.unsqueeze(1) * squares, 2)
        return tree_sum(posterior * near, 1) / 2

    def sample(
        self,
        n: int,
        *,
        sigma: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``n`` independent samples, of the mixture perturbed by noise of level ``sigma``.

        Args:
            n: how many, at least 1.
            sigma: noise level; None for the mixture itself.
            seed: makes the samples reproducible; None draws from ``generator``.
            generator: a generator on this model's device; None for torch's default one.

        Returns:
            Shape (n, *data_shape), in this model's dtype.

        Raises:
            ValueError: ``n`` below 1, a negative ``sigma``, or both ``seed`` and ``generator``.
            TypeError: an argument of the wrong type.

        Example:
            >>> mixture = GaussianMixture([1.0, 3.0], [-5.0, 5.0], [0.1, 0.2])
            >>> mixture.sample(2, seed=0).shape
            torch.Size([2])
        """
        fn = "GaussianMixture.sample"
        check_int(fn, "n", n, minimum=1)
        source = sampling_generator(fn, seed, generator, self.means.device)
        index = torch.multinomial(self.weights, n, replacement=True, generator=source)
        mean, variance = self._flat_means()[index], self._flat_variances()[index]
        if sigma is not None:
            variance = variance + as_sigma(fn, mean, sigma).square().unsqueeze(1)
        noise = torch.randn(mean.shape, generator=source, dtype=mean.dtype, device=mean.device)
        return (mean + variance.sqrt() * noise).to(mean.dtype).reshape(n, *self.data_shape)

    def _flat_means(self) -> Tensor:
        """Shape (K, elements)."""
        return self.means.reshape(len(self.means), -1)

    def _flat_variances(self) -> Tensor:
        """Shape (K, 1) for isotropic components, (K, elements) for diagonal ones."""
        return self.variances.reshape(len(self.variances), -1)

    def _score(self, x: Tensor, logits: Tensor, offset: Tensor, variance: Tensor) -> Tensor:
        posterior = logits.softmax(1).unsqueeze(2)
        return (posterior * (offset / variance)).sum(1).reshape(x.shape).to(x.dtype)

    def _components(
        self,
        fn: str,
        x: Tensor,
        sigma: Tensor | float | None,
        dtype: torch.dtype | None = None,
        sum_over: Callable[[Tensor, int], Tensor] = torch.sum,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each sample and component: log w_k N_k(x), mu_k - x and v_k + sigma^2.

        Shapes (batch, K), (batch, K, elements) and (batch or 1, K, elements or 1), in ``dtype``,
        by default that of x, in 32 bits at least.
        """
        check_points(fn, x, self.data_shape, self.means)
        dtype = torch.promote_types(x.dtype, torch.float32) if dtype is None else dtype
        variance = self._flat_variances().to(dtype).unsqueeze(0)
        if sigma is not None:
            variance = variance + as_sigma(fn, x, sigma).to(dtype).square().reshape(-1, 1, 1)
        elif not self._has_density:
            fail(fn, "sigma", "given for a mixture with a variance of 0", None)
        means = self._flat_means().to(dtype)
        offset = means - x.to(dtype).reshape(len(x), 1, means.shape[1])
        log_det = sum_over((2 * math.pi * variance).log(), 2)
        log_det = log_det * (offset.shape[2] / variance.shape[2])
        square = sum_over(offset.square() / variance, 2)
        logits = self.weights.to(dtype).log() - 0.5 * (square + log_det)
        return logits, offset, variance

    def extra_repr(self) -> str:
        """Components and event shape, for ``repr``."""
        return f"components={len(self.means)}, data_shape={self.data_shape}"
