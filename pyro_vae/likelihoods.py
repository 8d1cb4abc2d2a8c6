"""Likelihoods p(x | z): modules whose forward maps decoder outputs to a distribution of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.distributions import (
    LEVELS,
    GivenTotal,
    GreyLevels,
    LogisticBins,
    LogitBernoulli,
    MeanNegativeBinomial,
    PreciseBeta,
    PreciseBinomial,
    PrecisePoisson,
    RelaxedBernoulli,
    TruncatedExponential,
    ZeroInflated,
)
from pyro_vae.errors import RequestError, check_choice, check_count, check_positive

Shape = tuple[int, ...]
Pixels = Literal["binary", "unit", "dequantized", "byte", "count", "real"]
Kind = Literal["grey", "real"]
Learned = Literal["no", "scalar", "column", "pixel"]
Dispersion = Literal["feature", "decoder"]

# Channels, height and width.
IMAGE_DIMS = 3
# Initial logarithm of the inverse dispersion. Adam changes it by at most its learning rate in each
# step; the largest that matter are about 6, where counts are close to Poisson distributed.
LOG_INVERSE_DISPERSION = 2.0
# The grey value that shows a missing pixel.
MISSING = 0.5


def noun(data_dims: int) -> str:
    """What messages call an element of the data with so many dimensions.

    Example:
        >>> noun(3), noun(1)
        ('image', 'row')
    """
    return "image" if data_dims == IMAGE_DIMS else "row"


def standardization(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of each column; 1 for constant columns.

    Missing values, which are NaN, are left out.
    """
    mean = x.double().nanmean(0).nan_to_num()
    scale = (x.double() - mean).square().nanmean(0).sqrt()
    varies = scale > 1e-6 * mean.abs()
    return mean.to(x), scale.where(varies, 1.0).to(x)


class Likelihood(nn.Module, ABC):
    """The likelihood p(x | z): the distribution of an image or a row, given the decoder's outputs.

    To write your own, subclass it, declare `num_params` and `pixels`, and write `forward`::

        class Laplace(Likelihood):
            num_params = 1
            pixels = "dequantized"

            def forward(self, params):
                (loc,) = self.elements(params)
                return dist.Laplace(loc, 0.1).to_event(self.dims(params))

    For images alone, `params.squeeze(-4)` and `to_event(3)` do the same. A constructor parameter
    named `data_shape` is filled in by the command line.

    Attributes:
        num_params: Decoder outputs per pixel, or per element of a row.
        pixels: The kind of data it scores: "binary" (0 or 1), "unit" (grey / 255), "dequantized"
            ((byte + u) / 256 with u uniform), "byte" (0 to 255), "count" (non-negative integers) or
            "real". Values in nats are comparable only within one kind.
        is_density: Whether it is normalized, so that its values are log-probabilities.
        largest: The largest count that it scores; None if there is no limit.
        given_total: Whether it scores log p(x | z, total of x).
        data_dims: Number of dimensions of the data: 3 for images, 1 for vectors. `Model.decode`
            sets it.
    """

    num_params: int = 1
    pixels: Pixels
    is_density: bool = True
    largest: int | None = None
    given_total: bool = False
    data_dims: int = IMAGE_DIMS

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution:
        """The distribution, batch_shape `(...)` and event_shape `data_shape`.

        Arguments:
            params: The decoder's outputs, shape `(..., num_params, *data_shape)`; `data_shape` is
                (channels, height, width) for images, (D,) for vectors.
        """

    def dims(self, params: Tensor) -> int:
        """The number of dimensions of `data_shape` in decoder outputs.

        It is `data_dims`, unless there are too few: then those after a batch and `num_params`.
        """
        if params.ndim > self.data_dims:
            return self.data_dims
        return max(1, params.ndim - 2)

    def elements(self, params: Tensor) -> tuple[Tensor, ...]:
        """The `num_params` decoder outputs of each element, each of shape `(..., *data_shape)`.

        Raises:
            ValueError: If `params` has another shape.
        """
        dim = -1 - self.dims(params)
        if params.ndim < -dim or params.shape[dim] != self.num_params:
            raise RequestError(
                f"{type(self).__name__} needs decoder outputs of shape (..., {self.num_params},"
                f" *data_shape), but gets {tuple(params.shape)}; set data_dims if data_shape has"
                f" not {-1 - dim} dimensions"
            )
        return params.unbind(dim)

    def unit(self, x: Tensor) -> Tensor:
        """The input of the encoder: grey values in [0, 1], log(1 + x) of counts."""
        if self.pixels == "byte":
            return x / (LEVELS - 1)
        if self.pixels == "count":
            return x.log1p()
        return x

    def shown(self, x: Tensor) -> Tensor:
        """The values as figures and pages show them.

        Images become grey values in [0, 1], shape `(..., channels, height, width)`; missing values
        are grey. Other data become vectors of `unit` values, shape `(..., D)`, which are drawn as
        curves with gaps. Override it to show your data as something else. This shows vectors of 64
        counts up to 16 as images::

            likelihood.shown = lambda x: x.unflatten(-1, (1, 8, 8)) / 16
        """
        if self.data_dims == IMAGE_DIMS:
            return self.unit(x).nan_to_num(MISSING).clamp(0, 1)
        return self.unit(x).flatten(-self.data_dims)

    def mean(self, p: TorchDistribution, x: Tensor) -> Tensor:
        """The mean of a reconstruction p(x | z) of `x`: an exposure is that of `x`."""
        return p.mean

    def initialize(self, x: Tensor) -> None:
        """Initialize from the training data `x`, before training; does nothing by default."""

    def params_at(self, mean: Tensor) -> Tensor | None:
        """The decoder outputs for which the mean of p(x | z) is `mean`.

        Their shape is `(num_params, *data_shape)`. The decoder's last bias is initialized there
        (Burda et al., 2016). None, the default, leaves it unchanged.
        """
        return None


