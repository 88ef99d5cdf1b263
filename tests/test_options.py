"""Options that functions share: known to ``help`` and ``inspect``, with their defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from samplers import gaussian_score
from typing_extensions import Unpack

import fastscore
from fastscore._support.common_options import SeedOptions
from fastscore._support.options import (
    Option,
    declared,
    hands_on_to,
    takes_options,
    with_options,
)
from fastscore.derivatives.hutchinson import DivergenceOptions
from fastscore.losses._options import DrawOptions, LossOptions
from fastscore.losses._sde_options import SDEDrawOptions, SDELossOptions
from fastscore.losses.classifier import ClassifierOptions
from fastscore.losses.dsm import DSMOptions
from fastscore.losses.score_matching import ScoreMatchingOptions
from fastscore.losses.ssm import SSMOptions
from fastscore.samplers._options import SamplerOptions

FUNCTIONS: list[tuple[Callable[..., Any], list[type]]] = [
    (fastscore.langevin, [SamplerOptions]),
    (fastscore.annealed_langevin, [SamplerOptions]),
    (fastscore.consistent_annealed_langevin, [SamplerOptions]),
    (fastscore.dsm_loss, [LossOptions, DSMOptions, DrawOptions]),
    (fastscore.ssm_loss, [LossOptions, SSMOptions, DrawOptions]),
    (fastscore.score_matching_loss, [LossOptions, ScoreMatchingOptions, DrawOptions]),
    (fastscore.sde_loss, [SDELossOptions, SDEDrawOptions]),
    (fastscore.classifier_loss, [ClassifierOptions, SDEDrawOptions]),
    (fastscore.ClassifierLoss, [ClassifierOptions]),
    (fastscore.DSMLoss, [LossOptions, DSMOptions]),
    (fastscore.SDELoss, [SDELossOptions]),
    (fastscore.SSMLoss, [LossOptions, SSMOptions]),
    (fastscore.ScoreMatchingLoss, [LossOptions, ScoreMatchingOptions]),
    (fastscore.divergence, [DivergenceOptions]),
    (fastscore.dequantize, [SeedOptions]),
]


@pytest.mark.parametrize(("function", "kinds"), FUNCTIONS, ids=lambda x: getattr(x, "__name__", ""))
def test_help_and_inspect_know_every_option(function: Callable[..., Any], kinds: Any) -> None:
    parameters = inspect.signature(function).parameters
    doc = inspect.getdoc(function) or ""
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = doc.index("Args:")
    end = len(doc) if isinstance(function, type) else doc.index("Returns:")
    for kind in kinds:
        for name, option in declared(kind).options.items():
            assert parameters[name].default == option.default, name
            assert parameters[name].annotation is not inspect.Parameter.empty, name
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, name
            assert doc.count(f"    {name}: ") == 1, name
            assert arguments < doc.index(f"    {name}: ") < end, name
    assert max(map(len, doc.splitlines())) <= 100


def test_samplers_know_their_own_options_and_the_trajectory() -> None:
    parameters = inspect.signature(fastscore.annealed_langevin).parameters
    assert list(parameters)[:3] == ["model", "sigmas", "x"]
    assert parameters["steps_per_sigma"].default == 5
    assert parameters["trajectory"].default is None
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'sigmas'"):
        fastscore.annealed_langevin(gaussian_score)
    with pytest.raises(TypeError, match="eta"):
        fastscore.consistent_annealed_langevin(gaussian_score, [2.0, 1.0], shape=(2, 2))


class Options(TypedDict, total=False):
    size: Annotated[int, Option(3, "how large.")]


@takes_options(Options)
def area(x: int, *, scale: int = 1, **options: Unpack[Options]) -> int:
    """The area.

    Args:
        x: a length.
        scale: a factor.

    Returns:
        An area.
    """
    return x * scale * options["size"]


def test_options_are_filled_in_listed_and_refused() -> None:
    assert area(2) == 6
    assert area(2, size=5, scale=2) == 20
    assert str(inspect.signature(area)).startswith(
        "(x: int, *, scale: int = 1, size: int = 3) -> int"
    )
    assert "        scale: a factor.\n        size: how large.\n\n    Returns:" in str(area.__doc__)
    with pytest.raises(TypeError, match=r"^area: there is no option 'sice' \(did you mean 'size'"):
        area(2, sice=3)
    with pytest.raises(TypeError, match=r"^area: there is no option 'zzz'$"):
        area(2, zzz=3)


@hands_on_to(area)
def volume(height: int, **options: int) -> int:
    """By the area."""
    return height * area(3, **options)


def test_options_of_another_function_are_handed_on_or_refused() -> None:
    assert volume(2) == 18
    assert volume(2, size=5, scale=2) == 60
    expected = "(height: int, *, scale: int = 1, size: int = 3) -> int"
    assert str(inspect.signature(volume)) == expected
    with pytest.raises(
        TypeError, match=r"^volume: there is no option 'sice' \(did you mean 'size'"
    ):
        volume(2, sice=3)


@pytest.mark.parametrize("doc", [None, "No section.", "Args:\n    x: one."])
def test_docstrings_of_other_shapes(doc: str | None) -> None:
    listed = with_options(doc, Options)
    if doc is None or "Args" not in doc:
        assert listed == doc
    else:
        assert listed == doc + "\n    size: how large."
