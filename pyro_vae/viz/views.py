"""Images that show what a trained VAE has learned, as grey values in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.errors import RequestError
from pyro_vae.inference.codes import codes
from pyro_vae.vae import Model

# Largest number of codes per pass of the decoder.
BATCH_SIZE = 1000

# Draws of z whose quantiles space the manifold.
PRIOR_DRAWS = 20_000


def to_grey(vae: Model, x: Tensor) -> Tensor:
    """Convert pixels that the likelihood scores to grey values in [0, 1]."""
    return vae.likelihood.unit(x).clamp(0, 1)


@torch.no_grad()
def decode_mean(vae: Model, z: Tensor) -> Tensor:
    """Means of p(x | z) for codes of shape `(..., latent_dim)`."""
    means = [vae.decode(rows).mean for rows in z.flatten(0, -2).split(BATCH_SIZE)]
    return to_grey(vae, torch.cat(means)).unflatten(0, z.shape[:-1])


def samples(vae: Model, count: int, mean: bool = True) -> Tensor:
    """Generate images from `count` draws of z: means of p(x | z), or draws from it. Shape `(count, *data_shape)`."""
    generate = vae.sample_mean if mean else vae.sample
    batches = [generate(min(BATCH_SIZE, count - start)) for start in range(0, count, BATCH_SIZE)]
    return to_grey(vae, torch.cat(batches))


def reconstructions(vae: Model, x: Tensor) -> Tensor:
    """Each image and the mean of p(x | z) for one draw z ~ q(z | x), shape `(N, 2, *data_shape)`."""
    means = torch.cat([vae.reconstruct_mean(rows) for rows in x.split(BATCH_SIZE)])
    return to_grey(vae, torch.stack([x, means], 1))


def interpolations(vae: Model, first: Tensor, second: Tensor, steps: int = 10) -> Tensor:
    """Means of p(x | z) on straight lines from the posterior means of `first` to those of `second`.

    Returns:
        Images, shape `(N, steps + 2, *data_shape)`; the first column is `first`, the last is `second`.
    """
    weights = torch.linspace(0, 1, steps, device=first.device)[:, None]
    start, end = (codes(vae, x).loc[:, None] for x in (first, second))
    means = decode_mean(vae, torch.lerp(start, end, weights))
    return torch.cat([to_grey(vae, first)[:, None], means, to_grey(vae, second)[:, None]], 1)


def traversals(vae: Model, x: Tensor, dimension: int, steps: int = 10, width: float = 3.0) -> Tensor:
    """Means of p(x | z) as one latent dimension goes from `-width` to `width` and the others keep their posterior means.

    Returns:
        Images, shape `(N, steps + 1, *data_shape)`; the first column is `x`.

    Raises:
        RequestError: If there is no such dimension.
    """
    if not 0 <= dimension < vae.latent_dim:
        raise RequestError(f"dimension={dimension} is out of range; choose 0 to {vae.latent_dim - 1}")
    z = codes(vae, x).loc[:, None].repeat(1, steps, 1)
    z[..., dimension] = torch.linspace(-width, width, steps, device=x.device)
    return torch.cat([to_grey(vae, x)[:, None], decode_mean(vae, z)], 1)


def manifold(vae: Model, side: int = 20) -> tuple[Tensor, Tensor]:
    """Means of p(x | z) on a grid that is spaced by the quantiles of the prior of each dimension.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Returns:
        Images, shape `(side, side, *data_shape)`, and the increasing values of z on the grid, shape `(2, side)`. z[0] increases
        to the right, z[1] upwards.

    Raises:
        RequestError: If the latent space does not have two dimensions.
    """
    if vae.latent_dim != 2:
        raise RequestError(f"the manifold needs latent_dim=2, but this model has latent_dim={vae.latent_dim}; use traversals")
    device = next(vae.parameters()).device
    z = _prior_quantiles(vae, (torch.arange(side, device=device) + 0.5) / side)
    rows, columns = torch.meshgrid(z[1].flip(0), z[0], indexing="ij")
    return decode_mean(vae, torch.stack([columns, rows], -1)), z


def _prior_quantiles(vae: Model, levels: Tensor) -> Tensor:
    """Empirical quantiles of each dimension of z under the prior, shape `(latent_dim, len(levels))`."""
    draws = torch.cat([vae.sample_codes(BATCH_SIZE) for _ in range(PRIOR_DRAWS // BATCH_SIZE)])
    return torch.quantile(draws, levels, dim=0).T
