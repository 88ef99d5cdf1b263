"""Posterior scores of operators and networks that behave unlike most: never wrong in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from posteriors import F64, Gaussian, Matrix, some_gaussian
from torch import Tensor, nn

import fastscore
from fastscore.guidance import DPS, MMPS, ClassifierFreeGuidance, InBasis, PiGDM
from fastscore.guidance._rows import rows_of
from fastscore.operators import AveragePool, Blur, Mask

KINDS = [DPS, PiGDM, MMPS]
Y = torch.tensor([0.5, -1.0, 2.0], dtype=F64)


def standard(size: int) -> Gaussian:
    return Gaussian(torch.linspace(-0.5, 0.5, size), torch.eye(size))


def points(size: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, size, dtype=F64, generator=generator)


@pytest.mark.parametrize("correlation", [0.5, -0.7])
@pytest.mark.parametrize("rows", [2, 3, 4, 6])
def test_rows_of_one_length_that_are_not_orthogonal(rows: int, correlation: float) -> None:
    """Vectors of signs are eigenvectors of two of them, and of some circulant ones."""
    matrix = torch.eye(rows, dtype=F64) + correlation * torch.eye(rows, dtype=F64).roll(1, 0)
    if rows == 2:
        matrix = torch.tensor([[1, correlation], [correlation, 1]], dtype=F64)
    score, x, y = standard(rows), points(rows), torch.linspace(-1, 1, rows, dtype=F64)
    assert rows_of(Matrix(matrix), y[None]) is None
    got = PiGDM(score, Matrix(matrix), y, noise=0.3)(x, 0.8).total()
    want = score.given(matrix, y, 0.3)(x, torch.full((3,), 0.8, dtype=F64))
    torch.testing.assert_close(got, want)


def test_pooling_after_a_blur_of_four_numbers() -> None:
    operator = AveragePool(2) @ Blur(torch.tensor([[0.1, 0.3], [0.2, 0.4]]))
    assert rows_of(operator, torch.zeros(1, 1, 2, 2, dtype=F64)) is None


class Weighted:
    """y = w x; of operators that write to what they are given, or use their memory again."""

    def __init__(self, way: str, weights: Any = (2.0, 0.5, 1.0)) -> None:
        self.way, self.weights = way, torch.as_tensor(weights, dtype=F64)
        self.memory: dict[Any, Tensor] = {}

    def _times(self, name: str, x: Tensor) -> Tensor:
        if self.way == "in place":
            return x.mul_(self.weights)
        if self.way == "in its memory":
            memory = self.memory.setdefault((name, x.shape), torch.zeros_like(x))
            return memory.copy_(x * self.weights)
        return x * self.weights

    def A(self, x: Tensor) -> Tensor:
        return self._times("A", x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self._times("A_adjoint", y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["in place", "in its memory"])
@pytest.mark.parametrize("weights", [(2.0, 0.5, 1.0), (2.0, 2.0, 2.0), (3.0, 0.0, 3.0)])
def test_operators_that_write(kind: Any, way: str, weights: Any) -> None:
    score, x = some_gaussian(3), points(3)
    want = kind(score, Weighted("", weights), Y)(x, 0.6).total()
    got = kind(score, Weighted(way, weights), Y)(x, 0.6).total()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["value", "tensor", "in place", "another"])
def test_an_operator_that_has_changed(kind: Any, change: str) -> None:
    class Scaled(nn.Module):
        weights: Tensor

        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor
            self.register_buffer("weights", torch.ones(3, dtype=F64))

        def A(self, x: Tensor) -> Tensor:
            return self.factor * self.weights * x

        def A_adjoint(self, y: Tensor) -> Tensor:
            return self.A(y)

    score, x, operator = standard(3), points(3), Scaled(1.0)
    model = kind(score, operator, Y)
    model(x, 0.6)
    if change == "value":
        operator.factor = 3.0
    elif change == "tensor":
        operator.weights = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    elif change == "in place":
        operator.weights[1] = 0.0
    else:
        model.operator = operator = Scaled(2.0)
    assert torch.equal(model(x, 0.6).total(), kind(score, operator, Y)(x, 0.6).total())


@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_a_measurement_is_seen(kind: Any) -> None:
    """Where what is not measured can't be told from what is; there would be no guidance."""
    mask = torch.tensor([True, False, True, True])
    operator = Mask(mask) @ Blur(torch.tensor([0.25, 0.5, 0.3]))
    y = torch.tensor([[1.0, torch.nan, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=F64)
    found = kind(standard(4), operator)(points(4, 2), 0.6, measurement=y).total()
    assert not found[0].isfinite().any()
    assert found[1].isfinite().all()


def test_measurements_of_each_sample_are_not_the_constructors() -> None:
    """A sampler would take the same ones for each of its batches."""
    model = PiGDM(standard(3), Mask(torch.tensor([True, True, True])), points(3, 4))
    with pytest.raises(ValueError, match=r"one for all samples .*model_kwargs.*got 4 of them"):
        fastscore.reverse_sde(
            model, fastscore.sde.VE(), steps=2, shape=(8, 3), dtype=F64, batch_size=4
        )


class Mixing(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return -(x - x.mean(0, keepdim=True).tanh()) / (1 + sigma[:, None] ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_looked_at_again_among_others(kind: Any) -> None:
    """One sample alone does not tell whether samples depend on one another."""
    model = kind(Mixing(), Mask(torch.tensor([True, False, True])), Y)
    model(points(3, 1), 0.6)
    with pytest.raises(ValueError, match="changes with the others in its batch"):
        model(points(3, 4), 0.6)


def test_a_network_is_looked_at_again_under_autocast_and_when_it_is_another() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(3, 3)
            nn.init.eye_(self.map.weight)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return -self.map(x).float() / (1 + sigma[:, None] ** 2)

    model = PiGDM(Linear(), Mask(torch.tensor([True, False, True])), Y.float())
    x = points(3).float()
    model(x, 500.0)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        model(x, 500.0)
    model(x, 500.0)
    model.score = Mixing()
    with pytest.raises(ValueError, match="changes with the others in its batch"):
        model(x, 500.0)


def test_a_network_is_looked_at_again_where_differences_tell_nothing() -> None:
    """At noise so low that they are all rounding."""

    class Detached(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return (torch.tanh(x.detach()) - x) / (1 + sigma[:, None] ** 2)

    model = PiGDM(Detached(), Mask(torch.tensor([True, False, True])), Y.float())
    x = points(3).float()
    model(x, 1e-4)
    with pytest.raises(ValueError, match="differentiable in x, all of it"):
        model(x, 1.0)


@pytest.mark.parametrize("kind", [PiGDM, MMPS])
def test_no_noise_at_all_is_seen(kind: Any) -> None:
    """Guidance is infinite there, and not 0."""
    x, weights = points(3), (2.0, 0.5, 1.0)
    level = torch.tensor([0.1, 0.0, 1.0], dtype=F64)
    for operator in (Weighted("", weights), Weighted("", (2.0, 2.0, 0.0))):
        found = kind(standard(3), operator, Y)(x, level).total().isfinite()
        assert not found[1].any()
        assert found[::2].all()
    score, matrix = standard(3), torch.diag(torch.tensor(weights, dtype=F64))
    got = kind(score, Weighted("", weights), Y, noise=0.3)(x, 0.0).total()
    want = score.given(matrix, Y, 0.3)(x, torch.zeros(3, dtype=F64))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_adjoint_is_warned_of(kind: Any) -> None:
    class Wrong(Weighted):
        def A_adjoint(self, y: Tensor) -> Tensor:
            return 1.1 * super().A_adjoint(y)

    with pytest.warns(UserWarning, match="Wrong: A_adjoint is not the adjoint of A"):
        kind(standard(3), Wrong("", (2.0, 0.5, 1.0)), Y)(points(3), 0.6)


def test_a_basis_that_has_changed_is_tried_again() -> None:
    basis = Weighted("", (1.0, -1.0, 1.0))
    model = InBasis(standard(3), basis)
    model(points(3), 0.6)
    basis.weights *= 2.0
    with pytest.raises(ValueError, match="basis must be orthogonal"):
        model(points(3), 0.6)


class Held:
    """A score that is no module, of a tensor that it holds."""

    def __init__(self, w: Tensor) -> None:
        self.w = w

    def __call__(self, x: Tensor, sigma: Tensor, c: Tensor | float = 0.0) -> Tensor:
        return -(x - self.w - c) / (1 + sigma[:, None] ** 2) + 0.3 * torch.tanh(x * (self.w + c))


class HeldBelow(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = w

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return Held(self.w)(x, sigma)


W = torch.tensor([0.5, -0.3, 0.1], dtype=F64)
OPERATOR = Weighted("", (1.0, 1.0, 0.0))


def free(w: Tensor) -> ClassifierFreeGuidance:
    def score(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return Held(w)(x, sigma) * (1 + label[:, None])

    return ClassifierFreeGuidance(score, null={"label": 0})


LABEL = torch.tensor([0, 2, 1])
PLACES: dict[str, Callable[..., Any]] = {
    "closure": lambda kind, w: kind(lambda x, s: Held(w)(x, s), OPERATOR, Y)(points(3), 0.7),
    "object": lambda kind, w: kind(Held(w), OPERATOR, Y)(points(3), 0.7),
    "attribute": lambda kind, w: kind(HeldBelow(w), OPERATOR, Y)(points(3), 0.7),
    "by name": lambda kind, w: kind(Held(W), OPERATOR, Y)(points(3), 0.7, c=w),
    "below": lambda kind, w: kind(free(w), OPERATOR, Y)(points(3), 0.7, label=LABEL),
    "operator": lambda kind, w: kind(Held(W), Weighted("", w), Y)(points(3), 0.7),
    "one length": lambda kind, w: kind(Held(W), Weighted("", w[:1]), Y)(points(3), 0.7),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", list(PLACES))
def test_gradients_of_what_is_no_parameter_of_a_module(kind: Any, place: str) -> None:
    w = W.clone().requires_grad_()
    assert PLACES[place](kind, w).total().requires_grad
    score = lambda w: PLACES[place](kind, w).total()  # noqa: E731
    assert torch.autograd.gradcheck(score, (w,), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mask", [[True, False, True], [True, True, True]])
def test_dps_is_the_same_where_no_value_can_be_looked_at(mask: list[bool]) -> None:
    """In transforms, in compiled code, and with an operator that is trained."""
    x, level = points(3), torch.full((3,), 0.7, dtype=F64)
    weights = torch.tensor(mask).double()

    def new(trained: bool = False) -> DPS:
        held = weights.clone().requires_grad_() if trained else weights
        return DPS(Held(W), Weighted("", held), Y)

    want = new()(x, level).total()
    torch.testing.assert_close(new(trained=True)(x, level).total().detach(), want)
    inside = torch.func.vjp(lambda x: new()(x, level).total(), x)[0]
    torch.testing.assert_close(inside, want)
    model = new()
    compiled = torch.compile(lambda x: model(x, level).total(), backend="eager")
    torch.testing.assert_close(compiled(x).detach(), want)


def test_a_mask_of_a_part_of_conjugated_numbers() -> None:
    x = torch.randn(2, 3, dtype=torch.complex64).conj().imag
    mask = torch.tensor([True, False, True])
    assert x.is_neg()
    assert torch.equal(Mask(mask).A(x), torch.where(mask, x.clone(), 0.0))
