"""fastscore.jvp on whole networks: results, gradients, fallbacks, errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.utils.checkpoint
from jvp_checks import (
    DIM,
    IMAGE,
    UNet,
    check_model,
    exact,
    gradients,
    point,
    reverse_twice,
    tangents_of,
    weighted_sum,
)
from torch import Tensor, nn

from fastscore.derivatives.forward import jvp, jvps, quadratic_forms, warned
from fastscore.nn import ScoreConvNet, ScoreMLP
from fastscore.scores import EnergyScore


def unet() -> UNet:
    torch.manual_seed(3)
    return UNet().double().eval()


SIGMA, LABELS = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([2, 0])


def conditioned(net: nn.Module) -> nn.Module:
    """The network as a module of x alone."""

    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x, SIGMA.to(x.dtype), labels=LABELS)

    return Conditioned()


def mlp(activation: nn.Module, d: int = 5, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(d, 9), activation, nn.Linear(9, 9), activation, nn.Linear(9, d)]
    return nn.Sequential(*layers).to(dtype)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Softplus(), nn.Tanh(), nn.ELU(), nn.GELU()])
@pytest.mark.parametrize("count", [1, 4])
def test_mlp(activation: nn.Module, count: int) -> None:
    check_model(mlp(activation), point((7, 5)), count=count)


def test_unet() -> None:
    net = unet()
    check_model(conditioned(net), point((2, 3, 8, 8)), count=2)
    x = point((2, 3, 8, 8))
    v = tangents_of(x)[0]
    output, tangent = jvp(net, x, v, SIGMA, labels=LABELS)
    torch.testing.assert_close(output, net(x, SIGMA, LABELS))
    expected = torch.func.jvp(lambda x: net(x, SIGMA, LABELS), (x,), (v,))[1]
    torch.testing.assert_close(tangent, expected)


def test_networks_of_this_library() -> None:
    torch.manual_seed(0)
    mlp, conv = ScoreMLP(3, hidden=(8, 8)).double(), ScoreConvNet(2, 8, base_channels=8).double()
    for net, shape in ((mlp, (2, 3)), (conv, (2, 2, 8, 8))):
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
        check_model(lambda x, net=net: net(x, SIGMA), point(shape))


def test_inputs_are_unchanged() -> None:
    x = point(DIM)
    vs = tangents_of(x)
    before = x.clone(), vs.clone()
    jvps(lambda x: x.mul_(2).relu_().add_(1), x, vs)
    assert torch.equal(x, before[0])
    assert torch.equal(vs, before[1])
    assert not x.requires_grad


def test_no_grad_keeps_no_graph() -> None:
    with torch.no_grad():
        output, tangents = jvps(mlp(nn.SiLU()), point((7, 5)), tangents_of(point((7, 5))))
    assert not output.requires_grad
    assert not tangents.requires_grad


@pytest.mark.parametrize("forms", [False, True])
def test_linear_layers_and_norms_are_differentiable_twice(forms: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 5)).double()
    leaves = [point((2, 5)), tangents_of(point((2, 5)), 2)]
    function = quadratic_forms if forms else jvps
    assert torch.autograd.gradgradcheck(
        lambda x, vs: function(net, x, vs), [x.requires_grad_() for x in leaves], fast_mode=True
    )


def test_inside_torch_func_grad() -> None:
    net, x = mlp(nn.SiLU()), point((7, 5))
    vs = tangents_of(x)
    parameters = dict(net.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return weighted_sum(*jvps(lambda x: torch.func.functional_call(net, values, x), x, vs))

    grads = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    expected = gradients(reverse_twice(net, x.requires_grad_(), vs), list(parameters.values()))
    torch.testing.assert_close(list(grads.values()), expected)


@pytest.mark.parametrize("function", [jvps, quadratic_forms])
def test_inside_torch_func_vmap(function: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """An ensemble: one network for each slice of stacked parameters."""
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.SiLU(), nn.Linear(6, 5)).double()
        for _ in range(3)
    ]
    parameters, _ = torch.func.stack_module_state(nets)
    x = point((7, 5))
    vs = tangents_of(x)

    def member(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return function(lambda x: torch.func.functional_call(nets[0], values, x), x, vs)

    got = torch.func.vmap(member)(parameters)
    for i, net in enumerate(nets):
        expected = function(net, x, vs)
        torch.testing.assert_close((got[0][i], got[1][i]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    net, x = mlp(nn.SiLU(), dtype=dtype), point((7, 5), dtype)
    vs = tangents_of(x)
    output, tangents = jvps(net, x, vs)
    assert output.dtype == tangents.dtype == dtype
    exact_output, exact_tangents = exact(mlp(nn.SiLU()), x.double(), vs.double())
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), exact_output, rtol=0, atol=tolerance)
    torch.testing.assert_close(tangents.double(), exact_tangents, rtol=0, atol=tolerance)


def test_autocast() -> None:
    net, x = conditioned(unet()).float(), point((2, 3, 8, 8), torch.float32)
    vs = tangents_of(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected_dtype = net(x).dtype
        output, tangents = jvps(net, x, vs)
    assert output.dtype == expected_dtype
    weighted_sum(output.float(), tangents.float()).backward()
    full_output, full_tangents = jvps(net, x, vs)
    assert (output - full_output).norm() < 0.02 * full_output.norm()
    assert (tangents - full_tangents).norm() < 0.05 * full_tangents.norm()
    assert all(p.grad.dtype == p.dtype for p in net.parameters())


def test_channels_last() -> None:
    net, x = conditioned(unet()), point((2, 3, 8, 8))
    vs = tangents_of(x)
    expected = jvps(net, x, vs)
    got = jvps(
        net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), vs
    )
    torch.testing.assert_close(got, expected)


def test_dropout_uses_one_mask() -> None:
    x = point((50, 40))
    for dropout in (nn.Dropout(0.4), nn.Dropout1d(0.4)):
        output, tangent = jvp(dropout, x, torch.ones_like(x))
        torch.testing.assert_close(output, x * tangent)
        assert 0.4 < tangent.count_nonzero() / tangent.numel() < 0.8


def test_batch_norm_updates_running_statistics() -> None:
    x = point(IMAGE)
    for make in (nn.BatchNorm2d, lambda c: nn.InstanceNorm2d(c, track_running_stats=True)):
        ours, theirs = make(4).double(), make(4).double()
        output, _ = jvps(ours, x, tangents_of(x))
        torch.testing.assert_close(output, theirs(x))
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_constant_model_has_zero_tangents() -> None:
    output, tangents = jvps(lambda x: x > 0, point(DIM), tangents_of(point(DIM)))
    assert output.dtype == torch.bool
    assert tangents.shape == (3, *DIM)
    assert not tangents.any()


# Forms v'Jv.


class DividedBySigma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) / SIGMA[:, None]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: mlp(nn.SiLU()), (2, 5)),
        (lambda: nn.Linear(5, 5, bias=False).double(), (2, 5)),
        (lambda: nn.Linear(5, 5).double(), (2, 3, 5)),
        (DividedBySigma, (2, 5)),
        (lambda: conditioned(unet()), (2, 3, 4, 4)),
        (lambda: nn.Tanh(), (3,)),
    ],
    ids=["mlp", "linear", "linear_sequence", "divided", "unet", "one_dimension"],
)
def test_quadratic_forms(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    net, x = make(), point(shape).requires_grad_()
    vs = tangents_of(x).requires_grad_()
    got = quadratic_forms(net, x, vs)
    output, tangents = jvps(net, x, vs)
    forms = (tangents * vs).reshape(*vs.shape[:2], -1).sum(-1)
    torch.testing.assert_close(got, (output, forms))
    leaves = [x, vs, *net.parameters()]
    for a, b in zip(gradients(got, leaves), gradients((output, forms), leaves), strict=True):
        torch.testing.assert_close(a, b)


def deferred_twice(x: Tensor) -> Tensor:
    h = LAYER(x)
    assert h.shape == (3, 4)
    y = h.sin()
    y.add_(h)
    h.mul_(2)
    return LAYER(y + h)


def deferred_then_changed(x: Tensor) -> Tensor:
    h = LAYER(x) / 3
    h.sub_(x)
    return h


def deferred_and_scaled(x: Tensor) -> Tensor:
    return 2 * LAYER(x) * torch.ones(4) / torch.full((3, 1), 5.0).double()


def deferred_and_broadcast(x: Tensor) -> Tensor:
    return (LAYER(x) * torch.ones(2, 1, 4))[0]


LAYER = nn.Linear(4, 4).double()


@pytest.mark.parametrize(
    "model",
    [
        deferred_twice,
        deferred_then_changed,
        deferred_and_scaled,
        deferred_and_broadcast,
    ],
)
def test_quadratic_forms_of_a_deferred_layer(model: Callable[[Tensor], Tensor]) -> None:
    x = point((3, 4))
    vs = tangents_of(x)
    got = quadratic_forms(model, x, vs)
    output, tangents = jvps(model, x, vs)
    torch.testing.assert_close((output, tangents), exact(model, x, vs))
    torch.testing.assert_close(got, (output, (tangents * vs).sum(-1)))
    assert [y.requires_grad for y in got] == [output.requires_grad, tangents.requires_grad]


# Functions without a rule, and models that can't carry tangents.


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warned, "_WARNED", set())


def test_unknown_function_warns_once() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x.sin()) * torch.cov(x) @ torch.cov(x.cos()) @ x

    with pytest.warns(UserWarning, match=r"torch\.func\.jvp of cov alone") as caught:
        check_model(lambda x: torch.cov(x) @ torch.cov(x.cos()) @ x, point(DIM), quiet=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jvps(lambda x: torch.cov(x), point(DIM), tangents_of(point(DIM)))


class Cube(torch.autograd.Function):
    """With a backward of its own, and no forward mode."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad


