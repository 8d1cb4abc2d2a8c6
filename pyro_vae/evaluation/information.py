"""Information that the codes carry about the images."""

from __future__ import annotations

from math import inf, log
from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.engine.programs import Batch
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.evaluation.batch import IMAGES, BatchLike, random_rows, scored
from pyro_vae.evaluation.metrics import ELBO_SAMPLES, score, summary
from pyro_vae.evaluation.quadrature import latent_shapes
from pyro_vae.vae import OUTPUTS_PER_PASS, Model, default_batch_size

# Nats below log N within which the mutual information is clearly too low: by 0.2 to 1.2 nats on
# linear-Gaussian models of 2 to 20 dimensions with N = 300 to 3,000, or far more at the ceiling;
# elsewhere by at most 0.3.
NEAR_CEILING = 3.0


class Information(NamedTuple):
    """Information that the codes carry about the images, in nats.

    The standard errors are over images, and None for a single one.
    """

    mutual_information: float
    """That of the code and the choice of one of N images; at most that of code and image."""
    mutual_information_error: float | None
    marginal_kl: float
    """KL(q(z) || p(z)) where q(z) is the mean of N posteriors: the rate minus the former."""
    marginal_kl_error: float | None
    num_images: int
    """N, the number of posteriors of which q(z) is the mean."""
    num_codes: int
    """The number of images whose codes were drawn."""
    ceiling: float
    """log N, which the mutual information cannot exceed."""
    saturated: bool
    """Whether the mutual information is within three nats of the ceiling. The values are then only
    bounds for the images' population: a lower one on the mutual information, an upper one on the
    marginal KL."""


@torch.no_grad()
def information(
    vae: Model, data: BatchLike, *, num_images: int = 1000, batch_size: int | None = None
) -> Information:
    r"""Split the rate into the mutual information of code and image, and a KL to the prior.

    .. math:: \overline{\mathrm{KL}(q(z \mid x) \,\|\, p(z))}
        = I_q(x; z) + \mathrm{KL}(q(z) \,\|\, p(z)),
        \qquad q(z) = \tfrac{1}{N} \sum_n q(z \mid x_n)

    One code of each image of a random subset is evaluated under the posteriors of all N images.
    The mutual information of N images is at most log N. It is a lower bound in expectation on that
    of the population, and KL(q(z) || p(z)) an upper bound; they are close only if the mutual
    information is some nats below log N: use more images otherwise. Of a model that infers labels,
    the code is the label and z, with the posterior q(y | x) q(z | x, y); known labels are not used.

    References:
        | ELBO surgery: yet another way to carve up the variational evidence lower bound
          (Hoffman & Johnson, 2016)
        | http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922

    Arguments:
        vae: A model whose only latent site is `z`, but for labels that it infers.
        data: The N images, see `scored`.
        num_images: Size of the random subset whose codes are drawn; all images if there are fewer.
        batch_size: Decoder rows per pass for the rate; None is `default_batch_size`.

    Raises:
        RequestError: If the model has other latent sites, or a number is not positive.
    """
    check_positive(num_images=num_images)
    batch = scored(vae, data)
    if latent_shapes(vae, batch).keys() != {"z"}:
        raise RequestError("the information needs a model whose only latent site is z")
    if vae.infers_labels:
        batch = Batch(batch.x, None)
    own = batch[random_rows(batch, num_images)]
    labels = []
    draws = []
    densities = []
    for rows in own.split(IMAGES):
        label = None
        if vae.infers_labels:
            label = vae.q_y(rows.x).sample()
            labels.append(label)
        log_q_y, q = _guide(vae, rows, label)
        draw = q.sample()
        draws.append(draw)
        densities.append(log_q_y + q.log_prob(draw))
    z = torch.cat(draws)
    with forked_rng():  # the guide draws codes of its own
        if labels:
            aggregate = _log_mean_density_of_labels(vae, batch, z, torch.cat(labels))
        else:
            aggregate = _log_mean_density(vae, batch, z)
    shared = (torch.cat(densities) - aggregate).double().cpu()
    batch_size = batch_size or default_batch_size(vae, batch.x)
    rate = score(vae.model, vae.guide, own, ELBO_SAMPLES, batch_size).kl
    of_code = summary(shared, 1)
    of_prior = summary(rate - shared, ELBO_SAMPLES)
    ceiling = log(len(batch))
    return Information(
        of_code["mean"],
        of_code["standard_error"],
        of_prior["mean"],
        of_prior["standard_error"],
        len(batch),
        len(own),
        ceiling,
        of_code["mean"] > ceiling - NEAR_CEILING,
    )


def _guide(vae: Model, rows: Batch, label: Tensor | None) -> tuple[Tensor, TorchDistribution]:
    """log q(y | x) at a label, and q(z | x, y); 0 and q(z | x) if there is none."""
    if label is None:
        return rows.x.new_zeros(len(rows)), vae.q_z(*rows)
    label = label.expand(len(rows))
    return vae.q_y(rows.x).log_prob(label), vae.q_z(rows.x, label)


def _log_mean_density_of_labels(vae: Model, batch: Batch, z: Tensor, labels: Tensor) -> Tensor:
    """log q(y, z) of each label and code, the mean of the posteriors of all images."""
    density = z.new_empty(len(z))
    for label in labels.unique():
        has_label = labels == label
        density[has_label] = _log_mean_density(vae, batch, z[has_label], label)
    return density


def _log_mean_density(vae: Model, batch: Batch, z: Tensor, label: Tensor | None = None) -> Tensor:
    """log q(z) of each code, or log q(y, z) at a label: the mean over all images."""
    total = z.new_full((len(z),), -inf)
    for rows in batch.split(IMAGES):
        log_q_y, q = _guide(vae, rows, label)
        size = max(1, OUTPUTS_PER_PASS // (len(rows) * z.shape[1]))
        sums = [(log_q_y + q.log_prob(part[:, None])).logsumexp(1) for part in z.split(size)]
        total = torch.logaddexp(total, torch.cat(sums))
    return total - log(len(batch))
