"""Saving a noise-conditional score network with all that it takes to sample from it again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_sigmas, fail, fail_type
from fastscore._support.files import prepare_file
from fastscore.nn.conv import ScoreConvNet
from fastscore.nn.mlp import ScoreMLP

FORMAT = "fastscore-checkpoint-1"
NETWORKS = {network.__name__: network for network in (ScoreMLP, ScoreConvNet)}


@dataclass
class Checkpoint:
    """A network of :mod:`fastscore.nn`, its noise scales and how to sample with them."""

    model: torch.nn.Module
    sigmas: Tensor  # (L,), decreasing
    sampling: dict[str, Any] = field(default_factory=dict)  # keywords of annealed_langevin


def _require_safetensors(fn: str) -> None:
    """An optional dependency."""
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{fn}: needs safetensors: pip install safetensors") from error


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint as safetensors: weights and sigmas, the configuration as metadata.

    The file appears whole or not at all.

    Raises:
        TypeError: the network is not one of :mod:`fastscore.nn`, so that it could not be rebuilt.
        OSError: the file can't be written.

    >>> import tempfile, fastscore
    >>> from pathlib import Path
    >>> net = fastscore.nn.ScoreMLP(2)
    >>> path = Path(tempfile.mkdtemp()) / "net.safetensors"
    >>> save_checkpoint(path, Checkpoint(net, fastscore.geometric_sigmas(1.0, 0.1, 4)))
    >>> len(load_checkpoint(path).sigmas)
    4
    """
    fn = "save_checkpoint"
    _require_safetensors(fn)
    from safetensors.torch import save_file

    if type(checkpoint.model) not in NETWORKS.values():
        fail_type(fn, "model", "one of fastscore.nn's networks", checkpoint.model)
    config = {
        "format": FORMAT,
        "network": type(checkpoint.model).__name__,
        "arguments": checkpoint.model.config,
        "sampling": checkpoint.sampling,
    }
    tensors = {f"model.{k}": v.contiguous() for k, v in checkpoint.model.state_dict().items()}
    tensors["sigmas"] = check_sigmas(fn, checkpoint.sigmas).contiguous()
    path = Path(path)
    path = prepare_file(fn, path, (path.suffix,))
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, str(partial), metadata={"fastscore": json.dumps(config)})
    partial.replace(path)


def load_checkpoint(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote; nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a fastscore checkpoint, or is damaged; or a device that is not
            there.
    """
    _require_safetensors("load_checkpoint")
    from safetensors import SafetensorError, safe_open

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        fail("load_checkpoint", "device", "a device that is there", f"{device} ({reason})")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_checkpoint: there is no file {path}")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            config = json.loads((file.metadata() or {}).get("fastscore", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        fail("load_checkpoint", "path", "a fastscore checkpoint", f"{path} ({error})")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        fail("load_checkpoint", "path", f"a checkpoint of format {FORMAT}", path)
    try:
        model = NETWORKS[config["network"]](**config["arguments"]).to(device)
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k != "sigmas"}
        model.load_state_dict(weights)
        sigmas, sampling = tensors["sigmas"], config["sampling"]
    except (KeyError, TypeError, RuntimeError) as error:
        fail("load_checkpoint", "path", "an undamaged checkpoint", f"{path} ({error})")
    return Checkpoint(model.eval(), check_sigmas("load_checkpoint", sigmas), sampling)
