"""Annealed importance sampling with Hamiltonian Monte Carlo: log p(x) without a guide, as an independent second opinion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.errors import RequestError
from pyro_vae.inference.graphs import Engine, Graph
from pyro_vae.inference.importance import Program, Site, check_plates, log_likelihood, sample_sites, site_sum

LEAPFROGS = 10
ADAPTING = 8
"""Chains that step sizes are adapted with."""

ACCEPTANCE = 0.65
"""The share of proposals that step sizes are adapted to, the best for Hamiltonian Monte Carlo in many dimensions."""

Codes = dict[str, Tensor]


class Bounds(NamedTuple):
    """Bounds on log p(x) in expectation, in nats, each of shape `(N,)`."""

    lower: Tensor
    upper: Tensor


def annealed_log_weights(
    model: Program,
    x: Tensor,
    num_chains: int = 16,
    num_temperatures: int = 500,
    engine: Engine = "eager",
    on_temperature: Callable[[], object] = lambda: None,
) -> Tensor:
    r"""Log-weights of annealed importance sampling from the prior to the posterior, in nats.

    Each chain is moved through :math:`p(z) \, p(x \mid z)^{\beta_t}`, with :math:`\beta_t` rising from 0 to 1 along a sigmoid,
    by one Hamiltonian transition of ten leapfrog steps a temperature. Their weights average to p(x) without bias, and their
    `log_likelihood` is a lower bound in expectation. The step sizes, one an image and temperature, are adapted by a run of
    their own first, so that the run that counts is exact.

    References:
        | Annealed Importance Sampling (Neal, 2001)
        | https://arxiv.org/abs/physics/9803008
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
        | https://arxiv.org/abs/1611.04273

    Arguments:
        model: A Pyro program, as for `log_weights`; its latent sites must range over all real numbers.
        x: The data.
        num_chains: Number of chains for each row.
        num_temperatures: Number of temperatures, and so of transitions.
        engine: What computes the densities and their gradient: see `Graph`.
        on_temperature: Called after every transition; there are twice `num_temperatures` of them.

    Returns:
        The log-weights, shape `(num_chains, len(x))`.

    Raises:
        RequestError: If a number is not positive, or a latent site is bounded or discrete, or there is none.
        ValueError: If a site lies outside the plate.
    """
    sampler = _Sampler(model, x, num_temperatures, engine, on_temperature)
    sampler.adapt()
    return sampler.forward(num_chains)


def bidirectional_bounds(
    model: Program,
    x: Tensor,
    num_chains: int = 16,
    num_temperatures: int = 500,
    engine: Engine = "eager",
    on_temperature: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Bounds]:
    """Data simulated from the model, and bounds on their log p(x) from both sides.

    The code that an image was simulated from is an exact draw from its posterior; chains that start there and are annealed
    back to the prior give an upper bound. How far the two are apart tells how well the annealing works on this model.

    References:
        | Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse et al., 2015)
        | https://arxiv.org/abs/1511.02543

    Arguments:
        model: As for `annealed_log_weights`.
        x: Data of the right shape and type; only these matter.
        num_chains: Number of chains for each row and direction.
        num_temperatures: Number of temperatures.
        engine: What computes the densities: see `Graph`.
        on_temperature: Called after every transition; there are three times `num_temperatures` of them.

    Returns:
        The simulated data, of the shape of `x`, and the bounds.
    """
    simulated, codes = _simulated(model, x)
    sampler = _Sampler(model, simulated, num_temperatures, engine, on_temperature)
    sampler.adapt()
    lower = log_likelihood(sampler.forward(num_chains))
    return simulated, Bounds(lower, -log_likelihood(-sampler.backward(codes, num_chains)))


@torch.no_grad()
def _simulated(model: Program, x: Tensor) -> tuple[Tensor, Codes]:
    sites = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(x))
    given = sample_sites(poutine.trace(model).get_trace(x))
    observed, *others = (name for name, site in given.items() if site["is_observed"])
    if others:
        raise RequestError(f"bounds from both sides need one observed site, but there are {', '.join([observed, *others])}")
    return sites[observed]["value"], {name: site["value"] for name, site in sites.items() if name != observed}


class _Sampler:
    def __init__(
        self, model: Program, x: Tensor, num_temperatures: int, engine: Engine, on_temperature: Callable[[], object]
    ) -> None:
        if num_temperatures < 1:
            raise RequestError(f"num_temperatures must be positive, but is {num_temperatures}")
        self.model, self.x, self.on_temperature = model, x, on_temperature
        ramp = torch.linspace(-4, 4, num_temperatures + 1, dtype=torch.float64).sigmoid()
        self.betas = ((ramp - ramp[0]) / (ramp[-1] - ramp[0])).tolist()
        self.steps = torch.full((num_temperatures, len(x)), 0.2, dtype=x.dtype, device=x.device)
        self.names = _latent_names(model, x)
        self.density = Graph(self._density, engine)
        self.slope = Graph(self._slope, engine)

    def adapt(self) -> None:
        """Find a step size for each row and temperature, in an annealing of a few chains."""
        codes, rate = self._prior(ADAPTING), self.steps[0]
        for t, beta in enumerate(self.betas[1:]):
            self.steps[t] = rate
            codes, accepted = self._transition(codes, beta, rate)
            rate = rate * torch.where(accepted.mean(0) > ACCEPTANCE, 1.1, 0.9).to(rate)
            self.on_temperature()

    def forward(self, chains: int) -> Tensor:
        """Log-weights of chains from the prior to the posterior."""
        codes = self._prior(chains)
        log_weights = torch.zeros(chains, len(self.x), dtype=torch.float64, device=self.x.device)
        for t, (before, beta) in enumerate(zip(self.betas, self.betas[1:], strict=False)):
            log_weights += (beta - before) * self._likelihood(codes)
            codes, _ = self._transition(codes, beta, self.steps[t])
            self.on_temperature()
        return log_weights

    def backward(self, codes: Codes, chains: int) -> Tensor:
        """Log-weights of chains from draws of the posterior to the prior, written as those of the way forward."""
        codes = {name: value.expand(chains, *value.shape).clone() for name, value in codes.items()}
        log_weights = torch.zeros(chains, len(self.x), dtype=torch.float64, device=self.x.device)
        for t in reversed(range(len(self.steps))):
            codes, _ = self._transition(codes, self.betas[t + 1], self.steps[t])
            log_weights += (self.betas[t + 1] - self.betas[t]) * self._likelihood(codes)
            self.on_temperature()
        return log_weights

    @torch.no_grad()
    def _prior(self, chains: int) -> Codes:
        if chains < 1:
            raise RequestError(f"num_chains must be positive, but is {chains}")
        with pyro.plate("chains", chains, dim=-2):
            sites = sample_sites(poutine.trace(self.model).get_trace(self.x))
        shape = (chains, len(self.x))
        return {name: sites[name]["value"].expand(*shape, *sites[name]["fn"].event_shape).clone() for name in self.names}

    def _transition(self, codes: Codes, beta: float, step: Tensor) -> tuple[Codes, Tensor]:
        """A Hamiltonian transition that leaves the annealed posterior as it is; where it was accepted."""
        steps = {name: step.reshape(-1, *[1] * (code.ndim - 2)) for name, code in codes.items()}
        temperature = torch.tensor(beta, dtype=self.steps.dtype, device=self.x.device)
        momenta = {name: torch.randn_like(code) for name, code in codes.items()}
        moved, moving = dict(codes), dict(momenta)
        density, slopes = self._at(moved, temperature)
        before = density - _energy(momenta)
        for _ in range(LEAPFROGS):
            moving = {name: moving[name] + steps[name] / 2 * slopes[name] for name in moved}
            moved = {name: moved[name] + steps[name] * moving[name] for name in moved}
            density, slopes = self._at(moved, temperature)
            moving = {name: moving[name] + steps[name] / 2 * slopes[name] for name in moved}
        accepted = torch.rand_like(before).log() < density - _energy(moving) - before
        kept = {name: torch.where(_wide(accepted, code), moved[name], code) for name, code in codes.items()}
        return kept, accepted.double()

    def _at(self, codes: Codes, temperature: Tensor) -> tuple[Tensor, Codes]:
        density, *slopes = self.slope(temperature, *codes.values())
        return density, dict(zip(codes, slopes, strict=True))

    def _likelihood(self, codes: Codes) -> Tensor:
        return self.density(*codes.values())[0].double()

    def _densities(self, *codes: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x | z), each `(chains, N)`."""
        at = poutine.condition(self.model, data=dict(zip(self.names, codes, strict=True)))
        with pyro.plate("chains", len(codes[0]), dim=-2):
            trace = poutine.trace(at).get_trace(self.x)
        prior = site_sum(trace, self.x, len(codes[0]), lambda site: site["name"] in self.names)
        return prior, site_sum(trace, self.x, len(codes[0]), lambda site: site["name"] not in self.names)

    def _density(self, *codes: Tensor) -> list[Tensor]:
        with torch.no_grad(), pyro.validation_enabled(False):
            return [self._densities(*codes)[1]]

    def _slope(self, temperature: Tensor, *codes: Tensor) -> list[Tensor]:
        """The annealed log-density, and its gradient in the codes."""
        with torch.enable_grad(), pyro.validation_enabled(False):
            codes = tuple(code.detach().requires_grad_() for code in codes)
            prior, likelihood = self._densities(*codes)
            density = prior + temperature * likelihood
            return [density.detach(), *torch.autograd.grad(density.sum(), codes)]


