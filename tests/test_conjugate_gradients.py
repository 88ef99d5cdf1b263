"""Conjugate gradients of a batch: each sample by itself, and safe where nothing is to be found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_same_bytes, randn
from torch import Tensor

from fastscore.guidance._conjugate_gradients import Product, Solved, conjugate_gradients
from fastscore.guidance._denoised import inner, squared

F64 = torch.float64


def positive(batch: int, size: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    root = randn(batch, size, size, dtype=dtype, seed=seed)
    return root @ root.mH / size + 0.1 * torch.eye(size, dtype=dtype)


def by(matrices: Tensor, floor: float = 0.0) -> Callable[[Tensor, Tensor], Product]:
    """K p, and p itself carried, so that the sum is the solution."""

    def multiply(p: Tensor, p2: Tensor) -> Product:
        return Product((matrices * p.unsqueeze(1)).sum(-1), p, floor)

    return multiply


def solve(matrices: Tensor, b: Tensor, iterations: int, floor: float = 0.0) -> Solved:
    return conjugate_gradients(by(matrices, floor), b, iterations=iterations, want_residual=True)


def test_as_many_iterations_as_dimensions_solve_it() -> None:
    matrices, b = positive(7, 5), randn(7, 5, dtype=F64, seed=1)
    found = solve(matrices, b, 5)
    torch.testing.assert_close(found.carried, torch.linalg.solve(matrices, b))
    assert float(found.residual.max()) < 1e-10


def test_fewer_leave_the_residual_that_is_told() -> None:
    matrices, b = positive(7, 5), randn(7, 5, dtype=F64, seed=1)
    last = torch.full((7,), torch.inf, dtype=F64)
    for iterations in (1, 2, 3, 4):
        found = solve(matrices, b, iterations)
        off = b - (matrices * found.carried.unsqueeze(1)).sum(-1)
        torch.testing.assert_close(found.residual, off.norm(dim=1) / b.norm(dim=1))
        error = torch.einsum("bi,bi->b", off, torch.linalg.solve(matrices, off))
        assert bool((error < last).all())  # what conjugate gradients make smallest
        last = error


def test_more_iterations_than_it_takes_change_nothing() -> None:
    """The last directions are rounding: 0/0 is 0."""
    for dtype, tolerance in ((F64, 1e-10), (torch.float32, 1e-4)):
        matrices, b = positive(7, 5, dtype), randn(7, 5, dtype=dtype, seed=1)
        found = solve(matrices, b, 60)
        off = (matrices * found.carried.unsqueeze(1)).sum(-1) - b
        assert float(off.norm(dim=1).max()) < tolerance


def test_zero_is_solved_by_zero() -> None:
    matrices, b = positive(3, 4), randn(3, 4, dtype=F64)
    b[1] = 0
    found = solve(matrices, b, 4)
    assert not bool(found.carried[1].any())
    assert float(found.residual[1]) == 0
    torch.testing.assert_close(found.carried, torch.linalg.solve(matrices, b))


def test_a_null_space_is_left_alone() -> None:
    """Of a matrix with one, and b in its range: the solution of least norm."""
    root = randn(4, 5, 2, dtype=F64)
    matrices = root @ root.mT
    b = (root @ randn(4, 2, 1, dtype=F64, seed=1)).squeeze(-1)
    found = solve(matrices, b, 9)
    least = (torch.linalg.pinv(matrices) @ b.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found.carried, least, rtol=1e-6, atol=1e-8)
    outside = torch.linalg.svd(root)[0][:, :, 4]
    assert not bool(solve(matrices, outside, 3, floor=1e-12).carried.any())


def test_a_direction_without_curvature_stops_its_sample_alone() -> None:
    matrices, b = positive(3, 4), randn(3, 4, dtype=F64)
    matrices[1] = -matrices[1]
    matrices[2] = torch.diag(torch.tensor([1.0, 2.0, -3.0, 4.0]))
    b[2] = torch.tensor([1.0, 1.0, 0.1, 1.0])  # whose first direction has curvature
    found = solve(matrices, b, 4)
    torch.testing.assert_close(found.carried[0], torch.linalg.solve(matrices[0], b[0]))
    assert not bool(found.carried[1].any())
    before = [solve(matrices[2:], b[2:], k).carried[0] for k in (1, 2, 3)]
    assert any(torch.equal(found.carried[2], kept) for kept in before)
    assert bool(found.carried[2].any())


def test_a_step_far_beyond_what_is_off_is_not_taken() -> None:
    """A network's Jacobian is not symmetric: a curvature of next to nothing is chance, not a K."""
    turn = torch.tensor([[1e-6, 1.0], [-1.0, 1e-6]], dtype=F64)  # b'K b = 1e-6, K b of length 1
    matrices = torch.stack([turn, torch.diag(torch.tensor([1.0, 0.1], dtype=F64))])
    found = solve(matrices, torch.ones(2, 2, dtype=F64), 2)
    torch.testing.assert_close(found.carried[0], torch.zeros(2, dtype=F64))
    torch.testing.assert_close(found.carried[1], torch.tensor([1.0, 10.0], dtype=F64))
    torch.testing.assert_close(found.residual, torch.tensor([1.0, 0.0], dtype=F64))


