"""The average of weights: its formula, and networks of every make that change as they train."""

from __future__ import annotations

import copy
import io
import math
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastscore.nn import EMA


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every floating-point weight a random value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.normal_(generator=generator)
    return model


def small(seed: int = 0) -> nn.Sequential:
    """A network with parameters and with buffers of both kinds."""
    return randomise(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), seed)


class Held(nn.Module):
    """One parameter and one buffer, of any value, and what else is asked for."""

    def __init__(self, weight: Tensor, buffer: Tensor | None = None, **attributes: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
        self.register_buffer("buffer", buffer)
        for name, value in attributes.items():
            setattr(self, name, value)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of everything, persistent or not."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name


# The average


def test_average_follows_technique_5() -> None:
    model = small()
    average = EMA(model, decay=0.5)
    expected = copy.deepcopy(list(model.parameters()))
    for n in range(12):
        randomise(model, seed=n + 1)
        average.update()
        m = min(0.5, (1 + n) / (10 + n))
        expected = [
            m * e + (1 - m) * p.detach() for e, p in zip(expected, model.parameters(), strict=True)
        ]
    assert m == 0.5
    for a, e in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_averaged_module_is_a_copy_to_sample_from() -> None:
    model = small().train()
    average = EMA(model)
    assert not average.module.training
    assert all(not p.requires_grad for p in average.module.parameters())
    assert all(p.requires_grad for p in model.parameters())
    before = copy.deepcopy(model.state_dict())
    model(randn(5, 3))
    average.update()
    assert average.module[1].num_batches_tracked == 1
    assert torch.equal(average.module[1].running_mean, model[1].running_mean)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_average_of_half_precision_weights_is_not_lost() -> None:
    # 0.001 * (2 - 1) vanishes when added to 1 in bfloat16.
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    average = EMA(model, decay=0.999)
    average.updates = 10**6
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        average.update()
    assert average.module.weight.item() == pytest.approx(2 - 0.999**100, rel=1e-4)
    assert model.weight.dtype == torch.bfloat16


def test_average_may_be_made_in_inference_mode() -> None:
    model = small()
    with torch.inference_mode():
        average = EMA(model)
        model[1].running_mean = torch.zeros(3)
        average.update()
    average.update()
    assert not any(t.is_inference() for t in (*average.module.parameters(),))


def test_module_may_be_elsewhere() -> None:
    model = small()
    average = EMA(model)
    average.module.double()
    randomise(model, seed=1)
    average.update()
    assert average.module[0].weight.dtype == torch.float64
    expected = model[0].weight.detach().double() * 0.9 + small()[0].weight.detach() * 0.1
    torch.testing.assert_close(average.module[0].weight, expected)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_average_bad_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=r"^EMA: decay must be"):
        EMA(small(), decay)


