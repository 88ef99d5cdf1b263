"""Every op that draws noise, on chosen samples of a whole batch; run under other instruction sets.

A script of its own, so that a test can start it under another ``FASTSCORE_CPU_CAPABILITY``. A case
is called with the rows of the batch that it works on, and with how their noise is numbered; its
results have the batch in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from byte_cases import dsm_tables, langevin_table, noisy_table, steps_table, two_terms
from helpers import DTYPES, assert_same_bytes, make_key, randn, with_layout
from torch import Tensor

import fastscore
from fastscore import ops
from fastscore.random import Stream

# Whole batches: samples shorter than a block of noise, some of them across the end of a tile of
# 1024 flat indices; longer ones; some of several tiles.
SHAPES = (
    (1027, 1),
    (700, 2),
    (700, 3),
    (411, 5),
    (130, 16),
    (61, 17),
    (9, 130),
    (3, 5, 7),
    (5, 2500),
)
LONG_OF_TILES = (3, 1, 3, 1367)

Case = Callable[..., tuple[Tensor, ...]]


class Batch:
    """The data of a whole batch, of which a case takes some rows."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: Any
    ) -> None:
        self.shape, self.dtype, self.layout, self.device = shape, dtype, layout, device

    def rows(self, seed: int, rows: Tensor) -> Tensor:
        x = randn(*self.shape, dtype=self.dtype, seed=seed)[rows]
        return with_layout(x.to(self.device), self.layout)

    def empty(self, rows: Tensor) -> Tensor:
        x = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype, device=self.device)
        return with_layout(x, self.layout)

    def to(self, *tensors: Tensor) -> list[Tensor]:
        return [tensor.to(self.device) for tensor in tensors]


def random_case(data: Batch, rows: Tensor, key: Tensor, **numbers: Any) -> tuple[Tensor, ...]:
    fills = (ops.normal_, ops.uniform_, ops.rademacher_)
    return tuple(fill(data.empty(rows), key, stream=Stream.INIT, **numbers) for fill in fills)


def langevin_case(data: Batch, rows: Tensor, key: Tensor, **numbers: Any) -> tuple[Tensor, ...]:
    x, score, known = (data.rows(seed, rows) for seed in (2, 3, 4))
    own = randn(4, data.shape[0], 4, dtype=torch.float64, seed=5)
    own[:, ::3, 2] = 0  # samples without noise
    table, own = data.to(langevin_table(4), own[:, rows.cpu()].contiguous())
    options = {"known": known, "mask": known > 0.3, "clamp": (-1.5, 1.25), **numbers}
    return (
        ops.langevin_step(x, score, table, key, **numbers),
        ops.langevin_step(x, score, table, key, **options),
        ops.langevin_step_(x, score, own, key, **numbers),
    )


def multistep_case(data: Batch, rows: Tensor, key: Tensor, **numbers: Any) -> tuple[Tensor, ...]:
    """With rows and weights of each sample, and steps of six columns."""
    x, score, known, second, past = (data.rows(seed, rows) for seed in (2, 3, 4, 5, 6))
    whole = [steps_table(10, 4, data.shape[0]), two_terms(torch.empty(0), data.shape[0])["weights"]]
    table, weights = data.to(whole[0][:, rows.cpu()], whole[1][rows.cpu()])
    options = {"known": known, "mask": known > 0.3, "clamp": (-1.5, 1.25), **numbers}
    terms = {"second": second, "weights": weights}
    six = ops.langevin_step(x, score, table[..., :6].contiguous(), key, **options, **terms)
    ops.multistep_step_(x, past, score, table, key, clip=(-1.0, 1.0), **options, **terms)
    return six, x, past


def perturb_case(data: Batch, rows: Tensor, key: Tensor, **numbers: Any) -> tuple[Tensor, ...]:
    table, labels = data.to(dsm_tables()[0], rows.cpu() % 6)
    x = data.rows(6, rows)
    drawn = ops.perturb(x, table, key, **numbers)
    return (*drawn, *ops.perturb(x, table, key, labels=labels, **numbers))


def dsm_case(data: Batch, rows: Tensor, key: Tensor, **numbers: Any) -> tuple[Tensor, ...]:
    table, labels, weights = data.to(dsm_tables()[1], rows.cpu() % 6, (rows.cpu() % 5) * 0.25)
    output = data.rows(7, rows).requires_grad_()
    loss = ops.dsm_residual(output, table, labels, key, **numbers)
    grads = torch.autograd.grad(loss, output, weights.to(loss.dtype))
    # A reduced loss makes its gradient on the way, and again for another upstream gradient.
    for factor in (1, 3):
        total = ops.dsm_residual(output, table, labels, key, reduction="sum", **numbers)
        grads += torch.autograd.grad(factor * total, output)
    noisy = data.rows(8, rows).requires_grad_()
    args = (output, data.to(noisy_table())[0], labels, key)
    beside = ops.dsm_residual(*args, noisy=noisy, **numbers)
    grads += torch.autograd.grad(beside, (output, noisy), weights.to(loss.dtype))
    return (loss.detach(), beside.detach(), *grads)


