"""Random calls of every op of the library, by family, for the fuzzer.

A function of ``FAMILIES`` draws one call of an op: any arguments that the op takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from helpers import DTYPES
from torch import Tensor

from emulator.fuzz_draw import MOST, Draw, Shape

BYTES = None  # the rule of a result that has the CPU's bytes


@dataclass(frozen=True)
class Within:
    """The rule of a result that is the CPU's within rounding."""

    relative: float
    scale: float = 0.0  # a result that big is right to ``relative``, even where it cancels to 0
    rows: bool = False  # sums of rows: their bytes hang neither on the batch nor on the layout


Rule = Within | None


@dataclass(frozen=True)
class Case:
    """One call, and what is asked of its results."""

    op: str
    args: dict[str, Any]
    rules: tuple[Rule, ...]  # of the results, or of the argument that is changed
    promised: bool = True  # else there is nothing to compare with; but no fault is allowed either
    lost: Tensor | None = None  # which samples have a label out of range: on a GPU they are NaN
    sphere: bool = False  # a sample's radius may be rounded otherwise, once in 10^8 samples


Make = Callable[[Draw, str], Case]


def per_sample(shape: Shape) -> int:
    return math.prod(shape[1:])


def numbered(draw: Draw, shape: Shape) -> tuple[dict[str, Any], bool]:
    """Which noise the samples of a tensor draw; and whether there are such numbers."""
    n = draw.numbers(shape[0], per_sample(shape))
    return {"key": n.key, "sample_offset": n.sample_offset, "samples": n.samples}, n.promised


def shape_of_rows(draw: Draw, most: int = MOST) -> Shape:
    """Of what is summed."""
    return draw.long_row() if draw.chance(0.004) else draw.shape(most)


def sum_rule(dtype: torch.dtype, shape: Shape, factor: float = 1.0) -> Within:
    tolerance = factor * (1e-12 if dtype == torch.float64 else 3e-6)
    return Within(tolerance, max(1.0, per_sample(shape)) ** 0.5, rows=True)


# ---- random ------------------------------------------------------------------------------------


def random(draw: Draw, op: str) -> Case:
    shape = draw.shape()
    numbers, promised = numbered(draw, shape)
    out = draw.laid(torch.zeros(shape, dtype=draw.dtype()))
    stream = draw.choice((0, 1, 5, 2**32 - 1))
    return Case(op, {"out": out, "stream": stream, **numbers}, (BYTES,), promised)


# ---- langevin ----------------------------------------------------------------------------------


def steps_table(draw: Draw, batch: int, columns: int) -> Tensor:
    """Rows of some steps, for all samples or for each; some ask for no noise, or for no history."""
    rows = draw.below(5, 1)
    table = draw.table(rows, columns) if draw.chance(0.5) else draw.table(rows, batch, columns)
    for column in (2, 3, *range(6, columns)):
        if draw.chance(0.3):
            table[..., column] = draw.choice((0.0, -0.0))
        elif table.dim() == 3 and draw.chance(0.5):
            table[:, ::2, column] = 0
    return table


def guidance(draw: Draw, score: Tensor) -> dict[str, Any]:
    """A second term of the score and the weights of both, or neither."""
    if draw.chance(0.6):
        return {}
    shape = score.shape
    second = score if draw.chance(0.1) else draw.given(draw.values(shape, score.dtype))
    weights = draw.table(2) if draw.chance(0.5) else draw.table(shape[0], 2)
    return {"second": second, "weights": draw.given(weights)}


def limits(draw: Draw) -> tuple[float | None, float | None]:
    return draw.choice((None, -1.0, -0.0, -math.inf)), draw.choice((None, 0.75, 0.0, math.inf))


