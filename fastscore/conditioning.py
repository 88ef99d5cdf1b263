"""How a score model is called: the one place where samplers and losses call it.

A model of this library is called ``model(x, sigma)`` with ``sigma`` of shape (batch,) and returns
the score, the gradient of the log density, in the shape of ``x``. Networks from elsewhere plug in
by naming what they expect instead:

===============  =======================  ==================================================
``conditioning`` call                     who expects it
===============  =======================  ==================================================
``"sigma"``      ``model(x, sigma)``      NCSNv2-style networks, everything in this library
``"index"``      ``model(x, i)``          NCSN's networks: int64 indices, 0 for the largest sigma
``"log_sigma"``  ``model(x, log sigma)``  NCSN++-style networks with a Fourier embedding
``"none"``       ``model(x)``             one noise level, or an energy or score of x alone
===============  =======================  ==================================================

and what they return, at x = x_0 + sigma z:

==============  ========================================  ===================================
``prediction``  output                                    score
==============  ========================================  ===================================
``"score"``     the score s                               s
``"eps"``       the noise z (DDPM's networks)             -eps / sigma
``"x0"``        the clean data x_0 (a denoiser, EDM's D)  (D - x) / sigma^2
==============  ========================================  ===================================

It is said once: to the samplers and losses, or by the model itself, in attributes ``conditioning``
and ``prediction``, or to an adapter of :mod:`fastscore.scores`, which then is a score of
(x, sigma). What else a network takes (classes, context, molecules) is given by name in
``model_kwargs``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastscore._support.checks import (
    check_callable,
    check_choice,
    check_device,
    check_number,
    check_output,
    describe,
    fail,
    per_sample,
)
from fastscore._support.lending import lend, lent
from fastscore._support.reach import modules_of
from fastscore._support.wrappers import parameters_of, said_by, unwrapped

CONDITIONINGS = ("sigma", "index", "log_sigma", "none", "time")
PREDICTIONS = ("score", "eps", "x0", "v", "velocity")

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


def conditioning_of(fn: str, model: Any, given: str | None, default: str) -> str:
    """How a model is called: as ``given``, or as it says itself, or ``default``.

    Args:
        fn: the public function on whose behalf this is asked, for messages.
        model: the score model. Its attribute ``conditioning``, where it has one, is how it is
            called; one whose ``sigma_optional`` is True may be called without sigma as well.
        given: what the caller says; None for nothing.
        default: what holds where nobody says anything.

    Raises:
        ValueError: neither of ``CONDITIONINGS``, or another one than the model's own.

    Example:
        >>> conditioning_of("dsm_loss", lambda x, sigma: -x, None, "sigma")
        'sigma'
    """
    own = _own(model, "conditioning")
    if given is not None:
        check_choice(fn, "conditioning", given, CONDITIONINGS)
    if own is None:
        return default if given is None else given
    accepted: tuple[str, ...] = (own,)
    if own == "sigma" and said_by(model, "sigma_optional"):
        accepted = ("sigma", "none")
    if given is None:
        _check_own(fn, "conditioning", own, CONDITIONINGS)
        return default if default in accepted else own
    if own in CONDITIONINGS and given not in accepted:
        _refuse_another(fn, "conditioning", model, own, given)
    return given


def prediction_of(fn: str, model: Any, given: str | None) -> str:
    """What a model returns: as ``given``, or as it says itself, or the score.

    Args, Raises: as :func:`conditioning_of`, of the attribute ``prediction``.

    Example:
        >>> prediction_of("dsm_loss", lambda x, sigma: -x, None)
        'score'
    """
    own = _own(model, "prediction")
    if given is not None:
        check_choice(fn, "prediction", given, PREDICTIONS)
    if own is None:
        return "score" if given is None else given
    if given is None:
        return _check_own(fn, "prediction", own, PREDICTIONS)
    if own in PREDICTIONS and given != own:
        _refuse_another(fn, "prediction", model, own, given)
    return given


def refuse_other_than_score(fn: str, model: Any, arg: str = "model") -> None:
    """Of a function that calls ``model(x)`` or ``model(x, sigma)``, for a score.

    Raises:
        ValueError: the model says that it is called otherwise, or returns something else.
    """
    for name, plain in (("conditioning", ("sigma", "none")), ("prediction", ("score",))):
        own = _own(model, name)
        if own is not None and own not in plain:
            expected = "a score of x or of (x, sigma), as fastscore.scores.NetworkScore makes one"
            fail(fn, arg, expected, f"one of {name}={own!r}")


def _own(model: Any, name: str) -> str | None:
    value = said_by(model, name)
    return value if isinstance(value, str) else None


def _check_own(fn: str, name: str, own: str, choices: Sequence[str]) -> str:
    if own not in choices:
        expected = f"given for a model whose own {name!r} is none of {choices}"
        fail(fn, name, expected, f"None, and {own!r} of the model")
    return own


def _refuse_another(fn: str, name: str, model: Any, own: str, given: str) -> NoReturn:
    kind = type(unwrapped(model)).__name__
    expected = f"left out for {kind}, a model of {name}={own!r}"
    if said_by(model, "net_conditioning") is not None:
        adapter = kind if name == "conditioning" else "NetworkScore"
        expected += f" (its network's is said to the adapter: {adapter}(network, {name}={given!r}))"
    fail(fn, name, expected, repr(given))


def condition(conditioning: str, sigma: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """What a model is given after ``x``: a tuple of one tensor, or an empty one for ``"none"``.

    Args:
        conditioning: one of ``CONDITIONINGS``.
        sigma: noise levels of the samples, shape (batch,).
        index: their indices into the sigmas, shape (batch,), int64.

    Raises:
        ValueError: ``conditioning`` is not one of ``CONDITIONINGS``.

    Example:
        >>> import torch
        >>> condition("log_sigma", torch.ones(2), torch.tensor([4, 4]))
        (tensor([0., 0.]),)
        >>> condition("none", torch.ones(2), torch.tensor([4, 4]))
        ()
    """
    check_choice("condition", "conditioning", conditioning, CONDITIONINGS)
    if conditioning in ("sigma", "time"):
        return (sigma,)
    if conditioning == "index":
        return (index,)
    if conditioning == "log_sigma":
        return (sigma.log(),)
    return ()


def call_model(
    fn: str,
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor,
    index: Tensor,
    conditioning: str,
    model_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Call ``model`` as ``conditioning`` says and check that its output has the shape of ``x``.

    The model may write to what it is given, and keep it: nobody sees that. The output may have
    another floating dtype than ``x`` (a model under autocast). Nothing here reads a value from the
    device, so a sampling loop stays free of host synchronisation.

    Args:
        fn: the public function on whose behalf the model is called, for messages.
        model: the score model.
        x: points, shape (batch, ...).
        sigma: their noise levels, shape (batch,).
        index: the indices of those levels, shape (batch,), int64.
        conditioning: one of ``CONDITIONINGS``.
        model_kwargs: what else the model is given, by name.

    Returns:
        The model's output, of the shape and on the device of ``x``.

    Raises:
        ValueError: an unknown ``conditioning``, or an output of another shape, device or kind; a
            model that fails because x has another dtype than its parameters, or because it expects
            indices.
        TypeError: a model that can't be called, or an output that is not a tensor.

    Example:
        >>> import torch
        >>> x, sigma, index = torch.ones(2, 3), torch.full((2,), 2.0), torch.tensor([0, 0])
        >>> call_model("dsm_loss", lambda x, s: -x / s[:, None], x, sigma, index, "sigma")[0]
        tensor([-0.5000, -0.5000, -0.5000])
    """
    check_callable(fn, "model", model)
    check_choice(fn, "conditioning", conditioning, CONDITIONINGS)
    args = condition(conditioning, sigma, index)
    named = lent(model_kwargs) if model_kwargs else {}
    try:
        output = model(lend(x), *map(lend, args), **named)
    except Exception as error:
        explain(fn, model, x, conditioning, model_kwargs, error)
        raise
    return check_output(fn, output, x)


