"""Schedules: the value of beta at each step of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf

from pyro_vae.errors import RequestError


class Schedule(ABC):
    """The weight beta of the KL at each step: strictly positive, for Pyro refuses a scale of 0.

    To write your own, subclass it and write `__call__`:

        class Decay(Schedule):
            def __call__(self, step):
                return 1 + 3 * 0.999**step
    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The value at `step`, the number of steps already taken."""


def value_at(schedule: Schedule, step: int) -> float:
    """The value of a schedule at a step.

    Raises:
        RequestError: If it is no positive, finite number.
    """
    value = schedule(step)
    if not (isinstance(value, int | float) and 0 < value < inf):
        raise RequestError(f"beta is {value!r} at step {step}: a schedule must give positive, finite numbers")
    return value


class Constant(Schedule):
    """The same value at every step.

    References:
        | beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017)
        | https://openreview.net/forum?id=Sy2fzU9gl

    Arguments:
        value: The value; 1 is the ELBO, more asks for a simpler code.

    Raises:
        ValueError: If `value` is not positive.

    Example:
        >>> Constant(4.0)(0)
        4.0
    """

    def __init__(self, value: float = 1.0) -> None:
        if not 0 < value < inf:
            raise ValueError(f"value must be positive, but is {value}; for almost no KL use a small value such as 1e-6")
        self.value = value

    def __call__(self, step: int) -> float:
        return self.value
