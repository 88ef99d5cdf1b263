"""The fused multistep update against the reference, and the solvers that are rows of it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from byte_cases import steps_table, two_terms
from helpers import (
    DTYPES,
    LAYOUTS,
    SHORT_SAMPLES,
    assert_accurate,
    assert_same_bytes,
    data_bytes,
    make_key,
    randn,
    with_layout,
)
from torch import Tensor

from fastscore import ops, reference
from fastscore._support.streams import Stream
from fastscore.reference.langevin import coefficients
from fastscore.reference.multistep import update

SHAPES = (
    (0,), (2, 0), (3,), (64,), (3, 65), (2, 3, 5, 7), (2, 4100), *SHORT_SAMPLES[::4],
)  # fmt: skip
SCORE_DTYPES = [(dtype, dtype) for dtype in DTYPES] + [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]
DRAWS = (0, 1, 2)  # of a table of three rows: the last but one has no history, the last no noise


def data(shape: tuple[int, ...], dtype: torch.dtype, *seeds: int) -> list[Tensor]:
    return [randn(*shape, dtype=dtype, seed=seed) for seed in seeds]


def held(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    known, mask = randn(*shape, dtype=dtype, seed=3), randn(*shape, seed=4) > 0.2
    return {"known": known, "mask": mask, "clamp": (-1.5, 1.25)}


def moved(device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in options.items()}


def step(device: torch.device, *args: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """State and history after one fused update of copies."""
    x, history, *rest = (t.to(device, copy=True) for t in args)
    assert ops.multistep_step_(x, history, *rest, **moved(device, options)) is x
    return x.cpu(), history.cpu()


def eager_step(*args: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    x, history, *rest = args
    x, history = x.clone(), history.clone()
    assert reference.multistep_step_(x, history, *rest, **options) is x
    return x, history


def exact_step(
    x: Tensor, history: Tensor, score: Tensor, table: Tensor, key: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """The reference in float64, with the very same noise."""
    z = ops.normal_(torch.empty(x.shape), key, stream=Stream.LANGEVIN)
    options = {
        n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for n, v in options.items()
    }
    row = coefficients(table, key)
    return update(x.double(), history.double(), score.double(), z.double(), row, **options)


def compare(device: torch.device, *args: Tensor, **options: Any) -> None:
    found = step(device, *args, **options)
    eager, exact = eager_step(*args, **options), exact_step(*args, **options)
    # In float64 the reference is what is exact: its roundings don't show.
    halves = 4 if args[0].dtype == torch.float64 else 0
    for got, plain, want in zip(found, eager, exact, strict=True):
        assert got.dtype == args[0].dtype
        assert_accurate(got, plain, want, halves)


# ---- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "score_dtype"), SCORE_DTYPES)
def test_matches_the_reference(
    dtype: torch.dtype, score_dtype: torch.dtype, device: torch.device
) -> None:
    for shape in SHAPES:
        x, history = data(shape, dtype, 1, 5)
        (score,) = data(shape, score_dtype, 2)
        for draw in DRAWS:
            args = (x, history, score, steps_table(10, 3), make_key(7, draw))
            compare(device, *args)
            compare(device, *args, clip=(-0.5, 0.75), **held(shape, dtype), **two_terms(score))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_weights_of_each_sample(dtype: torch.dtype, device: torch.device) -> None:
    for shape in ((5,), (5, 13), (5, 3, 64), (5, 4100), *SHORT_SAMPLES[1::3]):
        x, history, score = data(shape, dtype, 1, 5, 2)
        table = steps_table(10, 3, shape[0])
        table[0, ::2, 6] = table[0, ::3, 2] = table[0, 1::2, 9] = 0
        options = {**two_terms(score, shape[0]), "clip": (None, 0.75)}
        for own in (options, {**options, **held(shape, dtype)}):
            compare(device, x, history, score, table, make_key(7, 0), **own)


@pytest.mark.parametrize("clip", [None, (None, None), (-0.5, None), (None, 0.5), (-0.5, 0.25)])
def test_the_history_is_the_clipped_mean(
    clip: tuple[float | None, float | None] | None, device: torch.device
) -> None:
    x, history, score = data((3, 129), torch.float32, 1, 5, 2)
    row = [0.5, 0.2, 0.0, 0.0, 1.0, 1.0, 0.3, 0.9, 0.4, 0.7]
    table = torch.tensor([row], dtype=torch.float64)
    got, past = step(device, x, history, score, table, make_key(0), clip=clip)
    mean = 0.9 * x + 0.4 * score
    low, high = clip or (None, None)
    clipped = mean.clamp(low, high) if low is not None or high is not None else mean
    torch.testing.assert_close(past, clipped)
    torch.testing.assert_close(got, 0.5 * x + 0.2 * score + 0.3 * history + 0.7 * (clipped - mean))


def test_without_history_and_clip_it_is_the_langevin_step(device: torch.device) -> None:
    for dtype in DTYPES:
        for shape in ((3, 65), (2, 4100), (130, 3)):
            x, history, score = data(shape, dtype, 1, 5, 2)
            table = steps_table(10, 2)
            table[:, [6, 9]] = 0
            six = table[:, :6].contiguous()
            for options in ({}, {**held(shape, dtype), **two_terms(score)}):
                got, _ = step(device, x, history, score, table, make_key(7), **options)
                want = ops.langevin_step(
                    *(t.to(device) for t in (x, score, six, make_key(7))), **moved(device, options)
                )
                assert_same_bytes(got, want.cpu())


def test_what_is_not_there_does_no_harm(device: torch.device) -> None:
    """A history that nobody has written, and an infinite mean, where h and r are 0."""
    for dtype in DTYPES:
        x, score = data((2, 70), dtype, 1, 2)
        history = torch.full_like(x, torch.nan)
        row = [1.0, 0.1, 0.3, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
        table = torch.tensor([row], dtype=torch.float64)
        for clip in (None, (-1.0, 1.0)):
            args = (x, history, score, table, make_key(3))
            for got in (step(device, *args, clip=clip), eager_step(*args, clip=clip)):
                assert bool(got[0].isfinite().all())
                assert bool(got[1].isfinite().all())
        score[0, 5] = torch.inf
        got, past = step(device, x, history, score, table, make_key(3), clip=(-1.0, 1.0))
        assert got.isinf().nonzero().tolist() == [[0, 5]]
        assert float(past[0, 5]) == 1.0
        table[0, 6] = 0.5
        got, past = step(device, x, history, score, table, make_key(3))
        assert bool(got.isnan().all())


def test_nan_propagates(device: torch.device) -> None:
    for dtype in DTYPES:
        x, history, score = data((2, 70), dtype, 1, 5, 2)
        x[0, 3] = score[1, 64] = history[0, 66] = torch.nan
        table = steps_table(10, 3)
        args = (x, history, score, table, make_key(3))
        options = {**held((2, 70), dtype), "clip": (-1.0, 1.0)}
        found = step(device, *args, **options), eager_step(*args, **options)
        for got, want in zip(*found, strict=True):
            assert torch.equal(got.isnan(), want.isnan())
        assert bool(found[0][1][0, 3].isnan())


@pytest.mark.parametrize("draw", [0, 2, 1000, 2**33 + 1])
def test_the_draw_selects_the_row_and_the_last_row_stays(draw: int, device: torch.device) -> None:
    x, history, score = data((3, 50), torch.float32, 1, 5, 2)
    table, key = steps_table(10, 3), make_key(2, draw)
    alone = step(device, x, history, score, table[min(draw, 2)][None], key)
    for got, want in zip(step(device, x, history, score, table, key), alone, strict=True):
        assert_same_bytes(got, want)


# ---- solvers that are rows of it -------------------------------------------------------------


def mean_of(y: Tensor, sigma: float) -> Tensor:
    """E[x_0 | y] of data N(0, 1) perturbed by sigma."""
    return y / (1 + sigma**2)


def test_dpm_solver_2m_is_rows_of_it(device: torch.device) -> None:
    """In y and s with lambda = -log s, the first step of first order (Lu et al. 2022)."""
    sigmas = torch.logspace(1, -2, 9, dtype=torch.float64).tolist()
    rows, h_before = [], None
    for now, then in pairwise(sigmas):
        h = math.log(now / then)
        ratio, gain = then / now, -math.expm1(-h)
        r = 0.0 if h_before is None else h / (2 * h_before)
        # y' = ratio y + gain ((1 + r) D - r H), D = y + now^2 s
        weight = gain * (1 + r)
        rows.append([ratio + weight, weight * now**2, 0, 0, 1, 1, -gain * r, 1, now**2, 0])
        h_before = h
    x = randn(4, 33, dtype=torch.float64, seed=1) * sigmas[0]
    want, past = x.clone(), None
    for i, (now, then) in enumerate(pairwise(sigmas)):
        mean, h = mean_of(want, now), math.log(now / then)
        slope = mean
        if past is not None:
            r = h / (2 * math.log(sigmas[i - 1] / now))
            slope = (1 + r) * mean - r * past
        want, past = then / now * want - math.expm1(-h) * slope, mean
    table = torch.tensor(rows, dtype=torch.float64, device=device)
    got, history = x.to(device), torch.full_like(x, torch.nan).to(device)
    for i, now in enumerate(sigmas[:-1]):
        score = (mean_of(got, now) - got) / now**2
        ops.multistep_step_(got, history, score, table, make_key(0, i, device))
    torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=1e-12)


def test_heun_is_two_rows_a_step(device: torch.device) -> None:
    """dy/ds = -s S: to the end with the first slope, which H keeps; then half of both."""
    now, then = 2.0, 0.7
    x = randn(3, 65, dtype=torch.float64, seed=1)
    slope = -now * (mean_of(x, now) - x) / now**2
    ahead = x + (then - now) * slope
    second = -then * (mean_of(ahead, then) - ahead) / then**2
    want = x + (then - now) * (slope + second) / 2
    step_size = then - now
    # Row 1 keeps its slope -now S; row 2, from `ahead`, goes back half of it.
    first = [1, -now * step_size, 0, 0, 1, 1, 0, 0, -now, 0]
    half = [1, -then * step_size / 2, 0, 0, 1, 1, -step_size / 2, 0, 1, 0]
    table = torch.tensor([first, half], dtype=torch.float64, device=device)
    got, history = x.to(device), torch.full_like(x, torch.nan).to(device)
    for i, sigma in enumerate((now, then)):
        score = (mean_of(got, sigma) - got) / sigma**2
        ops.multistep_step_(got, history, score, table, make_key(0, i, device))
    torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=1e-12)


def test_ddim_with_a_clipped_mean(device: torch.device) -> None:
    """x_0 kept in the range of the data; the noise follows from x and the x_0 that was predicted,
    as it is published, so that clipping moves x by alpha' alone."""
    alpha, sigma, after, noise = 0.6, 0.8, 0.8, 0.6
    x, score = data((3, 65), torch.float64, 1, 2)
    mean = (x + sigma**2 * score) / alpha
    eps = (x - alpha * mean) / sigma
    want = after * mean.clamp(-1, 1) + noise * eps
    a, b = after / alpha, after * sigma**2 / alpha - noise * sigma
    row = [a, b, 0, 0, 1, 1, 0, 1 / alpha, sigma**2 / alpha, after]
    table = torch.tensor([row], dtype=torch.float64)
    got, history = step(device, x, x, score, table, make_key(0), clip=(-1.0, 1.0))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(history, mean.clamp(-1, 1))


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("history_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_any_memory_layout(x_layout: str, history_layout: str, device: torch.device) -> None:
    for dtype, score_dtype in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)):
        for shape in ((2, 3, 5, 7), (3, 16, 4, 4), (1, 1, 1, 1)):
            x, history = data(shape, dtype, 1, 5)
            (score,) = data(shape, score_dtype, 2)
            args = (x, history, score, steps_table(10, 3), make_key(7))
            options = {**held(shape, dtype), **two_terms(score), "clip": (-1.0, 1.0)}
            want = step(device, *args, **options)
            options = moved(device, options)
            options["known"] = with_layout(options["known"], history_layout)
            x, history, *rest = (t.to(device) for t in args)
            state, past = with_layout(x, x_layout), with_layout(history, history_layout)
            strides = state.stride(), past.stride()
            ops.multistep_step_(state, past, *rest, **options)
            assert (state.stride(), past.stride()) == strides
            assert_same_bytes(state.cpu(), want[0])
            assert_same_bytes(past.cpu(), want[1])


