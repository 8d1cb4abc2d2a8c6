"""Likelihoods p(x | z): a module whose forward turns the decoder's outputs into a distribution over images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_vae.networks import Shape

Pixels = Literal["binary", "unit", "dequantized", "byte"]

Learned = Literal["no", "scalar", "pixel"]

IMAGE_DIMS = 3
LEVELS = 256


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
        is_density: Whether it integrates to 1, so that its logarithms are log-probabilities.
    """

    num_params: int = 1
    pixels: Pixels
    is_density: bool = True

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution:
        """The distribution, batch_shape `(...)` and event_shape `data_shape`.

        Arguments:
            params: The decoder's outputs, shape `(..., num_params, *data_shape)`; `data_shape` is (channels, height, width).
        """

    def unit(self, x: Tensor) -> Tensor:
        """Pixels as grey values from 0 to 1: what an encoder reads and a person sees."""
        return x / (LEVELS - 1) if self.pixels == "byte" else x

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
        self.is_density = not relaxed

    def forward(self, params: Tensor) -> TorchDistribution:
        family = RelaxedBernoulli if self.relaxed else dist.Bernoulli
        return family(logits=params.squeeze(-1 - IMAGE_DIMS)).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clamp(0.001, 0.999)).unsqueeze(0)


class RelaxedBernoulli(dist.Bernoulli):
    """A Bernoulli whose `log_prob` takes any value in [0, 1]: a cross-entropy, and no density there."""

    support = torch.distributions.constraints.unit_interval


class LocationScale(Likelihood):
    """Independent pixels with a location from the decoder, and a scale that is fixed or learned.

    Arguments:
        scale: Scale of a pixel (a Gaussian's standard deviation, a Laplace distribution's b), in units of the full grey range;
            where it is learned, where it starts.
        learned: "no" keeps the scale; "scalar" learns one for all pixels; "pixel" has the decoder give one for each pixel, as
            a factor on `scale` between exp(-10) and exp(10). A learned scale scores dequantized pixels, for on 8-bit values its
            density has no bound.

    Raises:
        ValueError: If `scale` is not positive.
    """

    def __init__(self, scale: float = 1.0, learned: Learned = "no") -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be positive, but is {scale}")
        self.num_params = 2 if learned == "pixel" else 1
        self.pixels = "unit" if learned == "no" else "dequantized"
        self.scale = scale
        self.log_factor = nn.Parameter(torch.zeros(())) if learned == "scalar" else None

    @abstractmethod
    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """The distribution of one pixel."""

    def forward(self, params: Tensor) -> TorchDistribution:
        loc, *log_factors = params.unbind(-1 - IMAGE_DIMS)
        factor = sum([*log_factors, *self.parameters()], loc.new_zeros(())).clamp(-10, 10).exp()
        return self.family(loc, self.scale * factor).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.stack([mean, torch.zeros_like(mean)][: self.num_params])


class Normal(LocationScale):
    r"""Independent Gaussian pixels, :math:`p(x \mid z) = \mathcal{N}(x; \mu, \sigma^2 I)`.

    Up to a constant, its log-density is the squared error divided by :math:`-2 \sigma^2`: a fixed `scale` sets the balance of
    reconstruction and KL that implementations with a squared error leave implicit; the bare sum of squares is
    :math:`\sigma = \sqrt{1/2}`. With `learned="scalar"` it is the sigma-VAE.

    References:
        | Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021)
        | https://arxiv.org/abs/2006.13202
    """

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc, scale)


class Laplace(LocationScale):
    r"""Independent Laplace pixels, :math:`p(x \mid z) = \prod_i \frac{1}{2b} e^{-|x_i - \mu_i| / b}`: the absolute error."""

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Laplace(loc, scale)


class ContinuousBernoulli(Likelihood):
    r"""Independent pixels in [0, 1] whose density is the Bernoulli's formula, normalized.

    .. math:: p(x \mid z) \propto \pi^x (1 - \pi)^{1 - x}

    At pixels that are exactly 0 or 1 the density grows with the logit, like its size: without bound, if slowly.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem & Cunningham, 2019)
        | https://arxiv.org/abs/1907.06845
    """

    num_params = 1
    pixels = "unit"

    def forward(self, params: Tensor) -> TorchDistribution:
        return TruncatedExponential(params.squeeze(-1 - IMAGE_DIMS)).to_event(IMAGE_DIMS)


