"""What to look at in a trained VAE: codes, and the images that they decode to, in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.diagnostics import codes
from pyro_vae.errors import RequestError
from pyro_vae.memory import rows_at_once
from pyro_vae.vae import Model


@torch.no_grad()
def decoded(vae: Model, z: Tensor) -> Tensor:
    """The mean images of the codes `z`, shape `(..., latent_dim)`."""
    return seen(vae, vae.decode(z).mean)


def seen(vae: Model, x: Tensor) -> Tensor:
    """Pixels that a likelihood scores, as grey values from 0 to 1."""
    return vae.likelihood.unit(x).clamp(0, 1)


def samples(vae: Model, count: int) -> Tensor:
    """Mean images of `count` codes from the prior, shape `(count, *data_shape)`."""
    limit = rows_at_once(lambda rows: vae.sample(len(rows)), torch.zeros(1))
    return torch.cat([seen(vae, vae.sample(min(limit, count - done))) for done in range(0, count, limit)])


def reconstructions(vae: Model, x: Tensor) -> Tensor:
    """Each image of `x` beside its reconstruction, shape `(N, 2, *data_shape)`."""
    return torch.stack([seen(vae, x), seen(vae, vae.reconstruct(x))], 1)


def interpolations(vae: Model, first: Tensor, second: Tensor, steps: int = 10) -> Tensor:
    """Images on the straight line from the mean code of each `first` to that of each `second`, shape `(N, steps, ...)`."""
    weight = torch.linspace(0, 1, steps, device=first.device)[:, None]
    start, end = (codes(vae, x).loc[:, None] for x in (first, second))
    return decoded(vae, torch.lerp(start, end, weight))


def traversals(vae: Model, x: Tensor, dimension: int, steps: int = 10, width: float = 3.0) -> Tensor:
    """Images while one latent dimension goes from -width to width and the others stay at the mean code, `(N, steps, ...)`.

    Raises:
        RequestError: If there is no such dimension.
    """
    start = codes(vae, x).loc
    if not 0 <= dimension < start.shape[-1]:
        raise RequestError(f"there is no latent dimension {dimension}: choose 0 to {start.shape[-1] - 1}")
    z = start[:, None].repeat(1, steps, 1)
    z[:, :, dimension] = torch.linspace(-width, width, steps, device=x.device)
    return decoded(vae, z)


def manifold(vae: Model, side: int = 20) -> Tensor:
    """Images of a grid over a two-dimensional latent space, spaced by the normal inverse CDF (Kingma & Welling, 2014).

    Returns:
        Images, shape `(side, side, *data_shape)`: the first latent dimension grows to the right, the second upwards.

    Raises:
        RequestError: If the latent space does not have two dimensions.
    """
    if vae.latent_dim != 2:
        raise RequestError(
            f"the manifold needs 2 latent dimensions, but this run has {vae.latent_dim}: train with --latent_dim 2"
        )
    device = next(vae.parameters()).device
    u = (torch.arange(side, device=device) + 0.5) / side
    z = torch.special.ndtri(u)
    rows, columns = torch.meshgrid(z.flip(0), z, indexing="ij")
    return decoded(vae, torch.stack([columns, rows], -1))