def test_average_of_something_else() -> None:
    with pytest.raises(TypeError, match=r"^EMA: model must be a torch\.nn\.Module, got function"):
        EMA(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^EMA: module must be a torch\.nn\.Module or None, got i"):
        EMA(small(), module=1)  # type: ignore[arg-type]


# What can't be averaged is copied


@pytest.mark.parametrize(
    ("dtype", "averaged"),
    [
        (torch.int64, False),
        (torch.int8, False),
        (torch.bool, False),
        (torch.complex64, True),
        (torch.float8_e4m3fn, True),
    ],
    ids=str,
)
def test_parameters_of_every_dtype(dtype: torch.dtype, averaged: bool) -> None:
    model = Held(torch.zeros(3).to(dtype))
    average = EMA(model, decay=0.9)
    model.weight.data = torch.ones(3).to(dtype)
    average.update()
    expected = torch.full((3,), 0.9) if averaged else torch.ones(3)
    torch.testing.assert_close(average.module.weight.to(torch.complex64), expected + 0j)
    with average.swapped():
        assert model.weight.dtype == dtype
        assert (model.weight.to(torch.complex64) - expected).abs().max() < 0.07  # float8 rounds
    assert torch.equal(model.weight.to(torch.complex64), torch.ones(3) + 0j)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.zeros(2), torch.ones(5)),
        (torch.zeros(2), torch.ones(2, 3)),
        (None, torch.ones(3)),
        (torch.zeros(2), None),
        (torch.zeros(2, dtype=torch.int64), torch.full((2,), 0.5)),
        (torch.zeros(2), torch.ones(2, dtype=torch.int64)),
        (torch.zeros(1).expand(3), torch.ones(3)),
        (torch.zeros(1).expand(3), torch.ones(1).expand(3)),
    ],
    ids=lambda t: t if t is None else f"{t.dtype}{tuple(t.shape)}",
)
def test_buffers_may_change(given: bool, before: Tensor | None, after: Tensor | None) -> None:
    def build() -> Held:
        return Held(torch.zeros(2), before)

    model = build()
    average = EMA(model, module=build() if given else None)
    model.buffer = after
    for _ in range(2):
        average.update()
        if after is None:
            assert average.module.buffer is None
        else:
            assert average.module.buffer.dtype == after.dtype
            assert torch.equal(average.module.buffer, after)
            assert average.module.buffer is not model.buffer
    resumed = EMA(model)
    resumed.load_state_dict(average.state_dict())
    assert_same(tensors(resumed.module), tensors(average.module))


@pytest.mark.parametrize("given", [False, True])
def test_buffers_may_be_registered_later(given: bool) -> None:
    model = small()
    average = EMA(model, module=small() if given else None)
    model[0].register_buffer("cache", torch.ones(4), persistent=False)
    average.update()
    assert torch.equal(average.module[0].cache, torch.ones(4))
    assert "0.cache" not in average.state_dict()["module"]
    model[0].cache += 1
    average.update()
    assert torch.equal(average.module[0].cache, torch.full((4,), 2.0))


@pytest.mark.parametrize("given", [False, True])
def test_shared_buffers_stay_shared(given: bool) -> None:
    def build() -> nn.Sequential:
        model = small()
        model[0].register_buffer("a", torch.zeros(2))
        model[0].register_buffer("b", model[0].a)
        return model

    model = build()
    average = EMA(model, module=build() if given else None)
    model[0].a = model[0].b = torch.ones(3)
    average.update()
    assert average.module[0].a is average.module[0].b
    assert torch.equal(average.module[0].a, torch.ones(3))


# Networks that change


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lazy_layers(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.LazyLinear(4, dtype=dtype), nn.LazyBatchNorm1d(dtype=dtype))
    average = EMA(model, decay=0.9)
    average.update()  # nothing to average yet
    with average.swapped():
        pass
    x = randn(5, 3, dtype=dtype)
    model(x)
    average.update()
    assert average.module[0].weight.dtype == torch.float32
    torch.testing.assert_close(average.module[0].weight, model[0].weight.float())
    first = model[0].weight.detach().float().clone()
    randomise(model, seed=1)
    average.update()
    d = min(0.9, 3 / 12)
    torch.testing.assert_close(
        average.module[0].weight, d * first + (1 - d) * model[0].weight.float()
    )
    assert average.module(x.float()).shape == (5, 4)


def test_lazy_layers_of_a_second_instance_and_of_a_state() -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.LazyLinear(4))

    model = build()
    average = EMA(model, module=build())
    model(randn(5, 3))
    average.update()
    assert torch.equal(average.module[0].weight, model[0].weight)
    assert torch.equal(average.module(randn(5, 3)), model(randn(5, 3)))
    resumed = EMA(build())
    resumed.load_state_dict(average.state_dict())
    assert torch.equal(resumed.module[0].weight, model[0].weight)


