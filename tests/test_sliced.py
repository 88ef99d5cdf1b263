"""Projections and the fused projected reductions against the reference."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from helpers import (
    DTYPES,
    LAYOUTS,
    TINY_ALPHA,
    assert_accurate,
    assert_same_bytes,
    data_bytes,
    make_key,
    offset_near_an_end,
    ragged_shapes,
    randn,
    with_layout,
)
from torch import Tensor

from fastscore import ops, reference
from fastscore._support.streams import Stream
from fastscore.reference.sliced import DISTRIBUTIONS, terms

PROJECTIONS = 3

pytestmark = pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered.*:UserWarning")


def on(device: torch.device, *values: Tensor) -> tuple[Tensor, ...]:
    """The tensors moved to the device."""
    return tuple(value.to(device) for value in values)


def data(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, projections: int = PROJECTIONS
) -> tuple[Tensor, Tensor]:
    """A score and the products J v."""
    return randn(*shape, dtype=dtype, seed=1), randn(projections, *shape, dtype=dtype, seed=2)


def matrix_estimates(
    matrix: Tensor, samples: int, distribution: str, device: torch.device
) -> Tensor:
    """v'Av for many v."""
    key = make_key(11, 1, device)
    x = torch.zeros(samples, len(matrix), device=device)
    v = ops.projections(key, x.shape, 1, distribution=distribution)
    jvp = v @ matrix.to(device=device, dtype=v.dtype).T
    return ops.sliced_terms(x, jvp, key, distribution=distribution)[0].flatten().double().cpu()


# ---- v ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_projections_match_the_reference(distribution: str, device: torch.device) -> None:
    for shape in ragged_shapes():
        key = make_key(-7, 5)
        options = {"distribution": distribution, "sample_offset": 3}
        got = ops.projections(key.to(device), shape, PROJECTIONS, **options)
        want = reference.projections(key, shape, PROJECTIONS, **options)
        assert got.shape == (PROJECTIONS, *shape)
        if distribution == "rademacher":
            assert_same_bytes(got.cpu(), want)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-6)
        for dtype in DTYPES:
            same = ops.projections(key.to(device), shape, PROJECTIONS, dtype=dtype, **options)
            assert_same_bytes(same, got.to(dtype))


