"""Annealed importance sampling of Pyro programs of any structure, on unconstrained latents."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.engine.graphs import AnyEngine, Engine, Graph, pick_engine
from pyro_vae.engine.importance import log_likelihood, monte_carlo_error
from pyro_vae.engine.joint import (
    NOT_BATCHED,
    Values,
    evaluate_each,
    log_joint,
    sum_to_dim,
    summing_out,
    unscaled_trace,
)
from pyro_vae.engine.programs import Program, Site, latent_sites
from pyro_vae.engine.progress import progress_bar
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.engine.structure import find_structure, row_dim
from pyro_vae.errors import RequestError, check_positive, first_line
from pyro_vae.evaluation.chains import LEAPFROGS, Chains, State, slopes

logger = getLogger("pyro_vae")

# Chains that adapt the strides.
ADAPTING = 16

# Numbers of temperatures, if they double.
FEWEST = 50
MOST = 12_800
# Largest Monte Carlo error at which the estimate counts as settled, in nats.
SETTLED = 0.1


def anneal(
    model: Program,
    args: tuple[Any, ...],
    num_chains: int,
    num_temperatures: int | None,
    engine: AnyEngine = "auto",
) -> Tensor:
    r"""Log-weights of annealed importance sampling of a program of any structure, in nats.

    The chains move the continuous latent sites, mapped to all real numbers by Pyro's transforms,
    through :math:`p(z) \, p(x | z)^{\beta_t}`, from the prior to the posterior, with
    :math:`\beta_t` along a sigmoid. Discrete sites are summed out by enumeration.

    Arguments:
        model: A Pyro program.
        args: Its arguments.
        num_chains: Number of chains.
        num_temperatures: Number of temperatures, and of Hamiltonian transitions; None doubles it
            until the estimate stops rising, see `until_it_stops_rising`.
        engine: What computes the densities and their gradient, see `Graph`.

    Returns:
        Shape `(num_chains, N)` if all sites are in one plate over the N rows of the first argument,
        otherwise `(num_chains,)`: one weight for the whole program.

    Raises:
        RequestError: If a number is not positive, a latent site can neither be transformed nor
            summed out, there is none to anneal, or a plate holds a part of its rows.
    """
    check_positive(num_chains=num_chains, num_temperatures=num_temperatures)
    target = _Target(model, args)
    graphs: dict[Engine, Graph] = {}

    def run(temperatures: int) -> Tensor:
        picked = pick_engine(engine, target.device, LEAPFROGS * temperatures)
        if picked not in graphs:
            graphs[picked] = Graph(target.evaluate, picked)

        def at(position: Tensor) -> State:
            return State(position, *graphs[picked](position))

        with progress_bar(2 * temperatures, "annealing", " temperatures") as bar:
            chains = Chains(target.draw, at, temperatures, bar.update)
            schedule, _ = chains.adapt(ADAPTING)
            log_weights = chains.forward(num_chains, schedule)
        if target.structure.rows is None:
            return log_weights.squeeze(1)
        return log_weights

    if num_temperatures is None:
        return until_it_stops_rising(run)
    return run(num_temperatures)


def until_it_stops_rising(run: Callable[[int], Tensor]) -> Tensor:
    """The log-weights with the first number of temperatures at which the estimate has settled.

    The number doubles from 50. The estimate, `log_likelihood` averaged over rows, has settled if it
    rose by less than two standard errors of the rise, and its own standard error is at most 0.1
    nats. After 12,800 temperatures a warning is logged.

    Arguments:
        run: Returns the log-weights of a number of temperatures.
    """
    temperatures = FEWEST
    log_weights = run(temperatures)
    while temperatures < MOST:
        temperatures *= 2
        before = log_weights
        log_weights = run(temperatures)
        rise = (log_likelihood(log_weights) - log_likelihood(before)).mean()
        error = _error_of_mean(log_weights)
        if rise < 2 * torch.hypot(error, _error_of_mean(before)) and error <= SETTLED:
            return log_weights
    logger.warning(
        "the estimate of annealing has not settled at %d temperatures (its standard error is %.2f"
        " nats); use more chains",
        temperatures,
        error,
    )
    return log_weights


def _error_of_mean(log_weights: Tensor) -> Tensor:
    errors = monte_carlo_error(log_weights)
    return errors.square().sum().sqrt() / errors.numel()


class _Target:
    """Prior and likelihood of a program as functions of its unconstrained latent sites."""

    def __init__(self, model: Program, args: tuple[Any, ...]) -> None:
        self.model = model
        self.args = args
        self.structure = find_structure(model, None, args)
        self.structure.check_complete()
        # The shape of each site's unconstrained value, and its axis of rows.
        self.shapes: dict[str, torch.Size] = {}
        self.axes: dict[str, int] = {}
        with forked_rng(), torch.no_grad():
            self._look(self._draw_one())
            first = self.draw(1)
        self.device = first.device
        self.at_once = True
        self._try(first)

    def draw(self, num_chains: int) -> Tensor:
        """Draws from the prior, shape `(num_chains, groups, D)`."""
        with torch.no_grad():
            draws = [self._pack(self._draw_one()) for _ in range(num_chains)]
        return torch.stack(draws)

    def evaluate(self, position: Tensor) -> list[Tensor]:
        """Log prior and log likelihood, `(chains, groups)`, and their slopes."""
        with torch.enable_grad():
            position = position.detach().requires_grad_()
            prior, likelihood = evaluate_each(
                self._score, {"": position}, len(position), self.at_once
            )
            return slopes(prior, likelihood, position)

    def _score(self, position: Values) -> tuple[Tensor, Tensor]:
        """Log prior and log likelihood of one chain."""
        unconstrained = _Unconstrained(self._unpack(position[""]))
        trace = unscaled_trace(unconstrained(summing_out(self.model, self.structure)), self.args)
        prior = log_joint(trace, self.structure, lambda site: not site["is_observed"])
        likelihood = log_joint(trace, self.structure) - prior
        for name, volume in unconstrained.volumes.items():
            if self.structure.rows is None:
                prior = prior + volume.sum()
            else:
                dim = row_dim(trace.nodes[name], self.structure.rows)
                prior = prior + sum_to_dim(volume, dim)
        groups = position[""].shape[:1]
        return prior.expand(groups), likelihood.expand(groups)

    def _draw_one(self) -> dict[str, Site]:
        sites = latent_sites(poutine.trace(self.model).get_trace(*self.args))
        return {name: sites[name] for name in sites.keys() - self.structure.enumerated}

    def _look(self, sites: dict[str, Site]) -> None:
        """Note the unconstrained shapes; refuse what has none."""
        if not sites:
            raise RequestError(
                "the model has no continuous latent site to anneal: log_weights with an empty guide"
                " is its exact log-probability"
            )
        for name, site in sites.items():
            support = site["fn"].support
            if support.is_discrete:
                raise RequestError(
                    f"latent site {name} is discrete with too many values to sum out; annealing"
                    " requires continuous sites, or finite ones"
                )
            try:
                transform = biject_to(support)
            except NotImplementedError as error:
                raise RequestError(
                    f"Pyro has no transform from real numbers to the support of {name} ({support});"
                    " draw it as a function of unconstrained sites"
                ) from error
            self.shapes[name] = transform.inv(site["value"]).shape
            if self.structure.rows is not None:
                dim = row_dim(site, self.structure.rows) - transform.domain.event_dim
                self.axes[name] = dim

    def _pack(self, sites: dict[str, Site]) -> Tensor:
        """The unconstrained values of one draw, shape `(groups, D)`."""
        parts = []
        for name in self.shapes:
            site = sites[name]
            value = biject_to(site["fn"].support).inv(site["value"])
            if self.structure.rows is None:
                parts.append(value.reshape(1, -1))
            else:
                rows = value.movedim(self.axes[name], 0)
                parts.append(rows.reshape(len(rows), -1))
        return torch.cat(parts, -1)

    def _unpack(self, position: Tensor) -> dict[str, Tensor]:
        if self.structure.rows is None:
            parts = position[0].split([shape.numel() for shape in self.shapes.values()])
            return {
                name: part.reshape(shape)
                for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
            }
        rows = len(position)
        values = {}
        parts = position.split([shape.numel() // rows for shape in self.shapes.values()], -1)
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            others = list(shape)
            del others[self.axes[name]]
            values[name] = part.reshape(rows, *others).movedim(0, self.axes[name])
        return values

    def _try(self, position: Tensor) -> None:
        """Find out whether `torch.vmap` can batch the chains."""
        try:
            self.evaluate(position)
        except NOT_BATCHED as error:
            self.at_once = False
            self.evaluate(position)  # raises what is wrong with the program
            logger.warning(
                "annealing one chain after another, which is slower, because the program does not"
                " broadcast over them (%s)",
                first_line(error),
            )


class _Unconstrained(Messenger):
    """Gives sites the images of real numbers, and keeps the volumes of the transforms."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values
        self.volumes: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Site) -> None:
        name = msg["name"]
        if name in self.values:
            transform = biject_to(msg["fn"].support)
            value = transform(self.values[name])
            self.volumes[name] = transform.log_abs_det_jacobian(self.values[name], value)
            msg["value"] = value
            msg["done"] = True
