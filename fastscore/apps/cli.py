"""The command ``fastscore`` (also ``python -m fastscore``)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

import fastscore
from fastscore._support.checks import (
    check_choice,
    check_device_there,
    check_int,
    check_value_range,
    fail,
)
from fastscore._support.extras import require_all
from fastscore._support.files import prepare_file, whole_file
from fastscore.apps.arguments import (
    add_build,
    add_progress,
    add_with,
    load_own,
    model_kwargs_of,
    with_hint,
)
from fastscore.apps.evaluate import add_evaluate
from fastscore.apps.info import format_info, info
from fastscore.apps.progress import shows_progress
from fastscore.checkpoint._checkpoint import SAMPLERS
from fastscore.pictures import is_image_shape

SMALLEST_SIDE = 32  # pixels: smaller images are enlarged to about this size


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = argparse.ArgumentParser(
        prog="fastscore", description="Fused kernels for score-based generative modelling."
    )
    root.add_argument("--version", action="version", version=f"fastscore {fastscore.__version__}")
    commands = root.add_subparsers(dest="command", required=True)

    command = commands.add_parser("info", help="versions, CPU capability, CUDA architectures")
    command.set_defaults(run=run_info)

    command = commands.add_parser("demo", help="train on handwritten digits and draw new ones")
    command.add_argument("--out", default="demo", help="directory to write to (default: demo)")
    command.add_argument("--iterations", type=int, default=3000, help="training steps")
    command.add_argument("--samples", type=int, default=1024, help="how many digits to draw")
    command.add_argument("--seed", type=int, default=0)
    add_progress(command)
    command.set_defaults(run=run_demo)

    command = commands.add_parser("sample", help="draw more from a saved checkpoint")
    command.add_argument("checkpoint", help="a file that fastscore.save_checkpoint wrote")
    command.add_argument("-n", type=int, default=64, help="how many samples (default: 64)")
    command.add_argument(
        "-o",
        "--out",
        required=True,
        help="OUT.npy, OUT.npz (where the array is called samples) or, of images, OUT.png",
    )
    command.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"another sampler than the file names, without that one's settings: "
        f"{', '.join(SAMPLERS)}",
    )
    command.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="how many, for a sampler that has them (annealed ones: --set steps_per_sigma=N)",
    )
    add_with(command)
    command.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the sampler in place of the stored one, such as steps_per_sigma=20; may "
        "be repeated",
    )
    command.add_argument(
        "--batch-size", type=int, default=None, help="samples in a call of the network (all)"
    )
    command.add_argument("--seed", type=int, default=None, help="default: a new one each time")
    command.add_argument("--device", default="cpu")
    command.add_argument(
        "--range",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LO", "HI"),
        help="values that are black and white in OUT.png (default: 0 1)",
    )
    add_build(command)
    add_progress(command)
    command.set_defaults(run=run_sample)

    add_evaluate(commands)

    command = commands.add_parser("bench", help="time every op beside its peers")
    command.add_argument(
        "--op", action="append", metavar="OP", help="an op or a family, may be repeated (all)"
    )
    command.add_argument("--list", action="store_true", help="print the names that --op takes")
    command.add_argument("--device", default="all", help="cpu, cuda or all that are there (all)")
    command.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    command.add_argument("--out", default="bench", help="directory of the JSON (default: bench)")
    command.set_defaults(run=run_benchmarks)
    return root


def run_info(_: argparse.Namespace) -> None:
    print(format_info(info()))


def run_demo(args: argparse.Namespace) -> None:
    from fastscore.apps.demo import run_demo

    fastscore.keep_freed_memory()
    run_demo(
        args.out,
        iterations=args.iterations,
        samples=args.samples,
        seed=args.seed,
        progress=args.progress,
    )


def run_sample(args: argparse.Namespace) -> None:
    """Checks everything that can fail before the first step is taken."""
    fn = "sample"
    check_int(fn, "-n", args.n, minimum=1)
    value_range = check_value_range(fn, "--range", args.range)
    device = check_device_there(fn, args.device)
    out = prepare_file(fn, args.out, (".npy", ".npz", ".png"))
    if args.batch_size is not None:
        check_int(fn, "--batch-size", args.batch_size, minimum=1)
    if args.sampler is not None:
        check_choice(fn, "--sampler", args.sampler, tuple(SAMPLERS))
    given = model_kwargs_of(fn, args.given, args.n, device)
    picture = out.suffix == ".png"
    require_all(fn, {"safetensors": "safetensors"} | ({"PIL": "pillow"} if picture else {}))
    progress = shows_progress(fn, args.progress)
    checkpoint = load_own(fn, args.checkpoint, args.build, device)
    sampler = checkpoint.sampler if args.sampler is None else args.sampler
    settings = settings_of(fn, args.settings, sampler)
    if args.steps is not None:
        settings["steps"] = check_steps(fn, args.steps, settings, checkpoint, sampler)
    shape = checkpoint.data_shape
    if shape is None:
        expected = "one that says data_shape=, the shape of a sample (see fastscore.Checkpoint)"
        fail(fn, "checkpoint", expected, args.checkpoint)
    if picture and not is_image_shape(shape):
        fail(
            fn,
            "--out",
            f"a .npy or .npz file for samples of shape {shape}, which are no images",
            out,
        )
    fastscore.keep_freed_memory()
    try:
        x = checkpoint.sample(
            args.n,
            sampler=sampler,
            seed=args.seed,
            progress=progress,
            model_kwargs=given,
            batch_size=args.batch_size,
            **settings,
        )
    except TypeError as error:
        raise with_hint(error) from error
    if picture:
        zoom = max(1, SMALLEST_SIDE // max(shape[-2:]))
        fastscore.save_grid(out, x, value_range=value_range, zoom=zoom)
    else:
        save_array(out, x)
    print(f"wrote {args.n} samples to {out}")


def settings_of(fn: str, entries: Sequence[str], sampler: str) -> dict[str, Any]:
    """NAME=VALUE as keywords of the sampler: numbers, and words as they are."""
    known = sorted(SAMPLERS[sampler].settings)
    settings: dict[str, Any] = {}
    for entry in entries:
        name, sign, value = entry.partition("=")
        if not sign or name not in known:
            fail(fn, "--set", f"NAME=VALUE with a setting of {sampler} ({', '.join(known)})", entry)
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def check_steps(
    fn: str, steps: int, settings: dict[str, Any], checkpoint: fastscore.Checkpoint, sampler: str
) -> int:
    """The number of steps, for a sampler that is told one."""
    if "steps" in settings:
        fail(fn, "--steps", "left out where there is --set steps=", steps)
    if "steps" not in SAMPLERS[sampler].settings:
        levels = "its" if checkpoint.sigmas is None else f"its {len(checkpoint.sigmas)}"
        many = "steps_per_sigma" in SAMPLERS[sampler].settings
        expected = f"left out for {sampler}, which takes {'N steps' if many else 'a step'} at each "
        way = "--set steps_per_sigma=N, or " if many else ""
        way += "another sampler: --sampler probability_flow --steps N"
        fail(fn, "--steps", f"{expected}of {levels} noise levels ({way})", steps)
    return check_int(fn, "--steps", steps, minimum=1)


def save_array(path: Path, samples: Tensor) -> None:
    array = samples.cpu().numpy()
    with whole_file(path) as partial, partial.open("wb") as file:
        if path.suffix == ".npy":
            numpy.save(file, array)
        else:
            numpy.savez_compressed(file, samples=array)


def run_benchmarks(args: argparse.Namespace) -> None:
    from fastscore.apps.bench import listing, run_bench

    if args.list:
        print("\n".join(listing()))
        return
    run_bench(args.out, ops=args.op, device=args.device, quick=args.quick)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error of the user's is one line on standard error and status 2."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, IndexError) as error:
        message = str(error).removeprefix(f"{args.command}: ")
        print(f"fastscore {args.command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
