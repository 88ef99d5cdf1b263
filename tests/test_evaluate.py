"""The command fastscore evaluate."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import fastscore
from fastscore import Checkpoint, save_checkpoint
from fastscore.apps.cli import main
from fastscore.apps.evaluate import Task, evaluate, numbers
from fastscore.apps.evaluate.report import edges_of, lines_of, save_histogram, save_numbers
from fastscore.evaluation import auroc, discrete_log_likelihood, paired_difference

NETWORKS = """
import torch

class Gaussian(torch.nn.Module):
    def __init__(self, mean=0.5, size=2, broken=False):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.full((size,), mean))
        self.data_shape = (size,)
        self.broken = broken
    def forward(self, x, sigma, shift=None):
        mean = self.mean if shift is None else self.mean + shift[:, None]
        score = (mean - x) / (0.04 + sigma[:, None] ** 2)
        return score.where(x < 5, torch.nan) if self.broken else score

class Timed(torch.nn.Module):
    conditioning = "time"
    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(2))
    def forward(self, x, t):  # N(0, I) at every time
        return self.mean - x

class Labelled(Gaussian):
    def forward(self, x, sigma, label):
        return super().forward(x, sigma, label.to(x.dtype))
"""
SDE = fastscore.sde.VE(0.02, 50.0)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with networks of N(0.5, 0.04 I), a better and a worse one, and with data."""
    (tmp_path / "evaluated_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from evaluated_networks import Gaussian

    for name, arguments in (("good", {}), ("bad", {"mean": 0.7}), ("broken", {"broken": True})):
        how = {"builder": "evaluated_networks:Gaussian", "arguments": arguments}
        save_checkpoint(f"{name}.safetensors", Checkpoint(Gaussian(**arguments), SDE, **how))
    x = 0.5 + 0.2 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    numpy.savez("floats.npz", samples=x.numpy())
    number = (16 * x).round().clamp(0, 16).to(torch.uint8)
    numpy.savez("levels.npz", labels=numpy.zeros(60), x=number.numpy())
    far = (number.int() + 5).clamp(0, 16)
    numpy.save("far.npy", far.numpy())
    numpy.save("grid.npy", number.numpy() / 16)
    yield tmp_path
    sys.modules.pop("evaluated_networks")


def run(*words: str, seed: str = "1") -> int:
    return main(["evaluate", *words, "--seed", seed, "--no-progress", "--build"])


def said(text: str, name: str) -> tuple[float, ...]:
    """The numbers of the first line of that name."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    words = line.strip().removeprefix(name).split(" (")[0].split()
    return tuple(float(word) for word in words if word.replace(".", "").lstrip("-").isdigit())


# ---- what comes out ------------------------------------------------------------------------------


def test_the_density_of_floats_is_the_closed_form(place, capsys):
    assert run("good.safetensors", "floats.npz", "--rtol", "1e-5", "--divergence", "exact") == 0
    x = torch.from_numpy(numpy.load("floats.npz")["samples"]).double()
    variance = 0.04 + 0.02**2
    log_prob = -((x - 0.5).square() / variance + math.log(2 * math.pi * variance)).sum(1) / 2
    text = capsys.readouterr().out
    first, *_ = text.splitlines()
    assert first == (
        "floats.npz: 60 samples of shape (2,); no --levels: the density itself, in the units of "
        "the data"
    )
    mean, error = said(text, "log density")
    assert mean == pytest.approx(float(log_prob.mean()), abs=0.05)
    assert error == pytest.approx(float(log_prob.std()) / math.sqrt(60), abs=0.01)
    bits, _ = said(text, "bits per dimension")
    assert bits == pytest.approx(-mean / 2 / math.log(2), abs=0.01)
    assert said(text, "evaluations")[0] > 6


def test_bits_are_those_of_the_library(place, capsys):
    words = ["good.safetensors", "levels.npz", "--levels", "17", "--draws", "2"]
    assert run(*words, "--save", "out.npz") == 0
    saved = numpy.load("out.npz")
    x = torch.from_numpy(numpy.load("levels.npz")["x"])
    model = fastscore.load_checkpoint("good.safetensors", build=True).model
    how: dict[str, Any] = {"conditioning": "sigma", "sigma_range": (0.02, 50.0)}
    want = discrete_log_likelihood(model, x, SDE, levels=17, draws=2, seed=1, **how)
    assert set(saved.files) == {"bits", "log_prob", "evaluations", "failed"}
    assert (saved["bits"] == want.bits.numpy()).all()
    assert (saved["log_prob"] == want.log_prob.numpy()).all()
    text = capsys.readouterr().out
    assert "60 samples of shape (2,); 17 levels on [0, 1], dequantised 2 times, the mean" in text
    expected = f"  bits per dimension {want.mean_bits:.4f} +- {want.stderr:.4f}"
    assert expected in text
    assert f"{float(want.evaluations.double().mean()):.1f} a sample" in text


def test_numbers_on_the_grid_are_those_of_the_levels(place, capsys):
    for file in ("levels.npz", "grid.npy"):
        assert run("good.safetensors", file, "--levels", "17", "--save", f"{file}.npz") == 0
    a, b = (numpy.load(f"{name}.npz")["bits"] for name in ("levels.npz", "grid.npy"))
    assert (a == b).all()


@pytest.mark.filterwarnings("ignore:.*at the highest noise level")  # 3 samples tell little of it
def test_bytes_have_256_levels(place, capsys):
    numpy.save("bytes.npy", numpy.full((3, 2), 128, numpy.uint8))
    assert run("good.safetensors", "bytes.npy", "--rtol", "1e-5") == 0
    text = capsys.readouterr().out
    assert "256 levels on [0, 1], dequantised once" in text
    expected = 8 + math.log2(2 * math.pi * 0.0404) / 2
    assert said(text, "bits per dimension")[0] == pytest.approx(expected, abs=0.02)


def test_outliers_and_another_network(place, capsys):
    words = ["good.safetensors", "levels.npz", "--levels", "17", "--against", "far.npy"]
    assert run(*words, "--compare", "bad.safetensors", "--save", "out.json", "-o", "out.png") == 0
    text = capsys.readouterr().out
    record = json.loads(Path("out.json").read_text())
    bits = {name: torch.tensor(v, dtype=torch.float64) for name, v in record["samples"].items()}
    told = auroc(bits["bits"], bits["against_bits"])
    assert told.value > 0.8
    assert said(text, "AUROC") == pytest.approx(tuple(told), abs=1e-4)
    gap = paired_difference(bits["bits"], bits["compare_bits"])
    assert gap.mean < -0.3
    assert said(text, "difference") == pytest.approx(tuple(gap), abs=1e-4)
    assert record["figures"]["auroc"] == {"value": told.value, "stderr": told.stderr}
    assert record["figures"]["difference"] == {"mean": gap.mean, "stderr": gap.stderr}
    assert record["settings"]["levels"] == 17
    assert record["figures"]["seed"] == 1
    assert gap.stderr < record["figures"]["compare"]["bits"]["stderr"]
    picture = Image.open("out.png")
    assert picture.size == (900, 525)
    assert len(picture.convert("L").getcolors(10000)) > 10
    assert run(*words, "--save", "again.json") == 0
    assert (
        json.loads(Path("again.json").read_text())["samples"]["bits"] == record["samples"]["bits"]
    )


def test_noise_is_the_same_for_both_networks_and_another_for_outliers(place):
    options = ["--levels", "17", "--against", "levels.npz", "--compare", "good.safetensors"]
    assert run("good.safetensors", "levels.npz", *options, "--save", "out.npz") == 0
    saved = numpy.load("out.npz")
    assert (saved["bits"] == saved["compare_bits"]).all()
    assert (saved["bits"] != saved["against_bits"]).all()


@pytest.mark.filterwarnings("ignore:log_likelihood")
@pytest.mark.filterwarnings("ignore:.*at the highest noise level")
def test_samples_that_are_given_up_are_named_and_left_out(place, capsys):
    net = fastscore.load_checkpoint("broken.safetensors", build=True)
    x = torch.full((5, 2), 0.5)
    x[3] = 6.0
    net.model.broken = True
    how = {"sigma_range": (0.02, 0.5)}
    net.model.sigma_range = how["sigma_range"]
    found = evaluate(net, x, Task(seed=0))
    assert found.data.failed.tolist() == [False, False, False, True, False]
    assert found.figures["data"]["failed"] == 1
    there = found.data.bits[~found.data.failed]
    assert found.figures["data"]["bits"]["mean"] == pytest.approx(float(there.mean()))
    names = {"data": "x.npy", "against": None, "compare": None}
    lines = lines_of(found, Task(), (2,), names)
    assert lines[-1] == "  given up           1: samples 3, left out of the means"
    save_numbers(Path("out.json"), found, Task())
    assert json.loads(Path("out.json").read_text())["samples"]["bits"][3] is None
    save_histogram(Path("out.png"), found, Task(), names)
    assert Path("out.png").stat().st_size > 1000


def test_what_else_the_network_takes(place, capsys):
    words = ["good.safetensors", "floats.npz", "--rtol", "1e-5", "--divergence", "exact"]
    assert run(*words, "--with", "shift=0.2", "--batch-size", "7", "--save", "a.npz") == 0
    assert run("bad.safetensors", *words[1:], "--save", "b.npz") == 0
    a, b = (numpy.load(f"{name}.npz")["bits"] for name in "ab")
    assert numpy.abs(a - b).max() < 1e-2
    assert run(*words, "--with", "shift=0,0.2", "--save", "c.npz") == 0
    c = numpy.load("c.npz")["bits"]
    assert numpy.abs(c[1::2] - b[1::2]).max() < 1e-2
    assert numpy.abs(c[::2] - b[::2]).max() > 0.1


@pytest.mark.filterwarnings("ignore:.*at the highest noise level")
def test_a_network_of_noise_levels_alone(tmp_path, capsys):
    path, data = tmp_path / "net.safetensors", tmp_path / "x.npy"
    net = fastscore.nn.ScoreMLP(2, hidden=(4,))
    save_checkpoint(path, Checkpoint(net, fastscore.geometric_sigmas(5.0, 0.1, 6)))
    numpy.save(data, numpy.random.default_rng(0).normal(size=(5, 2)))
    assert main(["evaluate", str(path), str(data), "--seed", "0"]) == 0
    text = capsys.readouterr().out
    x = torch.from_numpy(numpy.load(data)).float()
    model = fastscore.load_checkpoint(path).model
    want = fastscore.log_likelihood(model, x, fastscore.sde.VE(0.1, 5.0), seed=0)
    assert said(text, "log density")[0] == pytest.approx(float(want.log_prob.mean()), abs=0.01)
    numpy.save(data, numpy.zeros((1, 2)))
    assert main(["evaluate", str(path), str(data), "--seed", "0"]) == 0
    assert "+-" not in capsys.readouterr().out


def test_a_network_of_time(place, capsys):
    from evaluated_networks import Timed

    how = {"builder": "evaluated_networks:Timed"}
    vp, sampling = fastscore.sde.VP(), {"steps": 5, "solver": "heun"}
    save_checkpoint("timed.safetensors", Checkpoint(Timed(), vp, sampling, **how))
    assert run("timed.safetensors", "floats.npz", "--save", "out.npz") == 0
    x = torch.from_numpy(numpy.load("floats.npz")["samples"]).double()
    expected = -x.square().sum(1) / 2 - math.log(2 * math.pi)
    found = torch.from_numpy(numpy.load("out.npz")["log_prob"])
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


def test_a_network_that_takes_more_says_so(place, capsys):
    from evaluated_networks import Labelled

    how = {"builder": "evaluated_networks:Labelled", "data_shape": (2,)}
    save_checkpoint("labelled.safetensors", Checkpoint(Labelled(), SDE, **how))
    assert run("labelled.safetensors", "floats.npz") == 2
    message = "model_kwargs={'label': ...} (on the command line: --with NAME=VALUE)"
    assert message in capsys.readouterr().err


def test_bars_of_a_histogram():
    near, far = torch.linspace(0, 1, 100), torch.linspace(9, 10, 400)
    edges = edges_of([near, far])
    assert (edges[0], edges[-1]) == (0, 10)
    assert len(edges) == 201
    assert len(edges_of([near])) == 11
    one = edges_of([torch.ones(3), torch.ones(0)])
    assert one[0] < 1 < one[-1]
    assert edges_of([torch.ones(0)]) is None


# ---- what is refused -----------------------------------------------------------------------------


def nothing_done(monkeypatch):
    for name in ("log_likelihood", "discrete_log_likelihood"):
        monkeypatch.setattr(numbers, name, lambda *a, **k: pytest.fail("work done"))


ODD: dict[str, Any] = {
    "several.npz": {"a": numpy.zeros((2, 2)), "b": numpy.zeros((2, 2))},
    "none.npz": {},
    "objects.npz": {"x": numpy.array([[{}]], dtype=object)},
    "bools.npz": {"x": numpy.zeros((2, 2), bool)},
    "empty.npz": {"x": numpy.zeros((0, 2))},
    "nan.npz": {"x": numpy.array([[0.0, 1.0], [numpy.nan, 0.0]])},
    "single.npz": {"x": numpy.zeros((1, 2))},
    "wide.npz": {"x": numpy.zeros((3, 4))},
    "whole.npz": {"x": numpy.array([[0, 1], [3, 70]])},
}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"checkpoint": "missing"}, "there is no file missing"),
        ({"data": "missing.npz"}, "there is no file missing.npz"),
        ({"data": "good.safetensors"}, "the data must be .npy or .npz, got good.safetensors"),
        ({"data": "text.npy"}, "text.npy is not a file of numbers ("),
        ({"data": "several.npz"}, "several.npz must be a file with an array called samples or x, "
         "or with one alone, got a, b"),
        ({"data": "none.npz"}, "or with one alone, got one without any"),
        ({"data": "objects.npz"}, "objects.npz is not a file of numbers ("),
        ({"data": "bools.npz"}, "bools.npz must be whole or floating-point numbers, (samples, ..."),
        ({"data": "empty.npz"}, "empty.npz must be at least 1 sample, got (0, 2)"),
        ({"data": "nan.npz"}, "nan.npz must be finite everywhere, got NaN or infinity in sample 1"),
        ({"data": "wide.npz"}, "good.safetensors must be of data of shape (4,), as those given"),
        ({"data": "whole.npz"}, "--levels must be given for whole numbers of torch.int64 (bytes h"),
        ({"data": "whole.npz", "--levels": "17"}, "whole.npz must be integers of 0 to 16 (--levels "
         "says how many levels there are), got 70 in sample 1"),
        ({"--levels": "17"}, "floats.npz must be on the grid of 17 levels on [0, 1]: round it, or "
         "say the --levels and --range that it has, got"),
        ({"--levels": "1"}, "--levels must be at least 2, got 1"),
        ({"--range": ["1", "0"]}, "--range must be a pair (lo, hi) with lo < hi, got (1.0, 0.0)"),
        ({"--range": ["-1", "1"]}, "--range must be left out for data without --levels, got (-1"),
        ({"--draws": "2"}, "--draws must be left out for data without --levels, which are not"),
        ({"--draws": "0"}, "--draws must be at least 1, got 0"),
        ({"--probes": "0"}, "--probes must be at least 1, got 0"),
        ({"--rtol": "0"}, "--rtol must be positive, got 0.0"),
        ({"--divergence": "magic"}, "--divergence must be one of 'auto', 'exact', 'hutchinson'"),
        ({"--batch-size": "0"}, "--batch-size must be at least 1, got 0"),
        ({"--device": "nonsense"}, "device must be a device that is there, got nonsense"),
        ({"--with": "label"}, "--with must be NAME=VALUE or NAME=VALUE,VALUE"),
        ({"-o": "out.jpg"}, "must end in .png, got out.jpg"),
        ({"-o": "missing/out.png"}, "the directory missing does not exist"),
        ({"--save": "out.csv"}, "must end in .npz or .json, got out.csv"),
        ({"--against": "single.npz"}, "single.npz must be at least 2 samples, got (1, 2)"),
        ({"--against": "wide.npz"}, "wide.npz must be of samples of shape (2,), as those of f"),
        ({"--against": "whole.npz"}, "whole.npz must be floating-point numbers, as the data are"),
        ({"--against": "missing.npz"}, "there is no file missing.npz"),
        ({"--compare": "missing"}, "there is no file missing"),
        ({"--compare": "one.safetensors"}, "one.safetensors must be the checkpoint of a network "
         "with a process, or with two noise levels or more, got Checkpoint("),
        ({"data": "single.npz", "--compare": "bad.safetensors"}, "at least 2 samples, got (1, 2)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_any_work(place, capsys, monkeypatch, words, message):
    from evaluated_networks import Gaussian

    how = {"builder": "evaluated_networks:Gaussian"}
    save_checkpoint("one.safetensors", Checkpoint(Gaussian(), [1.0], {"step_size": 0.1}, **how))
    Path("text.npy").write_text("no numbers")
    for name, arrays in ODD.items():
        numpy.savez(name, **arrays)
    nothing_done(monkeypatch)
    args = {"checkpoint": "good.safetensors", "data": "floats.npz"} | words
    line = [args.pop("checkpoint"), args.pop("data")]
    for name, value in args.items():
        line += [name, *([value] if isinstance(value, str) else value)]
    assert run(*line) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastscore evaluate: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_what_is_missing_is_said_first(place, capsys, monkeypatch):
    nothing_done(monkeypatch)
    for module in ("safetensors", "matplotlib"):
        for name in [n for n in sys.modules if n == module or n.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
    assert run("good.safetensors", "missing.npz", "-o", "out.png") == 2
    needs = "needs safetensors and matplotlib: pip install safetensors matplotlib\n"
    assert capsys.readouterr().err == f"fastscore evaluate: {needs}"


def test_a_network_that_is_not_built_is_told_how(place, capsys, monkeypatch):
    nothing_done(monkeypatch)
    assert main(["evaluate", "good.safetensors", "floats.npz"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastscore evaluate: --build must be given as --build MODULE:FUNCTION")


def test_the_prior_of_other_data(place, capsys):
    """Their mean and spread, dequantised, are those of the latents' prior."""
    words = ["good.safetensors", "levels.npz", "--levels", "17"]
    assert run(*words, "--prior", "far.npy", "--save", "far.json") == 0
    far = json.loads(Path("far.json").read_text())
    assert far["settings"]["prior"] == "of data"
    data = torch.from_numpy(numpy.load("far.npy"))
    y = fastscore.dequantize(data, 17, seed=0).double()
    checkpoint = fastscore.load_checkpoint("good.safetensors", build=True)
    expected = discrete_log_likelihood(
        checkpoint.model,
        torch.from_numpy(numpy.load("levels.npz")["x"]),
        SDE,
        levels=17,
        seed=1,
        prior=(y.mean(0), y.std(0)),
    )
    assert far["samples"]["bits"] == pytest.approx(expected.bits.tolist())
    assert run(*words, "--prior", "floats.npz") == 2
    assert "floats.npz must be on the grid" in capsys.readouterr().err
