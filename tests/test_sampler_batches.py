"""``batch_size=`` in samplers: the network sees a fixed number of samples at a time."""

from __future__ import annotations

import re
from typing import Any

import numpy
import pytest
import torch
from helpers import assert_same_bytes, randn
from samplers import Sampler, every_sampler, gaussian_score
from torch import Tensor, nn

import fastscore


class Watched(nn.Module):
    """A network that records the batches that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 2))
        self.sizes: list[int] = []

    def forward(self, x: Tensor, sigma: Tensor, **named: Any) -> Tensor:
        self.sizes.append(len(x))
        assert len(sigma) == len(x)
        return self.layers(torch.cat([x, sigma[:, None].to(x.dtype)], 1)) - x


@every_sampler
@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 64])
def test_the_same_bytes_of_scores_whose_rows_do_not_depend_on_the_batch(
    sampler: Sampler, steps: int, batch_size: int
) -> None:
    how: dict[str, Any] = {"shape": (10, 2), "seed": 1, "clamp": (-3, 3)}
    assert_same_bytes(sampler(batch_size=batch_size, **how), sampler(**how))


@every_sampler
def test_every_call_has_as_many_samples(sampler: Sampler, steps: int) -> None:
    model = Watched()
    sampler(model=model, shape=(10, 2), seed=1, batch_size=4)
    assert model.sizes == [4] * 3 * steps


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_is_the_same_alone_and_among_others(
    sampler: Sampler, steps: int, dtype: torch.dtype
) -> None:
    """What the option is for: the network's rounding depends on its batch size, here fixed."""
    model = Watched().to(dtype)
    x, states = sampler(model=model, shape=(11, 2), seed=1, batch_size=4, trajectory=[0 + 1])
    for k in (0, 5, 10):
        alone, state = sampler(
            model=model, shape=(1, 2), seed=1, batch_size=4, sample_offset=k, trajectory=[1]
        )
        torch.testing.assert_close(alone[0], x[k], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state[:, 0], states[:, k], rtol=1e-6, atol=1e-6)


def test_what_belongs_to_the_samples_goes_with_them() -> None:
    centre, table = randn(10, 2), randn(10, 2)
    seen = []

    def model(x: Tensor, sigma: Tensor, where: dict[str, Tensor], table: Tensor) -> Tensor:
        seen.append((len(where["centre"]), len(table)))
        table.zero_()  # nobody sees that
        return (where["centre"] - x) / (1 + sigma[:, None] ** 2)

    sigmas = fastscore.geometric_sigmas(2.0, 0.1, 5)
    kwargs = {"where": {"centre": centre}, "table": fastscore.shared(table)}
    how: dict[str, Any] = {"shape": (10, 2), "seed": 0, "model_kwargs": kwargs}
    x = fastscore.annealed_langevin(model, sigmas, batch_size=3, **how)
    assert set(seen) == {(3, 10)}
    assert_same_bytes(x, fastscore.annealed_langevin(model, sigmas, **how))
    assert bool((table != 0).all())


def test_so_in_lists_and_tuples() -> None:
    where = randn(10, 1)

    def model(x: Tensor, sigma: Tensor, named: list[Any], more: tuple[Any, ...]) -> Tensor:
        return named[0]["where"].mean() - x + more[0] - 0 * more[1]  # a mean sees what is too much

    def alone(x: Tensor, sigma: Tensor) -> Tensor:
        return 2 * where[5] - x

    sigmas = fastscore.geometric_sigmas(2.0, 0.1, 5)
    kwargs = {"named": [{"where": where}], "more": (where, 1.0)}
    x = fastscore.annealed_langevin(
        model, sigmas, shape=(10, 2), seed=0, batch_size=1, model_kwargs=kwargs
    )
    want = fastscore.annealed_langevin(alone, sigmas, shape=(1, 2), seed=0, sample_offset=5)
    torch.testing.assert_close(x[5:6], want)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("names", [list("abcde"), tuple(range(5)), numpy.zeros((5, 2))], ids=type)
def test_what_may_be_the_samples_and_is_no_tensor_is_refused(names: Any, deep: bool) -> None:
    how: dict[str, Any] = {"steps": 2, "step_size": 0.1, "shape": (5, 2), "seed": 0}

    def given(value: Any) -> dict[str, Any]:
        return {"names": {"deep": value} if deep else value}

    def model(x: Tensor, names: Any) -> Tensor:
        return -x

    place = re.escape("model_kwargs['names']" + "['deep']" * deep)
    with pytest.raises(
        ValueError, match=rf"^langevin: {place} must be a tensor with batch_size=, "
    ):
        fastscore.langevin(model, batch_size=2, model_kwargs=given(names), **how)
    fastscore.langevin(model, model_kwargs=given(names), **how)
    for value in (fastscore.shared(names), names[:3]):
        fastscore.langevin(model, batch_size=2, model_kwargs=given(value), **how)


def test_networks_that_return_the_same_memory_each_time() -> None:
    memory = torch.empty(4, 2)

    def model(x: Tensor) -> Tensor:
        return memory.copy_(-x)

    how: dict[str, Any] = {"steps": 3, "step_size": 0.1, "shape": (10, 2), "seed": 0}
    plain = fastscore.langevin(lambda x: -x, **how)
    assert_same_bytes(fastscore.langevin(model, batch_size=4, **how), plain)


def test_networks_that_write_to_what_they_are_given() -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        sigma.mul_(2).div_(2)
        return x.neg_()

    how: dict[str, Any] = {"steps": 3, "step_size": 0.1, "sigma": 1.0, "shape": (5, 2), "seed": 0}
    plain = fastscore.langevin(lambda x, sigma: -x, **how)
    assert_same_bytes(fastscore.langevin(model, batch_size=2, **how), plain)


def test_with_known_elements_resumed_and_recorded() -> None:
    mask = torch.tensor([True, False])
    how: dict[str, Any] = {"known": 0.5, "mask": mask, "seed": 2, "batch_size": 3}
    sigmas = fastscore.geometric_sigmas(2.0, 0.1, 5)
    whole, states = fastscore.annealed_langevin(
        gaussian_score, sigmas, shape=(7, 2), trajectory=[2], **how
    )
    assert bool((whole[:, 0] == 0.5).all())
    resumed = fastscore.annealed_langevin(gaussian_score, sigmas, states[0], start_step=15, **how)
    assert_same_bytes(resumed, whole)


def test_bad_batch_sizes_and_models() -> None:
    how: dict[str, Any] = {"steps": 2, "step_size": 0.1, "shape": (5, 2), "seed": 0}
    for size, error in ((0, ValueError), (-1, ValueError), (2.5, TypeError), ("4", TypeError)):
        with pytest.raises(error, match=r"^langevin: batch_size must be"):
            fastscore.langevin(lambda x: -x, batch_size=size, **how)
    with pytest.raises(ValueError, match=r"^langevin: model must be .*\(3, 2\).*EnergyScore"):
        fastscore.langevin(lambda x: x.sum(1), batch_size=3, **how)
    empty = fastscore.langevin(lambda x: -x, batch_size=3, **{**how, "shape": (0, 2)})
    assert empty.shape == (0, 2)
