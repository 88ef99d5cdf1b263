"""What test_parity compares: every op on data that is equal on all devices.

The results of ``ELEMENTWISE`` are the same bytes everywhere. ``residuals`` and ``terms`` are sums,
which have an order of their own on each device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from byte_cases import (
    dsm_tables,
    langevin_table,
    noisy_table,
    runge_kutta_rows,
    steps_table,
    two_terms,
)
from helpers import assert_same_bytes, make_key, ragged_shapes, randn, with_layout
from torch import Tensor

from fastscore import ops
from fastscore.random import Stream

Shape = tuple[int, ...]
Results = tuple[Tensor, ...]
Make = Callable[..., Tensor]  # Make(*shape, seed=): data of one dtype, layout and device
Case = Callable[[Make, Shape, torch.device], Results]

ACTIVATIONS = (
    "softplus", "silu", "tanh", "sigmoid", "elu", "gelu", "gelu_tanh", "relu", "leaky_relu",
)  # fmt: skip
DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")
# Samples of 1, 2, 8, ... elements and of several segments of the kernels that sum them, and whole
# tiles.
SHAPES = [
    *ragged_shapes(),
    (4, 8),
    (16, 4),
    (3, 1025),
    (2, 4, 4, 8),
    (2, 8, 40, 33),
    (2, 16_384),
    (2, 40_001),
]
LONG_BATCH = (70_001, 2)


def maker(dtype: torch.dtype, layout: str, device: torch.device) -> Make:
    """Data that is equal on all devices, laid out alike."""

    def make(*shape: int, seed: int) -> Tensor:
        x = randn(*shape, dtype=dtype, seed=seed).to(device)
        return with_layout(x, layout)

    return make


def shapes_for(layout: str) -> list[Shape]:
    if layout == "contiguous":
        return [*SHAPES, LONG_BATCH]
    return [shape for shape in SHAPES if layout != "channels_last" or len(shape) == 4]


# ---- elementwise ops -------------------------------------------------------------------------


def fills(make: Make, shape: Shape, device: torch.device) -> Results:
    key = make_key(0x0123456789ABCDEF, 3, device)
    return tuple(
        fill(make(*shape, seed=0), key, stream=Stream.USER, sample_offset=offset)
        for fill in (ops.normal_, ops.uniform_, ops.rademacher_)
        for offset in (0, 13, 2**33)
    )


def steps(make: Make, shape: Shape, device: torch.device) -> Results:
    key, table = make_key(77, 1, device), langevin_table().to(device)
    each = torch.stack([langevin_table(max(shape[0], 1), seed=i)[: shape[0]] for i in (3, 4)])
    each[:, ::2, 2] = 0
    each, quiet = each.to(device), table * torch.tensor([1, 1, 0, 0], device=device)
    x, score, known = (make(*shape, seed=seed) for seed in (2, 3, 4))
    held = {"known": known, "mask": known > 0.3}
    step = ops.langevin_step
    return (
        step(x, score, table, key, sample_offset=5),
        step(x, score, table, key, **held, clamp=(-1.5, 1.25)),
        step(x, score, each, key, sample_offset=3),
        step(x, score, each, key, **held, clamp=(None, 0.5)),
        step(x, score, quiet, key, sample_offset=1),
        ops.langevin_step_(x.clone(), score, table, key),
    )


def steps_in_float32(make: Make, shape: Shape, device: torch.device) -> Results:
    """A state that a sampler keeps in float32 while the network's scores are narrower."""
    score, key, table = make(*shape, seed=3), make_key(78, 2, device), langevin_table().to(device)
    x = randn(*shape, seed=2).to(device)
    if score.dtype == torch.float64:
        x = x.double()
    held = {"known": x.flip(0), "mask": x > 0.3, "clamp": (-1.5, None)}
    return tuple(ops.langevin_step_(x.clone(), score, table, key, **o) for o in ({}, held))