def sliced_case(data: Batch, rows: Tensor, key: Tensor, **numbers: Any) -> tuple[Tensor, ...]:
    results: list[Tensor] = []
    for distribution in ("rademacher", "gaussian", "sphere"):
        shape = (len(rows), *data.shape[1:])
        how = {"distribution": distribution, **numbers}
        results += ops.projections(key, shape, 2, dtype=data.dtype, **how)
        score = data.rows(8, rows).requires_grad_()
        jvp = torch.stack([data.rows(seed, rows) for seed in (9, 10)]).requires_grad_()
        vjv, half_vs2, half_s2 = ops.sliced_terms(score, jvp, key, **how)
        results += [*vjv.detach(), *half_vs2.detach(), half_s2.detach()]
        loss = ((vjv + half_vs2).sum(0) + half_s2).sum()
        grad_score, grad_jvp = torch.autograd.grad(loss, (score, jvp))
        results += [grad_score, *grad_jvp]
    return tuple(results)


CASES: dict[str, Case] = {
    "random": random_case,
    "langevin": langevin_case,
    "multistep": multistep_case,
    "perturb": perturb_case,
    "dsm": dsm_case,
    "sliced": sliced_case,
}


def chosen(batch: int, size: int) -> Tensor:
    """Rows in no order, some of them twice, neighbours, and those across the end of a tile."""
    some = torch.randperm(batch, generator=torch.Generator().manual_seed(batch))[:40]
    across = torch.tensor([flat // size for flat in (1023, 1024, 2047)])
    rows = torch.cat([some, across[across < batch], some[:3], torch.arange(min(batch, 5))])
    return rows if size < 1000 else rows[:6]


def check_gather(case: Case, data: Batch) -> None:
    """Any gather of samples gives that of the whole batch's results."""
    key = make_key(0x0123456789ABCDEF, 2, data.device)
    whole = case(data, torch.arange(data.shape[0]), key)
    size = data.empty(torch.arange(1)).numel()
    rows = chosen(data.shape[0], size)
    for got, want in zip(case(data, rows, key, samples=rows.to(data.device)), whole, strict=True):
        assert_same_bytes(got.cpu(), want.cpu()[rows])


def check_shard(case: Case, data: Batch) -> None:
    """Numbers in a row are a sample_offset, whatever the rows are."""
    key, rows = make_key(-3, 1, data.device), torch.arange(data.shape[0])[-7:]
    for offset in (5, 2**33 + 1):
        samples = torch.arange(offset, offset + len(rows), device=data.device)
        want = case(data, rows, key, sample_offset=offset)
        got = case(data, rows, key, samples=samples)
        for one, other in zip(got, want, strict=True):
            assert_same_bytes(one.cpu(), other.cpu())


def check_keys(case: Case, data: Batch) -> None:
    """With a key of its own a sample is what it would be alone."""
    rows = chosen(*data.shape[:1], 1)[-9:] % data.shape[0]
    seeds = torch.arange(len(rows)) // 2 * 2**61 - 3
    draws = torch.tensor([0, 2, 1, 7, 3, 3, 0, 2**32 - 1, 1])[: len(rows)]
    keys = torch.stack([seeds, draws], dim=1)
    got = case(data, rows, keys.to(data.device))
    alone = [case(data, rows[i : i + 1], keys[i].to(data.device)) for i in range(len(rows))]
    for one, parts in zip(got, zip(*alone, strict=True), strict=True):
        assert_same_bytes(one.cpu(), torch.cat(parts).cpu())


CHECKS = (check_gather, check_shard, check_keys)


def batches(device: Any = "cpu", dtypes: int = len(DTYPES)) -> Iterator[Batch]:
    """Whole batches of all shapes, so many dtypes of each, and all layouts."""
    layouts = ("contiguous", "misaligned", "strided", "transposed")
    for i, shape in enumerate(SHAPES):
        for j in range(dtypes):
            yield Batch(shape, DTYPES[(i + j) % 4], layouts[(i // 2 + j) % 4], device)
    yield Batch((6, 3, 5, 7), torch.float32, "channels_last", device)
    yield Batch(LONG_OF_TILES, torch.float32, "contiguous", device)


def main() -> None:
    torch.set_num_threads(1)  # so small are the cases
    print(fastscore._C.cpu_capability())
    for data in batches(dtypes=1):
        for case in CASES.values():
            for check in CHECKS:
                check(case, data)


if __name__ == "__main__":
    main()
