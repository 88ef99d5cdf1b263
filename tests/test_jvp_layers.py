"""The rules of fastscore.jvp, layer by layer, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from jvp_checks import DIM, IMAGE, SEQUENCE, check_model, point, tangents_of
from torch import Tensor, nn

from fastscore.derivatives.forward import jvp, jvps


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), DIM),
    "linear_no_bias": (lambda: nn.Linear(6, 5, bias=False), DIM),
    "linear_sequence": (lambda: nn.Linear(9, 5), SEQUENCE),
    "linear_vector": (lambda: nn.Linear(6, 5), (6,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), SEQUENCE),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), IMAGE),
    "conv2d_unbatched": (lambda: nn.Conv2d(4, 6, 3, padding=1), IMAGE[1:]),
    "conv2d_grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2, stride=2), IMAGE),
    "conv2d_dilated": (lambda: nn.Conv2d(4, 2, 3, dilation=2, padding="same"), IMAGE),
    "conv2d_circular": (lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv2d_reflect": (
        lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect", bias=False),
        IMAGE,
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 3, 3, stride=2), SEQUENCE),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1, groups=2),
        IMAGE,
    ),
    "group_norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "group_norm_flat": (lambda: nn.GroupNorm(3, 6, affine=False), DIM),
    "layer_norm": (lambda: nn.LayerNorm(6), DIM),
    "layer_norm_two": (lambda: nn.LayerNorm((4, 9), bias=False), SEQUENCE),
    "rms_norm": (lambda: nn.RMSNorm(6), DIM),
    "instance_norm": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "instance_norm_eval": (lambda: nn.InstanceNorm1d(4, track_running_stats=True).eval(), SEQUENCE),
    "batch_norm_eval": (lambda: nn.BatchNorm2d(4).eval(), IMAGE),
    "batch_norm_train": (lambda: nn.BatchNorm1d(6, track_running_stats=False), (16, 6)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 2, 2), (1, 2, 2, 3, 2)),
    "avg_pool3d": (lambda: nn.AvgPool3d(2), (1, 2, 4, 4, 2)),
    "max_pool3d": (lambda: nn.MaxPool3d(2), (1, 2, 4, 4, 2)),
    "adaptive_avg_pool1d": (lambda: nn.AdaptiveAvgPool1d(2), SEQUENCE),
    "adaptive_avg_pool3d": (lambda: nn.AdaptiveAvgPool3d(1), (1, 2, 4, 4, 2)),
    "adaptive_max_pool1d": (lambda: nn.AdaptiveMaxPool1d(2), SEQUENCE),
    "adaptive_max_pool3d": (lambda: nn.AdaptiveMaxPool3d(1), (1, 2, 4, 4, 2)),
    "lp_pool1d": (lambda: nn.LPPool1d(2, 3), SEQUENCE),
    "channel_shuffle": (lambda: nn.ChannelShuffle(2), IMAGE),
    "fold": (lambda: nn.Fold((4, 4), 2, stride=2), (2, 8, 4)),
    "selu": (nn.SELU, DIM),
    "softsign": (nn.Softsign, DIM),
    "tanhshrink": (nn.Tanhshrink, DIM),
    "softshrink": (nn.Softshrink, DIM),
    "hardshrink": (nn.Hardshrink, DIM),
    "threshold": (lambda: nn.Threshold(0.1, 20.0), DIM),
    "local_response_norm": (lambda: nn.LocalResponseNorm(2), IMAGE),
    "avg_pool2d": (lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False), IMAGE),
    "avg_pool1d": (lambda: nn.AvgPool1d(3), SEQUENCE),
    "max_pool2d": (lambda: nn.MaxPool2d(2), IMAGE),
    "max_pool1d": (lambda: nn.MaxPool1d(3, stride=2, padding=1), SEQUENCE),
    "adaptive_avg_pool2d": (lambda: nn.AdaptiveAvgPool2d((3, 2)), IMAGE),
    "adaptive_max_pool2d": (lambda: nn.AdaptiveMaxPool2d(2), IMAGE),
    "lp_pool2d": (lambda: nn.LPPool2d(2, 2), IMAGE),
    "upsample_nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "upsample_bilinear": (
        lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        IMAGE,
    ),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "pixel_unshuffle": (lambda: nn.PixelUnshuffle(2), IMAGE[1:]),
    "flatten": (nn.Flatten, IMAGE),
    "unflatten": (lambda: nn.Unflatten(1, (2, 3)), DIM),
    "reflection_pad": (lambda: nn.ReflectionPad2d(1), IMAGE),
    "constant_pad": (lambda: nn.ConstantPad2d(1, 2.5), IMAGE),
    "dropout_eval": (lambda: nn.Dropout().eval(), DIM),
    "alpha_dropout_eval": (lambda: nn.AlphaDropout().eval(), DIM),
    "prelu": (lambda: nn.PReLU(4), IMAGE),
    "relu": (nn.ReLU, DIM),
    "relu_in_place": (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)), DIM),
    "silu": (nn.SiLU, DIM),
    "silu_in_place": (lambda: nn.Sequential(nn.Linear(6, 6), nn.SiLU(inplace=True)), DIM),
    "tanh": (nn.Tanh, DIM),
    "sigmoid": (nn.Sigmoid, DIM),
    "softplus": (lambda: nn.Softplus(beta=2.0, threshold=1.0), DIM),
    "elu": (lambda: nn.ELU(alpha=0.7), DIM),
    "gelu": (nn.GELU, DIM),
    "gelu_tanh": (lambda: nn.GELU(approximate="tanh"), DIM),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), DIM),
    "glu": (nn.GLU, DIM),
    "mish": (nn.Mish, DIM),
    "hardswish": (nn.Hardswish, DIM),
    "logsigmoid": (nn.LogSigmoid, DIM),
    "celu": (lambda: nn.CELU(0.5), DIM),
    "relu6": (nn.ReLU6, DIM),
    "softmax": (lambda: nn.Softmax(dim=1), DIM),
    "log_softmax": (lambda: nn.LogSoftmax(dim=-1), DIM),
    "attention": (lambda: SelfAttention(6, 2), (2, 3, 6)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
        (2, 3, 6),
    ),
}


# PyTorch takes the statistics of these for constants in derivatives of third order and in reverse
# mode over torch.func.jvp, so that only differences can say what the gradients are.
NORMS = ["layer_norm", "layer_norm_two", "instance_norm", "batch_norm_train", "transformer"]


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in NORMS])
def test_layer(name: str) -> None:
    layer, x = make_layer(name)
    check_model(layer, x)


@pytest.mark.parametrize("name", NORMS)
def test_layer_gradients_by_differences(name: str) -> None:
    layer, x = make_layer(name)
    check_model(layer, x, reference=None)
    names, values = zip(*layer.named_parameters(), strict=True)

    def call(x: Tensor, vs: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip(names, parameters, strict=True))
        return jvps(lambda x: torch.func.functional_call(layer, state, x), x, vs)

    leaves = [x, tangents_of(x, 2), *(value.detach() for value in values)]
    assert torch.autograd.gradcheck(
        call, [leaf.requires_grad_() for leaf in leaves], fast_mode=True
    )


def make_layer(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[name]
    torch.manual_seed(5)
    layer = make().double()
    for module in layer.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=0.5)
    return layer, point(shape)


def test_hardsigmoid() -> None:
    """On its own: PyTorch has its second derivative neither in forward nor in reverse mode."""
    x, v = point(DIM).mul(4).requires_grad_(), tangents_of(point(DIM))[0]
    output, tangent = jvp(nn.Hardsigmoid(), x, v)
    inside = (x.abs() < 3).double()
    torch.testing.assert_close(output, F.hardsigmoid(x))
    torch.testing.assert_close(tangent, inside * v / 6)
    (grad,) = torch.autograd.grad((output + tangent).sum(), x)
    torch.testing.assert_close(grad, inside / 6)
