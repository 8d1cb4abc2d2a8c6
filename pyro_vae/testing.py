"""Checks for the author of a part: each tells in words what is wrong, and passes silently.

Sampling is seeded inside, so a check gives the same answer at every call.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, log
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.testing.gof import multinomial_goodness_of_fit, unif01_goodness_of_fit
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyro_vae.inference.importance import pareto_k
from pyro_vae.likelihoods import LEVELS, Likelihood, Normal
from pyro_vae.networks import Linear, Shape
from pyro_vae.posteriors import FullRankNormal, Posterior
from pyro_vae.priors import Prior, StandardNormal
from pyro_vae.vae import VAE

FAILURE_RATE = 1e-4
"""Probability with which any one sampling check fails although nothing is wrong."""

SAMPLES = 10_000
CENTRES = 8
SHARP_DIMS = 5
FEW = 8
TAME, RELIABLE = 0.4, 0.7
"""Tail indices under which a ratio of densities surely has a variance, and its mean can be estimated at all."""


class CheckError(AssertionError):
    """A part does not keep its contract; the message says how."""


def check_prior(prior: Prior) -> None:
    """Check a prior: shapes, a draw inside a Pyro model, gradients, its density against its draws, dtype, device, saving.

    In many dimensions, or with heavy tails in several, the test of the density is less sharp.

    Raises:
        CheckError: If something is wrong.

    Example:
        >>> from pyro_vae import StandardNormal
        >>> check_prior(StandardNormal(2))
    """
    with _seeded():
        _require_distribution(prior())
        event_shape = prior().event_shape
        _require(len(event_shape) == 1, f"the event_shape must be (latent_dim,), but is {_shape(event_shape)}: use to_event(1)")
        _check_distribution(prior, prior, torch.Size(), event_shape)
        _check_density(prior())
        _check_module(prior, lambda module: module())


def check_posterior(posterior: Posterior, latent_dim: int = 3) -> None:
    """Check a posterior on random parameters, shape `(N, num_params, latent_dim)`: as `check_prior`, and gradients to them.

    Raises:
        CheckError: If something is wrong.

    Example:
        >>> from pyro_vae import DiagonalNormal
        >>> check_posterior(DiagonalNormal())
    """
    with _seeded():
        params = (torch.randn(4, posterior.num_params, latent_dim) / 2).requires_grad_()
        _check_distribution(posterior, lambda: posterior(params), torch.Size([4]), torch.Size([latent_dim]), params)
        _check_density(posterior(params[:1]).expand(torch.Size([1])))
        _check_module(posterior, lambda module: module(_like(module, params.detach())))


def check_likelihood(likelihood: Likelihood, data_shape: Shape = (1, 2, 3)) -> None:
    """Check a likelihood: shapes, a draw inside a Pyro model, gradients, normalization, the mean, draws, dtype, saving.

    A single pixel is summed over all levels, or integrated over all values, and compared with its draws.

    Arguments:
        likelihood: The likelihood.
        data_shape: Shape of the images to try, (channels, height, width).

    Raises:
        CheckError: If something is wrong.

    Example:
        >>> from pyro_vae import Bernoulli
        >>> check_likelihood(Bernoulli())
        >>> check_likelihood(Bernoulli(relaxed=True))
        Traceback (most recent call last):
        pyro_vae.testing.CheckError: the density of a pixel integrates to 0.42..., not to 1
    """
    with _seeded():
        kinds = ("binary", "unit", "dequantized", "byte")
        _require(likelihood.pixels in kinds, f"pixels must be one of {', '.join(kinds)}, but is {likelihood.pixels!r}")
        params = torch.randn(4, likelihood.num_params, *data_shape, requires_grad=True)
        _check_distribution(likelihood, lambda: likelihood(params), torch.Size([4]), torch.Size(data_shape), params)
        many = likelihood(params[None].expand(3, *params.shape))
        _require(
            many.batch_shape == (3, 4), f"params of shape (3, 4, ...) must give batch_shape (3, 4), not {many.batch_shape}"
        )
        pixel = torch.randn(3, likelihood.num_params, 1, 1, 1).double()
        for one in pixel:
            _check_pixel(copy.deepcopy(likelihood).double(), one)
        _check_extremes(likelihood, data_shape)
        _check_module(likelihood, lambda module: module(_like(module, params.detach())))


class LinearGaussianVAE(VAE):
    r"""The oracle: a VAE in which everything that is otherwise estimated is exact.

    .. math:: p(z) = \mathcal{N}(0, I), \quad p(x \mid z) = \mathcal{N}(W z + b, \sigma^2 I)
        \quad \Rightarrow \quad p(x) = \mathcal{N}(b, W W^\top + \sigma^2 I)

    Its guide is a Gaussian of any covariance whose parameters are affine in x, so that it can be the exact posterior. All the
    methods are differentiable in all parameters.

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196

    Arguments:
        data_shape: Shape of an image; any real numbers are data.
        latent_dim: Number of latent dimensions.
        scale: The standard deviation :math:`\sigma`.

    Example:
        >>> import pyro_vae as pv
        >>> vae = LinearGaussianVAE((1, 2, 3), latent_dim=2)
        >>> x = torch.randn(4, 1, 2, 3)
        >>> vae.make_guide_exact()
        >>> torch.allclose(pv.log_weights(vae.model, vae.guide, x, num_samples=7), vae.log_p(x), atol=1e-4)
        True
    """

    def __init__(self, data_shape: Shape, latent_dim: int, scale: float = 0.5) -> None:
        encoder, decoder = Linear(data_shape, (1 + latent_dim, latent_dim)), Linear((latent_dim,), (1, *data_shape))
        super().__init__(StandardNormal(latent_dim), encoder, FullRankNormal(latent_dim), decoder, Normal(scale))
        self.sigma = scale

    def _affine(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        weight, bias = network.parameters()
        return weight, bias

    def log_p(self, x: Tensor) -> Tensor:
        """The exact log p(x) in nats, shape `(N,)`, of images `x`, shape `(N, *data_shape)`."""
        weight, bias = self._affine(self.decoder)
        noise = self.sigma**2 * torch.eye(len(bias), dtype=bias.dtype, device=bias.device)
        return dist.MultivariateNormal(bias, weight @ weight.T + noise).log_prob(x.flatten(1))

    def exact_posterior(self, x: Tensor) -> TorchDistribution:
        """The exact p(z | x) at each image: batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        weight, bias = self._affine(self.decoder)
        eye = torch.eye(weight.shape[1], dtype=bias.dtype, device=bias.device)
        precision = eye + weight.T @ weight / self.sigma**2
        loc = torch.linalg.solve(precision, weight.T @ (x.flatten(1) - bias).T / self.sigma**2).T
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def elbo(self, x: Tensor, beta: float = 1.0) -> Tensor:
        """The exact E log p(x | z) - beta KL of the guide as it is, in nats, shape `(N,)`."""
        weight, bias = self._affine(self.decoder)
        q = self.encode(x)
        error = (x.flatten(1) - bias - q.mean @ weight.T).square().sum(-1)
        spread = (weight @ q.scale_tril).square().sum((-2, -1))
        size = 2 * torch.pi * self.sigma**2
        reconstruction = -0.5 * ((error + spread) / self.sigma**2 + len(bias) * log(size))
        return reconstruction - beta * torch.distributions.kl_divergence(q, self._prior_for(q))

    def _prior_for(self, q: TorchDistribution) -> TorchDistribution:
        eye = torch.eye(q.event_shape[0], dtype=q.mean.dtype, device=q.mean.device)
        return dist.MultivariateNormal(torch.zeros_like(q.mean), eye)

    @torch.no_grad()
    def make_guide_exact(self) -> None:
        """Set the guide's parameters so that it is the exact posterior of the model as it is."""
        d = self.latent_dim
        weight, bias = self._affine(self.encoder)
        origin = self.exact_posterior(torch.zeros(1, weight.shape[1]).to(weight))
        slope = self.exact_posterior(torch.eye(weight.shape[1]).to(weight)).mean - origin.mean
        scale = origin.scale_tril[0].diagonal()
        lower = d * (origin.scale_tril[0] / scale[:, None]).tril(-1)
        weight.zero_()[:d] = slope.T
        bias[:d], bias[d:] = origin.mean[0], (lower + scale.log().diag()).flatten()


