"""Checkpoints of any network: wrapped or not, given or built, with whatever state it has."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import own_networks
import pytest
import torch
from own_networks import BreaksOnLoading, Extra, Net, Tied, draw
from safetensors import safe_open
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import fastscore
from fastscore import Checkpoint, load_checkpoint, save_checkpoint
from fastscore.scores import DenoiserScore, EpsScore, NetworkScore

SIGMAS = fastscore.geometric_sigmas(2.0, 0.1, 5)
BUILDER = "own_networks:make"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """Of this process alone."""
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def names_in(path: Path) -> set[str]:
    with safe_open(str(path), "pt") as file:
        return set(file.keys())


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


PLAIN = {"sigmas"} | {f"model.{name}" for name in Net().state_dict()}


def compiled(net: nn.Module) -> Any:
    return torch.compile(net, backend="eager")


# ---- adapters ----------------------------------------------------------------------------------


def test_adapters_come_back_into_such_as_they_were(path: Path) -> None:
    """The weights of an eps network fit a denoiser's adapter as well, which draws other samples."""
    net = draw(Net())
    model = EpsScore(net, conditioning="index", sigmas=SIGMAS)
    save_checkpoint(path, Checkpoint(model, SIGMAS))
    again = EpsScore(Net(), conditioning="index", sigmas=SIGMAS.tolist())
    load_checkpoint(path, model=compiled(again))
    assert same(again, model)
    for other, named in (
        (DenoiserScore(Net(), conditioning="index", sigmas=SIGMAS), "prediction='eps', as .*'x0'"),
        (EpsScore(Net()), "conditioning='index', sigmas=.* got one of conditioning='sigma'"),
        (EpsScore(Net(), conditioning="index", sigmas=SIGMAS * 2), "sigmas="),
    ):
        before = copy.deepcopy(draw(other, seed=1))
        with pytest.raises(ValueError, match=rf"model must be one with an adapter of {named}"):
            load_checkpoint(path, model=other)
        assert same(other, before)
    save_checkpoint(path, Checkpoint(NetworkScore(EpsScore(net)), SIGMAS))
    with pytest.raises(ValueError, match="an adapter of prediction='eps' at 'net', as"):
        load_checkpoint(path, model=NetworkScore(DenoiserScore(Net())))


# ---- given -------------------------------------------------------------------------------------


def test_into_a_network_that_is_given(path: Path) -> None:
    net = draw(Net())
    save_checkpoint(path, Checkpoint(net, SIGMAS, {"step_size": 0.01}, data_shape=[2]))
    assert names_in(path) == PLAIN
    mine = draw(Net(), 1).train()
    weight = mine.outer.weight
    loaded = load_checkpoint(path, model=mine)
    assert loaded.model is mine
    assert mine.outer.weight is weight
    assert same(mine, net)
    assert not mine.training
    assert mine.data_shape == (2,)
    assert mine.conditioning == "sigma"
    assert mine.prediction == "score"
    want = fastscore.annealed_langevin(net, SIGMAS, shape=(3, 2), seed=0, step_size=0.01)
    assert torch.equal(loaded.sample(3, seed=0), want)


def test_what_the_network_says_of_itself_is_kept(path: Path) -> None:
    net = Net()
    net.conditioning, net.prediction, net.data_shape = "log_sigma", "eps", (2,)
    checkpoint = Checkpoint(compiled(net), SIGMAS)
    assert (checkpoint.conditioning, checkpoint.prediction) == ("log_sigma", "eps")
    message = r"^Checkpoint: conditioning must be left out for Net, .*='log_sigma', got 'index'$"
    with pytest.raises(ValueError, match=message):
        Checkpoint(net, SIGMAS, conditioning="index")
    save_checkpoint(path, checkpoint)
    other = draw(Net())
    other.conditioning = "sigma"
    before = other.outer.weight.clone()
    message = r"^load_checkpoint: model must be called, and predict, as the one that was saved"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, model=other)
    assert torch.equal(other.outer.weight, before)
    other.conditioning = "log_sigma"
    assert load_checkpoint(path, model=other).conditioning == "log_sigma"
    assert other.prediction == "eps"
    net.conditioning = "film"
    with pytest.raises(ValueError, match=r"^Checkpoint: conditioning must be .*'film'"):
        Checkpoint(net, SIGMAS)
    assert Checkpoint(net, SIGMAS, conditioning="sigma").conditioning == "sigma"


