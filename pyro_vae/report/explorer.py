"""What the report shows of a trained model, as plain arrays: scores, codes, exact posteriors, traversals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.data.split import Split
from pyro_vae.engine.importance import (
    effective_sample_size,
    joint_terms,
    k_curve,
    log_likelihood,
    pareto_k,
)
from pyro_vae.engine.programs import Batch, sample_sites, site_sum, traces
from pyro_vae.evaluation.codes import ACTIVE, activity, codes, scored
from pyro_vae.evaluation.diagnostics import inference_gap
from pyro_vae.evaluation.metrics import Scores, score
from pyro_vae.evaluation.quadrature import has_two_dimensions, quadrature_log_likelihood
from pyro_vae.report import views
from pyro_vae.vae import Model, default_batch_size


class Effort(NamedTuple):
    """How much is computed.

    Attributes:
        scored: Images that are scored.
        samples: Importance samples for each.
        explored: Images in the explorer.
        several: The same if it shows several epochs.
        steps: Steps to optimize a posterior.
    """

    scored: int
    samples: int
    explored: int
    several: int
    steps: int


FULL, QUICK = Effort(500, 100, 30, 6, 200), Effort(100, 50, 3, 3, 60)

# Images per dimension of the decoded plane, the same of several epochs, and points per dimension of the grids of densities.
SIDE, COARSE, POINTS = 21, 13, 64
# Draws of q whose weights are shown, and those of the mean bounds.
DRAWS, CURVE_DRAWS = 256, 1024
# Nats below the maximum at which the posterior is not shown.
DEPTH = 8.0
# Images, dimensions and steps of the traversals, and of the interpolations.
CHOSEN, UNITS, STEPS, WIDTH = 6, 10, 11, 3.0


class Overview(NamedTuple):
    """What is shown of every model.

    Attributes:
        images: A random subset of the test images, the same at every call.
        pictures: The same as grey values in [0, 1].
        num_samples: Importance samples for each image.
        scores: Their scores.
        codes: Posterior means, shape `(N, latent_dim)`.
        activity: The variance of the posterior mean, shape `(latent_dim,)`.
        kl: The KL of each dimension, or None where prior or posterior do not factorize.
        samples: Means of p(x | z) for draws of the prior.
        reconstructions: The first ten images and their reconstructions, shape `(10, 2, ...)`.
    """

    images: Split
    pictures: Tensor
    num_samples: int
    scores: Scores
    codes: Tensor
    activity: Tensor
    kl: Tensor | None
    samples: Tensor
    reconstructions: Tensor


@torch.no_grad()
def overview(vae: Model, test: Split, effort: Effort = FULL) -> Overview:
    """Compute the overview of a model from its test images. Runs in one process."""
    images = test.subset(min(effort.scored, len(test)))
    batch = scored(vae, images)
    rows = default_batch_size(vae, batch.x)
    return Overview(
        images,
        views.to_grey(vae, batch.x),
        effort.samples,
        score(vae.model, vae.guide, batch, effort.samples, rows),
        codes(vae, batch).loc,
        activity(vae, batch),
        kl_per_dimension(vae, batch),
        views.samples(vae, 40, y=views.random_labels(vae, images.to(batch.x.device), 40)),
        views.reconstructions(vae, batch[:10]),
    )


@torch.no_grad()
def kl_per_dimension(vae: Model, batch: Batch) -> Tensor | None:
    """The mean KL(q(z_d | x) || p(z_d)) of each latent dimension, in nats, from one draw for each of ten passes.

    None unless `z` is the only latent site, and both its distributions are independent over dimensions.
    """
    p, q = (sample_sites(trace) for trace in traces(vae.model, vae.guide, batch, 10))
    if q.keys() != {"z"} or not (_factorizes(p["z"]["fn"]) and _factorizes(q["z"]["fn"])):
        return None
    z = q["z"]["value"]
    log_q = q["z"]["fn"].base_dist.log_prob(z)
    log_p = p["z"]["fn"].base_dist.log_prob(z)
    return (log_q - log_p).mean((0, 1))


def _factorizes(fn: Any) -> bool:
    return (
        isinstance(fn, Independent)
        and fn.base_dist.event_shape == ()
        and fn.reinterpreted_batch_ndims == 1
    )


class Grid(NamedTuple):
    """A rectangle of codes: the values of z[0] and z[1], and all pairs of them, shape `(len(z1) * len(z0), 2)`."""

    z0: Tensor
    z1: Tensor

    @property
    def points(self) -> Tensor:
        """All codes, row by row; z[0] changes fastest."""
        return torch.cartesian_prod(self.z1, self.z0).flip(1)


def grid_around(points: Tensor, side: int, margin: float = 0.1, tail: float = 0.005) -> Grid:
    """A grid that covers the points, shape `(P, 2)`, without the outermost share `tail` of them, with a margin."""
    low, high = points.quantile(torch.tensor([tail, 1 - tail]).to(points), 0)
    edge = margin * (high - low)
    return Grid(
        *(
            torch.linspace(a, b, side).to(points)
            for a, b in zip(low - edge, high + edge, strict=True)
        )
    )  # type: ignore[arg-type]


class Plane(NamedTuple):
    """The decoded plane of two latent dimensions.

    Attributes:
        grid: The codes.
        images: The means of p(x | z) there.
        fine: A finer grid.
        log_prior: log p(z) there.
        given_label: Whether the decoder was given the label of the first image.
    """

    grid: Grid
    images: Tensor
    fine: Grid
    log_prior: Tensor
    given_label: bool


@torch.no_grad()
def plane(vae: Model, batch: Batch, side: int = SIDE) -> Plane:
    """The plane that covers the codes of the images and the prior.

    A model that uses labels decodes with the label of the first image.
    """
    first = batch[:1]
    around = _reach(vae, batch)
    grid, fine = grid_around(around, side), grid_around(around, POINTS)
    images = views.decode_mean(vae, grid.points[None], first.y)[0]
    log_prior, _ = log_joint(vae, first, fine.points)
    return Plane(grid, images, fine, log_prior, vae.needs_labels)


def _reach(vae: Model, batch: Batch) -> Tensor:
    """The codes of the images, and draws of the prior."""
    drawn = vae.sample_codes(1000, batch[:1].repeat_interleave(1000).y)
    return torch.cat([codes(vae, batch).loc, drawn])


@torch.no_grad()
def log_joint(vae: Model, image: Batch, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(z) and log p(x | z) of one image at codes of shape `(P, 2)`."""
    parts = [
        joint_terms(vae.model, image, {"z": part[:, None]}, len(part))
        for part in z.split(default_batch_size(vae, image.x))
    ]
    prior, likelihood = (torch.cat(terms).squeeze(1) for terms in zip(*parts, strict=True))
    return prior, likelihood