class _PerElement(Likelihood):
    """A likelihood with tensors that have one entry for each element of the data.

    Without `data_shape` they are scalars that `initialize` or a state_dict expands.

    Attributes:
        per_element: The names of these parameters and buffers.
    """

    per_element: tuple[str, ...] = ()

    def _expand(self, name: str, shape: Shape) -> None:
        tensor = getattr(self, name)
        if tensor.shape == shape:
            return
        expanded = tensor.detach().expand(shape).clone()
        if isinstance(tensor, nn.Parameter):
            expanded = nn.Parameter(expanded, tensor.requires_grad)
        setattr(self, name, expanded)

    def initialize(self, x: Tensor) -> None:
        for name in self.per_element:
            self._expand(name, x.shape[1:])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self.per_element:
            stored = state_dict.get(prefix + name)
            if stored is not None and getattr(self, name).ndim == 0:
                self._expand(name, stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


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
        family = RelaxedBernoulli if self.relaxed else LogitBernoulli
        (logits,) = self.elements(params)
        return family(logits=logits).to_event(self.dims(params))

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clamp(0.001, 0.999)).unsqueeze(0)


class LocationScale(_PerElement):
    """Independent elements with a location from the decoder and a fixed or learned scale.

    Reals are standardized: the decoder outputs locations in units of each column's standard
    deviation, the encoder reads (x - `data_mean`) / `data_scale`, with the mean and the standard
    deviation of the training data, which are saved with the parameters. The density is that of x in
    the user's units.

    Arguments:
        scale: Scale of an element (Gaussian standard deviation, Laplace b) in units of the full
            grey range, or of the standard deviation of reals; the initial value if it is learned.
        learned: "no" keeps the scale fixed, "scalar" learns one for all elements, "column" one for
            each, and with "pixel" the decoder outputs one per element, as a factor on `scale`
            between exp(-10) and exp(10). None is "column" for reals, otherwise "no". A learned
            scale scores dequantized pixels, because its density is unbounded on discrete values.
        kind: "grey" values in [0, 1], or "real" numbers.
        data_shape: Shape of an image or a row; without it, `initialize` finds it out.

    Raises:
        ValueError: If `scale` is not positive, or `learned` or `kind` is unknown.
    """

    def __init__(
        self,
        scale: float = 1.0,
        learned: Learned | None = None,
        kind: Kind = "grey",
        data_shape: Shape | None = None,
    ) -> None:
        super().__init__()
        check_positive(scale=scale)
        check_choice("kind", kind, Kind)
        if learned is None:
            learned = "column" if kind == "real" else "no"
        check_choice("learned", learned, Learned)
        self.num_params = 2 if learned == "pixel" else 1
        self.pixels = "unit" if learned == "no" else "dequantized"
        self.scale = scale
        self.log_factor: nn.Parameter | None = None
        if learned == "scalar":
            self.log_factor = nn.Parameter(torch.zeros(()))
        if learned == "column":
            self.log_factor = nn.Parameter(torch.zeros(data_shape or ()))
            self.per_element = ("log_factor",)
        if kind == "real":
            self.pixels = "real"
            self.data_mean = nn.Buffer(torch.zeros(data_shape or ()))
            self.data_scale = nn.Buffer(torch.ones(data_shape or ()))
            self.per_element += ("data_mean", "data_scale")

    @abstractmethod
    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """The distribution of each element."""

    def forward(self, params: Tensor) -> TorchDistribution:
        loc, *log_factors = self.elements(params)
        if self.log_factor is not None:
            log_factors.append(self.log_factor)
        scale = self.scale * sum(log_factors, loc.new_zeros(())).clamp(-10, 10).exp()
        if self.pixels == "real":
            loc = self.data_mean + self.data_scale * loc
            scale = self.data_scale * scale
        return self.family(loc, scale).to_event(self.dims(params))

    def unit(self, x: Tensor) -> Tensor:
        if self.pixels == "real":
            return (x - self.data_mean) / self.data_scale
        return super().unit(x)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        super().initialize(x)
        if self.pixels == "real":
            mean, scale = standardization(x)
            self.data_mean.copy_(mean)
            self.data_scale.copy_(scale)

    def params_at(self, mean: Tensor) -> Tensor:
        loc = self.unit(mean)
        return torch.stack([loc, torch.zeros_like(loc)][: self.num_params])