def guided_steps(make: Make, shape: Shape, device: torch.device) -> Results:
    """Two terms and six columns, or ten, for all samples or for each."""
    x, score, known, past = (make(*shape, seed=seed) for seed in (2, 3, 4, 5))
    held = {"known": known, "mask": known > 0.3, "clamp": (-1.5, 1.25)}
    every = {**held, **two_terms(score, shape[0]), "sample_offset": 3}
    found: list[Tensor] = []
    for draw, rows, options in ((0, (3,), two_terms(score)), (1, (3, shape[0]), every)):
        key, table = make_key(7, draw, device), steps_table(10, *rows).to(device)
        six = table[..., :6].contiguous()
        found.append(ops.langevin_step(x, score, six, key, **options))
        state, history = x.clone(), past.clone()
        found += [state, history]
        ops.multistep_step_(state, history, score, table, key, clip=(-1.0, None), **options)
    return tuple(found)


def runge_kutta_data(make: Make, shape: Shape, device: torch.device) -> tuple[Any, ...]:
    """State, the next one, slopes, and coefficients of each sample."""
    slopes = [make(*shape, seed=seed) for seed in (3, 4, 5)]
    wide = torch.promote_types(slopes[0].dtype, torch.float32)
    x, new = (make(*shape, seed=seed).to(wide) for seed in (2, 6))
    return x, new, slopes, runge_kutta_rows(shape[0], 4).to(device)


def runge_kutta_steps(make: Make, shape: Shape, device: torch.device) -> Results:
    x, new, slopes, each = runge_kutta_data(make, shape, device)
    shared = (each.cpu().mean(0) + 1).to(device)  # devices add in different orders
    found = [ops.rk_stage(x, slopes, rows) for rows in (each, shared)]
    found.append(ops.rk_stage(x, slopes[:1], each[:, :2], out=new.clone()))
    for options in ({}, {"out": torch.empty_like(x), "coefficients": each[:, 1:3]}):
        state, first = x.clone(), slopes[0].clone()
        accepted = torch.arange(shape[0], device=device) % 3 != 1
        ops.rk_advance_(state, first, new, slopes[1], accepted, **options)
        found += [state, first, *([options["out"]] if options else [])]
    return tuple(found)


def perturbed(make: Make, shape: Shape, device: torch.device) -> Results:
    table, x = dsm_tables()[0].to(device), make(*shape, seed=5)
    labels = torch.arange(shape[0], device=device) % len(table)
    key = make_key(-3, 9, device)
    drawn = ops.perturb(x, table, key, sample_offset=2)
    return (*drawn, ops.perturb(x, table, key, labels=labels)[0])


def residual_gradients(make: Make, shape: Shape, device: torch.device) -> Results:
    table, output = dsm_tables()[1].to(device), make(*shape, seed=6).requires_grad_()
    labels = torch.arange(shape[0], device=device) % len(table)
    loss = ops.dsm_residual(output, table, labels, make_key(8, 9, device), sample_offset=1)
    weights = torch.linspace(0.5, 1.5, shape[0], dtype=loss.dtype).to(device)
    return torch.autograd.grad(loss, output, weights)


def gradients_in_advance(make: Make, shape: Shape, device: torch.device) -> Results:
    """Made with the loss for an upstream gradient of 1/4, then for the true one."""
    table, output = dsm_tables()[1].to(device), make(*shape, seed=6)
    labels = torch.arange(shape[0], device=device) % len(table)
    args, raw = (output, table, labels, make_key(8, 9, device), 1), torch.ops.fastscore
    quarter = torch.full((shape[0],), 0.25, dtype=torch.float64, device=device)
    some, wide = quarter.clone(), quarter.new_zeros(2 * shape[0])
    some[::3], wide[::2] = 1.5, quarter
    found: list[Tensor] = []
    for upstream in (quarter, some.float(), wide[::2], quarter[:1].expand(shape[0]), 2 * quarter):
        _, grad = raw.dsm_residual_with_grad(*args, 0.25)
        found.append(grad.clone())
        raw.dsm_residual_regrad_(grad, upstream, 0.25, *args)
        assert_same_bytes(grad, raw.dsm_residual_backward(upstream, *args))
        found.append(grad)
    return tuple(found)


