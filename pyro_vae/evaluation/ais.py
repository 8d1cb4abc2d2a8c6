"""Annealed importance sampling with Hamiltonian Monte Carlo, from the prior or a guide."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from math import log
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.engine.distributed import map_rows
from pyro_vae.engine.graphs import AnyEngine, Graph, pick_engine
from pyro_vae.engine.importance import joint_terms, log_likelihood
from pyro_vae.engine.precision import products
from pyro_vae.engine.programs import (
    Batch,
    Program,
    Site,
    StructureError,
    check_plates,
    has_rows,
    is_summed_out,
    latent_sites,
    sample_sites,
)
from pyro_vae.engine.progress import progress_bar
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.evaluation.annealing import anneal, until_it_stops_rising
from pyro_vae.evaluation.chains import LEAPFROGS, Chains, State, evened, slopes

# Chains that adapt strides and temperatures.
ADAPTING = 8
# Share of the prior in the start from a guide: weights stay bounded where the guide is too narrow,
# and modes that it misses are reached.
DEFENSIVE = 0.1


class Bounds(NamedTuple):
    """Bounds on log p(x) in expectation, in nats, each of shape `(N,)`."""

    lower: Tensor
    upper: Tensor


@products("float32")
def annealed_log_weights(
    model: Program,
    *args: Any,
    guide: Program | None = None,
    num_chains: int = 16,
    num_temperatures: int | None = 500,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Tensor:
    r"""Log-weights of annealed importance sampling, in nats.

    Each chain passes through :math:`p_0(z)^{1 - \beta_t} \, p(x, z)^{\beta_t}`, with
    :math:`\beta_t` rising from 0 to 1, by one Hamiltonian transition of ten leapfrog steps per
    temperature. The start :math:`p_0` is the prior; with a guide it is the defensive mixture
    :math:`0.9 \, q(z | x) + 0.1 \, p(z)`, which is closer to the posterior where the prior is a
    mixture or a flow. The mean of the weights is an unbiased estimate of p(x), and their
    `log_likelihood` is a lower bound in expectation.

    A separate run of eight chains adapts the size of a leapfrog step in each dimension, and the
    temperatures for each image: the standard deviation of :math:`\log p(x, z) - \log p_0(z)` times
    the change of :math:`\beta` is about equal in all steps. The final run has fixed ones. Several
    processes share the rows.

    Latent sites with a bounded support, such as a `Gamma` or a `Dirichlet`, are mapped to all real
    numbers by Pyro's transforms, and discrete ones are summed out by enumeration. If a site is
    outside the plate over the rows, the weights are those of the whole program, as for
    `log_weights`.

    References:
        | Annealed Importance Sampling (Neal, 2001)
        | https://arxiv.org/abs/physics/9803008
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
        | https://arxiv.org/abs/1611.04273
        | Annealing between distributions by averaging moments (Grosse et al., 2013)
        | https://papers.nips.cc/paper/4879
        | Weighted Average Importance Sampling and Defensive Mixture Distributions
          (Hesterberg, 1995)
        | https://doi.org/10.1080/00401706.1995.10484303

    Arguments:
        model: A Pyro program.
        *args: Its arguments: the data, and more, such as labels.
        guide: A Pyro program as for `log_weights`, where the chains start; None is the prior. Only
            for real-valued sites in one plate over the rows.
        num_chains: Number of chains for each row, or for the whole program.
        num_temperatures: Number of temperatures, and of transitions. None doubles it from 50 until
            the estimate stops rising: until it rose by less than two standard errors, and its own
            standard error is at most 0.1 nats.
        batch_size: Decoder rows per pass, where a row is one chain of one image; None takes all
            rows at once. Only for real-valued sites in one plate over the rows.
        engine: What computes the densities and their gradient, see `Graph`; "auto" depends on the
            number of transitions.

    Returns:
        The log-weights, shape `(num_chains, N)` for N rows, or `(num_chains,)` for a whole program.

    Raises:
        RequestError: If a number is not positive; if there is no continuous latent site, or one
            that can neither be transformed nor summed out; or if a plate holds a part of its rows
            (subsampling) but the whole program has one weight.

    Example:
        >>> import pyro.distributions as dist
        >>> def rate(counts):
        ...     r = pyro.sample("r", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", len(counts)):
        ...         pyro.sample("counts", dist.Poisson(r), obs=counts)
        >>> counts = torch.tensor([1.0, 4.0, 0.0])
        >>> weights = annealed_log_weights(rate, counts, num_temperatures=20, engine="eager")
        >>> weights.shape
        torch.Size([16])
    """

    def run(temperatures: int) -> Tensor:
        def anneal_rows(batch: Batch) -> list[Tensor]:
            annealing = _Annealing(
                model, guide, batch, num_chains, temperatures, batch_size, engine, runs=2
            )
            weights = []
            with annealing.bar:
                for rows in annealing.batches:
                    weights.append(annealing.log_weights(rows).T)
            return [torch.cat(weights)]

        return map_rows(anneal_rows, Batch(*args))[0].T

    if has_rows(args):
        with suppress(StructureError):
            if num_temperatures is None:
                return until_it_stops_rising(run)
            return run(num_temperatures)
    if guide is not None:
        raise RequestError(
            "annealing from a guide needs every latent site in one plate over the rows, and"
            " real-valued; leave out the guide, to anneal from the prior"
        )
    return anneal(model, args, num_chains, num_temperatures, engine)


@products("float32")
def bidirectional_bounds(
    model: Program,
    x: Tensor,
    *more: Any,
    guide: Program | None = None,
    num_chains: int = 16,
    num_temperatures: int = 500,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> tuple[Tensor, Bounds]:
    """Data simulated from the model, and bounds on their log p(x) from both sides.

    The latents from which an image was simulated are an exact draw from its posterior. Chains that
    start there and are annealed back to the start give an upper bound. The distance of the two
    bounds shows how well annealing works on this model.

    References:
        | Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse et al., 2015)
        | https://arxiv.org/abs/1511.02543

    Arguments:
        model: As for `annealed_log_weights`, with one observed site.
        x: Data of the right shape and type. Their values are not used, but for NaN, which is
            missing in the simulated data, too.
        *more: Further arguments of the model, such as labels.
        guide: As for `annealed_log_weights`.
        num_chains: Number of chains for each row and direction.
        num_temperatures: Number of temperatures.
        batch_size: As for `annealed_log_weights`.
        engine: As for `annealed_log_weights`.

    Returns:
        The simulated data, of the shape of `x`, and the bounds.

    Raises:
        ValueError: As for `annealed_log_weights`, or if there is not exactly one observed site.
    """

    def anneal(batch: Batch) -> list[Tensor]:
        annealing = _Annealing(
            model, guide, batch, num_chains, num_temperatures, batch_size, engine, runs=3
        )
        with annealing.bar:
            results = [annealing.bound(batch) for batch in annealing.batches]
        return [torch.cat(values) for values in zip(*results, strict=True)]

    simulated, lower, upper = map_rows(anneal, Batch(x, *more))
    return simulated, Bounds(lower, upper)


class _Annealing:
    """Chains from the start to the posterior of all latent sites, packed into one vector a row."""

    def __init__(
        self,
        model: Program,
        guide: Program | None,
        batch: Batch,
        num_chains: int,
        num_temperatures: int,
        batch_size: int | None,
        engine: AnyEngine,
        runs: int,
    ) -> None:
        check_positive(
            num_chains=num_chains, num_temperatures=num_temperatures, batch_size=batch_size
        )
        self.model = model
        self.guide = guide
        self.shapes = _latent_shapes(model, batch)
        self.chains = num_chains
        rows = len(batch)
        if batch_size:
            rows = max(1, batch_size // num_chains)
        self.batches = list(batch.split(rows))
        self.num_temperatures = num_temperatures
        engine = pick_engine(
            engine, batch.x.device, LEAPFROGS * num_temperatures * len(self.batches)
        )
        self.graph = Graph(self._evaluate, engine)
        self.bar = progress_bar(runs * num_temperatures * len(batch), "annealing", " temperatures")

    def log_weights(self, batch: Batch) -> Tensor:
        """Log-weights of chains from the start to the posterior, `(chains, N)`."""
        chains = self._chains_of(batch)
        return chains.forward(self.chains, evened(*chains.adapt(ADAPTING)))

    def bound(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Simulated data, and both bounds."""
        simulated, latents = self.simulate(batch)
        if batch.x.is_floating_point():
            simulated = simulated.masked_fill(batch.x.isnan(), torch.nan)
        chains = self._chains_of(batch.with_x(simulated))
        schedule = evened(*chains.adapt(ADAPTING))
        forward = chains.forward(self.chains, schedule)
        backward = chains.backward(latents, schedule)
        return simulated, log_likelihood(forward), -log_likelihood(-backward)

    def _chains_of(self, batch: Batch) -> Chains:
        """Chains of each row of a batch."""

        def at(latents: Tensor) -> State:
            return State(latents, *self.graph(latents, *batch))

        draw = partial(self._draw, batch)
        return Chains(draw, at, self.num_temperatures, lambda: self.bar.update(len(batch)))

    @torch.no_grad()
    def simulate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Data from the model, and the latents that they came from, repeated for each chain."""
        sites = sample_sites(poutine.trace(self.model).get_trace(*batch))
        observed = [name for name, site in sites.items() if site["is_observed"]]
        if len(observed) != 1:
            raise RequestError(
                f"bounds from both sides need one observed site, but the model has {len(observed)}"
            )
        sites = sample_sites(poutine.trace(poutine.uncondition(self.model)).get_trace(*batch))
        return sites[observed[0]]["value"], self._pack(sites, self.chains, len(batch))

    def _evaluate(self, latents: Tensor, *args: Any) -> list[Tensor]:
        with torch.enable_grad(), pyro.validation_enabled(False):
            latents = latents.detach().requires_grad_()
            batch = Batch(*args)
            sites = self._unpack(latents)
            start, ratio = joint_terms(self.model, batch, sites, len(latents))
            if self.guide is not None:
                log_q, _ = joint_terms(self.guide, batch, sites, len(latents))
                joint = start + ratio
                start = torch.logaddexp(log_q + log(1 - DEFENSIVE), start + log(DEFENSIVE))
                ratio = joint - start
            return slopes(start, ratio, latents)

    @torch.no_grad()
    def _draw(self, batch: Batch, chains: int) -> Tensor:
        """Latents from the start."""
        with pyro.plate("chains", chains, dim=-2):
            sites = sample_sites(poutine.trace(self.model).get_trace(*batch))
            latents = self._pack(sites, chains, len(batch))
            if self.guide is None:
                return latents
            sites = sample_sites(poutine.trace(self.guide).get_trace(*batch))
        is_prior = torch.rand_like(latents[..., :1]) < DEFENSIVE
        return torch.where(is_prior, latents, self._pack(sites, chains, len(batch)))

    def _pack(self, sites: dict[str, Site], chains: int, rows: int) -> Tensor:
        values = []
        for name, shape in self.shapes.items():
            value = sites[name]["value"].expand(chains, rows, *shape)
            values.append(value.reshape(chains, rows, -1))
        return torch.cat(values, -1)

    def _unpack(self, latents: Tensor) -> dict[str, Tensor]:
        parts = latents.split([shape.numel() for shape in self.shapes.values()], -1)
        sites = {}
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            sites[name] = part.reshape(*latents.shape[:2], *shape)
        return sites


def can_anneal(model: Program, batch: Batch) -> bool:
    """Whether the model has latent sites and all are real-valued. Has no side effects."""
    with forked_rng():
        latent = _latent_distributions(model, batch[:1])
    return bool(latent) and all(_is_real(fn.support) for fn in latent.values())


def _latent_shapes(model: Program, batch: Batch) -> dict[str, torch.Size]:
    """The event shape of each latent site.

    Raises:
        RequestError: If Hamiltonian dynamics does not apply to one of them.
    """
    latent = _latent_distributions(model, batch)
    if not latent:
        raise RequestError("the model has no latent site to anneal: its log-probability is exact")
    for name, fn in latent.items():
        if not _is_real(fn.support):
            raise StructureError(
                f"annealing requires real-valued latents, but {name} is bounded or discrete"
            )
    return {name: fn.event_shape for name, fn in latent.items()}


def _latent_distributions(model: Program, batch: Batch) -> dict[str, Any]:
    """The distribution of each latent site that is not summed out."""
    trace = poutine.trace(model).get_trace(*batch)
    check_plates(sample_sites(trace), len(batch))
    latent = latent_sites(trace).items()
    return {name: site["fn"] for name, site in latent if not is_summed_out(site)}


def _is_real(support: Any) -> bool:
    if support in (constraints.real, constraints.real_vector):
        return True
    inner = getattr(support, "base_constraint", None)
    return inner is not None and _is_real(inner)
