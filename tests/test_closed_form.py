"""What the closed-form trace declines, and what its attempt leaves behind. More of it:
test_score_matching.py."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import randn
from torch import Tensor, nn

from fastscore.derivatives.closed_form import NoClosedForm, jacobian
from fastscore.losses import score_matching_loss


def test_options_without_a_rule_have_no_closed_form() -> None:
    x = randn(3, 4)
    with pytest.raises(NoClosedForm, match="div"):
        jacobian(lambda x: torch.div(x, 2, rounding_mode="floor"), x)
    with pytest.raises(NoClosedForm, match="integers"):
        jacobian(lambda x: x.to(torch.int32).to(torch.float32), x)


def test_an_error_of_the_model_is_not_hidden() -> None:
    with pytest.raises(TypeError, match="unsupported"):
        jacobian(lambda x: x * (1 + None), randn(3, 4))  # type: ignore[operator]


def test_cat_along_an_axis() -> None:
    x, given, layer = randn(3, 4), randn(3, 2), nn.Linear(6, 4)
    form = jacobian(lambda x: layer(torch.cat([x, given], axis=1)), x)
    torch.testing.assert_close(form.trace(), layer.weight[:, :4].trace().expand(3))


class RunningMean(nn.Module):
    """Keeps a mean of first samples, in training, and gives on what it is given."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.lerp_(x.detach()[0], 0.5)
        return x * 1


def test_running_statistics_move_once_for_a_batch() -> None:
    model = nn.Sequential(nn.Linear(8, 8), RunningMean(8), nn.Linear(8, 8))
    x, twin = randn(16, 8), copy.deepcopy(model)
    score_matching_loss(model, x, chunk_size=2).backward()
    twin(x)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
