"""The networks: their contract, closed forms, that they learn."""

from __future__ import annotations

import doctest
import json
import math
import re
import statistics
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fastscore.nn import ScoreConvNet, ScoreMLP, _perceptron, conv, ema, mlp
from fastscore.scores import GaussianMixture


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight a random value: layers that start at 0 would hide what they do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    return model


NETWORKS = {
    "mlp": lambda: ScoreMLP(6, hidden=(16, 12)),
    "unconditional mlp": lambda: ScoreMLP(6, hidden=(16, 12), noise_conditional=False),
    "conv 8": lambda: ScoreConvNet(1, 8, base_channels=8),
    "conv 32": lambda: ScoreConvNet(3, 32, base_channels=8, blocks=2),
}
each_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
SIGMA = torch.tensor([0.01, 0.5, 3.0, 50.0])


@each_network
def test_score_has_the_shape_of_x_and_data_shape(make) -> None:
    model = make()
    x = randn(4, *model.data_shape)
    assert model(x, SIGMA).shape == x.shape
    assert model(x[:0], SIGMA[:0]).shape == x[:0].shape
    torch.testing.assert_close(model(x, 0.5), model(x, torch.full((4,), 0.5)))


@each_network
def test_score_at_the_start_is_near_zero(make) -> None:
    # At sigma 1 the score of noise has size 1: an untrained network starts far below it.
    model = make()
    assert model(randn(4, *model.data_shape), torch.ones(4)).abs().max() < 0.1


@each_network
def test_samples_do_not_depend_on_their_neighbours(make) -> None:
    model = randomise(make()).double()
    x, sigma = randn(4, *model.data_shape, dtype=torch.float64), SIGMA.double()
    together = model(x, sigma)
    for i in range(4):
        alone = model(x[i : i + 1], sigma[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(x[order], sigma[order]), together[order])


@each_network
def test_the_score_scales_as_one_over_sigma(make) -> None:
    # Technique 3: f = sigma * s keeps its size over the whole range of levels, for x = noise.
    model = randomise(make())
    noise = randn(4, *model.data_shape)
    if make is NETWORKS["unconditional mlp"]:
        torch.testing.assert_close(model(noise, SIGMA) * SIGMA[:, None], model(noise))
        return
    size = [(sigma * model(sigma * noise, sigma)).norm() for sigma in SIGMA]
    assert max(size) / min(size) < 30  # where 1 / sigma spans a factor of 5000
    assert all(torch.isfinite(s) for s in size)


@each_network
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(make, dtype: torch.dtype) -> None:
    model = randomise(make())
    x = randn(4, *model.data_shape)
    expected = model(x, SIGMA).double()
    out = model.to(dtype)(x.to(dtype), SIGMA)
    assert out.dtype == dtype
    error = (SIGMA.reshape(-1, *[1] * (x.dim() - 1)) * (out.double() - expected)).abs().max()
    assert error < {torch.float64: 1e-4, torch.bfloat16: 0.5}[dtype]


@each_network
def test_autocast_gives_float32(make) -> None:
    model = randomise(make())
    x = randn(4, *model.data_shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, SIGMA)
    assert out.dtype == torch.float32
    assert not torch.equal(out, model(x, SIGMA))
    level = SIGMA.reshape(-1, *[1] * (x.dim() - 1))
    torch.testing.assert_close(level * out, level * model(x, SIGMA), rtol=0.1, atol=0.3)


@each_network
def test_traces_as_one_graph(make) -> None:
    model = randomise(make())
    x = randn(4, *model.data_shape)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, SIGMA), model(x, SIGMA))


@each_network
def test_config_and_state_dict_make_the_network_again(make) -> None:
    model = randomise(make())
    again = type(model)(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    x = randn(4, *model.data_shape)
    assert torch.equal(again(x, SIGMA), model(x, SIGMA))


@each_network
def test_inputs_that_do_not_fit(make) -> None:
    model = make()
    name, x = type(model).__name__, torch.zeros(4, *model.data_shape)
    with pytest.raises(ValueError, match=rf"^{name}: x must be of shape \(4, .* got shape"):
        model(x[..., 1:], SIGMA)
    with pytest.raises(ValueError, match=rf"^{name}: x must be of shape"):
        model(x[0], SIGMA)
    with pytest.raises(ValueError, match=rf"^{name}: x must be a floating-point tensor"):
        model(x.long(), SIGMA)
    with pytest.raises(ValueError, match=rf"^{name}: sigma must be floating-point .* \(4,\)"):
        model(x, SIGMA[:3])
    with pytest.raises(ValueError, match=rf"^{name}: sigma must be floating-point .*int64"):
        model(x, torch.arange(4))
    with pytest.raises(TypeError, match=rf"^{name}: x must be a torch\.Tensor, got list"):
        model([0.0], SIGMA)


@each_network
def test_every_weight_has_a_part_in_the_score(make) -> None:
    model = randomise(make())
    model(randn(4, *model.data_shape), SIGMA).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# ScoreMLP


def test_jacobian_trace_can_be_read_off_the_layers() -> None:
    # tr J = sum_ij W1_ij phi'(h)_i W3_ji / sigma, for one hidden layer and f of x alone.
    model = randomise(ScoreMLP(3, (5,), activation="tanh", noise_conditional=False)).double()
    first, _, last = model.layers
    x = randn(1, 3, dtype=torch.float64)
    slope = 1 - torch.tanh(first(x)).square()
    trace = (last.weight @ (slope.T * first.weight)).trace() / 0.7
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, 0.7), x)
    torch.testing.assert_close(jacobian.reshape(3, 3).trace(), trace)


