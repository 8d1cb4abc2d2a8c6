"""Likelihoods p(x | z): a module whose forward turns the decoder's outputs into a distribution over images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

Pixels = Literal["binary", "unit", "dequantized", "byte"]

IMAGE_DIMS = 3


class Likelihood(nn.Module, ABC):
    """The likelihood p(x | z): the distribution of an image, given the decoder's outputs at its code.

    To write your own, subclass it, declare `num_params` and `pixels`, and write `forward`:

        class Laplace(Likelihood):
            num_params = 1
            pixels = "dequantized"

            def forward(self, params):
                return dist.Laplace(params.squeeze(-4), 0.1).to_event(3)

    Attributes:
        num_params: Decoder outputs per pixel.
        pixels: The data it scores: "binary" (0 or 1), "unit" (grey / 255), "dequantized" ((byte + u) / 256, u uniform) or
            "byte" (0 to 255). Nats are comparable only within one kind.
    """

    num_params: int = 1
    pixels: Pixels

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution:
        """The distribution, batch_shape `(...)` and event_shape `data_shape`.

        Arguments:
            params: The decoder's outputs, shape `(..., num_params, *data_shape)`; `data_shape` is (channels, height, width).
        """

    def params_at(self, mean: Tensor) -> Tensor | None:
        """The decoder's outputs, shape `(num_params, *data_shape)`, at which every image is the `mean` of the data.

        The decoder's last bias starts there (Burda et al., 2016). None, the default, leaves it as it was.
        """
        return None


class Bernoulli(Likelihood):
    r"""Independent binary pixels, :math:`p(x \mid z) = \prod_i \pi_i^{x_i} (1 - \pi_i)^{1 - x_i}`.

    With `relaxed`, grey pixels in [0, 1] are scored by the same formula, the cross-entropy of the classic examples. That
    is no density: over the unit interval it does not integrate to 1, so its values in nats are comparable neither with
    those on binary pixels nor with any density's. Loaiza-Ganem & Cunningham (2019) say what it costs, and how the
    ContinuousBernoulli mends it.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem & Cunningham, 2019)
        | https://arxiv.org/abs/1907.06845

    Arguments:
        relaxed: Score grey pixels by cross-entropy, instead of refusing them.

    Example:
        >>> likelihood = Bernoulli()
        >>> likelihood(torch.zeros(8, 1, 1, 28, 28)).log_prob(torch.ones(8, 1, 28, 28)).shape
        torch.Size([8])
    """

    num_params = 1

    def __init__(self, relaxed: bool = False) -> None:
        super().__init__()
        self.relaxed = relaxed
        self.pixels = "unit" if relaxed else "binary"

    def forward(self, params: Tensor) -> TorchDistribution:
        family = RelaxedBernoulli if self.relaxed else dist.Bernoulli
        return family(logits=params.squeeze(-1 - IMAGE_DIMS)).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clamp(0.001, 0.999)).unsqueeze(0)


class RelaxedBernoulli(dist.Bernoulli):
    """A Bernoulli whose `log_prob` takes any value in [0, 1]: a cross-entropy, and no density there."""

    support = torch.distributions.constraints.unit_interval


class Normal(Likelihood):
    r"""Independent Gaussian pixels of one fixed scale, :math:`p(x \mid z) = \mathcal{N}(x; \mu, \sigma^2 I)`.

    Up to a constant, its log-density is the squared error divided by :math:`-2 \sigma^2`: `scale` sets the balance of
    reconstruction and KL that implementations with a squared error leave implicit; the bare sum of squares is
    :math:`\sigma = \sqrt{1/2}`.

    Arguments:
        scale: Standard deviation of a pixel, in units of the full grey range.

    Raises:
        ValueError: If `scale` is not positive.
    """

    num_params = 1
    pixels = "unit"

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be positive, but is {scale}")
        self.scale = scale

    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Normal(params.squeeze(-1 - IMAGE_DIMS), self.scale).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return mean.unsqueeze(0)