def _latent_names(model: Program, x: Tensor) -> list[str]:
    """The latent sites of a model.

    Raises:
        RequestError: If Hamiltonian dynamics cannot move one of them.
    """
    with pyro.plate("chains", 1, dim=-2):
        sites: dict[str, Site] = sample_sites(poutine.trace(model).get_trace(x))
    check_plates(sites, len(x))
    latent = {name: site for name, site in sites.items() if not site["is_observed"]}
    if not latent:
        raise RequestError("annealing moves codes, but the model has no latent site: its log-probability is exact as it is")
    for name, site in latent.items():
        if not _is_real(site["fn"].support):
            raise RequestError(
                f"annealing needs real-valued codes, but those of {name} are bounded or discrete: use --method is"
            )
    return list(latent)


def _is_real(support: Any) -> bool:
    if support in (constraints.real, constraints.real_vector):
        return True
    inner = getattr(support, "base_constraint", None)
    return inner is not None and _is_real(inner)


def _energy(momenta: Codes) -> Tensor:
    return sum((0.5 * value.square().reshape(*value.shape[:2], -1).sum(-1) for value in momenta.values()), torch.zeros(()))


def _wide(accepted: Tensor, code: Tensor) -> Tensor:
    return accepted.reshape(*accepted.shape, *[1] * (code.ndim - accepted.ndim))
