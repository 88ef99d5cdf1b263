"""Each of the main kernels twice at its benchmark's size, for a profiler to watch.

ncu --kernel-name-base demangled --kernel-name regex:fastscore python benchmarks/profiled.py
"""

from __future__ import annotations

import argparse

import torch
from rehearsal import kernels

from fastscore import ops, random


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="emulated, at small sizes")
    small = parser.parse_args().rehearse
    device, elements = ("cpu", 2**12) if small else ("cuda", 2**28)
    images = (8, 192) if small else (16_384, 3072)
    with kernels(small):
        run(device, elements, images)


def run(device: str, elements: int, images: tuple[int, int]) -> None:
    key = random.key(0, device=device)
    rows = torch.tensor([[1.0, 0.01, 0.1, 0.0]], dtype=torch.float64, device=device)
    noise = torch.tensor([[1.0, 0.5]], dtype=torch.float64, device=device)
    levels = torch.tensor([[0.5, 1.0, 1.0]], dtype=torch.float64, device=device)
    beside = torch.tensor([[2.0, 1.0, 1.0, -2.0]], dtype=torch.float64, device=device)
    x, s = (torch.randn(elements, device=device) for _ in range(2))
    y, jvp = torch.randn(images, device=device), torch.randn(1, *images, device=device)
    labels = torch.zeros(images[0], dtype=torch.int64, device=device)
    pair = torch.tensor([1.5, -0.5], dtype=torch.float64, device=device)
    solver = torch.tensor([[1.0, 0.01, 0.0, 0.0, 1.0, 1.0, -0.1, 1.0, 0.01, 0.0]]).double()
    solver, past = solver.to(device), torch.zeros_like(x)
    slopes = [torch.randn(images, device=device) for _ in range(6)]
    own = torch.full((images[0], 7), 0.1, dtype=torch.float64, device=device)
    for _ in range(2):
        ops.langevin_step_(x, s, rows, key)
        ops.langevin_step_(x, s, rows, key, second=past, weights=pair)
        ops.multistep_step_(x, past, s, solver, key)
        ops.normal_(s, key)
        ops.perturb(y, noise, key)
        ops.dsm_residual(y, levels, labels, key)
        torch.ops.fastscore.dsm_residual_with_grad(y, levels, labels, key, 0, 0.5)
        ops.dsm_residual(y, beside, labels, key, noisy=jvp[0])
        ops.rk_stage(y, slopes, own)
        ops.rk_error(y, slopes[0], slopes, own, own[0, :2])
        for distribution in ("rademacher", "gaussian"):
            ops.sliced_terms(y, jvp, key, distribution=distribution)
        ops.dual(y, jvp, "silu")
        ops.dual_slope(y, "gelu")


if __name__ == "__main__":
    main()