class Growing(nn.Module):
    """Layers up to a depth that is an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3)])
        self.depth = 1

    def grow(self, seed: int) -> None:
        self.layers.append(randomise(nn.Linear(3, 3), seed))
        self.depth += 1

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[: self.depth]:
            x = layer(x)
        return x


@pytest.mark.parametrize("given", [False, True])
def test_network_that_grows(given: bool) -> None:
    model = randomise(Growing())
    average = EMA(model, decay=0.9, module=Growing() if given else None)
    module = average.module
    randomise(model, seed=1)
    average.update()
    before = module.layers[0].weight.clone()
    model.grow(seed=2)
    if given:
        with pytest.raises(ValueError, match=r"^EMA.update: model must be .* a new 'layers.1'"):
            average.update()
        assert average.updates == 1
        assert torch.equal(module.layers[0].weight, before)
        module.grow(seed=9)
    with average.swapped():  # what the average doesn't have yet keeps its value
        assert torch.equal(model.layers[0].weight, before)
        assert torch.equal(model.layers[1].weight, randomise(nn.Linear(3, 3), 2).weight)
    average.update()
    assert average.module is module
    assert module.depth == 2
    assert torch.equal(module.layers[1].weight, model.layers[1].weight)
    d = min(0.9, 2 / 11)
    expected = d * before + (1 - d) * model.layers[0].weight
    torch.testing.assert_close(module.layers[0].weight, expected)
    assert not any(p.requires_grad for p in module.parameters())
    assert not any(m.training for m in module.modules())
    entered = module.layers[1].weight.clone()
    randomise(model, seed=3)
    average.update()
    expected = 0.25 * entered + 0.75 * model.layers[1].weight
    torch.testing.assert_close(module.layers[1].weight, expected)
    module(randn(2, 3))


@pytest.mark.parametrize("size", [3, 4])
def test_network_that_loses_a_layer(size: int) -> None:
    # Those behind it get its names, of the same shape or not, and keep their averages.
    model = randomise(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, size), nn.Linear(size, size)))
    average = EMA(model, decay=0.9)
    randomise(model, seed=1)
    average.update()
    last = average.module[2].weight.clone()
    del model[1]
    average.update()
    assert len(average.module) == 2
    d = 2 / 11
    torch.testing.assert_close(average.module[1].weight, d * last + (1 - d) * model[1].weight)


def test_given_module_must_lose_what_the_network_loses() -> None:
    model = randomise(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)))
    average = EMA(model, module=copy.deepcopy(model))
    del model[2]
    with pytest.raises(ValueError, match=r"^EMA.update: model must be .* no '2'"):
        average.update()
    del average.module[2]
    average.update()
    model.append(nn.ReLU())
    with pytest.raises(ValueError, match=r"a new '2'"):
        average.update()


@pytest.mark.parametrize("given", [False, True])
def test_lists_of_parameters(given: bool) -> None:
    def build() -> nn.Module:
        model = nn.Module()
        model.several = nn.ParameterList([randn(2)])
        model.named = nn.ParameterDict({"a": randn(3)})
        return model

    def change(model: nn.Module) -> None:
        model.several.append(randn(4, seed=4))
        model.named["b"] = nn.Parameter(randn(1))

    model = build()
    average = EMA(model, module=build() if given else None)
    change(model)
    if given:
        with pytest.raises(ValueError, match=r"a new 'named\.b', a new 'several\.1'"):
            average.update()
        change(average.module)
    average.update()
    assert len(average.module.several) == 2
    assert list(average.module.named) == ["a", "b"]
    assert torch.equal(average.module.several[1], model.several[1])
    del model.named["a"]
    if given:
        with pytest.raises(ValueError, match=r"no 'named\.a'"):
            average.update()
        del average.module.named["a"]
    average.update()
    assert list(average.module.named) == ["b"]


def test_network_that_changes_its_activation() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    average = EMA(model)
    model[1] = nn.SiLU()
    average.update()
    assert isinstance(average.module[1], nn.SiLU)


@pytest.mark.parametrize("given", [False, True])
def test_parameters_that_come_and_go(given: bool) -> None:
    model = nn.Linear(3, 3)
    average = EMA(model, module=nn.Linear(3, 3) if given else None)
    model.bias = None
    average.update()
    assert average.module.bias is None
    model.bias = nn.Parameter(randn(3))
    average.update()
    assert torch.equal(average.module.bias, model.bias)
    assert not average.module.bias.requires_grad
    model.extra = model.bias
    average.update()
    assert average.module.extra is average.module.bias


def test_network_that_can_be_copied_no_more() -> None:
    model = small()
    average = EMA(model)
    model[0].last = model[0](randn(2, 3))  # not a leaf of its graph
    model[0].bias = None
    average.update()
    assert average.module[0].bias is None
    model.append(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"RuntimeError: Only Tensors created.* a new '2'"):
        average.update()
    average.module.append(nn.Linear(3, 3))
    average.update()
    assert torch.equal(average.module[2].weight, model[2].weight)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("how", ["in place", "replaced", "dtype"])
def test_parameter_of_another_shape_is_named(given: bool, how: str) -> None:
    model = small()
    average = EMA(model, module=small() if given else None)
    randomise(model, seed=1)
    model[1].running_mean.fill_(5.0)
    before, updates = tensors(average.module), average.updates
    if how == "in place":
        model[1].weight.data = torch.ones(4)
    elif how == "replaced":
        model[1].weight = nn.Parameter(torch.ones(4))
    else:
        model[1].weight = nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)
    message = r"model's parameter '1.weight' must be of shape \(3,\) and dtype torch.float32"
    with pytest.raises(ValueError, match="^EMA.update: " + message):
        average.update()
    own = tensors(model)
    with pytest.raises(ValueError, match="^EMA.swapped: " + message), average.swapped():
        pass
    assert_same(tensors(average.module), before)
    assert_same(tensors(model), own)
    assert average.updates == updates


# Tied parameters


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("given", [None, Tied, "untied"])
def test_tied_parameters_are_averaged_once(given: object) -> None:
    second = given() if callable(given) else None
    if given == "untied":
        second = Tied()
        second.b.weight = nn.Parameter(randn(3, 3))
    model = randomise(Tied())
    average = EMA(model, decay=0.9, module=second)
    before = model.a.weight.detach().clone()
    for n in range(2):
        randomise(model, seed=n + 1)
        average.update()
        d = (1 + n) / (10 + n)
        before = d * before + (1 - d) * model.a.weight.detach()
    assert average.module.a.weight is average.module.b.weight
    torch.testing.assert_close(average.module.a.weight, before)
    # Untied, the second one enters anew; tied again, they are one again.
    model.b.weight = nn.Parameter(randn(3, 3, seed=7))
    average.update()
    assert torch.equal(average.module.b.weight, model.b.weight)
    assert not torch.equal(average.module.a.weight, average.module.b.weight)
    model.a.weight = model.b.weight
    average.update()
    assert average.module.a.weight is average.module.b.weight


# Networks that can't be copied


class Weird(nn.Module):
    """Holds what copy.deepcopy refuses."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        if what == "lock":
            self.held = threading.Lock()
        elif what == "generator":
            self.held = (n for n in range(3))
        elif what == "not a leaf":
            self.held = self.layer.weight * 2
        else:
            with pytest.warns(FutureWarning, match="weight_norm"):
                nn.utils.weight_norm(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


@pytest.mark.parametrize("what", ["lock", "generator", "not a leaf", "weight_norm"])
def test_network_that_can_not_be_copied(what: str) -> None:
    model = randomise(Weird(what))
    with pytest.raises(
        ValueError,
        match=r"^EMA: model must be a network that copy.deepcopy can copy, or be given with a "
        r"second instance of it, EMA\(model, decay, module=second\), got Weird \(\w+Error",
    ):
        EMA(model)
    second = Weird(what)
    average = EMA(model, 0.9, module=second)
    assert average.module is second
    assert not second.training
    assert not any(p.requires_grad for p in second.parameters())
    assert_same(tensors(second), tensors(model))
    before = tensors(second)
    randomise(model, seed=1)
    own = tensors(model)
    model(randn(5, 3))
    average.update()
    for name, tensor in second.named_parameters():
        torch.testing.assert_close(tensor.data, 0.1 * before[name] + 0.9 * own[name])
    assert torch.equal(second.norm.running_mean, model.norm.running_mean)
    with average.swapped():
        torch.testing.assert_close(model.eval()(randn(5, 3)), second(randn(5, 3)))
    resumed = EMA(model, 0.9, module=Weird(what))
    resumed.load_state_dict(average.state_dict())
    assert_same(tensors(resumed.module), tensors(second))


def test_copies_that_are_none() -> None:
    class Itself(nn.Linear):
        def __deepcopy__(self, memo: object) -> Itself:
            return self

    with pytest.raises(ValueError, match="its copy shares its weights"):
        EMA(Itself(2, 2))
    model = nn.Sequential(Itself(2, 2))
    EMA(model, module=nn.Sequential(nn.Linear(2, 2)))
    assert model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda model: model, r"a second instance of model, got one that holds model's \['0.weig"),
        (lambda model: nn.Sequential(*model), "a second instance of model, got one that holds"),
        (
            lambda model: nn.Sequential(nn.Linear(3, 3)),
            "a second instance of model, with its tensors, got none called '1.bias', none called",
        ),
        (
            lambda model: small().append(nn.Linear(1, 1)),
            "a second instance of model, with its tensors, got one called '2.bias'",
        ),
        (
            lambda model: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
            r"a second instance of model, with '0.weight' a torch.float32 tensor of shape \(3, 3\)",
        ),
    ],
)
def test_second_instance_that_is_none(second: Callable[..., nn.Module], message: str) -> None:
    model = small()
    before = tensors(model)
    with pytest.raises(ValueError, match="^EMA: module must be " + message):
        EMA(model, module=second(model))
    assert_same(tensors(model), before)
    assert all(p.requires_grad for p in model.parameters())