def test_scaled_input_and_log_sigma_are_what_the_layers_see() -> None:
    model = randomise(ScoreMLP(2, (5,), data_std=2.0))
    x = randn(4, 2)
    level = SIGMA[:, None]
    features = torch.cat([x / (4 + level**2).sqrt(), level.log()], dim=1)
    torch.testing.assert_close(model(x, SIGMA), model.layers(features) / level)


@pytest.mark.parametrize("activation", list(_perceptron.ACTIVATIONS))
def test_every_activation(activation: str) -> None:
    model = ScoreMLP(2, (5, 4), activation=activation)
    assert len(model.layers) == 5
    assert [type(m) for m in model.layers[::2]] == [nn.Linear] * 3
    x = torch.tensor([-1.5, 0.5])
    named = getattr(torch, activation, None) or getattr(torch.nn.functional, activation)
    torch.testing.assert_close(model.layers[1](x), named(x))


def test_mlp_learns_the_scores_of_a_mixture_at_several_levels() -> None:
    torch.manual_seed(0)
    truth = GaussianMixture([0.8, 0.2], [[2.0, 2.0], [-2.0, -2.0]], 0.5)
    model = ScoreMLP(2, (64, 64), activation="silu", data_std=2.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    levels = torch.tensor([0.5, 1.5, 5.0])

    def draw(n: int) -> tuple[Tensor, Tensor, Tensor]:
        sigma = levels[torch.randint(3, (n,))]
        z = torch.randn(n, 2)
        return truth.sample(n) + sigma[:, None] * z, sigma, z

    for _ in range(400):
        x, sigma, z = draw(256)
        loss = (sigma[:, None] * model(x, sigma) + z).square().sum(1).mean() / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, sigma, _ = draw(4000)
    with torch.no_grad():
        error = (sigma[:, None] * (model(x, sigma) - truth(x, sigma))).square().sum(1).mean()
        size = (sigma[:, None] * truth(x, sigma)).square().sum(1).mean()
    assert error < 0.03 * size


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((0,), {}, ValueError, "dim must be at least 1, got 0"),
        ((2.0,), {}, TypeError, "dim must be an integer, got float"),
        ((2, (8, 0)), {}, ValueError, "hidden must be at least 1, got 0"),
        ((2, ()), {}, ValueError, "hidden must be at least one width"),
        ((2, 64), {}, TypeError, "hidden must be a sequence of widths, got int"),
        ((2,), {"activation": "swish"}, ValueError, "activation must be one of 'softplus'"),
        ((2,), {"data_std": 0.0}, ValueError, "data_std must be positive"),
    ],
)
def test_mlp_bad_input(args, kwargs, error, message) -> None:
    with pytest.raises(error, match="^ScoreMLP: " + message):
        ScoreMLP(*args, **kwargs)


def test_mlp_for_data_takes_dim_and_data_std_from_them() -> None:
    x = torch.tensor([3.0, 0.5, 1.0]) * randn(5000, 3) + torch.tensor([5.0, 0.0, -2.0])
    model = ScoreMLP.for_data(x, (8,), activation="tanh", noise_conditional=False)
    assert model.data_shape == (3,)
    assert model.data_std == pytest.approx(x.double().var(0, correction=0).mean().sqrt().item())
    assert model.config == {
        "dim": 3,
        "hidden": [8],
        "activation": "tanh",
        "noise_conditional": False,
        "data_std": model.data_std,
    }
    plain = ScoreMLP.for_data(x)
    assert {**plain.config, "data_std": 1.0} == ScoreMLP(3).config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_std_of_other_dtypes(dtype: torch.dtype) -> None:
    x = (300 * randn(4000, 2, dtype=torch.float64)).to(dtype)  # squares leave float16's range
    assert ScoreMLP.for_data(x).data_std == pytest.approx(float(x.double().std()), rel=1e-3)


