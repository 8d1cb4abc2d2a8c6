"""The exceptions that end a command with one line, without a traceback, and shared checks."""

from math import inf
from numbers import Integral
from typing import Any, get_args


class RequestError(ValueError):
    """A request that cannot be carried out; one line says what to do instead. Exit code 2."""

    def __init__(self, message: str) -> None:
        # Pyro appends the shapes to a ValueError that is raised in a program.
        line, _, _ = message.partition("\nTrace Shapes:")
        super().__init__("".join(map(_printable, line)))


class NotFiniteError(ArithmeticError):
    """The loss became NaN or infinite. Exit code 1."""


class StorageError(OSError):
    """A file could not be written. Exit code 1."""


class LostWorkerError(RuntimeError):
    """A worker process of a distributed job exited. Exit code 1."""


class TerminatedError(BaseException):
    """The process received SIGTERM. Exit code 143."""


def _printable(letter: str) -> str:
    if letter.isprintable():
        return letter
    return repr(letter)[1:-1]


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0]


def check_positive(**values: float | None) -> None:
    """Raise `RequestError` unless every value that is given is positive and finite.

    Example:
        >>> check_positive(rank=1, scale=-2.0)
        Traceback (most recent call last):
        pyro_vae.errors.RequestError: scale must be positive, but is -2.0
    """
    for name, value in values.items():
        if value is not None and not 0 < value < inf:
            raise RequestError(f"{name} must be positive, but is {value}")


def check_count(**values: int | None) -> None:
    """Raise `RequestError` unless every value that is given is a positive integer."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, Integral) and value > 0):
            raise RequestError(f"{name} must be a positive integer, but is {value!r}")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise `RequestError` unless `value` is one of the values of the Literal type `choices`."""
    allowed = get_args(choices)
    if value not in allowed:
        names = ", ".join(map(str, allowed))
        raise RequestError(f"{name} must be one of {names}, but is {value!r}")
