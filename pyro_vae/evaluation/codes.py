"""Codes of images: moments of the posterior q(z | x), and how much they vary over images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.evaluation.batch import IMAGES, BatchLike, scored
from pyro_vae.vae import Model

# A latent dimension is active if the variance of its posterior mean over the images exceeds this
# (Burda et al., 2016).
ACTIVE = 0.01

DRAWS = 100


class Codes(NamedTuple):
    """Moments of q(z | x), each of shape `(N, latent_dim)`."""

    loc: Tensor
    scale: Tensor


@torch.no_grad()
def codes(vae: Model, data: BatchLike) -> Codes:
    """The means and standard deviations of q(z | x) for each image.

    They are estimated with 100 draws where the posterior has no closed form.

    Arguments:
        vae: A model.
        data: The images, see `scored`.

    Raises:
        ValueError: If `x` does not have the dtype and shape of the model's images.
    """
    batch = scored(vae, data)
    locs = []
    scales = []
    for rows in batch.split(IMAGES):
        loc, scale = _moments(vae.q_z(*rows))
        locs.append(loc)
        scales.append(scale)
    return Codes(torch.cat(locs), torch.cat(scales))


def _moments(q: TorchDistribution) -> tuple[Tensor, Tensor]:
    try:
        return q.mean, q.stddev
    except NotImplementedError:
        draws = q.sample(torch.Size([DRAWS]))
        return draws.mean(0), draws.std(0)


@torch.no_grad()
def activity(vae: Model, data: BatchLike) -> Tensor:
    r"""The variance of the posterior mean over images, :math:`\mathrm{Var}_x \, \mathbb{E}[z | x]`.

    Where the mean has no closed form it is estimated twice, and the covariance of the two estimates
    is returned: the variance of one estimate would include its noise.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        vae: A model.
        data: At least two images, see `scored`.

    Returns:
        The variances, shape `(latent_dim,)`.
    """
    batch = scored(vae, data)
    first = []
    second = []
    for rows in batch.split(IMAGES):
        q = vae.q_z(*rows)
        first.append(_moments(q)[0])
        second.append(_moments(q)[0])
    a = torch.cat(first).double()
    b = torch.cat(second).double()
    products = (a - a.mean(0)) * (b - b.mean(0))
    return products.sum(0) / max(1, len(batch) - 1)
