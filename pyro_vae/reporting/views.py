"""Images that show what a trained VAE has learned, as grey values in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.data.split import Split
from pyro_vae.engine.programs import Batch
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.codes import Data, codes, scored
from pyro_vae.vae import Model

# Largest number of codes per pass of the decoder.
BATCH_SIZE = 1000

# Draws of z whose quantiles space the manifold.
PRIOR_DRAWS = 20_000


def to_grey(vae: Model, x: Tensor) -> Tensor:
    """Convert pixels that the likelihood scores to grey values in [0, 1]."""
    return vae.likelihood.unit(x).clamp(0, 1)


@torch.no_grad()
def decode_mean(vae: Model, z: Tensor, y: Tensor | None = None) -> Tensor:
    """Means of p(x | z) for codes of shape `(N, ..., latent_dim)`, with labels of the first dimension."""
    if y is not None:
        y = y.repeat_interleave(z[0, ..., 0].numel(), 0)
    batch = Batch(z.flatten(0, -2), y)
    means = [vae.p_x(*rows).mean for rows in batch.split(BATCH_SIZE)]
    return to_grey(vae, torch.cat(means)).unflatten(0, z.shape[:-1])


def random_labels(vae: Model, images: Split, count: int) -> Tensor | None:
    """`count` labels drawn from those of the images, if the model uses labels."""
    if not vae.needs_labels:
        return None
    vae.check_labels(images.y)
    return images[torch.randint(len(images), (count,), device=images.x.device)].y


def samples(vae: Model, count: int, mean: bool = True, y: Tensor | None = None) -> Tensor:
    """Generate images from `count` draws of z: means of p(x | z), or draws from it. Shape `(count, *data_shape)`."""
    generate = vae.sample_mean if mean else vae.sample
    parts = Batch(torch.arange(count), y).split(BATCH_SIZE)
    return to_grey(vae, torch.cat([generate(len(part), part.y) for part in parts]))


def reconstructions(vae: Model, data: Data, new_y: Tensor | None = None) -> Tensor:
    """Each image and the mean of p(x | z) for one draw z ~ q(z | x), shape `(N, 2, *data_shape)`.

    A model that uses labels encodes with those of the data, and decodes with `new_y` if it is given.
    """
    batch = scored(vae, data)
    rows = Batch(*batch, new_y).split(BATCH_SIZE)
    means = torch.cat([vae.reconstruct_mean(*row) for row in rows])
    return to_grey(vae, torch.stack([batch.x, means], 1))


def interpolations(vae: Model, data: Data, new_y: Tensor | None = None, steps: int = 10) -> Tensor:
    """Means of p(x | z) on lines from the codes of the first half of the images to the second half.

    Labels are used as in `reconstructions`; without `new_y` those of the first half decode.

    Returns:
        Images, shape `(N / 2, steps + 2, *data_shape)`; the first and the last column are
        the images themselves.
    """
    batch = scored(vae, data)
    weights = torch.linspace(0, 1, steps, device=batch.x.device)[:, None]
    start, end = codes(vae, batch).loc[:, None].chunk(2)
    labels = batch.y if new_y is None else new_y
    lines = Batch(torch.lerp(start, end, weights), labels)[: len(start)]
    means = decode_mean(vae, *lines)
    first, last = to_grey(vae, batch.x)[:, None].chunk(2)
    return torch.cat([first, means, last], 1)


def analogies(vae: Model, y: Tensor, columns: int = 10) -> Tensor:
    """Means of p(x | z, y) for every label of `y`, shape `(R,)` or `(R, C)`, and the same draws z ~ p(z) in every row.

    If the prior depends on y, the rows share the random numbers from which z is drawn.

    Returns:
        Images, shape `(R, columns, *data_shape)`.
    """
    seed, z = int(torch.randint(2**62, ())), []
    for label in y.split(1):
        with forked_rng():
            torch.manual_seed(seed)
            z.append(vae.sample_codes(columns, label.repeat_interleave(columns, 0)))
    return decode_mean(vae, torch.stack(z), y)


def traversals(
    vae: Model,
    data: Data,
    dimension: int,
    new_y: Tensor | None = None,
    steps: int = 10,
    width: float = 3.0,
) -> Tensor:
    """Means of p(x | z) as one latent dimension goes from `-width` to `width`.

    The other dimensions keep their posterior means.

    Labels are used as in `reconstructions`.

    Returns:
        Images, shape `(N, steps + 1, *data_shape)`; the first column has the images.

    Raises:
        RequestError: If there is no such dimension.
    """
    if not 0 <= dimension < vae.latent_dim:
        raise RequestError(
            f"dimension={dimension} is out of range; choose 0 to {vae.latent_dim - 1}"
        )
    batch = scored(vae, data)
    z = codes(vae, batch).loc[:, None].repeat(1, steps, 1)
    z[..., dimension] = torch.linspace(-width, width, steps, device=batch.x.device)
    means = decode_mean(vae, z, batch.y if new_y is None else new_y)
    return torch.cat([to_grey(vae, batch.x)[:, None], means], 1)


def manifold(vae: Model, side: int = 20, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Means of p(x | z) on a grid that is spaced by the quantiles of the prior of each dimension.

    A model that uses labels needs one, `y` of shape `(1,)` or `(1, C)`.

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
        raise RequestError(
            f"the manifold needs latent_dim=2, but this model has latent_dim={vae.latent_dim}; use traversals"
        )
    device = next(vae.parameters()).device
    z = _prior_quantiles(vae, (torch.arange(side, device=device) + 0.5) / side, y)
    rows, columns = torch.meshgrid(z[1].flip(0), z[0], indexing="ij")
    if y is not None:
        y = y.repeat_interleave(side, 0)
    return decode_mean(vae, torch.stack([columns, rows], -1), y), z


def _prior_quantiles(vae: Model, levels: Tensor, y: Tensor | None) -> Tensor:
    """Empirical quantiles of each dimension of z under the prior, shape `(latent_dim, len(levels))`."""
    if y is not None:
        y = y.repeat_interleave(BATCH_SIZE, 0)
    draws = torch.cat([vae.sample_codes(BATCH_SIZE, y) for _ in range(PRIOR_DRAWS // BATCH_SIZE)])
    return torch.quantile(draws, levels, dim=0).T
