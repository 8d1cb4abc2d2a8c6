"""Importance weights of any pair of Pyro programs, and the estimates based on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from math import inf, log
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.engine.programs import Batch, Program
from pyro_vae.errors import RequestError, check_positive, first_line

SAMPLES = "importance samples"

Site = Any

# PSIS requires 5 weights in the tail, which is a fifth of the samples.
LEAST_SAMPLES = 25


class Terms(NamedTuple):
    r"""The two terms of :math:`\log w = \log p(x, z) - \log q(z \mid x)`, in nats, of equal shape."""

    reconstruction: Tensor
    """log p(x | z), the observed sites."""
    kl: Tensor
    """log q(z | x) - log p(z), the latent sites; its mean is the KL divergence."""

    @property
    def log_weights(self) -> Tensor:
        r""":math:`\log w`, whose mean is the ELBO."""
        return self.reconstruction - self.kl


def terms(model: Program, guide: Program, batch: Batch, num_samples: int) -> Terms:
    """The terms of the log-weights, each of shape `(num_samples, N)`; see `log_weights`."""
    p, q = traces(model, guide, batch, num_samples)
    observed = site_sum(p, batch.x, num_samples, lambda site: site["is_observed"])
    latent = site_sum(p, batch.x, num_samples, lambda site: not site["is_observed"])
    return Terms(observed, site_sum(q, batch.x, num_samples) - latent)


def traces(
    model: Program,
    guide: Program,
    batch: Batch,
    num_samples: int,
    at_draws: Messenger | None = None,
) -> tuple[Trace, Trace]:
    """The traces of the model and of the guide, both under a plate of samples at dim -2 if there are several.

    Arguments:
        model: As for `log_weights`.
        guide: As for `log_weights`.
        batch: The arguments of both programs.
        num_samples: Number of samples.
        at_draws: An effect handler around the guide, inside its trace.
    """
    check_positive(num_samples=num_samples)
    try:
        p, q = _run(model, guide, batch, num_samples, at_draws)
    except (RuntimeError, ValueError, IndexError) as error:
        if num_samples == 1:
            raise
        _run(
            model, guide, batch, 1, at_draws
        )  # raises what is wrong without the plate, if anything
        raise RequestError(
            f"the programs fail under a plate of {num_samples} samples to the left of the data ({first_line(error)}); let them"
            " broadcast over dim -2, or draw one sample at a time: vectorize_particles=False, or num_samples=1"
        ) from error
    _check_sites(p, q, len(batch))
    return p, q


def _run(
    model: Program,
    guide: Program,
    batch: Batch,
    num_samples: int,
    at_draws: Messenger | None,
) -> tuple[Trace, Trace]:
    with pyro.plate(SAMPLES, num_samples, dim=-2) if num_samples > 1 else nullcontext():
        with at_draws or nullcontext():
            q = poutine.trace(guide).get_trace(*batch)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*batch)
    return p, q


def log_weights(model: Program, guide: Program, x: Tensor, *more: Any, num_samples: int) -> Tensor:
    r"""Log importance weights, :math:`\log p(x, z_k) - \log q(z_k \mid x)` with :math:`z_k \sim q(z \mid x)`, in nats.

    Masks apply, but scales (`poutine.scale`, subsampling) do not. The programs run once for all samples, under a plate at
    dim -2, so they must broadcast, as for `vectorize_particles=True`.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        model: A Pyro program, called as `model(x, *more)`. Every site must be in one plate of size `len(x)` at dim -1.
        guide: A Pyro program, called as `guide(x, *more)`, that samples the latent sites of the model, in such a plate.
        x: The data, one row for each element of the plate.
        *more: Further arguments of both programs, such as labels.
        num_samples: Number of samples for each row.

    Returns:
        The log-weights, shape `(num_samples, len(x))`, differentiable.

    Raises:
        ValueError: If a site is outside the plate, or model and guide do not have the same latent sites.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0, 3.0])
        >>> log_likelihood(log_weights(model, guide, x, num_samples=5))
        tensor([-1.2655, -1.5155, -3.5155])
        >>> dist.Normal(0.0, 2**0.5).log_prob(x)
        tensor([-1.2655, -1.5155, -3.5155])
    """
    return terms(model, guide, Batch(x, *more), num_samples).log_weights


def joint_terms(
    model: Program, batch: Batch, latents: Mapping[str, Tensor], num_samples: int
) -> tuple[Tensor, Tensor]:
    """log p(z) and log p(x | z) at given latents, each of shape `(num_samples, N)`.

    Arguments:
        model: As for `log_weights`.
        batch: The arguments of the model.
        latents: The value of each latent site; its batch shape must broadcast to `(num_samples, N)`.
        num_samples: Number of values for each row.
    """
    with pyro.plate(SAMPLES, num_samples, dim=-2):
        trace = poutine.trace(poutine.condition(model, data=dict(latents))).get_trace(*batch)
    prior = site_sum(trace, batch.x, num_samples, lambda site: site["name"] in latents)
    return prior, site_sum(trace, batch.x, num_samples, lambda site: site["name"] not in latents)


def log_likelihood(log_weights: Tensor) -> Tensor:
    r"""The importance-weighted bound :math:`\log \frac{1}{K} \sum_k w_k` in nats, `(N,)`; at most log p(x) in expectation.

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    return log_weights.logsumexp(0) - log(len(log_weights))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Effective sample size of the weights, :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, between 1 and K, shape `(N,)`.

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def monte_carlo_error(log_weights: Tensor) -> Tensor:
    r"""The standard error of `log_likelihood` over the draws, by the delta method, in nats, shape `(N,)`.

    .. math:: \operatorname{sd}(w) / (\bar w \sqrt{K})

    It requires weights with a finite variance: `pareto_k` clearly below 0.7. It only sees the part of the posterior that the
    samples reached. NaN for one sample.

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    weights = (log_weights - log_weights.amax(0)).exp()
    if len(weights) == 1:
        return torch.full_like(weights[0], torch.nan)
    return weights.std(0) / weights.mean(0) / len(weights) ** 0.5


def pareto_k(log_weights: Tensor) -> Tensor:
    """The Pareto tail index k-hat of the weights, from PSIS as implemented in ArviZ, shape `(N,)`.

    Above 0.7 the importance-weighted estimate is unreliable. A value below 0.7 is necessary, not sufficient: a guide that
    misses a mode of the posterior has light-tailed weights and a small k-hat, and the estimate is too low by the mass of that
    mode. Use at least 100 samples. NaN for fewer than 25, minus infinity for equal weights.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    if len(log_weights) < LEAST_SAMPLES:
        return torch.full(log_weights.shape[1:], torch.nan, dtype=torch.float64)
    log_weights = log_weights.detach()
    relative = (
        (log_weights - log_weights.amax(0)).double().clamp(min=-700).cpu().numpy()
    )  # exp(-700) does not underflow
    return torch.tensor([_tail_index(column) for column in relative.T], dtype=torch.float64)


