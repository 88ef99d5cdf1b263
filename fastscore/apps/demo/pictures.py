"""The demo's two pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def tile(images: Tensor, columns: int, *, pad: int = 1, zoom: int = 4) -> Tensor:
    """Images (n, 1, H, W) in [0, 1] side by side: one image (H', W'), rows filled in order."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(rows * (height + pad) + pad, columns * (width + pad) + pad)
    for i, image in enumerate(images.clamp(0, 1).cpu()):
        top, left = pad + i // columns * (height + pad), pad + i % columns * (width + pad)
        sheet[top : top + height, left : left + width] = 1 - image[0]
    return sheet.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)


def save_png(path: Path, sheet: Tensor) -> None:
    """Write a sheet of grey values in [0, 1]."""
    from PIL import Image

    Image.fromarray((sheet * 255).round().to(torch.uint8).numpy()).save(path)


def normalised(images: Tensor) -> Tensor:
    """Each image stretched to [0, 1] about 1/2, so that noise of any scale can be seen."""
    reach = (images - 0.5).abs().flatten(1).amax(1).clamp_min(0.5).reshape(-1, 1, 1, 1)
    return (images - 0.5) / (2 * reach) + 0.5