def test_second_instance_of_half_precision_becomes_float32() -> None:
    average = EMA(small().bfloat16(), module=small(1).bfloat16())
    assert average.module[0].weight.dtype == torch.float32


# Wrapped networks


def distributed(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


@pytest.fixture
def process_group(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        distributed,
        nn.DataParallel,
        lambda model: torch.compile(distributed(model)),
        lambda model: distributed(torch.compile(model)),
        lambda model: nn.Sequential(torch.compile(model[0]), model[1]),
    ],
    ids=["compile", "ddp", "dp", "compiled ddp", "ddp of compiled", "compiled part"],
)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.usefixtures("process_group")
def test_wrapped_networks(wrap: Callable[[nn.Module], nn.Module], given: bool) -> None:
    network, bare = small(), small()
    model = wrap(network)
    average, expected = EMA(model, module=small(3) if given else None), EMA(bare)
    for seed in (1, 2):
        randomise(network, seed)
        randomise(bare, seed)
        average.update()
        expected.update()
    got = {n.replace("_orig_mod.", ""): t for n, t in tensors(average.module).items()}
    assert_same(got, tensors(expected.module))
    assert torch.equal(average.module(randn(5, 3)), expected.module(randn(5, 3)))
    with average.swapped() as inside:
        assert inside is model
        assert_same(tensors(network), tensors(expected.module))
    assert_same(tensors(network), tensors(bare))
    # A state goes from one to the other, also one that has the wrappers in its names.
    for into, state in ((EMA(bare), average.state_dict()), (EMA(model), expected.state_dict())):
        into.load_state_dict(state)
        got = {n.replace("_orig_mod.", ""): t for n, t in tensors(into.module).items()}
        assert_same(got, tensors(expected.module))
    with average.swapped():
        state = {"updates": 2, "module": copy.deepcopy(model.state_dict())}
    into = EMA(bare)
    into.load_state_dict(state)
    assert_same(tensors(into.module), tensors(expected.module))


