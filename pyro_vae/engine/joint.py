"""The densities of programs of any structure, at many values of their latent sites at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from typing import Any

import pyro
import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.ops.contract import contract_to_tensor
from pyro.ops.einsum import torch_log
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.engine.patches import patched, without_validation
from pyro_vae.engine.programs import SAMPLES, Program, Site, log_prob, sample_sites
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.engine.structure import Structure, is_fixed, row_dim
from pyro_vae.errors import RequestError, first_line

logger = getLogger("pyro_vae")

Values = Mapping[str, Tensor]

# What a program raises that is not written for a batch of samples.
NOT_BATCHED = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, AssertionError)
# Samples of the run that finds out whether they can be drawn and scored at once.
TRIAL = 2


@dataclass(frozen=True)
class Means:
    """How samples are computed.

    Attributes:
        drawn_at_once: Whether the guide runs once, in an outer plate of samples; otherwise it runs
            once per sample.
        scored_at_once: Whether `torch.vmap` evaluates the densities, otherwise a loop.
    """

    drawn_at_once: bool
    scored_at_once: bool


ONE_BY_ONE = Means(drawn_at_once=False, scored_at_once=False)


class Joint:
    r"""A model and a guide of any structure: draws, and their densities.

    A sample is one set of values of all latent sites. The discrete latent sites of the model that
    the guide lacks are summed out by Pyro's enumeration. The program runs for one sample at a time,
    which `torch.vmap` batches, so that it need not broadcast.

    Arguments:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        args: Their arguments.
        structure: What `find_structure` returns for them.
        means: How samples are computed; None finds the fastest way that works, by a trial.
        scaled: Whether scales of sites apply.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        structure: Structure,
        means: Means | None = None,
        scaled: bool = False,
    ) -> None:
        self.model = model
        self.guide = guide
        self.args = args
        self.structure = structure
        self.scaled = scaled
        self.subsamples: dict[str, Any] = {}
        self.means = means or self._try()

    def draw(self, num_samples: int) -> dict[str, Tensor]:
        """Samples from the guide: the value of each site, shape `(num_samples, *shape)`.

        A `Delta` is no draw but a function of the others.
        """
        if self.means.drawn_at_once:
            return self._draw_at_once(num_samples)[0]
        draws: dict[str, list[Tensor]] = {}
        for _ in range(num_samples):
            trace = poutine.trace(_At(self.subsamples)(self.guide)).get_trace(*self.args)
            self._keep_subsamples(trace)
            for name, site in _draws(trace).items():
                draws.setdefault(name, []).append(site["value"])
        return {name: torch.stack(values) for name, values in draws.items()}

    def log_densities(self, values: Values, num_samples: int) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log q(z), each of shape `(num_samples,)`, or `(num_samples, N)` by row.

        The density of a `Delta` is a term of the first, as for a function of the draws.
        """
        return evaluate_each(self._score, values, num_samples, self.means.scored_at_once)

    def _score(self, values: Values) -> tuple[Tensor, Tensor]:
        """The densities of one sample."""
        fixed = _At({**values, **self.subsamples})
        q = self._trace(fixed(self.guide))
        p = self._trace(poutine.replay(summing_out(self.model, self.structure), trace=q))
        log_p = log_joint(p, self.structure)
        deltas = total(q, self.structure, is_fixed)
        log_q = total(q, self.structure, lambda site: not is_fixed(site))
        return (log_p - deltas).expand(self._rows), log_q.expand(self._rows)

    def _trace(self, program: Program) -> Trace:
        if self.scaled:
            return poutine.trace(program).get_trace(*self.args)
        return unscaled_trace(program, self.args)

    @cached_property
    def _rows(self) -> tuple[int, ...]:
        if self.structure.rows is None:
            return ()
        return (len(self.args[0]),)

    def _draw_at_once(self, num_samples: int) -> tuple[dict[str, Tensor], Trace]:
        with pyro.plate(SAMPLES, num_samples, dim=-1 - self.structure.nesting):
            trace = poutine.trace(self.guide).get_trace(*self.args)
        self._keep_subsamples(trace)
        draws = {}
        for name, site in _draws(trace).items():
            value = site["value"]
            own = value.shape[value.ndim - self.structure.dims[name] :]
            draws[name] = value.reshape(num_samples, *own)
        return draws, trace

    def _keep_subsamples(self, trace: Trace) -> None:
        """The densities are those of the rows that the guide drew."""
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site_is_subsample(site):
                self.subsamples[name] = site["value"]

    def _try(self) -> Means:
        """How samples can be computed; says so where it is slow."""
        with forked_rng(), torch.no_grad():
            self.means = ONE_BY_ONE
            values = self.draw(TRIAL)
            self.log_densities(values, TRIAL)  # raises what is wrong with the programs
            reasons = []
            scored_at_once = True
            try:
                evaluate_each(self._score, values, TRIAL, at_once=True)
            except NOT_BATCHED as error:
                scored_at_once = False
                reasons.append(first_line(error))
            drawn_at_once = self._draws_broadcast(reasons)
        self.subsamples = {}
        if reasons:
            logger.warning(
                "drawing samples one by one, which is slower, because the programs do not broadcast"
                " over them (%s)",
                "; ".join(reasons),
            )
        return Means(drawn_at_once, scored_at_once)

    def _draws_broadcast(self, reasons: list[str]) -> bool:
        """Whether the guide draws the same in a plate of samples: its densities are the same."""
        self.subsamples = {}
        try:
            values, trace = self._draw_at_once(TRIAL)
            in_plate = torch.zeros(())
            for name in values:
                score = log_prob(trace.nodes[name])
                if self.scaled:
                    score = score * trace.nodes[name]["scale"]
                in_plate = in_plate + _per_sample(score, self.structure.nesting)
        except NOT_BATCHED as error:
            reasons.append(first_line(error))
            return False
        _, alone = self.log_densities(values, TRIAL)
        alone = alone.reshape(TRIAL, -1).sum(1)
        in_plate = in_plate.to(alone).expand(TRIAL)
        if torch.allclose(in_plate, alone, rtol=1e-3, atol=1e-3, equal_nan=True):
            return True
        reasons.append("the density of the guide changes in an outer plate")
        return False


def evaluate_each(
    function: Callable[[Values], Any], values: Values, num_samples: int, at_once: bool
) -> Any:
    """Stack the results of a function of one sample.

    Arguments:
        function: Returns a tuple of tensors for the value of each site.
        values: The values, with a leading dimension of samples.
        num_samples: Number of samples.
        at_once: By `torch.vmap`, otherwise in a loop.
    """
    with without_validation(), _batched_logarithms():
        if at_once:
            batched = torch.vmap(lambda _, each: function(each), randomness="different")
            return batched(torch.arange(num_samples), dict(values))
        results = []
        for k in range(num_samples):
            results.append(function({name: value[k] for name, value in values.items()}))
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def summing_out(model: Program, structure: Structure) -> Program:
    """The model with its discrete sites enumerated in dimensions to the left of its plates.

    Handlers that give other sites their values belong around it: Pyro notes on which enumerated
    sites a site depends before it has a value.
    """
    if not structure.enumerated:
        return model

    def configuration(site: Site) -> Any:
        if site["name"] in structure.enumerated:
            return {"enumerate": "parallel"}
        return {"enumerate": None}

    marked = poutine.infer_config(model, config_fn=configuration)
    enumerated = _Enumeration(first_available_dim=-1 - structure.nesting)(marked)

    def run(*args: Any) -> Any:
        try:
            return enumerated(*args)
        except NOT_BATCHED as error:
            raise _not_summed(structure, error) from error

    return run


def log_joint(
    trace: Trace, structure: Structure, which: Callable[[Site], bool] = lambda site: True
) -> Tensor:
    """The log-density of some sites of a model's trace, a scalar, or shape `(N,)` by row.

    Sums out the enumerated sites.
    """
    if not structure.enumerated:
        return total(trace, structure, which)
    names = ", ".join(sorted(structure.enumerated))
    for site in sample_sites(trace).values():
        if isinstance(site["scale"], Tensor) or site["scale"] != 1:
            raise RequestError(
                f"{names} cannot be summed out, because site {site['name']} has a scale; use"
                " TraceEnum_ELBO, or run the programs on all rows"
            )
    try:
        return _contract(trace, structure, which)
    except NOT_BATCHED as error:
        raise _not_summed(structure, error) from error


def _not_summed(structure: Structure, error: Exception) -> RequestError:
    names = ", ".join(sorted(structure.enumerated))
    return RequestError(
        f"{names} cannot be summed out ({first_line(error)}); let the model broadcast over the"
        " values of discrete sites, as Pyro's enumeration requires, or draw them in the guide"
    )


def _contract(trace: Trace, structure: Structure, which: Callable[[Site], bool]) -> Tensor:
    trace.compute_log_prob()
    trace.pack_tensors()
    plates = trace.plate_to_symbol
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    kept: frozenset[str] = frozenset()
    for site in sample_sites(trace).values():
        if which(site):
            frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
            own = frozenset(plates[frame.name] for frame in frames)
            factors.setdefault(own, []).append(site["packed"]["log_prob"])
            for frame in frames:
                # Pyro's packed tensors lack dimensions of size 1.
                if frame.name == structure.rows and frame.size > 1:
                    kept = frozenset(plates[frame.name])
    summed = set(trace.symbol_to_dim) - set(plates.values())
    with shared_intermediates() as cache:
        return contract_to_tensor(factors, summed, target_ordinal=kept, cache=cache)


def total(
    trace: Trace, structure: Structure, which: Callable[[Site], bool] = lambda site: True
) -> Tensor:
    """The summed log-density of some sites of a trace, a scalar, or shape `(N,)` by row."""
    result = torch.zeros(())
    for site in sample_sites(trace).values():
        if which(site):
            score = log_prob(site) * site["scale"]
            if structure.rows is None:
                score = score.sum()
            else:
                score = sum_to_dim(score, row_dim(site, structure.rows))
            result = result + score
    return result


def sum_to_dim(tensor: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but `dim`, which is negative."""
    others = [other for other in range(-tensor.ndim, 0) if other != dim]
    if not others:
        return tensor
    return tensor.sum(others)


