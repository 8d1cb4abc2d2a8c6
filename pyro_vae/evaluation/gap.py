"""The inference gap: what the family of posteriors costs, and what the encoder costs."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.optim import Adam

from pyro_vae.engine.graphs import AnyEngine, Graph, pick_engine
from pyro_vae.engine.importance import log_likelihood
from pyro_vae.engine.precision import products
from pyro_vae.engine.programs import Batch, Program
from pyro_vae.engine.progress import progress_bar
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.evaluation.ais import annealed_log_weights, can_anneal
from pyro_vae.evaluation.batch import IMAGES, BatchLike, scored
from pyro_vae.evaluation.metrics import RELIABLE, Metrics, score, summary
from pyro_vae.evaluation.quadrature import (
    exact_draws,
    has_two_dimensions,
    quadrature_log_likelihood,
)
from pyro_vae.objectives import StickingTheLandingELBO
from pyro_vae.vae import Model, default_batch_size

Method = Literal["quadrature", "ais", "is"]

# Rise of the mean ELBO, in nats per round of steps, below which the optimization ends.
RISE = 0.01
# Draws, steps of Adam and its first learning rate to place a posterior on the exact one.
PLACING_DRAWS = 200
PLACING_STEPS = 300
PLACING_RATE = 0.3
# Samples for the ELBOs that choose the better of two results.
CHOOSING_SAMPLES = 1000


class Search(NamedTuple):
    """How posteriors are optimized.

    Attributes:
        steps: Steps of Adam in each round.
        rounds: Largest number of rounds.
        learning_rate: Adam's learning rate, which decays linearly to 0 in each round.
        draws: Draws for each gradient.
    """

    steps: int
    rounds: int
    learning_rate: float
    draws: int


class Gap(NamedTuple):
    """The inference gap of each image, in nats, each of shape `(N,)`, and how it was measured."""

    log_likelihood: Tensor
    """log p(x) by quadrature, or a lower bound in expectation, see `method`."""
    local_elbo: Tensor
    """The ELBO of the best posterior of the family, optimized for each image."""
    elbo: Tensor
    """The ELBO of the encoder's posterior."""
    params: Tensor
    """The parameters of the best posterior, shape `(N, num_params, latent_dim)`; of the most likely
    label, if labels are inferred."""
    method: Method
    """How log p(x) was estimated: by quadrature; or, as the higher of two bounds, by annealed
    importance sampling or by importance sampling from the best posterior."""
    pareto_k: Tensor
    """k-hat of the importance weights of the best posterior, as for `params`."""
    num_samples: int
    """Samples of each image for each metric."""

    @property
    def approximation(self) -> Tensor:
        """The cost of the family: log p(x) minus the best ELBO.

        Unless log p(x) is by quadrature, its mean is a lower bound in expectation, if the
        optimization found the best posterior.
        """
        return self.log_likelihood - self.local_elbo

    @property
    def amortization(self) -> Tensor:
        """The cost of the encoder: the best ELBO minus the encoder's."""
        return self.local_elbo - self.elbo

    def summary(self) -> Metrics:
        """The means over images with their standard errors, as `pyro-vae evaluate` reports them."""
        return {
            "total": summary(self.log_likelihood - self.elbo, self.num_samples),
            "approximation": summary(self.approximation, self.num_samples),
            "amortization": summary(self.amortization, self.num_samples),
            "method": self.method,
            "share_of_images_with_k_hat_over_0.7": self._share_of_unreliable(),
        }

    def _share_of_unreliable(self) -> float | None:
        if self.pareto_k.isnan().any():
            return None
        return (self.pareto_k > RELIABLE).double().mean().item()


