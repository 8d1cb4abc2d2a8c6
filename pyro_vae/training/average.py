"""An exponential average of the weights of a model over the steps of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_vae.errors import RequestError
from pyro_vae.vae import Model


class Average:
    r"""An exponential average of the weights of a model over the steps of its training.

    The model has the average, except within `trained`, where it has the weights that the optimizer
    changes. After a step

    .. math:: \bar w \leftarrow d \bar w + (1 - d) w, \quad d = \min(D, (1 + t) / (10 + t))

    with the decay D and t steps before it, so that the first steps are soon forgotten.
    Floating-point buffers, such as the statistics of batch normalization, are averaged like
    parameters.

    References:
        | Acceleration of Stochastic Approximation by Averaging (Polyak & Juditsky, 1992)
        | https://doi.org/10.1137/0330046

    Arguments:
        model: The model.
        decay: The decay, between 0 and 1: the average is over about 1 / (1 - decay) steps.

    Raises:
        ValueError: If the decay is out of range.
    """

    def __init__(self, model: Model, decay: float) -> None:
        if not 0 < decay < 1:
            raise RequestError(
                "average must be between 0 and 1, such as 0.999 for an average over about 1,000"
                f" steps, but is {decay}"
            )
        self.decay = decay
        stored = model.state_dict().keys()
        self._own: dict[str, Tensor] = {}
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            if name in stored and tensor.is_floating_point():
                self._own[name] = tensor.detach()
        # The trained weights; within `trained`, the average.
        self._others = {name: tensor.clone() for name, tensor in self._own.items()}

    @contextmanager
    def trained(self) -> Iterator[None]:
        """Give the model the trained weights in a `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def update(self, step: int) -> None:
        """Add the weights after a step to the average, within `trained`.

        Arguments:
            step: The number of steps before it.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        add = get_ema_multi_avg_fn(decay)
        add([*self._others.values()], [*self._own.values()], step)

    def state_dict(self) -> dict[str, Tensor]:
        """The trained weights; the average is in the `state_dict` of the model."""
        return self._others

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a `state_dict`."""
        for name, tensor in self._others.items():
            tensor.copy_(state[name])

    def _swap(self) -> None:
        for name, tensor in self._own.items():
            before = tensor.clone()
            tensor.copy_(self._others[name])
            self._others[name].copy_(before)