def test_for_data_gives_a_subclass_of_its_own() -> None:
    class Own(ScoreMLP):
        pass

    assert type(Own.for_data(randn(4, 2))) is Own


@pytest.mark.parametrize(
    ("network", "shape"), [(ScoreMLP, (500, 2)), (ScoreConvNet, (50, 1, 8, 8))]
)
def test_for_data_warns_of_data_far_off_the_origin(network, shape) -> None:
    x = randn(*shape)
    network.for_data(x + 2.5)
    network.for_data(100 * x)
    with pytest.warns(
        UserWarning, match=rf"^{network.__name__}\.for_data: the mean of x is 4\."
    ) as w:
        network.for_data(x + 4.2)
    assert w[0].filename == __file__


def test_the_docstrings_table_is_the_study() -> None:
    """Percent of samples off the data, the median over seeds, and what tells the rows apart."""
    study = json.loads((Path(__file__).parents[1] / "benchmarks/results/defaults.json").read_text())
    assert not study["quick"]
    names = ["moons", "checkerboard", "rings", "mixture, 8", "surface, 8", "digits, 64"]
    before = {"data_std": 1.0, "biases": "zero"}
    notes = {
        "as before": before,
        "with data_std=1": {"data_std": 1.0},
        "with biases of 0": {"biases": "zero"},
    }
    row = r"^    ((?:\d+, )*\d+ \w+|  with [\w= ]+?)(?:, (as before))?  +((?:[\d.]+\*? *){6})$"
    found = re.findall(row, ScoreMLP.__doc__ or "", re.M)
    assert len(found) == 11
    widths: list[int] = []
    activation = ""
    for name, note, cells in found:
        if not name.startswith(" "):
            *sizes, activation = name.replace(",", "").split()
            widths = [int(size) for size in sizes]
        job = {"hidden": widths, "activation": activation, "data_std": "data", "biases": "uniform"}
        job |= {"lr": 2e-3, **notes.get(note or name.strip(), {})}
        for data, cell in zip(names, cells.split(), strict=True):
            runs = [
                run
                for run in study["network"]
                if run["data"] == data and all(run[key] == value for key, value in job.items())
            ]
            share = statistics.median(run["off"] for run in runs)
            assert float(cell.strip("*")) == pytest.approx(100 * share, abs=0.051), (name, data)
            # Beyond all reason: further from the data than their own standard deviation.
            assert ("*" in cell) == any(run["distance"] > 1 for run in runs), (name, data)


def test_the_defaults_are_the_last_row_of_the_study() -> None:
    assert ScoreMLP(2).config == {
        "dim": 2,
        "hidden": [256, 256, 256],
        "activation": "silu",
        "noise_conditional": True,
        "data_std": 1.0,
    }


def test_a_configuration_from_before_the_defaults_changed_makes_the_same_network() -> None:
    config = json.loads(
        '{"dim": 2, "hidden": [128, 128], "activation": "softplus", "noise_conditional": true, '
        '"data_std": 1.0}'
    )
    model = ScoreMLP(**config)
    assert [type(layer).__name__ for layer in model.layers] == [
        *("Linear", "Softplus") * 2,
        "Linear",
    ]
    assert model.config == config


@pytest.mark.parametrize("dim", [1, 2, 64])
def test_biases_of_the_hidden_layers_are_spread_and_the_last_is_zero(dim: int) -> None:
    torch.manual_seed(0)
    *hidden, last = [m for m in ScoreMLP(dim).layers if isinstance(m, nn.Linear)]
    assert not last.bias.any()
    for layer in hidden:
        assert layer.bias.min() < -0.8
        assert layer.bias.max() > 0.8
        assert layer.bias.abs().max() <= 1


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(4, 2), ValueError, "x must be samples that are not all equal, got 4 equal"),
        (torch.zeros(1, 2), ValueError, "x must be at least two samples"),
        (torch.tensor([[0.0], [math.nan]]), ValueError, "x must be finite everywhere"),
        (torch.arange(4)[:, None], ValueError, "x must be a floating-point tensor"),
        ([[0.0], [1.0]], TypeError, r"x must be a torch\.Tensor, got list"),
        (torch.tensor([[-3e38], [3e38]]), ValueError, "x must be small enough that its variance"),
    ],
)
@pytest.mark.parametrize("network", [ScoreMLP, ScoreConvNet])
def test_for_data_bad_input(network, x, error, message) -> None:
    with pytest.raises(error, match=rf"^{network.__name__}\.for_data: " + message):
        network.for_data(x)


