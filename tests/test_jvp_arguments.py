"""The rules of fastscore.jvp: any argument may depend on x; edges of shapes; PyTorch's errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from jvp_checks import SEQUENCE, point, tangents_of
from torch import Tensor

from fastscore.derivatives.forward import jvp, jvps
from fastscore.losses import ssm_loss

C = torch.linspace(-1.0, 2.0, 72, dtype=torch.float64).sin().reshape(2, 4, 9)
W = torch.linspace(-2.0, 1.0, 20, dtype=torch.float64).cos().reshape(5, 4)
STATE = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)


def check(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """By differences alone: PyTorch has some of these derivatives wrong."""
    vs = tangents_of(x, 2)
    output, tangents = jvps(function, x, vs)
    torch.testing.assert_close(output, function(x))
    h = 1e-6
    expected = torch.stack([(function(x + h * v) - function(x - h * v)) / (2 * h) for v in vs])
    torch.testing.assert_close(tangents, expected, rtol=1e-6, atol=1e-7)
    leaves = [x.clone().requires_grad_(), vs.requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda x, vs: jvps(function, x, vs), leaves, fast_mode=True, nondet_tol=1e-12
    )


# x is (2, 4, 9); a parameter of 4 channels is x[0, :, 0], of 9 features x[0, 0].
BY_PARAMETER: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: F.layer_norm(x, (9,), x[0, 0], x[1, 1]),
    "layer_norm_weight": lambda x: F.layer_norm(C, (9,), x[0, 0]),
    "layer_norm_bias": lambda x: F.layer_norm(C, (9,), C[0, 0], x[0, 1]),
    "layer_norm_input_bias": lambda x: F.layer_norm(x, (4, 9), None, x[0]),
    "group_norm": lambda x: F.group_norm(x, 2, x[0, :, 0], x[1, :, 2]),
    "group_norm_weight": lambda x: F.group_norm(C, 2, x[0, :, 0]),
    "group_norm_bias": lambda x: F.group_norm(C, 2, None, x[0, :, 0]),
    "instance_norm": lambda x: F.instance_norm(x, weight=x[0, :, 0], bias=x[1, :, 0]),
    "instance_norm_weight": lambda x: F.instance_norm(C, weight=x[0, :, 0]),
    "batch_norm": lambda x: F.batch_norm(x, None, None, x[0, :, 0], x[0, :, 1], True),
    "batch_norm_weight": lambda x: F.batch_norm(C, None, None, x[0, :, 0], training=True),
    "batch_norm_eval": lambda x: F.batch_norm(x, STATE, STATE, x[0, :, 0], x[0, :, 1]),
    "batch_norm_eval_weight": lambda x: F.batch_norm(C, STATE, STATE, x[0, :, 0], x[0, :, 1]),
    "batch_norm_state": lambda x: F.batch_norm(C, x[0, :, 0], x[0, :, 0].square()),
    "rms_norm": lambda x: F.rms_norm(x, (9,), x[0, 0]),
    "rms_norm_weight": lambda x: F.rms_norm(C, (9,), x[0, 0]),
    "after_linear": lambda x: F.layer_norm(F.linear(C[..., :4], W), (5,), x[0, 0, :5]),
    "after_softmax": lambda x: F.layer_norm(x.softmax(-1), (9,), x.sum((0, 1))),
    "after_convolution": lambda x: F.group_norm(
        F.conv1d(x, W[:4, :, None]), 2, x.mean((0, 2)), x.sum((0, 2))
    ),
    "linear_bias": lambda x: F.linear(C[..., :4], W, x[0, 0, :5]),
    "linear_weight": lambda x: F.linear(C, x[0], STATE),
    "linear_weight_bias": lambda x: F.linear(C, x[0], x[1, :, 0]),
    "linear_input_bias": lambda x: F.linear(x[..., :4], W, x[1, 0, :5]),
    "conv_bias": lambda x: F.conv1d(C, W[:, :, None], x[0, 0, :5]),
    "addmm_input": lambda x: torch.addmm(x[0, :, :4], W[:4], W[:4], beta=2, alpha=3),
    "addmm_first": lambda x: torch.addmm(W[:4], x[0, :, :4], W[:4]),
    "addmm_second": lambda x: torch.addmm(W[:4], W[:4], x[0, :, :4]),
    "addmv_input": lambda x: torch.addmv(x[0, 0, :5], W, STATE),
    "baddbmm_input": lambda x: torch.baddbmm(x[:, :, :4], C[:, :, :4], C[:, :, :4]),
    "bilinear_bias": lambda x: F.bilinear(W, W, W.new_ones(3, 4, 4), x[0, 0, :3]),
    "bilinear_weight": lambda x: F.bilinear(W[:2], W[:2, :4], x[:, :, :4], x[0, 0, :2]),
    "bilinear_second": lambda x: F.bilinear(W[:2], x[0, :2, :4], W[:4, None] * W[:4, :, None]),
    "prelu": lambda x: F.prelu(x, x[0, :, 0]),
    "prelu_weight": lambda x: F.prelu(C, x[0, :, 0]),
    "prelu_one_weight": lambda x: F.prelu(C[0, 0], x[0, 0, 0]),
    "prelu_matrix": lambda x: F.prelu(x[0].mT, x[1, :, 2]),
    "attention_mask": lambda x: F.scaled_dot_product_attention(C, C, C, x[:, :, :4]),
    "attention_key": lambda x: F.scaled_dot_product_attention(C, x, C),
    "index_fill": lambda x: C.index_fill(1, torch.tensor([0, 2]), x[0, 0, 0]),
    "index_fill_both": lambda x: x.index_fill(1, torch.tensor([0, 2]), x[0, 0, 0]),
    "masked_fill_value": lambda x: C.masked_fill(C > 0.3, x[0, 0, 0]),
    "as_strided_scatter": lambda x: C.as_strided_scatter(x[0, :2, :2], (2, 2), (9, 1)),
    "native_layer_norm": lambda x: torch.cat(
        [t.flatten() for t in torch.native_layer_norm(x, (9,), x[0, 0], x[0, 1], 1e-5)]
    ),
    "native_group_norm": lambda x: torch.cat(
        [
            t.flatten()
            for t in torch.native_group_norm(x, x[0].sum(1), x[1].sum(1), 2, 4, 9, 2, 1e-5)
        ]
    ),
    "native_batch_norm": lambda x: torch.cat(
        [
            t.flatten()
            for t in torch.native_batch_norm(x, x[0, :, 0], None, None, None, True, 0.1, 1e-5)
        ]
    ),
    "solve_ex": lambda x: (
        torch.linalg.solve_ex(x[:, :, :4] + 5 * torch.eye(4, dtype=x.dtype), x[:, :, 4:6]).result
    ),
}


@pytest.mark.parametrize("name", BY_PARAMETER)
def test_parameters_that_depend_on_x(name: str) -> None:
    check(BY_PARAMETER[name], point(SEQUENCE))


def test_layer_norm_scaled_by_x() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    _, tangent = jvp(lambda x: F.layer_norm(x, (2,), x[0]), x, torch.ones_like(x))
    torch.testing.assert_close(tangent, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), rtol=0, atol=1e-4)


def test_ssm_loss_of_adaptive_normalisation() -> None:
    x = point((4, 6))

    def score(x: Tensor) -> Tensor:
        return F.layer_norm(x, (6,), 1 + x.mean(0), x[1])

    forward, reverse = (ssm_loss(score, x, method=m, seed=3) for m in ("forward", "reverse"))
    torch.testing.assert_close(forward, reverse)
