"""A short run over every CUDA kernel, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck --kernel-regex kns=fastscore python benchmarks/sanitize.py

The data come from the host, so that initcheck sees every byte written. Sizes are small, and such
that every kernel meets whole tiles, ragged ends, packs cut by samples, and rows of every length.
Results are compared with the CPU's: a sanitizer that changed them would be seen.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator

import torch
from rehearsal import kernels
from torch import Tensor

from fastscore import ops

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Samples of a thread, of part of a warp, of a warp, of a block and of several.
SHAPES = ((5, 2), (3, 40), (3, 700), (2, 3001), (2, 16_385), (1, 4096))
DISTRIBUTIONS = ("rademacher", "gaussian", "sphere")
ACTIVATIONS = (
    "softplus", "silu", "tanh", "sigmoid", "elu", "gelu", "relu", "leaky_relu",
)  # fmt: skip


def data(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def spread(device: str, x: Tensor) -> Tensor:
    """The same numbers, every other element of twice the memory."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return wide.to(device)[..., ::2]


def packed(device: str, x: Tensor) -> Tensor:
    return x.to(device)


def key(device: str) -> Tensor:
    return torch.tensor([12345, 1], device=device)


def table(device: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1).to(device)


def results(shape: tuple[int, ...], dtype: torch.dtype, device: str, place) -> Iterator[Tensor]:  # type: ignore[no-untyped-def]
    """Every op on data that ``place`` puts on the device. Sums come as a pair (0, sum)."""
    x, s, known = (place(data(*shape, dtype=dtype, seed=i)) for i in range(3))
    batch = shape[0]
    for fill in (ops.normal_, ops.uniform_, ops.rademacher_):
        yield fill(x.clone(), key(device), sample_offset=1)
    rows, each = table(device, 2, 4), table(device, 2, batch, 4)
    mask = (data(*shape, dtype=dtype, seed=2) > 0).to(device)
    held = {"known": known, "mask": mask, "clamp": (-1.0, 1.0)}
    yield ops.langevin_step(x, s, rows, key(device))
    yield ops.langevin_step(x, s, each, key(device), sample_offset=3, **held)
    yield ops.langevin_step(x, s, rows, key(device), **held)
    if dtype in (torch.bfloat16, torch.float16):
        state = place(data(*shape, dtype=dtype, seed=0).float())
        yield ops.langevin_step_(state, s, rows, key(device))
    yield from guided(x, s, known, held, device)
    labels = (torch.arange(batch) % 3).to(device)
    yield from ops.perturb(x, table(device, 3, 2), key(device))
    yield ops.perturb(x, table(device, 3, 2), key(device), labels=labels)[0]
    raw, loss_table = torch.ops.fastscore, table(device, 3, 3)
    up = place(data(2, batch, dtype=torch.float64 if dtype == torch.float64 else torch.float32,
                    seed=7))  # fmt: skip
    yield raw.dsm_residual_backward(up[0], x, loss_table, labels, key(device), 0)
    yield sums(ops.dsm_residual(x, loss_table, labels, key(device)))
    args = (x, loss_table, labels, key(device), 0)
    for upstream in (up[0], up[0, :1].expand(batch)):
        loss, grad = raw.dsm_residual_with_grad(*args, float(up[0, 0].cpu()))
        yield sums(loss)
        raw.dsm_residual_regrad_(grad, upstream, float(up[0, 0].cpu()), *args)
        yield grad
    for noisy in (s, s.to(torch.promote_types(dtype, torch.float32))):
        args = (x, table(device, 3, 4), labels, key(device), 0, None)
        yield sums(raw.dsm_residual(*args, noisy))
        yield raw.dsm_residual_backward(up[0], *args, noisy)
    yield from runge_kutta(x, s, known, batch, device)
    jvp = place(data(2, *shape, dtype=dtype, seed=5))
    for number, distribution in enumerate(DISTRIBUTIONS):
        options = {"distribution": distribution}
        yield ops.projections(key(device), shape, 2, dtype=dtype, **options)
        for term in ops.sliced_terms(s, jvp, key(device), **options):
            yield sums(term)
        yield from raw.sliced_terms_backward(up, up, up[1], s, key(device), number, 0)
    for activation in ACTIVATIONS:
        value, tangents = ops.dual(x, jvp, activation)
        yield sums(value) if dtype == torch.float64 else value
        yield sums(tangents) if dtype == torch.float64 else tangents
        for part in ops.dual_slope(x, activation):
            yield sums(part) if dtype == torch.float64 else part
        stack = ops.dual_stacked(jvp, activation)
        yield sums(stack) if dtype == torch.float64 else stack
    yield sums(raw.dual_backward(x, jvp, s, jvp, 1, 0.0, 0.0)[0])
    yield sums(raw.dual_slope_backward(s, x, x, 1, 0.0, 0.0))
    yield sums(raw.dual_stacked_backward(jvp, jvp, 2, 0.0, 0.0))


