"""Capturing a sampling step in a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscore._support.checks import fail, fail_type
from fastscore._support.warn import warn_caller

WARM_UP_CALLS = 1  # besides the one that looks for what can't be captured
FEWEST_STEPS = 64  # with fewer steps than this, "auto" finds a capture not worth its time


def wants_graph(fn: str, cuda_graph: bool | str, device: torch.device, steps: int) -> bool:
    """What ``cuda_graph=True | False | "auto"`` means for a run of so many steps on ``device``."""
    if not isinstance(cuda_graph, (bool, str)):
        fail_type(fn, "cuda_graph", 'True, False or "auto"', cuda_graph)
    if isinstance(cuda_graph, str):
        if cuda_graph != "auto":
            fail(fn, "cuda_graph", 'True, False or "auto"', repr(cuda_graph))
        return device.type == "cuda" and steps >= FEWEST_STEPS
    if cuda_graph and device.type != "cuda":
        fail(fn, "cuda_graph", f'False or "auto" for a state on {device}', True)
    return cuda_graph


def capture(
    fn: str, body: Callable[[], None], state: Sequence[Tensor], wanted: bool
) -> torch.cuda.CUDAGraph | None:
    """Capture ``body`` as a CUDA graph, leaving the ``state`` that it works on as it was.

    Returns None when no graph is ``wanted``, and also, with one warning, when ``body`` can't be
    captured. An exception that ``body`` raises outside a capture is not caught.
    """
    if not wanted:
        return None
    device = state[0].device
    saved = [tensor.clone() for tensor in state]
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    graph: torch.cuda.CUDAGraph | None = None
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            body()
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
        reason = _reason_against(body)
        if reason is None:
            graph, reason = _try_capture(body, device)
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
    current.wait_stream(side)
    if graph is None:
        warn_caller(
            f"{fn}: the model can't be captured in a CUDA graph, so sampling goes on without one "
            f"(pass cuda_graph=False to silence this): {reason}",
            UserWarning,
        )
    return graph


def _reason_against(body: Callable[[], None]) -> str | None:
    """Why ``body`` can't be captured, found without a capture, or None.

    A failed capture can leave PyTorch's CUDA generator unusable, so the usual cause, waiting for
    the device, is looked for first.
    """
    before = torch.cuda.get_sync_debug_mode()
    # "warn" and not "error": the mode is the whole process's, and other threads may well wait.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            body()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            return f"it waits for the device ({warning.filename}:{warning.lineno})"
    return None


def _try_capture(
    body: Callable[[], None], device: torch.device
) -> tuple[torch.cuda.CUDAGraph | None, str]:
    generator = torch.cuda.default_generators[device.index]
    generator_state = generator.clone_state()
    graph = torch.cuda.CUDAGraph()
    # Not torch.cuda.graph: it leaves the wrong stream current after a capture that fails.
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        try:
            body()
        finally:
            graph.capture_end()
    except RuntimeError as error:
        generator.graphsafe_set_state(generator_state)
        return None, str(error).partition("\n")[0]
    return graph, ""
