"""Capturing a sampling step in a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fastscore._support.checks import fail, fail_type
from fastscore._support.warn import warn_caller

FEWEST_CALLS = 16  # of the model, with fewer of which "auto" finds a capture not worth its time


def wants_graph(fn: str, cuda_graph: bool | str, device: torch.device, calls: int) -> bool:
    """What ``cuda_graph=True | False | "auto"`` means for so many calls of the model."""
    if not isinstance(cuda_graph, (bool, str)):
        fail_type(fn, "cuda_graph", 'True, False or "auto"', cuda_graph)
    if isinstance(cuda_graph, str):
        if cuda_graph != "auto":
            fail(fn, "cuda_graph", 'True, False or "auto"', repr(cuda_graph))
        return device.type == "cuda" and calls >= FEWEST_CALLS
    if cuda_graph and device.type != "cuda":
        fail(fn, "cuda_graph", f'False or "auto" for a state on {device}', True)
    return cuda_graph


class StepGraph:
    """Takes a step, and from its third time on replays it as a CUDA graph.

    The first two are steps like all others, on a stream where a capture can follow: the first lets
    libraries set themselves up, the second looks for what can't be captured. A capture itself does
    no work on the device, so that a graph costs no call of the model. Where there can be none, with
    one warning, the step goes on being taken as it is. What ``body`` raises outside a capture is
    not caught.
    """

    def __init__(self, fn: str, body: Callable[[], None], memory: Sequence[Tensor]) -> None:
        """``body`` is the step, which works on this ``memory``."""
        self.fn, self.body, self.memory = fn, body, memory
        self.device = memory[0].device
        self.taken = 0
        self.side: torch.cuda.Stream | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.reason: str | None = None  # why there can be none

    def replay(self) -> None:
        """Take the step once."""
        if self.graph is None and self.reason is None:
            with self._side_stream():
                if self._prepared():
                    return
        if self.graph is None:
            self.body()
        else:
            self.graph.replay()

    def _prepared(self) -> bool:
        """Take a step on the way to the graph, or else capture it; whether it was taken."""
        self.taken += 1
        if self.taken == 1:
            self.body()
        elif self.taken == 2:
            self.reason = _reason_against(self.body)
        else:
            for tensor in self.memory:  # what is still lent moves at the next write to it: now
                tensor.copy_(tensor.clone())
            self.graph, self.reason = _try_capture(self.body, self.device)
        if self.reason is not None:
            warn_caller(
                f"{self.fn}: the model can't be captured in a CUDA graph, so sampling goes on "
                f"without one (pass cuda_graph=False to silence this): {self.reason}",
                UserWarning,
            )
        return self.taken < 3

    @contextmanager
    def _side_stream(self) -> Iterator[None]:
        if self.side is None:
            self.side = torch.cuda.Stream(self.device)
        current = torch.cuda.current_stream(self.device)
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            yield
        current.wait_stream(self.side)


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
) -> tuple[torch.cuda.CUDAGraph | None, str | None]:
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
    return graph, None
