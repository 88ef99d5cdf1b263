"""One run of every op over many sizes and dtypes, as digests: for comparisons to the last byte.

Run as a program it prints them as JSON, so that a test can start it under another
``FASTSCORE_CPU_CAPABILITY``. ``ELEMENTWISE`` results are the same bytes everywhere. ``ROW_SUMS``
are the same for any number of threads and any split of the batch; between instruction sets they
may differ in the last bits, so that their values are printed instead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import torch
from helpers import DTYPES, digest, make_key, ragged_shapes, randn
from torch import Tensor

import fastscore
from fastscore import ops
from fastscore.random import Stream
from fastscore.reference.duals import ACTIVATIONS

# Long enough that several threads get work, and ragged.
LARGE = (7, 3, 5_021)

Case = Callable[[torch.dtype, tuple[int, ...]], tuple[Tensor, ...]]


def langevin_table(rows: int = 3, seed: int = 1) -> Tensor:
    """Coefficients a, b, c, k of a few steps."""
    return randn(rows, 4, dtype=torch.float64, seed=seed).abs() + 0.1


def steps_table(columns: int, *shape: int, seed: int = 1) -> Tensor:
    """Rows of 6 columns (a, b, c, k, m, u) or of 10, of shape ``shape``: the last rows have no
    noise, or no history and no clipped part."""
    table = randn(*shape, columns, dtype=torch.float64, seed=seed)
    table[..., 5].abs_().add_(0.1)
    table[-1:, ..., 2:4] = 0
    table[-2:-1, ..., 6::3] = 0
    return table


def two_terms(score: Tensor, batch: int | None = None, seed: int = 9) -> dict[str, Tensor]:
    """A second term and the weights of both, for all samples or for each."""
    weights = randn(*(() if batch is None else (batch,)), 2, dtype=torch.float64, seed=seed)
    second = randn(*score.shape, dtype=score.dtype, seed=seed).to(score.device)
    return {"second": second, "weights": weights.to(score.device)}


def dsm_tables(levels: int = 6) -> tuple[Tensor, Tensor]:
    """The tables of perturb and of dsm_residual for geometric noise levels."""
    sigma = torch.logspace(1, -2, levels, dtype=torch.float64)
    one = torch.ones_like(sigma)
    return torch.stack([one, sigma], dim=1), torch.stack([sigma, one, one], dim=1)


def random_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    key = make_key(0x0123456789ABCDEF, 3)
    fills = (ops.normal_, ops.uniform_, ops.rademacher_)
    return tuple(
        fill(torch.empty(shape, dtype=dtype), key, stream=Stream.USER, sample_offset=offset)
        for fill in fills
        for offset in (0, 13)
    )


def langevin_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    x, score, known = (randn(*shape, dtype=dtype, seed=seed) for seed in (2, 3, 4))
    mask = known > 0.3
    key = make_key(77, 1)
    plain = ops.langevin_step(x, score, langevin_table(), key, sample_offset=5)
    inpainted = ops.langevin_step(
        x, score, langevin_table(), key, known=known, mask=mask, clamp=(-1.5, 1.25)
    )
    return plain, inpainted


def langevin_mixed_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The score in ``dtype``, the state as a sampler keeps it."""
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x, score = randn(*shape, dtype=state, seed=2), randn(*shape, dtype=dtype, seed=3)
    return (ops.langevin_step_(x, score, langevin_table(), make_key(78, 2)),)


def guided_steps_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Steps with two terms and six columns, and multistep updates."""
    x, score, known = (randn(*shape, dtype=dtype, seed=seed) for seed in (2, 3, 4))
    held = {"known": known, "mask": known > 0.3, "clamp": (-1.5, 1.25)}
    found: list[Tensor] = []
    for batch in (None, shape[0]):
        table = steps_table(10, *((3,) if batch is None else (3, batch)))
        options, six = {**held, **two_terms(score, batch)}, table[..., :6].contiguous()
        found.append(ops.langevin_step(x, score, six, make_key(7, 0), **options))
        for draw in range(3):
            state, past = x.clone(), known.clone()
            found += [state, past]
            for each in ({}, options):
                args = (state, past, score, table, make_key(7, draw))
                ops.multistep_step_(*args, clip=(-1.0, 1.5), **each)
    return tuple(found)


def runge_kutta_rows(batch: int, columns: int, seed: int = 3) -> Tensor:
    """Coefficients of each sample, some of them 0."""
    rows = randn(batch, columns, dtype=torch.float64, seed=seed)
    rows[::2, columns - 1] = 0
    rows[1::3, 0] = -0.0
    return rows


def runge_kutta_data(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The state as a solver keeps it, the next one, and slopes in ``dtype``."""
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x, new = (randn(*shape, dtype=state, seed=seed) for seed in (2, 3))
    return x, new, [randn(*shape, dtype=dtype, seed=seed) for seed in (4, 5, 6)]


def runge_kutta_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    x, new, slopes = runge_kutta_data(dtype, shape)
    each = runge_kutta_rows(shape[0], 4)
    stages = [ops.rk_stage(x, slopes, rows) for rows in (each, torch.ones(4).double() / 3)]
    first, out = slopes[0].clone(), torch.empty_like(x)
    accepted = torch.arange(shape[0]) % 3 != 1
    rows = each[:, 1:3]
    ops.rk_advance_(x, first, new, slopes[1], accepted, out=out, coefficients=rows)
    return (*stages, x, first, out)


def runge_kutta_error_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    x, new, slopes = runge_kutta_data(dtype, shape)
    rows, tolerances = runge_kutta_rows(shape[0], 4), torch.tensor([1.0, 0.5]).double()
    return (ops.rk_error(x, new, slopes, rows, tolerances),)


