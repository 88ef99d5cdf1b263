"""The fused Langevin step against the reference."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from byte_cases import langevin_table
from helpers import (
    DTYPES,
    LAYOUTS,
    RAGGED_SIZES,
    TINY_ALPHA,
    assert_accurate,
    assert_same_bytes,
    data_bytes,
    make_key,
    ragged_shapes,
    randn,
    with_layout,
)
from torch import Tensor

from fastscore import ops, reference
from fastscore._support.streams import Stream
from fastscore.reference.langevin import coefficients, update

SCORE_DTYPES = [(dtype, dtype) for dtype in DTYPES] + [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]
CLAMPS = (None, (-0.75, 0.5), (None, 0.5), (-0.75, None), (-math.inf, 0.5))


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, score_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """A state and its score."""
    return randn(*shape, dtype=dtype, seed=1), randn(*shape, dtype=score_dtype or dtype, seed=2)


def inpainting(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Known values and the mask that says where they are."""
    known, mask = randn(*shape, dtype=dtype, seed=3), randn(*shape, seed=4) > 0.2
    return {"known": known.to(device), "mask": mask.to(device)}


def on(device: torch.device, *values: object) -> tuple[object, ...]:
    """Tensors moved to the device; the rest as it is."""
    return tuple(v.to(device) if isinstance(v, Tensor) else v for v in values)


def step(x: Tensor, score: Tensor, table: Tensor, key: Tensor, **options: object) -> Tensor:
    """The fused step on the CPU inputs' copies on ``device`` (an option), both forms alike."""
    device = options.pop("device", torch.device("cpu"))
    x, score, table, key = on(device, x, score, table, key)
    options = dict(zip(options, on(device, *options.values()), strict=True))
    new = ops.langevin_step(x, score, table, key, **options)
    state = x.clone(memory_format=torch.preserve_format)
    assert ops.langevin_step_(state, score, table, key, **options) is state
    assert_same_bytes(state, new)
    return new.cpu()


def exact_step(x: Tensor, score: Tensor, table: Tensor, key: Tensor, **options: object) -> Tensor:
    """The reference in float64, from the very same inputs and the very same noise."""
    noise = torch.empty(x.shape)
    offset = options.pop("sample_offset", 0)
    z = ops.normal_(noise, key, stream=Stream.LANGEVIN, sample_offset=offset).double()
    if options.get("known") is not None:
        options["known"] = options["known"].double()
    return update(x.double(), score.double(), z, *coefficients(table, key), **options)


