"""Images that show what a trained VAE has learned, as grey values in [0, 1].

Data that are no images are shown as vectors, of shape `(D,)` in place of `data_shape`, of what the
encoder reads: reals are standardized, counts are log(1 + x). `Likelihood.shown` decides on both.
`figures` draws them. Each function works for any model, and sets it to evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.data.split import Split
from pyro_vae.engine.programs import Batch
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.batch import BatchLike, completed, scored
from pyro_vae.evaluation.codes import ACTIVE, activity, codes
from pyro_vae.vae import Model

# Largest number of codes per pass of the decoder.
BATCH_SIZE = 1000

# Draws of z whose quantiles space the manifold.
PRIOR_DRAWS = 20_000

# Share of the codes outside `code_range`, on either side.
TAIL = 0.005
# Images whose codes suffice for a range; fewer would show their own neighbourhood only.
RANGE_IMAGES = 100


def to_grey(vae: Model, x: Tensor) -> Tensor:
    """Values that the likelihood scores as they are shown, see `Likelihood.shown`."""
    return vae.likelihood.shown(x)


@torch.no_grad()
def decode_mean(vae: Model, z: Tensor, y: Tensor | None = None) -> Tensor:
    """Means of p(x | z) at codes.

    Arguments:
        vae: A model.
        z: Codes, shape `(N, ..., latent_dim)`.
        y: Labels of the first dimension, for models that use them.

    Returns:
        Images, shape `(N, ..., *data_shape)`.
    """
    vae.eval()
    if y is not None:
        y = y.repeat_interleave(z[0, ..., 0].numel(), 0)
    batch = Batch(z.flatten(0, -2), y)
    means = [vae.p_x(*rows).mean for rows in batch.split(BATCH_SIZE)]
    return to_grey(vae, torch.cat(means)).unflatten(0, z.shape[:-1])


def random_labels(vae: Model, images: Split, count: int) -> Tensor | None:
    """`count` labels drawn from the known ones of the images, if the model uses labels."""
    if not vae.needs_labels:
        return None
    vae.check_labels(images.y)
    if vae.infers_labels:
        images = images.labelled()
        if images.labels is None or len(images) == 0:
            return None
    device = next(vae.parameters()).device
    chosen = torch.randint(len(images), (count,), device=images.x.device)
    return images[chosen].to(device).y


@torch.no_grad()
def samples(vae: Model, count: int, mean: bool = True, y: Tensor | None = None) -> Tensor:
    """Generate images from draws z ~ p(z).

    Arguments:
        vae: A model.
        count: Number of images.
        mean: Whether to return means of p(x | z), or draws from it.
        y: Labels of the images, for models that use them.

    Returns:
        Images, shape `(count, *data_shape)`.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     prior=pv.StandardNormal(2),
        ...     encoder=pv.MLP((1, 8, 8), (2, 2)),
        ...     posterior=pv.DiagonalNormal(),
        ...     decoder=pv.MLP((2,), (1, 1, 8, 8)),
        ...     likelihood=pv.Bernoulli(),
        ... )
        >>> images = pv.views.samples(vae, 16)
        >>> images.shape
        torch.Size([16, 1, 8, 8])
        >>> figure = pv.figures.samples(images)
    """
    vae.eval()
    generate = vae.sample_mean if mean else vae.sample
    parts = Batch(torch.arange(count), y).split(BATCH_SIZE)
    return to_grey(vae, torch.cat([generate(len(part), part.y) for part in parts]))


@torch.no_grad()
def samples_and_draws(vae: Model, count: int, y: Tensor | None = None) -> Tensor:
    """The mean of p(x | z), and a draw from it, for draws z ~ p(z).

    Arguments:
        vae: A model.
        count: Number of draws of z.
        y: Labels of the images, for models that use them.

    Returns:
        Images, shape `(count, 2, *data_shape)`.
    """
    vae.eval()
    pairs = []
    for part in Batch(torch.arange(count), y).split(BATCH_SIZE):
        p_x = vae.p_x(vae.sample_codes(len(part), part.y), part.y)
        pairs.append(torch.stack([p_x.mean, p_x.sample()], 1))
    return to_grey(vae, torch.cat(pairs))


def reconstructions(vae: Model, data: BatchLike, new_y: Tensor | None = None) -> Tensor:
    """Each image, and the mean of p(x | z) for one draw z ~ q(z | x).

    Arguments:
        vae: A model.
        data: The images, see `scored`.
        new_y: Labels to decode with, for models that use labels; those of the data by default.

    Returns:
        Images, shape `(N, 2, *data_shape)`.
    """
    batch = scored(vae, data)
    rows = Batch(*batch, new_y).split(BATCH_SIZE)
    means = torch.cat([vae.reconstruct_mean(*row) for row in rows])
    return to_grey(vae, torch.stack([batch.x, means], 1))


def interpolations(
    vae: Model, data: BatchLike, new_y: Tensor | None = None, steps: int = 10
) -> Tensor:
    """Means of p(x | z) on lines from the codes of the first half of the images to the second half.

    Arguments:
        vae: A model.
        data: An even number of images, see `scored`.
        new_y: Labels to decode with, for models that use labels; those of the first half by
            default.
        steps: Codes on each line.

    Returns:
        Images, shape `(N / 2, steps + 2, *data_shape)`; the first and the last column are
        the images themselves.
    """
    batch = completed(vae, data)
    weights = torch.linspace(0, 1, steps, device=batch.x.device)[:, None]
    start, end = codes(vae, batch).loc[:, None].chunk(2)
    if new_y is None:
        new_y = batch.y
    lines = Batch(torch.lerp(start, end, weights), new_y)[: len(start)]
    means = decode_mean(vae, *lines)
    first, last = to_grey(vae, batch.x)[:, None].chunk(2)
    return torch.cat([first, means, last], 1)


def analogies(vae: Model, y: Tensor, columns: int = 10) -> Tensor:
    """Means of p(x | z, y) for several labels and the same draws z ~ p(z).

    If the prior depends on y, the rows share the random numbers from which z is drawn.

    Arguments:
        vae: A model that uses labels.
        y: The label of each row, shape `(R,)` or `(R, C)`.
        columns: Draws of z.

    Returns:
        Images, shape `(R, columns, *data_shape)`.
    """
    seed = int(torch.randint(2**62, ()))
    z = []
    for label in y.split(1):
        with forked_rng():
            torch.manual_seed(seed)
            z.append(vae.sample_codes(columns, label.repeat_interleave(columns, 0)))
    return decode_mean(vae, torch.stack(z), y)


def active_dimensions(vae: Model, data: BatchLike) -> list[int]:
    """The active latent dimensions, by decreasing activity; the most active one if all collapsed.

    Arguments:
        vae: A model.
        data: At least two images, see `scored`.
    """
    spread = activity(vae, data)
    order = spread.argsort(descending=True).tolist()
    active = [dimension for dimension in order if spread[dimension] > ACTIVE]
    return active or order[:1]


@torch.no_grad()
def code_range(vae: Model, data: BatchLike) -> Tensor:
    """The range of the codes in each latent dimension, without 0.5 % on either side.

    The codes are one draw z ~ q(z | x) for each image. For fewer than 100 images they are draws of
    the prior.

    Arguments:
        vae: A model.
        data: The images, see `scored`.

    Returns:
        The lowest and the highest value of each dimension, shape `(2, latent_dim)`.
    """
    batch = scored(vae, data)
    if len(batch) < RANGE_IMAGES:
        y = batch[:1].repeat_interleave(BATCH_SIZE).y
        drawn = vae.sample_codes(BATCH_SIZE, y)
    else:
        parts = [vae.q_z(*rows).sample() for rows in batch.split(BATCH_SIZE)]
        drawn = torch.cat(parts)
    levels = torch.tensor([TAIL, 1 - TAIL]).to(drawn)
    # One dimension at a time: torch.quantile takes at most 2**24 values.
    return torch.stack([values.quantile(levels) for values in drawn.T], 1)


def traversals(
    vae: Model, data: BatchLike, dimension: int, values: Tensor, new_y: Tensor | None = None
) -> Tensor:
    """Means of p(x | z) as one latent dimension changes; the others keep their posterior means.

    Arguments:
        vae: A model.
        data: The images, see `scored`.
        dimension: The latent dimension, see `active_dimensions`.
        values: Its values, shape `(steps,)`, such as
            `torch.linspace(*code_range(vae, data)[:, dimension], 10)`.
        new_y: Labels to decode with, for models that use labels; those of the data by default.

    Returns:
        Images, shape `(N, steps + 1, *data_shape)`; the first column has the images.

    Raises:
        RequestError: If there is no such dimension.
    """
    if not 0 <= dimension < vae.latent_dim:
        raise RequestError(
            f"dimension={dimension} is out of range; choose 0 to {vae.latent_dim - 1}"
        )
    batch = completed(vae, data)
    z = codes(vae, batch).loc[:, None].repeat(1, len(values), 1)
    z[..., dimension] = values.to(z)
    if new_y is None:
        new_y = batch.y
    means = decode_mean(vae, z, new_y)
    return torch.cat([to_grey(vae, batch.x)[:, None], means], 1)


def dimensions(
    vae: Model,
    data: BatchLike,
    order: Sequence[int],
    ranges: Tensor,
    steps: int,
    new_y: Tensor | None = None,
) -> Tensor:
    """Traversals of several latent dimensions of one image.

    Arguments:
        vae: A model.
        data: One image, see `scored`.
        order: The latent dimensions.
        ranges: The lowest and the highest value of each, shape `(2, D)`, see `code_range`.
        steps: Values of each.
        new_y: Labels to decode with, for models that use labels; those of the data by default.

    Returns:
        Images, shape `(D, steps, *data_shape)`.
    """
    rows = []
    for dimension, (low, high) in zip(order, ranges.T.tolist(), strict=True):
        values = torch.linspace(low, high, steps)
        rows.append(traversals(vae, data, dimension, values, new_y)[0, 1:])
    return torch.stack(rows)


def manifold(vae: Model, side: int = 20, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Means of p(x | z) on a grid that is spaced by the quantiles of the prior of each dimension.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Arguments:
        vae: A model with two latent dimensions.
        side: Codes per dimension.
        y: A label to decode with, shape `(1,)` or `(1, C)`, for models that use labels.

    Returns:
        Images, shape `(side, side, *data_shape)`, and the increasing values of z on the grid,
        shape `(2, side)`. z[0] increases to the right, z[1] upwards.

    Raises:
        RequestError: If the latent space does not have two dimensions.
    """
    if vae.latent_dim != 2:
        raise RequestError(
            f"the manifold needs latent_dim=2, but this model has latent_dim={vae.latent_dim};"
            " use traversals"
        )
    device = next(vae.parameters()).device
    z = _prior_quantiles(vae, (torch.arange(side, device=device) + 0.5) / side, y)
    rows, columns = torch.meshgrid(z[1].flip(0), z[0], indexing="ij")
    if y is not None:
        y = y.repeat_interleave(side, 0)
    return decode_mean(vae, torch.stack([columns, rows], -1), y), z


def _prior_quantiles(vae: Model, levels: Tensor, y: Tensor | None) -> Tensor:
    """Empirical quantiles of each dimension of z under the prior, `(latent_dim, len(levels))`."""
    if y is not None:
        y = y.repeat_interleave(BATCH_SIZE, 0)
    draws = torch.cat([vae.sample_codes(BATCH_SIZE, y) for _ in range(PRIOR_DRAWS // BATCH_SIZE)])
    return torch.quantile(draws, levels, dim=0).T
