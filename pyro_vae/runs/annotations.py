"""What the annotation of a constructor's parameter says about the plain value of an option."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pyro_vae.runs.parts import PARTS, is_choice, known_callables, known_classes


def parameters(cls: type, supplied: Collection[str]) -> dict[str, Parameter]:
    """The parameters of a constructor that are options."""
    every = signature(cls).parameters
    return {key: param for key, param in every.items() if key not in supplied}


def hints(cls: Any) -> dict[str, Any]:
    """The annotations of a constructor; empty if they cannot be read."""
    for names in (None, vars(typing)):  # torch imports names of annotations for checkers only
        with suppress(NameError, TypeError, AttributeError):
            return get_type_hints(cls.__init__, localns=names)
    return {}


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; otherwise the type alone."""
    if get_origin(hint) in (Union, UnionType):
        return get_args(hint)
    return (hint,)


def union(kinds: tuple[Any, ...]) -> Any:
    """The union of types."""
    return Union[kinds]  # noqa: UP007 (of a tuple)


def items(kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types of the items of those types that are lists."""
    lists = (list, tuple, Sequence, Iterable)
    return tuple(get_args(hint)[0] for hint in kinds if get_origin(hint) in lists) or (Any,)


def is_callable(hint: Any) -> bool:
    """Whether the type is that of a function or class."""
    return get_origin(hint) is get_origin(Callable[[], Any])


def result(hint: Any) -> Any:
    """What a callable returns; another type itself."""
    if is_callable(hint):
        return get_args(hint)[1]
    return hint


def accepts_text(hint: Any) -> bool:
    """Whether values of a type are plain text."""
    return hint in (str, Any, Path) or get_origin(hint) is Literal


def names_code(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether the plain value of a parameter of these types stands for a class or a function."""
    if is_choice(value):
        return True
    if not isinstance(value, str) or any(accepts_text(hint) for hint in kinds):
        return False
    return any(is_callable(hint) or parts_of(hint) for hint in kinds)


def lists_code(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a plain value is a list with an item that stands for a class or a function."""
    return isinstance(value, list) and any(names_code(each, items(kinds)) for each in value)


def parts_of(hint: Any) -> list[str]:
    """The parts whose base class a type is."""
    return [name for name, part in PARTS.items() if hint is part.base]


def known_for(kinds: tuple[Any, ...]) -> dict[str, Any]:
    """The known classes and functions for a parameter of these types."""
    known: dict[str, Any] = {}
    for hint in kinds:
        if is_callable(hint):
            known |= known_callables()
        for name in parts_of(hint):
            known |= known_classes(name)
    return known


def converted(value: Any, kinds: tuple[Any, ...]) -> Any:
    """A plain value as the parameter takes it: YAML has neither tuples nor paths."""
    if isinstance(value, list) and any(get_origin(hint) is tuple for hint in kinds):
        return tuple(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    return value


_DESCRIPTIONS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
}


def describe(kinds: tuple[Any, ...]) -> str:
    """Types, for messages."""
    return " or ".join(_describe(hint) for hint in kinds if hint is not NoneType)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if is_callable(hint):
        return "an import path, such as torch.nn.Tanh"
    if get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        return f"a list of {len(get_args(hint))} values"
    if get_origin(hint) is not None:
        return "a list such as [2, 3]"
    return _DESCRIPTIONS.get(hint, getattr(hint, "__name__", str(hint)))
