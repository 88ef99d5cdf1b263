"""How a classifier of noisy data is called, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscore._support.checks import check_device, describe, fail, fail_type
from fastscore._support.explain import explained
from fastscore._support.lending import lend, lent
from fastscore.conditioning import condition, conditioning_of
from fastscore.ops._library import traced
from fastscore.sde._frame import Frame, Levels, Y
from fastscore.sde._process import Process


def frame_of_classifier(
    fn: str,
    classifier: Any,
    process: Process,
    *,
    conditioning: str | None,
    time_scale: float | None,
    levels: Levels | None,
    process_levels: Levels | None = None,
) -> Frame:
    """As :meth:`Frame.of`, of a model that may also be told nothing: it is then called with y."""
    how = conditioning_of(fn, classifier, conditioning, process.conditioning, in_time=True)
    if how != "none":
        return Frame.of(
            fn,
            classifier,
            process,
            conditioning=how,
            prediction="score",  # for its variable; what it returns is no prediction
            time_scale=time_scale,
            levels=levels,
            process_levels=process_levels,
        )
    if time_scale is not None:
        fail(fn, "time_scale", 'left out but for conditioning="time"', time_scale)
    if levels is not None:
        arg = "sigmas" if levels.kind == Y else "betas"
        fail(fn, arg, 'left out but for conditioning="index"', f"levels, and {how!r}")
    return Frame(process, how, "score", kind=Y)


def logits_of(
    fn: str,
    classifier: Callable[..., Tensor],
    x: Tensor,
    conditioning: str,
    level: Tensor,
    index: Tensor,
    time: Tensor | None,
    named: dict[str, Any],
) -> Tensor:
    """The classifier's logits, (batch, classes), in 32 bits at least."""
    args = condition(conditioning, level, index, time)
    with explained(fn, classifier, x, conditioning, named):
        output = classifier(lend(x), *map(lend, args), **lent(named))
    expected = f"one that returns logits, floating-point (batch, classes), for a batch of {len(x)}"
    if not isinstance(output, Tensor):
        fail_type(fn, "classifier", expected, output)
    if output.dim() != 2 or len(output) != len(x) or not output.shape[1]:
        fail(fn, "classifier", expected, describe(output))
    if not output.is_floating_point():
        fail(fn, "classifier", expected, describe(output))
    check_device(fn, "classifier's logits", output, x.device, "where x is")
    return output.to(torch.promote_types(output.dtype, torch.float32))


def check_labels(fn: str, arg: str, labels: Any, x: Tensor) -> Tensor:
    """The class of each sample, (batch,), int64."""
    if not isinstance(labels, Tensor):
        fail_type(fn, arg, "an int64 tensor", labels)
    if labels.dtype != torch.int64 or labels.shape != x.shape[:1]:
        expected = f"a torch.int64 tensor of shape ({len(x)},), the class of each sample"
        fail(fn, arg, expected, describe(labels))
    check_device(fn, arg, labels, x.device, "where x is")
    return labels


def check_classes(fn: str, arg: str, labels: Tensor, classes: int, *, wait: bool = False) -> bool:
    """Labels in [0, classes), where they can be looked at; on a GPU if the host may ``wait``.

    Returns whether they were.
    """
    if traced() or (labels.device.type != "cpu" and not wait):
        return False
    if not labels.numel():
        return True
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= classes:
        expected = f"in [0, {classes}), for logits of {classes} classes"
        fail(fn, arg, expected, f"labels from {low} to {high}")
    return True


def log_probabilities(logits: Tensor, labels: Tensor, *, checked: bool) -> Tensor:
    """log p(label | x) of each sample, (batch,); NaN, and so its gradient, of one that is no class.

    ``checked`` says that all of them are classes.
    """
    found = logits.log_softmax(1)
    if checked:
        return found.gather(1, labels.unsqueeze(1)).squeeze(1)
    inside = (labels >= 0) & (labels < logits.shape[1])
    chosen = found.gather(1, (labels * inside).unsqueeze(1)).squeeze(1)
    return chosen * torch.where(inside, 1.0, torch.nan).to(found.dtype)
