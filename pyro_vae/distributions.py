"""Distributions that torch and Pyro lack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, pi, prod
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid, softplus

from pyro_vae.errors import RequestError, check_choice, check_positive

Size = torch.Size | list[int] | tuple[int, ...]

_validate_args = Distribution._validate_args

from zuko.distributions import NormalizingFlow  # noqa: E402
from zuko.flows import MAF, NSF, Flow, RealNVP  # noqa: E402

# Importing zuko switches off the validation of every torch distribution in the process.
Distribution.set_default_validate_args(_validate_args)

__all__ = ["NormalizingFlow"]

FlowName = Literal["MAF", "NSF", "coupling"]
FLOWS: dict[str, Callable[..., Flow]] = {"MAF": MAF, "NSF": NSF, "coupling": RealNVP}

# Grey levels of a byte.
LEVELS = 256
# Largest logarithm of the mean of a count: its exponential is finite in float32.
LOG_MEAN = 30.0


def make_flow(
    name: FlowName, latent_dim: int, context: int, transforms: int, hidden: Sequence[int]
) -> Flow:
    """A normalizing flow over `latent_dim` dimensions, conditioned on `context` features.

    Raises:
        RequestError: If `transforms` is not positive, the name is unknown, or a coupling flow has
            fewer than 2 dimensions.
    """
    check_positive(transforms=transforms)
    check_choice("flow", name, FlowName)
    if name == "coupling" and latent_dim < 2:
        raise RequestError(
            "a coupling flow needs at least 2 latent dimensions; use flow MAF or NSF"
        )
    return FLOWS[name](latent_dim, context, transforms=transforms, hidden_features=hidden)


class FlowDistribution(ZukoToPyro):
    """A zuko distribution for Pyro programs, which can also be sampled outside a program."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real_vector

    def log_prob(self, value: Tensor) -> Tensor:
        # zuko's coupling needs the value in its full shape (1.6).
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        if value.shape != shape:
            value = value.expand(shape)
        return super().log_prob(value)

    def rsample(self, sample_shape: Size = ()) -> Tensor:
        return self(torch.Size(sample_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Size = ()) -> Tensor:
        return self.dist.sample(torch.Size(sample_shape))

    def expand(self, batch_shape: Size, _instance: None = None) -> FlowDistribution:
        return FlowDistribution(self.dist.expand(batch_shape))


class ObservedElements(dist.Independent):
    """Independent elements of which those that are NaN are missing: `log_prob` leaves them out.

    They are replaced before their density is computed, so that no NaN reaches a gradient. Where
    nothing is missing, values and gradients are those of `Independent`, bit for bit.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        missing = value.isnan()
        scores = self.base_dist.log_prob(value.masked_fill(missing, self._placeholder()))
        return sum_rightmost(scores.masked_fill(missing, 0.0), self.reinterpreted_batch_ndims)

    def _placeholder(self) -> float:
        """A value of finite density for every kind of data."""
        try:
            is_discrete = self.base_dist.support.is_discrete
        except NotImplementedError:
            return 0.5
        if is_discrete:
            return 0.0
        return 0.5


def leave_out_missing(p: TorchDistribution) -> TorchDistribution:
    """The same distribution of arrays, whose `log_prob` leaves out elements that are NaN.

    It must have independent elements, as `to_event` makes them; others are returned as they are.

    Example:
        >>> p = leave_out_missing(dist.Normal(torch.zeros(3), 1.0).to_event(1))
        >>> p.log_prob(torch.tensor([1.0, torch.nan, 2.0]))
        tensor(-4.3379)
        >>> dist.Normal(0.0, 1.0).log_prob(torch.tensor([1.0, 2.0])).sum()
        tensor(-4.3379)
    """
    base = p
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if base.event_shape:
        return p
    return ObservedElements(base, len(p.event_shape))


class UniformMixture(TorchDistribution):
    r"""The uniform mixture of one family at K parameters.

    .. math:: \frac{1}{K} \sum_k q(z; \lambda_k)

    A sample costs no more than a sample of one component.

    Arguments:
        family: Maps parameters, shape `(n, ...)`, to a distribution, batch_shape `(n,)`.
        params: The K parameters.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real_vector

    def __init__(self, family: Callable[[Tensor], TorchDistribution], params: Tensor) -> None:
        self.family = family
        self.params = params
        self.components = family(params)
        super().__init__(torch.Size(), self.components.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = self.components
        if isinstance(parts, dist.Independent) and isinstance(parts.base_dist, dist.Normal):
            log_probs = normal_log_probs(value, parts.base_dist)
        else:
            log_probs = parts.log_prob(value.unsqueeze(-2))
        return log_probs.logsumexp(-1) - log(len(self.params))

    @torch.no_grad()
    def sample(self, sample_shape: Size = ()) -> Tensor:
        chosen = torch.randint(len(self.params), (prod(sample_shape),), device=self.params.device)
        return self.family(self.params[chosen]).sample().reshape(*sample_shape, -1)


# Spacing of float64, and the largest rounding error, in nats, of the matrix products.
EPSILON = 2.0**-52
TOLERANCE = 1e-4
# Components near a value whose log-density is recomputed if the matrix products are not precise.
NEAREST = 4


def normal_log_probs(value: Tensor, normals: Any) -> Tensor:
    """Log-densities of values under K diagonal Gaussians, by matrix products.

    They take much less time and memory than a tensor of shape `(..., K, D)`. Their terms cancel, so
    they are computed in float64. Where that is not enough, because a scale is below a millionth of
    the location, the components nearest to the value are computed from the differences.

    Arguments:
        value: Shape `(..., D)`.
        normals: The Gaussians, of shape `(K, D)`.

    Returns:
        The log-densities, shape `(..., K)`.
    """
    loc = normals.loc.double()
    scale = normals.scale.double()
    z = value.double()
    precision = scale.square().reciprocal()
    of_z = z.square() @ precision.T
    of_loc = (precision * loc.square()).sum(-1)
    squares = of_z - 2 * z @ (precision * loc).T + of_loc
    log_normalizers = (scale.log() + log(2 * pi) / 2).sum(-1)
    products = -squares / 2 - log_normalizers

    error = EPSILON * (of_z + of_loc).detach()
    nearest = (products.detach() + error).topk(min(NEAREST, len(loc))).indices
    differences = (z.unsqueeze(-2) - loc[nearest]) / scale[nearest]
    exact = -differences.square().sum(-1) / 2 - log_normalizers[nearest]
    precise = error.gather(-1, nearest) < TOLERANCE
    chosen = torch.where(precise, products.gather(-1, nearest), exact)
    return products.scatter(-1, nearest, chosen).to(value.dtype)


class PreciseBeta(dist.Beta):
    """A Beta distribution whose `log_prob` is computed in float64.

    In float32 the difference of log-gamma functions loses 0.002 nats per pixel at a concentration
    of 3,000.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        a = self.concentration1.double()
        b = self.concentration0.double()
        x = value.double()
        normalizer = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        score = torch.xlogy(a - 1, x) + torch.special.xlog1py(b - 1, -x) - normalizer
        return score.to(value.dtype)


class PreciseBinomial(dist.Binomial):
    """A Binomial distribution whose `log_prob` is computed in float64.

    In float32 the difference of log-gamma functions loses 0.05 nats per image of 784 pixels.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        precise = dist.Binomial(
            self.total_count.double(), logits=self.logits.double(), validate_args=False
        )
        return precise.log_prob(value.double()).to(value.dtype)


class PrecisePoisson(TorchDistribution):
    """A Poisson distribution by the logarithm of its rate, whose `log_prob` is computed in float64.

    In float32 it loses a nat for a count of a million.

    Arguments:
        log_rate: The logarithm of the rate, clamped to [-30, 30].
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_rate": dist.constraints.real}
    support = dist.constraints.nonnegative_integer

    def __init__(self, log_rate: Tensor) -> None:
        self.log_rate = log_rate.clamp(-LOG_MEAN, LOG_MEAN)
        super().__init__(log_rate.shape)

    def expand(self, batch_shape: Size, _instance: None = None) -> PrecisePoisson:
        return PrecisePoisson(self.log_rate.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value.double()
        log_rate = self.log_rate.double()
        return (x * log_rate - log_rate.exp() - torch.lgamma(x + 1)).to(value.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Size = ()) -> Tensor:
        return torch.poisson(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))

    @property
    def mean(self) -> Tensor:
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean


class MeanNegativeBinomial(TorchDistribution):
    r"""A negative binomial by its mean and inverse dispersion; `log_prob` is computed in float64.

    .. math:: \mathbb{E} x = \mu, \qquad \mathrm{Var} \, x = \mu + \mu^2 / \theta

    It is a Poisson distribution whose rate is Gamma distributed with shape :math:`\theta`.

    Arguments:
        log_mean: The logarithm of the mean, clamped to [-30, 30].
        log_inverse_dispersion: The logarithm of :math:`\theta`, clamped to [-10, 16].
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_mean": dist.constraints.real,
        "log_inverse_dispersion": dist.constraints.real,
    }
    support = dist.constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_inverse_dispersion: Tensor) -> None:
        shape = torch.broadcast_shapes(log_mean.shape, log_inverse_dispersion.shape)
        self.log_mean = log_mean.expand(shape).clamp(-LOG_MEAN, LOG_MEAN)
        # Above, log-gamma functions cancel, and it is a Poisson distribution for all that matters.
        self.log_inverse_dispersion = log_inverse_dispersion.expand(shape).clamp(-10, 16)
        super().__init__(shape)

    def expand(self, batch_shape: Size, _instance: None = None) -> MeanNegativeBinomial:
        return MeanNegativeBinomial(
            self.log_mean.expand(batch_shape), self.log_inverse_dispersion.expand(batch_shape)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value.double()
        log_theta = self.log_inverse_dispersion.double()
        theta = log_theta.exp()
        log_odds = self.log_mean.double() - log_theta
        ways = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        score = ways - theta * softplus(log_odds) - x * softplus(-log_odds)
        return score.to(value.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Size = ()) -> Tensor:
        shape = self.log_inverse_dispersion.exp()
        gamma = torch.distributions.Gamma(
            shape, (self.log_inverse_dispersion - self.log_mean).exp()
        )
        return torch.poisson(gamma.sample(torch.Size(sample_shape)))

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + (2 * self.log_mean - self.log_inverse_dispersion).exp()


class ZeroInflated(TorchDistribution):
    """Counts that are 0 with a probability, else of another distribution.

    Pyro's class of that purpose cannot be expanded after its mean was read (1.9).

    Arguments:
        counts: The other distribution.
        logits: The logit of the probability.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": dist.constraints.real}
    support = dist.constraints.nonnegative_integer

    def __init__(self, counts: TorchDistribution, logits: Tensor) -> None:
        self.counts = counts
        self.logits = logits
        super().__init__(logits.shape)

    def expand(self, batch_shape: Size, _instance: None = None) -> ZeroInflated:
        return ZeroInflated(self.counts.expand(batch_shape), self.logits.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        score = self.counts.log_prob(value) + logsigmoid(-self.logits)
        return torch.where(value == 0, torch.logaddexp(score, logsigmoid(self.logits)), score)

    @torch.no_grad()
    def sample(self, sample_shape: Size = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        is_zero = torch.bernoulli(self.logits.sigmoid().expand(self._extended_shape(shape)))
        return (1 - is_zero) * self.counts.sample(shape)

    @property
    def mean(self) -> Tensor:
        return (-self.logits).sigmoid() * self.counts.mean

    @property
    def variance(self) -> Tensor:
        share = (-self.logits).sigmoid()
        return share * (self.counts.variance + (1 - share) * self.counts.mean.square())


class GivenTotal(TorchDistribution):
    """Counts x given their total: `log_prob` takes the total from x, as an exposure.

    Each mean is the total times a share. Draws, the mean and the variance are those at `total`.
    `log_prob` is normalized over counts with the exposure held fixed, see `at`.

    Arguments:
        family: Maps logarithms of means, shape `(..., *data_shape)`, to the distribution of counts.
        log_shares: The logarithms of the shares, of the same shape.
        total: The total of draws, a scalar.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, family: Callable[[Tensor], TorchDistribution], log_shares: Tensor, total: Tensor
    ) -> None:
        self.family = family
        self.log_shares = log_shares
        self.total = total
        drawn = self.at(total)
        super().__init__(drawn.batch_shape, drawn.event_shape, validate_args=False)

    def at(self, total: Tensor) -> TorchDistribution:
        """The distribution at an exposure, which broadcasts with `log_shares`."""
        return self.family(self.log_shares + total.clamp(min=1e-9).log())

    @property
    def support(self) -> Any:
        return self.at(self.total).support

    def expand(self, batch_shape: Size, _instance: None = None) -> GivenTotal:
        shares = self.log_shares.expand(torch.Size(batch_shape) + self.event_shape)
        return GivenTotal(self.family, shares, self.total)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.at(self.total_of(value)).log_prob(value)

    def total_of(self, value: Tensor) -> Tensor:
        """The total of each row, as an exposure: 1 instead of the dimensions of an event."""
        dims = tuple(range(-len(self.event_shape), 0))
        return value.sum(dims, keepdim=True)

    def sample(self, sample_shape: Size = ()) -> Tensor:
        return self.at(self.total).sample(torch.Size(sample_shape))

    @property
    def mean(self) -> Tensor:
        return self.at(self.total).mean

    @property
    def variance(self) -> Tensor:
        return self.at(self.total).variance