def test_draw_and_stream_of_each_projection(device: torch.device) -> None:
    fills = {"rademacher": ops.rademacher_, "gaussian": ops.normal_}
    for draw in (0, 6, 2**32 // PROJECTIONS):  # the last draw number passes 2^32
        for distribution, fill in fills.items():
            key = make_key(9, draw, device)
            v = ops.projections(key, (5, 70), PROJECTIONS, distribution=distribution)
            for m in range(PROJECTIONS):
                alone = make_key(9, (draw * PROJECTIONS + m) % 2**32, device)
                want = fill(torch.empty(5, 70, device=device), alone, stream=Stream.PROJECTION)
                assert_same_bytes(v[m], want)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_second_moments_are_the_identity(distribution: str, device: torch.device) -> None:
    dim, samples = 5, 40_000
    v = ops.projections(make_key(3, 1, device), (samples, dim), 2, distribution=distribution)
    v = v.double().cpu()
    for projection in v:
        moments = projection.T @ projection / samples
        # Five standard errors; the fourth moment is at most 3.
        assert float((moments - torch.eye(dim)).abs().max()) < 5 * (2 / samples) ** 0.5
    crossed = v[0].T @ v[1] / samples
    assert float(crossed.abs().max()) < 5 / samples**0.5


def test_distributions(device: torch.device) -> None:
    key = make_key(8, 2, device)
    signs = ops.projections(key, (100, 70), 2)
    assert bool((signs.abs() == 1).all())
    normals = ops.projections(key, (100, 700), 2, distribution="gaussian").cpu().double()
    assert scipy.stats.kstest(normals.flatten().numpy(), "norm").pvalue > TINY_ALPHA
    for dim in (1, 2, 65, 3000):
        v = ops.projections(key, (50, dim), 2, distribution="sphere").double()
        torch.testing.assert_close(
            v.square().sum(-1), torch.full_like(v[..., 0], dim), rtol=1e-6, atol=0
        )
    # The first coordinate of a point of the sphere in three dimensions is uniform.
    v = ops.projections(key, (50_000, 3), 1, distribution="sphere").cpu().double()
    scaled = v[0, :, 0] / math.sqrt(3)
    assert scipy.stats.kstest(scaled.numpy(), "uniform", args=(-1, 2)).pvalue > TINY_ALPHA


# ---- the terms -------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_terms_match_the_reference(
    dtype: torch.dtype, distribution: str, device: torch.device
) -> None:
    for shape in ragged_shapes():
        score, jvp = data(shape, dtype)
        options = {"distribution": distribution, "sample_offset": 3}
        key = make_key(7, 4, device)
        v = ops.projections(key, shape, PROJECTIONS, dtype=dtype, **options).cpu()
        fused = ops.sliced_terms(*on(device, score, jvp), key, **options)
        eager = terms(score, jvp, v)
        exact = terms(score.double(), jvp.double(), v.double())
        assert fused[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # A sum in float32 over two packs is rounded at least twice: that of a pack, and theirs.
        # The square of v's doubles both half units, and is rounded itself.
        for got, want, truth, halves in zip(fused, eager, exact, (2, 5, 2), strict=True):
            assert got.shape == truth.shape
            if dtype == torch.float64:
                torch.testing.assert_close(got.cpu(), truth, rtol=1e-12, atol=1e-12)
            else:
                assert_accurate(got.cpu(), want, truth, halves)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_match_the_reference(
    dtype: torch.dtype, distribution: str, device: torch.device
) -> None:
    for shape in ragged_shapes():
        score, jvp = data(shape, dtype)
        key = make_key(7, 4, device)
        v = ops.projections(key, shape, PROJECTIONS, distribution=distribution, dtype=dtype).cpu()
        weights = [randn(PROJECTIONS, shape[0], seed=5), randn(PROJECTIONS, shape[0], seed=6)]
        weights.append(randn(shape[0], seed=7))

        def gradients(
            results: tuple[Tensor, ...], *leaves: Tensor, w: list[Tensor] = weights
        ) -> tuple[Tensor, ...]:
            upstream = [g.to(r) for g, r in zip(w, results, strict=True)]
            return torch.autograd.grad(results, leaves, upstream)

        s, j = (x.clone().requires_grad_() for x in on(device, score, jvp))
        fused = gradients(ops.sliced_terms(s, j, key, distribution=distribution), s, j)
        s, j = (x.clone().requires_grad_() for x in (score, jvp))
        eager = gradients(terms(s, j, v), s, j)
        s, j = (x.double().requires_grad_() for x in (score, jvp))
        exact = gradients(terms(s, j, v.double()), s, j)
        for got, want, truth in zip(fused, eager, exact, strict=True):
            if dtype == torch.float64:
                torch.testing.assert_close(got.cpu(), truth, rtol=1e-12, atol=1e-11)
            else:
                assert_accurate(got.cpu(), want, truth)


def test_long_rows_are_accurate(device: torch.device) -> None:
    score, jvp = data((2, 300_007), projections=2)
    key = make_key(3, 1, device)
    for distribution in DISTRIBUTIONS:
        v = ops.projections(key, score.shape, 2, distribution=distribution).cpu()
        fused = ops.sliced_terms(*on(device, score, jvp), key, distribution=distribution)
        exact = terms(score.double(), jvp.double(), v.double())
        scale = score.shape[1] ** 0.5
        assert float((fused[0].cpu() - exact[0]).abs().max()) < 1e-6 * scale
        assert float((fused[2].cpu() / exact[2] - 1).abs().max()) < 1e-6


def test_only_what_is_used_gets_a_gradient(device: torch.device) -> None:
    """Each term alone, and the two objectives, against all terms with zero weights."""
    key = make_key(2, 1, device)
    for used in ((0,), (1,), (2,), (0, 1), (0, 2)):
        score, jvp = (x.to(device).requires_grad_() for x in data((4, 70)))
        results = ops.sliced_terms(score, jvp, key)
        some = torch.autograd.grad(
            sum(results[i].sum() for i in used), (score, jvp), retain_graph=True
        )
        weights = [torch.full_like(r, float(i in used)) for i, r in enumerate(results)]
        every = torch.autograd.grad(results, (score, jvp), weights)
        for got, want in zip(some, every, strict=True):
            assert torch.equal(got, want)


def test_backward_keeps_no_projection_and_no_product(device: torch.device) -> None:
    score, jvp = (x.to(device).requires_grad_() for x in data((4, 70)))
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        ops.sliced_terms(score, jvp, make_key(1, 0, device))
    assert sum(saved) == score.numel() + PROJECTIONS * 4 + 2


# ---- what they estimate ----------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_objectives_of_a_gaussian_score(distribution: str, device: torch.device) -> None:
    """For s = -x and x ~ N(0, I) both objectives are -d/2, and v'Jv is -|v|^2."""
    batch, dim = 20_000, 9
    x = randn(batch, dim, seed=3).to(device)
    key = make_key(5, 1, device)
    v = ops.projections(key, x.shape, 2, distribution=distribution)
    vjv, half_vs2, half_s2 = ops.sliced_terms(-x, -v, key, distribution=distribution)
    if distribution != "gaussian":
        torch.testing.assert_close(vjv, torch.full_like(vjv, -dim), rtol=1e-6, atol=0)
    if distribution == "rademacher":
        assert torch.equal(vjv, torch.full_like(vjv, -dim))  # no variance at all
    for objective in (vjv + half_vs2, vjv + half_s2):
        objective = objective.double()
        # The projections of one sample are not independent: one mean for each.
        for row in objective:
            assert abs(float(row.mean()) + dim / 2) < 5 * float(row.std()) / batch**0.5


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_trace_estimates_of_a_matrix(distribution: str, device: torch.device) -> None:
    """Mean and variance of v'Av against the formulas."""
    dim, samples = 6, 100_000
    matrix = randn(dim, dim, dtype=torch.float64, seed=4)
    estimates = matrix_estimates(matrix, samples, distribution, device)
    symmetric = (matrix + matrix.T) / 2
    square, trace = float(symmetric.square().sum()), float(matrix.trace())
    variance = {
        "gaussian": 2 * square,
        "rademacher": 2 * (square - float(symmetric.diagonal().square().sum())),
        "sphere": 2 * dim / (dim + 2) * (square - trace**2 / dim),
    }[distribution]
    assert abs(float(estimates.mean()) - trace) < 5 * (variance / samples) ** 0.5
    assert float(estimates.var()) == pytest.approx(variance, rel=0.06)


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_memory_layout(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    key = make_key(3, 1, device)
    for shape in ((2, 3, 5, 7), (3, 16, 4, 4), (1, 1, 1, 1), (2, 0, 3, 3)):
        score, jvp = on(device, *data(shape, dtype))
        laid = with_layout(jvp.flatten(0, 1), layout).unflatten(0, (PROJECTIONS, shape[0]))
        results = []
        for s, j in ((score, jvp), (with_layout(score, layout), laid)):
            s, j = s.detach().requires_grad_(), j.detach().requires_grad_()
            terms_ = ops.sliced_terms(s, j, key)
            results.append((*terms_, *torch.autograd.grad(sum(t.sum() for t in terms_), (s, j))))
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


def test_expanded_and_scattered_inputs(device: torch.device) -> None:
    row = randn(1, 33).to(device)
    key = make_key(3, 1, device)
    for s in (row.expand(6, 33), row[:, :1].expand(6, 33)):
        j = s.expand(2, 6, 33)
        key_view = torch.stack([key, key], dim=1)[:, 0].contiguous()
        got = ops.sliced_terms(s, j, key_view)
        want = ops.sliced_terms(s.contiguous(), j.contiguous(), key)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


def test_expanded_upstream_gradient(device: torch.device) -> None:
    """What ``sum().backward()`` hands over has stride 0."""
    score, jvp = (x.to(device).requires_grad_() for x in data((6, 33)))
    results = ops.sliced_terms(score, jvp, make_key(1, 0, device))
    summed = torch.autograd.grad(sum(r.sum() for r in results), (score, jvp), retain_graph=True)
    given = torch.autograd.grad(results, (score, jvp), [torch.ones_like(r) for r in results])
    turned = [torch.ones(r.shape[::-1], device=device).movedim(0, -1) for r in results]
    transposed = torch.autograd.grad(
        ops.sliced_terms(score, jvp, make_key(1, 0, device)), (score, jvp), turned
    )
    for a, b, c in zip(summed, given, transposed, strict=True):
        assert_same_bytes(a, b)
        assert_same_bytes(c, b)


def test_inputs_are_left_alone(device: torch.device) -> None:
    score, jvp = (x.to(device).requires_grad_() for x in data((6, 33)))
    key = make_key(1, 0, device)
    before = [data_bytes(x) for x in (score, jvp, key)]
    sum(r.sum() for r in ops.sliced_terms(score, jvp, key)).backward()
    assert [data_bytes(x) for x in (score, jvp, key)] == before


def test_the_key_may_move_on_before_backward(device: torch.device) -> None:
    score, jvp = (x.to(device).requires_grad_() for x in data((6, 33)))
    grads = []
    for advance in (0, 1):
        key = make_key(1, 0, device)
        loss = sum(r.sum() for r in ops.sliced_terms(score, jvp, key))
        key[1] += advance
        grads.append(torch.autograd.grad(loss, (score, jvp)))
    for a, b in zip(*grads, strict=True):
        assert_same_bytes(a, b)


def test_nan_and_infinity_stay_in_their_sample(device: torch.device) -> None:
    score, jvp = on(device, *data((4, 70), projections=1))
    score[1, 69], jvp[0, 2, 0] = torch.nan, torch.inf
    vjv, half_vs2, half_s2 = ops.sliced_terms(score, jvp, make_key(1, 0, device))
    assert vjv[0].isfinite().tolist() == [True, True, False, True]
    assert half_vs2[0].isnan().tolist() == [False, True, False, False]
    assert half_s2.isnan().tolist() == [False, True, False, False]


# ---- where v lies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(9,), (9, 3), (9, 5), (9, 13), (9, 64), (9, 3, 43), (9, 1024), (9, 2500)]
)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_shard_gives_what_the_whole_batch_gives(
    shape: tuple[int, ...], distribution: str, device: torch.device
) -> None:
    key, start = make_key(3, 1, device), offset_near_an_end(shape)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        score, jvp = on(device, *data(shape, dtype))

        def run(part: slice, s: Tensor = score, j: Tensor = jvp) -> list[Tensor]:
            """Everything with the batch in the last or the second dimension moved to the first."""
            s, j = (x.detach().clone().requires_grad_() for x in (s[part], j[:, part]))
            options = {"distribution": distribution, "sample_offset": start + part.start}
            v = ops.projections(key, s.shape, PROJECTIONS, dtype=s.dtype, **options)
            results = ops.sliced_terms(s, j, key, **options)
            grads = torch.autograd.grad(sum(r.sum() for r in results), (s, j))
            return [
                v.transpose(0, 1),
                *(r.detach().movedim(-1, 0) for r in results),
                grads[0],
                grads[1].transpose(0, 1),
            ]

        whole = run(slice(0, 9))
        for cut in (0, 1, 4, 9):
            for head, tail, want in zip(run(slice(0, cut)), run(slice(cut, 9)), whole, strict=True):
                assert_same_bytes(torch.cat([head, tail]), want)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_flat_indices_beyond_2_to_the_34(distribution: str, device: torch.device) -> None:
    key = make_key(5, 2**31 + 7)
    score, jvp = data((3, 70), projections=2)
    for offset in (2**34 // 70 - 1, 2**39 // 70 - 1, 2**40):  # the first two cross a carry
        options = {"distribution": distribution, "sample_offset": offset}
        fused = ops.projections(key.to(device), score.shape, 2, **options)
        eager = reference.projections(key, score.shape, 2, **options)
        torch.testing.assert_close(fused.cpu(), eager)
        fused = ops.sliced_terms(*on(device, score, jvp, key), **options)
        eager = reference.sliced_terms(score, jvp, key, **options)
        for got, want in zip(fused, eager, strict=True):
            torch.testing.assert_close(got.cpu(), want, rtol=2e-5, atol=2e-5)


# ---- what PyTorch must know ------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_gradcheck(distribution: str, device: torch.device) -> None:
    key = make_key(5, 1, device)

    def variance_reduced(s: Tensor, j: Tensor) -> Tensor:
        vjv, _, half_s2 = ops.sliced_terms(s, j, key, distribution=distribution)
        return vjv + half_s2

    for shape in ((3,), (3, 5), (2, 2, 3)):
        score, jvp = (
            x.to(device).requires_grad_() for x in data(shape, torch.float64, projections=2)
        )
        for f in (
            variance_reduced,
            lambda s, j: ops.sliced_terms(s, j, key, distribution=distribution),
        ):
            assert torch.autograd.gradcheck(f, (score, jvp))
            assert torch.autograd.gradgradcheck(f, (score, jvp))


def test_opcheck(device: torch.device) -> None:
    key = make_key(5, 1, device)
    op = torch.ops.fastscore
    for shape, distribution in (((4, 5), 0), ((0, 3), 1), ((7,), 2)):
        score, jvp = on(device, *data(shape, projections=2))
        g, g_batch = randn(2, shape[0]).to(device), randn(shape[0]).to(device)
        rest = (score, key, distribution, 3)
        torch.library.opcheck(op.sliced_terms.default, (score, jvp, *rest[1:]))
        torch.library.opcheck(op.project_.default, (jvp.clone(), *rest[1:]))
        torch.library.opcheck(op.sliced_terms_backward.default, (g, g, g_batch, *rest))
        torch.library.opcheck(op.sliced_terms_backward.default, (g, None, None, *rest))


@pytest.mark.parametrize("variance_reduced", [True, False])
def test_compile_fullgraph(variance_reduced: bool, device: torch.device) -> None:
    def train_step(x: Tensor, weight: Tensor, key: Tensor) -> Tensor:
        v = ops.projections(key, x.shape, 2, distribution="gaussian")
        vjv, half_vs2, half_s2 = ops.sliced_terms(
            x @ weight, v @ weight, key, distribution="gaussian"
        )
        return (vjv + (half_s2 if variance_reduced else half_vs2)).mean()

    compiled = torch.compile(train_step, fullgraph=True, backend="aot_eager")
    x, weight = randn(4, 9).to(device), randn(9, 9, seed=1).to(device).requires_grad_()
    for draw in (0, 1):
        key = make_key(5, draw, device)
        got, want = compiled(x, weight, key), train_step(x, weight, key)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(loss, weight)[0] for loss in (got, want)]
        torch.testing.assert_close(*grads)


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"score": [1.0]}, TypeError, "score"),
        ({"score": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "score"),
        ({"score": torch.zeros(())}, ValueError, "score"),
        ({"jvp": 1.0}, TypeError, "jvp"),
        ({"jvp": torch.zeros(2, 3)}, ValueError, "jvp"),
        ({"jvp": torch.zeros(0, 2, 3)}, ValueError, "jvp"),
        ({"jvp": torch.zeros(1, 3, 2)}, ValueError, "jvp"),
        ({"jvp": torch.zeros(1, 2, 3, dtype=torch.float64)}, ValueError, "jvp"),
        ({"jvp": torch.zeros(1, 2, 3, device="meta")}, ValueError, "jvp"),
        ({"key": 3}, TypeError, "key"),
        ({"key": torch.zeros(2)}, ValueError, "key"),
        ({"key": torch.zeros(3, dtype=torch.int64)}, ValueError, "key"),
        ({"distribution": "uniform"}, ValueError, "distribution"),
        ({"distribution": 1}, TypeError, "distribution"),
        ({"distribution": ["sphere"]}, TypeError, "distribution"),
        ({"sample_offset": -1}, ValueError, "sample_offset"),
        ({"sample_offset": 2**62}, ValueError, "sample_offset"),
        ({"sample_offset": 0.5}, TypeError, "sample_offset"),
    ],
)
def test_bad_sliced_terms(change: dict[str, object], error: type[Exception], argument: str) -> None:
    good = {"score": torch.zeros(2, 3), "jvp": torch.zeros(1, 2, 3), "key": make_key(1)}
    with pytest.raises(error, match=f"sliced_terms: {argument} must be"):
        ops.sliced_terms(**(good | change))
    ops.sliced_terms(**good)


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"key": 3}, TypeError, "key"),
        ({"key": torch.zeros(2)}, ValueError, "key"),
        ({"shape": ()}, ValueError, "shape"),
        ({"shape": (2, -1)}, ValueError, "shape"),
        ({"shape": (2, 1.5)}, TypeError, "shape"),
        ({"shape": "22"}, TypeError, "shape"),
        ({"shape": 4}, TypeError, "shape"),
        ({"count": 0}, ValueError, "count"),
        ({"count": 1.0}, TypeError, "count"),
        ({"distribution": "normal"}, ValueError, "distribution"),
        ({"dtype": torch.int64}, ValueError, "dtype"),
        ({"sample_offset": -1}, ValueError, "sample_offset"),
        ({"sample_offset": 2**62}, ValueError, "sample_offset"),
    ],
)
def test_bad_projections(change: dict[str, object], error: type[Exception], argument: str) -> None:
    good = {"key": make_key(1), "shape": (2, 3), "count": 1}
    with pytest.raises(error, match=f"projections: {argument} must be"):
        ops.projections(**(good | change))
    ops.projections(**good)
