"""The variational autoencoder: two Pyro programs, p(z) p(x | z) and q(z | x)."""

from __future__ import annotations

from itertools import count

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.likelihoods import Likelihood, Pixels
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior

_instances = count()


class VAE(nn.Module):
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
        super().__init__()
        self.prior, self.posterior, self.decoder, self.likelihood = prior, posterior, decoder, likelihood
        self._name = f"vae{next(_instances)}"

    def model(self, x: Tensor, beta: float | Tensor = 1.0) -> None:
        r"""The generative program, :math:`p(z)^\beta \, p(x \mid z)`, for images `x`, shape `(N, *data_shape)`."""
        pyro.module(self._name, self)
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor, beta: float | Tensor = 1.0) -> None:
        r"""The inference program, :math:`q(z \mid x)^\beta`, for images `x`, shape `(N, *data_shape)`."""
        pyro.module(self._name, self)
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", self.posterior(x))

    @torch.no_grad()
    def center(self, x: Tensor) -> None:
        """Start the decoder's last bias where every reconstruction is the mean of `x`, if the likelihood says where that is.

        Arguments:
            x: Training images as the likelihood's pixels, shape `(N, *data_shape)`.
        """
        bias = [param for name, param in self.decoder.named_parameters() if name.endswith("bias")][-1:]
        params = [self.likelihood.params_at(mean) for mean in (x.mean(0), x.mean((0, -2, -1))[:, None, None])]
        for target, value in zip(2 * bias, params, strict=False):
            if value is not None and value.numel() == target.numel():
                target.copy_(value.flatten())

    @property
    def pixels(self) -> Pixels:
        """The data that the likelihood scores."""
        return self.likelihood.pixels

    def encode(self, x: Tensor) -> TorchDistribution:
        """The posterior q(z | x) at each image: batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        return self.posterior(x)

    def decode(self, z: Tensor) -> TorchDistribution:
        """The likelihood p(x | z) at each code of `z`, shape `(..., latent_dim)`: batch_shape `(...)`."""
        params = self.decoder(z.flatten(0, -2))
        return self.likelihood(params.unflatten(0, z.shape[:-1]))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Images of `n` codes from the prior: the means of p(x | z), shape `(n, *data_shape)`."""
        return self.decode(self.prior().sample(torch.Size([n]))).mean

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Images of a draw z from q(z | x) for each image: the means of p(x | z), shape `(N, *data_shape)`."""
        return self.decode(self.encode(x).sample()).mean