def test_wrapped_after_the_average_was_made() -> None:
    model = small()
    average = EMA(model)
    model.compile()
    model[0] = torch.compile(model[0])
    randomise(model, seed=1)
    average.update()
    expected = 0.1 * small()[0].weight + 0.9 * small(1)[0].weight
    torch.testing.assert_close(average.module[0].weight, expected)


def test_layer_that_is_called_module() -> None:
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 2))
    average = EMA(model)
    resumed = EMA(copy.deepcopy(model))
    resumed.load_state_dict(average.state_dict())
    assert list(average.state_dict()["module"]) == ["module.weight", "module.bias"]


def test_scripted_and_parametrised_networks() -> None:
    plain = small()
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(copy.deepcopy(plain))
    parametrised = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    for model in (scripted, parametrised):
        average = EMA(model, decay=0.9)
        before, own = tensors(average.module), tensors(model)
        randomise(model, seed=1)
        new = tensors(model)
        average.update()
        for name, parameter in average.module.named_parameters():
            torch.testing.assert_close(parameter.data, 0.1 * before[name] + 0.9 * new[name])
        with average.swapped():
            assert torch.equal(model.eval()(randn(2, 3)), average.module(randn(2, 3)))
        assert_same(tensors(model), new)
        assert own.keys() == new.keys()


