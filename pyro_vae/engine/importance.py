"""Importance weights of any pair of Pyro programs, and the estimates based on them."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, log
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.engine.joint import Joint
from pyro_vae.engine.programs import (
    Batch,
    BroadcastError,
    Program,
    Site,
    StructureError,
    has_rows,
    is_summed_out,
    site_sum,
    trace_at,
    traces,
)
from pyro_vae.engine.random_state import random_state, set_random_state
from pyro_vae.engine.structure import find_structure
from pyro_vae.errors import check_positive

# PSIS requires 5 weights in the tail, which is a fifth of the samples.
LEAST_SAMPLES = 25


class Terms(NamedTuple):
    """The two terms of the ELBO and the log-weights, in nats, of equal shape.

    The ELBO is the mean of log w = log p(x, z) - log q(z | x), which is the difference of the
    terms. If discrete sites y are summed out, the terms are their expectations under q(y | x), and
    w is summed over y, so that its logarithm is larger than their difference.
    """

    reconstruction: Tensor
    """log p(x | z), the observed sites."""
    kl: Tensor
    """log q(z | x) - log p(z), the latent sites; its mean is the KL divergence."""
    log_weights: Tensor
    """log w, the logarithm of an unbiased estimate of p(x)."""


def terms(model: Program, guide: Program, batch: Batch, num_samples: int) -> Terms:
    """The terms of the log-weights, each of shape `(num_samples, N)`; see `log_weights`."""
    p, q = traces(model, guide, batch, num_samples)
    observed = site_sum(p, batch.x, num_samples, lambda site: site["is_observed"])
    latent = site_sum(p, batch.x, num_samples, lambda site: not site["is_observed"])
    drawn = site_sum(q, batch.x, num_samples, lambda site: not is_summed_out(site))
    kl = drawn - latent
    if kl.ndim == 2:
        return Terms(observed, kl, observed - kl)
    log_probs = site_sum(q, batch.x, num_samples, is_summed_out)
    return Terms(
        _expectation(log_probs, observed),
        _expectation(log_probs, kl + log_probs),
        _sum_out(observed - kl),
    )


def _expectation(log_probs: Tensor, values: Tensor) -> Tensor:
    """The expectation over the sites that are summed out; no value counts where it cannot be."""
    impossible = log_probs == -inf
    products = log_probs.exp() * values.masked_fill(impossible, 0.0)
    return products.flatten(0, -3).sum(0)


def _sum_out(log_values: Tensor) -> Tensor:
    """The logarithm of the sum over the sites that are summed out."""
    return log_values.flatten(0, -3).logsumexp(0)


def trace_weights(p: Trace, q: Trace, x: Tensor, num_samples: int) -> Tensor:
    """The log-weights of two traces, see `log_weights`."""
    drawn = site_sum(q, x, num_samples, lambda site: not is_summed_out(site))
    log_ratios = site_sum(p, x, num_samples) - drawn
    if log_ratios.ndim == 2:
        return log_ratios
    return _sum_out(log_ratios)


def log_weights(model: Program, guide: Program, *args: Any, num_samples: int) -> Tensor:
    r"""Log importance weights of samples from the guide, in nats.

    .. math:: \log w_k = \log p(x, z_k) - \log q(z_k), \qquad z_k \sim q(z)

    If every site of both programs is in one plate over the rows of the first argument, the rows are
    independent and each has its own weights:
    :math:`\log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn} \mid x_n)`. Otherwise, as with latent
    sites that all rows share, the whole program has one weight per sample. Discrete latent sites
    that the guide lacks are summed out by Pyro's enumeration.

    Masks apply, but scales (`poutine.scale`, subsampling) do not. With a single plate, at dim -1,
    the programs run once for all samples, under a plate at dim -2. If they do not broadcast over
    it, and for other structures, `torch.vmap` batches the samples; if that fails, they run one by
    one, and a warning says why.

    Discrete sites y of both programs with `infer={"enumerate": "parallel"}` are summed out:
    :math:`w_k = \sum_y p(x, y, z_{ky}) / q(z_{ky} \mid x, y)`.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        model: A Pyro program, called as `model(*args)`.
        guide: A Pyro program, called as `guide(*args)`, that samples the latent sites of the model;
            it may omit discrete ones.
        *args: The arguments of both programs. The first may be the data, one row for each element
            of a plate.
        num_samples: Number of samples K.

    Returns:
        The log-weights, differentiable, shape `(K, N)`, one for each row, or `(K,)` for the whole
        program.

    Raises:
        ValueError: If the latent sites of the programs differ; if a plate holds a part of its rows
            (subsampling) but the whole program has one weight; or if a discrete site cannot be
            summed out.

    Example:
        >>> import pyro
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

        One mean for all rows gives one weight for all rows:

        >>> def shared(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def exact(x):
        ...     pyro.sample("z", dist.Normal(x.mean() * 3 / 4, 0.5))
        >>> log_likelihood(log_weights(shared, exact, x, num_samples=5))
        tensor(-6.4500)
        >>> dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x)
        tensor(-6.4500)
    """
    check_positive(num_samples=num_samples)
    if has_rows(args):
        device = args[0].device
        before = random_state(device)
        try:
            return terms(model, guide, Batch(*args), num_samples).log_weights
        except (StructureError, BroadcastError):
            set_random_state(before, device)
    structure = find_structure(model, guide, args)
    structure.check_complete()
    joint = Joint(model, guide, args, structure)
    log_p, log_q = joint.log_densities(joint.draw(num_samples), num_samples)
    return log_p - log_q


def joint_terms(
    model: Program, batch: Batch, latents: Mapping[str, Tensor], num_samples: int
) -> tuple[Tensor, Tensor]:
    """log p(z) and log p(x | z) at given latents, each of shape `(num_samples, N)`.

    The arguments are those of `trace_at`. Discrete sites of the model that are marked for
    enumeration are summed out.
    """
    trace = trace_at(model, batch, latents, num_samples)

    def is_prior(site: Site) -> bool:
        return site["name"] in latents or is_summed_out(site)

    prior = site_sum(trace, batch.x, num_samples, is_prior)
    rest = site_sum(trace, batch.x, num_samples, lambda site: not is_prior(site))
    if prior.ndim == 2:
        return prior, rest
    marginal = _sum_out(prior)
    return marginal, _sum_out(prior + rest) - marginal


def log_likelihood(log_weights: Tensor) -> Tensor:
    r"""The importance-weighted bound in nats, shape `(N,)`, or `()` for the whole program.

    It is at most log p(x) in expectation.

    .. math:: \log \tfrac{1}{K} \sum_k w_k

    Arguments:
        log_weights: Shape `(K, N)` or `(K,)`.
    """
    return log_weights.logsumexp(0) - log(len(log_weights))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Effective sample size of the weights, between 1 and K, shape `(N,)`.

    .. math:: \big( \sum_k w_k \big)^2 \big/ \sum_k w_k^2

    Arguments:
        log_weights: Shape `(K, N)` or `(K,)`.
    """
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def monte_carlo_error(log_weights: Tensor) -> Tensor:
    r"""The standard error of `log_likelihood` over the draws, in nats, shape `(N,)`.

    By the delta method:

    .. math:: \operatorname{sd}(w) / (\bar w \sqrt{K})

    It requires weights with a finite variance: `pareto_k` clearly below 0.7. It only sees the part
    of the posterior that the samples reached. NaN for one sample.

    Arguments:
        log_weights: Shape `(K, N)` or `(K,)`.
    """
    weights = (log_weights - log_weights.amax(0)).exp()
    if len(weights) == 1:
        return torch.full_like(weights[0], torch.nan)
    return weights.std(0) / weights.mean(0) / len(weights) ** 0.5


