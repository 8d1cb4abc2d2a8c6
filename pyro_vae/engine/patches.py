"""Patches of Pyro and torch for the time of a step: nothing in it reads the value of a tensor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.infer.util
import pyro.util
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode


@contextmanager
def tensor_losses(*objectives: type) -> Iterator[None]:
    """Patch Pyro for the time of a loss, so that nothing waits for the value of a tensor.

    Losses stay tensors, NaN raises no warnings, and enumeration does not branch on probabilities.

    Arguments:
        *objectives: The classes of the objectives that the loss may use.
    """
    names = {"pyro.poutine.trace_struct"}
    for objective in objectives:
        names.update(cls.__module__ for cls in objective.__mro__)
    targets = []
    for module in filter(None, map(sys.modules.get, names)):
        for function, replacement in _TENSORS.items():
            if vars(module).get(function.__name__) is function:
                targets.append((module, function.__name__, replacement))
    with patched(*targets, *_ENUMERATION):
        yield


@contextmanager
def without_validation() -> Iterator[None]:
    """Switch validation off, also that of distributions made before.

    They keep theirs when they are expanded.
    """
    with (
        pyro.validation_enabled(False),
        patched((Distribution, "_validate_sample", lambda self, value: None)),
    ):
        yield


@contextmanager
def patched(*targets: tuple[Any, str, Any]) -> Iterator[None]:
    """Replace attributes, given as (owner, name, value), and restore them at the end."""
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in targets]
    try:
        for owner, name, value in targets:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _detached(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach()
    return x


_TENSORS: dict[Callable[..., Any], Callable[..., Any]] = {
    pyro.infer.util.torch_item: _detached,
    pyro.util.warn_if_nan: lambda value, *args, **kwargs: value,
    pyro.util.warn_if_inf: lambda value, *args, **kwargs: value,
}


class _AllTrue(TorchFunctionMode):
    """Makes `mask.all()` True."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.all:
            return True
        return func(*args, **(kwargs or {}))


def _expectation(self: Any, costs: Any) -> Any:
    with _AllTrue():
        return _compute_expectation(self, costs)


def _expected_cost(prob: Tensor, cost: Tensor) -> Tensor:
    return (prob * cost.masked_fill(prob == 0, 0)).sum()


# Pyro drops costs of probability zero, which may be infinite, behind a branch; these multiply all
# with a finite number.
_compute_expectation = pyro.infer.util.Dice.compute_expectation
_ENUMERATION = [
    (pyro.infer.util.Dice, "compute_expectation", _expectation),
    (pyro.infer.util, "_fulldot", _expected_cost),
]
