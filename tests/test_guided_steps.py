"""The Langevin step with a score of two terms, and with a table of six columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byte_cases import langevin_table, steps_table, two_terms
from helpers import (
    DTYPES,
    LAYOUTS,
    SHORT_SAMPLES,
    assert_accurate,
    assert_same_bytes,
    make_key,
    randn,
    with_layout,
)
from torch import Tensor

from fastscore import ops, reference
from fastscore._support.streams import Stream
from fastscore.reference.langevin import coefficients, update

SHAPES = ((0,), (3,), (3, 65), (2, 3, 5, 7), (2, 4100), *SHORT_SAMPLES[::4])
SCORE_DTYPES = [(dtype, dtype) for dtype in DTYPES] + [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]


def moved(device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in options.items()}


def fused(device: torch.device, *args: Tensor, **options: Any) -> Tensor:
    """The op's result, which both forms agree on."""
    args, options = tuple(t.to(device) for t in args), moved(device, options)
    new = ops.langevin_step(*args, **options)
    state = args[0].clone(memory_format=torch.preserve_format)
    assert ops.langevin_step_(state, *args[1:], **options) is state
    assert_same_bytes(state, new)
    return new.cpu()


def exact(x: Tensor, score: Tensor, table: Tensor, key: Tensor, **options: Any) -> Tensor:
    """The reference in float64, with the very same noise."""
    z = ops.normal_(torch.empty(x.shape), key, stream=Stream.LANGEVIN).double()
    options = {
        n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for n, v in options.items()
    }
    return update(x.double(), score.double(), z, *coefficients(table, key), **options)


def inpainting(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    known, mask = randn(*shape, dtype=dtype, seed=3), randn(*shape, seed=4) > 0.2
    return {"known": known, "mask": mask}


# ---- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "score_dtype"), SCORE_DTYPES)
def test_matches_the_reference(
    dtype: torch.dtype, score_dtype: torch.dtype, device: torch.device
) -> None:
    for shape in SHAPES:
        batch = shape[0]
        x, score = randn(*shape, dtype=dtype, seed=1), randn(*shape, dtype=score_dtype, seed=2)
        held = {**inpainting(shape, dtype), "clamp": (-0.75, 1.25)}
        for columns, own in ((4, None), (6, None), (6, batch)):
            rows = (3,) if own is None else (3, batch)
            for options in (
                two_terms(score),
                {**two_terms(score, batch), **held},
                {**held, "clamp": (None, 0.5)},
            ):
                table, key = steps_table(6, *rows)[..., :columns].contiguous(), make_key(7, 1)
                got = fused(device, x, score, table, key, **options)
                eager = reference.langevin_step(x, score, table, key, **options)
                assert got.dtype == dtype
                assert_accurate(got, eager, exact(x, score, table, key, **options))


def test_m_and_u_of_one_are_four_columns(device: torch.device) -> None:
    for dtype in DTYPES:
        for shape in ((3, 65), (2, 4100), (130, 3)):
            x, score = randn(*shape, dtype=dtype, seed=1), randn(*shape, dtype=dtype, seed=2)
            table = torch.cat([langevin_table(), torch.ones(3, 2).double()], dim=1)
            for options in (
                {},
                {**inpainting(shape, dtype), "clamp": (-0.75, 1.25)},
                two_terms(score),
                {**two_terms(score), "clamp": (-0.75, None), "sample_offset": 3},
            ):
                want = fused(device, x, score, langevin_table(), make_key(4, 1), **options)
                assert_same_bytes(fused(device, x, score, table, make_key(4, 1), **options), want)


def test_a_second_term_of_weight_zero_adds_nothing(device: torch.device) -> None:
    for dtype in DTYPES:
        x, score = randn(3, 65, dtype=dtype, seed=1), randn(3, 65, dtype=dtype, seed=2)
        terms = {**two_terms(score), "weights": torch.tensor([1.0, 0.0]).double()}
        want = fused(device, x, score, langevin_table(), make_key(4, 1))
        got = fused(device, x, score, langevin_table(), make_key(4, 1), **terms)
        assert_same_bytes(got, want)


def test_u_scales_the_bounds_and_leaves_infinite_ones(device: torch.device) -> None:
    x, score = 10 * randn(2, 1000, seed=1), torch.zeros(2, 1000)
    key = make_key(3)
    for u in (0.25, 0.0):
        table = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, u]], dtype=torch.float64)
        got = fused(device, x, score, table, key, clamp=(-2.0, 1.0))
        torch.testing.assert_close(got, x.clamp(-2 * u, u))
        for clamp in ((None, 1.0), (-torch.inf, 1.0)):
            torch.testing.assert_close(
                fused(device, x, score, table, key, clamp=clamp), x.clamp(max=u)
            )
            eager = reference.langevin_step(x, score, table, key, clamp=clamp)
            torch.testing.assert_close(eager, x.clamp(max=u))


