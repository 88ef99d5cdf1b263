"""Writing a checkpoint, after all that could be wrong with it has been looked at."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch

from fastscore._support.by_name import find_function
from fastscore._support.checks import fail, fail_type
from fastscore._support.files import prepare_file, whole_file
from fastscore._support.options import refuse_unknown
from fastscore._support.plain import to_json
from fastscore._support.wrappers import unwrapped
from fastscore.checkpoint._checkpoint import FIELDS, SAMPLERS, Checkpoint, call_of, known_range
from fastscore.checkpoint._file import FORMAT, NAMES, adapters_of, check_path, require_safetensors
from fastscore.checkpoint._process import BETAS, process_record
from fastscore.nn._weights import Weights, weights_of
from fastscore.sde import DDPM


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint as one safetensors file (needs ``pip install safetensors``).

    Of a compiled network, one wrapped for parallel training, or a moving average, the network
    within is saved, under the names that it has by itself; weights that are tied are saved once
    and tied again when they are loaded.

    The file appears whole or not at all. The sampler's settings are tried before it is written: a
    name that the sampler doesn't know is refused now, not when somebody samples.

    Args:
        path: where to; a file that is there is replaced.
        checkpoint: a :class:`Checkpoint`.

    Raises:
        TypeError: something that is not a Checkpoint; a setting or an argument that JSON can't
            hold; a part of the network's state that is not a plain tensor.
        ValueError: a setting that the sampler does not take, or that belongs to a run; parameters
            without values, sparse or quantised ones; a builder that is not where its name says; a
            process that is none of :mod:`fastscore.sde`.
        ImportError: safetensors is missing, or the builder's module can't be imported.
        OSError: the file can't be written.

    Example:
        A network of one's own comes back into a second instance:

        >>> import tempfile, torch, fastscore
        >>> class Net(torch.nn.Module):
        ...     def __init__(self, width=8):
        ...         super().__init__()
        ...         self.inner = torch.nn.Linear(2, width)
        ...         self.outer = torch.nn.Linear(width, 2)
        ...     def forward(self, x, sigma):
        ...         return self.outer(self.inner(x).relu()) / sigma[:, None]
        >>> path = tempfile.mkdtemp() + "/net.safetensors"
        >>> sigmas = fastscore.geometric_sigmas(1.0, 0.1, 4)
        >>> net = Net()
        >>> fastscore.save_checkpoint(path, fastscore.Checkpoint(net, sigmas, data_shape=(2,)))
        >>> loaded = fastscore.load_checkpoint(path, model=Net())
        >>> torch.equal(loaded.model.outer.weight, net.outer.weight)
        True
        >>> loaded.sample(5, seed=0).shape
        torch.Size([5, 2])
    """
    fn = "save_checkpoint"
    safetensors = require_safetensors(fn)
    from safetensors.torch import save_file

    if not isinstance(checkpoint, Checkpoint):
        expected = "a fastscore.Checkpoint, as in save_checkpoint(path, Checkpoint(model, sigmas))"
        fail_type(fn, "checkpoint", expected, checkpoint)
    path = prepare_file(fn, check_path(fn, path), (Path(path).suffix,))
    checkpoint = _checked(fn, checkpoint)
    _check_sampling(fn, checkpoint)
    _check_builder(fn, checkpoint)
    weights = weights_of(fn, checkpoint.model)
    text = to_json(fn, "checkpoint", _record(checkpoint, weights))
    tensors = {f"model.{name}": tensor for name, tensor in weights.tensors.items()}
    if checkpoint.sigmas is not None:
        tensors["sigmas"] = checkpoint.sigmas.cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(checkpoint.process, DDPM):
        tensors[BETAS] = torch.tensor(checkpoint.process.betas, dtype=torch.float64)
    with whole_file(path) as partial:
        try:
            save_file(tensors, str(partial), metadata={"fastscore": text})
        except safetensors.SafetensorError as error:
            raise OSError(f"{fn}: can't write {path}: {error}") from error


def _checked(fn: str, checkpoint: Checkpoint) -> Checkpoint:
    """The same, checked again: its fields may have been changed since it was made."""
    try:
        return Checkpoint(**{name: getattr(checkpoint, name) for name in FIELDS})
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("Checkpoint:", f"{fn}:", 1)) from error


def _check_sampling(fn: str, checkpoint: Checkpoint) -> None:
    """That the sampler could run with the settings; it is asked for its plan."""
    name, sampler = checkpoint.sampler, SAMPLERS[checkpoint.sampler]
    for setting in checkpoint.sampling:
        if setting in FIELDS:
            expected = f"without {setting!r}, which is given as Checkpoint(..., {setting}=)"
            fail(fn, "sampling", expected, checkpoint.sampling)
        if setting not in sampler.settings and setting in inspect.signature(sampler).parameters:
            expected = f"settings of the model, not of a run as {setting!r} is (see .sample)"
            fail(fn, "sampling", expected, f"one of {setting!r}")
    refuse_unknown(f"{fn}: sampling of {name}", sampler.settings, checkpoint.sampling)
    to_json(fn, "sampling", checkpoint.sampling)
    try:
        args, settings = call_of(checkpoint)
        sampler.plan(*args, **settings)
    except (TypeError, ValueError) as error:
        got = f"{checkpoint.sampling} ({error})"
        raise type(error)(
            f"{fn}: sampling must be settings that {name} can run with, got {got}"
        ) from error


def _check_builder(fn: str, checkpoint: Checkpoint) -> None:
    """That the builder is where its name says, and takes the arguments. It is not called."""
    to_json(fn, "arguments", checkpoint.arguments)
    if checkpoint.builder is None:
        return
    if checkpoint.builder.startswith("__main__:"):
        expected = "a name that another program can import (a function in a module of its own)"
        fail(fn, "builder", expected, repr(checkpoint.builder))
    function = find_function(fn, "builder", checkpoint.builder)
    try:
        signature = inspect.signature(function)
    except ValueError:  # one written in C
        return
    try:
        signature.bind(**checkpoint.arguments)
    except TypeError as error:
        expected = f"keywords of {checkpoint.builder}{signature}"
        fail(fn, "arguments", expected, f"{checkpoint.arguments} ({error})")


def _record(checkpoint: Checkpoint, weights: Weights) -> dict[str, Any]:
    """All but the tensors."""
    network = unwrapped(checkpoint.model)
    kind = type(network)
    return {
        "format": FORMAT,
        "network": NAMES.get(kind, f"{kind.__module__}:{kind.__qualname__}"),
        "config": _config_of(network),
        "builder": checkpoint.builder,
        "arguments": checkpoint.arguments,
        "sampler": checkpoint.sampler,
        "sampling": checkpoint.sampling,
        "conditioning": checkpoint.conditioning,
        "prediction": checkpoint.prediction,
        "data_shape": checkpoint.data_shape,
        "adapters": adapters_of(network),
        "tied": weights.tied,
        "unsaved": weights.unsaved,
        "sigma_range": known_range("save_checkpoint", checkpoint),
        "process": process_record("save_checkpoint", checkpoint.process),
        "time_scale": checkpoint.time_scale,
    }


def _config_of(network: Any) -> dict[str, Any] | None:
    """The arguments that make a network of fastscore.nn again; None if they don't (any more)."""
    if type(network) not in NAMES:
        return None
    with torch.device("meta"):
        twin = type(network)(**network.config).state_dict()
    own = network.state_dict()
    same = own.keys() == twin.keys() and all(own[key].shape == twin[key].shape for key in own)
    return dict(network.config) if same else None
