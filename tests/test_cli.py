"""The command line: info, demo, sample."""

import json
import os
import subprocess
import sys

import numpy
import pytest
import torch
from PIL import Image

import fastscore
from fastscore.apps.cli import main
from fastscore.apps.demo import run_demo
from fastscore.apps.info import info
from fastscore.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    net = fastscore.nn.ScoreConvNet(1, 8, base_channels=8)
    sigmas = fastscore.geometric_sigmas(1.0, 0.1, 3)
    save_checkpoint(path, Checkpoint(net, sigmas, {"steps_per_sigma": 2}))
    return path


def read_only(path):
    """A directory that can't be written to, for root as well."""
    return "/proc" if os.geteuid() == 0 else (path.chmod(0o555) or path)


def test_info_names_the_build(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert fastscore.__version__ in text
    assert torch.__version__ in text
    assert f"{'cpu capability':<18} {info()['cpu_capability']}" in text
    assert info()["cpu_capability"] in info()["cpu_capabilities"]


def test_info_follows_the_capability_asked_for():
    run = [sys.executable, "-m", "fastscore", "info"]
    env = {**os.environ, "FASTSCORE_CPU_CAPABILITY": "default"}
    text = subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout
    assert f"{'cpu capability':<18} default" in text
    env["FASTSCORE_CPU_CAPABILITY"] = "sse9"
    failed = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "must be default, avx2 or avx512, got sse9" in failed.stderr


def test_sample_npz_is_reproducible(checkpoint, tmp_path, capsys):
    outs = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for out in outs:
        args = ["sample", str(checkpoint), "-n", "5", "-o", str(out), "--seed", "3"]
        assert main([*args, "--no-progress"]) == 0
    a, b = (numpy.load(out)["samples"] for out in outs)
    assert a.shape == (5, 1, 8, 8)
    assert (a == b).all()
    assert "wrote 5 samples" in capsys.readouterr().out


def test_sample_png(checkpoint, tmp_path):
    out = tmp_path / "a.png"
    assert main(["sample", str(checkpoint), "-n", "4", "-o", str(out), "--no-progress"]) == 0
    assert Image.open(out).size == (76, 76)  # 2 x (8 + 1) + 1 pixels, four times as large


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "missing"}, "there is no file missing"),
        ({"-n": "0"}, "-n must be at least 1, got 0"),
        ({"-o": "out.jpg"}, "must end in .npz or .png"),
        ({"-o": "missing/out.npz"}, "the directory missing does not exist"),
    ],
)
def test_sample_says_what_is_wrong_before_any_work(
    checkpoint, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fastscore, "annealed_langevin", lambda *a, **k: pytest.fail("work done"))
    args = {"checkpoint": str(checkpoint), "-n": "2", "-o": "out.npz"} | change
    assert main(["sample", args["checkpoint"], "-n", args["-n"], "-o", args["-o"]]) == 2
    assert message in capsys.readouterr().err


def test_sample_to_a_read_only_directory(checkpoint, tmp_path, capsys):
    tmp = tmp_path / "sealed"
    tmp.mkdir()
    out = os.path.join(read_only(tmp), "out.npz")
    assert main(["sample", str(checkpoint), "-o", out]) == 2
    assert "can't write to" in capsys.readouterr().err


def test_demo_to_a_missing_or_read_only_directory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastscore.apps.demo.run.load_digits", lambda: pytest.fail("work done"))
    assert main(["demo", "--out", str(tmp_path / "a" / "b")]) == 2
    assert "does not exist" in capsys.readouterr().err
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    assert main(["demo", "--out", str(read_only(sealed))]) == 2
    assert "can't write to" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "is not a directory" in capsys.readouterr().err


def test_demo_writes_what_it_says(tmp_path):
    out = tmp_path / "demo"
    said = []
    figures = run_demo(out, iterations=2, samples=4, progress=False, say=said.append)
    names = {"samples.png", "path.png", "checkpoint.safetensors", "figures.json"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["quality"]["frechet_real"] < figures["quality"]["frechet_noise"]
    assert min(figures["library_part"].values()) > 0
    assert Image.open(out / "path.png").size[0] == (4 * 9 + 1) * 4
    assert any("1500 digits" in line for line in said)
    drawn = tmp_path / "more.png"
    sample = ["sample", str(out / "checkpoint.safetensors"), "-n", "2", "-o", str(drawn)]
    assert main([*sample, "--no-progress"]) == 0
