"""What operators measure, against formulas; and what is refused, with what is said then."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from helpers import randn
from torch import Tensor, nn

from fastscore.operators import (
    AveragePool,
    Blur,
    ChannelBasis,
    Compose,
    Grey,
    Identity,
    LinearOperator,
    Mask,
    MaskedFourier,
    Orthogonal,
    Radon,
    Subsample,
    as_operator,
    check_adjoint,
    check_measurement,
)
from fastscore.operators._checks import measurement_shape

HALF = torch.tensor([True, False])


class Given:
    """What deepinv's objects have, and no more: no module, no ``solve``, more arguments."""

    def __init__(self) -> None:
        self.asked = 0

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        self.asked += 1
        return x[..., ::2]

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return torch.stack([y, torch.zeros_like(y)], -1).flatten(-2)

    def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
        return self.A_adjoint(y)


# ---- against formulas ---------------------------------------------------------------------------


def test_masks_look_at_nothing_that_is_not_measured() -> None:
    x = randn(2, 3, 2)
    x[..., 1] = math.nan
    mask = Mask(HALF)
    for y in (mask.A(x), mask.A_adjoint(x), mask.A_dagger(x), mask.solve(x, 1.0, 0.0)):
        torch.testing.assert_close(y[..., 0], x[..., 0])
        assert not bool(y[..., 1].any())
    assert Mask(torch.tensor([True])).gram == 1.0


