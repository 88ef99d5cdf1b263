"""Models that know their own divergence.

A model whose Jacobian has a trace that can be written down may have a method beside its
``forward``, which the exact trace then takes instead of differentiating it:

    output_and_divergence(x, ...) -> (output of x's shape and dtype, divergence (batch,) float64)

It is called as the model is. :class:`fastscore.scores.GaussianMixture` and
:class:`fastscore.scores.Parzen` have one, and so do the adapters around what has one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fastscore._support.checks import describe, fail, fail_type
from fastscore._support.wrappers import WRAPPED

METHOD = "output_and_divergence"
OF_ADAPTERS = "_with_divergence"  # what theirs is made of, for their one ``forward``
Known = Callable[..., tuple[Tensor, Tensor]]


def known_divergence(model: Any) -> Known | None:
    """A model's own ``output_and_divergence``, called as the model is; None where it has none.

    Also that of the network within the wrappers of training, of a ``partial`` with its arguments
    by name, and of the model whose ``forward`` this is. A subclass that has changed ``forward``
    and not the method has none, nor has a module with hooks, which may change its output.

    Example:
        >>> import torch, fastscore
        >>> mixture = fastscore.scores.GaussianMixture([1.0], [[0.0, 0.0]], 4.0)
        >>> known_divergence(mixture)(torch.ones(1, 2))
        (tensor([[-0.2500, -0.2500]]), tensor([-0.5000], dtype=torch.float64))
        >>> print(known_divergence(fastscore.nn.ScoreMLP(2)))
        None
    """
    if isinstance(model, partial):
        method = None if model.args else known_divergence(model.func)
        return None if method is None else partial(method, **model.keywords)
    if isinstance(model, MethodType):
        owner, name = model.__self__, model.__name__
        own = name in ("forward", "__call__") and getattr(type(owner), name, None)
        return known_divergence(owner) if own is model.__func__ else None
    if isinstance(model, nn.Module):
        if _has_hooks(model):
            return None
        inner = _within(model)
        if inner is None:
            return _method_of_module(model)
        # Another's subclass may do something else with the network that it wraps.
        ours = type(model).__module__.split(".")[0] in ("torch", "fastscore")
        return known_divergence(inner) if ours else None
    if isinstance(model, type):
        return None
    if type(model) is FunctionType:
        method = vars(model).get(METHOD)
        return method if callable(method) else None
    return _method_of_object(model)


def _within(model: nn.Module) -> Any:
    """What a wrapper of training is around, one layer; None where there is none."""
    if isinstance(model, (AveragedModel, DataParallel, DistributedDataParallel)):
        return model.module
    return next((model._modules[name] for name in WRAPPED if name in model._modules), None)


def _method_of_module(model: nn.Module) -> Known | None:
    """That of a module, if it is of what the module computes."""
    if METHOD in vars(model):
        return _attribute(model)
    changed = {"forward", "score", "__call__"}
    if changed & vars(model).keys():
        return None
    for kind in type(model).__mro__:
        if {METHOD, OF_ADAPTERS} & vars(kind).keys():
            return _attribute(model)
        if kind is nn.Module or changed & vars(kind).keys():
            return None
    return None


def _method_of_object(model: Any) -> Known | None:
    """That of its own class, which is called as it is; not one that it hands on from elsewhere."""
    for kind in type(model).__mro__:
        if METHOD in vars(kind):
            return _attribute(model)
        if "__call__" in vars(kind):
            return None
    return None


def _attribute(model: Any) -> Known | None:
    method: Known | None = getattr(model, METHOD, None)
    return method


def _has_hooks(model: nn.Module) -> bool:
    of_all = hooks._global_forward_hooks or hooks._global_forward_pre_hooks
    return bool(model._forward_hooks or model._forward_pre_hooks or of_all)


class Keeping:
    """A model of its ``output_and_divergence``: returns the output and keeps the divergence."""

    divergence: Tensor

    def __init__(self, method: Known) -> None:
        """See the class."""
        self.method = method

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output at x."""
        output, self.divergence = self.method(x, *args, **kwargs)
        return output

    def checked(self, fn: str, x: Tensor) -> Tensor:
        """The divergence of the last call, on behalf of ``fn``: one number for each sample."""
        found: Any = self.divergence
        expected = f"one whose {METHOD} returns a divergence of shape ({len(x)},)"
        if not isinstance(found, Tensor):
            fail_type(fn, "model", expected, found)
        if found.shape != x.shape[:1] or not found.is_floating_point():
            fail(fn, "model", expected, describe(found))
        return found
