"""The command ``fastscore`` (also ``python -m fastscore``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import cast

import fastscore
from fastscore.apps.info import format_info, info


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
    command.add_argument("--samples", type=int, default=256, help="how many digits to draw")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--no-progress", action="store_true", help="no progress bars")
    command.set_defaults(run=run_demo)

    command = commands.add_parser("sample", help="draw more from a saved checkpoint")
    command.add_argument("checkpoint")
    command.add_argument("-n", type=int, default=64, help="how many samples (default: 64)")
    command.add_argument("-o", "--out", required=True, help="OUT.npz or OUT.png")
    command.add_argument("--seed", type=int, default=None, help="default: a new one each time")
    command.add_argument("--device", default="cpu")
    command.add_argument("--no-progress", action="store_true", help="no progress bar")
    command.set_defaults(run=run_sample)

    command = commands.add_parser("bench", help="time every op beside its peers")
    command.add_argument(
        "--op", action="append", metavar="OP", help="an op or a family, may be repeated (all)"
    )
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
        progress=not args.no_progress,
    )


def run_sample(args: argparse.Namespace) -> None:
    """Checks everything that can fail before the first step is taken."""
    from fastscore._support.checks import check_int, fail
    from fastscore._support.files import prepare_file
    from fastscore.checkpoint import load_checkpoint

    check_int("sample", "-n", args.n, minimum=1)
    out = prepare_file("sample", args.out, (".npz", ".png"))
    checkpoint = load_checkpoint(args.checkpoint, device=args.device)
    fastscore.keep_freed_memory()
    shape = cast("tuple[int, ...]", checkpoint.model.data_shape)
    if out.suffix == ".png" and (len(shape) != 3 or shape[0] != 1):
        fail("sample", "--out", "a .npz file for a model of other than grey images", out)
    x = fastscore.annealed_langevin(
        checkpoint.model,
        checkpoint.sigmas,
        num_samples=args.n,
        seed=args.seed,
        progress=not args.no_progress,
        **checkpoint.sampling,
    )
    if out.suffix == ".png":
        import math

        from fastscore.apps.demo.pictures import save_png, tile

        save_png(out, tile(x, math.ceil(math.sqrt(args.n))))
    else:
        import numpy

        numpy.savez_compressed(out, samples=x.cpu().numpy())
    print(f"wrote {args.n} samples to {out}")


def run_benchmarks(args: argparse.Namespace) -> None:
    from fastscore.apps.bench import run_bench

    run_bench(args.out, ops=args.op, device=args.device, quick=args.quick)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error of the user's is one line on standard error and status 2."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"fastscore {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
