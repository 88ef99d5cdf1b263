"""Handwritten digits under control: completed, of a chosen class, and out of a few measurements.

One small network, trained with classes that are now and then left out, does all of it:

- ``inpaint``: held-out digits, completed from their upper half;
- ``classes``: digits of a class, by a classifier of noisy digits and without one;
- ``reconstruct``: digits from 16 of 64 numbers, of their Radon transform (the sums of their columns
  and of their rows) or of their Fourier transform, with intervals of 90 %. It does so twice: where
  the score is exact and the posterior known, and with the network on held-out digits.

Run: python examples/digits.py [inpaint] [classes] [reconstruct] [--out DIR] [--quick]
Writes control_digits.json and a picture for each job; takes some three minutes on one core. Needs
``pip install 'fastscore[demo]'``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from figures import Row, save_figure
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor, nn

import fastscore
from fastscore.apps.info import info
from fastscore.evaluation import frechet_distance
from fastscore.guidance import DPS, MMPS, ClassifierFreeGuidance, ClassifierGuidance, PiGDM
from fastscore.operators import Mask, MaskedFourier, Radon

JOBS = ("inpaint", "classes", "reconstruct")
CLASSES = 10
NO_CLASS = CLASSES  # the label of a digit of which none is told
PROCESS = fastscore.sde.VE(0.02, 10.0)  # from a third of a level of 17 to beyond any two digits
HELD_OUT = 297
SAMPLES = 19  # between whose least and greatest a twentieth, as good as they, lies 18 times of 20
SCALES = (0.0, 1.0, 2.0, 4.0)
KERNEL = 0.15  # the exact score's: what each of its digits is blurred by
MASK_NOISE = 0.02  # for MMPS: known to so much
RADON_NOISE, FOURIER_NOISE = 0.3, 0.1  # alike, for a sum of 8 pixels is sqrt(8) orthonormal ones


class Size(NamedTuple):
    """How much work is done."""

    channels: int
    iterations: int  # of the network
    classifier_iterations: int
    steps: int  # of a sampler
    digits: int  # that are completed, or measured
    each_class: int
    kernels: int  # of the exact score
    truths: int  # that are drawn from it


FULL = Size(32, 2500, 2000, 100, 12, 30, 1000, 64)
QUICK = Size(8, 150, 200, 25, 2, 10, 100, 64)


class Data(NamedTuple):
    """Digits of shape (n, 1, 8, 8), values from 0 to 1, and their classes."""

    x: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def load() -> Data:
    """The digits that ship with scikit-learn, split at random."""
    digits = load_digits()
    x = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, used = order[:HELD_OUT], order[HELD_OUT:]
    return Data(x[used], labels[used], x[held], labels[held])


# ---- networks ------------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """What a digit is expected to be, given one under noise and its class, or no class.

    ``ScoreConvNet`` is f(x/sqrt(sd^2 + s^2), log s)/s. With that f this is the denoiser of Karras
    et al. 2022: near the data's mean at high noise, where guidance by a measurement needs it right.
    What it predicts it says itself, so that losses, samplers and guidance take it as it is.
    """

    conditioning, prediction = "sigma", "x0"

    def __init__(self, net: fastscore.nn.ScoreConvNet) -> None:
        super().__init__()
        self.net, self.data_shape = net, net.data_shape

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Of x (batch, 1, 8, 8), levels (batch,) and labels (batch,)."""
        if label is None:
            label = torch.full((len(x),), NO_CLASS, device=x.device)
        s, sd = sigma.reshape(-1, 1, 1, 1), self.net.data_std
        keep = sd**2 / (sd**2 + s**2)
        return keep * x + keep.sqrt() * s**2 * self.net(x, sigma, label=label)


def train_score(data: Data, size: Size) -> nn.Module:
    """A score network that is told classes, and one time in ten is not."""
    torch.manual_seed(0)
    net = Denoiser(
        fastscore.nn.ScoreConvNet.for_data(data.x, base_channels=size.channels, classes=CLASSES)
    ).to(memory_format=torch.channels_last)
    average = fastscore.nn.EMA(net, decay=0.999 if size is FULL else 0.95)
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, size.iterations)
    loss_fn = fastscore.SDELoss(
        PROCESS,
        weighting="edm",
        sigma_data=net.net.data_std,
        drop=0.1,
        null={"label": NO_CLASS},
    )
    for _ in range(size.iterations):
        at = torch.randint(len(data.x), (64,))
        loss = loss_fn(net, data.x[at], model_kwargs={"label": data.labels[at]})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update()
    return average.module.eval().requires_grad_(False)


