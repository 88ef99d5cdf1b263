"""The reverse stochastic differential equation, with predictors and correctors."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor
from typing_extensions import Unpack

from fastscore._support.checks import check_choice, check_int, check_number, fail
from fastscore._support.options import Option
from fastscore.samplers._continuous import (
    ContinuousOptions,
    Grid,
    check_steps,
    ends_of,
    plan_of,
    times_for,
)
from fastscore.samplers._corrector import Corrector
from fastscore.samplers._frame import Frame
from fastscore.samplers._measured import Projection
from fastscore.samplers._options import sampler_with
from fastscore.samplers._plan import Model, Plan
from fastscore.samplers._rows import (
    Levels,
    Rows,
    corrector_rows,
    denoising_row,
    predictor_rows,
    resampled,
)
from fastscore.sde import Process, as_process

PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral")
STEPS = 1000


class ReverseOptions(ContinuousOptions, total=False):
    """Keyword arguments of :func:`reverse_sde`: what is measured belongs to a run."""

    operator: Annotated[
        Any,
        Option(
            None,
            """together with ``measurement``: a linear A, any object with ``A(x)`` and
            ``A_dagger(y)``, its pseudo-inverse, of batches (batch, ...), such as those of
            :mod:`fastscore.operators`. The state is projected, see above, after ``clamp``; there
            are no gradients.""",
        ),
    ]
    measurement: Annotated[
        Tensor | None,
        Option(
            None,
            """y = A x_0, without noise or nearly, (batch, ...) as A gives it; or one for all
            samples, with a batch of 1 or without.""",
        ),
    ]


@sampler_with(ReverseOptions)
def reverse_sde(
    model: Model,
    sde: Process | Any,
    x: Tensor | None = None,
    *,
    steps: int = STEPS,
    predictor: str = "reverse_diffusion",
    corrector: str | None = None,
    snr: float = 0.16,
    corrector_steps: int = 1,
    denoise: bool = True,
    t_start: float = 1.0,
    eta: float = 1.0,
    grid: Grid = "uniform",
    norms: str | Tensor = "pilot",
    resamplings: int = 1,
    projection: float = 1.0,
    **options: Unpack[ReverseOptions],
) -> Plan:
    r"""The reverse SDE from noise to data, by predictor and corrector (Song et al. 2021).

    Each of ``steps`` steps, from t to t' < t, is one of the predictors

    - "euler_maruyama": ``x - (f x - g^2 s) dt + g sqrt(dt) z``, of any process;
    - "reverse_diffusion": ``x - f_k + G_k^2 s + G_k z``, the forward step ``x + f_k + G_k z`` being
      exact: for VE ``x + (sigma^2 - sigma'^2) s + sqrt(sigma^2 - sigma'^2) z``, for VP
      ``(2 - sqrt(1 - beta_k)) x + beta_k s + sqrt(beta_k) z``, for sub-VP Euler-Maruyama;
    - "ancestral": drawn from the Gaussian p(x_t' | x_t, x_0) at the predicted x_0 (Ho et al.
      2020), with less noise for ``eta`` below 1 and none at 0, which is DDIM (Song, Meng and
      Ermon 2021);

    followed by ``corrector_steps`` of Langevin dynamics at t', ``x + e s + sqrt(2 e) z``, if there
    is a corrector. Its step e is the same for all samples, for one that depends on the sample
    itself samples another density (on N(0, I) in two dimensions by far):

    - "annealed": ``e = 2 a (snr sigma)^2``, a = 1 for VE, 1 - beta_k for VP;
    - "langevin": ``e = 2 a snr^2 D/n^2``, n^2 the mean of |s|^2 at that time, see ``norms``.

    At the end, unless ``denoise=False``, the expected data given the last state. That makes
    steps (1 + corrector_steps) + 1 calls of the model in all; published settings are
    VE(0.01, 50), 1000 steps, ``corrector="langevin"``, snr 0.16 for CIFAR-10, and VP, 1000 steps,
    no corrector. With few calls, see :func:`probability_flow`.

    With an ``operator`` A and a ``measurement`` y the state is moved before each call of the model,
    to the noise level that the model is about to see, and at the end, without noise, by

        ``x <- x + lambda A_dagger(y_t - A x)``,  ``y_t = alpha y + sigma A z``

    (Song et al. 2022, "Solving inverse problems in medical imaging with score-based generative
    models"), lambda being ``projection`` and z fresh noise of the sample's own. With lambda = 1 and
    a pseudo-inverse, A x = y of the result exactly where A can give y, and choosing elements is
    what ``known`` does. Below 1 the state has less noise along A than its level says, and the
    result comes near to y only.

    However many steps there are, what is not held is drawn given a noisy copy of what is, which is
    its conditional distribution only where the two are independent; correctors and ``resamplings``
    lead there. Of two coordinates of variance 1 and correlation 0.9, one known to be 1, the other
    has mean 0.9 and variance 0.19. With the exact score in VE(0.01, 10) and 1000 steps it has
    0.626 and 0.314 (at 100,000 steps 0.627 and 0.311), with a corrector of snr 0.5 0.895 and 0.193,
    with five 0.899 and 0.191, with 20 resamplings 0.891 and 0.194.

    With ``resamplings`` U each interval is gone through U times, predictor and correctors, and from
    t' back to t in between, ``y + sqrt(s^2 - s'^2) z`` of y = x/alpha, s = sigma/alpha (RePaint,
    Lugmayr et al. 2022, with a jump length of 1): what is held and what is free come to fit one
    another. The way back is exact and costs no call of the model. It is still one step, of
    U (1 + corrector_steps) calls.

    The noise of a sample depends on its number and the seed alone, as in
    :func:`annealed_langevin`, and so do its bytes where the model's rows do not depend on one
    another.

    Args:
        model: the score of x, called as ``conditioning`` says: "sigma" (and "log_sigma") with
            (x/alpha, sigma/alpha), so that any model of this library samples with every process;
            "time" with (x, time_scale t), for one trained with :func:`sde_loss` on this process;
            "index" with the network's own levels. By default what the model's own attribute says,
            else "sigma" for VE and "time" for other processes. What it returns: ``prediction``.
        sde: the process, of :mod:`fastscore.sde`, or any object with ``alpha(t)``, ``sigma(t)``.
        x: initial state, (batch, ...), taken as it is: of the noise at ``t_start``. Data are
            brought there by ``sde.perturb(data, t_start)``. Or a :class:`SamplerState`.
        steps: intervals of the grid of times, each a predictor step.
        predictor: see above.
        corrector: see above; None for none.
        snr: r, the signal-to-noise ratio of a corrector step.
        corrector_steps: how many, after each predictor step.
        denoise: end with the denoising step, one more step.
        t_start: where to begin, below 1 with ``x`` given.
        eta: how much of the ancestral noise, from 0 to 1.
        grid: "uniform" in t from ``t_start`` to the process's ``t_min``, "karras", "log" (see
            :func:`probability_flow`), or the times themselves, steps + 1 of them, falling. Where
            the model says its ``sigma_range``, the first three run on the part of the process
            within.
        norms: for the corrector "langevin": "pilot" measures n^2 at every time on 64 samples of a
            fixed seed, at the cost of as many calls as there are times; a tensor (steps,) gives
            n^2, the mean of |s|^2 of the score of x/alpha, after each step. "batch" takes
            e = 2 a (snr |z|/|s|)^2 with both norms averaged over the batch in each step, as the
            papers' code does: each sample then depends on its neighbours, and there is no CUDA
            graph; to compare with.
        resamplings: U, how often each interval is gone through.
        projection: lambda, above 0 and at most 1: how far the state goes towards ``measurement``.
        trajectory: after how many steps the state is recorded.

    Returns:
        Samples, float32 or float64, of the shape asked for; a :class:`SamplerState` with
        ``return_state``; with ``trajectory``, a pair of either and the recorded states,
        (number recorded, batch, ...).

    Raises:
        ValueError: an argument out of its range; a grid that is not falling or leaves the process;
            noise levels where a process is meant; a measurement of a shape that A can't give, or
            with ``known``; and as :func:`annealed_langevin`.
        TypeError: an argument of the wrong type; an operator without ``A`` or ``A_dagger``.

    Warns:
        UserWarning: the model's first score is far from what it must be at the highest noise
            level, so that it is called in another convention than it was trained in, maybe; levels
            that the model does not know; a chain that has diverged.

    Example:
        One data point at 3, whose score under noise is known:

        >>> import torch, fastscore
        >>> score = lambda x, sigma: (3 - x) / sigma[:, None] ** 2
        >>> sde = fastscore.sde.VE(0.01, 10.0)
        >>> x = fastscore.reverse_sde(score, sde, steps=50, shape=(4, 2), seed=0)
        >>> torch.allclose(x, torch.full((4, 2), 3.0), atol=1e-5)
        True

        The same score on another process, with a corrector, from half of the way:

        >>> sde = fastscore.sde.VP()
        >>> half = sde.perturb(torch.full((4, 2), 3.0), 0.5, seed=1)
        >>> x = fastscore.reverse_sde(
        ...     score, sde, half, steps=50, t_start=0.5, corrector="annealed",
        ...     conditioning="sigma", seed=0,
        ... )
        >>> torch.allclose(x, torch.full((4, 2), 3.0), atol=1e-5)
        True
    """
    fn = "reverse_sde"
    process = as_process(fn, sde)
    steps = check_steps(fn, steps)
    check_choice(fn, "predictor", predictor, PREDICTORS)
    eta = check_number(fn, "eta", eta, minimum=0.0)
    if eta > 1:
        fail(fn, "eta", "from 0 to 1", eta)
    if eta != 1 and predictor != "ancestral":
        fail(fn, "eta", f'1 but with predictor="ancestral", here {predictor!r}', eta)
    frame = Frame.asked(fn, model, process, dict(options))
    points = None if steps == STEPS and not isinstance(grid, str) else steps + 1
    times = times_for(fn, model, frame, x, grid, points, t_start)
    steps = len(times) - 1
    repeats = check_int(fn, "corrector_steps", corrector_steps, minimum=1)
    if corrector is None and repeats != 1:
        fail(fn, "corrector_steps", "1 without a corrector", repeats)
    how = Corrector.of(fn, corrector, snr, norms, process, times)
    times_over = check_int(fn, "resamplings", resamplings, minimum=1)
    if times_over > 1 and isinstance(norms, str) and norms == "batch":
        fail(fn, "resamplings", '1 with norms="batch", which is to compare with', times_over)
    held = Projection.asked(fn, options, projection)
    each = 1 if how is None else 1 + repeats

    def rows_with(size: Tensor | None) -> Rows:
        rows = predictor_rows(process, times, predictor, eta)
        if size is not None:
            rows = rows.each_followed_by(corrector_rows(process, times, size), repeats)
        if times_over > 1:
            rows = resampled(rows, Levels.of(process, times), times_over)
        return rows.then(denoising_row(process, times[-1])) if denoise else rows

    words = f"predictor={predictor!r}, steps={steps}"
    words += "" if how is None else f", {corrector=}, snr={how.snr:g}"
    words += "" if times_over == 1 else f", resamplings={times_over}"
    words += "" if held is None else f", with an operator, projection={held.strength:g}"
    plan = plan_of(
        fn,
        frame,
        rows_with(None if how is None else how.first_size()),
        ends_of(steps, each * times_over, 1 if denoise else 0),
        dict(options),
        model=model,
        settings=words,
        from_start=t_start == 1,
    )
    plan.projection = held
    if how is not None:
        how.set_up(plan, frame, model, rows_with, each * times_over)
    return plan