class Normal(LocationScale):
    r"""Independent Gaussian elements.

    .. math:: p(x \mid z) = \mathcal{N}(x; \mu, \sigma^2 I)

    Up to a constant, its log-density is the squared error divided by :math:`-2 \sigma^2`, so that a
    fixed `scale` sets the weight of the reconstruction relative to the KL; the plain sum of squares
    is :math:`\sigma = \sqrt{1/2}`. With `learned="scalar"` it is the sigma-VAE.

    References:
        | Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021)
        | https://arxiv.org/abs/2006.13202

    Example:
        >>> likelihood = Normal(kind="real")
        >>> likelihood.initialize(torch.tensor([[1.0, 100.0], [3.0, 500.0]]))
        >>> likelihood(torch.zeros(1, 1, 2)).mean
        tensor([[  2., 300.]])
    """

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Normal(loc, scale)


class Laplace(LocationScale):
    r"""Independent Laplace elements, the absolute error.

    .. math:: p(x \mid z) = \prod_i \frac{1}{2b} e^{-|x_i - \mu_i| / b}
    """

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.Laplace(loc, scale)


class StudentT(LocationScale):
    r"""Independent reals with heavy tails: Student's t distributions.

    .. math:: p(x \mid z) \propto \prod_i (1 + (x_i - \mu_i)^2 / (\nu \sigma^2))^{-(\nu + 1) / 2}

    Reals are standardized as for `Normal(kind="real")`.

    Arguments:
        df: Degrees of freedom, over 1, so that there is a mean.
        scale: Scale of an element in units of its standard deviation; the initial value if it is
            learned.
        learned: "no" keeps the scale fixed, "scalar" learns one for all elements, "column" one for
            each, and with "pixel" the decoder outputs one per element, as a factor on `scale`
            between exp(-10) and exp(10).
        data_shape: Shape of an image or a row; without it, `initialize` finds it out.

    Raises:
        ValueError: If `df` is not over 1, `scale` is not positive, or `learned` is unknown.
    """

    def __init__(
        self,
        df: float = 4.0,
        scale: float = 1.0,
        learned: Learned = "column",
        data_shape: Shape | None = None,
    ) -> None:
        super().__init__(scale, learned, "real", data_shape)
        check_positive(df=df)
        if df <= 1:
            raise RequestError(f"df must be over 1, so that there is a mean, but is {df}")
        self.df = df

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return dist.StudentT(self.df, loc, scale)


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
        (logits,) = self.elements(params)
        return TruncatedExponential(logits).to_event(self.dims(params))


