"""Where and with what a measurement was made: the part of a row that says so."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from typing import Any

import torch

import fastscore
from fastscore._support.memory import keep_freed_memory
from fastscore.apps.info import cpu_name, info
from fastscore.ops._library import _C

PEERS = ("jax", "jaxlib", "torchebm", "blackjax")


def versions() -> dict[str, str | None]:
    """Of everything that takes part; None for what is not installed."""
    build = info()
    found: dict[str, str | None] = {
        "fastscore": fastscore.__version__,
        "torch": torch.__version__,
        "built_with_torch": build["built with torch"],
        "compiler": build["compiler"],
        "python": build["python"],
        "numpy": metadata.version("numpy"),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "platform": platform.platform(),
    }
    for name in PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def driver_version() -> str | None:
    """Of the NVIDIA kernel module, where there is one."""
    try:
        with open("/sys/module/nvidia/version") as file:
            return file.read().strip()
    except OSError:
        return None


def machine() -> dict[str, Any]:
    """The fields of a row that are the same for a whole run."""
    cuda = torch.cuda.is_available()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_capability": _C.cpu_capability(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def prepare_process() -> dict[str, Any]:
    """Makes this process one to measure in; returns the fields of a row that go for all of it.

    Freed blocks of up to 32 MiB stay with the process. Else it hangs on what happened in the heap
    before whether a side finds its memory in place or maps it anew, which may take longer than its
    work.
    """
    return machine() | {"keeps_freed_memory": keep_freed_memory()}


def devices() -> list[str]:
    """The CPU, and CUDA where there is a GPU and kernels for it."""
    found = ["cpu"]
    if torch.cuda.is_available() and _C.cuda_archs:
        found.append("cuda")
    return found