class PPCA(NamedTuple):
    """Probabilistic PCA at its maximum likelihood."""

    log_likelihood: float
    """Of the data, in nats per image."""
    scale: float
    """The noise's standard deviation."""


def probabilistic_pca(covariance: Tensor, latent_dim: int) -> PPCA:
    r"""The maximum likelihood of :math:`\mathcal{N}(\mu, W W^\top + \sigma^2 I)` in closed form.

    A VAE with a linear decoder, a linear encoder and one learned noise scale has no better ELBO, and can reach it
    (Lucas et al., 2019).

    References:
        | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999)
        | https://doi.org/10.1111/1467-9868.00196
        | Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse (Lucas et al., 2019)
        | https://arxiv.org/abs/1911.02469

    Arguments:
        covariance: The data's covariance about their mean, with N in the denominator, shape `(D, D)`.
        latent_dim: Number of columns of W, under D.

    Example:
        >>> round(probabilistic_pca(torch.eye(3) * 4, 1).scale, 4)
        2.0
    """
    values = torch.linalg.eigvalsh(covariance.double()).flip(0)
    noise = values[latent_dim:].mean()
    size = len(values)
    log_det = values[:latent_dim].log().sum() + (size - latent_dim) * noise.log()
    return PPCA((-0.5 * (size * (1 + log(2 * torch.pi)) + log_det)).item(), noise.sqrt().item())


