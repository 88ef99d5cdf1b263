"""The command: its options, the files that it reads, what is refused before any work."""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

import fastscore
from fastscore._support.checks import (
    check_choice,
    check_device_there,
    check_int,
    check_number,
    check_value_range,
    describe,
    fail,
)
from fastscore._support.extras import require_all
from fastscore._support.files import prepare_file
from fastscore.apps.arguments import (
    add_build,
    add_progress,
    add_with,
    load_own,
    model_kwargs_of,
    with_hint,
)
from fastscore.apps.evaluate.numbers import FN, Task, evaluate
from fastscore.apps.evaluate.report import lines_of, save_histogram, save_numbers
from fastscore.apps.progress import shows_progress
from fastscore.evaluation import dequantize

NAMES = ("samples", "x")  # of arrays in a file of several
DIVERGENCES = ("auto", "exact", "hutchinson")
LEVELS_OF_BYTES = 256


def add_evaluate(commands: Any) -> None:
    """The command and its options."""
    command = commands.add_parser(
        "evaluate",
        help="bits per dimension of data, how outliers are told, which network is better",
    )
    command.add_argument("checkpoint", help="a file that fastscore.save_checkpoint wrote")
    command.add_argument(
        "data", help=".npy, or .npz with an array called samples or x, or with one array alone"
    )
    command.add_argument(
        "--levels",
        type=int,
        metavar="N",
        help="how many levels the data have, which are dequantised (default: 256 of bytes, "
        "of floating-point numbers none: their density itself)",
    )
    command.add_argument(
        "--range",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LO", "HI"),
        help="where the network expects the data, the first and last level (default: 0 1)",
    )
    command.add_argument(
        "--draws", type=int, default=1, metavar="N", help="dequantise so often, for the mean (1)"
    )
    command.add_argument(
        "--divergence", default="auto", metavar="HOW", help="auto, exact or hutchinson (auto)"
    )
    command.add_argument(
        "--probes", type=int, default=1, metavar="N", help="of a divergence by probes (1)"
    )
    command.add_argument("--rtol", type=float, help="relative error of a step of the solver")
    command.add_argument(
        "--against",
        metavar="OTHER",
        help="a file of outliers: how well the bits tell them from the data (AUROC)",
    )
    command.add_argument(
        "--compare", metavar="CHECKPOINT", help="another network: the difference on the same data"
    )
    command.add_argument(
        "--prior",
        metavar="TRAIN",
        help="a file of data whose mean and standard deviation the prior of the latents takes "
        "(default: noise alone, as published)",
    )
    command.add_argument("-o", "--out", metavar="OUT.png", help="histogram of bits per dimension")
    command.add_argument("--save", metavar="OUT", help=".npz or .json: the numbers of each sample")
    add_with(command)
    command.add_argument(
        "--batch-size", type=int, default=None, help="samples in a call of the network (all)"
    )
    command.add_argument("--seed", type=int, default=None, help="default: a new one each time")
    command.add_argument("--device", default="cpu")
    add_build(command)
    add_progress(command)
    command.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> None:
    """Checks everything that can fail before the first step is taken."""
    task = task_of(args)
    device = check_device_there(FN, args.device)
    out = None if args.out is None else prepare_file(FN, args.out, (".png",))
    save = None if args.save is None else prepare_file(FN, args.save, (".npz", ".json"))
    picture = {} if out is None else {"matplotlib": "matplotlib"}
    require_all(FN, {"safetensors": "safetensors"} | picture)
    least = 1 if args.against is None and args.compare is None else 2
    x = read_array(args.data, least)
    against = None if args.against is None else read_array(args.against, 2)
    checkpoint = load_own(FN, args.checkpoint, args.build, device)
    second = None if args.compare is None else load_own(FN, args.compare, args.build, device)
    task = with_levels(task, args, x)
    x = prepared(args.data, x, checkpoint, task, device)
    if against is not None:
        check_alike(args.against, against, x, args.data)
        against = prepared(args.against, against, checkpoint, task, device)
    if args.prior is not None:
        task = replace(task, prior=prior_of(args, x, checkpoint, task, device))
    for path, each in ((args.checkpoint, checkpoint), (args.compare, second)):
        if each is not None:
            check_fits(path, each, x)
    sizes = {len(part) for part in (x, against) if part is not None}
    given = {n: model_kwargs_of(FN, args.given, n, device) for n in sizes}
    fastscore.keep_freed_memory()
    try:
        found = evaluate(
            checkpoint, x, task, against=against, compare=second, kwargs_of=given.__getitem__
        )
    except TypeError as error:
        raise with_hint(error) from error
    if save is not None:
        save_numbers(save, found, task)
    if out is not None:
        save_histogram(out, found, task, vars(args))
    print("\n".join(lines_of(found, task, tuple(x.shape[1:]), vars(args))))


def task_of(args: argparse.Namespace) -> Task:
    """The options, checked."""
    if args.levels is not None:
        check_int(FN, "--levels", args.levels, minimum=2)
    if args.batch_size is not None:
        check_int(FN, "--batch-size", args.batch_size, minimum=1)
    if args.rtol is not None:
        check_number(FN, "--rtol", args.rtol, positive=True)
    return Task(
        levels=args.levels,
        data_range=check_value_range(FN, "--range", args.range),
        draws=check_int(FN, "--draws", args.draws, minimum=1),
        divergence=check_choice(FN, "--divergence", args.divergence, DIVERGENCES),
        probes=check_int(FN, "--probes", args.probes, minimum=1),
        rtol=args.rtol,
        seed=args.seed,
        batch_size=args.batch_size,
        progress=shows_progress(FN, args.progress),
    )