def _per_sample(tensor: Tensor, nesting: int) -> Tensor:
    """Sum over the plates, which are to the right of the samples."""
    return tensor.reshape(*tensor.shape[: tensor.ndim - nesting], -1).sum(-1)


def _draws(trace: Trace) -> dict[str, Site]:
    """The random sites of a guide that are no functions of others."""
    return {name: site for name, site in sample_sites(trace).items() if not is_fixed(site)}


def unscaled_trace(program: Program, args: tuple[Any, ...]) -> Trace:
    """The trace of a program without the scales of its sites."""
    return poutine.trace(_Unscaled()(program)).get_trace(*args)


class _At(Messenger):
    """Gives sites their values."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


class _Enumeration(EnumMessenger):
    """Pyro's enumeration, which reads `value.data`; that is not allowed in `torch.vmap`."""

    def _pyro_post_sample(self, msg: Site) -> None:
        value = msg["value"]
        if isinstance(value, Tensor):
            msg["value"] = torch.empty(value.shape, device="meta")
        super()._pyro_post_sample(msg)
        msg["value"] = value


class _Unscaled(Messenger):
    """Removes the scales of sites."""

    def _pyro_sample(self, msg: Site) -> None:
        msg["scale"] = 1.0


def _logarithm(x: Tensor) -> Tensor:
    """Pyro's `safe_log`, whose gradient is finite at 0; Pyro's own cannot be batched."""
    slope = x / x.detach().clamp(min=torch.finfo(x.dtype).eps)
    return x.detach().log() + (slope - slope.detach())


@contextmanager
def _batched_logarithms() -> Iterator[None]:
    with patched((torch_log, "safe_log", _logarithm)):
        yield
