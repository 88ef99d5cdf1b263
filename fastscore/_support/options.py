"""Options that several functions share: declared, documented and given their defaults once.

They stand in a TypedDict whose entries are ``Annotated[type, Option(default, doc)]``, so that type
checkers know them by ``**options: Unpack[...]``, and ``help`` and ``inspect.signature`` by what
:func:`takes_options` writes down.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, TypeVar, get_type_hints

from fastscore._support.renamed import with_new_names
from fastscore._support.signatures import written

# What a network may call its classes; in the losses, levels are near to them in spelling.
CLASSES = ("class_label", "class_labels", "classes", "label", "labels", "y")

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class Option(NamedTuple):
    """The default of an option, what ``help`` says of it, and the name that it once had."""

    default: Any
    doc: str
    was: str | None = None  # works for one more version


class Declared(NamedTuple):
    """The options of a TypedDict, by name."""

    options: dict[str, Option]
    parameters: list[inspect.Parameter]
    defaults: dict[str, Any]
    renamed: dict[str, str]  # old names, and the new


@functools.cache
def declared(kind: type) -> Declared:
    """What the TypedDict ``kind`` declares."""
    hints = get_type_hints(kind, include_extras=True)
    options = {name: hint.__metadata__[0] for name, hint in hints.items()}
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=hints[name].__origin__,
        )
        for name, option in options.items()
    ]
    defaults = {name: option.default for name, option in options.items()}
    renamed = {option.was: name for name, option in options.items() if option.was is not None}
    return Declared(options, parameters, defaults, renamed)


def takes_options(kind: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function of ``**options: Unpack[kind]`` all of them, the defaults where left out.

    An unknown name is a TypeError that says so. The function's signature and the section ``Args``
    of its docstring list every option; an ``__init__`` without a docstring points to its class's.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        defaults, renamed = declared(kind).defaults, declared(kind).renamed
        signature = inspect.signature(function)
        own = list(signature.parameters.values())[:-1]
        known = {p.name for p in own} | set(defaults)
        name = public_name(function)

        @functools.wraps(function)
        def complete(*args: Any, **kwargs: Any) -> Any:
            if not known.issuperset(kwargs):
                kwargs = with_new_names(name, renamed, kwargs)
                refuse_unknown(name, known, kwargs, renamed)
            return function(*args, **{**defaults, **kwargs})

        parameters = sorted([*own, *declared(kind).parameters], key=lambda p: p.kind)
        set_signature(complete, parameters, signature.return_annotation)
        complete.__doc__ = with_options(function.__doc__, kind)
        if function.__name__ == "__init__" and complete.__doc__ is None:
            complete.__doc__ = "See the class."
        return complete

    return decorate


def hands_on_to(other: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function of ``**options`` that it hands on the keywords of the one that takes them.

    An unknown name is a TypeError that says so, before any work. The signature lists them all, with
    their defaults; what they mean stands in the other's docstring.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = list(signature.parameters.values())[:-1]
        names = {p.name for p in own}
        keywords = [
            p
            for p in inspect.signature(other).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in names
        ]
        known = names | {p.name for p in keywords}
        name = public_name(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            refuse_unknown(name, known, kwargs)
            return function(*args, **kwargs)

        parameters = sorted([*own, *keywords], key=lambda p: p.kind)
        set_signature(checked, parameters, signature.return_annotation)
        return checked

    return decorate


def documents(kind: type) -> Callable[[C], C]:
    """List the options of ``kind`` in the docstring of a class that takes them."""

    def decorate(cls: C) -> C:
        cls.__doc__ = with_options(cls.__doc__, kind)
        return cls

    return decorate


def public_name(function: Callable[..., Any]) -> str:
    """What messages call a function: a class by its own name, not by ``__init__``."""
    owner, _, name = function.__qualname__.rpartition(".")
    return owner if name in ("__init__", "forward") else name


def set_signature(
    function: Callable[..., Any],
    parameters: Iterable[inspect.Parameter],
    returns: Any = inspect.Signature.empty,
) -> None:
    """Let ``help`` and ``inspect`` show these parameters, their types as they are written."""
    shown = [p.replace(annotation=written(p.annotation)) for p in parameters]
    signature = inspect.Signature(shown, return_annotation=written(returns))
    setattr(function, "__signature__", signature)  # noqa: B010


def refuse_unknown(
    fn: str,
    known: Collection[str],
    given: Iterable[str],
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """The TypeError that names an option which is not there, and the one that was meant."""
    names = sorted([*known, *renamed])
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {renamed.get(close[0], close[0])!r}?)" if close else ""
            if "model_kwargs" in known and (not close or name in CLASSES):
                hint = f" (what the model takes goes into model_kwargs={{{name!r}: ...}})"
            raise TypeError(f"{fn}: there is no option {name!r}{hint}")


def with_options(doc: str | None, *kinds: type) -> str | None:
    """A docstring with the options of ``kinds`` at the end of its section ``Args``."""
    if doc is None:  # python -OO
        return None
    section = re.search(r"^( *)Args:\n", doc, re.MULTILINE)
    if section is None:
        return doc
    margin = section[1]
    end = re.compile(rf"\n\n{margin}\S|\n{margin}?$|\Z").search(doc, section.end())
    assert end is not None
    entries = "".join(_entry(name, o, margin) for k in kinds for name, o in declared(k)[0].items())
    return doc[: end.start()] + entries + doc[end.start() :]


def _entry(name: str, option: Option, margin: str) -> str:
    text = f"{name}: {' '.join(option.doc.split())}"
    first, rest = margin + " " * 4, margin + " " * 8
    return "\n" + textwrap.fill(
        text, 100, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
