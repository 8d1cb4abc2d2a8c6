"""The training loop: an iterator of records, one for each epoch, that can be stopped and taken up again."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vae import distributed
from pyro_vae.data import Data, to_pixels
from pyro_vae.diagnostics import ACTIVE, activity
from pyro_vae.errors import NotFiniteError, RequestError
from pyro_vae.graphs import Engine, rehearse
from pyro_vae.importance import terms, traces
from pyro_vae.memory import rows_at_once
from pyro_vae.objectives import ScheduledELBO, check_objective
from pyro_vae.precision import Precision, products
from pyro_vae.schedules import Constant, Schedule, value_at
from pyro_vae.svi import SVI, MakeOptimizer
from pyro_vae.tally import Reading, Tally
from pyro_vae.vae import Model

OnNaN = Literal["stop", "rewind"]
MakeScheduler = Callable[[Optimizer], LRScheduler]

REWINDS = 3
READ_SECONDS = 1.0
"""At most so long, but never less than a step, until a loss that is not finite is noticed."""


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
    for name, value in {"epochs": epochs, "clip_grad_norm": clip_grad_norm, "patience": patience}.items():
        if value is not None and not 0 < value < math.inf:
            raise RequestError(f"{name} must be positive, but is {value}")
    loop = _Loop(vae, data, batch_size, objective or Trace_ELBO(), beta or Constant(), precision, on_batch)
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

    def __init__(self, loop: _Loop, epochs: int, patience: int | None, on_nan: OnNaN, say: Callable[[str], object]) -> None:
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


class _Loop:
    """Passes over the data: the steps of an epoch, and the validation after it."""

    def __init__(
        self,
        vae: Model,
        data: Data,
        batch_size: int,
        objective: ELBO,
        beta: Schedule,
        precision: Precision,
        on_batch: Callable[[int], object],
    ) -> None:
        self.precision = precision
        self.vae, self.batch_size, self.objective, self.on_batch = vae, batch_size, objective, on_batch
        device = _device(vae)
        self.images, self.validation = data.train.images.to(device), data.validation.to(device).scored(vae.pixels)
        self.schedule, self.beta = beta, torch.tensor(value_at(beta, 0), device=device)
        if objective.max_plate_nesting == math.inf:
            objective.max_plate_nesting = 1 + (objective.vectorize_particles and objective.num_particles > 1)
        self.step = 0

    def start(
        self,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler | None,
        clip_grad_norm: float | None,
        engine: Engine,
        say: Callable[[str], object],
    ) -> None:
        """Run everything once, without effect, to refuse what does not go together."""

        def make(params: Any) -> Optimizer:
            made = optimizer(params)
            if distributed.size() > 1:
                made.register_step_pre_hook(lambda *_: self._sum_gradients(params))
            if clip_grad_norm is not None:
                made.register_step_pre_hook(lambda *_: _clip(params, clip_grad_norm))
            return made

        first = torch.arange(self.batch_size, device=self.images.device)
        rehearse(self._look, first)
        self.svi = SVI(
            self.tally.model(self.vae.model),
            self.tally.guide(self.vae.guide),
            make,
            self.objective,
            mean=True,
            prepare=self._batch,
            engine=engine,
            say=say,
        )
        try:
            self.svi.start(first)
        except Exception as error:
            raise RequestError(f"objective: {error}") from error
        self.tally.read()
        assert self.svi.optimizer is not None
        self.scheduler = lr_scheduler(self.svi.optimizer) if lr_scheduler is not None else None

    def _look(self, index: Tensor) -> None:
        x, _ = self._batch(index)
        check_objective(self.objective, self.schedule, self.vae.model, self.vae.guide, x)
        self.tally = Tally(*traces(self.vae.model, self.vae.guide, (x,), 1), device=x.device)

    def epoch(self, number: int) -> dict[str, Any]:
        """Train one epoch and score the validation set."""
        start = time.perf_counter()
        self.vae.train()
        with products(self.precision):
            trained = self._train(number)
        seconds = time.perf_counter() - start
        self.vae.eval()
        with products("float32"):
            validated = self._validate(number)
            active = int((activity(self.vae, self.validation) > ACTIVE).sum())
        record = {
            "step": self.step,
            "beta": self.beta.item(),
            "learning_rate": self._learning_rate(),
            **trained,
            **{f"validation_{name}": value for name, value in validated.items()},
            "active_units": active,
            "seconds": seconds,
            "images_per_second": len(self.images) / seconds,
        }
        self._schedule_learning_rate(validated["elbo"])
        return record

    def _train(self, number: int) -> dict[str, float]:
        means, read = _Means(self.objective, self.step), time.perf_counter()
        order = distributed.from_lead(torch.randperm(len(self.images), device=self.images.device))
        for index in order.split(self.batch_size):
            self._set_step(self.step)
            with self._share(len(index)) as own:
                self.svi.update(index[own])
            means.rows += len(index)
            self.step += 1
            self.on_batch(len(index))
            if distributed.size() == 1 and time.perf_counter() - read > READ_SECONDS:
                self._read(means, f"in epoch {number}, at step {{step}}")
                read = time.perf_counter()
        self._read(means, f"in epoch {number}, at step {{step}}")
        return means.figures()

    def _validate(self, number: int) -> dict[str, float]:
        means = _Means(self.objective, self.step)
        at_once = rows_at_once(lambda x: terms(self.vae.model, self.vae.guide, x, 1), self.validation)
        for x in self.validation.split(at_once):
            with self._share(len(x)) as own:
                self.svi.total += len(x[own]) * self.svi.evaluate_loss(x[own], self.beta) if len(x[own]) else 0.0
            means.rows += len(x)
        self._read(means, f"on the validation images after epoch {number}")
        return means.figures()

    @contextmanager
    def _share(self, rows: int) -> Iterator[slice]:
        """This process's rows of a batch, with the noise that one process would draw for all."""
        own = distributed.share(rows)
        self.weight = (own.stop - own.start) / rows
        with distributed.WholeNoise(rows) if distributed.size() > 1 else nullcontext():
            yield own

    def _sum_gradients(self, params: Sequence[Tensor]) -> None:
        """Turn the gradient of the mean over this process's rows into that over the whole batch."""
        grads = [param.grad for param in params if param.grad is not None]
        for grad in grads:
            grad *= self.weight
        distributed.sum_over_all(*grads)

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return to_pixels(self.images[index], self.vae.pixels), self.beta

    def _set_step(self, step: int) -> None:
        """Set what is scheduled, in the tensors that hold it, so that no graph is made anew."""
        self.beta.fill_(value_at(self.schedule, step))
        if isinstance(self.objective, ScheduledELBO):
            self.objective.set_step(step)

    def _read(self, means: _Means, where: str) -> None:
        """Add up what was seen since the last reading.

        Raises:
            NotFiniteError: If a log-probability or the loss was NaN or infinite.
        """
        distributed.sum_over_all(self.tally.sums[1:], self.svi.total)
        reading, loss = self.tally.read(), self.svi.read_total()
        means.add(reading, loss)
        if reading.not_finite or not math.isfinite(means.loss):
            site = f", first in {reading.not_finite[0]}" if reading.not_finite else ""
            error = NotFiniteError(f"the loss is not finite {where.format(step=means.steps)}{site}")
            error.add_note("try a lower learning rate, such as --optimizer.lr 1e-4, --clip_grad_norm 100 or --on_nan rewind")
            raise error

    def _learning_rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def _optimizer(self) -> Optimizer:
        assert self.svi.optimizer is not None
        return self.svi.optimizer

    def _schedule_learning_rate(self, elbo: float) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(-elbo)
        elif self.scheduler is not None:
            self.scheduler.step()

    def scale_learning_rate(self, factor: float) -> float:
        """Scale the learning rate, and that which a scheduler started from; the new one."""
        for group in self._optimizer.param_groups:
            for name in group.keys() & {"lr", "initial_lr"}:
                group[name] *= factor
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.base_lrs = [rate * factor for rate in self.scheduler.base_lrs]
        return self._learning_rate()

    def state_dict(self) -> dict[str, Any]:
        """The step, the parameters, the optimizer, the scheduler and the random state."""
        return {
            "step": self.step,
            "vae": self.vae.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "lr_scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "random": random_state(_device(self.vae)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put all of it back."""
        self.step = state["step"]
        self.vae.load_state_dict(state["vae"])
        self.svi.load_optimizer(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["lr_scheduler"])
        set_random_state(state["random"], _device(self.vae))


class _Means:
    """Means a row of what was read in parts, and the number of steps that it came from."""

    def __init__(self, objective: ELBO, step: int) -> None:
        self.particles, self.steps, self.rows = objective.num_particles, step, 0
        self.runs_a_step = 1 if objective.vectorize_particles else objective.num_particles
        self.loss, self.reconstruction, self.kl = 0.0, 0.0, 0.0

    def add(self, reading: Reading, loss: float) -> None:
        self.steps += math.ceil(reading.runs / self.runs_a_step)
        self.loss += loss
        self.reconstruction += reading.reconstruction / self.particles
        self.kl += reading.kl / self.particles

    def figures(self) -> dict[str, float]:
        loss, reconstruction, kl = (value / self.rows for value in (self.loss, self.reconstruction, self.kl))
        return {"loss": loss, "elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's, Python's and NumPy's global generators, as tensors and plain values."""
    _, keys, *numbers = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), *numbers],
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators into a state that `random_state` gave; a GPU's only where there was one."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *numbers = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *numbers))  # noqa: NPY002


def _clip(params: Sequence[Tensor], norm: float) -> None:
    clip_grad_norm_(params, norm)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