# ---- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "score_dtype"), SCORE_DTYPES)
def test_matches_the_reference(
    dtype: torch.dtype, score_dtype: torch.dtype, device: torch.device
) -> None:
    table = langevin_table()
    for shape in ragged_shapes():
        x, score = inputs(shape, dtype, score_dtype)
        for draw in (0, 2):
            key = make_key(7, draw)
            fused = step(x, score, table, key, sample_offset=3, device=device)
            assert fused.dtype == dtype
            eager = reference.langevin_step(x, score, table, key, sample_offset=3)
            exact = exact_step(x, score, table, key, sample_offset=3)
            assert_accurate(fused, eager, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("masked", [False, True])
def test_mask_and_clamp(
    dtype: torch.dtype,
    clamp: tuple[float | None, float | None] | None,
    masked: bool,
    device: torch.device,
) -> None:
    table = langevin_table()
    key = make_key(9, 1)
    for shape in [(n,) for n in RAGGED_SIZES] + [(3, 65), (2, 3, 5, 7)]:
        x, score = inputs(shape, dtype)
        options = {"clamp": clamp, **(inpainting(shape, dtype) if masked else {})}
        fused = step(x, score, table, key, **options, device=device)
        eager = reference.langevin_step(x, score, table, key, **options)
        exact = exact_step(x, score, table, key, **options)
        assert_accurate(fused, eager, exact)
        if clamp is not None and fused.numel():
            lo, hi = clamp
            assert lo is None or float(fused.min()) >= lo
            assert hi is None or float(fused.max()) <= hi


def test_known_pixels_with_k_zero_are_kept_to_the_byte(device: torch.device) -> None:
    table = torch.tensor([[1.0, 0.1, 0.3, 0.0]], dtype=torch.float64)
    for dtype in DTYPES:
        x, score = inputs((4, 65), dtype)
        options = inpainting((4, 65), dtype)
        fused = step(x, score, table, make_key(1), **options, device=device)
        assert_same_bytes(fused[options["mask"]], options["known"][options["mask"]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_coefficients_of_each_sample(dtype: torch.dtype, device: torch.device) -> None:
    for shape in ((5,), (5, 13), (5, 3, 64), (5, 4100)):
        table = randn(3, 5, 4, dtype=torch.float64, seed=8)
        table[1, 2, 2] = 0.0
        x, score = inputs(shape, dtype)
        for options in ({}, {"clamp": (-1.0, 1.0)}, inpainting(shape, dtype)):
            key = make_key(4, 1)
            fused = step(x, score, table, key, **options, device=device)
            eager = reference.langevin_step(x, score, table, key, **options)
            exact = exact_step(x, score, table, key, **options)
            assert_accurate(fused, eager, exact)
        for b in range(5):
            alone = step(
                x[b : b + 1],
                score[b : b + 1],
                table[:, b].clone(),
                key,
                sample_offset=b,
                device=device,
            )
            together = step(x, score, table, key, device=device)
            assert_same_bytes(alone, together[b : b + 1])


@pytest.mark.parametrize("draw", [0, 1, 2, 3, 1000, 2**31, 2**33 + 1])
def test_the_draw_selects_the_row_and_the_last_row_stays(draw: int, device: torch.device) -> None:
    table = langevin_table(rows=3)
    x, score = inputs((3, 50), torch.float32)
    key = make_key(2, draw)
    alone = step(x, score, table[min(draw, 2)][None], key, device=device)
    assert_same_bytes(step(x, score, table, key, device=device), alone)


def test_without_noise_the_key_does_not_matter(device: torch.device) -> None:
    table = torch.tensor([[0.9, 0.2, 0.0, 0.0]], dtype=torch.float64)
    x, score = inputs((3, 129), torch.float32)
    want = step(x, score, table, make_key(1, 0), device=device)
    assert_same_bytes(step(x, score, table, make_key(2, 5), device=device), want)
    torch.testing.assert_close(want, 0.9 * x + 0.2 * score)


def test_nan_and_infinity_propagate(device: torch.device) -> None:
    table = langevin_table()
    for dtype in DTYPES:
        x, score = inputs((2, 70), dtype)
        x[0, 3], x[1, 69], x[0, 64] = torch.nan, torch.nan, torch.inf
        score[0, 5], score[1, 66], score[1, 4] = torch.nan, torch.nan, -torch.inf
        for options in ({}, {"clamp": (-1.0, 1.0)}, {"clamp": (-math.inf, 1.0)}):
            fused = step(x, score, table, make_key(3), **options, device=device)
            eager = reference.langevin_step(x, score, table, make_key(3), **options)
            assert torch.equal(fused.isnan(), eager.isnan())
            assert torch.equal(fused.isinf(), eager.isinf())
        options = inpainting((2, 70), dtype)
        options["mask"][0, 3] = options["mask"][0, 5] = True
        fused = step(x, score, table, make_key(3), **options, device=device)
        assert bool(fused[0, [3, 5]].isfinite().all())
        options["known"][0, 3] = torch.nan
        fused = step(x, score, table, make_key(3), **options, device=device)
        assert bool(fused[0, 3].isnan())


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("score_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_any_memory_layout(x_layout: str, score_layout: str, device: torch.device) -> None:
    table, key = langevin_table().to(device), make_key(5, 1, device)
    for dtype, score_dtype in ((torch.float32, torch.float32), (torch.float32, torch.bfloat16)):
        for shape in ((2, 3, 5, 7), (3, 16, 4, 4), (1, 1, 1, 1), (2, 0, 3, 3)):
            x, score = on(device, *inputs(shape, dtype, score_dtype))
            fill_in = inpainting(shape, dtype, device)
            want = ops.langevin_step(x, score, table, key, **fill_in)
            x, score = with_layout(x, x_layout), with_layout(score, score_layout)
            fill_in["mask"] = with_layout(fill_in["mask"], x_layout)
            fill_in["known"] = with_layout(fill_in["known"], score_layout)
            assert_same_bytes(ops.langevin_step(x, score, table, key, **fill_in), want)
            strides = x.stride()
            ops.langevin_step_(x, score, table, key, **fill_in)
            assert x.stride() == strides
            assert_same_bytes(x, want)


def test_the_new_tensor_keeps_channels_last(device: torch.device) -> None:
    x, score = on(device, *inputs((3, 16, 4, 4), torch.float32))
    x = x.to(memory_format=torch.channels_last)
    new = ops.langevin_step(x, score, *on(device, langevin_table(), make_key(1)))
    assert new.is_contiguous(memory_format=torch.channels_last)


def test_expanded_score_known_and_mask(device: torch.device) -> None:
    x, row = on(device, *inputs((6, 33), torch.float32))
    table, key = on(device, langevin_table(), make_key(5, 1))
    score, known = row[:1].expand(6, 33), row[:, :1].expand(6, 33)
    mask = torch.tensor(True, device=device).expand(6, 33)
    want = ops.langevin_step(
        x, score.contiguous(), table, key, known=known.contiguous(), mask=mask.contiguous()
    )
    assert_same_bytes(ops.langevin_step(x, score, table, key, known=known, mask=mask), want)
    plain = ops.langevin_step(x, score.contiguous(), table, key)
    assert_same_bytes(ops.langevin_step(x, score, table, key), plain)
    assert_same_bytes(ops.langevin_step_(x, score, table, key), plain)


def test_expanded_state_in_the_functional_form(device: torch.device) -> None:
    x, score = on(device, *inputs((6, 33), torch.float32))
    table, key = on(device, langevin_table(), make_key(5, 1))
    x = x[:1].expand(6, 33)
    want = ops.langevin_step(x.contiguous(), score, table, key)
    assert_same_bytes(ops.langevin_step(x, score, table, key), want)


def test_table_and_key_may_be_rows_of_larger_ones(device: torch.device) -> None:
    x, score = on(device, *inputs((3, 33), torch.float32))
    table, keys = on(device, langevin_table(), torch.stack([make_key(5, d) for d in range(3)]))
    want = ops.langevin_step(x, score, table[1:].clone(), keys[1].clone())
    assert_same_bytes(ops.langevin_step(x, score, table[1:], keys[1]), want)


def test_the_score_may_be_the_state_itself(device: torch.device) -> None:
    x, _ = on(device, *inputs((3, 1009), torch.float32))
    table, key = on(device, langevin_table(), make_key(5, 1))
    want = ops.langevin_step(x, x.clone(), table, key)
    assert_same_bytes(ops.langevin_step_(x, x, table, key), want)


def test_the_known_values_may_be_the_state_itself(device: torch.device) -> None:
    """Keeping the state where the mask is set."""
    x, score = on(device, *inputs((3, 1009), torch.float32))
    table, key = on(device, langevin_table(), make_key(5, 1))
    mask = inpainting((3, 1009), torch.float32, device)["mask"]
    want = ops.langevin_step(x, score, table, key, known=x.clone(), mask=mask)
    assert_same_bytes(ops.langevin_step(x, score, table, key, known=x, mask=mask), want)
    assert_same_bytes(ops.langevin_step_(x, score, table, key, known=x, mask=mask), want)


@pytest.mark.parametrize("in_place", [False, True])
def test_changes_nothing_but_the_state(in_place: bool, device: torch.device) -> None:
    shape = (3, 65)
    x, score = on(device, *inputs(shape, torch.float32))
    buffer = torch.full((5, 140), 7.0, device=device)
    buffer[1:4, 4:134:2] = x
    x = buffer[1:4, 4:134:2]
    fill_in = inpainting(shape, x.dtype, device)
    arguments = [score, *on(device, langevin_table(), make_key(5, 1)), *fill_in.values()]
    before = [data_bytes(argument) for argument in (*arguments, x)]
    op = ops.langevin_step_ if in_place else ops.langevin_step
    new = op(x, *arguments[:3], **fill_in, clamp=(-1.0, 1.0))
    after = [data_bytes(argument) for argument in (*arguments, x)]
    assert after[:-1] == before[:-1]
    assert (after[-1] == before[-1]) is not in_place
    assert (new.data_ptr() == x.data_ptr()) is in_place
    buffer[1:4, 4:134:2] = 7.0
    assert bool((buffer == 7.0).all())


# ---- where the noise lies --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9,), (9, 5), (9, 64), (9, 3, 43)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shard_steps_as_in_the_whole_batch(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    x, score = inputs(shape, dtype)
    options = inpainting(shape, dtype)
    table, key = langevin_table(), make_key(-8, 1)
    whole = step(x, score, table, key, **options, sample_offset=4, device=device)
    for cut in range(10):
        parts = [
            step(
                x[rows],
                score[rows],
                table,
                key,
                known=options["known"][rows],
                mask=options["mask"][rows],
                sample_offset=4 + start,
                device=device,
            )
            for start, rows in ((0, slice(0, cut)), (cut, slice(cut, None)))
        ]
        assert_same_bytes(torch.cat(parts), whole)


def test_flat_indices_beyond_2_to_the_34(device: torch.device) -> None:
    x, score = inputs((3, 70), torch.float32)
    table, key = langevin_table(), make_key(5, 2**31 + 7)
    for offset in (2**34 // 70 - 1, 2**36):  # the first one crosses the carry
        fused = step(x, score, table, key, sample_offset=offset, device=device)
        eager = reference.langevin_step(x, score, table, key, sample_offset=offset)
        torch.testing.assert_close(fused, eager)


def test_steps_use_fresh_noise_that_is_normal(device: torch.device) -> None:
    table = torch.tensor([[0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    x = torch.zeros(300_007)
    z = [step(x, x, table, make_key(5, draw), device=device) for draw in range(4)]
    for noise in z:
        assert scipy.stats.kstest(noise.double().numpy(), "norm").pvalue > TINY_ALPHA
    correlation = torch.corrcoef(torch.stack(z)).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5.5 / x.numel() ** 0.5


def test_langevin_settles_at_the_discretised_variance(device: torch.device) -> None:
    """x <- x - eta x + sqrt(2 eta) z on N(0, 1) has variance 2 / (2 - eta)."""
    eta = 0.3
    row = [1.0, eta, (2 * eta) ** 0.5, 0.0]
    table = torch.tensor([row], dtype=torch.float64, device=device)
    x = torch.zeros(200_000, device=device)
    key = make_key(6, 0, device)
    for _ in range(40):
        ops.langevin_step_(x, -x, table, key)
        key[1] += 1
    assert float(x.double().var()) == pytest.approx(2 / (2 - eta), rel=0.02)


# ---- what PyTorch must know ------------------------------------------------------------------


def test_gradients(device: torch.device) -> None:
    shape = (3, 5)
    x, score = on(device, *inputs(shape, torch.float64))
    known, mask = inpainting(shape, torch.float64, device).values()
    for table in (langevin_table(), randn(2, 3, 4, dtype=torch.float64, seed=8)):
        table, key = on(device, table, make_key(5, 1))

        def plain(x: Tensor, score: Tensor, table: Tensor = table, key: Tensor = key) -> Tensor:
            return ops.langevin_step(x, score, table, key)

        def inpainted(
            x: Tensor, score: Tensor, known: Tensor, table: Tensor = table, key: Tensor = key
        ) -> Tensor:
            options = {"known": known, "mask": mask, "clamp": (-0.5, 0.75)}
            return ops.langevin_step(x, score, table, key, **options)

        leaves = [t.clone().requires_grad_() for t in (x, score, known)]
        assert torch.autograd.gradcheck(plain, leaves[:2])
        assert torch.autograd.gradcheck(inpainted, leaves)
        assert torch.autograd.gradgradcheck(inpainted, leaves)


@pytest.mark.parametrize(("dtype", "score_dtype"), SCORE_DTYPES)
def test_gradients_have_the_inputs_dtypes(
    dtype: torch.dtype, score_dtype: torch.dtype, device: torch.device
) -> None:
    x, score = (t.requires_grad_() for t in on(device, *inputs((3, 65), dtype, score_dtype)))
    table, key = on(device, langevin_table(), make_key(5, 1))
    grads = torch.autograd.grad(ops.langevin_step(x, score, table, key).sum(), (x, score))
    assert [g.dtype for g in grads] == [dtype, score_dtype]
    for grad, coefficient in zip(grads, table[1], strict=False):
        want = coefficient.to(grad.dtype).expand_as(grad)
        torch.testing.assert_close(grad, want)


def test_gradient_for_the_score_alone(device: torch.device) -> None:
    x, score = on(device, *inputs((3, 5), torch.float32))
    table, key = on(device, langevin_table(), make_key(5, 0))
    score.requires_grad_()
    ops.langevin_step(x, score, table, key).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(score.grad, table[0, 1].float().expand(3, 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_accurate(dtype: torch.dtype, device: torch.device) -> None:
    shape = (5, 1009)
    upstream = randn(*shape, dtype=dtype, seed=6)
    options = {**inpainting(shape, dtype), "clamp": (-1.0, 1.5)}
    for table in (langevin_table(), randn(2, 5, 4, dtype=torch.float64, seed=8)):
        results = []
        for op, where, work in (
            (ops.langevin_step, device, dtype),
            (reference.langevin_step, "cpu", dtype),
            (reference.langevin_step, "cpu", torch.float64),
        ):
            leaves = [t.to(where, work).requires_grad_() for t in inputs(shape, dtype)]
            known = options["known"].to(where, work).requires_grad_()
            new = op(
                *leaves,
                table.to(where),
                make_key(5, 1, where),
                known=known,
                mask=options["mask"].to(where),
                clamp=options["clamp"],
            )
            results.append(torch.autograd.grad(new, (*leaves, known), upstream.to(where, work)))
        for fused, eager, exact in zip(*results, strict=True):
            # Next to a bound the clamped and the free side differ: compare where they agree.
            agree = (fused.cpu() == 0) == (exact == 0)
            assert float(agree.double().mean()) > 0.99
            assert_accurate(fused.cpu()[agree], eager[agree], exact[agree])


def test_the_gradient_at_known_pixels_stays_there(device: torch.device) -> None:
    """Even an infinite one: it is not multiplied by zero."""
    x, score, known, table, key = on(device, *torch.zeros(3, 1, 2), langevin_table(), make_key(5))
    leaves = [t.clone().requires_grad_() for t in (x, score, known)]
    mask = torch.tensor([[True, False]], device=device)
    new = ops.langevin_step(*leaves[:2], table, key, known=leaves[2], mask=mask)
    upstream = torch.tensor([[torch.inf, torch.nan]], device=device)
    for grad, at in zip(torch.autograd.grad(new, leaves, upstream), (1, 1, 0), strict=True):
        assert float(grad[0, 1 - at]) == 0
        assert not bool(grad[0, at].isfinite())


def test_autograd_notices_the_change_in_place(device: torch.device) -> None:
    x, score, table, key = on(device, *torch.ones(2, 2, 3), langevin_table(), make_key(5))
    weight = torch.ones_like(x).requires_grad_()
    product = (weight * x).sum()  # saves x
    ops.langevin_step_(x, score, table, key)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_opcheck(device: torch.device) -> None:
    for shape in ((4, 5), (0, 3), (7,)):
        x, score = on(device, *inputs(shape, torch.float32))
        known, mask = inpainting(shape, torch.float32, device).values()
        table, key = on(device, langevin_table(), make_key(5, 1))
        for extra in ((None, None, None, None, 0), (known, mask, -1.0, 1.0, 3)):
            arguments = (x, score, table, key, *extra)
            torch.library.opcheck(torch.ops.fastscore.langevin_step_.default, arguments)
            torch.library.opcheck(torch.ops.fastscore.langevin_step.default, arguments)
            leaves = [t.clone().requires_grad_() for t in (x, score)]
            arguments = (*leaves, table, key, *extra)
            torch.library.opcheck(torch.ops.fastscore.langevin_step.default, arguments)


def test_compile_fullgraph(device: torch.device) -> None:
    def two_steps(x: Tensor, score: Tensor, table: Tensor, key: Tensor) -> Tensor:
        x = x.clone()
        ops.langevin_step_(x, score, table, key)
        key = torch.stack([key[0], key[1] + 1])
        return ops.langevin_step(x, torch.tanh(x), table, key, clamp=(-2.0, 2.0))

    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    table, key = on(device, langevin_table(), make_key(5, 0))
    for batch in (4, 6):
        x, score = on(device, *inputs((batch, 9), torch.float32))
        assert_same_bytes(compiled(x, score, table, key), two_steps(x, score, table, key))


def test_compile_differentiates(device: torch.device) -> None:
    def loss(x: Tensor, score: Tensor, table: Tensor, key: Tensor) -> Tensor:
        return ops.langevin_step(x, score * 2, table, key).square().sum()

    x, score, table, key = on(
        device, *inputs((4, 9), torch.float32), langevin_table(), make_key(5, 0)
    )
    x.requires_grad_()
    (want,) = torch.autograd.grad(loss(x, score, table, key), x)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(x, score, table, key), x)
    torch.testing.assert_close(got, want)


def test_no_gradient_through_the_in_place_step(device: torch.device) -> None:
    x, score, table, key = on(
        device, *inputs((4, 9), torch.float32), langevin_table(), make_key(5, 0)
    )
    for name in ("x", "score", "known"):
        leaves = {"x": x.clone(), "score": score.clone(), "known": score.clone()}
        leaves["mask"] = score > 0
        leaves[name].requires_grad_()
        with pytest.raises((ValueError, RuntimeError), match=r"langevin_step_: .* requires grad"):
            ops.langevin_step_(**leaves, table=table, key=key)
        with torch.no_grad():
            ops.langevin_step_(**leaves, table=table, key=key)
