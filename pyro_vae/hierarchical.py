"""A VAE of two stochastic layers: another pair of Pyro programs behind the same methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import MLP, batched
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior
from pyro_vae.vae import Model


class HierarchicalVAE(Model):
    r"""Two stochastic layers, each a Gaussian given the one above.

    .. math:: p(z_2) \, p(z_1 \mid z_2) \, p(x \mid z_1) \quad \text{with the guide} \quad q(z_1 \mid x) \, q(z_2 \mid z_1)

    The code of an image is :math:`z_1`, of `latent_dim` dimensions, which encoder and decoder see; the prior is over
    :math:`z_2`. Burda et al. (2016) take 100 and 50 dimensions, and tanh layers of 100 between them.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        prior: The distribution p(z_2), over `prior_dim` dimensions.
        posterior: The distribution q(z_1 | x), with its encoder.
        decoder: Network from codes z_1, `(N, latent_dim)`, to the likelihood's parameters, `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z_1).
        latent_dim: Number of dimensions of z_1.
        prior_dim: Number of dimensions of z_2.
        hidden: Widths of the layers between z_1 and z_2, upwards.
        activation: Constructor of their activation.

    Raises:
        ValueError: If the prior does not have `prior_dim` dimensions.

    Example:
        >>> from pyro_vae import Bernoulli, DiagonalNormal, StandardNormal
        >>> posterior, decoder = DiagonalNormal(MLP((1, 8, 8), (2, 10))), MLP((10,), (1, 1, 8, 8))
        >>> vae = HierarchicalVAE(StandardNormal(5), posterior, decoder, Bernoulli(), latent_dim=10, prior_dim=5)
        >>> vae.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        prior: Prior,
        posterior: Posterior,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        prior_dim: int = 50,
        hidden: Sequence[int] = (100, 100),
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__(posterior, decoder, likelihood)
        if prior_dim < 1:
            raise ValueError(f"prior_dim must be positive, but is {prior_dim}")
        if prior().event_shape != (prior_dim,):
            raise ValueError(f"the prior must have prior_dim = {prior_dim} dimensions, but has {prior().event_shape[0]}")
        self.prior, self._latent_dim = prior, latent_dim
        self.up = MLP((latent_dim,), (2, prior_dim), hidden, activation)
        self.down = MLP((prior_dim,), (2, latent_dim), tuple(reversed(hidden)), activation)

    def model(self, x: Tensor, beta: float | Tensor = 1.0) -> None:
        r"""The generative program, :math:`(p(z_2) \, p(z_1 \mid z_2))^\beta \, p(x \mid z_1)`."""
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z2 = pyro.sample("z2", self.prior())
                z1 = pyro.sample("z1", _normal(self.down, z2))
            pyro.sample("x", self.decode(z1), obs=x)

    def guide(self, x: Tensor, beta: float | Tensor = 1.0) -> None:
        r"""The inference program, :math:`(q(z_1 \mid x) \, q(z_2 \mid z_1))^\beta`."""
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            z1 = pyro.sample("z1", self.encode(x))
            pyro.sample("z2", _normal(self.up, z1))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        z2 = self.prior().sample(torch.Size([n]))
        return self.decode(_normal(self.down, z2).sample()).mean

    @property
    def latent_dim(self) -> int:
        return self._latent_dim

    def initialize(self, x: Tensor) -> None:
        super().initialize(x)
        self.prior.initialize(self.likelihood.unit(x))


def _normal(network: nn.Module, z: Tensor) -> TorchDistribution:
    loc, log_scale = batched(network, z).unbind(-2)
    return dist.Normal(loc, log_scale.exp()).to_event(1)