def read_array(path: str, least: int) -> Tensor:
    """The array of a file, with at least so many samples.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix; not such a file; no array of a known name among several; no
            numbers, or too few samples.
    """
    file = Path(path)
    if file.suffix not in (".npy", ".npz"):
        fail(FN, "the data", ".npy or .npz", path)
    if not file.is_file():
        raise FileNotFoundError(f"{FN}: there is no file {path}")
    try:
        loaded = numpy.load(file, allow_pickle=False)
        if isinstance(loaded, numpy.ndarray):
            array = loaded
        else:
            with loaded:
                array = loaded[_name_in(path, loaded.files)]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if str(error).startswith(f"{FN}:"):
            raise
        raise ValueError(f"{FN}: {path} is not a file of numbers ({error})") from error
    if array.dtype.kind not in "iuf" or array.ndim < 1:
        got = f"an array of {array.dtype} of shape {array.shape}"
        fail(FN, path, "whole or floating-point numbers, (samples, ...)", got)
    if len(array) < least or not array.size:
        fail(FN, path, f"at least {least} sample{'s' * (least > 1)}", array.shape)
    return torch.from_numpy(numpy.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def _name_in(path: str, names: list[str]) -> str:
    for name in NAMES:
        if name in names:
            return name
    if len(names) != 1:
        expected = "a file with an array called samples or x, or with one alone"
        fail(FN, path, expected, ", ".join(names) or "one without any")
    return names[0]


def with_levels(task: Task, args: argparse.Namespace, x: Tensor) -> Task:
    """Bytes have 256 levels; of other whole numbers it is said."""
    if task.levels is None and not x.is_floating_point():
        if x.dtype != torch.uint8:
            fail(FN, "--levels", f"given for whole numbers of {x.dtype} (bytes have 256)", None)
        task = replace(task, levels=LEVELS_OF_BYTES)
    whole = x.is_floating_point() and bool((x == x.round()).all() and x.max() - x.min() > 1)
    if task.levels is None and whole:
        fail(FN, "--levels", "given for data that are whole numbers, which have no density", None)
    if task.levels is None and task.draws != 1:
        expected = "left out for data without --levels, which are not dequantised"
        fail(FN, "--draws", expected, task.draws)
    if task.levels is None and tuple(args.range) != (0.0, 1.0):
        fail(FN, "--range", "left out for data without --levels", task.data_range)
    return task


def prepared(
    path: str, x: Tensor, checkpoint: fastscore.Checkpoint, task: Task, device: torch.device
) -> Tensor:
    """The data as the network takes them, looked at: each on the grid, or finite."""
    if x.is_floating_point():
        own = (p.dtype for p in checkpoint.model.parameters() if p.is_floating_point())
        dtype = next(own, torch.float32)
        x = x.to(torch.float64 if dtype == torch.float64 else torch.float32)
    elif task.levels is None:
        fail(FN, path, "floating-point numbers, as the data are", describe(x))
    x = x.to(device)
    if task.levels is not None:
        try:
            dequantize(x, task.levels, task.data_range, seed=0)
        except ValueError as error:
            said = str(error).removeprefix("dequantize: x ").replace("levels=", "--levels")
            raise ValueError(f"{FN}: {path} {said.replace('data_range=', '--range')}") from error
        return x
    bad = ~x.isfinite().reshape(len(x), -1).all(1)
    if bool(bad.any()):
        fail(FN, path, "finite everywhere", f"NaN or infinity in sample {int(bad.nonzero()[0])}")
    return x


def check_alike(path: str, other: Tensor, x: Tensor, of: str) -> None:
    """Samples of one shape."""
    if other.shape[1:] != x.shape[1:]:
        expected = f"of samples of shape {tuple(x.shape[1:])}, as those of {of}"
        fail(FN, path, expected, tuple(other.shape[1:]))


def prior_of(
    args: argparse.Namespace,
    x: Tensor,
    checkpoint: fastscore.Checkpoint,
    task: Task,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the data in a file, dequantised where they have levels."""
    data = read_array(args.prior, 2)
    check_alike(args.prior, data, x, args.data)
    data = prepared(args.prior, data, checkpoint, task, device)
    if task.levels is not None:
        data = dequantize(data, task.levels, task.data_range, seed=0)
    return data.double().mean(0), data.double().std(0)


def check_fits(path: str, checkpoint: fastscore.Checkpoint, x: Tensor) -> None:
    """A network with a density, of data of this shape."""
    levels = checkpoint.sigmas
    if checkpoint.process is None and (levels is None or len(levels) < 2):
        expected = "the checkpoint of a network with a process, or with two noise levels or more"
        fail(FN, path, expected, checkpoint)
    shape = checkpoint.data_shape
    if shape is not None and shape != tuple(x.shape[1:]):
        fail(FN, path, f"of data of shape {tuple(x.shape[1:])}, as those given are", shape)
