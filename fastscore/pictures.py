"""Pictures of samples that are images."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy
import torch
from torch import Tensor

from fastscore._support.checks import (
    check_int,
    check_number,
    check_tensor,
    check_value_range,
    describe,
    fail,
)
from fastscore._support.extras import require
from fastscore._support.files import prepare_file, whole_file

__all__ = ["save_grid"]

COLOURS = (1, 3)  # channels of grey and of red, green, blue
WHOLE_RANGE = (0.0, 1.0)


def save_grid(
    path: str | os.PathLike[str],
    images: Tensor,
    *,
    columns: int | None = None,
    value_range: tuple[float, float] = WHOLE_RANGE,
    pad: int = 1,
    zoom: int = 1,
    background: float = 1.0,
) -> None:
    """Write images side by side as one PNG, rows filled in order (needs ``pip install pillow``).

    The file appears whole or not at all.

    Args:
        path: where to; ends in ".png". A file that is there is replaced.
        images: (n, C, H, W), with C = 1 for grey or 3 for red, green and blue; or (n, H, W), grey.
            Floating-point, or uint8 from 0 to 255.
        columns: images in a row; by default about as many as there are rows.
        value_range: (lo, hi) of floating-point images: lo becomes black, hi white, what is outside
            is cut off. uint8 images are shown as they are.
        pad: pixels of background about each image, before they are enlarged.
        zoom: by how much each pixel is enlarged.
        background: brightness of the padding and of places left over, from 0, black, to 1, white.

    Raises:
        TypeError: images that are not a tensor, or an option of the wrong type.
        ValueError: images of another shape or dtype, none at all, or with NaN in them; an option
            out of its range; another suffix.
        ImportError: Pillow is missing.
        OSError: the file can't be written.

    Example:
        >>> import tempfile, torch, fastscore
        >>> path = tempfile.mkdtemp() + "/samples.png"
        >>> fastscore.save_grid(path, torch.rand(10, 3, 8, 8), zoom=4)
        >>> from PIL import Image
        >>> Image.open(path).size
        (148, 112)
    """
    fn = "save_grid"
    image = require(fn, "PIL.Image", "pillow")
    _check_images(fn, images)
    lo, hi = check_value_range(fn, "value_range", value_range)
    if images.dtype == torch.uint8 and (lo, hi) != WHOLE_RANGE:
        fail(fn, "value_range", f"{WHOLE_RANGE} for uint8 images", (lo, hi))
    if columns is not None:
        columns = min(check_int(fn, "columns", columns, minimum=1), len(images))
    check_int(fn, "pad", pad, minimum=0)
    check_int(fn, "zoom", zoom, minimum=1)
    if check_number(fn, "background", background, minimum=0.0) > 1:
        fail(fn, "background", "at most 1", background)
    file = prepare_file(fn, path, (".png",))
    pixels = _pixels(images.detach().cpu(), lo, hi)
    columns = math.ceil(math.sqrt(len(pixels))) if columns is None else columns
    sheet = _tiled(pixels, columns, pad, round(255 * float(background)))
    sheet = sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
    with whole_file(file) as partial:
        image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet).save(partial, "PNG")


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Whether a sample of this shape is one that :func:`save_grid` draws."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in COLOURS)


def _check_images(fn: str, images: Any) -> None:
    check_tensor(fn, "images", images)
    expected = "images of shape (n, 1, H, W), (n, 3, H, W) or (n, H, W)"
    if not is_image_shape(tuple(images.shape[1:])) or not images.numel():
        fail(fn, "images", expected, describe(images))
    if images.dtype != torch.uint8 and not images.is_floating_point():
        fail(fn, "images", "of a floating-point dtype or torch.uint8", describe(images))
    if images.is_floating_point() and bool(images.isnan().any()):
        bad = int(images.isnan().flatten(1).any(1).sum())
        fail(fn, "images", "without NaN", f"NaN in {bad} of {len(images)} images")


def _pixels(images: Tensor, lo: float, hi: float) -> Any:
    """uint8 pixels (n, H, W, C), as NumPy's."""
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.dtype != torch.uint8:
        scaled = (images.double() - lo) / (hi - lo)
        images = scaled.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    return images.permute(0, 2, 3, 1).numpy()


def _tiled(pixels: Any, columns: int, pad: int, background: int) -> Any:
    """One sheet (H', W', C) of images (n, H, W, C)."""
    n, height, width, channels = pixels.shape
    rows = -(-n // columns)
    size = (rows * (height + pad) + pad, columns * (width + pad) + pad, channels)
    sheet = numpy.full(size, background, dtype=numpy.uint8)
    for i, image in enumerate(pixels):
        top, left = pad + i // columns * (height + pad), pad + i % columns * (width + pad)
        sheet[top : top + height, left : left + width] = image
    return sheet
