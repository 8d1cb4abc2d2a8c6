"""Approximate posteriors q(z | x): an encoder, and a distribution on its outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn


class Posterior(nn.Module, ABC):
    """The amortized posterior q(z | x): the encoder's outputs are the parameters of a distribution.

    To write your own, subclass it, declare `num_params`, and write `distribution`:

        class Uniform(Posterior):
            num_params = 2

            def distribution(self, params):
                low, log_width = params.unbind(-2)
                return dist.Uniform(low, low + log_width.exp()).to_event(1)

    Arguments:
        encoder: Network from images, `(N, *data_shape)`, to parameters, `(N, num_params, latent_dim)`.

    Attributes:
        num_params: Encoder outputs per latent dimension.
    """

    num_params: int = 2

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> TorchDistribution:
        """The posterior at each image of `x`, shape `(N, *data_shape)`: batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        return self.distribution(self.encoder(x))

    @abstractmethod
    def distribution(self, params: Tensor) -> TorchDistribution:
        """The distribution with parameters `params`, shape `(N, num_params, latent_dim)`.

        Local (non-amortized) inference optimizes `params` themselves, image by image.
        """


class DiagonalNormal(Posterior):
    r"""A Gaussian with independent dimensions, :math:`q(z \mid x) = \mathcal{N}(z; \mu(x), \operatorname{diag} \sigma^2(x))`.

    The encoder gives :math:`\mu` and :math:`\log \sigma`.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Arguments:
        encoder: Network from images to `(N, 2, latent_dim)`.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import MLP
        >>> posterior = DiagonalNormal(MLP((1, 28, 28), (2, 20)))
        >>> q = posterior(torch.zeros(8, 1, 28, 28))
        >>> q.batch_shape, q.event_shape
        (torch.Size([8]), torch.Size([20]))
    """

    num_params = 2

    def distribution(self, params: Tensor) -> TorchDistribution:
        loc, log_scale = params.unbind(-2)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
