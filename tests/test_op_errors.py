"""Bad input of the ops: the error names the op, the argument, what it must be and what came."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from byte_cases import dsm_tables, langevin_table
from helpers import make_key
from torch import Tensor

import fastscore
from fastscore import ops
from fastscore._support.streams import Stream

FILLS = ("normal_", "uniform_", "rademacher_")
LEVELS = 6


def message(name: str, argument: str, error: type[Exception]) -> str:
    """The wording of every error; the registered name of a fill has ``random_`` before it.

    A wrong type may be told in the words of PyTorch's dispatcher, which name the same things.
    """
    if error is TypeError:
        return rf"{name}.*\b{argument}\b"
    return rf"^(random_)?{name}_?: {argument} must be .*, got "


# ---- random ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"out": [1.0]}, TypeError, "out"),
        ({"out": torch.empty(3, dtype=torch.int64)}, ValueError, "out"),
        ({"out": torch.empty(3, dtype=torch.complex64)}, ValueError, "out"),
        ({"out": torch.empty(())}, ValueError, "out"),
        ({"out": torch.empty(1).expand(3)}, ValueError, "out"),
        ({"out": torch.empty(3, requires_grad=True)}, ValueError, "out"),
        ({"key": 5}, TypeError, "key"),
        ({"key": torch.zeros(2)}, ValueError, "key"),
        ({"key": torch.zeros(2, dtype=torch.int32)}, ValueError, "key"),
        ({"key": torch.zeros(3, dtype=torch.int64)}, ValueError, "key"),
        ({"key": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "key"),
        ({"sample_offset": -1}, ValueError, "sample_offset"),
        ({"out": torch.empty(3, 5), "sample_offset": 2**62}, ValueError, "sample_offset"),
        ({"sample_offset": 1.5}, TypeError, "sample_offset"),
        ({"stream": -1}, ValueError, "stream"),
        ({"stream": 2**32}, ValueError, "stream"),
        ({"stream": "user"}, TypeError, "stream"),
    ],
)
def test_bad_fill(
    name: str, change: dict[str, object], error: type[Exception], argument: str
) -> None:
    good = {"out": torch.empty(3), "key": make_key(1), "stream": Stream.USER, "sample_offset": 0}
    with pytest.raises(error, match=message(name, argument, error)):
        getattr(ops, name)(**(good | change))


@pytest.mark.parametrize("name", ["normal", "uniform", "rademacher"])
@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"key": 5}, TypeError, "key"),
        ({"key": torch.zeros(2)}, ValueError, "key"),
        ({"shape": ()}, ValueError, "shape"),
        ({"shape": (2, -1)}, ValueError, "shape"),
        ({"shape": (2, 1.5)}, TypeError, "shape"),
        ({"shape": "22"}, TypeError, "shape"),
        ({"dtype": torch.int64}, ValueError, "dtype"),
        ({"dtype": "float32"}, TypeError, "dtype"),
        ({"sample_offset": -1}, ValueError, "sample_offset"),
        ({"stream": -1}, ValueError, "stream"),
    ],
)
def test_bad_random_function(
    name: str, change: dict[str, object], error: type[Exception], argument: str
) -> None:
    good = {"key": make_key(1), "shape": (2, 3)}
    with pytest.raises(error, match=message(name, argument, error)):
        getattr(fastscore.random, name)(**(good | change))


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda: fastscore.random.key(1.5), TypeError, "seed"),
        (lambda: fastscore.random.key(True), TypeError, "seed"),
        (lambda: fastscore.random.key("1"), TypeError, "seed"),
        (lambda: fastscore.random.key(2**64), ValueError, "seed"),
        (lambda: fastscore.random.key(1, draw=-1), ValueError, "draw"),
        (lambda: fastscore.random.key(1, draw=0.5), TypeError, "draw"),
        (lambda: fastscore.random.key(generator=3), TypeError, "generator"),
    ],
)
def test_bad_key(call: Callable[[], Tensor], error: type[Exception], argument: str) -> None:
    with pytest.raises(error, match=message("key", argument, error)):
        call()


# ---- langevin --------------------------------------------------------------------------------

BAD_STEPS: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x"),
    ({"x": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "x"),
    ({"x": torch.zeros(())}, ValueError, "x"),
    ({"score": 0.0}, TypeError, "score"),
    ({"score": torch.zeros(2, 4)}, ValueError, "score"),
    ({"score": torch.zeros(3)}, ValueError, "score"),
    ({"score": torch.zeros(2, 3, dtype=torch.float64)}, ValueError, "score"),
    ({"score": torch.zeros(2, 3, dtype=torch.int32)}, ValueError, "score"),
    ({"score": torch.zeros(2, 3, device="meta")}, ValueError, "score"),
    ({"table": [[1.0, 0.0, 0.0, 0.0]]}, TypeError, "table"),
    ({"table": torch.ones(1, 4)}, ValueError, "table"),
    ({"table": torch.ones(4, dtype=torch.float64)}, ValueError, "table"),
    ({"table": torch.ones(1, 3, dtype=torch.float64)}, ValueError, "table"),
    ({"table": torch.ones(0, 4, dtype=torch.float64)}, ValueError, "table"),
    ({"table": torch.ones(1, 3, 4, dtype=torch.float64)}, ValueError, "table"),
    ({"table": torch.ones(4, 4, dtype=torch.float64).t()[1:]}, ValueError, "table"),
    ({"table": torch.ones(1, 4, dtype=torch.float64, device="meta")}, ValueError, "table"),
    ({"key": 3}, TypeError, "key"),
    ({"key": torch.zeros(2)}, ValueError, "key"),
    ({"key": torch.zeros(1, dtype=torch.int64)}, ValueError, "key"),
    ({"key": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "key"),
    ({"known": torch.zeros(2, 3)}, ValueError, "mask"),
    ({"mask": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "known"),
    ({"known": 1.0, "mask": torch.zeros(2, 3, dtype=torch.bool)}, TypeError, "known"),
    ({"known": torch.zeros(2, 3), "mask": torch.zeros(2, 3)}, ValueError, "mask"),
    ({"known": torch.zeros(2, 3), "mask": True}, TypeError, "mask"),
    ({"known": torch.zeros(3), "mask": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "known"),
    ({"known": torch.zeros(2, 3), "mask": torch.zeros(3, dtype=torch.bool)}, ValueError, "mask"),
    (
        {"known": torch.zeros(2, 3).double(), "mask": torch.zeros(2, 3, dtype=torch.bool)},
        ValueError,
        "known",
    ),
    ({"clamp": (1.0, -1.0)}, ValueError, "clamp"),
    ({"clamp": (torch.nan, 1.0)}, ValueError, "clamp"),
    ({"clamp": (1.0,)}, ValueError, "clamp"),
    ({"clamp": ()}, ValueError, "clamp"),
    ({"clamp": 1.0}, TypeError, "clamp"),
    ({"clamp": ("a", "b")}, TypeError, "clamp"),
    ({"sample_offset": -1}, ValueError, "sample_offset"),
    ({"sample_offset": 2**62}, ValueError, "sample_offset"),
    ({"sample_offset": 0.5}, TypeError, "sample_offset"),
]


@pytest.mark.parametrize("name", ["langevin_step", "langevin_step_"])
@pytest.mark.parametrize(("change", "error", "argument"), BAD_STEPS)
def test_bad_langevin_step(
    name: str, change: dict[str, object], error: type[Exception], argument: str
) -> None:
    good = {
        "x": torch.zeros(2, 3),
        "score": torch.zeros(2, 3),
        "table": torch.ones(1, 4, dtype=torch.float64),
        "key": make_key(1),
    }
    with pytest.raises(error, match=message(name, argument, error)):
        getattr(ops, name)(**(good | change))
    ops.langevin_step(**good)


def test_the_state_must_not_overlap_itself() -> None:
    x = torch.zeros(1, 3).expand(2, 3)
    with pytest.raises(ValueError, match="langevin_step_: x must be"):
        ops.langevin_step_(x, torch.zeros(2, 3), langevin_table(), make_key(1))


# ---- dsm -------------------------------------------------------------------------------------

BAD_KEYS = [
    ({"key": 3}, TypeError, "key"),
    ({"key": torch.zeros(2)}, ValueError, "key"),
    ({"key": torch.zeros(3, dtype=torch.int64)}, ValueError, "key"),
    ({"key": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "key"),
    ({"sample_offset": -1}, ValueError, "sample_offset"),
    ({"sample_offset": 2**62}, ValueError, "sample_offset"),
    ({"sample_offset": 0.5}, TypeError, "sample_offset"),
]
BAD_LABELS = [
    ({"labels": [0, 1]}, TypeError, "labels"),
    ({"labels": torch.zeros(2)}, ValueError, "labels"),
    ({"labels": torch.zeros(2, dtype=torch.int32)}, ValueError, "labels"),
    ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "labels"),
    ({"labels": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, "labels"),
    ({"labels": torch.zeros(2, 2, dtype=torch.int64)[:, 0]}, ValueError, "labels"),
    ({"labels": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "labels"),
    ({"labels": torch.tensor([0, LEVELS])}, ValueError, "labels"),
    ({"labels": torch.tensor([-1, 0])}, ValueError, "labels"),
    ({"labels": torch.tensor([0, 2**40])}, ValueError, "labels"),
]


def bad_tables(columns: int) -> list[tuple[dict[str, object], type[Exception], str]]:
    """Tables that are not (L, columns) in float64."""
    return [
        ({"table": [[1.0] * columns]}, TypeError, "table"),
        ({"table": torch.ones(LEVELS, columns)}, ValueError, "table"),
        ({"table": torch.ones(LEVELS, columns + 1, dtype=torch.float64)}, ValueError, "table"),
        ({"table": torch.ones(columns, dtype=torch.float64)}, ValueError, "table"),
        ({"table": torch.ones(0, columns, dtype=torch.float64)}, ValueError, "table"),
        (
            {"table": torch.ones(LEVELS, columns, dtype=torch.float64, device="meta")},
            ValueError,
            "table",
        ),
    ]


def bad_data(name: str) -> list[tuple[dict[str, object], type[Exception], str]]:
    """Data that no kernel takes."""
    return [
        ({name: [1.0]}, TypeError, name),
        ({name: torch.zeros(2, 3, dtype=torch.int64)}, ValueError, name),
        ({name: torch.zeros(2, 3, dtype=torch.complex64)}, ValueError, name),
        ({name: torch.zeros(())}, ValueError, name),
    ]


@pytest.mark.parametrize(
    ("change", "error", "argument"), bad_data("x") + bad_tables(2) + BAD_LABELS + BAD_KEYS
)
def test_bad_perturb(change: dict[str, object], error: type[Exception], argument: str) -> None:
    good = {"x": torch.zeros(2, 3), "table": dsm_tables(LEVELS)[0], "key": make_key(1)}
    with pytest.raises(error, match=message("perturb", argument, error)):
        ops.perturb(**(good | change))


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    bad_data("output") + bad_tables(3) + BAD_LABELS + BAD_KEYS,
)
def test_bad_dsm_residual(change: dict[str, object], error: type[Exception], argument: str) -> None:
    good = {
        "output": torch.zeros(2, 3),
        "table": dsm_tables(LEVELS)[1],
        "labels": torch.tensor([0, 1]),
        "key": make_key(1),
    }
    with pytest.raises(error, match=message("dsm_residual", argument, error)):
        ops.dsm_residual(**(good | change))


def test_tables_of_another_rank() -> None:
    x, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    for shape in ((3, 5, 2), (3, 0, 2)):
        with pytest.raises(ValueError, match=r"^perturb: table must be .* shape \(rows, 2\)"):
            ops.perturb(x, torch.ones(shape, dtype=torch.float64), make_key(0))
    with pytest.raises(ValueError, match=r"^dsm_residual: table must be"):
        ops.dsm_residual(x, torch.ones(3, 5, 3, dtype=torch.float64), labels, make_key(0))


def test_memory_that_is_written_while_it_is_read() -> None:
    table = torch.ones(1, 4, dtype=torch.float64)
    x = torch.zeros(8, 8)
    with pytest.raises(ValueError, match=r"^langevin_step_: score must be apart from x"):
        ops.langevin_step_(x, x.t(), table, make_key(0))
    ops.langevin_step_(x, x.view(8, 8), table, make_key(0))  # each element reads itself
    both = torch.zeros(8, 16)
    ops.langevin_step_(both[:, ::2], both[:, 1::2], table, make_key(0))  # between each other


def test_more_dimensions_than_usual() -> None:
    x = torch.ones([1] * 80)
    assert ops.dual_slope(x, "tanh")[0].shape == x.shape
    table = torch.ones(1, 4, dtype=torch.float64)
    assert ops.langevin_step(x, x, table, make_key(0)).shape == x.shape


def test_offsets_are_of_samples() -> None:
    """A projection has as many elements as the data, not as all projections together."""
    offset = 2**50
    v = ops.projections(make_key(0), (2, 64), 64, sample_offset=offset)
    assert torch.equal(
        v[:, 1:], ops.projections(make_key(0), (1, 64), 64, sample_offset=offset + 1)
    )
    with pytest.raises(ValueError, match=r"^projections: sample_offset must be"):
        ops.projections(make_key(0), (2, 64), 1, sample_offset=2**57)
