"""Linear measurements y = A x + n: what is seen of the data.

==========================  =======================================================================
``Identity``                all of it: noisy data
``Mask``                    some elements, 0 elsewhere: inpainting
``Subsample``               every so-manyth element, or slices: super-resolution
``AveragePool``             means of blocks: super-resolution
``Blur``                    a circular convolution
``Grey``                    a weighted sum of the channels: colorization
``ChannelBasis``            an orthogonal change of basis of the channels
``Orthogonal``              one of whole samples, by a matrix or two functions
``MaskedFourier``           some frequencies, of real or complex images: MRI
``Radon``                   sums along parallel rays: computed tomography
``outer @ inner``           one after another: ``Compose``
``LinearOperator``          what they all have; to write one's own
``check_adjoint``           whether an operator's adjoint is its adjoint
``as_operator``             for functions that take operators: whether it is one,
``check_measurement``       and whether a measurement can be its
==========================  =======================================================================

An operator is any object with ``A(x)`` and ``A_adjoint(y)`` of batches, (batch, ...): those of
deepinv are taken as they are. It may have ``A_dagger(y)``, the pseudo-inverse; ours have it where
it is exactly known, and ``solve(y, r2, noise2)``, (r2 A A^T + noise2 I)^-1 y, there too.

>>> import torch, fastscore
>>> pool = fastscore.operators.AveragePool(2)
>>> y = pool.A(torch.randn(8, 3, 32, 32))
>>> y.shape, pool.A_dagger(y).shape, pool.solve(y, r2=0.5, noise2=0.01).shape
(torch.Size([8, 3, 16, 16]), torch.Size([8, 3, 32, 32]), torch.Size([8, 3, 16, 16]))
>>> fastscore.operators.check_adjoint(pool, (8, 3, 32, 32)) < 1e-6
True
"""

from fastscore.operators._base import Compose, Identity, LinearOperator, as_operator
from fastscore.operators._checks import check_adjoint, check_measurement
from fastscore.operators.blur import Blur
from fastscore.operators.channels import ChannelBasis, Grey, Orthogonal
from fastscore.operators.fourier import MaskedFourier
from fastscore.operators.pixels import AveragePool, Mask, Subsample
from fastscore.operators.radon import Radon

__all__ = [
    "AveragePool",
    "Blur",
    "ChannelBasis",
    "Compose",
    "Grey",
    "Identity",
    "LinearOperator",
    "Mask",
    "MaskedFourier",
    "Orthogonal",
    "Radon",
    "Subsample",
    "as_operator",
    "check_adjoint",
    "check_measurement",
]


def __dir__() -> list[str]:
    return sorted(__all__)
