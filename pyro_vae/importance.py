"""Importance weights of any pair of Pyro programs, and the figures that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

from pyro_vae.errors import RequestError

Program = Callable[..., Any]
Site = Any

LEAST_SAMPLES = 25
"""For an estimate of the tail of importance weights."""


class Terms(NamedTuple):
    r"""The two terms of :math:`\log w = \log p(x, z) - \log q(z \mid x)`, each in nats, of one shape."""

    reconstruction: Tensor
    """Of the observed sites, log p(x | z)."""
    kl: Tensor
    """Of the latent sites, log q(z | x) - log p(z), whose mean is the KL divergence."""

    @property
    def log_weights(self) -> Tensor:
        r""":math:`\log w`, whose mean is the ELBO."""
        return self.reconstruction - self.kl


def terms(model: Program, guide: Program, x: Tensor, num_samples: int) -> Terms:
    """The terms of the log-weights, each of shape `(num_samples, N)`; arguments as for `log_weights`."""
    p, q = traces(model, guide, (x,), num_samples)
    observed = site_sum(p, x, num_samples, lambda site: site["is_observed"])
    latent = site_sum(p, x, num_samples, lambda site: not site["is_observed"])
    return Terms(observed, site_sum(q, x, num_samples) - latent)


def traces(
    model: Program, guide: Program, args: tuple[Any, ...], num_samples: int, at_draws: Messenger | None = None
) -> tuple[Trace, Trace]:
    """The traces of the model and of the guide, both under a plate of samples at dim -2.

    Arguments:
        model: As for `log_weights`, called with `args`; the first is the data.
        guide: Likewise.
        args: Their arguments.
        num_samples: Number of samples.
        at_draws: An effect handler that sees, and may change, what the guide draws before its trace does.
    """
    check_num_samples(num_samples)
    with pyro.plate("importance samples", num_samples, dim=-2):
        with at_draws or Messenger():
            q = poutine.trace(guide).get_trace(*args)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args)
    _check_sites(p, q, len(args[0]))
    return p, q


def log_weights(model: Program, guide: Program, x: Tensor, num_samples: int) -> Tensor:
    r"""Log importance weights, :math:`\log p(x, z_k) - \log q(z_k \mid x)` with :math:`z_k \sim q(z \mid x)`, in nats.

    They are never annealed: `poutine.scale`, and the factor of a subsampled plate, do not enter; masks do. The programs run
    once for all samples, under a plate to the left of theirs, so they must broadcast, as for `vectorize_particles=True`.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        model: A Pyro program, called as `model(x)`. Every site must lie in one plate of size `len(x)`, at dim -1.
        guide: A Pyro program, called as `guide(x)`, that samples what the model does not observe; the same holds for it.
        x: The data, one row for each element of that plate.
        num_samples: Number of samples for each row.

    Returns:
        The log-weights, shape `(num_samples, len(x))`, differentiable.

    Raises:
        ValueError: If a site lies outside the plate, or model and guide do not have the same latent sites.

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
    return terms(model, guide, x, num_samples).log_weights


def log_likelihood(log_weights: Tensor) -> Tensor:
    r"""The importance-weighted bound :math:`\log \frac{1}{K} \sum_k w_k \le \log p(x)` in expectation, in nats, shape `(N,)`.

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    return log_weights.logsumexp(0) - log(len(log_weights))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""How many equally weighted draws the weights are worth, :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, from 1 to K, shape `(N,)`.

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def monte_carlo_error(log_weights: Tensor) -> Tensor:
    r"""The standard error of `log_likelihood` over the draws, by the delta method, in nats, shape `(N,)`.

    .. math:: \operatorname{sd}(w) / (\bar w \sqrt{K})

    It means something only where the weights have a variance: where `pareto_k` is clearly under 0.7. NaN for one sample.

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    weights = (log_weights - log_weights.amax(0)).exp()
    if len(weights) == 1:
        return torch.full_like(weights[0], torch.nan)
    return weights.std(0) / weights.mean(0) / len(weights) ** 0.5