def train_classifier(data: Data, size: Size) -> nn.Module:
    """A classifier of noisy digits, at all levels of the process."""
    torch.manual_seed(0)
    classifier = fastscore.nn.NoisyClassifier.for_data(data.x, CLASSES)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, size.classifier_iterations)
    loss_fn = fastscore.ClassifierLoss(PROCESS)
    for _ in range(size.classifier_iterations):
        at = torch.randint(len(data.x), (128,))
        loss = loss_fn(classifier, data.x[at], data.labels[at])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return classifier.eval().requires_grad_(False)


class Judge:
    """Knows digits without any of the networks: a support vector machine, on the clean ones."""

    def __init__(self, data: Data) -> None:
        self.machine = SVC(gamma=0.02 * 16, C=10.0).fit(data.x.flatten(1), data.labels)
        self.held_out = self.accuracy(data.held_out, data.held_out_labels)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """How many of these it takes for what they are to be."""
        found = torch.from_numpy(self.machine.predict(x.flatten(1).clamp(0, 1)))
        return float((found == labels).double().mean())


# ---- several samples of each posterior -----------------------------------------------------------


def each(x: Tensor) -> Tensor:
    """One after another, as often as samples are drawn of each."""
    return x.repeat_interleave(SAMPLES, 0)


def by_truth(drawn: Tensor) -> Tensor:
    """(truths, samples, ...) of samples in the order of :func:`each`."""
    return drawn.unflatten(0, (-1, SAMPLES))


def judged(samples: Tensor, truth: Tensor, where: Tensor | None = None) -> dict[str, float]:
    """How often the truth lies in the interval of 90 %, how wide that is, how far the mean is off.

    Of samples (truths, samples, ...), at the pixels ``where``. The standard error counts truths,
    for pixels of one depend on one another.
    """
    low, high = samples.amin(1), samples.amax(1)
    inside, wide = (low <= truth) & (truth <= high), high - low
    off = (samples.mean(1) - truth).square()
    kept = torch.ones_like(inside) if where is None else where.expand_as(inside)
    shares = (inside & kept).flatten(1).sum(1) / kept.flatten(1).sum(1)
    return {
        "coverage": float(shares.mean()),
        "standard_error": float(shares.std() / len(shares) ** 0.5),
        "interval": float(wide[kept].mean()),
        "error_of_mean": float(off[kept].mean().sqrt()),
    }


# ---- the jobs ------------------------------------------------------------------------------------


def inpaint(data: Data, net: nn.Module, judge: Judge, size: Size, out: Path) -> dict[str, Any]:
    """Held-out digits from their upper half."""
    truth, labels = data.held_out[: size.digits], data.held_out_labels[: size.digits]
    upper = torch.zeros(1, 8, 8, dtype=torch.bool)
    upper[:, :4] = True
    operator = Mask(upper)
    y = each(operator.A(truth))
    v = float(data.x.var(0).mean())
    common = {"shape": y.shape, "steps": size.steps, "seed": 1}
    held = {"known": y, "mask": upper}
    corrected = {"corrector": "annealed", "corrector_steps": 2}
    given = {"model_kwargs": {"measurement": y}}
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "known": (net, held),
        "known, corrector": (net, {**held, **corrected}),
        "PiGDM": (PiGDM(net, operator, data_variance=v), given),
        "MMPS": (MMPS(net, operator, noise=MASK_NOISE), given),
    }
    found: dict[str, Any] = {}
    drawn = {}
    for name, (model, options) in ways.items():
        start = time.perf_counter()
        x = fastscore.reverse_sde(model, PROCESS, **common, **options)
        seconds = time.perf_counter() - start
        drawn[name] = by_truth(x)
        found[name] = {
            **judged(drawn[name], truth, ~upper),
            "known_pixels_off": float((operator.A(x) - y).abs().max()),
            "class_kept": judge.accuracy(x, each(labels)),
            "seconds": seconds,
        }
    rows = [
        Row(name, truth[i], operator.A(truth)[i], drawn[name][i])
        for i in range(2)
        for name in ("known, corrector", "PiGDM", "MMPS")
    ]
    save_figure(out / "control-inpaint.png", rows, ink=True)
    return found


