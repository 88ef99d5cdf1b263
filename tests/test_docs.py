"""Every example in a docstring and in the README runs and prints what it says."""

import code
import doctest
import functools
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastscore

README = Path(__file__).parents[1] / "README.md"
MODULES = [
    module.name
    for module in pkgutil.walk_packages(fastscore.__path__, "fastscore.")
    if not module.name.endswith(("_C", "__main__"))
]


@pytest.mark.parametrize("name", ["fastscore", *MODULES])
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def public_names(module=fastscore):
    """The names of the package and of its rooms, as ``nn.EMA``."""
    for name in module.__all__:
        thing = getattr(module, name)
        yield f"{module.__name__}.{name}".removeprefix("fastscore.")
        if inspect.ismodule(thing) and hasattr(thing, "__all__"):
            yield from public_names(thing)


@pytest.mark.parametrize("name", list(public_names()))
def test_every_public_name_is_documented_with_an_example(name):
    thing = functools.reduce(getattr, name.split("."), fastscore)
    assert "__doc__" in vars(thing) or not isinstance(thing, type), f"{name} has its base's words"
    assert thing.__doc__, name
    if not callable(thing) or name.startswith("reference."):  # which has the words of ops
        return
    doc = thing.__doc__
    if other := re.match(r":func:`(\w+)` ", doc):  # a form of another function, which has one
        doc = getattr(importlib.import_module(thing.__module__), other[1]).__doc__
    assert ">>>" in doc, name


class Prompt(code.InteractiveConsole):
    """Python's plain prompt, which takes a line at a time; errors are raised."""

    def showtraceback(self):
        raise

    def showsyntaxerror(self, *args, **kwargs):
        raise


def test_readme_snippets_run_pasted_one_by_one(tmp_path, monkeypatch):
    """With few steps of training: what comes out is looked at by benchmarks/defaults.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    text = README.read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(re.findall(r"range\(\d000\)", text)) == 5
    prompt = Prompt()
    for snippet in snippets:
        for line in [*re.sub(r"range\(\d000\)", "range(20)", snippet).splitlines(), ""]:
            prompt.push(line)
    assert {p.name for p in tmp_path.iterdir()} == {
        "energy.safetensors",
        "moons.safetensors",
        "moons.png",
        "net.safetensors",
    }


def test_the_figures_of_the_example_are_those_that_were_measured():
    found = json.loads((README.parent / "benchmarks/results/readme.json").read_text())
    shown = [f"{value:.2g}" for value in found["frechet_distance"].values()]
    *first, last = (f"{float(value):.3f}".rstrip("0") for value in shown)
    expected = "[Here](benchmarks/results/readme.json) {}, {} and {}, and {} for".format(
        *first, last
    )
    assert expected in README.read_text()
    for drawn, words in zip(
        found["frechet_distance_in_time"],
        ("Their Fréchet distances are {}, {} and {}, for 0.012", "({}, {} and {}.)"),
        strict=True,
    ):
        shown = [f"{value:.2g}" for value in drawn.values()]
        assert words.format(*shown) in README.read_text()
    likely = found["likelihood"]
    words = f"{likely['mean_log_prob']:.2f} nats and {likely['auroc']:.2f} [here]"
    assert words in README.read_text()


def test_the_table_of_the_demo_is_what_it_wrote():
    found = json.loads((README.parent / "benchmarks/results/demo.json").read_text())
    rows = re.findall(r"\| (\d+) \| (\d+\.\d) \| (\d\.\d\d) \|\n", README.read_text())
    expected = [
        (str(row["evaluations"]), f"{row['seconds']:.1f}", f"{row['frechet_distance']:.2f}")
        for row in found["samplers"]
    ]
    assert rows == expected
    assert (
        f"(Training digits themselves: {found['quality']['frechet_real']:.2f};"
        in README.read_text()
    )
    rows = re.findall(r"\| ([a-z -]+) \| (\d\.\d{3}) ± (\d\.\d{3}) \|\n", README.read_text())
    assert rows == [
        (name, f"{row['bits']:.3f}", f"{row['stderr']:.3f}")
        for name, row in found["likelihood"]["bits_per_dim"].items()
    ]
    for name, area in found["likelihood"]["auroc"].items():
        assert f"{name} {area['value']:.3f} ± {area['stderr']:.3f}" in README.read_text()
    # And everything else that benchmarks/readme_demo.py writes there.
    script = README.parent / "benchmarks/readme_demo.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_of_pages_lead_somewhere(page):
    path = README.parent / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert links
    for link in links:
        assert (path.parent / link).exists(), link
