"""fastscore.jvps agrees with PyTorch on its databases of operators and modules.

By default a small choice that reaches every operator and module; everything, for the better part
of an hour, with FASTSCORE_TEST_JVP_SWEEP=all. What disagrees stands in LISTED, with its reason and
one case that shows it: an entry that agrees now fails, so that the list stays true.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from jvp_sweep import (
    DTYPES,
    Case,
    check,
    check_error,
    databases,
    module_cases,
    operator_cases,
    operator_errors,
)

from fastscore.derivatives.forward import warned

EVERYTHING = os.environ.get("FASTSCORE_TEST_JVP_SWEEP") == "all"
SHARDS = 16
F64, F32, B16 = torch.float64, torch.float32, torch.bfloat16

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith("2.13."), reason="LISTED is of PyTorch 2.13's databases"
)


class Listed(NamedTuple):
    """An operator that disagrees: how, why, and the case that shows it."""

    kinds: str
    reason: str
    dtype: torch.dtype
    case: str


EQUAL = "which of equal elements passes its tangents on is a choice; PyTorch has no derivative"
REPEATED = "places given twice: PyTorch's gradient counts every element, the last alone is seen"
UNWEIGHTED = (
    "by the weights of the classes: PyTorch has no derivative, and takes it for 0 in pieces"
)

LISTED: dict[str, Listed] = {
    f"nn_functional_max_unpool{n}d": Listed(
        "gradients", REPEATED, F64, f"nn_functional_max_unpool{n}d function sample {k} by 0"
    )
    for n, k in ((1, 1), (2, 1), (3, 0))
} | {
    "linalg_eig": Listed(
        "gradients",
        "eigenvectors are known up to a phase, on which the test's own sum depends",
        F64,
        "linalg_eig function sample 4 by 0",
    ),
    "linalg_eigh": Listed(
        "gradients",
        "equal eigenvalues: the eigenvectors have no derivative",
        F64,
        "linalg_eigh function sample 0 by 0",
    ),
    "linalg_norm_subgradients_at_zero": Listed(
        "gradients",
        "a norm at 0 has no second derivative",
        F64,
        "linalg_norm_subgradients_at_zero function sample 5 by 0",
    ),
    "nn_functional_linear_cross_entropy_chunked": Listed(
        "raises",
        UNWEIGHTED,
        F64,
        "nn_functional_linear_cross_entropy_chunked function sample 56 by 3",
    ),
    "nn_functional_linear_cross_entropy_chunked_none": Listed(
        "raises",
        UNWEIGHTED,
        F64,
        "nn_functional_linear_cross_entropy_chunked_none function sample 28 by 3",
    ),
    "nn_functional_scaled_dot_product_attention": Listed(
        "value tangents",
        "random: another mask of the dropout, which is drawn in the order of the memory",
        F64,
        "nn_functional_scaled_dot_product_attention function sample 18 by 0",
    ),
    "torch_ops_aten__safe_softmax_default": Listed(
        "gradients",
        "PyTorch's own function: NaN for rows without a finite element",
        F64,
        "torch_ops_aten__safe_softmax_default function sample 0 by 0",
    ),
    "unique": Listed("tangents gradients", EQUAL, F64, "unique function sample 24 by 0"),
    "unique_consecutive": Listed(
        "tangents gradients", EQUAL, F64, "unique_consecutive function sample 12 by 0"
    ),
}


def chosen(cases: list[Any], name: str, salt: int = 0) -> list[Any]:
    """One of them, which depends on nothing but the name."""
    return [cases[zlib.crc32(f"{name}{salt}".encode()) % len(cases)]] if cases else []


def cases_of(entry: Any, number: int) -> Iterator[tuple[Case, Any]]:
    """The cases of an operator or module, each with the error that is expected of it, if any."""
    is_operator = hasattr(entry, "sample_inputs")
    make = operator_cases if is_operator else module_cases
    if EVERYTHING:
        for dtype in DTYPES:
            yield from ((case, None) for case in make(entry, dtype))
        yield from operator_errors(entry) if is_operator else ()
        return
    name = entry.name
    yield from ((case, None) for case in chosen(list(make(entry, F64, 2)), name))
    if number % 2:
        narrow = (F32, B16)[number // 2 % 2]
        yield from ((case, None) for case in chosen(list(make(entry, narrow, 1)), name, 1))
    if is_operator and number % 5 == 0:
        yield from chosen(list(operator_errors(entry)), name)
    listed = LISTED.get(entry.formatted_name if is_operator else name)
    if listed is not None:
        yield next((case, None) for case in make(entry, listed.dtype) if str(case) == listed.case)


@pytest.fixture(scope="module")
def entries() -> Iterator[list[tuple[str, Any]]]:
    pytest.importorskip("expecttest", reason="PyTorch's databases import expecttest")
    operators, modules = databases()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several cost these small tensors more than they give
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warned, "_WARNED", set())  # other tests wait for the same warnings
        yield [(op.formatted_name, op) for op in operators] + [(m.name, m) for m in modules]
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_sweep(shard: int, entries: list[tuple[str, Any]]) -> None:
    count = 0
    wrong: list[str] = []
    listed: dict[str, set[str]] = {}
    disagreeing = 0
    for number, (name, entry) in enumerate(entries):
        if number % SHARDS != shard:
            continue
        if name in LISTED:
            listed.setdefault(name, set())
        for case, error in cases_of(entry, number):
            count += 1
            problems = check(case) if error is None else check_error(case, error)
            disagreeing += bool(problems)
            for problem in problems:
                kind = problem.split(":")[0]
                if name in LISTED and kind in LISTED[name].kinds:
                    listed[name].add(kind)
                else:
                    wrong.append(f"{case} {case.x.dtype}: {problem}")
    if EVERYTHING:
        print(f"\nshard {shard}: {count} calls, {count - disagreeing} agree, {disagreeing} do not")
    stale = [
        name
        for name, kinds in listed.items()
        if not kinds or (EVERYTHING and kinds != set(LISTED[name].kinds.split()))
    ]
    assert not wrong, "\n".join(wrong)
    assert not stale, f"listed, though they agree now: {stale}"
    assert count > 0
