"""The command line: info, demo, sample."""

import os
import subprocess
import sys

import numpy
import pytest
import torch
from PIL import Image

import fastscore
from fastscore import Checkpoint, save_checkpoint
from fastscore.apps.cli import main, model_kwargs_of
from fastscore.apps.info import info


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


def test_sample_with_another_setting(checkpoint, tmp_path):
    out = tmp_path / "a.npy"
    command = ["sample", str(checkpoint), "-n", "3", "-o", str(out), "--seed", "1"]
    assert main([*command, "--set", "steps_per_sigma=4", "--set", "convention=full"]) == 0
    settings = {"steps_per_sigma": 4, "convention": "full"}
    want = fastscore.load_checkpoint(checkpoint).sample(3, seed=1, **settings)
    assert torch.equal(torch.as_tensor(numpy.load(out)), want)


@pytest.mark.filterwarnings("ignore:.*at the highest noise level")  # untrained
def test_sample_with_another_sampler(checkpoint, tmp_path, capsys):
    out = tmp_path / "a.npy"
    command = ["sample", str(checkpoint), "-n", "3", "-o", str(out), "--seed", "1"]
    more = ["--sampler", "probability_flow", "--steps", "4", "--set", "solver=dpmpp_2m_sde"]
    assert main([*command, *more, "--set", "clip_denoised=[0, 1]"]) == 0
    loaded = fastscore.load_checkpoint(checkpoint)
    settings = {"solver": "dpmpp_2m_sde", "steps": 4, "clip_denoised": (0, 1)}
    want = loaded.sample(3, sampler="probability_flow", seed=1, **settings)
    assert torch.equal(torch.as_tensor(numpy.load(out)), want)
    assert main([*command, "--sampler", "probability_flow", "--set", "solver=rk5"]) == 2
    assert "solver must be one of 'euler'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*at the highest noise level")
def test_steps_of_a_sampler_that_is_stored(tmp_path):
    path, out = tmp_path / "net.safetensors", tmp_path / "a.npy"
    net = fastscore.nn.ScoreMLP(2, hidden=(4,))
    stored = Checkpoint(net, fastscore.sde.VE(0.1, 2.0), {"steps": 9}, sampler="reverse_sde")
    save_checkpoint(path, stored)
    assert (
        main(["sample", str(path), "-n", "2", "-o", str(out), "--seed", "0", "--steps", "3"]) == 0
    )
    want = fastscore.load_checkpoint(path).sample(2, seed=0, steps=3)
    assert torch.equal(torch.as_tensor(numpy.load(out)), want)


def test_sample_png(checkpoint, tmp_path):
    outs = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.npz"]
    for out in outs:
        more = ["--range", "-1", "1"] if out.stem == "b" else []
        assert (
            main(["sample", str(checkpoint), "-n", "4", "-o", str(out), "--seed", "1", *more]) == 0
        )
    images = torch.from_numpy(numpy.load(outs[2])["samples"])
    for out, lo in zip(outs, [0.0, -1.0], strict=False):
        picture = Image.open(out)
        assert picture.mode == "L"
        assert picture.size == (76, 76)  # 2 x (8 + 1) + 1 pixels, four times as large
        want = tmp_path / "want.png"
        fastscore.save_grid(want, images, value_range=(lo, 1.0), zoom=4)
        assert out.read_bytes() == want.read_bytes()
        assert out.stat().st_mode == want.stat().st_mode == outs[2].stat().st_mode


def test_sample_in_colour(tmp_path):
    path, out = tmp_path / "net.safetensors", tmp_path / "a.png"
    net = fastscore.nn.ScoreConvNet(3, 32, base_channels=8)
    save_checkpoint(path, Checkpoint(net, [1.0, 0.1], {"steps_per_sigma": 1}))
    assert main(["sample", str(path), "-n", "3", "-o", str(out)]) == 0
    assert Image.open(out).mode == "RGB"
    assert Image.open(out).size == (67, 67)  # as large as they are


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A checkpoint whose network a module of the current directory makes."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cli_networks.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, size):\n"
        "        super().__init__()\n"
        "        self.mean = torch.nn.Parameter(torch.full((3, size, size), 0.5))\n"
        "    def forward(self, x, sigma):\n"
        "        return (self.mean - x) / sigma.reshape(-1, 1, 1, 1) ** 2\n"
    )
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    from cli_networks import Net

    path = tmp_path / "net.safetensors"
    names = {"builder": "cli_networks:Net", "arguments": {"size": 2}, "data_shape": (3, 2, 2)}
    save_checkpoint(path, Checkpoint(Net(2), [1.0, 0.01], {"step_size": 1e-4}, **names))
    yield path
    sys.modules.pop("cli_networks")


