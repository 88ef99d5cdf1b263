"""Score networks as papers' code has them: tangents in one pass, with no function left out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from jvp_checks import gradients, point, reverse_twice, tangents_of
from torch import Tensor, nn

from fastscore.derivatives import jvps
from fastscore.derivatives.forward import warned
from fastscore.derivatives.forward.whole import differentiable_to_third_order

SIGMA = torch.tensor([0.5, 2.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warned, "_WARNED", set())


def conv(channels_in: int, channels: int, size: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, size, padding=size // 2, **options)


def embedding(sigma: Tensor, features: int) -> Tensor:
    half = features // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, dtype=sigma.dtype) / half)
    angles = sigma.log()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


# ---- NCSN: RefineNet ---------------------------------------------------------------------------


class InstanceNormPlus(nn.Module):
    """Of NCSN's normalization.py, conditional on the level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=False, track_running_stats=False)
        self.embed = nn.Embedding(2, channels * 3)
        self.embed.weight.data.normal_(1, 0.3)
        self.channels = channels

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        means = torch.mean(x, dim=(2, 3))
        m = torch.mean(means, dim=-1, keepdim=True)
        v = torch.var(means, dim=-1, keepdim=True)
        means = (means - m) / (torch.sqrt(v + 1e-5))
        h = self.norm(x)
        gamma, alpha, beta = self.embed(y).chunk(3, dim=-1)
        h = h + means[..., None, None] * alpha[..., None, None]
        out = gamma.view(-1, self.channels, 1, 1) * h + beta.view(-1, self.channels, 1, 1)
        return out


class ChainedPooling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(channels, channels, bias=False) for _ in range(2)])
        self.norms = nn.ModuleList([InstanceNormPlus(channels) for _ in range(2)])
        self.pool = nn.AvgPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = F.elu(x)
        path = x
        for layer, norm in zip(self.convs, self.norms, strict=True):
            path = layer(self.pool(norm(path, y)))
            x = path + x
        return x


class MultiScaleFusion(nn.Module):
    def __init__(self, channels_in: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(c, channels) for c in channels_in])
        self.norms = nn.ModuleList([InstanceNormPlus(c) for c in channels_in])
        self.channels = channels

    def forward(self, xs: list[Tensor], y: Tensor, shape: torch.Size) -> Tensor:
        sums = torch.zeros(xs[0].shape[0], self.channels, *shape, dtype=xs[0].dtype)
        for i in range(len(self.convs)):
            h = self.convs[i](self.norms[i](xs[i], y))
            h = F.interpolate(h, size=shape, mode="bilinear", align_corners=True)
            sums += h
        return sums


class RefineNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.begin = conv(2, 4)
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.down = nn.Sequential(conv(4, 6), nn.ELU(), nn.AvgPool2d(2))
        self.norm = InstanceNormPlus(4)
        self.pooling, self.fusion = ChainedPooling(6), MultiScaleFusion((6, 4), 4)
        self.end = conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tensor([0, 1])
        h = self.begin(2 * x - 1.0)
        h = h + self.dilated(F.elu(self.norm(h, y)))
        low = self.pooling(self.down(h), y)
        return self.end(F.elu(self.fusion([low, h], y, h.shape[2:]))) / SIGMA.view(-1, 1, 1, 1)


# ---- NCSN++ ------------------------------------------------------------------------------------


