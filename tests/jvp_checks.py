"""What the tests of fastscore.jvp share: reference results, the comparison, a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastscore.derivatives.forward import jvps

DIM, IMAGE, SEQUENCE = (4, 6), (2, 4, 6, 6), (2, 4, 9)


def tangents_of(x: Tensor, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn((count, *x.shape), dtype=x.dtype, generator=generator)


def point(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(11))


def exact(model: Callable[..., Tensor], x: Tensor, vs: Tensor) -> tuple[Tensor, Tensor]:
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
        results = [torch.func.jvp(model, (x,), (v,)) for v in vs]
    return results[0][0], torch.stack([tangent for _, tangent in results])


def reverse_twice(model: Callable[..., Tensor], x: Tensor, vs: Tensor) -> tuple[Tensor, Tensor]:
    """The same through double backward.

    It is the reference for gradients: reverse mode over torch.func.jvp lacks some.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivatives
        output = model(x)
    u = torch.zeros_like(output, requires_grad=True)
    if not output.requires_grad:
        return output, torch.zeros((len(vs), *output.shape), dtype=output.dtype)
    (pulled,) = torch.autograd.grad(
        output, x, u, create_graph=True, allow_unused=True, materialize_grads=True
    )
    if not pulled.requires_grad:
        return output, torch.zeros((len(vs), *output.shape), dtype=output.dtype)
    tangents = [torch.autograd.grad(pulled, u, v, create_graph=True)[0] for v in vs]
    return output, torch.stack(tangents)


def weighted_sum(output: Tensor, tangents: Tensor) -> Tensor:
    """A scalar that weighs every element of output and tangents differently."""
    weights = [torch.linspace(0.3, 1.7, t.numel(), dtype=t.dtype) for t in (output, tangents)]
    return sum(
        (w.reshape(t.shape) * t.sin()).sum()
        for w, t in zip(weights, (output, tangents), strict=True)
    )


def gradients(values: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    scalar = weighted_sum(*values)
    if not scalar.requires_grad:
        return []
    grads = torch.autograd.grad(scalar, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]


def check_model(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    count: int = 3,
    quiet: bool = True,
    reference: Callable[..., tuple[Tensor, Tensor]] | None = reverse_twice,
) -> None:
    """Output and tangents agree with torch.func.jvp to rounding, every gradient with reference."""
    x = x.clone().requires_grad_()
    vs = tangents_of(x, count).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error" if quiet else "default", UserWarning)
        got = jvps(model, x, vs)
    for a, b in zip(got, exact(model, x, vs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    if reference is None:
        return
    leaves = [x, vs, *(model.parameters() if isinstance(model, nn.Module) else ())]
    expected = gradients(reference(model, x, vs), leaves)
    for a, b in zip(gradients(got, leaves), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


class TimeEmbedding(nn.Module):
    """Fourier features of log sigma, as many score networks have them."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0.1, 3.0, features // 2))
        self.net = nn.Sequential(nn.Linear(features, features), nn.SiLU())

    def forward(self, sigma: Tensor) -> Tensor:
        angles = sigma.log()[:, None] * self.frequencies
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, features: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.dense = nn.Linear(features, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1)
        self.dropout = nn.Dropout(0.3)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm(x)))
        h += self.dense(features)[:, :, None, None]
        h = self.conv2(self.dropout(F.gelu(h)))
        return (self.skip(x) + h) / 2**0.5


class UNet(nn.Module):
    """Down, attention, up with a skip concatenation, and a division by sigma."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = TimeEmbedding(8)
        self.labels = nn.Embedding(3, 8)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.block1 = Block(4, 4, 8)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.block2 = Block(6, 6, 8)
        self.qkv = nn.Conv1d(6, 18, 1)
        self.up = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1)
        self.block3 = Block(12, 4, 8)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        features = self.embed(sigma) + self.labels(labels)
        h1 = self.block1(self.first(2 * x - 1.0), features)
        h2 = self.block2(self.down(h1), features)
        b, c, height, width = h2.shape
        q, k, v = self.qkv(h2.view(b, c, height * width)).chunk(3, dim=1)
        weights = torch.einsum("bci,bcj->bij", q, k * c**-0.5).softmax(dim=-1)
        h2 = h2 + torch.einsum("bij,bcj->bci", weights, v).reshape(h2.shape)
        pooled = F.interpolate(F.avg_pool2d(h1, 2), scale_factor=2, mode="nearest")
        h3 = self.block3(torch.cat([self.up(h2), h1, pooled], dim=1), features)
        return self.last(F.elu(h3)) / sigma.view(-1, 1, 1, 1)
