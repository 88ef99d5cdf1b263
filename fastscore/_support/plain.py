"""Settings as JSON and back, so that what is read equals what was written.

Beside JSON's own values there are tuples and PyTorch's dtypes; everything else is refused.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch

from fastscore._support.checks import fail, fail_type

EXPECTED = "a number, a string, True, False, None, a torch.dtype, or a list, tuple or dictionary"
TUPLE, DTYPE = "__tuple__", "__dtype__"


def to_json(fn: str, arg: str, value: Any) -> str:
    """As text. A bad value is named by its place: ``sampling['clamp'][0]``.

    >>> text = to_json("f", "settings", {"clamp": (0, None), "autocast": torch.bfloat16})
    >>> from_json(text)
    {'clamp': (0, None), 'autocast': torch.bfloat16}
    """
    return json.dumps(_plain(fn, arg, value), allow_nan=False)


def from_json(text: str) -> Any:
    """What :func:`to_json` was given.

    Raises:
        ValueError: no JSON, or a dtype that PyTorch doesn't have.
    """
    return json.loads(text, object_hook=_restored)


def _plain(fn: str, arg: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):  # numpy's too
        if not math.isfinite(value):
            fail(fn, arg, "finite", value)
        return float(value)
    if isinstance(value, torch.dtype):
        return {DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        entries = [_plain(fn, f"{arg}[{i}]", entry) for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else {TUPLE: entries}
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                fail_type(fn, f"the key {name!r} of {arg}", "a string", name)
            if name in (TUPLE, DTYPE):
                fail(fn, arg, f"a dictionary without the reserved key {name!r}", "one with it")
        return {name: _plain(fn, f"{arg}[{name!r}]", entry) for name, entry in value.items()}
    fail_type(fn, arg, EXPECTED, value)


def _restored(entries: dict[str, Any]) -> Any:
    if entries.keys() == {TUPLE}:
        return tuple(entries[TUPLE])
    if entries.keys() == {DTYPE}:
        dtype = getattr(torch, str(entries[DTYPE]), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"there is no torch.{entries[DTYPE]}")
        return dtype
    return entries