def wider() -> Net:
    return Net(9)


def with_more() -> Net:
    net = Net()
    net.more = nn.Linear(1, 1)
    return net


def with_less() -> Net:
    net = Net()
    del net.outer
    return net


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (wider, r"with 'inner.bias' of shape \(9,\) for \(8,\), 'inner.weight' of "),
        (with_more, r"with 'more.weight', 'more.bias' beside$"),
        (with_less, r"without 'outer.bias', 'outer.weight'$"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), r"one with a lazy parameter '0.weight'$"),
        (BreaksOnLoading, r"got one with: no more$"),
    ],
    ids=["wider", "more", "less", "lazy", "breaks"],
)
def test_a_network_that_does_not_fit_is_left_as_it_was(
    other: Callable[[], nn.Module], message: str, path: Path
) -> None:
    save_checkpoint(path, Checkpoint(draw(Net().double()), SIGMAS, data_shape=(2,)))
    mine = other()
    lazy = isinstance(mine[0], nn.LazyLinear) if isinstance(mine, nn.Sequential) else False
    before = {} if lazy else {k: v.clone() for k, v in mine.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^load_checkpoint: model must be .*{message}"):
        load_checkpoint(path, model=mine)
    assert mine.training
    assert not hasattr(mine, "data_shape")
    for name, value in before.items():
        assert mine.state_dict()[name].dtype == value.dtype
        assert torch.equal(mine.state_dict()[name], value), name


def test_the_dtype_is_the_one_saved(path: Path) -> None:
    net = draw(Net())
    net.inner.bfloat16()
    net.rates = net.rates.bfloat16()
    save_checkpoint(path, Checkpoint(net, SIGMAS))
    mine = Net().double()
    load_checkpoint(path, model=mine)
    assert same(mine, net)
    assert mine.inner.weight.dtype == mine.rates.dtype == torch.bfloat16
    assert mine.outer.weight.dtype == torch.float32
    assert mine.table.dtype == torch.int64


# ---- built -------------------------------------------------------------------------------------


def test_built_by_name(path: Path) -> None:
    net = draw(Net(5)).double()
    arguments = {"width": 5, "sizes": (1, [2.5, None], {"a": "b", "c": torch.float16})}
    checkpoint = Checkpoint(
        net, SIGMAS, data_shape=(2,), builder=BUILDER, arguments=arguments, conditioning="sigma"
    )
    save_checkpoint(path, checkpoint)
    before = torch.get_rng_state()
    for build in (True, BUILDER, "own_networks:Net"):
        loaded = load_checkpoint(path, build=build)
        assert same(loaded.model, net)
        assert loaded.model.sizes == arguments["sizes"]
        assert loaded.arguments == arguments
        assert loaded.builder == BUILDER
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_imported_or_called_unless_asked(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watched.py").write_text(
        "import own_networks\ncalls = []\n"
        "def make():\n    calls.append(1)\n    return own_networks.Net()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    net = draw(Net())
    save_checkpoint(path, Checkpoint(net, SIGMAS, builder="watched:make"))
    assert sys.modules.pop("watched").calls == []  # looked at, not called
    with pytest.raises(ValueError, match=r'model=<a own_networks:Net> or build=True \(it names "w'):
        load_checkpoint(path)
    load_checkpoint(path, model=Net())
    load_checkpoint(path, build=BUILDER)
    assert "watched" not in sys.modules
    assert same(load_checkpoint(path, build=True).model, net)
    assert sys.modules.pop("watched").calls == [1]


def test_networks_of_the_library_need_no_builder_but_take_one(path: Path) -> None:
    save_checkpoint(path, Checkpoint(fastscore.nn.ScoreMLP(2, (4,)), SIGMAS))
    assert type(load_checkpoint(path, build=True).model) is fastscore.nn.ScoreMLP
    with pytest.raises(ValueError, match=r"^load_checkpoint: the network of build='own_networks:"):
        load_checkpoint(path, build=BUILDER)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (3, TypeError, "True, False or a name"),
        ("make", ValueError, "package.module:function"),
        ("a b:c", ValueError, "package.module:function"),
        ("no_such_module:make", ImportError, r"can't be imported \(ModuleNotFoundError: No mod"),
        ("own_networks:no_such", ValueError, "a function or a class of own_networks"),
        ("own_networks:NOT_A_FUNCTION", ValueError, "a function or a class of own_networks"),
        ("own_networks:make_nothing", ValueError, "which made a NoneType"),
        ("own_networks:fails", ValueError, "which raised OSError: no such luck"),
        ("own_networks:Tied.nothing", ValueError, "a function or a class of own_networks"),
        ("own_networks:Tied", ValueError, r"^load_checkpoint: the network of build='own_n.*witho"),
        (True, ValueError, "the name of a function, for the file names none, got True"),
    ],
)
def test_builders_that_are_none(build: Any, error: Any, message: str, path: Path) -> None:
    save_checkpoint(path, Checkpoint(Net(), SIGMAS))
    with pytest.raises(error, match=r"^load_checkpoint: .*build") as caught:
        load_checkpoint(path, build=build)
    assert caught.match(message)


