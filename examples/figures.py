"""The figure of the examples: what is true, what was measured, and what was drawn given that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from torch import Tensor

matplotlib.use("Agg")  # writes files, and needs no display
from matplotlib import pyplot  # noqa: E402


class Row(NamedTuple):
    """One row of the figure; pictures are (height, width) or (channels, height, width)."""

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
        samples = list(row.samples[:shown])
        table.append([row.truth, row.measurement, *samples, row.samples.mean(0), spread])
    kept = [c for c in range(len(heads)) if any(line[c] is not None for line in table)]
    figure, axes = pyplot.subplots(
        len(rows),
        len(kept),
        figsize=(size * len(kept) + 0.7, size * len(rows) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for line, row, places in zip(table, rows, axes, strict=True):
        for place, c in zip(places, kept, strict=True):
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if line[c] is None:
                continue
            if c == len(heads) - 1:
                place.imshow(line[c], cmap="magma", vmin=0, vmax=most)
            else:
                low, high = limits
                picture = ((_last(line[c]) - low) / (high - low)).clamp(0, 1)
                place.imshow(picture, cmap="gray_r" if ink else "gray", vmin=0, vmax=1)
        places[0].set_ylabel(row.name, fontsize=8)
    for place, c in zip(axes[0], kept, strict=True):
        place.set_title(heads[c], fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _last(picture: Tensor) -> Tensor:
    """(height, width), or (height, width, 3), as matplotlib takes them."""
    picture = picture.detach().double().cpu()
    if picture.dim() == 3:
        picture = picture[0] if len(picture) == 1 else picture.movedim(0, -1)
    return picture


def _grey(spread: Tensor) -> Tensor:
    """Of colours, the root mean square."""
    spread = spread.detach().cpu()
    return spread if spread.dim() == 2 else spread.square().mean(0).sqrt()
