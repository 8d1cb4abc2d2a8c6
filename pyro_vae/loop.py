"""Passes over the data: the steps of an epoch, and the validation after it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
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
from pyro_vae.randomness import random_state, set_random_state
from pyro_vae.schedules import Schedule, value_at
from pyro_vae.svi import SVI, MakeOptimizer, for_all
from pyro_vae.tally import Reading, Tally
from pyro_vae.vae import Model

MakeScheduler = Callable[[Optimizer], LRScheduler]

READ_SECONDS = 1.0
"""At most so long, but never less than a step, until a loss that is not finite is noticed."""


class Loop:
    """Training, an epoch at a time; arguments as for `fit`."""

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
        make = for_all(optimizer)
        first = torch.arange(self.batch_size, device=self.images.device)
        with self._share(self.batch_size) as own:
            rehearse(self._look, first[own])
        self.svi = SVI(
            self.tally.model(self.vae.model),
            self.tally.guide(self.vae.guide),
            lambda params: self._hooked(make(params), params, clip_grad_norm),
            self.objective,
            mean=True,
            prepare=self._batch,
            engine=engine,
            say=say,
        )
        try:
            self.svi.start(first)
        except Exception as error:
            raise RequestError(f"objective: {' '.join(str(error).split()) or type(error).__name__}") from error
        self.scheduler = None if lr_scheduler is None else lr_scheduler(self._optimizer)

    def _hooked(self, optimizer: Optimizer, params: Sequence[Tensor], clip_grad_norm: float | None) -> Optimizer:
        """The optimizer, with what is to be done to the gradients before each of its steps."""
        if distributed.size() > 1:
            optimizer.register_step_pre_hook(lambda *_: self._sum_gradients(params))
        if clip_grad_norm is not None:
            optimizer.register_step_pre_hook(lambda *_: _clip(params, clip_grad_norm))
        return optimizer

    def _look(self, index: Tensor) -> None:
        x, _ = self._batch(index)
        seen = traces(self.vae.model, self.vae.guide, (x,), 1)
        check_objective(self.objective, self.schedule, *seen)
        self.tally = Tally(*seen, device=x.device)
        self.at_once = rows_at_once(lambda x: terms(self.vae.model, self.vae.guide, x, 1), self.validation)

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
            "beta": value_at(self.schedule, self.step - 1),
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
        for x in self.validation.split(self.at_once):
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
        particles = self.objective.num_particles if self.objective.vectorize_particles else 1
        with distributed.WholeNoise(rows, particles) if distributed.size() > 1 else nullcontext():
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


def _clip(params: Sequence[Tensor], norm: float) -> None:
    clip_grad_norm_(params, norm)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
