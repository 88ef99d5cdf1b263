"""Derive the float32 polynomial coefficients of csrc/core/normal.h.

Each polynomial minimises the largest relative error on its interval (a linear programme over
a dense grid). The coefficients are rounded to float32 one at a time, lowest power first, and
the remaining ones fitted again after each rounding.

Run: python tools/derive_polynomials.py
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
from scipy.optimize import linprog

mpmath.mp.dps = 40


def fit(target: np.ndarray, basis: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients c that minimise max |weight * (basis @ c - target)|."""
    a = basis * weight[:, None]
    b = target * weight
    n = a.shape[1]
    ones = np.ones((len(b), 1))
    for method in ("highs", "highs-ipm"):  # the simplex method sometimes gives up
        result = linprog(
            np.r_[np.zeros(n), 1.0],
            A_ub=np.block([[a, -ones], [-a, -ones]]),
            b_ub=np.r_[b, -b],
            bounds=[(None, None)] * n + [(0, None)],
            method=method,
        )
        if result.x is not None:
            return result.x[:n]
    raise RuntimeError(f"no solution: {result.message}")


def minimax(
    name: str,
    degree: int,
    lower: float,
    upper: float,
    target: Callable[[mpmath.mpf], mpmath.mpf],
    scale: Callable[[mpmath.mpf], mpmath.mpf],
) -> None:
    """Print float32 coefficients of p with |p(x) - target(x)| <= err * |scale(x)|."""
    nodes = np.cos(np.pi * (np.arange(2001) + 0.5) / 2001)
    x = 0.5 * (lower + upper) + 0.5 * (upper - lower) * nodes
    exact = np.array([float(target(mpmath.mpf(v))) for v in x])
    weight = np.array([1.0 / abs(float(scale(mpmath.mpf(v)))) for v in x])
    # The error is far below float64's solver tolerance in absolute terms; scale it up.
    gain = 1e6
    basis = np.stack([x**k for k in range(degree + 1)], axis=1)
    rest, fixed = exact.copy(), []
    for k in range(degree + 1):
        c = np.float32(fit(rest * gain, basis[:, k:] * gain, weight)[0])
        fixed.append(c)
        rest = rest - float(c) * basis[:, k]
    error = np.max(np.abs(rest) * weight)
    print(f"{name}: relative error {error:.2e} = 2^{np.log2(error):.1f}")
    for k, c in enumerate(fixed):
        print(f"  c{k} = {float(c).hex()}  {c!r}")


def main() -> None:
    one = mpmath.mpf(1)
    quarter = mpmath.pi / 4

    def neg2log(h: mpmath.mpf) -> mpmath.mpf:
        return -2 * mpmath.log1p(-h)

    minimax(
        "log: -2 log(1-h) = 2h + h^2 R(h)",
        8,
        1e-6,
        0.5,
        lambda h: (neg2log(h) - 2 * h) / (h * h),
        lambda h: neg2log(h) / (h * h),
    )
    head = np.float32(float(quarter))
    print(
        f"sin: pi/4 = {float(head).hex()} + {float(np.float32(float(quarter - float(head)))).hex()}"
    )
    minimax(
        "sin(pi/4 t) = t (pi/4 + y S(y)), y = t^2",
        2,
        1e-6,
        1.0,
        lambda y: (mpmath.sin(quarter * mpmath.sqrt(y)) / mpmath.sqrt(y) - quarter) / y,
        lambda y: mpmath.sin(quarter * mpmath.sqrt(y)) / mpmath.sqrt(y) / y,
    )
    minimax(
        "cos(pi/4 t) = 1 + y C(y), y = t^2",
        3,
        1e-6,
        1.0,
        lambda y: (mpmath.cos(quarter * mpmath.sqrt(y)) - one) / y,
        lambda y: mpmath.cos(quarter * mpmath.sqrt(y)) / y,
    )
    ln2 = mpmath.log(2)
    print(f"-2 ln2 * 2^-23 = {float(np.float32(float(-2 * ln2 / 2**23))).hex()}")


if __name__ == "__main__":
    main()
