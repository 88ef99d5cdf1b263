"""Checkpoints: what is saved comes back, and nothing else is taken for one."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fastscore
from fastscore.nn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

SIGMAS = fastscore.geometric_sigmas(2.0, 0.1, 5)


@pytest.fixture(
    params=[
        lambda: fastscore.nn.ScoreMLP(3, hidden=(8, 8), activation="silu"),
        lambda: fastscore.nn.ScoreConvNet(1, 8, base_channels=8),
    ],
    ids=["mlp", "conv"],
)
def model(request):
    torch.manual_seed(0)
    net = request.param()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def test_round_trip(model, tmp_path):
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, Checkpoint(model, SIGMAS, {"steps_per_sigma": 3}))
    loaded = load_checkpoint(path)
    x = torch.randn(4, *model.data_shape)
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    assert torch.equal(loaded.model(x, sigma), model(x, sigma))
    assert torch.equal(loaded.sigmas, SIGMAS)
    assert loaded.sampling == {"steps_per_sigma": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_only_networks_that_can_be_rebuilt(tmp_path):
    with pytest.raises(TypeError, match=r"save_checkpoint: model must be one of .*Linear"):
        save_checkpoint(tmp_path / "x", Checkpoint(torch.nn.Linear(1, 1), SIGMAS))
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="load_checkpoint: there is no file"):
        load_checkpoint(tmp_path / "none")


def foreign(path):
    save_file({"a": torch.zeros(1)}, str(path))


def text(path):
    path.write_text("not a checkpoint")


def pickled(path):
    torch.save({"a": torch.zeros(1)}, path)


def truncated(path):
    save_checkpoint(path, Checkpoint(fastscore.nn.ScoreMLP(2, (4,)), SIGMAS))
    path.write_bytes(path.read_bytes()[:-10])


def other_version(path):
    save_file({"a": torch.zeros(1)}, str(path), metadata={"fastscore": '{"format": "other"}'})


@pytest.mark.parametrize("write", [foreign, text, pickled, truncated, other_version])
def test_refuses_a_file_that_is_not_its_own(write, tmp_path):
    path = tmp_path / "file"
    write(path)
    with pytest.raises(ValueError, match=r"load_checkpoint: path must be .*checkpoint"):
        load_checkpoint(path)


def test_refuses_damaged_weights(tmp_path):
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, Checkpoint(fastscore.nn.ScoreMLP(2, (4,)), SIGMAS))
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    save_file({"sigmas": SIGMAS, "model.odd": torch.zeros(1)}, str(path), metadata=metadata)
    with pytest.raises(ValueError, match="undamaged"):
        load_checkpoint(path)


def test_what_can_not_be_is_said_first(tmp_path: Path) -> None:
    class ScoreMLP(torch.nn.Linear):
        """Another's network of the same name."""

    sigmas = torch.tensor([1.0, 0.5])
    with pytest.raises(TypeError, match=r"^save_checkpoint: model must be"):
        save_checkpoint(tmp_path / "a.safetensors", Checkpoint(ScoreMLP(2, 2), sigmas))
    network = Checkpoint(fastscore.nn.ScoreMLP(2), sigmas)
    with pytest.raises(FileNotFoundError, match=r"^save_checkpoint: the directory"):
        save_checkpoint(tmp_path / "nowhere" / "a.safetensors", network)
    save_checkpoint(tmp_path / "a.safetensors", network)
    with pytest.raises(
        ValueError, match=r"^load_checkpoint: device must be a device that is there"
    ):
        load_checkpoint(tmp_path / "a.safetensors", device="nonsense")


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    checkpoint = Checkpoint(fastscore.nn.ScoreMLP(2), fastscore.geometric_sigmas(1.0, 0.1, 4))
    with pytest.raises(ImportError, match="save_checkpoint: needs safetensors: pip install"):
        save_checkpoint(tmp_path / "net.safetensors", checkpoint)
    with pytest.raises(ImportError, match="load_checkpoint: needs safetensors: pip install"):
        load_checkpoint(tmp_path / "net.safetensors")
