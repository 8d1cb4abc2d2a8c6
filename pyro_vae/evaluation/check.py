"""Checks of the importance-weighted log p(x) by methods that do not use the guide."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.engine.graphs import AnyEngine
from pyro_vae.engine.importance import log_likelihood, monte_carlo_error
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.evaluation.ais import annealed_log_weights, bidirectional_bounds
from pyro_vae.evaluation.batch import BatchLike, random_rows, scored
from pyro_vae.evaluation.metrics import Metrics, Scores, summary
from pyro_vae.evaluation.quadrature import has_two_dimensions, quadrature_log_likelihood
from pyro_vae.vae import Model

# Estimates of log p(x) that differ by less than this, in nats, agree whatever their errors.
DIFFERENCE = 0.1
# Threshold in standard errors, for about a hundred comparisons.
Z_SCORE = 4.0


def check_log_likelihood(
    vae: Model,
    data: BatchLike,
    scores: Scores,
    num_images: int = 10,
    num_chains: int = 8,
    num_temperatures: int = 200,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Metrics:
    """Compare the importance-weighted log p(x) of a few images with a second method.

    The method is quadrature if the latent space has two dimensions and it converges, otherwise
    annealed importance sampling. Importance sampling and annealing give lower bounds in
    expectation, so only a higher second estimate is evidence against the first: the guide then
    misses a part of the posterior. With the default settings annealing finds large errors only.

    Arguments:
        vae: A trained model.
        data: The images, see `scored`.
        scores: Their scores, from `score_images`.
        num_images: Number of images to check, a random subset.
        num_chains: Chains of annealing for each image.
        num_temperatures: Temperatures of annealing.
        batch_size: Decoder rows per pass, as for `annealed_log_weights`.
        engine: What runs the annealing, see `Graph`.

    Returns:
        `method` ("quadrature" or "ais"), the mean `difference` of the second estimate minus the
        first, in nats, its `standard_error` over the draws of both, the `max_difference`,
        `num_images`, both estimates of each image (`importance_sampling` and `second`), and
        `disagree`: whether the second estimate is higher by 4 standard errors and
        0.1 nats, for one of the images or in the mean. The error of estimates from a single draw is
        unknown: `standard_error` and `disagree` are then None.

    Raises:
        RequestError: If a latent site is bounded or discrete, or a number is not positive.
    """
    check_positive(num_images=num_images)
    everything = scored(vae, data)
    index = random_rows(everything, num_images)
    batch = everything[index]
    first = scores.log_likelihood[index.cpu()]
    error = scores.monte_carlo_error[index.cpu()]
    method = "quadrature"
    second = torch.full_like(first, torch.nan)
    if has_two_dimensions(vae, batch):
        second = quadrature_log_likelihood(vae, batch, batch_size)
    if second.isnan().any():  # more dimensions, or no convergence
        method = "ais"
        weights = annealed_log_weights(
            vae.model,
            *batch,
            num_chains=num_chains,
            num_temperatures=num_temperatures,
            batch_size=batch_size,
            engine=engine,
        ).cpu()
        second = log_likelihood(weights)
        error = torch.hypot(error, monte_carlo_error(weights))
    difference = second - first
    mean_error = error.square().sum().sqrt() / len(error)
    standard_error = None
    if not mean_error.isnan():
        standard_error = mean_error.item()
    return {
        "method": method,
        "difference": difference.mean().item(),
        "standard_error": standard_error,
        "max_difference": difference.max().item(),
        "num_images": len(difference),
        "importance_sampling": first.tolist(),
        "second": second.tolist(),
        "disagree": _disagree(difference, error, mean_error),
    }


def _disagree(difference: Tensor, error: Tensor, mean_error: Tensor) -> bool | None:
    """Whether one of the differences, or their mean, is significant; None if it is unknown."""
    if error.isnan().any():
        return None
    values = torch.cat([difference, difference.mean()[None]])
    errors = torch.cat([error, mean_error[None]])
    return bool((values > (Z_SCORE * errors).clamp(min=DIFFERENCE)).any())


def annealed_log_likelihood(
    vae: Model,
    data: BatchLike,
    scores: Scores,
    num_chains: int = 16,
    num_temperatures: int = 500,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Metrics:
    """log p(x) by annealed importance sampling, as `pyro-vae evaluate --method ais` reports it.

    The chains start from a mixture of the guide and the prior, see `annealed_log_weights`.

    Arguments:
        vae: A trained model.
        data: The images, see `scored`.
        scores: Their scores, from `score_images`.
        num_chains: Chains for each image.
        num_temperatures: Temperatures.
        batch_size: Decoder rows per pass, as for `annealed_log_weights`.
        engine: What runs the annealing, see `Graph`.

    Returns:
        `annealed`, a lower bound on log p(x) in expectation; `annealed_difference`, the paired
        difference to the importance-weighted bound; and `simulated`, the `lower` and `upper` bound
        for as many images drawn from the model, with their `gap`: see `bidirectional_bounds`.

    Raises:
        RequestError: If a latent site is bounded or discrete, a number is not positive, or the
            likelihood is given the total.
    """
    if vae.likelihood.given_total:
        raise RequestError(
            "the bounds need rows that are simulated at the total at which they are scored, but"
            " given_total scores each at its own; use annealed_log_weights, or --method is"
        )
    batch = scored(vae, data)
    weights = annealed_log_weights(
        vae.model,
        *batch,
        guide=vae.guide,
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        batch_size=batch_size,
        engine=engine,
    )
    log_p = log_likelihood(weights.cpu())
    _, bounds = bidirectional_bounds(
        vae.model,
        *batch,
        guide=vae.guide,
        num_chains=num_chains,
        num_temperatures=num_temperatures,
        batch_size=batch_size,
        engine=engine,
    )
    return {
        "annealed": summary(log_p, num_chains),
        "annealed_difference": summary(log_p - scores.log_likelihood, num_chains),
        "simulated": {
            "lower": summary(bounds.lower, num_chains),
            "upper": summary(bounds.upper, num_chains),
            "gap": summary(bounds.upper - bounds.lower, num_chains),
        },
    }