def langevin(draw: Draw, op: str) -> Case:
    """A step, or the update of a solver with a history."""
    shape, dtype, columns = draw.shape(), draw.dtype(), draw.choice((4, 4, 6))
    scores = dtype
    if dtype == torch.float32:
        scores = draw.choice((dtype, torch.bfloat16, torch.float16))
    numbers, promised = numbered(draw, shape)
    x = draw.values(shape, dtype)
    x = draw.laid(x) if op.endswith("_") else draw.given(x)
    args: dict[str, Any] = {"x": x, "score": draw.given(draw.values(shape, scores))}
    if scores == dtype and draw.chance(0.1):
        args["score"] = x
    if draw.chance(0.5):
        args["known"] = x if draw.chance(0.1) else draw.given(draw.values(shape, dtype))
        args["mask"] = draw.given(draw.mask(shape))
    args["low"], args["high"] = limits(draw)
    args.update(guidance(draw, args["score"]), **numbers)
    if op != "multistep_step_":
        return Case(op, {**args, "table": steps_table(draw, shape[0], columns)}, (BYTES,), promised)
    args["clip_low"], args["clip_high"] = limits(draw)
    args["history"] = draw.laid(draw.values(shape, dtype))
    return Case(op, {**args, "table": steps_table(draw, shape[0], 10)}, (BYTES, BYTES), promised)


# ---- runge_kutta -----------------------------------------------------------------------------


def sample_rows(draw: Draw, batch: int, columns: int) -> Tensor:
    """Numbers for all samples or for each; some are 0."""
    table = draw.table(columns) if draw.chance(0.4) else draw.table(batch, columns)
    table[..., draw.below(columns)] = draw.choice((0.0, -0.0, 1.0, 1e-60))
    if table.dim() == 2 and draw.chance(0.5):
        table[:: draw.below(4, 1), draw.below(columns)] = 0
    return table.expand(batch, columns) if draw.chance(0.1) else table


