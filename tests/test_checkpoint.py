"""Checkpoint files: what is saved comes back, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_networks import Net, draw
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import fastscore
from fastscore import Checkpoint, load_checkpoint, save_checkpoint

SIGMAS = fastscore.geometric_sigmas(2.0, 0.1, 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


@pytest.fixture(
    params=[
        lambda: fastscore.nn.ScoreMLP(3, hidden=(8, 8), activation="silu"),
        lambda: fastscore.nn.ScoreConvNet(1, 8, base_channels=8),
    ],
    ids=["mlp", "conv"],
)
def model(request: pytest.FixtureRequest) -> Any:
    return draw(request.param()).eval()


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()["fastscore"])


def change(path: Path, **entries: Any) -> None:
    """The same file with other metadata."""
    with safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    record = {**metadata_of(path), **entries}
    save_file(tensors, str(path), metadata={"fastscore": json.dumps(record)})


# ---- networks of this library ------------------------------------------------------------------


def test_round_trip(model: Any, path: Path) -> None:
    save_checkpoint(path, Checkpoint(model, SIGMAS, {"steps_per_sigma": 3}))
    before = torch.get_rng_state()
    loaded = load_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(4, *model.data_shape)
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    assert torch.equal(loaded.model(x, sigma), model(x, sigma))
    assert not loaded.model.training
    assert loaded.sigmas is not None
    assert torch.equal(loaded.sigmas, SIGMAS)
    assert loaded.sampling == {"steps_per_sigma": 3}
    assert loaded.data_shape == model.data_shape
    assert (loaded.sampler, loaded.conditioning, loaded.prediction) == (
        "annealed_langevin",
        "sigma",
        "score",
    )
    assert list(path.parent.iterdir()) == [path]
    again = path.with_name("again")
    save_checkpoint(again, loaded)
    assert metadata_of(again) == metadata_of(path)


def test_weights_keep_their_dtype(model: Any, path: Path) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = model.to(dtype)
        save_checkpoint(path, Checkpoint(model, SIGMAS))
        loaded = load_checkpoint(path).model
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            again = loaded.get_parameter(name) if "weight" in name or "bias" in name else None
            again = loaded.get_buffer(name) if again is None else again
            assert again.dtype == dtype, name
            if "rates" not in name:  # a buffer that is not saved is made again, and rounded
                assert torch.equal(again, tensor), name


def test_a_network_that_its_config_does_not_make_again(path: Path) -> None:
    net = fastscore.nn.ScoreMLP(2, hidden=(4,))
    net.layers.append(torch.nn.Linear(2, 2))
    save_checkpoint(path, Checkpoint(net, SIGMAS))
    with pytest.raises(ValueError, match=r"^load_checkpoint: model must be given, model=<a fast"):
        load_checkpoint(path)
    other = fastscore.nn.ScoreMLP(2, hidden=(4,))
    other.layers.append(torch.nn.Linear(2, 2))
    loaded = load_checkpoint(path, model=other)
    assert loaded.model is other
    assert torch.equal(other.layers[-1].weight, net.layers[-1].weight)


def test_the_average_is_what_is_saved(path: Path) -> None:
    net = draw(Net())
    ours = fastscore.nn.EMA(net, decay=0.9)
    theirs = torch.optim.swa_utils.AveragedModel(net)
    with torch.no_grad():
        net.outer.bias += 1.0
    for average in (ours, theirs):
        checkpoint = Checkpoint(average, SIGMAS, data_shape=(2,))
        assert checkpoint.model is average.module
        save_checkpoint(path, checkpoint)
        loaded = load_checkpoint(path, model=Net()).model
        assert torch.equal(loaded.outer.bias, average.module.outer.bias)
        assert not torch.equal(loaded.outer.bias, net.outer.bias)


# ---- files -------------------------------------------------------------------------------------


def write_first_format(path: Path, **changes: Any) -> fastscore.nn.ScoreMLP:
    """As the first version of this library wrote it."""
    net = fastscore.nn.ScoreMLP(2, hidden=(4,), activation="tanh", data_std=2.0)
    arguments = {
        "dim": 2,
        "hidden": [4],
        "activation": "tanh",
        "noise_conditional": True,
        "data_std": 2.0,
    }
    record = {
        "format": "fastscore-checkpoint-1",
        "network": "ScoreMLP",
        "arguments": arguments,
        "sampling": {"steps_per_sigma": 2},
    } | changes
    tensors = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    tensors["sigmas"] = SIGMAS
    save_file(tensors, str(path), metadata={"fastscore": json.dumps(record)})
    return net


def test_files_of_the_first_format_load(path: Path) -> None:
    net = write_first_format(path)
    loaded = load_checkpoint(path)
    assert loaded.model.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(loaded.model.layers[0].weight, net.layers[0].weight)
    x = loaded.sample(3, seed=1)
    assert torch.equal(
        x, fastscore.annealed_langevin(net, SIGMAS, num_samples=3, seed=1, steps_per_sigma=2)
    )


def foreign(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, str(path))


def text(path: Path) -> None:
    path.write_text("not a checkpoint")


def empty(path: Path) -> None:
    path.touch()


def pickled(path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path)


def truncated(path: Path) -> None:
    save_checkpoint(path, Checkpoint(fastscore.nn.ScoreMLP(2, (4,)), SIGMAS))
    path.write_bytes(path.read_bytes()[:-10])


def other_version(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, str(path), metadata={"fastscore": '{"format": "other"}'})


def bad_json(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, str(path), metadata={"fastscore": '{"format": '})


def a_list(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, str(path), metadata={"fastscore": "[1, 2]"})


@pytest.mark.parametrize(
    "write", [foreign, text, empty, pickled, truncated, other_version, bad_json, a_list]
)
def test_refuses_a_file_that_is_not_its_own(write: Callable[[Path], None], path: Path) -> None:
    write(path)
    with pytest.raises(ValueError, match=r"^load_checkpoint: path must be .*checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"network": "fastscore.nn:NoSuch"},
        {"config": {"dim": 2, "width": 3}},
        {"config": {"dim": 0}},
        {"config": [1]},
        {"config": {"dim": 3}},
        {"sampler": "gibbs"},
        {"sampling": 3},
        {"conditioning": "class"},
        {"data_shape": 3},
        {"tied": {"a": "b"}},
        {"tied": [1]},
        {"unsaved": {"a": 3}},
        {"surplus": 1},
        {"arguments": "x"},
        {"builder": "no name"},
        {"unsaved": {"a": {"__dtype__": "no"}}},
    ],
    ids=str,
)
def test_damaged_entries(entries: dict[str, Any], path: Path) -> None:
    save_checkpoint(path, Checkpoint(fastscore.nn.ScoreMLP(2, (4,)), SIGMAS))
    change(path, **entries)
    with pytest.raises(ValueError, match=r"^load_checkpoint: path('s network)? must be "):
        load_checkpoint(path)


def test_damaged_weights_and_sigmas(path: Path) -> None:
    save_checkpoint(path, Checkpoint(fastscore.nn.ScoreMLP(2, (4,)), SIGMAS))
    metadata = {"fastscore": json.dumps(metadata_of(path))}
    message = r"^load_checkpoint: path's network must be one with .* got one with 'layers"
    save_file({"sigmas": SIGMAS, "model.odd": torch.zeros(1)}, str(path), metadata=metadata)
    with pytest.raises(ValueError, match=message.replace("with '", "without 'odd', with '")):
        load_checkpoint(path)
    for tensors in [{"model.a": torch.zeros(1)}, {"sigmas": SIGMAS.flip(0)}, {"odd": SIGMAS}]:
        save_file(tensors, str(path), metadata=metadata)
        with pytest.raises(ValueError, match=r"^load_checkpoint: path must be an undamaged"):
            load_checkpoint(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="load_checkpoint: there is no file"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="load_checkpoint: there is no file"):
        load_checkpoint(tmp_path)


def test_permissions_are_ordinary(path: Path) -> None:
    checkpoint = Checkpoint(fastscore.nn.ScoreMLP(2, (4,)), SIGMAS)
    before = os.umask(0o027)
    try:
        save_checkpoint(path, checkpoint)
        assert path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
    path.chmod(0o664)
    save_checkpoint(path, checkpoint)
    assert path.stat().st_mode & 0o777 == 0o664


def test_a_failure_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(fastscore.nn.ScoreMLP(2, (4,)), SIGMAS)
    save_checkpoint(path, checkpoint)
    old = path.read_bytes()

    def full(tensors: Any, filename: str, metadata: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"^save_checkpoint: can't write .*: I/O error: No space"):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_what_can_not_be_is_said_first(path: Path) -> None:
    network = Checkpoint(fastscore.nn.ScoreMLP(2), SIGMAS)
    with pytest.raises(FileNotFoundError, match=r"^save_checkpoint: the directory"):
        save_checkpoint(path.parent / "nowhere" / "a.safetensors", network)
    with pytest.raises(IsADirectoryError, match=r"^save_checkpoint: .* is a directory"):
        save_checkpoint(path.parent, network)
    call = r"a fastscore.Checkpoint, as in save_checkpoint\(path, Checkpoint\(model, sigmas\)\)"
    with pytest.raises(TypeError, match=rf"^save_checkpoint: .* must be {call}, got ScoreMLP$"):
        save_checkpoint(path, network.model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=rf"^save_checkpoint: .* must be {call}, got OrderedDict$"):
        save_checkpoint(path, network.model.state_dict())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^save_checkpoint: path must be .* first, got Checkpoint"):
        save_checkpoint(network, network)  # type: ignore[arg-type]
    save_checkpoint(path, network)
    for device in ("nonsense", "cuda:77"):
        with pytest.raises(
            ValueError, match=r"^load_checkpoint: device must be a device that is there, got "
        ):
            load_checkpoint(path, device=device)


def test_without_safetensors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"^save_checkpoint: needs safetensors: pip install"):
        save_checkpoint(path, None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=r"^load_checkpoint: needs safetensors: pip install"):
        load_checkpoint(path)


def test_a_chain_that_diverges_is_warned_of_at_the_callers_line() -> None:
    net = fastscore.nn.ScoreMLP(2, hidden=(4,))
    checkpoint = fastscore.Checkpoint(net, [2.0, 1.0], {"step_size": 1e15})
    with pytest.warns(UserWarning, match="The chain diverges where") as caught:
        checkpoint.sample(2, seed=0)
    assert caught[0].filename == __file__
