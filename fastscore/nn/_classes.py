"""Classes that a network is told, each as a vector that is learnt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastscore._support.checks import check_device, check_int, describe, fail, fail_type
from fastscore.ops._library import traced


class ClassEmbedding(nn.Embedding):
    """A vector for each class, from 0 on, and one more, of the number ``classes``, for none."""

    def __init__(self, fn: str, classes: int, width: int) -> None:
        self.fn, self.classes = fn, classes
        super().__init__(classes + 1, width)

    def of(self, label: Any, x: Tensor) -> Tensor:
        """The vectors of int64 labels (batch,), or of one number for all, (batch, width)."""
        way = f"given, int64 (batch,) in [0, {self.classes}), or {self.classes} for no class"
        if label is None:
            fail(self.fn, "label", way, None)
        if isinstance(label, int) and not isinstance(label, bool):
            if not 0 <= label <= self.classes:
                fail(self.fn, "label", way, label)
            return self(torch.full(x.shape[:1], label, device=x.device))
        if not isinstance(label, Tensor):
            fail_type(self.fn, "label", way, label)
        if label.dtype != torch.int64 or label.shape != x.shape[:1]:
            fail(self.fn, "label", f"{way}, for a batch of {len(x)}", describe(label))
        check_device(self.fn, "label", label, x.device, "where x is")
        if label.device.type == "cpu" and label.numel() and not traced():
            low, high = (int(end) for end in label.aminmax())
            if low < 0 or high > self.classes:
                fail(self.fn, "label", way, f"labels from {low} to {high}")
        return self(label)


def check_classes(fn: str, classes: Any) -> int | None:
    """How many classes there are; None for none."""
    return None if classes is None else check_int(fn, "classes", classes, minimum=1)


def refuse_label(fn: str, label: Any) -> None:
    """Of a network that was made without classes."""
    if label is not None:
        raise TypeError(f"{fn}: label must be left out for a network without classes=, got one")
