"""Codes of images: moments of the posterior q(z | x), and how much they vary over images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.engine.importance import split_rows
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError
from pyro_vae.vae import Model

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
def codes(vae: Model, x: Tensor, y: Tensor | None = None) -> Codes:
    """The posterior means and standard deviations at images `x`, as the likelihood's pixels, with labels `y`.

    They are estimated with 100 draws where the posterior has no closed form.

    Raises:
        ValueError: If `x` does not have the dtype and shape of the model's images.
    """
    check_images(vae, x, y)
    parts = [_moments(vae.q_z(*rows)) for rows in split_rows((x, y), IMAGES)]
    return Codes(*(torch.cat(part) for part in zip(*parts, strict=True)))


def check_images(vae: Model, x: Tensor, y: Tensor | None = None) -> None:
    """Raise `RequestError` unless images and labels have the dtype and shape of the model's; sets it to evaluation mode."""
    vae.eval()
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
def activity(vae: Model, x: Tensor, y: Tensor | None = None) -> Tensor:
    r"""The variance of the posterior mean over images, :math:`\operatorname{Var}_x \mathbb{E}[z \mid x]`.

    Where the mean has no closed form it is estimated twice, and the covariance of the two estimates is returned: the variance
    of one estimate would include its noise.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        vae: A model.
        x: At least two images, as the likelihood's pixels.
        y: Their labels.

    Returns:
        The variances, shape `(latent_dim,)`.
    """
    posteriors = (vae.q_z(*rows) for rows in split_rows((x, y), IMAGES))
    parts = [(_moments(q)[0], _moments(q)[0]) for q in posteriors]
    first, second = (torch.cat(means).double() for means in zip(*parts, strict=True))
    return ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / max(1, len(x) - 1)
