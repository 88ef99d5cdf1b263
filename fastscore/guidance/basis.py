"""A score in another orthogonal basis, in which what is known are elements."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore import random
from fastscore._support.checks import check_output, check_tensor, describe, fail
from fastscore._support.explain import explain
from fastscore._support.lending import lend, lent
from fastscore._support.terms import Terms, summed
from fastscore.derivatives.known import Keeping, Known
from fastscore.guidance._guided import Guided
from fastscore.guidance._rows import contents_of

TOLERANCE = 1e-4  # of Q Q^T z = z, over the largest element of z; more in half precision
SEED = 0


class InBasis(Guided):
    """The score of z = Q x for an orthogonal Q: S_z(z, sigma) = Q S(Q^T z, sigma).

    Exact for every data distribution, at every noise level: noise N(0, sigma^2 I) is the same in
    every orthogonal basis. So a measurement of A = M Q, where M chooses elements, is inpainting in
    the basis of Q (Song et al. 2021, appendix I.4, colorization): a picture's grey is an element of
    it for each pixel, known, and every sampler holds it by ``known=`` and ``mask=``.

    Args:
        score: a model of (x, sigma), or one that says by its attributes how it is called.
        basis: Q, any object with ``A(x)``, Q x, and ``A_adjoint(z)``, Q^T z, on batches, such as
            those of :mod:`fastscore.operators`. It is tried once, at the first call, on noise, and
            again when what it holds has changed.

    Attributes:
        score, basis: as given.
        data_shape: the shape of a z, None where the score has none.
        sigma_range, conditioning, prediction: as :class:`Guided` has them.

    Raises:
        TypeError: a basis without ``A`` or ``A_adjoint``.
        ValueError: on call, a basis that is not orthogonal, or of other shapes than the score's.

    Example:
        Two pictures of one pixel, in colours of N(0, I), of which the grey is known:

        >>> import torch, fastscore, fastscore.guidance
        >>> basis = fastscore.operators.ChannelBasis.from_grey("mean")
        >>> grey, first = torch.tensor(0.5).reshape(1, 1, 1), torch.tensor([True, False, False])
        >>> score = lambda x, sigma: -x / (1 + sigma[:, None, None, None] ** 2)
        >>> z = fastscore.reverse_sde(
        ...     fastscore.guidance.InBasis(score, basis), fastscore.sde.VE(0.01, 10.0), steps=50,
        ...     shape=(2, 3, 1, 1), seed=0, known=3**0.5 * grey, mask=first.reshape(3, 1, 1),
        ... )
        >>> basis.A_adjoint(z).mean(1).flatten()
        tensor([0.5000, 0.5000])
    """

    def __init__(self, score: Callable[..., Any], basis: Any) -> None:
        """See the class."""
        super().__init__(score)
        for name in ("A", "A_adjoint"):
            if not callable(getattr(basis, name, None)):
                expected = "an object with A and A_adjoint"
                got = f"{type(basis).__name__} without {name}"
                raise TypeError(f"InBasis: basis must be {expected}, got {got}")
        self.basis = basis
        self._tried: set[tuple[torch.Size, torch.dtype, torch.device]] = set()
        self._contents: Any = None
        if self.data_shape is not None:
            with torch.no_grad():
                turned = basis.A(torch.zeros(1, *self.data_shape, device=_device_of(basis)))
            self.data_shape = tuple(turned.shape[1:])

    def forward(self, x: Tensor, sigma: Tensor | float, **model_kwargs: Any) -> Tensor | Terms:
        """The score at ``x``, a z of the basis, (batch, ...), of level ``sigma``, (batch,).

        What else is given by name goes to the score; of one that returns terms, its terms.
        """
        return self._turned(self.score, x, sigma, model_kwargs)

    def _with_divergence(
        self, method: Known, x: Tensor, sigma: Tensor | float, **model_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The score and its divergence, that of the score itself: tr Q J Q^T = tr J."""
        score = Keeping(method)
        turned = summed(self._turned(score, x, sigma, model_kwargs))
        return turned, score.checked("InBasis", x)

    def _turned(
        self,
        score: Callable[..., Any],
        z: Tensor,
        sigma: Tensor | float,
        model_kwargs: dict[str, Any],
    ) -> Tensor | Terms:
        """Q score(Q^T z)."""
        level = self._levels(z, sigma)
        self._try(z)
        x = self._back(z)
        try:
            found = score(lend(x), lend(level), **lent(model_kwargs))
        except Exception as error:
            explain("InBasis", score, x, "sigma", model_kwargs, error)
            raise
        if not isinstance(found, Terms):
            return self._there(check_output("InBasis", found, x), z)
        pairs = [(check_output("InBasis", part, x), weight) for part, weight in found.pairs]
        return Terms([(self._there(part, z), weight) for part, weight in pairs])

    def _there(self, x: Tensor, like: Tensor) -> Tensor:
        """Q x, a z."""
        with torch.autocast(like.device.type, enabled=False):
            z: Tensor = self.basis.A(lend(x.to(like.dtype)))
        return _fitting("A", z, like.shape)

    def _back(self, z: Tensor) -> Tensor:
        """Q^T z, an x."""
        with torch.autocast(z.device.type, enabled=False):
            x: Tensor = self.basis.A_adjoint(lend(z))
        return _fitting("A_adjoint", x, z.shape[:1])

    def extra_repr(self) -> str:
        """The basis where it is no module, for ``repr``: modules show below."""
        return "" if isinstance(self.basis, torch.nn.Module) else f"basis={self.basis!r}"

    def _try(self, z: Tensor) -> None:
        """That Q Q^T z = z and Q^T z is as long as z, once: it waits for the device then."""
        kind = (z.shape[1:], z.dtype, z.device)
        if torch.compiler.is_compiling() or not z.numel() or _capturing(z):
            return
        if (contents := contents_of(self.basis)) != self._contents:
            self._contents, self._tried = contents, set()
        if kind in self._tried:
            return
        with torch.no_grad():
            noise = random.normal(random.key(SEED, device=z.device), z.shape, dtype=z.dtype)
            turned = self._back(noise)
            again = self._there(turned, noise).double() - noise.double()
            lengths = turned.double().square().sum() / noise.double().square().sum()
        limit = max(TOLERANCE, 8 * torch.finfo(z.dtype).eps)
        off = max(float(again.abs().max() / noise.abs().max()), abs(float(lengths) - 1))
        if not off <= limit:
            expected = "orthogonal, A_adjoint(z) as long as z and A(A_adjoint(z)) = z"
            fail("InBasis", "basis", expected, f"one that is off by {off:.2g} of {tuple(z.shape)}")
        self._tried.add(kind)


def _fitting(name: str, found: Any, shape: torch.Size) -> Tensor:
    """What the basis returns: real, and its shape beginning with this one."""
    check_tensor("InBasis", f"what the basis's {name} returns", found)
    if found.shape[: len(shape)] != shape or not found.is_floating_point():
        expected = f"one whose {name} returns real numbers of shape {tuple(shape)}"
        expected += ", ..." if len(shape) == 1 else ""
        fail("InBasis", "basis", expected, describe(found))
    return found


def _capturing(z: Tensor) -> bool:
    return z.is_cuda and torch.cuda.is_current_stream_capturing()


def _device_of(basis: Any) -> torch.device | None:
    """Where a basis that is a module has its numbers."""
    if isinstance(basis, torch.nn.Module):
        for tensor in itertools.chain(basis.parameters(), basis.buffers()):
            return tensor.device
    return None