def classes(
    data: Data, net: nn.Module, classifier: nn.Module, judge: Judge, size: Size, out: Path
) -> dict[str, Any]:
    """Digits of a chosen class, guided more and more."""
    labels = torch.arange(CLASSES).repeat_interleave(size.each_class)
    real = torch.cat([data.x[data.labels == c][: size.each_class] for c in range(CLASSES)])
    found: dict[str, Any] = {
        "training digits": {
            "accuracy": judge.accuracy(real, labels),
            "frechet": frechet_distance(real, data.held_out),
            "diversity": diversity(real),
        }
    }
    shown = {}
    guided: dict[str, Callable[[float], nn.Module]] = {
        "classifier": lambda w: ClassifierGuidance(net, classifier, scale=w),
        "classifier-free": lambda w: ClassifierFreeGuidance(net, null={"label": NO_CLASS}, scale=w),
    }
    for name, guide in guided.items():
        found[name] = {}
        for scale in SCALES:
            start = time.perf_counter()
            x = fastscore.reverse_sde(
                guide(scale),
                PROCESS,
                shape=real.shape,
                steps=size.steps,
                model_kwargs={"label": labels},
                seed=2,
            )
            found[name][f"{scale:g}"] = {
                "accuracy": judge.accuracy(x, labels),
                "frechet": frechet_distance(x, data.held_out),
                "diversity": diversity(x),
                "seconds": time.perf_counter() - start,
            }
            shown[name, scale] = x.unflatten(0, (CLASSES, -1))
    one = 3
    rows = [Row("held out", None, None, data.held_out[data.held_out_labels == one])]
    rows += [
        Row(f"{name}\nw = {scale:g}", None, None, shown[name, scale][one])
        for name in guided
        for scale in (0.0, 1.0, 4.0)
    ]
    save_figure(out / "control-classes.png", rows, ink=True, shown=8)
    return found


def diversity(x: Tensor) -> float:
    """The standard deviation of a pixel within its class: of as many samples of each in turn."""
    return float(x.unflatten(0, (CLASSES, -1)).var(1).mean().sqrt())


def operators() -> dict[str, tuple[Any, float]]:
    """What is measured, 16 numbers of 64, and the noise in that."""
    few = torch.zeros(8, 8, dtype=torch.bool)
    # The lowest frequencies, of which k and -k are one: 8 complex numbers.
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (1, 2)):
        few[row, column] = True
    return {
        "Radon": (Radon([0.0, 90.0], 8), RADON_NOISE),
        "Fourier": (MaskedFourier(few), FOURIER_NOISE),
    }


def measured(operator: Any, truth: Tensor, noise: float) -> Tensor:
    """With noise of a fixed seed."""
    y = operator.A(truth)
    parts = torch.view_as_real(y) if y.is_complex() else y
    parts = parts + noise * fastscore.random.normal(tuple(parts.shape), seed=4)
    return torch.view_as_complex(parts) if y.is_complex() else parts


def exact_posterior(
    points: Tensor, kernel: float, operator: Any, y: Tensor, noise: float
) -> Tensor:
    """Samples given y of the mixture of N(points, kernel^2), which are each a Gaussian's.

    A component has the weight N(y; A point, C), C = kernel^2 A A^T + noise^2. A sample x of it with
    a measurement A x + n of its own becomes one given y by the gain kernel^2 A^T C^-1 (Matheron).
    """

    def flat(y: Tensor) -> Tensor:
        return (torch.view_as_real(y) if y.is_complex() else y).flatten(1).double()

    generator = torch.Generator().manual_seed(5)
    unit = torch.eye(points[0].numel()).reshape(-1, *points.shape[1:])
    matrix = flat(operator.A(unit))  # (elements, numbers), the transpose of A
    size = matrix.shape[1]
    covariance = kernel**2 * matrix.T @ matrix + noise**2 * torch.eye(size, dtype=torch.float64)
    inverse = torch.linalg.inv(covariance)
    off = flat(y)[:, None] - points.flatten(1).double() @ matrix  # (truths, points, numbers)
    weights = (-0.5 * (off @ inverse * off).sum(2)).softmax(1)
    which = torch.multinomial(weights, SAMPLES, replacement=True, generator=generator)
    x = points.flatten(1).double()[which]
    x = x + kernel * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    own = x @ matrix
    own = own + noise * torch.randn(own.shape, generator=generator, dtype=torch.float64)
    x = x + kernel**2 * (flat(y)[:, None] - own) @ inverse @ matrix.T
    return x.float().unflatten(2, points.shape[1:])


