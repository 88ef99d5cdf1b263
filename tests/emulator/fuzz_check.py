"""Runs a random call on both sides, the CPU's kernels and CUDA's emulated, and compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from helpers import data_bytes
from torch import Tensor

import emulator
from emulator.fuzz_cases import Case, Rule, Within
from emulator.fuzz_draw import Draw

# Which dimension of an argument, or of a result, is the batch's, in the ops that sum rows.
BATCH = {
    "output": 0, "noisy": 0, "score": 0, "labels": 0, "samples": 0, "jvp": 1,
    "x": 0, "new": 0, "slopes": 0,
}  # fmt: skip
OF_EACH = ("coefficients", "tolerances")  # with a row of each sample, or one for all
LAID = ("output", "noisy", "score", "jvp", "x", "new", "slopes")
RESULTS_BATCH = {
    "dsm_residual": (0,),
    "dsm_residual_with_grad": (0, 0),
    "sliced_terms": (1, 1, 1, 0),
    "rk_error": (0,),
}

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
MOST_SHOWN = 3


class Mismatch(AssertionError):
    """Results that differ."""


@cache
def _schema(op: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of an op's arguments, and of those that it changes."""
    arguments = getattr(torch.ops.fastscore, op).default._schema.arguments
    changed = tuple(a.name for a in arguments if a.alias_info and a.alias_info.is_write)
    return tuple(a.name for a in arguments), changed


def _positional(op: str, args: dict[str, Any]) -> list[Any]:
    names = _schema(op)[0]
    assert args.keys() <= set(names), (op, args.keys())
    return [args.get(name) for name in names]


# ---- calls ---------------------------------------------------------------------------------