@pytest.mark.parametrize(
    ("builder", "arguments", "error", "message"),
    [
        ("__main__:make", {}, ValueError, "a name that another program can import"),
        ("no_such_module:make", {}, ImportError, "can't be imported"),
        ("own_networks:no_such", {}, ValueError, "a function or a class"),
        (BUILDER, {"wide": 3}, ValueError, r"arguments must be keywords of own_networks:make\(wid"),
        (BUILDER, {"sizes": {1}}, TypeError, r"arguments\['sizes'\] must be a number"),
        (BUILDER, {"sizes": [torch.ones(1)]}, TypeError, r"arguments\['sizes'\]\[0\] must be a nu"),
        (BUILDER, {"sizes": float("nan")}, ValueError, r"arguments\['sizes'\] must be finite"),
        (BUILDER, {"sizes": {3: 4}}, TypeError, r"the key 3 of arguments\['sizes'\] must be a str"),
        (BUILDER, {"sizes": {"__tuple__": 4}}, ValueError, "without the reserved key"),
    ],
)
def test_a_builder_is_looked_at_when_saving(
    builder: str, arguments: Any, error: Any, message: str, path: Path
) -> None:
    checkpoint = Checkpoint(Net(), SIGMAS, builder=builder, arguments=arguments)
    with pytest.raises(error, match=r"^save_checkpoint: ") as caught:
        save_checkpoint(path, checkpoint)
    assert caught.match(message)
    assert not path.exists()


# ---- wrapped -----------------------------------------------------------------------------------


def nested(net: Net) -> nn.Module:
    net.inner = compiled(net.inner)
    net.outer = nn.DataParallel(checkpoint_wrapper(net.outer))
    return net


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "plain": lambda net: net,
    "compiled": compiled,
    "data parallel": nn.DataParallel,
    "both": lambda net: compiled(nn.DataParallel(compiled(net))),
    "checkpointed": checkpoint_wrapper,
    "nested": nested,
    "all": lambda net: nn.DataParallel(compiled(nested(net))),
}


