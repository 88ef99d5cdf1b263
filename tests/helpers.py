"""Helpers shared by the tests: sizes, memory layouts, the accuracy rule, byte comparisons."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

RAGGED_SIZES = (0, 1, 3, 4, 5, 63, 64, 65, 1009, 4100)
# Samples of few elements, in tiles of their own code; some lie across the end of a tile.
SHORT_SAMPLES = ((1027, 1), (1030, 2), (700, 3), (513, 4), (411, 5), (260, 8), (230, 9), (130, 16))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "misaligned", "strided", "transposed", "channels_last")
TINY_ALPHA = 1e-6  # a statistical test at a fixed seed fails by chance once in a million seeds

KAT_FILE = Path(__file__).with_name("kat_philox.txt")


def make_key(seed: int, draw: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """The key tensor [seed, draw] itself, with no code of the library in between."""
    return torch.tensor([seed, draw], dtype=torch.int64, device=device)


def known_answers() -> list[list[int]]:
    """Rows of ten words: counter (4), key (2), result (4)."""
    lines = (line.split("#")[0].split() for line in KAT_FILE.read_text().splitlines())
    return [[int(word, 16) for word in line] for line in lines if line]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Test data from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def ragged_shapes() -> list[tuple[int, ...]]:
    """Shapes (batch first) that cover every ragged size as a batch and as a sample."""
    sizes = [(n,) for n in RAGGED_SIZES] + [(3, n) for n in RAGGED_SIZES]
    return [*sizes, *SHORT_SAMPLES, (2, 3, 5, 7), (5, 1, 9), (122, 17)]


def offset_near_an_end(shape: tuple[int, ...]) -> int:
    """A sample_offset that lays the end of a tile of 1024 elements among the first samples."""
    return 1024 // math.prod(shape[1:]) - 2 if math.prod(shape) < 1024 else 100


def with_layout(x: Tensor, layout: str) -> Tensor:
    """A tensor equal to ``x`` that lies in memory another way; never shares memory with it."""
    if layout == "contiguous":
        return x.clone(memory_format=torch.contiguous_format)
    if layout == "misaligned":
        out = x.new_empty(x.numel() + 1)[1:].view(x.shape)
    elif layout == "strided":
        out = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    elif layout == "transposed":
        out = x.new_empty(*x.shape[1:], x.shape[0]).movedim(-1, 0)
    elif layout == "channels_last":
        assert x.dim() == 4
        out = torch.empty_like(x, memory_format=torch.channels_last)
    else:
        raise AssertionError(layout)
    return out.copy_(x)


def data_bytes(x: Tensor) -> bytes:
    """The bytes of the elements in logical order."""
    flat = x.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def assert_same_bytes(got: Tensor, want: Tensor) -> None:
    """Same shape, dtype and bytes: signed zeros and NaN payloads included."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if data_bytes(got) != data_bytes(want):
        torch.testing.assert_close(got.cpu(), want.cpu(), rtol=0, atol=0, equal_nan=True)
        raise AssertionError("equal values, but other bytes (signed zeros or NaN payloads)")


def digest(*tensors: Tensor) -> str:
    """SHA-256 of shapes, dtypes and bytes."""
    sha = hashlib.sha256()
    for x in tensors:
        sha.update(f"{tuple(x.shape)} {x.dtype}".encode())
        sha.update(data_bytes(x))
    return sha.hexdigest()


def max_error(got: Tensor, exact: Tensor) -> float:
    """Largest absolute difference from a float64 result; NaN must stand in the same places."""
    assert got.shape == exact.shape
    got, exact = got.detach().double().cpu(), exact.detach().double().cpu()
    assert torch.equal(got.isnan(), exact.isnan())
    difference = torch.where(got == exact, 0.0, got - exact).nan_to_num(nan=0.0)
    return float(difference.abs().max()) if got.numel() else 0.0


def assert_accurate(fused: Tensor, eager: Tensor, exact: Tensor, halves: int = 0) -> None:
    """The fused error is at most twice PyTorch's own, both against float64.

    A handful of elements may all round to the exact result by luck, on one side and not on the
    other: there one unit in the last place of the largest element is allowed as well.

    ``halves`` of a unit of the largest element are allowed whatever PyTorch's error is: those of
    roundings that no computation in that precision can avoid.
    """
    assert fused.dtype == eager.dtype
    finite = exact.detach().double()[exact.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    eps = torch.finfo(fused.dtype).eps
    allowed = max(2 * max_error(eager, exact), halves * eps / 2 * scale)
    if 0 < fused.numel() < 256:
        allowed += eps * max(1.0, scale)
    assert max_error(fused, exact) <= allowed
