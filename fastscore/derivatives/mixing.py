"""Models whose samples depend on one another, which have no exact trace by unit vectors.

A unit vector e_i is carried for the whole batch at once: J e_i at a sample b is its own derivative
only where the other samples' inputs do not enter. With a sign r_b of each sample, r_b e_i carried
and the result times r_b, independent samples give the same to the last bit, and others another
result for other signs. One direction is carried with two sets of signs to tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastscore._support.checks import largest
from fastscore._support.eager import compiled_parts_run_eagerly
from fastscore._support.inference import is_captured
from fastscore._support.known import known_as, known_of
from fastscore._support.reach import modules_of
from fastscore._support.rewind import Rewind
from fastscore.derivatives.call import Call

# Rounding, where a direction's place in the pass decides the order of a sum.
TOLERANCE, HALF_TOLERANCE = 2e3, 0.1


class MixedSamples(ValueError):
    """An exact trace was asked for, of a model whose samples depend on one another."""


def mixes_samples(model: Callable[..., Any]) -> bool:
    """Whether the model normalises by the statistics of its batch, as far as its modules tell."""
    return any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or m.running_mean is None)
        for m in modules_of(model)
    )


def refuse_mixed_samples(fn: str, model: Callable[..., Any], *, found: bool = False) -> None:
    """A unit vector is one for the whole batch: it would meet other samples' derivatives too.

    What a function reaches it need not use: there it is for the signs to find out.
    """
    certain = isinstance(model, nn.Module) or torch._C._are_functorch_transforms_active()
    expected = "one whose samples do not depend on one another, for an exact trace"
    if found:
        got = "one where the derivative of a sample's output depends on other samples"
    elif certain and mixes_samples(model):
        got = "one with a BatchNorm layer that takes the statistics of its batch"
    else:
        return
    raise MixedSamples(f"{fn}: model must be {expected}, got {got}")


class SampleSigns:
    """A fixed sign for each sample, and the two directions that tell whether signs matter."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        # In a function transform nothing may be decided by values.
        self.checked = len(x) > 1 and not torch._C._are_functorch_transforms_active()
        self.checked &= not is_captured(x)
        self.signs = _signs(len(x), x) if self.checked else None

    @classmethod
    def of(cls, model: Callable[..., Any], x: Tensor) -> SampleSigns:
        """Signs that are looked at; on a GPU, where the host would wait, the first time only."""
        signs = cls(x)
        if x.is_cuda and signs.checked:
            known, situation = known_of(model), ("apart", modes_of(model))
            signs.checked = situation not in known
            known[situation] = True
        return signs

    def applied_to(self, vs: Tensor) -> Tensor:
        """``(M, batch, ...)`` times the sign of each sample."""
        if self.signs is None:
            return vs
        return vs * self.signs.reshape(-1, *(1,) * (vs.dim() - 2))

    def with_probes(self, vs: Tensor, dimensions: int) -> Tensor:
        """``vs`` and, after them, a dense direction with one sign for all samples.

        Where ``vs`` are not all of the unit vectors, whose sum it is, it comes with signs as well.
        """
        if not self.checked:
            return vs
        entries = _signs(dimensions, self.x).reshape(self.x.shape[1:])
        probe = entries.expand_as(self.x).unsqueeze(0)
        probes = [probe] if len(vs) == dimensions else [probe, self.applied_to(probe)]
        return torch.cat([vs, *probes])

    def depend_on_one_another(self, products: Tensor, count: int) -> bool:
        """Whether the probe's product is another than with signs; ``products`` with the probes."""
        if not self.checked:
            return False
        products = products.detach()
        probe, given = products[count], products[:count]
        if len(products) == count + 2:
            given, signed = probe, products[count + 1]
        else:
            signed = (_signs(count, products) @ given.flatten(1)).view(probe.shape)
        scale = largest(given) * count**0.5 if count else largest(given)
        return far_apart(probe, self.applied_to(signed[None])[0], scale)


def far_apart(a: Tensor, b: Tensor, scale: float) -> bool:
    epsilon = torch.finfo(a.dtype).eps
    tolerance = TOLERANCE * epsilon if epsilon < 1e-6 else HALF_TOLERANCE
    return largest(a - b) > tolerance * scale


def _signs(count: int, like: Tensor) -> Tensor:
    """The first of the fixed signs, a row that grows as it is needed."""
    place = like.device, like.dtype
    if place not in _SIGNS or len(_SIGNS[place]) < count:
        with torch.inference_mode(False), torch.no_grad():
            _SIGNS[place] = _draw_signs(2 * count, like)
    return _SIGNS[place][:count]


_SIGNS: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _draw_signs(count: int, like: Tensor) -> Tensor:
    """Signs without a pattern: bits of the golden ratio's multiples, twice scrambled."""
    n = torch.arange(count, device=like.device)
    mixed = (n * 2654435761 + 12345) % 2**32
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) % 2**32
    mixed = mixed ^ (mixed >> 13)
    return (1 - 2 * ((mixed >> 7) & 1)).to(like.dtype)


def modes_of(model: Callable[..., Any]) -> tuple[tuple[int, bool], ...]:
    """Which modules a model reaches, and whether they are in training."""
    return tuple((id(m), m.training) for m in modules_of(known_as(model)))


def samples_depend_on_one_another(products: Tensor, x: Tensor) -> bool:
    """Of the products of the two directions of :func:`two_probes`."""
    signs = SampleSigns(x)
    return signs.checked and signs.depend_on_one_another(products, 0)


def two_probes(x: Tensor) -> Tensor:
    """A direction with one sign for all samples, and with one for each: (2, *x.shape)."""
    signs = SampleSigns(x)
    empty = x.new_zeros(0, *x.shape)
    return signs.with_probes(empty, x[0].numel()) if signs.checked else torch.zeros_like(x)[None]


def values_depend_on_one_another(call: Call, x: Tensor) -> bool:
    """Whether a module gives other outputs, or none, where two batches come as one.

    Of a function, which may be around anything, it is taken for granted. What is found out is
    remembered for the module, the modes of all modules that it reaches, and its arguments by name.
    """
    if not isinstance(call.model, nn.Module) or mixes_samples(call.model):
        return True
    if torch._C._are_functorch_transforms_active() or not len(x):
        return False
    situation = "mixes", modes_of(call.model), _outline(call.kwargs)
    known = known_of(call.model)
    if situation not in known:
        rewind = Rewind(call.model, x)
        with torch.no_grad(), compiled_parts_run_eagerly():
            other = 1 - 2 * x
            apart = torch.cat([call.output(x), call.output(other)])
            twice = call.changed(len(x), lambda value: torch.cat([value, value]))
            try:
                together = twice.output(torch.cat([x, other]))
                differ = far_apart(apart, together, largest(apart))
            except Exception:  # what belongs to the samples is held by the module
                differ = True
        known[situation] = differ and not rewind.has_drawn()
        rewind()
    return bool(known[situation])


def _outline(value: Any) -> Any:
    """What can be told of arguments without reading tensors: their shapes, and numbers."""
    if isinstance(value, dict):
        return tuple((name, _outline(entry)) for name, entry in value.items())
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return value if isinstance(value, (bool, int, float, str)) else type(value)
