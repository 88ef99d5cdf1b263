"""Every operator against its matrix: adjoint, pseudo-inverse, solve, in all the ways of calling."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers import randn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore.operators import (
    AveragePool,
    Blur,
    ChannelBasis,
    Grey,
    Identity,
    LinearOperator,
    Mask,
    MaskedFourier,
    Orthogonal,
    Radon,
    Subsample,
    check_adjoint,
)
from fastscore.operators import radon as radon_module

BATCH = 3


def bools(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed) > 0.2


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(n, n, dtype=torch.float64, seed=seed))[0]


def symmetric(mask: Tensor) -> Tensor:
    """With every frequency its opposite."""
    return mask | mask.flip(-1, -2).roll((1, 1), (-1, -2))


class Case(NamedTuple):
    make: Callable[[], Any]
    shape: tuple[int, ...]  # of a sample
    is_complex: bool = False


def fourier(*mask: int, seed: int = 0, **options: Any) -> Callable[[], MaskedFourier]:
    return lambda: MaskedFourier(bools(*mask, seed=seed), **options)


def smooth() -> Tensor:
    return torch.tensor([[1.0, 2.0, 0.5], [0.0, 3.0, -0.7]])


CASES: dict[str, Case] = {
    "identity": Case(Identity, (2, 3)),
    "mask": Case(lambda: Mask(bools(4, 5)), (2, 4, 5)),
    "mask of channels": Case(lambda: Mask(bools(2, 1, 1, seed=1)), (2, 4, 3)),
    "mask of a point": Case(lambda: Mask(torch.tensor([True, False])), (2,)),
    "mask, complex": Case(lambda: Mask(bools(4, 5)), (2, 4, 5), True),
    "subsample": Case(lambda: Subsample(2), (2, 4, 6)),
    "subsample in one dimension": Case(lambda: Subsample((3,)), (6,)),
    "subsample of an odd size": Case(lambda: Subsample(2, size=(5, 3)), (1, 5, 3)),
    "slices": Case(lambda: Subsample((slice(1, 4), slice(-4, None, 3)), size=(5, 6)), (2, 5, 6)),
    "pool": Case(lambda: AveragePool(2), (2, 4, 6)),
    "pool of oblongs": Case(lambda: AveragePool((1, 3)), (4, 6)),
    "blur": Case(lambda: Blur(smooth(), rcond=1e-10), (2, 5, 4)),
    "blur, larger than the image": Case(lambda: Blur(randn(7, 6), rcond=1e-10), (1, 3, 4)),
    "gaussian blur": Case(lambda: Blur(0.7, rcond=1e-10), (1, 5, 6)),
    "blur that loses": Case(lambda: Blur(torch.ones(2, 2) / 4, rcond=1e-10), (1, 4, 6)),
    "blur of lines": Case(lambda: Blur(torch.tensor([1.0, 0.3])), (6,)),
    "grey": Case(Grey, (3, 4, 5)),
    "luma": Case(lambda: Grey("luma", orthonormal=True), (3, 2, 2)),
    "grey of four": Case(lambda: Grey([1.0, -2.0, 0.0, 0.5]), (4, 3)),
    "channels": Case(lambda: ChannelBasis(orthogonal(3)), (3, 4, 2)),
    "channels, grey first": Case(lambda: ChannelBasis.from_grey("luma"), (3, 4, 2)),
    "orthogonal": Case(lambda: Orthogonal(orthogonal(12)), (3, 2, 2)),
    "orthogonal functions": Case(
        lambda: Orthogonal(lambda x: x.flip(-1), lambda y: y.flip(-1), shape=(3, 4)), (3, 4)
    ),
    "fourier, real": Case(fourier(4, 6), (2, 4, 6)),
    "fourier, real, odd": Case(fourier(5, 3, seed=2), (5, 3)),
    "fourier, real, lines": Case(fourier(6, seed=3), (1, 5, 6)),
    "fourier, real, as channels": Case(fourier(4, 6, output="channels"), (2, 4, 6)),
    "fourier, real, centred": Case(fourier(4, 5, centred=True), (1, 4, 5)),
    "fourier, real, with opposites": Case(lambda: MaskedFourier(symmetric(bools(4, 6))), (1, 4, 6)),
    "fourier, real, all": Case(lambda: MaskedFourier(torch.tensor(True)), (4, 6)),
    "fourier, complex": Case(fourier(4, 5, data="complex"), (2, 4, 5), True),
    "fourier, complex to channels": Case(
        fourier(4, 5, data="complex", output="channels", centred=True), (2, 4, 5), True
    ),
    "fourier, channels": Case(fourier(4, 5, data="channels"), (2, 4, 5)),
    "fourier, channels to complex": Case(
        fourier(4, 5, data="channels", output="complex"), (4, 4, 5)
    ),
    "radon": Case(lambda: Radon(3, 6, dtype=torch.float64), (2, 6, 6)),
    "radon of many angles": Case(lambda: Radon(9, 5, dtype=torch.float64), (5, 5)),
    "radon of an oblong": Case(
        lambda: Radon([10.0, 100.0], (3, 5), circle=False, dtype=torch.float64), (1, 3, 5)
    ),
    "radon about a pixel": Case(
        lambda: Radon([0, 33, 90], 6, centre="pixel", dtype=torch.float64), (1, 6, 6)
    ),
    "colour of which grey is known": Case(
        lambda: Mask(torch.tensor([True, False, False])[:, None, None]) @ ChannelBasis.from_grey(),
        (3, 2, 2),
    ),
    "basis after a mask": Case(
        lambda: ChannelBasis(orthogonal(2)) @ Mask(bools(2, 4, 3)), (2, 4, 3)
    ),
    "mask after a pool": Case(lambda: Mask(bools(2, 3)) @ AveragePool(2), (1, 4, 6)),
    "blur after grey": Case(lambda: Blur(smooth(), rcond=1e-10) @ Grey("luma"), (3, 4, 4)),
    "pool after grey": Case(lambda: AveragePool(2) @ Grey(), (3, 4, 4)),
    "basis after a pool after a basis": Case(
        lambda: Orthogonal(orthogonal(6)) @ AveragePool(2) @ Orthogonal(orthogonal(24)), (4, 6)
    ),
}
PARTIAL = {  # neither part makes the pseudo-inverse exact
    "subsample after blur": Case(lambda: Subsample(2) @ Blur(smooth()), (1, 4, 6)),
    "radon without a decomposition": Case(
        lambda: Radon(3, 6, dtype=torch.float64, svd=False), (1, 6, 6)
    ),
}
every = pytest.mark.parametrize("name", [*CASES, *PARTIAL])
exact = pytest.mark.parametrize("name", CASES)


def made(name: str) -> tuple[Any, Case]:
    case = {**CASES, **PARTIAL}[name]
    return case.make(), case


def sample(case: Case, dtype: torch.dtype = torch.float64, batch: int = BATCH) -> Tensor:
    x = randn(batch, *case.shape, dtype=dtype)
    return (
        torch.complex(x, randn(batch, *case.shape, dtype=dtype, seed=9)) if case.is_complex else x
    )


def as_real(x: Tensor) -> Tensor:
    """(batch, numbers)."""
    return (torch.view_as_real(x) if x.is_complex() else x).flatten(1)


def from_real(flat: Tensor, like: Tensor) -> Tensor:
    if not like.is_complex():
        return flat.reshape(-1, *like.shape[1:])
    return torch.view_as_complex(flat.reshape(-1, *like.shape[1:], 2).contiguous())


def matrix_of(function: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """(numbers of the result, numbers of its argument), in float64."""
    count = as_real(like).shape[1]
    return as_real(function(from_real(torch.eye(count, dtype=torch.float64), like))).T


# ---- against the matrix -------------------------------------------------------------------------


@every
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_inner_products(name: str, dtype: torch.dtype, tol: float) -> None:
    operator, case = made(name)
    error = check_adjoint(operator, sample(case, dtype), tol=tol)
    assert error <= tol / 10
    check_adjoint(operator, sample(case, dtype, 1), seed=1, tol=tol)


@exact
def test_the_pseudo_inverse_is_that_of_moore_and_penrose(name: str) -> None:
    operator, case = made(name)
    x = sample(case)
    y = operator.A(x)
    a, plus = matrix_of(operator.A, x), matrix_of(operator.A_dagger, y)
    assert (plus - torch.linalg.pinv(a, rcond=1e-9)).abs().max() < 1e-8 * plus.abs().max()
    torch.testing.assert_close(a @ plus @ a, a, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(plus @ a @ plus, plus, rtol=1e-9, atol=1e-9 * float(plus.norm()))
    for symmetric_one in (a @ plus, plus @ a):
        torch.testing.assert_close(symmetric_one, symmetric_one.T, rtol=1e-9, atol=1e-9)


@exact
@pytest.mark.parametrize(("r2", "noise2"), [(0.7, 0.3), (2.0, 1e-4), (0.0, 0.5), (0.4, 0.0)])
@pytest.mark.parametrize("each", [False, True])
def test_solve_is_the_inverse(name: str, r2: float, noise2: float, each: bool) -> None:
    operator, case = made(name)
    y = operator.A(sample(case))
    flat = randn(BATCH, as_real(y).shape[1], dtype=torch.float64, seed=4)  # also out of the range
    a = matrix_of(operator.A, sample(case))
    r2s, noises = [r2, 3.0 * r2, r2], [noise2, noise2, 0.5 if each else noise2]
    args: tuple[Any, Any] = (r2, noise2)
    if each:
        args = torch.tensor(r2s, dtype=torch.float64), torch.tensor(noises, dtype=torch.float64)
    got = as_real(operator.solve(from_real(flat, y), *args))
    for i in range(BATCH):
        r, n = (r2s[i], noises[i]) if each else (r2, noise2)
        whole = r * a @ a.T + n * torch.eye(len(a), dtype=torch.float64)
        want = torch.linalg.pinv(whole, rcond=1e-15 if n else 1e-12, hermitian=True) @ flat[i]
        torch.testing.assert_close(got[i], want, rtol=1e-7, atol=1e-7 * float(want.abs().max()))


@every
def test_what_it_says_of_its_rows_and_columns_holds(name: str) -> None:
    operator, case = made(name)
    a = matrix_of(operator.A, sample(case))
    for said, product in ((operator.gram, a @ a.T), (operator.cogram, a.T @ a)):
        scale = float(product[0, 0])
        diagonal = torch.eye(len(product), dtype=torch.float64) * scale
        assert (said is not None) == torch.allclose(product, diagonal, atol=1e-6) or scale == 0
        if said is not None:
            assert scale == pytest.approx(said, rel=1e-12)


@pytest.mark.parametrize("name", PARTIAL)
def test_what_is_not_known_is_not_there(name: str) -> None:
    operator, _ = made(name)
    assert not hasattr(operator, "solve")
    assert not hasattr(operator, "A_dagger")
    with pytest.raises(AttributeError, match=r"has no solve: no closed form of \(r2 A A\^T"):
        operator.solve  # noqa: B018
    with pytest.raises(AttributeError, match="has no A_dagger: no pseudo-inverse is known"):
        operator.A_dagger  # noqa: B018


# ---- in all the ways of calling -----------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_float32_rounded(name: str, dtype: torch.dtype) -> None:
    operator, case = made(name)
    if case.is_complex:
        pytest.skip("no complex numbers of half precision")
    x = sample(case, dtype)
    for function, value in ((operator.A, x), (operator.A_adjoint, operator.A(x))):
        got = function(value)
        wide = function(value if value.is_complex() else value.float())
        if got.is_complex():
            assert got.dtype == torch.complex64
        else:
            assert got.dtype == (torch.float32 if value.is_complex() else dtype)
        rough = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(got.to(wide.dtype), wide, rtol=rough, atol=rough)
    if hasattr(operator, "solve"):
        y = operator.A(x)
        wide = operator.solve(y if y.is_complex() else y.float(), 0.5, 0.5)
        torch.testing.assert_close(
            operator.solve(y, 0.5, 0.5).to(wide.dtype), wide, rtol=rough, atol=rough
        )


@every
def test_it_is_differentiable_and_transforms(name: str) -> None:
    operator, case = made(name)
    x, u = sample(case), sample(case).flip(0)
    y = operator.A(x)
    z = x.clone().requires_grad_()
    out = operator.A(z)
    (grad,) = torch.autograd.grad(out, z, y)
    torch.testing.assert_close(grad, operator.A_adjoint(y), rtol=1e-10, atol=1e-10)
    assert out.requires_grad
    value, tangent = torch.func.jvp(operator.A, (x,), (u,))
    torch.testing.assert_close(value, y)
    torch.testing.assert_close(tangent, operator.A(u))
    _, back = torch.func.jvp(operator.A_adjoint, (y,), (tangent,))
    torch.testing.assert_close(back, operator.A_adjoint(tangent))
    mapped = torch.func.vmap(lambda one: operator.A(one[None])[0])(x)
    torch.testing.assert_close(mapped, y)
    back = torch.func.vmap(lambda one: operator.A_adjoint(one[None])[0])(y)
    torch.testing.assert_close(back, operator.A_adjoint(y))
    if hasattr(operator, "solve"):
        solved = torch.func.vmap(lambda one: operator.solve(one[None], 0.5, 0.1)[0])(y)
        torch.testing.assert_close(solved, operator.solve(y, 0.5, 0.1))
    with torch.inference_mode():
        inside = operator.A(sample(case))
        torch.testing.assert_close(inside.clone(), y)


class NoReads(TorchDispatchMode):
    """Raises where a value would be waited for, or copied from the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert "_local_scalar_dense" not in name, name
        assert "nonzero" not in name, name
        assert "lift_fresh" not in name, f"{name}: a tensor of Python's numbers"
        return func(*args, **(kwargs or {}))


