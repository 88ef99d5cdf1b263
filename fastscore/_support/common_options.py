"""The options that losses, samplers and derivatives have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor

from fastscore._support.options import Option


class ModelOptions(TypedDict, total=False):
    """How a network is called, beyond x and its noise level."""

    model_kwargs: Annotated[
        Mapping[str, Any] | None,
        Option(
            None,
            """what else the model is called with, by name (classes, context); see
            :func:`fastscore.shared`.""",
        ),
    ]


class SeedOptions(TypedDict, total=False):
    """Where random numbers come from, and which samples of a larger batch they are for."""

    seed: Annotated[
        int | Sequence[int] | Tensor | None,
        Option(
            None,
            """governs all random numbers; None draws one from PyTorch's default generator. A
            sequence or int64 tensor (batch,) gives each sample a seed of its own, with which it
            meets the same random numbers in any batch.""",
        ),
    ]
    generator: Annotated[
        torch.Generator | None, Option(None, "where to draw the seed from instead.")
    ]
    sample_offset: Annotated[
        int,
        Option(
            0,
            """number of the first sample: a shard of a larger batch that starts at sample k meets,
            with ``sample_offset=k``, the random numbers that the whole batch would have there.""",
        ),
    ]
    samples: Annotated[
        Tensor | None,
        Option(
            None,
            """in place of ``sample_offset``, the number of each sample, int64 (batch,): any choice
            of samples meets what the whole batch would have for them. Samples of equal numbers
            meet the same random numbers.""",
        ),
    ]


class KeyOptions(SeedOptions, total=False):
    """The same, or a key on the device."""

    key: Annotated[
        Tensor | None,
        Option(
            None,
            """int64 tensor [seed, draw] on x's device (``fastscore.random.key``), or one for each
            sample, (batch, 2), in place of ``seed`` and ``generator``: for
            ``torch.compile(fullgraph=True)``, and for CUDA graphs, where adding 1 to ``key[1]``
            inside the graph gives fresh numbers at each replay.""",
        ),
    ]
