"""How a model is called: everything but the point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fastscore._support.checks import check_output
from fastscore._support.inference import recordable
from fastscore._support.lending import lend, lent
from fastscore._support.model_kwargs import per_batch
from fastscore._support.terms import summed


class Call(NamedTuple):
    """A model and what it is called with beside x, on behalf of a public function."""

    fn: str  # the function's name, for messages
    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed
    of_loss: bool = False  # whether the model is to be trained by what comes of it

    def __call__(self, x: Tensor) -> Any:
        """The model's output at x; what it does to its arguments nobody sees."""
        return summed(self.model(lend(x), *map(lent, self.args), **lent(self.kwargs)))

    def output(self, x: Tensor) -> Tensor:
        """The same, a tensor of x's shape."""
        return check_output(self.fn, self(x), x)

    def recordable(self) -> Call:
        """With arguments that autograd can take part in, also those made in inference mode."""
        args = tuple(map(recordable, self.args))
        same = all(arg is own for arg, own in zip(args, self.args, strict=True))
        return self if same else self._replace(args=args)

    def changed(self, batch: int, change: Callable[[Tensor], Tensor]) -> Call:
        """For points of another batch: ``change`` makes of what belongs to the samples theirs."""
        kwargs = per_batch(self.kwargs, batch, change)
        return self._replace(args=tuple(map(change, self.args)), kwargs=kwargs)