@every
@torch.no_grad()
def test_nothing_is_read_by_the_host(name: str) -> None:
    operator, case = made(name)
    x = sample(case, torch.float32)
    level = torch.rand(BATCH)
    with NoReads():
        y = operator.A(x)
        operator.A_adjoint(y)
        if hasattr(operator, "solve"):
            operator.A_dagger(y)
            operator.solve(y, level, level)
            operator.solve(y, 0.5, 0.1)


@every
@torch.no_grad()
def test_samples_are_measured_each_by_itself_however_they_lie(name: str) -> None:
    operator, case = made(name)
    x = sample(case)
    y = operator.A(x)
    turned = x.movedim(0, -1).contiguous().movedim(-1, 0)
    torch.testing.assert_close(operator.A(turned), y)
    wrong = x.clone()
    wrong[0] = math.nan
    torch.testing.assert_close(operator.A(wrong)[1:], y[1:])
    torch.testing.assert_close(operator.A(x[1:2]), y[1:2])
    assert operator.A(x[:0]).shape == (0, *y.shape[1:])
    assert operator.A_adjoint(y[:0]).shape == (0, *x.shape[1:])
    torch.testing.assert_close(x, sample(case), rtol=0, atol=0)


@every
def test_it_can_be_copied_and_moved_and_is_not_rounded(name: str) -> None:
    operator, case = made(name)
    x = sample(case)
    y = operator.A(x)
    copies = [copy.deepcopy(operator)]
    if "functions" not in name:
        copies.append(pickle.loads(pickle.dumps(operator)))
    copies[0].to(torch.float16).to("cpu")
    for other in copies:
        torch.testing.assert_close(other.A(x), y, rtol=0, atol=0)
        other.load_state_dict(operator.state_dict())
    torch.testing.assert_close(operator(x), y, rtol=0, atol=0)
    assert type(operator).__name__ in repr(operator)


