"""Functions that are known by the name "package.module:function"."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from fastscore._support.checks import fail, fail_type

EXPECTED = 'a name "package.module:function"'
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def check_name(fn: str, arg: str, name: Any) -> str:
    """Of the right form; nothing is imported."""
    if not isinstance(name, str):
        fail_type(fn, arg, EXPECTED, name)
    if not _NAME.fullmatch(name):
        fail(fn, arg, EXPECTED, repr(name))
    return name


def find_function(fn: str, arg: str, name: str) -> Callable[..., Any]:
    """Import the function, or class, of that name.

    Raises:
        ImportError: the module can't be imported.
        ValueError: there is no such function in it.

    >>> find_function("f", "builder", "fractions:Fraction.from_float")(0.5)
    Fraction(1, 2)
    """
    module, _, path = check_name(fn, arg, name).partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the module's code raises
        reason = f"{type(error).__name__}: {error}"
        raise ImportError(f"{fn}: {arg}={name!r} can't be imported ({reason})") from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        fail(fn, arg, f"a function or a class of {module}", repr(name))
    return found
