"""Counts the instructions per element on the hot path of the kernels, from their machine code.

    python tools/cuda_instructions.py DIRECTORY

DIRECTORY holds the objects that ``tools/cuda_resources.py DIRECTORY`` left. Needs cuobjdump on the
PATH, no GPU. For each kernel it finds the shortest way round its loop that makes the 16-byte loads
and stores and the random numbers of one turn: whole packs, one sample, noise drawn.

It then compares two floors for an H200: the time that issuing the instructions takes, and the time
that the memory traffic takes. The assumptions are the constants below; nothing is measured here.
"""

from __future__ import annotations

import heapq
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MULTIPROCESSORS, CLOCK = 132, 1.75e9
ISSUED = 4 * 32  # lanes of instructions per clock and multiprocessor
BANDWIDTH = 4.8e12  # bytes per second
# Lanes per clock and multiprocessor: additions and fused multiplications have two pipes, integer
# products one of them; logic, shifts, comparisons and conversions of 32 bits share another.
PIPES = {"fma": 128, "imad": 64, "alu": 64, "xu": 16, "uniform": ISSUED, "memory": 32}


class Instruction(NamedTuple):
    address: int
    predicate: str
    name: str
    operands: str


class Hot(NamedTuple):
    """A kernel, and what one turn of its loop does."""

    source: str
    kernel: str
    label: str
    elements: int
    bytes: int  # per element, read and written
    loads: int
    stores: int
    roots: int  # square roots: two for each four normals
    philox: int = 0  # at least so many of Philox's products, where there are no roots


HOT = [
    Hot("langevin", "langevin<Packed<float, 4>, Packed<float, 4>, false, false>",
        "langevin_step_ float32", 8, 12, 4, 2, 4),
    Hot("langevin", "langevin<Packed<__nv_bfloat16, 8>, Packed<__nv_bfloat16, 8>, false, false>",
        "langevin_step_ bfloat16", 16, 6, 4, 2, 8),
    Hot("dsm", "map<Packed<float, 4>, Perturbation<float>, false>",
        "perturb float32", 8, 8, 2, 2, 4),
    Hot("dsm", "map<Packed<__nv_bfloat16, 8>, Perturbation<float>, false>",
        "perturb bfloat16", 16, 4, 2, 2, 8),
    Hot("dsm", "sum_segments<ResidualSum<Packed<float, 4> > >",
        "dsm_residual float32", 8, 4, 2, 0, 4),
    Hot("dsm", "map<Packed<float, 4>, ResidualGradient<float, false>, false>",
        "dsm_residual_backward float32", 8, 8, 2, 2, 4),
    Hot("dsm", "sum_segments<ResidualSumWithGrad<Packed<float, 4> > >",
        "dsm_residual_with_grad float32", 8, 8, 2, 2, 4),
    Hot("dsm", "sum_segments<ResidualSumWithGrad<Packed<__nv_bfloat16, 8> > >",
        "dsm_residual_with_grad bfloat16", 16, 4, 2, 2, 8),
    Hot("sliced", "sum_segments<SlicedSums<Packed<float, 4> > >",
        "sliced_terms float32, signs", 8, 8, 4, 0, 0, 36),
    Hot("sliced", "sum_segments<SlicedSums<Packed<float, 4> > >",
        "sliced_terms float32, normals", 8, 8, 4, 0, 4),
    Hot("sliced", "terms_backward<Packed<float, 4>, false>",
        "sliced_terms_backward float32, signs", 8, 12, 2, 4, 0, 36),
    Hot("random", "fill<Packed<float, 4>, Normal, false>", "random_normal_ float32", 8, 4, 0, 2, 4),
]  # fmt: skip


def pipe(name: str) -> str:
    """The unit that an instruction goes to."""
    base = name.split(".")[0]
    if base in ("FFMA", "FMUL", "FADD"):
        return "fma"
    if base == "IMAD":
        return "imad"
    if base in ("MUFU", "F2F", "I2F", "F2I"):
        return "xu"
    if base in ("LDG", "STG", "LDS", "STS", "LDC"):
        return "memory"
    if base in ("BRA", "BSSY", "BSYNC", "EXIT", "CALL", "RET", "NOP"):
        return "control"
    if base.startswith(("DADD", "DMUL", "DFMA", "DSETP")):
        return "float64"
    if base.startswith("U") or base in ("R2UR", "VOTEU", "S2UR"):
        return "uniform"
    return "alu"


def machine_code(path: Path) -> dict[str, list[Instruction]]:
    """The instructions of each kernel in an object."""
    run = ["cuobjdump", "-sass", str(path)]
    listing = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\n\s*Function : ", listing)[1:]
    line = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+)?\s*([A-Z0-9_.]+)\s*(.*?)\s*;")
    mangled = [part.split("\n")[0].strip() for part in parts]
    names = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    noise = r"^void |\(anonymous namespace\)::|fastscore::cuda::"
    found = {}
    for name, part in zip(names, parts, strict=True):
        rows = [match for text in part.split("\n") if (match := line.match(text))]
        found[re.sub(r"\(.*\)$", "", re.sub(noise, "", name))] = [
            Instruction(int(row[1], 16), row[2] or "", row[3], row[4]) for row in rows
        ]
    return found


