"""The log density of each sample under a score, by the probability flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastscore import random
from fastscore._support.checks import (
    check_callable,
    check_choice,
    check_floating,
    check_int,
    check_number,
    describe,
    fail,
    fail_type,
)
from fastscore._support.common_options import ModelOptions, SeedOptions
from fastscore._support.model_kwargs import check_model_kwargs
from fastscore._support.options import Option, takes_options
from fastscore._support.sums import tree_sum
from fastscore.derivatives.known import known_divergence
from fastscore.derivatives.projections import DISTRIBUTIONS
from fastscore.evaluation._divergence import METHODS, Divergence
from fastscore.evaluation._flow import LikelihoodChain
from fastscore.evaluation._looks import look_at_data, look_at_latents
from fastscore.evaluation._prior import Prior, check_prior
from fastscore.samplers._adaptive import Method, gathered
from fastscore.samplers._adaptive_plan import data_scale, method_of
from fastscore.samplers._angle import Angle
from fastscore.samplers._continuous import NetworkInTime, times_for
from fastscore.samplers._frame import Frame
from fastscore.samplers._loop import Course, half_dtype, progress_bar_class
from fastscore.samplers._runge_kutta import BOGACKI_SHAMPINE, DORMAND_PRINCE
from fastscore.sde import Process, as_process

SOLVERS = {"rk45": DORMAND_PRINCE, "rk23": BOGACKI_SHAMPINE}
# The variables u and theta: a spread that is guessed too small costs more than one that is guessed
# too large; and where the noise is low the divergence changes by much while x hardly moves.
SCALE, ROOT, FIRST = 3.0, 2, 0.5
SEEN = 1000  # samples whose mean square is looked at
CHUNK_ELEMENTS = 2**22  # of a chunk's states, where the caller does not say


class LikelihoodOptions(ModelOptions, NetworkInTime, SeedOptions, total=False):
    """How the network is called, and who the samples are."""

    batch_size: Annotated[
        int | None,
        Option(
            None,
            """call the model with so many samples at a time, always with as many (the last call is
            filled up): each then comes out nearly the same in any company; its place among the rows
            of a call may change the last bits of a matrix product. By default all that are still on
            their way.""",
        ),
    ]


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """What :func:`log_likelihood` returns, each of shape (batch,) unless it says otherwise.

    Attributes:
        log_prob: the log density of each sample in nats, float64; NaN of those that have failed.
        log_prior: that of the latent under the prior, float64: ``log_prob - log_prior`` is what the
            flow did to the volume, whatever prior is taken.
        latent: what the flow leads to, noise at the end of the process, (batch, ...).
        evaluations: how many calls of the model, int64.
        failed: True for samples that were given up.
        exact: whether the divergence was exact.

    Example:
        >>> import torch, fastscore
        >>> mixture, sde = fastscore.scores.GaussianMixture([1.0], [0.0], 1.0), fastscore.sde.VE()
        >>> found = fastscore.log_likelihood(mixture, torch.zeros(2), sde)
        >>> found.log_prob.shape, found.exact, bool(found.stderr.any())
        (torch.Size([2]), True, False)
    """

    log_prob: Tensor
    log_prior: Tensor
    latent: Tensor
    evaluations: Tensor
    failed: Tensor
    exact: bool
    probe_errors: Tensor | None

    @property
    def stderr(self) -> Tensor:
        """The standard error of each log density that comes of its probes; 0 of an exact one.

        Raises:
            ValueError: there was one probe, which can't tell.
        """
        if self.probe_errors is None:
            fail("log_likelihood", "probes", "at least 2 for a standard error", 1)
        return self.probe_errors

    def __repr__(self) -> str:
        if not len(self.log_prob):
            return "LogLikelihood(of no samples)"
        lo, hi = self.evaluations.aminmax()
        mean = float(self.log_prob[~self.failed].mean())
        return (
            f"LogLikelihood({len(self.log_prob)} samples, mean log_prob {mean:.6g} nats, "
            f"evaluations from {int(lo)} to {int(hi)})"
        )


@takes_options(LikelihoodOptions)
def log_likelihood(
    model: Callable[..., Tensor],
    x: Tensor,
    sde: Process | Any,
    *,
    divergence: str = "auto",
    probes: int = 1,
    distribution: str = "rademacher",
    solver: str = "rk45",
    steps: int | None = None,
    rtol: float = 5e-4,
    atol: float = 5e-4,
    log_prob_atol: float | None = 1e-3,
    max_steps: int = 1000,
    failed: str = "raise",
    prior: tuple[Tensor | float, Tensor | float] | None = None,
    sigma_data: float | None = None,
    chunk_size: int | None = None,
    progress: bool = False,
    **options: Unpack[LikelihoodOptions],
) -> LogLikelihood:
    r"""The log density of each sample, by the instantaneous change of variables along the flow.

    The probability flow dx/dt = f x - g^2 s/2 leads from a sample to noise, whose density is known,
    and changes the log density on the way by the divergence of its field (Chen et al. 2018; Song et
    al. 2021, section 4.3 and appendix D.2),

        log p(x) = log prior(x_T) + int (D f - g^2/2 div s) dt,    x = x(t_eps).

    That is the density at x of what the flow draws at ``sde.t_eps`` (at the lowest noise level that
    the model knows, where that is higher), without denoising: of data with that little noise.

    What is known of the flow costs nothing: with y = x/alpha, s = sigma/alpha and d three times the
    data's standard deviation (``sigma_data``, right to a factor of four or so), it is integrated as
    u = y/sqrt(s^2 + d^2), which hardly moves where noise is all or where the data are, over
    theta = atan sqrt(s/d). Each sample has steps of its own and leaves when it has arrived. The
    integral is taken with the weights of the same method, in float64.

    Args:
        model: as in :func:`fastscore.reverse_sde`, all ways of calling. A function of x alone for
            each sample: in evaluation mode, float32 or float64.
        x: data, (batch, ...), float32 or float64 (half precision is taken to float32); of integers,
            :func:`fastscore.dequantize`.
        sde: the process, of :mod:`fastscore.sde`, or any object with ``alpha(t)``, ``sigma(t)``.
        divergence: "exact", or "hutchinson", v'J v for ``probes`` vectors v that stay the same
            along a sample's flow (Hutchinson 1989; Grathwohl et al. 2019), without bias; "auto" is
            exact where that costs no more: of scores that know theirs (``GaussianMixture``,
            ``Parzen``), multilayer perceptrons of one or two hidden layers, and in at most 8
            dimensions or as many as there are probes. Exact without a closed form takes one
            tangent for each dimension.
        probes: for each sample; from two on there is a standard error (of Rademacher probes in a
            few dimensions it may be 0 by chance: they repeat; there "exact" costs no more).
        distribution: of the probes: "rademacher", "gaussian" or "sphere".
        solver: "rk45", order 5(4) (Dormand and Prince 1980), or "rk23", order 3(2) (Bogacki and
            Shampine 1989), which of smooth fields takes more evaluations for the same accuracy.
        steps: so many equal steps in theta, in place of step control: 6 calls of the model each, 3
            with "rk23", and one at first.
        rtol, atol: relative and absolute error of x in a step, in the units of the data. By default
            the bits per dimension of digits and of mixtures are off by about 0.001.
        log_prob_atol: how large the error of the log density may be in a step, in nats per
            dimension (of an estimated divergence: of the estimate). None looks at x alone: a sample
            that hardly moves, such as one at a mode, then takes steps that are too large.
        max_steps: after how many steps, also those that are made again, a sample is given up.
        failed: what is done with samples that are not finite, that can't meet the tolerances or of
            which the model returns NaN: "raise" an error that names one, or "return" NaN for them,
            with a warning, and the others as they are.
        prior: None for N(0, sigma^2) of the end of the process, as published; or a pair of the
            data's mean and standard deviation, numbers or tensors that broadcast to a sample's
            shape, for N(alpha mean, alpha^2 std^2 + sigma^2), which is nearer to what the flow
            leads to (:func:`fastscore.evaluation.prior_mismatch`).
        sigma_data: about the data's standard deviation; by default what the model's own attribute
            says, else that of ``prior``, else 0.5. It changes the number of evaluations, not the
            result.
        chunk_size: how many samples are on their way at a time; by default as many as have 4
            million elements. What comes out does not depend on it.
        progress: show a progress bar of samples (needs tqdm).

    Returns:
        A :class:`LogLikelihood`: ``log_prob`` in nats, ``stderr``, ``latent``, ``evaluations``.
        It carries no gradients.

    Raises:
        ValueError: an argument out of its range; a model that has no derivative, draws random
            numbers, mixes its batch, or is of half precision; samples that are not finite.
        TypeError: an argument of the wrong type.
        RuntimeError: tolerances that can't be met; the message names sample, time and step.

    A network that is called by an index sees the nearest of its levels: its field has jumps, which
    cost evaluations, and tolerances far below the default gain nothing.

    With exact scores a sample's bytes are the same alone, in any batch and any shard
    (``sample_offset``, ``samples``); with networks as far as these are the same: see
    ``batch_size``.

    Example:
        Standard normal data, in 2 dimensions, with noise of 0.01: log N(0; 0, 1.0001) each.

        >>> import torch, fastscore
        >>> score = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)
        >>> sde = fastscore.sde.VE(0.01, 50.0)
        >>> found = fastscore.log_likelihood(score, torch.zeros(3, 2), sde, prior=(0.0, 1.0))
        >>> bool((found.log_prob + 1.838).abs().max() < 0.005)
        True
    """
    fn = "log_likelihood"
    x = check_data(fn, x)
    if not callable(model) and callable(getattr(model, "log_likelihood", None)):
        fail_type(fn, "model", "callable (a checkpoint has checkpoint.log_likelihood(x))", model)
    check_callable(fn, "model", model)
    check_choice(fn, "divergence", divergence, METHODS)
    check_int(fn, "probes", probes, minimum=1)
    check_choice(fn, "distribution", distribution, DISTRIBUTIONS)
    check_choice(fn, "solver", solver, tuple(SOLVERS))
    check_precision(fn, model, x)
    method = method_of(fn, rtol=rtol, atol=atol, max_steps=max_steps, failed=failed, denoise=False)
    method.tableau, method.first = SOLVERS[solver], FIRST
    if steps is not None:
        method.equal_steps = check_int(fn, "steps", steps, minimum=1)
    if log_prob_atol is not None:
        log_prob_atol = check_number(fn, "log_prob_atol", log_prob_atol, positive=True)
    for name, size in (("chunk_size", chunk_size), ("batch_size", options["batch_size"])):
        if size is not None:
            check_int(fn, name, size, minimum=1)
    process = as_process(fn, sde)
    frame = Frame.asked(fn, model, process, dict(options))
    end, begin = times_for(fn, model, frame, x, "log", 2, 1.0, process.t_eps).tolist()
    moments = check_prior(fn, prior, x.shape[1:], x.device)
    spread = data_scale(fn, model, sigma_data, otherwise=float(moments[1].square().mean().sqrt()))
    key = random.make_key(fn, options["seed"], device=x.device, generator=options["generator"])
    samples, offset = options["samples"], options["sample_offset"]
    random.check_numbering(fn, key, samples, offset, len(x), x.device)
    job = Job(
        fn,
        model,
        frame,
        Angle(frame, begin, end, False, SCALE * spread, ROOT),
        method,
        Divergence(fn, divergence, probes, distribution),
        Prior.at(process, end, *moments),
        key,
        samples,
        offset,
        check_model_kwargs(fn, options["model_kwargs"]),
        options["batch_size"],
        log_prob_atol,
        of_noise=prior is None,
    )
    job.refuse_what_is_not_finite(x)
    if prior is None and bool((good := finite_rows(x)).any()) and x.numel():
        look_at_data(fn, x[good][:SEEN], process, begin, end)
    with bar_of(fn, progress, len(x)) as arrivals:
        return job.run(x, chunk_size, arrivals)


def check_data(fn: str, x: Any) -> Tensor:
    """Floating-point data, of float32 or float64."""
    if isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex():
        expected = "of a floating-point dtype (integers have no density: x = "
        expected += "fastscore.dequantize(x, levels=...), and fastscore.bits_per_dim)"
        fail(fn, "x", expected, describe(x))
    check_floating(fn, "x", x, min_dim=1)
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def check_precision(fn: str, model: Any, x: Tensor) -> None:
    """Nothing of half precision, whose rounding is as large as what is wanted."""
    expected = "of float32 or float64, for half precision rounds the divergence by 0.1 to 1 percent"
    dtype = half_dtype(model)
    if dtype is not None:
        fail(fn, "model", f"{expected}: model.float()", f"one of {dtype}")
    if torch.is_autocast_enabled(x.device.type):
        fail(fn, "model", f"called {expected}", "a region of torch.autocast around the call")


@contextmanager
def bar_of(fn: str, progress: bool, total: int) -> Iterator[Callable[[int], Any] | None]:
    """What is told of samples that have arrived."""
    if not progress:
        yield None
        return
    with progress_bar_class(fn)(total=total, desc=fn, unit="sample") as bar:
        yield bar.update


@dataclass
class Job:
    """All that the chunks of a data set have in common."""

    fn: str
    model: Callable[..., Tensor]
    frame: Frame
    angle: Angle
    method: Method
    divergence: Divergence
    prior: Prior
    key: Tensor
    samples: Tensor | None
    sample_offset: int
    model_kwargs: dict[str, Any]
    batch_size: int | None
    log_prob_atol: float | None
    of_noise: bool  # whether the prior is noise alone
    looked: bool = False  # whether the latents have been looked at

    def number_of(self, row: int) -> int:
        """The number of a sample."""
        return self.sample_offset + row if self.samples is None else int(self.samples[row])

    def refuse_what_is_not_finite(self, x: Tensor) -> None:
        """Unless NaN are to be returned for it."""
        bad = ~finite_rows(x)
        if not self.method.returns_failed and bool(bad.any()):
            row = int(bad.nonzero()[0])
            got = f'NaN or infinity in sample {self.number_of(row)} (failed="return" goes on)'
            fail(self.fn, "x", "finite", got)

    def run(
        self, x: Tensor, chunk_size: int | None, arrivals: Callable[[int], Any] | None
    ) -> LogLikelihood:
        """All chunks, one after the other."""
        if chunk_size is None:
            chunk_size = max(1, CHUNK_ELEMENTS // max(1, math.prod(x.shape[1:])))
        starts = range(0, max(1, len(x)), chunk_size)
        parts = [self.of_chunk(x, start, chunk_size, arrivals) for start in starts]
        return joined(parts)

    def of_chunk(
        self, x: Tensor, start: int, size: int, arrivals: Callable[[int], Any] | None
    ) -> LogLikelihood:
        """Of ``size`` samples from ``start`` on."""
        batch, rows = len(x), slice(start, start + size)
        chunk, kwargs = x[rows], self.model_kwargs
        if len(chunk) < batch:
            index = torch.arange(batch, device=x.device)[rows]
            kwargs = gathered(kwargs, batch, index)
        good = finite_rows(chunk)
        scale = float(self.angle.shown(theta_of(self.angle, self.angle.first, x.device)))
        state = torch.where(good.view(-1, *[1] * (x.dim() - 1)), chunk, 0.0).contiguous() * scale
        nothing = torch.zeros(1, 4, dtype=torch.float64, device=x.device)
        chain = LikelihoodChain(
            self.fn,
            self.model,
            self.frame.conditioning,
            state,
            self.key if self.key.dim() == 1 else self.key[rows].clone(),
            nothing,
            nothing[:, 0].to(x.dtype),
            [0.0],
            1,
            model_kwargs=kwargs,
            batch_size=self.batch_size,
            sample_offset=self.sample_offset + start,
            samples=None if self.samples is None else self.samples[rows],
            method=self.method,
            angle=self.angle,
            divergence=self.divergence,
            tolerance=self.log_prob_atol,
            arrivals=arrivals,
            compares=not self.looked and known_divergence(self.model) is None,
        )
        chain.give_up(~good)
        end = self.method.max_steps
        chain.run(Course(range(end + 1), 0, end, [], False, None, False))
        return self.result_of(chain)

    def result_of(self, chain: LikelihoodChain) -> LogLikelihood:
        """The log densities at the beginning of a run that has come to its end."""
        latent = chain.shown()
        if not latent.numel():
            zeros = latent.new_zeros(len(latent), dtype=torch.float64)
            counts = zeros.long()
            return LogLikelihood(zeros, zeros, latent, counts, counts.bool(), False, zeros)
        assert chain.failed is not None
        self.divergence.refuse_what_is_missing()
        if not self.looked and not bool(chain.failed.all()):
            look_at_latents(chain, latent, self.prior, of_noise=self.of_noise)
            self.looked = True
        change, errors = mean_and_error(chain.integral)
        log_prior = self.prior.log_prob(latent)
        log_prob = log_prior + (change + chain.dimensions * self.growth())
        exact = self.divergence.method == "exact"
        return LogLikelihood(
            log_prob,
            log_prior,
            latent,
            chain.control.evaluations,
            chain.failed,
            exact,
            torch.zeros_like(change).masked_fill(chain.failed, torch.nan) if exact else errors,
        )

    def growth(self) -> float:
        """By how much the logarithm of each element's scale 1/g has grown: that of x over u."""
        process, d = self.frame.process, self.angle.scale
        ends = self.angle.last, self.angle.first
        last, first = (
            math.hypot(float(process.sigma(t)), d * float(process.alpha(t))) for t in ends
        )
        return math.log(last / first)


