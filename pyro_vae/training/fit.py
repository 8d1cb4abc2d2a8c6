"""The training loop: `fit` returns an iterator with one record per epoch; it can be resumed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from logging import getLogger
from typing import Any, Literal, TypedDict, cast

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from pyro_vae.data.host import HostSplit, prefetch
from pyro_vae.data.split import Data, Split, to_pixels
from pyro_vae.data.values import check_kind
from pyro_vae.engine import distributed
from pyro_vae.engine.graphs import AnyEngine, Engine, pick_engine
from pyro_vae.engine.precision import AnyPrecision, Precision, pick_precision, products
from pyro_vae.engine.programs import Batch, traces
from pyro_vae.engine.progress import TRAINING, live, progress_bar
from pyro_vae.engine.random_state import random_state, set_random_state
from pyro_vae.engine.svi import SVI, MakeOptimizer
from pyro_vae.errors import NotFiniteError, RequestError, check_choice, check_count, check_positive
from pyro_vae.evaluation.batch import batch_of
from pyro_vae.evaluation.codes import ACTIVE, activity
from pyro_vae.objectives import ScheduledELBO, check_objective
from pyro_vae.schedules import Constant, Schedule, value_at
from pyro_vae.training.average import Average
from pyro_vae.training.checks import (
    check_arguments,
    check_columns,
    check_model,
    check_normalization,
    pick_batch_size,
)
from pyro_vae.training.gradients import FLUSH_STEPS, change_gradients, flush
from pyro_vae.training.meter import Meter
from pyro_vae.vae import Model, default_batch_size

logger = getLogger("pyro_vae")

MakeScheduler = Callable[[Optimizer], LRScheduler]
OnNaN = Literal["stop", "rewind"]

# Default number of epochs.
EPOCHS = 20
# Default minimum number of steps: 20 epochs are too few for small data sets.
STEPS = 3000
# Pixels of the training images that initialize the model, to bound memory.
FIRST_PIXELS = 50_000_000
# Time between checks for a loss that is not finite, which wait for the device.
CHECK_SECONDS = 1.0
REWINDS = 3


class Record(TypedDict):
    """Metrics of one epoch; losses, ELBO and its terms in nats per image.

    `elbo` = `reconstruction` - `kl` is at beta = 1, `loss` is the value that was minimized; they
    are means over the epoch's steps. `beta` and `learning_rate` are those of the last step.
    `active_units` counts the latent dimensions whose posterior mean varies over the validation
    images by more than 0.01.
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
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    optimizer: MakeOptimizer | None = None,
    objective: ELBO | None = None,
    beta: Schedule | None = None,
    lr_scheduler: MakeScheduler | None = None,
    clip_grad_norm: float | None = None,
    normalize_gradients: bool = False,
    average: float | None = None,
    patience: int | None = None,
    engine: AnyEngine = "auto",
    precision: AnyPrecision = "float32",
    on_nan: OnNaN = "stop",
) -> Training:
    """Train a model on the device that it is on. The test set is not used.

    With the same seed before the model is built (`pyro.set_rng_seed(seed)`) and as `seed`, the
    parameters equal those of `python -m pyro_vae.train` with the same options, bit for bit.

    Several processes, started by `torchrun`, share the images of each batch and sum their
    gradients. All start from the main process's parameters and take the same order of images. Each
    draws noise of its own: in each epoch the main process draws a seed, to which each process adds
    its rank. A run is reproducible for a given number of processes; without noise the parameters
    equal those of one process, to rounding. Batch normalization uses the statistics of each
    process's share in training, and the main process's running averages in validation.

    Arguments:
        vae: The model and the guide. They are initialized from the training images first
            (`Model.initialize`), unless they were before, or a state_dict was loaded. Parameters
            that require no gradient are left as they are.
        data: The `train` split is fitted, the `validation` split is scored after each epoch.
        epochs: Passes over the training images; by default 20 epochs, or more if they have fewer
            than 3,000 steps.
        batch_size: Images per step; None is 128, or all training images if there are fewer.
        seed: Seed of torch's, NumPy's and Python's global generators; None leaves them as they are.
        optimizer: Makes a torch optimizer from a list of parameters; None is fused Adam with
            learning rate 1e-3.
        objective: The loss; None is that of the model, `pyro.infer.Trace_ELBO()`, or
            `TraceEnum_ELBO()` for a SemiSupervisedVAE.
        beta: Weight of the KL at each step; None is 1.
        lr_scheduler: Makes one of torch's learning-rate schedulers from the optimizer; it is
            stepped after each epoch. ReduceLROnPlateau receives minus the validation ELBO at
            beta = 1 with mode "min", and the validation ELBO with mode "max"; use
            threshold_mode "abs", in nats, because "rel" assumes positive values.
        clip_grad_norm: Maximum norm of the gradient over all parameters; None does not clip.
        normalize_gradients: Scale the gradient of each parameter tensor to norm 1, after any
            clipping.
        average: Decay of an exponential average of the weights over the steps, for example 0.999;
            None does not average. After each epoch the model has the average, see `Average`: it is
            what is validated, returned and saved.
        patience: Number of epochs without a better validation ELBO (at beta = 1) after which
            training stops; None never stops.
        engine: What runs the steps, see `SVI`; "auto" depends on the device and the number of
            steps.
        precision: Precision of the layers of networks in training, see `products`; validation uses
            float32. "auto" is bf16 on CPUs that have instructions for it, otherwise float32.
        on_nan: If the loss is not finite, "stop", or "rewind" to the previous epoch with half the
            learning rate, up to 3 times.

    Returns:
        An iterator that trains one epoch per record.

    Raises:
        ValueError: If an argument is out of range, or the parts do not fit together.
        NotFiniteError: If the loss becomes NaN or infinite, while iterating.

    Example:
        >>> import pyro_vae as pv
        >>> pyro.set_rng_seed(0)
        >>> data = pv.load_data("digits")
        >>> encoder, decoder = pv.MLP(data.shape, (2, 5)), pv.MLP((5,), (1, *data.shape))
        >>> prior, posterior = pv.StandardNormal(5), pv.DiagonalNormal()
        >>> vae = pv.VAE(prior, encoder, posterior, decoder, pv.Bernoulli())
        >>> first, *_, last = pv.fit(vae, data, epochs=10, seed=0)
        >>> first["validation_elbo"] < last["validation_elbo"]
        True
    """
    check_count(epochs=epochs, batch_size=batch_size, patience=patience)
    check_positive(clip_grad_norm=clip_grad_norm)
    check_choice("engine", engine, AnyEngine)
    check_choice("precision", precision, AnyPrecision)
    check_choice("on_nan", on_nan, OnNaN)
    check_arguments(vae, data, objective, seed)
    if seed is not None:
        pyro.set_rng_seed(int(seed))  # Python's generator refuses integers of NumPy
    each = data.train.noun
    batch_size = pick_batch_size(batch_size, len(data.train), len(data.validation), each)
    steps_per_epoch = math.ceil(len(data.train) / batch_size)
    if epochs is None:
        epochs = max(EPOCHS, math.ceil(STEPS / steps_per_epoch))
    beta = beta or Constant()
    if not isinstance(beta, Schedule):
        raise RequestError(f"beta must be a Schedule, such as Constant(4.0), but is {beta!r}")
    device = next(vae.parameters()).device
    loop = Loop(
        vae,
        data.to(device),
        batch_size,
        objective=objective or vae.default_objective(),
        schedule=beta,
        schedule_epochs=epochs,
        optimizer=optimizer or partial(Adam, fused=True),
        lr_scheduler=lr_scheduler,
        engine=pick_engine(engine, device, epochs * steps_per_epoch),
        precision=pick_precision(precision, device),
        average=average,
    )
    change_gradients(loop.optimizer, clip_grad_norm, normalize_gradients)
    return Training(loop, epochs, patience, on_nan)


