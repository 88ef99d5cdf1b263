"""A sample is its own: numbered or seeded by itself, it is the same in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same_bytes, randn
from samplers import SIGMAS, Sampler, every_sampler, gaussian_score, run_annealed

import fastscore

CHOSEN = torch.tensor([5, 0, 7, 2])
MASK = torch.tensor([True, False, False])


@every_sampler
@pytest.mark.parametrize("known", [False, True])
def test_samplers_by_number(
    device: torch.device, sampler: Sampler, steps: int, known: bool
) -> None:
    options: dict[str, Any] = {"seed": 3, "device": device}
    if known:
        options |= {"known": torch.ones(3, device=device), "mask": MASK.to(device)}
    whole = sampler(shape=(8, 3), **options)
    chosen = sampler(shape=(4, 3), samples=CHOSEN.to(device), **options)
    assert_same_bytes(chosen, whole[CHOSEN.to(device)])
    uniform = sampler(shape=(8, 3), init="uniform", **options)
    some = sampler(shape=(4, 3), samples=CHOSEN.to(device), init="uniform", **options)
    assert_same_bytes(some, uniform[CHOSEN.to(device)])


@every_sampler
@pytest.mark.parametrize("kind", ["list", "tensor"])
def test_samplers_by_seed(device: torch.device, sampler: Sampler, steps: int, kind: str) -> None:
    seeds: Any = [11, 2**40 + 5, 11, 3]
    alone = [sampler(shape=(1, 3), seed=seed, device=device) for seed in seeds]
    if kind == "tensor":
        seeds = torch.tensor(seeds, device=device)
    together = sampler(shape=(4, 3), seed=seeds, device=device)
    assert_same_bytes(together, torch.cat(alone))


@every_sampler
@pytest.mark.parametrize("numbered", [{"samples": CHOSEN, "seed": 1}, {"seed": [4, 3, 2, 1]}])
def test_stopping_and_resuming(sampler: Sampler, steps: int, numbered: dict[str, Any]) -> None:
    x0 = randn(4, 3)
    whole = sampler(x0, **numbered)
    half = sampler(x0, callback=lambda step, x: step == 7, **numbered)
    assert_same_bytes(sampler(half, start_step=7, **numbered), whole)


@pytest.mark.parametrize(
    "network",
    [
        fastscore.nn.ScoreMLP(2),
        fastscore.nn.ScoreMLP(64, hidden=(512, 512)),
        fastscore.nn.ScoreConvNet(1, 8),
        fastscore.nn.ScoreConvNet(3, 32),
    ],
    ids=["mlp-2", "mlp-64", "conv-8", "conv-32"],
)
def test_networks_agree_in_all_but_their_last_bits(network: Any) -> None:
    """What docstrings say of networks: some 1e-6 of their output in float32, not the same bytes."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1:  # not small, and not 0, as last layers are at first
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    x, sigma = randn(64, *network.data_shape), torch.linspace(0.1, 2.0, 64)
    with torch.no_grad():
        whole = network(x, sigma)
        for rows in (1, 5):
            parts = zip(x.split(rows), sigma.split(rows), strict=True)
            apart = torch.cat([network(*part) for part in parts])
            error = (apart - whole).abs().flatten(1).amax(1) / whole.abs().flatten(1).amax(1)
            assert float(error.max()) < 1e-5, rows


def test_the_same_noise_for_all() -> None:
    x0 = torch.lerp(randn(1, 3), randn(1, 3, seed=1), torch.linspace(0, 1, 5)[:, None])
    x = run_annealed(x0, lambda x, s: -0.1 * x, seed=0, samples=torch.zeros(5, dtype=torch.int64))
    steps = x.diff(dim=0)  # an affine chain of one noise maps a line to a line
    torch.testing.assert_close(steps, steps.mean(0).expand(4, 3))
    assert_same_bytes(x[:1], run_annealed(x0[:1], lambda x, s: -0.1 * x, seed=0))


