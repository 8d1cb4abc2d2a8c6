"""The training loop: `fit` returns an iterator with one record per epoch, which can be stopped and resumed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypedDict

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from pyro_vae.data.host import HostSplit, prefetch
from pyro_vae.data.split import Data, Split, to_pixels
from pyro_vae.engine import distributed
from pyro_vae.engine.graphs import AnyEngine, Engine, logger, pick_engine
from pyro_vae.engine.importance import traces
from pyro_vae.engine.precision import Precision, products
from pyro_vae.engine.programs import Batch
from pyro_vae.engine.progress import TRAINING, live, progress_bar
from pyro_vae.engine.random_state import random_state, set_random_state
from pyro_vae.engine.svi import SVI, MakeOptimizer
from pyro_vae.errors import NotFiniteError, RequestError, check_choice, check_count, check_positive
from pyro_vae.evaluation.codes import ACTIVE, activity
from pyro_vae.objectives import ScheduledELBO, check_objective
from pyro_vae.schedules import Constant, Schedule, value_at
from pyro_vae.training.meter import Meter
from pyro_vae.vae import Model, default_batch_size

MakeScheduler = Callable[[Optimizer], LRScheduler]
OnNaN = Literal["stop", "rewind"]

BATCH_SIZE = 128
EPOCHS = 20
# Default minimum number of steps: 20 epochs are too few for small data sets.
STEPS = 3000
# Pixels of the training images that initialize the model, to bound memory.
FIRST_PIXELS = 50_000_000
# Time between checks for a loss that is not finite, which wait for the device.
CHECK_SECONDS = 1.0
REWINDS = 3
# Steps between flushes of the optimizer's state. Averages of gradients that are exactly zero (dead units, constant pixels)
# decay into denormal floats, which are slow on CPUs; in so many steps of Adam 1e-30 decays to 1e-35, which is still normal.
FLUSH_STEPS = 100
SMALLEST_STATE = 1e-30
# Attributes of `Training` in its `state_dict`.
COUNTERS = ("epoch", "best", "waited", "rewinds")


class Record(TypedDict):
    """Metrics of one epoch; losses, ELBO and its terms in nats per image.

    `elbo` = `reconstruction` - `kl` is at beta = 1, `loss` is the value that was minimized; they are means over the epoch's
    steps. `beta` and `learning_rate` are those of the last step. `active_units` counts the latent dimensions whose posterior
    mean varies over the validation images by more than 0.01.
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
    patience: int | None = None,
    engine: AnyEngine = "auto",
    precision: Precision = "float32",
    on_nan: OnNaN = "stop",
) -> Training:
    """Train a model on the device that it is on. The test set is not used.

    With the same seed before the model is built (`pyro.set_rng_seed(seed)`) and as `seed`, the parameters equal those of
    `python -m pyro_vae.train` with the same options, bit for bit.

    Several processes, started by `torchrun`, share the images of each batch and sum their gradients. All start from the main
    process's parameters and take the same order of images. Each draws noise of its own: in each epoch the main process draws a
    seed, to which each process adds its rank. A run is reproducible for a given number of processes; without noise the
    parameters equal those of one process, to rounding. Batch normalization uses the statistics of each process's share in
    training, and the main process's running averages in validation.

    Arguments:
        vae: The model and the guide. They are initialized from the training images first (`Model.initialize`), unless they
            were before, or a state_dict was loaded.
        data: The `train` split is fitted, the `validation` split is scored after each epoch.
        epochs: Passes over the training images; by default 20 epochs, or more if they have fewer than 3,000 steps.
        batch_size: Images per step; None is 128, or all training images if there are fewer.
        seed: Seed of torch's, NumPy's and Python's global generators; None leaves them as they are.
        optimizer: Makes a torch optimizer from a list of parameters; None is fused Adam with learning rate 1e-3.
        objective: The loss; None is `pyro.infer.Trace_ELBO()`.
        beta: Weight of the KL at each step; None is 1.
        lr_scheduler: Makes one of torch's learning-rate schedulers from the optimizer; it is stepped after each epoch.
        clip_grad_norm: Maximum norm of the gradient over all parameters; None does not clip.
        normalize_gradients: Scale the gradient of each parameter tensor to norm 1, after any clipping.
        patience: Number of epochs without a better validation ELBO (at beta = 1) after which training stops; None never stops.
        engine: What runs the steps, see `SVI`; "auto" depends on the device and the number of steps.
        precision: Precision of matrix products in training, see `products`; validation uses float32.
        on_nan: If the loss is not finite, "stop", or "rewind" to the previous epoch with half the learning rate, up to 3 times.

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
        >>> vae = pv.VAE(pv.StandardNormal(5), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
        >>> first, *_, last = pv.fit(vae, data, epochs=10, seed=0)
        >>> first["validation_elbo"] < last["validation_elbo"]
        True
    """
    check_count(epochs=epochs, batch_size=batch_size, patience=patience)
    check_positive(clip_grad_norm=clip_grad_norm)
    for name, value, choices in (
        ("engine", engine, AnyEngine),
        ("precision", precision, Precision),
        ("on_nan", on_nan, OnNaN),
    ):
        check_choice(name, value, choices)
    if seed is not None:
        pyro.set_rng_seed(seed)
    batch_size = _batch_size(batch_size, len(data.train), len(data.validation))
    steps_per_epoch = math.ceil(len(data.train) / batch_size)
    epochs = epochs or max(EPOCHS, math.ceil(STEPS / steps_per_epoch))
    objective, beta = objective or Trace_ELBO(), beta or Constant()
    if not isinstance(beta, Schedule):
        raise RequestError(f"beta must be a Schedule, such as Constant(4.0), but is {beta!r}")
    for schedule in [beta, objective.schedule] if isinstance(objective, ScheduledELBO) else [beta]:
        schedule.set_training_length(steps_per_epoch, epochs)
    engine = pick_engine(engine, next(vae.parameters()).device, epochs * steps_per_epoch)
    optimizer = optimizer or partial(Adam, fused=True)
    loop = Loop(vae, data, batch_size, objective, beta, optimizer, lr_scheduler, engine, precision)
    _change_gradients(loop.optimizer, clip_grad_norm, normalize_gradients)
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
        self.loop, self.epochs, self.patience, self.on_nan = loop, epochs, patience, on_nan
        self.epoch, self.best, self.waited, self.rewinds = 0, -math.inf, 0, 0

    @property
    def improved(self) -> bool:
        return self.epoch > 0 and self.waited == 0

    @property
    def ended(self) -> bool:
        return self.epoch >= self.epochs or (
            self.patience is not None and self.waited >= self.patience
        )

    @property
    def engine(self) -> Engine:
        return self.loop.svi.engine

    def __next__(self) -> Record:
        if self.ended:
            raise StopIteration
        before = copy.deepcopy(self.state_dict()) if self.on_nan == "rewind" else None
        label, images = f"epoch {self.epoch + 1}/{self.epochs}", len(self.loop.train)
        try:  # the bar shows the part done of all epochs, and the time left for them
            with progress_bar(
                self.epochs * images, label, initial=self.epoch * images, bar_format=TRAINING
            ) as progress:
                metrics = self.loop.epoch(label, progress)
        except NotFiniteError as error:
            if before is None or self.rewinds == REWINDS:
                raise
            return self._rewind(before, error)
        self.epoch += 1
        self.waited = 0 if metrics["validation_elbo"] > self.best else self.waited + 1
        self.best = max(self.best, metrics["validation_elbo"])
        return {"epoch": self.epoch, **metrics, "rewinds": self.rewinds}  # type: ignore[typeddict-item]

    def _rewind(self, before: Mapping[str, Any], error: NotFiniteError) -> Record:
        self.load_state_dict(before)
        self.rewinds += 1
        rate = self.loop.scale_learning_rate(0.5)
        logger.warning("%s; rewinding to epoch %d with learning rate %.3g", error, self.epoch, rate)
        return next(self)

    def state_dict(self) -> dict[str, Any]:
        """The state after the last epoch, as tensors and plain values; on a CPU, training continues from it bit for bit."""
        return {**{name: getattr(self, name) for name in COUNTERS}, **self.loop.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.loop.load_state_dict(state)
        for name in COUNTERS:
            setattr(self, name, state[name])


class Loop:
    """One epoch at a time: the training steps, then the validation."""

    def __init__(
        self,
        vae: Model,
        data: Data,
        batch_size: int,
        objective: ELBO,
        beta: Schedule,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler | None,
        engine: Engine,
        precision: Precision,
    ) -> None:
        self.vae, self.batch_size, self.objective, self.schedule, self.precision = (
            vae,
            batch_size,
            objective,
            beta,
            precision,
        )
        self.device = next(vae.parameters()).device
        data = data.to(self.device)
        self.train, validation = data.train, data.validation
        self.validation = Batch(validation.scored(vae.pixels), validation.y)
        _initialize(vae, self.train)
        self._synchronize()
        self.beta, self.step = torch.ones((), device=self.device), 0
        self.sums = torch.zeros(
            2, dtype=torch.float64, device=self.device
        )  # the reconstruction and the KL
        self.shown: dict[str, Any] = {}
        self._set_step()
        if objective.max_plate_nesting == math.inf:
            objective.max_plate_nesting = 1 + (
                objective.vectorize_particles and objective.num_particles > 1
            )
        model, guide = Meter(self.sums, sign=-1)(vae.model), Meter(self.sums, sign=1)(vae.guide)
        self.svi = SVI(
            model, guide, optimizer, objective, mean=True, prepare=self._batch, engine=engine
        )
        self.svi.dry_run(
            *next(self._steps(torch.arange(batch_size, device=self.train.x.device))),
            check=self._check,
        )
        assert self.svi.optimizer is not None  # the dry run has made it
        self.optimizer = self.svi.optimizer
        self.scheduler = None if lr_scheduler is None else lr_scheduler(self.optimizer)

    def epoch(self, label: str, progress: tqdm[Any]) -> dict[str, Any]:
        """Train one epoch and score the validation images."""
        order = distributed.broadcast(torch.randperm(len(self.train), device=self.train.x.device))
        try:
            with distributed.own_noise(self.device):
                trained, validated = self._train(label, order, progress), self._validate(label)
        except LinAlgError as error:  # a matrix with NaN cannot be factorized
            raise self._not_finite(label) from error
        metrics = {
            "step": self.step,
            "beta": value_at(self.schedule, self.step - 1),
            "learning_rate": self._learning_rate(),
            **trained,
            **validated,
        }
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(-validated["validation_elbo"])
        elif self.scheduler is not None:
            self.scheduler.step()
        self.shown = metrics
        return metrics

    def _train(self, label: str, order: Tensor, progress: tqdm[Any]) -> dict[str, float]:
        self.vae.train()
        self._clear_sums()
        start = checked = time.perf_counter()
        rows = 0
        progress.set_postfix_str(live(self.shown))
        with products(self.precision):
            for args in self._steps(order):
                self._set_step()
                self.svi.update(*args)
                self.step += 1
                rows += len(args[0])
                progress.update(len(args[0]))
                if self.step % FLUSH_STEPS == 0:
                    _flush(self.optimizer)
                if time.perf_counter() - checked > CHECK_SECONDS and distributed.world_size() == 1:
                    progress.set_postfix_str(
                        live({**self.shown, **self._read(label, rows)}), refresh=False
                    )
                    checked = time.perf_counter()
        means, seconds = self._read(label, len(self.train)), time.perf_counter() - start
        return {**means, "seconds": seconds, "images_per_second": len(self.train) / seconds}

    def _validate(self, label: str) -> dict[str, float]:
        self.vae.eval()
        self._clear_sums()
        self._synchronize()
        with products("float32"):
            for chunk in self._chunks():
                part = chunk[distributed.shard(len(chunk))]
                self.svi.total += len(part) * self.svi.evaluate_loss(part.x, part.y, self.beta)
            means = self._read(f"{label}, validation", len(self.validation))
            active = int(
                (activity(self.vae, self.validation) > ACTIVE).sum()
            )
        return {
            **{f"validation_{name}": value for name, value in means.items()},
            "active_units": active,
        }

    def _chunks(self) -> Iterator[Batch]:
        """The validation images of each pass: at least one for each process, because all take part in it."""
        rows = len(self.validation)
        size = max(
            1, default_batch_size(self.vae, self.validation.x) // self.objective.num_particles
        )
        starts = range(0, rows - distributed.world_size() + 1, size)
        for start, end in zip(starts, (*starts[1:], rows), strict=True):
            yield self.validation[start:end]

    def _steps(self, order: Tensor) -> Iterator[tuple[Any, ...]]:
        """The arguments of each step: the indices of a batch, and its images and labels if they are not on the device."""
        batches = order.split(self.batch_size)
        return (
            prefetch(self._read_batch, batches)
            if isinstance(self.train, HostSplit)
            else zip(batches)
        )

    def _read_batch(self, index: Tensor) -> tuple[Any, ...]:
        images, y = self._share(index)
        return index.to(self.device), images.to(self.device), y if y is None else y.to(self.device)

    def _share(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images and labels of this process's share of a batch."""
        part = self.train[index[distributed.shard(len(index))]]
        return part.x, part.y

    def _batch(self, index: Tensor, *read: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """The arguments of the programs for this process's share of a batch: images, labels and beta."""
        images, y = read or self._share(index)
        return to_pixels(images, self.vae.pixels), y, self.beta

    def _set_step(self) -> None:
        """Update what is scheduled in place, so that graphs stay valid."""
        self.beta.fill_(value_at(self.schedule, self.step))
        if isinstance(self.objective, ScheduledELBO):
            self.objective.set_step(self.step)

    def _read(self, label: str, rows: int) -> dict[str, float]:
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
        """Start anew, even after an epoch that was interrupted."""
        self.svi.total.zero_()
        self.sums.zero_()

    def _not_finite(self, label: str) -> NotFiniteError:
        return NotFiniteError(
            f"the loss became NaN or infinite in {label}, at or before step {self.step}; lower the learning rate"
            " (optimizer.lr), set clip_grad_norm=100, or use on_nan=rewind"
        )

    def _synchronize(self) -> None:
        """Copy the main process's parameters, and the buffers that batch normalization updates, to all processes."""
        for tensor in (*self.vae.parameters(), *self.vae.buffers()):
            distributed.broadcast(tensor)

    def _check(self, x: Tensor, y: Tensor | None, beta: Tensor) -> None:
        """Raise `RequestError` if the parts do not fit together."""
        self.vae.check_labels(self.train.y)
        self.vae.check_labels(self.validation.y)
        if any(param.isnan().any() for param in self.vae.parameters()):
            raise RequestError(
                "the model has parameters that are NaN; build it anew, or load a state_dict before training"
            )
        _check_shapes(self.vae, x, y)
        check_objective(
            self.objective, self.schedule, *traces(self.vae.model, self.vae.guide, Batch(x, y), 1)
        )

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
        """The step, the parameters, the optimizer, the scheduler and the random state."""
        return {
            "step": self.step,
            "vae": self.vae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "random": random_state(self.device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.step = state["step"]
        self.vae.load_state_dict(state["vae"])
        self.svi.load_optimizer(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["lr_scheduler"])
        set_random_state(state["random"], self.device)


def _batch_size(asked: int | None, images: int, validation: int) -> int:
    if asked is not None and asked > images:
        raise RequestError(
            f"batch_size={asked} exceeds the {images} training images; use a smaller batch_size"
        )
    if asked is None and images < BATCH_SIZE:
        logger.info("batch_size: using all %d training images", images)
    size, processes = asked or min(BATCH_SIZE, images), distributed.world_size()
    if min(size, images % size or size, validation) < processes:
        raise RequestError(
            f"batch_size={size} leaves a batch with fewer images than the {processes} processes; change it"
        )
    return size


def _initialize(vae: Model, train: Split) -> None:
    """Initialize a model that was not before from the training images."""
    if not vae.initialized:
        first = train[: max(1, FIRST_PIXELS // train.x[0].numel())].x.to(
            next(vae.parameters()).device
        )
        vae.initialize(to_pixels(first, vae.pixels))
        vae.initialized = True


def _check_shapes(vae: Model, x: Tensor, y: Tensor | None) -> None:
    """Raise `RequestError` if a network's outputs have a wrong shape, and leave the model in training mode."""
    vae.eval()  # in training mode, batch normalization rejects a single image
    with _outputs("decoder", vae.decoder, (vae.likelihood.num_params, *x.shape[1:])):
        vae.sample(1, y if y is None else y[:1])
    with _outputs("encoder", vae.encoder, (vae.posterior.num_params, vae.latent_dim)):
        vae.guide(x, y)
    vae.train()


@contextmanager
def _outputs(name: str, network: nn.Module, wanted: tuple[int, ...]) -> Iterator[None]:
    """If an output has another shape, raise `RequestError`, which replaces any exception of the block."""
    shapes: list[tuple[int, ...]] = []
    try:
        with network.register_forward_hook(
            lambda module, args, output: shapes.append(tuple(output.shape[1:]))
        ):
            yield
    finally:
        for shape in shapes:
            if shape != wanted:
                raise RequestError(
                    f"{name} returns shape {shape} per image, but must return {wanted}"
                )


@torch.no_grad()
def _flush(optimizer: Optimizer) -> None:
    """Set to zero what is negligible in an optimizer's state."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.masked_fill_(value.abs() < SMALLEST_STATE, 0)


def _change_gradients(optimizer: Optimizer, clip_grad_norm: float | None, normalize: bool) -> None:
    """Clip and normalize the gradients before each step, if asked."""
    if clip_grad_norm:
        optimizer.register_step_pre_hook(partial(_clip, norm=clip_grad_norm))
    if normalize:
        optimizer.register_step_pre_hook(_normalize)


def _clip(optimizer: Optimizer, *_: Any, norm: float) -> None:
    clip_grad_norm_([param for group in optimizer.param_groups for param in group["params"]], norm)


def _normalize(optimizer: Optimizer, *_: Any) -> None:
    for grad in (
        param.grad
        for group in optimizer.param_groups
        for param in group["params"]
        if param.grad is not None
    ):
        grad /= grad.norm().clamp(min=1e-12)  # gradients may be zero
