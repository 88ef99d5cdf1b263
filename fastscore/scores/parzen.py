"""The exact score of a data set perturbed by Gaussian noise."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore._support.checks import check_finite, check_int, check_number, fail
from fastscore.conditioning import as_sigma
from fastscore.scores._common import check_points, float_tensor, sampling_generator

# Products of matrices are handed multiples of that: what a CPU's libraries make of rows that fill
# none of their blocks, or of elements at odd places in memory, differs in the last bits.
ROWS, COLUMNS = 8, 2


class Parzen(nn.Module):
    """The Parzen (kernel density) estimate of a data set, perturbed by noise of any level.

    The density is (1/N) sum_i N(x; x_i, v I) with v = variance + sigma^2, and its score is
    (m(x) - x) / v, where m(x) is the mean of the data weighted by the posterior of each point.
    With variance 0 it is the minimiser that denoising score matching has on this very data set
    (Vincent 2011, "A Connection Between Score Matching and Denoising Autoencoders"). Called
    ``model(x, sigma)``, or ``model(x)`` for the estimate itself.

    The data are read in chunks with a streaming log-sum-exp: beyond the data, memory is of the
    order of chunk_size * (batch + elements per sample), whatever N is (while gradients are being
    recorded, N * batch). Sums and exponentials are taken in float64, for at small v they amplify
    the rounding of |x - x_i|^2 by 1/v; the result has the dtype of ``x``.

    Args:
        data: shape (N, *event), of any event shape; (N,) for scalars. Kept, not copied.
        variance: of the kernel, at least 0. At 0, ``sigma`` must be given.
        chunk_size: data points handled at once.

    Attributes:
        data_shape: the event shape.

    Raises:
        ValueError: no data, NaN or infinity in it, a negative ``variance``, ``chunk_size < 1``.
        TypeError: an argument of the wrong type.

    Example:
        Six points and a Gaussian kernel of variance 2.25. The density has two modes, near -1.1
        and 5.5, where the score falls through 0.

        >>> parzen = Parzen([-2.1, -1.3, -0.4, 1.9, 5.1, 6.2], variance=2.25)
        >>> x = torch.tensor([-3.0, -1.0, 1.0, 3.0, 5.0, 7.0])
        >>> parzen.log_prob(x).exp()
        tensor([0.0704, 0.1251, 0.0858, 0.0593, 0.0817, 0.0585])
        >>> parzen(x)
        tensor([ 0.6290, -0.0207, -0.2571, -0.0235,  0.1435, -0.5262])

        Noise of level sigma widens the kernel, here to a variance of 2.25 + 1.

        >>> parzen.log_prob(x, 1.0).exp()
        tensor([0.0702, 0.1121, 0.0879, 0.0660, 0.0753, 0.0553])
    """

    conditioning = "sigma"
    sigma_optional = True
    prediction = "score"
    data: Tensor
    center: Tensor

    def __init__(self, data: Any, variance: float = 0.0, *, chunk_size: int = 1024) -> None:
        """See the class."""
        super().__init__()
        fn = "Parzen"
        points = float_tensor(fn, "data", data)
        if points.dim() == 0 or points.numel() == 0:
            fail(fn, "data", "of shape (samples, *event), not empty", f"{tuple(points.shape)}")
        check_finite(fn, "data", points)
        self.variance = check_number(fn, "variance", variance, minimum=0.0)
        self.chunk_size = check_int(fn, "chunk_size", chunk_size, minimum=1)
        self.data_shape = tuple(points.shape[1:])
        self.register_buffer("data", points)
        chunks = points.split(self.chunk_size)
        center = sum(chunk.double().sum(0) / len(points) for chunk in chunks)
        self.register_buffer("center", center.reshape(-1))

    def log_prob(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """The log density of the estimate perturbed by noise of level ``sigma``.

        Args:
            x: points, shape (batch, *data_shape).
            sigma: noise level(s), a number or shape (batch,); None for the estimate itself.

        Returns:
            Shape (batch,), in the dtype of ``x``.

        Raises:
            ValueError: a wrong shape or device; no ``sigma`` with a kernel variance of 0.
            TypeError: an argument of the wrong type.

        Example:
            >>> Parzen([0.0], variance=1.0).log_prob(torch.zeros(1))
            tensor([-0.9189])
        """
        points, variance = self._prepare("Parzen.log_prob", x, sigma)
        log_sum, _, _ = self._posterior(points, variance)
        dim = points.shape[1]
        log_scale = math.log(len(self.data)) + 0.5 * dim * (2 * math.pi * variance).log()
        square = 0.5 * points.square().sum(1, keepdim=True) / variance
        return (log_sum - square - log_scale).squeeze(1).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """The gradient of ``log_prob`` with respect to ``x``: same arguments, shape of ``x``."""
        points, variance = self._prepare("Parzen.score", x, sigma)
        _, mean, _ = self._posterior(points, variance)
        return ((mean - points) / variance).reshape(x.shape).to(x.dtype)

    def forward(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """``score``, so that the estimate is called like any score model."""
        return self.score(x, sigma)

    def output_and_divergence(
        self, x: Tensor, sigma: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor]:
        """The score and its divergence, the trace of its Jacobian, in closed form.

        With the posterior mean m(x) and D elements it is (E|x_i - m(x)|^2 / v - D) / v. The
        expectation is added up with the chunks from true distances to their means (Chan et al.
        1979), all of them positive, for at small v it is what is left of |x_i|^2 by a part of v.
        Differentiable once.

        Args:
            x: points, shape (batch, *data_shape).
            sigma: noise level(s), a number or shape (batch,); None for the estimate itself.

        Returns:
            The score, as ``score`` gives it, and the divergence (batch,) in float64. On the CPU
            their bytes do not hang on the batch that a sample is in.

        Raises:
            ValueError, TypeError: as ``log_prob``.

        Example:
            >>> parzen = Parzen([-1.0, 1.0], variance=1.0)
            >>> parzen.output_and_divergence(torch.tensor([0.0, 9.0]), 1.0)
            (tensor([ 0.0000, -4.0001]), tensor([-0.2500, -0.4999], dtype=torch.float64))
        """
        points, variance = self._prepare("Parzen.output_and_divergence", x, sigma)
        _, mean, spread = self._posterior(points, variance, spread=True)
        score = ((mean - points) / variance).reshape(x.shape).to(x.dtype)
        return score, ((spread / variance - points.shape[1]) / variance).squeeze(1)

    def sample(
        self,
        n: int,
        *,
        sigma: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``n`` independent samples: a data point each, with noise of the total variance.

        Args:
            n: how many, at least 1.
            sigma: noise level; None for the estimate itself.
            seed: makes the samples reproducible; None draws from ``generator``.
            generator: a generator on this model's device; None for torch's default one.

        Returns:
            Shape (n, *data_shape), in the dtype of the data.

        Raises:
            ValueError: ``n`` below 1, a negative ``sigma``, or both ``seed`` and ``generator``.
            TypeError: an argument of the wrong type.

        Example:
            >>> Parzen([0.0, 1.0]).sample(3, sigma=0.1, seed=0).shape
            torch.Size([3])
        """
        fn = "Parzen.sample"
        check_int(fn, "n", n, minimum=1)
        level = 0.0 if sigma is None else check_number(fn, "sigma", sigma, minimum=0.0)
        source = sampling_generator(fn, seed, generator, self.data.device)
        device, dtype = self.data.device, self.data.dtype
        index = torch.randint(len(self.data), (n,), generator=source, device=device)
        noise = torch.randn((n, *self.data_shape), generator=source, dtype=dtype, device=device)
        return self.data[index] + math.sqrt(self.variance + level**2) * noise

    def _prepare(self, fn: str, x: Tensor, sigma: Tensor | float | None) -> tuple[Tensor, Tensor]:
        """The points as (batch, elements), centred as the data are, and variances (batch, 1)."""
        check_points(fn, x, self.data_shape, self.data)
        if sigma is None and self.variance == 0:
            fail(fn, "sigma", "given for a kernel variance of 0", None)
        level = as_sigma(fn, x, 0.0 if sigma is None else sigma)
        variance = self.variance + level.double().square().unsqueeze(1)
        return x.double().reshape(len(x), len(self.center)) - self.center.double(), variance

    def _posterior(
        self, x: Tensor, variance: Tensor, *, spread: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Over data points y: log sum exp((x y - |y|^2/2) / v), (batch, 1), and the mean m of y.

        Leaving |x|^2 out, which is the same for all y, spares both a pass and a cancellation.
        Third, with ``spread``, the mean of |y - m|^2, (batch, 1).
        """
        (count, elements), rows = x.shape, -x.shape[0] % ROWS
        columns = -elements % COLUMNS if elements > 1 else 0
        x, variance = F.pad(x, (0, columns, 0, rows)), F.pad(variance, (0, 0, 0, rows), value=1.0)
        top = x.new_full((len(x), 1), -math.inf)
        total, moment = torch.zeros_like(top), torch.zeros_like(x)
        squares = torch.zeros_like(top)
        for chunk in self.data.split(self.chunk_size):
            y = chunk.double().reshape(len(chunk), -1) - self.center.double()
            y = F.pad(y, (0, columns)) if columns else y
            logits = torch.addmm(-0.5 * y.square().sum(1), x, y.T) / variance
            # The result does not depend on the maximum that is taken off, nor do its gradients.
            higher = torch.maximum(top, logits.detach().amax(1, keepdim=True))
            weight, rescale = (logits - higher).exp(), (top - higher).exp()
            here, moment_here = weight.sum(1, keepdim=True), weight @ y
            total, moment = total * rescale, moment * rescale
            if spread:
                squares = squares * rescale + _scatter(weight, y, here, moment_here, total, moment)
            total, moment = total + here, moment + moment_here
            top = higher
        log_sum, mean, spread_of_y = top + total.log(), moment / total, squares / total
        return log_sum[:count], mean[:count, :elements], spread_of_y[:count]

    def extra_repr(self) -> str:
        """Data set size, event shape and kernel variance, for ``repr``."""
        return f"samples={len(self.data)}, data_shape={self.data_shape}, variance={self.variance}"


def _scatter(
    weight: Tensor, y: Tensor, here: Tensor, moment_here: Tensor, total: Tensor, moment: Tensor
) -> Tensor:
    """What a chunk of points adds to the sum of weight |y - mean|^2, (batch, 1).

    ``here`` and ``moment_here`` are the sums of weights and of weight y over the chunk, ``total``
    and ``moment`` those before it.
    """
    smallest = torch.finfo(here.dtype).tiny  # of weights that are all 0 there is no mean
    mean = moment_here / here.clamp(min=smallest)
    distance = torch.cdist(mean, y, compute_mode="donot_use_mm_for_euclid_dist")
    inside = (weight * distance.square()).sum(1, keepdim=True)
    apart = (mean - moment / total.clamp(min=smallest)).square().sum(1, keepdim=True)
    return inside + total * (here / (total + here)) * apart
