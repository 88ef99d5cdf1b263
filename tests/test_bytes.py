"""The same bytes for any instruction set, any number of threads and, with a GPU, any device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import byte_cases
import numpy as np
import pytest
import torch
from helpers import make_key

import fastscore
from fastscore import ops

HERE = Path(__file__).parent


def digests_under(capability: str) -> dict[str, Any]:
    """What ``byte_cases`` prints when the CPU capability is forced."""
    environment = {**os.environ, "FASTSCORE_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [sys.executable, str(HERE / "byte_cases.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["capability"] == capability
    return report


@pytest.fixture(scope="module")
def portable() -> dict[str, Any]:
    """The results of the portable kernels, to which all others must be equal."""
    return digests_under("default")


@pytest.mark.parametrize("capability", ["avx2", "avx512"])
def test_instruction_sets_agree_to_the_byte(capability: str, portable: dict[str, Any]) -> None:
    if capability not in fastscore._C.cpu_capabilities():
        pytest.skip(f"this CPU has no {capability}")
    wide = digests_under(capability)
    differ = [
        name for name, sha in portable["elementwise"].items() if wide["elementwise"][name] != sha
    ]
    assert not differ, f"{len(differ)} of {len(wide['elementwise'])} differ: {differ[:10]}"
    for name, sums in portable["row_sums"].items():
        np.testing.assert_allclose(wide["row_sums"][name], sums, rtol=2e-6, err_msg=name)


def test_unknown_capability_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import fastscore"],
        env={**os.environ, "FASTSCORE_CPU_CAPABILITY": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "FASTSCORE_CPU_CAPABILITY" in done.stderr
    assert "sse9" in done.stderr


def test_threads_do_not_change_a_byte() -> None:
    cases = byte_cases.ELEMENTWISE | byte_cases.ROW_SUMS
    shapes = [byte_cases.LARGE, (2, 50_003), (100_003,), (40_003, 3)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(byte_cases.digests(cases, shapes))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]
    assert results[0] == results[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_rounded_once(dtype: torch.dtype) -> None:
    """A coefficient that half precision has no number for is not rounded before its product."""
    x, s = (torch.ones(2, 3, dtype=dtype, requires_grad=True) for _ in range(2))
    upstream = torch.full((2, 3), 1000.0, dtype=dtype)
    step = torch.tensor([[0.3, 6.18e-9, 0.0, 0.0]], dtype=torch.float64)
    out = ops.langevin_step(x, s, step, make_key(0))
    for got, c in zip(torch.autograd.grad(out, (x, s), upstream), (0.3, 6.18e-9), strict=True):
        assert torch.equal(got, (upstream.float() * c).to(dtype))
    noisy, _ = ops.perturb(x, torch.tensor([[0.3, 0.0]], dtype=torch.float64), make_key(0))
    (got,) = torch.autograd.grad(noisy, x, upstream)
    assert torch.equal(got, (upstream.float() * 0.3).to(dtype))
