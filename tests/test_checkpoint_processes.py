"""Checkpoints in continuous time: the process is stored, and every sampler can be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from own_networks import Net, draw
from safetensors import safe_open
from safetensors.torch import save_file

import fastscore
from fastscore import Checkpoint, load_checkpoint, probability_flow, reverse_sde, save_checkpoint
from fastscore.sde import DDPM, VE, VP, Cosine, ProcessScore, RectifiedFlow, SubVP

SIGMAS = fastscore.geometric_sigmas(2.0, 0.1, 5)
PROCESSES = [
    VE(0.02, 5.0),
    VP(0.2, 10.0),
    SubVP(),
    Cosine(0.01),
    DDPM(torch.linspace(0.02, 0.1, 50)),
    RectifiedFlow(),
]


# Networks here are not trained.
pytestmark = pytest.mark.filterwarnings("ignore:.*(at the highest|which) noise level")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


class InTime(Net):
    """One that can be called at time 0."""

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return super().forward(x, sigma + 1)


def saved(path: Path, *args: Any, **kwargs: Any) -> Checkpoint:
    save_checkpoint(path, Checkpoint(*args, **{"data_shape": (2,), **kwargs}))
    return load_checkpoint(path, model=type(args[0])())


# ---- what is stored ----------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_a_process_comes_back(process: Any, path: Path) -> None:
    net = draw(InTime())
    loaded = saved(path, net, process, {"steps": 4, "solver": "euler"})
    assert loaded.process == process
    assert loaded.sigmas is None
    assert loaded.sampler == "probability_flow"
    assert loaded.conditioning == loaded.model.conditioning == process.conditioning
    assert loaded.model.sigma_range == pytest.approx(process.sigma_range)
    want = probability_flow(net, process, shape=(3, 2), steps=4, solver="euler", seed=1)
    assert torch.equal(loaded.sample(3, seed=1), want)


@pytest.mark.parametrize(
    ("how", "what"),
    [("time", "v"), ("time", "velocity"), ("sigma", "v"), ("log_sigma", "eps"), ("time", "x0")],
)
def test_how_a_network_of_a_process_is_called_comes_back(how: str, what: str, path: Path) -> None:
    convention = {"conditioning": how, "prediction": what}
    scale = {"time_scale": 999.0} if how == "time" else {}
    loaded = saved(
        path, draw(Net()), VP(), {"steps": 3}, sampler="reverse_sde", **convention, **scale
    )
    assert (loaded.conditioning, loaded.prediction) == (how, what)
    assert loaded.time_scale == scale.get("time_scale")
    assert getattr(loaded.model, "time_scale", None) == scale.get("time_scale")
    options = {**convention, **scale, "steps": 3, "shape": (3, 2), "seed": 1}
    assert torch.equal(loaded.sample(3, seed=1), reverse_sde(draw(Net()), VP(), **options))


def test_noise_levels_and_a_process_together(path: Path) -> None:
    net, own = draw(Net()), VE(0.2, 2.0)
    loaded = saved(path, net, SIGMAS, {"steps_per_sigma": 2}, process=own)
    assert (loaded.sampler, loaded.process) == ("annealed_langevin", own)
    want = fastscore.annealed_langevin(net, SIGMAS, shape=(3, 2), steps_per_sigma=2, seed=1)
    assert torch.equal(loaded.sample(3, seed=1), want)
    want = reverse_sde(net, own, shape=(3, 2), steps=5, seed=1)
    assert torch.equal(loaded.sample(3, seed=1, sampler="reverse_sde", steps=5), want)
    assert loaded.model.sigma_range == pytest.approx((0.1, 2.0))  # that it was trained on


def test_a_network_that_counts_its_own_levels(path: Path) -> None:
    class ByIndex(Net):
        def forward(self, x: Any, index: Any) -> Any:
            assert index.dtype == torch.int64
            return -x / (1 + SIGMAS[index, None] ** 2)

    net, flow = ByIndex(), {"sampler": "probability_flow"}
    save_checkpoint(path, Checkpoint(net, SIGMAS, conditioning="index", data_shape=(2,)))
    loaded = load_checkpoint(path, model=ByIndex())
    options = {"steps": 4, "seed": 1}
    want = probability_flow(
        net, VE(float(SIGMAS[-1]), float(SIGMAS[0])), shape=(3, 2), conditioning="index",
        sigmas=SIGMAS, **options,
    )  # fmt: skip
    assert torch.equal(loaded.sample(3, **flow, **options), want)


# ---- other samplers and processes than the stored ones -----------------------------------------


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "euler"])
def test_noise_levels_alone_make_a_process(solver: str, path: Path) -> None:
    net, flow = draw(Net()), {"sampler": "probability_flow", "solver": solver, "steps": 6}
    loaded = saved(path, net, SIGMAS, {"steps_per_sigma": 2, "init": "uniform"})
    # The stored settings are those of another sampler.
    levels = VE(float(SIGMAS[-1]), float(SIGMAS[0]))
    want = probability_flow(net, levels, shape=(3, 2), solver=solver, steps=6, seed=1)
    assert torch.equal(loaded.sample(3, seed=1, **flow), want)


def test_settings_that_are_stored_are_used_by_their_sampler(path: Path) -> None:
    net, settings = draw(Net()), {"steps": 3, "clip_denoised": (-1, 1)}
    loaded = saved(path, net, SIGMAS, settings, sampler="reverse_sde")
    named = loaded.sample(3, seed=1, sampler="reverse_sde")
    assert torch.equal(loaded.sample(3, seed=1), named)
    levels = VE(float(SIGMAS[-1]), float(SIGMAS[0]))
    assert torch.equal(named, reverse_sde(net, levels, shape=(3, 2), seed=1, **settings))
    assert loaded.sample(3, sampler="annealed_langevin").shape == (3, 2)


def test_another_process(path: Path) -> None:
    net, flow = draw(Net()), {"sampler": "probability_flow", "steps": 5, "seed": 1}
    loaded = saved(path, net, SIGMAS)
    own = VE(0.15, 1.5)
    want = probability_flow(net, own, shape=(3, 2), steps=5, seed=1)
    assert torch.equal(loaded.sample(3, sde=own, **flow), want)
    # On the part of it that the network knows, loaded or not.
    within = {"conditioning": "sigma", "sigma_range": (float(SIGMAS[-1]), float(SIGMAS[0]))}
    want = probability_flow(net, VP(), shape=(3, 2), steps=5, seed=1, **within)
    for checkpoint in (loaded, Checkpoint(net, SIGMAS, data_shape=(2,))):
        assert torch.equal(checkpoint.sample(3, sde=VP(), **flow), want)
    # A network that is told the time of its own process is asked in that, and by noise levels too.
    loaded = saved(path, net, VP(), prediction="eps", conditioning="time")
    score = ProcessScore(net, VP(), prediction="eps", conditioning="time")
    want = probability_flow(score, own, shape=(3, 2), steps=5, seed=1)
    assert torch.equal(loaded.sample(3, sde=own, **flow), want)
    both = saved(path, net, SIGMAS, process=VP(), conditioning="time", prediction="eps")
    want = fastscore.annealed_langevin(score, SIGMAS, shape=(3, 2), seed=1)
    assert torch.equal(both.sample(3, seed=1), want)


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "fields", "message"),
    [
        ((VP(),), {"process": VE()}, "process must be None where the second argument is one, got"),
        ((VP(),), {"sampler": "annealed_langevin"}, "sigmas must be given for sampler='annealed_l"),
        (
            (None,),
            {"sampler": "reverse_sde"},
            "sigmas must be given for sampler='reverse_sde', two",
        ),
        (([1.0],), {"sampler": "reverse_sde"}, "two noise levels .*, got one noise level"),
        ((SIGMAS,), {"conditioning": "time"}, r"conditioning must be .*sde_loss, reverse_sde and"),
        ((SIGMAS,), {"prediction": "velocity"}, "prediction must be one of 'score', 'eps', 'x0' h"),
        ((SIGMAS,), {"time_scale": 999}, 'time_scale must be None but with conditioning="time", g'),
        ((VP(),), {"time_scale": -1}, "time_scale must be positive"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit(args: Any, fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^Checkpoint: .*{message}"):
        Checkpoint(Net(), *args, **fields)


def test_what_is_no_process() -> None:
    with pytest.raises(TypeError, match=r"^Checkpoint: process must be a process.*\(VP\(\) is one"):
        Checkpoint(Net(), VP)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Checkpoint: process must be .*noise scales go to"):
        Checkpoint(Net(), process=[1.0, 0.1])


def test_a_process_of_ones_own_samples_but_has_no_name_to_store(path: Path) -> None:
    class Linear:
        conditioning = "sigma"

        def alpha(self, t: Any) -> Any:
            return torch.ones_like(t)

        def sigma(self, t: Any) -> Any:
            return 2 * t

    class Named(VE):
        pass

    for process in (Linear(), Named(0.1, 2.0)):
        checkpoint = Checkpoint(Net(), process, {"steps": 3}, data_shape=(2,))
        assert checkpoint.sample(3).shape == (3, 2)
        message = r"^save_checkpoint: process must be one of fastscore.sde: VE, VP, .*, got "
        with pytest.raises(ValueError, match=message):
            save_checkpoint(path, checkpoint)
        assert not path.exists()


def test_samplers_that_have_not_what_they_need(path: Path) -> None:
    of_process, of_levels = Checkpoint(Net(), VE(), data_shape=(2,)), Checkpoint(Net(), SIGMAS)
    message = r"^Checkpoint.sample: sigmas must be given for sampler='annealed_langevin', which "
    with pytest.raises(ValueError, match=message):
        of_process.sample(3, sampler="annealed_langevin")
    with pytest.raises(ValueError, match=r"^Checkpoint.sample: sampler must be one of 'annealed"):
        of_process.sample(3, sampler="gibbs")
    message = r"^Checkpoint.sample: sde must be None for annealed_langevin, which takes no process"
    with pytest.raises(ValueError, match=message):
        of_levels.sample(3, sde=VP())
    with pytest.raises(TypeError, match=r"^Checkpoint.sample: sde must be a process.*noise scales"):
        of_process.sample(3, sde=SIGMAS)
    with pytest.raises(TypeError, match=r"^probability_flow: there is no option 'steps_per_sigma'"):
        of_process.sample(3, steps_per_sigma=3)


def test_a_network_of_another_time_scale(path: Path) -> None:
    net = Net()
    net.time_scale = 999
    save_checkpoint(path, Checkpoint(net, VP(), data_shape=(2,)))
    other = draw(Net())
    other.time_scale = 1000
    before = other.outer.weight.clone()
    message = "load_checkpoint: model must be called, and predict, as the one that was saved"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, model=other)
    assert torch.equal(other.outer.weight, before)


def change(path: Path, format: str | None = None, **entries: Any) -> None:
    """The same file with other metadata."""
    with safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        record = json.loads(file.metadata()["fastscore"])
    record |= entries
    if format is not None:
        record["format"] = format
        for name in ("process", "time_scale"):
            record.pop(name)
    save_file(tensors, str(path), metadata={"fastscore": json.dumps(record)})


@pytest.mark.parametrize(
    "entries",
    [
        {"process": {"process": "Gibbs"}},
        {"process": {"process": "VE", "sigma_min": 3.0, "sigma_max": 1.0}},
        {"process": {"process": "VP", "surplus": 1}},
        {"process": {"process": "DDPM"}},
        {"process": {"beta_min": 1.0}},
        {"process": 3},
        {"time_scale": "x"},
        {"time_scale": -1.0},
        {"process": None},
    ],
    ids=str,
)
def test_damaged_processes(entries: dict[str, Any], path: Path) -> None:
    save_checkpoint(path, Checkpoint(Net(), VP()))
    change(path, **entries)
    with pytest.raises(ValueError, match=r"^load_checkpoint: path must be an undamaged checkpoint"):
        load_checkpoint(path, model=Net())


def test_files_of_the_second_format_load(path: Path) -> None:
    save_checkpoint(path, Checkpoint(draw(Net()), SIGMAS, data_shape=(2,)))
    change(path, "fastscore-checkpoint-2")
    loaded = load_checkpoint(path, model=Net())
    assert loaded.process is None
    want = fastscore.annealed_langevin(draw(Net()), SIGMAS, shape=(3, 2), seed=1)
    assert torch.equal(loaded.sample(3, seed=1), want)


def test_repr_says_the_process() -> None:
    text = repr(Checkpoint(Net(), VP(), {"steps": 9}, time_scale=999, prediction="v"))
    assert text == (
        "Checkpoint(Net, VP(beta_min=0.1, beta_max=20.0), probability_flow(steps=9), "
        "prediction='v', time_scale=999)"
    )
    text = repr(Checkpoint(Net(), VP(), conditioning="sigma"))
    assert text.endswith("probability_flow(), conditioning='sigma')")


def test_log_densities_of_what_is_stored(path: Path) -> None:
    """As the function itself, called as the network wants it: of noise levels, and of a process."""
    torch.manual_seed(0)
    x, net = torch.randn(4, 2), fastscore.nn.ScoreMLP(2, hidden=(8, 8))
    save_checkpoint(path, Checkpoint(net, SIGMAS))
    found = load_checkpoint(path).log_likelihood(x)
    expected = fastscore.log_likelihood(net, x, VE(0.1, 2.0), sigma_range=(0.1, 2.0))
    torch.testing.assert_close(found.log_prob, expected.log_prob)
    timed = InTime()
    checkpoint = saved(path, timed, VP(), time_scale=7.0)
    expected = fastscore.log_likelihood(timed, x, VP(), conditioning="time", time_scale=7.0)
    torch.testing.assert_close(checkpoint.log_likelihood(x).log_prob, expected.log_prob)
    bare = Checkpoint(net, None, {"step_size": 0.1, "steps": 3}, sampler="langevin")
    with pytest.raises(ValueError, match=r"Checkpoint.log_likelihood: sigmas must be given for a "):
        bare.log_likelihood(x)
