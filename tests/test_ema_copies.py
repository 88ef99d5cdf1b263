"""Moving averages of networks that are wrapped or can't be copied."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from ema_networks import assert_same, randn, randomise, small, tensors
from torch import Tensor, nn

from fastscore.nn import EMA

# The average


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
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.script"):
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
