"""Schedules: the value of beta at each step of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import cos, exp, pi

from pyro_vae.errors import RequestError, check_positive

# Lower limit of scheduled values: Pyro rejects a scale of 0, and smaller values may underflow to 0
# in float32.
SMALLEST = 1e-30
LARGEST = 1e30  # far above useful values, and far below the overflow of float32


class Schedule(ABC):
    """The weight beta of the KL divergence at each step.

    It is strictly positive, because Pyro rejects a scale of 0.

    To write your own, subclass it and write `__call__`::

        class Decay(Schedule):
            def __call__(self, step):
                return 1 + 3 * 0.999**step
    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The value at `step`, the number of steps already taken."""

    def set_training_length(self, steps_per_epoch: int, epochs: int) -> None:  # noqa: B027
        """Resolve lengths that are given in epochs or as a share of the training.

        `fit` calls it before the first step. When a training is resumed, `epochs` is the number
        that it was started with.
        """

    @property
    def uses_training_length(self) -> bool:
        """Whether `set_training_length` does anything."""
        return type(self).set_training_length is not Schedule.set_training_length


def value_at(schedule: Schedule, step: int) -> float:
    """The value of a schedule at a step.

    Raises:
        ValueError: If it is not a positive number up to 1e30.
    """
    value = schedule(step)
    if not (isinstance(value, int | float) and 0 < value <= LARGEST):
        raise RequestError(
            f"beta is {value!r} at step {step}; a schedule must return positive numbers up to"
            f" {LARGEST:g}"
        )
    return max(value, SMALLEST)


class Constant(Schedule):
    """The same value at every step.

    References:
        | beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
        | (Higgins et al., 2017)
        | https://openreview.net/forum?id=Sy2fzU9gl

    Arguments:
        value: The value; 1 gives the ELBO, larger values reduce the KL.

    Raises:
        ValueError: If `value` is not positive.

    Example:
        >>> Constant(4.0)(0)
        4.0
    """

    def __init__(self, value: float = 1.0) -> None:
        check_positive(value=value)
        self.value = value

    def __call__(self, step: int) -> float:
        return self.value


class Periodic(Schedule):
    """A schedule with a characteristic length.

    It is given in steps, in epochs, or by default as a share of the training.

    Arguments:
        epochs: Length in epochs.
        steps: Length in steps.
        end: Final value.

    Raises:
        ValueError: If both lengths are given, or a number is not positive; when called, if the
            length is not known.
    """

    default_share: float
    """The length as a share of all training steps, if neither `epochs` nor `steps` is given."""

    def __init__(
        self, epochs: float | None = None, steps: int | None = None, end: float = 1.0
    ) -> None:
        check_positive(epochs=epochs, steps=steps, end=end)
        if epochs is not None and steps is not None:
            raise RequestError(
                f"give the length in epochs ({epochs}) or in steps ({steps}), not both"
            )
        self.epochs = epochs
        self.steps = steps
        self.end = end
        self._length = steps

    def set_training_length(self, steps_per_epoch: int, epochs: int) -> None:
        if self.steps is None:
            own_epochs = self.epochs or self.default_share * epochs
            self._length = max(1, round(own_epochs * steps_per_epoch))

    @property
    def length(self) -> int:
        """The length in steps."""
        if self._length is None:
            raise RequestError(
                "the length of the schedule is not known before training; give it in steps"
            )
        return self._length


class Ramp(Periodic):
    r"""A rise to `end`.

    .. math:: \beta_t = \mathrm{end} \cdot f((t + 1) / \mathrm{steps})

    To write your own, subclass it and write `shape`.

    Arguments:
        epochs: Length of the ramp in epochs; by default half of the training.
        steps: Length of the ramp in steps, instead of epochs.
        end: The value after the ramp.

    Raises:
        ValueError: If both lengths are given, or a number is not positive; when called, if the
            length is not known.
    """

    default_share = 0.5

    def __call__(self, step: int) -> float:
        return max(SMALLEST, self.end * self.shape((step + 1) / self.length))

    @abstractmethod
    def shape(self, progress: float) -> float:
        """The fraction of `end` at `progress` > 0 through the ramp; above 1 the ramp has ended."""


class Linear(Ramp):
    r"""A linear rise, the warm-up of Sønderby et al.

    .. math:: f(u) = \min(u, 1)

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
    r"""A smooth rise, half a period of a cosine.

    .. math:: f(u) = (1 - \cos(\pi \min(u, 1))) / 2
    """

    def shape(self, progress: float) -> float:
        return (1 - cos(pi * min(progress, 1.0))) / 2


class Sigmoid(Ramp):
    r"""A logistic rise centred at half of its length.

    .. math:: f(u) = 1 / (1 + e^{-k (u - 1/2)})

    References:
        | Generating Sentences from a Continuous Space (Bowman et al., 2016)
        | https://arxiv.org/abs/1511.06349

    Arguments:
        epochs: Length of the ramp in epochs; by default half of the training.
        steps: Length of the ramp in steps, instead of epochs.
        end: The value that is approached.
        steepness: The factor k, below 100.

    Raises:
        ValueError: If both lengths are given, or a number is out of range.
    """

    def __init__(
        self,
        epochs: float | None = None,
        steps: int | None = None,
        end: float = 1.0,
        steepness: float = 10.0,
    ) -> None:
        super().__init__(epochs, steps, end)
        if not 0 < steepness < 100:
            raise RequestError(f"steepness must be positive and below 100, but is {steepness}")
        self.steepness = steepness

    def shape(self, progress: float) -> float:
        return 1 / (1 + exp(-self.steepness * (progress - 0.5)))


class Cyclical(Periodic):
    r"""Repeated linear rises, each followed by a constant phase.

    Each cycle rises during the fraction `rise` of its length. After the last cycle the value stays
    at `end`.

    References:
        | Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing
        | (Fu et al., 2019)
        | https://arxiv.org/abs/1903.10145

    Arguments:
        epochs: Length of one cycle in epochs; by default the cycles divide the training.
        steps: Length of one cycle in steps, instead of epochs.
        cycles: Number of cycles.
        rise: Fraction of a cycle spent rising.
        end: The value after each rise.

    Raises:
        ValueError: If both lengths are given, a number is not positive, or `rise` exceeds 1.

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
    ) -> None:
        super().__init__(epochs, steps, end)
        check_positive(cycles=cycles, rise=rise)
        if rise > 1:
            raise RequestError(
                f"rise is a fraction of a cycle and must be at most 1, but is {rise}"
            )
        self.cycles = cycles
        self.rise = rise
        self.default_share = 1 / cycles

    def __call__(self, step: int) -> float:
        cycle, position = divmod(step, self.length)
        if cycle >= self.cycles:
            return self.end
        return self.end * min(1.0, (position + 1) / self.length / self.rise)