def test_what_is_read_may_be_what_is_written(device: torch.device) -> None:
    """Element by element: a score that is the state or the history, known values that are."""
    x, history = (t.to(device) for t in data((3, 1009), torch.float32, 1, 5))
    table, key = steps_table(10, 3).to(device), make_key(5, 0, device)
    mask, weights = x > 0.2, torch.tensor([0.5, 2.0], dtype=torch.float64, device=device)
    options = {"mask": mask, "weights": weights, "clip": (-1.0, 1.0)}
    for score, second, known in (("x", "history", "x"), ("history", "x", "history")):
        state, past = x.clone(), history.clone()
        own = {"x": state, "history": past}
        apart = {"x": x.clone(), "history": history.clone()}
        ops.multistep_step_(
            state, past, own[score], table, key, second=own[second], known=own[known], **options
        )
        want, before = x.clone(), history.clone()
        given = {"second": apart[second], "known": apart[known], **options}
        ops.multistep_step_(want, before, apart[score], table, key, **given)
        assert_same_bytes(state, want)
        assert_same_bytes(past, before)


def test_changes_nothing_else(device: torch.device) -> None:
    shape = (3, 65)
    buffers = [torch.full((5, 140), 7.0, device=device) for _ in range(2)]
    x, history = (buffer[1:4, 4:134:2] for buffer in buffers)
    x.copy_(randn(*shape, seed=1))
    history.copy_(randn(*shape, seed=5))
    score = randn(*shape, seed=2).to(device)
    options = moved(device, {**held(shape, x.dtype), **two_terms(score)})
    arguments = [score, steps_table(10, 3).to(device), make_key(5, 1, device)]
    others = [*arguments, *(v for v in options.values() if isinstance(v, Tensor))]
    before = [data_bytes(t) for t in others]
    ops.multistep_step_(x, history, *arguments, **options, clip=(-1.0, 1.0))
    assert [data_bytes(t) for t in others] == before
    for buffer in buffers:
        buffer[1:4, 4:134:2] = 7.0
        assert bool((buffer == 7.0).all())