def test_sample_from_ones_own_network(own, tmp_path, capsys):
    assert main(["sample", str(own), "-n", "2", "-o", "x.png"]) == 2
    message = capsys.readouterr().err
    assert "--build must be given as --build MODULE:FUNCTION" in message
    assert 'it names "cli_networks:Net"' in message
    for build in (["--build"], ["--build", "cli_networks:Net"]):
        out = tmp_path / "mine" / "x.png"
        # A process of its own, in whose path the current directory is not.
        code = "import sys; sys.path.remove(''); from fastscore.apps.cli import main; main()"
        command = [sys.executable, "-c", code, "sample", str(own), "-o", "x.png", *build]
        root = os.path.dirname(os.path.dirname(fastscore.__file__))
        env = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert "wrote 64 samples to x.png" in done.stdout, done.stderr
        assert Image.open(out).getpixel((17, 17)) == (128, 128, 128)
        out.unlink()


CLASSES = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.means = torch.nn.Parameter(torch.tensor([[-5.0], [5.0]]))
    def forward(self, x, sigma, label, scale=None):
        assert scale is None or scale.dtype == torch.float32
        return (self.means[label] - x) / sigma[:, None] ** 2
"""


def test_sample_of_classes(tmp_path, capsys, monkeypatch):
    (tmp_path / "class_networks.py").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from class_networks import Net

    shape = {"data_shape": (1,), "builder": "class_networks:Net"}
    save_checkpoint("net.safetensors", Checkpoint(Net(), [1.0, 0.01], {"step_size": 1e-4}, **shape))
    command = ["sample", "net.safetensors", "-n", "5", "-o", "x.npy", "--seed", "0"]
    assert main([*command, "--build"]) == 2
    message = capsys.readouterr().err
    assert "model_kwargs={'label': ...} (on the command line: --with NAME=VALUE)" in message
    more = ["--with", "label=0,1", "--with", "scale=0.5", "--batch-size", "2"]
    assert main([*command, *more, "--build"]) == 0
    assert numpy.load("x.npy").round().tolist() == [[-5], [5], [-5], [5], [-5]]
    assert main([*command, "--with", "label=7", "--build"]) == 2
    assert (
        "out of bounds for dimension 0 with size 2), maybe at what model_kwargs"
        in capsys.readouterr().err
    )
    sys.modules.pop("class_networks")


def test_numbers_for_the_network_are_taken_as_they_are():
    given = model_kwargs_of("sample", ["a=9007199254740993,-1", "b=1,0.5"], 3, torch.device("cpu"))
    assert given["a"].tolist() == [9007199254740993, -1, 9007199254740993]  # no float has it
    assert given["b"].dtype == torch.float32
    assert given["b"].tolist() == [1, 0.5, 1]


def nothing_done(monkeypatch):
    monkeypatch.setattr(Checkpoint, "sample", lambda *a, **k: pytest.fail("work done"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "missing"}, "there is no file missing"),
        ({"-n": "0"}, "-n must be at least 1, got 0"),
        ({"-o": "out.jpg"}, "must end in .npy or .npz or .png"),
        ({"-o": "missing/out.npz"}, "the directory missing does not exist"),
        ({"--device": "nonsense"}, "sample: device must be a device that is there, got nonsense"),
        ({"--range": ["1", "0"]}, "--range must be a pair (lo, hi) with lo < hi, got (1.0, 0.0)"),
        ({"--with": "label"}, "--with must be NAME=VALUE or NAME=VALUE,VALUE"),
        ({"--with": "label=a"}, "--with must be NAME=VALUE or NAME=VALUE,VALUE"),
        ({"--with": "1=1"}, "--with must be NAME=VALUE or NAME=VALUE,VALUE"),
        (
            {"--set": "steps=3"},
            "--set must be NAME=VALUE with a setting of annealed_langevin (",
        ),
        (
            {"--steps": "20"},
            "--steps must be left out for annealed_langevin, which takes N steps at each of its 3 "
            "noise levels (--set steps_per_sigma=N, or another sampler: --sampler "
            "probability_flow --steps N), got 20",
        ),
        (
            {"--steps": "20", "--sampler": "consistent_annealed_langevin"},
            "which takes a step at each of its 3 noise levels (another sampler: ",
        ),
        ({"--steps": "0", "--sampler": "reverse_sde"}, "--steps must be at least 1, got 0"),
        (
            {"--steps": "2", "--sampler": "reverse_sde", "--set": "steps=3"},
            "--steps must be left out where there is --set steps=, got 2",
        ),
        ({"--sampler": "gibbs"}, "--sampler must be one of 'annealed_langevin', "),
        (
            {"--sampler": "reverse_sde", "--set": "steps_per_sigma=3"},
            "--set must be NAME=VALUE with a setting of reverse_sde (",
        ),
        ({"--set": "steps_per_sigma"}, "--set must be NAME=VALUE with a setting of"),
        ({"--batch-size": "0"}, "--batch-size must be at least 1, got 0"),
        ({"--build": "nonsense"}, 'build must be a name "package.module:function"'),
    ],
)
def test_sample_says_what_is_wrong_before_any_work(
    checkpoint, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    nothing_done(monkeypatch)
    args = {"checkpoint": str(checkpoint), "-n": "2", "-o": "out.npz"} | change
    words = [args.pop("checkpoint")]
    for name, value in args.items():
        words += [name, *([value] if isinstance(value, str) else value)]
    assert main(["sample", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_sample_on_cuda_without_cuda(checkpoint, tmp_path, capsys):
    out = str(tmp_path / "a.npz")
    assert main(["sample", str(checkpoint), "-o", out, "--device", "cuda"]) == 2
    expected = "fastscore sample: device must be a device that is there, got cuda ("
    assert capsys.readouterr().err.startswith(expected)


def test_sample_of_what_has_no_shape_or_is_no_image(tmp_path, capsys, monkeypatch):
    nothing_done(monkeypatch)
    path, png = str(tmp_path / "net.safetensors"), str(tmp_path / "a.png")
    save_checkpoint(path, Checkpoint(fastscore.nn.ScoreMLP(2), [1.0, 0.1]))
    assert main(["sample", path, "-o", png]) == 2
    assert (
        "a .npy or .npz file for samples of shape (2,), which are no images"
        in capsys.readouterr().err
    )
    net = torch.nn.Linear(2, 2)
    builder = {"builder": "torch.nn:Linear", "arguments": {"in_features": 2, "out_features": 2}}
    save_checkpoint(path, Checkpoint(net, [1.0, 0.1], **builder))
    assert main(["sample", path, "-o", str(tmp_path / "a.npz"), "--build"]) == 2
    assert "checkpoint must be one that says data_shape=" in capsys.readouterr().err


# ---- optional packages ---------------------------------------------------------------------------


def without(monkeypatch, *modules):
    for module in modules:
        for name in [n for n in sys.modules if n == module or n.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)


def on_a_terminal(monkeypatch, answer=True):
    monkeypatch.setattr("sys.stderr.isatty", lambda: answer, raising=False)


def test_a_bar_is_shown_where_it_can_be(checkpoint, tmp_path, capsys, monkeypatch):
    sample = ["sample", str(checkpoint), "-n", "1", "-o", str(tmp_path / "a.npz")]
    on_a_terminal(monkeypatch, False)
    for more, shown in [([], False), (["--progress"], True), (["--no-progress"], False)]:
        assert main([*sample, *more]) == 0
        assert ("7/7" in capsys.readouterr().err) == shown
    on_a_terminal(monkeypatch)
    for more, shown in [([], True), (["--no-progress"], False)]:
        assert main([*sample, *more]) == 0
        assert ("7/7" in capsys.readouterr().err) == shown
    without(monkeypatch, "tqdm")
    for more in ([], ["--no-progress"]):
        assert main([*sample, *more]) == 0
        assert capsys.readouterr().err == ""
    nothing_done(monkeypatch)
    assert main([*sample, "--progress"]) == 2
    expected = "fastscore sample: --progress needs tqdm: pip install tqdm\n"
    assert capsys.readouterr().err == expected


@pytest.mark.filterwarnings("ignore:.*at the highest noise level")
def test_the_demo_without_a_bar_needs_no_tqdm(tmp_path, capsys, monkeypatch):
    without(monkeypatch, "tqdm")
    on_a_terminal(monkeypatch)
    demo = ["demo", "--out", str(tmp_path), "--iterations", "2", "--samples", "4"]
    for more in ([], ["--no-progress"]):
        assert main([*demo, *more]) == 0
    monkeypatch.setattr("fastscore.apps.demo.run.load_digits", lambda: pytest.fail("work done"))
    assert main([*demo, "--progress"]) == 2
    assert "fastscore demo: --progress needs tqdm: pip install tqdm\n" in capsys.readouterr().err


def test_what_is_missing_is_said_at_once_and_first(checkpoint, tmp_path, capsys, monkeypatch):
    nothing_done(monkeypatch)
    monkeypatch.setattr("fastscore.apps.demo.run.load_digits", lambda: pytest.fail("work done"))
    without(monkeypatch, "safetensors", "PIL", "sklearn", "matplotlib")
    assert main(["sample", str(checkpoint), "-o", str(tmp_path / "a.png")]) == 2
    needs = "needs safetensors and pillow: pip install safetensors pillow\n"
    assert capsys.readouterr().err == f"fastscore sample: {needs}"
    assert main(["sample", str(checkpoint), "-o", str(tmp_path / "a.npz")]) == 2
    assert "needs safetensors: pip install safetensors\n" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    error = capsys.readouterr().err
    needed = "scikit-learn, safetensors, pillow and matplotlib"
    assert error.startswith(f"fastscore demo: needs {needed}: ")
    assert error.endswith(": pip install scikit-learn safetensors pillow matplotlib\n")
    assert not (tmp_path / "demo").exists()


def test_info_and_bench_need_nothing_optional(tmp_path):
    code = """if True:
        import sys
        for name in ("tqdm", "safetensors", "PIL", "sklearn", "matplotlib", "scipy", "pytest"):
            sys.modules[name] = None
        from fastscore.apps.cli import main, model_kwargs_of
        import fastscore.apps.bench, fastscore.apps.bench.suite
        assert main(["info"]) == 0
        assert main(["bench", "--quick", "--op", "langevin_step_", "--out", sys.argv[1]]) == 0
        """
    root = os.path.dirname(os.path.dirname(fastscore.__file__))
    run = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
