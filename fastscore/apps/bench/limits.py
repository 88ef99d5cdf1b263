"""What the machine allows: passes over memory that do nothing else, and a peak of arithmetic.

The passes are sides of a case, so that they are measured in turns with it, on as many elements.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor

from fastscore.apps.bench.case import Candidate, Side, limit
from fastscore.ops._library import _C

# Multiplications and fused multiply-adds on 32-bit lanes for each element, counted in csrc/core.
# Additions, shifts and logic, which may run beside them, are left out. Where a machine multiplies
# integers and floats in different units the share of the peak may pass 1.
# A Philox block, four words or 128 signs, is 20 products on 64-bit lanes. A pair of normals is a
# logarithm (13), a cosine with its sine (11), a square root and two products.
PHILOX_BLOCK = 20 * 2
NORMAL = PHILOX_BLOCK / 4 + (13 + 11 + 1 + 2) / 2
UNIFORM = PHILOX_BLOCK / 4 + 1
SIGN = PHILOX_BLOCK / 128


def numbers(like: Tensor) -> Tensor:
    """Random ones: a GPU may move zeros faster."""
    return torch.rand_like(like)


def triad(like: Tensor) -> Candidate:
    """a = b + s c: reads two arrays, writes a third (STREAM, McCalpin 1995)."""

    def make() -> Side:
        a, b, c = (numbers(like) for _ in range(3))
        return Side(lambda: torch.add(b, c, alpha=0.5, out=a), bytes=3 * b.nbytes)

    return limit("triad", make)


def axpy(like: Tensor) -> Candidate:
    """a += s b: reads two arrays and writes one of them, as an update in place does."""

    def make() -> Side:
        a, b = numbers(like), numbers(like)
        return Side(lambda: a.add_(b, alpha=0.5), bytes=3 * a.nbytes)

    return limit("axpy", make)


def copy(like: Tensor) -> Candidate:
    """a = b: reads one array, writes another."""

    def make() -> Side:
        a, b = numbers(like), numbers(like)
        return Side(lambda: a.copy_(b), bytes=2 * a.nbytes)

    return limit("copy", make)


def clone(like: Tensor) -> Candidate:
    """Reads one array, writes a new one, whose pages the system may have to map and clear."""

    def make() -> Side:
        a = numbers(like)
        return Side(lambda: a.clone(), bytes=2 * a.nbytes)

    return limit("clone", make)


def fill(like: Tensor) -> Candidate:
    """a = 1: writes one array."""

    def make() -> Side:
        a = numbers(like)
        return Side(lambda: a.fill_(1.0), bytes=a.nbytes)

    return limit("fill", make)


def read(*like: Tensor) -> Candidate:
    """max a: reads arrays. Of PyTorch's reductions the fastest."""

    def make() -> Side:
        arrays = [numbers(x) for x in like]
        return Side(lambda: [a.amax() for a in arrays], bytes=sum(a.nbytes for a in arrays))

    return limit("read", make)


@functools.cache
def peak_operations(device: str, threads: int) -> float:
    """Fused multiply-adds of float32 in a second: the best of thirty tries.

    On a CPU they stay in registers, with the instructions that the kernels use; on a GPU they are
    a matrix product's.
    """
    if device == "cpu":
        return max(_C.multiply_add_rate(threads) for _ in range(30))
    n = 8192
    a, b = torch.ones(n, n, device=device), torch.ones(n, n, device=device)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    best = float("inf")
    try:
        for _ in range(30):
            start = time.perf_counter()
            torch.mm(a, b)
            torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return n**3 / best