def _tail_index(log_weights: np.ndarray) -> float:
    from arviz_stats.base.array import array_stats

    try:
        with np.errstate(all="ignore"):  # underflow of small weights
            _, k = array_stats.psislw(
                -log_weights
            )  # it expects log-likelihoods, the negative log-weights of LOO
    except ValueError:  # the largest weights are equal
        return -inf
    return inf if np.isnan(k) else float(k)


def k_curve(log_weights: Tensor) -> dict[int, Tensor]:
    """The importance-weighted bounds with 1, 2, 4, ... and all K samples, in nats, each `(N,)`, from the same weights.

    A bound with fewer samples is averaged over disjoint blocks of the K samples.

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    sums, bounds = log_weights, {}
    for k in curve_lengths(len(log_weights))[:-1]:
        bounds[k] = sums.mean(0) - log(k)
        even = len(sums) // 2 * 2
        sums = torch.logaddexp(sums[0:even:2], sums[1:even:2])  # over blocks of 2k samples
    return {**bounds, len(log_weights): log_likelihood(log_weights)}


def curve_lengths(num_samples: int) -> list[int]:
    """1, 2, 4, ... and `num_samples`."""
    return [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples] + [num_samples]


def log_prob(site: Site) -> Tensor:
    """Log-probability of a site, masked but not scaled."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def site_sum(
    trace: Trace,
    x: Tensor,
    num_samples: int,
    which: Callable[[Site], bool] = lambda site: True,
    scaled: bool = False,
) -> Tensor:
    """The summed log-probability of those sites of a trace that `which` selects, shape `(num_samples, N)`."""
    sites = [site for site in sample_sites(trace).values() if which(site)]
    parts = (log_prob(site) * site["scale"] if scaled else log_prob(site) for site in sites)
    return sum(parts, torch.zeros((), device=x.device)).expand(num_samples, len(x))


def sample_sites(trace: Trace) -> dict[str, Site]:
    """The random sites of a trace, by name."""
    return {name: site for name, site in trace.nodes.items() if is_random(site)}


def is_random(site: Site) -> bool:
    """Whether a site has a random value: neither a plate nor `pyro.deterministic`."""
    return (
        site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    )


def _check_sites(model: Trace, guide: Trace, size: int) -> None:
    latent = {name for name, site in sample_sites(model).items() if not site["is_observed"]}
    sampled = {
        name for name, site in sample_sites(guide).items() if not site["infer"].get("is_auxiliary")
    }
    if latent != sampled:
        raise RequestError(
            f"model and guide need the same latent sites, but only one of them has {', '.join(sorted(latent ^ sampled))}"
        )
    check_plates({**sample_sites(model), **sample_sites(guide)}, size)


def check_plates(sites: Mapping[str, Site], size: int) -> None:
    """Raise `RequestError` unless each site is in one plate over the data, apart from that over samples."""
    for name, site in sites.items():
        plates = [plate for plate in site["cond_indep_stack"] if plate.name != SAMPLES]
        if [(plate.dim, plate.size) for plate in plates] != [(-1, size)]:
            raise RequestError(
                f"site {name} is not in exactly one plate of {size} rows at dim -1; put every site of model and guide"
                " inside `with pyro.plate('data', len(x))`"
            )
