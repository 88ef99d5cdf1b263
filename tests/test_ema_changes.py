"""Moving averages of networks that change as they train."""

from __future__ import annotations

import copy

import pytest
import torch
from ema_networks import Growing, Held, assert_same, randn, randomise, small, tensors
from torch import Tensor, nn

from fastscore.nn import EMA

# The average


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
