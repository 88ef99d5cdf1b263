"""Checks and draws shared by the exact scores."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from fastscore._support.checks import (
    check_device,
    check_floating,
    check_int,
    fail,
    fail_type,
)


def float_tensor(fn: str, arg: str, value: Any, like: Tensor | None = None) -> Tensor:
    """A floating-point tensor from a tensor, a number or nested lists of numbers.

    On the device and in the dtype of ``like``; without it, of a tensor's own floating dtype and
    of torch's default one for anything else.
    """
    dtype = torch.get_default_dtype() if like is None else like.dtype
    if isinstance(value, numpy.ndarray):  # refused as data are everywhere
        check_floating(fn, arg, value)
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value, dtype=dtype)
        except (TypeError, ValueError, RuntimeError):
            fail_type(fn, arg, "a tensor or nested lists of numbers", value)
    if value.is_complex() or value.dtype == torch.bool:
        fail(fn, arg, "real numbers", f"dtype {value.dtype}")
    if like is not None:
        return value.detach().to(like)
    return value.detach() if value.is_floating_point() else value.to(dtype)


def check_points(fn: str, x: Any, data_shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Points of shape (batch, *data_shape) on the device of ``like``."""
    check_floating(fn, "x", x, min_dim=1)
    if tuple(x.shape[1:]) != data_shape:
        expected = f"(batch, {', '.join(map(str, data_shape))})" if data_shape else "(batch,)"
        fail(fn, "x", f"of shape {expected}", f"shape {tuple(x.shape)}")
    check_device(fn, "x", x, like.device, "where this model is")
    return x


def sampling_generator(
    fn: str, seed: int | None, generator: torch.Generator | None, device: torch.device
) -> torch.Generator | None:
    """The generator that ``seed`` or ``generator`` asks for; None is torch's default one."""
    if seed is None:
        return generator
    if generator is not None:
        fail(fn, "seed", "left out when generator is given", seed)
    return torch.Generator(device).manual_seed(check_int(fn, "seed", seed, minimum=0))
