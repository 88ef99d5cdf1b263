"""A small convolutional score network for images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastscore._support.checks import (
    check_floating,
    check_int,
    check_number,
    check_shape,
    fail,
    per_sample,
)
from fastscore._support.spread import standard_deviation, warn_if_far_off
from fastscore.conditioning import as_sigma
from fastscore.nn._classes import ClassEmbedding, check_classes, refuse_label

GROUPS = 8
BASE_CHANNELS = 32


class NoiseEmbedding(nn.Module):
    """Fourier features of log sigma through two linear layers: (batch,) to (batch, width)."""

    rates: Tensor

    def __init__(self, width: int, frequencies: int = 8) -> None:
        super().__init__()
        self.register_buffer("rates", 2.0 ** torch.arange(frequencies).sub(4.0), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, log_sigma: Tensor, dtype: torch.dtype) -> Tensor:
        angles = log_sigma[:, None] * self.rates
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype))


class ResidualBlock(nn.Module):
    """Two normalised convolutions; the noise level shifts and scales between them."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = nn.SiLU()
        # A block starts as the identity.
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(self.activation(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        return x + self.conv2(self.activation(h))


class ScoreConvNet(nn.Module):
    """Noise-conditional score network for images (batch, channels, image_size, image_size).

    A U-Net of two resolutions: residual blocks with group normalisation at full size, at half size,
    and at full size again, with a skip connection. ``model(x, sigma)`` is
    f(x / sqrt(data_std^2 + sigma^2), log sigma) / sigma: the division by sigma is Technique 3 of
    Song and Ermon 2020, the scaling of the input keeps it of order one at every level.

    Args:
        channels: of the image.
        image_size: height and width, even; meant for 8 to 32.
        base_channels: width at full size, a multiple of 8; twice that at half size.
        blocks: residual blocks at each stage.
        data_std: standard deviation of the pixels about their means; :meth:`for_data` takes it
            from the images. The default is that of images on [-1, 1]; on [0, 1] it is about 0.3.
        classes: how many classes f is told, by a learnt vector beside that of the noise level:
            ``model(x, sigma, label=label)`` with int64 labels (batch,) in [0, classes), or
            ``classes`` itself for none of them. None for a network without classes.

    Attributes:
        data_shape: (channels, image_size, image_size), from which samplers know what to draw.
        sigma_range: the noise levels (lowest, highest) that it was trained on, for samplers in
            continuous time; None until it is set.
        config: the arguments that make this network again.

    Raises:
        TypeError, ValueError: sizes that do not fit; on call, an x that is not
            (batch, *data_shape), a sigma that is not (batch,), or a label that is no class.

    >>> model = ScoreConvNet(channels=1, image_size=8)
    >>> model(torch.zeros(2, 1, 8, 8), torch.ones(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    sigma_range: tuple[float, float] | None = None

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 32,
        *,
        base_channels: int = BASE_CHANNELS,
        blocks: int = 1,
        data_std: float = 0.5,
        classes: int | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        fn = "ScoreConvNet"
        check_int(fn, "channels", channels, minimum=1)
        check_int(fn, "blocks", blocks, minimum=1)
        check_int(fn, "image_size", image_size, minimum=2)
        check_int(fn, "base_channels", base_channels, minimum=GROUPS)
        check_number(fn, "data_std", data_std, positive=True)
        classes = check_classes(fn, classes)
        if image_size % 2:
            fail(fn, "image_size", "even", image_size)
        if base_channels % GROUPS:
            fail(fn, "base_channels", f"a multiple of {GROUPS}", base_channels)
        self.config: dict[str, Any] = {
            "channels": int(channels),
            "image_size": int(image_size),
            "base_channels": int(base_channels),
            "blocks": int(blocks),
            "data_std": float(data_std),
        }
        self.data_shape = (int(channels), int(image_size), int(image_size))
        self.data_std = data_std
        self.conditioning = "sigma"
        low, embedding = 2 * base_channels, 4 * base_channels

        def stage(width: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(width, embedding) for _ in range(blocks))

        self.embed = NoiseEmbedding(embedding)
        self.enter = nn.Conv2d(channels, base_channels, 3, padding=1)
        self.encode = stage(base_channels)
        self.down = nn.Conv2d(base_channels, low, 4, stride=2, padding=1)
        self.middle = stage(low)
        self.up = nn.ConvTranspose2d(low, base_channels, 4, stride=2, padding=1)
        self.merge = nn.Conv2d(2 * base_channels, base_channels, 1)
        self.decode = stage(base_channels)
        self.norm = nn.GroupNorm(GROUPS, base_channels)
        self.activation = nn.SiLU()
        self.leave = nn.Conv2d(base_channels, channels, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        self.classes, self.embed_class = classes, None
        if classes is not None:
            self.config["classes"] = classes
            self.embed_class = ClassEmbedding(fn, classes, embedding)

    @classmethod
    def for_data(
        cls,
        x: Tensor,
        *,
        base_channels: int = BASE_CHANNELS,
        blocks: int = 1,
        classes: int | None = None,
    ) -> Self:
        """The network for a set of images: their channels, size and ``data_std``.

        Images whose mean is more than 3 standard deviations from 0 get a warning: take it off,
        train, sample, and put it back.

        Args:
            x: the images, or a large part of them, (n, channels, size, size), floating point, on
                the scale that the network is trained on.
            base_channels, blocks, classes: as for the class.

        Raises:
            TypeError, ValueError: as the class; an ``x`` of another shape, with fewer than two
                images that differ, or not finite.

        >>> model = ScoreConvNet.for_data(torch.rand(100, 3, 16, 16))
        >>> model.data_shape, round(model.data_std, 1)
        ((3, 16, 16), 0.3)
        """
        fn = "ScoreConvNet.for_data"
        spread = standard_deviation(fn, x)
        if x.dim() != 4 or x.shape[2] != x.shape[3]:
            got = f"shape {tuple(x.shape)}"
            fail(fn, "x", "of shape (n, channels, image_size, image_size)", got)
        warn_if_far_off(fn, x, spread)
        return cls(
            x.shape[1],
            x.shape[2],
            base_channels=base_channels,
            blocks=blocks,
            data_std=spread,
            classes=classes,
        )

    @property
    def refused_names(self) -> tuple[str, ...]:
        """Arguments that this network does not take, made as it was."""
        return ("label",) if self.classes is None else ()

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """The score at x, noise levels sigma and, with classes, label, (batch,)."""
        check_floating("ScoreConvNet", "x", x, min_dim=1)
        check_shape("ScoreConvNet", "x", x, (len(x), *self.data_shape), "batch and data_shape")
        level = as_sigma("ScoreConvNet", x, sigma)
        embedding = self.embed(level.log(), x.dtype)
        if self.embed_class is None:
            refuse_label("ScoreConvNet", label)
        else:
            embedding = embedding + self.embed_class.of(label, x)
        level = per_sample(level, x)
        h = self.enter((x / (level.square() + self.data_std**2).sqrt()).to(x.dtype))
        for block in self.encode:
            h = block(h, embedding)
        skip = h
        h = self.down(h)
        for block in self.middle:
            h = block(h, embedding)
        h = self.merge(torch.cat([self.up(h), skip], dim=1))
        for block in self.decode:
            h = block(h, embedding)
        return (self.leave(self.activation(self.norm(h))) / level).to(x.dtype)

    def extra_repr(self) -> str:
        """What the layers don't say, for ``repr``."""
        own = f"data_shape={self.data_shape}, data_std={self.data_std}"
        return own if self.classes is None else f"{own}, classes={self.classes}"
