"""The family ``scaling``: the cost of more work, and of one more call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from fastscore.apps.bench.case import Case, Work
from fastscore.apps.bench.cases import dsm, dual, langevin, random, sliced
from fastscore.apps.bench.cases.common import size
from fastscore.ops._library import _C

FAMILY = "scaling"
ROW = 64  # elements of a sample, of ops that sum over them
SIDES = ("fastscore", "eager", "triad", "read", "copy", "fill")
WEIGHT = 0.4
ONE = {"distribution": "rademacher", "projections": 1}
SILU = {"activation": "silu", "tangents": 1}

Build = Callable[[Case], Work]


def elements(device: str, quick: bool) -> Iterator[Case]:
    """2^8 to 2^28, by fours."""
    exponents = (8, 12, 16) if quick else range(8, 29, 2)
    ops: list[tuple[str, Build, int, dict[str, object], int]] = [
        ("langevin_step_", langevin.build_step, 28, {}, 9),
        ("dsm_loss", dsm.build_part, 24, {}, 20),
        ("sliced_terms", sliced.build_terms, 24, ONE, 12),
    ]
    for op, build, most, params, buffers in ops:
        for exponent in exponents:
            if exponent > most:
                continue
            n = 2**exponent
            shape = (n,) if op == "langevin_step_" else (n // ROW, ROW)
            # Beyond, eager PyTorch takes seconds a call: its line is straight by then.
            sides = SIDES if exponent <= 26 else ("fastscore", "triad")
            yield Case(
                op, FAMILY, build, shape, device=device, params=params, providers=sides,
                axis="elements", at=n, weight=WEIGHT, **size(n, buffers=buffers),
            )  # fmt: skip


def work(device: str, quick: bool) -> Iterator[Case]:
    """More steps, levels, and projections."""
    for steps in (10, 100) if quick else (10, 100, 1000, 10_000):
        yield Case(
            "langevin", FAMILY, langevin.build_chain, (128, 2), device=device,
            params={"steps": steps}, providers=SIDES, axis="steps", at=steps, clock="host",
            weight=WEIGHT,
        )  # fmt: skip
    for levels in (4, 16) if quick else (10, 30, 100, 300, 1000):
        yield Case(
            "annealed_langevin", FAMILY, langevin.build_annealed, (16, 64), device=device,
            params={"levels": levels, "steps": 2}, providers=SIDES, axis="levels", at=levels,
            clock="host", weight=WEIGHT,
        )  # fmt: skip
    shape = (32, 64) if quick else (128, 784)
    for count in (1, 4) if quick else (1, 2, 4, 8, 16, 32, 64):
        yield Case(
            "sliced_terms", FAMILY, sliced.build_terms, shape, device=device,
            params=ONE | {"projections": count}, providers=SIDES, axis="projections", at=count,
            weight=WEIGHT,
        )  # fmt: skip


def threads(quick: bool) -> Iterator[Case]:
    """1, 2, 4, ... up to the number that PyTorch starts with; on the CPU."""
    most = torch.get_num_threads()
    counts = sorted({2**k for k in range(int(math.log2(most)) + 1)} | {most})
    n = 2**16 if quick else 2**22
    rows = (n // 1024, 1024)
    ops: list[tuple[str, Build, tuple[int, ...], dict[str, object]]] = [
        ("langevin_step_", langevin.build_step, (n,), {}),
        ("normal_", random.build, (n,), {}),
        ("rademacher_", random.build, (n,), {}),
        ("dsm_loss", dsm.build_part, rows, {}),
        ("sliced_terms", sliced.build_terms, rows, ONE),
    ]
    for op, build, shape, params in ops[:1] if quick else ops:
        for count in counts:
            yield Case(
                op, FAMILY, build, shape, params=params, providers=SIDES, threads=count,
                axis="threads", at=count, weight=WEIGHT,
            )  # fmt: skip


def overhead(device: str) -> Iterator[Case]:
    """A call on two elements: all of it is overhead."""
    ops: list[tuple[str, Build, dict[str, object]]] = [
        ("langevin_step_", langevin.build_step, {}),
        ("normal_", random.build, {}),
        ("uniform_", random.build, {}),
        ("rademacher_", random.build, {}),
        ("perturb", dsm.build_perturb, {}),
        ("dsm_residual", dsm.build_residual, {}),
        ("sliced_terms", sliced.build_terms, ONE),
        ("projections", sliced.build_projections, ONE),
        ("dual", dual.build, SILU),
    ]
    for op, build, params in ops:
        yield Case(
            op, FAMILY, build, (1, 2), device=device, params=params,
            providers=("fastscore", "eager"), axis="overhead", at=2, clock="host", weight=WEIGHT,
        )  # fmt: skip


def cases(device: str, quick: bool) -> Iterator[Case]:
    yield from elements(device, quick)
    yield from work(device, quick)
    if device == "cpu":
        yield from threads(quick)
    yield from overhead(device)


def capability_cases(quick: bool) -> Iterator[Case]:
    """What a process started with FASTSCORE_CPU_CAPABILITY measures, one for each of its values."""
    large, n = (2**16, 2**16) if quick else (2**24, 2**22)
    if _C.cpu_capability() == "default":  # whose fused multiply-add is a function call
        large = n
    rows = (n // 4096, 4096)
    ops: list[tuple[str, Build, tuple[int, ...], torch.dtype, dict[str, object]]] = [
        ("langevin_step_", langevin.build_step, (large,), torch.float32, {}),
        ("langevin_step_", langevin.build_step, (2**16,), torch.float32, {}),
        ("langevin_step_", langevin.build_step, (n,), torch.bfloat16, {}),
        ("normal_", random.build, (n,), torch.float32, {}),
        ("rademacher_", random.build, (n,), torch.float32, {}),
        ("dsm_loss", dsm.build_part, rows, torch.float32, {}),
        ("sliced_terms", sliced.build_terms, rows, torch.float32, ONE),
    ]
    for op, build, shape, dtype, params in ops[:1] if quick else ops:
        yield Case(
            op, "capability", build, shape, dtype, params=params, providers=SIDES,
            axis="capability", weight=WEIGHT, **size(large),
        )  # fmt: skip
