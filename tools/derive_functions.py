"""Derive the float32 polynomial coefficients of csrc/core/functions.h.

Run: python tools/derive_functions.py
"""

from __future__ import annotations

import mpmath
import numpy as np
from derive_polynomials import minimax


def two_parts(name: str, value: mpmath.mpf) -> None:
    """Print a constant as the sum of two float32 numbers."""
    head = np.float32(float(value))
    tail = np.float32(float(value - mpmath.mpf(float(head))))
    print(f"{name} = {float(head).hex()} + {float(tail).hex()}")


def expm1_rest(r: mpmath.mpf) -> mpmath.mpf:
    return (mpmath.expm1(r) - r) / (r * r)


def log1p_rest(x: mpmath.mpf) -> mpmath.mpf:
    return (mpmath.log1p(x) - x) / (x * x) if abs(x) > 1e-9 else mpmath.mpf(-0.5)


def tanh_rest(y: mpmath.mpf) -> mpmath.mpf:
    x = mpmath.sqrt(y)
    return (mpmath.tanh(x) / x - 1) / y


def normal_middle(y: mpmath.mpf) -> mpmath.mpf:
    """(Phi(x) - 1/2) / x at y = x^2, Phi the normal's distribution function."""
    x = mpmath.sqrt(y)
    return mpmath.erf(x / mpmath.sqrt(2)) / (2 * x)


def mills(t: mpmath.mpf) -> mpmath.mpf:
    """(a + 4) exp(a^2/2) Q(a) at t = (a - 4) / (a + 4), Q the normal's upper tail."""
    a = 4 * (1 + t) / (1 - t)
    return (a + 4) * mpmath.exp(a * a / 2) * mpmath.erfc(a / mpmath.sqrt(2)) / 2


def main() -> None:
    half = float(mpmath.log(2) / 2)
    minimax(
        "exp: expm1(r) = r + r^2 E(r)",
        5,
        -half,
        half,
        expm1_rest,
        lambda r: mpmath.expm1(r) / (r * r) if abs(r) > 1e-3 else mpmath.mpf(1000),
    )
    root = float(mpmath.sqrt(2))
    minimax(
        "log1p(x) = x + x^2 L(x)",
        8,
        (root - 2) / 2,
        root - 1,
        log1p_rest,
        lambda x: mpmath.log1p(x) / (x * x) if abs(x) > 1e-3 else mpmath.mpf(1000),
    )
    minimax(
        "tanh(x) = x + x y T(y), y = x^2",
        6,
        1e-6,
        1.0,
        tanh_rest,
        lambda y: mpmath.tanh(mpmath.sqrt(y)) / mpmath.sqrt(y) / y,
    )
    minimax(
        "normal: Phi(x) - 1/2 = x M(y), y = x^2",
        5,
        1e-6,
        1.0,
        normal_middle,
        normal_middle,
    )
    furthest = 14.5
    minimax(
        "normal tail: exp(a^2/2) Q(a) = P(t) / (a + 4), t = (a - 4) / (a + 4)",
        9,
        -0.6,
        (furthest - 4) / (furthest + 4),
        mills,
        mills,
    )
    two_parts("ln 2", mpmath.log(2))
    two_parts("1 / ln 2", 1 / mpmath.log(2))


if __name__ == "__main__":
    main()
