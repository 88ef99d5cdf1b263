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
``"time"``       ``model(x, c t)``        networks in continuous time; c is 1, or ``time_scale``
===============  =======================  ==================================================

and what they return, at x = x_0 + sigma z (at x = alpha x_0 + sigma z:
:mod:`fastscore.sde.conversions`):

==============  ========================================  ===================================
``prediction``  output                                    score
==============  ========================================  ===================================
``"score"``     the score s                               s
``"eps"``       the noise z (DDPM's networks)             -eps / sigma
``"x0"``        the clean data x_0 (a denoiser, EDM's D)  (D - x) / sigma^2
``"v"``         (alpha z - sigma x_0) / n, seeing x / n   -v / (sigma n) - x / n^2
``"velocity"``  alpha' x_0 + sigma' z                     of processes alone
==============  ========================================  ===================================

with n = sqrt(alpha^2 + sigma^2). The functions of noise levels (``annealed_langevin``,
``dsm_loss`` and the like) have no time: they refuse "time", "v" and "velocity", which are for
``sde_loss``, ``reverse_sde`` and ``probability_flow``.

It is said once: to the samplers and losses, or by the model itself, in attributes ``conditioning``
and ``prediction``, or to an adapter of :mod:`fastscore.scores`, which then is a score of
(x, sigma). What else a network takes (classes, context, molecules) is given by name in
``model_kwargs``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastscore._support.alike import hypot_everywhere
from fastscore._support.checks import (
    check_callable,
    check_choice,
    check_device,
    check_number,
    check_output,
    describe,
    fail,
    fail_type,
    per_sample,
)
from fastscore._support.explain import explain
from fastscore._support.lending import lend, lent
from fastscore._support.terms import summed
from fastscore._support.wrappers import said_by, unwrapped

CONDITIONINGS = ("sigma", "index", "log_sigma", "none", "time")
PREDICTIONS = ("score", "eps", "x0", "v", "velocity")
# What the functions of noise levels know of these.
LEVEL_CONDITIONINGS = CONDITIONINGS[:4]
LEVEL_PREDICTIONS = PREDICTIONS[:3]


def conditioning_of(
    fn: str, model: Any, given: str | None, default: str, *, in_time: bool = False
) -> str:
    """How a model is called: as ``given``, or as it says itself, or ``default``.

    Args:
        fn: the public function on whose behalf this is asked, for messages.
        model: the score model. Its attribute ``conditioning``, where it has one, is how it is
            called; one whose ``sigma_optional`` is True may be called without sigma as well.
        given: what the caller says; None for nothing.
        default: what holds where nobody says anything.
        in_time: whether ``fn`` has times, and can call a model with them.

    Raises:
        ValueError: neither of ``CONDITIONINGS``, or another one than the model's own; "time" where
            there are noise levels alone.

    Example:
        >>> conditioning_of("dsm_loss", lambda x, sigma: -x, None, "sigma")
        'sigma'
    """
    own = _own(model, "conditioning")
    if not in_time:
        refuse_time(fn, "conditioning", given, own)
    choices = CONDITIONINGS if in_time else LEVEL_CONDITIONINGS
    if given is not None:
        check_choice(fn, "conditioning", given, choices)
    if own is None:
        return default if given is None else given
    accepted: tuple[str, ...] = (own,)
    if own == "sigma" and said_by(model, "sigma_optional"):
        accepted = ("sigma", "none")
    if given is None:
        _check_own(fn, "conditioning", own, choices)
        return default if default in accepted else own
    if own in CONDITIONINGS and given not in accepted:
        _refuse_another(fn, "conditioning", model, own, given)
    return given


def prediction_of(fn: str, model: Any, given: str | None, *, in_time: bool = False) -> str:
    """What a model returns: as ``given``, or as it says itself, or the score.

    Args, Raises: as :func:`conditioning_of`, of the attribute ``prediction``.

    Example:
        >>> prediction_of("dsm_loss", lambda x, sigma: -x, None)
        'score'
    """
    own = _own(model, "prediction")
    if not in_time:
        refuse_time(fn, "prediction", given, own)
    choices = PREDICTIONS if in_time else LEVEL_PREDICTIONS
    if given is not None:
        check_choice(fn, "prediction", given, choices)
    if own is None:
        return "score" if given is None else given
    if given is None:
        return _check_own(fn, "prediction", own, choices)
    if own in PREDICTIONS and given != own:
        _refuse_another(fn, "prediction", model, own, given)
    return given


def convention_in_time(
    fn: str, model: Any, conditioning: str | None, prediction: str | None, default: str
) -> tuple[str, str]:
    """How a model of a process is called, and what it returns.

    Args: as :func:`conditioning_of`; ``default`` is the process's own ``conditioning``.

    Raises:
        ValueError: as :func:`conditioning_of`; a model of x alone; a velocity, which is a rate in
            time, of a model that is told a noise level.

    Example:
        >>> convention_in_time("sde_loss", lambda x, t: -x, None, "eps", "time")
        ('time', 'eps')
    """
    how = conditioning_of(fn, model, conditioning, default, in_time=True)
    what = prediction_of(fn, model, prediction, in_time=True)
    if how == "none":
        fail(fn, "model", "told the time or the noise level", 'one of conditioning="none"')
    if what == "velocity" and how not in ("time", "index"):
        expected = '"time" or "index" for a model of prediction="velocity"'
        fail(fn, "conditioning", expected, repr(how))
    return how, what


def time_scale_of(fn: str, model: Any, given: float | None) -> float:
    """By what the time is multiplied that a model of (x, t) is told: given, its own, or 1.

    Raises:
        ValueError, TypeError: not a positive number; another than the model's own.

    Example:
        >>> time_scale_of("sde_loss", lambda x, t: -x, 999)
        999.0
    """
    own = said_by(model, "time_scale")
    if own is not None:
        own = check_number(fn, "the model's time_scale", own, positive=True)
    if given is None:
        return 1.0 if own is None else own
    scale = check_number(fn, "time_scale", given, positive=True)
    if own not in (None, scale):
        kind = type(unwrapped(model)).__name__
        fail(fn, "time_scale", f"left out for {kind}, a model of time_scale={own}", scale)
    return scale


def sigma_range_of(model: Any, *, fn: str = "sigma_range_of") -> tuple[float, float] | None:
    """The noise levels (lowest, highest) that a model knows, by its ``sigma_range``; or None.

    They are levels s = sigma/alpha of x/alpha. Adapters with ``sigmas`` and the networks of loaded
    checkpoints have one; ``net.sigma_range = process.sigma_range`` gives one to any network.

    Raises:
        ValueError, TypeError: an attribute that is no such pair.

    Example:
        >>> import fastscore
        >>> net = fastscore.nn.ScoreMLP(2)
        >>> print(sigma_range_of(net))
        None
        >>> net.sigma_range = (0.01, 50)
        >>> sigma_range_of(net)
        (0.01, 50.0)
    """
    own = said_by(model, "sigma_range")
    return None if own is None else check_sigma_range(fn, "the model's sigma_range", own)


def check_sigma_range(fn: str, arg: str, given: Any) -> tuple[float, float]:
    """Two noise levels, the lower one first."""
    expected = "two noise levels, 0 <= lowest < highest"
    if isinstance(given, str) or not isinstance(given, Sequence):
        fail_type(fn, arg, expected, given)
    if len(given) != 2:
        fail(fn, arg, expected, given)
    low, high = (check_number(fn, arg, level, minimum=0.0) for level in given)
    if low >= high:
        fail(fn, arg, expected, given)
    return low, high


def refuse_time(fn: str, name: str, given: Any, own: str | None = None) -> None:
    """Of a function that has noise levels alone: what needs a time is refused, with the way."""
    levels = LEVEL_CONDITIONINGS if name == "conditioning" else LEVEL_PREDICTIONS
    known = CONDITIONINGS if name == "conditioning" else PREDICTIONS
    for value, of in ((given, ""), (own, " of the model")):
        if isinstance(value, str) and value in known and value not in levels:
            expected = f"one of {', '.join(map(repr, levels))} here, where there are noise levels"
            way = "sde_loss, reverse_sde and probability_flow have times"
            way += "; fastscore.sde.ProcessScore makes a score of noise levels"
            fail(fn, name, expected, f"{value!r}{of} ({way})")


def refuse_other_than_score(fn: str, model: Any, arg: str = "model") -> None:
    """Of a function that calls ``model(x)`` or ``model(x, sigma)``, for a score.

    Raises:
        ValueError: the model says that it is called otherwise, or returns something else.
    """
    for name, plain in (("conditioning", ("sigma", "none")), ("prediction", ("score",))):
        own = _own(model, name)
        if own is not None and own not in plain:
            expected = "a score of x or of (x, sigma), as fastscore.scores.NetworkScore makes one"
            if own in (*CONDITIONINGS[4:], *PREDICTIONS[3:]):
                expected = expected.replace("scores.NetworkScore", "sde.ProcessScore")
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


def condition(
    conditioning: str, sigma: Tensor, index: Tensor, time: Tensor | None = None
) -> tuple[Tensor, ...]:
    """What a model is given after ``x``: a tuple of one tensor, or an empty one for ``"none"``.

    Args:
        conditioning: one of ``CONDITIONINGS``.
        sigma: noise levels of the samples, shape (batch,).
        index: their indices into the sigmas, shape (batch,), int64.
        time: time_scale t of the samples, shape (batch,), where there are times.

    Raises:
        ValueError: ``conditioning`` is not one of ``CONDITIONINGS``; "time" where there is none.

    Example:
        >>> import torch
        >>> condition("log_sigma", torch.ones(2), torch.tensor([4, 4]))
        (tensor([0., 0.]),)
        >>> condition("none", torch.ones(2), torch.tensor([4, 4]))
        ()
    """
    check_choice("condition", "conditioning", conditioning, CONDITIONINGS)
    if conditioning == "sigma":
        return (sigma,)
    if conditioning == "index":
        return (index,)
    if conditioning == "log_sigma":
        return (sigma.log(),)
    if conditioning == "time":
        if time is None:
            fail("condition", "time", 'given for conditioning="time"', None)
        return (time,)
    return ()


def call_model(
    fn: str,
    model: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor,
    index: Tensor,
    conditioning: str,
    model_kwargs: dict[str, Any] | None = None,
    *,
    time: Tensor | None = None,
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
        time: time_scale t, shape (batch,), for "time".

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
    if time is None:
        refuse_time(fn, "conditioning", conditioning)
    choices = LEVEL_CONDITIONINGS if time is None else CONDITIONINGS
    check_choice(fn, "conditioning", conditioning, choices)
    args = condition(conditioning, sigma, index, time)
    named = lent(model_kwargs) if model_kwargs else {}
    try:
        output = model(lend(x), *map(lend, args), **named)
    except Exception as error:
        explain(fn, model, x, conditioning, model_kwargs, error)
        raise
    return check_output(fn, summed(output), x)


def as_score(prediction: str, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The score at x and sigma (batch,) of a model that returns ``prediction``, all but a velocity.

    For alpha = 1. Differences are taken in 32 bits at least: they are small.

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
    output, x, level = output.to(dtype), x.to(dtype), level.to(dtype)
    if prediction == "v":
        norm = per_sample(hypot_everywhere(sigma.to(dtype), 1.0), x)
        return -output / (level * norm) - x / norm.square()
    if prediction != "x0":
        fail("as_score", "prediction", "one of noise levels", repr(prediction))
    return (output - x) / level.square()


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