def test_m_scales_what_is_known(device: torch.device) -> None:
    x, score, known = (randn(3, 70, seed=seed) for seed in (1, 2, 3))
    table = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.5, 1.0]], dtype=torch.float64)
    mask = torch.ones(3, 70, dtype=torch.bool)
    got = fused(device, x, score, table, make_key(3), known=known, mask=mask)
    assert_same_bytes(got, known / 2)


def test_nan_of_either_term_comes_through(device: torch.device) -> None:
    x, score = randn(2, 70, seed=1), randn(2, 70, seed=2)
    terms = two_terms(score)
    score[0, 3] = terms["second"][1, 5] = torch.nan
    table = steps_table(6, 1)
    got = fused(device, x, score, table, make_key(3), **terms, clamp=(-1.0, 1.0))
    assert got.isnan().nonzero().tolist() == [[0, 3], [1, 5]]


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout: str, device: torch.device) -> None:
    key = make_key(5, 1, device)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((2, 3, 5, 7), (3, 16, 4, 4)):
            x, score = randn(*shape, dtype=dtype, seed=1), randn(*shape, dtype=dtype, seed=2)
            options = moved(device, {**two_terms(score), **inpainting(shape, dtype)})
            x, score, table = x.to(device), score.to(device), steps_table(6, 3).to(device)
            want = ops.langevin_step(x, score, table, key, **options)
            for name in ("second", "known"):
                laid = {**options, name: with_layout(options[name], layout)}
                assert_same_bytes(ops.langevin_step(x, score, table, key, **laid), want)
            state = with_layout(x, layout)
            ops.langevin_step_(state, with_layout(score, layout), table, key, **options)
            assert_same_bytes(state, want)


def test_weights_of_any_strides(device: torch.device) -> None:
    x, score, key = randn(5, 33, seed=1), randn(5, 33, seed=2), make_key(5, 1)
    terms, table = two_terms(score, 5), langevin_table()
    want = fused(device, x, score, table, key, **terms)
    wide = torch.zeros(2, 10).double()
    wide[:, ::2] = terms["weights"].t()
    terms["weights"] = wide[:, ::2].t()
    assert_same_bytes(fused(device, x, score, table, key, **terms), want)
    terms["weights"] = terms["weights"][:1].expand(5, 2)
    same = {**terms, "weights": terms["weights"][0].clone()}
    got = fused(device, x, score, table, key, **terms)
    assert_same_bytes(got, fused(device, x, score, table, key, **same))


def test_a_term_may_be_the_state_itself(device: torch.device) -> None:
    x, score = (randn(3, 1009, seed=seed).to(device) for seed in (1, 2))
    table, key = steps_table(6, 3).to(device), make_key(5, 1, device)
    weights, mask = two_terms(score)["weights"], score > 0
    options = {"weights": weights, "mask": mask}
    want = ops.langevin_step(x, score, table, key, second=x.clone(), known=x.clone(), **options)
    assert_same_bytes(ops.langevin_step_(x, score, table, key, second=x, known=x, **options), want)


def test_samples_with_keys_and_weights_of_their_own(device: torch.device) -> None:
    for shape in ((5, 3), (5, 130)):
        x, score = randn(*shape, seed=1), randn(*shape, seed=2)
        terms, table = two_terms(score, 5), steps_table(6, 3, 5)
        keys = torch.stack([make_key(seed, seed % 4) for seed in range(5)])
        got = fused(device, x, score, table, keys, **terms)
        for i in range(5):
            own = {name: tensor[i : i + 1] for name, tensor in terms.items()}
            rows = table[:, i : i + 1].contiguous()
            alone = fused(device, x[i : i + 1], score[i : i + 1], rows, keys[i], **own)
            assert_same_bytes(alone, got[i : i + 1])