class TruncatedExponential(TorchDistribution):
    r"""The continuous Bernoulli by its natural parameter, :math:`p(x) = e^{\eta (x - 1/2) - L(|\eta|)}` on [0, 1].

    Its normalizer :math:`L(s) = s / 2 + \log((1 - e^{-s}) / s)` overflows and cancels at no logit; below s = 1e-3 its series
    :math:`s^2 / 24` is used, for the mean and the draws likewise.

    Arguments:
        logits: The natural parameter, the logit of :math:`\pi`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": dist.constraints.real}
    support = dist.constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._small = logits.abs() < 1e-3
        self._size = logits.abs().masked_fill(self._small, 1.0)
        super().__init__(logits.shape)

    def expand(self, batch_shape: Shape | list[int], _instance: None = None) -> TruncatedExponential:
        return TruncatedExponential(self.logits.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        exact = self._size / 2 + torch.log(-torch.expm1(-self._size) / self._size)
        return self.logits * (value - 0.5) - torch.where(self._small, self.logits.square() / 24, exact)

    @property
    def mean(self) -> Tensor:
        exact = self.logits.sign() * (0.5 + 1 / torch.expm1(self._size) - 1 / self._size)
        return 0.5 + torch.where(self._small, self.logits / 12, exact)

    def rsample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        """By the inverse of the distribution function of |eta|, mirrored for negative eta."""
        u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.logits.dtype, device=self.logits.device)
        exact = 1 + torch.log(u + (1 - u) * torch.exp(-self._size)) / self._size
        x = torch.where(self._small, u + self.logits.abs() * u * (1 - u) / 2, exact).clamp(0, 1)
        return torch.where(self.logits < 0, 1 - x, x)


class Beta(Likelihood):
    r"""Independent pixels, each :math:`\mathrm{Beta}(\mu \kappa, (1 - \mu) \kappa)` with mean :math:`\mu`.

    The decoder gives the logit of :math:`\mu` and the logarithm of the concentration :math:`\kappa`. It scores
    dequantized pixels, for at 0 and 1 it may be infinite.
    """

    num_params = 2
    pixels = "dequantized"

    def forward(self, params: Tensor) -> TorchDistribution:
        logit, log_concentration = params.unbind(-1 - IMAGE_DIMS)
        size = log_concentration.clamp(-10, 10).exp()
        alpha, beta = (size * side.clamp(-15, 15).sigmoid() for side in (logit, -logit))
        return dist.Beta(alpha, beta).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.stack([torch.logit(mean.clamp(0.01, 0.99)), torch.zeros_like(mean)])


class Binomial(Likelihood):
    r"""Independent grey levels 0 to 255, each :math:`\mathrm{Binomial}(255, \pi)`."""

    num_params = 1
    pixels = "byte"

    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Binomial(LEVELS - 1, logits=params.squeeze(-1 - IMAGE_DIMS)).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.logit((mean / (LEVELS - 1)).clamp(0.001, 0.999)).unsqueeze(0)


class Categorical(Likelihood):
    """Independent grey levels 0 to 255, each with a probability of its own: 256 decoder outputs a pixel."""

    num_params = LEVELS
    pixels = "byte"

    def forward(self, params: Tensor) -> TorchDistribution:
        return GreyLevels(logits=params.movedim(-1 - IMAGE_DIMS, -1)).to_event(IMAGE_DIMS)


class GreyLevels(dist.Categorical):
    """A categorical distribution whose mean is that of its levels as numbers."""

    @property
    def mean(self) -> Tensor:
        return self.probs @ torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)


class DiscretizedLogistic(Likelihood):
    r"""Independent grey levels 0 to 255: a mixture of logistic distributions, each integrated over the level's bin.

    The bins of 0 and 255 reach to minus and plus infinity, so the probabilities sum to 1. For each component the decoder gives
    a location and a log-scale, in units of the full grey range, and where there are several a logit of its weight.

    References:
        | PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood (Salimans et al., 2017)
        | https://arxiv.org/abs/1701.05517

    Arguments:
        components: Number of components of the mixture.

    Raises:
        ValueError: If there are no components.
    """

    pixels = "byte"

    def __init__(self, components: int = 1) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be positive, but is {components}")
        self.num_params = 2 if components == 1 else 3 * components

    def forward(self, params: Tensor) -> TorchDistribution:
        roles = (min(self.num_params, 3), -1)
        loc, log_scale, *logits = params.movedim(-1 - IMAGE_DIMS, -1).unflatten(-1, roles).unbind(-2)
        weights = dist.Categorical(logits=logits[0] if logits else torch.zeros_like(loc))
        return dist.MixtureSameFamily(weights, LogisticBins(loc, log_scale)).to_event(IMAGE_DIMS)

    def params_at(self, mean: Tensor) -> Tensor:
        components = max(1, self.num_params // 3)
        spread = torch.linspace(-0.1, 0.1, components, device=mean.device)[:, None, None, None] if components > 1 else 0.0
        loc = mean / (LEVELS - 1) + spread
        others = [torch.full((components, *mean.shape), value, device=mean.device) for value in (-2.0, 0.0)]
        return torch.cat([loc.expand(components, *mean.shape), *others])[: self.num_params]


class LogisticBins(TorchDistribution):
    r"""A logistic distribution over the bins of 0 to 255.

    With :math:`a < b` a bin's edges in units of the scale, its probability is
    :math:`\sigma(b) - \sigma(a) = \sigma(b) \, \sigma(-a) \, (1 - e^{a - b})`, each factor exact in logarithms.

    Arguments:
        loc: Location, in units of the full grey range.
        log_scale: Logarithm of the scale, in the same units.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.integer_interval(0, LEVELS - 1)

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        self.loc, self.log_scale = loc * (LEVELS - 1), log_scale.clamp(-7, 7) + log(LEVELS - 1)
        super().__init__(loc.shape)

    def expand(self, batch_shape: Shape | list[int], _instance: None = None) -> LogisticBins:
        new = object.__new__(LogisticBins)
        new.loc, new.log_scale = self.loc.expand(batch_shape), self.log_scale.expand(batch_shape)
        TorchDistribution.__init__(new, torch.Size(batch_shape))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        rate = (-self.log_scale).exp()
        below, above = ((value + edge - self.loc) * rate for edge in (-0.5, 0.5))
        left = torch.where(value > 0, logsigmoid(-below), 0.0)
        right = torch.where(value < LEVELS - 1, logsigmoid(above), 0.0)
        inner = torch.where((value > 0) & (value < LEVELS - 1), torch.log(-torch.expm1(-rate)), 0.0)
        return left + right + inner

    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
        return (self.loc + self.log_scale.exp() * torch.logit(u, eps=1e-7)).round().clamp(0, LEVELS - 1)

    @property
    def mean(self) -> Tensor:
        rate = (-self.log_scale).exp()
        tails = (torch.sigmoid((self.loc - level - 0.5) * rate) for level in range(LEVELS - 1))
        return sum(tails, torch.zeros_like(self.loc))