class Weighted(NamedTuple):
    """Draws of q(z | x) for one image.

    Attributes:
        z: Shape `(256, 2)`.
        log_weights: Shape `(256,)`.
        curve: The mean bounds with 1, 2, 4, ..., 256 samples.
    """

    z: Tensor
    log_weights: Tensor
    curve: dict[int, float]

    def first(self, k: int) -> dict[str, Any]:
        """The first k draws: normalized weights, the bound that they give, their effective sample size and k-hat."""
        log_weights = self.log_weights[:k, None]
        estimates = {"bound": log_likelihood, "effective": effective_sample_size, "k_hat": pareto_k}
        values = {name: float(estimate(log_weights)) for name, estimate in estimates.items()}
        return {"weights": log_weights[:, 0].softmax(0), **values}


class Posterior(NamedTuple):
    """One image's exact posterior and its approximations, log-densities on a grid.

    Attributes:
        exact: log p(x, z) on the grid, in nats; it is not normalized.
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
    draws: Weighted


def posteriors(vae: Model, batch: Batch, steps: int = FULL.steps) -> list[Posterior]:
    """The posterior of each image.

    Raises:
        RequestError: If `z` is not the only latent site, or does not have two dimensions, or the posterior has no
            reparameterized draws.
    """
    log_p = quadrature_log_likelihood(vae, batch)
    gap = inference_gap(vae, batch, steps=steps)
    wide = grid_around(_reach(vae, batch), POINTS)
    drawn = weighted(vae, batch)
    return [
        Posterior(
            *_densities(vae, wide, image, gap.params[n : n + 1]),
            float(log_p[n]),
            float(gap.elbo[n]),
            float(gap.local_elbo[n]),
            drawn[n],
        )
        for n, image in enumerate(batch.split(1))
    ]


@torch.no_grad()
def _densities(
    vae: Model, wide: Grid, image: Batch, params: Tensor
) -> tuple[Grid, Tensor, Tensor, Tensor]:
    """The first four fields of the posterior of one image, from those of a wide grid and the parameters of the best q."""
    guide, local = vae.q_z(*image), vae.posterior(params)
    joint = torch.stack(log_joint(vae, image, wide.points)).sum(0)
    mass = wide.points[joint > joint.max() - DEPTH]
    cell = torch.stack([wide.z0[1] - wide.z0[0], wide.z1[1] - wide.z1[0]]) / 2
    # The boxes that hold 98 % of the draws of each dimension.
    near = [
        grid_around(q.sample(torch.Size([1000])).squeeze(1), 2, margin=0, tail=0.01).points
        for q in (guide, local)
    ]
    grid = grid_around(torch.cat([mass - cell, mass + cell, *near]), POINTS, tail=0)
    exact = torch.stack(log_joint(vae, image, grid.points)).sum(0)
    first, second = (q.log_prob(grid.points[:, None]).squeeze(1) for q in (guide, local))
    return grid, exact, first, second


@torch.no_grad()
def weighted(vae: Model, batch: Batch) -> list[Weighted]:
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
            drawn.append(Weighted(z[:DRAWS], log_weights[:DRAWS, n], curve))
    return drawn


class Traversals(NamedTuple):
    """Means of p(x | z) as one code changes, for models with other than two dimensions.

    Attributes:
        dimensions: The active dimensions, by decreasing activity.
        traversals: Shape `(N, len(dimensions), steps, ...)`: each dimension from -3 to 3.
        pairs: Pairs of images.
        interpolations: Shape `(len(pairs), steps, ...)`: on a line between their codes.
    """

    dimensions: list[int]
    traversals: Tensor
    pairs: list[tuple[int, int]]
    interpolations: Tensor


def traversals(vae: Model, batch: Batch, spread: Tensor) -> Traversals:
    """The traversals of the dimensions with the largest `spread`, and the interpolations between the images."""
    order = spread.argsort(descending=True)[:UNITS]
    dimensions = [int(d) for d in order if spread[d] > ACTIVE] or [int(order[0])]
    rows = [views.traversals(vae, batch, d, steps=STEPS, width=WIDTH)[:, 1:] for d in dimensions]
    first, last = torch.triu_indices(len(batch), len(batch), 1)
    index = torch.cat([first, last]).to(batch.x.device)
    lines = views.interpolations(vae, batch[index], steps=STEPS)[:, 1:-1]
    return Traversals(
        dimensions,
        torch.stack(rows, 1),
        list(zip(first.tolist(), last.tolist(), strict=True)),
        lines,
    )


class Moment(NamedTuple):
    """A model with two latent dimensions after an epoch.

    Attributes:
        name: Which epoch it is.
        codes: Posterior means, shape `(N, 2)`.
        activity: As in `Overview`.
        kl: As in `Overview`.
        plane: The decoded plane.
        posteriors: Those of the first images; none if they cannot be optimized.
    """

    name: str
    codes: Tensor
    activity: Tensor
    kl: Tensor | None
    plane: Plane
    posteriors: list[Posterior]


class View(NamedTuple):
    """What is computed for the page of one run.

    Attributes:
        overview: What is shown of every model.
        moments: The last epoch, after earlier ones if these were kept; empty if there are not two latent dimensions.
        traversals: For models with other than two dimensions.
    """

    overview: Overview
    moments: list[Moment]
    traversals: Traversals | None

    @property
    def plane(self) -> Plane | None:
        """That of the last epoch."""
        return self.moments[-1].plane if self.moments else None

    @property
    def posteriors(self) -> list[Posterior]:
        """Those of the last epoch."""
        return self.moments[-1].posteriors if self.moments else []


@pyro.validation_enabled(False)  # grids leave the support of bounded distributions
def view(
    vae: Model, test: Split, effort: Effort = FULL, earlier: Iterable[tuple[str, Model]] = ()
) -> View:
    """Compute what the page of one run shows; `earlier` has the model after earlier epochs, with their names."""
    shown = overview(vae, test, effort)
    batch = scored(vae, shown.images)
    if has_two_dimensions(vae, batch[:1]):
        models = [*earlier, ("last epoch", vae)]
        count, side = (effort.several, COARSE) if len(models) > 1 else (effort.explored, SIDE)
        return View(
            shown,
            [_moment(name, model, batch, count, side, effort.steps) for name, model in models],
            None,
        )
    return View(shown, [], traversals(vae, batch[:CHOSEN], shown.activity))


def _moment(name: str, vae: Model, batch: Batch, count: int, side: int, steps: int) -> Moment:
    vae.eval()
    explored = []
    if vae.q_z(*batch[:1]).has_rsample:
        explored = posteriors(vae, batch[:count], steps)
    shown = (codes(vae, batch).loc, activity(vae, batch), kl_per_dimension(vae, batch))
    return Moment(name, *shown, plane(vae, batch, side), explored)


class RunReport(NamedTuple):
    """What a run folder holds, and what was computed from its model.

    Attributes:
        name: How the page calls the run.
        config: The options by dotted names.
        facts: Versions, hardware, seconds.
        records: Metrics of each epoch.
        results: The content of results.json.
        overview: What every page shows.
        view: What the page of one run shows.
    """

    name: str
    config: Mapping[str, Any]
    facts: Mapping[str, str]
    records: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]
    overview: Overview
    view: View | None = None
