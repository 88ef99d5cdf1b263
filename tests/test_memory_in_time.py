"""No sampler in continuous time allocates more for more steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from continuous import InTime, gaussian
from memory import peak_bytes

from fastscore import probability_flow, reverse_sde
from fastscore.sde import VP

ARRAYS = 14  # of the state's size, at most: a model's temporary ones, and seven stages of rk45


@pytest.mark.parametrize("conditioning", ["time", "sigma"])
@pytest.mark.parametrize(
    "how",
    [
        {"corrector": "annealed"},
        {"solver": "heun"},
        {"solver": "dpmpp_2m_sde"},
        {"solver": "rk4"},
        {"solver": "rk45"},
    ],
    ids=lambda how: next(iter(how.values())),
)
def test_memory_does_not_grow_with_the_steps(how: dict[str, Any], conditioning: str) -> None:
    process, x = VP(), torch.randn(8, 20_000)
    model: Any = gaussian if conditioning == "sigma" else InTime(process)
    sampler = reverse_sde if "corrector" in how else probability_flow

    def peak(few: bool) -> int:
        size: dict[str, Any] = {"steps": 5 if few else 40}
        if how.get("solver") == "rk45":
            size = {"rtol": 0.1, "atol": 0.1} if few else {"rtol": 1e-5, "atol": 1e-5}
        return peak_bytes(
            lambda: sampler(model, process, x, conditioning=conditioning, seed=0, **size, **how)
        )

    peak(True)
    few, many = peak(True), peak(False)
    assert many <= few + 0.1 * x.nbytes
    assert many <= ARRAYS * 2 * x.nbytes  # the exact scores compute in float64