LOSSES = {
    "dsm": lambda x, **o: fastscore.dsm_loss(gaussian_score, x, SIGMAS, reduction="none", **o),
    "DSMLoss": lambda x, **o: fastscore.DSMLoss(SIGMAS, reduction="none")(gaussian_score, x, **o),
    **{
        f"ssm-{method}": lambda x, method=method, **o: fastscore.ssm_loss(
            gaussian_score, x, sigmas=SIGMAS, method=method, projections=3, reduction="none", **o
        )
        for method in ("forward", "reverse", "finite_difference", "exact")
    },
    "clean-ssm": lambda x, **o: fastscore.ssm_loss(
        lambda x: -x.pow(3), x, projections=2, method="forward", reduction="none", **o
    ),
    "sm": lambda x, **o: fastscore.score_matching_loss(
        gaussian_score, x, sigmas=SIGMAS, reduction="none", **o
    ),
    "sliced_fisher": lambda x, **o: fastscore.sliced_fisher_divergence(
        lambda x: -x, lambda x: x, x, projections=3, reduction="none", **o
    ),
    "divergence": lambda x, **o: fastscore.divergence(
        lambda x: torch.stack([x[:, 1] ** 2, x[:, 0], x[:, 2]], 1), x, projections=3, **o
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_derivatives(name: str) -> None:
    loss, x = LOSSES[name], randn(8, 3)
    whole = loss(x, seed=3)
    chosen = loss(x[CHOSEN], seed=3, samples=CHOSEN)
    torch.testing.assert_close(chosen, whole[CHOSEN])
    seeds = [11, 2**40 + 5, 11, 3]
    alone = [loss(x[i : i + 1], seed=seed) for i, seed in enumerate(seeds)]
    torch.testing.assert_close(loss(x[:4], seed=seeds), torch.cat(alone))
    key = torch.tensor([[seed, 0] for seed in seeds])
    if name != "sliced_fisher":  # which takes none
        assert_same_bytes(loss(x[:4], key=key), loss(x[:4], seed=seeds))
    part = loss(x[4:], seed=3, sample_offset=4)
    assert_same_bytes(loss(x[4:], seed=3, samples=torch.arange(4, 8)), part)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": [1, 2, 3]}, ValueError, "seed must be one number, or one for each of 4 samples"),
        ({"seed": [1, 2, 3, 4], "sample_offset": 2}, ValueError, "sample_offset must be 0"),
        ({"seed": [1, 2, 3, 4], "samples": CHOSEN}, ValueError, "samples must be None"),
        ({"seed": 1, "samples": CHOSEN, "sample_offset": 2}, ValueError, "sample_offset must be 0"),
        ({"seed": 1, "samples": CHOSEN[:2]}, ValueError, r"samples must be of shape \(4,\)"),
        ({"seed": 1, "samples": CHOSEN.int()}, ValueError, "samples must be an int64 tensor"),
        ({"seed": 1, "samples": [1, 2, 3, 4]}, TypeError, "samples must be a torch.Tensor"),
        ({"seed": 1, "samples": -CHOSEN}, ValueError, "samples must be"),
        ({"seed": [1, 2, 3, 2.5]}, TypeError, "seed must be"),
        ({"seed": [1, 2, 3, 2**64]}, ValueError, "seed must be"),
    ],
)
def test_bad_numbers(options: dict[str, Any], error: type[Exception], message: str) -> None:
    x = randn(4, 3)
    calls = {
        "annealed_langevin": lambda: run_annealed(x, **options),
        "dsm_loss": lambda: fastscore.dsm_loss(gaussian_score, x, SIGMAS, **options),
        "ssm_loss": lambda: fastscore.ssm_loss(lambda x: -x, x, method="forward", **options),
        "divergence": lambda: fastscore.divergence(lambda x: -x, x, **options),
    }
    for fn, call in calls.items():
        with pytest.raises(error, match=rf"^{fn}: .*{message}"):
            call()
