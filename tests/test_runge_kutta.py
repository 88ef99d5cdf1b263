"""The fused Runge-Kutta stages, their error and the advance against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import (
    LAYOUTS,
    SHORT_SAMPLES,
    assert_accurate,
    assert_same_bytes,
    data_bytes,
    ragged_shapes,
    randn,
    with_layout,
)
from torch import Tensor

from fastscore import ops, reference

F32, F64 = torch.float32, torch.float64
# State and slopes: as a solver keeps the one, and a network gives the others.
PAIRS = ((F32, F32), (F64, F64), (F32, torch.bfloat16), (F32, torch.float16))
TOLERANCES = torch.tensor([1e-2, 1e-1], dtype=F64)
pairs = pytest.mark.parametrize(("dtype", "narrow"), PAIRS)


def on(device: torch.device, *values: Tensor) -> list[Tensor]:
    return [value.to(device) for value in values]


def rows(batch: int | None, columns: int, seed: int = 7) -> Tensor:
    """Coefficients, for all samples or of each; some are 0."""
    if batch is None:
        table = randn(columns, dtype=F64, seed=seed)
        table[columns // 2] = 0
        return table
    table = randn(batch, columns, dtype=F64, seed=seed)
    table[::2, 0] = 0
    table[1::3, columns - 1] = -0.0
    table[2::3] *= 0
    return table


def slopes_of(shape: Sequence[int], count: int, dtype: torch.dtype) -> list[Tensor]:
    return [randn(*shape, dtype=dtype, seed=10 + j) for j in range(count)]


def doubled(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


# ---- against the reference -------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
@pairs
def test_a_stage_matches_the_reference(
    dtype: torch.dtype, narrow: torch.dtype, own: bool, device: torch.device
) -> None:
    for n, shape in enumerate(ragged_shapes()):
        count = 1 + n % 7
        x, ks = randn(*shape, dtype=dtype, seed=1), slopes_of(shape, count, narrow)
        c = rows(shape[0] if own else None, count + 1)
        fused = ops.rk_stage(x.to(device), on(device, *ks), c.to(device))
        eager = reference.rk_stage(x, ks, c)
        exact = reference.rk_stage(x.double(), doubled(ks), c)
        # In float64 the reference is what it is compared with, to the rounding of each term.
        assert_accurate(fused, eager, exact, halves=count + 1 if dtype == F64 else 0)


@pytest.mark.parametrize("own", [False, True])
@pairs
def test_an_error_matches_the_reference(
    dtype: torch.dtype, narrow: torch.dtype, own: bool, device: torch.device
) -> None:
    for n, shape in enumerate(ragged_shapes()):
        count = 1 + n % 7
        x, new = randn(*shape, dtype=dtype, seed=1), randn(*shape, dtype=dtype, seed=2)
        ks = slopes_of(shape, count, narrow)
        batch = shape[0] if own else None
        e, tolerances = rows(batch, count + 1), TOLERANCES
        if own:
            tolerances = rows(batch, 2, seed=8).abs() + 0.1
        args = (x, new, ks, e, tolerances)
        fused = ops.rk_error(*on(device, x, new), on(device, *ks), *on(device, e, tolerances))
        assert fused.dtype == F64
        assert fused.shape == shape[:1]
        exact = reference.rk_error(x.double(), new.double(), doubled(ks), e, tolerances)
        # Terms may cancel where a tolerance is small: the largest norm is the measure.
        close = {"rtol": 0, "atol": 20 * torch.finfo(dtype).eps * max([1.0, *exact.tolist()])}
        torch.testing.assert_close(fused.cpu(), exact, **close)
        torch.testing.assert_close(reference.rk_error(*args), exact, **close)


@pytest.mark.parametrize("own", [False, True])
@pairs
def test_an_advance_is_the_references_to_the_byte(
    dtype: torch.dtype, narrow: torch.dtype, own: bool, device: torch.device
) -> None:
    for shape in ragged_shapes():
        accepted = randn(shape[0], seed=3) > 0
        c = rows(shape[0] if own else None, 2)
        sides = []
        for op, where in ((ops.rk_advance_, device), (reference.rk_advance_, torch.device("cpu"))):
            x, new, out = (randn(*shape, dtype=dtype, seed=s).to(where) for s in (1, 2, 3))
            first, last = on(where, *slopes_of(shape, 2, narrow))
            flags = accepted.to(where)
            assert op(x, first, new, last, flags) is x
            half_way = [x.clone(), first.clone()]
            op(x, first, new, last, ~flags, out=out, coefficients=c.to(where))
            assert_same_bytes(x, new)
            assert_same_bytes(first, last)
            sides.append([*half_way, out])
        for fused, eager in zip(sides[0][:2], sides[1][:2], strict=True):
            assert_same_bytes(fused.cpu(), eager)
        stage = ops.rk_stage(x.to(device), [first.to(device)], c.to(device))
        assert_same_bytes(sides[0][2], stage)


def test_a_step_of_a_sample_that_is_not_accepted_changes_nothing(device: torch.device) -> None:
    x, new = randn(3, 70).to(device), torch.full((3, 70), torch.nan, device=device)
    before = data_bytes(x)
    first = x.clone()
    ops.rk_advance_(x, first, new, new, torch.zeros(3, dtype=torch.bool, device=device))
    assert data_bytes(x) == data_bytes(first) == before


# ---- which terms count -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (5, 40), (3, 3000)])
def test_a_term_without_a_coefficient_plays_no_part(
    shape: tuple[int, ...], device: torch.device
) -> None:
    x, k = on(device, randn(*shape), randn(*shape, seed=1))
    lost = torch.full_like(x, torch.nan)
    c = torch.tensor([0.0, 0.5, -0.0], dtype=F64, device=device)
    want = 0.5 * k
    for own in (c, c.expand(shape[0], 3), c.expand(shape[0], 3).clone()):
        assert_same_bytes(ops.rk_stage(lost, [k, lost], own), want)
        assert not ops.rk_error(x, x, [k, lost], own, TOLERANCES.to(device)).isnan().any()
    each = c.repeat(shape[0], 1)
    each[1, 2] = 1
    for result in (
        ops.rk_stage(lost, [k, lost], each).flatten(1).isnan().any(1),
        ops.rk_error(x, x, [k, lost], each, TOLERANCES.to(device)).isnan(),
    ):
        assert result.tolist() == [b == 1 for b in range(shape[0])]


def test_nan_shows_in_the_error_wherever_it_is(device: torch.device) -> None:
    e, tolerances = on(device, torch.tensor([0.0, 1.0], dtype=F64), TOLERANCES)
    for place in range(3):
        tensors = [randn(4, 2000, seed=s).to(device) for s in range(3)]
        tensors[place][2, 1999] = torch.nan
        x, new, k = tensors
        assert ops.rk_error(x, new, [k], e, tolerances).isnan().tolist() == [
            False, False, True, False,
        ]  # fmt: skip


def test_an_embedded_pair_has_the_order_that_it_promises() -> None:
    """Bogacki and Shampine 1989 on dx/dt = x: halving the step divides the error by 2^3."""
    h = torch.tensor([0.2, 0.1], dtype=F64)
    x = torch.ones(2, 1, dtype=F64)

    def steps(*c: float) -> Tensor:
        return torch.cat([torch.ones(2, 1, dtype=F64), torch.outer(h, torch.tensor(c).double())], 1)

    ks = [x]
    for c in ((0.5,), (0.0, 0.75)):
        ks.append(ops.rk_stage(x, ks, steps(*c)))
    new = ops.rk_stage(x, ks, steps(2 / 9, 1 / 3, 4 / 9))
    ks.append(new)
    e = steps(-5 / 72, 1 / 12, 1 / 9, -1 / 8)
    e[:, 0] = 0
    error = ops.rk_error(x, new, ks, e, torch.tensor([1.0, 0.0], dtype=F64))
    assert 7 < float(error[0] / error[1]) < 9
    torch.testing.assert_close(new[:, 0], h.exp(), rtol=1e-4, atol=0)


# ---- each sample on its own ------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(9,), (9, 3), (9, 5), (9, 43), (9, 1023), (9, 1025), (9, 2500), *SHORT_SAMPLES[:3]]
)
@pairs
def test_a_sample_has_the_bytes_that_it_has_alone(
    dtype: torch.dtype, narrow: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    ks = on(device, *slopes_of(shape, 3, narrow))
    x, new = (randn(*shape, dtype=dtype, seed=s).to(device) for s in (1, 2))
    for c in on(device, rows(shape[0], 4), rows(None, 4)):
        tolerances = TOLERANCES.to(device)
        whole = (ops.rk_stage(x, ks, c), ops.rk_error(x, new, ks, c, tolerances))
        for part in (slice(0, 1), slice(3, 4), slice(1, 8), slice(8, None)):
            own = c[part] if c.dim() == 2 else c
            some = [k[part] for k in ks]
            stage = ops.rk_stage(x[part], some, own)
            error = ops.rk_error(x[part], new[part], some, own, tolerances)
            assert_same_bytes(stage, whole[0][part])
            assert_same_bytes(error, whole[1][part])


def test_rows_for_each_and_one_row_for_all_agree(device: torch.device) -> None:
    for shape in ((7, 3), (7, 16), (7, 17), (3, 3072), (2, 4, 5)):
        x, *ks = on(device, *slopes_of(shape, 5, F32))
        c, tolerances = on(device, rows(None, 5), TOLERANCES)
        each = c.repeat(shape[0], 1)
        assert_same_bytes(ops.rk_stage(x, ks, each), ops.rk_stage(x, ks, c))
        one = ops.rk_error(x, ks[0], ks, c, tolerances)
        assert_same_bytes(ops.rk_error(x, ks[0], ks, each, tolerances.expand(shape[0], 2)), one)


def test_threads_change_nothing() -> None:
    x, *ks = slopes_of((7, 3, 5021), 5, F32)
    c, accepted = rows(7, 5), torch.tensor([True, False] * 3 + [True])
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            state, first, out = x.clone(), ks[0].clone(), torch.empty_like(x)
            ops.rk_advance_(state, first, ks[1], ks[2], accepted, out=out, coefficients=c[:, 1:3])
            error = ops.rk_error(x, ks[0], ks, c, TOLERANCES)
            results = (ops.rk_stage(x, ks, c), error, state, first, out)
            found.append([data_bytes(t) for t in results])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pairs
def test_any_memory_layout(
    dtype: torch.dtype, narrow: torch.dtype, layout: str, device: torch.device
) -> None:
    for shape in ((2, 3, 5, 7), (3, 16, 4, 4), (1, 1, 1, 1), (2, 0, 3, 3)):
        x, new = (randn(*shape, dtype=dtype, seed=s).to(device) for s in (1, 2))
        ks = on(device, *slopes_of(shape, 3, narrow))
        c, tolerances = on(device, rows(shape[0], 4), TOLERANCES)
        accepted = torch.arange(shape[0], device=device) % 2 == 0
        found: list[list[Tensor]] = []
        for laid in ("contiguous", layout):
            state, fresh, *slopes = (with_layout(t, laid) for t in (x, new, *ks))
            out = ops.rk_stage(state, slopes, c)
            if laid == "channels_last" and out.numel():
                assert out.is_contiguous(memory_format=torch.channels_last)
            error = ops.rk_error(state, fresh, slopes, c, tolerances)
            given = with_layout(fresh, laid)
            assert ops.rk_stage(state, slopes, c, out=given) is given
            first, after = with_layout(slopes[0], laid), with_layout(fresh, laid)
            ops.rk_advance_(
                state, first, fresh, slopes[1], accepted, out=after, coefficients=c[:, ::2]
            )
            found.append([out, given, state, first, after, error])
        for got, want in zip(found[1], found[0], strict=True):
            assert_same_bytes(got, want)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (6, 2000)])
def test_in_place(shape: tuple[int, ...], device: torch.device) -> None:
    x, a, b = on(device, *slopes_of(shape, 3, F32))
    for c in on(device, rows(None, 3), rows(shape[0], 3)):
        want = ops.rk_stage(x, [a, b], c)
        for place in range(3):
            given = [x.clone(), a.clone(), b.clone()]
            out = ops.rk_stage(given[0], given[1:], c, out=given[place])
            assert out is given[place]
            assert_same_bytes(out, want)
        first, fresh = a.clone(), b.clone()
        flags = torch.ones(shape[0], dtype=torch.bool, device=device)
        ops.rk_advance_(x.clone(), first, fresh, a, flags, out=fresh, coefficients=c[..., :2])
        assert_same_bytes(fresh, ops.rk_stage(b, [a], c[..., :2]))


def test_inputs_are_left_alone(device: torch.device) -> None:
    x, new, *ks = on(device, *slopes_of((6, 33), 5, F32))
    c, e, tolerances = on(device, rows(6, 4), rows(6, 4, seed=3), TOLERANCES)
    inputs = (x, new, *ks, c, e, tolerances)
    before = [data_bytes(t) for t in inputs]
    ops.rk_stage(x, ks, c, out=torch.empty_like(x))
    ops.rk_error(x, new, ks, e, tolerances)
    flags = torch.ones(6, dtype=torch.bool, device=device)
    ops.rk_advance_(x.clone(), ks[0].clone(), new, ks[1], flags)
    assert [data_bytes(t) for t in inputs] == before


def test_autograd_is_told_what_changed(device: torch.device) -> None:
    x, first, out = (randn(3, 4).to(device) for _ in range(3))
    versions = [t._version for t in (x, first, out)]
    flags = torch.ones(3, dtype=torch.bool, device=device)
    c = torch.ones(2, dtype=F64, device=device)
    ops.rk_advance_(x, first, x.clone(), first.clone(), flags, out=out, coefficients=c)
    assert [t._version for t in (x, first, out)] == [v + 1 for v in versions]
    ops.rk_stage(x, [first], c, out=out)
    assert out._version == versions[2] + 2


# ---- what PyTorch must know ------------------------------------------------------------------


def every_result(x: Tensor, new: Tensor, ks: list[Tensor], c: Tensor, flags: Tensor) -> Any:
    tolerances = TOLERANCES.to(x.device)
    state, first, out = x.clone(), ks[0].clone(), torch.empty_like(x)
    stage = ops.rk_stage(x, ks, c)
    error = ops.rk_error(x, new, ks, c, tolerances)
    ops.rk_stage(state, ks, c, out=state)
    ops.rk_advance_(state, first, new, ks[1], flags, out=out, coefficients=c[..., :2])
    return stage, error, state, first, out


def test_opcheck(device: torch.device) -> None:
    op = torch.ops.fastscore
    for shape in ((4, 5), (0, 3), (7,)):
        x, new, out, *ks = on(device, *slopes_of(shape, 6, F32))
        c, tolerances = on(device, rows(shape[0], 4), TOLERANCES)
        flags = torch.arange(shape[0], device=device) % 2 == 0
        torch.library.opcheck(op.rk_stage.default, (x, ks, c))
        torch.library.opcheck(op.rk_stage_.default, (out, x, ks, c))
        torch.library.opcheck(op.rk_error.default, (x, new, ks, c, tolerances))
        torch.library.opcheck(op.rk_advance_.default, (x, ks[0], new, ks[1], flags))
        own = c[:, :2].clone()
        torch.library.opcheck(op.rk_advance_.default, (x, ks[0], new, ks[1], flags, out, own))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str, device: torch.device) -> None:
    compiled = torch.compile(every_result, fullgraph=True, backend=backend)
    x, new, *ks = on(device, *slopes_of((4, 9), 5, F32))
    c = rows(4, 4).to(device)
    flags = torch.arange(4, device=device) % 2 == 0
    for got, want in zip(compiled(x, new, ks, c, flags), every_result(x, new, ks, c, flags)):  # noqa: B905
        assert_same_bytes(got, want)


def test_compiled_code_does_not_drop_a_gradient(device: torch.device) -> None:
    x, k = randn(2, 3).to(device).requires_grad_(), randn(2, 3).to(device)
    c = rows(None, 2).to(device)
    with pytest.raises(Exception, match="need no gradient"):
        torch.compile(lambda x: ops.rk_stage(x, [k], c), fullgraph=True, backend="eager")(x)


def test_under_vmap_each_slice_is_what_it_is_alone(device: torch.device) -> None:
    x, new, a, b = on(device, *slopes_of((3, 4, 5), 4, F32))
    c = torch.stack([rows(4, 3, seed=s) for s in range(3)]).to(device)
    flags = (randn(3, 4) > 0).to(device)

    def results(x: Tensor, new: Tensor, a: Tensor, c: Tensor, flags: Tensor) -> Any:
        return every_result(x, new, [a, b[0]], c, flags)

    mapped = torch.func.vmap(results)(x, new, a, c, flags)
    alone = [results(*args) for args in zip(x, new, a, c, flags, strict=True)]
    for got, want in zip(mapped, zip(*alone, strict=True), strict=True):
        assert_same_bytes(got, torch.stack(want))


# ---- what is refused -------------------------------------------------------------------------

WIDE = torch.ones(1, 4).expand(3, 4)
X, NEW, K = randn(3, 4), randn(3, 4, seed=1), randn(3, 4, seed=2)
C, FLAGS = torch.ones(2, dtype=F64), torch.ones(3, dtype=torch.bool)
GRAD = X.clone().requires_grad_()
REFUSED: list[tuple[str, type[Exception], Callable[[], object]]] = [
    ("slopes must be 1 to 7", ValueError, lambda: ops.rk_stage(X, [], C)),
    ("slopes must be 1 to 7", ValueError, lambda: ops.rk_stage(X, [K] * 8, C)),
    ("slopes must be a sequence", TypeError, lambda: ops.rk_stage(X, K, C)),
    ("slopes must be a List", TypeError, lambda: ops.rk_stage(X, [K, 1], C)),
    ("slopes must be of shape", ValueError, lambda: ops.rk_stage(X, [K[:2]], C)),
    ("slopes must be of x's dtype", ValueError, lambda: ops.rk_stage(X, [K.double()], C)),
    ("slopes must be of x's dtype", ValueError, lambda: ops.rk_stage(X.double(), [K.half()], C)),
    ("slopes must be float32", ValueError, lambda: ops.rk_stage(X, [K, K.half()], C)),
    ("x must be float32 or float64", ValueError, lambda: ops.rk_stage(X.half(), [K.half()], C)),
    ("x must be a tensor whose first", ValueError, lambda: ops.rk_stage(X[0, 0], [X[0, 0]], C)),
    ("coefficients must be float64 of", ValueError, lambda: ops.rk_stage(X, [K], C.float())),
    ("coefficients must be float64 of", ValueError, lambda: ops.rk_stage(X, [K, K], C)),
    ("coefficients must be float64 of", ValueError, lambda: ops.rk_stage(X, [K], torch.ones(2, 2))),
    ("coefficients must be a Tensor", TypeError, lambda: ops.rk_stage(X, [K], [1.0, 1.0])),
    ("out must be of shape", ValueError, lambda: ops.rk_stage(X, [K], C, out=X[:2].clone())),
    ("out must be float32", ValueError, lambda: ops.rk_stage(X, [K], C, out=X.double())),
    ("out must be a tensor whose", ValueError, lambda: ops.rk_stage(X, [K], C, out=WIDE)),
    ("x must be apart", ValueError, lambda: _shifted("x")),
    ("slopes must be apart", ValueError, lambda: _shifted("slopes")),
    ("x must be a tensor that needs", ValueError, lambda: ops.rk_stage(GRAD, [K], C)),
    ("slopes must be a tensor that", ValueError, lambda: ops.rk_stage(X, [K, GRAD], torch.ones(3))),
    ("slopes must be a tensor that", ValueError, lambda: ops.rk_stage(X, [GRAD], C, out=X.clone())),
    ("new must be a tensor that", ValueError, lambda: ops.rk_error(X, GRAD, [K], C, TOLERANCES)),
    ("new must be of shape", ValueError, lambda: ops.rk_error(X, NEW[:2], [K], C, TOLERANCES)),
    ("new must be float32", ValueError, lambda: ops.rk_error(X, NEW.double(), [K], C, TOLERANCES)),
    ("tolerances must be float64", ValueError, lambda: ops.rk_error(X, NEW, [K], C, torch.ones(3))),
    ("last must be a tensor that", ValueError, lambda: _advance(last=GRAD)),
    ("last must be float32", ValueError, lambda: _advance(last=K.half())),
    ("accepted must be a bool", ValueError, lambda: _advance(accepted=FLAGS[:2])),
    ("accepted must be a bool", ValueError, lambda: _advance(accepted=FLAGS.int())),
    ("coefficients must be given", ValueError, lambda: _advance(out=X + 1)),
    ("out must be given", ValueError, lambda: _advance(coefficients=C)),
    ("coefficients must be float64", ValueError, lambda: _advance(out=X + 1, coefficients=FLAGS)),
]  # fmt: skip


def _shifted(which: str) -> None:
    memory = torch.zeros(16)
    part, out = memory[:12].view(3, 4), memory[4:].view(3, 4)
    ops.rk_stage(part if which == "x" else X, [K if which == "x" else part], C, out=out)


def _advance(**changed: Tensor) -> Tensor:
    args = {"x": X.clone(), "first": K.clone(), "new": NEW, "last": K, "accepted": FLAGS}
    return ops.rk_advance_(**{**args, **changed})


@pytest.mark.parametrize(("words", "kind", "call"), REFUSED, ids=range(len(REFUSED)))
def test_refused(words: str, kind: type[Exception], call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize(
    "pair", [("x", "first"), ("x", "last"), ("first", "new"), ("x", "out"), ("first", "out")]
)
def test_an_advance_refuses_memory_that_it_would_overwrite(pair: tuple[str, str]) -> None:
    args = {name: X.clone() for name in ("x", "first", "new", "last", "out")}
    args[pair[1]] = args[pair[0]]
    with pytest.raises(ValueError, match="apart from"):
        ops.rk_advance_(**args, accepted=FLAGS, coefficients=C)


def test_forward_mode_is_refused() -> None:
    with torch.autograd.forward_ad.dual_level():
        k = torch.autograd.forward_ad.make_dual(K, X)
        with pytest.raises(NotImplementedError, match="rk_stage: has no derivative"):
            ops.rk_stage(X, [k], C)