def successors(code: list[Instruction]) -> list[list[int]]:
    """Where control may go after each instruction."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    meeting: dict[str, int] = {}
    found: list[list[int]] = []
    for i, (_, predicate, name, operands) in enumerate(code):
        base, following = name.split(".")[0], [i + 1] if i + 1 < len(code) else []
        target = re.search(r"0x([0-9a-f]+)$", operands)
        to = index.get(int(target[1], 16)) if target else None
        barrier = operands.split(",")[0]
        if base == "BSSY" and to is not None:
            meeting[barrier] = to
            found.append(following)
        elif base == "BSYNC":
            found.append([meeting[barrier]])
        elif base == "BRA" and to is not None:
            conditional = predicate or re.match(r"!?U?!?P\d", operands)
            found.append([to, *following] if conditional else [to])
        elif base in ("EXIT", "RET"):
            found.append(following if predicate else [])
        else:
            found.append(following)
    return found


def counted(instruction: Instruction) -> int | None:
    """Which of (loads, stores, roots, Philox products) an instruction is."""
    if instruction.name.startswith("LDG.E.128"):
        return 0
    if instruction.name.startswith("STG.E.128"):
        return 1
    if instruction.name.startswith("MUFU.RSQ"):
        return 2
    if instruction.name.startswith("IMAD.WIDE.U32") and re.search(
        "-0x326172a9|-0x2daee0ad", instruction.operands
    ):
        return 3
    return None


def shortest(
    code: list[Instruction], to: list[list[int]], head: int, tail: int, need: tuple[int, ...]
) -> list[int] | None:
    """The shortest way from head to tail that meets the needs, the last of them as a least."""
    start = (head, (0,) * len(need))
    distance, before = {start: 0}, {}
    queue = [(0, start)]
    while queue:
        steps, state = heapq.heappop(queue)
        if steps > distance[state]:
            continue
        i, have = state
        kind = counted(code[i])
        if kind is not None:
            more = have[kind] + 1
            if more > need[kind]:
                if kind < 3:
                    continue
                more = need[kind]
            have = (*have[:kind], more, *have[kind + 1 :])
        if i == tail:
            if have != need:
                continue
            path = [i]
            while state in before:
                state = before[state]
                path.append(state[0])
            return path[::-1]
        for after in to[i]:
            reached = (after, have)
            if after > i and steps + 1 < distance.get(reached, len(code) + 1):
                distance[reached] = steps + 1
                before[reached] = state
                heapq.heappush(queue, (steps + 1, reached))
    return None


def hot_path(code: list[Instruction], hot: Hot) -> list[Instruction]:
    """The instructions of one turn of the hot loop."""
    to = successors(code)
    need = (hot.loads, hot.stores, hot.roots, hot.philox)
    ways = [
        way
        for tail, after in enumerate(to)
        for head in after
        if head <= tail and (way := shortest(code, to, head, tail, need))
    ]
    return [code[i] for i in min(ways, key=len)]


def rows(objects: Path) -> Iterator[str]:
    yield (
        f"{'':38} {'all':>5} {'fma':>5} {'imad':>5} {'alu':>5} {'unif.':>5} {'xu':>4} {'mem':>4}"
        f" {'rest':>4} | {'bytes':>5} {'issue':>6} {'memory':>6} {'share':>6}"
    )
    known: dict[str, dict[str, list[Instruction]]] = {}
    for hot in HOT:
        if hot.source not in known:
            known[hot.source] = machine_code(objects / f"{hot.source}.o")
        path = hot_path(known[hot.source][hot.kernel], hot)
        each = Counter(pipe(instruction.name) for instruction in path)
        per = {name: each[name] / hot.elements for name in PIPES}
        total = len(path) / hot.elements
        rate = MULTIPROCESSORS * CLOCK
        busy = {name: per[name] / (rate * width) for name, width in PIPES.items()}
        issue = max(total / (rate * ISSUED), *busy.values())
        memory = hot.bytes / BANDWIDTH
        rest = total - sum(per.values())
        yield (
            f"{hot.label:38} {total:5.1f} {per['fma']:5.1f} {per['imad']:5.1f} {per['alu']:5.1f}"
            f" {per['uniform']:5.1f} {per['xu']:4.1f} {per['memory']:4.1f} {rest:4.1f}"
            f" | {hot.bytes:5} {issue * 1e12:6.2f} {memory * 1e12:6.2f} {memory / issue:6.2f}"
        )


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("Instructions per element on the hot path by unit; floors in ps per element (H200);")
    print("share: memory floor over issue floor, above 1 where memory binds. Nothing is measured.")
    for row in rows(Path(sys.argv[1])):
        print(row)


if __name__ == "__main__":
    main()
