"""Packages that only some functions need: where one is missing, the message mends it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType


def require(fn: str, module: str, package: str, *, what: str = "") -> ModuleType:
    """The module of an optional package; call it before any work.

    Args:
        fn: the function on whose behalf it is asked for.
        module: its name in an import statement.
        package: its name for pip.
        what: what of ``fn`` needs it, if not all of it does.

    Raises:
        ImportError: it is missing; the message ends in the command that installs it.

    >>> require("sample", "no_such_module", "no-such-package", what="--progress")
    Traceback (most recent call last):
    ImportError: sample: --progress needs no-such-package: pip install no-such-package
    """
    return require_all(fn, {module: package}, what=what)[0]


def require_all(fn: str, packages: Mapping[str, str], *, what: str = "") -> list[ModuleType]:
    """Several modules, as {module: package}; one message and one command for all that are missing.

    >>> require_all("f", {"math": "maths", "no_such_a": "a", "no_such_b": "b", "no_such_c": "c"})
    Traceback (most recent call last):
    ImportError: f: needs a, b and c: pip install a b c
    """
    found, missing = [], []
    for module, package in packages.items():
        try:
            found.append(importlib.import_module(module))
        except ModuleNotFoundError:
            missing.append(package)
        except ImportError as error:  # it is there, but does not work
            raise ImportError(f"{fn}: needs {package}, which fails to import: {error}") from error
    if missing:
        subject = f"{what} needs" if what else "needs"
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise ImportError(f"{fn}: {subject} {names}: pip install {' '.join(missing)}")
    return found