def _check_distribution(
    module: nn.Module,
    make: Callable[[], TorchDistribution],
    batch_shape: torch.Size,
    event_shape: torch.Size,
    params: Tensor | None = None,
) -> None:
    p = make()
    _require_distribution(p)
    shapes = (p.batch_shape, p.event_shape)
    wanted = (batch_shape, event_shape)
    _require(shapes == wanted, f"batch_shape and event_shape must be {_shape(*wanted)}, but are {_shape(*shapes)}")
    z = p.sample()
    _require(z.shape == batch_shape + event_shape, f"a sample must have shape {_shape(p.shape())}, but has {_shape(z.shape)}")
    with pyro.plate("data", batch_shape.numel() if batch_shape else 5):
        drawn = pyro.sample("value", make())
    size = batch_shape or torch.Size([5])
    _require(drawn.shape == size + event_shape, f"sampled in a plate of {size[0]}, it has shape {_shape(drawn.shape)}")
    _check_gradients(module, p, params)


def _require_distribution(p: TorchDistribution) -> None:
    kind = type(p).__name__
    _require(isinstance(p, TorchDistributionMixin), f"forward must return a distribution of Pyro, but returns a {kind}")


def _check_gradients(module: nn.Module, p: TorchDistribution, params: Tensor | None) -> None:
    drawn = p.rsample() if p.has_rsample else p.sample()
    score = p.log_prob(drawn.detach())
    _require(score.shape == p.batch_shape, f"log_prob must have shape {_shape(p.batch_shape)}, but has {_shape(score.shape)}")
    _require(bool(score.isfinite().all()), "log_prob of its own samples is not finite")
    learned = dict(module.named_parameters()) | ({} if params is None else {"params": params})
    objective = score.sum() + drawn.square().sum()
    _require(objective.requires_grad or not learned, f"no gradient reaches {', '.join(learned)}: is it used, or detached?")
    grads = torch.autograd.grad(objective, list(learned.values()), allow_unused=True) if learned else ()
    for name, grad in zip(learned, grads, strict=True):
        _require(grad is not None, f"no gradient reaches {name}: is it used, or detached?")
        _require(bool(grad.isfinite().all()), f"the gradient of {name} is not finite")


def _check_density(p: TorchDistribution) -> None:
    """Compare the density of a distribution over vectors with its draws; where the dimensions are independent, of each too."""
    _require(not _support(p).is_discrete, f"{type(p).__name__} is discrete: codes need a density over real numbers")
    z = p.sample(torch.Size([2 * SAMPLES])).detach()
    _compare(p, z)
    if isinstance(p, dist.Independent) and p.reinterpreted_batch_ndims == 1:
        for i in range(min(z.shape[-1], FEW)):
            _compare(p.base_dist, z, i)


