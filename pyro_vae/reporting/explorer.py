"""What the explorer of a page shows of one model, as arrays.

With two latent dimensions: the decoded plane, and exact posteriors beside their approximations,
after each epoch that was kept. Otherwise: traversals and interpolations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.engine.importance import (
    effective_sample_size,
    joint_terms,
    k_curve,
    log_likelihood,
    pareto_k,
)
from pyro_vae.engine.programs import Batch, sample_sites, site_sum, traces
from pyro_vae.evaluation.codes import activity, codes
from pyro_vae.evaluation.gap import inference_gap
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood
from pyro_vae.reporting import views
from pyro_vae.reporting.overview import FULL, kl_per_dimension
from pyro_vae.vae import Model, default_batch_size

# Images per dimension of the decoded plane, and the same if there are several epochs.
SIDE = 21
COARSE = 13
# Points per dimension of the grids of densities.
POINTS = 64
# Draws of q whose weights are shown, and those of the mean bounds.
DRAWS = 256
CURVE_DRAWS = 1024
# Nats below the maximum at which the posterior is not shown.
DEPTH = 8.0
# Images, dimensions and steps of the traversals, and of the interpolations.
CHOSEN = 8
DIMENSIONS = 10
STEPS = 9


class Grid(NamedTuple):
    """A rectangle of codes: the values of z[0] and of z[1]."""

    z0: Tensor
    z1: Tensor

    @property
    def points(self) -> Tensor:
        """All pairs of them, shape `(len(z1) * len(z0), 2)`; z[0] changes fastest."""
        return torch.cartesian_prod(self.z1, self.z0).flip(1)


def grid_around(points: Tensor, side: int, margin: float = 0.1) -> Grid:
    """A square grid that covers the points, shape `(P, 2)`.

    It is square so that both axes of a square plot have the same scale.
    """
    low = points.amin(0)
    high = points.amax(0)
    middle = (low + high) / 2
    reach = (0.5 + margin) * (high - low).max()
    z0, z1 = (
        torch.linspace(start, end, side).to(points)
        for start, end in zip(middle - reach, middle + reach, strict=True)
    )
    return Grid(z0, z1)


def without_tails(points: Tensor, tail: float = 0.005) -> Tensor:
    """The corners of the box that has all but a share `tail` of the points on each side."""
    return points.quantile(torch.tensor([tail, 1 - tail]).to(points), 0)


class DecodedPlane(NamedTuple):
    """Means of p(x | z) on a grid of two latent dimensions.

    Attributes:
        grid: The codes.
        images: The means there.
        fine: A finer grid.
        log_prior: log p(z) there.
    """

    grid: Grid
    images: Tensor
    fine: Grid
    log_prior: Tensor


@torch.no_grad()
def decoded_plane(vae: Model, batch: Batch, side: int = SIDE) -> DecodedPlane:
    """The plane that covers the codes of the images and the prior.

    A model that uses labels decodes with the label of the first image.
    """
    first = batch[:1]
    around = _reach(vae, batch)
    grid = grid_around(around, side)
    fine = grid_around(around, POINTS)
    images = views.decode_mean(vae, grid.points[None], first.y)[0]
    log_prior, _ = log_joint(vae, first, fine.points)
    return DecodedPlane(grid, images, fine, log_prior)


def _reach(vae: Model, batch: Batch) -> Tensor:
    """All codes of the images, and the corners of a box around the prior."""
    drawn = vae.sample_codes(1000, batch[:1].repeat_interleave(1000).y)
    return torch.cat([codes(vae, batch).loc, without_tails(drawn)])


@torch.no_grad()
def log_joint(vae: Model, image: Batch, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(z) and log p(x | z) of one image at codes of shape `(P, 2)`."""
    prior, likelihood = [], []
    for part in z.split(default_batch_size(vae, image.x)):
        log_p_z, log_p_x = joint_terms(vae.model, image, {"z": part[:, None]}, len(part))
        prior.append(log_p_z)
        likelihood.append(log_p_x)
    return torch.cat(prior).squeeze(1), torch.cat(likelihood).squeeze(1)


