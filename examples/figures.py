"""The figure of the examples: what is true, what was measured, and what was drawn given that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy
from torch import Tensor

matplotlib.use("Agg")  # writes files, and needs no display
from matplotlib import pyplot


class Row(NamedTuple):
    """One row: pictures of one size, (height, width) or (channels, height, width)."""

    name: str
    truth: Tensor | None
    measurement: Tensor | None  # as a picture
    samples: Tensor  # (n, channels, height, width)


def save_figure(
    path: str | Path,
    rows: Sequence[Row],
    *,
    shown: int = 5,
    limits: tuple[float, float] = (0.0, 1.0),
    ink: bool = False,
    size: float = 0.95,
    titles: tuple[str, str] = ("truth", "measurement"),
) -> None:
    """Write rows of truth, measurement, some samples, their mean and their standard deviation.

    Args:
        path: of the PNG.
        rows: what is None in all of them has no column.
        shown: how many samples; mean and deviation are those of all.
        limits: the values shown as black and white. The deviation's are 0 and its largest in the
            figure.
        ink: of pictures in grey, high values are dark.
        size: of a picture, in inches.
        titles: of the first two columns.
    """
    shown = min(shown, min(len(row.samples) for row in rows))
    spreads = [_grey(row.samples.double().std(0)) for row in rows]
    most = max(float(spread.max()) for spread in spreads) or 1.0
    heads = [*titles, *["sample"] * shown, "mean", "std. dev."]
    table = []
    for row, spread in zip(rows, spreads, strict=True):
        grey = [row.truth, row.measurement, *row.samples[:shown], row.samples.mean(0)]
        line = [None if picture is None else _shades(picture, limits, ink) for picture in grey]
        table.append([*line, matplotlib.colormaps["magma"]((spread / most).numpy())[..., :3]])
    kept = [c for c in range(len(heads)) if any(line[c] is not None for line in table)]

    # One image for all of them: axes of their own take a hundred times as long.
    high, wide = spreads[0].shape
    gap = max(1, wide // 8)
    mosaic = numpy.ones((len(rows) * (high + gap), len(kept) * (wide + gap), 3))
    for i, line in enumerate(table):
        for j, c in enumerate(kept):
            if (picture := line[c]) is not None:
                top, left = i * (high + gap), j * (wide + gap)
                mosaic[top : top + high, left : left + wide] = picture
    inches = size * len(kept) + 0.8, size * high / wide * len(rows) + 0.3
    figure, axes = pyplot.subplots(figsize=inches, layout="constrained")
    axes.imshow(mosaic, interpolation="nearest", aspect="equal")
    middle = [(wide + gap) * j + wide / 2 for j in range(len(kept))], [heads[c] for c in kept]
    axes.set_xticks(*middle, fontsize=8)
    middle = [(high + gap) * i + high / 2 for i in range(len(rows))], [row.name for row in rows]
    axes.set_yticks(*middle, fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _shades(picture: Tensor, limits: tuple[float, float], ink: bool) -> numpy.ndarray:
    """(height, width, 3) from 0 to 1."""
    low, high = limits
    picture = (picture.detach().double().cpu() - low) / (high - low)
    picture = picture if picture.dim() == 3 else picture[None]
    shades = picture.clamp(0, 1).movedim(0, -1).expand(*picture.shape[1:], 3).numpy()
    return 1 - shades if ink else shades


def _grey(spread: Tensor) -> Tensor:
    """Of colours, the root mean square."""
    spread = spread.detach().cpu()
    return spread if spread.dim() == 2 else spread.square().mean(0).sqrt()
