"""How good a trained VAE is: figures on held-out images, each with its standard error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.errors import RequestError
from pyro_vae.importance import in_chunks, log_likelihood, rows_at_once
from pyro_vae.vae import Model

ELBO_SAMPLES = 10

ACTIVE = 0.01
"""A latent dimension is active if its posterior mean varies by more over the images (Burda et al., 2016)."""

DRAWS = 100

Metrics = dict[str, dict[str, Any]]


@torch.no_grad()
def evaluate(
    vae: Model,
    images: Split,
    num_samples: int = 5000,
    num_images: int | None = None,
    on_images: Callable[[int], object] = lambda images: None,
) -> Metrics:
    """Score held-out images, in nats per image.

    Arguments:
        vae: A trained VAE, on the device where it will be scored.
        images: The images, such as `data.test`.
        num_samples: Importance samples for each image.
        num_images: Size of the seeded random subset whose log-likelihood is estimated; None is all images.
        on_images: Called with the number of images done, after each chunk of the log-likelihood.

    Returns:
        `elbo`, `reconstruction` and `kl`, over all images with a few draws each, and the importance-weighted
        `log_likelihood`, each with its `mean`, its `standard_error` over images, and the `num_samples` and `num_images` it
        rests on.

    Raises:
        RequestError: If `num_images` is over the number of images, or `num_samples` is not positive.
    """
    if len(images) == 0:
        raise RequestError("there are no images to score")
    vae.eval()
    images = images.to(next(vae.parameters()).device)
    subset = images if num_images is None else images.subset(num_images)
    chunks = list(in_chunks(vae.model, vae.guide, images.scored(vae.pixels), ELBO_SAMPLES))
    reconstruction, kl = (torch.cat([part.mean(0) for part in parts]) for parts in zip(*chunks, strict=True))
    log_p = []
    for chunk in in_chunks(vae.model, vae.guide, subset.scored(vae.pixels), num_samples):
        log_p.append(log_likelihood(chunk.log_weights))
        on_images(len(log_p[-1]))
    return {
        "elbo": _summary(reconstruction - kl, ELBO_SAMPLES),
        "reconstruction": _summary(reconstruction, ELBO_SAMPLES),
        "kl": _summary(kl, ELBO_SAMPLES),
        "log_likelihood": _summary(torch.cat(log_p), num_samples),
    }


@torch.no_grad()
def activity(vae: Model, x: Tensor) -> Tensor:
    r"""The variance over the images of each dimension's posterior mean, :math:`\operatorname{Var}_x \mathbb{E}[z \mid x]`.

    Where the mean has no closed form it is estimated twice, and the variance is the covariance of the two: one noisy mean
    alone would vary by its noise.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        vae: A VAE.
        x: Images, as the likelihood's pixels, at least two.

    Returns:
        The variances, shape `(latent_dim,)`.
    """
    parts = [_two_means(vae.encode(rows)) for rows in x.split(rows_at_once(x))]
    first, second = (torch.cat(means).double() for means in zip(*parts, strict=True))
    return ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / max(1, len(x) - 1)


def _two_means(q: TorchDistribution) -> tuple[Tensor, Tensor]:
    try:
        return q.mean, q.mean
    except NotImplementedError:
        return q.sample(torch.Size([DRAWS])).mean(0), q.sample(torch.Size([DRAWS])).mean(0)


def _summary(values: Tensor, num_samples: int) -> dict[str, Any]:
    values = values.double()
    return {
        "mean": values.mean().item(),
        "standard_error": (values.std() / len(values) ** 0.5).item() if len(values) > 1 else None,
        "num_samples": num_samples,
        "num_images": len(values),
    }
