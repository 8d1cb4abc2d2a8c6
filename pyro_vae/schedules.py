"""Schedules: the value of beta at each step of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import cos, exp, inf, pi

from pyro_vae.errors import RequestError

SMALLEST = 1e-30
"""What a schedule may give is raised to this, for much less would be zero in float32."""


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
    return max(value, SMALLEST)


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


class Ramp(Schedule):
    r"""A rise to `end` within a number of steps, :math:`\beta_t = \mathrm{end} \cdot f((t + 1) / \mathrm{steps})`.

    The step after the last of the ramp has its end. To write your own, subclass it and write `shape`.

    Arguments:
        epochs: Length of the ramp in epochs, or
        steps: its length in steps.
        end: The value after it.
        steps_per_epoch: Steps in an epoch, if the length is given in epochs.

    Raises:
        ValueError: If the length is not given exactly once, or a number is not positive.
    """

    def __init__(
        self,
        epochs: float | None = None,
        steps: int | None = None,
        end: float = 1.0,
        steps_per_epoch: int | None = None,
    ) -> None:
        self.steps, self.end = _length(epochs, steps, steps_per_epoch), end
        if not 0 < end < inf:
            raise ValueError(f"end must be positive, but is {end}")

    def __call__(self, step: int) -> float:
        return max(SMALLEST, self.end * self.shape((step + 1) / self.steps))

    @abstractmethod
    def shape(self, progress: float) -> float:
        """The share of the end at `progress` through the ramp, which is over 0, and over 1 after its end."""


class Linear(Ramp):
    r"""A straight rise, the warm-up of Sønderby et al.: :math:`f(u) = \min(u, 1)`.

    References:
        | Ladder Variational Autoencoders (Sønderby et al., 2016)
        | https://arxiv.org/abs/1602.02282

    Example:
        >>> [Linear(steps=4)(step) for step in range(6)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    def shape(self, progress: float) -> float:
        return min(progress, 1.0)


class Cosine(Ramp):
    r"""A smooth rise, half a period of a cosine: :math:`f(u) = (1 - \cos(\pi \min(u, 1))) / 2`."""

    def shape(self, progress: float) -> float:
        return (1 - cos(pi * min(progress, 1.0))) / 2


class Sigmoid(Ramp):
    r"""A logistic rise about the middle of its length, :math:`f(u) = 1 / (1 + e^{-k (u - 1/2)})`.

    It starts a little above 0 and goes on towards the end after its length.

    References:
        | Generating Sentences from a Continuous Space (Bowman et al., 2016)
        | https://arxiv.org/abs/1511.06349

    Arguments:
        epochs: Length of the ramp in epochs, or
        steps: its length in steps.
        end: The value that it goes towards.
        steepness: The factor k.
        steps_per_epoch: Steps in an epoch, if the length is given in epochs.

    Raises:
        ValueError: If the length is not given exactly once, or a number is not positive.
    """

    def __init__(
        self,
        epochs: float | None = None,
        steps: int | None = None,
        end: float = 1.0,
        steepness: float = 10.0,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__(epochs, steps, end, steps_per_epoch)
        if not 0 < steepness < 100:
            raise ValueError(f"steepness must be positive and under 100, but is {steepness}")
        self.steepness = steepness

    def shape(self, progress: float) -> float:
        return 1 / (1 + exp(-self.steepness * (progress - 0.5)))


class Cyclical(Schedule):
    r"""Linear rises, each followed by a time at the end: a code that has collapsed is given another chance.

    Each cycle rises during its first `rise` of the length; after the last cycle the end stays.

    References:
        | Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing (Fu et al., 2019)
        | https://arxiv.org/abs/1903.10145

    Arguments:
        epochs: Length of one cycle in epochs, or
        steps: its length in steps.
        cycles: Number of cycles.
        rise: Share of a cycle that the rise takes.
        end: The value after each rise.
        steps_per_epoch: Steps in an epoch, if the length is given in epochs.

    Raises:
        ValueError: If the length is not given exactly once, or a number is not positive, or `rise` is over 1.

    Example:
        >>> [Cyclical(steps=4, cycles=2)(step) for step in range(9)]
        [0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        epochs: float | None = None,
        steps: int | None = None,
        cycles: int = 4,
        rise: float = 0.5,
        end: float = 1.0,
        steps_per_epoch: int | None = None,
    ) -> None:
        self.steps, self.cycles, self.rise, self.end = _length(epochs, steps, steps_per_epoch), cycles, rise, end
        if cycles < 1 or not 0 < rise <= 1 or not 0 < end < inf:
            raise ValueError(f"cycles, rise and end must be positive, and rise at most 1, but are {cycles}, {rise} and {end}")

    def __call__(self, step: int) -> float:
        if step >= self.cycles * self.steps:
            return self.end
        return self.end * min(1.0, (step % self.steps + 1) / (self.rise * self.steps))


def _length(epochs: float | None, steps: int | None, steps_per_epoch: int | None) -> int:
    if (epochs is None) == (steps is None):
        raise ValueError("give the length either in epochs or in steps")
    if steps is None:
        if steps_per_epoch is None:
            raise ValueError("a length in epochs needs steps_per_epoch too: give it in steps")
        steps = round((epochs or 0) * steps_per_epoch)
    if steps < 1:
        raise ValueError(f"the length must be at least one step, but is {steps}")
    return steps
