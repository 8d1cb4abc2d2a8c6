"""The variational autoencoder: two Pyro programs, p(z) p(x | z) and q(z | x)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.likelihoods import Likelihood, Pixels
from pyro_vae.networks import batched
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior

_instances = count()


def _new_name() -> str:
    """A name for Pyro's parameter store, which is global: no two models of a process share one."""
    return f"vae{next(_instances)}"


class Model(nn.Module, ABC):
    """A generative model of images and its guide, with a code z for each image.

    To write your own, subclass it and write `model`, `guide` and `sample`. Every site of both programs lies in one plate over
    the images, and `poutine.scale` by beta holds every latent site, in both. Call `self.register()` first in each: it hands
    the parameters to Pyro.

    Arguments:
        posterior: The distribution q(z | x), with its encoder.
        decoder: Network from codes, `(N, latent_dim)`, to the likelihood's parameters, `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z).
    """

    def __init__(self, posterior: Posterior, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.posterior, self.decoder, self.likelihood = posterior, decoder, likelihood
        self._name = _new_name()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or one read from a file, has parameters of its own and so a name of its own."""
        super().__setstate__(state)
        self._name = _new_name()

    @abstractmethod
    def model(self, x: Tensor, beta: float | Tensor = 1.0) -> None:
        """The generative program, for images `x`, shape `(N, *data_shape)`, as the likelihood's pixels."""

    @abstractmethod
    def guide(self, x: Tensor, beta: float | Tensor = 1.0) -> None:
        """The inference program, for images `x`, shape `(N, *data_shape)`, as the likelihood's pixels."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Images of `n` codes from the model: the means of p(x | z), shape `(n, *data_shape)`."""

    @property
    @abstractmethod
    def latent_dim(self) -> int:
        """Number of dimensions of a code."""

    @property
    def pixels(self) -> Pixels:
        """The data that the likelihood scores."""
        return self.likelihood.pixels

    def register(self) -> None:
        """Hand the parameters to Pyro, under a name that no other instance has."""
        pyro.module(self._name, self)

    def encode(self, x: Tensor) -> TorchDistribution:
        """The posterior q(z | x) at each image: batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        return self.posterior(self.likelihood.unit(x))

    def decode(self, z: Tensor) -> TorchDistribution:
        """The likelihood p(x | z) at each code of `z`, shape `(..., latent_dim)`: batch_shape `(...)`."""
        return self.likelihood(batched(self.decoder, z))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Images of a draw z from q(z | x) for each image: the means of p(x | z), shape `(N, *data_shape)`."""
        return self.decode(self.encode(x).sample()).mean

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Start from training images `x`, as pixels: the decoder's last bias where every reconstruction is their mean.

        A bias for each pixel, or for each channel, is set if the likelihood says what it should be.
        """
        bias = [param for name, param in self.decoder.named_parameters() if name.endswith("bias")][-1:]
        params = [self.likelihood.params_at(mean) for mean in (x.mean(0), x.mean((0, -2, -1))[:, None, None])]
        for target, value in zip(2 * bias, params, strict=False):
            if value is not None and value.numel() == target.numel():
                target.copy_(value.flatten())


class VAE(Model):
    r"""A variational autoencoder, :math:`p(x, z) = p(z) \, p(x \mid z)` with the amortized guide :math:`q(z \mid x)`.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Arguments:
        prior: The distribution p(z).
        posterior: The distribution q(z | x), with its encoder.
        decoder: Network from codes, `(N, latent_dim)`, to the likelihood's parameters, `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z).

    Example:
        >>> from pyro_vae import MLP, Bernoulli, DiagonalNormal, StandardNormal
        >>> encoder, decoder = MLP((1, 8, 8), (2, 5)), MLP((5,), (1, 1, 8, 8))
        >>> vae = VAE(StandardNormal(5), DiagonalNormal(encoder), decoder, Bernoulli())
        >>> vae.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(self, prior: Prior, posterior: Posterior, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__(posterior, decoder, likelihood)
        self.prior = prior

    def model(self, x: Tensor, beta: float | Tensor = 1.0) -> None:
        r"""The generative program, :math:`p(z)^\beta \, p(x \mid z)`."""
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor, beta: float | Tensor = 1.0) -> None:
        r"""The inference program, :math:`q(z \mid x)^\beta`."""
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", self.encode(x))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.decode(self.prior().sample(torch.Size([n]))).mean

    @property
    def latent_dim(self) -> int:
        return self.prior().event_shape[0]

    def initialize(self, x: Tensor) -> None:
        super().initialize(x)
        self.prior.initialize(self.likelihood.unit(x))