@products("float32")
def inference_gap(
    vae: Model,
    data: BatchLike,
    *,
    num_samples: int = 1000,
    steps: int = 200,
    rounds: int = 10,
    learning_rate: float = 0.05,
    draws: int = 10,
    num_chains: int = 16,
    num_temperatures: int = 500,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Gap:
    r"""Split :math:`\log p(x) - \mathrm{ELBO}` into approximation gap and amortization gap.

    Adam optimizes the posterior's parameters for each image, starting from the encoder's, in rounds
    of steps until the ELBO stops rising; the results are scored with new draws. If the code has two
    dimensions it also starts from the parameters that fit the exact posterior, because the search
    from the encoder's may end in a local optimum, and the better result is kept. Its gradients are
    those of `StickingTheLandingELBO`. In a hierarchical VAE the parameters are those of q(z | x);
    the other sites of the guide stay as they are.

    A model that infers labels has a best posterior q(z | x, y) for each label y, and the best q(y |
    x) in closed form: the best ELBO is the logarithm of the sum over labels of exp ELBO(x, y). This
    takes as many times longer as there are labels. The amortization gap includes the classifier's.

    log p(x) is computed by quadrature if the code has two dimensions. Otherwise it is the higher,
    on average over the images, of two lower bounds: annealed importance sampling, and importance
    sampling from the optimized posterior. The approximation gap is then a lower bound, too.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
        | https://arxiv.org/abs/1801.03558

    Arguments:
        vae: A VAE whose posterior has reparameterized draws.
        data: The images, see `scored`.
        num_samples: Samples for each metric.
        steps: Steps of Adam in each round.
        rounds: Largest number of rounds. They end earlier if the mean ELBO rises by less than 0.01
            nats.
        learning_rate: Adam's learning rate, which decays linearly to 0 in each round.
        draws: Draws for each gradient.
        num_chains: Chains of annealing for each image.
        num_temperatures: Temperatures of annealing.
        batch_size: Decoder rows per pass; None is `default_batch_size`.
        engine: What runs the passes, see `Graph`; "auto" depends on the number of steps.

    Raises:
        RequestError: If the posterior has no reparameterized draws, or a number is not positive.
    """
    batch = scored(vae, data)
    each = _with_each_label(vae, batch)
    batch_size = batch_size or default_batch_size(vae, batch.x)
    exact = _quadrature(vae, batch, batch_size)
    search = Search(steps, rounds, learning_rate, draws)
    params = _best_params(vae, each, search, batch_size, engine, has_exact=exact is not None)
    local = score(*_refitted(vae), Batch(*each, params), num_samples, batch_size)
    encoder = score(vae.model, vae.guide, batch, num_samples, batch_size)
    local_elbo = _by_label(batch, local.elbo).logsumexp(0)
    joint = _by_label(batch, local.log_likelihood)
    # The row of the label with the largest log p(x, y).
    likely = joint.argmax(0) * len(batch) + torch.arange(len(batch))
    gap = Gap(
        joint.logsumexp(0),
        local_elbo,
        encoder.elbo,
        params[likely.to(params.device)],
        "is",
        local.pareto_k[likely],
        num_samples,
    )
    if exact is not None:
        return gap._replace(log_likelihood=exact, method="quadrature")
    if can_anneal(vae.model, batch):
        weights = annealed_log_weights(
            vae.model,
            *batch,
            num_chains=num_chains,
            num_temperatures=num_temperatures,
            batch_size=batch_size,
            engine=engine,
        )
        annealed = log_likelihood(weights.cpu())
        if annealed.mean() > gap.log_likelihood.mean():
            return gap._replace(log_likelihood=annealed, method="ais")
    return gap


@products("float32")
def likelihood_regret(
    vae: Model,
    data: BatchLike,
    *,
    num_samples: int = 100,
    steps: int = 100,
    learning_rate: float = 0.05,
    draws: int = 10,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Tensor:
    """The ELBO of the best posterior of each image minus the encoder's, a score of anomalies.

    It is the amortization gap of `inference_gap`, from fewer steps and without log p(x). An encoder
    that knows an image loses little.

    References:
        | Likelihood Regret: An Out-of-Distribution Detection Score for Variational Auto-encoder
          (Xiao et al., 2020)
        | https://arxiv.org/abs/2003.02977

    Arguments:
        vae: A VAE whose posterior has reparameterized draws.
        data: The images, see `scored`.
        num_samples: Samples for each ELBO.
        steps: Steps of Adam.
        learning_rate: Adam's learning rate, which decays linearly to 0.
        draws: Draws for each gradient.
        batch_size: Decoder rows per pass; None is `default_batch_size`.
        engine: What runs the passes, see `Graph`; "auto" depends on the number of steps.

    Returns:
        In nats, shape `(N,)`, float64 on the CPU.

    Raises:
        RequestError: If the posterior has no reparameterized draws, or a number is not positive.
    """
    batch = scored(vae, data)
    each = _with_each_label(vae, batch)
    batch_size = batch_size or default_batch_size(vae, batch.x)
    search = Search(steps, 1, learning_rate, draws)
    params = _best_params(vae, each, search, batch_size, engine)
    local = score(*_refitted(vae), Batch(*each, params), num_samples, batch_size).elbo
    best = _by_label(batch, local).logsumexp(0)
    return best - score(vae.model, vae.guide, batch, num_samples, batch_size).elbo


def _with_each_label(vae: Model, batch: Batch) -> Batch:
    """The batch once for each label, with that label, if the model infers labels."""
    if not vae.infers_labels:
        return batch
    with torch.no_grad():
        classes = vae.q_y(batch.x[:1]).logits.shape[-1]
    y = torch.arange(classes, device=batch.x.device).repeat_interleave(len(batch))
    return Batch(torch.cat([batch.x] * classes), y)


def _by_label(batch: Batch, values: Tensor) -> Tensor:
    """Log-probabilities of the rows of `_with_each_label`, `(labels, N)`.

    They are minus infinity where another label is known.
    """
    values = values.unflatten(0, (-1, len(batch)))
    if len(values) == 1 or batch.y is None:
        return values
    y = batch.y.to(values.device)
    labels = torch.arange(len(values))[:, None]
    return values.masked_fill((y >= 0) & (labels != y), -torch.inf)


def _refitted(vae: Model) -> tuple[Program, Program]:
    """The model and its guide as programs of x, y and the parameters of the posterior.

    A label that the model infers is given to both programs at the site `y`.
    """

    def model(x: Tensor, y: Any, params: Tensor) -> None:
        if vae.infers_labels:
            poutine.condition(vae.model, {"y": y})(x)
        else:
            vae.model(x, y)

    def guide(x: Tensor, y: Any, params: Tensor) -> None:
        with vae.posterior.register_forward_pre_hook(lambda module, args: (params,)):
            if vae.infers_labels:
                poutine.block(poutine.condition(vae.guide, {"y": y}), hide=["y"])(x)
            else:
                vae.guide(x, y)

    return model, guide


def _best_params(
    vae: Model,
    batch: Batch,
    search: Search,
    batch_size: int,
    engine: AnyEngine,
    has_exact: bool = False,
) -> Tensor:
    """The parameters of the best posterior of each image, `(N, num_params, latent_dim)`.

    With `has_exact` the search also starts from the parameters that fit the exact posterior.
    """
    check_positive(**search._asdict())
    with torch.no_grad():
        params = torch.cat([_posterior_params(vae, rows) for rows in batch.split(IMAGES)])
    if not vae.posterior(params[:1]).has_rsample:
        raise RequestError("the inference gap needs a posterior with reparameterized draws")
    starts = [params]
    if has_exact:
        starts.append(_placed(vae, params, exact_draws(vae, batch, PLACING_DRAWS, batch_size)))
    rows = max(1, batch_size // search.draws)
    steps = len(starts) * search.steps * -(-len(batch) // rows)
    chosen = pick_engine(engine, batch.x.device, steps)
    gradient = Graph(partial(_gradient, *_refitted(vae), search.draws), chosen)
    total = len(starts) * search.rounds * search.steps * len(batch)
    ends = []
    with progress_bar(total, "optimizing posteriors", " steps") as bar:
        for start in starts:
            for part in Batch(*batch, start).split(rows):
                ends.append(_optimize(gradient, part, search, bar))
    candidates = torch.cat(ends).unflatten(0, (len(starts), len(batch)))
    if not has_exact:
        return candidates[0]
    return _better(vae, batch, candidates, batch_size)


def _better(vae: Model, batch: Batch, candidates: Tensor, batch_size: int) -> Tensor:
    """Those of several parameters, `(candidates, N, ...)`, with the best ELBO of each image."""
    elbos = []
    for found in candidates:
        scores = score(*_refitted(vae), Batch(*batch, found), CHOOSING_SAMPLES, batch_size)
        elbos.append(scores.elbo)
    best = torch.stack(elbos).argmax(0).to(candidates.device)
    return candidates[best, torch.arange(len(batch), device=candidates.device)]


def _posterior_params(vae: Model, batch: Batch) -> Tensor:
    """The parameters that the guide hands to the posterior, `(N, num_params, latent_dim)`."""
    seen: list[Tensor] = []
    with vae.posterior.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        vae.q_z(*batch)
    return seen[0]


def _placed(vae: Model, params: Tensor, z: Tensor) -> Tensor:
    """The parameters at which q(z | x) fits draws of the exact posterior, shape `(S, N, 2)`.

    They stay as they are where the family gives such draws no finite density.
    """
    start = params
    params = params.clone()
    # The scale grows first, so that gradients shrink by orders of magnitude: a short memory.
    optimizer = Adam([params], betas=(0.9, 0.95))
    for step in range(PLACING_STEPS):
        optimizer.param_groups[0]["lr"] = PLACING_RATE * (1 - step / PLACING_STEPS)
        with torch.enable_grad(), pyro.validation_enabled(False):
            free = params.detach().requires_grad_()
            loss = -vae.posterior(free).log_prob(z).mean(0).sum()
            (params.grad,) = torch.autograd.grad(loss, [free])
        optimizer.step()
    fits = params.isfinite().flatten(1).all(1)
    return torch.where(fits[:, None, None], params, start)


def _gradient(
    model: Program, guide: Program, draws: int, x: Tensor, y: Tensor | None, params: Tensor
) -> list[Tensor]:
    """The gradient of minus the ELBO for the parameters, and its value."""
    with torch.enable_grad(), pyro.validation_enabled(False):
        params = params.detach().requires_grad_()
        loss = StickingTheLandingELBO(draws).tensor_loss(model, guide, (x, y, params))
        (slope,) = torch.autograd.grad(loss, [params])
    return [slope, loss.detach()]


def _optimize(gradient: Graph, part: Batch, search: Search, bar: Any) -> Tensor:
    """The parameters after the rounds of Adam."""
    x, y, params = part
    params = params.clone()
    previous = None
    for _ in range(search.rounds):
        optimizer = Adam([params], lr=search.learning_rate)
        late = []
        for step in range(search.steps):
            optimizer.param_groups[0]["lr"] = search.learning_rate * (1 - step / search.steps)
            params.grad, loss = gradient(x, y, params)
            optimizer.step()
            if step >= search.steps // 2:
                late.append(loss / len(x))
            bar.update(len(x))
        mean = torch.stack(late).mean().item()
        if previous is not None and previous - mean < RISE:
            break
        previous = mean
    return params


def _quadrature(vae: Model, batch: Batch, batch_size: int) -> Tensor | None:
    """log p(x) of each image, if the code has two dimensions and all integrals converge."""
    if not has_two_dimensions(vae, batch):
        return None
    log_p = quadrature_log_likelihood(vae, batch, batch_size)
    if not log_p.isfinite().all():
        return None
    return log_p
