"""The numbers of each sample, their means and errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
from torch import Tensor

import fastscore
from fastscore import random
from fastscore.checkpoint._checkpoint import in_time
from fastscore.evaluation import auroc, paired_difference
from fastscore.evaluation.discrete import discrete_log_likelihood
from fastscore.evaluation.likelihood import log_likelihood

FN = "evaluate"


@dataclass(frozen=True)
class Task:
    """How data are evaluated; what is left at None is the default of :func:`log_likelihood`."""

    levels: int | None = None
    data_range: tuple[float, float] = (0.0, 1.0)
    draws: int = 1
    divergence: str = "auto"
    probes: int = 1
    rtol: float | None = None
    seed: int | None = None
    batch_size: int | None = None
    progress: bool = False
    prior: tuple[Tensor, Tensor] | None = None  # mean and standard deviation of data

    def options(self) -> dict[str, Any]:
        """Those of :func:`log_likelihood`; samples that are given up leave the others right."""
        options = {
            "divergence": self.divergence,
            "probes": self.probes,
            "rtol": self.rtol,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "progress": self.progress,
            "prior": self.prior,
        }
        return {"failed": "return"} | {n: v for n, v in options.items() if v is not None}


@dataclass(frozen=True)
class Likelihoods:
    """Of each sample under one network, (n,): without levels, of the density itself."""

    bits: Tensor
    log_prob: Tensor
    evaluations: Tensor
    failed: Tensor

    def arrays(self) -> dict[str, numpy.ndarray]:
        """As they are saved."""
        return {name: value.cpu().numpy() for name, value in vars(self).items()}


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` returns."""

    data: Likelihoods
    against: Likelihoods | None = None
    compare: Likelihoods | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def evaluate(
    checkpoint: fastscore.Checkpoint,
    x: Tensor,
    task: Task,
    *,
    against: Tensor | None = None,
    compare: fastscore.Checkpoint | None = None,
    kwargs_of: Callable[[int], Mapping[str, Any]] = lambda n: {},
) -> Evaluation:
    """The likelihood of data, of outliers, and of the data under another network.

    Args:
        checkpoint: the network.
        x: data, (n, ...): whole numbers, or in the units of the network.
        task: how; of a seed, the noise is the same under both networks.
        against: outliers, (m, ...), if any.
        compare: the other network, if any.
        kwargs_of: what else the networks take, of so many samples.

    Returns:
        The numbers of each sample, and as ``figures`` means with their standard errors: of samples
        that were not given up.
    """
    seed = int(random.key(task.seed)[0])
    task = replace(task, seed=seed)
    data = _likelihoods(checkpoint, x, task, kwargs_of(len(x)))
    figures: dict[str, Any] = {"seed": seed, "data": _summary(data)}
    other = second = None
    if against is not None:
        named = kwargs_of(len(against))
        other = _likelihoods(checkpoint, against, task, named, sample_offset=len(x))
        pair = data.bits[~data.failed], other.bits[~other.failed]
        figures["against"] = _summary(other)
        figures["auroc"] = dict(auroc(*pair)._asdict()) if _enough(*pair) else None
    if compare is not None:
        second = _likelihoods(compare, x, task, kwargs_of(len(x)))
        both = ~(data.failed | second.failed)
        pair = data.bits[both], second.bits[both]
        figures["compare"] = _summary(second)
        found = paired_difference(*pair)._asdict() if _enough(*pair) else None
        figures["difference"] = None if found is None else dict(found)
    return Evaluation(data, other, second, figures)


def _enough(*scores: Tensor) -> bool:
    return all(len(each) > 1 for each in scores)


def _likelihoods(
    checkpoint: fastscore.Checkpoint,
    x: Tensor,
    task: Task,
    model_kwargs: Mapping[str, Any],
    **more: Any,
) -> Likelihoods:
    (model, process), call = in_time(FN, checkpoint)
    options = {**call, **task.options(), "model_kwargs": model_kwargs, **more}
    if task.levels is not None:
        given: dict[str, Any] = {"levels": task.levels, "data_range": task.data_range}
        result = discrete_log_likelihood(model, x, process, draws=task.draws, **given, **options)
        return Likelihoods(result.bits, result.log_prob, result.evaluations, result.failed)
    flow = log_likelihood(model, x, process, **options)
    bits = flow.log_prob / (-math.prod(x.shape[1:]) * math.log(2))
    return Likelihoods(bits, flow.log_prob, flow.evaluations, flow.failed)


def _summary(of: Likelihoods) -> dict[str, Any]:
    there = ~of.failed
    return {
        "samples": len(of.bits),
        "failed": int(of.failed.sum()),
        "bits": _mean(of.bits[there]),
        "log_prob": _mean(of.log_prob[there]),
        "evaluations": float(of.evaluations.double().mean()),
    }


def _mean(values: Tensor) -> dict[str, float | None]:
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else None
    return {"mean": float(values.mean()) if n else None, "stderr": error}