# ---- what PyTorch must know ------------------------------------------------------------------


def test_gradients(device: torch.device) -> None:
    shape = (3, 5)
    leaves = [randn(*shape, dtype=torch.float64, seed=seed).to(device) for seed in (1, 2, 3, 4)]
    mask = (randn(*shape, seed=5) > 0.2).to(device)
    for own in (None, 3):
        rows = (2,) if own is None else (2, 3)
        table, key = steps_table(6, *rows, seed=8).to(device), make_key(5, 0, device)
        weights = two_terms(leaves[0], own)["weights"]

        def step(x: Tensor, s: Tensor, t: Tensor, known: Tensor, table: Tensor = table,
                 key: Tensor = key, weights: Tensor = weights) -> Tensor:  # fmt: skip
            options = {"known": known, "mask": mask, "clamp": (-0.5, 0.75)}
            return ops.langevin_step(x, s, table, key, second=t, weights=weights, **options)

        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        assert torch.autograd.gradcheck(step, inputs)
        assert torch.autograd.gradgradcheck(step, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    shape = (5, 1009)
    upstream = randn(*shape, dtype=dtype, seed=6)
    weights, table = two_terms(torch.empty(0), 5)["weights"], steps_table(6, 3, 5)
    mask = randn(*shape, seed=4) > 0.2
    found = []
    for op, where, work in (
        (ops.langevin_step, device, dtype),
        (reference.langevin_step, "cpu", dtype),
        (reference.langevin_step, "cpu", torch.float64),
    ):
        leaves = [
            randn(*shape, dtype=dtype, seed=seed).to(where, work).requires_grad_()
            for seed in (1, 2, 3, 4)
        ]
        x, score, second, known = leaves
        options = {"second": second, "weights": weights.to(where), "mask": mask.to(where)}
        key = make_key(5, 1, where)
        new = op(x, score, table.to(where), key, known=known, clamp=(-1.0, 1.5), **options)
        found.append(torch.autograd.grad(new, leaves, upstream.to(where, work)))
    for got, eager, want in zip(*found, strict=True):
        agree = (got.cpu() == 0) == (want == 0)  # next to a bound the sides differ
        assert float(agree.double().mean()) > 0.99
        assert_accurate(
            got.cpu()[agree], eager[agree], want[agree], halves=4 if dtype == torch.float64 else 0
        )


def test_the_gradient_has_the_weights_of_the_step(device: torch.device) -> None:
    """Those at the time: a sampler may change them before backward runs."""
    x, score = (randn(2, 3, seed=seed).to(device).requires_grad_() for seed in (1, 2))
    terms = {name: tensor.to(device) for name, tensor in two_terms(score.detach()).items()}
    terms["second"].requires_grad_()
    table, key = langevin_table().to(device), make_key(5, 0, device)
    w = terms["weights"].clone()
    new = ops.langevin_step(x, score, table, key, **terms)
    terms["weights"].zero_()
    to_score, to_second = torch.autograd.grad(new.sum(), (score, terms["second"]))
    for got, weight in ((to_score, w[0]), (to_second, w[1])):
        torch.testing.assert_close(got, (table[0, 1] * weight).float().expand(2, 3))


def test_opcheck(device: torch.device) -> None:
    shape = (4, 5)
    x, score = randn(*shape, seed=1).to(device), randn(*shape, seed=2).to(device)
    options = moved(device, {**inpainting(shape, x.dtype), **two_terms(score, 4)})
    table, key = steps_table(6, 2).to(device), make_key(5, 1, device)
    rest = (options["known"], options["mask"], -1.0, 1.0, 3, None)
    rest = (*rest, options["second"], options["weights"])
    for leaves in ((x, score), tuple(t.clone().requires_grad_() for t in (x, score))):
        args = (*leaves, table, key, *rest)
        torch.library.opcheck(torch.ops.fastscore.langevin_step.default, args)
    args = (x, score, table, key, *rest)
    torch.library.opcheck(torch.ops.fastscore.langevin_step_.default, args)


def test_compile_differentiates(device: torch.device) -> None:
    x, score = (randn(4, 9, seed=seed).to(device).requires_grad_() for seed in (1, 2))
    terms = moved(device, two_terms(score.detach()))
    table, key = steps_table(6, 2).to(device), make_key(5, 0, device)

    def loss(x: Tensor, score: Tensor, second: Tensor) -> Tensor:
        new = ops.langevin_step(
            x, score * 2, table, key, second=second.sin(), weights=terms["weights"]
        )
        return new.square().sum()

    second = terms["second"].requires_grad_()
    want = torch.autograd.grad(loss(x, score, second), (x, score, second))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, score, second), (x, score, second))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_in_place_step_refuses_a_second_term_with_a_gradient(device: torch.device) -> None:
    x, score = randn(2, 3, seed=1).to(device), randn(2, 3, seed=2).to(device)
    terms = moved(device, two_terms(score))
    terms["second"].requires_grad_()
    table, key = langevin_table().to(device), make_key(0, 0, device)
    with pytest.raises((ValueError, RuntimeError), match=r"langevin_step_: .* requires grad"):
        ops.langevin_step_(x, score, table, key, **terms)
    with pytest.raises(ValueError, match=r"langevin_step_: .* requires grad"):
        reference.langevin_step_(x, score, table, key, **terms)


