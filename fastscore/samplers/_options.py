"""What every sampler takes: each option declared, documented and given its default here, once.

A sampler itself is a function of what is special to it that returns a :class:`Plan`; see
:func:`sampler`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ParamSpec, Protocol, cast, overload

import torch
from torch import Tensor

from fastscore._support.common_options import ModelOptions, SeedOptions
from fastscore._support.options import (
    Option,
    declared,
    refuse_unknown,
    set_signature,
    with_options,
)
from fastscore._support.renamed import with_new_names
from fastscore.samplers._inputs import check_settings, sample
from fastscore.samplers._plan import Callback, Clamp, Plan


class SamplerOptions(ModelOptions, SeedOptions, total=False):
    """Keyword arguments of every sampler."""

    shape: Annotated[
        Sequence[int] | None,
        Option(None, "shape of the state, (batch, ...), when no ``x`` is given."),
    ]
    num_samples: Annotated[
        int | None,
        Option(
            None,
            """batch size for a model that has a ``data_shape``, when neither ``x`` nor ``shape`` is
            given; 64 by default.""",
        ),
    ]
    conditioning: Annotated[
        str | None,
        Option(
            None,
            """how the model is called: "sigma" for ``model(x, sigma)``; "index" for NCSN's
            ``model(x, i)`` with int64 indices i, 0 for the largest sigma; "log_sigma"; or "none"
            for ``model(x)``. By default as the model's own attribute ``conditioning`` says, else
            "sigma" where there are noise levels and "none" where not.""",
        ),
    ]
    prediction: Annotated[
        str | None,
        Option(
            None,
            """what the model returns: "score"; "eps", the noise; or "x0", the data (a denoiser).
            By default what its own attribute ``prediction`` says, else "score".""",
        ),
    ]
    init: Annotated[
        str,
        Option(
            "normal",
            """"normal" (of the standard deviation of the largest noise level, or 1) or "uniform" in
            [0, 1), when no ``x`` is given.""",
        ),
    ]
    known: Annotated[
        Tensor | float | None,
        Option(
            None,
            """inpainting, together with ``mask``: where the mask is True the state is held at
            ``known`` plus noise of the level that the model is about to see, fresh in each call
            (``probability_flow`` keeps one noise for the whole run), and ends as ``known``
            exactly, the last denoising being of the rest alone. A number or a tensor that
            broadcasts to the state's shape; it may be anything, NaN too, where the mask is False.
            The rest is then drawn given the known part only approximately: it sees a noisy copy of
            that, however many levels there are. More steps at each level bring it nearer to the
            conditional distribution (``steps_per_sigma``, ``corrector_steps``,
            ``resamplings``).""",
        ),
    ]
    mask: Annotated[
        Tensor | None,
        Option(
            None,
            """boolean, True where the state is known, which it is of one element at least;
            broadcasts to the state's shape.""",
        ),
    ]
    clamp: Annotated[
        Clamp | None,
        Option(
            None,
            """``(lo, hi)``, either may be None: the state is projected to this interval after every
            step. To bound only the result, clamp that.""",
        ),
    ]
    start_step: Annotated[
        int,
        Option(
            0,
            """resume after so many steps, with ``x`` the state then and the same ``seed``: the
            result equals that of an uninterrupted run of this batch to the last bit. (In continuous
            time a :class:`SamplerState` as ``x`` says both itself.)""",
        ),
    ]
    dtype: Annotated[
        torch.dtype | None,
        Option(
            None,
            """torch.float32 or torch.float64, of a state that is drawn; by default float64 for a
            model of float64 parameters, else float32.""",
        ),
    ]
    device: Annotated[
        torch.device | str | None,
        Option(
            None,
            "of a state that is drawn; by default where the model's parameters, or sigmas, are.",
        ),
    ]
    autocast: Annotated[
        torch.dtype | None,
        Option(
            None,
            """torch.bfloat16 or torch.float16 to run the model under autocast. The state keeps its
            precision. A model whose parameters all are of half precision needs none: it is given
            the state in its own dtype (and sigma in float32).""",
        ),
    ]
    batch_size: Annotated[
        int | None,
        Option(
            None,
            """call the model with so many samples at a time, always with as many (the last call is
            filled up), so that many can be drawn in little memory, and each is nearly the same
            however many are drawn with it: its place among the rows of a call may change the last
            bits of a matrix product. Tensors in ``model_kwargs`` whose first size is the batch's go
            with their samples, but for what is ``fastscore.shared``. By default all at once.""",
        ),
    ]
    progress: Annotated[
        bool,
        Option(
            False,
            """show a progress bar (needs tqdm). On CUDA it shows steps launched, which may be ahead
            of steps done.""",
        ),
    ]
    callback: Annotated[
        Callback | None,
        Option(
            None,
            """``callback(step, x)`` after each step, ``step`` being the number of steps taken since
            the very start, and ``x`` the state itself (clone it to keep it; what is written to it
            goes into the chain). Return True to stop: the state is returned as it is, and
            ``start_step=step`` resumes.""",
        ),
    ]
    cuda_graph: Annotated[
        bool | str,
        Option(
            False,
            """True captures one step, network included, in a CUDA graph that is replayed for all
            steps; "auto" does so where the state is on a GPU and the run is long enough. The result
            is the same. A model that can't be captured (one that waits for the device) runs
            without, after a warning. Python code in the model runs only in capture.""",
        ),
    ]