def runge_kutta(draw: Draw, op: str) -> Case:
    dtype, count = draw.dtype(), draw.below(8, 1)
    shape = shape_of_rows(draw, MOST // count) if op == "rk_error" else draw.shape(MOST // count)
    state = torch.promote_types(dtype, torch.float32)

    def given(dtype: torch.dtype) -> Tensor:
        return draw.given(draw.values(shape, dtype))

    def changed(dtype: torch.dtype) -> Tensor:
        return draw.laid(draw.values(shape, dtype))

    args: dict[str, Any] = {
        "x": given(state),
        "coefficients": sample_rows(draw, shape[0], 1 + count),
    }
    if op == "rk_advance_":
        args |= {"x": changed(state), "first": changed(dtype), "last": given(dtype)}
        args |= {"new": given(state), "accepted": draw.given(draw.mask(shape[:1]))}
        args["coefficients"] = sample_rows(draw, shape[0], 2) if draw.chance(0.7) else None
        args["out"] = changed(state) if args["coefficients"] is not None else None
        return Case(op, args, (BYTES,) * (3 if args["out"] is not None else 2))
    args["slopes"] = [given(dtype) for _ in range(count)]
    if op == "rk_stage_":
        args["out"] = changed(state)
        if draw.chance(0.3):
            args["x"] = args["out"]
    if op != "rk_error":
        return Case(op, args, (BYTES,))
    scales = sample_rows(draw, shape[0], 2).abs() + 0.1
    return Case(op, args | {"new": given(state), "tolerances": scales}, (sum_rule(dtype, shape),))


# ---- dsm ---------------------------------------------------------------------------------------


def labels_for(draw: Draw, batch: int, levels: int) -> tuple[Tensor, Tensor | None]:
    """Labels, and which of them no level has, if any."""
    labels = draw.places(levels, batch)
    if batch == 0 or not draw.chance(0.15):
        return labels, None
    wrong = draw.places(batch, 1 + batch // 10)
    labels[wrong] = draw.choice((-1, levels, -(2**63), 2**63 - 1))
    return labels, (labels < 0) | (labels >= levels)


def perturb(draw: Draw) -> Case:
    shape, levels = draw.shape(), draw.choice((1, 2, 7, 1000))
    numbers, promised = numbered(draw, shape)
    labels, lost = labels_for(draw, shape[0], levels) if draw.chance(0.6) else (None, None)
    x = draw.given(draw.values(shape, draw.dtype()))
    args = {"x": x, "table": draw.table(levels, 2), "labels": labels, **numbers}
    return Case("perturb", args, (BYTES, BYTES), promised, lost)


def upstream(draw: Draw, batch: int, expected: float) -> Tensor:
    """A gradient of each sample's loss, of which many, or all, are as expected."""
    grad = torch.full((batch,), expected, dtype=draw.choice((torch.float32, torch.float64)))
    kind = draw.below(4)
    if kind == 1 and batch:
        grad[draw.places(batch, 1)] = draw.choice((1.5, math.nan, 0.0))
    elif kind == 2:
        grad.copy_(draw.values((batch,), grad.dtype))
    elif kind == 3 and batch:
        return grad[:1].mul(draw.choice((1.0, 2.0))).expand(batch)
    return draw.given(grad, draw.layout(1))


def made_in_advance(case: Case) -> Tensor:
    """The gradient that dsm_residual_with_grad makes; where there is none, zeros."""
    if not case.promised:
        return torch.zeros_like(case.args["output"], memory_format=torch.contiguous_format)
    args, lost = dict(case.args), case.lost
    if lost is not None:
        args["labels"] = args["labels"].where(~lost, 0)
    grad: Tensor = torch.ops.fastscore.dsm_residual_with_grad(**args)[1]
    if lost is not None:
        grad[lost] = torch.nan
    return grad


def dsm(draw: Draw, op: str) -> Case:
    if op == "perturb":
        return perturb(draw)
    shape, dtype, levels = shape_of_rows(draw), draw.dtype(), draw.choice((1, 2, 7, 1000))
    numbers, promised = numbered(draw, shape)
    labels, lost = labels_for(draw, shape[0], levels)
    output = draw.given(draw.values(shape, dtype))
    args = {"output": output, "table": draw.table(levels, 3), "labels": labels, **numbers}
    if draw.chance(0.4):
        wide = torch.promote_types(dtype, torch.float32)
        args["noisy"] = draw.given(draw.values(shape, draw.choice((dtype, wide))))
        args["table"] = draw.table(levels, 4)
    loss, expected = sum_rule(dtype, shape), draw.choice((1.0, 0.25, 1 / 3))
    case = Case(op, args, (loss,), promised, lost)
    if op == "dsm_residual":
        return case
    if op == "dsm_residual_backward":
        return replace(
            case, args={**args, "grad": upstream(draw, shape[0], expected)}, rules=(BYTES,)
        )
    args["expected"] = expected
    if op == "dsm_residual_with_grad":
        return replace(case, rules=(loss, BYTES))
    assert op == "dsm_residual_regrad_"
    args["grad_output"] = draw.laid(made_in_advance(case))
    args["grad"] = upstream(draw, shape[0], expected)
    return replace(case, rules=(BYTES,))


# ---- sliced ------------------------------------------------------------------------------------


def upstream_terms(draw: Draw, count: int, batch: int, dtype: torch.dtype) -> Tensor:
    """A gradient of each projection and sample."""
    kind = draw.below(4)
    if kind == 0:
        return draw.values((count, 1), dtype).expand(count, batch)
    if kind == 1:
        return draw.values((1, 1), dtype).expand(count, batch)
    return draw.laid(draw.values((count, batch), dtype))


def sliced(draw: Draw, op: str) -> Case:
    count, dtype, distribution = draw.choice((1, 1, 2, 3, 5)), draw.dtype(), draw.below(3)
    shape = shape_of_rows(draw, MOST // count)
    numbers, promised = numbered(draw, shape)
    args = {"distribution": distribution, **numbers}
    case = Case(op, args, (BYTES,), promised, sphere=distribution == 2)
    if op == "project_":
        args["out"] = draw.laid(torch.zeros((count, *shape), dtype=dtype))
        return case
    args["score"] = draw.given(draw.values(shape, dtype))
    if op == "sliced_terms":
        args["jvp"] = draw.given(draw.values((count, *shape), dtype))
        rule = sum_rule(dtype, shape)
        square = sum_rule(dtype, shape, 10)
        return replace(case, rules=(rule, rule, square, rule))
    assert op == "sliced_terms_backward"
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    args["grad_vjv"] = upstream_terms(draw, count, shape[0], sums)
    args["grad_vs"] = upstream_terms(draw, count, shape[0], sums) if draw.chance(0.5) else None
    half_s2 = draw.given(draw.values((shape[0],), sums))
    args["grad_half_s2"] = half_s2 if draw.chance(0.5) else None
    return replace(case, rules=(BYTES, BYTES))


# ---- dual --------------------------------------------------------------------------------------

SOFTPLUS, ELU, LEAKY_RELU, ACTIVATIONS = 0, 4, 8, 9


def parameters(draw: Draw, activation: int) -> tuple[float, float]:
    if activation == SOFTPLUS:
        return draw.choice((1.0, 1.5, 0.3)), draw.choice((20.0, 1.0))
    if activation in (ELU, LEAKY_RELU):
        return draw.choice((1.0, 1.25, 0.01, 0.0)), 0.0
    return 0.0, 0.0


def dual(draw: Draw, op: str) -> Case:
    tangents, activation, dtype = draw.below(4), draw.below(ACTIVATIONS), draw.dtype()
    shape = draw.shape(MOST // (1 + tangents))
    if draw.chance(0.03):
        shape = ()
    # Where all lie alike in memory, kernels follow its order.
    alike = draw.layout(len(shape)) if draw.chance(0.5) else None
    stacked = alike.stacked() if alike else None

    def data(scale: float = 1.0) -> Tensor:
        return draw.given(draw.values(shape, dtype, scale), alike)

    def stack(slices: int, scale: float = 1.0) -> Tensor:
        return draw.given(draw.values((slices, *shape), dtype, scale), stacked)

    a, b = parameters(draw, activation)
    args: dict[str, Any] = {"activation": activation, "a": a, "b": b}
    if op.startswith("dual_stacked"):
        args["h"] = stack(1 + tangents, 3.0)
        if op == "dual_stacked_backward":
            args["grad"] = stack(1 + tangents)
    else:
        args["h"] = data(3.0)
        if op in ("dual", "dual_backward"):
            args["hdot"] = stack(tangents)
        if op in ("dual_backward", "dual_slope_backward"):
            args["grad_value"] = data()
        if op == "dual_backward":
            args["grad_tangents"] = stack(tangents)
        if op == "dual_slope_backward":
            args["grad_slope"] = data()
    # float64 activations are those of the platform's mathematics library.
    rule = Within(1e-12, 1.0) if dtype == torch.float64 else BYTES
    results = 2 if op in ("dual", "dual_backward", "dual_slope") else 1
    return Case(op, args, (rule,) * results)


# ---- all of them ---------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "random": (random, ("random_normal_", "random_uniform_", "random_rademacher_")),
    "langevin": (langevin, ("langevin_step", "langevin_step_")),
    "multistep": (langevin, ("multistep_step_",)),
    "dsm": (
        dsm,
        ("perturb", "dsm_residual", "dsm_residual_backward", "dsm_residual_with_grad",
         "dsm_residual_regrad_"),
    ),
    "runge_kutta": (runge_kutta, ("rk_stage", "rk_stage_", "rk_error", "rk_advance_")),
    "sliced": (sliced, ("project_", "sliced_terms", "sliced_terms_backward")),
    "dual": (
        dual,
        ("dual", "dual_backward", "dual_slope", "dual_slope_backward", "dual_stacked",
         "dual_stacked_backward"),
    ),
}  # fmt: skip


def infinite_neighbour(dtype: torch.dtype) -> Case:
    """Samples of one element on the sphere, of which one's noise, scaled by the radius of the next
    one, is infinite in float16."""
    args = {
        "score": torch.ones(2500, dtype=dtype), "jvp": torch.ones(3, 2500, dtype=dtype),
        "key": torch.tensor([-4216630886547464035, 77]), "distribution": 2, "sample_offset": 100,
    }  # fmt: skip
    rule = sum_rule(dtype, (2500,))
    return Case("sliced_terms", {**args, "samples": None}, (rule,) * 4, sphere=True)


# What has once been wrong, and comes by chance too seldom: every run begins with these.
KNOWN: dict[str, tuple[Callable[[torch.dtype], Case], ...]] = {"sliced": (infinite_neighbour,)}


def first_number(family: str, dtypes: Sequence[torch.dtype] = DTYPES) -> int:
    """The cases of KNOWN have numbers below 0, one for each dtype."""
    return -len(KNOWN.get(family, ())) * len(dtypes)


def drawn(
    family: str, seed: int, number: int, dtypes: Sequence[torch.dtype] = DTYPES
) -> tuple[Case, Draw]:
    """Case ``number`` of a run with that seed; all of its choices are in these words."""
    make, ops = FAMILIES[family]
    draw = Draw(family, seed, number, dtypes=dtypes)
    if number < 0:
        which, dtype = divmod(-1 - number, len(dtypes))
        return KNOWN[family][which](dtypes[dtype]), draw
    return make(draw, ops[number % len(ops)]), draw