def test_pools_and_subsamples_are_pytorchs() -> None:
    x = randn(2, 3, 6, 9, dtype=torch.float64)
    pool = AveragePool((2, 3))
    torch.testing.assert_close(pool.A(x), F.avg_pool2d(x, (2, 3)))
    up = F.interpolate(pool.A(x), scale_factor=(2.0, 3.0), mode="nearest")
    torch.testing.assert_close(pool.A_dagger(pool.A(x)), up)
    torch.testing.assert_close(pool.A_adjoint(pool.A(x)), up / 6)
    torch.testing.assert_close(Subsample(3).A(x), x[..., ::3, ::3])
    lower = Subsample(slice(4, None), size=9)
    torch.testing.assert_close(lower.A(x), x[..., 4:])
    assert not bool(lower.A_adjoint(lower.A(x))[..., :4].any())


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (4, 2), (1, 1), (9, 6)])
def test_blur_is_the_circular_sum(shape: tuple[int, int]) -> None:
    k, x = randn(*shape, dtype=torch.float64), randn(2, 5, 6, dtype=torch.float64)
    want = torch.zeros_like(x)
    for i in range(shape[0]):
        for j in range(shape[1]):
            shift = (i - shape[0] // 2, j - shape[1] // 2)
            want += k[i, j] * x.roll(shift, (-2, -1))
    torch.testing.assert_close(Blur(k).A(x), want)


def test_a_gaussian_blur_keeps_the_mean_and_adds_its_variance() -> None:
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[..., 20, 20] = 1.0
    y = Blur(2.0).A(x)[0, 0]
    at = torch.arange(-20.0, 21.0, dtype=torch.float64)
    assert float(y.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(y.sum(0) @ at.square()) == pytest.approx(4.0, rel=5e-3)  # cut off at 4 widths


def test_what_blur_loses_is_set_by_rcond() -> None:
    blur, x = Blur(1.5), randn(1, 1, 16, 16, dtype=torch.float64)
    y = blur.A(x)
    back = blur.A(blur.A_dagger(y))
    assert float((back - y).abs().max()) < 1e-4
    assert float(blur.A_dagger(y + 1e-9).abs().max()) < 1e3
    exact = Blur(1.5, rcond=0.0)
    torch.testing.assert_close(exact.A_dagger(y), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("centred", [False, True])
def test_fourier_is_pytorchs(centred: bool) -> None:
    mask, x = randn(6, 5) > 0, randn(3, 2, 6, 5, dtype=torch.float64)
    z = torch.complex(x, x.flip(0))
    moved = torch.fft.ifftshift(z, (-2, -1)) if centred else z
    want = torch.fft.fft2(moved, norm="ortho")
    want = mask * (torch.fft.fftshift(want, (-2, -1)) if centred else want)
    torch.testing.assert_close(MaskedFourier(mask, data="complex", centred=centred).A(z), want)
    channels = torch.cat([z.real, z.imag], 1)
    got = MaskedFourier(mask, data="channels", centred=centred).A(channels)
    torch.testing.assert_close(got, torch.cat([want.real, want.imag], 1))
    back = MaskedFourier(mask, data="channels", output="complex", centred=centred)
    torch.testing.assert_close(back.A(channels), want)
    real = MaskedFourier(mask, centred=centred).A(x)
    only_real = MaskedFourier(mask, data="complex", centred=centred).A(x + 0j)
    torch.testing.assert_close(real, only_real)


def test_of_real_images_half_of_the_frequencies_tell_all() -> None:
    x = randn(2, 1, 5, 5)
    half = torch.zeros(5, 5, dtype=torch.bool)
    half[:, :3] = True
    mri = MaskedFourier(half)
    torch.testing.assert_close(mri.A_dagger(mri.A(x)), x)


def test_grey_is_the_first_coordinate_and_colorization_is_inpainting() -> None:
    x = randn(4, 3, 5, 5, dtype=torch.float64)
    for weights in ("mean", "luma", [0.0, -2.0, 1.0], torch.tensor([-1.0, 0.0, 0.0])):
        grey, basis = Grey(weights, orthonormal=True), ChannelBasis.from_grey(weights)
        torch.testing.assert_close(basis.A(x)[:, :1], grey.A(x))
        known = Mask(torch.tensor([True, False, False])[:, None, None]) @ basis
        torch.testing.assert_close(known.A_dagger(known.A(x)), grey.A_dagger(grey.A(x)))
    torch.testing.assert_close(Grey().A(x), x.mean(1, keepdim=True))
    same = Orthogonal(torch.kron(basis.matrix, torch.eye(25, dtype=torch.float64)))
    torch.testing.assert_close(same.A(x), basis.A(x))


def test_radon_at_right_angles_sums_columns_and_rows() -> None:
    for size in (7, 8):
        x = randn(2, size, size, dtype=torch.float64)
        y = Radon([0.0, 90.0, 180.0], size, dtype=torch.float64).A(x)
        torch.testing.assert_close(y[..., 0], x.sum(1))
        torch.testing.assert_close(y[..., 1], x.sum(2).flip(-1))
        torch.testing.assert_close(y[..., 2], x.sum(1).flip(-1))
    wide = Radon([0.0, 90.0], (4, 6), circle=False, dtype=torch.float64)
    assert wide.bins % 2 == 0
    y = wide.A(randn(1, 4, 6, dtype=torch.float64))
    torch.testing.assert_close(y[..., 0].sum(), y[..., 1].sum())


def test_radon_of_a_gaussian_is_its_line_integral() -> None:
    """exp(-|r - m|^2/(2 w^2)) has sqrt(2 pi) w exp(-(u - m_a)^2/(2 w^2)) on every line."""
    size, width, place = 64, 4.0, (5.0, -8.0)  # right, down, of the middle
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    x = (at[None, :] - place[0]).square() + (at[:, None] - place[1]).square()
    x = (-x / (2 * width**2)).exp()[None]
    ct = Radon(12, size)
    angles = torch.tensor(ct.angles, dtype=torch.float64).deg2rad()
    middle = angles.cos() * place[0] - angles.sin() * place[1]
    want = (-(at[:, None] - middle).square() / (2 * width**2)).exp() * width * math.tau**0.5
    assert float((ct.A(x) - want).abs().max()) < 0.01 * float(want.max())
    assert float((ct.A(x) - want).square().mean().sqrt()) < 0.002 * float(want.max())


# ---- objects of others --------------------------------------------------------------------------


def test_any_object_with_a_and_its_adjoint_will_do() -> None:
    given = Given()
    assert as_operator("f", given) is given
    assert check_adjoint(given, (4, 3, 6)) < 1e-6
    both = Identity() @ given
    assert not hasattr(both, "solve")
    x = randn(2, 3, 6)
    torch.testing.assert_close(both.A_dagger(both.A(x)), given.A_dagger(given.A(x)))
    torch.testing.assert_close((given @ ChannelBasis.from_grey()).A(x).shape, (2, 3, 3))
    assert isinstance(given @ Identity(), Compose)


def test_a_measurements_shape_is_asked_once() -> None:
    given, x = Given(), randn(4, 3, 6)
    for _ in range(3):
        for y in (randn(4, 3, 3), randn(1, 3, 3), randn(3, 3)):
            assert check_measurement("f", given, x, y).shape in ((4, 3, 3), (1, 3, 3))
        assert measurement_shape("f", given, x[:1]) == ((3, 3), False)
    assert given.asked == 1
    check_measurement("f", given, randn(4, 3, 8), randn(4, 3, 4))
    assert given.asked == 2
    with torch.inference_mode():
        check_measurement("f", MaskedFourier(HALF), torch.zeros(1, 2, 2), torch.zeros(2, 2) + 0j)

    class Slots(Given):
        __hash__ = None  # type: ignore[assignment]

    assert check_measurement("f", Slots(), x, randn(3, 3)).shape == (1, 3, 3)


# ---- what is refused ----------------------------------------------------------------------------


class Wrong(Identity):
    """With a mistake, given by name."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def A(self, x: Tensor) -> Tensor:
        if self.what == "mixes":
            return x - x.mean(0, keepdim=True)
        return {"constant": x + 1, "square": x * x.abs(), "twice": 2 * x}.get(self.what, x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        if self.what == "shape":
            return y[:, :1]
        return {"nan": y * math.nan, "mixes": y - y.mean(0, keepdim=True)}.get(self.what, y)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("twice", r"the adjoint of its A, got <A u, v> = \S+, <u, A_adjoint v> = \S+ \(sample"),
        ("nan", r"the adjoint of its A, got <A u, v> = \S+, <u, A_adjoint v> = nan \(sample 0"),
        ("constant", r"the adjoint of its A|linear, A\(0\) = 0, got a difference of"),
        ("square", r"the adjoint of its A"),
        ("mixes", r"the adjoint of its A|A of a sample alone = A of it among others"),
        ("shape", r"one whose A_adjoint\(A\(x\)\) has x's shape \(4, 6\), got a .*\(4, 1\)"),
    ],
)
def test_what_is_no_adjoint_is_found(what: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^check_adjoint: operator must be .*" + message):
        check_adjoint(Wrong(what), (4, 6))


def refusals() -> dict[str, tuple[Callable[[], Any], str]]:
    x, image, wide = randn(2, 3), randn(2, 1, 4, 4), randn(2, 2, 4, 4)
    mri = MaskedFourier(HALF.repeat(2))
    mixed = MaskedFourier(HALF.repeat(2), data="channels")
    turn: Any = [[1.0, 0.0], [0.0, 1.0]]
    measured = (AveragePool(2), image)
    options: Any = {"shape": (4,)}
    return {
        "1": (lambda: Mask(torch.zeros(3, dtype=torch.bool)), "Mask: mask must be True somewhere"),
        "2": (lambda: Mask(torch.ones(3)), r"Mask: mask must be a bool tensor.*mask > 0.5 makes"),
        "3": (lambda: Mask(numpy.ones(3, dtype=bool)), r"Mask: mask must be .*got a NumPy array"),
        "4": (
            lambda: Mask(HALF).A(x),
            r"Mask.A: x must be .* mask of shape \(2,\) broadcasts, got",
        ),
        "5": (lambda: Mask(torch.ones(2, 3) > 0).A(x), r"Mask.A: x must be .*, got shape \(2, 3\)"),
        "6": (lambda: Mask(HALF).A(torch.zeros(2, 2).long()), "Mask.A: x must be a floating-point"),
        "7": (lambda: Mask(HALF).A([1.0]), "Mask.A: x must be a torch.Tensor, got list"),
        "8": (lambda: Mask(HALF).A(torch.ones(())), r"Mask.A: x must be a tensor with at least 1"),
        "9": (lambda: Mask(HALF).solve(x[:, :2], -1.0, 0), "Mask.solve: r2 must be at least 0"),
        "10": (lambda: Identity().solve(x, 1.0, -0.1), "Identity.solve: noise2 must be at least"),
        "11": (lambda: Identity().solve(x, torch.ones(3), 0), r"r2 must be .* \(2,\), got a torch"),
        "12": (lambda: Identity().solve(x, "1", 0), "Identity.solve: r2 must be a real number"),
        "13": (
            lambda: (Identity() @ Identity()).solve(x, -2, 0),
            "Compose.solve: r2 must be at le",
        ),
        "14": (lambda: Subsample(0), "Subsample: factor must be at least 1, got 0"),
        "15": (lambda: Subsample(2.0), "Subsample: factor must be an integer or a tuple"),  # type: ignore[arg-type]
        "16": (lambda: Subsample(slice(3)), "Subsample: size must be the sizes .*, got None"),
        "17": (lambda: Subsample(slice(5, 3), size=8), "slices that select something of 8, got sl"),
        "18": (lambda: Subsample(slice(None, None, -1), size=8), "of a step of at least 1, got sl"),
        "19": (lambda: Subsample(3).A(image), r"Subsample.A: x must be .* multiples of \(3, 3\)"),
        "20": (lambda: Subsample(2, size=3).A(image), r"last dimensions \(3, 3\), got shape"),
        "21": (lambda: Subsample(2, size=3).A_adjoint(image), r"y must be of last dimensions \(2,"),
        "22": (lambda: Subsample((2, 2), size=(4,)), r"Subsample: size must be of 2 number"),
        "23": (lambda: AveragePool(3).A(image), r"AveragePool.A: x must be .* multiples of \(3, 3"),
        "24": (lambda: AveragePool(2).A(x), "AveragePool.A: x must be a tensor with at least 3 d"),
        "25": (lambda: AveragePool(()), "AveragePool: factor must be an integer or a tuple of in"),
        "26": (lambda: AveragePool("2"), "AveragePool: factor must be an integer or a tuple"),  # type: ignore[arg-type]
        "27": (lambda: Blur(0.0), "Blur: kernel must be positive"),
        "28": (lambda: Blur(torch.tensor([math.nan])), "Blur: kernel must be finite everywhere"),
        "29": (
            lambda: Blur(torch.zeros(0, 2)),
            r"Blur: kernel must be not empty, got shape \(0, 2",
        ),
        "30": (lambda: Blur(1.0).A(image + 0j), "Blur.A: x must be a floating-point tensor"),
        "31": (lambda: Blur(1.0).A(x), "Blur.A: x must be a tensor with at least 3 dim"),
        "32": (
            lambda: Grey("green"),
            "Grey: weights must be 'mean', 'luma' or a seq.* got 'green'",
        ),
        "33": (lambda: Grey([0.0, 0.0]), "Grey: weights must be numbers of which one at least"),
        "34": (lambda: Grey(torch.ones(2, 2)), r"Grey: weights must be of one dimension, got a t"),
        "35": (
            lambda: Grey().A(image),
            r"Grey.A: x must be of 3 channels, .*, got shape \(2, 1, 4",
        ),
        "36": (lambda: Grey().A_adjoint(wide), "Grey.A_adjoint: y must be of one channel"),
        "37": (lambda: ChannelBasis(torch.ones(2, 2)), r"orthogonal, Q Q\^T = I .*is off by 2"),
        "38": (
            lambda: ChannelBasis(torch.ones(2, 3)),
            r"ChannelBasis: matrix must be square, got a",
        ),
        "39": (lambda: ChannelBasis(turn), "ChannelBasis: matrix must be a torch.Tensor, got list"),
        "40": (lambda: ChannelBasis(torch.eye(2)).A(x), "ChannelBasis.A: x must be of 2 channels"),
        "41": (lambda: Orthogonal(torch.eye(2)).A(x), "Orthogonal.A: x must be of 2 elements a s"),
        "42": (lambda: Orthogonal(turn), "Orthogonal: transform must be an orthogonal matrix or a"),
        "43": (lambda: Orthogonal(torch.eye(2), nn.Identity()), "Orthogonal: inverse must be left"),
        "44": (
            lambda: Orthogonal(nn.Identity(), nn.Identity()),
            "Orthogonal: shape must be the sh",
        ),
        "45": (lambda: Orthogonal(nn.Identity()), "Orthogonal: inverse must be callable, got None"),
        "46": (
            lambda: Orthogonal(lambda x: 2 * x, lambda x: x / 2, **options),
            r"Orthogonal: transform must be orthogonal: it keeps the length .*, got \S+ for",
        ),
        "47": (
            lambda: Orthogonal(lambda x: x.abs(), lambda x: x, **options),
            "Orthogonal: transform must be linear",
        ),
        "48": (
            lambda: Orthogonal(lambda x: x.flip(1), lambda x: x.roll(1, 1), **options),
            "Orthogonal: inverse must be the inverse of transform, got one off by",
        ),
        "49": (
            lambda: MaskedFourier(HALF, data="rgb"),
            "MaskedFourier: data must be one of 'real'",
        ),
        "50": (lambda: mri.A(image + 0j), "MaskedFourier.A: x must be a floating-point tensor"),
        "51": (lambda: mri.A_adjoint(image), r"MaskedFourier.A_adjoint: y must be complex \(out"),
        "52": (
            lambda: mixed.A(image),
            r"x must be of an even number of channels, .*\(2, 1, 4, 4\)",
        ),
        "53": (
            lambda: MaskedFourier(HALF, data="complex").A(image),
            r'x must be complex \(data="real" and data="channels" are for real tensors\), got a t',
        ),
        "54": (lambda: mri.A(image[..., :3]), r"MaskedFourier.A: x must be .*mask of shape \(4,\)"),
        "55": (lambda: Radon(0, 4), "Radon: angles must be at least 1, got 0"),
        "56": (lambda: Radon([], 4), "Radon: angles must be at least one angle"),
        "57": (lambda: Radon([math.inf], 4), "Radon: angles must be finite everywhere"),
        "58": (lambda: Radon("many", 4), "Radon: angles must be an integer"),  # type: ignore[arg-type]
        "59": (lambda: Radon(2, (4, 5)), r"Radon: size must be that of a square .*, got \(4, 5\)"),
        "60": (lambda: Radon(2, 4, dtype=torch.float16), "Radon: dtype must be torch.float32 or"),
        "61": (lambda: Radon(2, 5).A(image), r"Radon.A: x must be of last dimensions \(5, 5\)"),
        "62": (
            lambda: Radon(3, 4).A_adjoint(image),
            r"y must be of last dimensions \(4, 3\) \(bins",
        ),
        "63": (
            lambda: Radon(3, 4, centre="edge"),
            "Radon: centre must be one of 'middle', 'pixel'",
        ),
        "64": (lambda: Identity() @ HALF, r"Compose: inner must be .*operators.Mask makes one of"),
        "65": (lambda: as_operator("f", nn.ReLU()), "f: operator .*, got ReLU without A and A_adj"),
        "66": (lambda: as_operator("f", Mask), "f: operator must be .*, got the class Mask"),
        "67": (
            lambda: check_measurement("f", *measured, image),
            r"f: measurement must be of shape \(2, 1, 2, 2\) or \(1, 2, 2\), as AveragePool.A "
            r"gives of x of shape \(2, 1, 4, 4\), got shape \(2, 1, 4, 4\)",
        ),
        "68": (
            lambda: check_measurement("f", *measured, randn(3, 1, 2, 2)),
            r"f: measurement must be of shape .*, got shape \(3, 1, 2, 2\)",
        ),
        "69": (
            lambda: check_measurement("f", *measured, randn(1, 2, 2) + 0j),
            "f: measurement must be real, of a floating-point dtype, as AveragePool.A gives, got a",
        ),
        "70": (
            lambda: check_measurement("f", mri, image, image),
            "f: measurement must be complex, as MaskedFourier.A gives, got a torch.float32",
        ),
        "71": (lambda: check_measurement("f", *measured, 1.0), "f: measurement must be a torch.T"),
        "72": (
            lambda: check_adjoint(Identity(), (0, 3)),
            r"check_adjoint: x\[0\] must be at least 1",
        ),
        "73": (
            lambda: check_adjoint(Identity(), 3),
            "check_adjoint: x must be a sequence of sizes",
        ),  # type: ignore[arg-type]
        "74": (
            lambda: check_adjoint(LinearOperator, x),
            "check_adjoint: operator must be an object",
        ),
        "75": (lambda: Mask(HALF).A(torch.ones(1, 2, device="meta")), r"Mask.A: x must be on cpu"),
        "76": (
            lambda: Radon(2, 4).A(image.to("meta")),
            r"Radon.A: x must be on cpu \(where this o",
        ),
    }


@pytest.mark.parametrize("case", refusals())
def test_bad_input_is_named(case: str) -> None:
    call, message = refusals()[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