OLD_NAMES = {"langevin": {"score_fn": "model"}}  # they work for one more version

# Those that can be said once for a model. The others belong to a run: its state, noise, watchers.
SETTINGS = frozenset({"init", "clamp", "clip_denoised", "dtype", "autocast"})

P = ParamSpec("P")


class Sampler(Protocol[P]):
    """A sampler, for type checkers: with ``trajectory`` it returns a pair."""

    __name__: str
    settings: frozenset[str]  # its options that are a matter of the model, not of a run
    plan: Callable[..., Plan]  # the plan of a run that is not made: all settings are checked

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
    @overload
    def __call__(
        self, *args: Any, trajectory: Sequence[int], **kwargs: Any
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(self, *args: Any, trajectory: None, **kwargs: Any) -> Tensor: ...


def sampler(make_plan: Callable[P, Plan]) -> Sampler[P]:
    """A public sampler, from the function that checks what is special to it and returns its plan.

    It takes the options of every sampler; see :func:`sampler_with`.
    """
    return sampler_with(SamplerOptions)(make_plan)


def sampler_with(kind: type) -> Callable[[Callable[P, Plan]], Sampler[P]]:
    """A public sampler with the options of ``kind``, which has those of every sampler in it.

    The function's parameters are the model, what tells the noise levels, ``x``, its own options
    and ``**options``, those of every sampler, which it sees but need not look at.
    """
    return functools.partial(_sampler, kind)


def _sampler(kind: type, make_plan: Callable[P, Plan]) -> Sampler[P]:
    fn = make_plan.__name__
    own = list(inspect.signature(make_plan).parameters.values())[:-1]
    first, position = own[0].name, [p.name for p in own].index("x")
    options_of_all = declared(kind)
    renamed = OLD_NAMES.get(fn, {})
    known = {p.name for p in own} | {"trajectory"} | set(options_of_all.defaults)

    def current(kwargs: dict[str, Any]) -> dict[str, Any]:
        """All of them options that are there, under their present names."""
        if not known.issuperset(kwargs):
            kwargs = with_new_names(fn, renamed, kwargs)
            refuse_unknown(fn, known, kwargs, renamed)
        return kwargs

    def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Plan, SamplerOptions]:
        """The plan, and the options of all samplers, which are taken out of ``kwargs``."""
        options = {n: kwargs.pop(n, default) for n, default in options_of_all.defaults.items()}
        return make_plan(*args, **kwargs, **options), cast(SamplerOptions, options)

    @functools.wraps(make_plan)
    def run(*args: Any, trajectory: Sequence[int] | None = None, **kwargs: Any) -> Any:
        kwargs = current(kwargs)
        plan, options = prepare(args, kwargs)
        model = args[0] if args else kwargs[first]
        x = args[position] if len(args) > position else kwargs.get("x")
        return sample(fn, model, x, plan, options, trajectory)

    def checked_plan(*args: Any, **kwargs: Any) -> Plan:
        plan, options = prepare(args, current(kwargs))
        check_settings(fn, options)
        return plan

    named, optional = inspect.Parameter.KEYWORD_ONLY, Sequence[int] | None
    recorded = inspect.Parameter("trajectory", named, default=None, annotation=optional)
    parameters = [*own, recorded, *options_of_all.parameters]
    returns = Tensor | tuple[Tensor, Tensor]
    set_signature(run, sorted(parameters, key=lambda p: p.kind), returns)
    run.__doc__ = with_options(make_plan.__doc__, kind)
    result = cast("Sampler[P]", run)
    result.settings = (SETTINGS & known) | {p.name for p in own if p.kind is named}
    result.plan = checked_plan
    return result