class Draws(NamedTuple):
    """Draws of q(z | x) for one image.

    Attributes:
        z: Shape `(256, 2)`.
        log_weights: Their log importance weights, shape `(256,)`.
        curve: The mean bounds with 1, 2, 4, ..., 256 samples.
    """

    z: Tensor
    log_weights: Tensor
    curve: dict[int, float]

    def weights(self, k: int) -> Tensor:
        """The normalized weights of the first k draws."""
        return self.log_weights[:k].softmax(0)

    def estimates(self, k: int) -> dict[str, float]:
        """The bound that the first k draws give, their effective sample size and k-hat."""
        log_weights = self.log_weights[:k, None]
        return {
            "bound": float(log_likelihood(log_weights)),
            "effective": float(effective_sample_size(log_weights)),
            "k_hat": float(pareto_k(log_weights)),
        }


class ExploredPosterior(NamedTuple):
    """One image's exact posterior and its approximations: log-densities on a grid.

    Attributes:
        grid: The codes.
        exact: log p(x, z) there, in nats; it is not normalized.
        guide: log q(z | x).
        best: That of the best posterior of the family for this image.
        log_likelihood: log p(x) by quadrature.
        elbo: The guide's.
        best_elbo: That of the best posterior of the family.
        draws: Draws of the guide.
    """

    grid: Grid
    exact: Tensor
    guide: Tensor
    best: Tensor
    log_likelihood: float
    elbo: float
    best_elbo: float
    draws: Draws


def explored_posteriors(
    vae: Model, batch: Batch, steps: int = FULL.steps
) -> list[ExploredPosterior]:
    """The posterior of each image.

    Raises:
        RequestError: If `z` is not the only latent site, or does not have two dimensions, or the
            posterior has no reparameterized draws.
    """
    gap = inference_gap(vae, batch, steps=steps)
    log_p = gap.log_likelihood
    if gap.method != "quadrature":  # it did not converge for one of the images
        log_p = quadrature_log_likelihood(vae, batch)
    wide = grid_around(_reach(vae, batch), POINTS)
    drawn = draws(vae, batch)
    explored = []
    for n, image in enumerate(batch.split(1)):
        grid, exact, guide, best = _densities(vae, wide, image, gap.params[n : n + 1])
        explored.append(
            ExploredPosterior(
                grid,
                exact,
                guide,
                best,
                log_likelihood=float(log_p[n]),
                elbo=float(gap.elbo[n]),
                best_elbo=float(gap.local_elbo[n]),
                draws=drawn[n],
            )
        )
    return explored


@torch.no_grad()
def _densities(
    vae: Model, wide: Grid, image: Batch, params: Tensor
) -> tuple[Grid, Tensor, Tensor, Tensor]:
    """The first four fields of `ExploredPosterior`, from a wide grid and the parameters of q."""
    guide = vae.q_z(*image)
    best = vae.posterior(params)
    joint = torch.stack(log_joint(vae, image, wide.points)).sum(0)
    mass = wide.points[joint > joint.max() - DEPTH]
    cell = torch.stack([wide.z0[1] - wide.z0[0], wide.z1[1] - wide.z1[0]]) / 2
    # The boxes that hold 98 % of the draws of each dimension.
    near = []
    for q in (guide, best):
        sample = q.sample(torch.Size([1000])).squeeze(1)
        near.append(without_tails(sample, 0.01))
    grid = grid_around(torch.cat([mass - cell, mass + cell, *near]), POINTS)
    exact = torch.stack(log_joint(vae, image, grid.points)).sum(0)
    log_guide = guide.log_prob(grid.points[:, None]).squeeze(1)
    log_best = best.log_prob(grid.points[:, None]).squeeze(1)
    return grid, exact, log_guide, log_best


