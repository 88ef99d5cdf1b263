"""Conditions that are left out in training now and then, for classifier-free guidance.

Ho and Salimans 2021, https://arxiv.org/abs/2207.12598: one network learns both the conditional and
the unconditional score where a part of the samples gets a null condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from torch import Tensor
from typing_extensions import Self

from fastscore._support.checks import check_number, fail
from fastscore._support.null import EXPECTED, check_null, without_conditions
from fastscore._support.options import Option
from fastscore.losses._times import uniform
from fastscore.random import Stream


class DropOptions(TypedDict, total=False):
    """Which conditions are left out."""

    drop: Annotated[
        float,
        Option(
            0.0,
            """for classifier-free guidance (Ho and Salimans 2021), the part of the samples, drawn
            by their seed, whose conditions are replaced by ``null``.""",
        ),
    ]
    null: Annotated[
        Mapping[str, Tensor | float] | None,
        Option(
            None,
            """what stands for no condition, by the names of ``model_kwargs``: a number, or a tensor
            of a sample's shape, as {"label": 10}. An entry that is replaced is a tensor
            (batch, ...).""",
        ),
    ]


@dataclass(frozen=True)
class Dropping:
    """The part of the samples whose conditions are dropped, and what stands in their place."""

    part: float = 0.0
    null: dict[str, Tensor | float] = field(default_factory=dict)

    @classmethod
    def of(cls, fn: str, options: DropOptions) -> Self:
        """Checked."""
        part, null = check_number(fn, "drop", options["drop"], minimum=0.0), options["null"]
        if part > 1:
            fail(fn, "drop", "a probability, at most 1", part)
        if null is None and part:
            fail(fn, "null", f"{EXPECTED}, with drop", None)
        checked = {} if null is None else check_null(fn, null)
        if part and not checked:
            fail(fn, "null", f"{EXPECTED}, with drop", "an empty one")
        return cls(part, checked)

    def tensors(self) -> dict[str, Tensor]:
        """What has to be where the data are, under names of its own."""
        numbered = {f"null_{i}": value for i, value in enumerate(self.null.values())}
        return {name: value for name, value in numbered.items() if isinstance(value, Tensor)}

    def with_tensors(self, moved: Mapping[str, Any]) -> Dropping:
        """With these in their place."""
        null = {n: moved.get(f"null_{i}", value) for i, (n, value) in enumerate(self.null.items())}
        return Dropping(self.part, null)

    def __call__(
        self, fn: str, model_kwargs: dict[str, Any], batch: int, key: Tensor, numbers: Any
    ) -> dict[str, Any]:
        """``model_kwargs`` without the conditions of the samples that the key draws."""
        if not self.part:
            return model_kwargs
        without = uniform(key, batch, Stream.DROP, **numbers) < self.part
        return without_conditions(fn, model_kwargs, self.null, batch, without)