def pareto_k(log_weights: Tensor) -> Tensor:
    """The Pareto tail index k-hat of the weights, from PSIS as in ArviZ, float64, shape `(N,)`.

    Above 0.7 the importance-weighted estimate is unreliable. A value below 0.7 is necessary, not
    sufficient: a guide that misses a mode of the posterior has light-tailed weights and a small
    k-hat, and the estimate is too low by the mass of that mode. Use at least 100 samples. NaN for
    fewer than 25, minus infinity for equal weights.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Arguments:
        log_weights: Shape `(K, N)` or `(K,)`.
    """
    if len(log_weights) < LEAST_SAMPLES:
        return torch.full(log_weights.shape[1:], torch.nan, dtype=torch.float64)
    log_weights = log_weights.detach()
    relative = (log_weights - log_weights.amax(0)).double()
    bounded = relative.clamp(min=-700).cpu().numpy()  # exp(-700) does not underflow
    columns = bounded.reshape(len(bounded), -1).T
    indices = torch.tensor([_tail_index(column) for column in columns], dtype=torch.float64)
    return indices.reshape(log_weights.shape[1:])


def _tail_index(log_weights: np.ndarray) -> float:
    from arviz_stats.base.array import array_stats

    try:
        with np.errstate(all="ignore"):  # underflow of small weights
            # It expects log-likelihoods, the negative log-weights of leave-one-out.
            _, k = array_stats.psislw(-log_weights)
    except ValueError:  # the largest weights are equal
        return -inf
    if np.isnan(k):
        return inf
    return float(k)


def k_curve(log_weights: Tensor) -> dict[int, Tensor]:
    """The importance-weighted bounds with 1, 2, 4, ... and all K samples, in nats, each `(N,)`.

    All use the same weights: a bound with fewer samples is averaged over disjoint blocks of them.

    Arguments:
        log_weights: Shape `(K, N)` or `(K,)`.
    """
    bounds = {}
    sums = log_weights
    for k in curve_lengths(len(log_weights))[:-1]:
        bounds[k] = sums.mean(0) - log(k)
        even = len(sums) // 2 * 2
        sums = torch.logaddexp(sums[0:even:2], sums[1:even:2])  # over blocks of 2k samples
    bounds[len(log_weights)] = log_likelihood(log_weights)
    return bounds


def curve_lengths(num_samples: int) -> list[int]:
    """1, 2, 4, ... and `num_samples`."""
    lengths = []
    length = 1
    while length < num_samples:
        lengths.append(length)
        length *= 2
    return [*lengths, num_samples]
