"""What this build of fastscore is and what it runs on: ``fastscore info``."""

from __future__ import annotations

import platform
from typing import Any

import torch

import fastscore
from fastscore.ops._library import _C


def info() -> dict[str, Any]:
    """Versions, CPU capability in use and available, CUDA architectures built, threads.

    >>> info()["cpu_capability"] in info()["cpu_capabilities"]
    True
    """
    cuda = torch.cuda.is_available()
    return {
        "fastscore": fastscore.__version__,
        "torch": torch.__version__,
        "built with torch": _C.torch_version,
        "compiler": _C.compiler,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_capability": _C.cpu_capability(),
        "cpu_capabilities": _C.cpu_capabilities(),
        "threads": torch.get_num_threads(),
        "cuda_archs": _C.cuda_archs or None,
        "cuda_runtime": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def format_info(values: dict[str, Any]) -> str:
    """A line for each entry, aligned."""
    rows = []
    for name, value in values.items():
        if value is None:
            value = "none"
        elif isinstance(value, list):
            value = ", ".join(value)
        rows.append(f"{name.replace('_', ' '):<18} {value}")
    return "\n".join(rows)
