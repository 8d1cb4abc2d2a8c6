"""Schedules: the value of beta at each step of training."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Schedule(ABC):
    """The weight beta of the KL at each step: strictly positive, for Pyro refuses a scale of 0.

    To write your own, subclass it and write `__call__`:

        class Halving(Schedule):
            def __call__(self, step):
                return 0.5**step
    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The value at `step`, the number of steps already taken."""


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
        if not 0 < value < float("inf"):
            raise ValueError(f"value must be positive, but is {value}; for almost no KL use a small value such as 1e-6")
        self.value = value

    def __call__(self, step: int) -> float:
        return self.value
