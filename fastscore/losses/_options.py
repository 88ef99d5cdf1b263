"""What every loss takes: each option declared, documented and given its default here, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor

from fastscore._support.options import Option

Weighting = str | Callable[[Tensor], Tensor]


class DrawOptions(TypedDict, total=False):
    """What may differ from call to call: levels, random numbers, a network's extra arguments."""

    labels: Annotated[
        Tensor | None,
        Option(
            None,
            """the noise level of each sample, (batch,), int64 in [0, L); drawn uniformly when
            None.""",
        ),
    ]
    model_kwargs: Annotated[
        Mapping[str, Any] | None,
        Option(
            None,
            """what else the model is called with, by name (classes, context); see
            :func:`fastscore.shared`.""",
        ),
    ]
    seed: Annotated[
        int | Sequence[int] | Tensor | None,
        Option(
            None,
            """governs all random numbers; None draws one from PyTorch's default generator. A
            sequence or int64 tensor (batch,) gives each sample a seed of its own.""",
        ),
    ]
    generator: Annotated[
        torch.Generator | None, Option(None, "where to draw the seed from instead.")
    ]
    key: Annotated[
        Tensor | None,
        Option(
            None,
            """int64 tensor [seed, draw] on x's device (``fastscore.random.key``), or (batch, 2),
            in place of ``seed`` and ``generator``: for ``torch.compile(fullgraph=True)``, and for
            CUDA graphs, where adding 1 to ``key[1]`` inside the graph gives fresh noise at each
            replay.""",
        ),
    ]
    sample_offset: Annotated[
        int,
        Option(
            0,
            """number of the first sample in a larger batch, as when a batch is split over
            processes: the shards then meet the random numbers of the whole.""",
        ),
    ]
    samples: Annotated[
        Tensor | None,
        Option(
            None,
            """in place of ``sample_offset``, the number of each sample, int64 (batch,): any choice
            of samples meets what the whole batch would.""",
        ),
    ]


class LossOptions(TypedDict, total=False):
    """What makes one loss differ from another of its kind."""

    weighting: Annotated[
        Weighting,
        Option(
            "sigma2",
            """lambda(sigma): "sigma2", sigma^2; "none", 1; "likelihood", g(t)^2 of the
            variance-exploding SDE (Song, Durkan et al. 2021; exact form:
            ``fastscore.losses.dsm.likelihood_weighting``); or a function of the float64 tensor of
            sigmas that returns the L weights.""",
        ),
    ]
    conditioning: Annotated[
        str | None,
        Option(
            None,
            """how the model is called: "sigma" for ``model(x, sigma)``; "index" for NCSN's
            ``model(x, labels)`` with int64 labels, 0 for the largest sigma; "log_sigma"; or "none"
            for ``model(x)``. By default "sigma" with sigmas, and "none" on clean data.""",
        ),
    ]
    reduction: Annotated[
        str,
        Option("mean", '"mean" or "sum" over the batch, or "none" for the loss of each sample.'),
    ]
