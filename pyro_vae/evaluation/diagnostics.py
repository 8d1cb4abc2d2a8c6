"""Diagnostics of a trained VAE: information in the code, a linear probe, the inference gap, and a check of log p(x)."""

from __future__ import annotations

from functools import partial
from math import log
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.optim import Adam

from pyro_vae.data.split import Split, check_known_classes
from pyro_vae.engine.graphs import AnyEngine, Graph, pick_engine
from pyro_vae.engine.importance import log_likelihood, log_weights, monte_carlo_error
from pyro_vae.engine.precision import products
from pyro_vae.engine.programs import Batch
from pyro_vae.engine.progress import progress_bar
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.evaluation.ais import annealed_log_weights
from pyro_vae.evaluation.codes import Data, codes, scored
from pyro_vae.evaluation.metrics import (
    ELBO_SAMPLES,
    Metrics,
    Scores,
    score,
    score_images,
    summary,
)
from pyro_vae.evaluation.quadrature import has_two_dimensions, quadrature_log_likelihood
from pyro_vae.vae import OUTPUTS_PER_PASS, Model, default_batch_size

# Estimates of log p(x) that differ by less than this, in nats, agree whatever their errors.
DIFFERENCE = 0.1
# Threshold in standard errors, for about a hundred comparisons.
Z_SCORE = 4.0


class Information(NamedTuple):
    """Information that the codes carry about the images, in nats, with standard errors over images: None for a single one."""

    mutual_information: float
    mutual_information_error: float | None
    marginal_kl: float
    """KL(q(z) || p(z)): the rate minus the mutual information."""
    marginal_kl_error: float | None
    num_images: int
    """N: the mutual information of N images, and its estimate, is at most log N."""