def noisy_outputs(make: Make, shape: Shape, device: torch.device) -> Iterator[Results]:
    """An output, beside x~ of its dtype and, if it is of half precision, of float32."""
    output, noisy = (make(*shape, seed=seed) for seed in (6, 7))
    yield output, noisy
    if output.element_size() == 2:
        yield output, noisy.float()


def noisy_gradients(make: Make, shape: Shape, device: torch.device) -> Results:
    """Of the residual that meets x~; made on the way, or for an upstream gradient, or mended."""
    table, raw = noisy_table().to(device), torch.ops.fastscore
    labels = torch.arange(shape[0], device=device) % len(table)
    weights = torch.linspace(0.5, 1.5, shape[0]).to(device)
    weights[1::2] = 0.25
    found: list[Tensor] = []
    plain, each = (make_key(8, 9, device), {}), numberings(shape[0], device)
    for output, noisy in noisy_outputs(make, shape, device):
        for key, samples in (plain, next(each)):
            args, last = (output, table, labels, key, 0), {**samples, "noisy": noisy}
            grad = raw.dsm_residual_with_grad(*args, 0.25, **last)[1]
            found.append(grad.clone())
            raw.dsm_residual_regrad_(grad, weights, 0.25, *args, **last)
            assert_same_bytes(grad, raw.dsm_residual_backward(weights, *args, **last))
            found.append(grad)
    return tuple(found)


def projected(make: Make, shape: Shape, device: torch.device) -> Results:
    dtype = make(1, 1, 1, 1, seed=0).dtype
    return tuple(
        ops.projections(
            make_key(4, 5, device), shape, 3, distribution=d, dtype=dtype, sample_offset=7
        )
        for d in DISTRIBUTIONS
    )


def sliced_gradients(make: Make, shape: Shape, device: torch.device) -> Results:
    found: list[Tensor] = []
    for count in (1, 3):
        for distribution in DISTRIBUTIONS:
            s = make(*shape, seed=7)
            s.mul_(s > 0)  # zeros of both signs, as the score of an image has them
            s.requires_grad_()
            jvp = torch.stack([make(*shape, seed=8 + m) for m in range(count)]).requires_grad_()
            terms = ops.sliced_terms(s, jvp, make_key(4, 5, device), distribution=distribution)
            upstream = [randn(*t.shape, seed=11).to(t) for t in terms]
            # Through v'Jv and |s|^2/2 alone: (v's)^2/2 hands v's on, which is a sum.
            found += torch.autograd.grad((terms[0], terms[2]), (s, jvp), upstream[::2])
    return tuple(found)


def duals(make: Make, shape: Shape, device: torch.device) -> Results:
    found: list[Tensor] = []
    for activation in ACTIVATIONS:
        name, params = activation, {}
        if activation == "gelu_tanh":
            name, params = "gelu", {"approximate": "tanh"}
        stack = torch.stack([3 * make(*shape, seed=m) for m in range(4)]).requires_grad_()
        h = make(*shape, seed=5).requires_grad_()
        hdot = torch.stack([make(*shape, seed=6)]).requires_grad_()
        outputs = (ops.dual_stacked(stack, name, **params), *ops.dual(h, hdot, name, **params))
        found += (output.detach() for output in outputs)
        upstream = [randn(*t.shape, seed=9).to(t) for t in outputs]
        found += torch.autograd.grad(outputs, (stack, h, hdot), upstream)
        both = ops.dual_slope(h, name, **params)
        found += (t.detach() for t in both)
        found += torch.autograd.grad(both, h, upstream[1:2] * 2)
    return tuple(found)