class CubeNet(nn.Module):
    def __init__(self, *extra: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), *extra).double()

    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(self.net(x))


@pytest.mark.parametrize("record", [True, False])
def test_custom_autograd_function(record: bool) -> None:
    torch.manual_seed(0)
    model, x = CubeNet(), point(DIM)
    vs = tangents_of(x)
    with torch.set_grad_enabled(record), pytest.warns(UserWarning, match="Cube: "):
        output, tangents = jvps(model, x, vs)
    expected = exact(lambda x: model.net(x) ** 3, x, vs)
    torch.testing.assert_close((output, tangents), expected)
    if record:
        leaves = list(model.parameters())
        wanted = gradients(
            reverse_twice(lambda x: model.net(x) ** 3, x.requires_grad_(), vs), leaves
        )
        torch.testing.assert_close(gradients((output, tangents), leaves), wanted)
    assert output.requires_grad == tangents.requires_grad == record
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jvps(model, x, vs)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(6),
        nn.BatchNorm1d(6),
        nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, affine=True), nn.Flatten()),
        nn.Sequential(nn.Linear(6, 12), nn.GLU()),
    ],
    ids=["layer_norm", "batch_norm", "instance_norm", "glu"],
)
def test_gradients_of_the_fallback(norm: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = CubeNet(norm), point(DIM)
    names, values = zip(*model.named_parameters(), strict=True)

    def call(x: Tensor, vs: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip(names, parameters, strict=True))
        return jvps(lambda x: torch.func.functional_call(model, state, x), x, vs)

    leaves = [x, tangents_of(x, 2), *(value.detach() for value in values)]
    with pytest.warns(UserWarning, match="Cube"):
        assert torch.autograd.gradcheck(call, [y.requires_grad_() for y in leaves], fast_mode=True)


def energy(x: Tensor) -> Tensor:
    return (x.sin() * x.square()).sum(1)


@pytest.mark.parametrize("record", [True, False])
def test_model_that_differentiates(record: bool) -> None:
    x = point(DIM)
    vs = tangents_of(x)
    with torch.set_grad_enabled(record), pytest.warns(UserWarning, match="torch.autograd.grad"):
        output, tangents = jvps(EnergyScore(energy, conditioning="none"), x, vs)
    expected = exact(torch.func.grad(lambda x: -energy(x).sum()), x, vs)
    torch.testing.assert_close((output, tangents), expected)


def test_scripted_module() -> None:
    with pytest.warns(UserWarning, match="forward"):
        check_model_by_reverse(torch.jit.script(mlp(nn.SiLU())), point((7, 5)))


@pytest.mark.parametrize("kind", ["compiled", "checkpointed", "vectorised"])
def test_wrapped_module(kind: str) -> None:
    net = mlp(nn.SiLU())
    wrapped = {
        "compiled": torch.compile(net, backend="eager"),
        "checkpointed": lambda x: torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False),
        "vectorised": lambda x: torch.func.vmap(net)(x),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_model_by_reverse(wrapped[kind], point((7, 5)))


def test_inside_torch_compile() -> None:
    net, x = mlp(nn.SiLU()), point((7, 5))
    v = tangents_of(x)[0]
    step = torch.compile(lambda x: jvp(net, x, v)[1].sum() * 2, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.compile, which runs this part eagerly
        torch.testing.assert_close(step(x), jvp(net, x, v)[1].sum() * 2)


def check_model_by_reverse(model: Callable[..., Tensor], x: Tensor) -> None:
    x = x.clone().requires_grad_()
    vs = tangents_of(x)
    got, expected = jvps(model, x, vs), reverse_twice(model, x, vs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, [x]), gradients(expected, [x]))


# Bad input.


def test_errors() -> None:
    x = point(DIM)
    vs = tangents_of(x)
    net = nn.Identity()
    with pytest.raises(ValueError, match=r"jvp: v must be of shape \(4, 6\).*got shape \(6, 4\)"):
        jvp(net, x, x.mT)
    with pytest.raises(
        ValueError, match=r"jvp: v must be of dtype torch.float64.*got torch.float32"
    ):
        jvp(net, x, x.float())
    with pytest.raises(ValueError, match=r"jvps: vs must be of shape \(M, 4, 6\).*got shape"):
        jvps(net, x, x)
    with pytest.raises(ValueError, match=r"jvps: vs must be of shape .* got shape \(0, 4, 6\)"):
        jvps(net, x, vs[:0])
    with pytest.raises(ValueError, match=r"jvps: vs must be on cpu"):
        jvps(net, x, vs.to("meta"))
    with pytest.raises(ValueError, match=r"jvp: x must be a floating-point tensor"):
        jvp(net, x.long(), x.long())
    with pytest.raises(TypeError, match=r"jvps: vs must be a torch.Tensor, got list"):
        jvps(net, x, [x])
    with pytest.raises(TypeError, match=r"jvp: model must be a module or function, got str"):
        jvp("net", x, x)
    with pytest.raises(TypeError, match=r"jvp: model must be .* returns a tensor, got tuple"):
        jvp(lambda x: (x, x), x, x)
    with pytest.raises(TypeError, match=r"jvp: x must be a tensor without tangents"):
        jvp(lambda y: jvp(net, y, x)[1], x, x)
    with pytest.raises(ValueError, match=r"quadratic_forms: .*output must be of shape \(4, 6\)"):
        quadratic_forms(nn.Linear(6, 5).double(), x, vs)
    with pytest.raises(IndexError, match="Dimension out of range"):
        jvps(lambda x: x.sum(2), x, vs)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        jvps(nn.Linear(5, 5).double(), x, vs)
