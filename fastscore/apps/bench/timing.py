"""Clocks. A block is a number of calls of one side; its time is the seconds of one call."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fastscore.apps.bench.case import Side

WARM_UP_BELOW = 0.01  # seconds: a block of shorter calls is preceded by one that is not timed
MOST_CALLS = 20_000
LONGEST_WAIT = 0.005  # seconds that a GPU waits for the host to have launched a call
FASTEST_CLOCK = 2e9  # cycles a second of a GPU: at a slower one it waits longer


class HostClock:
    """Wall time of all calls of a block, launches and waiting included."""

    name = "host"

    def __init__(self, device: str) -> None:
        self.synchronise: Callable[[], Any] = lambda: None
        if device == "cuda":
            self.synchronise = torch.cuda.synchronize

    def block(self, side: Side, calls: int) -> float:
        run = side.run
        wait = side.wait or self.synchronise
        if calls > 1:
            run()
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        return (time.perf_counter() - start) / calls


class EventClock:
    """Time on the GPU between two events, the L2 cache flushed before each call.

    The GPU is kept busy before the first event for as long as the host takes to launch a call:
    else of an op of many small parts the launches would be measured.
    """

    name = "cuda events"

    def __init__(self) -> None:
        self.launching = 0.0  # seconds that the host takes for a call
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        size = max(4 * getattr(properties, "L2_cache_size", 0), 256 * 2**20)
        self.flush = torch.empty(size // 4, dtype=torch.int32, device="cuda")

    def block(self, side: Side, calls: int) -> float:
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(calls)
        ]
        for start, end in events:
            self.flush.zero_()
            torch.cuda._sleep(int(min(1.5 * self.launching, LONGEST_WAIT) * FASTEST_CLOCK))
            start.record()
            begin = time.perf_counter()
            side.run()
            self.launching = time.perf_counter() - begin
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


Clock = HostClock | EventClock


def clock_for(device: str, wanted: str, side: Side) -> Clock:
    """The clock of a side. What waits by itself, as JAX does, has streams of its own."""
    if device == "cuda" and wanted == "auto" and side.wait is None:
        return EventClock()
    return HostClock(device)


def calls_per_block(clock: Clock, side: Side, block_seconds: float) -> tuple[int, float]:
    """How many calls fill a block, and the seconds that one then takes; warms the side up."""
    seconds = clock.block(side, 1)
    seconds = min(seconds, clock.block(side, 1))
    calls = 1
    if seconds < WARM_UP_BELOW:
        # One call alone is mostly the clock's own cost for the smallest kernels.
        calls = min(MOST_CALLS, max(2, math.ceil(0.1 * block_seconds / max(seconds, 1e-7))))
        seconds = clock.block(side, calls)
        calls = max(2, math.ceil(block_seconds / seconds))
    if isinstance(clock, EventClock):
        calls = min(max(calls, 5), 50)
    return min(calls, MOST_CALLS), seconds
