"""What of the kernels' PTX was reached, for readers."""

from __future__ import annotations

from collections.abc import Iterator

from emulator.side import Kernel, Line


def of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "none"


def reached(kernel: Kernel) -> int:
    return sum(line.reached for line in kernel.lines)


def family_lines(kernels: list[Kernel]) -> list[str]:
    """One line for each family."""
    found: list[str] = []
    for family in sorted({kernel.family for kernel in kernels}):
        mine = [kernel for kernel in kernels if kernel.family == family]
        launched = [kernel for kernel in mine if kernel.launches]
        lines = sum(len(kernel.lines) for kernel in launched)
        found.append(
            f"{family:<12}kernels launched: {of(len(launched), len(mine))}; "
            f"their lines reached: {of(sum(map(reached, launched)), lines)}"
        )
    return found


def stretches(kernel: Kernel) -> Iterator[list[Line]]:
    """Lines without a gap that no thread has reached."""
    run: list[Line] = []
    for line in kernel.lines:
        if not line.reached:
            run.append(line)
        elif run:
            yield run
            run = []
    if run:
        yield run


def text(kernels: list[Kernel]) -> str:
    """The families, the kernels that were never launched, and the branches never taken."""
    parts = [*family_lines(kernels), "", "Kernels that were never launched:"]
    ordered = sorted(kernels, key=lambda k: (k.family, k.name))
    parts += [f"  {k.family}: {k.name}" for k in ordered if not k.launches] or ["  none"]
    parts += ["", "Branches that no thread has reached, with their PTX lines:"]
    for kernel in ordered:
        if not kernel.launches or reached(kernel) == len(kernel.lines):
            continue
        parts.append(f"{kernel.family}: {kernel.name}: {of(reached(kernel), len(kernel.lines))}")
        for run in stretches(kernel):
            first, last = run[0], run[-1]
            parts.append(f"  {first.number}-{last.number} ({len(run)}): {first.text}")
    return "\n".join(parts) + "\n"
