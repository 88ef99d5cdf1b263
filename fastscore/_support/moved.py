"""Modules that have moved: their old names work for one more version, with a DeprecationWarning."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

_MOVED = {
    "bench": "apps.bench",
    "cli": "apps.cli",
    "closed_form": "derivatives.closed_form",
    "demo": "apps.demo",
    "divergence": "derivatives.hutchinson",
    "files": "_support.files",
    "info": "apps.info",
    "jvp": "derivatives.forward",
    "memory": "_support.memory",
    "metrics": "evaluation.fisher",
    "nn.checkpoint": "checkpoint",
    "ops.dual": "ops.duals",
    "quality": "evaluation.distances",
    "reference.dual": "reference.duals",
    "samplers.langevin": "samplers.unadjusted",
    "slicing": "derivatives.projections",
    "traces": "derivatives.traces",
}


class _Moved(ModuleType):
    """A module's old name. Where a function has that name too, it can be called as the function."""

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module(self.__dict__["new"])
        if name == "__all__":
            return getattr(module, name, [n for n in vars(module) if n[0] != "_"])
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = _new_name(fullname)
        found = None if new is None else importlib.util.find_spec(new)
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, self, is_package=is_package)

    def get_code(self, fullname: str) -> CodeType:
        """For ``python -m``."""
        run = f"import runpy; runpy.run_module({_new_name(fullname)!r}, run_name='__main__')"
        return compile(run, fullname, "exec")

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = _new_name(spec.name)
        module = _Moved(spec.name, f"The old name of :mod:`{new}`.")
        module.__dict__["new"] = new
        return module

    def exec_module(self, module: ModuleType) -> None:
        new = module.__dict__["new"]
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)


def _new_name(fullname: str) -> str | None:
    package, _, rest = fullname.partition(".")
    if package != "fastscore":
        return None
    for old, new in _MOVED.items():
        if rest == old or rest.startswith(f"{old}."):
            return f"fastscore.{new}{rest[len(old) :]}"
    return None


def keep_old_names() -> None:
    """Let the old names be imported; a module that is really there comes first."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
