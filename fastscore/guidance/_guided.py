"""What every guided score has: the score that it is made of, and how that one is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastscore._support.checks import check_callable, check_floating, fail
from fastscore._support.wrappers import said_by
from fastscore.conditioning import as_sigma, call_model
from fastscore.scores import NetworkScore
from fastscore.scores.adapters import Wrapper


class Guided(Wrapper):
    """A score of (x, sigma) given something about the sample, made of one given nothing.

    Attributes:
        score: the score that it is made of, of (x, sigma).
        data_shape, sigma_range: those of the model, None where it has none.
        conditioning, prediction: "sigma" and "score": how it is called itself, what it returns.
    """

    def __init__(self, score: Callable[..., Any]) -> None:
        """See the class."""
        super().__init__("score", score)
        self.score = score_of_levels(type(self).__name__, score)

    @property
    def inner(self) -> Any:
        """The score that it is made of."""
        return self.score

    def _levels(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The noise level of each sample, (batch,), of checked arguments."""
        check_floating(type(self).__name__, "x", x, min_dim=1)
        return as_sigma(type(self).__name__, x, sigma)

    def _score_at(self, x: Tensor, level: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        """The score that it is made of, of x's shape."""
        name = type(self).__name__
        return call_model(name, self.score, x, level, level, "sigma", model_kwargs)


def score_of_levels(fn: str, model: Any) -> Callable[..., Any]:
    """A model as a score of (x, sigma): itself, or in an adapter for what it says of itself."""
    check_callable(fn, "score", model)
    conditioning, prediction = said_by(model, "conditioning"), said_by(model, "prediction")
    if conditioning == "time" or prediction == "velocity":
        fail(
            fn,
            "score",
            "a model of (x, sigma): fastscore.sde.ProcessScore(net, process) makes one of a "
            "network of (x, t)",
            f"one of conditioning={conditioning!r}, prediction={prediction!r}",
        )
    if conditioning in (None, "sigma") and prediction in (None, "score"):
        return model
    return NetworkScore(model)
