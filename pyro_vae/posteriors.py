"""Approximate posteriors q(z | x): an encoder, and a distribution on its outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.flows import MAF, FlowDistribution, NormalizingFlow


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


class LowRankNormal(Posterior):
    r"""A Gaussian of diagonal plus low-rank covariance, :math:`\mathcal{N}(z; \mu, S (I + W W^\top) S)`.

    The encoder gives :math:`\mu`, the logarithm of the diagonal of S, and the columns of W, which S scales too.

    Arguments:
        encoder: Network from images to `(N, 2 + rank, latent_dim)`.
        latent_dim: Number of latent dimensions.
        rank: Number of columns of W.

    Raises:
        ValueError: If `rank` is not 1 to `latent_dim`.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int, rank: int = 1) -> None:
        super().__init__(encoder)
        if not 1 <= rank <= latent_dim:
            raise ValueError(f"rank must be 1 to {latent_dim}, the number of latent dimensions, but is {rank}")
        self.num_params = 2 + rank

    def distribution(self, params: Tensor) -> TorchDistribution:
        loc, log_scale, *columns = params.unbind(-2)
        scale = log_scale.exp()
        return dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * torch.stack(columns, -1), scale.square())


class FullRankNormal(Posterior):
    r"""A Gaussian of any covariance, :math:`\mathcal{N}(z; \mu, L L^\top)`.

    The encoder gives :math:`\mu` and a square matrix: its diagonal is the logarithm of L's, and its strict lower triangle,
    divided by `latent_dim`, is that of L, each row relative to L's diagonal: however many dimensions, training starts near a
    diagonal Gaussian.

    Arguments:
        encoder: Network from images to `(N, 1 + latent_dim, latent_dim)`.
        latent_dim: Number of latent dimensions.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__(encoder)
        self.num_params = 1 + latent_dim

    def distribution(self, params: Tensor) -> TorchDistribution:
        loc, square = params[..., 0, :], params[..., 1:, :]
        scale = square.diagonal(dim1=-2, dim2=-1).exp().unsqueeze(-1)
        unit = square.tril(-1) / loc.shape[-1] + torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        return dist.MultivariateNormal(loc, scale_tril=scale * unit)


class FlowPosterior(Posterior):
    r"""A Gaussian pushed through an inverse autoregressive flow that sees the encoder's features.

    The encoder gives :math:`\mu`, :math:`\log \sigma` and features h: :math:`z = f_h(\mu + \sigma \epsilon)`. A draw,
    and the density of that draw, cost one pass; the density at any other z one pass a dimension.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934

    Arguments:
        encoder: Network from images to `(N, 3, latent_dim)`.
        latent_dim: Number of latent dimensions.
        transforms: Number of transformations.
        hidden: Widths of the hidden layers of each.

    Raises:
        ValueError: If there are no transformations.
    """

    num_params = 3

    def __init__(self, encoder: nn.Module, latent_dim: int, transforms: int = 2, hidden: Sequence[int] = (64,)) -> None:
        super().__init__(encoder)
        if transforms < 1:
            raise ValueError(f"transforms must be positive, but is {transforms}")
        autoregressive = MAF(latent_dim, context=latent_dim, transforms=transforms, hidden_features=hidden)
        self.transform = autoregressive.transform.inv

    def distribution(self, params: Tensor) -> TorchDistribution:
        loc, log_scale, features = params.unbind(-2)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        return FlowDistribution(NormalizingFlow(self.transform(features), base))
