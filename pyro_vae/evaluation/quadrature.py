"""log p(x) of models with a two-dimensional latent space, by numerical integration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import max_pool2d

from pyro_vae.engine.importance import joint_terms
from pyro_vae.engine.precision import products
from pyro_vae.engine.programs import Batch, is_summed_out, latent_sites
from pyro_vae.engine.progress import progress_bar
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.batch import BatchLike, scored
from pyro_vae.likelihoods import noun
from pyro_vae.vae import Model, default_batch_size

# Points per dimension of the first grid.
POINTS = 64
# Nats below its maximum at which the integrand is neglected, a factor of 1.5e-8.
DEPTH = 18.0
# Draws of the prior that the first grid covers, but for the share TAIL of them at each end.
DRAWS = 1000
TAIL = 0.005
GROWTHS = 12
# Largest number of parts into which a cell is split, per dimension.
FINEST = 64
# Change of log p(x), in nats, at which the refinement stops.
TOLERANCE = 1e-3


@torch.no_grad()
@products("float32")
def quadrature_log_likelihood(vae: Model, data: BatchLike, batch_size: int | None = None) -> Tensor:
    r"""log p(x) by quadrature over a two-dimensional code, in nats. It does not use the guide.

    The integrand :math:`p(z) \, p(x \mid z)` is evaluated on a grid of 64 x 64 codes that covers
    the prior and that grows until it covers the posterior. It is refined where the posterior has
    mass, until log p(x) changes by less than 0.001 nats. A mode whose width is less than a tenth of
    a cell of the grid can be missed.

    Arguments:
        vae: A model whose only latent site is `z`, with two dimensions.
        data: The images, see `scored`.
        batch_size: Decoder rows per pass; None is `default_batch_size`.

    Returns:
        Shape `(N,)`, float64 on the CPU; NaN where it does not converge.

    Raises:
        RequestError: If the model has other latent sites or dimensions.
    """
    batch = scored(vae, data)
    if not has_two_dimensions(vae, batch):
        raise RequestError(
            "quadrature requires a model whose only latent site is z, with latent_dim=2"
        )
    batch_size = batch_size or default_batch_size(vae, batch.x)
    box = _box(vae, batch, batch_size)
    results = []
    with progress_bar(len(batch), "quadrature", f" {noun(batch.x.ndim - 1)}s") as bar:
        for image in batch.split(1):
            results.append(_integral(partial(_log_joint, vae, image, batch_size), box))
            bar.update()
    return torch.stack(results)


@torch.no_grad()
@products("float32")
def exact_draws(
    vae: Model, data: BatchLike, num_draws: int, batch_size: int | None = None
) -> Tensor:
    """Draws of the exact posterior p(z | x): cells of the quadrature's first grid, by their mass.

    Arguments:
        vae: A model whose only latent site is `z`, with two dimensions.
        data: Images for which the quadrature converges, see `scored`.
        num_draws: Draws for each image.
        batch_size: Decoder rows per pass; None is `default_batch_size`.

    Returns:
        Shape `(num_draws, N, 2)`.
    """
    batch = scored(vae, data)
    batch_size = batch_size or default_batch_size(vae, batch.x)
    box = _box(vae, batch, batch_size)
    drawn = []
    for image in batch.split(1):
        grid, values = _cover(partial(_log_joint, vae, image, batch_size), box)
        cells = values.flatten().softmax(0).multinomial(num_draws, replacement=True)
        drawn.append(grid.flatten(0, 1)[cells.to(grid.device)])
    return torch.stack(drawn, 1)


def has_two_dimensions(vae: Model, batch: Batch) -> bool:
    """Whether the only latent site is `z`, with two dimensions. Has no side effects."""
    return latent_shapes(vae, batch) == {"z": (2,)}


def latent_shapes(vae: Model, batch: Batch) -> dict[str, tuple[int, ...]]:
    """The event shape of each latent site that is not summed out. Has no side effects."""
    with forked_rng():
        trace = poutine.trace(vae.model).get_trace(*batch[:1])
    shapes = {}
    for name, site in latent_sites(trace).items():
        if not is_summed_out(site):
            shapes[name] = site["fn"].event_shape
    return shapes


def _box(vae: Model, batch: Batch, batch_size: int) -> Tensor:
    """Two corners, `(2, 2)`, of a box that holds nearly all draws of the prior."""
    draws = []
    with forked_rng():
        index = torch.randint(len(batch), (DRAWS,), device=batch.x.device)
        for part in index.split(batch_size):
            trace = poutine.trace(poutine.uncondition(vae.model)).get_trace(*batch[part])
            site: Any = trace.nodes["z"]
            draws.append(site["value"])
    z = torch.cat(draws)
    return z.quantile(torch.tensor([TAIL, 1 - TAIL]).to(z), 0)


def _log_joint(vae: Model, image: Batch, batch_size: int, z: Tensor) -> Tensor:
    """log p(x, z) of one image at each code of `z`, shape `(P, 2)`."""
    parts = []
    for part in z.split(batch_size):
        prior, likelihood = joint_terms(vae.model, image, {"z": part.unsqueeze(1)}, len(part))
        parts.append((prior.double() + likelihood.double()).squeeze(1).cpu())
    return torch.cat(parts)


def _integral(log_joint: Callable[[Tensor], Tensor], box: Tensor) -> Tensor:
    """The logarithm of the integral over all codes, refined where the integrand is large."""
    grid, values = _cover(log_joint, box)
    cell = grid[1, 1] - grid[0, 0]
    large = values > values.max() - DEPTH
    near = max_pool2d(large[None].double(), 3, stride=1, padding=1)[0] > 0
    old = _log_sum(values[::2, ::2], 2 * cell)
    new = _log_sum(values, cell)
    split = 1
    while abs(new - old) > TOLERANCE and split < FINEST:
        split *= 2
        middles = (torch.arange(split).to(cell) + 0.5) / split - 0.5
        within = torch.cartesian_prod(middles, middles) * cell
        fine = grid[near.to(grid.device)].unsqueeze(1) + within
        old = new
        new = _log_sum(log_joint(fine.flatten(0, 1)), cell / split)
    return torch.where((new - old).abs() > TOLERANCE, torch.nan, new)


def _cover(log_joint: Callable[[Tensor], Tensor], box: Tensor) -> tuple[Tensor, Tensor]:
    """A grid of codes that covers the integrand, and log p(x, z) on it; NaN if no grid does.

    The grid has the shape `(POINTS, POINTS, 2)`.
    """
    for _ in range(GROWTHS):
        box = 1.25 * box - 0.25 * box.flip(0)  # a quarter of its width more on each side
        sides = [torch.linspace(low, high, POINTS) for low, high in box.T.tolist()]
        grid = torch.cartesian_prod(*sides).to(box).unflatten(0, (POINTS, POINTS))
        values = log_joint(grid.flatten(0, 1)).unflatten(0, (POINTS, POINTS))
        edges = torch.cat([values[[0, -1]].flatten(), values[:, [0, -1]].flatten()])
        if edges.max() < values.max() - DEPTH:
            return grid, values
    return grid, torch.full_like(values, torch.nan)


def _log_sum(values: Tensor, cell: Tensor) -> Tensor:
    return values.flatten().logsumexp(0) + cell.double().cpu().log().sum()