@torch.no_grad()
def information(vae: Model, data: Data, *, num_images: int = 1000) -> Information:
    r"""Split the rate into the mutual information of code and image, and the KL of the aggregate posterior to the prior.

    .. math:: \overline{\mathrm{KL}(q(z \mid x) \,\|\, p(z))} = I_q(x; z) + \mathrm{KL}(q(z) \,\|\, p(z)),
        \qquad q(z) = \tfrac{1}{N} \sum_n q(z \mid x_n)

    It requires a model whose only latent site is `z`. It evaluates one code of each image under the posterior of every image:
    the work is quadratic in their number.

    References:
        | ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson, 2016)
        | http://approximateinference.org/accepted/HoffmanJohnson2016.pdf

    Arguments:
        vae: A VAE.
        data: The images, see `scored`.
        num_images: Number of images to use, N.
    """
    batch = scored(vae, data)[:num_images]
    q = vae.q_z(*batch)
    z = q.sample()
    rows = max(1, OUTPUTS_PER_PASS // z.numel())
    aggregate = torch.cat(
        [q.log_prob(part.unsqueeze(1)).logsumexp(1) for part in z.split(rows)]
    ) - log(len(batch))
    shared = (q.log_prob(z) - aggregate).double().cpu()
    rate = score(vae.model, vae.guide, batch, ELBO_SAMPLES, default_batch_size(vae, batch.x)).kl
    of_code, of_prior = summary(shared, 1), summary(rate - shared, ELBO_SAMPLES)
    return Information(
        of_code["mean"],
        of_code["standard_error"],
        of_prior["mean"],
        of_prior["standard_error"],
        len(batch),
    )


class Accuracy(NamedTuple):
    """The share of images whose label is predicted correctly, and its standard error."""

    accuracy: float
    standard_error: float
    num_images: int


def linear_probe(vae: Model, train: Split, test: Split) -> Accuracy:
    """Logistic regression from the posterior means of labelled training images, scored on test images.

    Raises:
        RequestError: If there are no labels, or only one class, or test images of other classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if train.labels is None or test.labels is None:
        raise RequestError(
            "a linear probe needs labels: add an array `labels`, or one folder per class"
        )
    if len(train.labels.unique()) < 2:
        raise RequestError("a linear probe needs images of at least two classes")
    check_known_classes(train, test)
    seen, unseen = (codes(vae, split).loc.cpu().double().numpy() for split in (train, test))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, tol=1e-3))
    predicted = classifier.fit(seen, train.labels.cpu().numpy()).predict(unseen)
    return _accuracy(torch.from_numpy(predicted) == test.labels.cpu())


def bayes_classifier(
    vae: Model, images: Split, num_classes: int, num_samples: int = 100
) -> Accuracy:
    r"""Predict each label by Bayes' rule with equal class probabilities, :math:`\arg\max_y \log p(x \mid y)`.

    Each log p(x | y) is an importance-weighted estimate.

    Arguments:
        vae: A model of images with classes.
        images: Labelled images.
        num_classes: Number of classes.
        num_samples: Importance samples for each image and class.
    """
    if images.labels is None:
        raise RequestError("a classifier needs labels; use images with labels")
    x = scored(vae, images).x  # the same pixels for every class
    every = [
        torch.full(images.labels.shape, label, device=x.device) for label in range(num_classes)
    ]
    scores = [score_images(vae, Batch(x, label), num_samples) for label in every]
    predicted = torch.stack([score.log_likelihood for score in scores]).argmax(0)
    return _accuracy(predicted == images.labels.cpu())


def _accuracy(right: Tensor) -> Accuracy:
    share = right.double().mean().item()
    return Accuracy(share, (share * (1 - share) / len(right)) ** 0.5, len(right))


class Gap(NamedTuple):
    """The inference gap of each image, in nats, each of shape `(N,)`, and the posteriors that it is measured with."""

    log_likelihood: Tensor
    """The importance-weighted bound, with the best posterior of the family as the proposal."""
    local_elbo: Tensor
    """The ELBO of the best posterior of the family, optimized for each image."""
    elbo: Tensor
    """The ELBO of the encoder's posterior."""
    params: Tensor
    """The parameters of the best posterior, shape `(N, num_params, latent_dim)`."""

    @property
    def approximation(self) -> Tensor:
        """The cost of the family: log p(x) minus the best ELBO."""
        return self.log_likelihood - self.local_elbo

    @property
    def amortization(self) -> Tensor:
        """The cost of the encoder: the best ELBO minus the encoder's."""
        return self.local_elbo - self.elbo


@products("float32")
def inference_gap(
    vae: Model,
    data: Data,
    *,
    num_samples: int = 1000,
    steps: int = 200,
    learning_rate: float = 0.05,
    draws: int = 10,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Gap:
    r"""Split :math:`\log p(x) - \mathrm{ELBO}` into the approximation gap and the amortization gap.

    Adam optimizes the posterior's parameters for each image, starting from the encoder's; the results are scored with new
    draws. In a hierarchical VAE they are those of q(z | x); the other sites of the guide stay as they are.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
        | https://arxiv.org/abs/1801.03558

    Arguments:
        vae: A VAE whose posterior has reparameterized draws.
        data: The images, see `scored`.
        num_samples: Samples for each metric.
        steps: Steps of Adam.
        learning_rate: Its initial learning rate, which decays linearly to 0.
        draws: Draws for each gradient.
        batch_size: Decoder rows per pass; None is `default_batch_size`.
        engine: What runs the passes, see `Graph`; "auto" depends on the number of steps.

    Raises:
        RequestError: If the posterior has no reparameterized draws, or a number is not positive.
    """
    check_positive(steps=steps, learning_rate=learning_rate, draws=draws)
    batch = scored(vae, data)
    with torch.no_grad():
        params = torch.cat([_posterior_params(vae, rows) for rows in batch.split(1000)])
    if not vae.posterior(params[:1]).has_rsample:
        raise RequestError("the inference gap needs a posterior with reparameterized draws")
    batch_size = batch_size or default_batch_size(vae, batch.x)

    def guide(x: Tensor, y: Tensor | None, params: Tensor) -> None:
        with vae.posterior.register_forward_pre_hook(lambda module, args: (params,)):
            vae.guide(x, y)

    programs = (lambda x, y, params: vae.model(x, y), guide)
    rows = max(1, batch_size // draws)
    engine = pick_engine(engine, batch.x.device, steps * -(-len(batch) // rows))
    gradient = Graph(partial(_gradient, *programs, draws), engine)
    best = []
    with progress_bar(steps * len(batch), "optimizing posteriors", " steps") as bar:
        for part in Batch(*batch, params).split(rows):
            best.append(_optimize(gradient, part, steps, learning_rate, bar))
    local = score(*programs, Batch(*batch, torch.cat(best)), num_samples, batch_size)
    encoder = score(vae.model, vae.guide, batch, num_samples, batch_size)
    return Gap(local.log_likelihood, local.elbo, encoder.elbo, torch.cat(best))


def _posterior_params(vae: Model, batch: Batch) -> Tensor:
    """The parameters that the guide hands to the posterior, `(N, num_params, latent_dim)`."""
    seen: list[Tensor] = []
    with vae.posterior.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        vae.q_z(*batch)
    return seen[0]


def _gradient(
    model: Any, guide: Any, draws: int, x: Tensor, y: Tensor | None, params: Tensor
) -> list[Tensor]:
    with torch.enable_grad(), pyro.validation_enabled(False):
        params = params.detach().requires_grad_()
        loss = -log_weights(model, guide, x, y, params, num_samples=draws).mean(0).sum()
        return list(torch.autograd.grad(loss, [params]))


def _optimize(gradient: Graph, part: Batch, steps: int, learning_rate: float, bar: Any) -> Tensor:
    x, y, params = part
    params = params.clone()
    optimizer = Adam([params], lr=learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        (params.grad,) = gradient(x, y, params)
        optimizer.step()
        bar.update(len(x))
    return params


def check_log_likelihood(
    vae: Model,
    data: Data,
    scores: Scores,
    num_images: int = 10,
    num_chains: int = 8,
    num_temperatures: int = 200,
    engine: AnyEngine = "auto",
) -> Metrics:
    """Compare the importance-weighted log p(x) of a few images with a second method that does not use the guide.

    The method is quadrature if the latent space has two dimensions and it converges, otherwise annealed importance sampling.
    Importance sampling and annealing give lower bounds in expectation, so only a higher second estimate is evidence against
    the first: the guide then misses a part of the posterior. With the default settings annealing finds large errors only.

    Arguments:
        vae: A trained model.
        data: The images, see `scored`.
        scores: Their scores, from `score_images`.
        num_images: Number of images to check, evenly spaced.
        num_chains: Chains of annealing for each image.
        num_temperatures: Temperatures of annealing.
        engine: What runs the annealing, see `Graph`.

    Returns:
        `method` ("quadrature" or "ais"), the mean `difference` of the second estimate minus the first, in nats, its
        `standard_error` over the draws of both, the `max_difference`, `num_images`, and `disagree`: whether the second estimate
        is higher by 4 standard errors and 0.1 nats, for one of the images or in the mean.

    Raises:
        RequestError: If a latent site is bounded or discrete.
    """
    everything = scored(vae, data)
    index = torch.linspace(0, len(everything) - 1, min(num_images, len(everything))).long()
    batch = everything[index.to(everything.x.device)]
    method, error = "quadrature", scores.monte_carlo_error[index]
    second = (
        quadrature_log_likelihood(vae, batch)
        if has_two_dimensions(vae, batch)
        else torch.full_like(error, torch.nan)
    )
    if second.isnan().any():  # more dimensions, or no convergence
        options: dict[str, Any] = {
            "num_chains": num_chains,
            "num_temperatures": num_temperatures,
            "engine": engine,
        }
        weights = annealed_log_weights(vae.model, *batch, **options).cpu()
        method, second, error = (
            "ais",
            log_likelihood(weights),
            torch.hypot(error, monte_carlo_error(weights)),
        )
    difference = second - scores.log_likelihood[index]
    mean, mean_error = difference.mean(), error.square().sum().sqrt() / len(error)
    values, errors = torch.cat([difference, mean[None]]), torch.cat([error, mean_error[None]])
    return {
        "method": method,
        "difference": mean.item(),
        "standard_error": mean_error.item(),
        "max_difference": difference.max().item(),
        "num_images": len(difference),
        "disagree": bool((values > (Z_SCORE * errors).clamp(min=DIFFERENCE)).any()),
    }
