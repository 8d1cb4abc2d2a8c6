"""Posteriors q(z | x): modules whose forward maps encoder outputs to a distribution of codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.distributions import (
    FlowDistribution,
    FlowName,
    NormalizingFlow,
    PreciseLowRankNormal,
    make_flow,
)
from pyro_vae.errors import RequestError


class Posterior(nn.Module, ABC):
    """The approximate posterior q(z | x): the distribution of a code, given the encoder's outputs.

    To write your own, subclass it, declare `num_params` and write `forward`::

        class Uniform(Posterior):
            num_params = 2

            def forward(self, params):
                low, log_width = params.unbind(-2)
                return dist.Uniform(low, low + log_width.exp()).to_event(1)

    A constructor parameter named `latent_dim` is filled in by the command line.

    Attributes:
        num_params: Encoder outputs per latent dimension.
    """

    num_params: int = 2

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution:
        """The distribution: batch_shape `(N,)`, event_shape `(latent_dim,)`.

        Arguments:
            params: The encoder's outputs, shape `(N, num_params, latent_dim)`. SemiSupervisedVAE
                passes a further leading dimension; index from the end to support it.
        """


class DiagonalNormal(Posterior):
    r"""A Gaussian with independent dimensions.

    .. math:: q(z \mid x) = \mathcal{N}(z; \mu(x), \operatorname{diag} \sigma^2(x))

    The encoder outputs :math:`\mu` and :math:`\log \sigma`.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Arguments:
        log_scale_limits: Smallest and largest logarithm of the standard deviation; values beyond
            them are clipped. None does not clip.

    Raises:
        ValueError: If the limits are not in increasing order.

    Example:
        >>> q = DiagonalNormal()(torch.zeros(8, 2, 20))
        >>> q.batch_shape, q.event_shape
        (torch.Size([8]), torch.Size([20]))
    """

    num_params = 2

    def __init__(self, log_scale_limits: tuple[float, float] | None = None) -> None:
        super().__init__()
        if log_scale_limits is not None and not log_scale_limits[0] < log_scale_limits[1]:
            raise RequestError(
                f"log_scale_limits must be two increasing numbers, but is {log_scale_limits}"
            )
        self.log_scale_limits = log_scale_limits

    def forward(self, params: Tensor) -> TorchDistribution:
        loc, log_scale = params.unbind(-2)
        if self.log_scale_limits is not None:
            log_scale = log_scale.clamp(*self.log_scale_limits)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class LowRankNormal(Posterior):
    r"""A Gaussian with a diagonal plus low-rank covariance.

    .. math:: q(z \mid x) = \mathcal{N}(z; \mu, S (I + W W^\top) S)

    The encoder outputs :math:`\mu`, the logarithm of the diagonal of S, and the columns of W.

    Arguments:
        latent_dim: Number of latent dimensions.
        rank: Number of columns of W.

    Raises:
        ValueError: If `rank` is not between 1 and `latent_dim`.
    """

    def __init__(self, latent_dim: int, rank: int = 1) -> None:
        super().__init__()
        if not 1 <= rank <= latent_dim:
            raise RequestError(f"rank={rank} must be between 1 and latent_dim={latent_dim}")
        self.num_params = 2 + rank

    def forward(self, params: Tensor) -> TorchDistribution:
        loc, log_scale, *columns = params.unbind(-2)
        scale = log_scale.exp()
        factor = scale.unsqueeze(-1) * torch.stack(columns, -1)
        return PreciseLowRankNormal(loc, factor, scale.square())


class FullRankNormal(Posterior):
    r"""A Gaussian with a full covariance matrix.

    .. math:: q(z \mid x) = \mathcal{N}(z; \mu, L L^\top)

    The encoder outputs :math:`\mu` and a square matrix. The diagonal of the matrix is the logarithm
    of the diagonal of L. Its strict lower triangle, divided by `latent_dim`, is that of L relative
    to the diagonal in each row, so that training starts close to a diagonal Gaussian in any number
    of dimensions.

    Arguments:
        latent_dim: Number of latent dimensions.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params = 1 + latent_dim

    def forward(self, params: Tensor) -> TorchDistribution:
        loc = params[..., 0, :]
        square = params[..., 1:, :]
        scale = square.diagonal(dim1=-2, dim2=-1).exp().unsqueeze(-1)
        identity = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        unit = square.tril(-1) / loc.shape[-1] + identity
        return dist.MultivariateNormal(loc, scale_tril=scale * unit)


class FlowPosterior(Posterior):
    r"""A diagonal Gaussian transformed by a flow, an inverse autoregressive one by default.

    The flow is conditioned on features of the image: the encoder outputs :math:`\mu`,
    :math:`\log \sigma` and features h, and :math:`z = f_h(\mu + \sigma \epsilon)`. A sample and its
    density take one pass through the flow. The density of any other z takes one pass per dimension
    for "MAF" and "NSF", one pass for "coupling".

    One coupling is a posterior of two layers: with :math:`z_1` and :math:`z_2` every second
    dimension of z, it is :math:`q(z_2 \mid x) \, q(z_1 \mid x, z_2)`, two Gaussians. With the same
    coupling as the prior, `FlowPrior(latent_dim, "coupling", transforms=1)`, the VAE is the
    hierarchical one of Tomczak & Welling (2018), whose decoder reads both layers.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934
        | VAE with a VampPrior (Tomczak & Welling, 2018)
        | https://arxiv.org/abs/1705.07120

    Arguments:
        latent_dim: Number of latent dimensions.
        transforms: Number of transformations.
        hidden: Widths of the hidden layers of each transformation.
        flow: "MAF" (affine autoregressive), "NSF" (autoregressive splines) or "coupling" (affine
            coupling).

    Raises:
        ValueError: If `transforms` is not positive, `flow` is unknown, or a coupling flow has fewer
            than 2 dimensions.
    """

    num_params = 3

    def __init__(
        self,
        latent_dim: int,
        transforms: int = 2,
        hidden: Sequence[int] = (64,),
        flow: FlowName = "MAF",
    ) -> None:
        super().__init__()
        self.transform = make_flow(flow, latent_dim, latent_dim, transforms, hidden).transform.inv

    def forward(self, params: Tensor) -> TorchDistribution:
        loc, log_scale, features = params.unbind(-2)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        return FlowDistribution(NormalizingFlow(self.transform(features), base))
