"""Priors p(z): a module whose forward gives a distribution over codes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn


class Prior(nn.Module, ABC):
    """The prior p(z): the distribution of a code before its image is seen.

    To write your own, subclass it and write `forward`:

        class Cauchy(Prior):
            def __init__(self, latent_dim: int) -> None:
                super().__init__()
                self.register_buffer("zeros", torch.zeros(latent_dim))

            def forward(self):
                return dist.Cauchy(self.zeros, 1.0).to_event(1)
    """

    @abstractmethod
    def forward(self) -> TorchDistribution:
        """The distribution: batch_shape `()`, event_shape `(latent_dim,)`."""


class StandardNormal(Prior):
    r"""The standard Gaussian, :math:`p(z) = \mathcal{N}(z; 0, I)`.

    Arguments:
        latent_dim: Number of latent dimensions.

    Example:
        >>> StandardNormal(20)().event_shape
        torch.Size([20])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.loc, self.scale).to_event(1)
