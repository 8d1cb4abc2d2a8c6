"""Codes of images: moments of the posterior q(z | x), and how much they vary over images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.data.split import Split
from pyro_vae.engine.programs import Batch
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError
from pyro_vae.vae import Model

Data = Split | Batch | Tensor

# A latent dimension is active if the variance of its posterior mean over the images exceeds this (Burda et al., 2016).
ACTIVE = 0.01

DRAWS = 100
# Images encoded in one pass.
IMAGES = 1000


class Codes(NamedTuple):
    """Moments of q(z | x), each of shape `(N, latent_dim)`."""

    loc: Tensor
    scale: Tensor


@torch.no_grad()
def codes(vae: Model, data: Data) -> Codes:
    """The means and standard deviations of q(z | x) for each image.

    They are estimated with 100 draws where the posterior has no closed form.

    Arguments:
        vae: A model.
        data: The images, see `scored`.

    Raises:
        ValueError: If `x` does not have the dtype and shape of the model's images.
    """
    batch = scored(vae, data)
    parts = [_moments(vae.q_z(*rows)) for rows in batch.split(IMAGES)]
    return Codes(*(torch.cat(part) for part in zip(*parts, strict=True)))


def scored(vae: Model, data: Data) -> Batch:
    """The arguments of a model's programs, on its device; sets the model to evaluation mode.

    Arguments:
        vae: A model.
        data: A split of a data set; or a batch, or a tensor, of the values that the likelihood
            scores (`Split.scored`).

    Raises:
        ValueError: If images or labels do not have the dtype and shape of the model's.
    """
    vae.eval()
    if isinstance(data, Split):
        split = data.to(next(vae.parameters()).device)
        batch = Batch(split.scored(vae.pixels), split.y)
    elif isinstance(data, Tensor):
        batch = Batch(data, None)
    else:
        batch = data
    _check_batch(vae, batch)
    return batch


def _check_batch(vae: Model, batch: Batch) -> None:
    x, y = batch.x, batch.y
    vae.check_labels(y)
    with forked_rng():
        shape, dtype = (
            vae.sample(1, y if y is None else y[:1]).shape[1:],
            next(vae.parameters()).dtype,
        )
    if x.dtype != dtype or x.shape[1:] != shape:
        raise RequestError(
            f"images must be the likelihood's pixels, {dtype} of shape (N, {', '.join(map(str, shape))}), but are {x.dtype} of"
            f" shape {tuple(x.shape)}; use data.test.scored(vae.pixels)"
        )


def _moments(q: TorchDistribution) -> tuple[Tensor, Tensor]:
    try:
        return q.mean, q.stddev
    except NotImplementedError:
        draws = q.sample(torch.Size([DRAWS]))
        return draws.mean(0), draws.std(0)


@torch.no_grad()
def activity(vae: Model, data: Data) -> Tensor:
    r"""The variance of the posterior mean over images, :math:`\operatorname{Var}_x \mathbb{E}[z \mid x]`.

    Where the mean has no closed form it is estimated twice, and the covariance of the two estimates is returned: the variance
    of one estimate would include its noise.

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
    posteriors = (vae.q_z(*rows) for rows in batch.split(IMAGES))
    parts = [(_moments(q)[0], _moments(q)[0]) for q in posteriors]
    first, second = (torch.cat(means).double() for means in zip(*parts, strict=True))
    return ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / max(1, len(batch) - 1)
