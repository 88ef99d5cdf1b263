"""Bits per dimension, and the noise that makes discrete data continuous."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy
import pytest
import torch
from helpers import assert_same_bytes
from memory import peak_bytes
from scipy import stats
from torch import Tensor

import fastscore
from fastscore import random
from fastscore.evaluation import bits, bits_per_dim, dequantize, quantize

LEVELS = [2, 16, 17, 256, 65536]
RANGES = [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.1, 0.7)]


def all_levels(levels: int, times: int = 3000) -> Tensor:
    """Each level often, (n, 1)."""
    return torch.arange(levels).repeat(7 if levels > 1000 else times)[:, None]


def grid(number: Tensor, levels: int, data_range: tuple[float, float]) -> Tensor:
    lo, hi = data_range
    return lo + (hi - lo) * number.double() / (levels - 1)


# ---- bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "data_range", "constant"),
    [(256, (0, 1), 8), (256, (-1, 1), 7), (256, (0, 256), 0), (2, (0, 1), 1), (17, (0, 17), 0)],
)
def test_the_constant(levels: int, data_range: tuple[float, float], constant: float) -> None:
    got = bits_per_dim(torch.tensor([0.0, -7 * math.log(2)]), (7,), levels, data_range)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx([constant, constant + 1], abs=1e-7)


def test_the_bits_of_a_code_that_is_known() -> None:
    """A density constant in each box: bits are those of its entropy, whatever the range."""
    part = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    number = torch.arange(4).repeat_interleave((part * 8).long())
    for lo, hi in RANGES:
        x = dequantize(number[:, None], 4, (lo, hi), seed=0).double()
        box = ((x[:, 0] - lo) / (hi - lo) * 4).long()
        log_prob = (part[box] * 4 / (hi - lo)).log()
        assert float(bits_per_dim(log_prob, (1,), 4, (lo, hi)).mean()) == pytest.approx(1.75)


def test_one_draw_bounds_the_bits_and_many_come_near() -> None:
    """Of a density that is linear on [0, 1] the mass of a box is known."""
    x = torch.tensor([[0], [1]]).repeat_interleave(2000, 0)
    mass = torch.tensor([0.25, 0.75], dtype=torch.float64)[x[:, 0]]
    log_prob = torch.stack(
        [(2 * dequantize(x, 2, seed=0, draw=d).double()[:, 0]).log() for d in range(16)]
    )
    true = float(-mass.log2().mean())
    mean = float(bits_per_dim(log_prob, (1,), 2).mean())
    weighted = float(bits_per_dim(log_prob.logsumexp(0) - math.log(16), (1,), 2).mean())
    lower = (math.log(1.0) - 1) / math.log(2)  # mean of log2 2y on [0, 1/2]
    upper = 2 * ((math.log(2) - 1) - 0.5 * (0 - 1)) / math.log(2)  # on [1/2, 1]
    expected = 1 - (lower + upper) / 2
    assert mean == pytest.approx(expected, abs=0.01)
    assert true < weighted < true + 0.03 < mean


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_any_shape_of_log_densities(shape: tuple[int, ...]) -> None:
    got = bits_per_dim(torch.zeros(shape), torch.Size([1, 2, 3]))
    assert got.shape == shape
    assert bool((got == 8).all())
    assert bool(bits_per_dim(torch.tensor([math.nan]), (2,)).isnan().all())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"log_prob": torch.zeros(2, dtype=torch.int64)},
            ValueError,
            "log_prob must be a floating",
        ),
        ({"log_prob": 0.0}, TypeError, "log_prob must be a torch.Tensor"),
        ({"shape": 3}, TypeError, "shape must be a sequence of the sizes of one sample"),
        ({"shape": (0,)}, ValueError, "shape must be at least 1"),
        ({"levels": 1}, ValueError, "levels must be at least 2"),
        ({"levels": 2.5}, TypeError, "levels must be an integer"),
        ({"data_range": (1, 0)}, ValueError, r"data_range must be a pair \(lo, hi\) with lo < hi"),
        ({"data_range": 1}, TypeError, "data_range must be a sequence of two numbers"),
        ({"data_range": (0, math.inf)}, ValueError, "data_range must be finite"),
    ],
)
def test_bits_refuse(change: dict[str, Any], error: Any, message: str) -> None:
    good: dict[str, Any] = {"log_prob": torch.zeros(2), "shape": (3,)}
    with pytest.raises(error, match=f"^bits_per_dim: {message}"):
        bits_per_dim(**(good | change))


# ---- boxes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("data_range", RANGES)
@pytest.mark.parametrize("kind", [torch.int64, torch.float32, torch.float64])
def test_every_number_lies_in_its_box(
    levels: int, data_range: tuple[float, float], kind: torch.dtype
) -> None:
    number = all_levels(levels)
    exact = grid(number, levels, data_range)
    x = number if kind == torch.int64 else exact.to(kind)
    y = dequantize(x, levels, data_range, seed=0)
    assert y.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    lo, hi = data_range
    assert float(y.min()) >= lo
    assert float(y.max()) < hi
    lower = lo + (hi - lo) * number.double() / levels
    rounding = 1e-15 * max(abs(lo), abs(hi))  # of this test's own edges
    assert bool((y >= lower - rounding).all())
    assert bool((y < lo + (hi - lo) * (number.double() + 1) / levels + rounding).all())
    back = quantize(y, levels, data_range)
    assert back.dtype == y.dtype
    assert_same_bytes(back, exact.to(y.dtype).clamp(max=hi))
    assert_same_bytes(quantize(dequantize(back, levels, data_range), levels, data_range), back)


@pytest.mark.parametrize("levels", [3, 17, 256, 65536])
@pytest.mark.parametrize("data_range", [*RANGES, (-0.3, 0.1), (1000.0, 1255.0)])
@pytest.mark.parametrize("ends", [0.0, 1 - 2.0**-24])
def test_also_at_the_ends_of_the_boxes(
    monkeypatch: pytest.MonkeyPatch, levels: int, data_range: tuple[float, float], ends: float
) -> None:
    """The smallest and largest noise that there is, where rounding would leave the box."""
    monkeypatch.setattr(
        bits.random, "uniform", lambda key, shape, **_: torch.full(shape, ends).double()
    )
    number = torch.arange(levels)[:, None]
    y = dequantize(number, levels, data_range, seed=0)
    assert float(y.min()) >= data_range[0]
    assert float(y.max()) < data_range[1]
    back = quantize(y.double(), levels, data_range)
    place = (back - data_range[0]) / (data_range[1] - data_range[0]) * (levels - 1)
    assert torch.equal(place.round().long(), number)


@pytest.mark.parametrize("levels", [3, 17, 256, 65536])
@pytest.mark.parametrize("data_range", [*RANGES, (-0.3, 0.1), (1000.0, 1255.0), (-0.7, 0.2)])
def test_an_edge_belongs_to_the_box_above_it(levels: int, data_range: tuple[float, float]) -> None:
    """To the last bit of float64, where a division may round across it."""
    lo, hi = data_range
    number = torch.arange(1, levels)
    edge = (lo + ((hi - lo) * number.double()) / levels)[:, None]
    below = torch.nextafter(edge, torch.tensor(-math.inf).double())
    step = (hi - lo) / (levels - 1)
    for x, expected in ((edge, number), (below, number - 1)):
        got = (quantize(x, levels, data_range) - lo) / step
        assert torch.equal(got.round().long()[:, 0], expected)
    ends = quantize(torch.tensor([[lo], [hi]]).double(), levels, data_range)
    assert ends.flatten().tolist() == [lo, hi]


def test_a_coarse_range_is_refused_and_one_less_coarse_kept() -> None:
    with pytest.raises(ValueError, match=r"data_range must be one on which torch.float32 can tell"):
        dequantize(torch.zeros(1, 1, dtype=torch.int64), 65536, (1000.0, 1001.0))
    double = grid(torch.arange(65536)[:, None], 65536, (1000.0, 1001.0))
    y = dequantize(double, 65536, (1000.0, 1001.0), seed=0)
    assert_same_bytes(quantize(y, 65536, (1000.0, 1001.0)), double)


def test_the_noise_is_uniform_and_of_a_stream_of_its_own() -> None:
    number = torch.full((4000, 5), 3)
    y = dequantize(number, 17, (-1.0, 1.0), seed=5, draw=2)
    u = (y.double() + 1) / 2 * 17 - 3
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    key, stream = random.key(5, draw=2), random.Stream.DEQUANTIZE
    expected = random.uniform(key, (4000, 5), dtype=torch.float64, stream=stream)
    torch.testing.assert_close(u, expected, atol=1e-5, rtol=0)
    assert not torch.equal(y, dequantize(number, 17, (-1.0, 1.0), seed=5))


def test_the_formula_on_the_unit_range() -> None:
    x = torch.arange(256)[:, None] / 255
    u = random.uniform(random.key(0), (256, 1), stream=random.Stream.DEQUANTIZE)
    torch.testing.assert_close(dequantize(x, seed=0), (255 * x + u) / 256, atol=1e-7, rtol=0)


def test_a_sample_is_itself_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randint(256, (9, 2, 3), generator=torch.Generator().manual_seed(0))
    whole = dequantize(x, seed=7)
    assert_same_bytes(dequantize(x[4:], seed=7, sample_offset=4), whole[4:])
    some = torch.tensor([8, 0, 3])
    assert_same_bytes(dequantize(x[some], seed=7, samples=some), whole[some])
    own = dequantize(x[:2], seed=[1, 2])
    assert_same_bytes(dequantize(x[1:2], seed=2), own[1:])
    monkeypatch.setattr(bits, "_BLOCK_ELEMENTS", 12)  # two samples at a time
    assert_same_bytes(dequantize(x, seed=7), whole)
    assert_same_bytes(dequantize(x[some], seed=7, samples=some), whole[some])
    assert_same_bytes(dequantize(x[:2].repeat(2, 1, 1), seed=[1, 2, 1, 2]), own.repeat(2, 1, 1))
    torch.manual_seed(3)
    drawn = dequantize(x)
    torch.manual_seed(3)
    assert_same_bytes(dequantize(x), drawn)
    generator = torch.Generator().manual_seed(3)
    assert_same_bytes(dequantize(x, generator=generator), drawn)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_integers_of_any_size(kind: torch.dtype) -> None:
    x = torch.tensor([[0, 100, 127]])
    assert_same_bytes(dequantize(x.to(kind), seed=0), dequantize(x, seed=0))


def test_numbers_near_the_grid_are_on_it() -> None:
    """As float32 arithmetic of a caller's own leaves them."""
    number = torch.arange(256)[:, None]
    exact = dequantize(number, 256, (-1.0, 1.0), seed=0)
    assert_same_bytes(dequantize(2 * (number / 255) - 1, 256, (-1.0, 1.0), seed=0), exact)
    shifted = (((number / 255) - 0.47) / 0.25 * 0.25 + 0.47) * 2 - 1
    assert_same_bytes(dequantize(shifted, 256, (-1.0, 1.0), seed=0), exact)