def test_nan_stays_where_it_is() -> None:
    matrices, b = positive(3, 4), randn(3, 4, dtype=F64)
    want = solve(matrices, b, 4).carried
    b[1, 2] = torch.nan
    found = solve(matrices, b, 4).carried
    assert_same_bytes(found[::2], want[::2])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_sample_is_solved_as_it_is_alone(dtype: torch.dtype) -> None:
    matrices, b = positive(9, 7, dtype), randn(9, 7, dtype=dtype, seed=1)
    whole = solve(matrices, b, 4)
    for i in (0, 4, 8):
        alone = solve(matrices[i : i + 1], b[i : i + 1], 4)
        assert_same_bytes(alone.carried, whole.carried[i : i + 1])
        assert_same_bytes(alone.residual, whole.residual[i : i + 1])


def test_complex_numbers() -> None:
    dtype = torch.complex128
    matrices = positive(5, 4, dtype)
    b = torch.complex(randn(5, 4, dtype=F64), randn(5, 4, dtype=F64, seed=1))
    found = solve(matrices, b, 8)  # of 8 real numbers
    torch.testing.assert_close(found.carried, torch.linalg.solve(matrices, b))


def test_the_exact_inverse_as_preconditioner_takes_one_iteration() -> None:
    matrices, b = positive(5, 4), randn(5, 4, dtype=F64, seed=1)
    found = conjugate_gradients(
        by(matrices), b, iterations=1, precondition=lambda r: torch.linalg.solve(matrices, r)
    )
    torch.testing.assert_close(found.carried, torch.linalg.solve(matrices, b))


def test_the_derivative_is_that_of_the_solution() -> None:
    matrices, b = positive(2, 3), randn(2, 3, dtype=F64, seed=1).requires_grad_()

    def solution(b: Tensor) -> Tensor:
        return conjugate_gradients(by(matrices), b, iterations=3).carried

    (got,) = torch.autograd.grad(solution(b).sum(), b)
    torch.testing.assert_close(got, torch.linalg.solve(matrices, torch.ones(2, 3, dtype=F64)))


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_inner_products_by_squares(dtype: torch.dtype, scale: float) -> None:
    """Up to rounding of |x||y|, at every angle; 0 of a 0, NaN where there is one."""
    angle = torch.tensor([0.0, 1e-3, 0.5, 1.57, 3.14])[:, None]
    x, other = randn(5, 700, dtype=dtype), randn(5, 700, dtype=dtype, seed=1)
    y = ((angle.cos() * x + angle.sin() * other) * scale).to(dtype)
    true = (x.to(torch.complex128) * y.to(torch.complex128).conj()).real.sum(1)
    size = x.to(torch.complex128).norm(dim=1) * y.to(torch.complex128).norm(dim=1)
    error = (inner(x, y, squared(x), squared(y)) - true).abs() / size
    assert float(error.max()) < 2 * torch.finfo(dtype).eps
    x[0], y[1], x[2, 3] = 0, 0, torch.nan
    found = inner(x, y, squared(x), squared(y))
    assert found[:2].tolist() == [0, 0]
    assert found.isnan().tolist() == [False, False, True, False, False]
    alone = inner(x[3:4], y[3:4], squared(x[3:4]), squared(y[3:4]))
    assert_same_bytes(alone, found[3:4])


def test_memory_that_is_handed_on_is_not_written_to() -> None:
    """The right-hand side, and directions where they are what is carried."""
    matrices, b = positive(7, 5), randn(7, 5, dtype=F64, seed=1)
    before, seen = b.clone(), []

    def multiply(p: Tensor, p2: Tensor) -> Product:
        seen.append((p, p.clone()))
        return by(matrices)(p, p2)

    plain = conjugate_gradients(multiply, b, iterations=5)
    same = conjugate_gradients(multiply, b, iterations=5, precondition=lambda r: r)
    assert_same_bytes(b, before)
    for p, then in (*seen[:2], *seen[5:7]):
        assert_same_bytes(p, then)
    torch.testing.assert_close(same.carried, plain.carried)
    torch.testing.assert_close(plain.carried, torch.linalg.solve(matrices, b))