@pytest.mark.parametrize(
    "name", ["mask", "slices", "pool", "blur", "channels", "fourier, real", "radon", "grey"]
)
def test_it_is_compiled_whole(name: str) -> None:
    operator, case = made(name)
    x, level = sample(case), torch.rand(BATCH)

    def job(x: Tensor, level: Tensor) -> Tensor:
        y = operator.A(x)
        return operator.A_adjoint(operator.solve(y, level, 0.1))

    compiled = torch.compile(job, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, level), job(x, level))
    torch._dynamo.reset()


# ---- a matrix that is kept sparse ---------------------------------------------------------------


def test_a_large_radon_matrix_is_sparse_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"circle": False, "svd": False, "dtype": torch.float64}
    dense = Radon(5, 7, **options)
    monkeypatch.setattr(radon_module, "DENSE", 10)
    sparse = Radon(5, 7, **options)
    assert not hasattr(sparse, "matrix")
    x = randn(3, 2, 7, 7, dtype=torch.float64)
    y = dense.A(x)
    torch.testing.assert_close(sparse.A(x), y, rtol=0, atol=1e-13)
    torch.testing.assert_close(sparse.A_adjoint(y), dense.A_adjoint(y), rtol=0, atol=1e-12)
    assert check_adjoint(sparse, x, tol=1e-12) < 1e-14
    assert check_adjoint(sparse, x.float()) < 1e-6
    z = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(sparse.A, z)
    (grad,) = torch.autograd.grad(sparse.A(z).square().sum() / 2, z, create_graph=True)
    torch.testing.assert_close(grad, dense.A_adjoint(y))
    (twice,) = torch.autograd.grad(grad, z, x)  # A^T A is symmetric
    torch.testing.assert_close(twice, dense.A_adjoint(y))
    value, tangent = torch.func.jvp(sparse.A, (x,), (x.flip(0),))
    torch.testing.assert_close((value, tangent), (y, y.flip(0)))
    mapped = torch.func.vmap(lambda one: sparse.A(one[None])[0], in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(mapped, y)
    half = copy.deepcopy(sparse).to(torch.float16)
    torch.testing.assert_close(half.A(x), y, rtol=0, atol=1e-13)
    assert half.A(x.half()).dtype == torch.float16
    assert sparse.A(x[:0]).shape == (0, 2, 11, 5)
    compiled = torch.compile(lambda x: sparse.A_adjoint(sparse.A(x)), backend="eager")
    torch.testing.assert_close(compiled(x), dense.A_adjoint(y))
    torch._dynamo.reset()
    assert not hasattr(sparse, "solve")
    decomposed = Radon(5, 7, circle=False, dtype=torch.float64)
    plus = Radon(5, 7, circle=False, svd=True, dtype=torch.float64).A_dagger(y)
    torch.testing.assert_close(decomposed.A_dagger(y), plus)
    torch.testing.assert_close(decomposed.A(plus), y)
    monkeypatch.setattr(radon_module, "DECOMPOSED", 10)
    assert not hasattr(Radon(5, 7), "solve")


def test_a_class_of_ones_own_needs_two_methods() -> None:
    class First(LinearOperator):
        def A(self, x: Tensor) -> Tensor:
            return x[:, :1]

        def A_adjoint(self, y: Tensor) -> Tensor:
            return torch.cat([y, torch.zeros_like(y)], 1)

    assert check_adjoint(First(), (4, 2)) < 1e-6
    assert not hasattr(First(), "solve")
    assert First().gram is None
    both = First() @ Identity()
    torch.testing.assert_close(both.A(torch.ones(2, 2)), torch.ones(2, 1))
    with pytest.raises(NotImplementedError, match="LinearOperator has no A"):
        LinearOperator().A(torch.ones(2, 2))
