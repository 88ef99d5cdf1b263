"""What there is is found: by ``dir``, ``help`` and ``repr``, without reading the source."""

from __future__ import annotations

import functools
import inspect
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import fastscore
from fastscore._support.signatures import written
from fastscore.nn import EMA, ScoreConvNet, ScoreMLP
from fastscore.scores import DenoiserScore, EnergyScore, EpsScore, GaussianMixture, Parzen

ROOMS = [
    "derivatives", "evaluation", "guidance", "losses", "nn", "operators", "ops", "random",
    "reference", "samplers", "schedules", "scores", "sde",
]  # fmt: skip


def public(module: ModuleType = fastscore) -> Iterator[tuple[str, Any]]:
    """All public functions and classes, each once, by a name."""
    seen: set[int] = set()

    def walk(module: ModuleType) -> Iterator[tuple[str, Any]]:
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if inspect.ismodule(thing):
                yield from walk(thing)
            else:
                yield f"{module.__name__}.{name}", thing

    return walk(module)


FUNCTIONS = {name: thing for name, thing in public() if not isinstance(thing, type)}
CLASSES = {name: thing for name, thing in public() if isinstance(thing, type)}


# ---- names ---------------------------------------------------------------------------------------


def test_dir_shows_the_public_names_only() -> None:
    assert set(dir(fastscore)) == {*fastscore.__all__, "__version__"}
    assert set(ROOMS) < set(fastscore.__all__)
    star: dict[str, Any] = {}
    exec("from fastscore import *", star)
    assert set(star) - {"__builtins__"} == set(fastscore.__all__)
    assert all(star[name] is getattr(fastscore, name) for name in fastscore.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_dir_of_a_room_shows_its_public_names_only(room: str) -> None:
    module = getattr(fastscore, room)
    assert set(dir(module)) == set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_what_the_rooms_hold_is_there_after_one_import() -> None:
    code = """if True:
        import fastscore
        for name in ["evaluation.sliced_wasserstein", "checkpoint.load_checkpoint", "nn.EMA",
                     "losses.DSMLoss", "samplers.langevin", "schedules.noise_scales",
                     "derivatives.jvp", "scores.Parzen", "reference.perturb", "conditioning"]:
            thing = fastscore
            for part in name.split("."):
                thing = getattr(thing, part)
        print("right")
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "right", run.stderr


# ---- maps ----------------------------------------------------------------------------------------


def named(doc: str | None) -> list[str]:
    """The names that a map mentions, but for calls, as in ``model(x)``."""
    return re.findall(r"``([A-Za-z_][\w.]*)``", doc or "")


def test_the_docstring_of_the_package_is_a_map_of_it() -> None:
    doc = fastscore.__doc__ or ""
    assert len(doc.splitlines()) <= 45  # a screen
    assert set(named(doc)) >= set(fastscore.__all__), "every public name stands in the map"
    for name in set(named(doc)) - {"help"}:
        rooms = [fastscore, *(getattr(fastscore, room) for room in ROOMS), fastscore.checkpoint]
        assert any(hasattr(room, name) for room in rooms), name


@pytest.mark.parametrize(
    "room",
    [
        "derivatives",
        "evaluation",
        "guidance",
        "losses",
        "nn",
        "operators",
        "samplers",
        "scores",
    ],
)
def test_the_docstring_of_a_room_is_a_map_of_it(room: str) -> None:
    module = getattr(fastscore, room)
    assert set(named(module.__doc__)) >= set(module.__all__)
    assert ">>>" in (module.__doc__ or "")


def test_help_of_the_package_begins_with_the_map() -> None:
    text = pydoc.plain(pydoc.render_doc(fastscore))
    assert text.index("annealed_langevin") < text.index("PACKAGE CONTENTS") < 5000


# ---- help of functions and classes ---------------------------------------------------------------

CLUTTER = re.compile(r"['\"]|collections\.|typing\.|torch\._C|torch\.Tensor")


def assert_plain(name: str, signature: inspect.Signature) -> None:
    """No annotation is in quotes or carries its module; defaults may be in quotes."""
    for parameter in signature.parameters.values():
        shown = str(parameter.replace(default=inspect.Parameter.empty))
        assert not CLUTTER.search(shown), f"{name}: {shown}"
    shown = str(signature.replace(parameters=[]))
    assert not CLUTTER.search(shown), f"{name}: {shown}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_of_functions_read_as_they_are_written(name: str) -> None:
    function = FUNCTIONS[name]
    signature = inspect.signature(function)
    assert_plain(name, signature)
    assert all(p.annotation is not p.empty for p in signature.parameters.values()), name


def own_classes(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if base.__module__.startswith("fastscore.")]


@pytest.mark.parametrize("name", CLASSES)
def test_signatures_of_classes_read_as_they_are_written(name: str) -> None:
    cls = CLASSES[name]
    if not issubclass(cls, int):  # an enumeration is not made by calling it
        assert_plain(name, inspect.signature(cls))
    for base in own_classes(cls):
        for method, member in vars(base).items():
            if inspect.isfunction(member):
                assert_plain(f"{name}.{method}", inspect.signature(member))


@pytest.mark.parametrize("name", CLASSES)
def test_help_of_a_class_is_about_the_class(name: str) -> None:
    cls = CLASSES[name]
    inherited = {"__init__", "extra_repr", "forward"} & set(dir(nn.Module))
    for method in inherited if issubclass(cls, nn.Module) else ():
        words = inspect.getdoc(getattr(nn.Module, method))
        assert inspect.getdoc(getattr(cls, method)) not in (None, "", words), f"{name}.{method}"
    for base in own_classes(cls):
        for method, member in vars(base).items():
            shown = method == "__init__" or not method.startswith("_")
            if method == "__init__" and getattr(base, "__dataclass_params__", None):
                shown = not base.__dataclass_params__.init  # generated: it says its fields
            if shown and isinstance(member, FunctionType | property | staticmethod | classmethod):
                assert member.__doc__, f"{name}.{method}"
    # The class's own come first, and in the library's words.
    text = pydoc.plain(pydoc.render_doc(cls))
    own = text.partition("inherited from torch.")[0]
    assert inspect.cleandoc(cls.__doc__ or "").splitlines()[0] in own
    for words in ("Initialize internal Module state", "extra representation of the module"):
        assert words not in own


def test_written_annotations_keep_their_meaning() -> None:
    from typing import get_type_hints

    hints = get_type_hints(fastscore.geometric_sigmas)
    assert (hints["n"], hints["return"]) == (int, torch.Tensor)
    assert repr(written("a.B | None")) == "a.B | None" == written("a.B | None")
    assert written(inspect.Parameter.empty) is inspect.Parameter.empty
    assert repr(written(None | torch.Generator)) == "None | torch.Generator"
    assert repr(written(torch.dtype)) == "torch.dtype"


# ---- repr ----------------------------------------------------------------------------------------


def score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return -x


@pytest.mark.parametrize(
    ("thing", "shown"),
    [
        (EpsScore(score), "EpsScore(conditioning='sigma', net=score)"),
        (
            EpsScore(score, conditioning="index", sigmas=[2.0, 1.0]),
            "EpsScore(conditioning='index', levels=2, net=score)",
        ),
        (EnergyScore(score, conditioning="none"), "EnergyScore(conditioning='none', energy=score)"),
        (
            EnergyScore(functools.partial(score)),
            "EnergyScore(conditioning='sigma', energy=functools.partial(<function score at",
        ),
        (
            DenoiserScore(nn.Identity(), conditioning="log_sigma"),
            "DenoiserScore(\n  conditioning='log_sigma'\n  (net): Identity()",
        ),
        (GaussianMixture([1.0], [0.0], 1.0), "GaussianMixture(components=1, data_shape=())"),
        (Parzen([0.0, 1.0]), "Parzen(samples=2, data_shape=(), variance=0.0)"),
        (EMA(ScoreMLP(2), 0.99), "EMA(decay=0.99, updates=0, model=ScoreMLP)"),
        (fastscore.shared(torch.zeros(3)), "shared(a torch.float32 tensor of shape (3,) on cpu)"),
        (fastscore.shared(5), "shared(5)"),
        (fastscore.DSMLoss([2.0, 1.0]), "DSMLoss(levels=2, weighting='sigma2'"),
        (ScoreMLP(2, hidden=(4,)), "ScoreMLP(\n  noise_conditional=True, data_std=1.0\n  (layers)"),
        (ScoreConvNet(1, 8), "ScoreConvNet(\n  data_shape=(1, 8, 8), data_std=0.5\n  (embed)"),
    ],
)
def test_repr_says_what_matters(thing: object, shown: str) -> None:
    assert repr(thing).startswith(shown)


def test_repr_of_an_average_counts_its_updates() -> None:
    ema = EMA(torch.compile(ScoreMLP(2)))
    ema.update()
    assert repr(ema) == "EMA(decay=0.999, updates=1, model=ScoreMLP)"
