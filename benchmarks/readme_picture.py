"""Draws the README's picture: two moons, from noise to samples, and the data.

The network is trained as the README's example trains it. The first panels show a chain of annealed
Langevin dynamics at four of its noise levels, over the score that moves it there; the last two its
samples and the data. Prints the share of samples off the data, as benchmarks/defaults.py counts it.

Run: python benchmarks/readme_picture.py [--out docs/images] [--quick]
Writes moons.png.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import torch
from defaults import data, judge, moons, nearest, train
from torch import Tensor

import fastscore
from fastscore._support.files import prepare_directory

SHOWN = (1.0, 0.4, 0.15)  # noise levels, of the chain that starts at the largest
DRAWN = 4_000
REACH = 1.7  # half the width of the panels of samples and data
WARM, COOL, GREY = "#d1495b", "#00798c", "#8d99ae"


def trained(steps: int) -> tuple[torch.nn.Module, Tensor]:
    """The README's network and noise levels."""
    torch.manual_seed(0)
    x = moons(5_000, torch.Generator().manual_seed(0))
    sigmas = fastscore.noise_scales(x)
    model = fastscore.nn.ScoreMLP.for_data(x)
    return train(model, x, sigmas, {"lr": 3e-3, "steps": steps, "batch": 256}), sigmas


def arrows(axes: Any, model: torch.nn.Module, sigma: float, reach: float) -> None:
    """The direction of the score on a grid; longer where it is larger, but little."""
    line = torch.linspace(-reach, reach, 15)
    x = torch.cartesian_prod(line, line) + torch.tensor([0.5, 0.25])
    with torch.no_grad():
        score = sigma * model(x, sigma)
    score = score / (score.norm(dim=1, keepdim=True) ** 0.7 + 1e-6)
    axes.quiver(
        *x.T.numpy(),
        *score.T.numpy(),
        color=GREY,
        alpha=0.55,
        angles="xy",
        pivot="mid",
        width=0.004,
    )


def draw(model: torch.nn.Module, sigmas: Tensor, path: Path) -> Tensor:
    """The picture; returns the samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    levels = [0] + [int((sigmas - sigma).abs().argmin()) for sigma in SHOWN]
    samples, states = fastscore.annealed_langevin(
        model, sigmas, num_samples=DRAWN, seed=0, trajectory=levels
    )
    x = moons(DRAWN, torch.Generator().manual_seed(1))
    # Each sample has the colour of the moon at which it arrives.
    nearest_data = x[torch.cdist(samples, x).argmin(1)]
    colours = [WARM if upper else COOL for upper in is_upper(nearest_data).tolist()]
    figure, panels = plt.subplots(1, 6, figsize=(12, 2.3), layout="constrained")
    shown = [(float(sigmas[i]), state) for i, state in zip(levels, states, strict=True)]
    for axes, (sigma, state) in zip(panels, shown, strict=False):
        reach = REACH + 2 * sigma
        arrows(axes, model, sigma, reach)
        scatter(axes, state, colours, reach)
        axes.set_title(f"$\\sigma$ = {sigma:.2g}", fontsize=10)
    scatter(panels[4], samples, colours, REACH)
    panels[4].set_title("samples", fontsize=10)
    scatter(panels[5], x, GREY, REACH)
    panels[5].set_title("data", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    # A few colours do: a third of the size.
    Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    return samples


def is_upper(x: Tensor) -> Tensor:
    """Which of data are on the upper moon: nearer to its circle than to the other's."""
    first = (x.norm(dim=1) - 1).abs() + 10 * (x[:, 1] < -0.2)
    second = ((x - torch.tensor([1.0, 0.5])).norm(dim=1) - 1).abs() + 10 * (x[:, 1] > 0.7)
    return first < second


def scatter(axes: Any, x: Tensor, colour: Any, reach: float) -> None:
    axes.scatter(*x.T.numpy(), s=1.2, c=colour, linewidths=0, alpha=0.7)
    axes.set(xlim=(0.5 - reach, 0.5 + reach), ylim=(0.25 - reach, 0.25 + reach), aspect="equal")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/images")
    parser.add_argument("--quick", action="store_true", help="hardly trained: to see that it runs")
    args = parser.parse_args()
    path = prepare_directory("readme_picture", args.out) / "moons.png"
    samples = draw(*trained(20 if args.quick else 3_000), path)
    _, reference, fresh = data("moons")
    usual = float(nearest(fresh, reference).quantile(0.99))
    off = judge("moons", samples)["off"]
    further = float((nearest(samples, reference) > usual).double().mean())
    print(f"off the data: {off:.2%} (fresh data 0.1 %); beyond 99 % of fresh data: {further:.2%}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
