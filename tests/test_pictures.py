"""save_grid: every pixel where it belongs, of the brightness that it has."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import fastscore
from fastscore import save_grid


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.png"


def pixels(path: Path) -> Any:
    return numpy.asarray(Image.open(path))


def test_grey_and_colour_land_where_they_belong(path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    save_grid(path, images, columns=2, pad=2, background=0.2)
    sheet = pixels(path)
    assert sheet.shape == (3 * 6 + 2, 2 * 8 + 2, 3)
    assert Image.open(path).mode == "RGB"
    for i, image in enumerate(images):
        top, left = 2 + i // 2 * 6, 2 + i % 2 * 8
        part = sheet[top : top + 4, left : left + 6]
        assert (part == image.permute(1, 2, 0).numpy()).all()
        sheet = sheet.copy()
        sheet[top : top + 4, left : left + 6] = 51
    assert (sheet == 51).all()

    for grey in (images[:, :1], images[:, 0]):
        save_grid(path, grey, columns=5, pad=0)
        assert Image.open(path).mode == "L"
        assert (pixels(path) == torch.cat(list(images[:, 0]), dim=1).numpy()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_brightness(dtype: torch.dtype, path: Path) -> None:
    values = torch.tensor([[-2.0, -1.0, 0.0, 0.5, 1.0, float("inf"), -float("inf")]], dtype=dtype)
    save_grid(path, values[None], pad=0)
    assert pixels(path).tolist() == [[0, 0, 0, 128, 255, 255, 0]]
    save_grid(path, values[None], pad=0, value_range=(-1, 1))
    assert pixels(path).tolist() == [[0, 0, 128, 191, 255, 255, 0]]


def test_every_level_of_uint8_comes_back_from_floats(path: Path) -> None:
    levels = torch.arange(256).reshape(1, 16, 16)
    save_grid(path, levels / 255, pad=0)
    assert (pixels(path) == levels[0].numpy()).all()


def test_layout(path: Path) -> None:
    images = torch.rand(7, 1, 2, 3, requires_grad=True)
    save_grid(path, images)
    assert pixels(path).shape == (3 * 3 + 1, 3 * 4 + 1)  # three columns
    assert pixels(path)[-2, -2] == 255
    save_grid(path, images, columns=100, pad=0)
    assert pixels(path).shape == (2, 7 * 3)
    small = pixels(path)
    save_grid(path, images, columns=100, pad=0, zoom=3)
    assert (pixels(path) == small.repeat(3, 0).repeat(3, 1)).all()
    save_grid(path, images.detach().mT.expand(7, 3, 3, 2))
    assert Image.open(path).mode == "RGB"


def test_permissions_and_leftovers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_grid(path, torch.rand(1, 2, 2))
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    old = path.read_bytes()

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_grid(path, torch.rand(1, 2, 2))
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def nan() -> Tensor:
    images = torch.zeros(3, 2, 2)
    images[1, 0, 0] = float("nan")
    return images


GOOD = torch.zeros(2, 2, 2)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (GOOD.numpy(), {}, TypeError, "images must be a torch.Tensor, got a NumPy array"),
        (GOOD[0], {}, ValueError, r"images must be images of shape \(n, 1, H, W\), \(n, 3, H, "),
        (torch.zeros(2, 2, 4, 4), {}, ValueError, r"images must be .* of shape \(2, 2, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), {}, ValueError, r"images must be .* of shape \(0, 3, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), {}, ValueError, r"images must be .* of shape \(1, 3, 0, 4\)"),
        (GOOD.long(), {}, ValueError, "images must be of a floating-point dtype or torch.uint8"),
        (GOOD.bool(), {}, ValueError, "images must be of a floating-point dtype or torch.uint8"),
        (nan(), {}, ValueError, "images must be without NaN, got NaN in 1 of 3 images"),
        (GOOD, {"value_range": (1, 1)}, ValueError, "value_range must be a pair .* with lo < hi"),
        (GOOD, {"value_range": (0, 1, 2)}, ValueError, "value_range must be two numbers"),
        (GOOD, {"value_range": 1.0}, TypeError, "value_range must be a sequence of two numbers"),
        (GOOD, {"value_range": (0, float("nan"))}, ValueError, "value_range must be finite"),
        (GOOD.byte(), {"value_range": (0, 255)}, ValueError, r"value_range must be \(0.0, 1.0\) f"),
        (GOOD, {"columns": 0}, ValueError, "columns must be at least 1"),
        (GOOD, {"columns": 1.5}, TypeError, "columns must be an integer"),
        (GOOD, {"pad": -1}, ValueError, "pad must be at least 0"),
        (GOOD, {"zoom": 0}, ValueError, "zoom must be at least 1"),
        (GOOD, {"background": 1.5}, ValueError, "background must be at most 1"),
        (GOOD, {"background": -0.1}, ValueError, "background must be at least 0"),
        (GOOD, {"background": "white"}, TypeError, "background must be a real number"),
    ],
)
def test_bad_input(images: Any, options: Any, error: Any, message: str, path: Path) -> None:
    with pytest.raises(error, match=rf"^save_grid: {message}"):
        save_grid(path, images, **options)
    assert not path.exists()


def test_where_it_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^save_grid: the output must end in .png, got a.jpg"):
        save_grid("a.jpg", GOOD)
    with pytest.raises(FileNotFoundError, match=r"^save_grid: the directory .* does not exist"):
        save_grid(tmp_path / "nowhere" / "a.png", GOOD)


def test_without_pillow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"^save_grid: needs pillow: pip install pillow$"):
        fastscore.save_grid(path, GOOD)
