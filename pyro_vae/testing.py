"""Checks for the author of a part, and models that are known exactly.

Each check is silent if the part is right; otherwise it says in one line what is wrong and what to
do. Sampling is seeded inside, so that a check gives the same answer at every call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import log
from typing import Any, NamedTuple, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import Independent
from pyro.distributions.testing.gof import unif01_goodness_of_fit
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import biject_to, constraints, kl_divergence

from pyro_vae.distributions import LEVELS, GivenTotal
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.likelihoods import Likelihood, Normal, Pixels
from pyro_vae.networks import Linear, Shape
from pyro_vae.posteriors import FullRankNormal, Posterior
from pyro_vae.priors import Prior, StandardNormal
from pyro_vae.vae import VAE

# Probability that a test of random numbers fails although nothing is wrong.
FAILURE_RATE = 1e-4

SAMPLES = 20_000
CENTRES = 8
# Elements of the data whose densities are checked, if each has parameters of its own.
ELEMENTS = 6
# Values for each density, evaluated at once, to bound memory.
CHUNK = 2_000_000
# Points of the integral over one pixel; a tenth suffices, and is used for several.
POINTS = 200_000

# The total at which likelihoods with an exposure are checked, and extreme values.
TOTAL = 5.0
LARGE_COUNT = 100_000
LARGE_REAL = 1000.0

REGISTER = "register every tensor that it needs as a parameter or buffer"


class CheckError(AssertionError):
    """A part breaks its contract; the message says how."""


def check_prior(prior: Prior) -> None:
    """Check a prior.

    That is its shapes, sampling inside a plate, gradients, its density against its draws, dtype,
    device and saving. The test of the density is less sensitive in many dimensions with heavy
    tails.

    Raises:
        CheckError: If something is wrong.

    Example:
        >>> from pyro_vae import StandardNormal
        >>> check_prior(StandardNormal(2))
    """
    with forked_rng():
        torch.manual_seed(0)
        event_shape = getattr(prior(), "event_shape", torch.Size([0]))
        _require(
            len(event_shape) == 1,
            f"the event_shape must be (latent_dim,), but is {_shape(event_shape)}; use to_event(1)",
        )
        _check_distribution(prior, prior, torch.Size(), event_shape)
        _check_density(prior())
        _check_module(prior, lambda module: module())


def check_posterior(posterior: Posterior, latent_dim: int = 3) -> None:
    """Check a posterior as `check_prior` does.

    Its parameters are random, of shape `(N, num_params, latent_dim)`.

    Raises:
        CheckError: If something is wrong.

    Example:
        >>> from pyro_vae import DiagonalNormal
        >>> check_posterior(DiagonalNormal())
    """
    with forked_rng():
        torch.manual_seed(0)
        params = (torch.randn(4, posterior.num_params, latent_dim) / 2).requires_grad_()
        event_shape = torch.Size([latent_dim])
        _check_distribution(
            posterior, lambda: posterior(params), torch.Size([4]), event_shape, params
        )
        _check_density(posterior(params[:1]).expand(torch.Size([1])))
        _check_module(posterior, lambda module: module(_like(module, params.detach())))


def check_likelihood(likelihood: Likelihood, data_shape: Shape = (1, 2, 3)) -> None:
    """Check a likelihood.

    That is its shapes, sampling inside a plate, gradients, extremes, normalization, mean, draws,
    dtype and saving. The density of a single pixel is summed over all levels, or integrated over
    all values, and compared with its draws. If pixels have parameters of their own, such as a
    dispersion for each, several are checked; they must be independent.

    Arguments:
        likelihood: The likelihood.
        data_shape: Shape of the data to try, (channels, height, width) or (D,): that of the
            parameters that the likelihood has for each pixel, if it has any.

    Raises:
        CheckError: If something is wrong.

    Example:
        >>> from pyro_vae import Bernoulli
        >>> check_likelihood(Bernoulli())
        >>> check_likelihood(Bernoulli(relaxed=True))
        Traceback (most recent call last):
        pyro_vae.testing.CheckError: the density of a pixel integrates to 0.42..., not to 1; ...
    """
    with forked_rng():
        torch.manual_seed(0)
        kinds = get_args(Pixels)
        _require(
            likelihood.pixels in kinds,
            f"pixels must be one of {', '.join(kinds)}, but is {likelihood.pixels!r}",
        )
        likelihood.data_dims = len(data_shape)
        params = torch.randn(4, likelihood.num_params, *data_shape, requires_grad=True)
        _check_distribution(
            likelihood, lambda: likelihood(params), torch.Size([4]), torch.Size(data_shape), params
        )
        shape = likelihood(params.expand(3, *params.shape)).batch_shape
        _require(
            shape == (3, 4),
            f"params of shape (3, 4, ...) must give batch_shape (3, 4), but give {_shape(shape)}",
        )
        for pixel in torch.randn(3, likelihood.num_params, *[1] * len(data_shape)).double():
            _check_pixel(copy.deepcopy(likelihood).double(), pixel)
        _check_extremes(likelihood, data_shape)
        _check_module(likelihood, lambda module: module(_like(module, params.detach())))


class LinearGaussianVAE(VAE):
    r"""A VAE in which everything that is otherwise estimated is known exactly.

    .. math:: p(z) = \mathcal{N}(0, I), \quad p(x \mid z) = \mathcal{N}(W z + b, \sigma^2 I)
        \quad \Rightarrow \quad p(x) = \mathcal{N}(b, W W^\top + \sigma^2 I)

    Its guide is a Gaussian with a full covariance matrix whose parameters are affine in x, so that
    it can be the exact posterior, unless values are missing. All methods are differentiable in all
    parameters. Values of x that are NaN are missing; the exact results are given the others.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Arguments:
        data_shape: Shape of an image; any real numbers are data.
        latent_dim: Number of latent dimensions.
        scale: The standard deviation sigma.

    Example:
        >>> import pyro_vae as pv
        >>> vae = LinearGaussianVAE((1, 2, 3), latent_dim=2)
        >>> x = torch.randn(4, 1, 2, 3)
        >>> vae.make_guide_exact()
        >>> weights = pv.log_weights(vae.model, vae.guide, x, num_samples=7)
        >>> torch.allclose(weights, vae.log_p(x), atol=1e-4)
        True
    """

    def __init__(self, data_shape: Shape, latent_dim: int, scale: float = 0.5) -> None:
        super().__init__(
            prior=StandardNormal(latent_dim),
            encoder=Linear(data_shape, (1 + latent_dim, latent_dim)),
            posterior=FullRankNormal(latent_dim),
            decoder=Linear((latent_dim,), (1, *data_shape)),
            likelihood=Normal(scale),
        )
        self.variance = scale**2

    def log_p(self, x: Tensor) -> Tensor:
        """The exact log p(x) in nats, shape `(N,)`, of images `x`, shape `(N, *data_shape)`."""
        weight, bias = self.decoder.parameters()
        covariance = weight @ weight.T + self.variance * torch.eye(len(bias)).to(bias)
        if not x.isnan().any():
            return dist.MultivariateNormal(bias, covariance).log_prob(x.flatten(1))
        scores = []
        for row in x.flatten(1):
            seen = ~row.isnan()
            marginal = dist.MultivariateNormal(bias[seen], covariance[seen][:, seen])
            scores.append(marginal.log_prob(row[seen]))
        return torch.stack(scores)

    def exact_posterior(self, x: Tensor) -> TorchDistribution:
        """The exact p(z | x) at each image: batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        weight, bias = self.decoder.parameters()
        precision = torch.eye(weight.shape[1]).to(bias) + weight.T @ weight / self.variance
        residual = x.flatten(1) - bias
        if x.isnan().any():
            seen = (~x.flatten(1).isnan()).to(bias)
            spread = torch.einsum("di,nd,dj->nij", weight, seen, weight)
            precision = torch.eye(weight.shape[1]).to(bias) + spread / self.variance
            residual = residual.nan_to_num()
        moment = residual @ weight / self.variance
        loc = torch.linalg.solve(precision, moment[..., None])[..., 0]
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def exact_values(self, x: Tensor) -> TorchDistribution:
        """The exact p(x' | x) of new values at the code of each image: event_shape `(D,)`.

        Where a value of x is missing, it is the distribution of that value.
        """
        weight, bias = self.decoder.parameters()
        p = self.exact_posterior(x)
        noise = self.variance * torch.eye(len(bias)).to(bias)
        covariance = weight @ p.covariance_matrix @ weight.T + noise
        return dist.MultivariateNormal(p.mean @ weight.T + bias, covariance)

    def elbo(self, x: Tensor, beta: float = 1.0) -> Tensor:
        """The exact E log p(x | z) - beta KL of the guide as it is, in nats, shape `(N,)`."""
        weight, _ = self.decoder.parameters()
        q = self.encode(x)
        seen = (~x.flatten(1).isnan()).to(weight)
        spread = ((weight @ q.scale_tril).square().sum(-1) * seen).sum(-1) / self.variance
        identity = torch.eye(weight.shape[1]).to(weight)
        prior = dist.MultivariateNormal(torch.zeros_like(q.mean), identity)
        return self.decode(q.mean).log_prob(x) - spread / 2 - beta * kl_divergence(q, prior)

    @torch.no_grad()
    def make_guide_exact(self) -> None:
        """Set the guide's parameters so that it is the exact posterior of the model as it is."""
        weight, _ = self.encoder.parameters()
        origin = self.exact_posterior(torch.zeros(1, weight.shape[1]).to(weight))
        slope = self.exact_posterior(torch.eye(weight.shape[1]).to(weight)).mean - origin.mean
        self.set_guide(origin.mean[0], origin.scale_tril[0])
        weight[: len(slope.T)] = slope.T

    @torch.no_grad()
    def set_guide(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Make the guide the same Gaussian for every image.

        Arguments:
            loc: Its mean, shape `(latent_dim,)`.
            scale_tril: The Cholesky factor of its covariance, shape `(latent_dim, latent_dim)`.
        """
        weight, bias = self.encoder.parameters()
        lower = scale_tril.tril(-1)
        scale = scale_tril.diagonal()
        matrix = len(loc) * lower / scale[:, None] + scale.log().diag()
        weight.zero_()
        bias.copy_(torch.cat([loc, matrix.flatten()]))


class PPCA(NamedTuple):
    """Probabilistic PCA at its maximum likelihood."""

    log_likelihood: float
    """Of the data, in nats per image."""
    scale: float
    """The noise's standard deviation."""


def probabilistic_pca(covariance: Tensor, latent_dim: int) -> PPCA:
    r"""The maximum likelihood of :math:`\mathcal{N}(\mu, W W^\top + \sigma^2 I)` in closed form.

    A VAE with a linear decoder, a linear encoder and one learned noise scale has no better ELBO,
    and can reach it (Lucas et al., 2019).

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196
        | Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse (Lucas et al., 2019)
        | https://arxiv.org/abs/1911.02469

    Arguments:
        covariance: The data's covariance about their mean, with N in the denominator, shape
            `(D, D)`.
        latent_dim: Number of columns of W, under D.

    Example:
        >>> round(probabilistic_pca(torch.eye(3) * 4, 1).scale, 4)
        2.0
    """
    values = torch.linalg.eigvalsh(covariance.double()).flip(0)
    noise = values[latent_dim:].mean()
    log_det = values[:latent_dim].log().sum() + (len(values) - latent_dim) * noise.log()
    log_likelihood = -0.5 * (len(values) * (1 + log(2 * torch.pi)) + log_det)
    return PPCA(log_likelihood.item(), noise.sqrt().item())


def _check_distribution(
    module: nn.Module,
    make: Callable[[], TorchDistribution],
    batch_shape: torch.Size,
    event_shape: torch.Size,
    params: Tensor | None = None,
) -> None:
    p = make()
    kind = type(p).__name__
    _require(
        isinstance(p, TorchDistributionMixin),
        f"forward must return a distribution of Pyro, but returns a {kind}; take it from"
        " pyro.distributions",
    )
    _require(
        (p.batch_shape, p.event_shape) == (batch_shape, event_shape),
        f"batch_shape and event_shape must be {_shape(batch_shape, event_shape)}, but are"
        f" {_shape(p.batch_shape, p.event_shape)}; use to_event({len(event_shape)}), and expand"
        " parameters to the shape of the event",
    )
    shape = p.sample().shape
    _require(
        shape == p.shape(),
        f"a sample must have shape {_shape(p.shape())}, but has {_shape(shape)}; make sample return"
        " batch_shape + event_shape",
    )
    size = batch_shape or torch.Size([5])
    with pyro.plate("data", size[0]):
        shape = pyro.sample("value", p).shape
    _require(
        shape == size + event_shape,
        f"a sample in a plate of {size[0]} must not have shape {_shape(shape)}; make expand and"
        " sample honour the batch_shape",
    )
    _check_gradients(module, p, params)


def _check_gradients(module: nn.Module, p: TorchDistribution, params: Tensor | None) -> None:
    if p.has_rsample:
        drawn = p.rsample()
    else:
        drawn = p.sample()
    score = p.log_prob(drawn.detach())
    _require(
        score.shape == p.batch_shape,
        f"log_prob must have shape {_shape(p.batch_shape)}, but has {_shape(score.shape)}; sum it"
        " over the event",
    )
    _require(
        bool(score.isfinite().all()),
        "log_prob of its own samples is not finite; bound its parameters",
    )
    learned: dict[str, Tensor] = dict(module.named_parameters())
    if params is not None:
        learned["params"] = params
    if not learned:
        return
    objective = score.sum() + drawn.square().sum()
    advice = "use it without .detach(), .item() or torch.no_grad()"
    _require(objective.requires_grad, f"no gradient reaches {', '.join(learned)}; {advice}")
    grads = torch.autograd.grad(objective, list(learned.values()), allow_unused=True)
    for name, grad in zip(learned, grads, strict=True):
        _require(grad is not None, f"no gradient reaches {name}; {advice}")
        _require(
            bool(grad.isfinite().all()),
            f"the gradient of {name} is not finite; bound the parameters of the distribution",
        )


def _check_density(p: TorchDistribution) -> None:
    r"""Compare the density of a distribution over vectors with its draws.

    For any density r, :math:`E_p[r / (p + r)] = E_r[p / (p + r)]`. Both sides are bounded, so the
    test is valid for any tails.
    """
    # Pyro's nearest-neighbour test, gof.vector_density_goodness_of_fit, does not replace it. It
    # misses a scale that is 10 % off in one or two dimensions, and it rejects right densities from
    # two dimensions on, because the density is not constant between neighbours (p = 1e-8 for a
    # Laplace in 2 dimensions, 1e-10 for a Gaussian in 8).
    support = _support(p)
    _require(
        not support.is_discrete,
        f"{type(p).__name__} is discrete; a code needs a density over real numbers",
    )
    # Gaussians are compared on the unconstrained space: they lie partly outside any other.
    to_support = biject_to(support)
    draws = to_support.inv(p.sample(torch.Size([2 * SAMPLES])).detach())
    fitted, tested = draws.reshape(2 * SAMPLES, -1).double().split(SAMPLES)

    def log_p(u: Tensor) -> Tensor:
        v = u.to(draws.dtype).reshape(-1, *draws.shape[1:])
        z = to_support(v)
        score = p.log_prob(z).detach() + to_support.log_abs_det_jacobian(v, z)
        return score.reshape(-1).double()

    gaussians = _neighbourhoods(fitted)
    log_p_tested = log_p(tested)
    for r in gaussians:
        u = r.sample(torch.Size([SAMPLES]))
        under_p = (r.log_prob(tested) - log_p_tested).sigmoid()
        under_r = (log_p(u) - r.log_prob(u)).sigmoid()
        error = ((under_p.var() + under_r.var()) / SAMPLES).sqrt().clamp(min=1e-300)
        z_score = (under_p.mean() - under_r.mean()).abs() / error
        p_value = len(gaussians) * torch.special.erfc(z_score / 2**0.5).item()
        _require_likely(
            p_value,
            "the density does not fit the samples, or is not normalized; compare sample and"
            " log_prob",
        )


def _neighbourhoods(u: Tensor) -> list[TorchDistribution]:
    """Gaussians of half the covariance of some of the points.

    Of most points, of half of them, and of the tenth that is closest to each of a few. A narrow r
    has power at first order in an error of the scale, and one that is centred elsewhere against
    errors of a mode.
    """
    middle = u.median(0).values
    scale = (u - middle).abs().median(0).values
    near = [(middle, 0.9), (middle, 0.5), *((centre, 0.1) for centre in u[:CENTRES])]
    gaussians = []
    for centre, share in near:
        distances = ((u - centre) / scale).square().sum(-1)
        nearest = u[distances.topk(int(share * len(u)), largest=False).indices]
        covariance = torch.cov(nearest.T).reshape(u.shape[-1], -1)
        gaussians.append(dist.MultivariateNormal(nearest.mean(0), covariance / 2))
    return gaussians


def _support(p: TorchDistribution) -> Any:
    """The support, or all real numbers where it is unknown.

    A mixture gives that of its components.
    """
    try:
        support: Any = p.support
        if isinstance(p, dist.MixtureSameFamily):
            support = support.base_constraint
        if not support.is_discrete:
            biject_to(support)
    except (NotImplementedError, AttributeError):
        return constraints.independent(constraints.real, len(p.event_shape))
    return support


def _check_pixel(likelihood: Likelihood, params: Tensor) -> None:
    """Check the density of one pixel, or of several if each has parameters of its own."""
    p = likelihood(params)
    if isinstance(p, GivenTotal):
        p = p.at(torch.full_like(p.total, TOTAL))
    pixels = p.event_shape.numel()
    indices = torch.linspace(0, pixels - 1, min(pixels, ELEMENTS)).long()
    draws = p.sample(torch.Size([SAMPLES])).reshape(SAMPLES, pixels)[:, indices].double()
    points = max(POINTS // pixels, POINTS // 10)
    levels = {"binary": 2, "byte": LEVELS, "count": points}.get(likelihood.pixels)
    if likelihood.largest is not None:
        levels = likelihood.largest + 1
    if levels is None:
        x, width = _grid(_support(p), points, len(p.event_shape))
    else:
        _require(
            bool((draws == draws.round()).all()),
            f"pixels is {likelihood.pixels!r}, but the samples are not integers; change pixels, or"
            " sample integers",
        )
        x = torch.arange(levels).double().reshape(-1, *[1] * len(p.event_shape))
        width = torch.ones_like(x)
    x = x.expand(-1, *p.event_shape)
    mass = _density(p, x)[:, indices] * width.expand_as(x).reshape(len(x), pixels)[:, indices]
    values = x.reshape(len(x), pixels)[:, indices]
    means = p.mean.reshape(-1)[indices]
    for one in range(len(indices)):
        _check_one_pixel(values[:, one], mass[:, one], means[one].item(), draws[:, one], levels)


def _check_one_pixel(
    x: Tensor, mass: Tensor, stated: float, draws: Tensor, levels: int | None
) -> None:
    """Compare the masses at the values of a pixel with 1, with the mean and with draws."""
    total = mass.sum().item()
    mean = (mass * x).sum().item()
    tolerance = 1e-4 if levels is None else 1e-6
    _require(
        abs(total - 1) < tolerance,
        f"the density of a pixel integrates to {total:.6g}, not to 1; normalize log_prob",
    )
    _require(
        abs(stated - mean) < 1e-3 * max(1, abs(mean)),
        f"the mean of a pixel is {mean:.4g}, but .mean says {stated:.4g}; correct .mean",
    )
    cell = torch.bucketize(draws.contiguous(), ((x[1:] + x[:-1]) / 2).contiguous())
    # The CDF at the draws, at random within each cell.
    uniform = mass.cumsum(0)[cell] - torch.rand(SAMPLES) * mass[cell]
    _require_likely(
        unif01_goodness_of_fit(uniform.clamp(0, 1)),
        "the samples do not fit the density; compare sample and log_prob",
    )


def _density(p: TorchDistribution, x: Tensor) -> Tensor:
    """The density of each pixel, shape `(len(x), pixels)`, at values of shape `(M, *event_shape)`.

    For one pixel it is that of the image. Several pixels must be independent.
    """
    pixels = p.event_shape.numel()
    if pixels == 1:
        return p.log_prob(x).exp().detach().reshape(-1, 1)
    base = p
    while isinstance(base, Independent):
        base = base.base_dist
    _require(
        base.event_shape == (),
        "the pixels must be independent, because they have parameters of their own; return a"
        " distribution of single pixels with to_event(3)",
    )
    chunks = x.split(max(1, CHUNK // pixels))
    scores = [base.log_prob(chunk).detach().reshape(len(chunk), pixels) for chunk in chunks]
    return torch.cat(scores).exp()


def _grid(support: Any, points: int, dims: int) -> tuple[Tensor, Tensor]:
    """Points of a support with their weights in an integral, each `(M, 1, ...)` or of an event.

    They are dense at finite ends and in the middle of the real line.
    """
    t = torch.linspace(-15, 15, points + 1, dtype=torch.float64)
    t = t.reshape(-1, *[1] * dims)
    to_support = biject_to(support)
    if isinstance(support, constraints.independent):
        to_support = biject_to(support.base_constraint)
    u = t.sinh()
    x = to_support(u)
    width = to_support.log_abs_det_jacobian(u, x).exp() * t.cosh() * (t[1] - t[0])
    # Towards the ends both overflow or underflow, on half a line.
    inside = x.isfinite() & width.isfinite() & (width > 0)
    rows = inside.flatten(1).all(1)
    return x[rows], width[rows]


def _check_extremes(likelihood: Likelihood, data_shape: Shape) -> None:
    low = 0.0
    high = 1.0
    if likelihood.pixels == "dequantized":
        low = 2.0**-24
        high = 1.0 - low
    elif likelihood.pixels == "byte":
        high = LEVELS - 1.0
    elif likelihood.pixels == "count":
        high = float(likelihood.largest or LARGE_COUNT)
    elif likelihood.pixels == "real":
        low, high = -LARGE_REAL, LARGE_REAL
    for size in (-30.0, 30.0):
        params = torch.full((1, likelihood.num_params, *data_shape), size, requires_grad=True)
        for value in (low, high):
            score = likelihood(params).log_prob(torch.full((1, *data_shape), value)).sum()
            (grad,) = torch.autograd.grad(score, params)
            where = f"at a pixel of {value:.3g} and decoder outputs of {size:.3g}"
            _require(
                bool(score.isfinite() and grad.isfinite().all()),
                f"log_prob or its gradient is not finite {where}; bound what it computes",
            )


def _check_module(module: nn.Module, make: Callable[[nn.Module], TorchDistribution]) -> None:
    z = make(module).sample()
    other = copy.deepcopy(module)
    with torch.no_grad():
        for param in other.parameters():
            param.add_(1.0)
    other.load_state_dict(module.state_dict())
    same = torch.allclose(make(other).log_prob(z), make(module).log_prob(z), rtol=1e-4, atol=1e-5)
    _require(same, f"loading its state_dict changes the density; {REGISTER}")
    if any(tensor.is_floating_point() for tensor in [*module.parameters(), *module.buffers()]):
        dtype = make(other.double()).sample().dtype
        _require(dtype == torch.float64, f"after .double() samples are {dtype}; {REGISTER}")
    if torch.cuda.is_available():
        device = make(copy.deepcopy(module).cuda()).sample().device.type
        _require(device == "cuda", f"after .cuda() samples are on the {device}; {REGISTER}")


def _like(module: nn.Module, tensor: Tensor) -> Tensor:
    """The tensor with the dtype and on the device of a module."""
    return tensor.to(next(iter([*module.parameters(), *module.buffers()]), tensor))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


def _require_likely(p_value: float, message: str) -> None:
    _require(p_value > FAILURE_RATE, f"{message} (p = {p_value:.1g})")


def _shape(*shapes: torch.Size) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)