def test_for_data_wants_the_networks_own_shape() -> None:
    with pytest.raises(ValueError, match=r"^ScoreMLP\.for_data: x must be of shape \(n, dim\) \(x"):
        ScoreMLP.for_data(randn(4, 1, 8, 8))
    for shape in [(4, 64), (4, 1, 8, 6), (4, 8, 8)]:
        with pytest.raises(
            ValueError, match=r"^ScoreConvNet\.for_data: x must be of shape \(n, ch"
        ):
            ScoreConvNet.for_data(randn(*shape))
    with pytest.raises(ValueError, match=r"^ScoreConvNet: image_size must be even, got 7"):
        ScoreConvNet.for_data(randn(4, 1, 7, 7))


def test_conv_net_for_data_takes_shape_and_data_std_from_them() -> None:
    x = 0.2 * randn(300, 3, 8, 8) + torch.linspace(0, 1, 64).reshape(8, 8)
    model = ScoreConvNet.for_data(x, base_channels=8, blocks=2)
    assert model.data_shape == (3, 8, 8)
    assert model.data_std == pytest.approx(0.2, rel=0.02)  # about each pixel's mean
    assert model.config == {
        "channels": 3,
        "image_size": 8,
        "base_channels": 8,
        "blocks": 2,
        "data_std": model.data_std,
    }


def test_conditional_mlp_needs_sigma() -> None:
    with pytest.raises(ValueError, match=r"^ScoreMLP: sigma must be given"):
        ScoreMLP(2)(torch.zeros(1, 2))


# ScoreConvNet


def test_conv_net_starts_at_zero_and_gets_a_gradient() -> None:
    model = ScoreConvNet(1, 8)
    x = randn(4, 1, 8, 8)
    assert torch.equal(model(x, SIGMA), torch.zeros_like(x))
    (SIGMA[:, None, None, None] * model(x, SIGMA) + x).square().sum().backward()
    assert model.leave.weight.grad.abs().max() > 0


def test_conv_net_scales_its_input_to_unit_size() -> None:
    model = ScoreConvNet(1, 8, data_std=0.25)
    seen = []
    model.enter.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    x = randn(4, 1, 8, 8)
    model(x, SIGMA)
    torch.testing.assert_close(seen[0], x / (0.25**2 + SIGMA**2).sqrt()[:, None, None, None])


def test_conv_net_is_small() -> None:
    parameters = sum(p.numel() for p in ScoreConvNet(1, 8).parameters())
    assert 150_000 <= parameters <= 300_000


def test_conv_net_sees_the_whole_image_and_sigma() -> None:
    model = randomise(ScoreConvNet(1, 8, base_channels=8)).double()
    x = randn(1, 1, 8, 8, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, 0.5)[0, 0, 0, 0], x)
    assert (gradient != 0).all()
    with torch.no_grad():
        f = [sigma * model(x * math.sqrt(0.25 + sigma**2), sigma) for sigma in (0.1, 0.2)]
    assert not torch.allclose(f[0], f[1], rtol=0.05, atol=0.05)


def test_conv_net_learns_digits() -> None:
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    model = ScoreConvNet(1, 8, base_channels=16)
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(80):
        x = digits[torch.randint(len(digits), (64,))]
        sigma = 0.05 * 100 ** torch.rand(64)
        level, z = sigma[:, None, None, None], torch.randn_like(x)
        loss = (level * model(x + level * z, sigma) + z).square().flatten(1).sum(1).mean() / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # A score of 0 costs D / 2 = 32, the best one that looks at each pixel alone and linearly 9.4.
    assert losses[0] == pytest.approx(32, rel=0.1)
    assert sum(losses[-20:]) / 20 < 8.8


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((0, 8), {}, "channels must be at least 1, got 0"),
        ((1, 7), {}, "image_size must be even, got 7"),
        ((1, 0), {}, "image_size must be at least 2, got 0"),
        ((1, 8), {"base_channels": 12}, "base_channels must be a multiple of 8, got 12"),
        ((1, 8), {"blocks": 0}, "blocks must be at least 1, got 0"),
        ((1, 8), {"data_std": -1.0}, "data_std must be positive, got -1.0"),
    ],
)
def test_conv_net_bad_input(args, kwargs, message) -> None:
    with pytest.raises(ValueError, match="^ScoreConvNet: " + message):
        ScoreConvNet(*args, **kwargs)


@pytest.mark.parametrize("module", [mlp, conv, ema], ids=lambda m: m.__name__)
def test_docstring_examples(module) -> None:
    assert doctest.testmod(module).failed == 0