class PreciseLowRankNormal(dist.LowRankMultivariateNormal):
    """A low-rank Gaussian whose `log_prob` is computed in float64.

    In float32 the squares cancel where a column is much longer than the diagonal: 0.7 nats are lost
    at a ratio of 300.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        precise = dist.LowRankMultivariateNormal(
            self.loc.double(),
            self.cov_factor.double(),
            self.cov_diag.double(),
            validate_args=False,
        )
        return precise.log_prob(value.double()).to(value.dtype)


class LogitBernoulli(dist.Bernoulli):
    """A Bernoulli by its logits, whose `log_prob` is faster on CPUs.

    torch's takes most of its time in log1p, which is ten times as slow as log (torch 2.14).
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        size = self.logits.abs()
        small = (-size).exp()
        # log1p(small), to rounding: the second term is what is lost in 1 + small.
        total = 1 + small
        log_normalizer = total.log() - (total - 1 - small) / total
        return (value - 0.5) * self.logits - 0.5 * size - log_normalizer


class RelaxedBernoulli(LogitBernoulli):
    """A Bernoulli whose `log_prob` accepts any value in [0, 1].

    It is a cross-entropy, not a density on that interval.
    """

    support = dist.constraints.unit_interval


class TruncatedExponential(TorchDistribution):
    r"""The continuous Bernoulli by its natural parameter, the logit of :math:`\pi`.

    .. math:: p(x) = e^{\eta (x - 1/2) - L(|\eta|)}, \qquad L(s) = s / 2 + \log((1 - e^{-s}) / s)

    The normalizer L is stable for large logits. Its terms cancel below s = 1e-3, where log_prob,
    the mean and the samples use their Taylor series, such as :math:`L(s) \approx s^2 / 24`.

    Arguments:
        logits: The natural parameter.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": dist.constraints.real}
    support = dist.constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self._small = logits.abs() < 1e-3
        self._size = logits.abs().masked_fill(self._small, 1.0)
        super().__init__(logits.shape)

    def expand(self, batch_shape: Size, _instance: None = None) -> TruncatedExponential:
        return TruncatedExponential(self.logits.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        exact = self._size / 2 + torch.log(-torch.expm1(-self._size) / self._size)
        normalizer = torch.where(self._small, self.logits.square() / 24, exact)
        return self.logits * (value - 0.5) - normalizer

    @property
    def mean(self) -> Tensor:
        exact = self.logits.sign() * (0.5 + 1 / torch.expm1(self._size) - 1 / self._size)
        return 0.5 + torch.where(self._small, self.logits / 12, exact)

    def rsample(self, sample_shape: Size = ()) -> Tensor:
        """The inverse CDF for |eta| at uniform noise, mirrored for negative eta."""
        u = torch.rand(
            self._extended_shape(torch.Size(sample_shape)),
            dtype=self.logits.dtype,
            device=self.logits.device,
        )
        exact = 1 + torch.log(u + (1 - u) * torch.exp(-self._size)) / self._size
        x = torch.where(self._small, u + self.logits.abs() * u * (1 - u) / 2, exact).clamp(0, 1)
        return torch.where(self.logits < 0, 1 - x, x)


class GreyLevels(dist.Categorical):
    """A categorical distribution over grey levels, with their mean."""

    @property
    def mean(self) -> Tensor:
        probs = self.probs
        return probs @ torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)


class LogisticBins(TorchDistribution):
    r"""A logistic distribution integrated over the bins of the grey levels 0 to 255.

    With :math:`a < b` the standardized edges of a bin, its probability is
    :math:`\sigma(b) - \sigma(a) = \sigma(b) \, \sigma(-a) \, (1 - e^{a - b})`. Its logarithm has no
    cancellation.

    Arguments:
        loc: Location, in units of the full grey range.
        log_scale: Logarithm of the scale, in the same units.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.integer_interval(0, LEVELS - 1)

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        self.params = loc, log_scale
        self.loc = loc * (LEVELS - 1)
        self.log_scale = log_scale.clamp(-7, 7) + log(LEVELS - 1)
        super().__init__(loc.shape)

    def expand(self, batch_shape: Size, _instance: None = None) -> LogisticBins:
        return LogisticBins(*(param.expand(batch_shape) for param in self.params))

    def log_prob(self, value: Tensor) -> Tensor:
        rate = (-self.log_scale).exp()
        below = (value - 0.5 - self.loc) * rate
        above = (value + 0.5 - self.loc) * rate
        left = torch.where(value > 0, logsigmoid(-below), 0.0)
        right = torch.where(value < LEVELS - 1, logsigmoid(above), 0.0)
        is_inner = (value > 0) & (value < LEVELS - 1)
        inner = torch.where(is_inner, torch.log(-torch.expm1(-rate)), 0.0)
        return left + right + inner

    def sample(self, sample_shape: Size = ()) -> Tensor:
        u = torch.rand(
            self._extended_shape(torch.Size(sample_shape)),
            dtype=self.loc.dtype,
            device=self.loc.device,
        )
        x = self.loc + self.log_scale.exp() * torch.logit(u, eps=1e-7)
        return x.round().clamp(0, LEVELS - 1)

    @property
    def mean(self) -> Tensor:
        rate = (-self.log_scale).exp()
        mean = torch.zeros_like(self.loc)
        for level in range(LEVELS - 1):
            mean = mean + torch.sigmoid((self.loc - level - 0.5) * rate)
        return mean
