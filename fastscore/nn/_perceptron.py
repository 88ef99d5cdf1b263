"""Layers of multilayer perceptrons, and how their weights are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from fastscore._support.checks import check_choice, check_int, fail, fail_type

HIDDEN = (256, 256, 256)
ACTIVATION = "silu"
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}


def check_widths(fn: str, hidden: Sequence[int], activation: str) -> list[int]:
    """The widths of the hidden layers."""
    check_choice(fn, "activation", activation, tuple(ACTIVATIONS))
    if isinstance(hidden, str) or not isinstance(hidden, Iterable):
        fail_type(fn, "hidden", "a sequence of widths", hidden)
    widths = [check_int(fn, "hidden", width, minimum=1) for width in hidden]
    if not widths:
        fail(fn, "hidden", "at least one width", tuple(hidden))
    return widths


def perceptron(width: int, hidden: list[int], out: int, activation: str) -> nn.Sequential:
    """Linear layers from ``width`` inputs to ``out`` outputs, with activations between them."""
    layers: list[nn.Module] = []
    for next_width in hidden:
        layers += [nn.Linear(width, next_width), ACTIVATIONS[activation]()]
        width = next_width
    return nn.Sequential(*layers, nn.Linear(width, out))


def draw_weights(layers: nn.Sequential) -> None:
    """Weights Xavier-uniform, the last layer's a hundredth; biases from [-1, 1), the last's 0."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer in linear:
        nn.init.xavier_uniform_(layer.weight, gain=0.01 if layer is linear[-1] else 1.0)
        if layer is linear[-1]:
            nn.init.zeros_(layer.bias)
        else:
            nn.init.uniform_(layer.bias, -1.0, 1.0)