def reconstruct(data: Data, net: nn.Module, size: Size, out: Path) -> dict[str, Any]:
    """Digits from 16 of 64 numbers: where all is exact, and real ones with the network."""
    exact = fastscore.scores.Parzen(data.x[: size.kernels], KERNEL**2)
    cases = {
        "exact": (exact, exact.sample(size.truths, seed=3), data.x.var(0).mean() + KERNEL**2),
        "network": (net, data.held_out[: size.digits], data.x.var(0).mean()),
    }
    title = {"exact": "", "network": "network, "}
    found: dict[str, Any] = {}
    rows = []
    for case, (score, truth, variance) in cases.items():
        found[case] = {}
        for kind, (operator, noise) in operators().items():
            y = measured(operator, truth, noise)
            v = float(variance)
            models = {
                "MMPS": MMPS(score, operator, noise=noise),
                "PiGDM": PiGDM(score, operator, noise=noise, data_variance=v),
                "DPS": DPS(score, operator, data_variance=v),
            }
            drawn = {}
            if case == "exact":
                drawn["exact"] = exact_posterior(exact.data, KERNEL, operator, y, noise)
            seconds = {"exact": 0.0}
            for name, model in models.items():
                start = time.perf_counter()
                x = fastscore.reverse_sde(
                    model,
                    PROCESS,
                    shape=(len(truth) * SAMPLES, 1, 8, 8),
                    steps=size.steps,
                    model_kwargs={"measurement": each(y)},
                    seed=6,
                )
                seconds[name], drawn[name] = time.perf_counter() - start, by_truth(x)
            found[case][kind] = {
                name: {**judged(x, truth), "seconds": seconds[name]} for name, x in drawn.items()
            }
            back = operator.A_dagger(y)
            rows += [
                Row(f"{kind}\n{title[case]}{name}", truth[0], back[0], x[0])
                for name, x in drawn.items()
                if name in ("exact", "MMPS")
            ]
    save_figure(out / "control-reconstruct.png", rows, ink=True, titles=("truth", "A_dagger y"))
    return found


# ---- all together --------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Do the jobs; returns what the JSON holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="job", help=f"of {JOBS}; all by default")
    parser.add_argument("--out", type=Path, default=Path("digits"), help="made if need be")
    parser.add_argument("--quick", action="store_true", help="a few seconds, and poor digits")
    args = parser.parse_args(argv)
    jobs = args.jobs or list(JOBS)
    if unknown := set(jobs) - set(JOBS):
        parser.error(f"no job {', '.join(sorted(unknown))}; there are {', '.join(JOBS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    size = QUICK if args.quick else FULL

    data, begin = load(), time.perf_counter()
    net = train_score(data, size)
    judge = Judge(data)
    figures: dict[str, Any] = {
        "machine": info(),
        "settings": {"samples_of_each": SAMPLES, "process": repr(PROCESS), **size._asdict()},
        "training_seconds": time.perf_counter() - begin,
        "judge_held_out_accuracy": judge.held_out,
    }
    for job in jobs:
        if job == "inpaint":
            figures[job] = inpaint(data, net, judge, size, args.out)
        elif job == "classes":
            figures[job] = classes(data, net, train_classifier(data, size), judge, size, args.out)
        else:
            figures[job] = reconstruct(data, net, size, args.out)
        print(*(f"{job}: {line}" for line in table(figures[job])), sep="\n", flush=True)
    figures["total_seconds"] = time.perf_counter() - begin
    (args.out / "control_digits.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def table(found: dict[str, Any], *names: str) -> list[str]:
    """A line for each way of doing a job."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and all(isinstance(v, float) for v in value.values()):
            numbers = ", ".join(f"{n} {v:.3g}" for n, v in value.items())
            lines.append(f"{', '.join([*names, name])}: {numbers}")
        else:
            lines += table(value, *names, name)
    return lines


if __name__ == "__main__":
    main()
