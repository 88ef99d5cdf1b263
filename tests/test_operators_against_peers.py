"""Operators against those of scikit-image and deepinv; and deepinv's as operators of ours.

A package that is not installed is skipped: ``pip install fastscore[peers]`` is all of them.
"""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from helpers import randn

from fastscore.operators import (
    AveragePool,
    Blur,
    Grey,
    Identity,
    Mask,
    MaskedFourier,
    Radon,
    as_operator,
    check_adjoint,
    check_measurement,
)

EXACT = {"rtol": 0.0, "atol": 1e-12}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
DECLARED: Any = None  # operators stay as long as what declared them


# ---- scikit-image -------------------------------------------------------------------------------


def smooth(size: int, seed: int) -> numpy.ndarray:
    """Bumps, 0 outside of the inscribed circle."""
    rng = numpy.random.default_rng(seed)
    at = numpy.mgrid[:size, :size] - size // 2
    image = sum(
        numpy.exp(-((at[0] - y) ** 2 + (at[1] - x) ** 2) / (0.02 * size**2))
        for y, x in rng.uniform(-size / 6, size / 6, (4, 2))
    )
    return image * (numpy.hypot(*at) < size // 2 - 1)


@pytest.mark.parametrize("size", [8, 9, 32, 65])
@pytest.mark.parametrize("circle", [True, False])
def test_radon_is_that_of_scikit_image(size: int, circle: bool) -> None:
    transform = pytest.importorskip("skimage.transform")
    image = smooth(size, size)
    if not circle:  # nothing need be 0
        image = image + numpy.random.default_rng(0).random((size, size))
    angles = numpy.array([0.0, 12.5, 45.0, 77.3, 90.0, 135.0, 170.0])
    want = torch.as_tensor(transform.radon(image, angles, circle=circle))
    x = torch.as_tensor(image)[None]
    options: dict[str, Any] = {"circle": circle, "svd": False, "dtype": torch.float64}
    pixel = Radon(angles.tolist(), size, centre="pixel", **options).A(x)
    torch.testing.assert_close(pixel[0], want, **EXACT)
    if size % 2 and circle:
        torch.testing.assert_close(Radon(torch.as_tensor(angles), size, **options).A(x), pixel)
    single = Radon(angles.tolist(), size, circle=circle, centre="pixel", svd=False)
    torch.testing.assert_close(single.A(x.float())[0].double(), want, **CLOSE)


# ---- deepinv ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def physics() -> Any:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # built for another torch: what its import asks for is declared
        global DECLARED
        DECLARED = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            DECLARED.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    except ImportError:
        pytest.skip("needs torchvision")
    return pytest.importorskip("deepinv").physics


def test_masks_are_deepinvs(physics: Any) -> None:
    mask, x = randn(4, 5) > 0, randn(2, 3, 4, 5)
    peer, ours = physics.Inpainting(img_size=(3, 4, 5), mask=mask.float()), Mask(mask)
    torch.testing.assert_close(ours.A(x), peer.A(x), rtol=0, atol=0)
    torch.testing.assert_close(ours.A_dagger(x), peer.A_dagger(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3, 3), (5, 3)])
def test_blur_is_deepinvs(physics: Any, shape: tuple[int, int]) -> None:
    kernel, x = randn(*shape), randn(2, 3, 8, 9)
    peer = physics.Blur(filter=kernel[None, None], padding="circular")
    torch.testing.assert_close(Blur(kernel).A(x), peer.A(x), **CLOSE)
    torch.testing.assert_close(Blur(kernel).A_adjoint(x), peer.A_adjoint(x), **CLOSE)


def test_pools_and_grey_are_deepinvs(physics: Any) -> None:
    x = randn(2, 3, 8, 8)
    pool = physics.Downsampling(img_size=(3, 8, 8), factor=2, filter=torch.ones(1, 1, 2, 2) / 4)
    assert pool.A(x).shape == AveragePool(2).A(x).shape
    grey = physics.Decolorize(channels=3)
    weights = grey.A(torch.eye(3)[:, :, None, None]).flatten()
    torch.testing.assert_close(Grey(weights).A(x), grey.A(x), **CLOSE)
    torch.testing.assert_close(weights, Grey("luma").weights.float(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("size", [(8, 8), (7, 6)])
def test_masked_fourier_is_deepinvs_mri(physics: Any, size: tuple[int, int]) -> None:
    mask, x = randn(*size) > 0, randn(2, 2, *size)
    peer = physics.MRI(mask=mask.float(), img_size=(2, *size))
    ours = MaskedFourier(mask, data="channels", centred=True)
    y = ours.A(x)
    torch.testing.assert_close(y, peer.A(x), **CLOSE)
    torch.testing.assert_close(ours.A_adjoint(y), peer.A_adjoint(y), **CLOSE)
    torch.testing.assert_close(ours.A_dagger(y), peer.A_dagger(y), **CLOSE)


def test_deepinvs_objects_are_operators(physics: Any) -> None:
    mask = (randn(8, 8) > 0).float()
    peers = {
        (3, 8, 8): [
            physics.Inpainting(img_size=(3, 8, 8), mask=mask),
            physics.Denoising(),
            physics.Decolorize(channels=3),
            physics.Downsampling(img_size=(3, 8, 8), factor=2, filter="bilinear"),
            physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="circular"),
            physics.BlurFFT(img_size=(3, 8, 8), filter=torch.ones(1, 1, 3, 3) / 9),
        ],
        (2, 8, 8): [physics.MRI(mask=mask, img_size=(2, 8, 8))],
        (1, 8, 8): [
            physics.Tomography(4, 8, circle=True, adjoint_via_backprop=True, normalize=False),
            physics.CompressedSensing(m=10, img_size=(1, 8, 8)),
        ],
    }
    for shape, operators in peers.items():
        for operator in operators:
            assert as_operator("f", operator) is operator
            assert check_adjoint(operator, (3, *shape)) < 1e-5
            x = randn(3, *shape)
            y = operator.A(x)
            assert check_measurement("f", operator, x, y) is y
            both = Identity() @ operator
            torch.testing.assert_close(both.A_dagger(y), operator.A_dagger(y))
            assert not hasattr(both, "solve")


def test_an_approximate_adjoint_of_deepinv_is_found(physics: Any) -> None:
    operator = physics.Tomography(4, 8, circle=True, adjoint_via_backprop=False, normalize=False)
    with pytest.raises(ValueError, match=r"the adjoint of its A, got <A u, v> = \S+, <u, A_adj"):
        check_adjoint(operator, (2, 1, 8, 8))
