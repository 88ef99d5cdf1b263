"""A model's failure in this library's words, where its reason can be told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastscore._support.reach import modules_of
from fastscore._support.wrappers import parameters_of, unwrapped

# What PyTorch says where operands have several dtypes,
_MIXED_DTYPES = re.compile(
    "same dtype|expected scalar type|expect parameter to have scalar type|should be the same"
    "|does not match weight dtype"
)
_HALF = (torch.bfloat16, torch.float16)
# and where an index is not a whole number: an embedding, a table, one_hot, a list.
_WANTS_INDEX = re.compile(
    "indices.*[Ll]ong|int32 or int64 for index|int32/int64 for index|long tensor for index"
    "|index tensor of type LongTensor|converted to an index"
)

# What Python says where a call does not fit a function's parameters,
_WRONG_CALL = re.compile(
    r"(?P<name>.+)\(\) (missing \d+ required (positional|keyword-only) arguments?: (?P<missing>.+)"
    r"|takes .+ positional arguments? but \d+ (was|were) given"
    r"|got an unexpected keyword argument (?P<unknown>'\w+'))"
)
# and PyTorch where tensors do not fit one another, or an index its table, or are none.
_WRONG_SHAPE = re.compile("size of tensor|[Ss]izes of tensors|same number of dimensions")
_WRONG_ARGUMENT = re.compile(
    f"{_WRONG_SHAPE.pattern}|must be Tensor|must match|shape|out of range|out of bounds|'indices'"
)


@contextmanager
def explained(
    fn: str,
    model: Callable[..., Any],
    x: Tensor,
    conditioning: str,
    model_kwargs: dict[str, Any] | None = None,
    *,
    by_index: bool = True,
) -> Iterator[None]:
    """A failure of the model's is raised in this library's words where its reason can be told.

    ``by_index`` says whether ``fn`` can call a model with indices.
    """
    try:
        yield
    except Exception as error:
        explain(fn, model, x, conditioning, model_kwargs, error, by_index=by_index)
        raise


def explain(
    fn: str,
    model: Callable[..., Any],
    x: Tensor,
    conditioning: str,
    model_kwargs: dict[str, Any] | None,
    error: Exception,
    *,
    by_index: bool = True,
) -> None:
    """Raise a failure of the model's in this library's words where its reason can be told."""
    message = str(error)
    explain_dtypes(fn, model, x, message, error)
    explain_call(fn, model, conditioning, message, error)
    tensors = [v for v in (model_kwargs or {}).values() if isinstance(v, Tensor)]
    floating = any(v.is_floating_point() for v in tensors)  # which may be what is no index
    level = conditioning in ("sigma", "log_sigma", "time")
    if level and not floating and _WANTS_INDEX.search(message):
        expected = 'conditioning must be "index" for a model that takes the index of a level'
        if not by_index:
            expected = f"model must be one of noise levels, for {fn} gives no indices"
        raise ValueError(f"{fn}: {expected}, got {conditioning!r}") from error
    explain_arguments(fn, model, x, conditioning, model_kwargs or {}, message, error)


def explain_call(fn: str, model: Any, conditioning: str, message: str, error: Exception) -> None:
    """Say so where the model's parameters are not those that it is called with."""
    function = getattr(unwrapped(model), "forward", model)
    found = _WRONG_CALL.match(message) if isinstance(error, TypeError) else None
    if found is None or found["name"] != getattr(function, "__qualname__", None):
        return
    if found["unknown"]:
        names = [n for n in parameters_of(model) if not n.startswith("**")]
        names = names[1 if conditioning == "none" else 2 :]
        takes = f"takes {', '.join(names)} by name" if names else "takes nothing by name"
        raise TypeError(f"{fn}: the model {takes}, got {found['unknown']}") from error
    if found["missing"]:
        given = ", ".join(f"{name}: ..." for name in re.findall(r"'\w+'", found["missing"]))
        raise TypeError(f"{fn}: the model takes more, by name: model_kwargs={{{given}}}") from error
    if conditioning != "none":
        raise TypeError(
            f'{fn}: conditioning must be "none" for a model of x alone, got {conditioning!r} '
            f"({message})"
        ) from error


def explain_arguments(
    fn: str,
    model: Any,
    x: Tensor,
    conditioning: str,
    model_kwargs: dict[str, Any],
    message: str,
    error: Exception,
) -> None:
    """Name the arguments that may be what the model failed at."""
    if type(error) not in (RuntimeError, TypeError, IndexError):
        return
    if not _WRONG_ARGUMENT.search(message):
        return
    index = bool(_WANTS_INDEX.search(message))
    odd = [_odd(name, value, len(x), index) for name, value in model_kwargs.items()]
    if "NoneType" in message:
        left_out = parameters_of(model)[1 if conditioning == "none" else 2 :]
        odd += [f"{name!r}, which is not given" for name in left_out if name not in model_kwargs]
    found = [text for text in odd if text]
    if found:
        what = f"what model_kwargs holds for a batch of {len(x)}: {', '.join(found)}"
    elif conditioning != "none" and _WRONG_SHAPE.search(message):
        level, name = ("time", "t") if conditioning == "time" else ("noise level", "sigma")
        what = f"the {level}, which is of shape (batch,): {name}[:, None] is a column"
    elif isinstance(error, IndexError) and model_kwargs:
        what = f"what model_kwargs holds: {', '.join(map(repr, model_kwargs))}"
    else:
        return
    raise type(error)(f"{fn}: the model failed ({message}), maybe at {what}") from error


def _odd(name: str, value: Any, batch: int, index: bool) -> str | None:
    """What may be wrong with an entry of ``model_kwargs``, in words; None if nothing is.

    ``index`` says that whole numbers were wanted somewhere.
    """
    if not isinstance(value, Tensor):
        return f"{name!r}, which is no tensor but of {type(value).__name__}"
    if value.dim() and len(value) != batch:
        return f"{name!r} of shape {tuple(value.shape)}"
    if index and value.is_floating_point():
        return f"{name!r} of {value.dtype}"
    return None


def parameter_dtypes(model: Any) -> set[torch.dtype]:
    """The floating-point dtypes of a module's parameters; none for a function."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    return {p.dtype for p in parameters if p.is_floating_point()}


def explain_dtypes(
    fn: str, model: Callable[..., Any], x: Tensor, message: str, error: Exception
) -> None:
    """Say so where the model failed because x is not of the dtype of its parameters."""
    if not _MIXED_DTYPES.search(message):
        return
    dtypes = set().union(*map(parameter_dtypes, modules_of(model)))
    if not dtypes or dtypes == {x.dtype}:
        return
    kinds = " and ".join(sorted(map(str, dtypes)))
    half = next((str(kind) for kind in _HALF if kind in dtypes), None)
    way = f'under autocast (samplers: autocast={half}; else torch.autocast("{x.device.type}"))'
    expected = f"of the model's dtype {kinds}" + (f", or the model run {way}" if half else "")
    if len(dtypes) == 1 and not half:
        expected += f" (x.to({kinds}) is)"
    raise ValueError(f"{fn}: x must be {expected}, got {x.dtype}") from error