def as_score(prediction: str, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The score at x and sigma (batch,) of a model that returns ``prediction``, one of PREDICTIONS.

    (D - x)/sigma^2 is taken in 32 bits at least: the difference is small.

    Example:
        >>> import torch
        >>> as_score("x0", torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([2.0]))
        tensor([[-0.2500, -0.2500]])
    """
    if prediction == "score":
        return output
    level = per_sample(sigma, x)
    if prediction == "eps":
        return -output / level
    dtype = torch.promote_types(torch.promote_types(output.dtype, x.dtype), torch.float32)
    return (output.to(dtype) - x.to(dtype)) / level.to(dtype).square()


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
    if conditioning in ("sigma", "log_sigma") and not floating and _WANTS_INDEX.search(message):
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
        what = "the noise level, which is of shape (batch,): sigma[:, None] is a column"
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


def as_sigma(fn: str, x: Tensor, sigma: Tensor | float) -> Tensor:
    """One noise level per sample of ``x``, from a number, a 0-D tensor or a (batch,) tensor.

    Args:
        fn: the public function on whose behalf this is done, for messages.
        x: points, shape (batch, ...).
        sigma: noise level(s). A number must be at least 0; the values of a tensor are not read.

    Returns:
        Tensor of shape (batch,) on the device of ``x``, float64 if ``x`` is, else float32.

    Raises:
        ValueError: a negative or non-finite number; a tensor of another shape, on another device
            or of integers (the indices of ``conditioning="index"``).
        TypeError: neither a number nor a tensor.

    Example:
        >>> as_sigma("score", torch.zeros(3, 2), 0.5)
        tensor([0.5000, 0.5000, 0.5000])
    """
    batch = x.shape[0]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if not isinstance(sigma, Tensor):
        return x.new_full((batch,), check_number(fn, "sigma", sigma, minimum=0.0), dtype=dtype)
    expected = f"floating-point noise levels of shape ({batch},), one for each sample"
    if not sigma.is_floating_point() or sigma.dim() > 1:
        fail(fn, "sigma", expected, describe(sigma))
    if sigma.dim() == 0:
        return sigma.to(device=x.device, dtype=dtype).repeat(batch)
    if len(sigma) != batch:
        fail(fn, "sigma", expected, describe(sigma))
    check_device(fn, "sigma", sigma, x.device, "as x is")
    return sigma.to(dtype)
