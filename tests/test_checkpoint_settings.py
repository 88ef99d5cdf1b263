"""What a checkpoint says of sampling: tried when it is saved, the same after it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from own_networks import Net, draw

import fastscore
from fastscore import Checkpoint, annealed_langevin, load_checkpoint, save_checkpoint
from fastscore.checkpoint._checkpoint import SAMPLERS

SIGMAS = fastscore.geometric_sigmas(2.0, 0.1, 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


def saved(path: Path, *args: Any, **kwargs: Any) -> Checkpoint:
    save_checkpoint(path, Checkpoint(*args, **kwargs))
    return load_checkpoint(path, model=Net())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"steps_per_sigma": 2, "step_size": 0.003, "convention": "full", "denoise": False},
        {"clamp": (-1.0, None), "init": "uniform"},
        {"clamp": [0, 1], "dtype": torch.float64},
        {"autocast": torch.bfloat16},
        {"step_size": "auto"},
    ],
    ids=str,
)
def test_settings_come_back(settings: dict[str, Any], path: Path) -> None:
    net = draw(Net())
    loaded = saved(path, net, SIGMAS, settings, data_shape=(2,))
    assert loaded.sampling == settings
    assert all(type(loaded.sampling[name]) is type(value) for name, value in settings.items())
    want = fastscore.annealed_langevin(net, SIGMAS, shape=(3, 2), seed=1, **settings)
    got = loaded.sample(3, seed=1)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


def test_numbers_of_numpy_are_numbers(path: Path) -> None:
    settings = {"steps_per_sigma": numpy.int64(2), "step_size": numpy.float32(0.5)}
    assert saved(path, Net(), SIGMAS, settings).sampling == {"steps_per_sigma": 2, "step_size": 0.5}


def test_the_other_samplers(path: Path) -> None:
    net = draw(Net())
    consistent = {"sampler": "consistent_annealed_langevin", "data_shape": (2,)}
    loaded = saved(path, net, SIGMAS, {"eta": 0.7}, **consistent)
    want = fastscore.consistent_annealed_langevin(net, SIGMAS, shape=(3, 2), seed=1, eta=0.7)
    assert torch.equal(loaded.sample(3, seed=1), want)

    settings = {"steps": 4, "step_size": [0.1, 0.1, 0.05, 0.01], "sigma": 0.5}
    loaded = saved(path, net, None, settings, sampler="langevin", data_shape=(2,))
    assert loaded.sigmas is None
    assert loaded.conditioning == "sigma"
    want = fastscore.langevin(net, shape=(3, 2), seed=1, **settings)
    assert torch.equal(loaded.sample(3, seed=1), want)


def test_a_model_of_one_density(path: Path) -> None:
    net = draw(torch.nn.Linear(2, 2))
    settings = {"steps": 3, "step_size": 0.1}
    checkpoint = Checkpoint(net, sampling=settings, sampler="langevin", data_shape=(2,))
    assert checkpoint.conditioning == "none"
    save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path, model=torch.nn.Linear(2, 2))
    assert loaded.conditioning == "none"
    assert loaded.model.conditioning == "none"
    assert torch.equal(
        loaded.sample(5, seed=0), fastscore.langevin(net, shape=(5, 2), seed=0, **settings)
    )


def test_conditioning_goes_to_the_sampler(path: Path) -> None:
    class ByIndex(Net):
        def forward(self, x: Any, sigma: Any) -> Any:
            assert sigma.dtype == torch.int64
            return -x

    save_checkpoint(path, Checkpoint(ByIndex(), SIGMAS, conditioning="index", data_shape=(2,)))
    loaded = load_checkpoint(path, model=ByIndex())
    assert loaded.conditioning == "index"
    assert loaded.sample(2).shape == (2, 2)


def test_prediction_is_kept_and_goes_to_the_sampler(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = saved(path, Net(), SIGMAS, prediction="eps", data_shape=(2,))
    assert loaded.prediction == "eps"
    given: dict[str, Any] = {}
    sampler: Any = lambda model, sigmas, **options: given.update(options)  # noqa: E731
    monkeypatch.setitem(SAMPLERS, "annealed_langevin", sampler)
    loaded.sample(3)
    assert given == {"conditioning": "sigma", "prediction": "eps", "shape": (3, 2)}


def test_options_of_a_run(path: Path) -> None:
    net = draw(Net())
    settings = {"steps_per_sigma": 2, "dtype": torch.float64}
    loaded = saved(path, net, SIGMAS, settings, data_shape=(2,))
    assert loaded.sample().shape == (64, 2)
    assert loaded.sample(0).shape == (0, 2)
    assert loaded.sample(shape=(5, 2)).shape == (5, 2)
    x = loaded.sample(3, seed=0, steps_per_sigma=1, dtype=torch.float32)
    assert torch.equal(x, fastscore.annealed_langevin(
        net, SIGMAS, shape=(3, 2), seed=0, steps_per_sigma=1
    ))  # fmt: skip
    start = torch.ones(4, 2)
    assert loaded.sample(x=start, seed=0).shape == (4, 2)
    final, states = loaded.sample(3, trajectory=[0, -1])
    assert states.shape == (2, *final.shape)
    for wrong in ({"shape": (5, 2)}, {"x": start}):
        with pytest.raises(ValueError, match="num_samples must be None when"):
            loaded.sample(3, **wrong)
    with pytest.raises(ValueError, match="num_samples must be at least 0, got -1"):
        loaded.sample(-1)
    with pytest.raises(TypeError, match="annealed_langevin: there is no option 'sead'"):
        loaded.sample(3, sead=0)
    with pytest.raises(ValueError, match="shape must be given"):
        Checkpoint(Net(), SIGMAS).sample(3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"step_per_sigma": 3}, TypeError, r"no option 'step_per_sigma' \(did you mean 'steps_per"),
        ({"steps_per_sigma": 0}, ValueError, "steps_per_sigma must be at least 1, got 0"),
        ({"steps_per_sigma": "3"}, TypeError, "steps_per_sigma must be an integer"),
        ({"convention": "hal"}, ValueError, "convention must be one of 'half', 'full', got 'hal'"),
        ({"step_size": -1.0}, ValueError, "step_size must be positive"),
        ({"step_size": torch.tensor(0.1)}, TypeError, r"sampling\['step_size'\] must be a number"),
        ({"clamp": lambda x: x}, TypeError, r"sampling\['clamp'\] must be a number, .*function"),
        ({"clamp": (1, 0)}, ValueError, r"clamp must be a pair \(lo, hi\) with lo <= hi"),
        ({"clamp": (float("inf"), None)}, ValueError, r"sampling\['clamp'\]\[0\] must be finite"),
        ({"init": "zeros"}, ValueError, "init must be one of"),
        ({"autocast": torch.int8}, ValueError, "autocast must be None, torch.bfloat16"),
        ({"dtype": torch.float16}, ValueError, "dtype must be torch.float32"),
        ({"eta": 0.5}, TypeError, "no option 'eta'"),
        ({"conditioning": "index"}, ValueError, r"given as Checkpoint\(..., conditioning="),
        ({"sigmas": [1.0]}, ValueError, r"given as Checkpoint\(..., sigmas="),
        ({"x": None}, ValueError, "not of a run as 'x' is"),
        *(
            ({name: None}, ValueError, f"not of a run as '{name}' is")
            for name in (
                *("shape", "num_samples", "seed", "generator", "callback", "model_kwargs", "known"),
                *("mask", "device", "progress", "trajectory", "start_step", "samples"),
                *("sample_offset", "cuda_graph"),
            )
        ),
    ],
)
def test_bad_settings_are_refused_when_saving(
    settings: Any, error: Any, message: str, path: Path
) -> None:
    checkpoint = Checkpoint(Net(), SIGMAS, settings)
    with pytest.raises(error, match=r"^save_checkpoint: sampling") as caught:
        save_checkpoint(path, checkpoint)
    assert caught.match(message)
    assert not path.exists()


@pytest.mark.parametrize(
    ("sampler", "settings", "message"),
    [
        ("consistent_annealed_langevin", {}, "missing 1 required keyword-only argument: 'eta'"),
        ("consistent_annealed_langevin", {"eta": 3.0}, "eta must be between"),
        ("langevin", {}, "missing 2 required keyword-only arguments: 'steps' and 'step_size'"),
        ("langevin", {"steps": 3, "step_size": [0.1]}, None),
        ("langevin", {"steps": 3, "step_size": [0.1, 0.2]}, "step_size must be of shape"),
    ],
)
def test_settings_of_other_samplers_are_tried(
    sampler: str, settings: Any, message: str | None, path: Path
) -> None:
    checkpoint = Checkpoint(Net(), SIGMAS, settings, sampler=sampler)
    if message is None:
        save_checkpoint(path, checkpoint)
        return
    with pytest.raises((TypeError, ValueError), match=r"^save_checkpoint: sampling must be") as e:
        save_checkpoint(path, checkpoint)
    assert e.match(message)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"sampler": "gibbs"}, ValueError, "sampler must be one of 'annealed_langevin', "),
        ({"sigmas": None}, ValueError, "sigmas must be given for sampler='annealed_langevin'"),
        ({"sigmas": [0.1, 1.0]}, ValueError, "sigmas must be strictly decreasing"),
        ({"sampling": [1]}, TypeError, "sampling must be a dictionary"),
        ({"arguments": [1]}, TypeError, "arguments must be a dictionary"),
        ({"conditioning": "class"}, ValueError, "conditioning must be one of"),
        ({"prediction": "v"}, ValueError, "prediction must be one of"),
        ({"data_shape": 3}, TypeError, "data_shape must be a sequence"),
        ({"data_shape": (0,)}, ValueError, "data_shape must be at least 1"),
        ({"builder": "make"}, ValueError, "builder must be a name"),
        ({"builder": Net}, TypeError, "builder must be a name"),
    ],
    ids=str,
)
def test_fields_are_checked(fields: Any, error: Any, message: str, path: Path) -> None:
    with pytest.raises(error, match=rf"^Checkpoint: {message}"):
        Checkpoint(Net(), **({"sigmas": SIGMAS} | fields))
    checkpoint = Checkpoint(Net(), SIGMAS)
    for name, value in fields.items():  # changed later
        setattr(checkpoint, name, value)
    with pytest.raises(error, match=rf"^save_checkpoint: {message}"):
        save_checkpoint(path, checkpoint)


def test_a_network_that_predicts_noise_has_noise_levels(path: Path) -> None:
    settings = {"steps": 3, "step_size": 0.1}
    checkpoint = Checkpoint(Net(), None, settings, sampler="langevin", prediction="eps")
    with pytest.raises(ValueError, match=r"^save_checkpoint: sampling must .*sigma must be a posi"):
        save_checkpoint(path, checkpoint)


def test_repr_says_what_matters() -> None:
    text = repr(Checkpoint(Net(), SIGMAS, {"steps_per_sigma": 3}))
    assert text == "Checkpoint(Net, 5 sigmas from 2 to 0.1, annealed_langevin(steps_per_sigma=3))"
    settings = {"steps": 3, "step_size": 0.1, "sigma": 0.5}
    checkpoint = Checkpoint(
        torch.nn.DataParallel(Net()), None, settings, sampler="langevin",
        conditioning="log_sigma", prediction="x0", builder="own_networks:make",
    )  # fmt: skip
    assert repr(checkpoint) == (
        "Checkpoint(Net, langevin(steps=3, step_size=0.1, sigma=0.5), conditioning='log_sigma', "
        "prediction='x0', builder='own_networks:make')"
    )


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_a_checkpoint_samples_with_its_prediction(path: Path, prediction: str) -> None:
    net = Net()
    save_checkpoint(path, Checkpoint(net, SIGMAS, prediction=prediction, data_shape=(2,)))
    loaded = load_checkpoint(path, model=Net())
    assert loaded.prediction == loaded.model.prediction == prediction
    want = annealed_langevin(net, SIGMAS, shape=(5, 2), seed=1, prediction=prediction)
    assert torch.equal(loaded.sample(5, seed=1), want)
    assert torch.equal(annealed_langevin(loaded.model, SIGMAS, num_samples=5, seed=1), want)


def test_a_checkpoint_of_an_adapter_is_one_of_a_score(path: Path) -> None:
    adapter = fastscore.scores.EpsScore(Net(), conditioning="log_sigma")
    checkpoint = Checkpoint(adapter, SIGMAS, data_shape=(2,))
    assert (checkpoint.conditioning, checkpoint.prediction) == ("sigma", "score")
    save_checkpoint(path, checkpoint)
    again = fastscore.scores.EpsScore(Net(), conditioning="log_sigma")
    drawn = load_checkpoint(path, model=again).sample(5, seed=1)
    assert torch.equal(drawn, annealed_langevin(adapter, SIGMAS, shape=(5, 2), seed=1))


def test_a_shape_said_by_a_wrapper_is_heard() -> None:
    wrapped = torch.nn.DataParallel(Net())
    wrapped.data_shape = (2,)
    assert Checkpoint(wrapped, SIGMAS).data_shape == (2,)