def guided(x: Tensor, s: Tensor, known: Tensor, held: dict, device: str) -> Iterator[Tensor]:  # type: ignore[type-arg]
    """Steps of two terms and six columns, and updates with a history."""
    batch = x.shape[0]
    for rows, options in (((2,), {}), ((2, batch), held)):
        own = table(device, *rows, 10)
        terms = {"second": known, "weights": table(device, batch, 2)}
        yield ops.langevin_step(x, s, own[..., :6].contiguous(), key(device), **terms, **options)
        state, history = x.clone(), known.clone()
        ops.multistep_step_(state, history, s, own, key(device), clip=(-1.0, 1.0), **options)
        ops.multistep_step_(state, history, s, own, key(device), **terms)
        yield from (state, history)


def runge_kutta(x: Tensor, s: Tensor, known: Tensor, batch: int, device: str) -> Iterator[Tensor]:
    """Slopes of x's dtype, for a state of at least float32."""
    state, new = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, known))
    rows, each, scales = (table(device, *size) for size in ((3,), (batch, 3), (2,)))
    accepted = (torch.arange(batch) % 3 != 1).to(device)
    for own in (rows, each):
        yield ops.rk_stage(state, (s, x), own)
        yield sums(ops.rk_error(state, new, (s, x), own, scales).to(state.dtype))
    state, first, out = state.clone(), s.clone(), torch.empty_like(new)
    pair = each[:, :2].contiguous()
    ops.rk_advance_(state, first, new, x, accepted, out=out, coefficients=pair)
    yield from (state, first, out)


class Rounded(Tensor):
    """Numbers that may differ in their last bits from one device to another."""


def sums(x: Tensor) -> Tensor:
    return x.detach().as_subclass(Rounded)


def agree(ours: Tensor, theirs: Tensor) -> bool:
    got, want = ours.detach().as_subclass(Tensor).cpu(), theirs.detach().as_subclass(Tensor)
    if not isinstance(theirs, Rounded):
        return torch.equal(got, want)
    scale = float(want.abs().max())
    loose = {torch.float64: 1e-12, torch.float32: 1e-4}.get(want.dtype, 1e-2)
    return torch.allclose(got, want, rtol=loose, atol=loose * scale)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="emulated, on the CPU")
    rehearse = parser.parse_args().rehearse
    if not rehearse and not torch.cuda.is_available():
        sys.exit("benchmarks/sanitize.py: no CUDA device (--rehearse runs on the CPU)")
    device = "cpu" if rehearse else "cuda"
    wrong = 0
    for dtype in DTYPES[:1] if rehearse else DTYPES:
        for shape in SHAPES:
            # From the CPU's copies: indexing on the device would be kernels of PyTorch's.
            want = list(results(shape, dtype, "cpu", lambda x: x))
            for place in (packed, spread):
                with kernels(rehearse):
                    got = list(results(shape, dtype, device, functools.partial(place, device)))
                for i, (ours, theirs) in enumerate(zip(got, want, strict=True)):
                    if not agree(ours, theirs):
                        wrong += 1
                        print(f"{place.__name__} {dtype} {shape}: result {i} differs")
    if not rehearse:
        torch.cuda.synchronize()
    print("every kernel ran; all results agree" if not wrong else f"{wrong} results differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
