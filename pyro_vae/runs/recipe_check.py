"""Validate recipes, from the command line and from run folders, by the same rules."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from inspect import Parameter, isabstract
from types import NoneType
from typing import Any, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from pyro_vae.data.datasets import NAMED
from pyro_vae.errors import RequestError
from pyro_vae.runs.annotations import (
    accepts_text,
    converted,
    describe,
    hints,
    is_callable,
    items,
    known_for,
    lists_code,
    members,
    names_code,
    parameters,
    result,
    union,
)
from pyro_vae.runs.parts import PARTS, Choice, known_classes, resolve

# Largest values of options, far above useful ones: they bound memory and time before anything is
# built. All of them count something, so that they are at least 1.
LIMITS = {
    "image_size": 1024,
    "image_shape": 1024,
    "latent_dim": 2**14,
    "prior_dim": 2**14,
    "hidden": 2**14,
    "channels": 2**12,
    "kernel_sizes": 2**8,
    "strides": 2**8,
    "components": 2**16,
    "transforms": 2**6,
    "rank": 2**14,
    "num_particles": 2**14,
    "groups": 2**14,
    "cycles": 2**20,
}
# Of all other integers.
LARGEST = 10**12
LONGEST_LIST = 1000
SEEDS = range(2**32)
# Options of the recipe itself that may be 0.
MAY_BE_ZERO = ("seed", "test_samples")


class UntrustedError(RequestError):
    """A recipe names code that is not of the known classes."""


@dataclass(frozen=True)
class Check:
    """The checks of a recipe, before anything is built or loaded.

    Attributes:
        trust: Whether it may name any class; naming one imports its module, which runs code.
        allowed: Import paths that it may name besides the known classes.
    """

    trust: bool
    allowed: Collection[str]

    def recipe(self, recipe: Any) -> None:
        """Raise `RequestError` if a name, a type or a value is wrong."""
        for name, hint in get_type_hints(type(recipe)).items():
            value = getattr(recipe, name)
            if name not in PARTS:
                self.value(name, value, hint)
            elif value is not None:
                self.part(name, value)
            elif PARTS[name].default is not None:
                choices = PARTS[name].choices
                raise RequestError(f"{name} must be a class, but is null; choose from {choices}")
        is_plain = recipe.data in ("auto", *NAMED) or os.path.isabs(recipe.data)
        if not is_plain and not self._trusts(recipe.data):
            raise _untrusted("data", recipe.data)

    def part(self, name: str, choice: Choice) -> None:
        """Check the class of a part and its options."""
        part = PARTS[name]
        cls = self._target(name, choice.class_path, known_classes(name))
        if not isinstance(cls, type) or not issubclass(cls, part.base) or isabstract(cls):
            wrong = f"{choice.class_path} is not a subclass of {part.base.__name__}"
            raise RequestError(f"{name}: {wrong}; choose from {part.choices}")
        if cls in part.unsupported:
            raise RequestError(
                f"{name}: {choice.class_path} is not supported; choose from {part.choices}"
            )
        self._options(name, cls, choice.options, part.supplied, part.types)

    def value(self, name: str, value: Any, hint: Any) -> None:
        """Check a plain value against the annotation of its parameter."""
        _check_size(name, value)
        kinds = members(hint)
        if lists_code(value, kinds):
            for number, each in enumerate(value):
                self.value(f"{name}[{number}]", each, union(items(kinds)))
        elif names_code(value, kinds):
            self._nested(name, Choice.read(name, value), kinds)
        else:
            _check_type(name, value, kinds)

    def _nested(self, name: str, choice: Choice, kinds: tuple[Any, ...]) -> None:
        """Check a class or function that is the value of an option."""
        target = self._target(name, choice.class_path, known_for(kinds))
        if not isinstance(target, type):
            _check_function(name, choice, target, kinds)
            return
        bases = tuple(base for base in map(result, kinds) if isinstance(base, type))
        if not issubclass(target, bases) or isabstract(target):
            wanted = " or ".join(base.__name__ for base in bases if base is not NoneType)
            raise RequestError(f"{name}: {choice.class_path} is not a subclass of {wanted}")
        self._options(name, target, choice.options, {}, {})

    def _target(self, name: str, path: str, known: Mapping[str, Any]) -> Any:
        """The class or function of an import path."""
        if path in known:
            return known[path]
        if "." not in path:
            names = ", ".join(each for each in known if "." not in each)
            raise RequestError(f"{name}: there is no class {path}; choose from {names}")
        if not self._trusts(path):
            raise _untrusted(name, path)
        return resolve(name, path)

    def _trusts(self, path: str) -> bool:
        return self.trust or path in self.allowed

    def _options(
        self,
        name: str,
        cls: type,
        options: Mapping[str, Any],
        supplied: Collection[str],
        types: Mapping[str, Any],
    ) -> None:
        """Check the options of a class against its constructor."""
        accepted = parameters(cls, supplied)
        kinds = [param.kind for param in accepted.values()]
        annotated = {**hints(cls), **types}
        for key, value in options.items():
            if key in accepted:
                self.value(f"{name}.{key}", value, annotated.get(key, Any))
            elif Parameter.VAR_KEYWORD not in kinds:
                listed = ", ".join(accepted) or "none"
                raise RequestError(
                    f"{name}: {cls.__name__} has no option {key}; its options are: {listed}"
                )
        for key, param in accepted.items():
            is_named = param.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
            if is_named and param.default is Parameter.empty and key not in options:
                raise RequestError(f"{name}: {cls.__name__} needs the option {key}")


def _untrusted(name: str, path: str) -> UntrustedError:
    advice = "to run its module's code, add --trust, or trust=True in Python"
    return UntrustedError(f"{name} names {path}; {advice}")


def _check_type(name: str, value: Any, kinds: tuple[Any, ...]) -> None:
    # In Python a bool is an int, and text is a sequence.
    is_bool = isinstance(value, bool) and not {bool, Any} & {*kinds}
    if isinstance(value, list) and not {bool, Any} & {*items(kinds)}:
        is_bool = any(isinstance(each, bool) for each in value)
    is_text = isinstance(value, str) and not any(accepts_text(hint) for hint in kinds)
    if not is_bool and not is_text:
        try:
            check_type(
                converted(value, kinds),
                union(kinds),
                collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS,
            )
            return
        except TypeCheckError:
            pass
    raise RequestError(f"{name} must be {describe(kinds)}, but is {_short(value)}")


def _check_function(name: str, choice: Choice, target: Any, kinds: tuple[Any, ...]) -> None:
    callables = [hint for hint in kinds if is_callable(hint)]
    if choice.options or not callables:
        raise RequestError(f"{name}: {choice.class_path} is not a class")
    try:
        check_type(target, union(tuple(callables)))
    except TypeCheckError as error:
        raise RequestError(
            f"{name}: {choice.class_path} needs other arguments than it is called with"
        ) from error


def _check_size(name: str, value: Any) -> None:
    """Refuse numbers and lists that would cost unbounded memory or time."""
    if isinstance(value, list):
        if len(value) > LONGEST_LIST:
            raise RequestError(f"{name} has {len(value):,} entries; use at most {LONGEST_LIST:,}")
        for each in value:
            _check_size(name, each)
    elif isinstance(value, float) and math.isnan(value):
        raise RequestError(f"{name} must be a number, but is NaN")
    elif isinstance(value, int) and not isinstance(value, bool):
        _check_integer(name, value)


def _check_integer(name: str, value: int) -> None:
    option = name.rpartition(".")[2]
    least = -LARGEST
    limit = LIMITS.get(option, LARGEST)
    wanted = f"an integer up to {limit}"
    if name == "seed":
        limit = SEEDS[-1]
    if name in MAY_BE_ZERO:
        least = 0
        wanted = f"an integer from 0 to {limit}"
    elif option in LIMITS:
        least = 1
        wanted = f"an integer from 1 to {limit}"
    elif option == name:
        least = 1
        wanted = "a positive integer"
    if not least <= value <= limit:
        raise RequestError(f"{name} must be {wanted}, but is {_short(value)}")


def _short(value: Any) -> str:
    """A value for a message; Python does not print integers of more than 4,300 digits."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length():,} bits"
    text = repr(value)
    if len(text) >= 100:
        text = f"{text[:100]}..."
    return text