def memory_of(x: Tensor) -> Tensor:
    """All elements that a view's memory has room for."""
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def each_tensor(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """An argument with its tensors changed: itself, or those of a list."""
    if isinstance(value, list):
        return [change(x) for x in value]
    return change(value) if isinstance(value, Tensor) else value


def copied(original: Tensor) -> Tensor:
    """With its memory: what lies between its elements, and where it begins within 64 bytes."""
    copy = memory_of(original).clone()
    return copy.as_strided(original.shape, original.stride(), original.storage_offset())


def results(op: str, args: dict[str, Any], emulated: bool) -> tuple[Tensor, ...]:
    """Of a call on one side; of an op that changes arguments, copies of them, changed."""
    changed = [name for name in _schema(op)[1] if args.get(name) is not None]
    copies = {id(args[name]): copied(args[name]) for name in changed}
    args = {n: each_tensor(lambda x: copies.get(id(x), x), value) for n, value in args.items()}
    positional = _positional(op, args)
    if emulated:
        out = emulator.run(op, *positional)
    else:
        out = getattr(torch.ops.fastscore, op)(*positional)
    if changed:
        return tuple(args[name] for name in changed)
    return out if isinstance(out, tuple) else (out,)


def wanted(case: Case) -> tuple[Tensor, ...]:
    """The CPU's results. It takes no labels out of range: such samples are made NaN here."""
    if case.lost is None:
        return results(case.op, case.args, emulated=False)
    labels = case.args["labels"]
    out = results(case.op, {**case.args, "labels": labels.where(~case.lost, 0)}, emulated=False)
    for result in out:
        if result.is_floating_point():
            result[case.lost] = torch.nan
        else:
            result.copy_(labels)
    return out


# ---- comparisons -----------------------------------------------------------------------------


def told(x: Any) -> str:
    if isinstance(x, list):
        return f"[{', '.join(map(told, x))}]"
    if not isinstance(x, Tensor):
        return repr(x)
    if x.dim() and x.numel() <= 8 and x.dtype == torch.int64:
        return f"int64 {x.tolist()}"
    return f"{str(x.dtype)[6:]}{tuple(x.shape)} strides {x.stride()} from {x.storage_offset()}"


def told_case(case: Case) -> str:
    return f"{case.op}({', '.join(f'{n}={told(x)}' for n, x in case.args.items())})"


def shown(where: Tensor, got: Tensor, want: Tensor) -> str:
    places = where.nonzero()[:MOST_SHOWN].tolist()
    some = [f"{p}: {got[tuple(p)].item()!r} for {want[tuple(p)].item()!r}" for p in places]
    return f"{int(where.sum())} of {where.numel()} elements: {'; '.join(some)}"


def unlike(got: Tensor, want: Tensor, any_nan: bool) -> Tensor:
    """Where the bytes of two tensors differ.

    A GPU has NaN of one kind, the CPU keeps the bytes of the one that came in. Half precision makes
    that the same; elsewhere, and with ``any_nan``, one NaN is as good as another.
    """
    if not got.is_floating_point():
        return got != want
    word = WORDS[got.element_size()]
    differ = got.contiguous().view(word) != want.contiguous().view(word)
    if any_nan or got.element_size() > 2:
        differ &= ~(got.isnan() & want.isnan())
    return differ


def compare_bytes(what: str, got: Tensor, want: Tensor, any_nan: bool = False) -> None:
    if got.shape != want.shape or got.dtype != want.dtype or got.stride() != want.stride():
        raise Mismatch(f"{what}: {told(got)} for {told(want)}")
    if data_bytes(got) == data_bytes(want):
        return
    differ = unlike(got, want, any_nan)
    if differ.any():
        raise Mismatch(f"{what}: other bytes in {shown(differ, got, want)}")


def compare_within(what: str, got: Tensor, want: Tensor, rule: Within) -> None:
    if got.shape != want.shape or got.dtype != want.dtype or got.stride() != want.stride():
        raise Mismatch(f"{what}: {told(got)} for {told(want)}")
    finite = want[want.isfinite()].abs()
    scale = max(rule.scale, float(finite.max()) if finite.numel() and rule.rows else 0.0)
    relative, absolute = 10 * rule.relative, rule.relative * scale
    differ = ~torch.isclose(got, want, relative, absolute, equal_nan=True)
    if differ.any():
        raise Mismatch(f"{what}: more than rounding in {shown(differ, got, want)}")


def compare_but_for_a_radius(what: str, got: Tensor, want: Tensor, batch_dim: int) -> None:
    """The bytes, but for one sample at most, whose radius was rounded the other way."""
    try:
        compare_bytes(what, got, want)
    except Mismatch:
        differ = unlike(got, want, False)
        samples = differ.movedim(batch_dim, 0).flatten(1).any(1)
        eps = torch.finfo(torch.float32 if got.dtype == torch.float64 else got.dtype).eps
        if int(samples.sum()) > 1 or not torch.allclose(got, want, rtol=2 * eps, equal_nan=True):
            raise


# ---- a case --------------------------------------------------------------------------------


def parts_of(case: Case, first: int, last: int) -> Case:
    """The same call for samples first to last - 1."""
    args = dict(case.args)
    for name, dim in BATCH.items():
        narrow = partial(Tensor.narrow, dim=dim, start=first, length=last - first)
        args[name] = each_tensor(narrow, args.get(name))
    for name in OF_EACH:
        if name in args and args[name].dim() == 2:
            args[name] = args[name][first:last]
    if "key" not in args:
        return replace(case, args={n: x for n, x in args.items() if x is not None})
    if args["key"].dim() == 2:
        args["key"] = args["key"][first:last]
    elif args["samples"] is None:
        args["sample_offset"] += first
    return replace(case, args=args)


def check_rows(case: Case, draw: Draw, whole: tuple[Tensor, ...]) -> None:
    """Sums of rows have the same bytes for a part of the batch, and in another layout."""
    dims = RESULTS_BATCH[case.op]
    batch = whole[0].shape[dims[0]]
    variants = {"in other memory": (case, 0, batch)}
    if batch > 1:
        first = draw.below(batch)
        last = draw.below(min(batch, first + 9) + 1, first + 1)
        part = parts_of(case, first, last)
        variants[f"of samples {first} to {last - 1} alone"] = (part, first, last)
    for how, (variant, first, last) in variants.items():
        args = dict(variant.args)
        for name in LAID:
            args[name] = each_tensor(draw.laid, args.get(name))
        args = {n: x for n, x in args.items() if x is not None}
        with emulator.configured(**draw.settings()):
            got = results(case.op, args, emulated=True)
        for n, (rule, one, dim) in enumerate(zip(case.rules, whole, dims, strict=True)):
            if isinstance(rule, Within):
                rows = one.narrow(dim, first, last - first)
                rows = rows.clone(memory_format=torch.contiguous_format)
                compare_bytes(f"result {n} {how}", got[n], rows)


def compare(n: int, rule: Rule, got: Tensor, want: Tensor, case: Case) -> None:
    what = f"result {n}"
    if isinstance(rule, Within):
        compare_within(what, got, want, rule)
    elif case.sphere:
        grad_score = case.op == "sliced_terms_backward" and n == 0
        compare_but_for_a_radius(what, got, want, 0 if grad_score else 1)
    else:
        compare_bytes(what, got, want, any_nan=case.lost is not None)


def check(case: Case, draw: Draw) -> None:
    """Raises Mismatch, EmulationError, or what an op raises that should have raised nothing."""
    with emulator.configured(**draw.settings()):
        got = results(case.op, case.args, emulated=True)
    if not case.promised:
        return
    want = wanted(case)
    for n, (rule, ours, theirs) in enumerate(zip(case.rules, got, want, strict=True)):
        compare(n, rule, ours, theirs, case)
        if _schema(case.op)[1]:
            compare_memory(ours, theirs)
    if case.op in RESULTS_BATCH:
        check_rows(case, draw, got)


def compare_memory(got: Tensor, want: Tensor) -> None:
    """What lies between the elements of an argument that was changed is as it was."""
    ours, theirs = memory_of(got).clone(), memory_of(want).clone()
    for memory in (ours, theirs):
        memory.as_strided(got.shape, got.stride(), got.storage_offset()).zero_()
    compare_bytes("the memory between elements", ours, theirs)
