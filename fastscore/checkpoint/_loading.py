"""Reading a checkpoint. Nothing in the file is executed unless that is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastscore._support.by_name import check_name, find_function
from fastscore._support.checks import check_device_there, fail, fail_type
from fastscore._support.plain import from_json
from fastscore._support.wrappers import unwrapped
from fastscore.checkpoint._checkpoint import FIELDS, Checkpoint, known_range
from fastscore.checkpoint._file import (
    FIRST_FORMAT,
    FORMAT,
    NETWORKS,
    SECOND_FORMAT,
    adapters_of,
    check_path,
    require_safetensors,
)
from fastscore.checkpoint._process import process_from
from fastscore.conditioning import sigma_range_of
from fastscore.nn._weights import Weights, put_weights
from fastscore.sde import Process


@dataclass
class _Saved:
    """What a file holds; the names are those of its JSON, of :func:`_record`."""

    network: str
    config: dict[str, Any] | None
    builder: str | None
    arguments: dict[str, Any]
    sampler: str
    sampling: dict[str, Any]
    conditioning: str | None
    prediction: str | None
    data_shape: tuple[int, ...] | None
    adapters: dict[str, dict[str, Any]]
    tied: dict[str, str]
    unsaved: dict[str, torch.dtype]
    tensors: dict[str, Tensor]
    sigma_range: tuple[float, float] | None = None  # these three are in no file of old
    process: Process | None = None
    time_scale: float | None = None

    @property
    def sigmas(self) -> Tensor | None:
        return self.tensors.get("sigmas")

    @property
    def weights(self) -> Weights:
        named = {n.removeprefix("model."): t for n, t in self.tensors.items() if n != "sigmas"}
        return Weights(named, self.tied, self.unsaved)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    build: bool | str = False,
    device: torch.device | str | None = None,
) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote.

    The networks of :mod:`fastscore.nn` are made again from the file. Any other network is one that
    you give (``model=``), or have built (``build=``): a file that names code to be run is as
    good as that code, so nothing is imported or executed unless you ask.

    The network is returned in eval mode, its weights in the dtype that they were saved in and tied
    as they were; ``conditioning``, ``prediction``, ``data_shape``, ``time_scale`` and
    ``sigma_range`` (the ends of the sigmas, or of the process, where it has said none) become
    attributes of it where it has none of its own.
    PyTorch's generator is left as it was.

    Args:
        path: the file.
        model: a network that takes over the weights, in place; compiled or wrapped for parallel
            training or not. Names and shapes are checked before anything is written: a network
            that does not fit is left as it was. Of an :class:`fastscore.nn.EMA` load the network
            itself and make a new average.
        build: True calls the builder that the file names, with the arguments in the file (only for
            files that you trust); "package.module:function" calls the one that you name, with the
            same arguments.
        device: where to put the network and the sigmas; by default where the given network is, or
            the builder makes it, else on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a fastscore checkpoint, or is damaged; the network does not fit
            (the message names what is missing, surplus or of another shape), or none is given for
            a file that needs one; a device that is not there.
        TypeError: an argument of the wrong type.
        ImportError: safetensors is missing, or the builder's module can't be imported.

    Example:
        >>> import tempfile, torch, fastscore
        >>> path = tempfile.mkdtemp() + "/net.safetensors"
        >>> sigmas = fastscore.geometric_sigmas(1.0, 0.1, 4)
        >>> net = fastscore.nn.ScoreMLP(2, hidden=(8,))
        >>> fastscore.save_checkpoint(path, fastscore.Checkpoint(net, sigmas))
        >>> fastscore.load_checkpoint(path)
        Checkpoint(ScoreMLP, 4 sigmas from 1 to 0.1, annealed_langevin())

        A network that a function of a module makes (here PyTorch's own class), saved with the name
        and the arguments of that function:

        >>> net = torch.nn.Linear(2, 2)
        >>> checkpoint = fastscore.Checkpoint(
        ...     net, sigmas, conditioning="none", data_shape=(2,),
        ...     builder="torch.nn:Linear", arguments={"in_features": 2, "out_features": 2},
        ... )
        >>> fastscore.save_checkpoint(path, checkpoint)
        >>> loaded = fastscore.load_checkpoint(path, build=True)
        >>> torch.equal(loaded.model.weight, net.weight)
        True
    """
    fn = "load_checkpoint"
    safetensors = require_safetensors(fn)
    _check_wish(fn, model, build)
    where = None if device is None else check_device_there(fn, device)
    path = Path(check_path(fn, path))
    saved = _read(fn, path, safetensors)
    network, arg = _network(fn, path, saved, model, build)
    values = {name: getattr(saved, name) for name in FIELDS if name != "model"}
    try:
        checkpoint = Checkpoint(network, **values)
    except ValueError as error:  # all else has been looked at by itself
        expected = "called, and predict, as the one that was saved"
        raise ValueError(f"{fn}: {arg} must be {expected} ({error})") from error
    _check_adapters(fn, arg, network, saved.adapters)
    put_weights(fn, arg, network, saved.weights)
    if where is not None:
        network.to(where)
    network.eval()
    if checkpoint.sigmas is not None:
        place = next(chain(network.parameters(), network.buffers()), checkpoint.sigmas).device
        checkpoint.sigmas = checkpoint.sigmas.to(where or place)
    for name in ("conditioning", "prediction", "data_shape", "time_scale"):
        if getattr(own := unwrapped(network), name, None) is None:
            setattr(own, name, getattr(checkpoint, name))
    known = saved.sigma_range or known_range(fn, checkpoint)
    if known is not None and sigma_range_of(network, fn=fn) is None:
        setattr(unwrapped(network), "sigma_range", known)  # noqa: B010
    return checkpoint


