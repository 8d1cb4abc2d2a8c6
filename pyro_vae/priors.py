"""Priors p(z): a module whose forward gives a distribution over codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.distributions import FlowDistribution, FlowName, UniformMixture, make_flow
from pyro_vae.errors import RequestError, check_choice, check_positive
from pyro_vae.likelihoods import IMAGE_DIMS

Start = Literal["noise", "data"]


class Prior(nn.Module, ABC):
    """The prior p(z): the distribution of a code before its image is seen.

    To write your own, subclass it and write `forward`::

        class Cauchy(Prior):
            def __init__(self, latent_dim: int) -> None:
                super().__init__()
                self.register_buffer("loc", torch.zeros(latent_dim))

            def forward(self):
                return dist.Cauchy(self.loc, 1.0).to_event(1)

    Constructor parameters named `latent_dim`, `data_shape`, `encoder` and `posterior` are filled in
    by the command line.
    """

    @abstractmethod
    def forward(self) -> TorchDistribution:
        """The distribution: batch_shape `()`, event_shape `(latent_dim,)`."""

    def initialize(self, x: Tensor) -> None:
        """Initialize from training data `x`, as the encoder reads them; called before training.

        Does nothing by default. Parameters that require no gradient must be left as they are.
        """


class StandardNormal(Prior):
    r"""The standard Gaussian.

    .. math:: p(z) = \mathcal{N}(z; 0, I)

    Arguments:
        latent_dim: Number of latent dimensions.

    Example:
        >>> StandardNormal(20)().event_shape
        torch.Size([20])
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Buffer(torch.zeros(latent_dim), persistent=False)
        self.scale = nn.Buffer(torch.ones(latent_dim), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.loc, self.scale).to_event(1)


class Normal(Prior):
    r"""A Gaussian with learned mean and standard deviation.

    .. math:: p(z) = \mathcal{N}(z; \mu, \operatorname{diag} \sigma^2)

    Arguments:
        latent_dim: Number of latent dimensions.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class Laplace(Prior):
    r"""Independent Laplace dimensions with variance 1.

    .. math:: p(z) = \prod_d \frac{1}{2b} e^{-|z_d| / b}, \qquad b = \sqrt{1/2}

    Arguments:
        latent_dim: Number of latent dimensions.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Buffer(torch.zeros(latent_dim), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.Laplace(self.loc, 0.5**0.5).to_event(1)


class StudentT(Prior):
    """Independent dimensions with Student's t distribution of scale 1.

    It has heavier tails than a Gaussian.

    Arguments:
        latent_dim: Number of latent dimensions.
        df: Degrees of freedom; larger values are closer to a Gaussian.

    Raises:
        ValueError: If `df` is not positive.
    """

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__()
        check_positive(df=df)
        self.df = nn.Buffer(torch.full((latent_dim,), float(df)), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.StudentT(self.df).to_event(1)


class GaussianMixture(Prior):
    r"""A mixture of learned Gaussians.

    .. math:: p(z) = \sum_k \pi_k \, \mathcal{N}(z; \mu_k, \operatorname{diag} \sigma_k^2)

    The means are initialized with draws from the standard Gaussian.

    Arguments:
        latent_dim: Number of latent dimensions.
        components: Number of components.

    Raises:
        ValueError: If `components` is not positive.
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__()
        check_positive(components=components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self) -> TorchDistribution:
        parts = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)


class VampPrior(Prior):
    r"""The posterior averaged over learned pseudo-inputs.

    .. math:: p(z) = \frac{1}{K} \sum_k q(z \mid u_k)

    It shares the encoder and the posterior, of any family, with the guide. A FlowPosterior
    evaluates a given z in one pass per dimension and component: use few components with it. The
    pseudo-inputs of images are clamped to [0, 1], their range.

    References:
        | VAE with a VampPrior (Tomczak & Welling, 2018)
        | https://arxiv.org/abs/1705.07120

    Arguments:
        encoder: The guide's encoder.
        posterior: The guide's posterior.
        data_shape: Shape of an image.
        components: Number of pseudo-inputs.
        start: Initial pseudo-inputs: "noise", as in the paper, Gaussian with mean 0.05 and standard
            deviation 0.01 on grey values in [0, 1], or "data", random training images.

    Raises:
        ValueError: If `components` is not positive or exceeds the number of training images, or
            `start` is unknown.
    """

    def __init__(
        self,
        encoder: nn.Module,
        posterior: nn.Module,
        data_shape: tuple[int, ...],
        components: int = 500,
        start: Start = "noise",
    ) -> None:
        super().__init__()
        check_positive(components=components)
        check_choice("start", start, Start)
        self.encoder = encoder
        self.posterior = posterior
        self.start = start
        self.inputs = nn.Parameter(0.05 + 0.01 * torch.randn(components, *data_shape))

    def forward(self) -> TorchDistribution:
        inputs: Tensor = self.inputs
        if inputs.ndim == 1 + IMAGE_DIMS:
            inputs = inputs.clamp(0, 1)
        return UniformMixture(self.posterior, self.encoder(inputs))

    def initialize(self, x: Tensor) -> None:
        if self.start != "data" or not self.inputs.requires_grad:
            return
        if len(self.inputs) > len(x):
            raise RequestError(
                f"components={len(self.inputs)} exceeds the {len(x)} training images; use fewer"
                " components"
            )
        chosen = torch.randperm(len(x), device=x.device)[: len(self.inputs)]
        self.inputs.data.copy_(x[chosen])


class FlowPrior(Prior):
    r"""A learned normalizing flow.

    .. math:: p(z) = \mathcal{N}(f(z); 0, I) \, |\det \partial f / \partial z|

    The density takes one pass through the flow. A sample takes one pass for "coupling", one per
    dimension for "MAF" and "NSF".

    One coupling is a prior of two layers: with :math:`z_1` and :math:`z_2` every second dimension
    of z, it is :math:`p(z_2) \, p(z_1 \mid z_2)`, a standard normal and a Gaussian whose mean and
    scale are a network's. With the same coupling in the posterior the VAE is the hierarchical one
    of Tomczak & Welling (2018), see `FlowPosterior`.

    References:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
        | Density estimation using Real NVP (Dinh et al., 2017)
        | https://arxiv.org/abs/1605.08803

    Arguments:
        latent_dim: Number of latent dimensions.
        flow: "MAF" (affine autoregressive), "NSF" (autoregressive splines) or "coupling" (affine
            coupling).
        transforms: Number of transformations.
        hidden: Widths of the hidden layers of each transformation.

    Raises:
        ValueError: If `transforms` is not positive, `flow` is unknown, or a coupling flow has fewer
            than 2 dimensions.
    """

    def __init__(
        self,
        latent_dim: int,
        flow: FlowName = "MAF",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        self.flow = make_flow(flow, latent_dim, 0, transforms, hidden)

    def forward(self) -> TorchDistribution:
        return FlowDistribution(self.flow())