def _compare(p: TorchDistribution, z: Tensor, i: int | None = None) -> None:
    r"""Compare the density, or that of dimension i, with draws.

    Under draws from p, the ratio r / p has mean 1 for any density r. One half of the draws makes several r, Gaussians about
    their middle and about some of them, with lighter tails; the other half tests them, where the ratio has a variance. All
    of this after a map to the whole space, for a Gaussian would lie partly outside of another support.
    """
    real = biject_to(_support(p))
    u = real.inv(z)
    log_p = p.log_prob(z).detach() + real.log_abs_det_jacobian(u, z)
    log_p = log_p.reshape(len(z), -1)[SAMPLES:, i or 0].double()
    known, tested = u.reshape(len(z), -1)[:, slice(None) if i is None else [i]].double().split(SAMPLES)
    middle = known.median(0).values
    around = [_neighbourhood(known, centre, 0.1) for centre in known[:CENTRES]] if known.shape[-1] <= SHARP_DIMS else []
    for r in [_neighbourhood(known, middle, 0.9), _neighbourhood(known, middle, 0.5), *around]:
        log_ratio = r.log_prob(tested) - log_p
        k_hat, log_mean = pareto_k(log_ratio.unsqueeze(1)), log_ratio.logsumexp(0) - log(SAMPLES)
        size, above = log_mean.abs(), log_mean > 0  # a mean far above 1 is unlikely whatever the tail, by Markov's bound
        _require(
            size.item() < (3 if k_hat < RELIABLE else -log(FAILURE_RATE) if above else inf),
            "the density does not fit the samples, or is not normalized, by several nats",
        )
        if k_hat < TAME:
            ratio = log_ratio.exp()
            z_score = (ratio.mean() - 1) / (ratio.std() / SAMPLES**0.5)
            p_value = (2 + len(around)) * torch.special.erfc(z_score.abs() / 2**0.5).item()
            _require_likely(p_value, "the density does not fit the samples, or is not normalized")


def _support(p: TorchDistribution) -> Any:
    """The support, or that of a mixture's components, or all numbers where none is known."""
    try:
        support: Any = p.support.base_constraint if isinstance(p, dist.MixtureSameFamily) else p.support
        if not support.is_discrete:
            biject_to(support)
    except (NotImplementedError, AttributeError):
        return constraints.independent(constraints.real, len(p.event_shape))
    return support


def _neighbourhood(z: Tensor, centre: Tensor, share: float) -> TorchDistribution:
    """A Gaussian of the share of points next to a centre, half as wide as they are: its tails are lighter than theirs."""
    distance = ((z - centre) / (z - centre).abs().median(0).values).square().sum(-1)
    near = z[distance.topk(int(share * len(z)), largest=False).indices]
    return dist.MultivariateNormal(near.mean(0), torch.cov(near.T).reshape(z.shape[-1], -1) / 2)


def _check_pixel(likelihood: Likelihood, params: Tensor) -> None:
    p = likelihood(params)
    draws = p.sample(torch.Size([SAMPLES])).reshape(-1).double()
    levels = {"binary": 2, "byte": LEVELS}.get(likelihood.pixels)
    discrete = levels is not None and bool((draws == draws.round()).all())
    _require(levels is None or discrete, f"it says that it scores {likelihood.pixels} pixels, but samples others")
    if levels is not None:
        _check_levels(p, draws, levels)
    else:
        _check_curve(p, draws)


def _check_levels(p: TorchDistribution, draws: Tensor, levels: int) -> None:
    values = torch.arange(levels).double()
    mass = p.log_prob(values.reshape(-1, 1, 1, 1)).exp().detach()
    total = mass.sum().item()
    _require(abs(total - 1) < 1e-6, f"the probabilities of a pixel's {levels} levels sum to {total:.6g}, not to 1")
    _require_mean(p, (mass * values).sum().item())
    counts = torch.bincount(draws.long(), minlength=levels)
    likely = mass * len(draws) > 5
    pooled = [torch.cat([side[likely], side[~likely].sum(0, keepdim=True)]) for side in (mass, counts)]
    kept = pooled[0] > 1e-9
    fit = multinomial_goodness_of_fit(pooled[0][kept], pooled[1][kept], total_count=len(draws)) if kept.sum() > 1 else 1.0
    _require_likely(fit, "the samples do not fit the probabilities")


