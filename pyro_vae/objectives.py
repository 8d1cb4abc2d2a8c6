r"""Objectives that Pyro lacks: subclasses of `pyro.infer.ELBO`, for Pyro's SVI or `pyro_vae.SVI`.

They return the loss as a tensor, so that it can be compiled. Throughout,
:math:`w_k = p(x, z_k) / q(z_k \mid x)` with :math:`z_k \sim q(z \mid x)`. As for `log_weights`,
these are the weights of each row if all sites of the programs are in one plate over the data, and
otherwise those of the whole program: the importance-weighted bound is then that on the joint
density of all rows. `CapacityELBO` requires the plate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from pyro import poutine
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

from pyro_vae.engine.distributed import mean_over_processes
from pyro_vae.engine.importance import log_likelihood, trace_weights
from pyro_vae.engine.joint import ONE_BY_ONE, Joint, Means
from pyro_vae.engine.programs import (
    Batch,
    Program,
    Site,
    StructureError,
    has_rows,
    is_random,
    is_summed_out,
    latent_sites,
    log_prob,
    sample_sites,
    site_sum,
    traces,
)
from pyro_vae.engine.structure import Structure, find_structure
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.schedules import Constant, Linear, Schedule, value_at


class TensorELBO(ELBO, ABC):
    """An ELBO whose loss is a tensor, in nats, summed over the data.

    To write your own, subclass it and write `tensor_loss`::

        class TemperedELBO(TensorELBO):
            def tensor_loss(self, model, guide, args):
                weights = log_weights(model, guide, *args, num_samples=self.num_particles)
                return -0.5 * weights.mean(0).sum()

    Arguments:
        num_particles: Number of samples K for each row of the data.
        vectorize_particles: Draw the samples at once, in a plate at dim -2, or one by one.

    Attributes:
        sums_out: Whether sites with `infer={"enumerate": "parallel"}` are supported: `log_weights`
            sums them out. False by default.

    Raises:
        ValueError: If `num_particles` is not positive.
    """

    sums_out = False

    def __init__(self, num_particles: int = 1, vectorize_particles: bool = True) -> None:
        check_positive(num_particles=num_particles)
        super().__init__(
            num_particles, max_plate_nesting=1, vectorize_particles=vectorize_particles
        )
        self._kind: Any = None

    @abstractmethod
    def tensor_loss(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        """The differentiable loss of programs called with `args`; the first are the data."""

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        if kwargs and not args:
            name = type(self).__name__
            raise RequestError(
                f"{name} requires the data as the first argument; pass it by position"
            )
        kinds = tuple(map(type, (*args, *kwargs.values())))
        self._kind = (model, guide, kinds, tuple(kwargs))
        return self.tensor_loss(partial(model, **kwargs), partial(guide, **kwargs), args)

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(
        self, model: Program, guide: Program, args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        return traces(partial(model, **kwargs), partial(guide, **kwargs), Batch(*args), 1)

    def _runs(self) -> list[int]:
        """Number of samples in each run of the programs."""
        if self.vectorize_particles:
            return [self.num_particles]
        return [1] * self.num_particles


class JointELBO(TensorELBO, ABC):
    """An objective for programs of any structure.

    Programs in one plate over the data have a loss for each row. All others are weighted as a
    whole. They are told apart at the first call with arguments of the same types.

    Arguments:
        num_particles: Number of samples K.
        vectorize_particles: Draw the samples at once or one by one. At once means, for programs in
            one plate, in a plate at dim -2.

    Attributes:
        scaled: Whether scales of sites, such as beta, are supported.
    """

    scaled = False

    def __init__(self, num_particles: int = 1, vectorize_particles: bool = True) -> None:
        super().__init__(num_particles, vectorize_particles)
        self._found: _Found | None = None

    @abstractmethod
    def loss_of_rows(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        """The loss of programs in one plate over the rows of `args[0]`.

        Raises:
            StructureError: If they are not.
        """

    @abstractmethod
    def loss_of_joint(self, joint: Joint) -> Tensor:
        """The loss of programs of another structure."""

    def tensor_loss(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        known = self._found is not None and self._found.kind == self._kind
        if has_rows(args) and not known:
            before = torch.get_rng_state()
            try:
                return self.loss_of_rows(model, guide, args)
            except StructureError:
                torch.set_rng_state(before)
        return self.loss_of_joint(self._joint(model, guide, args))

    def _joint(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Joint:
        """The programs, which are not in one plate.

        What they are is found at the first call with arguments of these types. Later calls read no
        values of tensors, which would break a graph's tracing.
        """
        if not self.scaled:
            model = _NoScales()(model)
            guide = _NoScales()(guide)
        if torch.is_grad_enabled():
            guide = _Paths()(guide)
        if self._found is None or self._found.kind != self._kind:
            structure = find_structure(model, guide, args)
            means = None
            if not self.vectorize_particles:
                means = ONE_BY_ONE
            joint = Joint(model, guide, args, structure, means, self.scaled)
            self._found = _Found(self._kind, structure, joint.means)
            return joint
        return Joint(model, guide, args, self._found.structure, self._found.means, self.scaled)


class _Found(NamedTuple):
    """What a `JointELBO` knows of programs that it has seen."""

    kind: Any
    """The programs, and the types of their arguments."""
    structure: Structure
    means: Means


class ImportanceWeightedELBO(JointELBO):
    r"""The importance-weighted bound with K samples, the objective of the IWAE.

    .. math:: \mathcal{L}_K = \mathbb{E} \log \tfrac{1}{K} \sum_k w_k,
        \qquad \mathcal{L}_1 \le \mathcal{L}_K \le \log p(x)

    With reparameterized samples :math:`z_k = z(\epsilon_k, \phi)` its gradient is
    :math:`\sum_k \tilde w_k \nabla \log w_k` with :math:`\tilde w_k = w_k / \sum_j w_j`. For the
    guide's parameters the signal-to-noise ratio of that estimate falls with K (Rainforth et al.,
    2018); that of `DReGELBO` does not. Scales other than 1, such as beta, are not supported.
    Discrete sites that are marked for enumeration are summed out, see `log_weights`.

    See also:
        `pyro.infer.RenyiELBO` with alpha = 0 has the same value and gradient, but no tensor loss.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        num_particles: Number of samples K.
        vectorize_particles: Draw the samples at once, in a plate at dim -2, or one by one.

    Raises:
        ValueError: If `num_particles` is not positive.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
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

    sums_out = True

    def __init__(self, num_particles: int = 5, vectorize_particles: bool = True) -> None:
        super().__init__(num_particles, vectorize_particles)

    def loss_of_joint(self, joint: Joint) -> Tensor:
        log_p, log_q = joint.log_densities(joint.draw(self.num_particles), self.num_particles)
        return -log_likelihood(log_p - log_q).sum()

    def loss_of_rows(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        x = args[0]
        weights = []
        for count in self._runs():
            p, q = traces(model, guide, Batch(*args), count)
            _refuse_scales(p, q)
            if torch.is_grad_enabled():
                _require_reparameterized(q, self.sums_out)
            weights.append(trace_weights(p, q, x, count))
        return -log_likelihood(torch.cat(weights)).sum()


class PathELBO(JointELBO, ABC):
    r"""A bound whose gradient reaches the guide's parameters only through the path of its samples.

    The parameters :math:`\phi` enter in three places: the density of the guide, the path
    :math:`z(\epsilon, \phi)` of its samples, and, if shared as in a VampPrior, the density of the
    model. The samples are detached from their paths, the densities are evaluated at the detached
    samples, and the gradient with respect to the samples is propagated through the paths with
    weights of its own. The direct gradient of the guide's density is dropped; that of the model's
    density is kept.

    To write your own, subclass it and write `bound` and `weights`.

    Arguments:
        num_particles: Number of samples K.
        vectorize_particles: Draw the samples at once, in a plate at dim -2, or one by one.
    """

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """The value of the bound, shape `(N,)`, given log-weights, `(K, N)`."""

    @abstractmethod
    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the samples in the gradient of the model's density and in the path gradient.

        Both have shape `(K, N)`.
        """

    def loss_of_rows(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        x = args[0]
        cut = _Cut()
        log_p = []
        log_q = []
        for count in self._runs():
            p, q = traces(model, guide, Batch(*args), count, at_draws=cut)
            if not self.scaled:
                _refuse_scales(p, q)
            log_p.append(site_sum(p, x, count, scaled=self.scaled))
            log_q.append(site_sum(q, x, count, scaled=self.scaled))
        model_density = torch.cat(log_p)
        return self._surrogate(model_density, model_density - torch.cat(log_q), cut.along_path)

    def loss_of_joint(self, joint: Joint) -> Tensor:
        paths = joint.draw(self.num_particles)
        draws = dict(paths)
        if torch.is_grad_enabled():
            for name, path in paths.items():
                draws[name] = path.detach().requires_grad_()

        def along_path(target: Tensor) -> Tensor:
            total = target.new_zeros(())
            for name, draw in draws.items():
                (slope,) = torch.autograd.grad(
                    target, draw, retain_graph=True, materialize_grads=True
                )
                total = total + (paths[name] * slope).sum()
            return total

        log_p, log_q = joint.log_densities(draws, self.num_particles)
        return self._surrogate(log_p, log_p - log_q, along_path)

    def _surrogate(
        self, model_density: Tensor, log_weights: Tensor, along_path: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The loss, with the gradient of this estimator."""
        loss = -self.bound(log_weights.detach()).sum()
        if not torch.is_grad_enabled():
            return loss
        of_model, of_path = self.weights(log_weights.detach())
        surrogate = (of_model * model_density).sum() + along_path((of_path * log_weights).sum())
        return loss - (surrogate - surrogate.detach())


class StickingTheLandingELBO(PathELBO):
    r"""The ELBO with a gradient estimator whose variance vanishes as the guide becomes exact.

    The score :math:`\nabla_\phi \log q_\phi(z)` at fixed z has mean zero and is omitted:

    .. math:: \nabla_\phi \mathcal{L} =
        \mathbb{E} \Big[ \frac{\partial}{\partial z} \log w \; \nabla_\phi z(\epsilon, \phi) \Big]

    With the exact posterior :math:`\log w` is constant in z, so that every sample gives zero.

    References:
        | Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference
        | (Roeder et al., 2017)
        | https://arxiv.org/abs/1703.09194

    Arguments:
        num_particles: Number of samples to average over.
        vectorize_particles: Draw the samples at once, in a plate at dim -2, or one by one.

    Raises:
        ValueError: If `num_particles` is not positive.
    """

    scaled = True

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        even = torch.full_like(log_weights, 1 / len(log_weights))
        return even, even


class DReGELBO(PathELBO):
    r"""The importance-weighted bound with K samples and its doubly reparameterized gradient.

    The IWAE's gradient for the guide's parameters contains a score function,
    :math:`\nabla_\phi \log q_\phi(z_k)` at fixed z. Reparameterizing it again gives, with
    :math:`\tilde w_k = w_k / \sum_j w_j`,

    .. math:: \nabla_\phi \mathcal{L}_K = \mathbb{E} \Big[ \sum_k \tilde w_k^2
        \frac{\partial}{\partial z_k} \log w_k \; \nabla_\phi z(\epsilon_k, \phi) \Big],

    whose signal-to-noise ratio does not fall with K. For the model's density, including a
    VampPrior's encoder, it is the IWAE's gradient,
    :math:`\sum_k \tilde w_k \nabla_\theta \log p(x, z_k)`.

    References:
        | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives
        | (Tucker et al., 2019)
        | https://arxiv.org/abs/1810.04152

    Arguments:
        num_particles: Number of samples K.
        vectorize_particles: Draw the samples at once, in a plate at dim -2, or one by one.

    Raises:
        ValueError: If `num_particles` is not positive.
    """

    def __init__(self, num_particles: int = 5, vectorize_particles: bool = True) -> None:
        super().__init__(num_particles, vectorize_particles)

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_likelihood(log_weights)

    def weights(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        normalized = log_weights.softmax(0)
        return normalized, normalized.square()


class _Cut(Messenger):
    """Detaches the samples of a guide from their paths, for gradients through the paths later."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[Tensor, Tensor]] = []

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_random(msg) and not msg["is_observed"]:
            _check_reparameterized(msg)
            path = msg["value"]
            draw = path.detach().requires_grad_()
            msg["value"] = draw
            self.draws.append((path, draw))

    def along_path(self, target: Tensor) -> Tensor:
        """A scalar with the gradient of `target` through the paths of the samples.

        It goes from the last sample to the first, because the path of a sample may start from an
        earlier one.
        """
        total = target.new_zeros(())
        for path, draw in reversed(self.draws):
            (slope,) = torch.autograd.grad(target + total, draw, retain_graph=True)
            total = total + (path * slope).sum()
        return total


class _NoScales(Messenger):
    """Raises `RequestError` for a site with a scale."""

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_random(msg):
            _refuse_scale(msg)


class _Paths(Messenger):
    """Raises `RequestError` for a draw that is not reparameterized."""

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_random(msg) and not msg["is_observed"]:
            _check_reparameterized(msg)


class FreeBitsELBO(JointELBO):
    r"""The ELBO with a lower limit on the KL of each group of latent dimensions, the free bits.

    .. math:: \mathbb{E} \log p(x \mid z)
        - \beta \sum_g \max\big(\lambda, \; \overline{\mathrm{KL}}_g \big)

    The KL of a group g is averaged over the batch, including the shares of other processes. That of
    a latent site that all rows share is limited once, not for each row. It is computed in closed
    form if there is one latent site and torch has a closed form, otherwise from the samples.

    References:
        | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934, appendix C.8

    Arguments:
        floor: The lower limit of each group in nats.
        groups: Number of equal groups of neighbouring dimensions in each latent site; None makes
            each dimension a group. More than one group requires a prior and a posterior with
            independent dimensions.
        num_particles: Number of samples to average over.
        vectorize_particles: Draw the samples at once, in a plate at dim -2, or one by one.

    Raises:
        ValueError: If a number is not positive.
    """

    scaled = True

    def __init__(
        self,
        floor: float = 0.25,
        groups: int | None = None,
        num_particles: int = 1,
        vectorize_particles: bool = True,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        check_positive(floor=floor, groups=groups)
        self.floor = floor
        self.groups = groups

    def loss_of_rows(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        reconstruction, rates = _reconstruction_and_rates(self, model, guide, args, self.groups)
        loss = -reconstruction
        for scale, rate in rates:
            loss = loss + scale * rate.clamp(min=self.floor).sum()
        return loss * len(args[0])

    def loss_of_joint(self, joint: Joint) -> Tensor:
        if joint.structure.enumerated:
            names = ", ".join(sorted(joint.structure.enumerated))
            raise RequestError(
                f"FreeBitsELBO does not sum out {names}; use TraceEnum_ELBO, or draw it in the"
                " guide"
            )
        guide = _Paths()(joint.guide)
        reconstructions = []
        rates: dict[str, list[Tensor]] = {}
        weights: dict[str, Any] = {}
        for _ in range(self.num_particles):
            guide_trace = poutine.trace(guide).get_trace(*joint.args)
            replayed = poutine.replay(joint.model, trace=guide_trace)
            p = sample_sites(poutine.trace(replayed).get_trace(*joint.args))
            q = sample_sites(guide_trace)
            if q.keys() - p.keys():
                raise RequestError(
                    "FreeBitsELBO requires a guide with a distribution for each latent site, but"
                    f" {', '.join(sorted(q.keys() - p.keys()))} is auxiliary; write the guide by"
                    " hand, or use Trace_ELBO"
                )
            observed = [site for name, site in p.items() if name not in q]
            scores = [(site["scale"] * log_prob(site)).sum() for site in observed]
            reconstructions.append(sum(scores, torch.zeros(())))
            for name, site in q.items():
                rate = _rate(site, p[name], len(q) == 1, self.groups)
                rates.setdefault(name, []).append(rate)
                weights[name] = site["scale"] * site["fn"].batch_shape.numel()
        loss = -torch.stack(reconstructions).mean()
        for name, of_site in rates.items():
            mean = torch.stack(of_site).mean(0)
            loss = loss + weights[name] * mean.clamp(min=self.floor).sum()
        return loss


class ScheduledELBO(TensorELBO, ABC):
    """An ELBO with a quantity that changes during training.

    `fit` calls `set_step` before each step. In other training loops, call it yourself.

    Arguments:
        schedule: The quantity at each step.
        num_particles: Number of samples for each row of the data.
        vectorize_particles: Draw the samples at once, in a plate at dim -2, or one by one.
    """

    def __init__(
        self, schedule: Schedule, num_particles: int = 1, vectorize_particles: bool = True
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        self.schedule = schedule

    @cached_property
    def target(self) -> Tensor:
        """The quantity at the present step.

        `set_step` updates it in place, so that graphs stay valid.
        """
        return torch.tensor(value_at(self.schedule, 0))

    def set_step(self, step: int) -> None:
        """Set `target` to its value at `step`, the number of steps already taken."""
        self.target.fill_(value_at(self.schedule, step))


class CapacityELBO(ScheduledELBO):
    r"""The ELBO with the KL held at a capacity that grows during training.

    .. math:: \mathbb{E} \log p(x \mid z) - \gamma \, \big| \overline{\mathrm{KL}} - C(t) \big|

    The KL is averaged over the batch, as in `FreeBitsELBO`. It replaces beta, which must be 1.

    References:
        | Understanding disentangling in beta-VAE (Burgess et al., 2018)
        | https://arxiv.org/abs/1804.03599

    Arguments:
        gamma: Weight of the distance from the capacity.
        capacity: The capacity C in nats at each step; None is a linear rise to 25 nats in 10,000
            steps.
        num_particles: Number of samples to average over.
        vectorize_particles: Draw the samples at once, in a plate at dim -2, or one by one.

    Raises:
        ValueError: If `gamma` is not positive.
    """

    def __init__(
        self,
        gamma: float = 100.0,
        capacity: Schedule | None = None,
        num_particles: int = 1,
        vectorize_particles: bool = True,
    ) -> None:
        capacity = capacity or Linear(steps=10_000, end=25.0)
        super().__init__(capacity, num_particles, vectorize_particles)
        check_positive(gamma=gamma)
        self.gamma = gamma

    def tensor_loss(self, model: Program, guide: Program, args: tuple[Any, ...]) -> Tensor:
        self.target = self.target.to(args[0].device)
        reconstruction, rates = _reconstruction_and_rates(self, model, guide, args, groups=1)
        rate = sum(rate.sum() for _, rate in rates)
        return (self.gamma * (rate - self.target).abs() - reconstruction) * len(args[0])


def _reconstruction_and_rates(
    objective: TensorELBO, model: Program, guide: Program, args: tuple[Any, ...], groups: int | None
) -> tuple[Tensor, list[tuple[Any, Tensor]]]:
    """The reconstruction, and the scale and the KL of each group for each latent site.

    Both are means per row of the data.
    """
    reconstructions = []
    rates: dict[str, list[Tensor]] = {}
    scales: dict[str, Any] = {}
    for count in objective._runs():
        model_trace, guide_trace = traces(model, guide, Batch(*args), count, at_draws=_Paths())
        q = sample_sites(guide_trace)
        latent = latent_sites(model_trace)
        observed = [site for site in sample_sites(model_trace).values() if site["is_observed"]]
        reconstructions.append(sum(site["scale"] * log_prob(site).mean() for site in observed))
        for name, site in latent.items():
            rate = _rate(q[name], site, len(latent) == 1, groups)
            rates.setdefault(name, []).append(rate)
            scales[name] = q[name]["scale"]
    means = [torch.stack(of_site).mean(0) for of_site in rates.values()]
    means = mean_over_processes(means, len(args[0]))
    return torch.stack(reconstructions).mean(), list(zip(scales.values(), means, strict=True))


def _rate(q: Site, p: Site, alone: bool, groups: int | None) -> Tensor:
    """KL(q || p) of a site in each group, shape `(groups,)`, averaged over all draws and rows."""
    if groups == 1:
        return _divergence(q["fn"], p["fn"], q["value"], alone).mean().unsqueeze(0)
    for fn in (q["fn"], p["fn"]):
        if not (isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 1):
            raise RequestError(
                "free bits with several groups require independent dimensions in prior and"
                f" posterior, which site {q['name']} does not have; use groups=1"
            )
    rates = _divergence(q["fn"].base_dist, p["fn"].base_dist, q["value"], alone)
    of_dimensions = rates.flatten(0, -2).mean(0)
    dimensions = len(of_dimensions)
    if groups is None:
        groups = dimensions
    if dimensions % groups:
        raise RequestError(
            f"{dimensions} latent dimensions cannot be divided into {groups} equal groups; change"
            " groups"
        )
    return of_dimensions.reshape(groups, -1).sum(-1)


def _divergence(q: Any, p: Any, z: Tensor, alone: bool) -> Tensor:
    """The KL in closed form, or log q / p at the samples.

    The closed form is right only if no other latent site depends on z.
    """
    if alone:
        with suppress(NotImplementedError):
            return kl_divergence(q, p)
    return q.log_prob(z) - p.log_prob(z)


def _require_reparameterized(guide: Trace, sums_out: bool = False) -> None:
    """Raise `RequestError` unless all samples of a guide are reparameterized.

    Otherwise the gradient would ignore how they depend on the guide's parameters. Sites that are
    summed out have no samples.
    """
    for site in sample_sites(guide).values():
        if not (sums_out and is_summed_out(site)):
            _check_reparameterized(site)


def _check_reparameterized(site: Site) -> None:
    fn = site["fn"]
    if fn.has_rsample:
        return
    while isinstance(fn, Independent):
        fn = fn.base_dist
    kind = type(fn).__name__
    use = "Trace_ELBO"
    if is_summed_out(site):
        use = "TraceEnum_ELBO or ImportanceWeightedELBO"
    raise RequestError(
        f"this objective requires reparameterized samples, which site {site['name']} ({kind})"
        f" lacks; use {use}"
    )


def _refuse_scales(*given: Trace) -> None:
    """Raise `RequestError` if a site has a scale.

    Tensors are only checked in the validated dry run: reading them would break a graph's tracing.
    """
    for trace in given:
        for site in sample_sites(trace).values():
            _refuse_scale(site)


def _refuse_scale(site: Site) -> None:
    scale = site["scale"]
    is_readable = is_validation_enabled() or not isinstance(scale, Tensor)
    if is_readable and scale != 1:
        raise RequestError(UNSCALED)


UNSCALED = (
    "importance-weighted objectives do not support beta != 1, subsampling or other scales; leave"
    " beta at 1, and pass all rows of each plate"
)


# Objectives that require batches of one size, or have two losses.
OTHER_LOOPS = (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    ReweightedWakeSleep,
)


def check_objective(objective: Any, beta: Schedule, model: Trace, guide: Trace) -> None:
    """Raise `RequestError` if an objective is not correct for these programs or this beta.

    Arguments:
        objective: The objective.
        beta: The schedule of beta.
        model: A trace of the model.
        guide: A trace of the guide.
    """
    name = type(objective).__name__
    annealed = not (isinstance(beta, Constant) and beta.value == 1)
    unscaled = isinstance(objective, RenyiELBO | ImportanceWeightedELBO)
    if isinstance(objective, PathELBO):
        unscaled = not objective.scaled
    if annealed and unscaled:
        raise RequestError(f"{name}: {UNSCALED}")
    if annealed and isinstance(objective, CapacityELBO):
        raise RequestError(f"{name} replaces beta; leave beta at 1, and set gamma and capacity")
    if isinstance(objective, OTHER_LOOPS):
        raise RequestError(
            f"{name} is not supported by fit; use Trace_ELBO, with the compiled engine for speed"
        )
    if isinstance(objective, TensorELBO) and torch.is_grad_enabled():
        _require_reparameterized(guide, objective.sums_out)
    if isinstance(objective, TraceMeanField_ELBO):
        _check_closed_forms(name, model, guide)


def _check_closed_forms(name: str, p: Trace, q: Trace) -> None:
    """Raise `RequestError` unless the KL of the latent site has a closed form."""
    guide = sample_sites(q)
    latent = latent_sites(p)
    if len(latent) > 1:
        raise RequestError(
            f"{name} is incorrect for a guide with several stochastic layers; use Trace_ELBO"
        )
    for latent_name, site in latent.items():
        try:
            kl_divergence(guide[latent_name]["fn"], site["fn"])
        except NotImplementedError as error:
            raise RequestError(
                f"{name} requires a closed-form KL, which this posterior and prior do not have; use"
                " Trace_ELBO"
            ) from error