# ---- what PyTorch must know ------------------------------------------------------------------


def test_autograd_notices_both_changes(device: torch.device) -> None:
    x, history, score = (t.to(device) for t in data((2, 3), torch.float32, 1, 5, 2))
    table, key = steps_table(10, 2).to(device), make_key(0, 0, device)
    for changed in (x, history):
        product = (torch.ones_like(x).requires_grad_() * changed).sum()
        ops.multistep_step_(x, history, score, table, key)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


def test_opcheck(device: torch.device) -> None:
    shape = (4, 5)
    x, history, score = (t.to(device) for t in data(shape, torch.float32, 1, 5, 2))
    options = moved(device, {**held(shape, x.dtype), **two_terms(score, shape[0])})
    args = (x, history, score, steps_table(10, 2).to(device), make_key(0, 0, device))
    plain = (None, None, None, None, None, None, 0)
    full = (options["known"], options["mask"], -1.0, 1.0, -1.0, None, 3, None, options["second"],
            options["weights"])  # fmt: skip
    for rest in (plain, full):
        torch.library.opcheck(torch.ops.fastscore.multistep_step_.default, (*args, *rest))


def test_compile_fullgraph(device: torch.device) -> None:
    def two_steps(x: Tensor, score: Tensor, table: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        x, history = x.clone(), torch.zeros_like(x)
        ops.multistep_step_(x, history, score, table, key)
        key = torch.stack([key[0], key[1] + 1])
        ops.multistep_step_(x, history, torch.tanh(x), table, key, clip=(-1.0, 1.0))
        return x, history

    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    table, key = steps_table(10, 2).to(device), make_key(5, 0, device)
    for batch in (4, 6):
        x, score = (t.to(device) for t in data((batch, 9), torch.float32, 1, 2))
        args = (x, score, table, key)
        for got, want in zip(compiled(*args), two_steps(*args), strict=True):
            assert_same_bytes(got, want)


@pytest.mark.parametrize("name", ["x", "history", "score", "known", "second"])
def test_no_gradient(name: str, device: torch.device) -> None:
    x = torch.ones(2, 3)
    args = {n: x.clone() for n in ("x", "history", "score", "known", "second")}
    args["weights"], args["mask"] = torch.ones(2).double(), x > 0
    args["table"], args["key"] = steps_table(10, 2), make_key(0)
    args = moved(device, args)
    args[name].requires_grad_()
    with pytest.raises((ValueError, RuntimeError), match=r"multistep_step_: .* requires grad"):
        ops.multistep_step_(**args)
    with pytest.raises(ValueError, match=r"multistep_step_: .* requires grad"):
        reference.multistep_step_(**args)
    with torch.no_grad():
        ops.multistep_step_(**args)


# ---- bad input -------------------------------------------------------------------------------

MASK = torch.zeros(2, 3, dtype=torch.bool)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "x"),
    ({"x": torch.zeros(1, 3).expand(2, 3)}, ValueError, "x"),
    ({"history": 1.0}, TypeError, "history"),
    ({"history": torch.zeros(2, 4)}, ValueError, "history"),
    ({"history": torch.zeros(2, 3).double()}, ValueError, "history"),
    ({"history": torch.zeros(2, 3, device="meta")}, ValueError, "history"),
    ({"history": torch.zeros(1, 3).expand(2, 3)}, ValueError, "history"),
    ({"score": torch.zeros(3)}, ValueError, "score"),
    ({"table": torch.ones(1, 6).double()}, ValueError, "table"),
    ({"table": torch.ones(1, 3, 10).double()}, ValueError, "table"),
    ({"table": torch.ones(1, 10)}, ValueError, "table"),
    ({"key": torch.zeros(2)}, ValueError, "key"),
    ({"known": torch.zeros(2, 3)}, ValueError, "mask"),
    ({"known": torch.zeros(3), "mask": MASK}, ValueError, "known"),
    ({"clamp": (1.0, -1.0)}, ValueError, "clamp"),
    ({"clip": (1.0, -1.0)}, ValueError, "clip"),
    ({"clip": (1.0,)}, ValueError, "clip"),
    ({"clip": 1.0}, TypeError, "clip"),
    ({"clip": ("a", None)}, TypeError, "clip"),
    ({"sample_offset": -1}, ValueError, "sample_offset"),
    ({"samples": torch.zeros(3, dtype=torch.int64)}, ValueError, "samples"),
    ({"second": torch.zeros(2, 3)}, ValueError, "weights"),
    ({"weights": torch.ones(2).double()}, ValueError, "second"),
]


@pytest.mark.parametrize(("change", "error", "argument"), BAD)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], argument: str) -> None:
    good = {n: torch.zeros(2, 3) for n in ("x", "history", "score")}
    good |= {"table": steps_table(10, 2), "key": make_key(0)}
    with pytest.raises(error, match=f"^multistep_step_: {argument} must be"):
        ops.multistep_step_(**(good | change))
    ops.multistep_step_(**good)


def test_state_and_history_lie_apart() -> None:
    memory = torch.zeros(9)
    x, score, table, key = memory[:6].view(2, 3), torch.zeros(2, 3), steps_table(10, 2), make_key(0)
    strided = torch.zeros(2, 6)[:, ::2]
    for state, history in ((x, x), (x, memory[3:].view(2, 3)), (strided, strided)):
        with pytest.raises(ValueError, match=r"multistep_step_: history must be apart from x"):
            ops.multistep_step_(state, history, score, table, key)
    with pytest.raises(ValueError, match=r"multistep_step_: score must be apart from history"):
        ops.multistep_step_(score, x, memory[3:].view(2, 3), table, key)
