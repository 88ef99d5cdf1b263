"""A number, or a key, for each sample: the bytes of the whole batch, or of each sample alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sample_cases
import torch
from byte_cases import dsm_tables, langevin_table
from emulator import is_emulating
from helpers import assert_accurate, assert_same_bytes, digest, make_key, randn
from sample_cases import CASES, CHECKS, Batch, batches
from torch import Tensor
from torch.func import vmap

import fastscore
from fastscore import ops, random, reference
from fastscore._support.streams import Stream

SAMPLES = torch.tensor([5, 0, 5, 700])
KEYS = torch.tensor([[3, 1], [-(2**62), 0], [3, 2], [3, 1]])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The cases are so small that threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_bytes(name: str, check: Callable[..., None], device: torch.device) -> None:
    for data in batches(device):
        check(CASES[name], data)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_bytes_on_other_instruction_sets(capability: str) -> None:
    if capability == fastscore._C.cpu_capability():
        pytest.skip("the one in use")
    if capability not in fastscore._C.cpu_capabilities():
        pytest.skip(f"this CPU has no {capability}")
    environment = {**os.environ, "FASTSCORE_CPU_CAPABILITY": capability}
    run = [sys.executable, str(Path(sample_cases.__file__))]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == capability


@pytest.mark.parametrize("name", CASES)
def test_threads_do_not_change_a_byte(name: str) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            sums = []
            for shape in ((20_011, 3), (700, 101), (3, 60_013)):
                data, rows = (
                    Batch(shape, torch.float32, "contiguous", "cpu"),
                    torch.arange(shape[0]),
                )
                samples = torch.randperm(shape[0], generator=torch.Generator().manual_seed(1))
                keys = torch.stack([samples, rows % 3], dim=1)
                sums.append(digest(*CASES[name](data, rows, make_key(4), samples=samples)))
                sums.append(digest(*CASES[name](data, rows, keys)))
            results.append(sums)
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_one_number_for_all_is_one_noise_for_all(device: torch.device) -> None:
    zeros = torch.zeros(1, dtype=torch.int64, device=device).expand(30)  # of no memory of its own
    for size in (1, 3, 40):
        z = random.normal(make_key(1, device=device), (30, size), samples=zeros)
        assert torch.equal(z, z[:1].expand_as(z))
        assert_same_bytes(z[:1], random.normal(make_key(1, device=device), (1, size)))
    x, table = torch.zeros(30, 3, device=device), dsm_tables()[0].to(device)
    noisy, labels = ops.perturb(x, table, make_key(3, device=device), samples=zeros)
    assert len(noisy.unique(dim=0)) == len(labels.unique()) == 1


def test_numbers_and_keys_of_any_strides(device: torch.device) -> None:
    samples = torch.stack([SAMPLES, SAMPLES + 1], dim=1).to(device)
    keys = KEYS.T.contiguous().T.to(device)
    for size in (2, 50):
        got = random.normal(make_key(1, device=device), (4, size), samples=samples[:, 1])
        want = random.normal(make_key(1, device=device), (4, size), samples=SAMPLES.to(device) + 1)
        assert_same_bytes(got, want)
        got = random.rademacher(keys, (4, size))
        assert_same_bytes(got, random.rademacher(keys.contiguous(), (4, size)))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["random", "langevin", "perturb"])
def test_cuda_and_cpu_agree_to_the_byte(name: str) -> None:
    for here, there in zip(batches(), batches("cuda"), strict=True):
        rows = sample_cases.chosen(here.shape[0], here.empty(torch.arange(1)).numel())
        keys = torch.stack([rows * 2**40 - 3, rows % 5], dim=1)
        for key, numbers in ((make_key(7, 1), {"samples": rows}), (keys, {})):
            moved = {argument: value.cuda() for argument, value in numbers.items()}
            want = CASES[name](here, rows, key, **numbers)
            got = CASES[name](there, rows, key.cuda(), **moved)
            for one, other in zip(got, want, strict=True):
                assert_same_bytes(one.cpu(), other)


# ---- against the reference -------------------------------------------------------------------


def numberings(device: torch.device) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    yield make_key(9, 2, device), {"samples": SAMPLES.to(device)}
    yield KEYS.to(device), {}


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (4, 130), (4, 0), (4,)])
def test_reference(shape: tuple[int, ...], device: torch.device) -> None:
    x, score = (randn(*shape, seed=seed).to(device) for seed in (1, 2))
    steps, (noise, loss) = langevin_table(3).to(device), (t.to(device) for t in dsm_tables())
    own = randn(3, 4, 4, dtype=torch.float64).to(device)
    for key, numbers in numberings(device):
        for name in ("uniform_", "rademacher_"):
            fills = (getattr(room, name) for room in (ops, reference))
            got, want = (f(torch.empty_like(x), key, stream=Stream.INIT, **numbers) for f in fills)
            assert_same_bytes(got, want)
        for table in (steps, own):
            args = (table, key)
            exact = reference.langevin_step(x.double(), score.double(), *args, **numbers)
            eager = reference.langevin_step(x, score, *args, **numbers)
            assert_accurate(ops.langevin_step(x, score, *args, **numbers), eager, exact)
        got, labels = ops.perturb(x, noise, key, **numbers)
        eager, want = reference.perturb(x, noise, key, **numbers)
        assert torch.equal(labels, want)
        assert_accurate(got, eager, reference.perturb(x.double(), noise, key, **numbers)[0])
        args = (loss, labels, key)
        exact = reference.dsm_residual(x.double(), *args, **numbers).float()
        got = ops.dsm_residual(x, *args, **numbers)
        torch.testing.assert_close(got, exact, rtol=2e-6, atol=0)
        for distribution in ("rademacher", "gaussian", "sphere"):
            how = {"distribution": distribution, **numbers}
            jvp = torch.stack([x, score])
            exact = reference.sliced_terms(score.double(), jvp.double(), key, **how)
            got = ops.sliced_terms(score, jvp, key, **how)
            for one, other in zip(got, exact, strict=True):
                torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)


# ---- PyTorch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 40])
def test_opcheck(size: int, device: torch.device) -> None:
    x, score = (randn(4, size, seed=seed).to(device) for seed in (1, 2))
    table, (noise, loss) = langevin_table(3).to(device), (t.to(device) for t in dsm_tables())
    labels = torch.tensor([0, 3, 1, 5], device=device)
    op = torch.ops.fastscore
    for key, numbers in numberings(device):
        last = (0, numbers.get("samples"))
        step = (x, score, table, key, None, None, None, None, *last)
        calls = [
            (op.random_normal_, (x, key, 0, *last)),
            (op.random_uniform_, (x, key, 0, *last)),
            (op.random_rademacher_, (x, key, 0, *last)),
            (op.langevin_step_, step),
            (op.langevin_step, step),
            (op.perturb, (x, noise, key, None, *last)),
            (op.dsm_residual, (x, loss, labels, key, *last)),
            (op.dsm_residual_backward, (torch.ones(4, device=device), x, loss, labels, key, *last)),
            (op.dsm_residual_with_grad, (x, loss, labels, key, 0, 1.0, last[1])),
            (op.project_, (x.unsqueeze(0).clone(), key, 1, *last)),
            (op.sliced_terms, (score, x.unsqueeze(0), key, 2, *last)),
            (
                op.sliced_terms_backward,
                (torch.ones(1, 4, device=device), None, None, score, key, 2, *last),
            ),
        ]
        for call, args in calls:
            torch.library.opcheck(call.default, args, test_utils=("test_schema", "test_faketensor"))


def test_compile_fullgraph(device: torch.device) -> None:
    table, (noise, loss) = langevin_table().to(device), (t.to(device) for t in dsm_tables())

    def run(x: Tensor, key: Tensor, samples: Tensor | None) -> tuple[Tensor, ...]:
        noisy, labels = ops.perturb(x, noise, key, samples=samples)
        v = ops.projections(key, x.shape, 2, samples=samples)
        vjv, _, _ = ops.sliced_terms(x, v, key, samples=samples)
        value = ops.dsm_residual(noisy, loss, labels, key, reduction="mean", samples=samples)
        z = random.normal(key, x.shape, samples=samples)
        ops.langevin_step_(z, v[0], table, key, samples=samples)
        return value, vjv, z, ops.langevin_step(noisy, x, table, key, samples=samples)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for key, numbers in numberings(device):
        x = randn(4, 9).to(device).requires_grad_()
        got, want = (f(x, key, numbers.get("samples")) for f in (compiled, run))
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)
        grads = [torch.autograd.grad(r[0] + r[1].sum() + r[3].sum(), x)[0] for r in (got, want)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("size", [3, 20])
def test_gradients(size: int, device: torch.device) -> None:
    x, score = (randn(4, size, dtype=torch.float64, seed=seed).to(device) for seed in (1, 2))
    leaves = (x.requires_grad_(), score.requires_grad_())
    table, (noise, loss) = langevin_table(3).to(device), (t.to(device) for t in dsm_tables())
    own = randn(3, 4, 4, dtype=torch.float64).to(device)
    labels = torch.tensor([0, 3, 1, 5], device=device)
    check, twice = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    for key, numbers in numberings(device):
        how: dict[str, Any] = {"key": key, **numbers}
        for steps in (table, own):
            assert check(partial(ops.langevin_step, table=steps, **how), leaves)
        assert check(partial(ops.perturb, table=noise, labels=labels, **how), leaves[:1])
        residual = partial(ops.dsm_residual, table=loss, labels=labels, **how)
        assert check(residual, leaves[:1])
        assert twice(residual, leaves[:1])
        jvp = score.detach().unsqueeze(0).requires_grad_()
        assert check(partial(ops.sliced_terms, **how), (x, jvp))
        assert twice(partial(ops.sliced_terms, **how), (x, jvp))


def test_numbers_may_change_before_backward(device: torch.device) -> None:
    _, table = (t.to(device) for t in dsm_tables())
    labels, key = torch.tensor([0, 3, 1, 5], device=device), make_key(1, device=device)
    grads = []
    for change in (0, 1):
        samples = SAMPLES.clone().to(device)
        x = randn(4, 9).to(device).requires_grad_()
        value = ops.dsm_residual(x, table, labels, key, samples=samples).sum()
        value = value + ops.dsm_residual(x, table, labels, key, reduction="mean", samples=samples)
        value = value + ops.sliced_terms(x, x.unsqueeze(0), key, samples=samples)[1].sum()
        samples += change
        grads.append(torch.autograd.grad(2 * value, x)[0])
    assert_same_bytes(*grads)


@pytest.mark.parametrize("size", [3, 40])
def test_vmap(size: int, device: torch.device) -> None:
    x = randn(3, 4, size).to(device)
    samples = torch.stack([SAMPLES, SAMPLES.flip(0), SAMPLES + 1]).to(device)
    keys = torch.stack([KEYS, KEYS.flip(0), KEYS + 1]).to(device)
    key, table = make_key(2, device=device), langevin_table().to(device)

    def by_number(x: Tensor, samples: Tensor) -> tuple[Tensor, ...]:
        z = random.normal(key, x.shape, samples=samples)
        return z, ops.langevin_step(x, z, table, key, samples=samples)

    def by_key(x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        z = random.normal(key, x.shape)
        return (
            z,
            ops.langevin_step(x, z, table, key),
            *ops.perturb(x, dsm_tables()[0].to(device), key),
        )

    for function, numbers in ((by_number, samples), (by_key, keys)):
        mapped = vmap(function)(x, numbers)
        for i in range(3):
            for one, other in zip(mapped, function(x[i], numbers[i]), strict=True):
                assert_same_bytes(one[i], other)


# ---- keys ------------------------------------------------------------------------------------


def test_keys_of_seeds(device: torch.device) -> None:
    want = torch.tensor([[3, 5], [-1, 5], [7, 5]], device=device)
    assert torch.equal(random.key([3, 2**64 - 1, 7], draw=5, device=device), want)
    assert torch.equal(random.key(torch.tensor([3, -1, 7], device=device), draw=5), want)
    assert random.key([], device=device).shape == (0, 2)
    with pytest.raises(TypeError, match=r"^key: seed must be an integer, .* or None, got float"):
        random.key([1, 2.0])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^key: seed must be an integer, a sequence .* got str"):
        random.key("12")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^key: seed must be an integer of 64 bits, got"):
        random.key([2**64])
    for seeds in (torch.tensor([1.0]), torch.tensor([[1]])):
        with pytest.raises(ValueError, match=r"^key: seed must be an int64 tensor of shape"):
            random.key(seeds)
    with pytest.raises(ValueError, match=r"^key: draw must be below 2\^32, got"):
        random.key([1], draw=2**32)
    with pytest.raises(ValueError, match=r"^key: generator must be None when a seed is given"):
        random.key([1], generator=torch.Generator())


def test_losses_take_a_key_for_each_sample() -> None:
    x, sigmas = randn(4, 6), fastscore.geometric_sigmas(2.0, 0.1, 5)
    model = lambda x, sigma: -x / (1 + sigma.square().unsqueeze(1))  # noqa: E731
    losses = fastscore.dsm_loss(model, x, sigmas, key=KEYS, reduction="none")
    for i in range(4):
        alone = fastscore.dsm_loss(model, x[i : i + 1], sigmas, key=KEYS[i], reduction="none")
        torch.testing.assert_close(losses[i : i + 1], alone, rtol=1e-6, atol=0)
    with pytest.raises(
        ValueError, match=r"dsm_loss: key must be an int64 tensor \[seed, draw\], or"
    ):
        fastscore.dsm_loss(model, x, sigmas, key=KEYS[:3])


# ---- errors ----------------------------------------------------------------------------------


def calls(x: Tensor) -> list[tuple[str, Callable[..., Any]]]:
    """Each op of the key and its numbers, with the name that its messages have."""
    device = x.device
    table, (noise, loss) = langevin_table().to(device), (t.to(device) for t in dsm_tables())
    labels = torch.zeros(len(x), dtype=torch.int64, device=device)
    return [
        ("random_normal_", lambda key, **n: ops.normal_(x.clone(), key, **n)),
        ("random_uniform_", lambda key, **n: ops.uniform_(x.clone(), key, **n)),
        ("random_rademacher_", lambda key, **n: ops.rademacher_(x.clone(), key, **n)),
        ("langevin_step_", lambda key, **n: ops.langevin_step_(x.clone(), x, table, key, **n)),
        ("langevin_step", lambda key, **n: ops.langevin_step(x, x, table, key, **n)),
        ("perturb", lambda key, **n: ops.perturb(x, noise, key, **n)),
        ("dsm_residual", lambda key, **n: ops.dsm_residual(x, loss, labels, key, **n)),
        ("projections", lambda key, **n: ops.projections(key, x.shape, 2, **n)),
        ("sliced_terms", lambda key, **n: ops.sliced_terms(x, x.unsqueeze(0), key, **n)),
    ]


def test_errors(device: torch.device) -> None:
    one, each, good = make_key(1, device=device), KEYS.to(device), SAMPLES.to(device)
    cases: list[tuple[Tensor, dict[str, Any], str]] = [
        (
            one,
            {"samples": good.int()},
            "samples must be an int64 tensor of shape (4,), got a int32",
        ),
        (one, {"samples": good[:3]}, "samples must be an int64 tensor of shape (4,), got a int64"),
        (one, {"samples": good[:, None]}, "samples must be an int64 tensor of shape (4,), got"),
        (one, {"samples": good, "sample_offset": 2}, "sample_offset must be 0 where samples are"),
        (each, {"sample_offset": 2}, "sample_offset must be 0 where keys (batch, 2) are given"),
        (each, {"samples": good}, "samples must be None where keys (batch, 2) are given, got"),
        (each[:3], {}, "key must be a contiguous int64 tensor [seed, draw] (see"),
        (each[:, :1], {}, "key must be a contiguous int64 tensor [seed, draw] (see"),
    ]
    if device.type == "cpu" and not is_emulating():  # a GPU doesn't wait to look
        cases += [
            (one, {"samples": good - 1}, "samples must be at least 0, got -1 for sample 1"),
            (one, {"samples": good + 2**61}, "samples must be such that every flat index fits"),
        ]
    for name, call in calls(torch.ones(4, 9, device=device)):
        for key, numbers, words in cases:
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                call(key, **numbers)
            assert str(caught.value).startswith(f"{name}: {words}"), str(caught.value)
        with pytest.raises(TypeError, match="samples"):
            call(one, samples=[0, 1, 2, 3])


def test_reference_errors() -> None:
    one, normal = make_key(1), reference.random.normal
    for key, numbers, words in (
        (one, {"samples": SAMPLES.int()}, r"samples must be an int64 tensor of shape \(4,\), got"),
        (one, {"samples": SAMPLES[:3]}, r"samples must be an int64 tensor of shape \(4,\), got"),
        (one, {"samples": SAMPLES - 1}, "samples must be at least 0, got -1"),
        (one, {"samples": SAMPLES, "sample_offset": 1}, "sample_offset must be 0 when samples"),
        (KEYS, {"samples": SAMPLES}, "samples must be None when keys"),
        (KEYS, {"sample_offset": 1}, "sample_offset must be 0 when keys"),
        (KEYS[:3], {}, "key must be an int64 tensor"),
    ):
        with pytest.raises(ValueError, match=f"^normal: {words}"):
            normal(key, (4, 9), **numbers)


def test_samples_on_another_device() -> None:
    for name, call in calls(torch.ones(4, 9)):
        words = name.removeprefix("random_")  # a fake kernel's
        with pytest.raises(ValueError, match=f"^{words}: samples must be on cpu"):
            call(make_key(1), samples=SAMPLES.to("meta"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_negative_numbers_do_no_harm_on_cuda() -> None:
    for size in (3, 64, 5000):
        x = torch.ones(4, size, device="cuda")
        for _, call in calls(x):
            call(make_key(1, device="cuda"), samples=SAMPLES.cuda() - 2**62)
    torch.cuda.synchronize()