def test_half_precision() -> None:
    """Taken where it can tell the levels apart; the result is float32."""
    number = torch.arange(256)[:, None]
    expected = dequantize(number, seed=0)
    assert_same_bytes(dequantize((number / 255).half(), seed=0), expected)
    whole = dequantize(number.bfloat16(), 256, (0, 255), seed=0)
    assert_same_bytes(whole, dequantize(number, 256, (0, 255), seed=0))
    for function in (dequantize, quantize):
        for kind, levels in ((torch.bfloat16, 256), (torch.float16, 65536)):
            with pytest.raises(ValueError, match=r"x must be of a dtype that can tell \d+ levels"):
                function(torch.zeros(2, 1, dtype=kind), levels)
    assert quantize(torch.tensor([[0.3]]).half(), 17).dtype == torch.float16


def test_what_lies_beyond_goes_to_the_outer_levels() -> None:
    x = torch.tensor([[-7.0, -1.0, -0.001, 0.0, 0.999, 1.0, 1.001, math.inf, -math.inf]])
    assert quantize(x, 2, (-1, 1)).tolist() == [[-1, -1, -1, 1, 1, 1, 1, 1, -1]]


def test_shapes_and_graphs() -> None:
    assert dequantize(torch.zeros(0, 3, dtype=torch.uint8)).shape == (0, 3)
    assert dequantize(torch.zeros(4, dtype=torch.uint8)).shape == (4,)
    assert quantize(torch.zeros(0, 3)).shape == (0, 3)
    x = torch.ones(2, 2, requires_grad=True)
    assert not dequantize(x).requires_grad
    assert not quantize(x).requires_grad
    assert bool((x == 1).all())
    image = torch.arange(24).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last)
    assert torch.equal(dequantize(image, seed=0), dequantize(image.contiguous(), seed=0))


