"""Likelihoods p(x | z): modules whose forward maps decoder outputs to a distribution of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.distributions import (
    LEVELS,
    GreyLevels,
    LogisticBins,
    PreciseBeta,
    PreciseBinomial,
    RelaxedBernoulli,
    TruncatedExponential,
)
from pyro_vae.errors import check_choice, check_positive

Pixels = Literal["binary", "unit", "dequantized", "byte"]

Learned = Literal["no", "scalar", "pixel"]

# Channels, height and width.
IMAGE_DIMS = 3


class Likelihood(nn.Module, ABC):
    """The likelihood p(x | z): the distribution of an image, given the decoder's outputs.

    To write your own, subclass it, declare `num_params` and `pixels`, and write `forward`::

        class Laplace(Likelihood):
            num_params = 1
            pixels = "dequantized"

            def forward(self, params):
                return dist.Laplace(params.squeeze(-4), 0.1).to_event(3)

    A constructor parameter named `data_shape` is filled in by the command line.

    Attributes:
        num_params: Decoder outputs per pixel.
        pixels: The kind of data it scores: "binary" (0 or 1), "unit" (grey / 255), "dequantized"
            ((byte + u) / 256 with u uniform) or "byte" (0 to 255). Values in nats are comparable
            only within one kind.
        is_density: Whether it is normalized, so that its values are log-probabilities.
    """

    num_params: int = 1
    pixels: Pixels
    is_density: bool = True

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution:
        """The distribution, batch_shape `(...)` and event_shape `data_shape`.

        Arguments:
            params: The decoder's outputs, shape `(..., num_params, *data_shape)`; `data_shape` is
                (channels, height, width).
        """

    def unit(self, x: Tensor) -> Tensor:
        """Pixels as grey values in [0, 1], the input of the encoder."""
        if self.pixels == "byte":
            return x / (LEVELS - 1)
        return x

    def params_at(self, mean: Tensor) -> Tensor | None:
        """The decoder outputs for which the mean of p(x | z) is `mean`.

        Their shape is `(num_params, *data_shape)`. The decoder's last bias is initialized there
        (Burda et al., 2016). None, the default, leaves it unchanged.
        """
        return None


class Bernoulli(Likelihood):
    r"""Independent binary pixels.

    .. math:: p(x \mid z) = \prod_i \pi_i^{x_i} (1 - \pi_i)^{1 - x_i}

    With `relaxed`, grey pixels in [0, 1] are scored by the same formula, the cross-entropy of the
    classic examples. It is not normalized on the unit interval, so its values are comparable
    neither with those on binary pixels nor with those of a density. `ContinuousBernoulli` is the
    normalized version.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        | (Loaiza-Ganem & Cunningham, 2019)
        | https://arxiv.org/abs/1907.06845

    Arguments:
        relaxed: Score grey pixels by cross-entropy instead of rejecting them.

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
        self.is_density = not relaxed

    def forward(self, params: Tensor) -> TorchDistribution:
        family = RelaxedBernoulli if self.relaxed else dist.Bernoulli
        return family(logits=params.squeeze(-1 - IMAGE_DIMS)).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clamp(0.001, 0.999)).unsqueeze(0)


class LocationScale(Likelihood):
    """Independent pixels with a location from the decoder and a fixed or learned scale.

    Arguments:
        scale: Scale of a pixel (Gaussian standard deviation, Laplace b) in units of the full grey
            range; the initial value if it is learned.
        learned: "no" keeps the scale fixed; "scalar" learns one for all pixels; with "pixel" the
            decoder outputs one per pixel, as a factor on `scale` between exp(-10) and exp(10). A
            learned scale scores dequantized pixels, because its density is unbounded on discrete
            values.

    Raises:
        ValueError: If `scale` is not positive, or `learned` is unknown.
    """

    def __init__(self, scale: float = 1.0, learned: Learned = "no") -> None:
        super().__init__()
        check_positive(scale=scale)
        check_choice("learned", learned, Learned)
        self.num_params = 2 if learned == "pixel" else 1
        self.pixels = "unit" if learned == "no" else "dequantized"
        self.scale = scale
        self.log_factor: nn.Parameter | None = None
        if learned == "scalar":
            self.log_factor = nn.Parameter(torch.zeros(()))

    @abstractmethod
    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """The distribution of each pixel."""

    def forward(self, params: Tensor) -> TorchDistribution:
        loc, *log_factors = params.unbind(-1 - IMAGE_DIMS)
        if self.log_factor is not None:
            log_factors.append(self.log_factor)
        factor = sum(log_factors, loc.new_zeros(())).clamp(-10, 10).exp()
        return self.family(loc, self.scale * factor).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.stack([mean, torch.zeros_like(mean)][: self.num_params])