def perturb_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    table, _ = dsm_tables()
    x = randn(*shape, dtype=dtype, seed=5)
    return ops.perturb(x, table, make_key(-3, 9), sample_offset=2)


def dsm_gradient_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    _, table = dsm_tables()
    output = randn(*shape, dtype=dtype, seed=6).requires_grad_()
    labels = torch.arange(shape[0]) % len(table)
    loss = ops.dsm_residual(output, table, labels, make_key(8, 9))
    weights = torch.linspace(0.5, 1.5, shape[0], dtype=loss.dtype)
    return torch.autograd.grad(loss, output, weights)


def noisy_table() -> Tensor:
    """The table of dsm_residual for predicted data, which meets x~ in its fourth column."""
    one, sigma = dsm_tables()[0].unbind(1)
    return torch.stack([1 / sigma, one, one, -1 / sigma], dim=1)


def noisy_gradient_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """With x~ in output's dtype and, beside half precision, in float32."""
    output, table = randn(*shape, dtype=dtype, seed=6).requires_grad_(), noisy_table()
    labels = torch.arange(shape[0]) % len(table)
    found: list[Tensor] = []
    for wide in dict.fromkeys((dtype, torch.promote_types(dtype, torch.float32))):
        noisy = randn(*shape, dtype=wide, seed=7).requires_grad_()
        loss = ops.dsm_residual(output, table, labels, make_key(8, 9), noisy=noisy)
        weights = torch.linspace(0.5, 1.5, shape[0], dtype=loss.dtype)
        found += torch.autograd.grad(loss, (output, noisy), weights)
    return tuple(found)


def noisy_loss_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    output, noisy = (randn(*shape, dtype=dtype, seed=seed) for seed in (6, 7))
    labels = torch.arange(shape[0]) % 6
    return (ops.dsm_residual(output, noisy_table(), labels, make_key(8, 9), noisy=noisy),)


def dsm_loss_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    _, table = dsm_tables()
    output = randn(*shape, dtype=dtype, seed=6)
    labels = torch.arange(shape[0]) % len(table)
    return (ops.dsm_residual(output, table, labels, make_key(8, 9)),)


def projections_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(
        ops.projections(make_key(9, 4), shape, 2, distribution=d, dtype=dtype, sample_offset=3)
        for d in ("rademacher", "gaussian", "sphere")
    )


def sliced_terms_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    score, jvp = randn(*shape, dtype=dtype, seed=6), randn(2, *shape, dtype=dtype, seed=7)
    signs = ops.sliced_terms(score, jvp, make_key(8, 9))
    return (*signs, *ops.sliced_terms(score, jvp, make_key(8, 9), distribution="sphere"))


def sliced_gradient_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Of the objective of reduced variance: that of the other one depends on a sum."""
    score = randn(*shape, dtype=dtype, seed=6).requires_grad_()
    jvp = randn(2, *shape, dtype=dtype, seed=7).requires_grad_()
    grads: list[Tensor] = []
    for distribution in ("rademacher", "gaussian"):
        vjv, _, half_s2 = ops.sliced_terms(score, jvp, make_key(8, 9), distribution=distribution)
        weights = torch.linspace(0.5, 1.5, shape[0], dtype=vjv.dtype)
        loss = ((vjv + half_s2) * weights).sum()
        grads += torch.autograd.grad(loss, (score, jvp))
    return tuple(grads)


def dual_case(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    h = (5 * randn(3, *shape, seed=8)).to(dtype).requires_grad_()
    upstream = randn(3, *shape, dtype=dtype, seed=9)
    results: list[Tensor] = []
    names = ("gelu",) if shape == LARGE else tuple(ACTIVATIONS)
    for name in names:
        out = ops.dual_stacked(h, name)
        results += [out.detach(), *torch.autograd.grad(out, h, upstream)]
        both = ops.dual_slope(h, name)
        results += [*(t.detach() for t in both)]
        results += torch.autograd.grad(both, h, (upstream, upstream.flip(0)))
    return tuple(results)


ELEMENTWISE: dict[str, Case] = {
    "random": random_case,
    "langevin": langevin_case,
    "langevin_mixed": langevin_mixed_case,
    "guided_steps": guided_steps_case,
    "runge_kutta": runge_kutta_case,
    "perturb": perturb_case,
    "dsm_gradient": dsm_gradient_case,
    "noisy_gradient": noisy_gradient_case,
    "projections": projections_case,
    "sliced_gradient": sliced_gradient_case,
    "dual": dual_case,
}
ROW_SUMS: dict[str, Case] = {
    "dsm_loss": dsm_loss_case,
    "noisy_loss": noisy_loss_case,
    "sliced_terms": sliced_terms_case,
    "runge_kutta_error": runge_kutta_error_case,
}


def runs(cases: dict[str, Case], shapes: list[tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Every case for every dtype and shape, with a name that says which."""
    for name, case in cases.items():
        for dtype in DTYPES:
            for shape in shapes:
                for i, result in enumerate(case(dtype, shape)):
                    yield f"{name} {dtype} {shape} [{i}]", result


def digests(cases: dict[str, Case], shapes: list[tuple[int, ...]]) -> dict[str, str]:
    """A digest for each result of :func:`runs`."""
    return {name: digest(result) for name, result in runs(cases, shapes)}


def main() -> None:
    shapes = [*ragged_shapes(), LARGE]
    report = {
        "capability": fastscore._C.cpu_capability(),
        "elementwise": digests(ELEMENTWISE, shapes),
        "row_sums": {name: result.tolist() for name, result in runs(ROW_SUMS, shapes)},
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