def _check_wish(fn: str, model: Any, build: Any) -> None:
    """What was asked for, before anything is read."""
    if model is not None and (not isinstance(model, nn.Module) or isinstance(model, AveragedModel)):
        fail_type(fn, "model", "a torch.nn.Module (of an average, the network itself)", model)
    if isinstance(build, bool):
        asked = build
    elif isinstance(build, str):
        asked = bool(check_name(fn, "build", build))
    else:
        fail_type(fn, "build", 'True, False or a name "package.module:function"', build)
    if asked and model is not None:
        fail(fn, "build", "False when model is given", repr(build))


def _read(fn: str, path: Path, safetensors: Any) -> _Saved:
    """The file's content, every part of it looked at; nothing of it is imported or called."""
    if not path.is_file():
        raise FileNotFoundError(f"{fn}: there is no file {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            record = from_json((file.metadata() or {}).get("fastscore", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as error:
        fail(fn, "path", "a fastscore checkpoint", f"{path} ({error})")
    kind = record.pop("format", None) if isinstance(record, dict) else None
    if kind not in (FORMAT, SECOND_FORMAT, FIRST_FORMAT):
        got = f"{path} of format {kind!r}: written by another version" if kind else path
        fail(fn, "path", f"a fastscore checkpoint of format {FORMAT}", got)
    try:
        if kind == FIRST_FORMAT:
            record = _from_first_format(record)
        record["process"] = process_from(record.get("process"), tensors)
        saved = _Saved(**record, tensors=tensors)
        _check_saved(fn, saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fail(fn, "path", "an undamaged checkpoint", f"{path} ({error})")
    return saved


def _from_first_format(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "network": f"fastscore.nn:{record['network']}",
        "config": record["arguments"],
        "builder": None,
        "arguments": {},
        "sampler": "annealed_langevin",
        "sampling": record["sampling"],
        "conditioning": None,
        "prediction": None,
        "data_shape": None,
        "adapters": {},
        "tied": {},
        "unsaved": {},
    }


def _check_saved(fn: str, saved: _Saved) -> None:
    """The parts that a Checkpoint does not check by itself, and all that go before the network."""
    Checkpoint(nn.Module(), **{name: getattr(saved, name) for name in FIELDS if name != "model"})
    if saved.config is not None and saved.network not in NETWORKS:
        raise ValueError(f"there is no network {saved.network}")
    for name, one in saved.tied.items():
        if f"model.{one}" not in saved.tensors or f"model.{name}" in saved.tensors:
            raise ValueError(f"{name!r} is tied to {one!r}")
    if not all(isinstance(dtype, torch.dtype) for dtype in saved.unsaved.values()):
        raise ValueError(f"dtypes {saved.unsaved}")
    if not all(isinstance(how, dict) for how in saved.adapters.values()):
        raise ValueError(f"adapters {saved.adapters}")
    sigma_range_of(saved, fn=fn)
    strange = [n for n in saved.tensors if n != "sigmas" and not n.startswith("model.")]
    if strange:
        raise ValueError(f"a tensor {strange[0]!r}")


def _check_adapters(
    fn: str, arg: str, network: nn.Module, saved: dict[str, dict[str, Any]]
) -> None:
    """That adapters call their networks as the saved ones did: the weights don't tell."""
    for name, own in adapters_of(network).items():
        then = saved.get(name, own)
        others = [key for key in own if own[key] != then.get(key)]
        if others:
            was, now = (", ".join(f"{k}={each.get(k)!r}" for k in others) for each in (then, own))
            place = f" at {name!r}" if name else ""
            fail(fn, arg, f"one with an adapter of {was}{place}, as the saved one", f"one of {now}")


def _network(
    fn: str, path: Path, saved: _Saved, model: nn.Module | None, build: bool | str
) -> tuple[nn.Module, str]:
    """The network that is to take the weights, and what messages call it."""
    if model is not None:
        return model, "model"
    name = build if isinstance(build, str) else saved.builder
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and overwritten
        if build and name is not None:
            function = find_function(fn, "build", name)
            try:
                made = function(**saved.arguments)
            except Exception as error:  # whatever somebody's code raises
                got = f"{name!r}, which raised {type(error).__name__}: {error}"
                expected = f"one that can be called with {saved.arguments}"
                raise ValueError(f"{fn}: build must be {expected}, got {got}") from error
            if not isinstance(made, nn.Module):
                expected = "the name of a function that makes a torch.nn.Module"
                fail(fn, "build", expected, f"{name!r}, which made a {type(made).__name__}")
            return made, f"the network of build={name!r}"
        if saved.config is not None:
            try:
                return NETWORKS[saved.network](**saved.config), "path's network"
            except (TypeError, ValueError) as error:
                fail(fn, "path", "an undamaged checkpoint", f"{path} ({error})")
    if build:
        fail(fn, "build", "the name of a function, for the file names none", build)
    known = f' or build=True (it names "{saved.builder}")' if saved.builder else ""
    expected = f"given, model=<a {saved.network}>{known}"
    fail(fn, "model", expected, None)