# Swapped


@pytest.mark.parametrize("fails", [False, True])
def test_swapped_gives_the_model_back_its_own_weights(fails: bool) -> None:
    model = small()
    average = EMA(model, decay=0.9)
    randomise(model, seed=1)
    average.update()
    own = copy.deepcopy(model.state_dict())
    averaged = copy.deepcopy(average.module.state_dict())
    inside = {}
    with average.swapped() as swapped:
        assert swapped is model
        inside = copy.deepcopy(model.state_dict())
    if fails:
        with pytest.raises(RuntimeError, match="inside"), average.swapped():
            raise RuntimeError("inside")
    for name, value in model.state_dict().items():
        assert torch.equal(inside[name], averaged[name])
        assert torch.equal(value, own[name])
        assert torch.equal(average.module.state_dict()[name], averaged[name])
    assert not torch.equal(own["0.weight"], averaged["0.weight"])


def change_shapes(model: nn.Sequential) -> None:
    model[1].running_mean = torch.zeros(7)
    model[1].running_var.resize_(9)


def change_everything(model: nn.Sequential) -> None:
    model[0].cache = torch.zeros(3)
    model[0].late = torch.zeros(3)
    model[0].register_buffer("new", torch.zeros(3))
    model[1].running_mean = None
    model[0].bias = None
    model[0].weight = nn.Parameter(torch.zeros(2, 2))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        change_shapes,
        change_everything,
        lambda model: model.half(),
        lambda model: randomise(model, seed=5),
        lambda model: model[0].cache.zero_(),
        lambda model: model.train()(randn(5, 3)),
    ],
    ids=["shapes", "everything", "half", "trained", "not persistent", "statistics"],
)
def test_swapped_gives_back_everything(body: Callable[..., object], fails: bool) -> None:
    model = small()
    model[0].register_buffer("cache", torch.ones(4), persistent=False)
    model[0].register_buffer("late", None)
    average = EMA(model)
    randomise(model, seed=1)
    model[1].running_mean.fill_(0.1)  # since the last update
    weights, own, averaged = list(model.parameters()), tensors(model), tensors(average.module)
    try:
        with average.swapped():
            body(model)
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert_same(tensors(model), own)
    assert all(p is w for p, w in zip(model.parameters(), weights, strict=True))
    assert model[0].late is None
    assert_same(tensors(average.module), averaged)


