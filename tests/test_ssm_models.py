"""Sliced and exact score matching of models that are easily differentiated wrongly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from helpers import randn
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import fastscore
from fastscore.derivatives.hutchinson import divergence
from fastscore.losses import SSMLoss, score_matching_loss, ssm_loss


def with_dropout(features: int = 6) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(features, 64), nn.SiLU(), nn.Dropout(0.2), nn.Linear(64, features))
    return nn.Sequential(*layers).double()


def with_batch_norm(features: int = 6) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(features, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, features))
    return nn.Sequential(*layers).double()


# ---- random numbers ------------------------------------------------------------------------------


def test_finite_differences_see_one_mask_of_dropout() -> None:
    """Of two masks the difference would be divided by the small h."""
    model, x = with_dropout(), randn(40, 6, dtype=torch.float64)
    losses = {}
    for method in ("finite_difference", "forward"):
        torch.manual_seed(3)
        losses[method] = torch.stack([ssm_loss(model, x, method=method, seed=i) for i in range(50)])
    spread = losses["forward"].std()
    assert 0.5 < losses["finite_difference"].std() / spread < 2
    difference = losses["finite_difference"].mean() - losses["forward"].mean()
    assert abs(difference) < 5 * spread * (2 / 50) ** 0.5


def test_finite_differences_advance_the_generator_as_one_call_does() -> None:
    model, x = with_dropout(), randn(5, 6, dtype=torch.float64)
    torch.manual_seed(1)
    first = [ssm_loss(model, x, method="finite_difference", seed=0) for _ in range(2)]
    torch.manual_seed(1)
    again = [ssm_loss(model, x, method="finite_difference", seed=0) for _ in range(2)]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])


def test_finite_differences_notice_when_dropout_begins() -> None:
    model, x = with_dropout().eval(), randn(200, 6, dtype=torch.float64)

    def by_function(x: Tensor) -> Tensor:
        return model(x)

    for called in (model, by_function, model.forward):
        for training in (False, True, False, True):
            model.train(training)
            losses = []
            for method in ("finite_difference", "forward"):
                torch.manual_seed(3)
                losses.append(float(ssm_loss(called, x, method=method, seed=0)))
            assert abs(losses[0] - losses[1]) < 0.2


def test_running_statistics_move_once_with_dropout() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.2)).double()
    x = randn(10, 6, dtype=torch.float64)
    for _ in range(2):  # the model's first call, and one when it is known
        ssm_loss(model, x, method="finite_difference", seed=0)
    assert int(model[1].num_batches_tracked) == 2


def test_without_random_numbers_one_call_serves_both_points() -> None:
    model, x = with_dropout().eval(), randn(5, 6, dtype=torch.float64)
    ssm_loss(model, x, method="finite_difference", seed=0)
    batches: list[int] = []
    model.register_forward_hook(lambda module, args, out: batches.append(len(args[0])))
    ssm_loss(model, x, method="finite_difference", seed=0)
    assert batches == [10]


# ---- samples that depend on one another ----------------------------------------------------------


@pytest.mark.parametrize(
    "estimate",
    [
        lambda model, x: score_matching_loss(model, x),
        lambda model, x: ssm_loss(model, x, method="exact"),
        lambda model, x: divergence(model, x, method="exact"),
    ],
    ids=["score_matching_loss", "ssm_loss", "divergence"],
)
def test_no_exact_trace_where_samples_depend_on_one_another(
    estimate: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    model, x = with_batch_norm(), randn(8, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="model must be one whose samples do not depend on one"):
        estimate(model, x)
    estimate(model.eval(), x)


def test_the_choice_of_a_method_knows_batch_norm() -> None:
    model, x = with_batch_norm(), randn(8, 6, dtype=torch.float64)
    loss_fn = SSMLoss(projections=6)
    loss_fn(model, x, seed=0)
    assert loss_fn.chosen_method == "forward"
    loss_fn(model.eval(), x, seed=0)
    assert loss_fn.chosen_method == "exact"
    model.train()[1].eval()  # statistics frozen, then not
    for frozen, method in ((True, "exact"), (False, "forward")):
        model[1].train(not frozen)
        loss_fn(model, x, seed=0)
        assert loss_fn.chosen_method == method


def test_projections_have_the_right_expectation_under_batch_norm() -> None:
    model, x = with_batch_norm(4), randn(8, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(model, x)  # (8, 4, 8, 4)
    trace = torch.einsum("bibi->b", jacobian)
    estimate, error = divergence(model, x, projections=4000, return_stderr=True, seed=0)
    assert bool(((estimate - trace).abs() < 5 * error).all())


# ---- models that leave autograd's graph ----------------------------------------------------------

LOST = """
import warnings, torch, fastscore
def through_numpy(x):
    return torch.from_numpy(-x.detach().numpy())
@torch.no_grad()
def without_gradients(x):
    return -x
net = torch.nn.Linear(2, 2)
def detached(x):
    return net(x.detach())
"""


@pytest.mark.parametrize(
    "call",
    [
        "fastscore.divergence(through_numpy, torch.ones(3, 2))",
        "fastscore.ssm_loss(without_gradients, torch.ones(3, 2), method='reverse')",
        "fastscore.ssm_loss(detached, torch.ones(3, 2), method='reverse')",
    ],
)
def test_a_lost_derivative_is_said(call: str) -> None:
    """In a process of its own: the warning comes once in a process."""
    run = [sys.executable, "-c", LOST + call]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "its Jacobian is taken as 0" in done.stderr


# ---- torch.func ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["reverse", "auto"])
@pytest.mark.parametrize("energy", [False, True])
def test_reverse_mode_under_vmap(method: str, energy: bool) -> None:
    torch.manual_seed(0)
    outputs = 1 if energy else 3
    members = [nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs)) for _ in range(2)]
    parameters, buffers = stack_module_state(members)
    x, loss_fn = randn(5, 3), SSMLoss(method=method)
    keys = torch.stack([fastscore.random.key(seed) for seed in range(2)])

    def score_of(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        if not energy:
            return network
        return fastscore.scores.EnergyScore(lambda x: network(x).squeeze(-1), conditioning="none")

    def loss_of(parameters: dict, buffers: dict, key: Tensor) -> Tensor:
        def network(x: Tensor) -> Tensor:
            return functional_call(members[0], (parameters, buffers), (x,))

        return loss_fn(score_of(network), x, key=key)

    got = vmap(loss_of)(parameters, buffers, keys)
    for i, member in enumerate(members):
        torch.testing.assert_close(got[i], loss_fn(score_of(member), x, key=keys[i]))
