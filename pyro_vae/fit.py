"""The training loop: a generator of records, one for each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.optim import Adam

from pyro_vae.data import Data, to_pixels
from pyro_vae.errors import NotFiniteError, RequestError
from pyro_vae.importance import Program, Site, is_random, log_prob, rows_at_once
from pyro_vae.schedules import Constant, Schedule, value_at
from pyro_vae.svi import SVI, MakeOptimizer
from pyro_vae.vae import Model


class Record(TypedDict):
    """What one epoch came to; losses and terms in nats per image.

    `loss` is what was minimized, at this epoch's beta; `elbo` is never annealed, and is `reconstruction` less `kl`.
    """

    epoch: int
    step: int
    beta: float
    loss: float
    elbo: float
    reconstruction: float
    kl: float
    validation_loss: float
    validation_elbo: float
    validation_reconstruction: float
    validation_kl: float
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
    on_batch: Callable[[int], object] = lambda images: None,
) -> Iterator[Record]:
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
        on_batch: Called after each step with the number of images it took.

    Returns:
        An iterator that trains one epoch for each record that is drawn from it.

    Raises:
        RequestError: If epochs or batch_size is not positive, or batch_size is over the number of training images.
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
    if epochs < 1:
        raise RequestError(f"epochs must be positive, but is {epochs}")
    if not 1 <= batch_size <= len(data.train):
        raise RequestError(f"batch_size must be 1 to {len(data.train)}, the number of training images, but is {batch_size}")
    loop = _Loop(vae, data, batch_size, optimizer or Adam, objective or Trace_ELBO(), beta or Constant(), on_batch)
    return (loop.epoch(number) for number in range(1, epochs + 1))


class _Loop:
    def __init__(
        self,
        vae: Model,
        data: Data,
        batch_size: int,
        optimizer: MakeOptimizer,
        objective: ELBO,
        beta: Schedule,
        on_batch: Callable[[int], object],
    ) -> None:
        self.vae, self.batch_size, self.beta, self.on_batch = vae, batch_size, beta, on_batch
        data = data.to(_device(vae))
        self.images = data.train.images
        self.validation = data.validation.scored(vae.pixels)
        if objective.max_plate_nesting == math.inf:
            objective.max_plate_nesting = 1 + (objective.vectorize_particles and objective.num_particles > 1)
        self.sums = Sums()
        self.svi = SVI(self.sums.model(vae.model), self.sums.guide(vae.guide), optimizer, objective, mean=True)
        self.step = 0

    def epoch(self, number: int) -> Record:
        """Train one epoch and score the validation set."""
        start = time.perf_counter()
        self.vae.train()
        order = torch.randperm(len(self.images), device=self.images.device)
        trained = self._mean(self._train_step, order, self.batch_size)
        seconds = time.perf_counter() - start
        self.vae.eval()
        validated = self._mean(self._validation_step, self.validation, rows_at_once(self.validation))
        return {
            "epoch": number,
            "step": self.step,
            "beta": value_at(self.beta, self.step - 1),
            **trained,  # type: ignore[typeddict-item]
            **{f"validation_{name}": value for name, value in validated.items()},
            "seconds": seconds,
            "images_per_second": len(self.images) / seconds,
        }

    def _mean(self, step: Callable[[Tensor], float], rows: Tensor, batch_size: int) -> dict[str, float]:
        self.sums.reset()
        loss = sum(len(batch) * step(batch) for batch in rows.split(batch_size)) / len(rows)
        particles = self.svi.objective.num_particles
        reconstruction, kl = (float(total) / len(rows) / particles for total in (self.sums.reconstruction, self.sums.kl))
        return {"loss": loss, "elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    def _train_step(self, index: Tensor) -> float:
        x = to_pixels(self.images[index], self.vae.pixels)
        loss = self.svi.step(x, value_at(self.beta, self.step))
        self.step += 1
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"the loss is {loss} at step {self.step}: try a lower learning rate, such as --optimizer.lr 1e-4"
            )
        self.on_batch(len(x))
        return loss

    def _validation_step(self, x: Tensor) -> float:
        return self.svi.evaluate_loss(x, value_at(self.beta, max(self.step - 1, 0)))


class Sums:
    """Sums up log-probabilities, never annealed, while an objective runs the programs that it is given."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start from zero."""
        self.reconstruction: float | Tensor = 0.0
        self.kl: float | Tensor = 0.0

    def model(self, program: Program) -> Program:
        """The program, with its observed sites added to `reconstruction` and its latent sites taken from `kl`."""
        return _OnSites(self._add_model)(program)

    def guide(self, program: Program) -> Program:
        """The program, with its sites added to `kl`."""
        return _OnSites(self._add_guide)(program)

    def _add_model(self, site: Site) -> None:
        if site["is_observed"]:
            self.reconstruction = self.reconstruction + log_prob(site).sum()
        else:
            self.kl = self.kl - log_prob(site).sum()

    def _add_guide(self, site: Site) -> None:
        self.kl = self.kl + log_prob(site).sum()


class _OnSites(Messenger):
    def __init__(self, function: Callable[[Site], None]) -> None:
        super().__init__()
        self.function = function

    @torch.no_grad()
    def _pyro_post_sample(self, msg: Any) -> None:
        if is_random(msg):
            self.function(msg)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