class Beta(Likelihood):
    r"""Independent pixels with Beta distributions.

    .. math:: x_i \sim \mathrm{Beta}(\mu_i \kappa_i, (1 - \mu_i) \kappa_i)

    The decoder outputs the logit of the mean :math:`\mu` and the logarithm of the concentration
    :math:`\kappa`. It scores dequantized pixels, because the density may be infinite at 0 and 1.
    """

    num_params = 2
    pixels = "dequantized"

    def forward(self, params: Tensor) -> TorchDistribution:
        logit, log_concentration = self.elements(params)
        # The limits keep alpha and beta positive in float32; the logit of 1 - mu is exact, whereas
        # 1 - mu is not.
        concentration = log_concentration.clamp(-10, 10).exp()
        alpha = concentration * logit.clamp(-15, 15).sigmoid()
        beta = concentration * (-logit).clamp(-15, 15).sigmoid()
        return PreciseBeta(alpha, beta).to_event(self.dims(params))

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.stack([torch.logit(mean.clamp(0.01, 0.99)), torch.zeros_like(mean)])


class Binomial(Likelihood):
    r"""Independent grey levels 0 to 255, or counts up to another maximum: Binomial distributions.

    .. math:: x_i \sim \mathrm{Binomial}(255, \pi_i)

    Arguments:
        total_count: The largest value. With 255, bytes are scored, otherwise counts.

    Raises:
        ValueError: If `total_count` is not a positive integer.
    """

    num_params = 1

    def __init__(self, total_count: int = LEVELS - 1) -> None:
        super().__init__()
        check_count(total_count=total_count)
        self.total_count = total_count
        self.largest = total_count
        self.pixels = "byte" if total_count == LEVELS - 1 else "count"

    def forward(self, params: Tensor) -> TorchDistribution:
        (logits,) = self.elements(params)
        return PreciseBinomial(self.total_count, logits=logits).to_event(self.dims(params))

    def unit(self, x: Tensor) -> Tensor:
        return x / self.total_count

    def params_at(self, mean: Tensor) -> Tensor:
        return torch.logit((mean / self.total_count).clamp(0.001, 0.999)).unsqueeze(0)


class Counts(_PerElement):
    """Independent counts whose means are the exponentials of decoder outputs.

    With `given_total` the total of each row is an exposure, as the library size in scVI: the means
    are the observed total times the softmax of the decoder outputs, and log p(x) stands for
    log p(x | total). Draws have the mean total of the training data.

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2

    Arguments:
        given_total: Take the total of each row as an exposure.
    """

    pixels = "count"

    def __init__(self, given_total: bool = False) -> None:
        super().__init__()
        self.given_total = given_total
        if given_total:
            self.total = nn.Buffer(torch.ones(()))

    @abstractmethod
    def family(self, log_mean: Tensor, *others: Tensor) -> TorchDistribution:
        """The distribution of each count; `others` are the other decoder outputs."""

    def forward(self, params: Tensor) -> TorchDistribution:
        log_mean, *others = self.elements(params)
        dims = self.dims(params)

        def family(log_mean: Tensor) -> TorchDistribution:
            return self.family(log_mean, *others).to_event(dims)

        if not self.given_total:
            return family(log_mean)
        log_shares = log_mean.flatten(-dims).log_softmax(-1).reshape(log_mean.shape)
        return GivenTotal(family, log_shares, self.total)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        super().initialize(x)
        if self.given_total:
            self.total.copy_(x.flatten(1).sum(1).mean())

    def mean(self, p: TorchDistribution, x: Tensor) -> Tensor:
        if isinstance(p, GivenTotal):
            return p.at(p.total_of(x)).mean
        return p.mean

    def params_at(self, mean: Tensor) -> Tensor:
        log_mean = mean.clamp(min=1e-4).log()
        others = [torch.zeros_like(mean)] * (self.num_params - 1)
        return torch.stack([log_mean, *others])