@pytest.mark.parametrize("inside", WRAPPERS)
@pytest.mark.parametrize("outside", ["plain", "compiled", "nested", "all"])
def test_wrappers_are_not_saved(inside: str, outside: str, path: Path) -> None:
    net = draw(Net())
    net.data_shape = (2,)
    x = fastscore.annealed_langevin(net, SIGMAS, num_samples=3, seed=0)
    save_checkpoint(path, Checkpoint(WRAPPERS[inside](net), SIGMAS))
    assert names_in(path) == PLAIN
    mine = WRAPPERS[outside](Net())
    loaded = load_checkpoint(path, model=mine)
    assert loaded.model is mine
    assert torch.equal(loaded.sample(3, seed=0), x)


def test_distributed(path: Path, process_group: None) -> None:
    net = nn.parallel.DistributedDataParallel(draw(Net()))
    save_checkpoint(path, Checkpoint(torch.compile(net, backend="eager"), SIGMAS))
    assert names_in(path) == PLAIN
    mine = nn.parallel.DistributedDataParallel(Net())
    load_checkpoint(path, model=mine)
    assert same(mine, net)


def test_a_module_called_module_keeps_its_name(path: Path) -> None:
    net = nn.Sequential()
    net.module = nn.Linear(2, 2)
    save_checkpoint(path, Checkpoint(nn.DataParallel(net), SIGMAS))
    assert names_in(path) == {"sigmas", "model.module.weight", "model.module.bias"}


def test_shards_are_refused(path: Path, process_group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    net = Net()
    net.outer.weight = nn.Parameter(
        distribute_tensor(net.outer.weight.detach(), init_device_mesh("cpu", (1,)))
    )
    with pytest.raises(TypeError, match=r"model's 'outer.weight' must be a plain.*, got DTensor$"):
        save_checkpoint(path, Checkpoint(net, SIGMAS))


def test_shards_of_the_older_kind_are_refused(path: Path) -> None:
    class Sharded(nn.Module):
        """Holds a network as FSDP does."""

        def __init__(self) -> None:
            super().__init__()
            self._fsdp_wrapped_module = Net()

    for net in (Sharded(), nn.Sequential(Sharded())):
        with pytest.raises(ValueError, match=r"^save_checkpoint: model must be a whole network"):
            save_checkpoint(path, Checkpoint(net, SIGMAS))
    save_checkpoint(path, Checkpoint(Net(), SIGMAS))
    with pytest.raises(ValueError, match=r"^load_checkpoint: model must be a whole network"):
        load_checkpoint(path, model=Sharded())


# ---- state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_saved_once_and_tied_again(tied: bool, path: Path) -> None:
    net = draw(Tied())
    save_checkpoint(path, Checkpoint(net, SIGMAS))
    assert "model.second.weight" not in names_in(path)
    mine = Tied(tied)
    loaded: Any = load_checkpoint(path, model=mine).model
    assert loaded.second.weight is loaded.first.weight
    assert torch.equal(loaded.first.weight, net.first.weight)
    assert torch.equal(loaded.second.bias, net.second.bias)
    assert not torch.equal(loaded.first.bias, net.second.bias)


def test_weights_that_are_not_tied_do_not_go_where_they_are(path: Path) -> None:
    save_checkpoint(path, Checkpoint(draw(Tied(False)), SIGMAS))
    mine = draw(Tied(), 1)
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    message = r"untied as the saved ones are, got one that ties 'first.weight' and 'second.weight'"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, model=mine)
    assert all(torch.equal(v, mine.state_dict()[k]) for k, v in before.items())


def test_tensors_of_every_kind_come_back(path: Path) -> None:
    flat = torch.randn(12)
    net = nn.Module()
    tensors = {
        "whole": flat,
        "slice": flat[2:5],
        "view": flat.view(3, 4),
        "transposed": torch.randn(3, 4).t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "expanded": torch.randn(3, 1).expand(3, 4),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "nothing": torch.empty(0, 3),
        "nothing_else": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
        "flags": torch.tensor([True, False]),
        "halves": torch.randn(3).half(),
        "numbers": torch.arange(3),
    }
    for name, tensor in tensors.items():
        net.register_buffer(name, tensor)
    save_checkpoint(path, Checkpoint(net, SIGMAS))
    mine = nn.Module()
    for name, tensor in tensors.items():
        mine.register_buffer(name, torch.zeros_like(tensor.resolve_conj().contiguous()))
    load_checkpoint(path, model=mine)
    for name, tensor in tensors.items():
        assert torch.equal(mine.get_buffer(name), tensor), name
    assert torch.equal(flat.view(3, 4), tensors["view"])


