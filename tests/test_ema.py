"""Moving averages of weights: the average, swapping it in, its state."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from ema_networks import Growing, Held, assert_same, randn, randomise, small, tensors
from torch import nn

from fastscore.nn import EMA


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
