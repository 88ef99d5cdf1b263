"""Colour restored and holes filled, in patches of the two photographs that scikit-learn ships.

A network learns the score of patches of 16 x 16 pixels. Five bands of 16 columns of each photograph
are held out, and patches of them are restored: no pixel of them is in a training patch. Each job
draws several samples given a measurement, in several ways, and is compared with answers that take
no network.

    python examples/photographs.py --out photographs

Needs ``pip install 'fastscore[demo]'``. Five minutes on one CPU core; ``--quick`` looks whether all
of it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from figures import Row, save_figure
from sklearn.datasets import load_sample_images
from torch import Tensor

import fastscore
from fastscore import guidance, operators

SIZE = 16  # of a patch
PERIOD = 64  # columns, of the 320 of a photograph at half its size: the last SIZE are held out
MEETING = 0.3  # the noise level at which network and Gaussian have equal weight
SAMPLES = 19  # for each patch; a 20th lies between their least and greatest 18 times of 20
SDE = fastscore.sde.VE(0.01, 40.0)


def photographs() -> Tensor:
    """The two photographs at half their size, on [-1, 1]: (2, 3, 213, 320)."""
    images = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return operators.AveragePool(2).A(images[..., :426, :])


def patches(images: Tensor, step: int) -> Tensor:
    """All patches of these images, their corners ``step`` pixels apart: (n, 3, SIZE, SIZE)."""
    windows = images.unfold(2, SIZE, step).unfold(3, SIZE, step)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1], SIZE, SIZE)


def training_and_held_out(count: int) -> tuple[Tensor, Tensor]:
    """Patches between the bands, each with its mirror image, and ``count`` from in the bands."""
    strips = photographs().split(PERIOD, dim=3)
    training = torch.cat([patches(strip[..., :-SIZE], 2) for strip in strips])
    held_out = torch.cat([patches(strip[..., -SIZE:], SIZE) for strip in strips])
    chosen = torch.linspace(0, len(held_out) - 1, count).round().long()
    return torch.cat([training, training.flip(-1)]), held_out[chosen]


class Gaussian(torch.nn.Module):
    """N(mean, C) fitted to patches: its score under noise, and its posterior, which is exact."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        flat = x.flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(flat.T))
        self.shape = x.shape[1:]
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("values", values.clamp(min=1e-5))
        self.register_buffer("vectors", vectors)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """-(C + sigma^2)^-1 (x - mean)."""
        vectors = self.vectors.to(x.dtype)
        turned = (x.flatten(1) - self.mean.to(x.dtype)) @ vectors
        turned = turned / (self.values.to(x.dtype) + sigma[:, None] ** 2)
        return -(turned @ vectors.T).reshape(x.shape)

    def posterior(self, operator: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (batch, ...) and standard deviation (...) given y = A x."""
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        rows = operator.A(eye.reshape(-1, *self.shape)).flatten(1).T  # A
        measured = rows.any(1)  # a mask's other rows are 0
        rows, y = rows[measured], y.flatten(1).double()[:, measured]
        covariance = (self.vectors * self.values) @ self.vectors.T
        gain = torch.linalg.solve(rows @ covariance @ rows.T, rows @ covariance).T
        mean = self.mean + (y - self.mean @ rows.T) @ gain.T
        variance = (covariance - gain @ rows @ covariance).diagonal().clamp(min=0)
        return mean.reshape(-1, *self.shape).float(), variance.sqrt().reshape(self.shape).float()


class Score(torch.nn.Module):
    """The Gaussian's score under much noise, a network's under little, and both in between."""

    conditioning = "sigma"

    def __init__(self, gaussian: Gaussian, network: fastscore.nn.ScoreConvNet) -> None:
        super().__init__()
        self.gaussian, self.network = gaussian, network
        self.data_shape = network.data_shape

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The score at x, (batch, 3, SIZE, SIZE), of noise levels sigma, (batch,)."""
        near = (MEETING**2 / (MEETING**2 + sigma**2))[:, None, None, None]
        return (1 - near) * self.gaussian(x, sigma) + near.sqrt() * self.network(x, sigma)


def train(score: torch.nn.Module, x: Tensor, steps: int, batch: int = 64) -> torch.nn.Module:
    """The average of the weights on the way."""
    torch.manual_seed(0)
    average = fastscore.nn.EMA(score)
    optimiser = torch.optim.Adam(score.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    loss_fn = fastscore.SDELoss(SDE)
    for step in range(steps):
        chosen = torch.randint(len(x), (batch,))
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_fn(score, x[chosen], seed=step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update()
    return average.module


class Job:
    """Measurements of patches, and ways to draw samples given them.

    Args:
        score: of (x, sigma).
        measurement: y of each patch, (n, ...).
        operator: A, of which y = A x.
        basis: orthogonal, in which the measurement is the elements of ``mask``; None for x itself.
        mask: bool, broadcasting to a patch in that basis.
        gaussian: of the training patches.
        samples, steps: for each patch, and of each sampler.
    """

    def __init__(
        self,
        score: torch.nn.Module,
        measurement: Tensor,
        operator: operators.LinearOperator,
        basis: operators.LinearOperator | None,
        mask: Tensor,
        *,
        gaussian: Gaussian,
        samples: int = SAMPLES,
        steps: int = 40,
    ) -> None:
        self.score, self.operator, self.basis, self.mask = score, operator, basis, mask
        self.gaussian, self.samples, self.steps = gaussian, samples, steps
        self.measurement = measurement
        self.rows = measurement.repeat_interleave(samples, 0)  # one for each sample
        self.mean = gaussian.mean.float().reshape(gaussian.shape)

    def draw(self, score: Any, **how: Any) -> Tensor:
        """Samples of all patches, (n samples, ...), by the reverse SDE of a score."""
        how = {"init_mean": self.mean, "predictor": "ancestral", "steps": self.steps, **how}
        return fastscore.reverse_sde(
            score, SDE, shape=(len(self.rows), 3, SIZE, SIZE), seed=0, **how
        )

    def known(self, **how: Any) -> Tensor:
        """What was measured is held: elements of x, or of x in another basis."""
        held = {"known": self.rows, "mask": self.mask, **how}
        if self.basis is None:
            return self.draw(self.score, **held)
        turned = guidance.InBasis(self.score, self.basis)
        z = self.draw(turned, init_mean=self.basis.A(self.mean[None])[0], **held)
        return self.basis.A_adjoint(z)

    def pigdm(self) -> Tensor:
        """By the pseudo-inverse.

        The variance is that of the patches' brightness as a whole, the direction in which they
        spread most. With that of a pixel, 0.43 for 260, the guidance overshoots and samples
        diverge: it takes the pixels for independent, and so counts what they have in common 256
        times.
        """
        variance = float(self.gaussian.values.max())
        guided = guidance.PiGDM(self.score, self.operator, data_variance=variance)
        return self.draw(guided, model_kwargs={"measurement": self.rows})

    def mmps(self, iterations: int = 3) -> Tensor:
        """By moment matching."""
        guided = guidance.MMPS(self.score, self.operator, iterations=iterations)
        return self.draw(guided, model_kwargs={"measurement": self.rows})

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """All of these."""
        return {
            "known": self.known,
            "known, corrected": lambda: self.known(corrector="annealed"),
            "known, resampled": lambda: self.known(resamplings=4),
            "PiGDM": self.pigdm,
            "MMPS": self.mmps,
        }


def errors(x: Tensor, mean: Tensor, unknown: Tensor) -> dict[str, float]:
    """Of an estimate of patches on [-1, 1], where they are unknown; brightness runs from 0 to 1."""
    off = ((mean - x) / 2)[unknown.expand_as(x)]
    rmse = float(off.square().mean().sqrt())
    return {"rmse": rmse, "psnr": -20 * math.log10(rmse)}


def interval(x: Tensor, low: Tensor, high: Tensor, unknown: Tensor) -> dict[str, float]:
    """How many pixels lie between these bounds, and how far the bounds are apart."""
    where = unknown.expand_as(x)
    within = ((low <= x) & (x <= high))[where].float().mean()
    return {"coverage": float(within), "width": float(((high - low) / 2)[where].mean())}


def answered(
    job: Job, x: Tensor, unknown: Tensor, plain: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers of each way, and its samples, (n, samples, 3, SIZE, SIZE)."""
    numbers: dict[str, Any] = {name: errors(x, mean, unknown) for name, mean in plain.items()}
    mean, std = job.gaussian.posterior(job.operator, job.measurement)
    bounds = (mean - 1.645 * std, mean + 1.645 * std)
    numbers["Gaussian, exact"] = errors(x, mean, unknown) | interval(x, *bounds, unknown)
    drawn = {}
    for name, way in job.ways().items():
        start = time.process_time()
        rows = way()
        seconds = time.process_time() - start
        residual = (job.operator.A(rows) - job.rows).abs() / 2
        samples = drawn[name] = rows.unflatten(0, (-1, job.samples))
        numbers[name] = (
            errors(x, samples.mean(1), unknown)
            | interval(x, samples.amin(1), samples.amax(1), unknown)
            | {
                "one_sample_rmse": errors(x, samples[:, 0], unknown)["rmse"],
                "residual_max": float(residual.max()),
                "residual_mean": float(residual.mean()),
                "seconds": seconds,
            }
        )
    return numbers, drawn


def colour(score: torch.nn.Module, x: Tensor, **how: Any) -> Job:
    """Of patches x grey is measured: the sum of the channels, divided by the root of 3."""
    grey = operators.Grey(orthonormal=True)
    first = torch.tensor([True, False, False])[:, None, None]
    return Job(score, grey.A(x), grey, operators.ChannelBasis.from_grey(), first, **how)


def holes(score: torch.nn.Module, x: Tensor, **how: Any) -> Job:
    """Of patches x all is measured but a hole of 8 x 8 pixels."""
    mask = torch.ones(SIZE, SIZE, dtype=torch.bool)
    mask[4:12, 4:12] = False
    operator = operators.Mask(mask)
    return Job(score, operator.A(x), operator, None, mask, **how)


def save_figures(path: Path, x: Tensor, measured: Tensor, samples: Tensor, title: str) -> None:
    """Of the patches that vary most, samples by moment matching."""
    most = x.flatten(1).std(1).argsort(descending=True)[:6].tolist()
    rows = [Row("", x[i], measured[i], samples[i]) for i in most]
    save_figure(path, rows, shown=4, limits=(-1, 1), titles=("truth", title))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, restore, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("photographs"), help="a folder")
    parser.add_argument("--quick", action="store_true", help="a tiny network, few steps")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)

    quick = options.quick
    training, x = training_and_held_out(4 if quick else 20)
    gaussian = Gaussian(training)
    torch.manual_seed(0)
    network = fastscore.nn.ScoreConvNet.for_data(training, base_channels=8 if quick else 32)
    start = time.process_time()
    score = train(Score(gaussian, network), training, 30 if quick else 2500)
    seconds = time.process_time() - start
    how = {"gaussian": gaussian, "samples": 5 if quick else SAMPLES, "steps": 12 if quick else 40}
    numbers: dict[str, Any] = {
        "patches": len(x),
        **{name: how[name] for name in ("samples", "steps")},
        "nominal_coverage": 1 - 2 / (how["samples"] + 1),
        "training_patches": len(training),
        "training_seconds": seconds,
    }

    restored = colour(score, x, **how)
    grey = restored.operator.A_dagger(restored.measurement)
    unknown = torch.ones(SIZE, SIZE, dtype=torch.bool)
    numbers["colour"], drawn = answered(restored, x, unknown, {"grey": grey})
    save_figures(options.out / "control-colour.png", x, grey, drawn["MMPS"], "grey")

    filled = holes(score, x, **how)
    rest = x[..., filled.mask].mean(-1)[..., None, None].expand_as(x)
    numbers["holes"], drawn = answered(filled, x, ~filled.mask, {"mean of the rest": rest})
    shown = torch.where(filled.mask, x, 0.0)
    save_figures(options.out / "control-holes.png", x, shown, drawn["MMPS"], "measured")

    path = options.out / "control_photographs.json"
    path.write_text(json.dumps(numbers, indent=1) + "\n")
    for name in ("colour", "holes"):
        print(name)
        for way, found in numbers[name].items():
            print(f"  {way:18}", *(f"{key} {value:.3g}" for key, value in found.items()))


if __name__ == "__main__":
    main()
