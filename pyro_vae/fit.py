"""The training loop: an iterator of records, one for each epoch, that can be stopped and taken up again."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypedDict, get_args

from pyro.infer import ELBO, Trace_ELBO
from torch.optim import Adam

from pyro_vae import distributed
from pyro_vae.data import Data
from pyro_vae.errors import NotFiniteError, RequestError
from pyro_vae.graphs import Engine
from pyro_vae.loop import Loop, MakeScheduler
from pyro_vae.objectives import CapacityELBO, FreeBitsELBO
from pyro_vae.precision import Precision
from pyro_vae.schedules import Constant, Schedule
from pyro_vae.svi import MakeOptimizer
from pyro_vae.vae import Model

OnNaN = Literal["stop", "rewind"]

REWINDS = 3


class Record(TypedDict):
    """What one epoch came to; losses and terms in nats per image.

    `loss` is what was minimized, at this epoch's beta; `elbo` is never annealed, and is `reconstruction` less `kl`.
    `active_units` counts the latent dimensions whose posterior mean varies over the validation images.
    """

    epoch: int
    step: int
    beta: float
    learning_rate: float
    loss: float
    elbo: float
    reconstruction: float
    kl: float
    validation_loss: float
    validation_elbo: float
    validation_reconstruction: float
    validation_kl: float
    active_units: int
    rewinds: int
    seconds: float
    images_per_second: float


def fit(
    vae: Model,
    data: Data,
    *,
    epochs: int = 20,
    batch_size: int = 128,
    optimizer: MakeOptimizer | None = None,
    objective: ELBO | None = None,
    beta: Schedule | None = None,
    lr_scheduler: MakeScheduler | None = None,
    clip_grad_norm: float | None = None,
    patience: int | None = None,
    engine: Engine = "eager",
    precision: Precision = "float32",
    on_nan: OnNaN = "stop",
    on_batch: Callable[[int], object] = lambda images: None,
    say: Callable[[str], object] = lambda line: None,
    resume: Mapping[str, Any] | None = None,
) -> Training:
    """Train a VAE, on the device that it is on; nothing is printed, and the test set is not touched.

    All randomness is torch's global one: call `pyro.set_rng_seed` before building the VAE to repeat a run.

    Arguments:
        vae: The model and the guide.
        data: Its `train` split is fitted, its `validation` split is scored after each epoch.
        epochs: Passes over the training images.
        batch_size: Images in a step; the last batch of an epoch may be smaller.
        optimizer: Makes a torch optimizer from a list of parameters; None is Adam with its learning rate of 1e-3.
        objective: The loss; None is `pyro.infer.Trace_ELBO()`.
        beta: Weight of the KL at each step; None is 1.
        lr_scheduler: Makes one of torch's learning-rate schedulers from the optimizer; it is stepped after each epoch.
        clip_grad_norm: The gradient of each step is scaled down to this norm, over all parameters, where it is longer.
        patience: Stop after so many epochs in succession without a better ELBO, at beta = 1, on the validation images.
        engine: What runs the steps: see `SVI`.
        precision: Of the matrix products in training: "float32", or "tf32" or "bf16" where the hardware is faster at these and
            torch can use them for float32 tensors; sums, parameters and validation stay in float32.
        on_nan: What to do about a loss that is not finite: "stop", or "rewind" to the end of the epoch before, with half the
            learning rate, at most three times.
        on_batch: Called after each step with the number of images it took.
        say: Called with a line about what was not done as asked: another engine that had to take over, a rewind.
        resume: What `Training.state_dict` gave: training goes on from there, bit for bit.

    Returns:
        An iterator that trains one epoch for each record that is drawn from it.

    Raises:
        RequestError: If a number is out of range, or the parts do not go together.
        NotFiniteError: If the loss becomes NaN or infinite.

    Example:
        >>> import pyro
        >>> import pyro_vae as pv
        >>> pyro.set_rng_seed(0)
        >>> data = pv.load_data("digits")
        >>> encoder, decoder = pv.MLP(data.shape, (2, 5)), pv.MLP((5,), (1, *data.shape))
        >>> vae = pv.VAE(pv.StandardNormal(5), pv.DiagonalNormal(encoder), decoder, pv.Bernoulli())
        >>> first, second = pv.fit(vae, data, epochs=2)
        >>> first["validation_elbo"] < second["validation_elbo"]
        True
    """
    if not 1 <= batch_size <= len(data.train):
        raise RequestError(f"batch_size must be 1 to {len(data.train)}, the number of training images, but is {batch_size}")
    least = distributed.size()
    if batch_size < least or 0 < len(data.train) % batch_size < least:
        raise RequestError(f"batch_size is {batch_size}, but every batch needs a row for each of {least} processes: change it")
    if least > 1 and engine != "eager":
        raise RequestError(f"the {engine} engine is for one process: use --engine eager with several")
    if least > 1 and isinstance(objective, FreeBitsELBO | CapacityELBO):
        raise RequestError(f"{type(objective).__name__} looks at the mean of a whole batch: use one process")
    for name, value in {"epochs": epochs, "clip_grad_norm": clip_grad_norm, "patience": patience}.items():
        if value is not None and not 0 < value < math.inf:
            raise RequestError(f"{name} must be positive, but is {value}")
    for name, (given, kinds) in {"precision": (precision, Precision), "on_nan": (on_nan, OnNaN)}.items():
        if given not in get_args(kinds):
            raise RequestError(f"{name} must be one of {', '.join(get_args(kinds))}, but is {given}")
    if not isinstance(beta, Schedule | None):
        raise RequestError(f"beta must be a Schedule, such as Constant(0.5), but is {beta!r}")
    loop = Loop(vae, data, batch_size, objective or Trace_ELBO(), beta or Constant(), precision, on_batch)
    loop.start(optimizer or Adam, lr_scheduler, clip_grad_norm, engine, say)
    training = Training(loop, epochs, patience, on_nan, say)
    if resume is not None:
        training.load_state_dict(resume)
    return training


class Training(Iterator[Record]):
    """Training under way: each record drawn from it trains an epoch. Made by `fit`.

    Attributes:
        best: The best validation ELBO so far, in nats per image.
        improved: Whether the last record's is the best.
        engine: What runs the steps.
    """

    def __init__(self, loop: Loop, epochs: int, patience: int | None, on_nan: OnNaN, say: Callable[[str], object]) -> None:
        self.loop, self.epochs, self.patience, self.on_nan, self.say = loop, epochs, patience, on_nan, say
        self.epoch, self.best, self.waited, self.rewinds = 0, -math.inf, 0, 0

    @property
    def improved(self) -> bool:
        return self.epoch > 0 and self.waited == 0

    @property
    def engine(self) -> Engine:
        return self.loop.svi.engine

    @property
    def ended(self) -> bool:
        """Whether there is no epoch to come."""
        return self.epoch >= self.epochs or (self.patience is not None and self.waited >= self.patience)

    def __next__(self) -> Record:
        if self.ended:
            raise StopIteration
        before = copy.deepcopy(self.state_dict()) if self.on_nan == "rewind" else None
        try:
            figures = self.loop.epoch(self.epoch + 1)
        except NotFiniteError as error:
            if before is None or self.rewinds == REWINDS:
                raise
            return self._rewind(before, error)
        self.epoch += 1
        self.waited = 0 if figures["validation_elbo"] > self.best else self.waited + 1
        self.best = max(self.best, figures["validation_elbo"])
        return {"epoch": self.epoch, **figures, "rewinds": self.rewinds}  # type: ignore[typeddict-item]

    def _rewind(self, before: Mapping[str, Any], error: NotFiniteError) -> Record:
        self.load_state_dict(before)
        self.rewinds += 1
        rate = self.loop.scale_learning_rate(0.5)
        self.say(f"{error}; back to the end of epoch {self.epoch}, with the learning rate halved to {rate:.3g}")
        return next(self)

    def state_dict(self) -> dict[str, Any]:
        """All that training needs to go on from the end of the last epoch, as tensors and plain values."""
        names = ("epoch", "best", "waited", "rewinds")
        return {**{name: getattr(self, name) for name in names}, **self.loop.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back, or on, to where `state_dict` was taken."""
        self.loop.load_state_dict(state)
        for name in ("epoch", "best", "waited", "rewinds"):
            setattr(self, name, state[name])
