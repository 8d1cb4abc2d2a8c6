"""How many importance samples an estimate needs, and where no number suffices."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.engine.importance import LEAST_SAMPLES, curve_lengths, log_weights, pareto_k
from pyro_vae.errors import check_positive
from pyro_vae.evaluation.batch import BatchLike, scored
from pyro_vae.vae import Model, default_batch_size


def required_samples(k_hat: Tensor) -> Tensor:
    r"""The number of samples from which Pareto-smoothed importance sampling is reliable.

    .. math:: 10^{1 / (1 - \max(0, \hat k))}

    That is 10 samples for equal weights, 2,200 at 0.7, and 10 billion at 0.9: from 0.7 on more
    samples are no practical remedy, and from 1 on, where the weights have no mean as far as the
    samples show, no number suffices: infinite. NaN stays NaN. k-hat itself changes with the number
    of samples, see `k_hat_curve`.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024), section 3.2.3
        | https://arxiv.org/abs/1507.02646

    Arguments:
        k_hat: From `pareto_k`, of any shape.

    Example:
        >>> required_samples(torch.tensor([-1.0, 0.5, 1.2]))
        tensor([ 10., 100.,  inf])
    """
    needed = 10 ** (1 / (1 - k_hat.clamp(min=0)))
    return torch.where(k_hat >= 1, torch.inf, needed)


@torch.no_grad()
def k_hat_curve(
    vae: Model, data: BatchLike, num_samples: int = 5000, batch_size: int | None = None
) -> dict[int, Tensor]:
    """k-hat of the first 32, 64, 128, ... and all of the same importance samples, each `(N,)`.

    If k-hat falls with the number of samples, more of them help. If it does not, they do not: the
    guide is too narrow, or the posterior has other tails, for any number. Values from fewer than
    some hundred samples are noisy.

    Arguments:
        vae: A model.
        data: The images, see `scored`.
        num_samples: The largest number of samples, at least 25.
        batch_size: Decoder rows per pass; None is `default_batch_size`.
    """
    check_positive(num_samples=num_samples)
    batch = scored(vae, data)
    size = batch_size or default_batch_size(vae, batch.x)
    columns = []
    for image in batch.split(1):
        drawn = 0
        parts = []
        while drawn < num_samples:
            count = min(size, num_samples - drawn)
            weights = log_weights(vae.model, vae.guide, *image, num_samples=count)
            parts.append(weights.double().cpu())
            drawn += count
        columns.append(torch.cat(parts))
    everything = torch.cat(columns, 1)
    lengths = [length for length in curve_lengths(num_samples) if length >= LEAST_SAMPLES]
    return {length: pareto_k(everything[:length]) for length in lengths}
