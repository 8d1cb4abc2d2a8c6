"""What a page shows of every model: scores, codes, samples and reconstructions, as arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.data.split import Split
from pyro_vae.engine.programs import Batch, sample_sites, traces
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.codes import ACTIVE, activity, codes
from pyro_vae.evaluation.metrics import Scores, score
from pyro_vae.reporting import views
from pyro_vae.vae import Model, default_batch_size


class Effort(NamedTuple):
    """How much is computed.

    Attributes:
        drawn: Images whose codes are drawn.
        scored: Images that are scored, the first of them.
        samples: Importance samples for each.
        explored: Images in the explorer.
        several: The same if it shows several epochs.
        steps: Steps to optimize a posterior.
    """

    drawn: int
    scored: int
    samples: int
    explored: int
    several: int
    steps: int


FULL = Effort(drawn=500, scored=500, samples=100, explored=30, several=6, steps=200)
QUICK = Effort(drawn=300, scored=100, samples=50, explored=3, several=3, steps=60)

SAMPLES = 100
KL_PASSES = 10


class Overview(NamedTuple):
    """What is shown of every model.

    Attributes:
        images: A random subset of the test images, the same at every call.
        num_samples: Importance samples for each image that is scored.
        scores: The scores of the first images.
        codes: Posterior means of all images, shape `(N, latent_dim)`.
        activity: The variance of the posterior mean, shape `(latent_dim,)`.
        kl: The KL of each dimension, or None where prior or posterior do not factorize.
        samples: Means of p(x | z) for draws of the prior.
        reconstructions: The images and their reconstructions, shape `(N, 2, ...)`, in [0, 1].
    """

    images: Split
    num_samples: int
    scores: Scores
    codes: Tensor
    activity: Tensor
    kl: Tensor | None
    samples: Tensor
    reconstructions: Tensor

    @property
    def order(self) -> list[int]:
        """The active latent dimensions by decreasing KL, or activity where there is no KL."""
        return order_of(self.activity, self.kl)


def order_of(activity: Tensor, kl: Tensor | None) -> list[int]:
    """The active latent dimensions by decreasing KL, or activity where there is no KL.

    If all collapsed it is the first of that order.
    """
    sizes = activity if kl is None else kl
    order: list[int] = sizes.argsort(descending=True).tolist()
    active = [dimension for dimension in order if activity[dimension] > ACTIVE]
    return active or order[:1]


@torch.no_grad()
def overview(vae: Model, test: Split, effort: Effort = FULL) -> Overview:
    """Compute the overview of a model from its test images. Runs in one process."""
    images = test.subset(min(max(effort.drawn, effort.scored), len(test)))
    batch = scored(vae, images)
    rows = default_batch_size(vae, batch.x)
    first = batch[: effort.scored]
    return Overview(
        images=images,
        num_samples=effort.samples,
        scores=score(vae.model, vae.guide, first, effort.samples, rows),
        codes=codes(vae, batch).loc,
        activity=activity(vae, batch),
        kl=kl_per_dimension(vae, first),
        samples=views.samples(vae, SAMPLES, y=views.random_labels(vae, images, SAMPLES)),
        reconstructions=views.reconstructions(vae, batch),
    )


@torch.no_grad()
def kl_per_dimension(vae: Model, batch: Batch) -> Tensor | None:
    """The mean KL(q(z_d | x) || p(z_d)) of each latent dimension, in nats, from ten draws.

    None unless `z` is the only latent site, and both its distributions are independent over
    dimensions.
    """
    p, q = (sample_sites(trace) for trace in traces(vae.model, vae.guide, batch, KL_PASSES))
    if q.keys() != {"z"} or not (_factorizes(p["z"]["fn"]) and _factorizes(q["z"]["fn"])):
        return None
    z = q["z"]["value"]
    log_q = q["z"]["fn"].base_dist.log_prob(z)
    log_p = p["z"]["fn"].base_dist.log_prob(z)
    return (log_q - log_p).mean((0, 1))


def _factorizes(fn: Any) -> bool:
    return (
        isinstance(fn, Independent)
        and fn.base_dist.event_shape == ()
        and fn.reinterpreted_batch_ndims == 1
    )