def _check_curve(p: TorchDistribution, draws: Tensor) -> None:
    x, width = _real_grid(draws) if draws.min() < 0 or draws.max() > 1 else _unit_grid()
    density = p.log_prob(x.reshape(-1, 1, 1, 1)).exp().detach() * width
    total = density.sum().item()
    _require(abs(total - 1) < 1e-4, f"the density of a pixel integrates to {total:.4g}, not to 1")
    _require_mean(p, (density * x).sum().item())
    below = density.cumsum(0) - density / 2
    position = torch.searchsorted(x, draws.clamp(x[0], x[-1])).clamp(1, len(x) - 1)
    share = (draws - x[position - 1]) / (x[position] - x[position - 1])
    uniform = torch.lerp(below[position - 1], below[position], share.clamp(0, 1)).clamp(0, 1)
    _require_likely(unif01_goodness_of_fit(uniform), "the samples do not fit the density")


def _unit_grid() -> tuple[Tensor, Tensor]:
    """Points in (0, 1), crowded at both ends, with their weights."""
    t = torch.linspace(-36, 36, 200_001, dtype=torch.float64)
    x = t.sigmoid()
    return x, x * (-t).sigmoid() * (t[1] - t[0])


def _real_grid(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Points on the real line, crowded where the draws are, with their weights."""
    t = torch.linspace(-15, 15, 200_001, dtype=torch.float64)
    spread = draws.std()
    return draws.median() + spread * t.sinh(), spread * t.cosh() * (t[1] - t[0])


def _require_mean(p: TorchDistribution, exact: float) -> None:
    stated = p.mean.item()
    _require(
        abs(stated - exact) < 1e-3 * max(1.0, abs(exact)), f"the mean of a pixel is {exact:.4g}, but .mean says {stated:.4g}"
    )


def _check_extremes(likelihood: Likelihood, data_shape: Shape) -> None:
    high = LEVELS - 1.0 if likelihood.pixels == "byte" else 1.0
    off = 2.0**-24 if likelihood.pixels == "dequantized" else 0.0
    for size in (-30.0, 30.0):
        params = torch.full((1, likelihood.num_params, *data_shape), size, requires_grad=True)
        for value in (off, high - off):
            score = likelihood(params).log_prob(torch.full((1, *data_shape), value)).sum()
            (grad,) = torch.autograd.grad(score, params)
            finite = bool(score.isfinite() and grad.isfinite().all())
            _require(
                finite, f"log_prob or its gradient is not finite at a pixel of {value:.3g} and decoder outputs of {size:.3g}"
            )


def _check_module(module: nn.Module, make: Callable[[nn.Module], TorchDistribution]) -> None:
    z = make(module).sample()
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for param in other.parameters():
            param.add_(1.0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    same = torch.allclose(make(other).log_prob(z), make(module).log_prob(z), rtol=1e-4, atol=1e-5)
    _require(same, "after saving and loading its state_dict the density is another: register every tensor that it needs")
    if any(param.is_floating_point() for param in [*module.parameters(), *module.buffers()]):
        double = make(other.double()).sample().dtype
        _require(double == torch.float64, f"after .double() samples are {double}: register every tensor that it needs")
    if torch.cuda.is_available():
        moved = make(copy.deepcopy(module).cuda()).sample().device.type
        _require(moved == "cuda", f"after .cuda() samples are on the {moved}: register every tensor that it needs")


def _like(module: nn.Module, tensor: Tensor) -> Tensor:
    """The tensor with the type and on the device of a module's own."""
    return tensor.to(next(iter([*module.parameters(), *module.buffers()]), tensor))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


def _require_likely(p_value: float, message: str) -> None:
    _require(p_value > FAILURE_RATE, f"{message}: p = {p_value:.1g}")


def _shape(*shapes: torch.Size) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