def joined(parts: list[LogLikelihood]) -> LogLikelihood:
    """Of all chunks as of one."""
    if len(parts) == 1:
        return parts[0]
    found = {name: [vars(part)[name] for part in parts] for name in vars(parts[0])}
    exact, errors = found.pop("exact")[-1], found.pop("probe_errors")
    tensors = {name: torch.cat(values) for name, values in found.items()}
    all_errors = None if errors[-1] is None else torch.cat(errors)
    return LogLikelihood(**tensors, exact=exact, probe_errors=all_errors)


def theta_of(angle: Angle, t: float, device: torch.device) -> Tensor:
    """The angle at a time, (1,)."""
    return torch.tensor([angle.of_time(t)], dtype=torch.float64, device=device)


def finite_rows(x: Tensor) -> Tensor:
    """(batch,) bool: which samples have neither NaN nor infinity."""
    return x.isfinite().reshape(len(x), -1).all(1) if x.numel() else x.new_ones(len(x)).bool()


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """The mean over the terms of each sample, (n, terms), and its standard error from two on."""
    count = values.shape[1]
    mean = tree_sum(values, 1) / count
    if count == 1:
        return mean, None
    squares = tree_sum((values - mean.unsqueeze(1)).square(), 1)
    return mean, (squares / (count - 1) / count).sqrt()
