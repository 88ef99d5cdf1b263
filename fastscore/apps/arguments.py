"""Arguments that several commands take, and what they mean."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

import fastscore
from fastscore._support.checks import fail


def add_progress(command: argparse.ArgumentParser) -> None:
    """Option --progress."""
    command.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="progress bars (default: where tqdm is installed and there is a terminal)",
    )


def add_with(command: argparse.ArgumentParser) -> None:
    """Option --with."""
    command.add_argument(
        "--with",
        dest="given",
        action="append",
        default=[],
        metavar="NAME=VALUE[,VALUE...]",
        help="what else the network takes, such as label=3; of several values each sample gets one "
        "in turn; may be repeated",
    )


def add_build(command: argparse.ArgumentParser) -> None:
    """Option --build."""
    command.add_argument(
        "--build",
        nargs="?",
        const=True,
        default=False,
        metavar="PACKAGE.MODULE:FUNCTION",
        help="for a network of your own (put it last): call the function that makes it; without a "
        "name the one that the file names (only if you trust the file)",
    )


def model_kwargs_of(
    fn: str, entries: Sequence[str], n: int, device: torch.device
) -> dict[str, Tensor]:
    """NAME=VALUE,VALUE as tensors (n,), the values in turn: int64, or float32 where one isn't."""
    given = {}
    for entry in entries:
        name, _, values = entry.partition("=")
        whole = all(value.strip().lstrip("+-").isdecimal() for value in values.split(","))
        try:
            numbers = [(int if whole else float)(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if not name.isidentifier() or not numbers:
            fail(fn, "--with", "NAME=VALUE or NAME=VALUE,VALUE,... of numbers", repr(entry))
        tensor = torch.tensor(numbers, dtype=torch.int64 if whole else torch.float32, device=device)
        given[name] = tensor.repeat(-(-n // len(tensor)))[:n]
    return given


def with_hint(error: TypeError) -> TypeError:
    """The same, and how it is said on the command line what else a network takes."""
    hint = " (on the command line: --with NAME=VALUE)" if "model_kwargs=" in str(error) else ""
    return TypeError(f"{error}{hint}")


def load_own(fn: str, path: str, build: bool | str, device: torch.device) -> fastscore.Checkpoint:
    """The checkpoint; a builder is looked for in the current directory too, as Python does."""
    here = os.getcwd()
    if build and here not in sys.path:
        sys.path.insert(0, here)
    try:
        return fastscore.load_checkpoint(path, build=build, device=device)
    except ValueError as error:
        if "model must be given" in str(error) or "build must be the name" in str(error):
            expected = "given as --build MODULE:FUNCTION, which makes the network (or --build alone"
            expected += ", for a file that was saved with builder=)"
            raise ValueError(f"{fn}: --build must be {expected}: {error}") from error
        raise