def test_memory_does_not_grow_with_the_data() -> None:
    x = torch.zeros(2**17, 128, dtype=torch.uint8)
    used = peak_bytes(lambda: dequantize(x, seed=0))
    assert used < 4 * x.numel() + 12 * 8 * bits._BLOCK_ELEMENTS


NAN = torch.tensor([[0.0, 1.0], [1.0, math.nan]])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0.0, 1.0], [0.0, 0.3]]), r"x must be on the grid of 256 levels on "
         r"\[0, 1\]: round it, or say the levels= and data_range= that it has, got 0.3 in "
         r"sample 1$"),
        (torch.tensor([[0.0], [1.1], [2.0]]), r"on the grid .* got 1.1 in sample 1"),
        (torch.tensor([[0.0], [-1.0]]), r"on the grid .* got -1 in sample 1"),
        (NAN, r"on the grid .* got nan in sample 1"),
        (torch.tensor([[0.0], [math.inf]]), r"on the grid .* got inf in sample 1"),
        (torch.tensor([[0], [256]]), r"x must be integers of 0 to 255 \(levels= says how many "
         r"levels there are\), got 256 in sample 1$"),
        (torch.tensor([[-1], [0]]), r"integers of 0 to 255 .* got -1 in sample 0"),
        (torch.zeros(2, 2, dtype=torch.bool), r"x must be integers or floating-point numbers \("),
        (torch.zeros(2, 2, dtype=torch.complex64), "x must be integers or floating-point numbers"),
        (torch.zeros(()), r"x must be a tensor with at least 1 dimension"),
    ],
)  # fmt: skip
def test_data_that_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^dequantize: .*{message}"):
        dequantize(x)