class Training(Iterator[Record]):
    """Iterator returned by `fit`; each iteration trains one epoch.

    Attributes:
        epochs: Number of epochs to train.
        epoch: Number of epochs trained.
        best: The best validation ELBO so far, in nats per image.
        improved: Whether the last epoch's is the best.
        ended: Whether no epoch remains.
        engine: The engine that runs the steps.
    """

    def __init__(self, loop: Loop, epochs: int, patience: int | None, on_nan: OnNaN) -> None:
        self.loop = loop
        self.epochs = epochs
        self.patience = patience
        self.on_nan = on_nan
        self.epoch = 0
        self.best = -math.inf
        self.waited = 0
        self.rewinds = 0

    @property
    def improved(self) -> bool:
        return self.epoch > 0 and self.waited == 0

    @property
    def ended(self) -> bool:
        if self.patience is not None and self.waited >= self.patience:
            return True
        return self.epoch >= self.epochs

    @property
    def engine(self) -> Engine:
        return self.loop.svi.engine

    def __next__(self) -> Record:
        if self.ended:
            raise StopIteration
        before = None
        if self.on_nan == "rewind":
            before = copy.deepcopy(self.state_dict())
        label = f"epoch {self.epoch + 1}/{self.epochs}"
        images = len(self.loop.train)
        # The bar shows the part done of all epochs, and the time left for them.
        bar = progress_bar(
            self.epochs * images, label, initial=self.epoch * images, bar_format=TRAINING
        )
        try:
            with bar as progress:
                metrics = self.loop.epoch(label, progress)
        except NotFiniteError as error:
            if before is None or self.rewinds == REWINDS:
                raise
            return self._rewind(before, error)
        self.epoch += 1
        if metrics["validation_elbo"] > self.best:
            self.best = metrics["validation_elbo"]
            self.waited = 0
        else:
            self.waited += 1
        return cast(Record, {"epoch": self.epoch, **metrics, "rewinds": self.rewinds})

    def _rewind(self, before: Mapping[str, Any], error: NotFiniteError) -> Record:
        self.load_state_dict(before)
        self.rewinds += 1
        rate = self.loop.scale_learning_rate(0.5)
        logger.warning("%s; rewinding to epoch %d with learning rate %.3g", error, self.epoch, rate)
        return next(self)

    def state_dict(self) -> dict[str, Any]:
        """The state after the last epoch, as tensors and plain values.

        On a CPU, training continues from it bit for bit. With more `epochs`, schedules whose length
        is a share of the training keep the length that they were started with.
        """
        return {
            "epoch": self.epoch,
            "best": self.best,
            "waited": self.waited,
            "rewinds": self.rewinds,
            **self.loop.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.loop.load_state_dict(state)
        self.epoch = state["epoch"]
        self.best = state["best"]
        self.waited = state["waited"]
        self.rewinds = state["rewinds"]


class Loop:
    """One epoch at a time: the training steps, then the validation.

    Arguments:
        vae: The model, which is initialized from the training images.
        data: The data, on the model's device.
        batch_size: Images per step, of all processes.
        objective: The loss.
        schedule: The value of beta at each step.
        schedule_epochs: The length of the training, for schedules that depend on it.
        optimizer: Makes the optimizer.
        lr_scheduler: Makes the learning-rate scheduler, if there is one.
        engine: What runs the steps.
        precision: Precision of matrix products in training.
        average: Decay of the average of the weights, if there is one.
    """

    def __init__(
        self,
        vae: Model,
        data: Data,
        batch_size: int,
        objective: ELBO,
        schedule: Schedule,
        schedule_epochs: int,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler | None,
        engine: Engine,
        precision: Precision,
        average: float | None,
    ) -> None:
        self.vae = vae
        self.train = data.train
        check_kind(data.train.x, vae.pixels, vae.likelihood.largest)
        # The validation ELBO is a bound on log p(x), also if some labels are known.
        self.validation = batch_of(vae, data.validation)
        self.batch_size = batch_size
        self.objective = objective
        self.schedule = schedule
        self.precision = precision
        self.device = next(vae.parameters()).device
        self.step = 0
        self.beta = torch.ones((), device=self.device)
        # The reconstruction and the KL, summed since they were cleared.
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.shown: dict[str, Any] = {}
        self._set_schedule_length(schedule_epochs)
        check_columns(self.train)
        _initialize(vae, self.train)
        self._synchronize()
        self.average: Average | None = None
        if average is not None:
            self.average = Average(vae, average)
        self.svi = self._make_svi(optimizer, engine)
        assert self.svi.optimizer is not None  # the dry run has made it
        self.optimizer = self.svi.optimizer
        self.scheduler: LRScheduler | None = None
        if lr_scheduler is not None:
            self.scheduler = lr_scheduler(self.optimizer)

    def epoch(self, label: str, progress: tqdm[Any]) -> dict[str, Any]:
        """Train one epoch, score the validation images, and return the metrics of both."""
        order = torch.randperm(len(self.train), device=self.train.x.device)
        order = distributed.broadcast(order)
        try:
            with distributed.own_noise(self.device):
                with self._trained_weights():
                    trained = self._train(label, order, progress)
                validated = self._validate(label)
        except LinAlgError as error:  # a matrix with NaN cannot be factorized
            raise self._not_finite(label) from error
        self.shown = {
            "step": self.step,
            "beta": value_at(self.schedule, self.step - 1),
            "learning_rate": self._learning_rate(),
            **trained,
            **validated,
        }
        self._step_scheduler(validated["validation_elbo"])
        return self.shown

    def _train(self, label: str, order: Tensor, progress: tqdm[Any]) -> dict[str, float]:
        """Take the steps of an epoch, on the images in this order."""
        self.vae.train()
        self._clear_sums()
        rows = 0
        start = time.perf_counter()
        checked = start
        progress.set_postfix_str(live(self.shown))
        has_gaps = self.train.observed is not None
        with products(self.precision), self.vae.treating_missing(has_gaps):
            for args in self._batches(order):
                self._set_step()
                self.svi.update(*args)
                if self.average is not None:
                    self.average.update(self.step)
                self.step += 1
                if self.step % FLUSH_STEPS == 0:
                    flush(self.optimizer)
                rows += len(args[0])
                progress.update(len(args[0]))
                if time.perf_counter() - checked > CHECK_SECONDS and distributed.world_size() == 1:
                    metrics = {**self.shown, **self._means(label, rows)}
                    progress.set_postfix_str(live(metrics), refresh=False)
                    checked = time.perf_counter()
        means = self._means(label, rows)
        seconds = time.perf_counter() - start
        return {**means, "seconds": seconds, "images_per_second": rows / seconds}

    def _trained_weights(self) -> AbstractContextManager[None]:
        """The model has the weights that are trained, not their average."""
        if self.average is None:
            return nullcontext()
        return self.average.trained()

    def _validate(self, label: str) -> dict[str, float]:
        """Score the validation images."""
        self.vae.eval()
        self._clear_sums()
        self._synchronize()
        with products("float32"):
            for batch in self._validation_batches():
                part = batch[distributed.shard(len(batch))]
                self.svi.total += len(part) * self.svi.evaluate_loss(*part, self.beta)
            means = self._means(f"{label}, validation", len(self.validation))
            active = activity(self.vae, self.validation) > ACTIVE
        metrics = {f"validation_{name}": value for name, value in means.items()}
        return {**metrics, "active_units": int(active.sum())}

    def _batches(self, order: Tensor) -> Iterator[tuple[Any, ...]]:
        """The arguments of each step, the first with a row for each image of the batch.

        They are the positions of the images, which are looked up as a part of the step. Images that
        are not on the device are read one step ahead, and are further arguments, with their labels.
        """
        indices = order.split(self.batch_size)
        if isinstance(self.train, HostSplit):
            return prefetch(self._read, indices)
        return ((index,) for index in indices)

    def _read(self, index: Tensor) -> tuple[Any, ...]:
        share = self._share(index).map(lambda tensor: tensor.to(self.device))
        return index.to(self.device), *share

    def _share(self, index: Tensor) -> Batch:
        """This process's share of the images at these positions, their labels and gaps."""
        part = self.train[index[distributed.shard(len(index))]]
        return Batch(part.x, part.y, part.observed)

    def _arguments(self, index: Tensor, *read: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """The arguments of the programs, from those of a step: images, labels and beta."""
        if read:
            share = Batch(*read)
        else:
            share = self._share(index)
        x, y, observed = share
        return to_pixels(x, self.vae.pixels, observed=observed), y, self.beta

    def _validation_batches(self) -> Iterator[Batch]:
        """The validation images of each pass.

        There is at least one for each process, because all take part in it.
        """
        rows = len(self.validation)
        size = default_batch_size(self.vae, self.validation.x) // self.objective.num_particles
        starts = range(0, rows - distributed.world_size() + 1, max(1, size))
        for start, end in zip(starts, (*starts[1:], rows), strict=True):
            yield self.validation[start:end]

    def _make_svi(self, optimizer: MakeOptimizer, engine: Engine) -> SVI:
        """What takes the steps, after a dry run that checks the parts."""
        self._set_step()
        guide = Meter(self.sums, sign=1)
        model = Meter(self.sums, sign=-1, guide=guide)
        if self.objective.max_plate_nesting == math.inf:
            several = self.objective.vectorize_particles and self.objective.num_particles > 1
            self.objective.max_plate_nesting = 2 if several else 1
        svi = SVI(
            model(self.vae.model),
            guide(self.vae.guide),
            optimizer,
            self.objective,
            mean=True,
            prepare=self._arguments,
            engine=engine,
            check_losses=False,  # `_means` does
        )
        first = torch.arange(self.batch_size, device=self.train.x.device)
        svi.dry_run(*next(self._batches(first)), check=self._check)
        return svi

    def _check(self, x: Tensor, y: Tensor | None, beta: Tensor) -> None:
        """Raise `RequestError` if the parts do not fit together."""
        batch = Batch(x, y)
        self.vae.check_labels(self.train.y)
        self.vae.check_labels(self.validation.y)
        self.vae.check_missing(x, y)
        self.vae.check_missing(*self.validation)
        check_model(self.vae, batch)
        check_normalization(self.vae, batch, self.batch_size, len(self.train))
        p, q = traces(self.vae.model, self.vae.guide, batch, 1)
        check_objective(self.objective, self.schedule, p, q)

    def _set_schedule_length(self, epochs: int) -> None:
        schedules = [self.schedule]
        if isinstance(self.objective, ScheduledELBO):
            schedules.append(self.objective.schedule)
        # The epochs that the schedules were told; None if none of them depends on it.
        self.schedule_epochs: int | None = None
        steps_per_epoch = math.ceil(len(self.train) / self.batch_size)
        for schedule in schedules:
            if schedule.uses_training_length:
                schedule.set_training_length(steps_per_epoch, epochs)
                self.schedule_epochs = epochs

    def _set_step(self) -> None:
        """Update what is scheduled in place, so that graphs stay valid."""
        self.beta.fill_(value_at(self.schedule, self.step))
        if isinstance(self.objective, ScheduledELBO):
            self.objective.set_step(self.step)

    def _step_scheduler(self, validation_elbo: float) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            sign = 1 if self.scheduler.mode == "max" else -1
            self.scheduler.step(sign * validation_elbo)
        elif self.scheduler is not None:
            self.scheduler.step()

    def _means(self, label: str, rows: int) -> dict[str, float]:
        """Metrics per row since the sums were cleared."""
        sums, total = distributed.all_reduce([self.sums, self.svi.total])
        if not math.isfinite(total.item() + sums.sum().item()):
            raise self._not_finite(label)
        reconstruction, kl = (sums / (rows * self.objective.num_particles)).tolist()
        return {
            "loss": total.item() / rows,
            "elbo": reconstruction - kl,
            "reconstruction": reconstruction,
            "kl": kl,
        }

    def _clear_sums(self) -> None:
        """Reset the sums, which an interrupted epoch leaves behind."""
        self.svi.total.zero_()
        self.sums.zero_()

    def _not_finite(self, label: str) -> NotFiniteError:
        return NotFiniteError(
            f"the loss became NaN or infinite in {label}, at or before step {self.step}; lower the"
            " learning rate (optimizer.lr), set clip_grad_norm=100, or use on_nan=rewind"
        )

    def _synchronize(self) -> None:
        """Copy the main process's parameters and buffers to all processes.

        Batch normalization updates buffers.
        """
        for tensor in (*self.vae.parameters(), *self.vae.buffers()):
            distributed.broadcast(tensor)

    def _learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def scale_learning_rate(self, factor: float) -> float:
        """Scale the learning rate and the scheduler's base rate, and return the new one."""
        for group in self.optimizer.param_groups:
            for name in group.keys() & {"lr", "initial_lr"}:
                group[name] *= factor
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.base_lrs = [rate * factor for rate in self.scheduler.base_lrs]
        return self._learning_rate()

    def state_dict(self) -> dict[str, Any]:
        """The step, the parameters, the optimizer, the schedules and the random state.

        If the weights are averaged, `vae` is the average, and `trained` the weights that are
        trained.
        """
        scheduler = None
        if self.scheduler is not None:
            scheduler = self.scheduler.state_dict()
        trained = None
        if self.average is not None:
            trained = self.average.state_dict()
        return {
            "step": self.step,
            "schedule_epochs": self.schedule_epochs,
            "vae": self.vae.state_dict(),
            "trained": trained,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": scheduler,
            "random": random_state(self.device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.step = state["step"]
        if state["schedule_epochs"] is not None:
            self._set_schedule_length(state["schedule_epochs"])
        self.vae.load_state_dict(state["vae"])
        if self.average is not None:
            self.average.load_state_dict(state["trained"])
        self.svi.load_optimizer(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["lr_scheduler"])
        set_random_state(state["random"], self.device)


def _initialize(vae: Model, train: Split) -> None:
    """Initialize a model that was not before from the training images and their labels."""
    if vae.initialized:
        return
    device = next(vae.parameters()).device
    first = train[: max(1, FIRST_PIXELS // train.x[0].numel())]
    first = first.to(device)
    vae.initialize(to_pixels(first.x, vae.pixels, observed=first.observed))
    y = train.y
    if y is not None:
        if isinstance(train, HostSplit):
            y = y[train.rows]
        vae.initialize_labels(y.to(device))
    vae.initialized = True
