"""Collapse, foreseen: how many latent dimensions the data can use at a given noise."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.data.split import Split
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.likelihoods import Normal
from pyro_vae.vae import VAE, Model

# Images whose covariance is computed.
ROWS = 5000


def predicted_active_units(
    x: Tensor, latent_dim: int, scale: float | None = None, beta: float = 1.0
) -> int:
    r"""The number of active latent dimensions of the optimal linear VAE with Gaussian pixels.

    Those are the eigenvalues of the data's covariance above :math:`\beta \sigma^2`, at most
    `latent_dim`: along other directions a code costs more than it gains. It is exact for a linear
    decoder and a Gaussian posterior. A deep decoder may use fewer or more, because it starts like a
    linear one, but can bend: where no eigenvalue exceeds the threshold, the collapsed posterior is
    a stable optimum.

    A learned noise, one for all pixels, settles at :math:`\beta \sigma^2 = \sum_{i > k} \lambda_i /
    (D / \beta - k)` with k active dimensions. With beta = 1 all dimensions are then active.

    References:
        | Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse (Lucas et al., 2019)
        | https://arxiv.org/abs/1911.02469
        | Posterior Collapse as a Phase Transition in Variational Autoencoders (2025)
        | https://arxiv.org/abs/2510.01621

    Arguments:
        x: Values that the likelihood scores, shape `(N, *data_shape)`.
        latent_dim: Number of latent dimensions.
        scale: The noise's standard deviation; None if it is learned.
        beta: Weight of the KL at the end of training.

    Raises:
        RequestError: If a number is not positive, or there are fewer than two images.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> torch.cov(x.T, correction=0).diagonal()
        tensor([4.5000, 0.5000])
        >>> [predicted_active_units(x, 2, scale) for scale in (0.5, 1.0, 3.0)]
        [2, 1, 0]
        >>> predicted_active_units(x, 2, scale=1.0, beta=5.0)
        0
    """
    check_positive(latent_dim=latent_dim, scale=scale, beta=beta)
    if len(x) < 2:
        raise RequestError("a covariance needs at least two images")
    values = _eigenvalues(x)
    if scale is not None:
        return min(latent_dim, int((values > beta * scale**2).sum()))
    dimensions = x[0].numel()
    for active in range(min(latent_dim, len(values)), 0, -1):
        free = dimensions / beta - active
        if free > 0 and values[active - 1] > values[active:].sum() / free:
            return active
    return 0


def has_forecast(vae: Model) -> bool:
    """Whether a model is a plain VAE with Gaussian values of one scale."""
    likelihood = vae.likelihood
    if type(vae) is not VAE or not isinstance(likelihood, Normal):
        return False
    return likelihood.num_params == 1 and "log_factor" not in likelihood.per_element


def forecast(vae: Model, train: Split, beta: float) -> int | None:
    """`predicted_active_units` of a model and its training images.

    None for models without a forecast, and for data with missing values.
    """
    likelihood = vae.likelihood
    if not has_forecast(vae) or len(train) < 2:
        return None
    assert isinstance(likelihood, Normal)
    scale = None
    if likelihood.log_factor is None:
        scale = likelihood.scale
    images = train.subset(min(ROWS, len(train))).with_fixed_noise()
    x = likelihood.unit(images.scored(vae.pixels))  # reals are standardized
    if x.isnan().any():
        return None
    return predicted_active_units(x, vae.latent_dim, scale, beta)


def _eigenvalues(x: Tensor) -> Tensor:
    """Those of the covariance that are not zero, in decreasing order, in float64."""
    rows = x.flatten(1).double()
    rows = rows - rows.mean(0)
    smaller = rows if rows.shape[0] <= rows.shape[1] else rows.T
    return torch.linalg.eigvalsh(smaller @ smaller.T / len(rows)).flip(0).clamp(min=0)