class Normal(LocationScale):
    r"""Independent Gaussian pixels.

    .. math:: p(x \mid z) = \mathcal{N}(x; \mu, \sigma^2 I)

    Up to a constant, its log-density is the squared error divided by :math:`-2 \sigma^2`, so that a
    fixed `scale` sets the weight of the reconstruction relative to the KL; the plain sum of squares
    is :math:`\sigma = \sqrt{1/2}`. With `learned="scalar"` it is the sigma-VAE.

    References:
        | Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021)
        | https://arxiv.org/abs/2006.13202
    """

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc, scale)


class Laplace(LocationScale):
    r"""Independent Laplace pixels, the absolute error.

    .. math:: p(x \mid z) = \prod_i \frac{1}{2b} e^{-|x_i - \mu_i| / b}
    """

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Laplace(loc, scale)


class ContinuousBernoulli(Likelihood):
    r"""Independent pixels in [0, 1] with the normalized Bernoulli formula as density.

    .. math:: p(x \mid z) \propto \pi^x (1 - \pi)^{1 - x}

    At pixels of exactly 0 or 1 the density is unbounded: it grows linearly in the logit.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        | (Loaiza-Ganem & Cunningham, 2019)
        | https://arxiv.org/abs/1907.06845
    """

    num_params = 1
    pixels = "unit"

    def forward(self, params: Tensor) -> TorchDistribution:
        return TruncatedExponential(params.squeeze(-1 - IMAGE_DIMS)).to_event(IMAGE_DIMS)


class Beta(Likelihood):
    r"""Independent pixels with Beta distributions.

    .. math:: x_i \sim \mathrm{Beta}(\mu_i \kappa_i, (1 - \mu_i) \kappa_i)

    The decoder outputs the logit of the mean :math:`\mu` and the logarithm of the concentration
    :math:`\kappa`. It scores dequantized pixels, because the density may be infinite at 0 and 1.
    """

    num_params = 2
    pixels = "dequantized"

    def forward(self, params: Tensor) -> TorchDistribution:
        logit, log_concentration = params.unbind(-1 - IMAGE_DIMS)
        # The limits keep alpha and beta positive in float32; the logit of 1 - mu is exact, whereas
        # 1 - mu is not.
        concentration = log_concentration.clamp(-10, 10).exp()
        alpha = concentration * logit.clamp(-15, 15).sigmoid()
        beta = concentration * (-logit).clamp(-15, 15).sigmoid()
        return PreciseBeta(alpha, beta).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.stack([torch.logit(mean.clamp(0.01, 0.99)), torch.zeros_like(mean)])


class Binomial(Likelihood):
    r"""Independent grey levels 0 to 255 with Binomial distributions.

    .. math:: x_i \sim \mathrm{Binomial}(255, \pi_i)
    """

    num_params = 1
    pixels = "byte"

    def forward(self, params: Tensor) -> TorchDistribution:
        logits = params.squeeze(-1 - IMAGE_DIMS)
        return PreciseBinomial(LEVELS - 1, logits=logits).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.logit((mean / (LEVELS - 1)).clamp(0.001, 0.999)).unsqueeze(0)


class Categorical(Likelihood):
    """Independent grey levels 0 to 255 with 256 free probabilities per pixel."""

    num_params = LEVELS
    pixels = "byte"

    def forward(self, params: Tensor) -> TorchDistribution:
        return GreyLevels(logits=params.movedim(-1 - IMAGE_DIMS, -1)).to_event(IMAGE_DIMS)


class DiscretizedLogistic(Likelihood):
    """Independent grey levels 0 to 255: logistic distributions integrated over each level's bin.

    It is a mixture of `components` of them. The bins of 0 and 255 extend to minus and plus
    infinity, so that the probabilities sum to 1. For each component the decoder outputs a location
    and a log-scale, in units of the full grey range, and, with several components, the logit of its
    weight.

    References:
        | PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood
        | (Salimans et al., 2017)
        | https://arxiv.org/abs/1701.05517

    Arguments:
        components: Number of components of the mixture.

    Raises:
        ValueError: If `components` is not positive.
    """

    pixels = "byte"

    def __init__(self, components: int = 1) -> None:
        super().__init__()
        check_positive(components=components)
        self.components = components
        self.num_params = 3 * components
        if components == 1:
            self.num_params = 2  # a single component has no weight

    def forward(self, params: Tensor) -> TorchDistribution:
        last = params.movedim(-1 - IMAGE_DIMS, -1).unflatten(-1, (-1, self.components))
        if self.components == 1:
            loc, log_scale = last.unbind(-2)
            logits = torch.zeros_like(loc)
        else:
            loc, log_scale, logits = last.unbind(-2)
        weights = dist.Categorical(logits=logits)
        return dist.MixtureSameFamily(weights, LogisticBins(loc, log_scale)).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        loc = (mean / (LEVELS - 1)).expand(self.components, *mean.shape)
        if self.components > 1:
            spread = torch.linspace(-0.1, 0.1, self.components, device=mean.device)
            loc = loc + spread[:, None, None, None]
        params = torch.cat([loc, torch.full_like(loc, -2.0), torch.zeros_like(loc)])
        return params[: self.num_params]