def test_the_sample_is_named_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "_BLOCK_ELEMENTS", 4)
    x = torch.zeros(7, 2)
    x[5, 1] = math.nan
    with pytest.raises(ValueError, match="got nan in sample 5"):
        dequantize(x)
    with pytest.raises(ValueError, match=r"^quantize: x must be numbers, got nan in sample 5"):
        quantize(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"levels": 1}, ValueError, "levels must be at least 2, got 1"),
        ({"data_range": (1.0, 1.0)}, ValueError, r"data_range must be a pair \(lo, hi\) with"),
        ({"draw": -1}, ValueError, "draw must be at least 0"),
        ({"draw": 2**32}, ValueError, "draw must be below 2"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"seed": [1]}, ValueError, "seed must be one number, or one for each of 2 samples"),
        ({"samples": torch.tensor([0])}, ValueError, r"samples must be of shape \(2,\)"),
        ({"sample_offset": -1}, ValueError, "sample_offset must be at least 0"),
        ({"sed": 1}, TypeError, "there is no option 'sed'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^dequantize: {message}"):
        dequantize(torch.zeros(2, 2, dtype=torch.uint8), **options)


def test_arrays_are_told_how_to_become_tensors() -> None:
    array: Any = numpy.zeros((2, 2), numpy.uint8)
    for call in (dequantize, quantize, lambda x: bits_per_dim(x, (2,))):
        with pytest.raises(TypeError, match=r"must be a torch.Tensor, got a NumPy array \(torch"):
            call(array)


def test_where_the_names_are() -> None:
    assert fastscore.dequantize is fastscore.evaluation.dequantize is dequantize
    assert fastscore.bits_per_dim is bits_per_dim


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("levels", LEVELS)
def test_the_same_on_a_device(levels: int) -> None:
    x = all_levels(levels, 10)
    for data_range in RANGES:
        y = dequantize(x, levels, data_range, seed=0)
        other = dequantize(x.cuda(), levels, data_range, seed=0)
        assert_same_bytes(other.cpu(), y)
        back = quantize(other, levels, data_range)
        assert_same_bytes(back.cpu(), quantize(y, levels, data_range))


def test_levels_that_are_forgotten_are_noticed() -> None:
    """Digits of 17 levels would be squeezed into a fifteenth of the range."""
    digits = torch.randint(17, (4, 64), generator=torch.Generator().manual_seed(0))
    for kind in (torch.uint8, torch.int64):
        with pytest.warns(UserWarning, match="no value above 16, of 256 levels: levels= says"):
            dequantize(digits.to(kind), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dequantize(digits, 17, seed=0)
        dequantize(15 * digits, seed=0)


def test_the_shape_of_a_batch_is_noticed() -> None:
    with pytest.warns(UserWarning, match="is it the batch's"):
        bits_per_dim(torch.zeros(5), (5, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bits_per_dim(torch.zeros(5), (64,))
        bits_per_dim(torch.zeros(5), (3, 64))
