"""What one process and several must compute alike.

Run it by `torchrun --nproc-per-node=2 tests/processes.py OUT`.
"""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

import pyro_vae as pv
from pyro_vae.engine import distributed
from pyro_vae.training import fit


class Point(pv.Posterior):
    """A code without noise."""

    num_params = 1

    def forward(self, params):
        return dist.Delta(params[..., 0, :]).to_event(1)


def momentum(params):
    return SGD(params, lr=0.003, momentum=0.5)


adam = partial(Adam, fused=True)


TRAININGS: dict[str, dict[str, Any]] = {
    "eager, clipped": {"engine": "eager", "clip_grad_norm": 1.0, "beta": pv.schedules.Linear()},
    "traced, scheduled": {
        "engine": "traced",
        "lr_scheduler": partial(CosineAnnealingLR, T_max=3),
        "optimizer": adam,
        "average": 0.9,
    },
    "K = 3, plateau": {
        "objective": pv.ImportanceWeightedELBO(3),
        "lr_scheduler": partial(ReduceLROnPlateau, patience=0, threshold=1e9, threshold_mode="abs"),
    },
    "free bits, compiled": {"objective": pv.FreeBitsELBO(1.0), "engine": "compiled"},
    "capacity, traced": {
        "objective": pv.CapacityELBO(10.0, pv.Constant(3.0), num_particles=2),
        "engine": "traced",
    },
}


def small_vae(data: pv.Data, posterior: pv.Posterior, **options: Any) -> pv.VAE:
    pyro.set_rng_seed(0)
    encoder, decoder = (
        pv.MLP(data.shape, (posterior.num_params, 3), hidden=(16,)),
        pv.MLP((3,), (1, *data.shape), hidden=(16,)),
    )
    return pv.VAE(pv.StandardNormal(3), encoder, posterior, decoder, pv.Bernoulli(**options))


def train(name: str) -> tuple[dict[str, torch.Tensor], list[pv.Record]]:
    """The parameters and records of a training.

    Its last batch has 49 images, the last chunk of validation images one.
    """
    digits = pv.load_data("digits")
    few = pv.Data("few", digits.train[:149], digits.validation[:41], digits.test)
    vae = small_vae(few, Point(), relaxed=True)
    records = list(
        pv.fit(
            vae, few, epochs=3, batch_size=100, seed=0, **{"optimizer": momentum, **TRAININGS[name]}
        )
    )
    return vae.state_dict(), records


def infer_labels() -> tuple[dict[str, torch.Tensor], list[pv.Record]]:
    """The parameters and records of a model that infers labels, without noise."""
    digits = pv.load_data("digits").with_labels(50)
    few = pv.Data("few", digits.train[:149], digits.validation[:41], digits.test)
    plain = small_vae(few, Point(), relaxed=True)
    parts = (
        plain.prior,
        plain.encoder,
        plain.posterior,
        pv.MLP((13,), (1, *few.shape), hidden=(16,)),
    )
    classifier = pv.MLP(few.shape, (10,), hidden=(16,))
    vae = pv.SemiSupervisedVAE(*parts, plain.likelihood, classifier, few.shape, 10)
    nn.init.normal_(vae.embedding, std=0.1)  # it starts at 0, of which rounding is a large share
    options = {"batch_size": 30, "seed": 0, "optimizer": momentum, "engine": "traced"}
    vae.initialize_labels(torch.arange(10))
    vae.initialized = True
    # One epoch: `q_z` draws known labels, which would change the order of the next one.
    return vae.state_dict(), list(pv.fit(vae, few, epochs=1, **options))


OBJECTIVES = {
    "free bits, some dimensions below the floor": pv.FreeBitsELBO(1.0, num_particles=2),
    "free bits, below the floor": pv.FreeBitsELBO(100.0, groups=1),
    "free bits, above the floor": pv.FreeBitsELBO(
        1e-3, groups=1, vectorize_particles=False, num_particles=2
    ),
    "capacity below": pv.CapacityELBO(3.0, pv.Constant(0.1)),
    "capacity above": pv.CapacityELBO(3.0, pv.Constant(100.0)),
}


def gradient(name: str) -> list[torch.Tensor]:
    """The loss of 7 images and its gradient, summed over the processes."""
    torch.manual_seed(0)
    x = torch.rand(7, 1, 2, 2).double()
    encoder, decoder = (
        pv.MLP((1, 2, 2), (1, 3), hidden=(16,)),
        pv.MLP((3,), (1, 1, 2, 2), hidden=(16,)),
    )
    vae = pv.VAE(
        pv.StandardNormal(3), encoder, Point(), decoder, pv.Bernoulli(relaxed=True)
    ).double()
    own = x[distributed.shard(len(x))]
    loss = OBJECTIVES[name].differentiable_loss(vae.model, vae.guide, own)
    return distributed.all_reduce(
        [loss.detach(), *torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)]
    )


class Normalized(nn.Sequential):
    """A network with batch normalization and dropout."""

    def __init__(self, shape: tuple[int, ...], out: tuple[int, ...]) -> None:
        sizes = torch.Size(shape).numel(), torch.Size(out).numel()
        layers = nn.BatchNorm1d(sizes[0]), nn.Dropout(0.2), nn.Linear(*sizes), nn.Unflatten(1, out)
        super().__init__(nn.Flatten(), *layers)


def train_with_noise(seed: int) -> tuple[torch.Tensor, list[pv.Record], torch.Tensor]:
    """The parameters and buffers, the records, and random numbers that are drawn afterwards."""
    digits = pv.load_data("digits")
    vae = small_vae(digits, pv.DiagonalNormal())
    vae.encoder = Normalized(digits.shape, (2, 3))
    nn.init.constant_(
        vae.encoder[-2].weight, 0.01 * distributed.rank()
    )  # all start with the main process's
    records = list(pv.fit(vae, digits, epochs=2, seed=seed, engine="traced"))
    return (
        torch.cat([value.flatten() for value in vae.state_dict().values()]),
        records,
        torch.rand(3),
    )


def score(rows: int) -> list[torch.Tensor]:
    """Both estimates of log p(x) of a few images."""
    digits = pv.load_data("digits")
    vae, images = small_vae(digits, pv.DiagonalNormal()), digits.test[:rows]
    pyro.set_rng_seed(1)
    scores = pv.score_images(vae, images, num_samples=500)
    annealed = pv.annealed_log_weights(
        vae.model, images.scored("binary"), num_chains=20, num_temperatures=10
    )
    simulated, bounds = pv.bidirectional_bounds(
        vae.model, images.scored("binary"), num_chains=2, num_temperatures=2
    )
    assert bounds.lower.shape == bounds.upper.shape == (len(simulated),) == (rows,)
    assert (simulated.dtype, bounds.lower.dtype) == (torch.float32, torch.float64)
    return [scores.log_likelihood, pv.log_likelihood(annealed)]


def main(out: Path) -> None:
    with distributed.process_group(torch.device("cpu")):
        results = {
            "trained": {name: train(name) for name in TRAININGS},
            "inferred": infer_labels(),
            "gradients": {name: gradient(name) for name in OBJECTIVES},
            "noisy": [train_with_noise(seed) for seed in (0, 0, 1)],
            "scores": {rows: score(rows) for rows in (1, 5)},
        }
        torch.save(results, out / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    fit.default_batch_size = lambda vae, x: 20
    main(Path(sys.argv[1]))


def heeding_ctrl_c():
    """A process started in the background of a shell ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