def numberings(batch: int, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Samples with numbers in no order, some twice; samples with keys of their own."""
    numbers = torch.arange(batch) * 5 % max(batch - 1, 1) + 2**33
    yield make_key(0x0123456789ABCDEF, 3, device), {"samples": numbers.to(device)}
    seeds = torch.arange(batch) // 2 * 2**55 - 3
    draws = torch.tensor([0, 2, 1, 7, 3, 2**32 - 1]).repeat(batch // 6 + 1)[:batch]
    yield torch.stack([seeds, draws], dim=1).to(device), {}


def numbered_fills(make: Make, shape: Shape, device: torch.device) -> Results:
    return tuple(
        fill(make(*shape, seed=0), key, stream=Stream.USER, **samples)
        for key, samples in numberings(shape[0], device)
        for fill in (ops.normal_, ops.uniform_, ops.rademacher_)
    )


def numbered_steps(make: Make, shape: Shape, device: torch.device) -> Results:
    """A table for all and one of each sample; a state as narrow as the scores, and float32."""
    table, own = langevin_table().to(device), randn(3, shape[0], 4, dtype=torch.float64, seed=5)
    own[:, ::3, 2] = 0  # samples without noise
    score, known, own = make(*shape, seed=3), make(*shape, seed=4), own.to(device)
    wide = randn(*shape, seed=2).to(device, torch.promote_types(score.dtype, torch.float32))
    found: list[Tensor] = []
    for key, samples in numberings(shape[0], device):
        for x, fixed in ((make(*shape, seed=2), known), (wide, known.to(wide.dtype))):
            held = {"known": fixed, "mask": known > 0.3, "clamp": (-1.5, 1.25)}
            for rows in (table, own):
                for options in ({}, held):
                    y = x.clone()
                    found.append(ops.langevin_step_(y, score, rows, key, **options, **samples))
    return tuple(found)


def numbered_guided_steps(make: Make, shape: Shape, device: torch.device) -> Results:
    score, known = make(*shape, seed=3), make(*shape, seed=4)
    held = {"known": known, "mask": known > 0.3, "clamp": (-1.5, 1.25)}
    found: list[Tensor] = []
    for key, samples in numberings(shape[0], device):
        for rows, options in (((3,), {}), ((3, shape[0]), {**held, **two_terms(score, shape[0])})):
            table = steps_table(10, *rows).to(device)
            six, x, past = table[..., :6].contiguous(), make(*shape, seed=2), known.clone()
            found += [ops.langevin_step(x, score, six, key, **options, **samples), x, past]
            ops.multistep_step_(x, past, score, table, key, clip=(-1, 1), **options, **samples)
    return tuple(found)


def numbered_perturbations(make: Make, shape: Shape, device: torch.device) -> Results:
    table, x = dsm_tables()[0].to(device), make(*shape, seed=5)
    labels = torch.arange(shape[0], device=device) % len(table)
    found: list[Tensor] = []
    for key, samples in numberings(shape[0], device):
        found += ops.perturb(x, table, key, **samples)
        found += ops.perturb(x, table, key, labels=labels, **samples)
    return tuple(found)


def numbered_residuals(make: Make, shape: Shape, device: torch.device) -> Results:
    """Their gradients: the residuals themselves are sums."""
    table, output, raw = dsm_tables()[1].to(device), make(*shape, seed=6), torch.ops.fastscore
    labels = torch.arange(shape[0], device=device) % len(table)
    weights = torch.linspace(0.5, 1.5, shape[0]).to(device)
    found: list[Tensor] = []
    for key, samples in numberings(shape[0], device):
        args = (output, table, labels, key, 0, samples.get("samples"))
        found.append(raw.dsm_residual_backward(weights, *args))
        grad = raw.dsm_residual_with_grad(*args[:-1], 0.25, args[-1])[1]
        found.append(grad.clone())
        raw.dsm_residual_regrad_(grad, weights, 0.25, *args)
        found.append(grad)
    return tuple(found)


def numbered_projections(make: Make, shape: Shape, device: torch.device) -> Results:
    score, raw = make(*shape, seed=7), torch.ops.fastscore
    upstream = randn(2, shape[0], seed=11).to(device)
    found: list[Tensor] = []
    for key, samples in numberings(shape[0], device):
        for number, name in enumerate(DISTRIBUTIONS):
            options = {"distribution": name, "dtype": score.dtype, **samples}
            found.append(ops.projections(key, shape, 2, **options))
            wide = upstream.double() if score.dtype == torch.float64 else upstream
            args = (wide, None, wide[0].clone(), score, key, number, 0, samples.get("samples"))
            found += raw.sliced_terms_backward(*args)
    return tuple(found)


ELEMENTWISE: dict[str, Case] = {
    "fills": fills,
    "steps": steps,
    "steps_in_float32": steps_in_float32,
    "guided_steps": guided_steps,
    "runge_kutta_steps": runge_kutta_steps,
    "perturbed": perturbed,
    "residual_gradients": residual_gradients,
    "gradients_in_advance": gradients_in_advance,
    "noisy_gradients": noisy_gradients,
    "projected": projected,
    "sliced_gradients": sliced_gradients,
    "duals": duals,
    "numbered_fills": numbered_fills,
    "numbered_steps": numbered_steps,
    "numbered_guided_steps": numbered_guided_steps,
    "numbered_perturbations": numbered_perturbations,
    "numbered_residuals": numbered_residuals,
    "numbered_projections": numbered_projections,
}


# ---- sums over samples -----------------------------------------------------------------------


def residuals(make: Make, shape: Shape, device: torch.device, part: slice) -> Results:
    table, output = dsm_tables()[1].to(device), make(*shape, seed=6)[part]
    labels = (torch.arange(shape[0], device=device) % len(table))[part]
    args = (output, table, labels, make_key(8, 9, device), part.start or 0)
    loss = torch.ops.fastscore.dsm_residual(*args)
    assert_same_bytes(torch.ops.fastscore.dsm_residual_with_grad(*args, 0.25)[0], loss)
    return (loss,)


def noisy_residuals(make: Make, shape: Shape, device: torch.device, part: slice) -> Results:
    table, raw, start = noisy_table().to(device), torch.ops.fastscore, part.start or 0
    labels = (torch.arange(shape[0], device=device) % len(table))[part]
    found: list[Tensor] = []
    for output, noisy in noisy_outputs(make, shape, device):
        args = (output[part], table, labels, make_key(8, 9, device), start)
        found.append(raw.dsm_residual(*args, noisy=noisy[part]))
        both = raw.dsm_residual_with_grad(*args, 0.25, noisy=noisy[part])
        assert_same_bytes(both[0], found[-1])
    return tuple(found)


def errors(make: Make, shape: Shape, device: torch.device, part: slice) -> Results:
    x, new, slopes, each = runge_kutta_data(make, shape, device)
    tolerances = torch.tensor([1.0, 0.5], dtype=torch.float64, device=device)
    ks = [slope[part] for slope in slopes]
    return tuple(
        ops.rk_error(x[part], new[part], ks, rows, scale)
        for rows, scale in (
            (each[part], tolerances),
            (torch.ones_like(each.new_empty(4)), tolerances.repeat(shape[0], 1)[part]),
        )
    )


def terms(make: Make, shape: Shape, device: torch.device, part: slice) -> Results:
    found: list[Tensor] = []
    for count in (1, 2):
        for distribution in DISTRIBUTIONS:
            s = make(*shape, seed=7)[part]
            jvp = torch.stack([make(*shape, seed=8 + m) for m in range(count)])[:, part]
            options = {"distribution": distribution, "sample_offset": part.start or 0}
            found += ops.sliced_terms(s, jvp, make_key(4, 5, device), **options)
    return tuple(found)