class Nin(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(channels, channels) / channels)
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return (torch.einsum("bhwc,cd->bhwd", x, self.W) + self.b).permute(0, 3, 1, 2)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels, eps=1e-6)
        self.nins = nn.ModuleList([Nin(channels) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        h = self.norm(x)
        q, k, v = (nin(h) for nin in self.nins[:3])
        w = torch.einsum("bchw,bcij->bhwij", q, k) * (int(c) ** (-0.5))
        w = torch.reshape(w, (b, height, width, height * width))
        w = F.softmax(w, dim=-1)
        w = torch.reshape(w, (b, height, width, height, width))
        h = torch.einsum("bhwij,bcij->bchw", w, v)
        return (x + self.nins[3](h)) / math.sqrt(2.0)


def fir(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1) -> Tensor:
    """upfirdn2d in PyTorch's own functions, as StyleGAN's code has it."""
    b, c, height, width = x.shape
    x = x.reshape(-1, height, 1, width, 1)
    x = F.pad(x, [0, up - 1, 0, 0, 0, up - 1]).view(-1, 1, height * up, width * up)
    x = F.pad(x, [2, 1, 2, 1])
    x = F.conv2d(x, torch.flip(kernel, [0, 1]).view(1, 1, *kernel.shape))
    x = x[:, :, ::down, ::down]
    return x.view(b, c, x.shape[2], x.shape[3])


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, features: int, *, down: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(2, channels_in), nn.GroupNorm(2, channels)])
        self.convs = nn.ModuleList([conv(channels_in, channels), conv(channels, channels)])
        self.film = nn.Linear(features, 2 * channels)
        self.skip = conv(channels_in, channels, 1)
        self.dropout = nn.Dropout(0.0)
        kernel = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(kernel, kernel) / 64)
        self.down = down

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = F.silu(self.norms[0](x))
        if self.down:
            h, x = fir(h, self.kernel, down=2), fir(x, self.kernel, down=2)
        else:
            h, x = fir(h, 4 * self.kernel, up=2), fir(x, 4 * self.kernel, up=2)
        h = self.convs[0](h)
        scale, shift = self.film(F.silu(features))[:, :, None, None].chunk(2, dim=1)
        h = self.norms[1](h) * (1 + scale) + shift
        h = self.convs[1](self.dropout(F.silu(h)))
        return (self.skip(x) + h) / math.sqrt(2.0)


class NCSNpp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.begin, self.end = conv(2, 4), conv(8, 2)
        self.down, self.up = (ResidualBlock(4, 4, 8, down=down) for down in (True, False))
        self.attention = Attention(4)

    def forward(self, x: Tensor) -> Tensor:
        features = embedding(SIGMA, 8)
        hs = [self.begin(2 * x - 1.0)]
        hs.append(self.attention(self.down(hs[-1], features)))
        h = self.up(hs.pop(), features)
        return self.end(torch.cat([h, hs.pop()], dim=1)) / SIGMA.reshape(-1, 1, 1, 1)


# ---- DiT, U-Net --------------------------------------------------------------------------------


class DiT(nn.Module):
    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, 4, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in "ab"])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 16), nn.GELU(approximate="tanh"), nn.Linear(16, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.last, self.heads = nn.Linear(width, 8), heads

    def forward(self, x: Tensor) -> Tensor:
        c = embedding(SIGMA, 8)
        h = self.patch(x).flatten(2).transpose(1, 2) + self.position
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        y = self.norms[0](h) * (1 + scale1.unsqueeze(1)) + shift1.unsqueeze(1)
        b, n, width = y.shape
        qkv = self.qkv(y).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        h = h + gate1.unsqueeze(1) * self.out(y)
        y = self.norms[1](h) * (1 + scale2.unsqueeze(1)) + shift2.unsqueeze(1)
        h = h + gate2.unsqueeze(1) * self.mlp(y)
        h = self.last(h).reshape(b, 2, 2, 2, 2, 2)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(b, 2, 4, 4)


class UNet(nn.Module):
    """With batch normalisation as at sampling, transposed convolutions, skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Sequential(conv(4, 6), nn.BatchNorm2d(6), nn.LeakyReLU(0.2, inplace=True))
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.last = nn.Sequential(conv(8, 4), nn.Mish(), nn.Dropout2d(0.1), conv(4, 2, 1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        g = self.up(self.second(self.pool(h)))
        rows, columns = h.shape[2] - g.shape[2], h.shape[3] - g.shape[3]
        g = F.pad(g, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        out = self.last(torch.cat([h, g], dim=1))
        out *= SIGMA.view(-1, 1, 1, 1)
        return out - x


@pytest.mark.parametrize("make", [RefineNet, NCSNpp, DiT, UNet])
def test_no_function_is_left_out(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().double(), point((2, 2, 4, 4)).requires_grad_()
    vs = tangents_of(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        got = jvps(model, x, vs)
        with torch.no_grad():
            silent = jvps(model, x, vs)
    with differentiable_to_third_order():
        expected = reverse_twice(model, x, vs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(silent, tuple(y.detach() for y in expected))
    leaves = [x, *model.parameters()]
    torch.testing.assert_close(gradients(got, leaves), gradients(expected, leaves))