@torch.no_grad()
def draws(vae: Model, batch: Batch) -> list[Draws]:
    """Draws of q(z | x) for each image, with their importance weights and the mean bounds."""
    drawn = []
    for part in batch.split(max(1, default_batch_size(vae, batch.x) // CURVE_DRAWS)):
        p, q = traces(vae.model, vae.guide, part, CURVE_DRAWS)
        log_p = site_sum(p, part.x, CURVE_DRAWS)
        log_q = site_sum(q, part.x, CURVE_DRAWS)
        log_weights = (log_p - log_q).double().cpu()
        bounds = {k: bound for k, bound in k_curve(log_weights).items() if k <= DRAWS}
        latents: Tensor = sample_sites(q)["z"]["value"]
        for n, z in enumerate(latents.unbind(1)):
            curve = {k: float(bound[n]) for k, bound in bounds.items()}
            drawn.append(Draws(z[:DRAWS], log_weights[:DRAWS, n], curve))
    return drawn


class Snapshot(NamedTuple):
    """A model with two latent dimensions after an epoch.

    Attributes:
        name: Which epoch it is.
        codes: Posterior means, shape `(N, 2)`.
        activity: As in `Overview`.
        kl: As in `Overview`.
        plane: The decoded plane.
        explored: The posteriors of the first images; none if they cannot be optimized.
    """

    name: str
    codes: Tensor
    activity: Tensor
    kl: Tensor | None
    plane: DecodedPlane
    explored: list[ExploredPosterior]


@pyro.validation_enabled(False)  # grids leave the support of bounded distributions
def snapshot(
    name: str, vae: Model, batch: Batch, count: int, side: int = SIDE, steps: int = FULL.steps
) -> Snapshot:
    """The snapshot of a model, with the posteriors of the first `count` images."""
    vae.eval()
    explored = []
    if vae.q_z(*batch[:1]).has_rsample and not vae.infers_labels:
        explored = explored_posteriors(vae, batch[:count], steps)
    return Snapshot(
        name,
        codes=codes(vae, batch).loc,
        activity=activity(vae, batch),
        kl=kl_per_dimension(vae, batch),
        plane=decoded_plane(vae, batch, side),
        explored=explored,
    )


class Paths(NamedTuple):
    """Means of p(x | z) as codes change, for models with other than two latent dimensions.

    Attributes:
        dimensions: The latent dimensions that change.
        ranges: The lowest and the highest value of each, shape `(2, len(dimensions))`.
        traversals: Shape `(N, len(dimensions), steps, ...)`: each dimension over its range.
        unchanged: Shape `(N, ...)`: the means at the posterior means.
        pairs: Pairs of images.
        interpolations: Shape `(len(pairs), steps, ...)`: on a line between their codes.
    """

    dimensions: list[int]
    ranges: Tensor
    traversals: Tensor
    unchanged: Tensor
    pairs: list[tuple[int, int]]
    interpolations: Tensor


@pyro.validation_enabled(False)
def paths(vae: Model, batch: Batch, order: Sequence[int]) -> Paths:
    """Traversals of the first dimensions of `order` for the first images, and interpolations."""
    dimensions = list(order[:DIMENSIONS])
    ranges = views.code_range(vae, batch)[:, dimensions].cpu()
    first = batch[:CHOSEN]
    rows = []
    for dimension, (low, high) in zip(dimensions, ranges.T.tolist(), strict=True):
        values = torch.linspace(low, high, STEPS)
        rows.append(views.traversals(vae, first, dimension, values)[:, 1:])
    starts, ends = torch.triu_indices(len(first), len(first), 1)
    index = torch.cat([starts, ends]).to(first.x.device)
    lines = views.interpolations(vae, first[index], steps=STEPS)[:, 1:-1]
    pairs = list(zip(starts.tolist(), ends.tolist(), strict=True))
    unchanged = views.decode_mean(vae, codes(vae, first).loc, first.y)
    return Paths(dimensions, ranges, torch.stack(rows, 1), unchanged, pairs, lines)
