"""What a page shows of every model: scores, codes, samples and reconstructions, as arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.data.split import Split
from pyro_vae.engine.programs import Batch, sample_sites, traces
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.codes import activity, codes
from pyro_vae.evaluation.metrics import Scores, score
from pyro_vae.reporting import views
from pyro_vae.reporting.figures import LATENT_IMAGES
from pyro_vae.reporting.projection import Projection, projection
from pyro_vae.vae import Model, default_batch_size


class Effort(NamedTuple):
    """How much is computed.

    Attributes:
        scored: Images that are scored.
        samples: Importance samples for each.
        explored: Images in the explorer.
        several: The same if it shows several epochs.
        steps: Steps to optimize a posterior.
    """

    scored: int
    samples: int
    explored: int
    several: int
    steps: int


FULL = Effort(scored=500, samples=100, explored=30, several=6, steps=200)
QUICK = Effort(scored=100, samples=50, explored=3, several=3, steps=60)

SAMPLES = 40
RECONSTRUCTIONS = 10
KL_PASSES = 10


class Overview(NamedTuple):
    """What is shown of every model.

    Attributes:
        images: A random subset of the test images, the same at every call.
        pictures: The same as grey values in [0, 1].
        num_samples: Importance samples for each image.
        scores: Their scores.
        codes: Posterior means, shape `(N, latent_dim)`.
        onto_plane: Where codes are drawn, the same as in `figures.figures_of`.
        activity: The variance of the posterior mean, shape `(latent_dim,)`.
        kl: The KL of each dimension, or None where prior or posterior do not factorize.
        samples: Means of p(x | z) for draws of the prior.
        reconstructions: The first ten images and their reconstructions, shape `(10, 2, ...)`.
    """

    images: Split
    pictures: Tensor
    num_samples: int
    scores: Scores
    codes: Tensor
    onto_plane: Projection
    activity: Tensor
    kl: Tensor | None
    samples: Tensor
    reconstructions: Tensor


@torch.no_grad()
def overview(vae: Model, test: Split, effort: Effort = FULL) -> Overview:
    """Compute the overview of a model from its test images. Runs in one process."""
    images = test.subset(min(effort.scored, len(test)))
    batch = scored(vae, images)
    rows = default_batch_size(vae, batch.x)
    return Overview(
        images=images,
        pictures=views.to_grey(vae, batch.x),
        num_samples=effort.samples,
        scores=score(vae.model, vae.guide, batch, effort.samples, rows),
        codes=codes(vae, batch).loc,
        onto_plane=projection(codes(vae, test.subset(min(LATENT_IMAGES, len(test)))).loc),
        activity=activity(vae, batch),
        kl=kl_per_dimension(vae, batch),
        samples=views.samples(vae, SAMPLES, y=views.random_labels(vae, images, SAMPLES)),
        reconstructions=views.reconstructions(vae, batch[:RECONSTRUCTIONS]),
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
