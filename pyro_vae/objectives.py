r"""Objectives that Pyro lacks, as ELBOs of Pyro's kind: any of its programs, in its SVI or in ours.

Each works on programs whose sites all lie in one plate over the data, as `log_weights` does, and gives its loss as a tensor, so
that it can be compiled. Throughout, :math:`w_k = p(x, z_k) / q(z_k \mid x)` with :math:`z_k \sim q(z \mid x)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from inspect import signature
from typing import Any

import torch
from pyro.distributions import Independent
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    TraceMeanField_ELBO,
)
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.errors import RequestError
from pyro_vae.importance import Program, Site, is_random, log_likelihood, log_prob, sample_sites, site_sum, traces
from pyro_vae.schedules import Constant, Linear, Schedule, value_at


class TensorELBO(ELBO, ABC):
    """An ELBO of Pyro's kind whose loss is a tensor, in nats summed over the data.

    To write your own, subclass it and write `tensor_loss`.

    Arguments:
        num_particles: Number of samples K for each row of the data.
        vectorize_particles: Draw them all at once, in a plate at dim -2; otherwise one after the other.

    Raises:
        ValueError: If there are no samples.
    """

    def __init__(self, num_particles: int = 1, vectorize_particles: bool = True) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be positive, but is {num_particles}")
        super().__init__(num_particles, max_plate_nesting=1, vectorize_particles=vectorize_particles)

    @abstractmethod
    def tensor_loss(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        """The loss of programs called with `args`, the first of which is the data; with its gradient, if that is enabled."""

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if not args:
            first = next(iter(signature(guide).parameters), "")
            if first not in kwargs:
                raise RequestError(f"{type(self).__name__} needs the data as the first argument of model and guide")
            x = kwargs.pop(first)
            return self.differentiable_loss(_taking(model, first), _taking(guide, first), x, **kwargs)
        return self.tensor_loss(partial(model, **kwargs), partial(guide, **kwargs), args)

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        return traces(partial(model, **kwargs), partial(guide, **kwargs), args, 1)

    def _runs(self) -> Iterator[int]:
        """How many samples to draw in each run of the programs."""
        return iter([self.num_particles] if self.vectorize_particles else [1] * self.num_particles)


def _taking(program: Program, name: str) -> Program:
    """The program with its first argument given by name."""
    return lambda x, **kwargs: program(**{name: x}, **kwargs)


class ImportanceWeightedELBO(TensorELBO):
    r"""The importance-weighted bound of K samples, the objective of the IWAE.

    .. math:: \mathcal{L}_K = \mathbb{E} \log \tfrac{1}{K} \sum_k w_k, \qquad \mathcal{L}_1 \le \mathcal{L}_K \le \log p(x)

    By the reparameterization :math:`z_k = z(\epsilon_k, \phi)` its gradient is
    :math:`\sum_k \tilde w_k \nabla \log w_k` with :math:`\tilde w_k = w_k / \sum_j w_j`. In the guide's parameters the
    signal of that estimate fades with K (Rainforth et al., 2018); DReG's does not. The weights are never annealed: a scale
    other than 1 is refused.

    See also:
        `pyro.infer.RenyiELBO` with alpha = 0 has the same value and gradient, but reads its loss as a number.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        num_particles: Number of samples K.
        vectorize_particles: Draw them all at once, in a plate at dim -2; otherwise one after the other.

    Raises:
        ValueError: If there are no samples.

    Example:
        >>> import pyro.distributions as dist
        >>> import pyro
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def exact(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0, 3.0])
        >>> loss = ImportanceWeightedELBO(num_particles=3).loss(model, exact, x)
        >>> round(loss, 4), round(-dist.Normal(0.0, 2**0.5).log_prob(x).sum().item(), 4)
        (6.2965, 6.2965)
    """

    def __init__(self, num_particles: int = 5, vectorize_particles: bool = True) -> None:
        super().__init__(num_particles, vectorize_particles)

    def tensor_loss(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        x = args[0]
        weights = []
        for count in self._runs():
            p, q = traces(model, guide, args, count)
            _refuse_scales(p, q)
            _refuse_discrete(q)
            weights.append(site_sum(p, x, count) - site_sum(q, x, count))
        return -log_likelihood(torch.cat(weights)).sum()


class PathELBO(TensorELBO, ABC):
    r"""A bound whose gradient reaches the guide's parameters only along the path of its draws.

    The parameters play three roles: in the density of the guide, in the path :math:`z(\epsilon, \phi)` of its draws, and in
    the density of the model. Each draw is cut off from its path, the densities are taken at the cut draws, and their gradient
    there is handed back along the path, with weights of its own; what the guide's density has of :math:`\phi` besides is
    dropped. Roles belong to places in the programs, not to parameters: an encoder that the prior shares, as in a VampPrior,
    is trained by the model's density too.

    To write your own, subclass it and write `bound` and `weights`.

    Arguments:
        num_particles: Number of samples K.
        vectorize_particles: Draw them all at once, in a plate at dim -2; otherwise one after the other.

    Attributes:
        scaled: Whether the scales of sites, such as beta, enter; if not, they are refused.
    """

    scaled = False

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """The value of the bound, shape `(N,)`, given log-weights, `(K, N)`."""

    @abstractmethod
    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the samples, each `(K, N)`, in the gradient of the model's density and in that along the path."""

    def tensor_loss(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        x, cut = args[0], _Cut()
        log_p, log_q = [], []
        for count in self._runs():
            p, q = traces(model, guide, args, count, at_draws=cut)
            if not self.scaled:
                _refuse_scales(p, q)
            log_p.append(site_sum(p, x, count, scaled=self.scaled))
            log_q.append(site_sum(q, x, count, scaled=self.scaled))
        model_density, log_weights = torch.cat(log_p), torch.cat(log_p) - torch.cat(log_q)
        loss = -self.bound(log_weights.detach()).sum()
        if not torch.is_grad_enabled():
            return loss
        of_model, of_path = self.weights(log_weights.detach())
        surrogate = (of_model * model_density).sum() + cut.along_path((of_path * log_weights).sum())
        return loss - (surrogate - surrogate.detach())


class StickingTheLandingELBO(PathELBO):
    r"""The ELBO, with a gradient whose variance vanishes as the guide becomes exact.

    The gradient of :math:`\log q_\phi(z)` in :math:`\phi` at a fixed z has mean zero, and is left out:

    .. math:: \nabla_\phi \mathcal{L} =
        \mathbb{E} \Big[ \tfrac{\partial}{\partial z} \log w \; \nabla_\phi z(\epsilon, \phi) \Big]

    With the exact posterior :math:`\log w` is constant in z, so every single draw gives zero.

    References:
        | Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference (Roeder et al., 2017)
        | https://arxiv.org/abs/1703.09194

    Arguments:
        num_particles: Number of samples to average over.
        vectorize_particles: Draw them all at once, in a plate at dim -2; otherwise one after the other.

    Raises:
        ValueError: If there are no samples.
    """

    scaled = True

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        even = torch.full_like(log_weights, 1 / len(log_weights))
        return even, even


class DReGELBO(PathELBO):
    r"""The importance-weighted bound of K samples, with its doubly reparameterized gradient.

    In the guide's parameters the gradient of the IWAE holds a score function, :math:`\nabla_\phi \log q_\phi(z_k)` at a
    fixed z. Reparameterizing that once more leaves, with :math:`\tilde w_k = w_k / \sum_j w_j`,

    .. math:: \nabla_\phi \mathcal{L}_K =
        \mathbb{E} \Big[ \sum_k \tilde w_k^2 \tfrac{\partial}{\partial z_k} \log w_k \; \nabla_\phi z(\epsilon_k, \phi) \Big],

    whose signal does not fade with K. In the model's density, a VampPrior's encoder included, it is the IWAE's gradient,
    :math:`\sum_k \tilde w_k \nabla_\theta \log p(x, z_k)`.

    References:
        | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019)
        | https://arxiv.org/abs/1810.04152

    Arguments:
        num_particles: Number of samples K.
        vectorize_particles: Draw them all at once, in a plate at dim -2; otherwise one after the other.

    Raises:
        ValueError: If there are no samples.
    """

    def __init__(self, num_particles: int = 5, vectorize_particles: bool = True) -> None:
        super().__init__(num_particles, vectorize_particles)

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_likelihood(log_weights)

    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        normalized = log_weights.softmax(0)
        return normalized, normalized.square()


class _Cut(Messenger):
    """Cuts the draws of a guide off from the path that leads to them, and takes gradients back along it."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[Tensor, Tensor]] = []

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_random(msg) and not msg["is_observed"]:
            _refuse_draws(msg)
            path = msg["value"]
            msg["value"] = path.detach().requires_grad_()
            self.draws.append((path, msg["value"]))

    def along_path(self, target: Tensor) -> Tensor:
        """A scalar whose gradient in the guide's parameters is that of `target` along the path of the draws alone.

        From the last draw to the first, for the path of one may start from another.
        """
        total = target.new_zeros(())
        for path, draw in reversed(self.draws):
            (slope,) = torch.autograd.grad(target + total, draw, retain_graph=True)
            total = total + (path * slope).sum()
        return total


class FreeBitsELBO(TensorELBO):
    r"""The ELBO, in which a group of latent dimensions may carry some nats for free, so that it is not given up.

    .. math:: \mathbb{E} \log p(x \mid z) - \beta \sum_g \max\big(\lambda, \; \overline{\mathrm{KL}}_g \big)

    where the KL of a group g is averaged over the batch, by its closed form where there is one latent site and a closed form,
    and else by the draws.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), appendix C.8
        | https://arxiv.org/abs/1606.04934

    Arguments:
        floor: The free nats of each group.
        groups: Number of equal groups, of neighbouring dimensions, in each latent site; None makes each dimension a group.
            More than one needs a prior and a posterior whose dimensions are independent.
        num_particles: Number of samples to average over.
        vectorize_particles: Draw them all at once, in a plate at dim -2; otherwise one after the other.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self, floor: float = 0.25, groups: int | None = None, num_particles: int = 1, vectorize_particles: bool = True
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if not 0 < floor < float("inf"):
            raise ValueError(f"floor must be positive, but is {floor}: without free bits use Trace_ELBO")
        if groups is not None and groups < 1:
            raise ValueError(f"groups must be positive, but is {groups}")
        self.floor, self.groups = floor, groups

    def tensor_loss(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        reconstruction, rates = _reconstruction_and_rates(self, model, guide, args, self.groups)
        return sum((scale * rate.clamp(min=self.floor).sum() for scale, rate in rates), -reconstruction) * len(args[0])


class ScheduledELBO(TensorELBO, ABC):
    """An ELBO with a quantity that changes during training: call `set_step` before each step, as `pyro_vae.fit` does."""

    @abstractmethod
    def set_step(self, step: int) -> None:
        """Set what is scheduled to its value at `step`, the number of steps already taken, in the tensors that hold it."""


class CapacityELBO(ScheduledELBO):
    r"""The KL held at a capacity that grows during training, which takes the place of beta.

    .. math:: \mathbb{E} \log p(x \mid z) - \gamma \, \big| \overline{\mathrm{KL}} - C(t) \big|

    where the KL is averaged over the batch, as in `FreeBitsELBO`.

    References:
        | Understanding disentangling in beta-VAE (Burgess et al., 2018)
        | https://arxiv.org/abs/1804.03599

    Arguments:
        gamma: Weight of the distance from the capacity.
        capacity: The capacity C in nats at each step; None is a straight rise to 25 nats within 10,000 steps.
        num_particles: Number of samples to average over.
        vectorize_particles: Draw them all at once, in a plate at dim -2; otherwise one after the other.

    Raises:
        ValueError: If `gamma` is not positive.
    """

    def __init__(
        self, gamma: float = 100.0, capacity: Schedule | None = None, num_particles: int = 1, vectorize_particles: bool = True
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        if not 0 < gamma < float("inf"):
            raise ValueError(f"gamma must be positive, but is {gamma}")
        self.gamma, self.capacity = gamma, capacity or Linear(steps=10_000, end=25.0)
        self.target = torch.tensor(value_at(self.capacity, 0))

    def set_step(self, step: int) -> None:
        self.target.fill_(value_at(self.capacity, step))

    def tensor_loss(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        self.target = self.target.to(args[0].device)
        reconstruction, rates = _reconstruction_and_rates(self, model, guide, args, groups=1)
        rate = sum(rate.sum() for _, rate in rates)
        return (self.gamma * (rate - self.target).abs() - reconstruction) * len(args[0])


def _reconstruction_and_rates(
    objective: TensorELBO, model: Program, guide: Program, args: tuple[Any, ...], groups: int | None
) -> tuple[Tensor, list[tuple[Any, Tensor]]]:
    """Nats a row, averaged over rows and samples: of the observed sites, and of each latent site's groups with its scale."""
    reconstructions, rates = [], []
    for count in objective._runs():
        given = traces(model, guide, args, count)
        _refuse_discrete(given[1])
        p, q = (sample_sites(trace) for trace in given)
        observed = [site for site in p.values() if site["is_observed"]]
        reconstructions.append(sum(site["scale"] * log_prob(site).mean() for site in observed))
        latent = [(q[name], site) for name, site in p.items() if not site["is_observed"]]
        rates.append([_rate(*pair, len(latent) == 1, groups) for pair in latent])
    mean_rates = [torch.stack(of_site).mean(0) for of_site in zip(*rates, strict=True)]
    return torch.stack(reconstructions).mean(), list(zip((site["scale"] for site, _ in latent), mean_rates, strict=True))


def _rate(q: Site, p: Site, alone: bool, groups: int | None) -> Tensor:
    """KL(q || p) of a site in each group, shape `(groups,)`, averaged over all draws and rows."""
    if groups == 1:
        return _divergence(q["fn"], p["fn"], q["value"], alone).mean().unsqueeze(0)
    if not all(isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 1 for fn in (q["fn"], p["fn"])):
        raise ValueError(
            f"free bits for several groups need independent dimensions in prior and posterior, but at site {q['name']} they"
            " are not: use --objective.groups 1"
        )
    each = _divergence(q["fn"].base_dist, p["fn"].base_dist, q["value"], alone).flatten(0, -2).mean(0)
    if len(each) % (groups or 1):
        raise ValueError(f"{len(each)} latent dimensions do not make {groups} equal groups")
    return each.reshape(groups or len(each), -1).sum(-1)


def _divergence(q: Any, p: Any, z: Tensor, alone: bool) -> Tensor:
    """The closed form holds only where nothing that p depends on is drawn after z."""
    try:
        return kl_divergence(q, p) if alone else q.log_prob(z) - p.log_prob(z)
    except NotImplementedError:
        return q.log_prob(z) - p.log_prob(z)


def _refuse_draws(site: Site) -> None:
    if not site["fn"].has_rsample:
        raise RequestError(f"site {site['name']} has no reparameterized draws, which this objective needs: use Trace_ELBO")


def _refuse_discrete(guide: Trace) -> None:
    """Without reparameterized draws the gradient would lack what the guide's parameters do to them."""
    for site in sample_sites(guide).values() if torch.is_grad_enabled() else ():
        _refuse_draws(site)


def _refuse_scales(*given: Trace) -> None:
    """A tensor is looked at only in the validated first run: its value must not steer a graph."""
    scales = [site["scale"] for trace in given for site in sample_sites(trace).values()]
    if any(scale != 1 for scale in scales if is_validation_enabled() or not isinstance(scale, Tensor)):
        raise ValueError(UNSCALED)


UNSCALED = "importance weights take no beta and no scale, for a scaled weight is no weight: leave beta at 1"


OTHER_LOOPS = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO, ReweightedWakeSleep)
"""Objectives that take every batch to be of one size, or have two losses."""


def check_objective(objective: Any, beta: Schedule, model: Trace, guide: Trace) -> None:
    """Refuse an objective that would compute something else than it says, given traces of the programs.

    Raises:
        RequestError: If there is a beta that it cannot take, or no closed form of a KL that needs one.
    """
    name = type(objective).__name__
    annealed = not (isinstance(beta, Constant) and beta.value == 1)
    weighted = isinstance(objective, RenyiELBO | ImportanceWeightedELBO)
    if annealed and (weighted or (isinstance(objective, PathELBO) and not objective.scaled)):
        raise RequestError(f"{name} cannot be annealed: {UNSCALED}")
    if annealed and isinstance(objective, CapacityELBO):
        raise RequestError(f"{name} takes the place of beta: leave beta at 1, and set --objective.gamma and its capacity")
    if isinstance(objective, OTHER_LOOPS):
        raise RequestError(f"{name} does not go with this training: use Trace_ELBO, with the compiled engine for speed")
    if isinstance(objective, TensorELBO):
        _refuse_discrete(guide)
    if isinstance(objective, TraceMeanField_ELBO):
        _check_closed_forms(name, model, guide)


def _check_closed_forms(name: str, p: Trace, q: Trace) -> None:
    latent = {site_name: site for site_name, site in sample_sites(p).items() if not site["is_observed"]}
    if len(latent) > 1:
        raise RequestError(f"{name} is wrong for a guide of several stochastic layers: use Trace_ELBO")
    for site_name, site in latent.items():
        try:
            kl_divergence(sample_sites(q)[site_name]["fn"], site["fn"])
        except NotImplementedError as error:
            raise RequestError(
                f"{name} needs a closed form of the KL, and this posterior and prior have none: use Trace_ELBO"
            ) from error