# ---- bad input -------------------------------------------------------------------------------

SECOND, WEIGHTS = torch.zeros(2, 3), torch.ones(2, dtype=torch.float64)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"second": SECOND}, ValueError, "weights"),
    ({"weights": WEIGHTS}, ValueError, "second"),
    ({"second": 1.0, "weights": WEIGHTS}, TypeError, "second"),
    ({"second": SECOND, "weights": (1.0, 2.0)}, TypeError, "weights"),
    ({"second": torch.zeros(3), "weights": WEIGHTS}, ValueError, "second"),
    ({"second": SECOND.double(), "weights": WEIGHTS}, ValueError, "second"),
    ({"second": SECOND.to("meta"), "weights": WEIGHTS}, ValueError, "second"),
    ({"second": SECOND, "weights": WEIGHTS.float()}, ValueError, "weights"),
    ({"second": SECOND, "weights": WEIGHTS[:1]}, ValueError, "weights"),
    ({"second": SECOND, "weights": WEIGHTS.expand(3, 2)}, ValueError, "weights"),
    ({"second": SECOND, "weights": WEIGHTS.sum()}, ValueError, "weights"),
    ({"second": SECOND, "weights": WEIGHTS.to("meta")}, ValueError, "weights"),
    ({"table": torch.ones(1, 5, dtype=torch.float64)}, ValueError, "table"),
    ({"table": torch.ones(1, 3, 6, dtype=torch.float64)}, ValueError, "table"),
]


@pytest.mark.parametrize("name", ["langevin_step", "langevin_step_"])
@pytest.mark.parametrize(("change", "error", "argument"), BAD)
def test_bad_arguments(
    name: str, change: dict[str, Any], error: type[Exception], argument: str
) -> None:
    good = {"x": torch.zeros(2, 3), "score": torch.zeros(2, 3), "table": langevin_table()}
    with pytest.raises(error, match=f"^{name}: {argument} must be"):
        getattr(ops, name)(**(good | change), key=make_key(0))


def test_the_message_names_both_widths_of_a_table() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"table must be .* 4\) or \(rows, \[batch, \] 6\)"):
        ops.langevin_step(x, x, torch.ones(1, 5, dtype=torch.float64), make_key(0))


def test_the_second_term_must_not_overlap_the_state() -> None:
    memory = torch.zeros(9)
    x, second = memory[:6].view(2, 3), memory[3:].view(2, 3)
    with pytest.raises(ValueError, match="second must be apart from x"):
        ops.langevin_step_(
            x, x.clone(), langevin_table(), make_key(0), second=second, weights=WEIGHTS
        )
