"""Priors p(z): a module whose forward gives a distribution over codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import log, prod
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.flows import MAF, NSF, Flow, FlowDistribution, RealNVP
from pyro_vae.networks import Shape
from pyro_vae.posteriors import Posterior


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

    def initialize(self, x: Tensor) -> None:
        """Start from training images `x`, as grey values from 0 to 1; called once before training. Most have nothing to do."""


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


class Normal(Prior):
    r"""A Gaussian with learned means and scales, :math:`\mathcal{N}(z; \mu, \operatorname{diag} \sigma^2)`.

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
    r"""Independent Laplace dimensions of variance 1, :math:`\prod_d \frac{1}{2b} e^{-|z_d| / b}` with :math:`b = \sqrt{1/2}`.

    Arguments:
        latent_dim: Number of latent dimensions.
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.Laplace(self.loc, 0.5**0.5).to_event(1)


class StudentT(Prior):
    """Independent dimensions of Student's t distribution, of scale 1: tails that let a code go far.

    Arguments:
        latent_dim: Number of latent dimensions.
        df: Degrees of freedom; more are closer to a Gaussian.

    Raises:
        ValueError: If `df` is not positive.
    """

    df: Tensor

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__()
        if not 0 < df < float("inf"):
            raise ValueError(f"df must be positive, but is {df}; for infinitely many use StandardNormal")
        self.register_buffer("df", torch.full((latent_dim,), float(df)), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.StudentT(self.df).to_event(1)


class GaussianMixture(Prior):
    r"""A mixture of learned Gaussians, :math:`\sum_k \pi_k \, \mathcal{N}(z; \mu_k, \operatorname{diag} \sigma_k^2)`.

    The means start as draws from the standard Gaussian.

    Arguments:
        latent_dim: Number of latent dimensions.
        components: Number of components.

    Raises:
        ValueError: If there are no components.
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__()
        _check_components(components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self) -> TorchDistribution:
        parts = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)


class VampPrior(Prior):
    r"""The posterior averaged over learned pseudo-inputs, :math:`p(z) = \frac{1}{K} \sum_k q(z \mid u_k)`.

    It shares the posterior, of any family, with the guide: what moves the encoder moves the prior. A FlowPosterior scores a
    given z in one pass a dimension, and here for every component: that is slow, so take few. The pseudo-inputs stay
    within the range of the pixels.

    References:
        | VAE with a VampPrior (Tomczak & Welling, 2018)
        | https://arxiv.org/abs/1705.07120

    Arguments:
        posterior: The guide's posterior.
        data_shape: Shape of an image.
        components: Number of pseudo-inputs.
        start: Where the pseudo-inputs start: "noise", as in the paper, Gaussian with mean 0.05 and standard deviation 0.01
            on grey values from 0 to 1, or "data", random training images.

    Raises:
        ValueError: If there are no components, or more than images.
    """

    def __init__(
        self,
        posterior: Posterior,
        data_shape: Shape,
        components: int = 500,
        start: Literal["noise", "data"] = "noise",
    ) -> None:
        super().__init__()
        _check_components(components)
        self.posterior, self.start = posterior, start
        self.inputs = nn.Parameter(0.05 + 0.01 * torch.randn(components, *data_shape))

    def forward(self) -> TorchDistribution:
        return Mixture(self.posterior, self.inputs.clamp(0, 1))

    def initialize(self, x: Tensor) -> None:
        if len(self.inputs) > len(x):
            raise ValueError(f"components must be at most {len(x)}, the number of training images, but is {len(self.inputs)}")
        if self.start == "data":
            self.inputs.data = x[torch.randperm(len(x), device=x.device)[: len(self.inputs)]]


class Mixture(TorchDistribution):
    r"""The mixture :math:`\frac{1}{K} \sum_k q(z \mid u_k)` of a posterior at K inputs; a draw needs only its own.

    Arguments:
        posterior: From inputs, shape `(n, *data_shape)`, to distributions, batch_shape `(n,)`.
        inputs: The K inputs.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real_vector
    has_rsample = False

    def __init__(self, posterior: Callable[[Tensor], TorchDistribution], inputs: Tensor) -> None:
        self.posterior, self.inputs, self.parts = posterior, inputs, posterior(inputs)
        super().__init__(torch.Size(), self.parts.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.parts.log_prob(value.unsqueeze(-2)).logsumexp(-1) - log(len(self.inputs))

    @torch.no_grad()
    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        chosen = torch.randint(len(self.inputs), (prod(sample_shape),), device=self.inputs.device)
        return self.posterior(self.inputs[chosen]).sample().reshape(*sample_shape, -1)


class FlowPrior(Prior):
    r"""A normalizing flow, :math:`p(z) = \mathcal{N}(f(z); 0, I) \, |\det \partial f / \partial z|`, with f learned.

    The autoregressive flows (MAF, NSF) score in one pass and sample in one pass a dimension; coupling needs one for either.

    References:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
        | Density estimation using Real NVP (Dinh et al., 2017)
        | https://arxiv.org/abs/1605.08803

    Arguments:
        latent_dim: Number of latent dimensions.
        flow: "MAF" (affine autoregressive), "NSF" (autoregressive splines) or "coupling" (affine coupling).
        transforms: Number of transformations.
        hidden: Widths of the hidden layers of each.

    Raises:
        ValueError: If there are no transformations, or one dimension is to be coupled.
    """

    def __init__(
        self,
        latent_dim: int,
        flow: Literal["MAF", "NSF", "coupling"] = "MAF",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if transforms < 1:
            raise ValueError(f"transforms must be positive, but is {transforms}")
        if flow == "coupling" and latent_dim < 2:
            raise ValueError("coupling needs at least 2 latent dimensions: use flow MAF or NSF")
        self.flow = FLOWS[flow](latent_dim, transforms=transforms, hidden_features=hidden)

    def forward(self) -> TorchDistribution:
        return FlowDistribution(self.flow())


FLOWS: dict[str, Callable[..., Flow]] = {"MAF": MAF, "NSF": NSF, "coupling": RealNVP}


def _check_components(components: int) -> None:
    if components < 1:
        raise ValueError(f"components must be positive, but is {components}")
