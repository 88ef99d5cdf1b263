"""PyTorch's own forward mode over this library: never tangents that are lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import make_key, randn
from torch import Tensor, nn
from torch.autograd import forward_ad

import fastscore
from fastscore import ops
from fastscore.losses import dsm_loss, score_matching_loss, ssm_loss
from fastscore.scores import EnergyScore

NET = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3))
SIGMAS = torch.tensor([1.0, 0.5])
KEY = make_key(0)


def rows(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "dsm_loss": lambda x: dsm_loss(lambda x, sigma: NET(x), x, SIGMAS, seed=0),
    "ssm_loss_auto": lambda x: ssm_loss(NET, x, seed=0),
    "ssm_loss_forward": lambda x: ssm_loss(NET, x, seed=0, method="forward"),
    "ssm_loss_reverse": lambda x: ssm_loss(NET, x, seed=0, method="reverse"),
    "score_matching_loss": lambda x: score_matching_loss(NET, x),
    "divergence": lambda x: fastscore.divergence(NET, x, key=KEY).sum(),
    "jvps": lambda x: fastscore.jvps(NET, x, torch.ones(2, 4, 3))[1].sum(),
    "langevin_step": lambda x: ops.langevin_step(x, x, rows(1, 1, 1, 0), KEY).sum(),
    "perturb": lambda x: ops.perturb(x, rows(1, 1), KEY)[0].sum(),
    "dual_stacked": lambda x: ops.dual_stacked(torch.stack([x, x]), "silu").sum(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, x = REFUSED[name], randn(4, 3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="no derivative in PyTorch's forward mode"):
            function(dual)
        function(x)  # which has no tangent
    with pytest.raises(NotImplementedError, match="no derivative in PyTorch's forward mode"):
        torch.autograd.functional.jacobian(function, x, strategy="forward-mode", vectorize=True)
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(function, (x,), (x,))
    function(x)


def test_in_place_and_energies() -> None:
    x = randn(4, 3)
    energy = EnergyScore(lambda x: x.square().sum(1), conditioning="none")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match=r"^langevin_step_: "):
            ops.langevin_step_(x.clone(), dual, rows(1, 1, 1, 0), KEY)
        with pytest.raises(NotImplementedError, match=r"^EnergyScore: "):
            energy(dual)
    torch.testing.assert_close(torch.func.jvp(energy, (x,), (x,))[1], -2 * x)


def test_finite_differences_have_tangents() -> None:
    def loss(x: Tensor) -> Tensor:
        return ssm_loss(NET, x, seed=0, method="finite_difference")

    x = randn(4, 3)
    want = torch.autograd.functional.jacobian(loss, x)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    torch.testing.assert_close(got, want.sum(), rtol=1e-3, atol=1e-4)