def pareto_k(log_weights: Tensor) -> Tensor:
    """The tail index k-hat of the weights, by Pareto-smoothed importance sampling as in ArviZ, shape `(N,)`.

    Up to 0.7 the estimate is reliable, above it is not: its error may have no bound. The estimate needs about a hundred
    samples; of fewer than 25 it is NaN, and minus infinity where all weights are the same.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    if len(log_weights) < LEAST_SAMPLES:
        return torch.full(log_weights.shape[1:], torch.nan)
    log_weights = log_weights.detach()
    relative = (log_weights - log_weights.amax(0)).double().clamp(min=-700).cpu().numpy()
    return torch.tensor([_tail_index(column) for column in relative.T], dtype=torch.float64)


def _tail_index(log_weights: np.ndarray) -> float:
    from arviz_stats.base.array import array_stats

    try:
        with np.errstate(all="ignore"):  # weights that underflow
            _, k = array_stats.psislw(-log_weights)  # it takes log-likelihoods, and turns them over
    except ValueError:  # the largest weights are all the same
        return -inf
    return inf if np.isnan(k) else float(k)


def k_curve(log_weights: Tensor) -> dict[int, Tensor]:
    """The importance-weighted bounds of 1, 2, 4, ... and of all K samples, in nats, each `(N,)`, from the same weights.

    A bound of fewer samples is averaged over disjoint blocks of them, and so has less noise than K draws of its own.

    Arguments:
        log_weights: Shape `(K, N)`.
    """
    total = len(log_weights)
    lengths = [2**i for i in range(total.bit_length()) if 2**i < total] + [total]
    return {k: log_likelihood(log_weights[: total // k * k].unflatten(0, (-1, k)).transpose(0, 1)).mean(0) for k in lengths}


def check_num_samples(num_samples: int) -> None:
    """Refuse a number of samples that is not positive."""
    if num_samples < 1:
        raise RequestError(f"num_samples must be positive, but is {num_samples}")


def log_prob(site: Site) -> Tensor:
    """Log-probability of a site of a Pyro program, neither annealed nor subsampled."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def site_sum(
    trace: Trace, x: Tensor, num_samples: int, which: Callable[[Site], bool] = lambda site: True, scaled: bool = False
) -> Tensor:
    """The log-probability of all sites of a trace on data `x`, or of some, shape `(num_samples, N)`."""
    sites = [site for site in sample_sites(trace).values() if which(site)]
    parts = (log_prob(site) * site["scale"] if scaled else log_prob(site) for site in sites)
    return sum(parts, torch.zeros((), device=x.device)).expand(num_samples, len(x))


def sample_sites(trace: Trace) -> dict[str, Site]:
    """The random sites of a trace, by name."""
    return {name: site for name, site in trace.nodes.items() if is_random(site)}


def is_random(site: Site) -> bool:
    """Whether a site draws or scores a value: not a plate, and not `pyro.deterministic`."""
    return site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")


def _check_sites(model: Trace, guide: Trace, size: int) -> None:
    latent = {name for name, site in sample_sites(model).items() if not site["is_observed"]}
    sampled = {name for name, site in sample_sites(guide).items() if not site["infer"].get("is_auxiliary")}
    if latent != sampled:
        raise ValueError(
            f"model and guide need the same latent sites, but {', '.join(sorted(latent ^ sampled))} is in only one of them"
        )
    check_plates({**sample_sites(model), **sample_sites(guide)}, size)


def check_plates(sites: Mapping[str, Site], size: int) -> None:
    """Refuse sites that do not all lie in one plate over the data, and one more, over samples, to its left."""
    for name, site in sites.items():
        _, *plates = sorted(site["cond_indep_stack"], key=lambda frame: frame.dim or 0)
        if [(plate.dim, plate.size) for plate in plates] != [(-1, size)]:
            raise ValueError(
                f"site {name} does not lie in exactly one plate of {size} rows at dim -1: write"
                f" `with pyro.plate('data', len(x))` around every site of model and guide"
            )