def test_extra_state_that_is_a_tensor(path: Path) -> None:
    save_checkpoint(path, Checkpoint(Extra(torch.arange(3)), SIGMAS))
    mine = Extra(torch.zeros(()))
    load_checkpoint(path, model=mine)
    assert mine.extra.tolist() == [0, 1, 2]


def test_parametrised_scripted_and_recurrent_networks(path: Path) -> None:
    def normalised() -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))

    def scripted() -> nn.Module:
        return torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))

    for make in (normalised, scripted, lambda: nn.LSTM(2, 3)):
        net, mine = draw(make()), make()
        save_checkpoint(path, Checkpoint(net, SIGMAS))
        loaded = load_checkpoint(path, model=mine).model
        assert same(loaded, net)
        x = torch.randn(4, 2)
        torch.testing.assert_close(loaded(x), net.eval()(x), rtol=0, atol=0)


def with_parameter(tensor: Any) -> nn.Module:
    net = nn.Module()
    net.register_buffer("w", tensor)
    return net


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(2)), ValueError, "'0.weight' must be initialised"),
        (lambda: with_parameter(torch.eye(2).to_sparse()), ValueError, "'w' must be a dense tenso"),
        (
            lambda: with_parameter(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
            ValueError,
            "'w' must be a dense tensor, got one of torch.qint8",
        ),
        (
            lambda: with_parameter(torch.ones(2, device="meta")),
            ValueError,
            "'w' must be a tensor with values",
        ),
        (
            lambda: with_parameter(torch.ones(2, dtype=torch.complex128)),
            ValueError,
            "'w' must be of a dtype that safetensors can hold",
        ),
        (lambda: Extra({"a": 1}), TypeError, "'_extra_state' must be a tensor, .* got dict"),
    ],
    ids=["lazy", "sparse", "quantised", "meta", "complex", "extra"],
)
def test_what_a_file_can_not_hold_is_named(
    model: Callable[[], nn.Module], error: Any, message: str, path: Path
) -> None:
    with pytest.raises(error, match=rf"^save_checkpoint: model's {message}"):
        save_checkpoint(path, Checkpoint(model(), SIGMAS))
    assert not path.exists()


def test_what_is_no_network(path: Path) -> None:
    save_checkpoint(path, Checkpoint(Net(), SIGMAS))
    for model in (fastscore.nn.EMA(Net()), torch.optim.swa_utils.AveragedModel(Net()), Net):
        with pytest.raises(TypeError, match=r"^load_checkpoint: model must be a torch.nn.Module"):
            load_checkpoint(path, model=model)
    with pytest.raises(ValueError, match=r"^load_checkpoint: build must be False when model is g"):
        load_checkpoint(path, model=Net(), build=True)
    for model in (own_networks.make, {}, None):
        with pytest.raises(TypeError, match=r"^Checkpoint: model must be a torch.nn.Module, or an"):
            Checkpoint(model, SIGMAS)


def test_device(path: Path, device: torch.device) -> None:
    save_checkpoint(path, Checkpoint(Net().to(device), SIGMAS.to(device), data_shape=(2,)))
    for checkpoint in (
        load_checkpoint(path, model=Net(), device=device),
        load_checkpoint(path, model=Net().to(device)),
        load_checkpoint(path, build=BUILDER, device=str(device)),
    ):
        assert checkpoint.sigmas is not None
        assert checkpoint.sigmas.device == checkpoint.model.outer.weight.device == device
        assert checkpoint.sample(2).device == device