class Poisson(Counts):
    r"""Independent counts with Poisson distributions.

    .. math:: x_i \sim \mathrm{Poisson}(e^{\eta_i})

    With `given_total` the total of each row is an exposure, see `Counts`.

    Arguments:
        given_total: Take the total of each row as an exposure.

    Example:
        >>> Poisson()(torch.zeros(5, 1, 30)).log_prob(torch.ones(5, 30)).shape
        torch.Size([5])
    """

    num_params = 1

    def family(self, log_mean: Tensor, *others: Tensor) -> TorchDistribution:
        return PrecisePoisson(log_mean)


class NegativeBinomial(Counts):
    r"""Independent counts with negative binomial distributions, by mean and inverse dispersion.

    .. math:: \mathbb{E} x_i = \mu_i, \qquad \mathrm{Var} \, x_i = \mu_i + \mu_i^2 / \theta_i

    With `given_total` the total of each row is an exposure, see `Counts`.

    Arguments:
        dispersion: With "feature", the inverse dispersion is a parameter for each element; with
            "decoder", the decoder outputs its logarithm.
        given_total: Take the total of each row as an exposure.
        data_shape: Shape of a row; without it, `initialize` finds it out.

    Raises:
        ValueError: If `dispersion` is unknown.
    """

    def __init__(
        self,
        dispersion: Dispersion = "feature",
        given_total: bool = False,
        data_shape: Shape | None = None,
    ) -> None:
        super().__init__(given_total)
        check_choice("dispersion", dispersion, Dispersion)
        self.dispersion = dispersion
        self.num_params = 1
        if dispersion == "decoder":
            self.num_params = 2
        else:
            start = torch.full(data_shape or (), LOG_INVERSE_DISPERSION)
            self.log_inverse_dispersion = nn.Parameter(start)
            self.per_element = ("log_inverse_dispersion",)

    def family(self, log_mean: Tensor, *others: Tensor) -> TorchDistribution:
        if others:
            (log_inverse_dispersion,) = others
        else:
            log_inverse_dispersion = self.log_inverse_dispersion
        return MeanNegativeBinomial(log_mean, log_inverse_dispersion)

    def params_at(self, mean: Tensor) -> Tensor:
        params = super().params_at(mean)
        if self.dispersion == "decoder":
            params[1] = LOG_INVERSE_DISPERSION
        return params


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Independent counts that are 0 with a probability from the decoder, else negative binomial.

    The last of the decoder outputs is the logit of that probability. The arguments are those of
    `NegativeBinomial`.
    """

    def __init__(
        self,
        dispersion: Dispersion = "feature",
        given_total: bool = False,
        data_shape: Shape | None = None,
    ) -> None:
        super().__init__(dispersion, given_total, data_shape)
        self.num_params += 1

    def family(self, log_mean: Tensor, *others: Tensor) -> TorchDistribution:
        *dispersion, gate = others
        counts = super().family(log_mean, *dispersion)
        return ZeroInflated(counts, gate)

    def params_at(self, mean: Tensor) -> Tensor:
        # One count in two is an additional zero.
        return super().params_at(2 * mean)


class Categorical(Likelihood):
    """Independent grey levels 0 to 255 with 256 free probabilities per pixel."""

    num_params = LEVELS
    pixels = "byte"

    def forward(self, params: Tensor) -> TorchDistribution:
        dims = self.dims(params)
        return GreyLevels(logits=params.movedim(-1 - dims, -1)).to_event(dims)


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
        dims = self.dims(params)
        last = params.movedim(-1 - dims, -1).unflatten(-1, (-1, self.components))
        if self.components == 1:
            loc, log_scale = last.unbind(-2)
            logits = torch.zeros_like(loc)
        else:
            loc, log_scale, logits = last.unbind(-2)
        weights = dist.Categorical(logits=logits)
        return dist.MixtureSameFamily(weights, LogisticBins(loc, log_scale)).to_event(dims)

    def params_at(self, mean: Tensor) -> Tensor:
        loc = (mean / (LEVELS - 1)).expand(self.components, *mean.shape)
        if self.components > 1:
            spread = torch.linspace(-0.1, 0.1, self.components, device=mean.device)
            loc = loc + spread.reshape(-1, *[1] * mean.ndim)
        params = torch.cat([loc, torch.full_like(loc, -2.0), torch.zeros_like(loc)])
        return params[: self.num_params]