def test_swapped_with_buffers_that_have_changed_since() -> None:
    model = Held(torch.zeros(2), torch.zeros(2))
    average = EMA(model)
    model.buffer = torch.ones(3)
    model.register_buffer("other", torch.ones(1).expand(3))
    with average.swapped():
        assert torch.equal(model.buffer, torch.ones(3))
    assert torch.equal(model.buffer, torch.ones(3))


# States


def test_average_goes_on_after_loading() -> None:
    model = small()
    average = EMA(model, decay=0.9)
    for n in range(3):
        randomise(model, seed=n)
        average.update()
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    resumed = EMA(model, decay=0.9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    randomise(model, seed=9)
    for which in (average, resumed):
        which.update()
    assert resumed.updates == average.updates == 4
    for a, b in zip(resumed.module.parameters(), average.module.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"^EMA.load_state_dict: state must be an EMA's state_d"):
        resumed.load_state_dict(model.state_dict())


def other(**changes: object) -> dict[str, object]:
    """A state with entries of its module changed, or left out where None."""
    values = {**small(4).state_dict(), **{k.replace("_", ".", 1): v for k, v in changes.items()}}
    return {"updates": 1, "module": {k: v for k, v in values.items() if v is not None}}


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (3, TypeError, "state must be an EMA's state_dict, got int"),
        ({"updates": 1}, ValueError, r"state must be an EMA's state_dict, got entries \['updates'"),
        ({"updates": 1, "module": 2}, TypeError, r"state\['module'\] must be a network's state_d"),
        ({**other(), "updates": "x"}, TypeError, r"state\['updates'\] must be an integer, got str"),
        ({**other(), "updates": -1}, ValueError, r"state\['updates'\] must be at least 0, got -1"),
        (other(**{"1_bias": None}), ValueError, r"state\['module'\] must be .*Missing.*1\.bias"),
        (other(**{"2_bias": randn(3)}), ValueError, r"state\['module'\] .*Unexpected.*2\.bias"),
        (other(**{"1_bias": randn(4)}), ValueError, r"state\['module'\] .*size mismatch.*1\.bias"),
        (other(**{"1_bias": "text"}), ValueError, r"state\['module'\] .*1\.bias"),
        (other(**{"1_running.mean": None}), ValueError, r"state\['module'\] .*1\.running_mean"),
    ],
)
def test_states_that_do_not_fit(state: object, error: type[Exception], message: str) -> None:
    if isinstance(state, dict) and isinstance(state.get("module"), dict):
        state["module"].pop("1.running.mean", None)
        if "mean" in message:
            del state["module"]["1.running_mean"]
    model = small()
    average = EMA(model)
    average.update()
    before = tensors(average.module)
    model[1].running_mean.fill_(3.0)
    with pytest.raises(error, match="^EMA.load_state_dict: " + message):
        average.load_state_dict(state)  # type: ignore[arg-type]
    assert_same(tensors(average.module), before)
    assert average.updates == 1


def test_state_of_a_network_that_has_grown() -> None:
    model = randomise(Growing())
    average = EMA(model)
    model.grow(seed=2)
    model.register_buffer("queue", torch.ones(5))
    for seed in (1, 2):
        randomise(model, seed)
        average.update()
    fresh = Growing()
    resumed = EMA(fresh)
    with pytest.raises(ValueError, match=r"Unexpected key.*layers\.1\.weight"):
        resumed.load_state_dict(average.state_dict())
    fresh.grow(seed=0)
    fresh.register_buffer("queue", torch.zeros(0))
    resumed.load_state_dict(average.state_dict())
    assert_same(tensors(resumed.module), tensors(average.module))
    assert resumed.updates == 2


def test_average_can_be_copied_itself() -> None:
    model = small()
    average = EMA(model)
    both = copy.deepcopy({"model": model, "average": average})
    assert both["average"].model is both["model"]
    for which, net in ((average, model), (both["average"], both["model"])):
        randomise(net, seed=1)
        which.update()
    assert_same(tensors(both["average"].module), tensors(average.module))
